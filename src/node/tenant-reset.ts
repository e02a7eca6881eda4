/**
 * Replaces the content of a tenant by that of a file, through the log: followers, archives and feeds have the new content
 * before anything names it, and others are served all the while.
 *
 * The content is imported as records of a hidden tenant, which has the uuid of the one to be replaced: so the forget ledger,
 * keys of backups and fingerprints mean the same tenant. Its name begins with a control character, which no user's name
 * may; it is in no list. One committed record, `tenant-reset`, gives it the name, and drops the replaced one.
 *
 * - Writes are held from the last look into the ledger until the record is committed; what was acknowledged before is part
 *   of what is replaced, what comes later is written to the new content.
 * - What was forgotten does not come back: before the record, rows that the ledger names are deleted from the hidden tenant.
 * - A crash before the record leaves the tenant as it was, and a hidden one that the next primary drops; one after it leaves
 *   the new content, and files of the old one that the next opening removes.
 * - Where it is not known whether the record was kept, writes are held until it is: one to the old content would be lost.
 */
import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { formatPosition, type Generation, type Lsn, type Position, type TenantUuid } from '../base/brands.ts';
import type { Clock } from '../base/clock.ts';
import { NostosError, isNostosError } from '../base/errors.ts';
import { randomHex128, systemRandom } from '../base/random.ts';
import type { ForgetLedger } from '../log/ledger.ts';
import type { PositionOutlook } from '../replication/store-view.ts';
import { replacementName, type Catalog, type CatalogEntry } from '../store/catalog.ts';
import { Connection } from '../store/connection.ts';
import { copyResults } from '../store/copy-results.ts';
import { deleteForgottenRows, forgetFilterOf } from '../store/forgotten-rows.ts';
import { importInto } from '../store/import-file.ts';
import type { OpenTenants } from '../store/open-tenants.ts';
import { readTenantMeta } from '../store/tenant-file.ts';
import type { CatalogLog } from './catalog-log.ts';
import type { ThreadMaintenance } from './maintenance.ts';
import { tenantPath } from './paths.ts';
import { SERVING_DIR } from './restore-source.ts';
import type { ReplaceOptions, ReplaceReport } from './types.ts';

export interface TenantResetsDeps {
  readonly catalog: Catalog;
  readonly catalogLog: CatalogLog;
  readonly tenants: OpenTenants;
  readonly maintenance: ThreadMaintenance;
  readonly ledger: ForgetLedger;
  readonly clock: Clock;
  readonly dir: string;
  readonly outlook: (position: Position) => Promise<PositionOutlook>;
  readonly generationOf: (lsn: Lsn) => Generation;
  readonly isPrimary: () => boolean;
  /** Throws where this node appends nothing. */
  readonly assertWritable: () => void;
  readonly create: (name: string, uuid: TenantUuid) => Promise<void>;
  /** Of a tenant that is gone. */
  readonly removeFiles: (id: CatalogEntry['id']) => Promise<void>;
  /** Aborted when the node closes. */
  readonly closing: AbortSignal;
}

/** What is imported, and what of a tenant's own file goes with it. */
interface Content {
  readonly file: string;
  readonly schemaVersion: number;
  /** The file of a tenant, where it is one. */
  readonly tenant?: { readonly path: string; readonly uuid: TenantUuid };
}

/** Of one that is under way. */
interface Replacement {
  readonly old: CatalogEntry;
  readonly hidden: CatalogEntry;
  readonly content: Content;
  readonly options: ReplaceOptions;
  readonly attempt: Attempt;
}

interface Attempt {
  /** The record was appended, whatever came of it. */
  named: boolean;
}

const SETTLE_RETRY_MS = 200;
const REMOVE_RETRY_MS = 1_000;
/** What was forgotten meanwhile is looked for again so often before writes are held. */
const LOOKS_MAX = 3;
const LEFTOVERS_MAX = 1_000;

export class TenantResets {
  readonly #deps: TenantResetsDeps;
  /** Names of hidden tenants that a call of this process is filling, or has a way to drop. */
  readonly #running = new Set<string>();

  constructor(deps: TenantResetsDeps) {
    this.#deps = deps;
  }

  async replace(name: string, file: string, options: ReplaceOptions = {}): Promise<ReplaceReport> {
    const { catalog, clock, assertWritable, create } = this.#deps;
    options.signal?.throwIfAborted();
    assertWritable();
    checkOptions(file, options);
    const startedMs = clock.monotonicMs();
    const isNew = catalog.get(name) === undefined;
    if (isNew && options.uuid !== undefined) await create(name, options.uuid);
    const old = catalog.get(name);
    if (old === undefined) throw notFound(name);
    const hidden = replacementName(old.id);
    if (this.#running.has(hidden))
      throw new NostosError('TENANT_BUSY', `tenant ${JSON.stringify(name)} is being replaced already`, {
        details: { tenant: name },
      });
    this.#running.add(hidden);
    const attempt = { named: false };
    try {
      const done = await this.#replace(old, { file, attempt }, options);
      return { tenant: name, ...done, elapsedMs: Math.round(clock.monotonicMs() - startedMs) };
    } catch (error) {
      await this.#takeBack(hidden, attempt);
      if (isNew) await this.#drop(name, old).catch(() => {});
      throw error;
    } finally {
      this.#running.delete(hidden);
    }
  }

  /** Drops what calls of other processes, or reigns, have left; answers with how many there were. */
  async removeLeftovers(): Promise<number> {
    let removed = 0;
    for (const { name } of this.#deps.catalog.hidden(LEFTOVERS_MAX)) {
      if (this.#running.has(name)) continue;
      await this.#drop(name);
      removed += 1;
    }
    return removed;
  }

  async #replace(
    old: CatalogEntry,
    { file, attempt }: { readonly file: string; readonly attempt: Attempt },
    options: ReplaceOptions,
  ): Promise<Omit<ReplaceReport, 'tenant' | 'elapsedMs'>> {
    const { catalog, catalogLog, tenants, maintenance } = this.#deps;
    const name = replacementName(old.id);
    const scratch = join(this.#deps.dir, SERVING_DIR, `content-${randomHex128(systemRandom).slice(0, 8)}.sqlite`);
    await this.#drop(name);
    try {
      const content = await this.#contentOf(file, scratch, options);
      const { rows } = await importInto(
        {
          tenant: old.name,
          exists: () => catalog.get(name) !== undefined,
          create: () => catalogLog.create({ name, uuid: old.uuid }),
          drop: () => this.#discard(this.#hidden(name)),
          use: (fn) => tenants.with(this.#hidden(name), fn),
          inspect: (request, work) => maintenance.inspect(request, work),
        },
        content.file,
        {
          ...options,
          schemaVersion: content.schemaVersion,
          // Its rows were taken once already.
          keepViolations: options.keepViolations ?? content.tenant !== undefined,
        },
      );
      const replacement = { old, hidden: this.#hidden(name), content, options, attempt };
      if (content.tenant !== undefined) {
        const { path } = content.tenant;
        await tenants.with(replacement.hidden, (store) => copyResults(path, store, options.signal));
      }
      return { rows, ...(await this.#finish(replacement)) };
    } finally {
      rmSync(scratch, { force: true });
    }
  }

  /** The file of a tenant as a plain one. */
  async #contentOf(file: string, scratch: string, options: ReplaceOptions): Promise<Content> {
    const meta = metaOf(file);
    if (meta === undefined) return { file, schemaVersion: options.schemaVersion ?? 1 };
    const { signal, onProgress } = options;
    mkdirSync(join(this.#deps.dir, SERVING_DIR), { recursive: true });
    await this.#deps.maintenance.exportPlain(
      { path: file, target: scratch, overwrite: false },
      {
        ...(signal === undefined ? {} : { signal }),
        onProgress: (phase) => onProgress?.({ phase, done: 0, unit: 'rows' }),
      },
    );
    const { schemaVersion, identity } = meta;
    return { file: scratch, schemaVersion, tenant: { path: file, uuid: identity.uuid } };
  }

  /** The content is complete: takes out what was forgotten, and puts it in the place of the old one. */
  async #finish(replacement: Replacement): Promise<{ readonly position: Position; readonly forgotten: number }> {
    const { ledger, catalog, tenants } = this.#deps;
    const { old, hidden, options } = replacement;
    let forgotten = 0;
    /** Changes with whatever is forgotten of the tenant. */
    const mark = (): number => ledger.timeFor(old.uuid, 0);
    let looked = -1;
    const look = async (): Promise<void> => {
      looked = mark();
      forgotten += await this.#removeForgotten(replacement);
    };
    for (let looks = 0; looks < LOOKS_MAX && looked !== mark(); looks += 1) await look();
    await tenants.closed(hidden.id, async () => {}); // what it has to write is written while nobody waits
    options.onProgress?.({ phase: 'replacing the content', done: 0, unit: 'steps' });
    const position = await tenants.closed(old.id, async () => {
      options.signal?.throwIfAborted();
      if (catalog.byId(old.id) === undefined) throw notFound(old.name); // somebody has dropped it
      if (looked !== mark()) await look();
      return tenants.closed(hidden.id, () => this.#record(replacement));
    });
    return { position, forgotten };
  }

  /** The caller keeps both tenants closed. */
  async #record({ old, hidden, attempt }: Replacement): Promise<Position> {
    const { catalog, catalogLog, removeFiles, generationOf } = this.#deps;
    const { name, uuid } = old;
    attempt.named = true;
    try {
      return await catalogLog.reset(old.id, { name, uuid, tenant: hidden.id }, () => removeFiles(old.id));
    } catch (error) {
      await this.#settle();
      const now = catalog.get(name);
      if (now?.id !== hidden.id || now.reset === undefined) throw error;
      await removeFiles(old.id);
      return { generation: generationOf(now.reset.lsn), ...now.reset };
    }
  }

  /** Who leads no more need not know: what the next primary has committed comes as to any replica. */
  async #settle(): Promise<void> {
    const { catalogLog, isPrimary, closing } = this.#deps;
    while (isPrimary() && !closing.aborted) {
      try {
        return await catalogLog.settle();
      } catch {
        await sleep(SETTLE_RETRY_MS, undefined, { signal: closing }).catch(() => {}); // closing
      }
    }
  }

  async #removeForgotten({ old, hidden, content, options }: Replacement): Promise<number> {
    const { tenants, maintenance, dir } = this.#deps;
    const uuids = new Set([old.uuid, content.tenant?.uuid ?? old.uuid]);
    let removed = 0;
    for (const uuid of uuids) {
      const filter = { uuid, ...(await this.#ledgerOf(uuid, options.at)) };
      if (forgetFilterOf(filter).isEmpty) continue;
      options.onProgress?.({ phase: 'looking for forgotten rows', done: 0, unit: 'rows' });
      const { signal } = options;
      const path = tenantPath(dir, hidden.id);
      removed += await tenants.with(hidden, async (store) => {
        await store.reader(); // its file has everything
        const rows = await maintenance.findForgotten({ path, ...filter }, signal === undefined ? {} : { signal });
        return deleteForgottenRows(store, rows, signal);
      });
    }
    return removed;
  }

  /** What was forgotten of a tenant, and what of that the content knows itself. */
  async #ledgerOf(
    uuid: TenantUuid,
    at: Position | undefined,
  ): Promise<Pick<Parameters<typeof forgetFilterOf>[0], 'entries' | 'passed'>> {
    const { ledger, outlook } = this.#deps;
    const entries = [...ledger.entries()].filter((entry) => entry.uuid === uuid);
    const passed = new Set<string>();
    if (at !== undefined && (await outlook(at)).kind === 'reached')
      for (const { position } of entries)
        if (position.lsn <= at.lsn && (await outlook(position)).kind === 'reached')
          passed.add(formatPosition(position));
    return { entries, passed };
  }

  #hidden(name: string): CatalogEntry {
    const entry = this.#deps.catalog.get(name);
    if (entry === undefined) throw new NostosError('INTERNAL', 'what replaces a tenant was dropped meanwhile');
    return entry;
  }

  /** What is left is dropped when that can be done, or by the next primary. */
  async #takeBack(hidden: string, { named }: Attempt): Promise<void> {
    const entry = this.#deps.catalog.get(hidden);
    if (entry === undefined) return;
    const remove = (): Promise<void> => (named ? this.#drop(hidden, entry) : this.#discard(entry));
    await remove().catch(() => void this.#again(remove));
  }

  async #again(remove: () => Promise<void>): Promise<void> {
    const { closing, isPrimary } = this.#deps;
    for (;;) {
      await sleep(REMOVE_RETRY_MS, undefined, { signal: closing, ref: false }).catch(() => {}); // closing
      if (closing.aborted || !isPrimary()) return;
      try {
        return await remove();
      } catch {
        continue; // a full disk, say
      }
    }
  }

  /** Nothing names it yet: on a full disk its files go first, or there is no room for the record. */
  async #discard(entry: CatalogEntry): Promise<void> {
    const { tenants, removeFiles } = this.#deps;
    try {
      await this.#drop(entry.name, entry);
    } catch (error) {
      if (!isNostosError(error, 'DISK_FULL')) throw error;
      await tenants.closed(entry.id, () => removeFiles(entry.id));
      await this.#drop(entry.name, entry);
    }
  }

  /** Nothing where there is no tenant of this name, or another one than `only`. */
  async #drop(name: string, only?: CatalogEntry): Promise<void> {
    const { catalog, catalogLog, tenants, removeFiles } = this.#deps;
    // What had this name may have taken another one by a record whose outcome was not known.
    await catalogLog.settle();
    const entry = catalog.get(name);
    if (entry === undefined || (only !== undefined && entry.id !== only.id)) return;
    const { id } = entry;
    await tenants.closed(id, async () => {
      if (catalog.get(name)?.id === id) await catalogLog.drop(id, () => removeFiles(id));
    });
  }
}

/** Undefined for what is not the file of a tenant; whether it is one of SQLite the import finds out. */
function metaOf(file: string): ReturnType<typeof readTenantMeta> {
  let connection: Connection;
  try {
    connection = new Connection(file, { role: 'reader', statementCacheMax: 1 });
  } catch {
    return undefined;
  }
  try {
    return readTenantMeta(connection);
  } catch (error) {
    if (error instanceof NostosError && error.code === 'UNSUPPORTED_FORMAT') throw error;
    return undefined;
  } finally {
    connection.close();
  }
}

function checkOptions(file: unknown, { schemaVersion }: ReplaceOptions): void {
  if (typeof file !== 'string' || file.length === 0 || file.includes('\0'))
    throw new NostosError('INVALID_ARGUMENT', `a file is given by its path, got ${JSON.stringify(file)}`);
  if (schemaVersion !== undefined && (!Number.isSafeInteger(schemaVersion) || schemaVersion < 1))
    throw new NostosError('INVALID_ARGUMENT', `schemaVersion must be a whole number above 0, got ${schemaVersion}`);
}

function notFound(name: string): NostosError {
  return new NostosError(
    'TENANT_NOT_FOUND',
    `there is no tenant ${JSON.stringify(name)} whose content could be replaced`,
    { details: { tenant: name } },
  );
}
