/** What a group does when one thing goes wrong, in virtual time, with the times of a real one. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DEFAULT_GROUP_LIMITS } from '../replication/options.ts';
import type { SimNode } from './group-node.ts';
import { World } from './group-world.ts';

const LIMITS = DEFAULT_GROUP_LIMITS;

interface Group {
  readonly world: World;
  readonly leader: SimNode;
  /** Nodes that cannot reach the coordinator. */
  readonly away: Set<number>;
  readonly cuts: Set<string>;
  /** The longest time without an answer to a quorum write, since it was asked last. */
  stallMs(): number;
}

/** A group under load: a write each five milliseconds to whoever leads. */
async function group(options: { seed?: number; nodes?: number; guests?: number } = {}): Promise<Group> {
  const world = new World({ seed: 1, nodes: 3, limits: LIMITS, ...options });
  const [away, cuts] = [new Set<number>(), new Set<string>()];
  world.fate = ({ from, to }) => (cuts.has(`${from}>${to}`) ? 'lost' : { delayMs: 1, ordered: true, copies: 1 });
  world.requestFate = (node) => ({ kind: away.has(node) ? 'lost' : 'normal', delayMs: 2 });
  let [answers, answeredMs, longestMs] = [0, 0, 0];
  const load = (): void => {
    for (const node of world.nodes) node.write();
    const now = world.counts['answersQuorum'] ?? 0;
    longestMs = Math.max(longestMs, world.nowMs - answeredMs);
    if (now > answers) [answers, answeredMs] = [now, world.nowMs];
    world.after(5, load);
  };
  load();
  assert.ok(
    await world.until(
      () => answers > 0 && world.current.record.inSync.length === world.current.record.members.length,
      20_000,
    ),
  );
  await world.run(1_000);
  const stallMs = (): number => {
    const stalled = Math.max(longestMs, world.nowMs - answeredMs);
    [longestMs, answeredMs] = [0, world.nowMs];
    return stalled;
  };
  stallMs();
  return { world, leader: world.leader!, away, cuts, stallMs };
}

test('writes are accepted again within seven seconds of a kill, at a lease of five', async () => {
  for (let seed = 1; seed <= 20; seed++) {
    const { world, leader, stallMs } = await group({ seed });
    // At any moment between two renewals.
    await world.run(world.random.below(LIMITS.renewIntervalMs));
    stallMs();
    leader.crash();
    await world.run(10_000);
    const stalledMs = stallMs();
    assert.notEqual(world.leader, undefined);
    assert.ok(stalledMs > LIMITS.leaseMs * 0.6 && stalledMs <= 7_000, `seed ${seed}: ${stalledMs} ms`);
  }
});

test('a handover stalls writes for less than a tenth of a second, and loses none', async () => {
  for (let seed = 1; seed <= 20; seed++) {
    const { world, leader, stallMs } = await group({ seed });
    leader.step({ kind: 'handover' });
    await world.run(2_000);
    assert.notEqual(world.leader, leader);
    assert.equal(leader.machine.status.role, 'follower');
    const stalledMs = stallMs();
    assert.ok(stalledMs <= 100, `seed ${seed}: ${stalledMs} ms`);
    assert.equal(leader.waiters.size, 0);
    assert.equal(world.counts['rollbacks'], undefined);
  }
});

test('without a coordinator for a minute no quorum write waits, nobody takes over, and the lease comes back', async () => {
  const { world, leader, away, stallMs } = await group();
  const { term } = world.current.record;
  for (const { index } of world.nodes) away.add(index);
  await world.run(60_000);
  assert.ok(stallMs() <= 20);
  assert.equal(leader.machine.holdsLease(leader.now), false);
  away.clear();
  await world.run(10_000);
  assert.ok(stallMs() <= 20);
  assert.deepEqual([world.leader, world.current.record.term], [leader, term]);
  assert.equal(leader.machine.holdsLease(leader.now), true);
});

test('without a lease a local write is acknowledged when it is committed, not before', async () => {
  const { world, leader, away, cuts } = await group();
  away.add(leader.index);
  await world.run(LIMITS.leaseMs);
  for (const { index } of world.nodes) if (index !== leader.index) cuts.add(`${leader.index}>${index}`);
  const before = world.counts['answersLocal'] ?? 0;
  const record = leader.write('local');
  await world.run(500);
  assert.ok(record !== undefined && leader.store.durable >= record.lsn);
  assert.equal(world.counts['answersLocal'] ?? 0, before);
});

test('of two nodes each needs the other: one alone commits nothing, and both go on together', async () => {
  const { world, leader, stallMs } = await group({ nodes: 2 });
  const other = world.nodes.find((node) => node !== leader)!;
  other.crash();
  await world.run(20_000);
  const committed = world.oracle.committed.length;
  await world.run(20_000);
  assert.equal(world.oracle.committed.length, committed);
  other.open();
  await world.run(60_000);
  stallMs();
  await world.run(5_000);
  assert.ok(stallMs() <= 20);
});

test('a replica whose disk is full is dropped at once, and comes back when there is room', async () => {
  const { world, leader, stallMs } = await group();
  const full = world.nodes.find((node) => node !== leader)!;
  full.full = true;
  await world.run(3_000);
  assert.ok(stallMs() < LIMITS.ackTimeoutMs / 2, 'writes do not wait for it to be late');
  assert.equal(world.current.record.inSync.length, 2);
  full.full = false;
  full.step({ kind: 'eligible', eligible: true });
  await world.run(3_000);
  assert.equal(world.current.record.inSync.length, 3);
  assert.ok(stallMs() < 100);
});

test('a primary that others cannot answer resigns although it reaches the coordinator, and others go on', async () => {
  const { world, leader, cuts, stallMs } = await group();
  for (const { index } of world.nodes) cuts.add(`${index}>${leader.index}`);
  await world.run(LIMITS.commitStallMs + 2 * LIMITS.leaseMs);
  assert.notEqual(world.leader, leader);
  stallMs();
  await world.run(2_000);
  assert.ok(stallMs() <= 20);
});

test('a newcomer learns first, becomes a member and in sync at once, and writes do not stop; then another one leaves', async () => {
  const { world, leader, stallMs } = await group({ guests: 1 });
  const versions = world.history.length;
  const newcomer = world.nodes[3]!;
  const store = newcomer.store.store;
  world.admit();
  await world.run(3_000);
  const steps = world.history.slice(versions).map(({ record }) => [record.members.length, record.inSync.length].join());
  assert.deepEqual(
    [...new Set(steps)].filter((step) => step !== '3,3'),
    ['4,4'],
  );
  assert.ok(world.current.record.inSync.includes(store));
  leader.step({ kind: 'change-members', change: { remove: store } });
  await world.run(2_000);
  assert.deepEqual([world.current.record.members.length, world.current.record.inSync.length], [3, 3]);
  assert.ok(stallMs() <= 20);
});
