/**
 * Imports an existing SQLite file into a new tenant: its schema as one record, its rows in chunks, each an ordinary
 * record. Rows never pass through JavaScript and memory does not grow with the file.
 *
 * A marker among the idempotent results says that an import is under way. A process that dies in between leaves the
 * marker, and the next import of this tenant drops it and begins anew; a failed or cancelled one drops it itself.
 */
import { existsSync, statSync } from 'node:fs';
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { DatabaseSync } from 'node:sqlite';
import { NostosError, isNostosError } from '../base/errors.ts';
import type { Connection } from './connection.ts';
import { begin } from './group.ts';
import { planImport, type ImportPlan, type ImportTable } from './import-plan.ts';
import { runMigration } from './migration.ts';
import { quoteName } from './schema-catalog.ts';
import { fromSqlite, sqliteCode } from './sqlite-errors.ts';
import { writeSequences } from './tenant-file.ts';
import { migrateOnce } from './tenant.ts';
import type { TenantStore } from './tenant-store.ts';

export interface ImportDeps {
  readonly tenant: string;
  exists(): boolean;
  create(): Promise<void>;
  drop(): Promise<void>;
  use<T>(fn: (store: TenantStore) => Promise<T>): Promise<T>;
  /** Runs SQLite's quick check where it disturbs nobody. */
  check(file: string, signal: AbortSignal | undefined): Promise<readonly string[]>;
}

export interface ImportFileOptions {
  readonly addKey?: boolean;
  readonly keepViolations?: boolean;
  readonly dryRun?: boolean;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: { phase: string; done: number; total: number; unit: 'rows' }) => void;
}

export interface ImportFileReport {
  readonly tables: readonly { readonly name: string; readonly rows: number; readonly addedKey?: string }[];
  readonly rows: number;
  readonly dryRun: boolean;
}

const SOURCE = 'nostos_source';
const MARKER = 'nostos:import';
const CHUNK_ROWS = 2_000;
const CHUNK_ROWS_MAX = 50_000;
/** Chunks grow or shrink towards changesets of this size. */
const CHUNK_BYTES = 1024 * 1024;

export async function importInto(
  deps: ImportDeps,
  given: string,
  options: ImportFileOptions,
): Promise<ImportFileReport> {
  const file = resolve(given);
  const { plan, counts } = await inspect(deps, file, options);
  const summary = (rows: ReadonlyMap<string, number>): ImportFileReport => {
    const tables = plan.tables
      .filter((table) => table.type === 'table')
      .map(({ name, addedKey }) => ({
        name,
        rows: rows.get(name) ?? 0,
        ...(addedKey === undefined ? {} : { addedKey }),
      }));
    return { tables, rows: tables.reduce((sum, table) => sum + table.rows, 0), dryRun: options.dryRun ?? false };
  };
  if (options.dryRun === true) return summary(counts);
  await makeRoom(deps);
  try {
    const rows = await deps.use((store) => store.exclusive(() => new Import(store, file, plan, counts, options).run()));
    return summary(rows);
  } catch (error) {
    await deps.drop().catch(() => {}); // a drop that fails leaves the marker
    throw error;
  }
}

/** Everything that can be refused is refused here, before anything is written. */
async function inspect(
  deps: ImportDeps,
  file: string,
  options: ImportFileOptions,
): Promise<{ plan: ImportPlan; counts: Map<string, number> }> {
  if (!existsSync(file) || !statSync(file).isFile())
    throw new NostosError('IMPORT_REFUSED', `${file} is not a file`, { details: { file } });
  try {
    const damages = await deps.check(file, options.signal);
    if (damages.length > 0)
      throw new NostosError(
        'IMPORT_REFUSED',
        `${file} is damaged: ${damages.join('; ')}; recover it first (sqlite3 .recover)`,
        {
          details: { file, damages },
        },
      );
    using source = new DatabaseSync(file, { readOnly: true, enableForeignKeyConstraints: false });
    const plan = planImport(source, { addKey: options.addKey ?? false });
    if (options.keepViolations !== true) refuseViolations(source, file);
    const counts = new Map<string, number>();
    for (const { name } of plan.tables)
      counts.set(name, (source.prepare(`select count(*) as n from ${quoteName(name)}`).get() as { n: number }).n);
    return { plan, counts };
  } catch (error) {
    throw notImportable(error, file);
  }
}

function refuseViolations(source: DatabaseSync, file: string): void {
  const rows = source
    .prepare('select "table" as child, parent, count(*) as n from pragma_foreign_key_check group by 1, 2')
    .all() as { child: string; parent: string; n: number }[];
  if (rows.length === 0) return;
  const list = rows.map(({ child, parent, n }) => `${n} rows of ${child} refer to missing rows of ${parent}`);
  throw new NostosError(
    'IMPORT_REFUSED',
    `${file}: ${list.join('; ')}; mend them, or keep them with keepViolations (--keep-violations)`,
    {
      details: { violations: rows },
    },
  );
}

/** The tenant must be new, or left behind by an import that died. */
async function makeRoom(deps: ImportDeps): Promise<void> {
  if (deps.exists()) {
    const state = await deps.use(async (store) => {
      const connection = await store.reader();
      const marked = connection.database.prepare('select 1 from nostos_results where id = ?').get(MARKER) !== undefined;
      return marked ? 'unfinished' : store.schemaVersion === 0 ? 'empty' : 'used';
    });
    if (state === 'used')
      throw new NostosError(
        'TENANT_EXISTS',
        `tenant ${JSON.stringify(deps.tenant)} has tables already; import into a new tenant`,
        {
          details: { tenant: deps.tenant },
        },
      );
    if (state === 'empty') return;
    await deps.drop();
  }
  await deps.create();
}

class Import {
  readonly #store: TenantStore;
  readonly #file: string;
  readonly #plan: ImportPlan;
  readonly #counts: ReadonlyMap<string, number>;
  readonly #options: ImportFileOptions;
  readonly #total: number;
  #done = 0;
  #chunkRows = CHUNK_ROWS;
  #dataVersion = 0;

  constructor(
    store: TenantStore,
    file: string,
    plan: ImportPlan,
    counts: ReadonlyMap<string, number>,
    options: ImportFileOptions,
  ) {
    this.#store = store;
    this.#file = file;
    this.#plan = plan;
    this.#counts = counts;
    this.#options = options;
    this.#total = [...counts.values()].reduce((sum, rows) => sum + rows, 0);
  }

  /** The caller has the writer. */
  async run(): Promise<Map<string, number>> {
    const connection = this.#store.writer;
    const { database } = connection;
    await this.#chunk((writer) =>
      writer.database.prepare('insert into nostos_results values (?, ?, ?)').run(MARKER, Buffer.from(this.#file), 0),
    );
    await migrateOnce(
      this.#store,
      (writer) => {
        const steps = runMigration(writer, this.#plan.statements.join(';\n'));
        if (this.#plan.userVersion !== 0) database.exec(`pragma user_version = ${this.#plan.userVersion}`);
        writeSequences(writer, this.#plan.sequences);
        return steps;
      },
      { keepViolations: true },
    );
    const url = pathToFileURL(this.#file);
    url.searchParams.set('mode', 'ro');
    database.prepare(`attach ? as ${SOURCE}`).run(url.href);
    // The rows are what the triggers and foreign keys of their old home made of them already.
    connection.triggersLive = false;
    database.exec('pragma foreign_keys = off');
    database.enableDefensive(false); // shadow tables are copied as tables
    try {
      this.#dataVersion = this.#sourceVersion();
      const copied = new Map<string, number>();
      for (const table of this.#plan.tables) copied.set(table.name, await this.#copyTable(table));
      await this.#chunk((writer) => writer.database.prepare('delete from nostos_results where id = ?').run(MARKER));
      return copied;
    } finally {
      // Full-text tables keep caches per connection that copied shadow tables leave stale: a new connection has none.
      this.#store.rollback();
      this.#store.invalidate();
    }
  }

  async #copyTable(table: ImportTable): Promise<number> {
    const name = quoteName(table.name);
    if (table.type === 'shadow') await this.#chunk(({ database }) => database.exec(`delete from main.${name}`));
    const keys = table.withoutRowid ? table.keyColumns.map(quoteName) : [rowidName(table)];
    const list = table.columns.map(quoteName).join(', ');
    const order = keys.join(', ');
    const tuple = `(${order})`;
    const holes = `(${keys.map(() => '?').join(', ')})`;
    let after: unknown[] | undefined;
    let rows = 0;
    for (;;) {
      this.#options.signal?.throwIfAborted();
      const from = after === undefined ? '' : `where ${tuple} > ${holes}`;
      const boundOf = `select ${order} from ${SOURCE}.${name} ${from} order by ${order} limit 1 offset ?`;
      const copied = await this.#shrinking(table, async (chunkRows) => {
        const { database } = this.#store.writer;
        const bound = database.prepare(boundOf);
        bound.setReadBigInts(true);
        bound.setReturnArrays(true);
        const last = bound.get(...((after ?? []) as never[]), chunkRows - 1) as unknown as unknown[] | undefined;
        const upTo = last === undefined ? '' : `${after === undefined ? 'where' : 'and'} ${tuple} <= ${holes}`;
        const insert = `insert into main.${name} (${list}) select ${list} from ${SOURCE}.${name} ${from} ${upTo} order by ${order}`;
        const changes = await this.#chunk(() =>
          Number(database.prepare(insert).run(...((after ?? []) as never[]), ...((last ?? []) as never[])).changes),
        );
        return { changes, last };
      });
      rows += copied.changes;
      this.#done += copied.changes;
      this.#options.onProgress?.({
        phase: `copying rows of ${table.name}`,
        done: this.#done,
        total: this.#total,
        unit: 'rows',
      });
      if (copied.last === undefined) break;
      after = copied.last;
    }
    if (this.#sourceVersion() !== this.#dataVersion)
      throw new NostosError(
        'IMPORT_REFUSED',
        `${this.#file} was changed during the import; stop the program that writes it, or import a copy`,
      );
    if (rows !== this.#counts.get(table.name))
      throw new NostosError(
        'IMPORT_REFUSED',
        `${this.#file}: ${rows} of ${this.#counts.get(table.name)} rows of ${table.name} could be read`,
      );
    return rows;
  }

  /** Makes chunks smaller until one fits a record. */
  async #shrinking<T>(table: ImportTable, copy: (chunkRows: number) => Promise<T>): Promise<T> {
    for (;;) {
      try {
        return await copy(this.#chunkRows);
      } catch (error) {
        if (!isNostosError(error, 'TRANSACTION_TOO_LARGE')) throw error;
        if (this.#chunkRows === 1)
          throw new NostosError(
            'IMPORT_REFUSED',
            `a row of ${table.name} is larger than a record may be: ${error.message}`,
            { cause: error },
          );
        this.#chunkRows = Math.max(1, Math.floor(this.#chunkRows / 4));
      }
    }
  }

  /** One transaction of the import, committed before the next begins. */
  async #chunk<T>(change: (connection: Connection) => T): Promise<T> {
    const connection = this.#store.writer;
    begin(connection);
    const session = connection.database.createSession();
    let result: T;
    let changeset: Uint8Array;
    try {
      result = change(connection);
      changeset = session.changeset();
    } catch (error) {
      session.close();
      this.#store.rollback();
      throw fromSqlite(error);
    }
    session.close();
    this.#store.assertFits(changeset);
    if (changeset.length > 2 * CHUNK_BYTES) this.#chunkRows = Math.max(1, Math.floor(this.#chunkRows / 2));
    else if (changeset.length * 2 < CHUNK_BYTES) this.#chunkRows = Math.min(CHUNK_ROWS_MAX, this.#chunkRows * 2);
    await this.#store.commit(changeset.length === 0 ? [] : [changeset]);
    await this.#store.relieve();
    return result;
  }

  #sourceVersion(): number {
    return (this.#store.writer.database.prepare(`pragma ${SOURCE}.data_version`).get() as { data_version: number })
      .data_version;
  }
}

/** A name for the rowid that no column has taken. */
function rowidName(table: ImportTable): string {
  const taken = new Set(table.columns.map((column) => column.toLowerCase()));
  const free = ['rowid', '_rowid_', 'oid'].find((name) => !taken.has(name));
  if (free !== undefined) return free;
  if (table.keyColumns.length > 0) return table.keyColumns.map(quoteName).join(', ');
  throw new NostosError(
    'IMPORT_REFUSED',
    `${table.name} has columns rowid, _rowid_ and oid, so its rows cannot be walked`,
  );
}

function notImportable(error: unknown, file: string): unknown {
  if (isNostosError(error) && error.code !== 'TENANT_DAMAGED' && error.code !== 'IO_FAILED') return error;
  const code = isNostosError(error) ? (error.details['sqliteCode'] as number) & 0xff : sqliteCode(error);
  if (code === 26)
    return new NostosError(
      'IMPORT_REFUSED',
      `${file} is not an SQLite database, or it is encrypted; decrypt it first`,
      { cause: error },
    );
  if (code === undefined) return error;
  return new NostosError('IMPORT_REFUSED', `${file} cannot be read: ${(error as Error).message}`, {
    cause: error,
    details: { file },
  });
}
