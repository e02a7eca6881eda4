/**
 * Restores a data directory, step by step as ../SPEC.md says. Each step leaves a state from which the next call goes on:
 * kill -9 and power cuts included. Until the marker says `swapping`, what was there before is untouched.
 */
import { dirname, join } from 'node:path';
import { toNodeId, toStoreId, type NodeId, type StoreId } from '../../base/brands.ts';
import type { Clock } from '../../base/clock.ts';
import type { Disk } from '../../base/disk.ts';
import { NostosError, isNostosError } from '../../base/errors.ts';
import { randomHex128, type Random } from '../../base/random.ts';
import type { FetchProgress, FetchReport, RestoreFeed } from '../feed.ts';
import { decide } from './decision.ts';
import type { DirectoryIdentity, IdentityCodec } from './identity.ts';
import { MARKER_FILE, readMarker, writeMarker, type Marker } from './marker.ts';
import { assertReplaceable, assertSpace, historyOf, lookAhead, ownIdentity } from './outlook.ts';
import { STAGING_DIR, stagingTarget, tidyStaging, writeStagedIdentity } from './staging.ts';
import { nextSwapStep, planSwap, type Swap } from './swap.ts';
import { removeTree, syncTree } from './tree.ts';

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
  readonly fetched?: Omit<FetchReport, 'items'> & { readonly files: number; readonly bytes: number };
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
  finishSwap(deps, dir, swapping);
  return {
    dir,
    identity: swapping.identity,
    sources: swapping.sources,
    resumed: marker?.phase ?? 'nothing',
    ...(staged === undefined ? {} : { fetched: staged.fetched, verified: staged.verified }),
    setAside: swapping.swap.discard || !swapping.swap.entries.some(({ old }) => old) ? null : swapping.swap.setAside,
    elapsedMs: Math.round(deps.clock.monotonicMs() - startedMs),
  };
}

export interface AbandonReport {
  readonly dir: string;
  readonly run: string;
  readonly sources: readonly string[];
}

/** Gives up a restore that has not begun to swap: what was there before is there, and opens again. */
export async function abandonRestore(
  deps: Pick<RestoreDeps, 'disk' | 'lock'>,
  { dir, signal }: { readonly dir: string; readonly signal?: AbortSignal },
): Promise<AbandonReport> {
  const { disk } = deps;
  if (!disk.isDirectory(dir)) decide(undefined, { kind: 'abandon' });
  using _lock = await deps.lock(dir, signal);
  const marker = readMarker(disk, dir);
  decide(marker, { kind: 'abandon' });
  removeStaging(disk, dir);
  removeMarker(disk, dir);
  return { dir, run: marker!.run, sources: marker!.sources };
}

interface Staged {
  readonly marker: Marker & { readonly phase: 'swapping' };
  readonly fetched: NonNullable<RestoreReport['fetched']>;
  readonly verified: VerifiedCopy;
}

/** Up to the point of no return: everything is fetched, verified and durable, and the marker says so. */
async function stage(deps: RestoreDeps, options: RestoreOptions, found: Marker | undefined): Promise<Staged> {
  const { disk } = deps;
  const { dir, signal } = options;
  const feed = await options.openFeed(found, signal);
  try {
    const marker = begin(deps, options, found, feed);
    const { items, ...figures } = await feed.fetchAll(stagingTarget(disk, dir), {
      ...(signal === undefined ? {} : { signal }),
      onProgress: (progress) => options.onProgress?.(asProgress(progress, feed.plan.tailBytes ?? 0)),
    });
    tidyStaging(
      disk,
      dir,
      items.map(({ name }) => name),
    );
    writeStagedIdentity(disk, dir, deps.identity.formatCopy(marker.identity, sourceStore(feed)));
    const bytes = items.reduce((sum, item) => sum + item.bytes, 0);
    const verified = await verifyStaged(deps, options);
    signal?.throwIfAborted();
    return { marker: swapFrom(disk, options, marker), fetched: { ...figures, files: items.length, bytes }, verified };
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

function swapFrom(disk: Disk, { dir, discard = false }: RestoreOptions, marker: Marker): Staged['marker'] {
  const swap = planSwap({ here: disk.list(dir), staged: disk.list(join(dir, STAGING_DIR)) }, discard);
  const { run, startedAt, sources, history, identity } = marker;
  const swapping = { run, startedAt, sources, history, identity, phase: 'swapping', swap } as const;
  writeMarker(disk, dir, swapping);
  return swapping;
}

/** From `swapping` or `disposing` to the end. Nothing cancels it: there is no way back, and it is short. */
function finishSwap({ disk }: RestoreDeps, dir: string, marker: Marker & { readonly swap: Swap }): void {
  const { swap } = marker;
  if (marker.phase === 'swapping') {
    carryOut(disk, dir, swap);
    writeMarker(disk, dir, { ...marker, phase: 'disposing' });
  }
  removeStaging(disk, dir);
  if (swap.discard) {
    removeTree(disk, join(dir, swap.setAside));
    disk.syncDirectory(dir);
  }
  removeMarker(disk, dir);
}

function carryOut(disk: Disk, dir: string, swap: Swap): void {
  const [staging, aside] = [join(dir, STAGING_DIR), join(dir, swap.setAside)];
  const names = (path: string): Set<string> => new Set(disk.isDirectory(path) ? disk.list(path) : []);
  if (swap.entries.some(({ old }) => old)) disk.makeDirectory(aside);
  for (;;) {
    // Renames that are seen here, made now or by an attempt that died, are durable before the next one depends on them.
    for (const path of [aside, staging, dir]) if (disk.isDirectory(path)) disk.syncDirectory(path);
    const step = nextSwapStep(swap, { here: names(dir), staged: names(staging), aside: names(aside) });
    if (step.kind === 'done') return;
    for (const name of step.names)
      if (step.kind === 'set-aside') disk.rename(join(dir, name), join(aside, name));
      else disk.rename(join(staging, name), join(dir, name));
  }
}

function sourceStore({ plan: { store } }: RestoreFeed): StoreId | null {
  return store === null ? null : toStoreId(store);
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
