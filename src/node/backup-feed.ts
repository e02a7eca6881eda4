/**
 * A backup as what a restore fetches: the files of a snapshot, brought to the position that is gone to by the archived log,
 * without what was forgotten since, and a log that begins there, in a new generation.
 *
 * All of that happens in the staged directory, in the same order each time. What an attempt that was cut off has left there
 * only saves fetching equal chunks; everything else is done anew, so the end is the same however often it was cut off.
 *
 * The log that led there stays in the archive. The new one has the term table of all of it, so that a position at or below
 * the fork is told from one above, and begins with the record that names parent and fork (`log/generation.ts`).
 */
import { dirname, join } from 'node:path';
import { NO_TENANT, type Generation, type Lsn, type TenantUuid, type Term } from '../base/brands.ts';
import { HybridClock, type Clock } from '../base/clock.ts';
import { filesBelow, removeTree } from '../base/directory-tree.ts';
import type { Disk } from '../base/disk.ts';
import { NostosError, isNostosError } from '../base/errors.ts';
import type { Snapshot, SnapshotItem, TenantItem } from '../backup/repository/manifest.ts';
import { readForgets } from '../backup/repository/forgets.ts';
import type { Repository } from '../backup/repository/repository.ts';
import { beginGeneration } from '../log/generation.ts';
import { ForgetLedger, LEDGER_FILE, type LedgerEntry } from '../log/ledger.ts';
import { RecordKind } from '../log/record.ts';
import { encodeSegmentHeader, segmentName } from '../log/segment-header.ts';
import { saveTable } from '../log/table-file.ts';
import { TermTable, termTable } from '../log/terms.ts';
import type { FetchOptions, FetchReport, FetchTarget, RestoreFeed } from '../restore/feed.ts';
import { itemPath, parseItemName, type ItemName } from '../restore/item-name.ts';
import type { LocalProgress } from '../restore/local/restore-directory.ts';
import type { RestorePlan } from '../restore/source.ts';
import { Catalog } from '../store/catalog.ts';
import { ForgetFilter, removeForgotten } from '../store/forget-filter.ts';
import { fetchFiles, itemNameOf } from './backup-feed-files.ts';
import { ArchiveReplay, Selection, keyMissing } from './backup-feed-replay.ts';
import { StagedTenants, entriesOf } from './backup-feed-tenants.ts';
import type { RestorePoint } from './backup-restore-target.ts';
import { formatBackupSource } from './backup-restore-source.ts';
import { tenantPath } from './paths.ts';

export interface BackupFeedOptions {
  /** Of the repository, as it opens again: what a backend calls itself is for people. */
  readonly url: string;
  readonly to: RestorePoint;
  /** The one that begins there. */
  readonly generation: Generation;
  /** Tenants that are not restored, by name. */
  readonly without: readonly string[];
  /** Of the directory that is replaced: nothing of these comes back either. */
  readonly forgotten: () => Iterable<LedgerEntry>;
  readonly onProgress?: ((progress: LocalProgress) => void) | undefined;
  readonly onWarning?: ((message: string) => void) | undefined;
}

export interface BackupFeedDeps {
  readonly repository: Repository;
  readonly disk: Disk;
  readonly clock: Clock;
}

/** What was done beyond fetching. */
export interface BackupFeedReport {
  /** Records of the archived log that were read. */
  readonly records: number;
  /** Rows that were in the backup and are forgotten since. */
  readonly forgottenRows: number;
  readonly leftOut: readonly string[];
}

const FIRST_SEGMENT = 1;

export class BackupFeed implements RestoreFeed {
  readonly sources: readonly string[];
  readonly plan: RestorePlan;
  report: BackupFeedReport | undefined;
  readonly #deps: BackupFeedDeps;
  readonly #options: BackupFeedOptions;

  constructor(deps: BackupFeedDeps, options: BackupFeedOptions) {
    const { snapshot, point } = options.to;
    const { url, without, generation } = options;
    if (!isOfWholeNode(snapshot))
      throw new NostosError(
        'BACKUP_REFUSED',
        `the snapshot ${snapshot.id} is of single tenants, not of a whole node; restore one of them (--mode single_tenant), or another snapshot`,
        { details: { snapshot: snapshot.id } },
      );
    this.#deps = deps;
    this.#options = options;
    this.sources = [formatBackupSource({ url, snapshot: snapshot.id, lsn: point.lsn, without })];
    this.plan = {
      kind: 'node',
      cluster: snapshot.cluster,
      generation,
      // The directory of that very node is what most backups are restored into.
      store: null,
      node: null,
      term: point.term + 1,
      watermark: point.lsn + 1,
      items: wantedItems(snapshot, new Selection({ without })).map((item) => ({
        name: itemNameOf(item),
        bytes: item.bytes,
      })),
    };
  }

  async fetchAll(target: FetchTarget, { signal, onProgress }: FetchOptions = {}): Promise<FetchReport> {
    const { clock, repository } = this.#deps;
    const startedMs = clock.monotonicMs();
    // Nobody prunes what this needs.
    const hold = await holdOf(repository, this.#options.onWarning, signal);
    try {
      const both =
        hold === undefined ? signal : AbortSignal.any([hold.signal, ...(signal === undefined ? [] : [signal])]);
      const fetched = await this.#fetch(target, { signal: both, onProgress });
      const items = await this.#build(target, both);
      const elapsedMs = Math.round(clock.monotonicMs() - startedMs);
      return { ...fetched, items, watermark: this.plan.watermark, elapsedMs };
    } finally {
      await hold?.release();
    }
  }

  async close(): Promise<void> {
    await this.#deps.repository.close();
  }

  async #fetch(
    target: FetchTarget,
    { signal, onProgress }: { readonly [Name in keyof FetchOptions]: FetchOptions[Name] | undefined },
  ): Promise<Pick<FetchReport, 'bytesOnWire' | 'bytesReused'>> {
    const { repository, disk } = this.#deps;
    const items = wantedItems(this.#options.to.snapshot, new Selection(this.#options));
    for (const item of items) await assertReadable(repository, item);
    removeOthers(disk, stagingOf(target), items.map(itemNameOf));
    const total = items.reduce((sum, { bytes }) => sum + bytes, 0);
    const sums = { fetched: 0, reused: 0 };
    await fetchFiles({ repository, disk, target }, items, {
      signal,
      onBytes: ({ bytes, reused }) => {
        sums[reused ? 'reused' : 'fetched'] += bytes;
        onProgress?.({
          phase: 'items',
          bytesDone: sums.fetched + sums.reused,
          bytesTotal: total,
          itemsDone: 0,
          itemsTotal: items.length,
          bytesOnWire: sums.fetched,
        });
      },
    });
    return { bytesOnWire: sums.fetched, bytesReused: sums.reused };
  }

  async #build(target: FetchTarget, signal: AbortSignal | undefined): Promise<FetchReport['items']> {
    const { repository, disk } = this.#deps;
    const { to, onProgress } = this.#options;
    const dir = stagingOf(target);
    disk.makeDirectory(join(dir, 'log'));
    const ledger = ForgetLedger.open(disk, join(dir, 'log'));
    const terms = new TermTable(to.snapshot.terms);
    terms.cut(to.point.lsn);
    const selection = new Selection({ without: this.#options.without });
    const catalog = Catalog.open(join(dir, 'catalog.sqlite'));
    const tenants = new StagedTenants({ disk, dir, catalog, ledger });
    try {
      leaveOut(catalog, selection);
      await this.#noteForgets(ledger, signal);
      const replay = new ArchiveReplay({ repository, catalog, tenants, terms, selection }, to);
      const records = await replay.run({
        ...to,
        signal,
        onRecords: (done, total) => onProgress?.({ phase: 'applying the archived log', done, total, unit: 'records' }),
      });
      if (selection.unknown.length > 0) throw noSuchTenant(selection.unknown);
      await tenants.finish((done) => onProgress?.({ phase: 'settling tenants', done, unit: 'tenants' }));
      assertAllThere({ disk, dir, catalog });
      const forgottenRows = this.#forget({ dir, catalog, ledger, terms, signal });
      // Whatever comes next is behind the fork.
      catalog.apply({ kind: RecordKind.noop, lsn: to.point.lsn, tenant: NO_TENANT, payload: new Uint8Array() });
      this.report = { records, forgottenRows, leftOut: selection.omitted };
    } finally {
      tenants.close();
      catalog.close();
    }
    this.#beginLog(dir, terms);
    return itemsIn(disk, dir);
  }

  /** Those of the backup and of the directory, in the order in which they came, before those of the archived log. */
  async #noteForgets(ledger: ForgetLedger, signal: AbortSignal | undefined): Promise<void> {
    for await (const entries of readForgets(this.#deps.repository, signal === undefined ? {} : { signal }))
      ledger.add(entries);
    ledger.add([...this.#options.forgotten()]);
  }

  #forget({
    dir,
    catalog,
    ledger,
    terms,
    signal,
  }: {
    readonly dir: string;
    readonly catalog: Catalog;
    readonly ledger: ForgetLedger;
    readonly terms: TermTable;
    readonly signal: AbortSignal | undefined;
  }): number {
    const { disk } = this.#deps;
    const { generation, to } = this.#options;
    const position = { generation, term: (to.point.term + 1) as Term, lsn: (to.point.lsn + 1) as Lsn };
    const known = new Set<TenantUuid>();
    for (const { uuid } of ledger.entries()) known.add(uuid);
    let rows = 0;
    for (const { id, uuid } of entriesOf(catalog)) {
      const path = tenantPath(dir, id);
      if (!known.has(uuid) || !disk.exists(path)) continue;
      const filter = ForgetFilter.of({
        entries: () => ledger.entries(),
        uuid,
        includes: (one) => terms.contains(one, to.point.lsn),
      });
      rows += removeForgotten(path, filter, signal === undefined ? {} : { signal }).rows;
      ledger.add(filter.restated(position));
    }
    return rows;
  }

  #beginLog(dir: string, terms: TermTable): void {
    const { disk, clock } = this.#deps;
    const { generation, to } = this.#options;
    const file = disk.open(join(dir, 'log', segmentName(FIRST_SEGMENT)), 'create');
    try {
      file.write(encodeSegmentHeader({ number: FIRST_SEGMENT, anchor: to.point }), 0);
    } finally {
      file.close();
    }
    saveTable(disk, join(dir, 'log', 'terms'), termTable, { base: 0, rows: [...terms.entries] });
    const hybrid = new HybridClock(clock);
    hybrid.resume(to.time);
    beginGeneration(
      { disk, clock: hybrid },
      {
        dir: join(dir, 'log'),
        parent: to.point.generation,
        generation,
        term: (to.point.term + 1) as Term,
        fork: to.point,
      },
    );
  }
}

/** Said before anything is fetched. */
export async function assertReadable({ deps }: Repository, item: SnapshotItem): Promise<void> {
  if (item.kind !== 'tenant' || item.key === undefined) return;
  if ((await deps.keys.keyById(item.key)) === undefined) throw keyMissing(item.id, item.name);
}

/** One of some tenants alone has no catalog. */
export function isOfWholeNode({ items }: Snapshot): boolean {
  return items.some(({ kind }) => kind === 'catalog');
}

function wantedItems({ items }: Snapshot, selection: Selection): readonly SnapshotItem[] {
  const tenants = items.filter((item): item is TenantItem => item.kind === 'tenant');
  const omitted = new Set(
    hiddenLast(tenants)
      .filter(({ id, name }) => selection.omits(id, name))
      .map(({ id }) => id),
  );
  return items.filter((item) => item.kind === 'catalog' || !omitted.has(item.id));
}

/** Whether what replaces a tenant is wanted follows from that tenant. */
const hiddenLast = <T extends { readonly name: string }>(entries: Iterable<T>): T[] =>
  [...entries].toSorted((a, b) => (a.name < b.name ? 1 : -1));

export function leaveOut(catalog: Catalog, selection: Selection): void {
  for (const { id, name } of hiddenLast(entriesOf(catalog))) if (selection.omits(id, name)) catalog.leaveOut(id);
}

const stagingOf = (target: FetchTarget): string => dirname(target.pathOf(parseItemName('catalog')));

function removeOthers(disk: Disk, dir: string, items: readonly ItemName[]): void {
  const wanted = new Set(items.map((name) => join(...itemPath(name))));
  removeTree(disk, join(dir, 'log'));
  for (const path of [...filesBelow(disk, dir)]) if (!wanted.has(path)) disk.remove(join(dir, path));
}

export async function holdOf(
  repository: Repository,
  onWarning: BackupFeedOptions['onWarning'],
  signal: AbortSignal | undefined,
): Promise<Awaited<ReturnType<Repository['hold']>> | undefined> {
  try {
    return await repository.hold(signal === undefined ? {} : { signal });
  } catch (error) {
    // What may only be read can be restored from; then nobody prunes there either, as far as this user knows.
    if (!isNostosError(error, 'BACKEND_UNSUITABLE') && !isNostosError(error, 'IO_FAILED')) throw error;
    onWarning?.(`the repository is not locked against prune: ${error.message}`);
    return undefined;
  }
}

function assertAllThere({
  disk,
  dir,
  catalog,
}: {
  readonly disk: Disk;
  readonly dir: string;
  readonly catalog: Catalog;
}): void {
  for (const { id, name, opened } of entriesOf(catalog))
    if (opened && !disk.exists(tenantPath(dir, id)))
      throw new NostosError(
        'BACKUP_REFUSED',
        `the snapshot has no file of tenant ${name}; take another snapshot, or leave the tenant out: --without ${name}`,
        { details: { tenant: name, id } },
      );
}

function noSuchTenant(names: readonly string[]): NostosError {
  return new NostosError('TENANT_NOT_FOUND', `the backup has no tenant ${names.join(', ')} to leave out`, {
    details: { tenants: names },
  });
}

function itemsIn(disk: Disk, dir: string): FetchReport['items'] {
  const names: string[] = ['catalog', 'log/terms', `log/${segmentName(FIRST_SEGMENT)}`];
  if (disk.exists(join(dir, 'log', LEDGER_FILE))) names.push('log/ledger');
  if (disk.isDirectory(join(dir, 'tenants')))
    for (const name of disk.list(join(dir, 'tenants'))) {
      const id = /^tenant_(\d+)$/.exec(name)?.[1];
      if (id !== undefined && disk.exists(join(dir, 'tenants', name, 'data.sqlite'))) names.push(`tenant/${id}`);
    }
  return names.map(parseItemName).map((name) => ({ name, bytes: disk.size(join(dir, ...itemPath(name))) }));
}
