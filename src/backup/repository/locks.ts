/**
 * Who works on a repository: creators of snapshots and readers share it, prune has it alone. A run writes `locks/<run>.json` and then
 * lists the locks; of two that exclude each other at least one sees the other, and gives way. A run shows that it is alive
 * by writing its lock again; one that did not for `backupStaleMs` is given up. Both ages are by the clock of the storage.
 *
 * A creator that was given up may wake and go on. So whoever gives it up first puts a tombstone where its manifest would
 * go: either the manifest was there before, then the snapshot counts, or its conditional write fails and it never does.
 * No clock is trusted with that. A prune that was given up is trusted to look at the time before each removal, and not
 * to be stopped for `backupStaleMs` between that look and the removal (SPEC.md, A3).
 */
import type { Clock } from '../../base/clock.ts';
import { NostosError } from '../../base/errors.ts';
import type { Limits } from '../../base/limits.ts';
import type { Random } from '../../base/random.ts';
import type { ObjectBackend, ObjectEntry } from '../backend/backend.ts';
import type { Timers } from './heartbeat.ts';
import type { SnapshotId } from './manifest.ts';
import { manifestKey } from './manifest.ts';

export type RunKind = 'create' | 'read' | 'prune';

/** A run of a creator has the id of its snapshot. */
export type RunId = SnapshotId;

export interface LockDeps {
  readonly backend: ObjectBackend;
  readonly clock: Clock;
  readonly timers: Timers;
  readonly random: Random;
  readonly limits: Pick<Limits, 'backupHeartbeatMs' | 'backupStaleMs' | 'backupLockWaitMs'>;
  /** Who this is, for people. */
  readonly holder: string;
  readonly onWarning: (message: string) => void;
}

export interface RepositoryLock {
  readonly run: RunId;
  /** When it was taken, by the clock of the storage. */
  readonly takenMs: number;
  /** Aborted, with `BACKUP_LOCK_LOST`, once others may have given this run up. */
  readonly signal: AbortSignal;
  /** Throws when others may have given this run up; synchronous, for the moment right before a removal. */
  check(): void;
  /** Looks whether the lock is still there. */
  confirm(): Promise<void>;
  release(): Promise<void>;
}

const PREFIX = 'locks/';
const WAIT_MS = 200;
const WAIT_MAX_MS = 5_000;

export async function acquireLock(
  deps: LockDeps,
  { run, kind, signal }: { readonly run: RunId; readonly kind: RunKind; readonly signal?: AbortSignal | undefined },
): Promise<RepositoryLock> {
  const { backend, clock, timers, random, limits } = deps;
  const key = lockKey(run);
  const deadlineMs = clock.monotonicMs() + limits.backupLockWaitMs;
  for (let waitMs = WAIT_MS; ; waitMs = Math.min(waitMs * 2, WAIT_MAX_MS)) {
    const lock = new HeldLock(deps, run, lockBytes(run, kind, deps));
    await lock.write(signal);
    let found: Found;
    try {
      found = await findBlocker(deps, { key, kind, signal });
    } catch (error) {
      await backend.delete(key).catch(() => undefined);
      throw error;
    }
    const { blocker, ownMs } = found;
    if (blocker === undefined) return lock.hold(ownMs);
    await backend.delete(key);
    if (clock.monotonicMs() + waitMs > deadlineMs)
      throw new NostosError(
        'BACKUP_LOCKED',
        `${blocker.text} works on the backup repository ${backend.url}; wait for it. If it was killed, it is given up ${limits.backupStaleMs / 60_000} minutes after its last sign of life`,
        { details: { lock: blocker.key } },
      );
    await timers.pause(waitMs * (0.5 + random.bytes(1)[0]! / 256), signal);
  }
}

class HeldLock implements RepositoryLock {
  readonly run: RunId;
  takenMs = 0;
  readonly #deps: LockDeps;
  readonly #bytes: Uint8Array;
  readonly #lost = new AbortController();
  #shown = { monotonicMs: 0, wallMs: 0 };
  #beats: { stop(): Promise<void> } | undefined;

  constructor(deps: LockDeps, run: RunId, bytes: Uint8Array) {
    this.#deps = deps;
    this.run = run;
    this.#bytes = bytes;
  }

  get signal(): AbortSignal {
    return this.#lost.signal;
  }

  async write(signal?: AbortSignal): Promise<void> {
    const { backend, clock } = this.#deps;
    // What counts is when the request began: the storage cannot have dated it earlier.
    const shown = { monotonicMs: clock.monotonicMs(), wallMs: clock.nowMs() };
    await backend.put(lockKey(this.run), this.#bytes, { signal });
    this.#shown = shown;
  }

  hold(takenMs: number): this {
    this.takenMs = takenMs;
    const { timers, limits } = this.#deps;
    this.#beats = timers.repeat(limits.backupHeartbeatMs, () => this.#beat());
    return this;
  }

  check(): void {
    const { clock, limits } = this.#deps;
    // The monotonic clock stands still while the machine sleeps, the wall clock may be set; the longer span counts.
    const { monotonicMs, wallMs } = this.#shown;
    const silentMs = Math.max(clock.monotonicMs() - monotonicMs, clock.nowMs() - wallMs);
    // Half of it, so that a removal that begins now is over before anybody gives us up.
    if (silentMs > limits.backupStaleMs / 2) this.#lose();
    this.signal.throwIfAborted();
  }

  async confirm(): Promise<void> {
    this.check();
    const { backend } = this.#deps;
    if ((await backend.head(lockKey(this.run))) === undefined) this.#lose();
    this.check();
  }

  async release(): Promise<void> {
    await this.#beats?.stop();
    this.#beats = undefined;
    await this.#deps.backend.delete(lockKey(this.run));
  }

  /** A lock that somebody removed is not written again. */
  async #beat(): Promise<void> {
    try {
      await this.confirm();
      await this.write();
    } catch {
      // An outage ends, or `check` finds that it took too long.
    }
  }

  #lose(): void {
    if (this.signal.aborted) return;
    const message = `The run ${this.run} on the backup repository ${this.#deps.backend.url} showed no life for too long and may have been given up; run it again`;
    this.#lost.abort(new NostosError('BACKUP_LOCK_LOST', message, { details: { run: this.run } }));
  }
}

interface Blocker {
  readonly key: string;
  readonly text: string;
}

interface Found {
  readonly blocker: Blocker | undefined;
  /** Of our lock, by the clock of the storage. */
  readonly ownMs: number;
}

interface LockFile {
  readonly run: RunId;
  readonly kind: RunKind;
  readonly holder: string;
}

const RUNS = { create: 'The creation of a snapshot', read: 'A restore', prune: 'A prune' } as const satisfies Record<
  RunKind,
  string
>;

/** Another run that excludes this one and is alive; those that are not are given up on the way. */
async function findBlocker(
  deps: LockDeps,
  own: { readonly key: string; readonly kind: RunKind; readonly signal: AbortSignal | undefined },
): Promise<Found> {
  const { backend, limits, onWarning } = deps;
  const entries: ObjectEntry[] = [];
  for await (const entry of backend.list(PREFIX, { signal: own.signal })) entries.push(entry);
  const ownMs = entries.find(({ key }) => key === own.key)?.modifiedMs;
  if (ownMs === undefined)
    throw new NostosError('BACKUP_LOCK_LOST', `The lock ${own.key} was removed while it was written; run it again`);
  for (const { key, modifiedMs } of entries) {
    if (key === own.key) continue;
    const bytes = await backend.get(key, { signal: own.signal });
    if (bytes === undefined) continue;
    const other = readLock(key, bytes);
    if (other === undefined) onWarning(`${key} of ${backend.url} is no lock that this Nostos reads; it is left alone`);
    if (other === undefined || (other.kind !== 'prune' && own.kind !== 'prune')) continue;
    const text = `${RUNS[other.kind]} by ${other.holder}`;
    if (ownMs - modifiedMs <= limits.backupStaleMs) return { blocker: { key, text }, ownMs };
    onWarning(`${text} showed no life for ${Math.round((ownMs - modifiedMs) / 60_000)} minutes; it is given up`);
    if (other.kind === 'create') await bury(backend, other.run);
    await backend.delete(key, { signal: own.signal });
  }
  return { blocker: undefined, ownMs };
}

/** From here on the snapshot of this run is there, or never will be. */
async function bury(backend: ObjectBackend, run: RunId): Promise<void> {
  await backend.put(manifestKey(run), tombstone(run), { ifAbsent: true });
}

export function tombstone(run: RunId): Uint8Array {
  return Buffer.from(`${JSON.stringify({ given_up: run })}\n`);
}

function lockKey(run: RunId): string {
  return `${PREFIX}${run}.json`;
}

function lockBytes(run: RunId, kind: RunKind, { holder, clock }: LockDeps): Uint8Array {
  return Buffer.from(`${JSON.stringify({ run, kind, holder, started_at_ms: clock.nowMs() })}\n`);
}

function readLock(key: string, bytes: Uint8Array): LockFile | undefined {
  try {
    const { run, kind, holder } = JSON.parse(Buffer.from(bytes).toString()) as Record<string, unknown>;
    if (typeof run !== 'string' || key !== lockKey(run as RunId) || typeof holder !== 'string') return undefined;
    return kind === 'create' || kind === 'read' || kind === 'prune' ? { run: run as RunId, kind, holder } : undefined;
  } catch {
    return undefined;
  }
}
