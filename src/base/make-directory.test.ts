import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { isNostosError } from './errors.ts';
import { makeDirectories } from './make-directory.ts';

test('parents are made, what is there stays, and what cannot be made is an error', (t) => {
  const home = mkdtempSync(join(tmpdir(), 'nostos-directories-'));
  t.after(() => rmSync(home, { recursive: true, force: true }));
  const dir = join(home, 'a', 'b');
  for (const _ of ['made', 'there']) makeDirectories(dir, 0o700);
  assert.equal(statSync(dir).mode & 0o777, 0o700);
  writeFileSync(join(home, 'file'), '');
  // A recursive mkdir of Node.js hangs under /proc.
  const impossible = [
    join(home, 'file'),
    join(home, 'file', 'x'),
    ...(process.platform === 'linux' ? ['/proc/x/y'] : []),
  ];
  for (const path of impossible)
    assert.throws(
      () => makeDirectories(path),
      (error) => isNostosError(error, 'IO_FAILED'),
    );
});
