/**
 * One backup of a node that goes on meanwhile: the files of its tenants, each as it is held at one position, then the log
 * up to the watermark, then the manifest. It runs in a thread of its own and asks the node's for what it holds.
 *
 * - The log is reserved from the first record that some file lacks until the archive has everything up to the position of
 *   the snapshot. Nothing above the watermark is read, so a primary that is deposed meanwhile gives nothing away that the
 *   group may drop. That each file is where the log says is checked by the hash of the record it stands at.
 * - A tenant without a record since the snapshot before keeps its file of then. The others do, too, while the log since is a
 *   small share of the files (`backupLogPercentMax`) and the archive has all of it; else they are read anew, and only
 *   chunks that differ are stored.
 * - A backup of some tenants has no catalog: nobody takes it for a whole node.
 *
 * A crash leaves no snapshot or a whole one (`backup/SPEC.md`).
 */
import { DatabaseSync } from 'node:sqlite';
import {
  NO_LSN,
  NO_TENANT,
  toLsn,
  toTenantId,
  toTenantUuid,
  type Generation,
  type Lsn,
  type TenantId,
} from '../base/brands.ts';
import type { NodeId, TenantUuid } from '../base/brands.ts';
import { hlcToMs, systemClock } from '../base/clock.ts';
import { NostosError } from '../base/errors.ts';
import type { Limits } from '../base/limits.ts';
import type { LsnRange } from '../backup/repository/archive.ts';
import type { ContentSource } from '../backup/repository/content.ts';
import type { Snapshot, SnapshotId, TenantItem } from '../backup/repository/manifest.ts';
import type { Repository, SnapshotWriter } from '../backup/repository/repository.ts';
import { Window } from '../backup/repository/window.ts';
import { genesis, sameBytes, type ChainPoint } from '../log/chain.ts';
import { RecordKind, type LogRecord } from '../log/record.ts';
import type { GenerationEntry, TermEntry } from '../log/terms.ts';
import type { ItemName } from '../restore/item-name.ts';
import type { SourceFile } from '../restore/source.ts';
import type { Archiver } from './backup-archiver.ts';
import type { ArchiveHost } from './backup-host.ts';
import type { BackupLog, LogFacts } from './backup-log.ts';
import type { NodeIdentity } from './node-file.ts';
import type { RestoreHost } from './restore-host.ts';
import { NodeRestoreSource, type NodeSourceSession } from './restore-source.ts';
import type { LongCallOptions, Progress } from './types.ts';

export interface CreateBackupDeps {
  readonly host: RestoreHost;
  readonly archiveHost: ArchiveHost;
  readonly repository: Repository;
  readonly archiver: Archiver;
  readonly log: BackupLog;
  readonly dir: string;
  readonly limits: Limits;
}

export interface CreateBackupOptions {
  /** Names; all where none is given. */
  readonly tenants?: readonly string[] | undefined;
  readonly label?: string | undefined;
  /** Reads every file, whatever the snapshot before has. */
  readonly full?: boolean | undefined;
  /** Only says what would be read. */
  readonly dryRun?: boolean | undefined;
}

/** Plain JSON. */
export interface BackupReport {
  /** Null after a dry run. */
  readonly snapshot: SnapshotId | null;
  readonly url: string;
  readonly position: { readonly generation: Generation; readonly term: number; readonly lsn: Lsn } | null;
  readonly timeMs: number | null;
  readonly node: NodeId;
  readonly tenants: {
    /** Files that were read. */
    readonly read: number;
    /** Files of the snapshot before that this one goes on with. */
    readonly reused: number;
    /** Gone while the backup was made; the log says so. */
    readonly dropped: number;
  };
  /** Of the files that were read. */
  readonly bytesRead: number;
  /** New objects, and those of the archived log. */
  readonly bytesStored: number;
  readonly archive: { readonly records: number; readonly bytes: number; readonly gaps: readonly LsnRange[] };
  /** Why files were read that the snapshot before has; null where there was nothing to decide. */
  readonly why: string | null;
  readonly elapsedMs: number;
}

interface KnownTenant {
  readonly name: string;
  readonly uuid: TenantUuid;
  readonly schemaVersion: number;
}

/** They change the catalog. */
const CATALOG_KINDS: ReadonlySet<number> = new Set([
  RecordKind.tenantCreate,
  RecordKind.tenantDrop,
  RecordKind.tenantReset,
]);

/** Signs of life for a copy that waits for its storage. */
const ALIVE_EVERY_MS = 1_000;

export async function createBackup(
  deps: CreateBackupDeps,
  options: CreateBackupOptions & LongCallOptions = {},
): Promise<BackupReport> {
  const { signal = new AbortController().signal } = options;
  const { identity } = await deps.host.info();
  const { cluster, store, node } = identity;
  await using writer = await deps.repository.createSnapshot({ cluster, store, node }, { signal });
  const session = await new NodeRestoreSource(deps.host, deps.dir).begin(signal);
  const alive = setInterval(() => {
    try {
      session.progress(0);
    } catch {
      clearInterval(alive); // whoever reads hears of it
    }
  }, ALIVE_EVERY_MS);
  try {
    return await new Backup(deps, { ...options, signal }, { writer, session, identity }).run();
  } finally {
    clearInterval(alive);
    await session.close();
  }
}

interface BackupParts {
  readonly writer: SnapshotWriter;
  readonly session: NodeSourceSession;
  readonly identity: NodeIdentity;
}

class Backup {
  readonly #deps: CreateBackupDeps;
  readonly #options: CreateBackupOptions & LongCallOptions & { readonly signal: AbortSignal };
  readonly #writer: SnapshotWriter;
  readonly #session: NodeSourceSession;
  readonly #identity: NodeIdentity;
  readonly #startedMs = systemClock.monotonicMs();
  readonly #counts = { read: 0, reused: 0, dropped: 0 };
  readonly #archived = { records: 0, bytes: 0 };
  #gaps: readonly LsnRange[] = [];
  /** Where the files are that were read, or found to be as before; to be found in the log. */
  readonly #applied = new Map<TenantId, { readonly name: string; readonly point: ChainPoint }>();
  #bytesRead = 0;

  constructor(
    deps: CreateBackupDeps,
    options: CreateBackupOptions & LongCallOptions & { readonly signal: AbortSignal },
    { writer, session, identity }: BackupParts,
  ) {
    this.#deps = deps;
    this.#options = options;
    this.#writer = writer;
    this.#session = session;
    this.#identity = identity;
  }

  async run(): Promise<BackupReport> {
    const { tenants: known, applied: catalogApplied } = this.#readCatalog();
    const items = this.#chosen(known);
    const base = await this.#base();
    const { carried, why } = this.#options.dryRun === true ? await this.#outlook(base) : await this.#carry(base);
    const earlier = carried?.archive?.after ?? carried?.position;
    const reused = new Set<ItemName>();
    for (const { name, id, tenant } of items) {
      const item = itemOf(carried, id, tenant);
      if (item === undefined || !(await this.#hasKey(item))) continue;
      if (this.#options.dryRun !== true) this.#writer.reuse(item);
      reused.add(name);
    }
    this.#counts.reused = reused.size;
    const toRead = items.filter(({ name }) => !reused.has(name));
    if (this.#options.dryRun === true) {
      this.#counts.read = toRead.length;
      this.#bytesRead = toRead.reduce((sum, { bytes }) => sum + bytes, 0);
      return this.#report(undefined, why);
    }
    await this.#readTenants(toRead, base);
    const facts = await this.#facts(catalogApplied);
    await this.#archive(this.#session.from);
    if (this.#options.tenants === undefined) await this.#readCatalogFile(facts, catalogApplied);
    const after = reused.size > 0 ? earlier! : this.#start(facts);
    const snapshot = await this.#writer.commit(
      {
        position: facts.end,
        time: facts.time,
        terms: facts.terms,
        ...(after.lsn < facts.end.lsn ? { archive: { after, through: facts.end } } : {}),
        ...(this.#options.label === undefined ? {} : { label: this.#options.label }),
      },
      { signal: this.#options.signal },
    );
    return this.#report(snapshot, why);
  }

  /** The snapshot before, where this node has its history; others, as of a replica that is ahead, are no base. */
  async #base(): Promise<Snapshot | undefined> {
    const { previous } = this.#writer;
    if (previous === undefined || this.#options.full === true) return undefined;
    const generations = await this.#deps.archiveHost.generations();
    const { generation, lsn } = previous.position;
    return lsn <= this.#session.plan.watermark && generationAt(generations, lsn) === generation ? previous : undefined;
  }

  /** Whether files of the base are gone on with, after the log since was archived. */
  async #carry(base: Snapshot | undefined): Promise<Outlook> {
    if (base === undefined) {
      await this.#archive(this.#session.from);
      return this.#noBase();
    }
    const from = Math.min(base.position.lsn + 1, this.#session.from) as Lsn;
    await this.#archive(from);
    const gap = this.#gaps[0];
    if (gap !== undefined)
      return {
        carried: undefined,
        why: `the archive lacks LSN ${gap.from}-${gap.to}, which the log has no more; a restore to there is not possible`,
      };
    return this.#outlook(base);
  }

  async #outlook(base: Snapshot | undefined): Promise<Outlook> {
    if (base === undefined) return this.#noBase();
    const { archiver, limits } = this.#deps;
    const fileBytes = base.items.reduce((sum, { bytes }) => sum + bytes, 0);
    const logBytes = await archiver.storedBytes((base.archive?.after ?? base.position).lsn, this.#options);
    const percent = (100 * logBytes) / Math.max(1, fileBytes);
    if (percent <= limits.backupLogPercentMax) return { carried: base, why: null };
    return {
      carried: undefined,
      why: `the log since the files of the snapshot before is ${Math.round(percent)} % of them, backupLogPercentMax is ${limits.backupLogPercentMax}`,
    };
  }

  #noBase(): Outlook {
    if (this.#options.full === true) return { carried: undefined, why: 'all files were asked for' };
    const why = this.#writer.previous === undefined ? null : 'the snapshot before is of another history, or ahead';
    return { carried: undefined, why };
  }

  async #archive(from: Lsn): Promise<void> {
    const { signal, onProgress } = this.#options;
    const { records: before } = this.#archived;
    let records = 0;
    const onArchived = (sent: { readonly records: number }): void => {
      records += sent.records;
      onProgress?.({ phase: 'archiving the log', done: before + records, unit: 'records' });
    };
    const done = await this.#deps.archiver.catchUp(from, { signal, onArchived });
    this.#archived.records += done.records;
    this.#archived.bytes += done.bytes;
    if (done.gaps.length > 0) this.#gaps = done.gaps;
  }

  #readCatalog(): { tenants: ReadonlyMap<TenantId, KnownTenant>; applied: Lsn } {
    using catalog = new DatabaseSync(this.#session.catalog, { readOnly: true });
    const tenants = new Map<TenantId, KnownTenant>();
    for (const row of catalog.prepare('select id, name, uuid, schema_version from tenants').iterate())
      tenants.set(toTenantId(row['id']), {
        name: row['name'] as string,
        uuid: toTenantUuid(row['uuid']),
        schemaVersion: row['schema_version'] as number,
      });
    return { tenants, applied: toLsn(catalog.prepare('select applied from catalog').get()!['applied']) };
  }

  #chosen(known: ReadonlyMap<TenantId, KnownTenant>): readonly Chosen[] {
    const { tenants: wanted } = this.#options;
    const names = new Set([...known.values()].map(({ name }) => name));
    const unknown = wanted?.find((name) => !names.has(name));
    if (unknown !== undefined)
      throw new NostosError('TENANT_NOT_FOUND', `there is no tenant ${JSON.stringify(unknown)}`, {
        details: { tenant: unknown },
      });
    const chosen: Chosen[] = [];
    for (const { name, bytes } of this.#session.plan.items) {
      if (!name.startsWith('tenant/')) continue;
      const id = toTenantId(Number(name.slice('tenant/'.length)));
      const tenant = known.get(id)!;
      if (wanted === undefined || wanted.includes(tenant.name)) chosen.push({ name, id, tenant, bytes });
    }
    return chosen;
  }

  async #readTenants(chosen: readonly Chosen[], base: Snapshot | undefined): Promise<void> {
    const total = chosen.reduce((sum, { bytes }) => sum + bytes, 0);
    const generations = await this.#deps.archiveHost.generations();
    const window = new Window(this.#deps.limits.backupTenantsMax);
    const abort = new AbortController();
    const signal = AbortSignal.any([this.#options.signal, abort.signal]);
    try {
      for (const one of chosen)
        await window.run(async () => {
          try {
            await this.#readTenant(one, { base, generations, signal, total });
          } catch (error) {
            abort.abort(error); // the others of now need not go on
            throw error;
          }
        });
      await window.settled();
    } finally {
      await window.ended();
    }
  }

  async #readTenant({ name, id, tenant }: Chosen, { base, generations, signal, total }: ReadTenants): Promise<void> {
    const file = await this.#hold(name, tenant.name, signal);
    try {
      const { attributes } = file;
      if (attributes['dropped'] !== undefined) {
        this.#counts.dropped += 1;
        return;
      }
      const applied = appliedOf(attributes, generations);
      const before = itemOf(base, id, tenant);
      this.#applied.set(id, { name: tenant.name, point: applied });
      // The same record on the same chain: the same content.
      if (before !== undefined && sameBytes(before.applied.hash, applied.hash) && (await this.#hasKey(before))) {
        this.#writer.reuse(before);
        this.#counts.reused += 1;
        return;
      }
      const onBytes = (count: number): void => this.#readSome(count, `copying ${tenant.name}`, total);
      await this.#writer.addFile({ kind: 'tenant', id, ...tenant, applied }, this.#source(file), { signal, onBytes });
      this.#counts.read += 1;
    } finally {
      await file.close();
    }
  }

  /** A tenant is held at what is committed; one whose `local` writes are not, and readers that do not end, are waited for. */
  async #hold(item: ItemName, tenant: string, signal: AbortSignal): Promise<SourceFile> {
    const { reservationTimeoutMs: timeoutMs } = this.#deps.limits;
    const late = new AbortController();
    const error = new NostosError(
      'RESERVATION_EXPIRED',
      `tenant ${tenant} could not be held within ${timeoutMs} ms (reservationTimeoutMs): it has writes that the group has not committed, or a reader that does not end`,
      { details: { tenant, timeoutMs } },
    );
    const timer = setTimeout(() => late.abort(error), timeoutMs);
    try {
      return await this.#session.open(item, AbortSignal.any([signal, late.signal]));
    } finally {
      clearTimeout(timer);
    }
  }

  async #readCatalogFile({ before, points }: LogFacts, appliedLsn: Lsn): Promise<void> {
    const { signal } = this.#options;
    // Up to the record before the reserved one everything is in it, whatever it says itself.
    const applied = points.get(appliedLsn) ?? before;
    const file = await this.#session.open('catalog' as ItemName, signal);
    try {
      await this.#writer.addFile({ kind: 'catalog', applied }, this.#source(file), { signal });
    } finally {
      await file.close();
    }
  }

  #source(file: SourceFile): ContentSource {
    return {
      bytes: file.bytes,
      read: async (target, offset) => {
        file.read(target, offset);
        this.#session.progress(target.length);
      },
    };
  }

  #readSome(count: number, phase: string, total: number): void {
    this.#bytesRead += count;
    this.#options.onProgress?.({ phase, done: this.#bytesRead, total, unit: 'bytes' } satisfies Progress);
  }

  /** No file lacks a record up to there, and none is above, so that every position behind it can be restored. */
  #start({ before, complete, points }: LogFacts): ChainPoint {
    const highest = Math.max(NO_LSN, ...[...this.#applied.values()].map(({ point }) => point.lsn)) as Lsn;
    return complete.lsn <= highest ? complete : (points.get(highest) ?? before);
  }

  /** What the log says up to the position of the snapshot; each file has to be where it says. */
  async #facts(catalogApplied: Lsn): Promise<LogFacts> {
    const { archiveHost, log } = this.#deps;
    const { from } = this.#session;
    const applied = [...this.#applied.values()];
    const wanted = new Set([catalogApplied, ...applied.map(({ point }) => point.lsn)]);
    const isWhole = this.#options.tenants === undefined;
    const isLacking = ({ kind, tenant, lsn }: LogRecord): boolean => {
      if (tenant === NO_TENANT) return false;
      if (CATALOG_KINDS.has(kind)) return isWhole && lsn > catalogApplied;
      const file = this.#applied.get(tenant);
      return file === undefined ? isWhole : lsn > file.point.lsn;
    };
    const files = await archiveHost.openArchive(from);
    try {
      const facts = log.facts(files, { from, generation: this.#identity.generation, wanted, isLacking });
      for (const { name, point } of applied) {
        const found = facts.points.get(point.lsn);
        if (point.lsn > facts.end.lsn || (found !== undefined && !sameBytes(found.hash, point.hash)))
          throw new NostosError(
            'BACKUP_DAMAGED',
            `the file of tenant ${name} is at LSN ${point.lsn}, which the log of this node does not have like that; nostos verify says more`,
            { details: { key: name, problem: 'not on the history of the log', lsn: point.lsn } },
          );
      }
      return facts;
    } finally {
      await archiveHost.closeArchive(files.log);
    }
  }

  async #hasKey(item: TenantItem): Promise<boolean> {
    return item.key === (await this.#deps.repository.deps.keys.keyFor(item.uuid))?.id;
  }

  #report(snapshot: Snapshot | undefined, why: string | null): BackupReport {
    const { position, time } = snapshot ?? {};
    return {
      snapshot: snapshot?.id ?? null,
      url: this.#deps.repository.url,
      position:
        position === undefined ? null : { generation: position.generation, term: position.term, lsn: position.lsn },
      timeMs: time === undefined ? null : hlcToMs(time),
      node: this.#identity.node,
      tenants: { ...this.#counts },
      bytesRead: this.#bytesRead,
      bytesStored: this.#writer.bytesStored + this.#archived.bytes,
      archive: { ...this.#archived, gaps: this.#gaps },
      why,
      elapsedMs: systemClock.monotonicMs() - this.#startedMs,
    };
  }
}

interface Outlook {
  /** The snapshot whose files are gone on with. */
  readonly carried: Snapshot | undefined;
  readonly why: string | null;
}

interface Chosen {
  readonly name: ItemName;
  readonly id: TenantId;
  readonly tenant: KnownTenant;
  readonly bytes: number;
}

interface ReadTenants {
  readonly base: Snapshot | undefined;
  readonly generations: readonly GenerationEntry[];
  readonly signal: AbortSignal;
  readonly total: number;
}

function itemOf(snapshot: Snapshot | undefined, id: TenantId, { uuid, name }: KnownTenant): TenantItem | undefined {
  return snapshot?.items.find(
    (item): item is TenantItem => item.kind === 'tenant' && item.id === id && item.uuid === uuid && item.name === name,
  );
}

function appliedOf(attributes: SourceFile['attributes'], generations: readonly GenerationEntry[]): ChainPoint {
  const lsn = toLsn(attributes['lsn']);
  const generation = generationAt(generations, lsn);
  if (lsn === NO_LSN) return genesis(generation);
  const hash = new Uint8Array(Buffer.from(String(attributes['hash']), 'hex')) as ChainPoint['hash'];
  return { generation, term: Number(attributes['term']) as TermEntry['term'], lsn, hash };
}

function generationAt(generations: readonly GenerationEntry[], lsn: Lsn): Generation {
  return (generations.findLast(({ firstLsn }) => firstLsn <= lsn) ?? generations[0]!).generation;
}
