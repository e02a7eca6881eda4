/** The part `rollback` of the tour as a visitor runs it: to its end, and ended in the middle. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { ENTRY, nostos, temporaryDirectory } from '../nostos-process.fixture.ts';

const TIMEOUT_MS = 120_000;

/** Processes whose command line has all of these words; undefined where the system does not show them. */
function processesWith(...words: readonly string[]): number[] | undefined {
  let names: string[];
  try {
    names = readdirSync('/proc').filter((name) => /^\d+$/.test(name));
  } catch {
    return undefined;
  }
  return names.map(Number).filter((pid) => {
    try {
      const line = readFileSync(`/proc/${pid}/environ`, 'utf8') + readFileSync(`/proc/${pid}/cmdline`, 'utf8');
      return words.every((word) => line.includes(word));
    } catch {
      return false; // it has ended meanwhile
    }
  });
}

test('the tour shows a rollback, and every check of it holds', { timeout: TIMEOUT_MS }, async (t) => {
  const cwd = await temporaryDirectory(t);
  const { code, stdout, stderr } = await nostos(cwd, ['tour', '--only', 'rollback', '--json']);
  assert.equal(code, 0, stdout + stderr);
  const { ok, parts } = JSON.parse(stdout) as { ok: boolean; parts: { part: string; checks: { ok: boolean }[] }[] };
  assert.ok(ok);
  assert.deepEqual(
    parts.map(({ part }) => part),
    ['rollback'],
  );
  assert.equal(parts[0]?.checks.filter((one) => one.ok).length, 11);
});

for (const { name, after } of [
  { name: 'SIGINT', after: /node 1 leads/ },
  { name: 'SIGKILL', after: /The network is cut/ },
] as const)
  test(`ended by ${name}, the tour leaves no process behind`, { timeout: TIMEOUT_MS }, async (t) => {
    const cwd = await temporaryDirectory(t);
    const members = (): number[] | undefined => processesWith(`TMPDIR=${cwd}`, 'member-process');
    if (members() === undefined) return t.skip('this system does not show its processes');
    const env = { ...process.env, TMPDIR: cwd };
    const child = spawn(process.execPath, [ENTRY, 'tour', '--only', 'rollback', '--no-serve'], { cwd, env });
    t.after(() => child.kill('SIGKILL'));
    for await (const line of createInterface({ input: child.stdout })) if (after.test(line)) break;
    assert.ok((members()?.length ?? 0) >= 2, 'members run');
    const closed = once(child, 'close');
    child.stdout.resume();
    child.kill(name);
    assert.deepEqual(await closed, [null, name]);
    const lastMs = performance.now() + 10_000;
    while ((members()?.length ?? 0) > 0 && performance.now() < lastMs) await sleep(20);
    assert.deepEqual(members(), []);
    if (name === 'SIGINT') assert.deepEqual(readdirSync(cwd), [], 'its files are removed');
    return undefined;
  });
