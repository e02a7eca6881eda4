/** A node with its tenants. `open-node.ts` puts it together. */
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { toTenantUuid, type BootId, type Lsn, type TenantId, type TenantUuid } from '../base/brands.ts';
import { hlcToMs, type Clock } from '../base/clock.ts';
import { systemDisk } from '../base/disk.ts';
import { NostosError, isNostosError } from '../base/errors.ts';
import type { Limits } from '../base/limits.ts';
import { randomHex128, systemRandom } from '../base/random.ts';
import { readCommitted, type Durability } from '../log/commit-log.ts';
import type { ForgetLedger } from '../log/ledger.ts';
import { RecordKind } from '../log/record.ts';
import { measureRollbackFiles } from '../rollback/file/measure.ts';
import { HIDDEN_END, type Catalog, type CatalogEntry } from '../store/catalog.ts';
import { OpenTenants } from '../store/open-tenants.ts';
import { TenantStore, type TenantDeps } from '../store/tenant-store.ts';
import type { Int64Mode } from '../store/values.ts';
import { BackupHost } from './backup-host.ts';
import type { BackupSchedule } from './backup-schedule.ts';
import type { CatalogLog } from './catalog-log.ts';
import { DurableBound } from './durable-bound.ts';
import type { EngineClient } from './engine-client.ts';
import type { ForgetSinks } from './forget-sinks.ts';
import type { GroupMember } from './group-member.ts';
import type { MemberParts } from './group-parts.ts';
import type { ThreadMaintenance } from './maintenance.ts';
import type { NodeIdentity } from './node-file.ts';
import { notPrimary } from './not-primary.ts';
import { tenantDir, tenantPath } from './paths.ts';
import { countOpenFiles } from './process-limits.ts';
import type { QueryProcesses } from './query-processes.ts';
import { NodeRestoreHost } from './restore-host.ts';
import { VERSION } from './runtime.ts';
import { Scrubber } from './scrubber.ts';
import { TenantResets } from './tenant-reset.ts';
import { TenantHandle, checkName, publicInfo, type TenantHandleDeps } from './tenant-handle.ts';
import type {
  BackupNodeOptions,
  LongCallOptions,
  MigrateReport,
  Migration,
  Node,
  NodeGroup,
  NodeStatus,
  RecordSummary,
  Tenant,
  TenantInfo,
  Tenants,
  VerifyReport,
} from './types.ts';
import { verifyLog, verifyNode, type VerifyDeps } from './verify.ts';

export interface NodeDeps {
  readonly engine: EngineClient;
  readonly catalog: Catalog;
  readonly catalogLog: CatalogLog;
  readonly ledger: ForgetLedger;
  readonly forgets: ForgetSinks;
  readonly queries: QueryProcesses;
  readonly maintenance: ThreadMaintenance;
  readonly clock: Clock;
}

export interface NodeSettings {
  readonly dir: string;
  readonly identity: NodeIdentity & { readonly boot: BootId };
  readonly limits: Limits;
  readonly int64: Int64Mode;
  readonly migrations: readonly Migration[] | undefined;
  readonly scrubIntervalMs: number | false;
  readonly startedAtMs: number;
  /** Of a node in a group. */
  readonly makeMember: ((parts: MemberParts) => GroupMember) | undefined;
  readonly durability: Durability;
}

const LIST_DEFAULT = 1_000;

export class NostosNode implements Node {
  readonly dir: string;
  readonly tenants: Tenants;
  readonly #deps: NodeDeps;
  readonly #settings: NodeSettings;
  readonly #open: OpenTenants;
  readonly #bound: DurableBound;
  readonly #scrubber: Scrubber;
  readonly #member: GroupMember | undefined;
  readonly #handleDeps: TenantHandleDeps;
  readonly #creating = new Map<string, Promise<void>>();
  readonly #resets: TenantResets;
  /** What is held for those who copy this node. */
  readonly restoreHost: NodeRestoreHost;
  #backupHost: BackupHost | undefined;
  #schedule: BackupSchedule | undefined;
  readonly #writes = { committed: 0, failed: 0 };
  readonly #stopping = new AbortController();
  #state: 'open' | 'closing' | 'closed' = 'open';
  #address: string | undefined;
  #refusedPeers: Readonly<Record<string, number>> = {};
  #closeAll: (() => Promise<void>) | undefined;
  #closing: Promise<void> | undefined;

  constructor(deps: NodeDeps, settings: NodeSettings) {
    this.#deps = deps;
    this.#settings = settings;
    this.dir = settings.dir;
    this.#open = new OpenTenants(
      {
        open: (entry) => this.#openTenant(entry),
        onClosed: ({ identity, applied }) => deps.catalog.setHeld(identity, applied.lsn),
        pause: (ms) => new Promise((resolve) => void setTimeout(resolve, ms)),
      },
      settings.limits,
    );
    this.#bound = new DurableBound({
      ...deps,
      tenants: this.#open,
      ...(settings.makeMember !== undefined
        ? { lowest: () => this.#member?.lowest ?? deps.engine.opened.durable }
        : {}),
    });
    this.restoreHost = new NodeRestoreHost(
      { ...deps, tenants: this.#open, bound: () => this.#bound.bound, role: () => this.role },
      settings,
    );
    this.#scrubber = new Scrubber(
      {
        catalog: deps.catalog,
        tenants: this.#open,
        maintenance: deps.maintenance,
        ...(settings.makeMember === undefined
          ? {}
          : {
              verifyLog: () => verifyLog(this.#verifyDeps, { signal: this.#stopping.signal }),
              onDamaged: (tenant, why) => this.#member?.foundDamaged(tenant, why),
              onLogDamaged: (what) => this.#member?.foundLogDamaged(`the log (${what})`),
            }),
      },
      { intervalMs: settings.scrubIntervalMs },
    );
    this.tenants = {
      create: (name, { ifNotExists = false } = {}) => this.#create(name, { ifNotExists }),
      get: async (name) => this.#info(name),
      list: async (options = {}) => this.#list(options),
      count: async () => this.#catalog().count(),
      drop: (name) => this.#drop(name),
      replace: async (name, file, options) => this.#resets.replace(checkName(name), file, options),
    };
    const node = this;
    this.#member = settings.makeMember?.({
      ...deps,
      tenants: this.#open,
      dir: this.dir,
      identity: settings.identity,
      limits: settings.limits,
      removeFiles: (id) => this.#removeFiles(id),
      onLead: () => void this.#removeLeftovers(),
    });
    this.#handleDeps = {
      log: deps.engine,
      catalog: deps.catalog,
      tenants: this.#open,
      queries: deps.queries,
      maintenance: deps.maintenance,
      ledger: deps.ledger,
      clock: deps.clock,
      limits: settings.limits,
      int64: settings.int64,
      dir: settings.dir,
      // A copy shows the schema that its source has.
      get migrations() {
        return node.role === 'primary' ? settings.migrations : undefined;
      },
      assertOpen: () => this.#assertOpen(),
      assertWritable: () => this.#assertWritable(),
      outlook: (position) => deps.engine.outlook(position),
      generationOf: (lsn) => {
        const { generations } = deps.engine.opened;
        return generations.findLast(({ firstLsn }) => firstLsn <= lsn)?.generation ?? settings.identity.generation;
      },
      durability: settings.durability,
      reign: () => this.#member?.reign ?? 0,
      assertFresh: (reign) => (this.#member?.role === 'primary' ? this.#assertLease(this.#member, reign) : undefined),
      importing: new Set(),
      count: (outcome) => (this.#writes[outcome] += 1),
      create: async (name) => void (await this.#create(name, { ifNotExists: false })),
      drop: (name) => this.#drop(name),
      firstLsn: async () => (await deps.engine.status()).firstLsn,
      givenTo: () => this.#member?.givenTo ?? deps.engine.watermark,
      closing: this.#stopping.signal,
    };
    this.#resets = new TenantResets({
      ...this.#handleDeps,
      ...deps,
      isPrimary: () => this.role === 'primary',
      create: async (name, uuid) => void (await this.#create(name, { ifNotExists: true, uuid })),
      removeFiles: (id) => this.#removeFiles(id),
    });
  }

  /** Starts background work; `closeAll` closes everything that belongs to this node, in order, this one included. */
  start(closeAll: () => Promise<void>): void {
    this.#closeAll = closeAll;
    this.#bound.start(this.#deps.engine.opened.dirty);
    this.#member?.start();
    this.#scrubber.start();
    if (this.#member === undefined && this.role === 'primary') void this.#removeLeftovers();
  }

  get role(): NodeStatus['role'] {
    if (this.#member !== undefined) return this.#member.role;
    return this.#settings.identity.copy === undefined ? 'primary' : 'copy';
  }

  get group(): NodeGroup | undefined {
    return this.#member;
  }

  get identity(): NodeIdentity {
    return this.#settings.identity;
  }

  get address(): string | undefined {
    return this.#address;
  }

  refused(peers: Readonly<Record<string, number>>): void {
    this.#refusedPeers = peers;
  }

  /** Tells the group where this node lets itself be copied. */
  async copiesAt(address: string): Promise<void> {
    await this.#deps.engine.inGroup('copiesAt', { address });
  }

  /** What was forgotten here. */
  get ledger(): ForgetLedger {
    return this.#deps.ledger;
  }

  /** Backups that keep it as well. */
  get forgets(): ForgetSinks {
    return this.#deps.forgets;
  }

  get limits(): Limits {
    return this.#settings.limits;
  }

  /** The highest committed record that is known here. */
  get watermark(): Lsn {
    return this.#deps.engine.watermark;
  }

  /** What is held of the log for those who archive it. */
  get backupHost(): BackupHost {
    this.#backupHost ??= new BackupHost(this.#deps, this.#settings.limits);
    return this.#backupHost;
  }

  /** Of backups that it makes by itself. */
  get schedule(): BackupSchedule | undefined {
    return this.#schedule;
  }

  backingUp(schedule: BackupSchedule): void {
    this.#schedule = schedule;
  }

  /** Other nodes are served there now. */
  listening(address: string | undefined): void {
    this.#address = address;
  }

  tenant(name: string): Tenant {
    this.#assertOpen();
    return new TenantHandle(this.#handleDeps, name);
  }

  async migrateAll(options: LongCallOptions & { readonly migrations?: readonly Migration[] } = {}): Promise<{
    migrated: readonly MigrateReport[];
    failed: readonly { tenant: string; error: Error }[];
  }> {
    const migrations = options.migrations ?? this.#settings.migrations;
    if (migrations === undefined)
      throw new NostosError('INVALID_ARGUMENT', 'migrateAll needs migrations: give them here or to openNode');
    this.#assertWritable();
    const total = this.#catalog().count();
    const migrated: MigrateReport[] = [];
    const failed: { tenant: string; error: Error }[] = [];
    for (const { name } of this.#all()) {
      options.signal?.throwIfAborted();
      try {
        migrated.push(await new TenantHandle(this.#handleDeps, name).migrate(migrations, signalOf(options)));
      } catch (error) {
        failed.push({ tenant: name, error: error as Error });
      }
      options.onProgress?.({
        phase: `migrated ${name}`,
        done: migrated.length + failed.length,
        total,
        unit: 'tenants',
      });
    }
    return { migrated, failed };
  }

  async backup(options: BackupNodeOptions): ReturnType<Node['backup']> {
    this.#assertOpen();
    const { signal, onProgress, ...request } = options;
    // Who makes no backups has no use for it.
    const { backupNode } = await import('./backup-operations.ts');
    return backupNode(this, request, {
      ...(signal === undefined ? {} : { signal }),
      ...(onProgress === undefined ? {} : { onProgress }),
    });
  }

  async status(): Promise<NodeStatus> {
    this.#assertOpen();
    const { identity, dir, startedAtMs } = this.#settings;
    return {
      dir,
      node: identity.node,
      cluster: identity.cluster,
      store: identity.store,
      boot: identity.boot,
      role: this.role,
      ...(identity.copy === undefined ? {} : { copy: identity.copy }),
      ...(this.#member === undefined
        ? {}
        : {
            group: {
              ...(await this.#member.report()),
              events: this.#member.events,
              progress: this.#member.rejoin ?? null,
            },
          }),
      version: VERSION,
      pid: process.pid,
      startedAtMs,
      log: await this.#deps.engine.status(),
      tenants: { total: this.#catalog().count(), open: this.#open.count },
      writes: { ...this.#writes },
      scrub: this.#scrubber.status(),
      address: this.#address ?? null,
      serving: this.restoreHost.status(),
      ...(this.#schedule === undefined ? {} : { backup: this.#schedule.status() }),
      refusedPeers: this.#refusedPeers,
      rollbackFiles: measureRollbackFiles(systemDisk, join(dir, 'rollback')),
      openFiles: countOpenFiles(),
      residentBytes: process.memoryUsage.rss(),
    };
  }

  async verify(options: LongCallOptions & { readonly tenant?: string } = {}): Promise<VerifyReport> {
    this.#assertOpen();
    const report = await verifyNode(this.#verifyDeps, options);
    const log = report.problems.find(({ where }) => where.startsWith('log'));
    if (log !== undefined) this.#member?.foundLogDamaged(`the log (${log.where}: ${log.what})`);
    for (const { name, integrity, fingerprint } of report.tenants)
      if (integrity === 'damaged') this.#member?.foundDamaged(name, 'damage');
      else if (fingerprint === 'different') this.#member?.foundDamaged(name, 'differs');
    return report;
  }

  get #verifyDeps(): VerifyDeps {
    const { catalog, engine, maintenance, ledger } = this.#deps;
    return { dir: this.dir, catalog, engine, maintenance, ledger, tenants: this.#open };
  }

  async *log(
    options: { readonly from?: Lsn; readonly to?: Lsn; readonly tenant?: string; readonly signal?: AbortSignal } = {},
  ): AsyncIterableIterator<RecordSummary> {
    this.#assertOpen();
    const { engine } = this.#deps;
    const { firstLsn } = await engine.status();
    checkLsn('from', options.from);
    checkLsn('to', options.to);
    const tenant = options.tenant === undefined ? undefined : this.#find(options.tenant).id;
    const pages = readCommitted(engine, {
      from: options.from ?? firstLsn,
      bytesMax: 1024 * 1024,
      ...(options.to === undefined ? {} : { to: options.to }),
      ...(tenant === undefined ? {} : { tenant }),
      ...(options.signal === undefined ? {} : { signal: options.signal }),
    });
    for await (const page of pages)
      for (const record of page)
        yield {
          position: { generation: record.generation, term: record.term, lsn: record.lsn },
          timeMs: hlcToMs(record.hlc),
          kind: kindName(record.kind),
          tenant: record.tenant,
          payloadBytes: record.payload.length,
          watermark: record.watermark,
          hash: Buffer.from(record.hash).toString('hex'),
        };
  }

  /** Runs a timer and an append stream in the engine thread, to measure that nothing stalls it. */
  probe(durationMs: number): ReturnType<EngineClient['probe']> {
    return this.#deps.engine.probe(durationMs);
  }

  close(): Promise<void> {
    this.#closing ??= this.#closeOnce();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Closes all tenants and says to the log what is durable; part of `closeAll`. */
  async stop(): Promise<void> {
    this.#state = 'closing';
    this.#stopping.abort(new NostosError('CLOSED', 'the node is closed'));
    this.#scrubber.stop();
    await this.restoreHost.stop();
    await this.#backupHost?.stop();
    await this.#member?.stop();
    await this.#bound.stop();
    await this.#open.closeAll();
    try {
      await this.#deps.catalog.checkpoint(this.#deps.maintenance);
      await this.#bound.advance();
    } catch {
      // It only saves the next opening some reading.
    }
    this.#state = 'closed';
  }

  async #closeOnce(): Promise<void> {
    this.#state = 'closing';
    await this.#closeAll?.();
  }

  #assertOpen(): void {
    if (this.#state !== 'open') throw new NostosError('CLOSED', 'the node is closed');
  }

  #assertWritable(): void {
    this.#assertOpen();
    if (this.role === 'primary') return;
    throw this.#member?.notPrimary() ?? notPrimary(this.#settings.identity.copy);
  }

  /** What was read may miss what another primary has written since. */
  async #assertLease(member: GroupMember, reign: number): Promise<void> {
    if (await member.leased(reign)) return;
    throw new NostosError(
      'NOT_PRIMARY',
      'this node leads, as far as it knows, but its lease has run out; read with stale, from a position (min), or try again',
      { details: { role: 'primary', lease: false } },
    );
  }

  #catalog(): Catalog {
    this.#assertOpen();
    return this.#deps.catalog;
  }

  async #removeFiles(id: TenantId): Promise<void> {
    this.#open.forget(id);
    await this.#deps.queries.forget(tenantPath(this.dir, id)).catch(() => {}); // it may be in use still
    rmSync(tenantDir(this.dir, id), { recursive: true, force: true });
  }

  async #openTenant({ id, name }: CatalogEntry): Promise<TenantStore> {
    const { engine, clock, maintenance, catalog, ledger, forgets } = this.#deps;
    const entry = catalog.byId(id); // it may have been dropped while somebody waited for it
    if (entry === undefined) throw notFound(name);
    const opening = TenantStore.open(
      {
        log: engine,
        clock,
        maintenance,
        ledger,
        forgotten: () => forgets.delivered(),
        onIdle: () => this.#open.oneIsIdle(),
        ...(this.#member === undefined ? {} : groupDeps(this.#member, entry)),
      },
      {
        identity: entry,
        path: tenantPath(this.dir, id),
        limits: this.#settings.limits,
        createdAt: entry.createdAt,
        opened: entry.opened,
        held: entry.held,
        role: this.#member?.role ?? 'primary',
      },
    );
    const store = await opening.catch((error: unknown) => {
      if (isNostosError(error, 'TENANT_DAMAGED')) this.#member?.foundDamaged(name, 'damage');
      throw error;
    });
    if (!entry.opened) catalog.setOpened(entry);
    if (entry.schemaVersion !== store.schemaVersion) catalog.setSchemaVersion(id, store.schemaVersion);
    return store;
  }

  #find(name: string): CatalogEntry {
    const entry = this.#catalog().get(name);
    if (entry === undefined) throw notFound(name);
    return entry;
  }

  #info(name: string): TenantInfo | undefined {
    const entry = this.#catalog().get(checkName(name));
    return entry === undefined ? undefined : publicInfo(entry);
  }

  #list({ after = '', limit = LIST_DEFAULT }: { readonly after?: string; readonly limit?: number }): TenantInfo[] {
    if (!Number.isSafeInteger(limit) || limit < 1)
      throw new NostosError('INVALID_ARGUMENT', `limit must be a whole number above 0, got ${String(limit)}`);
    if (typeof after !== 'string')
      throw new NostosError('INVALID_ARGUMENT', `after must be a tenant name, got ${typeof after}`);
    return this.#catalog().list(shownAfter(after), limit).map(publicInfo);
  }

  *#all(): Iterable<CatalogEntry> {
    let after = shownAfter('');
    for (;;) {
      const page = this.#catalog().list(after, LIST_DEFAULT);
      yield* page;
      if (page.length < LIST_DEFAULT) return;
      after = page[page.length - 1]!.name;
    }
  }

  async #create(
    given: string,
    { ifNotExists, uuid = newUuid() }: { readonly ifNotExists: boolean; readonly uuid?: TenantUuid },
  ): Promise<Tenant> {
    const name = checkName(given);
    const catalog = this.#catalog();
    if (catalog.get(name) === undefined) this.#assertWritable();
    const known = catalog.get(name) !== undefined || this.#creating.has(name);
    if (known && !ifNotExists)
      throw new NostosError('TENANT_EXISTS', `there is a tenant ${JSON.stringify(name)} already`, {
        details: { tenant: name },
      });
    if (catalog.get(name) === undefined) {
      let creating = this.#creating.get(name);
      if (creating === undefined) {
        creating = this.#deps.catalogLog.create({ name, uuid }).finally(() => this.#creating.delete(name));
        this.#creating.set(name, creating);
      }
      await creating;
    }
    return this.tenant(name);
  }

  async #drop(name: string): Promise<void> {
    const { id, uuid } = this.#find(checkName(name));
    this.#assertWritable();
    await this.#open.closed(id, async () => {
      if (this.#catalog().byId(id) === undefined) return; // somebody else dropped it meanwhile
      await this.#deps.catalogLog.drop(id, () => this.#removeFiles(id));
    });
    // Or somebody has replaced its content.
    if (this.#catalog().get(name)?.uuid === uuid) await this.#drop(name);
  }

  /** What a replacement that was cut off has left; what cannot be dropped now is with the next start. */
  async #removeLeftovers(): Promise<void> {
    const removed = await this.#resets.removeLeftovers().catch(() => 0);
    if (removed > 0)
      this.#member?.note('tenant-failed', `${removed} replacements of tenants were cut off, and are dropped`);
  }
}

/** Hidden ones come before. */
function shownAfter(name: string): string {
  return name < HIDDEN_END ? HIDDEN_END : name;
}

function notFound(name: string): NostosError {
  return new NostosError('TENANT_NOT_FOUND', `there is no tenant ${JSON.stringify(name)}`, {
    details: { tenant: name },
  });
}

function signalOf({ signal }: LongCallOptions): LongCallOptions {
  return signal === undefined ? {} : { signal };
}

function newUuid(): ReturnType<typeof toTenantUuid> {
  return toTenantUuid(randomHex128(systemRandom));
}

function checkLsn(name: string, lsn: Lsn | undefined): void {
  if (lsn !== undefined && (!Number.isSafeInteger(lsn) || lsn < 1))
    throw new NostosError('INVALID_ARGUMENT', `${name} must be an LSN, a whole number above 0, got ${String(lsn)}`);
}

function kindName(kind: number): string {
  const found = Object.entries(RecordKind).find(([, value]) => value === kind);
  return (found?.[0] ?? `kind-${kind}`).replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
}

type GroupDeps = Pick<TenantDeps, 'notPrimary' | 'givenTo' | 'holdsLease' | 'onCommitFailed'>;

function groupDeps(member: GroupMember, { name }: CatalogEntry): GroupDeps {
  return {
    onCommitFailed: (error) => member.foundBehind(name, error),
    notPrimary: () => member.notPrimary(),
    givenTo: () => member.givenTo,
    holdsLease: () => member.holdsLease(),
  };
}
