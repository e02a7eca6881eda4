/** A network that parts members, loses, delays and changes what they send, and peers who do not belong to the group. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { toGeneration, toTerm } from '../base/brands.ts';
import { HybridClock, systemClock } from '../base/clock.ts';
import { systemDisk } from '../base/disk.ts';
import { isNostosError } from '../base/errors.ts';
import { beginGeneration } from '../log/generation.ts';
import { HarnessAuthority, HARNESS_LIMITS, type GroupCluster, type OpenAs } from './group-harness.fixture.ts';
import { cameHome, expect, fired, isInSync, successorOf, type GroupFault } from './group-harness-fault.fixture.ts';
import type { FrameFault } from './group-harness-links.fixture.ts';
import { Member, until } from './group-harness-member.fixture.ts';
import { resentSegments, type Ways } from './group-harness-network.fixture.ts';
import { loadNode, writeNode } from './node-file.ts';

const OTHER_ID = 'f'.repeat(32);

const parted =
  (ways: Ways, from: 'all' | 'one'): GroupFault['run'] =>
  async (cluster) => {
    const primary = await cluster.primary();
    const index = cluster.indexOf(primary);
    const others = cluster.othersOf(primary);
    const links = cluster.links!;
    links.part(index, from === 'all' ? others : others.slice(0, 1), ways);
    // Whoever reaches nobody cannot commit; one lost replica is dropped.
    if (from === 'all') await cluster.primary(undefined, primary);
    await cluster.clients.served();
    fired(links.touched > 0, 'no message was lost');
    links.heal();
  };

/** It does not know that another one leads, and its clients ask it as before. */
async function cutOffFromAll(cluster: GroupCluster): Promise<void> {
  const primary = await cluster.primary();
  const index = cluster.indexOf(primary);
  const links = cluster.links!;
  links.part(index, cluster.othersOf(primary), 'both');
  cluster.coordinator.onDisk!.awayFor(index);
  // While its lease holds it may still acknowledge what only itself has; that goes into a file, never silently.
  const alone = cluster.clients.newIds(3);
  await primary.ask('insertLocal', { ids: alone });
  cluster.clients.acknowledgeLocal(alone);
  await successorOf(cluster, primary);
  const late = primary.ask('insertLocal', { ids: cluster.clients.newIds(1) }, Infinity).then(
    () => Promise.reject(new Error('a local write was acknowledged without a lease')),
    (error: unknown) => error,
  );
  late.catch(() => {}); // it is awaited at the end
  const believes = (await cluster.statusOf(primary))?.group;
  fired(believes?.role === 'leading', `it leads no longer: ${JSON.stringify(believes)}`);
  await cluster.clients.served(60);
  await cluster.coordinator.back();
  links.heal();
  const refusal = await late;
  expect(
    isNostosError(refusal, 'OUTCOME_UNKNOWN') || isNostosError(refusal, 'NOT_PRIMARY'),
    `a local write past the lease was told ${String(refusal)}`,
  );
  await cluster.settled();
  const ids = new Set(await primary.ask('localIds', undefined));
  expect(!alone.some((id) => ids.has(id)), 'records that another primary does not have were kept');
  const events = (await primary.ask('status', undefined)).group?.events ?? [];
  expect(
    events.some(({ text }) => /[1-9]\d* of them acknowledged, are kept in .*\.nrb/.test(text)),
    `nothing tells of the acknowledged records that were dropped: ${JSON.stringify(events.slice(-5))}`,
  );
}

const slowed =
  (how: 'held' | 'delayed'): GroupFault['run'] =>
  async (cluster) => {
    const links = cluster.links!;
    const primary = cluster.indexOf(await cluster.primary());
    for (const other of cluster.othersOf(cluster.members[primary]!)) {
      if (how === 'held') links.hold(primary, other);
      else for (const rule of [links.rule(primary, other), links.rule(other, primary)]) rule.delayMs = 40;
    }
    await (how === 'held' ? sleep(HARNESS_LIMITS.streamTimeoutMs / 2) : cluster.clients.served());
    fired(links.touched > 0, `no message was ${how}`);
    links.heal();
  };

const onTheWire =
  (kind: FrameFault): GroupFault['run'] =>
  async (cluster) => {
    const primary = await cluster.primary();
    const [first = 0] = cluster.othersOf(primary);
    const met = cluster.links!.faultNext(cluster.indexOf(primary), first, kind);
    const inTime = await Promise.race([met.then(() => true), sleep(10_000, false)]);
    fired(inTime, `no records came by to ${kind}`);
    await cluster.clients.served();
  };

/** Nothing passes from one to the other on the way, and neither is told. */
const packetsLost =
  (ways: Ways): GroupFault['run'] =>
  async (cluster) => {
    const primary = await cluster.primary();
    const others = cluster.othersOf(primary);
    const senders = ways === 'in' ? others.map((other) => cluster.members[other]!) : [primary];
    const resent = (): number => senders.reduce((sum, { pid }) => sum + resentSegments(pid), 0);
    const before = resent();
    cluster.network.part(cluster.indexOf(primary), others, ways);
    await successorOf(cluster, primary);
    const lost = resent() - before;
    cluster.network.heal();
    fired(lost > 0, 'no packet of those who were cut off was sent again');
    await cluster.settled();
  };

interface Uncertified {
  readonly what: 'of another cluster' | 'that has ended' | 'absent';
  /** What the primary says of it. */
  readonly said: RegExp;
}

async function certificateOf(
  cluster: GroupCluster,
  index: number,
  what: Uncertified['what'],
): Promise<NonNullable<OpenAs['tls']>> {
  if (what === 'absent') return 'none';
  const { node } = cluster.idsOf(index);
  const hosts = [cluster.network.hostOf(index)];
  if (what === 'that has ended') return cluster.authority.issue(node, hosts, 'over');
  const { ca } = cluster.identityOf(index);
  return { ...(await (await HarnessAuthority.make(OTHER_ID)).issue(node, hosts)), ca };
}

/** A replica that cannot show who it is takes part in nothing, and the primary says why. */
const uncertified =
  ({ what, said }: Uncertified): GroupFault['run'] =>
  async (cluster) => {
    const [replica] = await cluster.replicas();
    const index = cluster.indexOf(replica!);
    const tls = await certificateOf(cluster, index, what);
    await replica!.kill();
    const opened = await cluster.open(index, { tls }).catch((error: unknown) => error);
    if (opened instanceof Member) {
      await refusedBy(cluster, await cluster.primary(), said);
      await staysOutside(cluster, opened);
      await opened.kill();
    } else {
      // Beyond loopback nobody listens without one.
      fired(
        what === 'absent' && isNostosError(opened, 'INVALID_ARGUMENT'),
        `it could not be opened: ${String(opened)}`,
      );
      expect(said.test((opened as Error).message), `it was refused with ${String(opened)}`);
    }
    await cluster.open(index);
  };

async function refusedBy(cluster: GroupCluster, member: Member, said: RegExp): Promise<void> {
  let seen: unknown;
  await until(
    `a peer is refused: ${String(said)}`,
    async () => {
      seen = (await cluster.statusOf(member))?.group?.peerErrors;
      return said.test((seen as { readonly last?: string | null } | undefined)?.last ?? '');
    },
    undefined,
    () => JSON.stringify(seen),
  );
}

/** The group goes on without it. */
async function staysOutside(cluster: GroupCluster, member: Member): Promise<void> {
  await until('it is not in sync', async () => !(await isInSync(cluster, member)));
  await cluster.clients.served();
  const group = (await cluster.statusOf(member))?.group;
  expect(group?.following?.phase !== 'streaming', 'a stranger was let into the group');
}

/** A directory that says of itself that it belongs to another cluster is let into no conversation, and is told so. */
async function otherCluster(cluster: GroupCluster): Promise<void> {
  const [replica] = await cluster.replicas();
  const index = cluster.indexOf(replica!);
  const path = join(cluster.dirs[index]!, 'node.json');
  await replica!.kill();
  const kept = readFileSync(path, 'utf8');
  writeFileSync(path, JSON.stringify({ ...(JSON.parse(kept) as Record<string, unknown>), cluster: OTHER_ID }));
  const opened = await cluster.open(index);
  // Over TLS it is the stranger who refuses: by its certificate the primary is of another cluster.
  await refusedBy(cluster, cluster.links === undefined ? opened : await cluster.primary(), /belongs to cluster/);
  await staysOutside(cluster, opened);
  await opened.kill();
  writeFileSync(path, kept);
  await cluster.open(index);
}

/** A log that has gone on by itself, in a generation that the group does not know, comes home as a copy of the group's. */
async function otherGeneration(cluster: GroupCluster): Promise<void> {
  const [replica] = await cluster.replicas();
  const index = cluster.indexOf(replica!);
  const dir = cluster.dirs[index]!;
  const { store } = replica!;
  await replica!.kill();
  const { generation: parent } = loadNode(dir, undefined);
  const generation = toGeneration(OTHER_ID);
  const term = toTerm(1_000_000);
  const clock = new HybridClock(systemClock);
  beginGeneration({ disk: systemDisk, clock }, { dir: join(dir, 'log'), parent, generation, term });
  writeNode(dir, { ...loadNode(dir, undefined), generation });
  const opened = await cluster.open(index);
  await cameHome(cluster, opened, store);
  const { steps } = opened;
  fired(
    steps.some((step) => step.includes('generation')),
    `it was not seen: ${JSON.stringify(steps)}`,
  );
}

export const NETWORK_FAULTS: readonly GroupFault[] = [
  { name: 'nothing between the primary and the others', run: parted('both', 'all'), needs: ['links'] },
  { name: 'nothing from the primary to the others', run: parted('out', 'all'), needs: ['links'] },
  { name: 'nothing from the others to the primary', run: parted('in', 'all'), needs: ['links'] },
  { name: 'the primary cut off from everything', run: cutOffFromAll, needs: ['links', 'embedded'] },
  { name: 'nothing between the primary and a replica', run: parted('both', 'one'), needs: ['links'] },
  { name: 'packets lost between the primary and the others', run: packetsLost('both'), needs: ['packets'] },
  { name: 'packets lost from the primary to the others', run: packetsLost('out'), needs: ['packets'] },
  { name: 'packets lost from the others to the primary', run: packetsLost('in'), needs: ['packets'] },
  { name: 'a network that stalls', run: slowed('held'), needs: ['links'] },
  { name: 'a slow network', run: slowed('delayed'), needs: ['links'] },
  { name: 'a record with a wrong byte', run: onTheWire('corrupt'), needs: ['links'] },
  { name: 'a frame that is cut', run: onTheWire('cut'), needs: ['links'] },
  { name: 'records that come twice', run: onTheWire('repeat'), needs: ['links'] },
  { name: 'records that are skipped', run: onTheWire('skip'), needs: ['links'] },
  { name: 'records out of their order', run: onTheWire('swap'), needs: ['links'] },
  {
    name: 'a member with a certificate of another cluster',
    run: uncertified({ what: 'of another cluster', said: /is refused: no TLS with a certificate of our authority/ }),
    needs: ['tls'],
  },
  {
    name: 'a member with a certificate that has ended',
    run: uncertified({ what: 'that has ended', said: /is refused.*CERT_HAS_EXPIRED/ }),
    needs: ['tls'],
  },
  {
    name: 'a member without a certificate',
    run: uncertified({ what: 'absent', said: /is refused: no TLS|needs TLS/ }),
    needs: ['tls'],
  },
  { name: 'a member of another cluster', run: otherCluster },
  { name: 'a member of another generation', run: otherGeneration },
];
