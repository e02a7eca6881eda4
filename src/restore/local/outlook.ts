/** What a restore would do with a directory: the checks before the first change, and `--dry-run`. Changes nothing. */
import { dirname, join } from 'node:path';
import type { Disk } from '../../base/disk.ts';
import { readIfExists } from '../../base/durable-file.ts';
import { NostosError, isNostosError } from '../../base/errors.ts';
import type { RestorePlan } from '../source.ts';
import type { DirectoryIdentity, IdentityCodec, SourceHistory } from './identity.ts';
import { sameHistory } from './identity.ts';
import { STAGING_DIR, baseOf } from './staging.ts';
import { ownedByNode, planSwap } from './swap.ts';

export interface Amount {
  readonly files: number;
  readonly bytes: number;
}

export interface RestoreOutlook {
  readonly total: Amount;
  /** Fetched by an earlier attempt; of these only pages that changed since are fetched again. */
  readonly staged: Amount;
  /** The directory has files of the same name: of these only pages that differ are fetched. */
  readonly reusable: Amount;
  /** Nothing is there of it. */
  readonly missing: Amount;
  /** What the directory has now and where it goes; no names where there is nothing. */
  readonly setAside: { readonly as: string; readonly names: readonly string[] };
  /** Bytes that the staged copy needs in addition to what is staged, and what is kept free beyond. */
  readonly space: {
    readonly neededBytes: number;
    readonly reserveBytes: number;
    readonly freeBytes: number;
    readonly enough: boolean;
  };
}

export function lookAhead(
  disk: Disk,
  { dir, plan, reserveBytes }: { readonly dir: string; readonly plan: RestorePlan; readonly reserveBytes: number },
): RestoreOutlook {
  const sums = { total: amount(), staged: amount(), reusable: amount(), missing: amount() };
  for (const { name, bytes } of plan.items) {
    const base = baseOf(disk, dir, name);
    const from = base === undefined ? 'missing' : base.from === 'staging' ? 'staged' : 'reusable';
    const there = Math.min(bytes, base?.bytes ?? 0);
    sums.total.files += 1;
    sums[from].files += 1;
    sums[from].bytes += there;
    sums.missing.bytes += bytes - there;
    sums.total.bytes += bytes;
  }
  addLog(disk, dir, plan.tailBytes ?? 0, sums);
  const here = disk.exists(dir) ? disk.list(dir) : [];
  const neededBytes = sums.total.bytes - sums.staged.bytes;
  const freeBytes = disk.freeBytes(nearestDirectory(disk, dir));
  return {
    ...sums,
    setAside: { as: planSwap({ here, staged: [] }).setAside, names: here.filter(ownedByNode) },
    space: { neededBytes, reserveBytes, freeBytes, enough: freeBytes >= neededBytes + reserveBytes },
  };
}

interface Sum {
  files: number;
  bytes: number;
}

const amount = (): Sum => ({ files: 0, bytes: 0 });

/** Which segments will be sent is known only when all else is; how many bytes they are about is known before. */
function addLog(
  disk: Disk,
  dir: string,
  logBytes: number,
  sums: Readonly<Record<'total' | 'staged' | 'reusable' | 'missing', Sum>>,
): void {
  const staged = Math.min(logBytes, bytesIn(disk, join(dir, STAGING_DIR, 'log')));
  const reusable = Math.min(logBytes - staged, bytesIn(disk, join(dir, 'log')));
  sums.total.bytes += logBytes;
  sums.staged.bytes += staged;
  sums.reusable.bytes += reusable;
  sums.missing.bytes += logBytes - staged - reusable;
}

function bytesIn(disk: Disk, dir: string): number {
  if (!disk.isDirectory(dir)) return 0;
  const files = disk.list(dir).filter((name) => !disk.isDirectory(join(dir, name)));
  return files.reduce((sum, name) => sum + disk.size(join(dir, name)), 0);
}

function nearestDirectory(disk: Disk, dir: string): string {
  for (let at = dir; ; at = dirname(at)) if (disk.isDirectory(at) || dirname(at) === at) return at;
}

export function assertSpace(dir: string, { space }: RestoreOutlook): void {
  if (space.enough) return;
  const { neededBytes, reserveBytes, freeBytes } = space;
  throw new NostosError(
    'DISK_FULL',
    `the copy needs ${mib(neededBytes)} in ${dir} and ${mib(reserveBytes)} are kept free beyond, but only ${mib(freeBytes)} are free; ` +
      'make room, for example by removing set-aside.<n> of earlier restores. Nothing was changed',
    { details: { dir, neededBytes, reserveBytes, freeBytes } },
  );
}

const mib = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(1)} MiB`;

/** What is mounted cannot be renamed, and that would show only in the middle of the swap. */
export function assertMovable(disk: Disk, dir: string): void {
  const mounted = disk.mountsIn(dir).filter((name) => ownedByNode(name) || name === STAGING_DIR);
  if (mounted.length === 0) return;
  throw new NostosError(
    'INVALID_ARGUMENT',
    `${mounted.join(', ')} in ${dir} is a mount point, or has one below: a restore renames it, which no system allows. ` +
      'Mount the file system at the data directory itself or above it, or restore into another directory. Nothing of what was there was changed',
    { details: { dir, mounted } },
  );
}

/** Who the directory was; undefined where there is no identity, or none that can be read. */
export function ownIdentity(disk: Disk, dir: string, codec: IdentityCodec): DirectoryIdentity | undefined {
  const bytes = readIfExists(disk, join(dir, 'node.json'));
  if (bytes === undefined) return undefined;
  try {
    return codec.parse(bytes);
  } catch (error) {
    if (!isNostosError(error)) throw error;
    // A damaged directory is what restores are for: it is set aside, and its node id is lost.
    return undefined;
  }
}

/** The history that a plan offers; a directory of plain files has none. */
export function historyOf(plan: RestorePlan): SourceHistory {
  const { kind, cluster, generation } = plan;
  if (kind !== 'node' || cluster === null || generation === null)
    throw new NostosError(
      'INVALID_ARGUMENT',
      'this source serves plain files, not a node: no data directory can be made from it',
      { details: { kind, cluster, generation } },
    );
  return { cluster, generation } as SourceHistory;
}

/** Refuses a source whose state must not replace that of this directory. */
export function assertReplaceable(
  own: DirectoryIdentity | undefined,
  { dir, plan, replace }: { readonly dir: string; readonly plan: RestorePlan; readonly replace: boolean },
): void {
  if (own === undefined) return;
  const offered = historyOf(plan);
  if (plan.store !== null && plan.store === own.store)
    throw new NostosError('INVALID_ARGUMENT', `${dir} is the directory of that very node; restore from another one`, {
      details: { dir, store: own.store },
    });
  if (replace || sameHistory(own, offered)) return;
  const what = own.cluster === offered.cluster ? 'generation' : 'cluster';
  throw new NostosError(
    'DIRECTORY_FOREIGN',
    `${dir} belongs to ${what} ${own[what]}, and the source serves ${what} ${offered[what]}; ` +
      'say --replace to set the directory aside whole and take the state of the source, or give another directory',
    { details: { dir, found: { cluster: own.cluster, generation: own.generation }, offered } },
  );
}
