/** A tenant as its users see it. Each call finds the open tenant, opening it where needed, and works on that. */
import { decode, encode } from '@msgpack/msgpack';
import type { Lsn, Position } from '../base/brands.ts';
import { hlcToMs, type Clock } from '../base/clock.ts';
import { NostosError, isNostosError } from '../base/errors.ts';
import type { Limits } from '../base/limits.ts';
import { readCommitted, type CommitLog, type CommittedRecord, type Durability } from '../log/commit-log.ts';
import { RecordKind } from '../log/record.ts';
import type { CatalogEntry } from './catalog.ts';
import { ChangesetCursor } from './changeset-cursor.ts';
import { changesetRows, stripTables } from './changeset.ts';
import type { Connection } from './connection.ts';
import { begin, capturedBytes, probeDeferredKeys, type Captured } from './group.ts';
import {
  applySchemaCounters,
  countViolations,
  finishMigration,
  runMigration,
  type Migration,
  type MigrationResult,
} from './migration.ts';
import { decodeChangesetPayload, decodeSchemaPayload, encodeSchemaPayload } from './payload.ts';
import { fromSqlite } from './sqlite-errors.ts';
import { RESERVED_PREFIX } from './own-tables.ts';
import type { SchemaShape } from './schema-shape.ts';
import { lastHash } from './tenant-file.ts';
import type { TenantStore } from './tenant-store.ts';
import type { Int64Mode } from './values.ts';
import { WriterTransaction } from './writer-transaction.ts';

/**
 * Each new answer takes up to so many expired ones along, so that they become fewer with use and no write has all of
 * them to delete; of large ones only what fits a part of a record.
 */
const PRUNE_ROWS_MAX = 4;
const PRUNE_PART = 8;
const FEED_PAGE_BYTES = 256 * 1024;
const TIMER_MAX_MS = 2 ** 31 - 1;

export interface TransactionDeps {
  readonly clock: Clock;
  readonly limits: Limits;
}

/** Wraps a callback so that a second call with the same id answers with the first one's result. */
export function idempotent<T>(
  fn: (tx: WriterTransaction) => T,
  id: string,
  deps: TransactionDeps,
): (tx: WriterTransaction, connection: Connection) => T {
  checkId(id);
  return (tx, connection) => {
    const known = connection.internal('select result from nostos_results where id = ?').get(id);
    if (known !== undefined) return decodeResult(known['result'] as Uint8Array) as T;
    const result = fn(tx);
    rememberResult(connection, id, result, deps);
    return result;
  };
}

/** SQLite would store each lone surrogate as the same character, so that two ids became one. */
function checkId(id: unknown): void {
  if (typeof id !== 'string' || id.length === 0 || id.length > 512 || !id.isWellFormed())
    throw new NostosError(
      'INVALID_ARGUMENT',
      `an id is a text of 1 to 512 characters, got ${typeof id === 'string' ? `${id.length} characters` : typeof id}`,
    );
}

export function knownResult(connection: Connection, id: string): { readonly result: unknown } | undefined {
  const known = connection.internal('select result from nostos_results where id = ?').get(id);
  return known === undefined ? undefined : { result: decodeResult(known['result'] as Uint8Array) };
}

export function rememberResult(connection: Connection, id: string, result: unknown, deps: TransactionDeps): void {
  rememberEncoded(connection, id, encodeResult(result), deps);
}

/** With the bytes that an answer had where it was first given. */
export function rememberEncoded(connection: Connection, id: string, result: Uint8Array, deps: TransactionDeps): void {
  const nowMs = deps.clock.nowMs();
  connection.internal('insert into nostos_results (id, result, at_ms) values (?, ?, ?)').run(id, result, nowMs);
  pruneResults(connection, nowMs - deps.limits.idempotencyKeepMs, deps.limits);
}

function pruneResults(connection: Connection, beforeMs: number, { recordBytesMax }: Limits): void {
  const old = connection
    .internal('select id, length(result) as bytes from nostos_results where at_ms < ? order by at_ms limit ?')
    .all(beforeMs, PRUNE_ROWS_MAX);
  let bytes = 0;
  for (const row of old) {
    connection.internal('delete from nostos_results where id = ?').run(row['id'] as string);
    bytes += Number(row['bytes']) + (row['id'] as string).length;
    if (bytes >= recordBytesMax / PRUNE_PART) return;
  }
}

function encodeResult(result: unknown): Uint8Array {
  try {
    return encode({ result: result ?? null, absent: result === undefined }, { useBigInt64: true });
  } catch (error) {
    throw new NostosError(
      'INVALID_ARGUMENT',
      'the result of a write with an id must be plain data, to be kept for a retry',
      {
        cause: error,
      },
    );
  }
}

function decodeResult(bytes: Uint8Array): unknown {
  const { result, absent } = decode(bytes, { useBigInt64: true }) as { result: unknown; absent: boolean };
  return absent ? undefined : result;
}

/** An asynchronous transaction: it alone has the writer until its callback has ended, or its time is up. */
export async function runTransaction<T>(
  store: TenantStore,
  fn: (tx: WriterTransaction) => Promise<T>,
  options: {
    readonly int64: Int64Mode;
    readonly timeoutMs: number;
    readonly durability?: Durability;
    readonly signal?: AbortSignal;
    readonly id?: string;
  },
  deps: TransactionDeps,
): Promise<T> {
  options.signal?.throwIfAborted();
  if (options.id !== undefined) checkId(options.id);
  const run = async (): Promise<T> => {
    options.signal?.throwIfAborted(); // it may have waited long for its turn
    const connection = store.writer;
    begin(connection);
    const session = connection.database.createSession();
    const tx = new WriterTransaction(connection, options.int64, store.forgetting);
    let result: T;
    let captured: Captured;
    try {
      const known = options.id === undefined ? undefined : knownResult(connection, options.id);
      if (known === undefined) {
        const signal = AbortSignal.any(options.signal === undefined ? [store.reign] : [store.reign, options.signal]);
        result = await withinTime(Promise.resolve(fn(tx)), { timeoutMs: options.timeoutMs, signal });
        tx.finish();
        if (options.id !== undefined) rememberResult(connection, options.id, result, deps);
      } else result = known.result as T;
      if (!connection.inTransaction)
        throw new NostosError('TRANSACTION_DOOMED', 'SQLite has rolled this transaction back');
      probeDeferredKeys(connection);
      captured = { changeset: session.changeset(), forgotten: tx.forgotten };
      store.assertFits(captured);
    } catch (error) {
      tx.abandon();
      session.close();
      store.rollback();
      throw fromSqlite(error);
    }
    session.close();
    const { durability = 'quorum' } = options;
    forgets = captured.forgotten.length > 0;
    await store.commit(capturedBytes(captured) === 0 ? [] : [captured], { durability });
    return result;
  };
  let forgets = false;
  const result = await store.exclusive(run, { ofUser: true });
  if (forgets) await store.forgotten(); // while others write
  return result;
}

async function withinTime<T>(
  running: Promise<T>,
  options: { readonly timeoutMs: number; readonly signal: AbortSignal },
): Promise<T> {
  const { timeoutMs, signal } = options;
  const { promise, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(
    () =>
      reject(new NostosError('TRANSACTION_TIMEOUT', `the transaction took longer than ${timeoutMs} ms and was undone`)),
    Math.min(timeoutMs, TIMER_MAX_MS),
  );
  const abort = (): void => reject(signal.reason);
  if (signal.aborted) abort(); // the callback itself may have done so
  signal.addEventListener('abort', abort, { once: true });
  running.catch(() => {}); // if its time is up, nobody waits for it any more
  try {
    return await Promise.race([running, promise]);
  } finally {
    clearTimeout(timer);
    signal.removeEventListener('abort', abort);
  }
}

/** Runs the migrations above the tenant's version, each as a record of its own. */
export async function migrateStore(
  store: TenantStore,
  migrations: readonly Migration[],
  options: { readonly signal?: AbortSignal; readonly onStep?: (version: number) => void } = {},
): Promise<{ from: number; to: number }> {
  if (store.schemaVersion === migrations.length) return { from: migrations.length, to: migrations.length };
  return store.exclusive(async () => {
    const from = store.schemaVersion; // as it is now: another call may have migrated meanwhile
    if (from > migrations.length)
      throw new NostosError(
        'SCHEMA_MISMATCH',
        `tenant ${store.identity.name} has schema version ${from}, these migrations lead to ${migrations.length} only; give all of them, or run the newer program`,
        { details: { version: from, migrations: migrations.length } },
      );
    while (store.schemaVersion < migrations.length) {
      options.signal?.throwIfAborted();
      await migrateOnce(store, (connection) => runMigration(connection, migrations[store.schemaVersion]!));
      await store.recovered(); // a record that the file could not take counts all the same, and must not come twice
      options.onStep?.(store.schemaVersion);
    }
    return { from, to: store.schemaVersion };
  });
}

/** One schema record: what `run` does, then its checks. The caller has the writer. */
export async function migrateOnce(
  store: TenantStore,
  run: (connection: Connection) => MigrationResult['payload']['steps'],
  options: { readonly keepViolations?: boolean; readonly version?: number } = {},
): Promise<void> {
  const connection = store.writer;
  const version = options.version ?? store.schemaVersion + 1;
  const before = store.expected.snapshot();
  connection.database.exec('pragma foreign_keys = off');
  try {
    let result: MigrationResult;
    try {
      const violations = options.keepViolations === true ? Infinity : countViolations(connection);
      begin(connection);
      const steps = run(connection);
      if (!connection.inTransaction) throw new NostosError('SQL_FAILED', 'SQLite has rolled the migration back');
      result = finishMigration(connection, steps, version, { expected: store.expected, before: store.shape });
      applySchemaCounters(connection, result.payload);
      if (violations !== Infinity && countViolations(connection) > violations)
        throw new NostosError(
          'CONSTRAINT_FAILED',
          'FOREIGN KEY constraint failed: the migration leaves rows that point nowhere',
        );
    } catch (error) {
      store.expected.restore(before);
      store.rollback();
      throw migrationFailed(fromSqlite(error), store.identity.name, version);
    }
    const payload = encodeSchemaPayload(result.payload);
    const appended = await store.append([{ tenant: store.identity.id, kind: RecordKind.schema, payload }], () =>
      store.expected.restore(before),
    );
    store.finishSchema(
      {
        term: appended.term,
        lsn: appended.firstLsn,
        hash: lastHash(appended.hashes),
        fingerprint: result.payload.fingerprint,
      },
      version,
      result.shape,
    );
  } finally {
    if (connection.database.isOpen) connection.database.exec('pragma foreign_keys = on');
  }
}

function migrationFailed(error: unknown, tenant: string, version: number): unknown {
  if (isNostosError(error, 'SCHEMA_REFUSED') || isNostosError(error, 'DISK_FULL') || isNostosError(error, 'IO_FAILED'))
    return error;
  const why = error instanceof Error ? error.message : String(error);
  return new NostosError('MIGRATION_FAILED', `migration ${version} of tenant ${tenant} was undone: ${why}`, {
    cause: error,
    details: { tenant, version },
  });
}

export interface FeedItem {
  readonly position: Position;
  readonly timeMs: number;
  readonly kind: 'changeset' | 'schema';
  readonly schemaVersion: number;
  readonly rows: ReturnType<typeof changesetRows> extends Iterable<infer R> ? readonly R[] : never;
}

type WithStore = <T>(fn: (store: TenantStore) => T) => Promise<T>;

/** The committed changes of a tenant after `after`, and then, unless `untilCaughtUp`, those to come. */
export async function* feed(
  log: CommitLog,
  withStore: WithStore,
  entry: CatalogEntry,
  options: {
    readonly after: Lsn;
    readonly untilCaughtUp: boolean;
    readonly int64: Int64Mode;
    readonly signal?: AbortSignal;
  },
): AsyncGenerator<FeedItem> {
  let next = (options.after + 1) as Lsn;
  const { signal } = options;
  const shapes = new Shapes(withStore);
  await shapes.load();
  for (;;) {
    signal?.throwIfAborted();
    const end = log.watermark;
    if (next <= end) {
      const range = {
        from: next,
        to: end,
        tenant: entry.id,
        bytesMax: FEED_PAGE_BYTES,
        ...(signal === undefined ? {} : { signal }),
      };
      try {
        for await (const page of readCommitted(log, range)) {
          for (const record of page) {
            if (record.kind === RecordKind.tenantDrop) return;
            if (record.kind === RecordKind.tenantReset) throw tenantReset(entry.name, record);
            const item = await feedItem(record, shapes, options.int64);
            if (item !== undefined) yield item;
          }
        }
        next = (end + 1) as Lsn;
      } catch (error) {
        const quietUntil = isNostosError(error, 'LOG_PRUNED') ? await quietAfter(log, withStore, next) : undefined;
        if (quietUntil === undefined) throw error;
        next = (quietUntil + 1) as Lsn;
      }
    } else if (options.untilCaughtUp) return;
    else await nextWatermark(log, end, signal);
  }
}

/** A change feed cannot lead from the old content to the new one. */
export function tenantReset(tenant: string, { generation, term, lsn }: Position): NostosError {
  return new NostosError(
    'TENANT_RESET',
    `the content of tenant ${tenant} was replaced by record ${lsn}; read all rows anew, and go on from the position that they have`,
    { details: { tenant, position: { generation, term, lsn } } },
  );
}

/**
 * Up to where the tenant has no record from `next` on, if that is up to now: then it missed nothing, however much of
 * others was pruned. Asked while nothing of it is on its way into the log.
 */
async function quietAfter(log: CommitLog, withStore: WithStore, next: Lsn): Promise<Lsn | undefined> {
  return await withStore(async (store) => {
    const { after, until } = store.quiet;
    if (after < next && until >= next) return until;
    return await store.exclusive(async () => (store.applied.lsn < next ? log.watermark : undefined));
  });
}

async function feedItem(record: CommittedRecord, shapes: Shapes, int64: Int64Mode): Promise<FeedItem | undefined> {
  const { generation, term, lsn } = record;
  const base = { position: { generation, term, lsn }, timeMs: hlcToMs(record.hlc) };
  if (record.kind === RecordKind.changeset) {
    const { schemaVersion, changeset } = decodeChangesetPayload(record.payload);
    const rows = userRows(changeset, [await shapes.at(schemaVersion, lsn)], int64);
    return rows.length === 0 ? undefined : { ...base, kind: 'changeset', schemaVersion, rows };
  }
  if (record.kind !== RecordKind.schema) return undefined;
  const { schemaVersion, steps } = decodeSchemaPayload(record.payload);
  const changesets = steps.flatMap((step) => ('changeset' in step ? [step.changeset] : []));
  if (changesets.length === 0) return { ...base, kind: 'schema', schemaVersion, rows: [] };
  const after = await shapes.at(schemaVersion, lsn);
  const before = await shapes.find(schemaVersion - 1);
  const either = before === undefined ? [after] : [after, before];
  const rows = changesets.flatMap((changeset) => userRows(changeset, either, int64));
  return { ...base, kind: 'schema', schemaVersion, rows };
}

/** Shapes of schema versions, kept: a feed goes on to the end of a tenant that is dropped meanwhile. */
class Shapes {
  readonly #withStore: WithStore;
  #known: ReadonlyMap<number, SchemaShape> = new Map();

  constructor(withStore: WithStore) {
    this.#withStore = withStore;
  }

  async load(): Promise<void> {
    this.#known = await this.#withStore((store) => store.shapes());
  }

  async find(version: number): Promise<SchemaShape | undefined> {
    if (!this.#known.has(version)) await this.load();
    return this.#known.get(version);
  }

  async at(version: number, lsn: Lsn): Promise<SchemaShape> {
    const shape = await this.find(version);
    if (shape === undefined)
      throw new NostosError('TENANT_DAMAGED', `schema version ${version} of record ${lsn} is not known`);
    return shape;
  }
}

/**
 * Rows of the user's own tables; those of Nostos and the shadow tables of FTS and R-tree are derived. Within a
 * migration a table may have had the columns of the schema after it or of the one before; their number tells. One that
 * had neither was temporary in it, and its rows are left out.
 */
function userRows(changeset: Uint8Array, shapes: readonly SchemaShape[], int64: Int64Mode): FeedItem['rows'] {
  const names = new Map<string, readonly string[]>();
  const cursor = new ChangesetCursor(changeset);
  for (let ordinal = 0; cursor.next();) {
    if (cursor.tableOrdinal === ordinal) continue;
    ordinal = cursor.tableOrdinal;
    const { table, columnCount } = cursor;
    const found = shapes.map((shape) => shape.tables.get(table)).find((shape) => shape?.columns.length === columnCount);
    if (found?.type === 'table' && !table.startsWith(RESERVED_PREFIX)) names.set(table, found.columns);
  }
  const kept = stripTables(changeset, (table) => !names.has(table));
  return [...changesetRows(kept, (table) => names.get(table) ?? [], { int64 })];
}

function nextWatermark(log: CommitLog, seen: Lsn, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const abort = (): void => {
      stop();
      reject(signal?.reason);
    };
    const stop = log.onWatermark(() => {
      if (log.watermark <= seen) return;
      stop();
      signal?.removeEventListener('abort', abort);
      resolve();
    });
    signal?.addEventListener('abort', abort, { once: true });
    if (log.watermark > seen) {
      stop();
      signal?.removeEventListener('abort', abort);
      resolve();
    }
  });
}
