/** The object-store adapter through the SDK, against a real S3 server where there is one, and against a fake. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { after, before, test } from 'node:test';
import { isNostosError } from '../base/errors.ts';
import type { CoordinatorUnderTest } from '../testing/coordinator-compliance.ts';
import { coordinatorCompliance, directoryEntry, groupRecord } from '../testing/coordinator-compliance.ts';
import { startCoordinatorProxy } from '../testing/coordinator-proxy.ts';
import type { FakeS3, S3Server } from '../testing/coordinator-s3.ts';
import {
  FAKE_S3_FAULTS,
  realS3Missing,
  S3_BUCKET,
  startFakeS3,
  startRealS3,
  useTestCredentials,
} from '../testing/coordinator-s3.ts';
import type { ObjectPut, ObjectStore, StoredObject } from './object-store.ts';
import { objectStoreCoordination } from './object-store.ts';
import { openCoordinator } from './open-coordinator.ts';
import { S3ObjectStore } from './s3.ts';

useTestCredentials();
const skip = realS3Missing();
let real: S3Server;
let fake: FakeS3;

before(async () => {
  fake = await startFakeS3();
  if (skip === undefined) real = await startRealS3();
});
after(async () => {
  await fake.close();
  await real?.close();
});

const urlOf = (endpoint: string, prefix: string, query = ''): string =>
  `s3://${S3_BUCKET}/${prefix}?endpoint=http://${endpoint}&region=us-east-1&poll-ms=100${query}`;
const freshPrefix = (): string => `test/${randomBytes(8).toString('hex')}`;
const prefixOf = (url: unknown): string => new URL(String(url)).pathname.slice(1);

function subject(name: string, server: () => S3Server, missing?: string): CoordinatorUnderTest {
  return {
    name,
    skip: missing,
    module: new URL('./open-coordinator.ts', import.meta.url).href,
    fresh: () => urlOf(server().endpoint, freshPrefix()),
    image: (url) => objectsImage(server().endpoint, `${prefixOf(url)}/`),
    async disturbed(t, url) {
      const isWrite = (method: string, path: string): boolean => method === 'PUT' && !path.includes('/probe/');
      const network = await startCoordinatorProxy(t, { upstream: server().endpoint, isWrite });
      return { args: urlOf(network.endpoint, prefixOf(url), '&timeout-ms=400'), network };
    },
  };
}

coordinatorCompliance(subject('object store, real S3 server', () => real, skip));
coordinatorCompliance(subject('object store, fake S3 server', () => fake));

/** Objects below a prefix, removed and put back. */
async function objectsImage(endpoint: string, prefix: string): Promise<() => Promise<void>> {
  const store = new S3ObjectStore({ bucket: S3_BUCKET, endpoint: `http://${endpoint}`, region: 'us-east-1' });
  const objects = new Map<string, Uint8Array>();
  for (const key of await store.list(prefix, undefined, 1_000)) objects.set(key, (await store.get(key))!.bytes);
  return async () => {
    for (const key of await store.list(prefix, undefined, 1_000)) await store.remove(key);
    for (const [key, bytes] of objects) assert.ok((await store.putIf(key, bytes, undefined)).written);
  };
}

for (const fault of FAKE_S3_FAULTS)
  test(`object store: a store that ${fault.replaceAll('-', ' ')} is refused before anything is written`, async (t) => {
    const server = await startFakeS3(fault);
    t.after(() => server.close());
    const coordination = await openCoordinator(urlOf(server.endpoint, 'a'));
    t.after(() => coordination.close());
    const unsuitable = (error: unknown): boolean => isNostosError(error, 'COORDINATOR_UNSUITABLE');
    await assert.rejects(coordination.check(), unsuitable);
    await assert.rejects(coordination.group().compareAndSet(0, groupRecord()), unsuitable);
    await assert.rejects(coordination.directory.entry('a').compareAndSet(0, directoryEntry()), unsuitable);
    assert.ok(server.fired() > 0);
    assert.deepEqual(
      server.keys().filter((key) => !key.startsWith('a/probe/')),
      [],
    );
  });

test('object store: one that is away is no unsuitable one, and is asked again', async (t) => {
  const server = await startFakeS3();
  const { endpoint } = server;
  await server.close();
  const coordination = await openCoordinator(urlOf(endpoint, 'a', '&timeout-ms=300'));
  t.after(() => coordination.close());
  for (const call of [() => coordination.check(), () => coordination.group().read()])
    await assert.rejects(call(), (error: unknown) => isNostosError(error, 'COORDINATOR_UNAVAILABLE'));
});

test('object store: a probe leaves nothing behind', async (t) => {
  const coordination = await openCoordinator(urlOf(fake.endpoint, 'probed'));
  t.after(() => coordination.close());
  await coordination.check();
  assert.deepEqual(
    fake.keys().filter((key) => key.startsWith('probed/')),
    [],
  );
});

/** Amazon S3 answers 409 to one of two writers at the same time, also when the other one fails after that. */
class ConflictingStore implements ObjectStore {
  readonly name = 'memory';
  readonly objects = new Map<string, StoredObject>();
  conflicts = 0;
  conflicted = 0;

  async get(key: string): Promise<StoredObject | undefined> {
    return this.objects.get(key);
  }

  async putIf(key: string, bytes: Uint8Array, etag: string | undefined): Promise<ObjectPut> {
    if (this.conflicts > 0) {
      this.conflicts -= 1;
      this.conflicted += 1;
      return { written: false };
    }
    if (this.objects.get(key)?.etag !== etag) return { written: false };
    const stored = { bytes, etag: randomBytes(8).toString('hex') };
    this.objects.set(key, stored);
    return { written: true, etag: stored.etag };
  }

  async list(prefix: string): Promise<string[]> {
    return [...this.objects.keys()].filter((key) => key.startsWith(prefix));
  }

  async remove(key: string): Promise<void> {
    this.objects.delete(key);
  }

  async close(): Promise<void> {}
}

test('object store: a conflict in which nobody won is tried again, a few times', async () => {
  const store = new ConflictingStore();
  const coordination = objectStoreCoordination(store);
  const group = coordination.group();
  assert.deepEqual(await group.compareAndSet(0, groupRecord()), { ok: true, version: 1 });
  store.conflicts = 2;
  assert.deepEqual(await group.compareAndSet(1, groupRecord()), { ok: true, version: 2 });
  assert.equal(store.conflicted, 2);
  store.conflicts = 1_000;
  await assert.rejects(group.compareAndSet(2, groupRecord()), (error: unknown) =>
    isNostosError(error, 'COORDINATOR_UNAVAILABLE'),
  );
  assert.ok(store.conflicted < 10);
});
