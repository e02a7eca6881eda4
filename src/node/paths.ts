/** Where things are in a data directory. Names of tenants are never paths: files are named by id. */
import { join } from 'node:path';
import type { TenantId } from '../base/brands.ts';

/** Of a recovery of the group that was cut off (`group-recovery-journal.ts`). */
export const RECOVERY_FILE = 'recovery.json';

export const tenantDir = (dir: string, id: TenantId): string => join(dir, 'tenants', `tenant_${id}`);
export const tenantPath = (dir: string, id: TenantId): string => join(tenantDir(dir, id), 'data.sqlite');
