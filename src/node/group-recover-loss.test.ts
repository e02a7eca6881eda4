/** `nostos group recover --accept-loss`: cut off anywhere it ends in the same way, and nobody opens what is half done. */
import assert from 'node:assert/strict';
import { cpSync, existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import type { BootId, Generation, StoreId, Term } from '../base/brands.ts';
import { systemDisk, type Disk, type DiskFile } from '../base/disk.ts';
import { NostosError, isNostosError, type ErrorCode } from '../base/errors.ts';
import type { Coordinator, GroupRecord } from '../coordination/coordinator.ts';
import { embeddedCoordination } from '../coordination/embedded.ts';
import { NewestSeen, writeNewest } from '../coordination/newest-seen.ts';
import { EMPTY_JOURNAL, FileJournal } from '../rollback/run/journal.ts';
import { abandonRecovery, adoptRecovered, recoverGroup, type RecoveryReport } from './group-recover.ts';
import { loadRecovery } from './group-recovery-journal.ts';
import { initGroup } from './group-init.ts';
import { loadNode, writeNode } from './node-file.ts';
import { openNode } from './open-node.ts';
import { planRejoin } from './rejoin-plan.ts';
import { restoreNode } from './restore-node.ts';
import { withStopped, type StoreReport } from './stopped-directory.ts';

const code = (wanted: ErrorCode) => (error: unknown) => isNostosError(error, wanted);
const LOST = 'c'.repeat(32) as StoreId;
const DEAD = 'd'.repeat(32) as StoreId;

interface World {
  readonly root: string;
  readonly dir: string;
  readonly coordinator: Coordinator;
  readonly record: GroupRecord;
  readonly before: StoreReport;
}

const reportOf = (dir: string): Promise<StoreReport> => withStopped([dir], async ([found]) => found!.report);

/** One member of three that was not in sync last; the other two, which were, are gone. */
async function survivor(t: TestContext): Promise<World> {
  const root = mkdtempSync(join(tmpdir(), 'nostos-recover-'));
  t.after(() => rmSync(root, { recursive: true, force: true }));
  const dir = join(root, 'data');
  {
    await using node = await openNode({ dir, scrubIntervalMs: false });
    const tenant = await node.tenants.create('acme');
    await tenant.migrate(['create table notes (id integer primary key not null, body text)']);
    for (let i = 0; i < 3; i++) await tenant.write((tx) => tx.run("insert into notes (body) values ('x')"));
  }
  const coordinator = embeddedCoordination({ dir: join(root, 'coordinator') }).group();
  const first = await initGroup(coordinator, dir);
  const { store, generation, end } = await reportOf(dir);
  const record: GroupRecord = {
    ...first.record,
    term: 40 as Term,
    members: [store, LOST, DEAD],
    inSync: [LOST, DEAD],
    minInSync: 2,
    committed: { generation, term: end.term, lsn: (end.lsn + 2) as typeof end.lsn },
    nonce: '1'.repeat(32),
  };
  const result = await coordinator.compareAndSet(1, record);
  assert.ok(result.ok);
  writeNewest(systemDisk, join(dir, 'coordinator.json'), { version: 2, record });
  return { root, dir, coordinator, record, before: await reportOf(dir) };
}

async function assertRecovered({ dir, coordinator, record, before }: World, report: RecoveryReport): Promise<void> {
  const { begins } = report;
  assert.ok(report.done && begins !== null);
  const { store, end } = before;
  const { generation } = begins;
  const current = await coordinator.read();
  assert.deepEqual(
    { ...current?.record, nonce: '' },
    {
      ...record,
      generation,
      term: 41,
      primary: null,
      inSync: [store],
      minInSync: 1,
      renewal: record.renewal + 1,
      committed: { generation, term: 41, lsn: end.lsn + 1 },
      nonce: '',
    },
  );
  assert.notEqual(generation, before.generation);
  assert.equal(current?.version, 3, 'one replacement of the record');
  assert.equal(loadNode(dir, undefined).generation, generation);
  assert.deepEqual(new NewestSeen(systemDisk, join(dir, 'coordinator.json')).newest, current);
  const after = await reportOf(dir);
  assert.deepEqual(after.end, { generation, term: 41, lsn: end.lsn + 1 });
  assert.deepEqual([after.store, after.watermark, after.damage], [store, end.lsn + 1, undefined]);
  assert.deepEqual(after.terms.slice(0, -1), before.terms);
  assert.deepEqual(begins.fork, { term: end.term, lsn: end.lsn });
  assert.deepEqual(begins.loss, {
    after: { term: end.term, lsn: end.lsn },
    known: { from: end.lsn + 1, to: end.lsn + 2 },
    onlyOn: [LOST, DEAD],
    committed: record.committed,
  });
  assert.equal(loadRecovery(systemDisk, dir), undefined);
  assert.equal((await planRejoin(coordinator, dir)).decision.action, 'stand');
}

test('group recover --accept-loss: a new generation behind the end of the log, in one change of the record', async (t) => {
  const world = await survivor(t);
  const { dir, coordinator } = world;
  const looked = await recoverGroup(coordinator, { dirs: [dir], acceptLoss: true, dryRun: true });
  const report = await recoverGroup(coordinator, { dirs: [dir], acceptLoss: true });
  assert.deepEqual(
    { ...looked.begins, generation: '' },
    { ...report.begins, generation: '' },
    'a dry run says the same',
  );
  await assertRecovered(world, report);
  const again = await recoverGroup(coordinator, { dirs: [dir], acceptLoss: true });
  assert.deepEqual([again.decision?.kind, again.done], ['not-needed', false]);
});

/** The process ends at the step before this number; `fired` says at which. */
function endingAt(at: number): { readonly disk: Disk; readonly fired: () => string | undefined } {
  let [steps, fired] = [0, undefined as string | undefined];
  const step = (what: string): void => {
    if (steps++ < at) return;
    fired ??= what;
    throw new NostosError('INTERNAL', 'the process has ended');
  };
  const around = (file: DiskFile): DiskFile => ({
    path: file.path,
    read: (...given) => file.read(...given),
    write: (...given) => (step('write'), file.write(...given)),
    dataSync: () => (step('sync'), file.dataSync()),
    sync: () => (step('sync'), file.sync()),
    truncate: (size) => (step('truncate'), file.truncate(size)),
    size: () => file.size(),
    close: () => file.close(),
  });
  const disk: Disk = {
    open: (path, mode) => (mode === 'create' && step('create'), around(systemDisk.open(path, mode))),
    list: (dir) => systemDisk.list(dir),
    exists: (path) => systemDisk.exists(path),
    isDirectory: (path) => systemDisk.isDirectory(path),
    size: (path) => systemDisk.size(path),
    freeBytes: (path) => systemDisk.freeBytes(path),
    mountsIn: (dir) => systemDisk.mountsIn(dir),
    rename: (from, to) => (step('rename'), systemDisk.rename(from, to)),
    remove: (path) => (step('remove'), systemDisk.remove(path)),
    removeDirectory: (path) => (step('remove'), systemDisk.removeDirectory(path)),
    makeDirectory: (path) => systemDisk.makeDirectory(path),
    syncDirectory: (path) => (step('sync-directory'), systemDisk.syncDirectory(path)),
    link: (from, to) => (step('link'), systemDisk.link(from, to)),
  };
  return { disk, fired: () => fired };
}

test('group recover --accept-loss: ended at any step on disk, it opens for nobody, and the same call goes on', async (t) => {
  const world = await survivor(t);
  const { root, dir, coordinator } = world;
  const kept = join(root, 'kept');
  cpSync(dir, join(kept, 'data'), { recursive: true });
  cpSync(join(root, 'coordinator'), join(kept, 'coordinator'), { recursive: true });
  const struck = new Set<string>();
  let [begun, resumed] = [0, 0];
  for (let at = 0; ; at++) {
    for (const name of ['data', 'coordinator']) {
      rmSync(join(root, name), { recursive: true });
      cpSync(join(kept, name), join(root, name), { recursive: true });
    }
    const { disk, fired } = endingAt(at);
    const run = recoverGroup(coordinator, { dirs: [dir], acceptLoss: true }, disk);
    if (
      await run.then(
        () => true,
        () => false,
      )
    ) {
      assert.equal(fired(), undefined);
      break;
    }
    struck.add(fired()!);
    const journal = loadRecovery(systemDisk, dir);
    if (journal !== undefined) {
      begun += 1;
      const restore = (): Promise<unknown> => restoreNode({ dir, from: ['127.0.0.1:1'], replace: true });
      const plan = (): Promise<unknown> => planRejoin(coordinator, dir);
      const init = (): Promise<unknown> => initGroup(coordinator, dir);
      // Which costs more than the rest of a turn.
      for (const open of begun % 6 === 1 ? [openNode, plan, restore, init] : [plan])
        await assert.rejects(open({ dir }), code('RECOVERY_UNFINISHED'));
      const looked = await recoverGroup(coordinator, { dirs: [dir], dryRun: true });
      assert.deepEqual([looked.done, looked.begins?.generation], [false, journal.record.generation]);
    }
    const report = await recoverGroup(coordinator, { dirs: [dir], acceptLoss: true });
    if (journal !== undefined) {
      resumed += 1;
      assert.equal(report.begins?.generation, journal.record.generation, 'the same end');
    }
    // Where only the journal had still to go, nothing was left to do.
    if (report.done) await assertRecovered(world, report);
    else assert.equal(report.decision?.kind, 'not-needed');
  }
  assert.ok(begun > 10 && resumed === begun, `${begun} of them with a journal`);
  assert.deepEqual([...struck].toSorted(), ['create', 'remove', 'rename', 'sync', 'sync-directory', 'write']);
});

function ended(): NostosError {
  return new NostosError('COORDINATOR_UNAVAILABLE', 'the process has ended');
}

function bound(sound: Coordinator): Coordinator {
  return {
    read: () => sound.read(),
    compareAndSet: (version, record) => sound.compareAndSet(version, record),
    watch: (listener, options) => sound.watch(listener, options),
  };
}

const ENDINGS: Readonly<Record<string, (sound: Coordinator) => Coordinator>> = {
  'before the record is replaced': (sound) => ({ ...bound(sound), compareAndSet: () => Promise.reject(ended()) }),
  'after the record is replaced': (sound) => ({
    ...bound(sound),
    compareAndSet: async (version, record) => {
      await sound.compareAndSet(version, record);
      throw ended();
    },
  }),
};

for (const [when, broken] of Object.entries(ENDINGS))
  test(`group recover --accept-loss: cut off ${when}, it is finished, or given up as long as nothing has changed`, async (t) => {
    const world = await survivor(t);
    const { dir, coordinator } = world;
    const begin = (): Promise<unknown> => recoverGroup(broken(coordinator), { dirs: [dir], acceptLoss: true });
    await assert.rejects(begin(), code('COORDINATOR_UNAVAILABLE'));
    const replaced = (await coordinator.read())?.version === 3;
    assert.equal(replaced, when.startsWith('after'));
    if (replaced) await assert.rejects(abandonRecovery(coordinator, dir), code('RECOVERY_UNFINISHED'));
    else {
      await abandonRecovery(coordinator, dir);
      assert.deepEqual(await reportOf(dir), world.before);
      await assert.rejects(abandonRecovery(coordinator, dir), code('INVALID_ARGUMENT'));
      const { version, record } = (await coordinator.read())!;
      assert.deepEqual(
        [version, record],
        [3, { ...world.record, nonce: record.nonce }],
        'a late request finds another one',
      );
      return;
    }
    await assertRecovered(world, await recoverGroup(coordinator, { dirs: [dir] }));
  });

test('group recover --accept-loss: a member that lives refuses it, and then nothing has changed', async (t) => {
  const { dir, coordinator, record, before } = await survivor(t);
  const renewed = { ...record, renewal: record.renewal + 1, nonce: '2'.repeat(32) };
  const raced: Coordinator = {
    ...bound(coordinator),
    compareAndSet: async (version, next) => {
      await coordinator.compareAndSet(2, renewed);
      return coordinator.compareAndSet(version, next);
    },
  };
  await assert.rejects(recoverGroup(raced, { dirs: [dir], acceptLoss: true }), code('COORDINATOR_CONFLICT'));
  assert.deepEqual((await coordinator.read())?.record, renewed);
  assert.deepEqual(await reportOf(dir), before);
});

test('group recover --accept-loss: an unfinished one is not carried out over a record that it does not know', async (t) => {
  const { dir, coordinator, record, before } = await survivor(t);
  const cut = ENDINGS['before the record is replaced']!(coordinator);
  await assert.rejects(recoverGroup(cut, { dirs: [dir], acceptLoss: true }), code('COORDINATOR_UNAVAILABLE'));
  await coordinator.compareAndSet(2, { ...record, renewal: record.renewal + 1, nonce: '2'.repeat(32) });
  await assert.rejects(recoverGroup(coordinator, { dirs: [dir], acceptLoss: true }), code('COORDINATOR_CONFLICT'));
  assert.ok(existsSync(join(dir, 'recovery.json')), 'the right coordinator may be another one');
  await abandonRecovery(coordinator, dir);
  assert.deepEqual(await reportOf(dir), before);
});

test('group recover --accept-loss: nothing without a yes, or with a journal that says nothing', async (t) => {
  const { dir, coordinator, before } = await survivor(t);
  let asked: RecoveryReport | undefined;
  const confirm = async (report: RecoveryReport): Promise<boolean> => ((asked = report), false);
  const { done } = await recoverGroup(coordinator, { dirs: [dir], acceptLoss: true, confirm });
  assert.deepEqual([done, asked?.begins?.store, asked?.decision?.kind], [false, before.store, 'accept-loss']);
  assert.deepEqual([await reportOf(dir), (await coordinator.read())?.version], [before, 2]);
  for (const text of ['', '{}', '{"format":1}']) {
    writeFileSync(join(dir, 'recovery.json'), text);
    await assert.rejects(recoverGroup(coordinator, { dirs: [dir], acceptLoss: true }), code('UNSUPPORTED_FORMAT'));
  }
});

test('group recover --accept-loss: the store to go on with has to be here; one of the parent adopts nothing', async (t) => {
  const world = await survivor(t);
  const { root, dir, coordinator, before } = world;
  await assert.rejects(
    recoverGroup(coordinator, { dirs: [], reports: [before], acceptLoss: true }),
    code('INVALID_ARGUMENT'),
  );
  const other = join(root, 'other');
  cpSync(dir, other, { recursive: true });
  const { begins } = await recoverGroup(coordinator, { dirs: [dir], acceptLoss: true });
  await assert.rejects(adoptRecovered(coordinator, other), code('DIRECTORY_FOREIGN'));
  const plan = await planRejoin(coordinator, other);
  assert.equal(plan.decision.row, 'other-generation');
  assert.equal(plan.directory.generation, before.generation satisfies Generation);
  assert.match(plan.decision.reason, new RegExp(`generation ${begins!.generation}`));
});

test('group recover --accept-loss: nobody goes on with a store that is in the midst of dropping its tail', async (t) => {
  const { dir, coordinator, before } = await survivor(t);
  const common = { term: 1, lsn: 1, hash: 'a'.repeat(64) };
  const plan = {
    ...{ id: 'b'.repeat(32), createdAtMs: 1, common, frontier: { term: 1, lsn: 5 }, watermark: 0 },
    primary: { address: 'x:1', term: 2 },
  };
  const file = { path: 'x', records: 1, acknowledged: 0, bytes: 1, digest: 'd'.repeat(64) };
  mkdirSync(join(dir, 'rollback'), { recursive: true });
  const journal = new FileJournal(systemDisk, join(dir, 'rollback'));
  journal.save({ ...EMPTY_JOURNAL, intent: { state: 'recovering', plan, file } });
  const { decision, done } = await recoverGroup(coordinator, { dirs: [dir], acceptLoss: true });
  assert.deepEqual([decision?.kind, done, decision?.unusable[0]?.store], ['too-few', false, before.store]);
  assert.match(decision?.unusable[0]?.why ?? '', /begun to drop/);
});

test('group recover --accept-loss: a primary that renews its lease is alive, and one that stands still is not', async (t) => {
  const { dir, coordinator, record, before } = await survivor(t);
  const led = { ...record, primary: { store: LOST, boot: 'e'.repeat(32) as BootId }, nonce: '2'.repeat(32) };
  await coordinator.compareAndSet(2, led);
  const renewing: Coordinator = {
    ...bound(coordinator),
    read: async () => {
      const current = await coordinator.read();
      await coordinator.compareAndSet(3, { ...led, renewal: led.renewal + 1, nonce: '3'.repeat(32) });
      return current;
    },
  };
  const recovering = recoverGroup(renewing, { dirs: [dir], acceptLoss: true, stillMs: 100 });
  await assert.rejects(recovering, code('COORDINATOR_CONFLICT'));
  assert.deepEqual(await reportOf(dir), before);
  const { done } = await recoverGroup(coordinator, { dirs: [dir], acceptLoss: true, stillMs: 100 });
  assert.ok(done);
});

test('group recover --accept-loss: where the new generation is lost too, one of its parent goes on', async (t) => {
  const world = await survivor(t);
  const { root, dir, coordinator, record, before } = world;
  const other = join(root, 'other');
  cpSync(dir, other, { recursive: true });
  // It was not in sync either, as far as it has heard.
  writeNewest(systemDisk, join(other, 'coordinator.json'), { version: 2, record: { ...record, inSync: [DEAD] } });
  writeNode(other, { ...loadNode(other, undefined), store: LOST });
  const first = await recoverGroup(coordinator, { dirs: [dir], acceptLoss: true });
  rmSync(dir, { recursive: true });
  assert.equal((await recoverGroup(coordinator, { dirs: [other] })).decision?.kind, 'too-few');
  const second = await recoverGroup(coordinator, { dirs: [other], acceptLoss: true });
  assert.ok(second.done && first.begins !== null && second.begins !== null);
  assert.deepEqual(
    [second.begins.parent, second.begins.term, second.begins.store, second.begins.fork],
    [before.generation, first.begins.term + 1, LOST, first.begins.fork],
  );
  assert.deepEqual(second.begins.loss.onlyOn, [before.store, DEAD]);
  const lsn = before.end.lsn + 1;
  assert.deepEqual(second.begins.loss.known, { from: lsn, to: lsn }, 'the record that began it');
  assert.equal((await planRejoin(coordinator, other)).decision.action, 'stand');
});
