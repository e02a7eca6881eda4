import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { isNostosError, NostosError } from '../../base/errors.ts';
import { MemoryBackend } from '../backend/memory-backend.fixture.ts';
import { CHUNK_BYTES } from './content.ts';
import { fileBytes, ORIGIN, SEAL, sinkInto, sourceOf, tenantFile } from './repository.fixture.ts';
import { createRepository } from './repository.ts';

const LIMITS = { backupConcurrency: 3 };
const BYTES = fileBytes(15 * CHUNK_BYTES + 9);
const PATIENCE_MS = 5_000;

/** A repository in memory that tells how many requests were under way at a time, and may fail one. */
async function watched() {
  let now = 0;
  let most = 0;
  let countdown = Infinity;
  let awaited = 0;
  const backend = new MemoryBackend({
    before: async () => {
      now += 1;
      most = Math.max(most, now);
      countdown -= 1;
      const fails = countdown === 0;
      const untilMs = performance.now() + PATIENCE_MS;
      do await sleep(1);
      while (most < awaited && performance.now() < untilMs);
      if (fails) {
        now -= 1;
        throw new Error('the storage broke');
      }
    },
    after: () => {
      now -= 1;
      return Promise.resolve();
    },
  });
  const repository = await createRepository(backend, { limits: LIMITS });
  /** From now on requests stay until so many have been under way at a time. */
  const reset = (wanted = 0) => {
    most = 0;
    awaited = wanted;
  };
  const failAfter = (requests: number) => {
    countdown = requests;
  };
  return { repository, reset, failAfter, most: () => most, now: () => now };
}

test('as many chunks are under way as is allowed, and no more, while a file goes and while it comes', async () => {
  const { repository, reset, most } = await watched();
  const writer = await repository.createSnapshot(ORIGIN);
  reset(LIMITS.backupConcurrency);
  let seen = 0;
  const item = await writer.addFile(tenantFile(1), sourceOf(BYTES), { onBytes: (count) => (seen += count) });
  assert.deepEqual([most(), seen], [LIMITS.backupConcurrency, BYTES.length]);
  await writer.commit(SEAL);
  reset();
  let [writing, writingMost, received] = [0, 0, 0];
  const target = new Uint8Array(BYTES.length);
  const sink = {
    async write(bytes: Uint8Array, offset: number) {
      writing += 1;
      writingMost = Math.max(writingMost, writing);
      await new Promise((resolve) => setTimeout(resolve, 2));
      await sinkInto(target).write(bytes, offset);
      writing -= 1;
    },
  };
  await repository.readFile(item, sink, { onBytes: (count) => (received += count) });
  assert.ok(Buffer.from(BYTES).equals(target));
  assert.equal(received, BYTES.length);
  assert.ok(most() <= LIMITS.backupConcurrency && writingMost <= LIMITS.backupConcurrency, `${most()}, ${writingMost}`);
});

test('whatever breaks on the way is what the caller hears, once nothing is under way any more', async () => {
  const { repository, failAfter, now } = await watched();
  const writer = await repository.createSnapshot(ORIGIN);
  const item = await writer.addFile(tenantFile(1), sourceOf(BYTES));
  await writer.commit(SEAL);
  const target = sinkInto(new Uint8Array(BYTES.length));

  failAfter(6);
  await assert.rejects(repository.readFile(item, target), /the storage broke/);
  assert.equal(now(), 0);
  let calls = 0;
  const full = {
    write: () => ((calls += 1) === 4 ? Promise.reject(new Error('the disk is full')) : Promise.resolve()),
  };
  await assert.rejects(repository.readFile(item, full), /the disk is full/);
  assert.equal(now(), 0);

  await using other = await repository.createSnapshot(ORIGIN);
  const changed = fileBytes(BYTES.length, 2);
  failAfter(6);
  await assert.rejects(other.addFile(tenantFile(1), sourceOf(changed)), /the storage broke/);
  assert.equal(now(), 0);
  const broken = { bytes: BYTES.length, read: () => Promise.reject(new Error('the file is gone')) };
  await assert.rejects(other.addFile(tenantFile(1), broken), /the file is gone/);
  assert.equal(now(), 0);
});

test('a signal ends a transfer with its reason', async () => {
  const { repository, now } = await watched();
  const writer = await repository.createSnapshot(ORIGIN);
  const item = await writer.addFile(tenantFile(1), sourceOf(BYTES));
  await writer.commit(SEAL);
  const reason = new Error('enough');
  for (const direction of ['out', 'in'] as const) {
    const controller = new AbortController();
    const options = { signal: controller.signal, onBytes: () => controller.abort(reason) };
    await using again = await repository.createSnapshot(ORIGIN);
    const run =
      direction === 'in'
        ? again.addFile(tenantFile(2), sourceOf(fileBytes(BYTES.length, 3)), options)
        : repository.readFile(item, sinkInto(new Uint8Array(BYTES.length)), options);
    await assert.rejects(run, (error: unknown) => error === reason, direction);
    assert.equal(now(), 0, direction);
  }
});

test('a file that its manifest describes otherwise is refused', async () => {
  const { repository } = await watched();
  const writer = await repository.createSnapshot(ORIGIN);
  const item = await writer.addFile(tenantFile(1), sourceOf(BYTES));
  const target = sinkInto(new Uint8Array(BYTES.length + CHUNK_BYTES));
  const isDamaged = (error: unknown): boolean => isNostosError(error, 'BACKUP_DAMAGED');
  await assert.rejects(repository.readFile({ ...item, bytes: item.bytes - 1 }, target), isDamaged);
  await assert.rejects(repository.readFile({ ...item, bytes: item.bytes + CHUNK_BYTES }, target), isDamaged);
  await assert.rejects(repository.readFile({ ...item, bytes: 5 }, target), isDamaged);
  await assert.rejects(repository.readFile({ ...item, hash: SEAL.position.hash }, target), /hash is another one/);
  await writer.close();
});

test('a commit whose outcome is open is made again, and is one snapshot', async () => {
  let isLost = true;
  const backend = new MemoryBackend({
    after: (operation, key) => {
      if (operation !== 'put' || !key.startsWith('manifests/') || !isLost) return Promise.resolve();
      isLost = false;
      return Promise.reject(new NostosError('BACKEND_UNAVAILABLE', 'the answer is lost'));
    },
  });
  const repository = await createRepository(backend);
  const writer = await repository.createSnapshot(ORIGIN);
  await writer.addFile(tenantFile(1), sourceOf(BYTES.subarray(0, 100)));
  await assert.rejects(writer.commit(SEAL), (error: unknown) => isNostosError(error, 'BACKEND_UNAVAILABLE'));
  await new Promise((resolve) => setTimeout(resolve, 5));
  const snapshot = await writer.commit(SEAL);
  assert.deepEqual(await Array.fromAsync(repository.snapshots()), [snapshot]);
});
