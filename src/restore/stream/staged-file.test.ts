import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { isNostosError } from '../../base/errors.ts';
import { StagedFile } from './staged-file.ts';

test('a file whose sync failed is gone: the next run must not take it for a base', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'nostos-staged-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  const path = join(dir, 'staged');
  // A pipe is what this system refuses to sync.
  if (spawnSync('mkfifo', [path]).status !== 0) return t.skip('there is no mkfifo here');
  const file = await StagedFile.open(path, undefined);
  await assert.rejects(
    file.finish(0),
    (error) => isNostosError(error, 'IO_FAILED') && error.details['operation'] === 'sync',
  );
  assert.equal(existsSync(path), false);
  await file.close();
});
