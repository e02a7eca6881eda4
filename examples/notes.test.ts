import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const example = fileURLToPath(new URL('./notes.ts', import.meta.url));

test('the example of the README runs, and finds its notes when it runs again', async (t) => {
  const dir = await mkdtemp(join(tmpdir(), 'nostos-test-'));
  t.after(() => rm(dir, { recursive: true, force: true }));
  const run = async (): Promise<string> => {
    const { stdout } = await promisify(execFile)(process.execPath, ['--conditions=nostos-source', example, dir]);
    return stdout;
  };
  assert.match(await run(), /id: 1, body: 'opened at/);
  assert.match(await run(), /id: 2, body: 'opened at[^]*id: 1, body: 'opened at/);
});

test('the README shows the example as it is', async () => {
  const readme = await readFile(fileURLToPath(new URL('../README.md', import.meta.url)), 'utf8');
  const shown = /```ts\n([^]*?)```/.exec(readme)?.[1];
  assert.equal(shown, await readFile(example, 'utf8'));
});
