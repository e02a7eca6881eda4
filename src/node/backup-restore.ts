/**
 * A whole node from a backup: what `nostos restore --from file:…` does. Staging, marker, verification and swap are those of
 * any restore (`restore/local/`); here a backup is what is fetched, and what comes of it is no copy but a node of its own,
 * in a new generation.
 */
import { lstatSync } from 'node:fs';
import { dirname, join, parse, resolve, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import { toGeneration, type Generation } from '../base/brands.ts';
import { systemClock } from '../base/clock.ts';
import { systemDisk, type Disk } from '../base/disk.ts';
import { NostosError } from '../base/errors.ts';
import { DEFAULT_LIMITS } from '../base/limits.ts';
import { randomHex128, systemRandom } from '../base/random.ts';
import { realPathOf } from '../base/real-path.ts';
import type { KeyProvider } from '../backup/repository/keys.ts';
import type { SnapshotId } from '../backup/repository/manifest.ts';
import { openRepository, type Repository } from '../backup/repository/repository.ts';
import { readableEntries, type LedgerEntry } from '../log/ledger.ts';
import type { Marker } from '../restore/local/marker.ts';
import {
  restoreDirectory,
  type LocalProgress,
  type RestoreDeps,
  type RestoreReport,
} from '../restore/local/restore-directory.ts';
import { ownedByNode } from '../restore/local/swap.ts';
import { BackupFeed, isOfWholeNode, type BackupFeedReport } from './backup-feed.ts';
import { isBackupSource, parseBackupSource } from './backup-restore-source.ts';
import { resolveTarget, type RestorePoint, type RestoreTarget } from './backup-restore-target.ts';
import { loadNode, writeNode } from './node-file.ts';
import { restoreDeps } from './restore-run.ts';

export interface RestoreBackupOptions extends RestoreTarget {
  /** `file:<directory>` or `s3://<bucket>/<prefix>`. Not needed where a run that was cut off is resumed. */
  readonly from?: string;
  readonly dir: string;
  /**
   * `new_cluster`: into a directory that is empty or absent. `wipe_and_restore`: what the directory has is set aside, and
   * removed at the end only with `discard`.
   */
  readonly mode: 'new_cluster' | 'wipe_and_restore';
  readonly discard?: boolean;
  readonly keys?: KeyProvider;
  /** Tenants that are not restored, by name, or as `#<id>`. */
  readonly without?: readonly string[];
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: LocalProgress) => void;
  readonly onWarning?: (message: string) => void;
}

export interface RestoreBackupReport extends RestoreReport {
  /** Absent where an earlier run had brought everything: then only the swap was left. */
  readonly backup?: BackupFeedReport & {
    readonly snapshot: SnapshotId;
    readonly parent: { readonly generation: Generation; readonly term: number; readonly lsn: number };
    /** Of the last record that was restored. */
    readonly timeMs: number;
  };
}

/**
 * Restores a node, verifies it, and puts it in place; whatever ends the process meanwhile, the same call goes on, to the
 * position that the first one chose.
 *
 * @example
 * await restoreBackup({ from: 'file:/backups/shop', dir: './data', mode: 'wipe_and_restore', toTimeMs: Date.parse('2026-05-01T10:00Z') })
 */
export async function restoreBackup(
  options: RestoreBackupOptions,
  deps: RestoreDeps = restoreDeps,
): Promise<RestoreBackupReport> {
  const dir = resolve(options.dir);
  assertRestorable(dir);
  let opened: { readonly feed: BackupFeed; readonly to: RestorePoint } | undefined;
  const report = await restoreDirectory(
    { ...deps, verify: (staged, call) => verifyAsNode(deps, staged, call) },
    {
      dir,
      replace: options.mode === 'wipe_and_restore',
      discard: options.discard === true,
      reserveBytes: DEFAULT_LIMITS.restoreReserveBytes,
      ...(options.signal === undefined ? {} : { signal: options.signal }),
      ...(options.onProgress === undefined ? {} : { onProgress: options.onProgress }),
      openFeed: async (marker, signal) => {
        opened = await openBackupFeed({ ...options, dir }, marker, { disk: deps.disk, signal });
        return opened.feed;
      },
    },
  );
  if (opened?.feed.report === undefined) return report;
  const { snapshot, point, time } = opened.to;
  const { generation, term, lsn } = point;
  const timeMs = Number(time >> 16n);
  return {
    ...report,
    backup: { ...opened.feed.report, snapshot: snapshot.id, parent: { generation, term, lsn }, timeMs },
  };
}

export async function openBackupFeed(
  options: RestoreBackupOptions,
  marker: Marker | undefined,
  { disk = systemDisk, signal }: { readonly disk?: Disk; readonly signal: AbortSignal | undefined },
): Promise<{ readonly feed: BackupFeed; readonly to: RestorePoint }> {
  const { dir, keys, onWarning, mode } = options;
  const asked = askedOf(options, marker);
  if (marker === undefined && mode === 'new_cluster') assertEmpty(dir);
  const repository = await openRepository(asked.url, {
    ...(keys === undefined ? {} : { keys }),
    ...(onWarning === undefined ? {} : { onWarning }),
    ...(signal === undefined ? {} : { signal }),
  });
  try {
    assertApart(dir, repository);
    const to = await resolveTarget(repository, asked, { signal, accepts: isOfWholeNode });
    const feed = new BackupFeed(
      { repository, disk, clock: systemClock },
      {
        url: asked.url.startsWith('s3:') ? asked.url : `file:${urlOf(asked.url)}`,
        to,
        generation: marker?.history.generation ?? toGeneration(randomHex128(systemRandom)),
        without: asked.without,
        forgotten: (): Iterable<LedgerEntry> => readableEntries(disk, join(dir, 'log')),
        onProgress: options.onProgress,
        onWarning,
      },
    );
    if (marker !== undefined) assertSame(marker, { asked: options, feed });
    return { feed, to };
  } catch (error) {
    await repository.close();
    throw error;
  }
}

interface Asked extends RestoreTarget {
  readonly url: string;
  readonly without: readonly string[];
}

/** What a run that is resumed had chosen counts, and what this call says about it must not contradict. */
function askedOf({ from, without = [], ...target }: RestoreBackupOptions, marker: Marker | undefined): Asked {
  const [source] = marker?.sources ?? [];
  if (source !== undefined) {
    if (!isBackupSource(source)) throw otherRestore(source);
    const { url, snapshot, lsn, without: left } = parseBackupSource(source);
    return { url, snapshot, toLsn: lsn, without: left };
  }
  if (from === undefined)
    throw new NostosError('INVALID_ARGUMENT', 'it is not said from where: file:<directory> or s3://<bucket>/<prefix>');
  const { url, snapshot, lsn, without: left } = parseBackupSource(from);
  const { toTimeMs } = target;
  return {
    url,
    snapshot: target.snapshot ?? snapshot,
    toLsn: target.toLsn ?? (toTimeMs === undefined ? lsn : undefined),
    toTimeMs,
    without: [...without, ...left],
  };
}

function assertSame(
  { sources }: Marker,
  { asked, feed }: { readonly asked: RestoreBackupOptions; readonly feed: BackupFeed },
): void {
  const [begun] = sources;
  const { url, snapshot, lsn } = parseBackupSource(begun!);
  const fromUrl = asked.from === undefined ? undefined : parseBackupSource(asked.from).url;
  const differs =
    (fromUrl !== undefined && urlOf(fromUrl) !== urlOf(url)) ||
    (asked.snapshot !== undefined && asked.snapshot !== snapshot) ||
    (asked.toLsn !== undefined && asked.toLsn !== lsn);
  if (differs || feed.sources[0] !== begun) throw otherRestore(begun!);
}

function urlOf(url: string): string {
  if (url.startsWith('s3:')) return url;
  return url.startsWith('file://') ? fileURLToPath(url) : resolve(url.replace(/^file:/, ''));
}

function otherRestore(source: string): NostosError {
  return new NostosError(
    'RESTORE_UNFINISHED',
    `an unfinished restore from ${source} lies here; go on with that (nostos restore --dir <dir>), or give it up with --abandon`,
    { details: { sources: [source] } },
  );
}

/** Opened as a copy it starts no term while it is checked; what is put in place leads itself. */
async function verifyAsNode(
  deps: RestoreDeps,
  dir: string,
  options: Parameters<RestoreDeps['verify']>[1],
): ReturnType<RestoreDeps['verify']> {
  const verified = await deps.verify(dir, options);
  const { copy: _, ...identity } = loadNode(dir, undefined);
  writeNode(dir, identity);
  return verified;
}

/** Refused before anything is looked at: what would be renamed is not what was meant. */
function assertRestorable(dir: string): void {
  if (dir === parse(dir).root) throw refused(dir, 'it is the root of the file system');
  if (lstatSync(dir, { throwIfNoEntry: false })?.isSymbolicLink() === true)
    throw refused(dir, 'it is a symbolic link; give the directory itself');
}

function assertEmpty(dir: string): void {
  if (!systemDisk.isDirectory(dir)) return;
  const found = systemDisk.list(dir).filter(ownedByNode);
  if (found.length === 0) return;
  throw refused(dir, `it is not empty (${found.join(', ')}); set that aside with --mode wipe_and_restore`);
}

/** A restore would move its own backup away, or one made later would hold itself. */
function assertApart(dir: string, { url }: Repository): void {
  if (url.startsWith('s3:')) return;
  const [data, backup] = [realPathOf(dir), realPathOf(resolve(urlOf(url)))];
  const within = (inner: string, outer: string): boolean => inner === outer || inner.startsWith(outer + sep);
  if (within(backup, data)) throw refused(dir, `the backup repository ${url} lies in it`);
  if (within(data, backup)) throw refused(dir, `it lies in the backup repository ${url}`);
}

function refused(dir: string, why: string): NostosError {
  return new NostosError('BACKUP_REFUSED', `Nothing is restored into ${dir}: ${why}. Nothing was changed`, {
    details: { dir, parent: dirname(dir) },
  });
}
