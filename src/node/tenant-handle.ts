/** The public `Tenant`: checks its arguments, finds or opens the tenant, and hands over to `store/`. */
import {
  formatPosition,
  NO_LSN,
  NO_TENANT,
  type Generation,
  type Lsn,
  type Position,
  type Term,
} from '../base/brands.ts';
import { NostosError, isNostosError } from '../base/errors.ts';
import type { Limits } from '../base/limits.ts';
import type { Clock } from '../base/clock.ts';
import { untilCommitted, type CommitLog, type Durability } from '../log/commit-log.ts';
import type { ForgetLedger } from '../log/ledger.ts';
import type { PositionOutlook } from '../replication/store-view.ts';
import type { Catalog, CatalogEntry } from '../store/catalog.ts';
import { ForgetFilter } from '../store/forget-filter.ts';
import { importInto, isUnfinished } from '../store/import-file.ts';
import type { Maintenance } from '../store/maintenance.ts';
import type { Migration as StoreMigration } from '../store/migration.ts';
import type { OpenTenants } from '../store/open-tenants.ts';
import { checkStatement, type Connection } from '../store/connection.ts';
import { Statements, checkParameters } from '../store/statements.ts';
import { feed, idempotent, migrateStore, runTransaction, tenantReset, type TransactionDeps } from '../store/tenant.ts';
import type { TenantStore } from '../store/tenant-store.ts';
import type { Int64Mode, Row, SqlParameters, SqlStatement } from '../store/values.ts';
import { isThenable } from '../store/writer-transaction.ts';
import type { QueryProcesses } from './query-processes.ts';
import type {
  Change,
  ChangesOptions,
  ExportOptions,
  ExportReport,
  ImportOptions,
  ImportReport,
  LongCallOptions,
  MigrateReport,
  Migration,
  QueryOptions,
  ReadOptions,
  Reader,
  Tenant,
  TenantStatus,
  Transaction,
  TransactionOptions,
  WriteOptions,
} from './types.ts';

export interface TenantHandleDeps {
  readonly log: CommitLog;
  readonly catalog: Catalog;
  readonly tenants: OpenTenants;
  readonly queries: QueryProcesses;
  readonly maintenance: Maintenance;
  readonly ledger: ForgetLedger;
  readonly clock: Clock;
  readonly limits: Limits;
  readonly int64: Int64Mode;
  readonly dir: string;
  readonly migrations: readonly Migration[] | undefined;
  readonly assertOpen: () => void;
  /** Throws where this node appends nothing. */
  readonly assertWritable: () => void;
  /** Throws where this node leads, and gets no lease in time. */
  readonly assertFresh: (reign: number) => Promise<void> | void;
  /** Taken before a snapshot is, for `assertFresh`. */
  readonly reign: () => number;
  readonly outlook: (position: Position) => Promise<PositionOutlook>;
  /** Of a record of this log. */
  readonly generationOf: (lsn: Lsn) => Generation;
  /** Of writes that do not say. */
  readonly durability: Durability;
  /** Tenants that an import of this process is filling. */
  readonly importing: Set<string>;
  readonly count: (outcome: 'committed' | 'failed') => void;
  readonly create: (name: string) => Promise<void>;
  readonly drop: (name: string) => Promise<void>;
  readonly firstLsn: () => Promise<Lsn>;
  /** Of a replica: up to where it has taken up what the primary has changed in the catalog. */
  readonly givenTo: () => Lsn;
  /** Aborted when the node closes. */
  readonly closing: AbortSignal;
}

export class TenantHandle implements Tenant {
  readonly name: string;
  readonly #deps: TenantHandleDeps;

  constructor(deps: TenantHandleDeps, name: string) {
    this.#deps = deps;
    this.name = checkName(name);
  }

  write<T>(fn: (tx: Transaction) => T, options: WriteOptions = {}): Promise<T> {
    try {
      checkCallback('write', fn);
      this.#deps.assertWritable();
      const { id, signal } = options;
      const run = id === undefined ? fn : idempotent(fn, id, this.#deps);
      const writing = {
        int64: options.int64 ?? this.#deps.int64,
        durability: checkDurability(options.durability ?? this.#deps.durability),
        signal,
        onSettled: this.#deps.count,
      };
      const open = this.#openStore();
      return open === undefined ? this.#use((store) => store.write<T>(run, writing)) : open.write<T>(run, writing);
    } catch (error) {
      return Promise.reject(error);
    }
  }

  async transaction<T>(fn: (tx: Transaction) => Promise<T>, options: TransactionOptions = {}): Promise<T> {
    const { id, signal } = options;
    checkCallback('transaction', fn);
    this.#deps.assertWritable();
    const timeoutMs = checkTimeout(Math.min(options.timeoutMs ?? Infinity, this.#deps.limits.transactionTimeoutMs));
    const running = {
      int64: options.int64 ?? this.#deps.int64,
      timeoutMs,
      durability: checkDurability(options.durability ?? this.#deps.durability),
      ...(id === undefined ? {} : { id }),
      ...(signal === undefined ? {} : { signal }),
    };
    return this.#counted(this.#use((store) => runTransaction(store, fn, running, this.#deps)));
  }

  read<T>(fn: (reader: Reader) => T, options: ReadOptions = {}): Promise<T> {
    const int64 = options.int64 ?? this.#deps.int64;
    return this.#use(async (store) => {
      await this.#reach(store, options);
      const reign = this.#deps.reign();
      const result = await store.read((connection) => readOnce(connection, int64, fn));
      if (options.stale !== true) await this.#deps.assertFresh(reign);
      return result;
    });
  }

  async position(): Promise<Position> {
    return this.#use(async (store) => {
      await store.ready();
      return this.#positionOf(store.applied);
    }, 'any');
  }

  /** Waits until the tenant has what is asked for. */
  async #reach(store: TenantStore, { min, timeoutMs, signal }: ReadOptions): Promise<void> {
    if (min === undefined) return;
    const { log, limits, outlook } = this.#deps;
    const waitMs = checkTimeout(timeoutMs ?? limits.queryTimeoutMs);
    const untilMs = this.#deps.clock.monotonicMs() + waitMs;
    for (;;) {
      signal?.throwIfAborted();
      const found = await outlook(min);
      if (found.kind === 'lost') throw positionLost(min, found.fork);
      if (found.kind === 'reached') {
        const isThere = store.role === 'primary' || store.appliedTo >= min.lsn;
        if ((isThere || (await store.applyUpTo(min.lsn)) >= min.lsn) && (await this.#isCurrent(store, min.lsn))) return;
      }
      const leftMs = untilMs - this.#deps.clock.monotonicMs();
      if (leftMs <= 0)
        throw new NostosError(
          'QUERY_TIMEOUT',
          `LSN ${min.lsn} did not come in ${waitMs} ms; this node is at LSN ${log.watermark}. Read at the primary, or wait longer`,
          { details: { min, watermark: log.watermark } },
        );
      // Whether another term has dropped it shows with whatever is committed next, at any LSN.
      const stepMs = found.kind === 'reached' ? APPLY_STEP_MS : REACH_STEP_MS;
      const pause = AbortSignal.timeout(Math.ceil(Math.min(leftMs, stepMs)));
      const either = signal === undefined ? pause : AbortSignal.any([pause, signal]);
      await untilCommitted(log, Math.max(min.lsn, log.watermark + 1) as Lsn, either).catch(() => {}); // looked at again
    }
  }

  /** On a replica the tenant may have been replaced before `lsn`, and this node be about to see that. */
  async #isCurrent(store: TenantStore, lsn: Lsn): Promise<boolean> {
    const { log, catalog, givenTo } = this.#deps;
    if (store.role === 'primary' || givenTo() >= lsn) return this.#assertCurrent(store);
    const { last } = await log.locate(NO_TENANT, NO_LSN);
    return catalog.applied >= Math.min(last, lsn) && this.#assertCurrent(store);
  }

  #assertCurrent({ identity }: TenantStore): true {
    if (this.#entry().id === identity.id) return true;
    throw new NostosError('TENANT_RESET', `the content of tenant ${this.name} was replaced`, {
      details: { tenant: this.name },
    });
  }

  query<R = Row>(
    statement: string | SqlStatement,
    parameters?: SqlParameters,
    options: QueryOptions = {},
  ): Promise<R[]> {
    const text = typeof statement === 'string' ? statement : statement?.text;
    const given = parameters ?? (typeof statement === 'string' ? [] : (statement?.parameters ?? []));
    const { limits, queries, int64 } = this.#deps;
    return this.#use(async (store) => {
      checkStatement(text);
      checkParameters(given);
      await this.#reach(store, options);
      await store.ready();
      const reign = this.#deps.reign();
      const rows = (await queries.query({
        path: store.path,
        statement: text,
        parameters: given,
        int64: options.int64 ?? int64,
        rowsMax: limits.queryRowsMax,
        // A reader with an old snapshot keeps the WAL from beginning anew, so its age has an end.
        timeoutMs: Math.min(checkTimeout(options.timeoutMs ?? limits.queryTimeoutMs), limits.readerAgeMaxMs),
        signal: options.signal,
      })) as R[];
      if (options.stale !== true) await this.#deps.assertFresh(reign);
      return rows;
    });
  }

  async migrate(migrations: readonly Migration[], options: LongCallOptions = {}): Promise<MigrateReport> {
    const { signal, onProgress } = options;
    if (!Array.isArray(migrations))
      throw new NostosError('INVALID_ARGUMENT', `migrate() needs a list of migrations, got ${typeof migrations}`);
    this.#deps.assertWritable();
    const total = migrations.length;
    const report = await this.#use(
      (store) =>
        migrateStore(store, migrations as readonly StoreMigration[], {
          ...(signal === undefined ? {} : { signal }),
          onStep: (done) => onProgress?.({ phase: `migrating ${this.name}`, done, total, unit: 'steps' }),
        }),
      'bare',
    );
    const entry = this.#entry();
    this.#deps.catalog.setSchemaVersion(entry.id, report.to);
    return { tenant: this.name, ...report };
  }

  changes(options: ChangesOptions = {}): AsyncIterableIterator<Change> {
    return this.#changes(options, this.#deps.log.watermark); // `now` is the time of the call
  }

  async *#changes(options: ChangesOptions, now: Lsn): AsyncIterableIterator<Change> {
    const { log, tenants, int64 } = this.#deps;
    const entry = this.#entry();
    const after = options.from === 'now' ? now : await this.#feedStart(entry, options.from);
    const withStore = <T>(fn: (store: TenantStore) => T): Promise<T> => tenants.with(entry, fn);
    const { closing } = this.#deps;
    yield* feed(log, withStore, entry, {
      after,
      untilCaughtUp: options.untilCaughtUp ?? false,
      int64: options.int64 ?? int64,
      signal: options.signal === undefined ? closing : AbortSignal.any([options.signal, closing]),
    });
  }

  async importFile(file: string, options: ImportOptions = {}): Promise<ImportReport> {
    const { catalog, clock, create, drop, importing, maintenance } = this.#deps;
    const { name } = this;
    this.#deps.assertOpen();
    checkPath(file);
    if (options.dryRun !== true) this.#deps.assertWritable();
    const startedMs = clock.monotonicMs();
    if (importing.has(name))
      throw new NostosError('TENANT_EXISTS', `an import into tenant ${JSON.stringify(name)} is running`, {
        details: { tenant: name },
      });
    importing.add(name);
    try {
      const report = await importInto(
        {
          tenant: name,
          exists: () => catalog.get(name) !== undefined,
          create: () => create(name),
          drop: () => drop(name),
          use: (fn) => this.#use(fn, 'any'),
          inspect: (request, work) => maintenance.inspect(request, work),
        },
        file,
        options,
      );
      if (!report.dryRun)
        await this.#use(async (store) => catalog.setSchemaVersion(this.#entry().id, store.schemaVersion), 'any');
      return { ...report, tenant: name, elapsedMs: Math.round(clock.monotonicMs() - startedMs) };
    } finally {
      importing.delete(name);
    }
  }

  async exportFile(file: string, options: ExportOptions = {}): Promise<ExportReport> {
    const { signal, onProgress } = options;
    checkPath(file);
    return this.#use(async (store) => {
      await store.reader(); // brings a file that lags behind up to date
      const { term, lsn, bytes } = await this.#deps.maintenance.exportPlain(
        { path: store.path, target: file, overwrite: options.overwrite ?? false },
        {
          ...(signal === undefined ? {} : { signal }),
          onProgress: (phase) => onProgress?.({ phase, done: 0, unit: 'steps' }),
        },
      );
      const position = this.#positionOf({ term: term as Term, lsn: lsn as Lsn });
      return { tenant: this.name, file, bytes, position };
    });
  }

  async status(): Promise<TenantStatus> {
    const entry = this.#entry();
    const { statSync } = await import('node:fs');
    return this.#use(async (store) => {
      const connection = await store.reader();
      const tables = [...store.shape.tables.values()]
        .filter((table) => table.type === 'table' && !table.name.startsWith('nostos_'))
        .map(({ name }) => ({
          name,
          rows: (
            connection.database.prepare(`select count(*) as n from "${name.replaceAll('"', '""')}"`).get() as {
              n: number;
            }
          ).n,
        }));
      return {
        ...publicInfo(entry),
        schemaVersion: store.schemaVersion,
        applied: { term: store.applied.term, lsn: store.applied.lsn },
        durableApplied: store.durable,
        fileBytes: statSync(store.path).size,
        walBytes: store.walBytes(),
        fingerprint: Buffer.from(store.applied.fingerprint).toString('hex'),
        tables,
      };
    }, 'any');
  }

  /** For parts of this node, which may do what its users cannot. */
  async internal<T>(
    fn: (store: TenantStore, deps: TransactionDeps) => Promise<T>,
    { writes }: { readonly writes: boolean },
  ): Promise<T> {
    if (writes) this.#deps.assertWritable();
    return this.#use((store) => fn(store, this.#deps));
  }

  /** What was forgotten of this tenant, but for what its history up to `lsn` forgot. */
  async forgottenSince(lsn: Lsn): Promise<ForgetFilter> {
    const { ledger, outlook } = this.#deps;
    const { uuid } = this.#entry();
    const passed = new Set<string>();
    for (const { uuid: owner, position } of ledger.entries())
      if (owner === uuid && position.lsn <= lsn && (await outlook(position)).kind === 'reached')
        passed.add(formatPosition(position));
    const includes = (position: Position): boolean => passed.has(formatPosition(position));
    return ForgetFilter.of({ entries: () => ledger.entries(), uuid, includes });
  }

  #entry(): CatalogEntry {
    this.#deps.assertOpen();
    const entry = this.#deps.catalog.get(this.name);
    if (entry === undefined)
      throw new NostosError(
        'TENANT_NOT_FOUND',
        `there is no tenant ${JSON.stringify(this.name)}; create it with node.tenants.create`,
        {
          details: { tenant: this.name },
        },
      );
    return entry;
  }

  /** The short way of a hot path: the tenant if it is open, and at the right schema. */
  #openStore(): TenantStore | undefined {
    const { tenants, migrations } = this.#deps;
    const store = tenants.peek(this.#entry().id);
    return store === undefined ||
      isUnfinished(store) ||
      (migrations !== undefined && store.schemaVersion !== migrations.length)
      ? undefined
      : store;
  }

  /** Runs `fn` with the tenant open; unless `bare`, at the schema that `openNode` was given; `any`, even half imported. */
  async #use<T>(fn: (store: TenantStore) => Promise<T>, mode: 'migrated' | 'bare' | 'any' = 'migrated'): Promise<T> {
    const { tenants, catalog, migrations } = this.#deps;
    for (;;) {
      const entry = this.#entry();
      try {
        return await tenants.with(entry, async (store) => {
          if (mode !== 'any' && isUnfinished(store)) throw unfinished(entry.name);
          if (mode === 'migrated' && migrations !== undefined && store.schemaVersion !== migrations.length) {
            await migrateStore(store, migrations);
            catalog.setSchemaVersion(entry.id, store.schemaVersion);
          }
          return fn(store);
        });
      } catch (error) {
        if (!(await this.#goesOn(entry, error))) throw error;
      }
    }
  }

  /** What a tenant refused since it was being closed, to be replaced, the new content does; or the old one, where that stays. */
  async #goesOn({ id }: CatalogEntry, error: unknown): Promise<boolean> {
    const { tenants, catalog, closing } = this.#deps;
    if (!isNostosError(error) || !GONE.has(error.code)) return false;
    const ended = tenants.closing(id);
    await ended;
    if (closing.aborted) return false;
    const now = catalog.get(this.name);
    return now !== undefined && (now.id !== id || ended !== undefined);
  }

  /** That of its content, or of the record by which it has that. */
  #positionOf(applied: { readonly term: Term; readonly lsn: Lsn }): Position {
    const { reset } = this.#entry();
    const { term, lsn } = reset !== undefined && reset.lsn > applied.lsn ? reset : applied;
    return { generation: this.#deps.generationOf(lsn), term, lsn };
  }

  async #counted<T>(running: Promise<T>): Promise<T> {
    try {
      const result = await running;
      this.#deps.count('committed');
      return result;
    } catch (error) {
      this.#deps.count('failed');
      throw error;
    }
  }

  async #feedStart(entry: CatalogEntry, from: Position | undefined): Promise<Lsn> {
    const { log, outlook } = this.#deps;
    const { reset } = entry;
    if (from === undefined)
      return Math.max(entry.createdAt - 1, (await this.#deps.firstLsn()) - 1, reset?.lsn ?? NO_LSN) as Lsn;
    if (!Number.isSafeInteger(from?.lsn) || from.lsn < 0)
      throw new NostosError('INVALID_ARGUMENT', `from must be a position, got ${JSON.stringify(from)}`);
    const found = await outlook(from);
    if (found.kind === 'lost') throw positionLost(from, found.fork);
    if (found.kind === 'ahead')
      throw new NostosError(
        'POSITION_LOST',
        `position ${from.lsn} is above the watermark ${log.watermark} of this log`,
      );
    if (reset !== undefined && from.lsn < reset.lsn)
      throw tenantReset(entry.name, { generation: this.#deps.generationOf(reset.lsn), ...reset });
    return from.lsn;
  }
}

function unfinished(tenant: string): NostosError {
  return new NostosError(
    'IMPORT_UNFINISHED',
    `an import into tenant ${JSON.stringify(tenant)} runs or was cut off; wait for it, import again, or drop the tenant`,
    { details: { tenant } },
  );
}

function checkPath(file: unknown): void {
  if (typeof file !== 'string' || file.length === 0 || file.includes('\0'))
    throw new NostosError('INVALID_ARGUMENT', `a file is given by its path, got ${JSON.stringify(file)}`);
}

/** One snapshot; nothing of it outlives the call, or its connection would go on reading the past. */
function readOnce<T>(connection: Connection, int64: Int64Mode, fn: (reader: Reader) => T): T {
  checkCallback('read', fn);
  const reader = new Statements(connection, int64);
  try {
    connection.internal('begin').run();
    const result = fn(reader);
    if (isThenable(result)) {
      Promise.resolve(result).catch(() => {}); // it is reported here
      throw new NostosError('INVALID_ARGUMENT', 'the callback of read() must be synchronous, it returned a promise');
    }
    return result;
  } finally {
    reader.end('the read has ended; use the reader only inside its callback');
    if (connection.inTransaction) connection.internal('rollback').run();
  }
}

function checkCallback(call: string, fn: unknown): void {
  if (typeof fn !== 'function')
    throw new NostosError('INVALID_ARGUMENT', `${call}() needs a function, got ${typeof fn}`);
}

function checkTimeout(timeoutMs: number): number {
  if (!(timeoutMs >= 0)) throw new NostosError('INVALID_ARGUMENT', `timeoutMs must be 0 or more, got ${timeoutMs}`);
  return timeoutMs;
}

export function publicInfo(
  entry: CatalogEntry,
): Pick<TenantStatus, 'name' | 'id' | 'uuid' | 'schemaVersion' | 'createdAt'> {
  const { name, id, uuid, schemaVersion, createdAt } = entry;
  return { name, id, uuid, schemaVersion, createdAt };
}

export function checkName(name: unknown): string {
  if (
    typeof name !== 'string' ||
    name.length === 0 ||
    name.length > 200 ||
    /[\u0000-\u001f\u007f]/.test(name) ||
    !name.isWellFormed()
  )
    throw new NostosError(
      'INVALID_ARGUMENT',
      `a tenant name has 1 to 200 characters and no control characters, got ${JSON.stringify(name)}`,
    );
  return name;
}

function checkDurability(given: Durability): Durability {
  if (given === 'quorum' || given === 'local') return given;
  throw new NostosError('INVALID_ARGUMENT', `durability must be quorum or local, got ${JSON.stringify(given)}`);
}

/** How a tenant that is closed for good answers. */
const GONE: ReadonlySet<string> = new Set(['CLOSED', 'TENANT_NOT_FOUND', 'TENANT_RESET']);

/** A position that is lost is seen when the group goes on, be it elsewhere. */
const REACH_STEP_MS = 500;
/** What is committed is about to be applied here. */
const APPLY_STEP_MS = 10;

function positionLost(position: Position, fork: Position): NostosError {
  return new NostosError(
    'POSITION_LOST',
    `there is no record ${position.lsn} of term ${position.term} of generation ${position.generation} in this history: it left that one at LSN ${fork.lsn} of term ${fork.term}`,
    { details: { position, fork } },
  );
}
