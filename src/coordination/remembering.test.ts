import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { TestContext } from 'node:test';
import { systemDisk } from '../base/disk.ts';
import { isNostosError } from '../base/errors.ts';
import { groupRecord } from '../testing/coordinator-compliance.ts';
import type { CasResult, Coordinator, Versioned } from './coordinator.ts';
import { NewestSeen } from './newest-seen.ts';
import { RememberingCoordinator } from './remembering.ts';

/** Answers when the test says so, in any order. */
class SlowCoordinator implements Coordinator {
  readonly reads: ((current: Versioned | undefined) => void)[] = [];
  readonly writes: ((result: CasResult) => void)[] = [];
  tell: (current: Versioned) => void = () => assert.fail('nobody watches');

  read(): Promise<Versioned | undefined> {
    return new Promise((resolve) => this.reads.push(resolve));
  }

  compareAndSet(): Promise<CasResult> {
    return new Promise((resolve) => this.writes.push(resolve));
  }

  watch(listener: (current: Versioned) => void): void {
    this.tell = listener;
  }
}

function setup(t: TestContext) {
  const dir = mkdtempSync(join(tmpdir(), 'nostos-seen-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  const slow = new SlowCoordinator();
  const seen = new NewestSeen(systemDisk, join(dir, 'coordinator.json'));
  return { slow, seen, node: new RememberingCoordinator(slow, seen) };
}

const versions = Array.from({ length: 5 }, (_, i) => ({ version: i + 1, record: groupRecord({ renewal: i }) }));
const [v1, v2, v3, , v5] = versions as [Versioned, Versioned, Versioned, Versioned, Versioned];
const regressed = (error: unknown): boolean => isNostosError(error, 'COORDINATOR_REGRESSED');

test('an answer that a newer one overtook is no step back, and the newer one counts', async (t) => {
  const { slow, seen, node } = setup(t);
  const [before, older, newer] = [node.read(), node.read(), node.read()];
  slow.reads[2]!(v3);
  assert.deepEqual(await newer, v3);
  slow.reads[1]!(v2);
  assert.deepEqual(await older, v3);
  slow.reads[0]!(undefined);
  assert.deepEqual(await before, v3);
  assert.deepEqual(seen.newest, v3);

  const own = node.compareAndSet(3, versions[3]!.record);
  const read = node.read();
  slow.reads[3]!(v5);
  await read;
  slow.writes[0]!({ ok: true, version: 4 });
  assert.deepEqual(await own, { ok: true, version: 4 });
  assert.deepEqual(seen.newest, v5);
});

test('an answer older than what was known when it was asked for is a step back', async (t) => {
  const { slow, node } = setup(t);
  const first = node.read();
  slow.reads[0]!(v2);
  await first;
  const [asked, late] = [node.read(), node.read()];
  slow.reads[2]!(v3);
  await late;
  slow.reads[1]!(v1);
  await assert.rejects(asked, regressed);
  const refused = node.compareAndSet(3, groupRecord());
  slow.writes[0]!({ ok: false, current: v2 });
  await assert.rejects(refused, regressed);
});

test('an overtaken answer of the same version by another writer is a step back', async (t) => {
  const { slow, node } = setup(t);
  const [a, b] = [node.read(), node.read()];
  slow.reads[0]!(v2);
  await a;
  slow.reads[1]!({ version: 2, record: groupRecord() });
  await assert.rejects(b, regressed);
});

test('a watch that lags tells nothing old, and goes on with what is new', (t) => {
  const { slow, seen, node } = setup(t);
  const told: number[] = [];
  node.watch(({ version }) => told.push(version), { signal: new AbortController().signal });
  seen.accept(v2);
  for (const current of [v1, v3, v2, v5]) slow.tell(current);
  assert.deepEqual(told, [3, 5]);
  assert.deepEqual(seen.newest, v5);
});
