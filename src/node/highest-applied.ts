/** The highest position that any tenant file says it holds: the log must not end below it. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { NO_LSN, type Lsn } from '../base/brands.ts';
import { Connection } from '../store/connection.ts';
import { readTenantMeta } from '../store/tenant-file.ts';

/**
 * Asked only when the log ends in a torn record, before anything opens these files. A file that cannot be read says
 * nothing here; it is reported when its tenant is opened.
 */
export function highestApplied(dir: string): Lsn {
  let highest: Lsn = NO_LSN;
  for (const path of tenantFiles(dir)) {
    try {
      using connection = new Connection(path, { role: 'reader', statementCacheMax: 1 });
      const meta = readTenantMeta(connection);
      if (meta !== undefined && meta.lsn > highest) highest = meta.lsn;
    } catch {
      continue;
    }
  }
  return highest;
}

function tenantFiles(dir: string): string[] {
  try {
    return readdirSync(join(dir, 'tenants')).map((name) => join(dir, 'tenants', name, 'data.sqlite'));
  } catch {
    return []; // no tenant was ever opened
  }
}
