import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import type { RollbackNotice } from '../types.ts';
import { rootedDisk, toldPath } from './killed-run.fixture.ts';
import {
  REQUEST,
  World,
  assertNothingLost,
  assertRolledBack,
  formatNode,
  openRunner,
} from './simulated-node.fixture.ts';

const FIXTURE = fileURLToPath(new URL('killed-run.fixture.ts', import.meta.url));
const EVERY = 3;

function newRoot(): string {
  const root = mkdtempSync(join(tmpdir(), 'nostos-rollback-'));
  formatNode(rootedDisk(root));
  return root;
}

test('kill -9 in the midst of any step on a real disk: the next process ends it with the same plan', async () => {
  const whole = newRoot();
  const { stdout } = spawnSync(process.execPath, [FIXTURE, whole, 'never'], { encoding: 'utf8' });
  rmSync(whole, { recursive: true });
  const steps = Number(stdout);
  assert.ok(steps > 40, stdout);
  const states = new Set<string>();
  for (let killAt = 0; killAt < steps; killAt += EVERY) {
    const root = newRoot();
    const { signal } = spawnSync(process.execPath, [FIXTURE, root, String(killAt)]);
    assert.equal(signal, 'SIGKILL');
    const [disk, world] = [rootedDisk(root), new World()];
    for (const line of readFileSync(toldPath(root), 'utf8').split('\n').filter(Boolean))
      world.told.push(JSON.parse(line) as RollbackNotice);
    await assertNothingLost(disk);
    const runner = openRunner(disk, world);
    const { intent } = runner.journal();
    states.add(intent?.state ?? 'none');
    await runner.run(REQUEST);
    await assertRolledBack(disk, world, intent === undefined ? {} : { id: intent.plan.id });
    rmSync(root, { recursive: true });
  }
  assert.deepEqual([...states], ['none', 'planned', 'preserved', 'recovering', 'recovered', 'announced']);
});
