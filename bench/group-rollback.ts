/**
 * What it takes a deposed primary to come home: it had acknowledged `local` writes that nobody else saw, was killed, and
 * drops them into a file when it comes back. Timed from the plan of the rollback to the notice that it is done. The time
 * follows the tail, not the tenant, whose rows stay where they are; and memory does not follow the tail.
 */
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { systemDisk } from '../src/base/disk.ts';
import { listRollbackFiles } from '../src/rollback/file/list.ts';
import { GroupCluster, type Member } from './group-cluster.ts';
import { median, type Bench, type BenchContext, type Figure } from './harness.ts';
import { ROW_BYTES } from './plain.ts';

const MIB = 1024 * 1024;
/** Rows of the tails whose memory is compared; both are larger than every buffer that a tail passes through. */
const ROWS_OF_TAIL_BYTES = 20_000;
/** The primary commits nothing while its tail grows, and is to lead all the same. */
const LIMITS = { commitStallMs: 300_000 };

export const bench: Bench = {
  name: 'group-rollback',
  what: 'rolling back what only a deposed primary had',
  async run(context) {
    const { quick } = context;
    const [small, large] = quick ? [2 * MIB, 50 * MIB] : [20 * MIB, 2_048 * MIB];
    const [rounds, records] = quick ? [2, 1_000] : [3, 10_000];
    const tail = { records, rowBytes: ROW_BYTES };
    const tails = Array.from({ length: rounds }, () => tail);
    const inSmall = await rollBack(context, small, tails);
    const inLarge = await rollBack(context, large, tails);
    const times = (runs: readonly Rollback[]): readonly number[] => runs.map(({ elapsedMs }) => elapsedMs);
    const [ours, base] = [median(times(inLarge)), median(times(inSmall))];
    const sizes = `${large / MIB} and ${small / MIB} MiB`;
    const memory = await rollBack(context, small, [
      { records: quick ? 100 : 5_000, rowBytes: ROWS_OF_TAIL_BYTES },
      { records: quick ? 800 : 20_000, rowBytes: ROWS_OF_TAIL_BYTES },
    ]);
    return [
      {
        name: 'group-rollback',
        what: `time of a rollback of ${records} records, in tenants of ${sizes}`,
        ours: { value: ours, unit: 'ms' },
        peer: { value: base, unit: 'ms' },
        value: ours / base,
        bound: { kind: 'atMost', gate: 1.3 },
        notes: { large: times(inLarge).join(', '), small: times(inSmall).join(', ') },
      },
      {
        name: 'group-rollback time',
        what: `seconds that a rollback of ${records} records takes in a tenant of ${large / MIB} MiB`,
        ours: { value: ours / 1_000, unit: 's' },
        peer: { value: base / 1_000, unit: 's' },
        value: ours / 1_000,
        bound: { kind: 'atMost', gate: 1, goal: 0.2 },
        rounds: times(inLarge).map((ms) => ms / 1_000),
      },
      memoryFigure(memory as [Rollback, Rollback]),
    ];
  },
};

interface Tail {
  readonly records: number;
  readonly rowBytes: number;
}

interface Rollback {
  readonly elapsedMs: number;
  /** The most that the process which rolled back ever had resident. */
  readonly peakBytes: number;
  readonly tailBytes: number;
}

function memoryFigure([short, long]: readonly [Rollback, Rollback]): Figure {
  const mib = ({ peakBytes }: Rollback): number => peakBytes / MIB;
  return {
    name: 'group-rollback memory',
    what: `MiB more with a tail of ${Math.round(long.tailBytes / MIB)} MiB than with ${Math.round(short.tailBytes / MIB)}`,
    ours: { value: mib(long), unit: 'MiB' },
    peer: { value: mib(short), unit: 'MiB' },
    value: mib(long) - mib(short),
    bound: { kind: 'atMost', gate: 64 },
  };
}

/** One rollback after another in one group, each of another tail. */
async function rollBack(
  context: BenchContext,
  fillBytes: number,
  tails: readonly Tail[],
): Promise<readonly Rollback[]> {
  const { dir: parent, progress } = context;
  const dir = join(parent, 'group');
  const coordinator = `embedded:${join(dir, 'coordinator')}`;
  progress(`three copies of ${fillBytes / MIB} MiB`);
  const rollbacks: Rollback[] = [];
  {
    await using group = await GroupCluster.start(dir, { coordinator, minInSync: 2, limits: LIMITS, fillBytes });
    for (const [round, tail] of tails.entries()) {
      progress(`${fillBytes / MIB} MiB, rollback ${round + 1} of ${tails.length}`);
      rollbacks.push(await diverge(group, tail));
      await group.untilAllInSync();
    }
  }
  rmSync(dir, { recursive: true });
  return rollbacks;
}

async function diverge(group: GroupCluster, tail: Tail): Promise<Rollback> {
  const primary = await group.leader();
  const others = group.members.filter((member) => member !== primary);
  for (const other of others) await other.kill();
  await primary.ask('tail', tail);
  await primary.kill();
  for (const other of others) await other.start();
  await group.leader();
  await primary.start();
  const { atMs, peakBytes } = await primary.ask('rolledBack', undefined);
  const { createdAtMs, records, bytes } = await newestFile(primary);
  if (records < tail.records) throw new Error(`of ${tail.records} records of the tail ${records} are in the file`);
  return { elapsedMs: atMs - createdAtMs, peakBytes, tailBytes: bytes };
}

async function newestFile({ dir }: Member): Promise<{ createdAtMs: number; records: number; bytes: number }> {
  const files = await listRollbackFiles(systemDisk, join(dir, 'rollback'), { verify: 'ends' });
  const whole = files.flatMap((file) => (file.state === 'whole' ? [file] : []));
  const newest = whole.toSorted((a, b) => a.header.createdAtMs - b.header.createdAtMs).at(-1);
  if (newest === undefined) throw new Error(`no rollback file is in ${dir}`);
  const { header, fileBytes } = newest;
  return { createdAtMs: header.createdAtMs, records: header.lastLsn - header.firstLsn + 1, bytes: fileBytes };
}
