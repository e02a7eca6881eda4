/** Recomputes a tenant's fingerprint from its rows, at one snapshot, and compares it with what the log says. */
import { toTenantUuid } from '../base/brands.ts';
import { Connection } from './connection.ts';
import { fingerprintRows } from './fingerprint/fingerprint-rows.ts';
import { Fingerprinter } from './fingerprint/fingerprinter.ts';
import { fingerprintKey } from './expected-fingerprint.ts';
import type { ScrubReport, ScrubRequest } from './maintenance.ts';
import { readSchemaShape } from './schema-shape.ts';
import { fromSqlite } from './sqlite-errors.ts';
import { readTenantMeta } from './tenant-file.ts';
import { NostosError } from '../base/errors.ts';

export function scrubFile(request: ScrubRequest, onProgress: (rows: number) => void): ScrubReport {
  using connection = new Connection(request.path, { role: 'reader', statementCacheMax: 8 });
  const { database } = connection;
  try {
    database.exec('begin');
    const meta = readTenantMeta(connection);
    if (meta === undefined) throw new NostosError('TENANT_DAMAGED', `${request.path} has no tenant in it`);
    const integrity = request.integrity ? integrityProblems(connection) : [];
    const shape = readSchemaShape(database);
    let rows = 0;
    const actual = fingerprintRows(database, new Fingerprinter(fingerprintKey(toTenantUuid(meta.identity.uuid))), {
      tables: [...shape.tables.keys()],
      onBatch: (batch) => {
        rows += batch.rows;
        onProgress(rows);
      },
    });
    return {
      lsn: meta.lsn,
      rows,
      expected: Buffer.from(meta.fingerprint).toString('hex'),
      actual: Buffer.from(actual.total()).toString('hex'),
      integrity,
    };
  } catch (error) {
    throw fromSqlite(error);
  }
}

function integrityProblems(connection: Connection): string[] {
  const rows = connection.database.prepare('pragma integrity_check(20)').all();
  const found = rows.map((row) => String(Object.values(row)[0]));
  return found.length === 1 && found[0] === 'ok' ? [] : found;
}
