/**
 * What can go wrong with a group, in one table. Each fault is done to a group that serves clients, throws unless it has
 * really happened, and leaves everything in place again; the same checks follow each.
 */
import { cpSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { isNostosError } from '../base/errors.ts';
import type { StopReason } from '../replication/effects.ts';
import type { SmallDisk } from '../testing/small-disk.fixture.ts';
import {
  GroupCluster,
  HARNESS_LIMITS,
  Member,
  until,
  type CheckReport,
  type ClusterOptions,
} from './group-harness.fixture.ts';
import type { FrameFault } from './group-harness-links.fixture.ts';

export interface GroupFault {
  readonly name: string;
  /** `disk` holds the directory of the last member, where one could be mounted. */
  run(cluster: GroupCluster, disk: SmallDisk | undefined): Promise<void>;
  readonly needsDisk?: true;
  /** It takes a coordinator on a disk of ours. */
  readonly needsEmbedded?: true;
}

const { leaseMs } = HARNESS_LIMITS;
/** Nobody may rely on a lease any more. */
const PAST_LEASE_MS = leaseMs * 1.5;

function fired(happened: boolean, what: string): void {
  if (!happened) throw new Error(`the fault did not happen: ${what}`);
}

function expect(holds: boolean, what: string): void {
  if (!holds) throw new Error(what);
}

/** Another one leads, and serves. */
async function successorOf(cluster: GroupCluster, old: Member): Promise<Member> {
  const successor = await cluster.primary(undefined, old);
  await cluster.clients.served();
  return successor;
}

async function stopReason(cluster: GroupCluster, member: Member, reason: StopReason): Promise<void> {
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

const killed =
  (which: 'primary' | 'replica' | 'primary and a replica' | 'everybody'): GroupFault['run'] =>
  async (cluster) => {
    const primary = await cluster.primary();
    const [replica] = await cluster.replicas();
    const victims = {
      primary: [primary],
      replica: [replica!],
      'primary and a replica': [primary, replica!],
      everybody: [...cluster.members],
    }[which];
    await Promise.all(victims.map((victim) => victim.kill()));
    fired(
      victims.every(({ alive }) => !alive),
      'a process is still there',
    );
    if (victims.length === 1) await cluster.clients.served();
    if (which === 'primary') await successorOf(cluster, primary);
    await Promise.all(victims.map((victim) => cluster.open(cluster.indexOf(victim))));
  };

/** Nothing that it wrote last has reached anybody, so nobody may have been told of it. */
async function killedUnheard(cluster: GroupCluster): Promise<void> {
  const primary = await cluster.primary();
  const index = cluster.indexOf(primary);
  for (const other of cluster.othersOf(primary)) cluster.links.hold(index, other);
  await until('records are on their way', () => cluster.links.touched > 0);
  await sleep(HARNESS_LIMITS.ackTimeoutMs / 2);
  await primary.kill();
  cluster.links.heal('lose');
  await successorOf(cluster, primary);
  await cluster.open(index);
}

/** What it is asked while it stands still it must not answer as if it still led. */
const stoppedPastItsLease =
  (what: 'read' | 'put' | 'replace', load: 'busy' | 'quiet'): GroupFault['run'] =>
  async (cluster) => {
    // With nothing under way, no record that waits stands in the way of an answer.
    if (load === 'quiet') await cluster.clients.stop();
    const old = await cluster.primary();
    const key = newKey(cluster);
    await old.ask('put', { key, value: 'before' });
    old.pause();
    fired((await cluster.statusOf(old)) === undefined, 'the process that was stopped still answers');
    const input = { key, expected: 'nothing like it', value: 'by the old one' };
    const answer = old.ask(what, input, Infinity).then(
      (output) =>
        Promise.reject(new Error(`a primary that was replaced answered a ${what}: ${JSON.stringify(output)}`)),
      (error: unknown) => error,
    );
    answer.catch(() => {}); // it is awaited once the process goes on
    const successor = await cluster.primary(undefined, old);
    await successor.ask('put', { key, value: 'after' });
    await sleep(leaseMs);
    old.resume();
    const refusal = await answer;
    expect(
      isNostosError(refusal, 'NOT_PRIMARY') || isNostosError(refusal, 'OUTCOME_UNKNOWN'),
      `a ${what} of a primary that was replaced was refused with ${String(refusal)}`,
    );
    if (load === 'quiet') cluster.clients.start();
  };

/** A register that the clients do not use. */
function newKey(cluster: GroupCluster): number {
  return 90_000_000 + cluster.random.below(1_000_000);
}

const parted =
  (ways: 'both' | 'out' | 'in', from: 'all' | 'one'): GroupFault['run'] =>
  async (cluster) => {
    const primary = await cluster.primary();
    const index = cluster.indexOf(primary);
    const others = cluster.othersOf(primary);
    cluster.links.part(index, from === 'all' ? others : others.slice(0, 1), ways);
    // Whoever reaches nobody cannot commit; one lost replica is dropped.
    if (from === 'all') await cluster.primary(undefined, primary);
    await cluster.clients.served();
    fired(cluster.links.touched > 0, 'no message was lost');
    cluster.links.heal();
  };

/** It does not know that another one leads, and its clients ask it as before. */
async function cutOffFromAll(cluster: GroupCluster): Promise<void> {
  const primary = await cluster.primary();
  const index = cluster.indexOf(primary);
  await cluster.clients.stop(); // a local write waits for the quorum writes of its tenant before it
  cluster.links.part(index, cluster.othersOf(primary), 'both');
  cluster.coordinator.onDisk!.awayFor(index);
  // While its lease holds it may still acknowledge what only itself has; that goes into a file, never silently.
  const alone = cluster.clients.newIds(3);
  await primary.ask('insert', { ids: alone, durability: 'local' });
  cluster.clients.start();
  await successorOf(cluster, primary);
  const late = primary.ask('insert', { ids: cluster.clients.newIds(1), durability: 'local' }, Infinity).then(
    () => Promise.reject(new Error('a local write was acknowledged without a lease')),
    (error: unknown) => error,
  );
  late.catch(() => {}); // it is awaited at the end
  const believes = (await cluster.statusOf(primary))?.group;
  fired(believes?.role === 'leading', `it leads no longer: ${JSON.stringify(believes)}`);
  await cluster.clients.served(60);
  await cluster.coordinator.back();
  cluster.links.heal();
  const refusal = await late;
  expect(
    isNostosError(refusal, 'OUTCOME_UNKNOWN') || isNostosError(refusal, 'NOT_PRIMARY'),
    `a local write past the lease was told ${String(refusal)}`,
  );
  await cluster.settled();
  const ids = new Set(await primary.ask('ids', undefined));
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
    const primary = cluster.indexOf(await cluster.primary());
    for (const other of cluster.othersOf(cluster.members[primary]!)) {
      if (how === 'held') cluster.links.hold(primary, other);
      else
        for (const rule of [cluster.links.rule(primary, other), cluster.links.rule(other, primary)]) rule.delayMs = 40;
    }
    await (how === 'held' ? sleep(HARNESS_LIMITS.streamTimeoutMs / 2) : cluster.clients.served());
    fired(cluster.links.touched > 0, `no message was ${how}`);
    cluster.links.heal();
  };

const onTheWire =
  (kind: FrameFault): GroupFault['run'] =>
  async (cluster) => {
    const primary = await cluster.primary();
    const [first = 0] = cluster.othersOf(primary);
    const met = cluster.links.faultNext(cluster.indexOf(primary), first, kind);
    const inTime = await Promise.race([met.then(() => true), sleep(10_000, false)]);
    fired(inTime, `no records came by to ${kind}`);
    await cluster.clients.served();
  };

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
  expect(found === 'while it is away', `a write that only read found ${String(found)}`);
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

/** The directory of a replica is copied, and both are opened: one of them goes on. */
async function openedTwice(cluster: GroupCluster): Promise<void> {
  const [replica] = await cluster.replicas();
  const index = cluster.indexOf(replica!);
  const copy = join(cluster.root, 'copy');
  await replica!.kill();
  cpSync(cluster.dirs[index]!, copy, { recursive: true });
  const original = await cluster.open(index);
  await cluster.clients.served();
  const twin = new Member(cluster.nodeOptions(index, copy));
  try {
    const { store } = await twin.opened;
    fired(store === original.store, 'the copy has another identity');
    const stops = async (member: Member): Promise<StopReason | undefined> =>
      (await cluster.statusOf(member))?.group?.stopped?.reason;
    let reasons: readonly (StopReason | undefined)[] = [];
    await until(
      'one of the two stops',
      async () => {
        reasons = await Promise.all([stops(original), stops(twin)]);
        return reasons.some((reason) => reason !== undefined);
      },
      undefined,
      () => JSON.stringify(reasons),
    );
    const stopped = reasons.filter((reason) => reason !== undefined);
    expect(
      stopped.length === 1 && ['superseded', 'lost-records'].includes(stopped[0]!),
      `of two nodes with one id ${JSON.stringify(reasons)} stopped`,
    );
    await cluster.clients.served();
    const goesOn = reasons[0] === undefined ? original : twin;
    await Promise.all([original.kill(), twin.kill()]);
    if (goesOn === twin) replaceDirectory(copy, cluster.dirs[index]!);
    await cluster.open(index);
  } finally {
    await twin.kill();
    rmSync(copy, { recursive: true, force: true });
  }
}

function replaceDirectory(from: string, to: string): void {
  rmSync(to, { recursive: true, force: true });
  cpSync(from, to, { recursive: true });
}

/** A replica comes back with less than it has acknowledged. */
async function olderImage(cluster: GroupCluster): Promise<void> {
  const [replica] = await cluster.replicas();
  const index = cluster.indexOf(replica!);
  const dir = cluster.dirs[index]!;
  const [old, newer] = [join(cluster.root, 'old'), join(cluster.root, 'newer')];
  await replica!.kill();
  cpSync(dir, old, { recursive: true });
  const back = await cluster.open(index);
  await cluster.settled();
  const ids = cluster.clients.newIds(5);
  await (await cluster.primary()).ask('insert', { ids });
  cluster.clients.acknowledge(ids);
  await back.kill();
  cpSync(dir, newer, { recursive: true });
  replaceDirectory(old, dir);
  const set = await cluster.open(index);
  await stopReason(cluster, set, 'lost-records');
  await cluster.clients.served();
  await set.kill();
  replaceDirectory(newer, dir);
  for (const path of [old, newer]) rmSync(path, { recursive: true, force: true });
  await cluster.open(index);
}

/** A directory that says of itself that it belongs elsewhere is let into no conversation. */
const stranger =
  (field: 'cluster' | 'generation'): GroupFault['run'] =>
  async (cluster) => {
    const [replica] = await cluster.replicas();
    const index = cluster.indexOf(replica!);
    const dir = cluster.dirs[index]!;
    const kept = readFileSync(join(dir, 'node.json'), 'utf8');
    await replica!.kill();
    const other = { ...(JSON.parse(kept) as Record<string, unknown>), [field]: 'f'.repeat(32) };
    writeFileSync(join(dir, 'node.json'), JSON.stringify(other));
    const opened = await cluster.open(index).catch((error: unknown) => error);
    if (opened instanceof Member) {
      if (field === 'generation') await stopReason(cluster, opened, 'generation');
      await cluster.clients.served();
      await until('the stranger is not in sync', async () => {
        const status = await cluster.statusOf(await cluster.primary());
        return status?.group?.record?.inSync.includes(opened.store!) === false;
      });
      const lag = await cluster.statusOf(opened);
      expect(lag?.group?.following?.phase !== 'streaming', 'a stranger was let into the group');
      await opened.kill();
    } else expect(isNostosError(opened), `it was refused with ${String(opened)}`);
    fired(JSON.stringify(other) !== kept, `its ${field} is the same`);
    writeFileSync(join(dir, 'node.json'), kept);
    await cluster.open(index);
  };

/** The last member, whose directory is on the small disk, has no room for a while: as a follower, or while it leads. */
const fullDisk =
  (whose: 'follower' | 'primary'): GroupFault['run'] =>
  async (cluster, disk) => {
    const index = cluster.members.length - 1;
    const member = cluster.members[index]!;
    const leader = await cluster.primary();
    if (whose === 'follower' && leader === member) await leader.ask('handover', {});
    if (whose === 'primary' && leader !== member) await leader.ask('handover', { to: member.store! });
    await until(
      'the roles are as they should be',
      async () => ((await cluster.primary()) === member) === (whose === 'primary'),
    );
    const filler = disk!.fill();
    let seen: unknown;
    const inSync = async (): Promise<boolean> => {
      const status = await cluster.statusOf(await cluster.primary());
      seen = (await cluster.statusOf(member))?.group;
      return status?.group?.record?.inSync.includes(member.store!) === true;
    };
    // Its open segment has room yet.
    await until('who has no room neither leads nor is in sync', async () => {
      const ids = cluster.clients.newIds(4);
      const written = (await cluster.primary()).ask('insert', { ids, bytes: 60_000 });
      await written.then(
        () => cluster.clients.acknowledge(ids),
        () => {},
      );
      return (await cluster.primary()) !== member && !(await inSync());
    });
    await cluster.clients.served();
    rmSync(filler);
    await until('it is in sync again when it has room', inSync, undefined, () => JSON.stringify(seen));
  };

/** The wall clock of the primary leaps an hour ahead, and an hour back. */
async function clockJumps(cluster: GroupCluster): Promise<void> {
  const old = await cluster.primary();
  const index = cluster.indexOf(old);
  const clockFile = join(cluster.root, 'clock');
  writeFileSync(clockFile, '0');
  await old.kill();
  const member = await cluster.open(index, { clockFile });
  await cluster.settled();
  const leader = await cluster.primary();
  if (leader !== member) await leader.ask('handover', { to: member.store! });
  await until('the one whose clock jumps leads', async () => (await cluster.primary()) === member);
  for (const offsetMs of [3_600_000, -3_600_000, 0]) {
    writeFileSync(clockFile, `${offsetMs}`);
    await until('its clock has jumped', async () => {
      const shownMs = await member.ask('clock', undefined);
      return Math.abs(shownMs - offsetMs - Date.now()) < 60_000;
    });
    await cluster.clients.served();
  }
  await member.kill();
  await cluster.open(index);
}

async function handover(cluster: GroupCluster): Promise<void> {
  const old = await cluster.primary();
  const unknown = (): number => cluster.clients.codes.get('OUTCOME_UNKNOWN') ?? 0;
  const before = unknown();
  await old.ask('handover', {});
  const successor = await cluster.primary(undefined, old);
  fired(successor !== old, 'the same one leads');
  await cluster.clients.served();
  expect(unknown() === before, `${unknown() - before} writes do not know what became of them`);
}

export const GROUP_FAULTS: readonly GroupFault[] = [
  { name: 'kill -9 of a replica', run: killed('replica') },
  { name: 'kill -9 of the primary', run: killed('primary') },
  { name: 'kill -9 of the primary, its last records unheard', run: killedUnheard },
  { name: 'kill -9 of the primary and a replica', run: killed('primary and a replica') },
  { name: 'kill -9 of everybody', run: killed('everybody') },
  { name: 'the primary stands still past its lease: a read', run: stoppedPastItsLease('read', 'busy') },
  { name: 'the primary stands still past its lease: a write', run: stoppedPastItsLease('put', 'busy') },
  {
    name: 'the primary stands still past its lease: a write that only reads',
    run: stoppedPastItsLease('replace', 'quiet'),
  },
  { name: 'handover under load', run: handover },
  { name: 'nothing between the primary and the others', run: parted('both', 'all') },
  { name: 'nothing from the primary to the others', run: parted('out', 'all') },
  { name: 'nothing from the others to the primary', run: parted('in', 'all') },
  { name: 'the primary cut off from everything', run: cutOffFromAll, needsEmbedded: true },
  { name: 'nothing between the primary and a replica', run: parted('both', 'one') },
  { name: 'a network that stalls', run: slowed('held') },
  { name: 'a slow network', run: slowed('delayed') },
  { name: 'a record with a wrong byte', run: onTheWire('corrupt') },
  { name: 'a frame that is cut', run: onTheWire('cut') },
  { name: 'records that come twice', run: onTheWire('repeat') },
  { name: 'records that are skipped', run: onTheWire('skip') },
  { name: 'records out of their order', run: onTheWire('swap') },
  { name: 'the coordinator away', run: coordinatorAway },
  { name: 'two nodes with one id', run: openedTwice },
  { name: 'a directory from an older image', run: olderImage },
  { name: 'a member of another cluster', run: stranger('cluster') },
  { name: 'a member of another generation', run: stranger('generation') },
  { name: 'a clock that jumps', run: clockJumps },
  { name: 'a follower whose disk is full', run: fullDisk('follower'), needsDisk: true },
  { name: 'a primary whose disk is full', run: fullDisk('primary'), needsDisk: true },
  { name: 'the coordinator set back to an older image', run: coordinatorSetBack, needsEmbedded: true },
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
  const faults = GROUP_FAULTS.filter(
    ({ needsDisk, needsEmbedded }) =>
      needsDisk !== true && (needsEmbedded !== true || cluster.coordinator.onDisk !== undefined),
  );
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
