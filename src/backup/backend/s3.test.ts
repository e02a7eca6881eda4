/** The S3 backend through the SDK, against a real S3 server where there is one, and with faults on the way to it. */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { after, before, test } from 'node:test';
import type { TestContext } from 'node:test';
import { isNostosError } from '../../base/errors.ts';
import type { Limits } from '../../base/limits.ts';
import { backendCompliance } from '../../testing/backend-compliance.ts';
import type { S3Server } from '../../testing/coordinator-s3.ts';
import {
  realS3Missing,
  S3_BUCKET,
  startFakeS3,
  startRealS3,
  useTestCredentials,
} from '../../testing/coordinator-s3.ts';
import { createRepository } from '../repository/repository.ts';
import { S3Backend } from './s3.ts';
import type { S3Fault, S3Proxy } from './s3-proxy.fixture.ts';
import { S3_FAULTS, startS3Proxy } from './s3-proxy.fixture.ts';

const PART_BYTES = 5 * 1024 * 1024;
const skip = realS3Missing() ?? false;
let real: S3Server | undefined;

before(async () => {
  useTestCredentials();
  if (skip === false) real = await startRealS3();
});
after(() => real?.close());

function open(
  t: TestContext,
  endpoint: string,
  limits: Partial<Limits> = {},
  prefix: string = randomUUID(),
): S3Backend {
  const url = `s3://${S3_BUCKET}/${prefix}?endpoint=http://${endpoint}&region=us-east-1`;
  const backend = S3Backend.open(url, { limits: { backendPartBytes: PART_BYTES, ...limits } });
  t.after(() => backend.close());
  return backend;
}

backendCompliance({
  name: 'S3',
  skip: skip === false ? undefined : skip,
  largeBytes: 2 * PART_BYTES + 77,
  fresh(t) {
    const prefix = randomUUID();
    const make = () => open(t, real!.endpoint, {}, prefix);
    return Promise.resolve({ backend: make(), second: make() });
  },
});

type Operation = (backend: S3Backend) => Promise<void>;
const SMALL = Buffer.from('some bytes that are stored');
const LARGE = Buffer.alloc(2 * PART_BYTES + 5, 'large');
const WRITE_FAULTS: readonly S3Fault[] = [
  'an internal error',
  'a request to slow down',
  'a conflict',
  'a time limit of the store',
  'silence',
  'a lost request',
  'a lost reply',
];
const READ_FAULTS: readonly S3Fault[] = [...WRITE_FAULTS.filter((fault) => fault !== 'a conflict'), 'a cut reply'];

interface Case {
  readonly faults: readonly S3Fault[];
  isMeant(method: string, url: string): boolean;
  /** Before the fault. */
  readonly prepare?: Operation;
  readonly run: Operation;
}

const holdsBytes = async (backend: S3Backend, key: string, bytes: Uint8Array): Promise<void> =>
  assert.ok(Buffer.from((await backend.get(key))!).equals(bytes));

const CASES: Record<string, Case> = {
  'put if absent': {
    faults: WRITE_FAULTS,
    isMeant: (method, url) => method === 'PUT' && url.includes('/key'),
    prepare: async (backend) => void (await backend.put('other', SMALL, { ifAbsent: true })),
    async run(backend) {
      assert.equal(await backend.put('key', SMALL, { ifAbsent: true }), 'created');
      await holdsBytes(backend, 'key', SMALL);
    },
  },
  'put if absent of what another one put': {
    faults: WRITE_FAULTS,
    isMeant: (method, url) => method === 'PUT' && url.includes('/key'),
    prepare: async (backend) => void (await backend.put('key', SMALL, { ifAbsent: true })),
    async run(backend) {
      assert.equal(await backend.put('key', Buffer.from('others'), { ifAbsent: true }), 'exists');
      await holdsBytes(backend, 'key', SMALL);
    },
  },
  replace: {
    faults: WRITE_FAULTS,
    isMeant: (method) => method === 'PUT',
    async run(backend) {
      assert.equal(await backend.put('key', SMALL), 'created');
      await holdsBytes(backend, 'key', SMALL);
    },
  },
  'the part of a large object': {
    faults: WRITE_FAULTS,
    isMeant: (method, url) => method === 'PUT' && url.includes('partNumber=2'),
    async run(backend) {
      assert.equal(await backend.put('key', LARGE, { ifAbsent: true }), 'created');
      await holdsBytes(backend, 'key', LARGE);
    },
  },
  'the end of a large object': {
    faults: [...WRITE_FAULTS, 'an error after the headers'],
    isMeant: (method, url) => method === 'POST' && url.includes('uploadId='),
    async run(backend) {
      assert.equal(await backend.put('key', LARGE, { ifAbsent: true }), 'created');
      await holdsBytes(backend, 'key', LARGE);
    },
  },
  get: {
    faults: READ_FAULTS,
    isMeant: (method) => method === 'GET',
    prepare: async (backend) => void (await backend.put('key', SMALL)),
    run: (backend) => holdsBytes(backend, 'key', SMALL),
  },
  list: {
    faults: READ_FAULTS,
    isMeant: (method) => method === 'GET',
    prepare: async (backend) => void (await backend.put('key', SMALL)),
    async run(backend) {
      assert.deepEqual(
        (await Array.fromAsync(backend.list(''))).map(({ key }) => key),
        ['key'],
      );
    },
  },
  head: {
    faults: READ_FAULTS.filter((fault) => fault !== 'a cut reply' && fault !== 'a time limit of the store'),
    isMeant: (method) => method === 'HEAD',
    prepare: async (backend) => void (await backend.put('key', SMALL)),
    async run(backend) {
      assert.equal((await backend.head('key'))?.bytes, SMALL.length);
    },
  },
  delete: {
    faults: WRITE_FAULTS,
    isMeant: (method) => method === 'DELETE',
    prepare: async (backend) => void (await backend.put('key', SMALL)),
    async run(backend) {
      await backend.delete('key');
      assert.equal(await backend.get('key'), undefined);
    },
  },
};

for (const [operation, { faults, isMeant, prepare, run }] of Object.entries(CASES))
  test(`${operation} gets over every fault that passes`, { skip }, async (t) => {
    const getsOver = async (fault: S3Fault): Promise<void> => {
      const proxy = await startS3Proxy(t, real!.endpoint);
      const times = fault === 'silence' ? 1 : 2;
      // A store that answers within that is not taken for a silent one; only silence is meant to be.
      const backend = open(t, proxy.endpoint, { backendTimeoutMs: fault === 'silence' ? 2_000 : 30_000 });
      await prepare?.(backend);
      proxy.spoil(fault, times, isMeant);
      await run(backend);
      assert.equal(proxy.fired(), times, `${fault} fired`);
    };
    await Promise.all(faults.map(getsOver));
  });

test('a fault that does not pass is reported once the tries are used up', { skip }, async (t) => {
  for (const fault of Object.keys(S3_FAULTS) as S3Fault[]) {
    if (fault === 'an error after the headers' || fault === 'a lost reply') continue;
    const proxy: S3Proxy = await startS3Proxy(t, real!.endpoint);
    const backend = open(t, proxy.endpoint, { backendTimeoutMs: 2_000, backendAttemptsMax: 2 });
    await backend.put('key', SMALL);
    proxy.spoil(fault, 9, (method) => method === 'GET');
    await assert.rejects(backend.get('key'), (error: unknown) => isNostosError(error, 'BACKEND_UNAVAILABLE'), fault);
    assert.equal(proxy.fired(), 2, fault);
  }
});

test('an upload that fails is taken back, and leaves nothing', { skip }, async (t) => {
  const proxy = await startS3Proxy(t, real!.endpoint);
  const backend = open(t, proxy.endpoint, { backendAttemptsMax: 2 });
  proxy.spoil('an internal error', 2, (method, url) => method === 'PUT' && url.includes('partNumber=2'));
  await assert.rejects(backend.put('key', LARGE), (error: unknown) => isNostosError(error, 'BACKEND_UNAVAILABLE'));
  assert.ok(proxy.requests().some((request) => request.startsWith('DELETE') && request.includes('uploadId=')));
  assert.equal(await backend.head('key'), undefined);
});

test('a store that ignores conditions is found out, told once, and used all the same', { skip }, async (t) => {
  const proxy = await startS3Proxy(t, real!.endpoint);
  proxy.ignoreConditions();
  const warnings: string[] = [];
  const url = `s3://${S3_BUCKET}/${randomUUID()}?endpoint=http://${proxy.endpoint}&region=us-east-1`;
  const backend = S3Backend.open(url, { onWarning: (message) => void warnings.push(message) });
  t.after(() => backend.close());
  const repository = await createRepository(backend);
  assert.equal((await createRepository(backend)).id, repository.id);
  assert.equal(await backend.put('a', SMALL, { ifAbsent: true }), 'created');
  assert.equal(await backend.put('a', LARGE.subarray(0, 9), { ifAbsent: true }), 'exists');
  assert.equal(backend.honoursConditions, false);
  assert.equal(warnings.length, 1);
  assert.match(warnings[0]!, /not kept apart/);
});

test('the fake that ignores conditions is found out too; refusals say what to change', async (t) => {
  const blind = await startFakeS3('ignores-conditions');
  t.after(() => blind.close());
  const backend = open(t, blind.endpoint);
  await backend.put('a', SMALL, { ifAbsent: true });
  assert.equal(backend.honoursConditions, false);
  assert.ok(blind.fired() > 0);
  assert.deepEqual(blind.keys().length, 1, 'the probe is gone');
  for (const fault of ['denies-access', 'has-no-bucket'] as const) {
    const server = await startFakeS3(fault);
    t.after(() => server.close());
    const refused = open(t, server.endpoint);
    await assert.rejects(refused.put('a', SMALL, { ifAbsent: true }), (error: unknown) => {
      assert.ok(isNostosError(error, 'BACKEND_UNSUITABLE'), String(error));
      return /credentials/.test(error.message);
    });
    assert.ok(server.fired() > 0);
  }
});
