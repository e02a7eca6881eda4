import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { TestContext } from 'node:test';
import { Worker } from 'node:worker_threads';
import { acquireDirectoryLock, readDirectoryHolder } from './directory-lock.ts';
import { isNostosError } from './errors.ts';

const MODULE = JSON.stringify(new URL('./directory-lock.ts', import.meta.url).href);
const holder = { command: 'a test', version: '0' };

function temporaryDir(t: TestContext): string {
  const dir = mkdtempSync(join(tmpdir(), 'nostos-lock-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

const takeAndTell = (dir: string, tell: string) => `
  import { acquireDirectoryLock } from ${MODULE};
  globalThis.lock = await acquireDirectoryLock(${JSON.stringify({ dir, timeoutMs: 200, holder })}).catch((e) => e.code);
  ${tell};
  setInterval(() => globalThis.lock, 1000);`;

async function holdInChild(t: TestContext, dir: string) {
  const script = takeAndTell(dir, `console.log(typeof lock === 'string' ? lock : 'held')`);
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.after(() => child.kill('SIGKILL'));
  const [line] = (await once(child.stdout, 'data')) as [Buffer];
  return { child, answer: line.toString().trim() };
}

test('the second of two openings is told who holds the directory', async (t) => {
  const dir = temporaryDir(t);
  using first = await acquireDirectoryLock({ dir, timeoutMs: 0, holder });
  await assert.rejects(acquireDirectoryLock({ dir, timeoutMs: 120, holder }), (error: unknown) => {
    assert.ok(isNostosError(error, 'DIRECTORY_LOCKED'));
    assert.match(error.message, new RegExp(`process ${process.pid} on .*a test`));
    assert.deepEqual(error.details.holder, first.holder);
    return true;
  });
  assert.deepEqual(readDirectoryHolder(dir), first.holder);
});

test('a released directory is free again, and releasing twice is harmless', async (t) => {
  const dir = temporaryDir(t);
  const first = await acquireDirectoryLock({ dir, timeoutMs: 0, holder });
  first.release();
  first.release();
  using second = await acquireDirectoryLock({ dir, timeoutMs: 0, holder });
  assert.equal(second.holder.pid, process.pid);
});

test('waiting ends as soon as the holder lets go', async (t) => {
  const dir = temporaryDir(t);
  const first = await acquireDirectoryLock({ dir, timeoutMs: 0, holder });
  const waiting = acquireDirectoryLock({ dir, timeoutMs: 10_000, holder });
  setTimeout(() => first.release(), 100);
  (await waiting).release();
});

test('waiting can be cancelled, with the reason of the signal', async (t) => {
  const dir = temporaryDir(t);
  using _held = await acquireDirectoryLock({ dir, timeoutMs: 0, holder });
  const reason = new Error('enough');
  const signal = AbortSignal.timeout(50);
  const aborted = new AbortController();
  signal.addEventListener('abort', () => aborted.abort(reason));
  await assert.rejects(acquireDirectoryLock({ dir, timeoutMs: 10_000, holder }, { signal: aborted.signal }), reason);
});

test('another process is kept out, and its crash frees the directory', async (t) => {
  const dir = temporaryDir(t);
  const { child, answer } = await holdInChild(t, dir);
  assert.equal(answer, 'held');
  await assert.rejects(acquireDirectoryLock({ dir, timeoutMs: 0, holder }), (error: unknown) => {
    assert.ok(isNostosError(error, 'DIRECTORY_LOCKED'));
    assert.equal((error.details.holder as { pid: number }).pid, child.pid);
    return true;
  });
  child.kill('SIGKILL');
  await once(child, 'exit');
  using lock = await acquireDirectoryLock({ dir, timeoutMs: 0, holder });
  assert.equal(lock.holder.pid, process.pid);
  assert.equal((await holdInChild(t, dir)).answer, 'DIRECTORY_LOCKED');
});

test('of two threads only one holds the directory', async (t) => {
  const dir = temporaryDir(t);
  const script = takeAndTell(
    dir,
    `(await import('node:worker_threads')).parentPort.postMessage(typeof lock === 'string' ? lock : 'held')`,
  );
  const workers = [1, 2].map(() => new Worker(new URL(`data:text/javascript,${encodeURIComponent(script)}`)));
  const answers = await Promise.all(workers.map(async (worker) => ((await once(worker, 'message')) as [string])[0]));
  assert.deepEqual(answers.sort(), ['DIRECTORY_LOCKED', 'held']);
  await Promise.all(workers.map((worker) => worker.terminate()));
  using lock = await acquireDirectoryLock({ dir, timeoutMs: 2_000, holder });
  assert.ok(lock);
});

test('a lock file that is no database is named', async (t) => {
  const dir = temporaryDir(t);
  const { writeFileSync } = await import('node:fs');
  writeFileSync(join(dir, 'lock'), 'x'.repeat(5000));
  await assert.rejects(acquireDirectoryLock({ dir, timeoutMs: 0, holder }), (error: unknown) => {
    assert.ok(isNostosError(error, 'IO_FAILED'));
    assert.match(error.message, /lock/);
    return true;
  });
});
