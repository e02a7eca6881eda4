/**
 * A fault at every step that a restore makes on its disk, in every mode. Whatever happens: a directory without a marker has
 * the old state or the new one, one with a marker is led to the new one by the same call, or back to the old one by `abandon`.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { inspect } from 'node:util';
import { filesBelow } from '../../base/directory-tree.ts';
import { isNostosError } from '../../base/errors.ts';
import { seededRandom } from '../../base/random.ts';
import { FaultyDisk, PowerCut } from '../../testing/faulty-disk.ts';
import { RestoreExecutorError } from './errors.ts';
import { RestoreExecutor } from './executor.ts';
import { WORK } from './journal.ts';
import { RESTORE_MARKER } from './marker.ts';
import { LocalFsBackend } from './local-fs-backend.ts';
import { RESTORED, blake3, fillBackend, planOf, type Tree } from './snapshot.fixture.ts';
import { RestoreMode, type RestorePlan } from './types.ts';

const DIR = '/srv/nostos/data';
const NEW = shortened(Object.entries(RESTORED));
const OTHERS: Tree = { 'control.db': 'control', 'tenant_1/data.sqlite': 'of another one' };
const STALE: Tree = { 'tenant_7/data.sqlite': 'old rows', 'tenant_7/data.sqlite-wal': 'old wal' };
const CASES: readonly [RestoreMode, before: Tree, after: Tree][] = [
  [RestoreMode.NewCluster, {}, NEW],
  [RestoreMode.SingleTenant, OTHERS, { ...OTHERS, ...NEW }],
  [RestoreMode.WipeAndRestore, { ...OTHERS, ...STALE }, NEW],
];
const SEEDS = [0, 1, 2];

/** A failure prints its trees. */
function shortened(tree: [string, string][]): Tree {
  return Object.fromEntries(tree.map(([path, text]) => [path, text.length < 40 ? text : blake3(text)]));
}

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
  return shortened(paths.map((path) => [path, Buffer.from(disk.bytes(`${DIR}/${path}`)).toString()]));
}

const isNew = (tree: Tree): boolean => 'tenant_7/hnsw/MiniLM.bin' in tree;

for (const [mode, old, after] of CASES)
  test(`power cut, full disk and bad disk at every step of ${mode}`, async () => {
    const backend = await fillBackend(new LocalFsBackend('/backups', { disk: new FaultyDisk() }));
    const plan: RestorePlan = await planOf(backend);
    const executor = (disk: FaultyDisk): RestoreExecutor =>
      new RestoreExecutor(backend, DIR, {}, { disk, lock: async () => ({ release() {} }) });
    const caught = (error: unknown): unknown => error;
    const run = (disk: FaultyDisk): Promise<unknown> =>
      executor(disk)
        .execute(plan, mode)
        .then(() => undefined, caught);
    const giveUp = (disk: FaultyDisk): Promise<unknown> => executor(disk).abandon().catch(caught);

    const clean = diskWith(old);
    const from = clean.trace.length;
    assert.equal(await run(clean), undefined);
    assert.deepEqual(treeOf(clean), after);
    assert.deepEqual(treeOf(clean.crash(seededRandom(1))), after);
    assert.ok(!clean.exists(`${DIR}/${WORK}`));
    const steps = clean.trace.slice(from);

    const seen = { old: 0, new: 0, ended: 0, undone: 0 };
    const check = async (disk: FaultyDisk, where: string, before: Tree = old): Promise<void> => {
      const left = treeOf(disk);
      if (!disk.exists(`${DIR}/${RESTORE_MARKER}`)) {
        assert.deepEqual(left, isNew(left) ? after : before, where);
        seen[isNew(left) ? 'new' : 'old'] += 1;
      }
      const other = disk.clone();
      const gaveUp = await giveUp(other);
      const isRefused = gaveUp instanceof RestoreExecutorError && gaveUp.kind === 'RestoreInProgress';
      assert.ok(typeof gaveUp === 'boolean' || isRefused, `${where}: ${inspect(gaveUp)}`);
      if (gaveUp === true) {
        assert.deepEqual(treeOf(other), before, where);
        assert.ok(!other.exists(`${DIR}/${RESTORE_MARKER}`), where);
        seen.undone += 1;
      }
      const error = await run(disk);
      if (error === undefined) seen.ended += 1;
      // A restore that is over is found by the next one as somebody's files.
      else assert.ok(isNostosError(error, 'FILE_EXISTS') && isNew(left), where);
      assert.deepEqual(treeOf(disk), after, where);
    };

    const struck = new Set<string>();
    const diedTwice = { again: 0, 'given up': 0 };
    for (const { number, kind: step } of steps)
      for (const kind of ['power', 'ENOSPC', 'EIO'] as const)
        for (const repeat of kind === 'power' ? [0] : [0, 1000]) {
          const where = `${kind} at step ${number}, ${step}, and ${repeat} more`;
          const disk = diskWith(old);
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
            if (error.kind !== 'Unfinished') assert.deepEqual(treeOf(disk), old, where);
            if (error.kind !== 'Unfinished' && repeat === 0) assert.ok(!disk.exists(`${DIR}/${RESTORE_MARKER}`), where);
            const repaired = disk.clone();
            await check(repaired, where);
          }
          for (const seed of SEEDS) {
            const left = disk.crash(seededRandom(seed * 1000 + number));
            await check(left.clone(), `${where}, seed ${seed}`);
            // A wipe may find that the last one was over.
            const before = !left.exists(`${DIR}/${RESTORE_MARKER}`) && isNew(treeOf(left)) ? after : old;
            // Who takes it up, or gives it up, dies as well.
            for (const [what, second, at] of [
              ['again', run, (seed * 7 + number) % steps.length],
              ['given up', giveUp, (seed * 11 + number * 5) % 24],
            ] as const) {
              const again = left.clone();
              again.inject({ atStep: again.trace.length + at, kind: 'power' });
              await second(again);
              if (again.fired.length === 0) continue;
              diedTwice[what] += 1;
              const found = again.crash(seededRandom(seed * 1000 + number + 1));
              await check(found, `${where}, seed ${seed}, ${what}`, before);
            }
          }
        }
    for (const [what, times] of Object.entries(seen)) assert.ok(times > 20, `${what}: ${JSON.stringify(seen)}`);
    assert.ok(diedTwice.again > 200 && diedTwice['given up'] > 50, JSON.stringify(diedTwice));
    for (const kind of ['power', 'EIO'] as const)
      for (const step of ['create', 'write', 'sync', 'sync-directory', 'rename', 'remove', 'remove-directory'])
        assert.ok(struck.has(`${kind} ${step}`), `${kind} struck no ${step}`);
    for (const step of ['create', 'write', 'rename', 'make-directory'])
      assert.ok(struck.has(`ENOSPC ${step}`), `ENOSPC struck no ${step}`);
  });
