/**
 * Forgotten rows of a tenant that is on its way into the log: what the filter names is found in a thread of its own, since
 * that reads whole tables, and deleted by records, so that every copy of the tenant has the same.
 */
import { NostosError, isNostosError } from '../base/errors.ts';
import type { LedgerEntry } from '../log/ledger.ts';
import { formatPosition, type TenantUuid } from '../base/brands.ts';
import { Connection } from './connection.ts';
import { ForgetFilter } from './forget-filter.ts';
import { tableNamed, type KeyValue } from './forget.ts';
import { begin, probeDeferredKeys, type Captured } from './group.ts';
import { quoteName } from './schema-catalog.ts';
import { readSchemaShape } from './schema-shape.ts';
import { fromSqlite } from './sqlite-errors.ts';
import type { TenantStore } from './tenant-store.ts';

export interface ForgottenRowsRequest {
  readonly path: string;
  readonly uuid: TenantUuid;
  /** Those of the ledger that name this tenant. */
  readonly entries: readonly LedgerEntry[];
  /** Positions of those that the history of the rows has, as `formatPosition` writes them. */
  readonly passed: ReadonlySet<string>;
}

/** Text as its bytes: it need not be UTF-8. */
export interface ForgottenRow {
  readonly table: string;
  readonly keyColumns: readonly string[];
  readonly key: readonly KeyValue[];
}

const BATCH_ROWS = 100;

export function forgetFilterOf({ entries, passed, uuid }: Omit<ForgottenRowsRequest, 'path'>): ForgetFilter {
  return ForgetFilter.of({
    entries: () => entries,
    uuid,
    includes: (position) => passed.has(formatPosition(position)),
  });
}

/** At most as many as the ledger names. */
export function findForgottenRows(request: ForgottenRowsRequest): ForgottenRow[] {
  const filter = forgetFilterOf(request);
  const found: ForgottenRow[] = [];
  using connection = new Connection(request.path, { role: 'reader', statementCacheMax: 1 });
  try {
    const shape = readSchemaShape(connection.database);
    for (const name of filter.tables) {
      const table = tableNamed(shape, name);
      if (table?.type !== 'table') continue;
      const { keyColumns } = table;
      const pairs = keyColumns.map(quoteName).map((key) => `typeof(${key}), ${valueOf(key)}`);
      const select = connection.database.prepare(`select ${pairs.join(', ')} from main.${quoteName(table.name)}`);
      select.setReadBigInts(true);
      select.setReturnArrays(true);
      for (const row of select.iterate()) {
        const key = keyOf(row as unknown as readonly unknown[]);
        if (filter.isForgotten(table.name, key)) found.push({ table: table.name, keyColumns, key });
      }
    }
    return found;
  } catch (error) {
    throw fromSqlite(error);
  }
}

/** As a string, text that is not UTF-8 would not be the same any more. */
const valueOf = (key: string): string => `iif(typeof(${key}) = 'text', cast(${key} as blob), ${key})`;

function keyOf(row: readonly unknown[]): KeyValue[] {
  const key: KeyValue[] = [];
  for (let at = 0; at < row.length; at += 2)
    key.push(row[at] === 'text' ? { text: row[at + 1] as Uint8Array } : (row[at + 1] as KeyValue));
  return key;
}

/**
 * Deletes them as a user would: triggers and foreign keys do what they do. A row that one of these keeps is deleted without
 * them. Answers with how many there were; those that went with others count as well.
 */
export async function deleteForgottenRows(
  store: TenantStore,
  rows: readonly ForgottenRow[],
  signal?: AbortSignal,
): Promise<number> {
  if (rows.length === 0) return 0;
  await store.exclusive(async () => {
    const kept: ForgottenRow[] = [];
    for (let at = 0; at < rows.length; at += BATCH_ROWS) {
      signal?.throwIfAborted();
      const batch = rows.slice(at, at + BATCH_ROWS);
      if (await deleteTogether(store, batch)) continue;
      for (const row of batch) if (!(await deleteTogether(store, [row]))) kept.push(row);
    }
    await force(store, kept, signal);
  });
  return rows.length;
}

async function force(
  store: TenantStore,
  rows: readonly ForgottenRow[],
  signal: AbortSignal | undefined,
): Promise<void> {
  for (const row of rows) {
    signal?.throwIfAborted();
    const { writer } = store; // a commit that failed opens a new one
    writer.database.exec('pragma foreign_keys = off');
    writer.triggersLive = false;
    try {
      if (!(await deleteTogether(store, [row])))
        throw new NostosError('CONSTRAINT_FAILED', `a forgotten row of ${row.table} cannot be deleted`);
    } finally {
      writer.triggersLive = true;
      if (writer.database.isOpen) writer.database.exec('pragma foreign_keys = on');
    }
  }
}

/** One record; false, with nothing changed, where something keeps a row. */
async function deleteTogether(store: TenantStore, rows: readonly ForgottenRow[]): Promise<boolean> {
  const captured = captureDeletion(store, rows);
  if (captured === undefined) return false;
  await store.commit([captured]);
  await store.recovered();
  return true;
}

/** Leaves the transaction open, unless something keeps a row. */
function captureDeletion(store: TenantStore, rows: readonly ForgottenRow[]): Captured | undefined {
  const { writer } = store;
  begin(writer);
  const session = writer.database.createSession();
  try {
    for (const row of rows) deleteRow(writer, row);
    probeDeferredKeys(writer);
    const captured = { changeset: session.changeset(), forgotten: [] };
    store.assertFits(captured);
    return captured;
  } catch (error) {
    store.rollback();
    const known = fromSqlite(error);
    if (known instanceof Kept || (isNostosError(known) && KEPT.has(known.code))) return undefined;
    throw known;
  } finally {
    session.close();
  }
}

function deleteRow(writer: Connection, { table, keyColumns, key }: ForgottenRow): void {
  const isKey = keyColumns.map((column, at) => `${quoteName(column)} = ${isText(key[at]) ? 'cast(? as text)' : '?'}`);
  const from = `from main.${quoteName(table)} where ${isKey.join(' and ')}`;
  const values = key.map((value) => (isText(value) ? value.text : value));
  writer.internal(`delete ${from}`).run(...values);
  if (writer.internal(`select 1 ${from}`).get(...values) !== undefined) throw new Kept();
}

function isText(value: KeyValue | undefined): value is { readonly text: Uint8Array } {
  return typeof value === 'object' && 'text' in value;
}

const KEPT: ReadonlySet<string> = new Set(['CONSTRAINT_FAILED', 'TRANSACTION_TOO_LARGE', 'SQL_FAILED']);

/** A trigger has put the row back. */
class Kept extends Error {
  override readonly name = 'Kept';
}
