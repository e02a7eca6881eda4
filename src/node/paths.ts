/** Where things are in a data directory. Names of tenants are never paths: files are named by id. */
import { join } from 'node:path';
import type { TenantId } from '../base/brands.ts';

export const tenantDir = (dir: string, id: TenantId): string => join(dir, 'tenants', `tenant_${id}`);
export const tenantPath = (dir: string, id: TenantId): string => join(tenantDir(dir, id), 'data.sqlite');
