/** A member that waits for a person: what its shut directory tells, and how a person lets it try again. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { acquireDirectoryLock } from '../base/directory-lock.ts';
import { systemDisk } from '../base/disk.ts';
import { loadNode } from '../node/node-file.ts';
import { RejoinFile } from '../node/rejoin-file.ts';
import { stepFailed, takeUp } from '../node/rejoin-progress.ts';
import type { RejoinDecision } from '../node/rejoin-decision.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { inProcess, temporaryDirectory } from './nostos-process.fixture.ts';

const LIMITS = { rejoinAttemptsMax: 3, rejoinTotalAttemptsMax: 4 };
const DECISION: RejoinDecision = {
  row: 'damage',
  action: 'network-restore',
  reason: 'tenant acme is damaged',
  keeps: 'the whole directory',
  drops: 'nothing',
  next: ['operator'],
};

test('what was tried is told of a shut directory; --again counts from the start, and only under its lock', async (t) => {
  const cwd = await temporaryDirectory(t);
  const place = ['--dir', 'a', '--coordinator', `embedded:${cwd}/coordinator`];
  for (const args of [
    ['tenant', 'create', 'acme', '--dir', 'a'],
    ['group', 'init', ...place],
  ])
    assert.equal((await inProcess(cwd, args)).code, EXIT_CODES.ok[0]);
  const again = ['rejoin', '--again', '--dir', 'a'];
  assert.match((await inProcess(cwd, again)).stdout, /^nothing was tried here/);

  const dir = join(cwd, 'a');
  const file = new RejoinFile(systemDisk, dir);
  file.add(loadNode(dir, undefined).store, { damage: 'tenant acme' });
  let progress = takeUp(DECISION, { limits: LIMITS, nowMs: 1 });
  for (let at = 1; at <= LIMITS.rejoinTotalAttemptsMax; at += 1)
    progress = stepFailed(progress, `nobody answered, time ${at}`, { limits: LIMITS, nowMs: at });
  assert.equal(progress.current, 'operator');
  file.setProgress(progress);

  const plan = await inProcess(cwd, ['rejoin', '--plan', ...place]);
  assert.match(plan.stdout, /waits for a person, who says nostos rejoin --again/);
  const shut = await inProcess(cwd, ['status', '--dir', 'a']);
  assert.notEqual(shut.code, EXIT_CODES.ok[0], 'a member is not opened alone');
  for (const text of [
    /operator: tenant acme is damaged/,
    /attempts +4 in all, 4 since it was last in place/,
    /network-restore \(damage\) failed: nobody answered, time 4/,
  ])
    assert.match(shut.stderr, text);

  {
    using _lock = await acquireDirectoryLock({ dir, timeoutMs: 0, holder: { command: 'this test', version: '0' } });
    const locked = await inProcess(cwd, again);
    assert.equal(locked.stdout, '');
    assert.match(locked.stderr, /this test/);
  }
  assert.equal(new RejoinFile(systemDisk, dir).progress?.current, 'operator');
  assert.match((await inProcess(cwd, again)).stdout, /^it will try network-restore when it is started/);
  const { stdout } = await inProcess(cwd, [...again, '--json']);
  const { current, attemptsTotal, attemptsEver } = (JSON.parse(stdout) as { progress: typeof progress }).progress;
  assert.deepEqual([current, attemptsTotal, attemptsEver], ['network-restore', 0, 4]);
  assert.doesNotMatch((await inProcess(cwd, ['rejoin', '--plan', ...place])).stdout, /waits for a person/);

  const absent = await inProcess(cwd, ['rejoin', '--again', '--dir', 'absent']);
  assert.notEqual(absent.code, EXIT_CODES.ok[0]);
  assert.ok(!existsSync(join(cwd, 'absent')), 'a wrong name makes no directory');
});
