/**
 * What a rollback does to a node (`rollback/run/runner.ts` says when): tenants and log come back to the common point.
 *
 * - The tail is read from the log. A record of it is marked as acknowledged where it is a `local` changeset: its primary,
 *   this node or another one, answers those once its own disk has them, and nobody else may. One that was synced and not
 *   answered before a crash is marked too, since the disk cannot tell. A `quorum` write that was answered is committed,
 *   and no tail has it.
 * - Tenants first, each in a transaction of its own and durably, then the log. So at any moment what a file holds above
 *   the common point is in the log, and undoing can go on; a file that is there already is left alone. After a crash in
 *   the midst of the cut the log is shorter, and what it lost needs no undoing any more.
 * - Who is above the common point: tenants with changesets in the tail, and those that an earlier rollback has left right
 *   there, with no record of their own; `catalog.sqlite` knows them by the position that their file is durably at.
 * - The catalog, schemas and whatever is not a changeset are applied when they are committed. If one of them is above the
 *   common point, that is refused before anything is changed.
 * - The cost is that of the records of the tail; memory holds `TAIL_BYTES_MAX` of them and an id for each tenant.
 */
import { dirname } from 'node:path';
import { toHash, toLsn, toTerm, type Lsn, type StoreId, type TenantId } from '../base/brands.ts';
import type { Disk } from '../base/disk.ts';
import { NostosError, isNostosError, type ErrorCode } from '../base/errors.ts';
import { samePoint, type ChainPoint } from '../log/chain.ts';
import type { ReadRecord } from '../log/reader.ts';
import type { LogRecord } from '../log/record.ts';
import { schemaVersionOf, type TenantSchema } from '../rollback/file/format.ts';
import { headerOfPlan, writeRollbackFile, type FileOwner, type TailBatch } from '../rollback/file/writer.ts';
import type { Frozen, RollbackHost } from '../rollback/run/runner.ts';
import {
  reasonOf,
  type CommonPoint,
  type NewPrimary,
  type Plan,
  type PreservedFile,
  type RollbackLimits,
} from '../rollback/types.ts';
import type { Catalog, CatalogEntry } from '../store/catalog.ts';
import type { OpenTenants } from '../store/open-tenants.ts';
import type { UndoTarget } from '../store/tenant-store.ts';
import { tenantPath } from './paths.ts';
import { isAcknowledged } from './preserve-tail.ts';
import { pagesOf, tailByTenant, throughTail, type PageThrough, type TenantTail } from './tail-by-tenant.ts';
import { SchemaMemory, tenantInFile, type KnownTenant } from './tail-schemas.ts';
import type { Progress } from './types.ts';

const TAIL_BYTES_MAX = 8 * 1024 * 1024;

/** The log, in whichever thread it is. */
export interface RollbackLog {
  /** The last record; everything up to there is durable once writes have stopped. */
  end(): ChainPoint | Promise<ChainPoint>;
  /** The node's own W, as a fresh start would find it. */
  durableWatermark(): Lsn | Promise<Lsn>;
  /** Whole records up to the end, committed or not. A batch is used until the next one is asked for. */
  readTail(from: Lsn): AsyncIterable<readonly ReadRecord[]>;
  /** Until it is taken back, tenants that are opened get the pages of the log through this. */
  readThrough(through: PageThrough | undefined): void;
  /** Durable when it resolves; after a failure or a crash it is called again. */
  cutTo(lsn: Lsn): Promise<void>;
}

/** The node's place in its group. */
export interface RollbackRole {
  /** Ends the reign, adopts the term durably and flushes the log. When it resolves every tenant is a replica's. */
  freeze(term: number): Promise<void>;
  follow(primary: NewPrimary, from: CommonPoint): Promise<void>;
}

export interface NodeRollbackDeps {
  readonly disk: Disk;
  readonly log: RollbackLog;
  readonly role: RollbackRole;
  readonly tenants: Pick<OpenTenants, 'with'>;
  readonly catalog: Pick<Catalog, 'applied' | 'byId' | 'heldAbove' | 'setHeld'>;
  /** Makes the catalog durable. */
  readonly checkpointCatalog: () => Promise<void>;
  readonly onProgress?: (progress: Progress) => void;
}

export interface NodeRollbackOptions {
  /** `rollback/` of the data directory, made by `openRollbackDirectory`. */
  readonly dir: string;
  readonly owner: Pick<FileOwner, 'node' | 'cluster'>;
  readonly store?: StoreId;
  readonly limits: RollbackLimits;
  /** Records that are held at a time while tenants are undone. */
  readonly tailBytesMax?: number;
}

export class NodeRollbackHost implements RollbackHost {
  readonly #deps: NodeRollbackDeps;
  readonly #options: NodeRollbackOptions;

  constructor(deps: NodeRollbackDeps, options: NodeRollbackOptions) {
    this.#deps = deps;
    this.#options = options;
  }

  async look(): Promise<Frozen> {
    const { log } = this.#deps;
    const { store } = this.#options;
    const { term, lsn, generation } = await log.end();
    const watermark = await log.durableWatermark();
    return { frontier: { term, lsn }, watermark, generation, ...(store === undefined ? {} : { store }) };
  }

  async freeze(term: number): Promise<Frozen> {
    await this.#deps.role.freeze(term);
    return this.look();
  }

  async preserve(
    plan: Plan,
    options: { readonly override: boolean; readonly signal?: AbortSignal },
  ): Promise<PreservedFile> {
    const { disk, log } = this.#deps;
    const { dir, limits, owner } = this.#options;
    const { generation } = await log.end();
    const schemas = new TailSchemas(this.#deps, dirname(dir));
    return writeRollbackFile(
      { disk, dir, limits, schemaOf: (tenant, version) => schemas.find(tenant, version) },
      headerOfPlan(plan, { ...owner, generation }),
      () => this.#tail(plan, schemas),
      options,
    );
  }

  async recover({ common }: Plan): Promise<void> {
    const { catalog, checkpointCatalog, log } = this.#deps;
    const target = await this.#target(common);
    const end = await log.end();
    if (end.lsn === common.lsn && samePoint(end, target)) return;
    if (end.lsn <= common.lsn) throw unreachable(common, `the log ends at (term ${end.term}, LSN ${end.lsn})`);
    if (catalog.applied > common.lsn)
      throw new NostosError(
        'ROLLBACK_REFUSED',
        `the catalog holds record ${catalog.applied}, which is committed, and the common point is LSN ${common.lsn}; nothing was dropped`,
        { details: { commonPoint: common.lsn, applied: catalog.applied } },
      );
    await this.#undoTenants(target);
    await checkpointCatalog();
    await log.cutTo(target.lsn);
    const left = await log.end();
    if (!samePoint(left, target)) throw unreachable(common, `cut there, the log ends at LSN ${left.lsn}`);
  }

  rejoin(primary: NewPrimary, from: CommonPoint): Promise<void> {
    return this.#deps.role.follow(primary, from);
  }

  async #target({ term, lsn, hash }: CommonPoint): Promise<ChainPoint> {
    const { generation } = await this.#deps.log.end();
    return { generation, term: toTerm(term), lsn: toLsn(lsn), hash: toHash(Buffer.from(hash, 'hex')) };
  }

  async *#tail({ common, frontier }: Plan, schemas: TailSchemas): AsyncGenerator<TailBatch, void, undefined> {
    const { log, onProgress } = this.#deps;
    const total = frontier.lsn - common.lsn;
    let done = 0;
    for await (const batch of log.readTail(toLsn(common.lsn + 1))) {
      const records = batch.filter(({ record }) => record.lsn <= frontier.lsn);
      await schemas.learn(records.map(({ record }) => record));
      yield records.map(({ record, hash }) => ({ record, hash, acknowledged: isAcknowledged(record) }));
      done += records.length;
      onProgress?.({ phase: 'preserving the divergent tail', done, total, unit: 'records' });
      if (done >= total) return;
    }
  }

  async #undoTenants(target: UndoTarget): Promise<void> {
    const { catalog, log } = this.#deps;
    const { tailBytesMax = TAIL_BYTES_MAX } = this.#options;
    const from = toLsn(target.lsn + 1);
    const done = new Set<TenantId>();
    for await (const tails of tailByTenant(() => log.readTail(from), { bytesMax: tailBytesMax })) {
      log.readThrough(throughTail(tails, from));
      try {
        await this.#eachAtOnce(tails, async (tail) => {
          done.add(tail.tenant);
          await this.#undo(catalog.byId(tail.tenant), target, tail, done.size);
        });
      } finally {
        log.readThrough(undefined);
      }
    }
    const held = catalog.heldAbove(target.lsn);
    await this.#eachAtOnce(held, async (entry) => {
      if (done.has(entry.id)) return;
      done.add(entry.id);
      await this.#undo(entry, target, { tenant: entry.id, records: [] }, done.size);
    });
  }

  /**
   * Several at once, so that some wait for the disk while others are undone here. After a failure nothing more is begun, and
   * what runs has ended before it is thrown.
   */
  async #eachAtOnce<T>(items: Iterable<T>, run: (item: T) => Promise<void>): Promise<void> {
    const left = items[Symbol.iterator]();
    const errors: unknown[] = [];
    const work = async (): Promise<void> => {
      for (let next = left.next(); next.done !== true && errors.length === 0; next = left.next())
        await run(next.value).catch((error: unknown) => errors.push(error));
    };
    await Promise.all(Array.from({ length: this.#options.limits.tenantsAtOnceMax }, work));
    if (errors.length > 0) throw errors[0];
  }

  /** A tenant that the catalog does not have was created in what is not committed, or is dropped: it has no file. */
  async #undo(entry: CatalogEntry | undefined, target: UndoTarget, tail: TenantTail, done: number): Promise<void> {
    if (entry === undefined) return;
    const { catalog, onProgress, tenants } = this.#deps;
    onProgress?.({ phase: `bringing ${entry.name} to the common point`, done, unit: 'tenants' });
    const pages = tail.records === undefined ? undefined : pagesOf(tail.records);
    try {
      await tenants.with(
        entry,
        async (store) => {
          await store.undoTo(target, pages);
          // It is there durably; a later rollback finds it by this, and no later opening takes it for an older copy.
          if (store.applied.lsn === target.lsn) catalog.setHeld(entry, target.lsn);
        },
        { keep: false },
      );
    } catch (cause) {
      if (isNostosError(cause, 'RECOVER_FAILED') || isNostosError(cause, 'ROLLBACK_REFUSED')) throw cause;
      throw new NostosError(
        'RECOVER_FAILED',
        `tenant ${entry.name} could not be brought to LSN ${target.lsn}: ${reasonOf(cause)}`,
        {
          cause,
          details: { tenant: entry.name, lsn: target.lsn, code: isNostosError(cause) ? cause.code : 'INTERNAL' },
        },
      );
    }
  }
}

function unreachable({ term, lsn }: CommonPoint, why: string): NostosError {
  return new NostosError(
    'RECOVER_FAILED',
    `the common point (term ${term}, LSN ${lsn}) is not on this log: ${why}; restore this node from a peer`,
    { details: { term, lsn } },
  );
}

/** Why a tenant cannot say what its tables are called; anything else may pass, and the caller tries again. */
const UNREADABLE: ReadonlySet<string> = new Set([
  'TENANT_DAMAGED',
  'LOG_DAMAGED',
  'LOG_PRUNED',
  'POSITION_LOST',
  'UNSUPPORTED_FORMAT',
] satisfies ErrorCode[]);

/** The schemas that the changesets of a tail name, read while their tenants still know them. */
class TailSchemas {
  readonly #deps: Pick<NodeRollbackDeps, 'catalog' | 'tenants'>;
  readonly #dir: string;
  readonly #memory = new SchemaMemory();

  constructor(deps: Pick<NodeRollbackDeps, 'catalog' | 'tenants'>, dir: string) {
    this.#deps = deps;
    this.#dir = dir;
  }

  async learn(records: readonly LogRecord[]): Promise<void> {
    const wanted = new Map<TenantId, Set<number>>();
    for (const record of records) {
      const version = schemaVersionOf(record);
      if (version === undefined) continue;
      const versions = wanted.get(record.tenant);
      if (versions === undefined) wanted.set(record.tenant, new Set([version]));
      else versions.add(version);
    }
    for (const [tenant, versions] of wanted) {
      const known = this.#memory.has(tenant) ? this.#memory.get(tenant) : await this.#read(tenant, versions);
      this.#memory.put(tenant, known, wanted.size);
    }
  }

  find(tenant: number, schemaVersion: number): TenantSchema | undefined {
    return this.#memory.find(tenant as TenantId, schemaVersion);
  }

  /**
   * A file is only looked into, which costs no sync. One that lacks a version is opened, which applies to it what is
   * committed. A damaged tenant does not keep its records from being preserved.
   */
  async #read(tenant: TenantId, versions: ReadonlySet<number>): Promise<KnownTenant | undefined> {
    const { catalog, tenants } = this.#deps;
    const entry = catalog.byId(tenant);
    if (entry === undefined) return undefined;
    const inFile = tenantInFile(tenantPath(this.#dir, tenant));
    if (inFile !== undefined && [...versions].every((version) => inFile.shapes.has(version))) return inFile;
    try {
      const shapes = await tenants.with(entry, (store) => store.shapes(), { keep: false });
      return { uuid: entry.uuid, name: entry.name, shapes };
    } catch (error) {
      if (!isNostosError(error) || !UNREADABLE.has(error.code)) throw error;
      return inFile;
    }
  }
}
