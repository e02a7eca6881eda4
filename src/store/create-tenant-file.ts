/**
 * Makes the file of a new tenant whole: as bytes in memory, written under another name, synced, and renamed. Made in
 * place by SQLite it takes a rollback journal and several syncs of the caller's thread.
 */
import { statSync } from 'node:fs';
import { mkdir, open, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { diskError } from '../base/disk.ts';
import { Connection } from './connection.ts';
import { fromSqlite } from './sqlite-errors.ts';
import { formatTenant, writeName, type TenantIdentity } from './tenant-file.ts';

/** Where the header says how the database is written and read; 2 stands for WAL. */
const WRITE_VERSION_OFFSET = 18;
const READ_VERSION_OFFSET = 19;
const WAL_VERSION = 2;

export async function createTenantFile(path: string, identity: TenantIdentity): Promise<void> {
  const temporary = `${path}.new`;
  try {
    await mkdir(dirname(path), { recursive: true });
    // What stood beside a file that is gone must not be taken for a part of this one.
    for (const suffix of ['-wal', '-shm']) await rm(path + suffix, { force: true });
    const file = await open(temporary, 'w');
    try {
      await file.writeFile(tenantFileBytes(identity));
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => {});
    throw diskError('create', path, error);
  }
}

/** Of a file that nobody has open, durably; nothing where there is no file, or an empty one. */
export function renameTenantFile(path: string, name: string): void {
  if ((statSync(path, { throwIfNoEntry: false })?.size ?? 0) === 0) return;
  try {
    using connection = new Connection(path, { role: 'applier', statementCacheMax: 1 });
    connection.database.exec('pragma synchronous = full');
    writeName(connection, name);
    connection.database.exec('pragma wal_checkpoint(truncate)');
  } catch (error) {
    throw fromSqlite(error);
  }
}

function tenantFileBytes(identity: TenantIdentity): Uint8Array {
  using database = new DatabaseSync(':memory:');
  formatTenant(database, identity);
  const bytes = database.serialize();
  bytes[WRITE_VERSION_OFFSET] = WAL_VERSION;
  bytes[READ_VERSION_OFFSET] = WAL_VERSION;
  return bytes;
}
