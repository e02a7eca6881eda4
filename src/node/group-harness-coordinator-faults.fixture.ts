/** A coordinator that goes away, or comes back as it was. */
import { setTimeout as sleep } from 'node:timers/promises';
import { isNostosError } from '../base/errors.ts';
import { HARNESS_LIMITS, type GroupCluster } from './group-harness.fixture.ts';
import { expect, fired, newKey, stopReason, type GroupFault } from './group-harness-fault.fixture.ts';

/** Nobody may rely on a lease any more. */
const PAST_LEASE_MS = HARNESS_LIMITS.leaseMs * 1.5;

async function coordinatorAway(cluster: GroupCluster): Promise<void> {
  const primary = await cluster.primary();
  await cluster.coordinator.away();
  await sleep(PAST_LEASE_MS);
  const key = newKey(cluster);
  await primary.ask('put', { key, value: 'while it is away' });
  const read = await primary.ask('read', { key }).catch((error: unknown) => error);
  fired(isNostosError(read, 'NOT_PRIMARY'), `the lease was renewed meanwhile: ${JSON.stringify(read)}`);
  // As a write it needs no lease, even if it only reads.
  const found = await primary.ask('replace', { key, expected: 'nothing like it', value: 'x' });
  expect(found.found === 'while it is away', `a write that only read found ${String(found.found)}`);
  await cluster.coordinator.back();
  expect((await cluster.primary()) === primary, 'the primary has changed since the coordinator was away');
}

async function coordinatorSetBack(cluster: GroupCluster): Promise<void> {
  const setBack = cluster.coordinator.onDisk!.image();
  await cluster.clients.served();
  await sleep(HARNESS_LIMITS.renewIntervalMs * 2);
  setBack();
  for (const member of cluster.members) await stopReason(cluster, member, 'coordinator-regressed');
  for (const member of cluster.members) {
    const refused = await member.ask('put', { key: 1, value: 'x' }).catch((error: unknown) => error);
    expect(isNostosError(refused, 'NOT_PRIMARY'), `a node that stopped took a write: ${String(refused)}`);
  }
  // Nor does it go on when it is opened again.
  const again = cluster.indexOf(cluster.members[0]!);
  await cluster.members[again]!.kill();
  await stopReason(cluster, await cluster.open(again), 'coordinator-regressed');
  await cluster.coordinator.back();
  for (const index of cluster.members.keys()) {
    await cluster.members[index]!.kill();
    await cluster.open(index);
  }
}

export const COORDINATOR_FAULTS: readonly GroupFault[] = [
  { name: 'the coordinator away', run: coordinatorAway },
  { name: 'the coordinator set back to an older image', run: coordinatorSetBack, needs: ['embedded'] },
];
