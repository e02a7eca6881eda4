import assert from 'node:assert/strict';
import { readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { isNostosError } from '../../base/errors.ts';
import { CHUNK_BYTES } from './content.ts';
import { objectKey } from './object-format.ts';
import { fileBytes, newRepository, ORIGIN, SEAL, sinkInto, sourceOf, tenantFile } from './repository.fixture.ts';
import { createRepository, openRepository } from './repository.ts';

const hasCode = (code: Parameters<typeof isNostosError>[1]) => (error: unknown) => isNostosError(error, code);

test('files of every size around a chunk come back, and their snapshot is listed', async (t) => {
  const { repository, dir } = await newRepository(t);
  const files = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 12 * CHUNK_BYTES + 77].map((length, index) =>
    fileBytes(length, index),
  );
  await using writer = await repository.createSnapshot(ORIGIN);
  for (const [index, bytes] of files.entries()) await writer.addFile(tenantFile(index + 1), sourceOf(bytes));
  const made = await writer.commit({ ...SEAL, label: 'first' });
  assert.deepEqual(await readdir(join(dir, 'locks')), []);
  const objects = await Array.fromAsync(repository.deps.backend.list('objects/'));
  assert.equal(
    writer.bytesStored,
    objects.reduce((sum, { bytes }) => sum + bytes, 0),
  );

  const again = await openRepository(`file:${dir}`);
  const [found, ...others] = await Array.fromAsync(again.snapshots());
  assert.deepEqual(found, made);
  assert.equal(others.length, 0);
  for (const [index, item] of made.items.entries()) {
    const read = new Uint8Array(item.bytes);
    await again.readFile(item, sinkInto(read));
    assert.ok(Buffer.from(files[index]!).equals(read), `file ${index}`);
  }
});

test('of a file that changed in one place, one chunk and the list are stored', async (t) => {
  const { repository } = await newRepository(t);
  const bytes = fileBytes(20 * CHUNK_BYTES);
  const first = await repository.createSnapshot(ORIGIN);
  await first.addFile(tenantFile(1), sourceOf(bytes));
  await first.commit(SEAL);
  bytes[7 * CHUNK_BYTES + 5]! ^= 1;
  const second = await repository.createSnapshot(ORIGIN);
  const item = await second.addFile(tenantFile(1), sourceOf(bytes));
  assert.ok(second.bytesStored > 0 && second.bytesStored < CHUNK_BYTES, `${second.bytesStored} bytes`);
  await second.commit(SEAL);
  const read = new Uint8Array(bytes.length);
  await repository.readFile(item, sinkInto(read));
  assert.ok(Buffer.from(bytes).equals(read));

  const third = await repository.createSnapshot(ORIGIN);
  third.reuse(third.previous!.items[0]!);
  assert.throws(() => third.reuse(first.previous?.items[0] ?? item), hasCode('INVALID_ARGUMENT'));
  const { items } = await third.commit(SEAL);
  assert.deepEqual(items, [item]);
  assert.equal(third.bytesStored, 0);
});

test('a writer that is left without commit leaves no snapshot and no lock', async (t) => {
  const { repository, dir } = await newRepository(t);
  {
    await using writer = await repository.createSnapshot(ORIGIN);
    await writer.addFile(tenantFile(1), sourceOf(fileBytes(5000)));
  }
  assert.deepEqual(await Array.fromAsync(repository.snapshots()), []);
  assert.deepEqual(await readdir(join(dir, 'locks')), []);
});

test('a chunk that is missing, cut or exchanged is refused before a byte of it is handed out', async (t) => {
  const { repository, dir } = await newRepository(t);
  const writer = await repository.createSnapshot(ORIGIN);
  const item = await writer.addFile(tenantFile(1), sourceOf(fileBytes(3000)));
  const other = await writer.addFile(tenantFile(2), sourceOf(fileBytes(3000, 2)));
  await writer.commit(SEAL);
  const path = join(dir, objectKey(item.root));
  const whole = await readFile(path);
  const damage: Record<string, () => Promise<void>> = {
    missing: () => rm(path),
    cut: () => writeFile(path, whole.subarray(0, whole.length - 1)),
    empty: () => writeFile(path, ''),
    flipped: () => writeFile(path, whole.with(200, whole[200]! ^ 1)),
    exchanged: async () => writeFile(path, await readFile(join(dir, objectKey(other.root)))),
  };
  for (const [what, make] of Object.entries(damage)) {
    await make();
    let written = 0;
    const sink = {
      write: (bytes: Uint8Array) => {
        written += bytes.length;
        return Promise.resolve();
      },
    };
    await assert.rejects(repository.readFile(item, sink), hasCode('BACKUP_DAMAGED'), what);
    assert.equal(written, 0, what);
    await writeFile(path, whole);
  }
});

test('two who make one repository at once get the same; nothing, and something else, are told apart', async (t) => {
  const { repository, dir } = await newRepository(t);
  const others = await Promise.all([createRepository(dir), createRepository(`file://${dir}`)]);
  assert.deepEqual(
    others.map(({ id }) => id),
    [repository.id, repository.id],
  );
  await assert.rejects(openRepository(join(dir, 'objects')), hasCode('BACKUP_NOT_FOUND'));
  await writeFile(join(dir, 'nostos-backup.json'), '{"format": 3, "repository": "x"}');
  await assert.rejects(openRepository(dir), hasCode('UNSUPPORTED_FORMAT'));
  await writeFile(join(dir, 'nostos-backup.json'), '{}');
  await assert.rejects(openRepository(dir), hasCode('BACKUP_DAMAGED'));
});
