/** Who may talk to etcd, and what is made of answers that no etcd of today gives. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { TestContext } from 'node:test';
import type { ErrorCode } from '../base/errors.ts';
import { isNostosError } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import { groupRecord } from '../testing/coordinator-compliance.ts';
import { EtcdCluster, etcdMissing } from '../testing/etcd-cluster.ts';
import { NODE_A, NODE_B, tlsIdentity } from '../testing/wire.fixture.ts';
import type { Coordination } from './coordination.ts';
import { GROUP_RECORD } from './coordinator.ts';
import { encodeEnvelope } from './envelope.ts';
import { openCoordinator } from './open-coordinator.ts';

const skip = etcdMissing();
const options = skip === undefined ? {} : { skip };

async function openAt(t: TestContext, url: string): Promise<Coordination> {
  const coordination = await openCoordinator(url);
  t.after(() => coordination.close());
  return coordination;
}

function filesIn(t: TestContext, files: Readonly<Record<string, string>>): string {
  const dir = mkdtempSync(join(tmpdir(), 'nostos-etcd-access-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  for (const [name, text] of Object.entries(files)) writeFileSync(join(dir, name), text);
  return dir;
}

const hasCode =
  (code: ErrorCode) =>
  (error: unknown): boolean =>
    isNostosError(error, code);

test(
  'etcd: a user with a password may, others may not, and a token that is lost is asked for anew',
  options,
  async (t) => {
    const cluster = await EtcdCluster.start({ members: 1 });
    t.after(() => cluster.close());
    const [endpoint] = cluster.endpoints as [string];
    const admin = async (path: string, body: object): Promise<void> => {
      const response = await fetch(`http://${endpoint}/v3/auth/${path}`, {
        method: 'POST',
        body: JSON.stringify(body),
      });
      assert.equal(response.status, 200, await response.text());
    };
    const key = Buffer.from('a/').toString('base64');
    const range_end = Buffer.from('a0').toString('base64');
    await admin('role/add', { name: 'nostos' });
    await admin('role/grant', { name: 'nostos', perm: { permType: 'READWRITE', key, range_end } });
    for (const [name, password, role] of [
      ['root', 'secret', 'root'],
      ['node', 'pass word', 'nostos'],
    ]) {
      await admin('user/add', { name, password });
      await admin('user/grant', { user: name, role });
    }
    await admin('enable', {});

    const dir = filesIn(t, { right: 'pass word\n', wrong: 'password' });
    const url = (prefix: string, file: string): string =>
      `etcd://${endpoint}/${prefix}?user=node&password-file=${join(dir, file)}`;
    const group = (await openAt(t, url('a', 'right'))).group();
    assert.deepEqual(await group.compareAndSet(0, groupRecord()), { ok: true, version: 1 });
    for (const refused of [`etcd://${endpoint}/a`, url('a', 'wrong'), url('b', 'right')]) {
      const other = (await openAt(t, refused)).group();
      await assert.rejects(other.read(), hasCode('COORDINATOR_UNSUITABLE'), refused);
      await assert.rejects(other.compareAndSet(0, groupRecord()), hasCode('COORDINATOR_UNSUITABLE'), refused);
    }
    // Its tokens live in the memory of etcd.
    for (let version = 1; version < 3; version++) {
      await cluster.kill(0);
      await cluster.startMember(0);
      // The first request finds that the connection is gone, and it was a write: that is open, and asked for again.
      const record = groupRecord();
      const first = await group.compareAndSet(version, record).catch((error: unknown) => error);
      if (first instanceof Error) assert.ok(isNostosError(first, 'COORDINATOR_UNAVAILABLE'), String(first));
      assert.deepEqual(await group.compareAndSet(version, record), { ok: true, version: version + 1 });
    }
  },
);

test('etcd: TLS with a certificate of the node, and nothing without one', options, async (t) => {
  const [server, client] = await Promise.all([tlsIdentity(NODE_A), tlsIdentity(NODE_B)]);
  const dir = filesIn(t, {
    'ca.crt': server.ca,
    'server.crt': server.cert,
    'server.key': server.key,
    'client.crt': client.cert,
    'client.key': client.key,
  });
  const path = (name: string): string => join(dir, name);
  const cluster = await EtcdCluster.start({
    members: 1,
    scheme: 'https',
    flags: [
      `--cert-file=${path('server.crt')}`,
      `--key-file=${path('server.key')}`,
      `--trusted-ca-file=${path('ca.crt')}`,
      '--client-cert-auth',
    ],
  });
  t.after(() => cluster.close());
  const [endpoint] = cluster.endpoints as [string];
  const ca = `ca=${path('ca.crt')}&timeout-ms=2000`;
  const mine = `cert=${path('client.crt')}&key=${path('client.key')}`;
  const coordination = await openAt(t, `etcds://${endpoint}/a?${ca}&${mine}`);
  const group = coordination.group();
  const ended = new AbortController();
  t.after(() => ended.abort());
  const told = Promise.withResolvers<number>();
  group.watch(({ version }) => version === 2 && told.resolve(version), { signal: ended.signal });
  const record = groupRecord();
  // A member that listens may still be electing itself.
  await assert.doesNotReject(group.read());
  assert.deepEqual(await group.compareAndSet(0, record), { ok: true, version: 1 });
  assert.deepEqual(await group.compareAndSet(1, groupRecord()), { ok: true, version: 2 });
  assert.equal(await told.promise, 2);
  for (const refused of [`etcds://${endpoint}/a?${ca}`, `etcds://${endpoint}/a?timeout-ms=500&${mine}`]) {
    const other = (await openAt(t, refused)).group();
    await assert.rejects(other.read(), hasCode('COORDINATOR_UNAVAILABLE'), refused);
  }
});

interface FakeAnswer {
  readonly status?: number;
  readonly text: string;
}

async function startFakeEtcd(t: TestContext, answer: (path: string) => FakeAnswer): Promise<string> {
  const server = createServer((request: IncomingMessage, response: ServerResponse) => {
    const { status = 200, text } = answer(request.url ?? '');
    request.resume().on('end', () => response.writeHead(status).end(text));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return `127.0.0.1:${(server.address() as AddressInfo).port}`;
}

test('etcd: one that is too old, or is none, is refused before anything is written', async (t) => {
  for (const [version, code] of [
    ['3.3.27', 'COORDINATOR_UNSUITABLE'],
    ['2.3.8', 'COORDINATOR_UNSUITABLE'],
    ['x', 'COORDINATOR_UNSUITABLE'],
    ['3.4.0', undefined],
    ['3.10.0', undefined],
    ['4.0.0', undefined],
  ] as const) {
    const paths: string[] = [];
    const endpoint = await startFakeEtcd(t, (path) => {
      paths.push(path);
      return {
        text: path === '/version' ? `{"etcdserver":"${version}"}` : '{"header":{"revision":"1"},"succeeded":true}',
      };
    });
    const group = (await openAt(t, `etcd://${endpoint}/a`)).group();
    const written = group.compareAndSet(0, groupRecord());
    if (code === undefined) assert.deepEqual(await written, { ok: true, version: 1 }, version);
    else await assert.rejects(written, hasCode(code), version);
    assert.equal(paths.includes('/v3/kv/txn'), code === undefined, version);
  }
});

test('etcd: a renewal is one request', async (t) => {
  const paths: string[] = [];
  const endpoint = await startFakeEtcd(t, (path) => {
    paths.push(path);
    return { text: path === '/version' ? '{"etcdserver":"3.5.0"}' : '{"header":{"revision":"1"},"succeeded":true}' };
  });
  const group = (await openAt(t, `etcd://${endpoint}/a`)).group();
  for (let version = 0; version < 4; version++) assert.ok((await group.compareAndSet(version, groupRecord())).ok);
  assert.deepEqual(paths, ['/version', '/v3/kv/range', ...Array.from({ length: 4 }, () => '/v3/kv/txn')]);
});

test('etcd: answers that no etcd gives are errors with a code, never a record', async (t) => {
  const stored = encodeEnvelope(GROUP_RECORD, { version: 1, parent: null, record: groupRecord() });
  const good = JSON.stringify({
    header: { revision: '1' },
    kvs: [{ key: 'YQ==', value: Buffer.from(stored).toString('base64') }],
    count: '1',
  });
  let answer: FakeAnswer = { text: good };
  const endpoint = await startFakeEtcd(t, (path) =>
    path === '/version' ? { text: '{"etcdserver":"3.5.0"}' } : answer,
  );
  const coordination = await openAt(t, `etcd://${endpoint}/a?timeout-ms=50`);
  assert.equal((await coordination.group().read())?.version, 1);
  const random = seededRandom(7);
  const mutated = Array.from({ length: 150 }, () => {
    const at = random.below(good.length);
    return { text: good.slice(0, at) + String.fromCharCode(random.below(128)) + good.slice(at + 1 + random.below(3)) };
  });
  const cases: FakeAnswer[] = [
    ...['', '[]', 'null', '{"kvs":1}', '{"kvs":[1]}', '{"kvs":[{"value":1}]}', '{"kvs":[{}]}'].map((text) => ({
      text,
    })),
    { status: 404, text: 'Not Found' },
    { status: 500, text: '{"error":"etcdserver: no leader","code":14}' },
    { status: 403, text: '{"error":"etcdserver: permission denied","code":7}' },
    ...mutated,
  ];
  let failed = 0;
  for (const [i, each] of cases.entries()) {
    answer = each;
    try {
      const current = await coordination.group().read();
      // A change outside of the value changes nothing; one that makes the list empty reads as no record.
      if (current !== undefined) assert.deepEqual(current.version, 1, each.text);
      assert.ok(i >= 13, each.text);
    } catch (error) {
      assert.ok(isNostosError(error), `${each.text}: ${String(error)}`);
      failed += 1;
    }
    // Read as the answer to a write, none of them is a success.
    if (i >= 13 && i % 10 !== 0) continue;
    const written = await coordination
      .group('w')
      .compareAndSet(0, groupRecord())
      .catch((error: unknown) => error);
    assert.ok(isNostosError(written) || !(written as { ok: boolean }).ok, each.text);
  }
  assert.ok(failed > 75, `${failed} failed`);
});
