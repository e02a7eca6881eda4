/**
 * The parts of a node that a rollback touches, on a real directory and in one thread: log, catalog and tenants, with a
 * group that commits when the test says so.
 */
import { mkdirSync, existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import {
  NO_LSN,
  toGeneration,
  toTenantUuid,
  toTerm,
  type Generation,
  type Lsn,
  type TenantId,
} from '../base/brands.ts';
import { HybridClock, systemClock } from '../base/clock.ts';
import { systemDisk, type Disk } from '../base/disk.ts';
import { NostosError } from '../base/errors.ts';
import { DEFAULT_LIMITS } from '../base/limits.ts';
import { seededRandom } from '../base/random.ts';
import { releaseBuffer } from '../base/release.ts';
import {
  untilCommitted,
  type Appended,
  type CommitLog,
  type Durability,
  type LogEntry,
  type LogHold,
  type LogPage,
  type PageRequest,
  type TenantLocation,
} from '../log/commit-log.ts';
import { ForgetLedger } from '../log/ledger.ts';
import { Log } from '../log/log.ts';
import { RecordKind } from '../log/record.ts';
import { openRollbackDirectory } from '../rollback/run/directory.ts';
import { RollbackRunner } from '../rollback/run/runner.ts';
import { ROLLBACK_LIMITS, type CommonPoint, type NewPrimary, type RollbackNotice } from '../rollback/types.ts';
import { Catalog } from '../store/catalog.ts';
import { checkpointFile } from '../store/checkpoint.ts';
import type { Maintenance } from '../store/maintenance.ts';
import { OpenTenants } from '../store/open-tenants.ts';
import { encodeTenantCreate } from '../store/payload.ts';
import { TenantStore, type TenantRole } from '../store/tenant-store.ts';
import { migrateStore } from '../store/tenant.ts';
import type { WriterTransaction } from '../store/writer-transaction.ts';
import { tenantPath } from './paths.ts';
import type { PageThrough } from './tail-by-tenant.ts';
import { NodeRollbackHost, type NodeRollbackOptions, type RollbackLog } from './rollback-host.ts';

const GENERATION = toGeneration('0f'.repeat(16));
const LIMITS = { ...DEFAULT_LIMITS, recordBytesMax: 128 * 1024, segmentBytesMax: 160 * 1024 };
const PREALLOCATE_BYTES = 64 * 1024;

/** A log in this thread, as an engine would serve it. */
class DirectLog implements CommitLog {
  readonly log: Log;
  /** Whether the group has whatever is appended at once. */
  committing = false;
  readonly #last: Map<TenantId, Lsn>;
  readonly #reign = new AbortController();
  readonly #listeners = new Set<() => void>();

  constructor(log: Log, last: Map<TenantId, Lsn>) {
    this.log = log;
    this.#last = last;
  }

  get watermark(): Lsn {
    return this.log.watermark;
  }

  async append(
    entries: readonly LogEntry[],
    { durability }: { readonly durability: Durability } = { durability: 'quorum' },
  ): Promise<Appended> {
    await Promise.resolve();
    const { firstLsn, hashes } = this.log.append(entries);
    this.log.sync();
    const { generation, term, lsn } = this.log.end;
    for (const [i, { tenant }] of entries.entries()) this.#last.set(tenant, (firstLsn + i) as Lsn);
    if (this.committing) this.commitTo(lsn);
    else if (durability === 'quorum') await untilCommitted(this, lsn, this.#reign.signal);
    return { generation, term, firstLsn, hashes };
  }

  commitTo(lsn: Lsn): void {
    this.log.setWatermark(lsn);
    for (const listener of this.#listeners) listener();
  }

  stepDown(): void {
    this.#reign.abort(new NostosError('OUTCOME_UNKNOWN', 'the node has stepped down'));
  }

  through: PageThrough | undefined;

  readPage(request: PageRequest): Promise<LogPage> {
    return this.through === undefined
      ? this.#readPage(request)
      : this.through(request, (asked) => this.#readPage(asked));
  }

  async #readPage({ from, to, tenant, uncommitted, bytesMax }: PageRequest): Promise<LogPage> {
    const known = uncommitted === true ? this.log.durable.lsn : this.watermark;
    const end = Math.min(to ?? Infinity, known) as Lsn;
    if (from > end) return { records: [], next: from, end };
    const range = { from, to: end, bytesMax, passing: true, ...(tenant === undefined ? {} : { tenant }) };
    for (const batch of this.log.read(range)) {
      // In memory of the page's own, as it comes from an engine.
      const memory = new Uint8Array(batch.records.reduce((sum, { record }) => sum + record.payload.length, 0));
      let at = 0;
      const records = batch.records.map(({ record, hash }) => {
        memory.set(record.payload, at);
        return { ...record, hash, payload: memory.subarray(at, (at += record.payload.length)) };
      });
      return { records, next: (batch.through + 1) as Lsn, end, release: () => releaseBuffer(memory) };
    }
    return { records: [], next: (end + 1) as Lsn, end };
  }

  async locate(tenant: TenantId, lsn: Lsn): Promise<TenantLocation> {
    const found = { last: this.#last.get(tenant) ?? NO_LSN, durable: NO_LSN };
    if (lsn < this.log.firstLsn || lsn > this.log.durable.lsn) return found;
    for (const { records } of this.log.read({ from: lsn, to: lsn }))
      for (const { record, hash } of records) return { ...found, at: { term: record.term, lsn, hash } };
    return found;
  }

  async reserve(): Promise<LogHold> {
    return { progress: () => {}, release: () => {} };
  }

  onWatermark(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }
}

export interface PartsOptions {
  readonly role: TenantRole;
  /** Of a log that is there already. */
  readonly generation?: Generation;
  readonly disk?: Disk;
  /** Called before and after each step of SQLite that has one. */
  readonly onStep?: () => void;
}

export class NodeParts {
  readonly dir: string;
  readonly direct: DirectLog;
  readonly catalog: Catalog;
  readonly ledger: ForgetLedger;
  readonly tenants: OpenTenants;
  readonly told: RollbackNotice[] = [];
  readonly followed: { readonly primary: NewPrimary; readonly from: CommonPoint }[] = [];
  readonly #options: PartsOptions;
  readonly #maintenance: Maintenance;

  constructor(dir: string, options: PartsOptions) {
    const { disk = systemDisk, onStep = () => {} } = options;
    this.dir = dir;
    this.#options = options;
    this.#maintenance = maintenanceWith(onStep);
    mkdirSync(dir, { recursive: true });
    const last = new Map<TenantId, Lsn>();
    const { log } = Log.open(
      { disk, clock: new HybridClock(systemClock) },
      {
        dir: join(dir, 'log'),
        generation: options.generation ?? GENERATION,
        segmentBytesMax: LIMITS.segmentBytesMax,
        recordBytesMax: LIMITS.recordBytesMax,
        preallocateBytes: PREALLOCATE_BYTES,
        scanFrom: 1 as Lsn,
        onRecord: ({ tenant, lsn }) => void last.set(tenant, lsn),
      },
    );
    this.direct = new DirectLog(log, last);
    this.catalog = Catalog.open(join(dir, 'catalog.sqlite'));
    this.ledger = ForgetLedger.open(disk, join(dir, 'log'));
    this.tenants = new OpenTenants(
      {
        open: async (entry) => {
          const path = tenantPath(dir, entry.id);
          const { createdAt, held } = this.catalog.byId(entry.id) ?? entry;
          return TenantStore.open(
            { log: this.direct, clock: systemClock, maintenance: this.#maintenance, ledger: this.ledger },
            { identity: entry, path, limits: LIMITS, createdAt, held, opened: existsSync(path), role: options.role },
          );
        },
        onClosed: ({ identity, applied }) => this.catalog.setHeld(identity, applied.lsn),
        pause: async () => {},
      },
      { openFilesMax: 100 },
    );
  }

  get log(): Log {
    return this.direct.log;
  }

  startTerm(term: number): void {
    this.log.startTerm(toTerm(term), Buffer.from('{}'));
    this.log.sync();
  }

  async createTenant(name: string, migrations: readonly string[]): Promise<void> {
    const payload = encodeTenantCreate({ name, uuid: toTenantUuid(Buffer.from(name.padEnd(16)).toString('hex')) });
    const tenant = this.catalog.takeId();
    const { firstLsn: lsn } = await this.direct.append([{ tenant, kind: RecordKind.tenantCreate, payload }]);
    this.catalog.apply({ kind: RecordKind.tenantCreate, lsn, tenant, payload });
    mkdirSync(dirname(tenantPath(this.dir, tenant)), { recursive: true });
    await this.with(name, (store) => migrateStore(store, migrations));
  }

  with<T>(name: string, fn: (store: TenantStore) => Promise<T> | T): Promise<T> {
    const entry = this.catalog.get(name);
    if (entry === undefined) throw new Error(`there is no tenant ${name}`);
    return this.tenants.with(entry, fn);
  }

  write<T>(name: string, durability: Durability, fn: (tx: WriterTransaction) => T): Promise<T> {
    return this.with(name, (store) => store.write<T>(fn, { int64: 'number', durability }));
  }

  rollbackLog(): RollbackLog {
    const { log } = this;
    return {
      end: () => log.end,
      durableWatermark: () => log.watermark,
      readTail: async function* (from) {
        for (const batch of log.read({ from, bytesMax: 16 * 1024, passing: true })) yield batch.records;
      },
      readThrough: (through) => (this.direct.through = through),
      cutTo: async (lsn) => {
        if (log.state === 'open') log.endTerm();
        log.cutTo(lsn);
      },
    };
  }

  host(options: Partial<NodeRollbackOptions> & { readonly log?: RollbackLog } = {}): NodeRollbackHost {
    const { disk = systemDisk, onStep = () => {} } = this.#options;
    const { catalog, tenants } = this;
    return new NodeRollbackHost(
      {
        ...{ disk, tenants, log: options.log ?? this.rollbackLog() },
        catalog: {
          get applied() {
            return catalog.applied;
          },
          byId: (id) => catalog.byId(id),
          heldAbove: (lsn) => catalog.heldAbove(lsn),
          setHeld: (entry, lsn) => (onStep(), catalog.setHeld(entry, lsn)),
        },
        checkpointCatalog: async () => (onStep(), catalog.checkpoint(this.#maintenance)),
        role: {
          freeze: async () => {},
          follow: async (primary, from) => void this.followed.push({ primary, from }),
        },
      },
      {
        dir: join(this.dir, 'rollback'),
        owner: { node: '01'.repeat(16), cluster: '02'.repeat(16) },
        limits: ROLLBACK_LIMITS,
        ...options,
      },
    );
  }

  runner(host = this.host()): RollbackRunner {
    const { disk = systemDisk } = this.#options;
    return new RollbackRunner({
      host,
      ...openRollbackDirectory(disk, join(this.dir, 'rollback')),
      sink: async (notice) => void this.told.push(notice),
      clock: systemClock,
      random: seededRandom(process.pid),
      limits: ROLLBACK_LIMITS,
    });
  }

  async close(): Promise<void> {
    this.direct.stepDown();
    await this.tenants.closeAll();
    this.catalog.close();
    this.log.close();
  }
}

function maintenanceWith(onStep: () => void): Maintenance {
  const checkpoint: typeof checkpointFile = (request) => {
    onStep();
    const result = checkpointFile(request);
    onStep();
    return result;
  };
  const work = {
    checkpoint: async (path, mode, directories = []) => checkpoint({ path, mode, directories, hold: false }),
    checkpointAndClose: async (path, directories, close) => {
      const result = checkpoint({ path, mode: 'truncate', directories, hold: false });
      close();
      return result;
    },
  } satisfies Partial<Maintenance>;
  return work as unknown as Maintenance;
}
