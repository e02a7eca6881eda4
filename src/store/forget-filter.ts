/**
 * What keeps forgotten rows from coming back. Whatever brings rows into a tenant (a restore, a reset, a fork, a re-apply)
 * asks this filter, made of the ledger and of the state that the rows come from.
 *
 * A forget counts unless the history of that state has it, at the state or before: there the log has deleted the row, and
 * one that is there now was inserted later. So forgets behind the state count, and those of histories that it is no part of.
 * Of a key that the state's history forgot as well, only those that came later count, by the time of their entries: what
 * was inserted after the one is newer than all that came before it. Hence a restore that begins a generation notes there,
 * once more, what it has removed (`restated`), or a later restore would take new rows for old ones.
 */
import { toTenantUuid, type Position, type TenantUuid } from '../base/brands.ts';
import { NostosError } from '../base/errors.ts';
import { releaseBuffer } from '../base/release.ts';
import type { ForgottenKey, LedgerEntry } from '../log/ledger.ts';
import { stripTables } from './changeset.ts';
import { Connection } from './connection.ts';
import { ExpectedFingerprint } from './expected-fingerprint.ts';
import { keyHash, tableNamed, type KeyValue } from './forget.ts';
import { begin, probeDeferredKeys } from './group.ts';
import { isUnreplicated } from './own-tables.ts';
import { quoteName } from './schema-catalog.ts';
import { readSchemaShape, type SchemaShape, type TableShape } from './schema-shape.ts';
import { fromSqlite, sqliteCode } from './sqlite-errors.ts';
import { asciiUpper } from './sql-tokens.ts';
import { readFingerprint, readTenantMeta, writeApplied, writeFingerprint, type TenantMeta } from './tenant-file.ts';

/** Times of the latest forgets of a key; -1 where there is none. */
interface Mark {
  readonly table: string;
  /** On the history of the state, at it or before. */
  passed: number;
  /** Elsewhere. */
  other: number;
}

interface Marks {
  readonly hashKey: Uint8Array;
  readonly byHash: Map<string, Mark>;
}

export interface ForgetFilterSource {
  /** All of the ledger, or of several; called twice. */
  readonly entries: () => Iterable<LedgerEntry>;
  readonly uuid: TenantUuid;
  /** Whether a record is on the history of the state, at it or before: `TermTable.contains(position, lsn)`. */
  readonly includes: (position: Position) => boolean;
}

export class ForgetFilter {
  readonly #uuid: TenantUuid;
  readonly #marks: readonly Marks[];

  private constructor(uuid: TenantUuid, marks: readonly Marks[]) {
    this.#uuid = uuid;
    this.#marks = marks;
  }

  static of({ entries, uuid, includes }: ForgetFilterSource): ForgetFilter {
    const marks = new Map<string, Marks>();
    const each = (passed: boolean, note: (marks: Marks, key: ForgottenKey, atMs: number) => void): void => {
      for (const { uuid: owner, position, hashKey, keys, atMs } of entries()) {
        if (owner !== uuid) continue;
        const name = Buffer.from(hashKey).toString('hex');
        let found = marks.get(name);
        if (found === undefined) marks.set(name, (found = { hashKey, byHash: new Map() }));
        if (includes(position) === passed) for (const key of keys) note(found, key, atMs);
      }
    };
    each(false, ({ byHash }, key, atMs) => {
      const mark = markOf(byHash, key);
      mark.other = Math.max(mark.other, atMs);
    });
    const counts = [...marks.values()].some(({ byHash }) => byHash.size > 0);
    // Under another hash key it is not seen which key it is, so all are kept.
    const all = marks.size > 1;
    if (counts)
      each(true, ({ byHash }, key, atMs) => {
        if (!all && !byHash.has(nameOf(key.hash))) return;
        const mark = markOf(byHash, key);
        mark.passed = Math.max(mark.passed, atMs);
      });
    return new ForgetFilter(uuid, counts ? [...marks.values()] : []);
  }

  /** Nothing counts: rows need not be looked at. */
  get isEmpty(): boolean {
    return this.#marks.length === 0;
  }

  /** Those of which something counts, as they were called then. */
  get tables(): readonly string[] {
    const names = new Map<string, string>();
    for (const { byHash } of this.#marks)
      for (const { table, other, passed } of byHash.values()) if (other > passed) names.set(asciiUpper(table), table);
    return [...names.values()];
  }

  /** `values` are those of the key columns, in the order of the key, as they are stored. */
  isForgotten(table: string, values: readonly KeyValue[]): boolean {
    let [passed, other] = [-1, -1];
    for (const { hashKey, byHash } of this.#marks) {
      const mark = byHash.get(nameOf(keyHash(hashKey, table, values)));
      if (mark === undefined) continue;
      passed = Math.max(passed, mark.passed);
      other = Math.max(other, mark.other);
    }
    return other > passed;
  }

  /** What counts here, as forgotten once more, each at its time, by the record that begins the history of the restored state. */
  restated(position: Position): LedgerEntry[] {
    return this.#marks.flatMap(({ hashKey, byHash }) => {
      const byTime = new Map<number, ForgottenKey[]>();
      for (const [hash, { table, passed, other }] of byHash) {
        if (other <= passed) continue;
        const key = { table, hash: Uint8Array.from(Buffer.from(hash, 'latin1')) };
        const keys = byTime.get(other);
        if (keys === undefined) byTime.set(other, [key]);
        else keys.push(key);
      }
      return [...byTime].map(([atMs, keys]) => ({ uuid: this.#uuid, position, atMs, hashKey, keys }));
    });
  }
}

const nameOf = (hash: Uint8Array): string => Buffer.from(hash).toString('latin1');

function markOf(byHash: Map<string, Mark>, { table, hash }: ForgottenKey): Mark {
  const name = nameOf(hash);
  let mark = byHash.get(name);
  if (mark === undefined) byHash.set(name, (mark = { table, passed: -1, other: -1 }));
  return mark;
}

export interface RemovalReport {
  readonly rows: number;
  readonly tables: readonly { readonly table: string; readonly rows: number }[];
  /** Rows that a trigger or a foreign key would have kept: they were deleted without these, so others may point nowhere. */
  readonly forced: number;
  /** Names that no table has in this state. A table that was renamed is looked for under each name that it had. */
  readonly missingTables: readonly string[];
}

export interface RemovalOptions {
  readonly signal?: AbortSignal;
  readonly onProgress?: (removed: number) => void;
}

const BATCH_ROWS = 100;
const DOOMED = 'temp.nostos_doomed';

/**
 * Deletes what was forgotten from the file of a tenant that nobody has open, as its user would have: triggers and foreign
 * keys do what they do. The expected fingerprint moves along, so this is for a state whose history ends there: a log would
 * not fit it any more. Each batch is one transaction; a call that was cut off is made again. Returns with everything in the
 * file itself and synced, and the rows overwritten where they were; what SQLite had left of them elsewhere in its pages,
 * when it moved them earlier, is not.
 */
export function removeForgotten(path: string, filter: ForgetFilter, options: RemovalOptions = {}): RemovalReport {
  const missingTables: string[] = [];
  const tables: { table: string; rows: number }[] = [];
  let forced = 0;
  if (filter.isEmpty) return { rows: 0, tables, forced, missingTables };
  using removal = new Removal(path, filter);
  const count = (): number => tables.reduce((sum, { rows }) => sum + rows, 0);
  for (const name of filter.tables) {
    options.signal?.throwIfAborted();
    const table = removal.table(name);
    if (table === undefined) {
      missingTables.push(name);
      continue;
    }
    const done = { table: table.name, rows: 0 };
    tables.push(done);
    for (const batch of removal.remove(table)) {
      done.rows += batch.rows;
      forced += batch.forced;
      options.onProgress?.(count());
      options.signal?.throwIfAborted();
    }
  }
  removal.finish();
  return { rows: count(), tables, forced, missingTables };
}

interface Batch {
  readonly rows: number;
  readonly forced: number;
}

class Removal {
  readonly #connection: Connection;
  readonly #filter: ForgetFilter;
  readonly #meta: TenantMeta;
  readonly #shape: SchemaShape;
  readonly #expected: ExpectedFingerprint;

  constructor(path: string, filter: ForgetFilter) {
    const connection = new Connection(path, { role: 'writer', statementCacheMax: 1 });
    this.#connection = connection;
    this.#filter = filter;
    try {
      const meta = readTenantMeta(connection);
      if (meta === undefined) throw new NostosError('TENANT_DAMAGED', `${path} is not the file of a tenant`);
      connection.database.exec('pragma secure_delete = on; pragma synchronous = full');
      this.#meta = meta;
      this.#shape = readSchemaShape(connection.database);
      this.#expected = this.#readExpected();
    } catch (error) {
      connection.close();
      throw fromSqlite(error);
    }
  }

  [Symbol.dispose](): void {
    this.#connection.close();
  }

  table(name: string): TableShape | undefined {
    const table = tableNamed(this.#shape, name);
    return table?.type === 'table' ? table : undefined;
  }

  /** Of one table; the keys are found first, since a table is not to be changed while it is read. */
  *remove(table: TableShape): Generator<Batch, void, undefined> {
    this.#find(table);
    const select = this.#connection.database.prepare(`select id from ${DOOMED} where id > ? order by id limit ?`);
    for (let last = 0; ;) {
      const ids = select.all(last, BATCH_ROWS).map((row) => Number(row['id']));
      if (ids.length === 0) return;
      last = ids.at(-1)!;
      const kept = new Set<number>();
      let rows = this.#batch(table, ids, kept);
      if (kept.size > 0) rows += this.#force(table, [...kept]);
      yield { rows, forced: kept.size };
    }
  }

  finish(): void {
    const row = this.#connection.database.prepare('pragma wal_checkpoint(truncate)').get() as { busy: number };
    if (row.busy !== 0)
      throw new NostosError('IO_FAILED', `${this.#connection.path} is in use; forgotten rows are still in its WAL`);
  }

  #readExpected(): ExpectedFingerprint {
    const { identity, lsn, fingerprint } = this.#meta;
    const noted = readFingerprint(this.#connection);
    const expected = ExpectedFingerprint.parse(
      toTenantUuid(identity.uuid),
      noted?.lsn === lsn ? noted.buckets : undefined,
    );
    if (noted?.lsn !== lsn) expected.recompute(this.#connection.database, this.#shape);
    if (Buffer.from(expected.total()).equals(fingerprint)) return expected;
    throw new NostosError(
      'TENANT_DAMAGED',
      `${this.#connection.path}: its rows are not what its fingerprint says; restore this tenant from elsewhere`,
    );
  }

  /** Keeps the keys of forgotten rows in a temporary table, as they are stored. */
  #find({ name, keyColumns }: TableShape): void {
    const { database } = this.#connection;
    const columns = keyColumns.map((_, at) => `c${at}`).join(', ');
    const keys = keyColumns.map(quoteName);
    // As a string, text that is not UTF-8 would not be the same any more.
    const values = keys.map((key) => `typeof(${key}), iif(typeof(${key}) = 'text', cast(${key} as blob), ${key})`);
    database.function('nostos_forgotten', { varargs: true, useBigIntArguments: true }, (...given: unknown[]) =>
      this.#filter.isForgotten(name, keyOf(given)) ? 1 : 0,
    );
    try {
      database.exec(`drop table if exists ${DOOMED}; create table ${DOOMED} (id integer primary key, ${columns})`);
      database.exec(
        `insert into ${DOOMED} (${columns}) select ${keys.join(', ')} from main.${quoteName(name)}
         where nostos_forgotten(${values.join(', ')})`,
      );
    } catch (error) {
      throw fromSqlite(error);
    }
  }

  /** One transaction. Answers with the rows that it deleted; those that something keeps are added to `kept`. */
  #batch(table: TableShape, ids: readonly number[], kept: Set<number>): number {
    for (;;) {
      const lost = this.#attempt(table, ids, kept);
      if (lost === undefined) return ids.length - kept.size;
      kept.add(lost); // a trigger rolls back everything: the others once more, without it
    }
  }

  /** The id at which SQLite rolled the transaction back; undefined where it was committed. */
  #attempt(table: TableShape, ids: readonly number[], kept: Set<number>): number | undefined {
    const { database } = this.#connection;
    begin(this.#connection);
    const session = database.createSession();
    try {
      for (const id of ids) {
        if (kept.has(id)) continue;
        database.exec('savepoint nostos_row');
        try {
          this.#delete(table, id);
          probeDeferredKeys(this.#connection);
        } catch (error) {
          if (!database.isTransaction) return id;
          database.exec('rollback to nostos_row');
          kept.add(id);
          if (!isKept(error)) throw error;
        }
        database.exec('release nostos_row');
      }
      const changeset = session.changeset();
      this.#commit(changeset);
      releaseBuffer(changeset);
      return undefined;
    } catch (error) {
      if (database.isTransaction) database.exec('rollback');
      throw fromSqlite(error);
    } finally {
      session.close();
    }
  }

  /** Without triggers and foreign keys: what was forgotten goes. */
  #force(table: TableShape, ids: readonly number[]): number {
    const { database } = this.#connection;
    database.exec('pragma foreign_keys = off');
    this.#connection.triggersLive = false;
    try {
      const kept = new Set<number>();
      const rows = this.#batch(table, ids, kept);
      if (kept.size > 0)
        throw new NostosError('CONSTRAINT_FAILED', `${kept.size} forgotten rows of ${table.name} cannot be deleted`);
      return rows;
    } finally {
      database.exec('pragma foreign_keys = on');
      this.#connection.triggersLive = true;
    }
  }

  #delete({ name, keyColumns }: TableShape, id: number): void {
    const one = (column: string, at: number): string =>
      `${quoteName(column)} = (select +c${at} from ${DOOMED} where id = ?1)`;
    const from = `from main.${quoteName(name)} where ${keyColumns.map(one).join(' and ')}`;
    this.#connection.internal(`delete ${from}`).run(id);
    if (this.#connection.internal(`select 1 ${from}`).get(id) !== undefined) throw new Kept();
  }

  #commit(captured: Uint8Array): void {
    this.#expected.apply(stripTables(captured, isUnreplicated), this.#shape);
    const { term, lsn, hash } = this.#meta;
    writeApplied(this.#connection, { term, lsn, hash, fingerprint: this.#expected.total() });
    writeFingerprint(this.#connection, lsn, this.#expected.serialize());
    this.#connection.internal('commit').run();
  }
}

/** A trigger has put the row back, or would not let it go. */
class Kept extends Error {
  override readonly name = 'Kept';
}

const SQLITE_CONSTRAINT = 19;

function isKept(error: unknown): boolean {
  if (error instanceof Kept) return true;
  if (error instanceof NostosError) return error.code === 'CONSTRAINT_FAILED';
  return sqliteCode(error) === SQLITE_CONSTRAINT;
}

/** Pairs of type and value, text as its bytes. */
function keyOf(given: readonly unknown[]): KeyValue[] {
  const values: KeyValue[] = [];
  for (let at = 0; at < given.length; at += 2) {
    const value = given[at + 1];
    values.push(given[at] === 'text' ? { text: value as Uint8Array } : (value as KeyValue));
  }
  return values;
}
