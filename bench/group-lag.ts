/**
 * Replicas keep up with a primary at full speed: 64 writers for a minute, and all the time how far each replica is behind,
 * in its log and in what its readers see. Writes wait for the logs of all three, but for no reader: what those lack is what
 * could grow.
 */
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { DEFAULT_LIMITS } from '../src/base/limits.ts';
import { GroupCluster, MEMBERS, type Member } from './group-cluster.ts';
import { median, type Bench, type Figure } from './harness.ts';

const WRITERS = 64;
const SAMPLE_MS = 250;
const READERS_BEHIND_MAX_SECONDS = 1;

interface Sample {
  /** Records that the slowest replica's log lacks. */
  readonly records: number;
  /** Rows that the slowest replica's readers do not see, and the primary's do. */
  readonly rows: number;
}

export const bench: Bench = {
  name: 'group-lag',
  what: 'how far replicas are behind a primary at full speed',
  async run({ dir, quick, progress }) {
    const durationMs = quick ? 10_000 : 60_000;
    const coordinator = `embedded:${join(dir, 'coordinator')}`;
    await using group = await GroupCluster.start(dir, { coordinator, minInSync: MEMBERS });
    const primary = await group.leader();
    await primary.ask('load', { writers: WRITERS, durationMs: 1_000 });
    progress(`writing for ${durationMs / 1_000} s`);
    const load = primary.ask('load', { writers: WRITERS, durationMs });
    const untilMs = performance.now() + durationMs;
    const samples: Sample[] = [];
    while (performance.now() < untilMs) {
      samples.push(await sample(group, primary));
      await sleep(SAMPLE_MS);
    }
    const { perSecond: writesPerSecond } = await load;
    const notes = { writesPerSecond, samples: samples.length };
    const rows = samples.map((at) => at.rows / writesPerSecond);
    return [
      figure('group-lag log', 'records that a replica has not acknowledged', {
        lags: samples.map(({ records }) => records),
        unit: 'records',
        gate: DEFAULT_LIMITS.streamWindowRecords,
        notes,
      }),
      figure('group-lag readers', 'seconds of writes that the readers of a replica do not see', {
        lags: rows,
        unit: 's',
        gate: READERS_BEHIND_MAX_SECONDS,
        notes,
      }),
    ];
  },
};

interface Lags {
  readonly lags: readonly number[];
  readonly unit: string;
  readonly gate: number;
  readonly notes: Readonly<Record<string, number>>;
}

/** The worst of the last quarter, beside the worst of the first: a lag that grows shows there. */
function figure(name: string, what: string, { lags, unit, gate, notes }: Lags): Figure {
  const quarter = Math.ceil(lags.length / 4);
  const [first, last] = [Math.max(...lags.slice(0, quarter)), Math.max(...lags.slice(-quarter))];
  return {
    name,
    what: `${what}, worst of the last quarter; the peer is the first`,
    ours: { value: last, unit },
    peer: { value: first, unit },
    value: last,
    bound: { kind: 'atMost', gate },
    notes: { ...notes, worst: Math.max(...lags), median: median(lags) },
  };
}

async function sample({ members }: GroupCluster, primary: Member): Promise<Sample> {
  const lags = await primary.ask('lag', undefined);
  const newest = await primary.ask('newest', undefined);
  const theirs = await Promise.all(
    members.filter((member) => member !== primary).map((replica) => replica.ask('newest', undefined)),
  );
  return { records: Math.max(0, ...lags), rows: Math.max(0, ...theirs.map((id) => newest - id)) };
}
