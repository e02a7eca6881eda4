import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readdir, rm, symlink, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { TestContext } from 'node:test';
import { isNostosError } from '../../base/errors.ts';
import { backendCompliance } from '../../testing/backend-compliance.ts';
import { mountRefusal, mountSmall } from '../../testing/small-disk.fixture.ts';
import { LocalBackend } from './local.ts';
import { MemoryBackend } from './memory-backend.fixture.ts';
import { openBackend } from './open-backend.ts';

async function directory(t: TestContext): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), 'nostos-backend-'));
  t.after(() => rm(dir, { recursive: true, force: true }));
  return dir;
}

backendCompliance({
  name: 'a directory',
  async fresh(t) {
    const dir = join(await directory(t), 'not', 'yet');
    return { backend: await LocalBackend.open(dir), second: await LocalBackend.open(dir) };
  },
});

backendCompliance({
  name: 'memory',
  fresh() {
    const backend = new MemoryBackend();
    return Promise.resolve({ backend, second: new MemoryBackend({ storage: backend.storage }) });
  },
});

test('symbolic links below the root are not followed, in any direction', async (t) => {
  const dir = await directory(t);
  const outside = await directory(t);
  await writeFile(join(outside, 'file'), 'secret');
  await symlink(outside, join(dir, 'linked'));
  await symlink(join(outside, 'file'), join(dir, 'file'));
  await symlink(dir, join(outside, 'root'));
  const backend = await LocalBackend.open(join(outside, 'root'));
  const isRefused = (error: unknown): boolean => isNostosError(error, 'BACKEND_UNSUITABLE');
  await assert.rejects(backend.put('linked/x', new Uint8Array(1)), isRefused);
  await assert.rejects(backend.get('linked/file'), isRefused);
  await assert.rejects(backend.delete('linked/file'), isRefused);
  await assert.rejects(backend.get('file'), (error: unknown) => isNostosError(error, 'IO_FAILED'));
  assert.deepEqual(await Array.fromAsync(backend.list('')), []);
  assert.equal(await backend.put('file', new Uint8Array(1)), 'created');
  assert.deepEqual((await readdir(outside)).toSorted(), ['file', 'root']);
});

test('what a crash leaves of a write is not listed, and goes when it is a day old', async (t) => {
  const dir = await directory(t);
  const backend = await LocalBackend.open(dir);
  await mkdir(join(dir, 'a'));
  await writeFile(join(dir, 'a', '.tmp-old'), 'x');
  await writeFile(join(dir, 'a', '.tmp-new'), 'x');
  await utimes(join(dir, 'a', '.tmp-old'), new Date(0), new Date(0));
  assert.deepEqual(await Array.fromAsync(backend.list('')), []);
  assert.deepEqual(await readdir(join(dir, 'a')), ['.tmp-new']);
});

test('URLs and paths name a directory; what names nothing is refused', async (t) => {
  const dir = await directory(t);
  for (const url of [dir, `file:${dir}`, `file://${dir}`, `file://localhost${dir}`])
    assert.equal((await openBackend(url)).url, `file:${dir}`, url);
  for (const url of ['', 'file:', 'ftp://x/y', 'file://other.example/x', 's4://x', 'file:\0', 'http:x'])
    await assert.rejects(openBackend(url), (error: unknown) => isNostosError(error, 'INVALID_ARGUMENT'), url);
  const refused = [
    's3://',
    's3://B',
    's3://key:secret@bucket/x',
    's3://bucket/../x y',
    's3://bucket/?verify=no',
    's3://b_/?endpoint=ftp://x',
  ];
  for (const url of refused)
    await assert.rejects(openBackend(url), (error: unknown) => isNostosError(error, 'INVALID_ARGUMENT'), url);
  const s3 = await openBackend('s3://bucket/a/b/?endpoint=http://127.0.0.1:1&region=eu-west-1');
  assert.equal(s3.url, 's3://bucket/a/b/ at 127.0.0.1:1');
});

test(
  'a full disk is named, keeps what was there, and is left without remains',
  { skip: mountRefusal() ?? false },
  async () => {
    using disk = mountSmall(2 * 1024 * 1024);
    const backend = await LocalBackend.open(join(disk.dir, 'backups'));
    await backend.put('a/small', new Uint8Array(1_000));
    const large = new Uint8Array(4 * 1024 * 1024);
    for (const ifAbsent of [true, false])
      await assert.rejects(backend.put('a/large', large, { ifAbsent }), (error: unknown) =>
        isNostosError(error, 'DISK_FULL'),
      );
    assert.deepEqual(await readdir(join(disk.dir, 'backups', 'a')), ['small']);
    assert.equal((await backend.get('a/small'))?.length, 1_000);
    assert.equal(await backend.put('a/later', new Uint8Array(1_000_000)), 'created');
  },
);
