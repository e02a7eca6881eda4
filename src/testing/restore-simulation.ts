/**
 * The local side of a restore on a disk that loses power, fills up and fails, for as many seeds as one likes. Each seed
 * has a directory (empty, whole, damaged, of another generation) and a source in memory, and meets one fault after another
 * at a random step; then somebody resumes, gives up, or tries to open the directory as a node.
 *
 * After each of these the directory is as it was and opens, or refuses to open and says why; at the end it is restored to
 * the last byte, as another store, with the former state set aside whole, or it is as it was.
 */
import { posix } from 'node:path';
import { assert } from '../base/assert.ts';
import {
  toClusterId,
  toGeneration,
  toNodeId,
  toStoreId,
  type ClusterId,
  type Generation,
  type NodeId,
  type StoreId,
} from '../base/brands.ts';
import type { Disk } from '../base/disk.ts';
import { readIfExists, writeDurably } from '../base/durable-file.ts';
import { NostosError, isNostosError } from '../base/errors.ts';
import { randomHex128, seededRandom, type SeededRandom } from '../base/random.ts';
import type { FetchReport, RestoreFeed } from '../restore/feed.ts';
import { itemPath, parseItemName, type ItemName } from '../restore/item-name.ts';
import { decide } from '../restore/local/decision.ts';
import type { DirectoryIdentity, IdentityCodec } from '../restore/local/identity.ts';
import { readMarker, type Marker } from '../restore/local/marker.ts';
import {
  abandonRestore,
  restoreDirectory,
  type RestoreDeps,
  type RestoreOptions,
} from '../restore/local/restore-directory.ts';
import { filesBelow } from '../base/directory-tree.ts';
import type { InjectedFault } from './faulty-disk.ts';
import { FaultyDisk, PowerCut } from './faulty-disk.ts';
import { VirtualClock } from './virtual-clock.ts';

/** How often each thing happened; a run in which something never did has not shown much. */
export interface RestoreSimulation {
  seeds: number;
  faults: number;
  powerCuts: number;
  diskFull: number;
  ioErrors: number;
  /** A process that died, its disk cache left alone. */
  kills: number;
  resumed: number;
  finished: number;
  abandoned: number;
  /** Given up while the old state was being set aside. */
  wentBack: number;
  /** Giving up was refused, since something new was in place. */
  tooLate: number;
  refusedOpens: number;
  restored: number;
  asItWas: number;
  bytesReused: number;
}

export interface RestoreSimulateOptions {
  readonly seeds: Iterable<number>;
  /** Faults per seed. */
  readonly rounds?: number;
}

const ROUNDS = 5;
const DIR = '/data/node';

export async function simulateRestore({ seeds, rounds = ROUNDS }: RestoreSimulateOptions): Promise<RestoreSimulation> {
  const totals: RestoreSimulation = {
    seeds: 0,
    faults: 0,
    powerCuts: 0,
    diskFull: 0,
    ioErrors: 0,
    kills: 0,
    resumed: 0,
    finished: 0,
    abandoned: 0,
    wentBack: 0,
    tooLate: 0,
    refusedOpens: 0,
    restored: 0,
    asItWas: 0,
    bytesReused: 0,
  };
  for (const seed of seeds) {
    try {
      await new RestoreSimulator(seed, totals).run(rounds);
    } catch (error) {
      throw new Error(`seed ${seed}: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
    }
    totals.seeds += 1;
  }
  return totals;
}

class RestoreSimulator {
  readonly #random: SeededRandom;
  readonly #totals: RestoreSimulation;
  readonly #world: World;
  #disk: FaultyDisk;

  constructor(seed: number, totals: RestoreSimulation) {
    this.#random = seededRandom(seed);
    this.#totals = totals;
    this.#world = makeWorld(this.#random);
    this.#disk = this.#world.disk;
  }

  async run(rounds: number): Promise<void> {
    let state: ReturnType<typeof assertSound> = 'as-it-was';
    for (let round = 0; round < rounds && state !== 'restored'; round++) {
      this.#disk.inject(this.#fault());
      const error = await this.#act(this.#random.chance(0.2)).catch((thrown: unknown) => thrown);
      this.#disk.inject(undefined);
      state = this.#afterwards(error);
    }
    // Without faults it ends. The removal of the marker may not have been durable yet, so it is looked at twice.
    for (let again = 0; again < 2; again++) {
      if (state === 'unfinished' || (state === 'as-it-was' && again === 0)) await this.#act(this.#random.chance(0.4));
      this.#disk = this.#disk.crash(this.#random);
      this.#totals.powerCuts += 1;
      state = this.#look();
    }
    assert(state !== 'unfinished', 'the restore has not ended');
    this.#totals[state === 'restored' ? 'restored' : 'asItWas'] += 1;
  }

  #fault(): InjectedFault {
    const kind = (['power', 'ENOSPC', 'EIO'] as const)[this.#random.below(3)]!;
    return { atStep: this.#disk.trace.length + this.#random.below(90), kind };
  }

  async #act(abandon: boolean): Promise<undefined> {
    const before = readMarker(this.#disk, DIR)?.phase;
    if (abandon && before !== undefined && (await this.#gaveUp(before))) return;
    const report = await restoreInto(this.#world, this.#disk);
    assert(this.#look() === 'restored', 'a restore that reports its end has not ended');
    this.#totals.bytesReused += report.fetched?.bytesReused ?? 0;
    if (before !== undefined) this.#totals[before === 'fetching' ? 'resumed' : 'finished'] += 1;
  }

  /** False where it is too late for that. */
  async #gaveUp(before: Marker['phase']): Promise<boolean> {
    try {
      await abandonRestore(depsOf(this.#world, this.#disk), { dir: DIR });
    } catch (error) {
      if (before === 'fetching' || !isNostosError(error, 'RESTORE_UNFINISHED')) throw error;
      this.#totals.tooLate += 1;
      return false;
    }
    assert(before !== 'disposing', 'a restore was given up although the new state is in place');
    this.#totals[before === 'fetching' ? 'abandoned' : 'wentBack'] += 1;
    assert(this.#look() === 'as-it-was', 'what was given up is not as it was');
    return true;
  }

  /** A power cut, or a process that ended with its error, or was killed; whatever it was, nobody sees a mixture. */
  #afterwards(error: unknown): ReturnType<typeof assertSound> {
    const totals = this.#totals;
    if (error !== undefined) {
      totals.faults += 1;
      if (isNostosError(error, 'DISK_FULL')) totals.diskFull += 1;
      else if (isNostosError(error, 'IO_FAILED')) totals.ioErrors += 1;
      else if (!(error instanceof PowerCut)) throw error as Error;
    }
    if (error instanceof PowerCut || this.#random.chance(0.3)) {
      this.#disk = this.#disk.crash(this.#random);
      totals.powerCuts += 1;
    } else if (error !== undefined) totals.kills += 1;
    return this.#look();
  }

  #look(): ReturnType<typeof assertSound> {
    const state = assertSound(this.#world, this.#disk);
    if (state === 'unfinished') this.#totals.refusedOpens += 1;
    return state;
  }
}

/** A directory to restore into, and the state of a source: all bytes are known. */
export interface World {
  readonly disk: FaultyDisk;
  /** Content of the directory by path relative to it, as it was. */
  readonly before: ReadonlyMap<string, Buffer>;
  readonly items: ReadonlyMap<ItemName, Buffer>;
  readonly cluster: ClusterId;
  readonly generation: Generation;
  readonly own: DirectoryIdentity | undefined;
  readonly discard: boolean;
  readonly random: SeededRandom;
  /** Feeds that were opened and not closed. */
  openFeeds: number;
}

const KEPT = 'owner.token';

export function makeWorld(random: SeededRandom): World {
  const disk = new FaultyDisk({ directories: 'synced' });
  const [cluster, generation] = [toClusterId(randomHex128(random)), toGeneration(randomHex128(random))];
  const items = new Map<ItemName, Buffer>();
  const add = (name: string): void =>
    void items.set(parseItemName(name), Buffer.from(random.bytes(random.below(1500))));
  for (let tenant = 1; tenant <= 1 + random.below(3); tenant++) add(`tenant/${tenant}`);
  for (const name of ['catalog', 'log/terms', 'log/00000003.ndb', 'log/00000004.ndb']) add(name);

  const before = new Map<string, Buffer>();
  const kind = (['absent', 'empty', 'whole', 'damaged'] as const)[random.below(4)]!;
  let own: DirectoryIdentity | undefined;
  if (kind !== 'absent') before.set(KEPT, Buffer.from('not of the node'));
  if (kind === 'whole' || kind === 'damaged') {
    own = {
      node: toNodeId(randomHex128(random)),
      store: toStoreId(randomHex128(random)),
      cluster: random.chance(0.7) ? cluster : toClusterId(randomHex128(random)),
      generation: random.chance(0.7) ? generation : toGeneration(randomHex128(random)),
    };
    before.set(
      'node.json',
      kind === 'damaged' ? Buffer.from('{"node":') : (codec.formatCopy(own, { source: null, reaches: null }) as Buffer),
    );
    if (kind === 'damaged') own = undefined;
    for (const [name, bytes] of items)
      if (random.chance(0.6)) before.set(posix.join(...itemPath(name)), random.chance(0.5) ? bytes : flipped(bytes));
    for (const name of ['tenants/tenant_9/data.sqlite', 'tenants/tenant_1/data.sqlite-wal', 'coordinator/record'])
      if (random.chance(0.5)) before.set(name, Buffer.from(`former ${name}`));
    if (random.chance(0.3)) before.set('set-aside.4/log/terms', Buffer.from('of an earlier restore'));
  }
  fill(disk, before);
  for (const path of ['/', ...directories(before.keys())]) if (disk.isDirectory(path)) disk.syncDirectory(path);
  return {
    disk: disk.clone(),
    before,
    items,
    cluster,
    generation,
    own,
    discard: random.chance(0.3),
    random,
    openFeeds: 0,
  };
}

/** The directory as it was, on a disk that has nothing yet. */
export function fill(disk: Disk, before: World['before']): void {
  disk.makeDirectory(posix.dirname(DIR));
  for (const [path, bytes] of before) {
    disk.makeDirectory(posix.dirname(posix.join(DIR, path)));
    writeDurably(disk, posix.join(DIR, path), bytes);
  }
}

function* directories(paths: Iterable<string>): Iterable<string> {
  for (const path of [DIR, ...[...paths].map((one) => posix.join(DIR, one))])
    for (let at = posix.dirname(path); at !== '/'; at = posix.dirname(at)) yield at;
}

function flipped(bytes: Buffer): Buffer {
  const copy = Buffer.from(bytes);
  if (copy.length > 0) copy[copy.length >>> 1]! ^= 1;
  return copy;
}

/** A stand-in for `node.json` that says which store it is of. */
const codec: IdentityCodec = {
  parse(bytes) {
    try {
      const fields = JSON.parse(Buffer.from(bytes).toString()) as Record<string, unknown>;
      return {
        node: toNodeId(fields['node']) satisfies NodeId,
        store: toStoreId(fields['store']) satisfies StoreId,
        cluster: toClusterId(fields['cluster']),
        generation: toGeneration(fields['generation']),
      };
    } catch (error) {
      throw new NostosError('UNSUPPORTED_FORMAT', 'no identity', { cause: error });
    }
  },
  formatCopy: (identity, { reaches }) => Buffer.from(JSON.stringify({ ...identity, reaches })),
};

/** The faulty one, or a real one that counts what it has open. */
export type SimulatedDisk = Disk & { readonly openFiles: number };

export function depsOf(world: World, disk: SimulatedDisk): RestoreDeps {
  return {
    disk,
    clock: new VirtualClock(),
    random: world.random,
    identity: codec,
    lock: async () => ({ [Symbol.dispose]() {} }),
    verify: async (staging) => verify(world, disk, staging),
  };
}

export function restoreInto(world: World, disk: SimulatedDisk): ReturnType<typeof restoreDirectory> {
  return restoreDirectory(depsOf(world, disk), optionsOf(world, disk));
}

export function optionsOf(world: World, disk: SimulatedDisk): RestoreOptions {
  return {
    dir: DIR,
    discard: world.discard,
    replace: true,
    reserveBytes: 1,
    openFeed: async () => memoryFeed(world, disk),
  };
}

/** Opens as a node would: what is staged must be complete; writing leaves what SQLite leaves beside its files. */
function verify(world: World, disk: Disk, staging: string): Awaited<ReturnType<RestoreDeps['verify']>> {
  const found = [...filesBelow(disk, staging)].filter((path) => path !== 'node.json').toSorted();
  const wanted = [...world.items.keys()].map((name) => posix.join(...itemPath(name))).toSorted();
  assert(found.join() === wanted.join(), `staged are ${found.join()} instead of ${wanted.join()}`);
  for (const [name, bytes] of world.items) assertFile(disk, posix.join(staging, ...itemPath(name)), bytes);
  assert(world.openFeeds === 0, 'the source holds what it has sent while that is verified');
  const { reaches } = JSON.parse(Buffer.from(readIfExists(disk, posix.join(staging, 'node.json'))!).toString()) as {
    reaches: unknown;
  };
  assert(JSON.stringify(reaches) === '{"term":2,"lsn":7}', `the copy must reach ${JSON.stringify(reaches)}`);
  writeDurably(disk, posix.join(staging, 'lock'), Buffer.from('held'));
  writeDurably(disk, posix.join(staging, 'tenants/tenant_1/data.sqlite-wal'), Buffer.from('being applied'));
  disk.remove(posix.join(staging, 'tenants/tenant_1/data.sqlite-wal'));
  return { tenants: 1, rows: 1, records: 1, lsn: 1 };
}

/** Writes page by page and takes equal pages from the base, like the real one; a file whose sync fails is removed. */
function memoryFeed(world: World, disk: Disk): RestoreFeed {
  const PAGE = 256;
  const { cluster, generation, items } = world;
  world.openFeeds += 1;
  return {
    sources: ['memory:1'],
    plan: {
      kind: 'node',
      cluster,
      generation,
      store: null,
      node: null,
      term: 2,
      watermark: 1,
      items: [...items].map(([name, bytes]) => ({ name, bytes: bytes.length })),
    },
    async fetchAll(target): Promise<FetchReport> {
      let [onWire, reused] = [0, 0];
      for (const [name, bytes] of items) {
        const basePath = target.baseOf(name);
        const base = basePath === undefined ? Buffer.alloc(0) : Buffer.from(readIfExists(disk, basePath)!);
        const path = target.pathOf(name);
        const file = disk.open(path, basePath === path ? 'write' : 'create');
        try {
          for (let at = 0; at < bytes.length; at += PAGE) {
            const page = bytes.subarray(at, at + PAGE);
            const equal = base.subarray(at, at + PAGE).equals(page);
            if (equal) reused += page.length;
            else onWire += page.length;
            if (!equal || basePath !== path) file.write(page, at);
          }
          file.truncate(bytes.length);
          file.sync();
        } catch (error) {
          if (isNostosError(error) && error.details['operation'] === 'sync') disk.remove(path);
          throw error;
        } finally {
          file.close();
        }
      }
      const report = [...items].map(([name, bytes]) => ({ name, bytes: bytes.length }));
      return { items: report, bytesOnWire: onWire, bytesReused: reused, elapsedMs: 0, watermark: 7 };
    },
    close: async () => void (world.openFeeds -= 1),
  };
}

/** Which of the allowed states the directory is in; throws where it is none of them. */
export function assertSound(world: World, disk: SimulatedDisk): 'as-it-was' | 'unfinished' | 'restored' {
  assert(disk.openFiles === 0, `${disk.openFiles} files were left open`);
  assert(world.openFeeds === 0, `${world.openFeeds} feeds were left open`);
  if (!disk.exists(DIR)) {
    assert(world.before.size === 0, 'the directory is gone');
    return 'as-it-was';
  }
  for (const [path, bytes] of world.before)
    if (path === KEPT || path.startsWith('set-aside.4')) assertFile(disk, posix.join(DIR, path), bytes);
  const marker = readMarker(disk, DIR);
  if (marker !== undefined) {
    assertRefuses(marker);
    if (marker.phase === 'fetching') assertBefore(world, disk, DIR);
    return 'unfinished';
  }
  decide(marker, { kind: 'open' });
  assert(!disk.exists(posix.join(DIR, 'restore')), 'restore/ was left');
  const own = readIfExists(disk, posix.join(DIR, 'node.json'));
  const was = world.before.get('node.json');
  if (own === undefined || was?.equals(own) === true) {
    assertBefore(world, disk, DIR);
    assert(setAsideNow(disk) === undefined, 'something was set aside although nothing was restored');
    return 'as-it-was';
  }
  assertRestored(world, disk, codec.parse(own));
  return 'restored';
}

function assertRefuses(marker: NonNullable<ReturnType<typeof readMarker>>): void {
  try {
    decide(marker, { kind: 'open' });
  } catch (error) {
    assert(isNostosError(error, 'RESTORE_UNFINISHED'), `opening fails with ${String(error)}`);
    return;
  }
  throw new Error('a directory with a marker opens');
}

function assertBefore(world: World, disk: Disk, dir: string): void {
  const wanted = [...world.before].filter(([path]) => path !== KEPT && !path.startsWith('set-aside.'));
  for (const [path, bytes] of wanted) assertFile(disk, posix.join(dir, path), bytes);
  const found = [...filesBelow(disk, dir)].filter((path) => !/^(?:restore|set-aside\.|owner\.token)/.test(path));
  assert(found.length === wanted.length, `there are ${found.join()}`);
}

function assertRestored(world: World, disk: Disk, identity: DirectoryIdentity): void {
  const { own, cluster, generation } = world;
  assert(identity.cluster === cluster && identity.generation === generation, 'it has the history of its source');
  assert(identity.store !== own?.store, 'it has the store identity of what was there before');
  assert(own?.cluster !== cluster || identity.node === own.node, 'it has lost its node id');
  for (const [name, bytes] of world.items) assertFile(disk, posix.join(DIR, ...itemPath(name)), bytes);
  const left = [...filesBelow(disk, DIR)].filter((path) => !path.startsWith('set-aside.') && path !== KEPT);
  assert(left.length === world.items.size + 1, `leftovers: ${left.join()}`);
  const aside = setAsideNow(disk);
  const had = [...world.before.keys()].some((path) => path !== KEPT && !path.startsWith('set-aside.'));
  assert((aside !== undefined) === (had && !world.discard), `set aside: ${String(aside)}`);
  if (aside !== undefined) assertBefore(world, disk, posix.join(DIR, aside));
}

function setAsideNow(disk: Disk): string | undefined {
  return disk.list(DIR).find((name) => name.startsWith('set-aside.') && name !== 'set-aside.4');
}

function assertFile(disk: Disk, path: string, bytes: Uint8Array): void {
  const found = readIfExists(disk, path);
  assert(found !== undefined, `${path} is missing`);
  assert(Buffer.from(found).equals(bytes), `${path} has other content`);
}
