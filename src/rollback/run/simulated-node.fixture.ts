/**
 * A deposed primary on a disk that may fail: a log of records 1 to 106 of which those above 100 diverge, dropped two at a
 * time as a real one drops segments, and the outside world, which remembers what it was told.
 */
import assert from 'node:assert/strict';
import type { Disk } from '../../base/disk.ts';
import { readIfExists, writeDurably } from '../../base/durable-file.ts';
import { isNostosError } from '../../base/errors.ts';
import { seededRandom } from '../../base/random.ts';
import { COMMON, DIR, GENERATION, batched, makeTail, plainRecords, writerDeps } from '../file/tail.fixture.ts';
import { listRollbackFiles } from '../file/list.ts';
import { headerOfPlan, writeRollbackFile } from '../file/writer.ts';
import { ROLLBACK_LIMITS, type NewPrimary, type Plan, type RollbackNotice } from '../types.ts';
import { openRollbackDirectory } from './directory.ts';
import { FileJournal } from './journal.ts';
import { RollbackRunner, type Frozen, type RollbackHost, type RollbackRequest } from './runner.ts';

const LOG = '/node/log';
export const TAIL = 6;
export const REQUEST: RollbackRequest = {
  common: COMMON,
  primary: { address: 'b:7000', term: 5 },
  selfAddress: 'a:7000',
};

export type HostCall = 'look' | 'freeze' | 'preserve' | 'recover' | 'rejoin' | 'sink';

/** What no crash of the node undoes. */
export class World {
  readonly told: RollbackNotice[] = [];
  readonly calls: HostCall[] = [];
  /** Of the last record. */
  term: number = COMMON.term;
  following: { primary: NewPrimary; from: { lsn: number } } | undefined;
  /** The call of this number fails, before it does anything or after it has done all of it. */
  failCall: { readonly number: number; readonly when: 'before' | 'after' } | undefined;
  fired = 0;

  tell(notice: RollbackNotice): void {
    this.told.push(notice);
  }

  async call<T>(name: HostCall, run: () => Promise<T>): Promise<T> {
    const number = this.calls.push(name) - 1;
    const fault = number === this.failCall?.number ? this.failCall : undefined;
    if (fault !== undefined) this.fired += 1;
    if (fault?.when === 'before') throw new Error(`${name} failed`);
    const result = await run();
    if (fault?.when === 'after') throw new Error(`the answer of ${name} was lost`);
    return result;
  }
}

export function formatNode(disk: Disk): void {
  openRollbackDirectory(disk, DIR);
  disk.syncDirectory('/');
  writeFrontier(disk, COMMON.lsn + TAIL);
}

export function writeFrontier(disk: Disk, lsn: number): void {
  writeDurably(disk, LOG, Buffer.from(String(lsn)));
}

export function readFrontier(disk: Disk): number {
  return Number(Buffer.from(readIfExists(disk, LOG)!).toString());
}

class SimulatedHost implements RollbackHost {
  readonly #disk: Disk;
  readonly #world: World;
  readonly watermark: number;

  readonly #store: string;

  constructor(disk: Disk, world: World, { watermark, store }: { readonly watermark: number; readonly store: string }) {
    this.#disk = disk;
    this.#world = world;
    this.watermark = watermark;
    this.#store = store;
  }

  look(): Promise<Frozen> {
    return this.#world.call('look', async () => this.#frozen());
  }

  freeze(): Promise<Frozen> {
    return this.#world.call('freeze', async () => this.#frozen());
  }

  preserve(plan: Plan, options: { readonly override: boolean }): ReturnType<RollbackHost['preserve']> {
    const header = headerOfPlan(plan, { node: '01'.repeat(16), cluster: '02'.repeat(16), generation: GENERATION });
    return this.#world.call('preserve', () =>
      writeRollbackFile(writerDeps(this.#disk), header, () => batched(this.#tail()), options),
    );
  }

  recover({ common }: Plan): Promise<void> {
    return this.#world.call('recover', async () => {
      for (let lsn = readFrontier(this.#disk); lsn > common.lsn;)
        writeFrontier(this.#disk, (lsn = Math.max(common.lsn, lsn - 2)));
      this.#disk.syncDirectory('/node');
    });
  }

  rejoin(primary: NewPrimary, from: { readonly lsn: number }): Promise<void> {
    return this.#world.call('rejoin', async () => {
      assert.equal(readFrontier(this.#disk), from.lsn);
      this.#world.following = { primary, from };
    });
  }

  /** What the log still has of it. */
  *#tail(): ReturnType<typeof makeTail> {
    const end = readFrontier(this.#disk);
    for (const entry of makeTail(plainRecords(TAIL))) if (entry.record.lsn <= end) yield entry;
  }

  #frozen(): Frozen {
    const lsn = readFrontier(this.#disk);
    return {
      frontier: { term: this.#world.term, lsn },
      watermark: this.watermark,
      generation: GENERATION,
      store: this.#store,
    };
  }
}

export function openRunner(
  disk: Disk,
  world: World,
  { seed = 1, watermark = 90, limits = {}, store = '0a'.repeat(16) } = {},
): RollbackRunner {
  return new RollbackRunner({
    host: new SimulatedHost(disk, world, { watermark, store }),
    ...openRollbackDirectory(disk, DIR),
    sink: (notice) => world.call('sink', async () => world.tell(notice)),
    clock: { nowMs: () => 1_700_000_200_000, monotonicMs: () => 0 },
    random: seededRandom(seed),
    limits: { ...ROLLBACK_LIMITS, ...limits },
  });
}

/** At any moment: whatever the log has lost is in a file that is whole. */
export async function assertNothingLost(disk: Disk): Promise<void> {
  const end = readFrontier(disk);
  assert.ok(end >= COMMON.lsn);
  if (end === COMMON.lsn + TAIL) return;
  const whole = (await listRollbackFiles(disk, DIR)).filter((file) => file.state === 'whole');
  assert.ok(
    whole.some(({ header, footer }) => header.lastLsn === COMMON.lsn + TAIL && footer.records === TAIL),
    `the log ends at ${end}, and no file has the rest`,
  );
}

/** At the end: rolled back once, told at least once under one key, in one file, following. */
export async function assertRolledBack(
  disk: Disk,
  world: World,
  options: { readonly id?: string; readonly primary?: NewPrimary } = {},
): Promise<void> {
  await assertNothingLost(disk);
  const { counter, intent } = new FileJournal(disk, DIR).load();
  assert.equal(counter, 1);
  assert.ok(intent?.state === 'rejoined', `it is ${intent?.state}`);
  if (options.id !== undefined) assert.equal(intent.plan.id, options.id);
  assert.equal(readFrontier(disk), COMMON.lsn);
  const files = await listRollbackFiles(disk, DIR);
  const mine = files.find(({ path }) => path === intent.file.path);
  assert.equal(mine?.state, 'whole');
  assert.ok(!files.some(({ state }) => state === 'damaged'));
  const keys = new Set(world.told.filter(({ kind }) => kind === 'rolled-back').map(({ key }) => key));
  assert.deepEqual([...keys], [intent.plan.id]);
  assert.deepEqual(world.following, { primary: options.primary ?? REQUEST.primary, from: COMMON });
}

export const isDiskError = (error: unknown): boolean =>
  isNostosError(error, 'DISK_FULL') || isNostosError(error, 'IO_FAILED') || isNostosError(error, 'TAIL_PERSIST_FAILED');
