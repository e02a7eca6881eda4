/**
 * Removes what nobody needs: snapshots that no policy keeps, objects that no kept snapshot names, records that lie before
 * what the oldest kept snapshot starts from. It has the repository to itself, and goes in this order: manifests, then
 * objects and records. So after a crash anywhere each manifest that is there has all that it names, and the next prune
 * goes on. What is younger than `backupGraceMs` stays, whoever it belongs to.
 *
 * A manifest that cannot be read stops everything: what it needs is not known.
 */
import type { Generation, Lsn } from '../../base/brands.ts';
import { NO_LSN } from '../../base/brands.ts';
import type { ChainPoint } from '../../log/chain.ts';
import type { ObjectEntry } from '../backend/backend.ts';
import type { ArchiveName } from './archive-format.ts';
import { parseArchiveKey } from './archive-format.ts';
import { acquireLock } from './locks.ts';
import type { RepositoryLock } from './locks.ts';
import type { Snapshot, SnapshotId } from './manifest.ts';
import { manifestKey } from './manifest.ts';
import { ObjectIdSet } from './object-id-set.ts';
import type { ObjectId } from './object-format.ts';
import type { KeepPolicy, KeepReason } from './policy.ts';
import { choose } from './policy.ts';
import type { Repository } from './repository.ts';
import { lockDeps, pinKey } from './repository.ts';
import { newSnapshotId } from './snapshot-id.ts';
import { archiveStart } from './timeline.ts';
import { Window } from './window.ts';

export interface PruneOptions {
  readonly keep: KeepPolicy;
  /** Only says what would go. */
  readonly dryRun?: boolean;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: { readonly objectsRemoved: number; readonly bytesRemoved: number }) => void;
}

export interface PruneReport {
  readonly kept: readonly { readonly id: SnapshotId; readonly reasons: readonly KeepReason[] }[];
  readonly removed: readonly SnapshotId[];
  /** Chunks and lists, and objects of the archived log. */
  readonly objectsRemoved: number;
  readonly archiveObjectsRemoved: number;
  readonly bytesRemoved: number;
  /** Needed by nobody, and too young to go. */
  readonly objectsInGrace: number;
}

export async function prune(repository: Repository, options: PruneOptions): Promise<PruneReport> {
  const { keep, dryRun = false, signal } = options;
  // A policy that is refused is refused before anybody has to wait.
  choose([], new Set(), keep);
  const { deps } = repository;
  const run = newSnapshotId(deps.clock, deps.random);
  const lock = await acquireLock(lockDeps(deps), { run, kind: 'prune', signal });
  try {
    const snapshots = await Array.fromAsync(repository.snapshots({ ...(signal && { signal }) }));
    const kept = choose(snapshots, await pinnedIn(repository), keep);
    const staying = snapshots.filter(({ id }) => kept.has(id));
    const going = snapshots.filter(({ id }) => !kept.has(id)).map(({ id }) => id);
    const needed = await objectsOf(repository, staying, signal);
    const removal = new Removal(repository, lock, { dryRun, ...(signal && { signal }) });
    for (const id of going) {
      await removal.remove(manifestKey(id));
      await removal.remove(pinKey(id));
    }
    await removal.done();
    const isOld = ({ modifiedMs }: ObjectEntry): boolean => lock.takenMs - modifiedMs > deps.limits.backupGraceMs;
    const counts = { objectsRemoved: 0, archiveObjectsRemoved: 0, bytesRemoved: 0, objectsInGrace: 0 };
    const consider = async (entry: ObjectEntry, what: 'objectsRemoved' | 'archiveObjectsRemoved'): Promise<void> => {
      if (!isOld(entry)) {
        counts.objectsInGrace += 1;
        return;
      }
      await removal.remove(entry.key);
      counts[what] += 1;
      counts.bytesRemoved += entry.bytes;
      options.onProgress?.(counts);
    };
    for await (const entry of deps.backend.list('objects/', { signal })) {
      const id = /^objects\/[0-9a-f]{2}\/([0-9a-f]{64})$/.exec(entry.key)?.[1];
      if (id !== undefined && !needed.has(id as ObjectId)) await consider(entry, 'objectsRemoved');
    }
    const isNeeded = archiveNeed(staying);
    for await (const entry of deps.backend.list('archive/', { signal })) {
      const name = parseArchiveKey(entry.key);
      if (name !== undefined && !isNeeded(name)) await consider(entry, 'archiveObjectsRemoved');
    }
    for await (const entry of deps.backend.list('probes/', { signal }))
      if (isOld(entry)) await removal.remove(entry.key);
    await removal.done();
    return { kept: staying.map(({ id }) => ({ id, reasons: kept.get(id)! })), removed: going, ...counts };
  } finally {
    await lock.release();
  }
}

/** Several removals at a time, each after a look at the lock. */
class Removal {
  readonly #repository: Repository;
  readonly #lock: RepositoryLock;
  readonly #options: { readonly dryRun: boolean; readonly signal?: AbortSignal };
  #window: Window;

  constructor(
    repository: Repository,
    lock: RepositoryLock,
    options: { readonly dryRun: boolean; readonly signal?: AbortSignal },
  ) {
    this.#repository = repository;
    this.#lock = lock;
    this.#options = options;
    this.#window = new Window(repository.deps.limits.backupConcurrency);
  }

  async remove(key: string): Promise<void> {
    const { dryRun, signal } = this.#options;
    if (dryRun) return;
    signal?.throwIfAborted();
    await this.#window.run(async () => {
      this.#lock.check();
      await this.#repository.deps.backend.delete(key, { signal: this.#lock.signal });
    });
  }

  async done(): Promise<void> {
    await this.#window.settled();
  }
}

async function pinnedIn({ deps }: Repository): Promise<Set<SnapshotId>> {
  const pinned = new Set<SnapshotId>();
  for await (const { key } of deps.backend.list('pins/')) pinned.add(key.slice('pins/'.length) as SnapshotId);
  return pinned;
}

async function objectsOf(
  repository: Repository,
  snapshots: readonly Snapshot[],
  signal: AbortSignal | undefined,
): Promise<ObjectIdSet> {
  const needed = new ObjectIdSet();
  for (const { items } of snapshots)
    for (const item of items) {
      // The chunks of a list are those of the same list in another snapshot.
      if (needed.has(item.root)) continue;
      for (const id of await repository.content.chunksOf(item, { signal })) needed.add(id);
      needed.add(item.root);
    }
  return needed;
}

/**
 * What lies behind the start of the oldest kept snapshot of its generation; all of a generation that begins behind what
 * another kept one needs; nothing of one that is only an ancestor. Of a generation that nobody knows, everything.
 */
export function archiveNeed(snapshots: readonly Snapshot[]): (name: ArchiveName) => boolean {
  const starts = new Map<Generation, Lsn>();
  const forks = new Map<Generation, ChainPoint>();
  for (const snapshot of snapshots) {
    const { generation, lsn } = archiveStart(snapshot);
    starts.set(generation, Math.min(lsn, starts.get(generation) ?? Infinity) as Lsn);
    for (const entry of snapshot.terms)
      if (entry.previous.generation !== entry.generation) forks.set(entry.generation, entry.previous);
  }
  // Parents stand before their children in a term table, so each round settles at least one more of a line.
  for (let rounds = forks.size; rounds > 0; rounds--)
    for (const [generation, fork] of forks)
      if ((starts.get(fork.generation) ?? Infinity) <= fork.lsn) starts.set(generation, NO_LSN);
  const ancestors = new Set([...forks.values()].map(({ generation }) => generation));
  return ({ generation, to }) => {
    const start = starts.get(generation);
    return start === undefined ? !ancestors.has(generation) : to > start;
  };
}
