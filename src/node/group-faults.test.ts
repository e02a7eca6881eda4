/**
 * Every fault of the table, on real processes, in two groups at a time: one whose frames a proxy sees, and one with TLS and,
 * where the machine permits, a network of its own for each member. The embedded coordinator for all of them, a real etcd for
 * some of them. `GROUP_SOAK_ROUNDS` and `GROUP_SOAK_SEED` run more, in any order; `GROUP_SOAK_ETCD=1` on etcd, which `npm run soak` does not.
 */
import assert from 'node:assert/strict';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test, type TestContext } from 'node:test';
import { etcdMissing } from '../testing/etcd-cluster.ts';
import { mountRefusal, mountSmall, type SmallDisk } from '../testing/small-disk.fixture.ts';
import { GroupCluster, type ClusterOptions } from './group-harness.fixture.ts';
import { GROUP_FAULTS, runFault, runGroupSoak } from './group-harness-faults.fixture.ts';
import { fits, refusalOf, type GroupFault } from './group-harness-fault.fixture.ts';

/** What a restore keeps free on it is most of that. */
const DISK_BYTES = 128 * 1024 * 1024;
/** On a machine at rest it takes a third of that. */
const TIMEOUT_MS = 280_000;
const ON_ETCD = new Set(['kill -9 of the primary', 'the coordinator away']);

/** One after the other on one group; after a failure the next one gets a new group. */
async function runAll(
  t: TestContext,
  faults: readonly GroupFault[],
  start: () => Promise<GroupCluster>,
  disk?: SmallDisk,
): Promise<void> {
  let cluster: GroupCluster | undefined;
  for (const fault of faults) {
    const skip = refusalOf(fault, disk !== undefined) ?? false;
    await t.test(fault.name, { skip }, async () => {
      cluster ??= await start();
      try {
        const report = await runFault(cluster, fault, disk);
        assert.ok(report.operations > 0 && report.inserted > 0, `nobody was served: ${JSON.stringify(report)}`);
      } catch (error) {
        await cluster[Symbol.asyncDispose]();
        cluster = undefined;
        throw error;
      }
    });
  }
  await cluster?.[Symbol.asyncDispose]();
}

/** Those that need one of the two networks there, the others in turn. */
function share(network: NonNullable<ClusterOptions['network']>): readonly GroupFault[] {
  const onBoth = GROUP_FAULTS.filter(
    (fault) => fits(fault, { network: 'links' }) && fits(fault, { network: 'sockets' }),
  );
  const here = network === 'links' ? 0 : 1;
  return GROUP_FAULTS.filter(({ soak }) => soak !== true).filter((fault) =>
    onBoth.includes(fault) ? onBoth.indexOf(fault) % 2 === here : fits(fault, { network }),
  );
}

describe('a group of three processes lives through every fault', { concurrency: true, timeout: TIMEOUT_MS }, () => {
  for (const network of ['links', 'sockets'] as const)
    test(`over ${network}`, async (t) => {
      using disk = mountRefusal() === undefined ? mountSmall(DISK_BYTES) : undefined;
      const small = disk === undefined ? undefined : join(disk.dir, 'node');
      const start = (): Promise<GroupCluster> => {
        if (small !== undefined) rmSync(small, { recursive: true, force: true });
        return GroupCluster.start({ network, dirOf: (index) => (index === 2 ? small : undefined) });
      };
      await runAll(t, share(network), start, disk);
    });
});

test('and with a real etcd', { skip: etcdMissing() ?? false, timeout: TIMEOUT_MS }, async (t) => {
  const faults = GROUP_FAULTS.filter(({ name }) => ON_ETCD.has(name));
  assert.equal(faults.length, ON_ETCD.size);
  await runAll(t, faults, () => GroupCluster.start({ coordinator: 'etcd' }));
});

const rounds = Number(process.env.GROUP_SOAK_ROUNDS ?? 0);
test('faults in any order', { skip: rounds === 0 }, async (t) => {
  const seed = Number(process.env.GROUP_SOAK_SEED ?? Date.now());
  const coordinator = process.env.GROUP_SOAK_ETCD === undefined ? 'embedded' : 'etcd';
  const onProgress = (progress: object): void => t.diagnostic(JSON.stringify(progress));
  assert.equal((await runGroupSoak({ rounds, seed, coordinator, onProgress })).rounds, rounds);
});
