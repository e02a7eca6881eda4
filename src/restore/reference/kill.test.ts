/** kill -9 of a real process before each step that it makes on a real disk; then its directory is opened again. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { NetworkRestore, finishRestore } from './network-restore.ts';
import type { Files } from './peers.fixture.ts';
import { configFor, contentOf, directoryOf, stagedIn } from './peers.fixture.ts';
import { STAGING } from './local-directory.ts';
import { NetworkRestoreServer } from './server.ts';

const CHILD = fileURLToPath(new URL('killed-restore.fixture.ts', import.meta.url));
const OLD: Files = { '00000001.ndb': 'old', '00000009.ndb': 'stale' };
const FILES: Files = { '00000001.ndb': 'new', '00000002.ndb': 'n'.repeat(70_000) };
const NEW: Files = { ...FILES, '00000001.ndb.bak': 'old', '00000009.ndb.bak': 'stale' };

async function runChild(port: number, dir: string, killAt: number): Promise<{ signal: string | null; out: string }> {
  const child = spawn(process.execPath, [CHILD, String(port), dir, String(killAt)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let out = '';
  child.stdout.on('data', (chunk: Buffer) => (out += chunk.toString()));
  const signal = await new Promise<string | null>((resolve) => child.on('close', (_, by) => resolve(by)));
  return { signal, out };
}

const withoutStaging = (dir: string): Files => {
  const { [STAGING]: _, ...files } = contentOf(dir);
  return files;
};

test('killed before any of its steps, the directory holds the old files, or a plan that the next run finishes', async (t) => {
  const server = new NetworkRestoreServer(directoryOf(t, FILES));
  t.after(() => server.stop());
  const port = Number((await server.start('127.0.0.1:0')).split(':')[1]);
  const whole = directoryOf(t, OLD);
  const { out } = await runChild(port, whole, -1);
  assert.deepEqual(contentOf(whole), NEW);
  const steps = Number(out);
  assert.ok(steps > 15 && steps < 60, out);

  const outcomes = { old: 0, new: 0, finished: 0 };
  const killed = async (step: number): Promise<void> => {
    const dir = directoryOf(t, OLD);
    const { signal } = await runChild(port, dir, step);
    assert.equal(signal, 'SIGKILL', `step ${step}`);
    const planned = stagedIn(dir).includes('plan.json');
    if (!planned) {
      const found = withoutStaging(dir);
      const which = '00000002.ndb' in found ? 'new' : 'old';
      assert.deepEqual(found, which === 'new' ? NEW : OLD, `step ${step}`);
      outcomes[which] += 1;
    }
    if (planned && step % 2 === 0) {
      assert.ok((await finishRestore(dir)) !== undefined);
      assert.deepEqual(contentOf(dir), NEW, `step ${step}`);
      outcomes.finished += 1;
      return;
    }
    // The lock of the killed process holds nobody up.
    const config = configFor(port, { retainLogFiles: false });
    const report = await new NetworkRestore(config, { lockTimeoutMs: 0 }).withLocalDir(dir).execute();
    assert.equal(report.finishedEarlierRun, planned);
    const after = contentOf(dir);
    for (const [name, text] of Object.entries(FILES)) assert.equal(after[name], text, `step ${step}`);
    assert.ok(!('00000009.ndb' in after) && !(STAGING in after), `step ${step}`);
    if (planned) outcomes.finished += 1;
  };
  for (let step = 0; step < steps; step += 2)
    await Promise.all([killed(step), ...(step + 1 < steps ? [killed(step + 1)] : [])]);
  assert.ok(outcomes.old > 5 && outcomes.new > 0 && outcomes.finished > 5, JSON.stringify(outcomes));
});
