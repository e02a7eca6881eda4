/**
 * One tenant of a backup: as a file of its own, brought to the position that is gone to, without what was forgotten since;
 * and from there into a node that runs, through its log (`tenant-reset.ts`), so that followers and later backups have it,
 * nobody else notices, and what was there before counts until the new content is committed.
 *
 * The file is made in a directory of its own, not in that of the node: whatever ends this process leaves the node as it is,
 * and the directory `nostos-tenant-…` among the temporary files.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { toTenantUuid, type Position, type TenantUuid } from '../base/brands.ts';
import { hlcToMs } from '../base/clock.ts';
import { systemDisk } from '../base/disk.ts';
import { NostosError } from '../base/errors.ts';
import { randomHex128, systemRandom } from '../base/random.ts';
import { readForgets } from '../backup/repository/forgets.ts';
import type { KeyProvider } from '../backup/repository/keys.ts';
import type { Snapshot, SnapshotId, TenantItem } from '../backup/repository/manifest.ts';
import { openRepository, type Repository } from '../backup/repository/repository.ts';
import { ForgetLedger } from '../log/ledger.ts';
import { TermTable } from '../log/terms.ts';
import { itemPath, type ItemName } from '../restore/item-name.ts';
import { Catalog } from '../store/catalog.ts';
import { createTenantFile } from '../store/create-tenant-file.ts';
import { ForgetFilter, removeForgotten } from '../store/forget-filter.ts';
import { fetchFiles } from './backup-feed-files.ts';
import { ArchiveReplay, Selection } from './backup-feed-replay.ts';
import { StagedTenants } from './backup-feed-tenants.ts';
import { assertReadable, holdOf, isOfWholeNode, leaveOut } from './backup-feed.ts';
import { parseBackupSource } from './backup-restore-source.ts';
import { resolveTarget, type RestorePoint, type RestoreTarget } from './backup-restore-target.ts';
import { tenantPath } from './paths.ts';
import type { LongCallOptions, Node, ReplaceReport } from './types.ts';

export interface TenantOfBackupOptions extends RestoreTarget, LongCallOptions {
  readonly from: string;
  /** Its name at the position that is gone to. */
  readonly tenant: string;
  readonly keys?: KeyProvider;
  /** Where the file is made, with room for it; the directory for temporary files where absent. */
  readonly scratch?: string;
  readonly onWarning?: (message: string) => void;
}

export interface TenantOfBackup extends AsyncDisposable {
  /** The file of a tenant; gone with this object. */
  readonly path: string;
  readonly uuid: TenantUuid;
  /** What the file holds. */
  readonly at: Position;
  readonly timeMs: number;
  readonly snapshot: SnapshotId;
  /** Archived records that were read. */
  readonly records: number;
  readonly forgottenRows: number;
}

export async function tenantOfBackup(options: TenantOfBackupOptions): Promise<TenantOfBackup> {
  const { tenant, keys, onWarning, signal, scratch = tmpdir() } = options;
  const { url, snapshot, lsn } = parseBackupSource(options.from);
  const { toTimeMs } = options;
  await using repository = await openRepository(url, {
    ...(keys === undefined ? {} : { keys }),
    ...(onWarning === undefined ? {} : { onWarning }),
    ...(signal === undefined ? {} : { signal }),
  });
  const to = await resolveTarget(
    repository,
    {
      toTimeMs,
      snapshot: options.snapshot ?? snapshot,
      toLsn: options.toLsn ?? (toTimeMs === undefined ? lsn : undefined),
    },
    { signal, accepts: (one) => isOfWholeNode(one) || itemOf(one, tenant) !== undefined },
  );
  const dir = await mkdtemp(join(resolve(scratch), 'nostos-tenant-'));
  const remove = (): Promise<void> => rm(dir, { recursive: true, force: true });
  const hold = await holdOf(repository, onWarning, signal);
  try {
    const built = await build({ repository, to, dir }, options);
    const { generation, term, lsn: reached } = to.point;
    const at = { generation, term, lsn: reached };
    const timeMs = hlcToMs(to.time);
    return { ...built, at, timeMs, snapshot: to.snapshot.id, [Symbol.asyncDispose]: remove };
  } catch (error) {
    await remove();
    throw error;
  } finally {
    await hold?.release();
  }
}

function itemOf({ items }: Snapshot, name: string): TenantItem | undefined {
  return items.find((item): item is TenantItem => item.kind === 'tenant' && item.name === name);
}

interface Building {
  readonly repository: Repository;
  readonly to: RestorePoint;
  readonly dir: string;
}

async function build(
  { repository, to, dir }: Building,
  { tenant, signal, onProgress }: TenantOfBackupOptions,
): Promise<Pick<TenantOfBackup, 'path' | 'uuid' | 'records' | 'forgottenRows'>> {
  const disk = systemDisk;
  const { snapshot, point } = to;
  // What was on its way to replace it may have done so by the position that is gone to.
  const mine = (item: TenantItem): boolean => item.name === tenant || item.uuid === itemOf(snapshot, tenant)?.uuid;
  const items = snapshot.items.filter((item) => item.kind === 'catalog' || mine(item));
  for (const item of items) await assertReadable(repository, item);
  const pathOf = (name: ItemName): string => {
    const path = join(dir, ...itemPath(name));
    disk.makeDirectory(dirname(path));
    return path;
  };
  const total = items.reduce((sum, { bytes }) => sum + bytes, 0);
  let done = 0;
  await fetchFiles({ repository, disk, target: { pathOf, baseOf: () => undefined } }, items, {
    signal,
    onBytes: ({ bytes }) => onProgress?.({ phase: 'fetching the tenant', done: (done += bytes), total, unit: 'bytes' }),
  });
  disk.makeDirectory(join(dir, 'log'));
  const ledger = ForgetLedger.open(disk, join(dir, 'log'));
  for await (const entries of readForgets(repository, signal === undefined ? {} : { signal })) ledger.add(entries);
  const terms = new TermTable(snapshot.terms);
  terms.cut(point.lsn);
  const catalog = Catalog.open(join(dir, 'catalog.sqlite'));
  const tenants = new StagedTenants({ disk, dir, catalog, ledger });
  try {
    if (!isOfWholeNode(snapshot)) for (const item of items) if (item.kind === 'tenant') catalog.adopt(item);
    const selection = new Selection({ only: tenant });
    leaveOut(catalog, selection);
    const replay = new ArchiveReplay({ repository, catalog, tenants, terms, selection }, to);
    const records = await replay.run({
      ...to,
      signal,
      onRecords: (read, all) =>
        onProgress?.({ phase: 'applying the archived log', done: read, total: all, unit: 'records' }),
    });
    const found = catalog.get(tenant);
    if (found === undefined) throw notThere(repository, to, tenant);
    await tenants.finish();
    const path = tenantPath(dir, found.id);
    if (!disk.exists(path)) await createTenantFile(path, found);
    const filter = ForgetFilter.of({
      entries: () => ledger.entries(),
      uuid: found.uuid,
      includes: (position) => terms.contains(position, point.lsn),
    });
    const { rows } = removeForgotten(path, filter, signal === undefined ? {} : { signal });
    return { path, uuid: found.uuid, records, forgottenRows: rows };
  } finally {
    tenants.close();
    catalog.close();
  }
}

function notThere({ url }: Repository, { snapshot, point }: RestorePoint, tenant: string): NostosError {
  const names = snapshot.items.flatMap((item) => (item.kind === 'tenant' ? [item.name] : []));
  return new NostosError(
    'TENANT_NOT_FOUND',
    `${url} has no tenant ${JSON.stringify(tenant)} at LSN ${point.lsn}; its snapshot ${snapshot.id} has ${names.slice(0, 20).join(', ') || 'none'}`,
    { details: { tenant, lsn: point.lsn } },
  );
}

export interface RestoreTenantReport
  extends ReplaceReport, Pick<TenantOfBackup, 'at' | 'timeMs' | 'snapshot' | 'records'> {}

/** Whoever may replace the content of a tenant: a node, or one that is reached through its socket. */
export interface TenantReplacer {
  readonly has: (tenant: string) => Promise<boolean>;
  readonly replace: Node['tenants']['replace'];
}

export function replacerOf({ tenants }: Pick<Node, 'tenants'>): TenantReplacer {
  return {
    has: async (tenant) => (await tenants.get(tenant)) !== undefined,
    replace: (tenant, file, options) => tenants.replace(tenant, file, options),
  };
}

/**
 * Brings a tenant of a node that runs back to what a backup has, or makes it where there is none. Resolves when the new
 * content is committed.
 *
 * @example
 * await restoreTenant(replacerOf(node), { from: 'file:/backups/shop', tenant: 'acme', toTimeMs: Date.parse('2026-05-01T10:00Z') })
 */
export async function restoreTenant(
  into: TenantReplacer,
  options: TenantOfBackupOptions,
): Promise<RestoreTenantReport> {
  await using made = await tenantOfBackup(options);
  const { path, at, uuid, timeMs, snapshot, records, forgottenRows } = made;
  const report = await into.replace(options.tenant, path, { ...callOf(options), at, uuid });
  return { ...report, forgotten: report.forgotten + forgottenRows, at, timeMs, snapshot, records };
}

/** The same under a name that is free, as a tenant of its own. */
export async function forkTenant(
  into: TenantReplacer,
  { as, ...options }: TenantOfBackupOptions & { readonly as: string },
): Promise<RestoreTenantReport> {
  if (await into.has(as))
    throw new NostosError(
      'TENANT_EXISTS',
      `there is a tenant ${JSON.stringify(as)} already; give a name that is free`,
      {
        details: { tenant: as },
      },
    );
  await using made = await tenantOfBackup(options);
  const { path, at, timeMs, snapshot, records, forgottenRows } = made;
  const uuid = toTenantUuid(randomHex128(systemRandom));
  const report = await into.replace(as, path, { ...callOf(options), at, uuid });
  return { ...report, forgotten: report.forgotten + forgottenRows, at, timeMs, snapshot, records };
}

function callOf({ signal, onProgress }: LongCallOptions): LongCallOptions {
  return { ...(signal === undefined ? {} : { signal }), ...(onProgress === undefined ? {} : { onProgress }) };
}
