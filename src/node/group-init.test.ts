import assert from 'node:assert/strict';
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import type { Generation, NodeId, StoreId } from '../base/brands.ts';
import { systemDisk } from '../base/disk.ts';
import { NostosError, isNostosError, type ErrorCode } from '../base/errors.ts';
import type { Coordinator, GroupRecord } from '../coordination/coordinator.ts';
import { embeddedCoordination } from '../coordination/embedded.ts';
import { NewestSeen, writeNewest } from '../coordination/newest-seen.ts';
import { initGroup } from './group-init.ts';
import { adoptRecovered, recoverGroup } from './group-recover.ts';
import { loadNode, writeNode } from './node-file.ts';
import { openNode } from './open-node.ts';
import { planRejoin } from './rejoin-plan.ts';
import { withStopped, type StoreReport } from './stopped-directory.ts';

function directory(t: TestContext): string {
  const dir = mkdtempSync(join(tmpdir(), 'nostos-group-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

async function write(dir: string, rows: number): Promise<void> {
  await using node = await openNode({ dir, scrubIntervalMs: false });
  await node.tenants.create('acme', { ifNotExists: true });
  const tenant = node.tenant('acme');
  await tenant.migrate(['create table notes (id integer primary key not null, body text)']);
  for (let i = 0; i < rows; i++) await tenant.write((tx) => tx.run("insert into notes (body) values ('x')"));
}

async function lone(t: TestContext, rows = 5): Promise<string> {
  const dir = join(directory(t), 'data');
  await write(dir, rows);
  return dir;
}

function group(t: TestContext): { readonly coordinator: Coordinator; readonly dir: string } {
  const dir = directory(t);
  return { coordinator: embeddedCoordination({ dir }).group(), dir };
}

async function reportOf(dir: string): Promise<StoreReport> {
  return withStopped([dir], async ([found]) => found!.report);
}

const code = (wanted: ErrorCode) => (error: unknown) => isNostosError(error, wanted);

test('group init: the first record has the store, its generation and what it has committed', async (t) => {
  const dir = await lone(t);
  const { coordinator } = group(t);
  const { store, generation, end, watermark } = await reportOf(dir);
  assert.ok(end.lsn > 5 && watermark === end.lsn);
  const made = await initGroup(coordinator, dir);
  const { nonce: _, ...record } = made.record;
  assert.deepEqual(record, {
    generation,
    term: end.term,
    primary: null,
    members: [store],
    inSync: [store],
    minInSync: 1,
    renewal: 0,
    committed: { generation, term: end.term, lsn: end.lsn },
  });
  assert.deepEqual(await coordinator.read(), made);
  assert.deepEqual(new NewestSeen(systemDisk, join(dir, 'coordinator.json')).newest, made);
  await assert.rejects(openNode({ dir }), code('COORDINATOR_REGRESSED'), 'as a lone node it does not open any more');
  assert.equal((await planRejoin(coordinator, dir)).decision.action, 'stand');
});

test('group init: refused where there is a group, or the directory is of one, and then nothing has changed', async (t) => {
  const [dir, other] = [await lone(t), await lone(t)];
  const { coordinator } = group(t);
  await initGroup(coordinator, dir);
  const made = await coordinator.read();
  await assert.rejects(initGroup(coordinator, other), code('GROUP_EXISTS'));
  await write(other, 1);
  await assert.rejects(initGroup(coordinator, dir), code('GROUP_EXISTS'));
  await assert.rejects(initGroup(group(t).coordinator, dir), code('GROUP_EXISTS'), 'at another coordinator');
  assert.deepEqual(await coordinator.read(), made);
});

test('group init: what is not whole, or no node of its own, begins no group', async (t) => {
  const cases: readonly ((dir: string) => void)[] = [
    (dir) => damageLog(dir),
    (dir) => writeNode(dir, { ...loadNode(dir, undefined), copy: { source: null, reaches: null } }),
    (dir) => rmSync(join(dir, 'node.json')),
  ];
  for (const spoil of cases) {
    const dir = await lone(t);
    spoil(dir);
    const { coordinator } = group(t);
    await assert.rejects(initGroup(coordinator, dir), code('INVALID_ARGUMENT'));
    assert.equal(await coordinator.read(), undefined);
    assert.ok(existsSync(join(dir, 'coordinator')));
  }
});

/** The process ends at one moment of `init`; each is followed by the same call again. */
const ENDINGS: Readonly<Record<string, (sound: Coordinator) => Coordinator>> = {
  'before the record is written': (sound) => ({ ...bound(sound), compareAndSet: () => Promise.reject(gone()) }),
  'after the record is written': (sound) => ({
    ...bound(sound),
    compareAndSet: async (version, record) => {
      await sound.compareAndSet(version, record);
      throw gone();
    },
  }),
};

function bound(sound: Coordinator): Coordinator {
  return {
    read: () => sound.read(),
    compareAndSet: (version, record) => sound.compareAndSet(version, record),
    watch: (listener, options) => sound.watch(listener, options),
  };
}

function gone(): NostosError {
  return new NostosError('COORDINATOR_UNAVAILABLE', 'the process has ended');
}

for (const [when, broken] of Object.entries(ENDINGS))
  test(`group init: cut off ${when}, it opens for nobody, and the same call goes on`, async (t) => {
    const dir = await lone(t);
    const { coordinator } = group(t);
    await assert.rejects(initGroup(broken(coordinator), dir), code('COORDINATOR_UNAVAILABLE'));
    assert.ok(!existsSync(join(dir, 'coordinator')));
    await assert.rejects(openNode({ dir }), code('COORDINATOR_REGRESSED'));
    const made = await initGroup(coordinator, dir);
    assert.deepEqual(await coordinator.read(), made);
    assert.deepEqual(
      readdirSync(dir).filter((name) => name.startsWith('coordinator')),
      ['coordinator.json'],
    );
  });

test('group init: another node that is first leaves this one a lone node', async (t) => {
  const [dir, other] = [await lone(t), await lone(t)];
  const { coordinator } = group(t);
  const raced: Coordinator = {
    ...bound(coordinator),
    compareAndSet: async (version, record) => {
      await initGroup(coordinator, other);
      return coordinator.compareAndSet(version, record);
    },
  };
  await assert.rejects(initGroup(raced, dir), code('GROUP_EXISTS'));
  await write(dir, 1);
});

function damageLog(dir: string): void {
  const path = join(
    dir,
    'log',
    readdirSync(join(dir, 'log')).find((name) => name.endsWith('.ndb'))!,
  );
  const bytes = readFileSync(path);
  bytes[400]! ^= 0xff;
  writeFileSync(path, bytes);
}

interface World {
  readonly coordinator: Coordinator;
  readonly place: string;
  readonly a: string;
  readonly b: string;
  readonly record: GroupRecord;
}

/** Three members, of which c is gone; a has more of the log than b. All have seen the newest record. */
async function threeMembers(t: TestContext): Promise<World> {
  const a = await lone(t);
  const b = join(directory(t), 'data');
  cpSync(a, b, { recursive: true });
  const identity = loadNode(b, undefined);
  const [second, third] = ['b'.repeat(32) as StoreId, 'c'.repeat(32) as StoreId];
  writeNode(b, { ...identity, node: '2'.repeat(32) as NodeId, store: second });
  const { end, watermark } = await reportOf(b);
  await write(a, 3);
  const { store, generation } = await reportOf(a);
  const { coordinator, dir: place } = group(t);
  const record: GroupRecord = {
    generation,
    term: 9 as GroupRecord['term'],
    primary: null,
    members: [store, second, third],
    inSync: [store, third],
    minInSync: 2,
    renewal: 50,
    committed: { generation, term: end.term, lsn: watermark },
    nonce: '1'.repeat(32),
  };
  await coordinator.compareAndSet(0, { ...record, term: 1 as GroupRecord['term'], nonce: '0'.repeat(32) });
  await coordinator.compareAndSet(1, record);
  for (const dir of [a, b]) {
    rmSync(join(dir, 'coordinator'), { recursive: true });
    writeNewest(systemDisk, join(dir, 'coordinator.json'), { version: 2, record });
  }
  return { coordinator, place, a, b, record };
}

/** The coordinator has lost everything. */
async function setBack(t: TestContext): Promise<World> {
  const world = await threeMembers(t);
  rmSync(join(world.place, 'groups'), { recursive: true });
  return world;
}

test('group recover: with enough stores the furthest one is put in sync, and those that are there go on', async (t) => {
  const { coordinator, a, b, record } = await setBack(t);
  const looked = await recoverGroup(coordinator, { dirs: [b, a], dryRun: true });
  assert.deepEqual([looked.decision?.kind, looked.done], ['lead-from', false]);
  assert.equal(await coordinator.read(), undefined);
  assert.equal((await planRejoin(coordinator, a)).decision.action, 'stop');
  const { decision, done } = await recoverGroup(coordinator, { dirs: [b, a] });
  const { store, end } = await reportOf(a);
  assert.ok(done && decision?.kind === 'lead-from' && decision.store === store);
  const after = await coordinator.read();
  const term = Math.max(record.term, end.term) + 1;
  assert.deepEqual(
    { ...after?.record, nonce: '' },
    { ...record, term, inSync: [store], minInSync: 1, renewal: 51, nonce: '' },
  );
  assert.equal((await planRejoin(coordinator, a)).decision.action, 'stand');
  assert.equal((await planRejoin(coordinator, b)).decision.action, 'wait');
});

test('group recover: where a store in sync is whole nothing is changed', async (t) => {
  const { coordinator, a, b } = await threeMembers(t);
  const { decision, done } = await recoverGroup(coordinator, { dirs: [a, b] });
  assert.deepEqual([decision?.kind, done, (await coordinator.read())?.version], ['not-needed', false, 2]);
});

test('group recover: with too few nothing is changed, and it is said what may be lost', async (t) => {
  const { coordinator, b } = await setBack(t);
  const before = contents(b);
  for (const options of [{ acceptLoss: false }, { acceptLoss: true, dryRun: true }]) {
    const { decision, begins, done } = await recoverGroup(coordinator, { dirs: [b], ...options });
    assert.equal(decision?.kind, options.acceptLoss ? 'accept-loss' : 'too-few');
    assert.ok(!done && 'loss' in decision && decision.loss?.onlyOn.length === 2);
    assert.deepEqual(begins?.loss, options.acceptLoss ? decision.loss : undefined);
  }
  assert.equal(await coordinator.read(), undefined);
  assert.deepEqual(contents(b), before);
});

test('group recover: a coordinator that lost everything, and one store of three: its generation begins, the others are told', async (t) => {
  const { coordinator, a, b, record } = await setBack(t);
  const { store, end } = await reportOf(b);
  const { begins, done } = await recoverGroup(coordinator, { dirs: [b], acceptLoss: true });
  const term = Math.max(record.term, end.term) + 1;
  assert.deepEqual([done, begins?.store, begins?.term, (await coordinator.read())?.version], [true, store, term, 1]);
  assert.equal((await planRejoin(coordinator, b)).decision.action, 'stand');
  const { decision } = await planRejoin(coordinator, a);
  assert.deepEqual([decision.row, decision.action], ['coordinator-regressed', 'stop'], 'it has seen a later version');
  assert.match(decision.advice ?? '', /nostos restore --replace/);
  await assert.rejects(adoptRecovered(coordinator, a), code('DIRECTORY_FOREIGN'));
});

test('group recover: a member elsewhere counts by its report, and adopts what was recovered, and nothing else', async (t) => {
  const { coordinator, a, b, record } = await setBack(t);
  const other = JSON.parse(JSON.stringify(await reportOf(b))) as StoreReport;
  await assert.rejects(adoptRecovered(coordinator, b), code('COORDINATOR_REGRESSED'));
  const { done, notLocked } = await recoverGroup(coordinator, { dirs: [a], reports: [other] });
  assert.deepEqual([done, notLocked], [true, [other.store]]);
  assert.equal((await planRejoin(coordinator, b)).decision.action, 'stop', 'it has seen a later version');
  await adoptRecovered(coordinator, b);
  assert.equal((await planRejoin(coordinator, b)).decision.action, 'wait');

  const older = group(t).coordinator;
  await older.compareAndSet(0, record);
  await assert.rejects(adoptRecovered(older, b), code('COORDINATOR_REGRESSED'));
});

test('group recover: a member that lives, or renews meanwhile, refuses it', async (t) => {
  const { coordinator, a, b, record } = await setBack(t);
  const raced: Coordinator = {
    ...bound(coordinator),
    compareAndSet: async (version, next) => {
      await coordinator.compareAndSet(0, record);
      return coordinator.compareAndSet(version, next);
    },
  };
  await assert.rejects(recoverGroup(raced, { dirs: [a, b] }), code('COORDINATOR_CONFLICT'));
  assert.deepEqual((await coordinator.read())?.record, record);
  await withStopped([b], () => assert.rejects(recoverGroup(coordinator, { dirs: [a, b] }), code('DIRECTORY_LOCKED')));
});

/** What is done to directory and coordinator, and what the plan for `b` then says. */
const PLANS: Readonly<Record<string, readonly [(world: World) => Promise<unknown>, action: string]>> = {
  'the coordinator was emptied': [async ({ place }) => rmSync(join(place, 'groups'), { recursive: true }), 'stop'],
  'the log is damaged, and it is not in sync': [
    async ({ b, coordinator, record }) => {
      damageLog(b);
      await coordinator.compareAndSet(2, {
        ...record,
        primary: { store: record.members[0]!, boot: '7'.repeat(32) as never },
        nonce: '3'.repeat(32),
      });
    },
    'network-restore',
  ],
  'the group is of a newer generation, and has a primary': [
    async ({ coordinator, record }) =>
      coordinator.compareAndSet(2, {
        ...record,
        generation: 'f'.repeat(32) as Generation,
        primary: { store: record.members[0]!, boot: '7'.repeat(32) as never },
        nonce: '3'.repeat(32),
      }),
    'set-aside-and-restore',
  ],
  'another member leads': [
    async ({ coordinator, record }) =>
      coordinator.compareAndSet(2, {
        ...record,
        primary: { store: record.members[0]!, boot: '7'.repeat(32) as never },
        nonce: '3'.repeat(32),
      }),
    'stream',
  ],
  'nobody leads': [async () => {}, 'wait'],
};

for (const [what, [happen, action]] of Object.entries(PLANS))
  test(`rejoin --plan: ${what} → ${action}, and nothing is changed`, async (t) => {
    const world = await threeMembers(t);
    await happen(world);
    const before = contents(world.b);
    const { decision } = await planRejoin(world.coordinator, world.b);
    assert.equal(decision.action, action, decision.reason);
    assert.deepEqual(contents(world.b), before);
  });

test('rejoin --plan: while the coordinator is away, by the newest record that was seen', async (t) => {
  const { a } = await threeMembers(t);
  const away: Coordinator = { ...bound(group(t).coordinator), read: () => Promise.reject(gone()) };
  const plan = await planRejoin(away, a);
  assert.deepEqual([plan.decision.action, plan.group], ['go-on', 'away']);
});

test('rejoin --plan: an image older than what was acknowledged in sync is not gone on with', async (t) => {
  const { coordinator, a, b, record } = await threeMembers(t);
  const { generation, end } = await reportOf(a);
  const committed = { generation, term: end.term, lsn: end.lsn };
  const inSync = record.members.slice(1);
  await coordinator.compareAndSet(2, { ...record, inSync, committed, nonce: '4'.repeat(32) });
  const { decision } = await planRejoin(coordinator, b);
  assert.deepEqual([decision.row, decision.action], ['damage', 'wait']);
});

function contents(dir: string): ReadonlyMap<string, string> {
  const names = readdirSync(dir, { recursive: true, withFileTypes: true }).filter(
    (entry) => entry.isFile() && !/^lock(?:-journal)?$|-shm$|-wal$/.test(entry.name),
  );
  return new Map(
    names.map(({ parentPath, name }) => [
      join(parentPath, name),
      readFileSync(join(parentPath, name)).toString('base64'),
    ]),
  );
}
