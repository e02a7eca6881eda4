/** kill -9 of a real process before each step that it makes on a real disk, in every mode; then the same call, or `abandon`. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { RestoreExecutorError } from './errors.ts';
import { RestoreExecutor } from './executor.ts';
import { JOURNAL, WORK } from './journal.ts';
import { RESTORE_MARKER } from './marker.ts';
import { LocalFsBackend } from './local-fs-backend.ts';
import {
  RESTORED,
  fillBackend,
  planOf,
  readTree,
  temporaryDirectory,
  writeTree,
  type Tree,
} from './snapshot.fixture.ts';
import { RestoreMode, type RestoreEvent } from './types.ts';

const CHILD = fileURLToPath(new URL('killed-restore.fixture.ts', import.meta.url));
const OTHERS: Tree = { 'control.db': 'control', 'tenant_1/data.sqlite': 'of another one' };
const STALE: Tree = { 'tenant_7/data.sqlite': 'old rows', 'tenant_7/data.sqlite-wal': 'old wal' };
const CASES: readonly [RestoreMode, before: Tree, after: Tree][] = [
  [RestoreMode.NewCluster, {}, RESTORED],
  [RestoreMode.SingleTenant, { ...OTHERS, 'tenant_7/': '' }, { ...OTHERS, ...RESTORED }],
  [RestoreMode.WipeAndRestore, { ...OTHERS, ...STALE }, RESTORED],
];

async function runChild(...args: readonly string[]): Promise<{ signal: string | null; out: string }> {
  const child = spawn(process.execPath, [CHILD, ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
  let out = '';
  child.stdout.on('data', (chunk: Buffer) => (out += chunk.toString()));
  const signal = await new Promise<string | null>((resolve) => child.on('close', (_, by) => resolve(by)));
  return { signal, out };
}

const withoutWork = (dir: string): Tree =>
  Object.fromEntries(
    Object.entries(readTree(dir)).filter(([path]) => !path.startsWith(`${WORK}/`) && path !== RESTORE_MARKER),
  );

for (const [mode, before, after] of CASES)
  test(`${mode}, killed before any of its steps: the same call ends it, others are refused, abandon undoes it`, async (t) => {
    const root = temporaryDirectory(t);
    const backend = await fillBackend(new LocalFsBackend(join(root, 'backups')));
    const plan = await planOf(backend);
    const directory = (name: string): string => {
      writeTree(join(root, name), before);
      return join(root, name);
    };
    const whole = directory('whole');
    const { out } = await runChild(backend.root(), whole, mode, '-1');
    assert.deepEqual(readTree(whole), after);
    const steps = Number(out);
    assert.ok(steps > 25 && steps < 100, out);

    const seen = { old: 0, between: 0, new: 0, resumed: 0, refused: 0, abandoned: 0, keptItems: 0 };
    const killed = async (step: number): Promise<void> => {
      const dir = directory(`step-${step}`);
      const { signal } = await runChild(backend.root(), dir, mode, String(step));
      assert.equal(signal, 'SIGKILL', `step ${step}`);
      const executor = new RestoreExecutor(backend, dir);
      const left = withoutWork(dir);
      const isMarked = existsSync(join(dir, RESTORE_MARKER));
      const isIn = 'tenant_7/hnsw/MiniLM.bin' in left;
      // A directory that is neither the old one nor the new one is marked.
      const isOld = JSON.stringify(left) === JSON.stringify(readTree(directory('fresh')));
      if (isOld) seen.old += 1;
      else if (isIn) seen.new += 1;
      else seen.between += 1;
      if (!isOld && !isIn) assert.ok(isMarked, `step ${step}`);
      if (isIn) assert.deepEqual(left, after, `step ${step}`);

      if (isMarked) {
        const otherwise = mode === RestoreMode.SingleTenant ? RestoreMode.WipeAndRestore : RestoreMode.SingleTenant;
        for (const [other, way] of [
          [{ ...plan, snapshotId: 'snap-2' }, mode],
          [plan, otherwise],
        ] as const)
          await assert.rejects(
            executor.execute(other, way),
            (error) => error instanceof RestoreExecutorError && error.kind === 'RestoreInProgress',
          );
        assert.deepEqual(withoutWork(dir), left, `step ${step}`);
        seen.refused += 1;
      }
      if (step % 3 === 0 && isMarked && !isIn) {
        assert.equal(await executor.abandon(), true);
        assert.deepEqual(readTree(dir), readTree(directory('fresh')), `step ${step}`);
        seen.abandoned += 1;
      }
      const isOver = isIn && !existsSync(join(dir, WORK, JOURNAL));
      const events: RestoreEvent[] = [];
      const run = executor.execute(plan, mode, { onProgress: (event) => events.push(event) });
      // The journal is gone, so this is a new call: it finds what the last one has made.
      if (isOver && mode !== RestoreMode.WipeAndRestore)
        await assert.rejects(run, (error) => error instanceof RestoreExecutorError && error.code === 'FILE_EXISTS');
      else assert.equal((await run).items.length, 3);
      if (events.some((event) => event.kind === 'resuming')) {
        seen.resumed += 1;
        const first = events.find((event) => event.kind === 'reading');
        if (first === undefined || first.item > 1) seen.keptItems += 1;
      }
      // Besides what a crash may leave of the journal's directory, it is the new state.
      if (!isOver || mode === RestoreMode.WipeAndRestore) assert.deepEqual(readTree(dir), after, `step ${step}`);
    };
    for (let step = 0; step < steps; step += 2)
      await Promise.all([killed(step), ...(step + 1 < steps ? [killed(step + 1)] : [])]);
    for (const [what, times] of Object.entries(seen))
      if (what !== 'between' || mode === RestoreMode.WipeAndRestore)
        assert.ok(times > 0, `${what}: ${JSON.stringify(seen)}`);
  });
