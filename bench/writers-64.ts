/** Many writers share an fsync. What each of them waits for it is bounded too. */
import { median, percentile, type Bench } from './harness.ts';
import { measureWriters } from './writers.ts';

export const bench: Bench = {
  name: 'writers-64',
  what: '64 concurrent writers of 100-byte rows, each acknowledgement fsynced',
  async run(context) {
    const rounds = await measureWriters(context, {
      writers: 64,
      rounds: context.quick ? 2 : 9,
      roundMs: context.quick ? 300 : 2_000,
    });
    const ratios = rounds.map(({ ours, plain }) => ours.perSecond / plain.perSecond);
    const p99 = rounds.map(({ ours }) => percentile(ours.latencies, 0.99));
    const limits = rounds.map(({ fdatasync }) => 3 * percentile(fdatasync, 0.99) + 3);
    const shares = p99.map((ms, index) => ms / limits[index]!);
    return [
      {
        name: 'writers-64',
        what: 'durable writes per second, ours / plain SQLite FULL',
        ours: { value: median(rounds.map(({ ours }) => ours.perSecond)), unit: 'writes/s' },
        peer: { value: median(rounds.map(({ plain }) => plain.perSecond)), unit: 'writes/s' },
        value: median(ratios),
        bound: { kind: 'atLeast', gate: 4, goal: 7 },
        rounds: ratios,
      },
      {
        name: 'writers-64 p99',
        what: 'p99 of an acknowledgement / (3 x fdatasync p99 + 3 ms)',
        ours: { value: median(p99), unit: 'ms' },
        peer: { value: median(limits), unit: 'ms' },
        value: median(shares),
        bound: { kind: 'atMost', gate: 1 },
        rounds: shares,
        notes: {
          fdatasyncP50Ms: median(rounds.map(({ fdatasync }) => percentile(fdatasync, 0.5))),
          fdatasyncP99Ms: median(rounds.map(({ fdatasync }) => percentile(fdatasync, 0.99))),
          oursP50Ms: median(rounds.map(({ ours }) => percentile(ours.latencies, 0.5))),
          plainP99Ms: median(rounds.map(({ plain }) => percentile(plain.latencies, 0.99))),
        },
      },
    ];
  },
};
