/**
 * A fault at every step that a restore makes on its disk, in every mode. Whatever happens: a directory without a marker has
 * the old state or the new one, one with a marker is led to the new one by the same call, or back to the old one by `abandon`.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { filesBelow } from '../../base/directory-tree.ts';
import { isNostosError } from '../../base/errors.ts';
import { seededRandom } from '../../base/random.ts';
import { FaultyDisk, PowerCut } from '../../testing/faulty-disk.ts';
import { RestoreExecutorError } from './errors.ts';
import { RestoreExecutor } from './executor.ts';
import { RESTORE_MARKER, WORK } from './journal.ts';
import { LocalFsBackend } from './local-fs-backend.ts';
import { RESTORED, fillBackend, planOf, type Tree } from './snapshot.fixture.ts';
import { RestoreMode, type RestorePlan } from './types.ts';

const DIR = '/srv/nostos/data';
const OTHERS: Tree = { 'control.db': 'control', 'tenant_1/data.sqlite': 'of another one' };
const STALE: Tree = { 'tenant_7/data.sqlite': 'old rows', 'tenant_7/data.sqlite-wal': 'old wal' };
const CASES: readonly [RestoreMode, before: Tree, after: Tree][] = [
  [RestoreMode.NewCluster, {}, RESTORED],
  [RestoreMode.SingleTenant, OTHERS, { ...OTHERS, ...RESTORED }],
  [RestoreMode.WipeAndRestore, { ...OTHERS, ...STALE }, RESTORED],
];
const SEEDS = [0, 1, 2, 3, 4, 5];

function diskWith(tree: Tree): FaultyDisk {
  const disk = new FaultyDisk({ directories: 'synced' });
  const paths = Object.keys(tree).map((path) => `${DIR}/${path}`);
  for (const dir of [DIR, ...paths.map((path) => path.slice(0, path.lastIndexOf('/')))]) disk.makeDirectory(dir);
  for (const [path, text] of Object.entries(tree)) {
    const file = disk.open(`${DIR}/${path}`, 'create');
    file.write(Buffer.from(text), 0);
    file.sync();
    file.close();
  }
  for (const dir of [...paths.map((path) => path.slice(0, path.lastIndexOf('/'))), DIR, '/srv/nostos', '/srv', '/'])
    disk.syncDirectory(dir);
  return disk;
}

function treeOf(disk: FaultyDisk): Tree {
  const paths = [...filesBelow(disk, DIR)].filter((path) => !path.startsWith(`${WORK}/`) && path !== RESTORE_MARKER);
  return Object.fromEntries(paths.map((path) => [path, Buffer.from(disk.bytes(`${DIR}/${path}`)).toString()]));
}

for (const [mode, before, after] of CASES)
  test(`power cut, full disk and bad disk at every step of ${mode}`, async () => {
    const backend = await fillBackend(new LocalFsBackend('/backups', { disk: new FaultyDisk() }));
    const plan: RestorePlan = await planOf(backend);
    const executor = (disk: FaultyDisk): RestoreExecutor =>
      new RestoreExecutor(backend, DIR, {}, { disk, lock: async () => ({ release() {} }) });
    const run = (disk: FaultyDisk): Promise<unknown> =>
      executor(disk)
        .execute(plan, mode)
        .then(
          () => undefined,
          (error: unknown) => error,
        );

    const clean = diskWith(before);
    const from = clean.trace.length;
    assert.equal(await run(clean), undefined);
    assert.deepEqual(treeOf(clean), after);
    assert.deepEqual(treeOf(clean.crash(seededRandom(1))), after);
    assert.ok(!clean.exists(`${DIR}/${WORK}`));
    const steps = clean.trace.slice(from);

    const seen = { old: 0, new: 0, ended: 0, undone: 0 };
    const check = async (disk: FaultyDisk, where: string): Promise<void> => {
      const left = treeOf(disk);
      if (!disk.exists(`${DIR}/${RESTORE_MARKER}`)) {
        const isNew = 'tenant_7/hnsw/MiniLM.bin' in left;
        assert.deepEqual(left, isNew ? after : before, where);
        seen[isNew ? 'new' : 'old'] += 1;
      }
      const other = disk.clone();
      const isBack = await executor(other)
        .abandon()
        .catch((error: unknown) => {
          assert.ok(
            error instanceof RestoreExecutorError && error.kind === 'RestoreInProgress',
            `${where}: ${String(error)}`,
          );
          return false;
        });
      if (isBack) {
        assert.deepEqual(treeOf(other), before, where);
        assert.ok(!other.exists(`${DIR}/${RESTORE_MARKER}`), where);
        seen.undone += 1;
      }
      const error = await run(disk);
      if (error === undefined) seen.ended += 1;
      // A restore that is over is found by the next one as somebody's files.
      else
        assert.ok(
          isNostosError(error, 'FILE_EXISTS') && 'tenant_7/hnsw/MiniLM.bin' in left,
          `${where}: ${String(error)}`,
        );
      assert.deepEqual(treeOf(disk), after, where);
    };

    const struck = new Set<string>();
    let diedTwice = 0;
    for (const { number, kind: step } of steps)
      for (const kind of ['power', 'ENOSPC', 'EIO'] as const)
        for (const repeat of kind === 'power' ? [0] : [0, 1000]) {
          const where = `${kind} at step ${number}, ${step}, and ${repeat} more`;
          const disk = diskWith(before);
          disk.inject({ atStep: number, kind, repeat });
          const error = await run(disk);
          // Late in a run, no step may be left that a full disk can fail.
          if (disk.fired.length === 0) {
            assert.equal(kind, 'ENOSPC', where);
            continue;
          }
          struck.add(`${kind} ${disk.fired[0]?.kind}`);
          assert.equal(disk.openFiles, 0, where);
          if (kind === 'power')
            assert.ok(
              error instanceof PowerCut || (error as Error).cause instanceof PowerCut,
              `${where}: ${String(error)}`,
            );
          else {
            assert.ok(error instanceof RestoreExecutorError, `${where}: ${String(error)}`);
            // Only one that says so leaves anything but the old state, as far as the disk lets it.
            if (error.kind !== 'Unfinished') assert.deepEqual(treeOf(disk), before, where);
            if (error.kind !== 'Unfinished' && repeat === 0) assert.ok(!disk.exists(`${DIR}/${RESTORE_MARKER}`), where);
            const repaired = disk.clone();
            await check(repaired, where);
          }
          for (const seed of SEEDS) {
            const left = disk.crash(seededRandom(seed * 1000 + number));
            const again = left.clone();
            await check(left, `${where}, seed ${seed}`);
            // The run that takes it up dies as well.
            again.inject({ atStep: again.trace.length + ((seed * 7 + number) % steps.length), kind: 'power' });
            await run(again);
            if (again.fired.length === 0) continue;
            diedTwice += 1;
            await check(again.crash(seededRandom(seed * 1000 + number + 1)), `${where}, seed ${seed}, and again`);
          }
        }
    for (const [what, times] of Object.entries(seen)) assert.ok(times > 20, `${what}: ${JSON.stringify(seen)}`);
    assert.ok(diedTwice > 200, `${diedTwice} died twice`);
    for (const kind of ['power', 'EIO'] as const)
      for (const step of ['create', 'write', 'sync', 'sync-directory', 'rename', 'remove', 'remove-directory'])
        assert.ok(struck.has(`${kind} ${step}`), `${kind} struck no ${step}`);
    for (const step of ['create', 'write', 'rename', 'make-directory'])
      assert.ok(struck.has(`ENOSPC ${step}`), `ENOSPC struck no ${step}`);
  });
