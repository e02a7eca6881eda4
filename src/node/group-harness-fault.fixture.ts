/** What a fault of a group is, and what the faults have in common. */
import { cpSync, rmSync } from 'node:fs';
import type { StoreId } from '../base/brands.ts';
import type { StopReason } from '../replication/effects.ts';
import type { SmallDisk } from '../testing/small-disk.fixture.ts';
import type { ClusterOptions, GroupCluster } from './group-harness.fixture.ts';
import { until, type Member } from './group-harness-member.fixture.ts';
import { namespaceRefusal } from './group-harness-network.fixture.ts';
import { attachRefusal } from './group-harness-strace.fixture.ts';
import { mountRefusal } from '../testing/small-disk.fixture.ts';

/**
 * `links`: frames that can be seen; `tls`: members with certificates; `packets`: a network that
 * drops them; `embedded`: a coordinator on a disk of ours; `disk`: a small one for the last member; `strace`: to be
 * attached to a process.
 */
export type Need = 'links' | 'tls' | 'packets' | 'embedded' | 'disk' | 'strace';

export interface GroupFault {
  readonly name: string;
  readonly needs?: readonly Need[];
  /** Done in any order by the soak only: too long for every test run. */
  readonly soak?: true;
  /** Does it to a group that serves clients, throws unless it has really happened, and leaves everything in place again. */
  run(cluster: GroupCluster, disk: SmallDisk | undefined): Promise<void>;
}

type Setting = Pick<ClusterOptions, 'network' | 'coordinator'>;

/** Whether the fault can be done to such a group, on a machine that has everything. */
export function fits({ needs = [] }: GroupFault, { network = 'links', coordinator = 'embedded' }: Setting): boolean {
  const lacks: Partial<Record<Need, boolean>> = {
    links: network !== 'links',
    tls: network !== 'sockets',
    packets: network !== 'sockets',
    embedded: coordinator !== 'embedded',
  };
  return !needs.some((need) => lacks[need] === true);
}

/** Why it cannot be done on this machine; undefined where it can. */
export function refusalOf({ needs = [] }: GroupFault, hasDisk: boolean): string | undefined {
  const why: Partial<Record<Need, () => string | undefined>> = {
    packets: namespaceRefusal,
    disk: () => (hasDisk ? undefined : (mountRefusal() ?? 'this group has no small disk')),
    strace: attachRefusal,
  };
  return needs.map((need) => why[need]?.()).find((refusal) => refusal !== undefined);
}

export function fired(happened: boolean, what: string): void {
  if (!happened) throw new Error(`the fault did not happen: ${what}`);
}

export function expect(holds: boolean, what: string): void {
  if (!holds) throw new Error(what);
}

/** Another one leads, and serves. */
export async function successorOf(cluster: GroupCluster, old: Member): Promise<Member> {
  const successor = await cluster.primary(undefined, old);
  await cluster.clients.served();
  return successor;
}

export async function stopReason(cluster: GroupCluster, member: Member, reason: StopReason): Promise<void> {
  let seen: unknown;
  await until(
    `a member stops: ${reason}`,
    async () => {
      const status = await cluster.statusOf(member);
      seen = status?.group?.stopped ?? status?.group?.role;
      return status?.group?.stopped?.reason === reason;
    },
    undefined,
    () => JSON.stringify(seen),
  );
}

/** A register that the clients do not use. */
export function newKey(cluster: GroupCluster): number {
  return 90_000_000 + cluster.random.below(1_000_000);
}

export async function isInSync(cluster: GroupCluster, member: Member): Promise<boolean> {
  const status = await cluster.statusOf(await cluster.primary());
  return status?.group?.record?.inSync.includes(member.store!) === true;
}

/** It has seen that its files are of no use, and is in sync with others, under a new identity. */
export async function cameHome(cluster: GroupCluster, member: Member, before: StoreId | undefined): Promise<void> {
  let seen: unknown;
  await until(
    'it is in sync as another store',
    async () => {
      seen = { steps: member.steps, group: (await cluster.statusOf(member))?.group };
      return member.store !== before && (await isInSync(cluster, member));
    },
    undefined,
    () => JSON.stringify(seen),
  );
}

/** This member leads, by a handover where it does not already. */
export async function lead(cluster: GroupCluster, member: Member): Promise<void> {
  const leader = await cluster.primary();
  if (leader !== member) await leader.ask('handover', { to: member.store! });
  await until('it leads', async () => (await cluster.primary()) === member);
}

export function replaceDirectory(from: string, to: string): void {
  rmSync(to, { recursive: true, force: true });
  cpSync(from, to, { recursive: true });
}
