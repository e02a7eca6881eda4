/**
 * The file that an import reads, looked at before anything is written: whether it is a sound SQLite database, what is
 * in it, and whether it is still the same file later. It is never written to; a WAL beside it is read along.
 */
import { statSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
import { DatabaseSync } from 'node:sqlite';
import { NostosError, isNostosError } from '../base/errors.ts';
import { planImport, type ImportPlan } from './import-plan.ts';
import type { InspectReport, InspectRequest } from './maintenance.ts';
import { catalogRows, quoteName } from './schema-catalog.ts';
import { sqliteCode } from './sqlite-errors.ts';

const BUSY_TIMEOUT_MS = 5_000;
/** Foreign keys and indexes are walked in the order of other tables; the default of 2 MiB makes that slow. */
const CACHE_KIB = 8 * 1024;
const DAMAGES_MAX = 20;

/** Everything that can be refused is refused here. Runs in the maintenance thread: it reads the file several times. */
export function inspectSource(request: InspectRequest, onProgress: (phase: string) => void): InspectReport {
  const { file } = request;
  try {
    const signature = sourceSignature(file);
    const { source, uri } = openSource(file);
    try {
      onProgress('checking the file');
      refuseDamage(source);
      onProgress('checking the schema');
      const plan = planImport(source, request);
      onProgress('checking foreign keys');
      refuseForeignKeys(source, plan, request.keepViolations);
      onProgress('counting rows');
      return { plan, counts: countRows(source, plan), signature, uri };
    } finally {
      source.close();
    }
  } catch (error) {
    throw notImportable(error, file);
  }
}

/** Changes whenever the file, or the WAL beside it, does. */
export function sourceSignature(file: string): string {
  const main = statSync(file, { bigint: true, throwIfNoEntry: false });
  if (main === undefined) throw new NostosError('IMPORT_REFUSED', 'there is no such file');
  if (!main.isFile()) throw new NostosError('IMPORT_REFUSED', 'it is not a file');
  if (main.size === 0n) throw new NostosError('IMPORT_REFUSED', 'it is empty, so it is not an SQLite database');
  const wal = statSync(`${file}-wal`, { bigint: true, throwIfNoEntry: false });
  const parts = [main.dev, main.ino, main.size, main.mtimeNs];
  // Reading a database in WAL mode may make an empty WAL.
  if (wal !== undefined && wal.size > 0n) parts.push(wal.ino, wal.size, wal.mtimeNs);
  return parts.join(':');
}

function openSource(file: string): { source: DatabaseSync; uri: string } {
  const uri = pathToFileURL(file);
  uri.searchParams.set('mode', 'ro');
  try {
    return { source: open(uri), uri: uri.href };
  } catch (error) {
    if (sqliteCode(error) !== 14) throw error;
    // WAL mode needs a file beside the database, which cannot be made in a directory that is read-only.
    const wal = statSync(`${file}-wal`, { throwIfNoEntry: false });
    if (wal !== undefined && wal.size > 0)
      throw new NostosError(
        'IMPORT_REFUSED',
        'it has a write-ahead log (-wal) that cannot be read in a read-only directory; copy both files to a writable one',
        { cause: error },
      );
    uri.searchParams.set('immutable', '1');
    return { source: open(uri), uri: uri.href };
  }
}

function open(uri: URL): DatabaseSync {
  const source = new DatabaseSync(uri, {
    readOnly: true,
    enableForeignKeyConstraints: false,
    timeout: BUSY_TIMEOUT_MS,
  });
  try {
    source.exec(`pragma cache_size = -${CACHE_KIB}; begin`);
    source.prepare('select count(*) from sqlite_schema').get(); // reads the first page, so the file itself
    return source;
  } catch (error) {
    source.close();
    throw error;
  }
}

/** Not an integrity check, which takes many times as long: what it would find beyond this, the copy finds. */
function refuseDamage(source: DatabaseSync): void {
  const found = catalogRows<Record<string, unknown>>(source, `pragma quick_check(${DAMAGES_MAX})`).map((row) =>
    String(Object.values(row)[0]),
  );
  if (found.length === 1 && found[0] === 'ok') return;
  throw new NostosError('IMPORT_REFUSED', `it is damaged: ${found.join('; ')}; recover it first (sqlite3 .recover)`, {
    details: { damages: found },
  });
}

function refuseForeignKeys(source: DatabaseSync, plan: ImportPlan, keepViolations: boolean): void {
  const broken: string[] = [];
  const violated = new Map<string, { child: string; parent: string; rows: number }>();
  for (const { name, type } of plan.tables) {
    if (type !== 'table') continue;
    try {
      const rows = catalogRows<{ parent: string; n: number }>(
        source,
        `select parent, count(*) as n from pragma_foreign_key_check(?) group by parent`,
        name,
      );
      for (const { parent, n } of rows) violated.set(`${name}\0${parent}`, { child: name, parent, rows: n });
    } catch (error) {
      if (sqliteCode(error) !== 1) throw error;
      broken.push(`${name}: ${(error as Error).message}; refer to a PRIMARY KEY or to UNIQUE columns`);
    }
  }
  if (broken.length > 0)
    throw new NostosError('IMPORT_REFUSED', `foreign keys that can never hold: ${broken.join('; ')}`);
  if (keepViolations || violated.size === 0) return;
  const list = [...violated.values()].map(
    ({ child, parent, rows }) => `${rows} rows of ${child} refer to missing rows of ${parent}`,
  );
  throw new NostosError(
    'IMPORT_REFUSED',
    `${list.join('; ')}; mend them, or keep them with keepViolations (--keep-violations)`,
    { details: { violations: [...violated.values()] } },
  );
}

function countRows(source: DatabaseSync, plan: ImportPlan): [string, number][] {
  return plan.tables.map(({ name }) => [
    name,
    catalogRows<{ n: number }>(source, `select count(*) as n from main.${quoteName(name)}`)[0]!.n,
  ]);
}

/** Says what is wrong with the file, and names it. */
function notImportable(error: unknown, file: string): NostosError {
  const why = isNostosError(error) ? error.message : (REASONS[sqliteCode(error) ?? -1] ?? (error as Error).message);
  const details = isNostosError(error) ? error.details : {};
  return new NostosError('IMPORT_REFUSED', `${file} cannot be imported: ${why}`, {
    cause: error,
    details: { file, ...details },
  });
}

/** By the primary result code of SQLite. */
const REASONS: Readonly<Record<number, string>> = {
  5: 'another program is writing to it; stop that, or import a copy',
  8: 'it was not closed properly, and its journal can only be rolled back by writing; open it once with the program that wrote it',
  11: 'it is damaged; recover it first (sqlite3 .recover)',
  26: 'it is not an SQLite database, or it is encrypted; decrypt it first',
};
