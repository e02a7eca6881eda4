import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { TestContext } from 'node:test';
import type { Term } from '../base/brands.ts';
import { systemDisk } from '../base/disk.ts';
import { isNostosError } from '../base/errors.ts';
import { groupRecord } from '../testing/coordinator-compliance.ts';
import { NewestSeen } from './newest-seen.ts';

function temporaryPath(t: TestContext): string {
  const dir = mkdtempSync(join(tmpdir(), 'nostos-seen-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  return join(dir, 'coordinator.json');
}

const regressed = (error: unknown) => isNostosError(error, 'COORDINATOR_REGRESSED');

test('an older, another or an absent record stops the node, also after it was opened again', (t) => {
  const path = temporaryPath(t);
  const first = new NewestSeen(systemDisk, path);
  assert.equal(first.accept(undefined), undefined);
  const newest = { version: 5, record: groupRecord({ term: 3 as Term }) };
  assert.equal(first.accept(newest), newest);
  for (const seen of [first, new NewestSeen(systemDisk, path)]) {
    assert.deepEqual(seen.newest, newest);
    assert.deepEqual(seen.accept({ ...newest }), newest);
    assert.throws(() => seen.accept(undefined), regressed);
    assert.throws(() => seen.accept({ version: 4, record: groupRecord({ term: 3 as Term }) }), regressed);
    assert.throws(() => seen.accept({ version: 5, record: groupRecord({ term: 3 as Term }) }), regressed);
    assert.throws(() => seen.accept({ version: 6, record: groupRecord({ term: 2 as Term }) }), regressed);
  }
  const newer = { version: 6, record: groupRecord({ term: 4 as Term }) };
  first.accept(newer);
  assert.deepEqual(new NewestSeen(systemDisk, path).newest, newer);
});

test('a file that cannot be read is an error and not a fresh start', (t) => {
  const path = temporaryPath(t);
  for (const text of ['', '{', 'null', '[]', '{"version":0}', '{"version":1,"record":{}}', '\xff']) {
    writeFileSync(path, text, 'latin1');
    assert.throws(
      () => new NewestSeen(systemDisk, path),
      (error: unknown) => isNostosError(error, 'COORDINATOR_DAMAGED'),
    );
  }
});
