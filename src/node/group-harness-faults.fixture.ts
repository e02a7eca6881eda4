/**
 * What can go wrong with a group, in one table. Each fault is done to a group that serves clients, throws unless it has
 * really happened, and leaves everything in place again; the same checks follow each.
 */
import type { SmallDisk } from '../testing/small-disk.fixture.ts';
import { GroupCluster, type ClusterOptions } from './group-harness.fixture.ts';
import type { CheckReport } from './group-harness-clients.fixture.ts';
import { COORDINATOR_FAULTS } from './group-harness-coordinator-faults.fixture.ts';
import { DISK_FAULTS } from './group-harness-disk-faults.fixture.ts';
import { fits, refusalOf, type GroupFault } from './group-harness-fault.fixture.ts';
import { NETWORK_FAULTS } from './group-harness-network-faults.fixture.ts';
import { PROCESS_FAULTS } from './group-harness-process-faults.fixture.ts';

// The last one ends whatever went on before.
export const GROUP_FAULTS: readonly GroupFault[] = [
  ...PROCESS_FAULTS,
  ...NETWORK_FAULTS,
  ...DISK_FAULTS,
  ...COORDINATOR_FAULTS,
];

/** One fault of the table, on a group that serves, and the checks that follow it. */
export async function runFault(cluster: GroupCluster, fault: GroupFault, disk?: SmallDisk): Promise<CheckReport> {
  cluster.clients.start();
  await cluster.clients.served();
  await fault.run(cluster, disk);
  return cluster.check();
}

export interface GroupSoakOptions extends ClusterOptions {
  readonly rounds: number;
  readonly seed: number;
  readonly onProgress?: (progress: { readonly round: number; readonly fault: string } & CheckReport) => void;
  readonly signal?: AbortSignal;
}

/** Faults of the table in any order, on one group that lives through all of them. */
export async function runGroupSoak(options: GroupSoakOptions): Promise<{ readonly rounds: number }> {
  await using cluster = await GroupCluster.start(options);
  const faults = GROUP_FAULTS.filter((fault) => fits(fault, options) && refusalOf(fault, false) === undefined);
  let rounds = 0;
  for (; rounds < options.rounds; rounds += 1) {
    options.signal?.throwIfAborted();
    const fault = faults[cluster.random.below(faults.length)]!;
    try {
      const report = await runFault(cluster, fault);
      options.onProgress?.({ round: rounds + 1, fault: fault.name, ...report });
    } catch (error) {
      throw new Error(`seed ${options.seed}, round ${rounds + 1}, ${fault.name}: ${(error as Error).message}`, {
        cause: error,
      });
    }
  }
  return { rounds };
}
