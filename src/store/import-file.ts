/**
 * Imports an existing SQLite file into a new tenant. Rows never pass through JavaScript, and memory does not grow with
 * the file: they are copied in chunks, each an ordinary record.
 *
 * The records: one schema record with the tables and views, the rows, then schema records with the indexes and triggers.
 * All but the last leave the tenant at schema version 0, the last makes it 1. So a tenant that has tables at version 0 is
 * an import that has not finished: it is not served (`isUnfinished`), and the next import begins anew in its place. An
 * import that fails or is cancelled takes back what it made.
 */
import { resolve } from 'node:path';
import { NostosError, isNostosError } from '../base/errors.ts';
import { begin } from './group.ts';
import type { ImportPlan, ImportTable } from './import-plan.ts';
import { TableWalk, dropWalk } from './import-walk.ts';
import { sourceSignature } from './import-source.ts';
import type { InspectReport, InspectRequest, LongWork } from './maintenance.ts';
import { runMigration } from './migration.ts';
import { quoteName } from './schema-catalog.ts';
import { fromSqlite } from './sqlite-errors.ts';
import { writeSequences } from './tenant-file.ts';
import { migrateOnce } from './tenant.ts';
import type { TenantStore } from './tenant-store.ts';

export interface ImportDeps {
  readonly tenant: string;
  exists(): boolean;
  create(): Promise<void>;
  drop(): Promise<void>;
  use<T>(fn: (store: TenantStore) => Promise<T>): Promise<T>;
  /** Looks at the file where it disturbs nobody. */
  inspect(request: InspectRequest, work: LongWork<string>): Promise<InspectReport>;
}

export interface ImportFileOptions {
  readonly addKey?: boolean;
  readonly keepViolations?: boolean;
  readonly dryRun?: boolean;
  /** The schema version that the tenant has afterwards. Default 1; 0 only of a file without tables. */
  readonly schemaVersion?: number;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: { phase: string; done: number; total?: number; unit: 'rows' }) => void;
}

export interface ImportFileReport {
  readonly tables: readonly { readonly name: string; readonly rows: number; readonly addedKey?: string }[];
  readonly rows: number;
  readonly dryRun: boolean;
}

export const SOURCE = 'nostos_source';
const CHUNK_ROWS = 1_000;
const CHUNK_ROWS_MAX = 50_000;
/** Chunks grow or shrink towards changesets of this size. */
const CHUNK_BYTES = 1024 * 1024;
const CACHE_KIB = 8 * 1024;
/** Indexes of so many rows share a record. */
const INDEXED_ROWS = 200_000;

/** The caller sees to it that nobody else imports into this tenant meanwhile. */
export async function importInto(
  deps: ImportDeps,
  given: string,
  options: ImportFileOptions,
): Promise<ImportFileReport> {
  options.signal?.throwIfAborted();
  const file = resolve(given);
  const { addKey = false, keepViolations = false, dryRun = false, signal, onProgress } = options;
  const inspected = await deps.inspect(
    { file, addKey, keepViolations },
    {
      ...(signal === undefined ? {} : { signal }),
      onProgress: (phase) => onProgress?.({ phase, done: 0, unit: 'rows' }),
    },
  );
  const tables = inspected.plan.tables.filter((table) => table.type === 'table');
  const rows = new Map(inspected.counts);
  const report = {
    tables: tables.map(({ name, addedKey }) => ({
      name,
      rows: rows.get(name) ?? 0,
      ...(addedKey === undefined ? {} : { addedKey }),
    })),
    rows: tables.reduce((sum, { name }) => sum + (rows.get(name) ?? 0), 0),
    dryRun,
  };
  if (!dryRun) await fill(deps, file, inspected, options);
  else if (deps.exists()) await deps.use(async (store) => assertNew(store, deps.tenant));
  return report;
}

/** A tenant that has tables and no schema version: its import has not finished. */
export function isUnfinished(store: Pick<TenantStore, 'schemaVersion' | 'shape'>): boolean {
  if (store.schemaVersion !== 0) return false;
  for (const name of store.shape.tables.keys()) if (!name.startsWith('nostos_')) return true;
  return false;
}

async function fill(
  deps: ImportDeps,
  file: string,
  inspected: InspectReport,
  options: ImportFileOptions,
): Promise<void> {
  const wasThere = await makeRoom(deps);
  let begun = false;
  try {
    await deps.use((store) =>
      store.exclusive(async () => {
        assertNew(store, deps.tenant); // somebody may have migrated it meanwhile
        begun = true;
        await new Import(store, file, inspected, options).run();
      }),
    );
  } catch (error) {
    if (begun || !wasThere) {
      // What cannot be taken back now is seen to be unfinished, and goes with the next import.
      await deps.drop().catch(() => {});
      if (wasThere) await deps.create().catch(() => {});
    }
    throw importFailed(error, file);
  }
}

/** True where the tenant was there before. What an unfinished import left of it makes room. */
async function makeRoom(deps: ImportDeps): Promise<boolean> {
  if (deps.exists()) {
    const unfinished = await deps.use(async (store) => {
      if (isUnfinished(store)) return true;
      assertNew(store, deps.tenant);
      return false;
    });
    if (!unfinished) return true;
    await deps.drop();
  }
  await deps.create();
  return false;
}

function assertNew(store: TenantStore, tenant: string): void {
  if (store.schemaVersion === 0) return;
  throw new NostosError(
    'TENANT_EXISTS',
    `tenant ${JSON.stringify(tenant)} has tables already; import into a new tenant`,
    { details: { tenant } },
  );
}

class Import {
  readonly #store: TenantStore;
  readonly #file: string;
  readonly #plan: ImportPlan;
  readonly #source: InspectReport;
  readonly #options: ImportFileOptions;
  readonly #counts: ReadonlyMap<string, number>;
  readonly #total: number;
  #done = 0;
  #dataVersion = 0;

  constructor(store: TenantStore, file: string, source: InspectReport, options: ImportFileOptions) {
    this.#store = store;
    this.#file = file;
    this.#plan = source.plan;
    this.#source = source;
    this.#options = options;
    this.#counts = new Map(source.counts);
    this.#total = source.counts.reduce((sum, [, rows]) => sum + rows, 0);
  }

  /** The caller has the writer. */
  async run(): Promise<void> {
    try {
      await this.#schema('not-last', this.#plan.create);
      this.#attach();
      for (const table of this.#plan.tables) await this.#copy(table);
      this.#detach();
      for (const indexes of this.#indexGroups()) {
        this.#progress('building indexes');
        await this.#schema('not-last', indexes);
      }
      this.#progress('creating triggers');
      await this.#schema('last', this.#plan.triggers);
    } finally {
      // The connection has had foreign keys off, and full-text tables keep caches per connection that copied shadow
      // tables leave stale: a new connection has neither.
      this.#store.rollback();
      this.#store.invalidate();
    }
  }

  async #schema(place: 'last' | 'not-last', statements: readonly string[]): Promise<void> {
    this.#options.signal?.throwIfAborted();
    const version = place === 'last' ? (this.#options.schemaVersion ?? 1) : 0;
    await migrateOnce(
      this.#store,
      (writer) => {
        const steps = runMigration(writer, statements.join(';\n'));
        if (place === 'not-last') return steps;
        writeSequences(writer, this.#plan.sequences);
        const settings = [
          `pragma user_version = ${this.#plan.userVersion}`,
          `pragma application_id = ${this.#plan.applicationId}`,
        ];
        for (const sql of settings) writer.migrationStatement(sql);
        return [...steps, ...settings.map((sql) => ({ sql }))];
      },
      { keepViolations: true, version },
    );
    await this.#assertWritten();
    await this.#store.relieve();
  }

  /** One record for small tables, one for each index of a big one, so that the thread is not held too long. */
  #indexGroups(): string[][] {
    const groups: string[][] = [];
    let room = 0;
    for (const { table, sql } of this.#plan.indexes) {
      const rows = this.#counts.get(table) ?? 0;
      if (rows > room) {
        groups.push([]);
        room = INDEXED_ROWS;
      }
      groups.at(-1)!.push(sql);
      room -= rows;
    }
    return groups;
  }

  #attach(): void {
    const { database } = this.#store.writer;
    database.prepare(`attach ? as ${SOURCE}`).run(this.#source.uri);
    // The rows are what the foreign keys of their old home made of them already.
    // Keys of UNIQUE constraints come in any order: with SQLite's 2 MiB most pages would be read again and again.
    database.exec(`pragma foreign_keys = off; pragma main.cache_size = -${CACHE_KIB}`);
    database.enableDefensive(false); // shadow tables are copied as tables
    this.#dataVersion = this.#sourceVersion();
    if (sourceSignature(this.#file) !== this.#source.signature) throw this.#changed();
  }

  #detach(): void {
    const { database } = this.#store.writer;
    if (this.#sourceVersion() !== this.#dataVersion) throw this.#changed();
    dropWalk(database);
    database.exec(`detach ${SOURCE}`);
  }

  async #copy(table: ImportTable): Promise<void> {
    const { database } = this.#store.writer;
    this.#progress(`copying rows of ${table.name}`);
    if (table.type === 'shadow') await this.#chunk(() => database.exec(`delete from main.${quoteName(table.name)}`));
    const walk = new TableWalk(database, table, SOURCE);
    let rowsMax = CHUNK_ROWS;
    let rows = 0;
    for (;;) {
      this.#options.signal?.throwIfAborted();
      const chunk = await this.#fitting(table, walk.fitting(rowsMax, CHUNK_BYTES), (count) => walk.copy(count));
      walk.accept();
      rows += chunk.copied;
      this.#done += chunk.copied;
      this.#progress(`copying rows of ${table.name}`);
      if (chunk.copied < chunk.rowsMax) break;
      const next = Math.floor((chunk.copied * CHUNK_BYTES) / Math.max(1, chunk.bytes));
      rowsMax = Math.max(1, Math.min(next, chunk.copied * 4, CHUNK_ROWS_MAX));
    }
    if (this.#sourceVersion() !== this.#dataVersion) throw this.#changed();
    if (rows !== this.#counts.get(table.name))
      throw new NostosError(
        'IMPORT_REFUSED',
        `${rows} of ${this.#counts.get(table.name)} rows of ${table.name} could be read; an index of the file is damaged (sqlite3 .recover)`,
      );
  }

  /** Makes a chunk smaller until it fits a record. */
  async #fitting(
    table: ImportTable,
    given: number,
    copy: (rowsMax: number) => number,
  ): Promise<{ copied: number; bytes: number; rowsMax: number }> {
    for (let rowsMax = given; ; rowsMax = Math.max(1, rowsMax >> 2)) {
      try {
        return { ...(await this.#chunk(() => copy(rowsMax))), rowsMax };
      } catch (error) {
        if (!isNostosError(error, 'TRANSACTION_TOO_LARGE')) throw error;
        if (rowsMax > 1) continue;
        throw new NostosError('IMPORT_REFUSED', `a row of ${table.name} is too large: ${error.message}`, {
          cause: error,
        });
      }
    }
  }

  /** One transaction of the import, committed before the next begins. */
  async #chunk<T>(change: () => T): Promise<{ copied: T; bytes: number }> {
    const connection = this.#store.writer;
    begin(connection);
    const session = connection.database.createSession();
    let copied: T;
    let changeset: Uint8Array;
    try {
      copied = change();
      changeset = session.changeset();
    } catch (error) {
      session.close();
      this.#store.rollback();
      throw fromSqlite(error);
    }
    session.close();
    const captured = { changeset, forgotten: [] };
    this.#store.assertFits(captured);
    const bytes = changeset.length;
    await this.#store.commit(bytes === 0 ? [] : [captured]);
    await this.#assertWritten();
    await this.#store.relieve();
    return { copied, bytes };
  }

  /** The log has the record; where the file could not take it, it is opened anew, without the source. */
  async #assertWritten(): Promise<void> {
    const { writer } = this.#store;
    await this.#store.recovered();
    if (this.#store.writer === writer) return;
    throw new NostosError('IO_FAILED', `the file of tenant ${this.#store.identity.name} could not be written`);
  }

  #sourceVersion(): number {
    const row = this.#store.writer.database.prepare(`pragma ${SOURCE}.data_version`).get();
    return (row as { data_version: number }).data_version;
  }

  #changed(): NostosError {
    return new NostosError(
      'IMPORT_REFUSED',
      'it was changed during the import; stop the program that writes it, or import a copy',
    );
  }

  #progress(phase: string): void {
    this.#options.onProgress?.({ phase, done: this.#done, total: this.#total, unit: 'rows' });
  }
}

/** Failures that come from what is in the file are refusals of the file. */
function importFailed(error: unknown, file: string): unknown {
  if (!isNostosError(error)) return error;
  const { code, message, details } = error;
  if (
    code !== 'MIGRATION_FAILED' &&
    code !== 'SCHEMA_REFUSED' &&
    code !== 'CONSTRAINT_FAILED' &&
    code !== 'IMPORT_REFUSED'
  )
    return error;
  return new NostosError('IMPORT_REFUSED', `${file} cannot be imported: ${message}`, {
    cause: error,
    details: { file, ...details },
  });
}
