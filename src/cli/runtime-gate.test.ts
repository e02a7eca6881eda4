import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { EXIT_CODES } from './exit-codes.ts';

const entry = fileURLToPath(new URL('../../bin/nostos.js', import.meta.url));
const [tooOld] = EXIT_CODES.runtime;

/** Runs the command under a runtime that claims these versions. */
function runAs(versions: { readonly node: string; readonly sqlite?: string }): {
  status: number | null;
  stderr: string;
} {
  const stub = `Object.defineProperty(process, 'versions', { value: { ...process.versions, sqlite: undefined, ...${JSON.stringify(versions)} } });`;
  const script = `${stub} process.argv = [process.argv[0], 'nostos', '--version']; require(${JSON.stringify(entry)});`;
  return spawnSync(process.execPath, ['-e', script], { encoding: 'utf8' });
}

for (const versions of [
  { node: '12.22.12' },
  { node: '20.20.2' },
  { node: '24.18.9', sqlite: '3.53.4' },
  { node: '25.9.0', sqlite: '3.53.4' },
  { node: '26.3.0', sqlite: '3.53.4' },
  { node: '26.4.0' },
  { node: '26.4.0', sqlite: '3.53.1' },
  { node: '24.19.0', sqlite: '3.9.9' },
])
  test(`Node ${versions.node} with SQLite ${versions.sqlite} is refused in one line`, () => {
    const { status, stderr } = runAs(versions);
    assert.equal(status, tooOld);
    assert.match(stderr, /^nostos needs Node\.js 24\.19 .* SQLite 3\.53\.2 .*\n$/);
    assert.ok(stderr.includes(versions.node));
  });

for (const versions of [
  { node: '24.19.0', sqlite: '3.53.2' },
  { node: '26.4.0', sqlite: '3.54.0' },
  { node: '27.0.0', sqlite: '4.0.0' },
])
  test(`Node ${versions.node} with SQLite ${versions.sqlite} is accepted`, () => {
    const { status, stderr } = runAs(versions);
    assert.deepEqual({ status, stderr }, { status: 0, stderr: '' });
  });

/** A Node of the system that is too old; development runs on another one. */
function oldNode(): string | undefined {
  return ['/usr/bin/node', '/usr/local/bin/node'].find((path) => {
    if (!existsSync(path)) return false;
    const { stdout } = spawnSync(path, ['-p', 'process.versions.node'], { encoding: 'utf8' });
    return Number(stdout.split('.')[0]) < 24;
  });
}

test('a real old Node gets the same line', (t) => {
  const node = oldNode();
  if (node === undefined) return t.skip('no old Node on this machine');
  const { status, stdout, stderr } = spawnSync(node, [entry, 'status'], { encoding: 'utf8' });
  assert.equal(status, tooOld);
  assert.equal(stdout, '');
  assert.match(stderr, /^nostos needs Node\.js 24\.19 [^\n]*\n$/);
  return undefined;
});
