/**
 * What keeping the fingerprint up to date takes from write throughput: the whole write path as it is, and the same with
 * the fingerprint replaced by one that does nothing. Not a copy of the code but the code, patched while a round runs.
 */
import { join } from 'node:path';
import { openNode, type Tenant } from '../src/index.ts';
import { ExpectedFingerprint } from '../src/store/expected-fingerprint.ts';
import { interleave, median, type Bench, type Figure } from './harness.ts';
import { BODY, INSERT_ROW, ROWS_SCHEMA } from './plain.ts';

interface Workload {
  readonly name: string;
  readonly what: string;
  readonly writers: number;
  readonly rowsPerWrite: number;
  readonly writes: number;
}

const WORKLOADS: readonly Workload[] = [
  { name: 'bulk', what: 'transactions of 5,000 rows', writers: 1, rowsPerWrite: 5_000, writes: 40 },
  { name: '64', what: '64 writers of single rows', writers: 64, rowsPerWrite: 1, writes: 40_000 },
];

const NOTHING = new Uint8Array(16);
const real = Object.getOwnPropertyDescriptors(ExpectedFingerprint.prototype);

export const bench: Bench = {
  name: 'fingerprint',
  what: 'the share of write throughput that fingerprints cost',
  async run(context) {
    const figures: Figure[] = [];
    for (const workload of WORKLOADS) {
      const { name, what } = workload;
      context.progress(what);
      // The tenants of the two sides are different ones: what is written without fingerprints has none.
      await using node = await openNode({ dir: join(context.dir, name), scrubIntervalMs: false });
      const tenant = await node.tenants.create('with');
      const bare = await node.tenants.create('without');
      for (const each of [tenant, bare]) await each.migrate([ROWS_SCHEMA]);
      const measured = await interleave(context.quick ? 2 : 11, {
        ours: () => write(tenant, workload, context.quick),
        peer: () => without(() => write(bare, workload, context.quick)),
      });
      const shares = measured.slice(1).map(({ ours, peer }) => 1 - ours / peer);
      figures.push({
        name: `fingerprint ${name}`,
        what: `share of throughput lost to fingerprints, ${what}`,
        ours: { value: median(measured.map(({ ours }) => ours)), unit: 'rows/s' },
        peer: { value: median(measured.map(({ peer }) => peer)), unit: 'rows/s' },
        value: Math.max(0, median(shares)),
        bound: { kind: 'atMost', gate: 0.15 },
        rounds: shares,
      });
    }
    return figures;
  },
};

/** Rows per second. */
async function write(tenant: Tenant, workload: Workload, quick: boolean): Promise<number> {
  const { writers, rowsPerWrite } = workload;
  const writes = quick ? Math.ceil(workload.writes / 20) : workload.writes;
  let left = writes;
  const startedMs = performance.now();
  const writer = async (): Promise<void> => {
    while (left > 0) {
      left -= 1;
      await tenant.write((tx) => {
        for (let row = 0; row < rowsPerWrite; row += 1) tx.run(INSERT_ROW, [BODY]);
      });
    }
  };
  await Promise.all(Array.from({ length: writers }, writer));
  return (writes * rowsPerWrite) / ((performance.now() - startedMs) / 1000);
}

async function without<T>(run: () => Promise<T>): Promise<T> {
  const idle = {
    apply: () => {},
    total: () => NOTHING,
    snapshot: () => NOTHING,
    restore: () => {},
  };
  Object.assign(ExpectedFingerprint.prototype, idle);
  try {
    return await run();
  } finally {
    Object.defineProperties(ExpectedFingerprint.prototype, real);
  }
}
