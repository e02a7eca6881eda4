/**
 * Creators and prunes of one repository, interleaved request by request as a seed says: any of them may be killed before
 * or after a request took effect, or be stopped for longer than others wait for it. Time moves only here.
 *
 * After each request every snapshot that is there must have all that it names.
 */
import assert from 'node:assert/strict';
import { setImmediate } from 'node:timers/promises';
import type { Clock } from '../../base/clock.ts';
import { isNostosError } from '../../base/errors.ts';
import { seededRandom } from '../../base/random.ts';
import type { ObjectBackend } from '../backend/backend.ts';
import { MemoryBackend } from '../backend/memory-backend.fixture.ts';
import type { MemoryStorage } from '../backend/memory-backend.fixture.ts';
import type { Timers } from './heartbeat.ts';
import type { SnapshotId } from './manifest.ts';
import { manifestKey } from './manifest.ts';
import { objectKey } from './object-format.ts';
import { prune } from './prune.ts';
import { ORIGIN, SEAL, sourceOf, tenantFile } from './repository.fixture.ts';
import type { Repository } from './repository.ts';
import { createRepository, openRepository } from './repository.ts';

/** Rules that may be broken, to see that the simulation notices. */
export type BrokenRule = 'prune sees no locks' | 'no tombstone for who is given up' | 'objects go before manifests';

export interface InterleavingOutcome {
  readonly committed: number;
  readonly pruned: number;
  readonly killed: number;
  readonly givenUp: number;
  readonly refused: number;
}

const LIMITS = {
  backupGraceMs: -1,
  backupStaleMs: 60_000,
  backupHeartbeatMs: 10_000,
  backupLockWaitMs: 5_000,
  backupConcurrency: 2,
};
const ACTORS_MAX = 4;
const STEPS = 250;

interface Waiting {
  readonly actor: Actor;
  readonly what: string;
  release(): void;
}

interface Actor {
  readonly kind: 'create' | 'prune';
  isDead: boolean;
  /** It does not run before this step. */
  stoppedUntil: number;
}

export async function interleave(seed: number, broken?: BrokenRule): Promise<InterleavingOutcome> {
  const random = seededRandom(seed);
  const time = new VirtualTime();
  const storage: MemoryStorage = { objects: new Map() };
  const waiting: Waiting[] = [];
  const counts = { committed: 0, pruned: 0, killed: 0, givenUp: 0, refused: 0 };
  const committed = new Set<SnapshotId>();
  /** Keys that a prune has removed. */
  const removed = new Set<string>();
  const running = new Set<Actor>();

  const stop = (actor: Actor, what: string): Promise<void> => {
    if (actor.isDead) return new Promise(() => undefined);
    return new Promise((resolve) => waiting.push({ actor, what, release: resolve }));
  };
  const open = async (actor: Actor): Promise<Repository> => {
    const backend = new MemoryBackend({
      storage,
      clock: time,
      async before(operation, key) {
        await stop(actor, `${operation} ${key}`);
        if (operation === 'delete' && actor.kind === 'prune') removed.add(key);
      },
      after: (operation, key) => stop(actor, `answer to ${operation} ${key}`),
    });
    const spoiled = actor.kind === 'prune' && broken !== undefined ? spoil(backend, broken) : backend;
    return openRepository(spoiled, {
      limits: LIMITS,
      clock: time,
      random: seededRandom(random.below(2 ** 31)),
      timers: time.timersOf(actor),
      onWarning: (message) => {
        if (message.includes('given up')) counts.givenUp += 1;
      },
    });
  };
  const create = async (actor: Actor): Promise<void> => {
    const repository = await open(actor);
    const writer = await repository.createSnapshot(ORIGIN);
    const taken = writer.previous?.items[0];
    if (taken?.kind === 'tenant' && random.chance(0.3)) writer.reuse(taken);
    const used = new Set([taken?.kind === 'tenant' ? (taken.id as number) : 0]);
    for (let files = 1 + random.below(3); files > 0; files--) {
      const id = 1 + random.below(4);
      if (used.has(id)) continue;
      used.add(id);
      await writer.addFile(tenantFile(id), sourceOf(Buffer.from(`content ${random.below(5)}`)));
    }
    const { id } = await writer.commit(SEAL);
    committed.add(id);
    counts.committed += 1;
  };
  const clean = async (actor: Actor): Promise<void> => {
    await prune(await open(actor), { keep: { last: 1 + random.below(2) } });
    counts.pruned += 1;
  };
  const start = (kind: Actor['kind']): void => {
    const actor: Actor = { kind, isDead: false, stoppedUntil: 0 };
    running.add(actor);
    const work = kind === 'create' ? create(actor) : clean(actor);
    work
      .catch((error: unknown) => {
        if (!isNostosError(error) || !REFUSALS.has(error.code)) throw error;
        counts.refused += 1;
      })
      .then(
        () => running.delete(actor),
        (error: unknown) => {
          failure ??= { error };
        },
      );
  };
  let failure: { readonly error: unknown } | undefined;
  const settle = async (): Promise<void> => {
    for (let turn = 0; turn < 3; turn++) await setImmediate();
    if (failure !== undefined) throw failure.error;
  };

  const observer = await createRepository(new MemoryBackend({ storage, clock: time }));
  const check = async (step: number): Promise<void> => {
    const at = `seed ${seed}, step ${step}`;
    for (const id of committed)
      assert.ok(removed.has(manifestKey(id)) || storage.objects.has(manifestKey(id)), `${at}: ${id} is gone`);
    for await (const { id, items } of observer.snapshots())
      for (const { root } of items)
        assert.ok(storage.objects.has(objectKey(root)), `${at}: the snapshot ${id} has lost an object`);
  };
  for (let step = 0; step < STEPS || (waiting.length > 0 && step < 20 * STEPS); step++) {
    const isEnding = step >= STEPS;
    if (!isEnding && running.size < ACTORS_MAX && random.chance(0.15)) start(random.chance(0.65) ? 'create' : 'prune');
    await settle();
    const awake = waiting.filter(({ actor }) => actor.stoppedUntil <= step);
    const next = awake[random.below(Math.max(1, awake.length))];
    let hasChanged = false;
    if (next === undefined || random.chance(0.05)) {
      // Whoever has a request under way sleeps, but not on a removal that a prune has just decided on (A3).
      for (const removal of waiting.filter(({ actor, what }) => actor.kind === 'prune' && what.startsWith('delete ')))
        take(waiting, removal).release();
      await settle();
      time.advance(random.chance(0.3) ? 100_000 : 4_000);
      hasChanged = true;
    } else if (!isEnding && random.chance(0.01)) {
      next.actor.isDead = true;
      running.delete(next.actor);
      counts.killed += 1;
    } else if (!isEnding && random.chance(0.02)) {
      next.actor.stoppedUntil = step + 30 + random.below(60);
    } else {
      take(waiting, next);
      if (!next.actor.isDead) next.release();
      hasChanged = /^(?:put|delete)/.test(next.what);
    }
    await settle();
    if (hasChanged) await check(step);
  }
  return { ...counts };
}

const REFUSALS = new Set(['BACKUP_LOCKED', 'BACKUP_LOCK_LOST']);

function take(waiting: Waiting[], one: Waiting): Waiting {
  waiting.splice(waiting.indexOf(one), 1);
  return one;
}

/**
 * A creator is stopped after it has looked for its lock, in the last moment before its manifest is written, for so long
 * that a prune gives it up and removes what it has stored. Then it goes on.
 */
export async function sleepBeforeManifest(broken?: BrokenRule): Promise<{
  readonly commit: PromiseSettledResult<unknown>;
  /** Of snapshots that are there. */
  readonly objectsLost: number;
}> {
  const storage: MemoryStorage = { objects: new Map() };
  const time = new VirtualTime();
  const [asleep, woken] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  const actor = (kind: Actor['kind']): Actor => ({ kind, isDead: false, stoppedUntil: 0 });
  const open = (backend: ObjectBackend, kind: Actor['kind']) =>
    openRepository(backend, { limits: LIMITS, clock: time, timers: time.timersOf(actor(kind)) });
  const observer = await createRepository(new MemoryBackend({ storage, clock: time }));
  const before = async (operation: string, key: string): Promise<void> => {
    if (operation !== 'put' || !key.startsWith('manifests/')) return;
    asleep.resolve();
    await woken.promise;
  };
  const creator = await open(new MemoryBackend({ storage, clock: time, before }), 'create');
  const writer = await creator.createSnapshot(ORIGIN);
  await writer.addFile(tenantFile(1), sourceOf(Buffer.from('content')));
  const commit = Promise.allSettled([writer.commit(SEAL)]);
  await asleep.promise;
  time.advance(LIMITS.backupStaleMs + 1);
  const backend = new MemoryBackend({ storage, clock: time });
  await prune(await open(broken === undefined ? backend : spoil(backend, broken), 'prune'), { keep: { last: 1 } });
  woken.resolve();
  const [result] = await commit;
  const items = (await Array.fromAsync(observer.snapshots())).flatMap((snapshot) => snapshot.items);
  return { commit: result, objectsLost: items.filter(({ root }) => !storage.objects.has(objectKey(root))).length };
}

/** Takes the locks, or the order, out of a prune. */
function spoil(backend: MemoryBackend, broken: BrokenRule): ObjectBackend {
  const own = new Set<string>();
  const held: string[] = [];
  return {
    url: backend.url,
    honoursConditions: true,
    get: (key, options) => backend.get(key, options),
    head: (key, options) => backend.head(key, options),
    stream: (key, options) => backend.stream(key, options),
    putStream: (key, source, bytes, options) => backend.putStream(key, source, bytes, options),
    close: () => backend.close(),
    async put(key, bytes, options) {
      own.add(key);
      if (broken === 'no tombstone for who is given up' && key.startsWith('manifests/')) return 'created';
      return backend.put(key, bytes, options);
    },
    async *list(prefix, options) {
      for await (const entry of backend.list(prefix, options))
        if (broken !== 'prune sees no locks' || prefix !== 'locks/' || own.has(entry.key)) yield entry;
    },
    async delete(key, options) {
      if (broken === 'objects go before manifests' && key.startsWith('manifests/')) {
        held.push(key);
        return;
      }
      await backend.delete(key, options);
      if (key.startsWith('locks/')) for (const manifest of held.splice(0)) await backend.delete(manifest, options);
    },
  };
}

/** Clocks that agree, and timers that fire as they are moved. */
class VirtualTime implements Clock {
  #nowMs = 1_800_000_000_000;
  #alarms: { readonly atMs: number; readonly ring: () => void }[] = [];

  nowMs(): number {
    return this.#nowMs;
  }

  monotonicMs(): number {
    return this.#nowMs;
  }

  advance(ms: number): void {
    this.#nowMs += ms;
    const due = this.#alarms.filter(({ atMs }) => atMs <= this.#nowMs);
    this.#alarms = this.#alarms.filter(({ atMs }) => atMs > this.#nowMs);
    for (const { ring } of due) ring();
  }

  timersOf(actor: Actor): Timers {
    const pause = (ms: number): Promise<void> =>
      new Promise((resolve) => this.#alarms.push({ atMs: this.#nowMs + ms, ring: () => actor.isDead || resolve() }));
    return {
      pause,
      repeat(everyMs, call) {
        let isStopped = false;
        let running = Promise.resolve();
        const beat = async (): Promise<void> => {
          await pause(everyMs);
          if (isStopped) return;
          running = call();
          await running;
          await beat();
        };
        void beat();
        return {
          async stop() {
            isStopped = true;
            await running;
          },
        };
      },
    };
  }
}
