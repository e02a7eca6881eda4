/**
 * Restores a data directory, step by step as ../SPEC.md says. Each step leaves a state from which the next call goes on:
 * kill -9 and power cuts included. Until the marker says `swapping`, what was there before is untouched.
 */
import { dirname, join } from 'node:path';
import { toLsn, toNodeId, toStoreId, toTerm, type NodeId } from '../../base/brands.ts';
import type { Clock } from '../../base/clock.ts';
import type { Disk } from '../../base/disk.ts';
import { NostosError, isNostosError } from '../../base/errors.ts';
import { randomHex128, type Random } from '../../base/random.ts';
import type { FetchProgress, FetchReport, RestoreFeed } from '../feed.ts';
import { decide } from './decision.ts';
import type { DirectoryIdentity, IdentityCodec, StagedOrigin } from './identity.ts';
import { MARKER_FILE, readMarker, writeMarker, type Marker } from './marker.ts';
import { assertMovable, assertReplaceable, assertSpace, historyOf, lookAhead, ownIdentity } from './outlook.ts';
import { STAGING_DIR, stagingTarget, tidyStaging, writeStagedIdentity } from './staging.ts';
import { nextSwapStep, planSwap, planWayBack, type Swap, type SwapSeen } from './swap.ts';
import { removeTree, syncTree } from '../../base/directory-tree.ts';

/** What opening and checking the staged directory found. */
export interface VerifiedCopy {
  readonly tenants: number;
  readonly rows: number;
  readonly records: number;
  /** The last record of its log. */
  readonly lsn: number;
}

export interface LocalProgress {
  readonly phase: string;
  readonly done: number;
  readonly total?: number;
  readonly unit: 'bytes' | 'rows' | 'records' | 'tenants' | 'steps';
  /** While fetching: what came over the wire for it. */
  readonly bytesOnWire?: number;
}

export interface StepOptions {
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: LocalProgress) => void;
}

export interface RestoreDeps {
  readonly disk: Disk;
  readonly clock: Clock;
  readonly random: Random;
  readonly identity: IdentityCodec;
  /** Keeps others out of the directory, or throws `DIRECTORY_LOCKED`. */
  readonly lock: (dir: string, signal?: AbortSignal) => Promise<Disposable>;
  /** Opens a staged directory as a copy, brings its tenants up to its log, checks everything, closes it; or throws. */
  readonly verify: (dir: string, options: StepOptions) => Promise<VerifiedCopy>;
}

export interface RestoreOptions extends StepOptions {
  readonly dir: string;
  /** Called where a source is needed: with the marker of the attempt that is resumed. */
  readonly openFeed: (marker: Marker | undefined, signal?: AbortSignal) => Promise<RestoreFeed>;
  /** Who the directory is where it does not know: the node that its certificate names. Otherwise an id is minted. */
  readonly node?: NodeId | undefined;
  /** Set aside the state of another cluster or generation. */
  readonly replace?: boolean;
  /** Remove what was set aside, once the new state is in place. */
  readonly discard?: boolean;
  /** Bytes of the disk that a restore leaves free. */
  readonly reserveBytes: number;
}

export interface RestoreReport {
  readonly dir: string;
  readonly identity: DirectoryIdentity;
  readonly sources: readonly string[];
  /** What an earlier attempt had reached when this one began. */
  readonly resumed: 'nothing' | Marker['phase'];
  /** Absent where an earlier attempt had fetched and verified all. */
  readonly fetched?: Omit<FetchReport, 'items' | 'watermark'> & { readonly files: number; readonly bytes: number };
  readonly verified?: VerifiedCopy;
  /** Where the former state lies, relative to the directory; null where there was none, or it was discarded. */
  readonly setAside: string | null;
  readonly elapsedMs: number;
}

export async function restoreDirectory(deps: RestoreDeps, options: RestoreOptions): Promise<RestoreReport> {
  const startedMs = deps.clock.monotonicMs();
  const { disk } = deps;
  const { dir } = options;
  makeRoot(disk, dir);
  using _lock = await deps.lock(dir, options.signal);
  const marker = readMarker(disk, dir);
  // The attempt before may have died between writing it and making that durable.
  if (marker !== undefined) disk.syncDirectory(dir);
  const before = decide(marker, { kind: 'go-on' });
  const staged = before === 'finish' ? undefined : await stage(deps, options, marker);
  const swapping = staged?.marker ?? (marker as Marker & { swap: Swap });
  const discard = options.discard === true;
  finishSwap(deps, { dir, discard }, swapping);
  return {
    dir,
    identity: swapping.identity,
    sources: swapping.sources,
    resumed: marker?.phase ?? 'nothing',
    ...(staged === undefined ? {} : { fetched: staged.fetched, verified: staged.verified }),
    setAside: discard || !swapping.swap.entries.some(({ old }) => old) ? null : swapping.swap.setAside,
    elapsedMs: Math.round(deps.clock.monotonicMs() - startedMs),
  };
}

export interface AbandonReport {
  readonly dir: string;
  readonly run: string;
  readonly sources: readonly string[];
}

/** Gives up a restore of which nothing new is in place yet: what was there before is there, and opens again. */
export async function abandonRestore(
  deps: Pick<RestoreDeps, 'disk' | 'lock'>,
  { dir, signal }: { readonly dir: string; readonly signal?: AbortSignal },
): Promise<AbandonReport> {
  const { disk } = deps;
  if (!disk.isDirectory(dir)) decide(undefined, { kind: 'abandon' });
  using _lock = await deps.lock(dir, signal);
  const marker = readMarker(disk, dir);
  if (marker !== undefined) disk.syncDirectory(dir);
  if (decide(marker, { kind: 'abandon' }) === 'go-back') goBack(disk, dir, marker as Marker & { phase: 'swapping' });
  removeStaging(disk, dir);
  removeMarker(disk, dir);
  return { dir, run: marker!.run, sources: marker!.sources };
}

interface Fetched {
  readonly marker: Marker;
  readonly fetched: NonNullable<RestoreReport['fetched']>;
}

interface Staged extends Fetched {
  readonly marker: Marker & { readonly phase: 'swapping' };
  readonly verified: VerifiedCopy;
}

/** Up to the point of no return: everything is fetched, verified and durable, and the marker says so. */
async function stage(deps: RestoreDeps, options: RestoreOptions, found: Marker | undefined): Promise<Staged> {
  const { marker, fetched } = await fetch(deps, options, found);
  // The source holds nothing for this copy any more, however long verifying takes.
  const verified = await verifyStaged(deps, options);
  options.signal?.throwIfAborted();
  return { marker: swapFrom(deps.disk, options, marker), fetched, verified };
}

async function fetch(deps: RestoreDeps, options: RestoreOptions, found: Marker | undefined): Promise<Fetched> {
  const { disk } = deps;
  const { dir, signal } = options;
  const feed = await options.openFeed(found, signal);
  try {
    const marker = begin(deps, options, found, feed);
    const {
      items,
      watermark = 0,
      ...figures
    } = await feed.fetchAll(stagingTarget(disk, dir), {
      ...(signal === undefined ? {} : { signal }),
      onProgress: (progress) => options.onProgress?.(asProgress(progress, feed.plan.tailBytes ?? 0)),
    });
    tidyStaging(
      disk,
      dir,
      items.map(({ name }) => name),
    );
    // Of the provider that brought the last of it.
    const { store, term } = feed.plan;
    const origin = { source: store === null ? null : toStoreId(store), reaches: reachesOf(term, watermark) };
    writeStagedIdentity(disk, dir, deps.identity.formatCopy(marker.identity, origin));
    const bytes = items.reduce((sum, item) => sum + item.bytes, 0);
    return { marker, fetched: { ...figures, files: items.length, bytes } };
  } finally {
    await feed.close();
  }
}

/** All refusals come before the first change. */
function begin(deps: RestoreDeps, options: RestoreOptions, found: Marker | undefined, feed: RestoreFeed): Marker {
  const { disk, random } = deps;
  const { dir, replace = false, reserveBytes } = options;
  const { plan, sources } = feed;
  const history = historyOf(plan);
  decide(found, { kind: 'source', history });
  const own = ownIdentity(disk, dir, deps.identity);
  assertReplaceable(own, { dir, plan, replace });
  if (found === undefined && disk.exists(join(dir, STAGING_DIR)))
    throw new NostosError(
      'FILE_EXISTS',
      `${join(dir, STAGING_DIR)} is there, and no restore that it belongs to; move it away. Nothing was changed`,
    );
  assertMovable(disk, dir);
  assertSpace(dir, lookAhead(disk, { dir, plan, reserveBytes }));
  const marker: Marker = {
    run: found?.run ?? randomHex128(random),
    startedAt: found?.startedAt ?? new Date(deps.clock.nowMs()).toISOString(),
    sources,
    history,
    identity: found?.identity ?? {
      // A node id means nothing in another cluster.
      node: own?.cluster === history.cluster ? own.node : (options.node ?? toNodeId(randomHex128(random))),
      store: toStoreId(randomHex128(random)),
      ...history,
    },
    phase: 'fetching',
  };
  writeMarker(disk, dir, marker);
  disk.makeDirectory(join(dir, STAGING_DIR));
  disk.syncDirectory(dir);
  return marker;
}

async function verifyStaged(deps: RestoreDeps, options: RestoreOptions): Promise<VerifiedCopy> {
  const staging = join(options.dir, STAGING_DIR);
  const { signal, onProgress } = options;
  const verified = await deps.verify(staging, {
    ...(signal === undefined ? {} : { signal }),
    ...(onProgress === undefined ? {} : { onProgress }),
  });
  // Opening it has written, too.
  syncTree(deps.disk, staging);
  return verified;
}

function swapFrom(disk: Disk, { dir }: RestoreOptions, marker: Marker): Staged['marker'] {
  assertMovable(disk, dir); // much time has passed
  const swap = planSwap({ here: disk.list(dir), staged: disk.list(join(dir, STAGING_DIR)) });
  const { run, startedAt, sources, history, identity } = marker;
  const swapping = { run, startedAt, sources, history, identity, phase: 'swapping', swap } as const;
  writeMarker(disk, dir, swapping);
  return swapping;
}

/**
 * From `swapping` or `disposing` to the end. Nothing cancels it: there is no way back, and it is short. What the caller of
 * this run says about the former state counts, not what one said who was cut off.
 */
function finishSwap(
  { disk }: RestoreDeps,
  { dir, discard }: { readonly dir: string; readonly discard: boolean },
  marker: Marker & { readonly swap: Swap },
): void {
  const { swap } = marker;
  if (marker.phase === 'swapping') {
    carryOut(disk, dir, swap);
    writeMarker(disk, dir, { ...marker, phase: 'disposing' });
  }
  removeStaging(disk, dir);
  if (discard) {
    removeTree(disk, join(dir, swap.setAside));
    disk.syncDirectory(dir);
  }
  removeMarker(disk, dir);
}

function carryOut(disk: Disk, dir: string, swap: Swap): void {
  const [staging, aside] = [join(dir, STAGING_DIR), join(dir, swap.setAside)];
  if (swap.entries.some(({ old }) => old)) disk.makeDirectory(aside);
  for (;;) {
    const step = nextSwapStep(swap, lookDurably(disk, dir, swap));
    if (step.kind === 'done') return;
    for (const name of step.names)
      if (step.kind === 'set-aside') setAside(disk, join(dir, name), join(aside, name));
      else disk.rename(join(staging, name), join(dir, name));
  }
}

function setAside(disk: Disk, from: string, to: string): void {
  try {
    disk.rename(from, to);
  } catch (error) {
    if (!isNostosError(error)) throw error;
    throw new NostosError(
      error.code,
      `${error.message}. Nothing new is in place yet: mend that and run nostos restore once more, or return to what was there with --abandon`,
      { cause: error, details: error.details },
    );
  }
}

/** Where the entries are. Renames that are seen, made now or by an attempt that died, are durable when this returns. */
function lookDurably(disk: Disk, dir: string, swap: Swap): SwapSeen {
  const look = (path: string): Set<string> => {
    if (!disk.isDirectory(path)) return new Set();
    disk.syncDirectory(path);
    return new Set(disk.list(path));
  };
  return { aside: look(join(dir, swap.setAside)), staged: look(join(dir, STAGING_DIR)), here: look(dir) };
}

/** From `swapping` to `fetching`: what was set aside is back. Where that is cut off it can still be finished either way. */
function goBack(disk: Disk, dir: string, { swap, ...marker }: Marker & { phase: 'swapping' }): void {
  const aside = join(dir, swap.setAside);
  for (;;) {
    const names = planWayBack(swap, lookDurably(disk, dir, swap));
    if (names.length === 0) break;
    for (const name of names) disk.rename(join(aside, name), join(dir, name));
  }
  if (disk.isDirectory(aside) && disk.list(aside).length === 0) disk.removeDirectory(aside);
  // Before anything of `restore/` goes, or what the swap relies on would be gone.
  writeMarker(disk, dir, { ...marker, phase: 'fetching' });
}

/** Null where the source does not say, like the reference's service. */
function reachesOf(term: number, watermark: number): StagedOrigin['reaches'] {
  return watermark === 0 ? null : { term: toTerm(term), lsn: toLsn(watermark) };
}

function removeStaging(disk: Disk, dir: string): void {
  removeTree(disk, join(dir, STAGING_DIR));
  disk.syncDirectory(dir);
}

function removeMarker(disk: Disk, dir: string): void {
  const path = join(dir, MARKER_FILE);
  for (const one of [`${path}.tmp`, path]) if (disk.exists(one)) disk.remove(one);
  disk.syncDirectory(dir);
}

/**
 * Makes the directory where there is none. Its name, and those above it, are durable before anything in it counts, even
 * where an attempt that died made them. A directory above that may not be read was not made by us.
 */
function makeRoot(disk: Disk, dir: string): void {
  disk.makeDirectory(dir);
  for (let above = dirname(dir); ; above = dirname(above)) {
    try {
      disk.syncDirectory(above);
    } catch (error) {
      if (isNostosError(error) && ['EACCES', 'EPERM', 'EROFS', 'EINVAL'].includes(String(error.details['errno'])))
        return;
      throw error;
    }
    if (dirname(above) === above) return;
  }
}

/** What comes last is counted from the beginning, or the end would seem to move away. */
function asProgress({ phase, bytesDone, bytesTotal, bytesOnWire }: FetchProgress, tailBytes: number): LocalProgress {
  const total = bytesTotal + (phase === 'tail' ? 0 : tailBytes);
  return { phase, done: bytesDone, total, unit: 'bytes', bytesOnWire };
}
