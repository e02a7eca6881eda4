/** One writer alone has nobody to share an fsync with: it shows what the way to the log and back costs. */
import { mean, median, percentile, type Bench, type Figure } from './harness.ts';
import { measureWriters, type WriterRound, type Writes } from './writers.ts';

export const bench: Bench = {
  name: 'writer-1',
  what: 'one writer of 100-byte rows, each acknowledgement fsynced',
  async run(context) {
    const rounds = await measureWriters(context, {
      writers: 1,
      rounds: context.quick ? 2 : 9,
      roundMs: context.quick ? 300 : 1_500,
    });
    return [
      figure('mean', rounds, ({ latencies }) => mean(latencies)),
      figure('p50', rounds, ({ latencies }) => percentile(latencies, 0.5)),
    ];
  },
};

function figure(which: string, rounds: readonly WriterRound[], of: (writes: Writes) => number): Figure {
  const ratios = rounds.map(({ ours, plain }) => of(ours) / of(plain));
  return {
    name: `writer-1 ${which}`,
    what: `${which} latency of a durable write, ours / plain SQLite FULL`,
    ours: { value: median(rounds.map(({ ours }) => of(ours))), unit: 'ms' },
    peer: { value: median(rounds.map(({ plain }) => of(plain))), unit: 'ms' },
    value: median(ratios),
    bound: { kind: 'atMost', gate: 2, goal: 1.3 },
    rounds: ratios,
    notes: {
      fdatasyncP50Ms: median(rounds.map(({ fdatasync }) => percentile(fdatasync, 0.5))),
      oursP99Ms: median(rounds.map(({ ours }) => percentile(ours.latencies, 0.99))),
      plainP99Ms: median(rounds.map(({ plain }) => percentile(plain.latencies, 0.99))),
    },
  };
}
