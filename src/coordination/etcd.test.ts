/** A real etcd of three members, which the tests start, kill, stop and set back. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import type { TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { systemDisk } from '../base/disk.ts';
import { isNostosError } from '../base/errors.ts';
import { coordinatorCompliance, groupRecord } from '../testing/coordinator-compliance.ts';
import { startCoordinatorProxy } from '../testing/coordinator-proxy.ts';
import { EtcdCluster, etcdMissing } from '../testing/etcd-cluster.ts';
import type { Coordination } from './coordination.ts';
import type { Versioned } from './coordinator.ts';
import { NewestSeen } from './newest-seen.ts';
import { openCoordinator } from './open-coordinator.ts';
import { RememberingCoordinator } from './remembering.ts';

const skip = etcdMissing();
const options = skip === undefined ? {} : { skip };
let cluster: EtcdCluster;

before(async () => {
  if (skip === undefined) cluster = await EtcdCluster.start();
});
after(() => cluster?.close());

const freshPrefix = (): string => `test/${randomBytes(8).toString('hex')}`;
const urlOf = (endpoints: readonly string[], prefix: string, query = ''): string =>
  `etcd://${endpoints.join(',')}/${prefix}?${query}`;

async function openAt(t: TestContext, url: string): Promise<Coordination> {
  const coordination = await openCoordinator(url);
  t.after(() => coordination.close());
  return coordination;
}

coordinatorCompliance({
  name: 'etcd',
  skip,
  module: new URL('./open-coordinator.ts', import.meta.url).href,
  fresh: () => urlOf(cluster.endpoints, freshPrefix()),
  image: (url) => keyImage(String(url)),
  async disturbed(t, url) {
    const network = await startCoordinatorProxy(t, {
      upstream: cluster.endpoints[0]!,
      isWrite: (_method, path) => path === '/v3/kv/txn',
    });
    const prefix = new URL(String(url).replace(/,[^/]+/, '')).pathname.slice(1);
    return { args: urlOf([network.endpoint], prefix, 'attempt-timeout-ms=300&timeout-ms=300'), network };
  },
});

test('etcd: one member is killed or stopped, and reads, writes and watches go on', options, async (t) => {
  const prefix = freshPrefix();
  const group = (await openAt(t, urlOf(cluster.endpoints, prefix, 'attempt-timeout-ms=500'))).group();
  const ended = new AbortController();
  t.after(() => ended.abort());
  let seen: Versioned | undefined;
  group.watch((current) => (seen = current), { signal: ended.signal });
  let version = 0;
  const goesOn = async (what: string): Promise<void> => {
    for (const startMs = performance.now(); ; await sleep(50)) {
      assert.ok(performance.now() - startMs < 15_000, `${what}: writes go on`);
      const record = groupRecord({ renewal: version });
      const result = await write(group, version, record);
      if (result === undefined) continue;
      assert.deepEqual(result, { ok: true, version: version + 1 }, what);
      version += 1;
      assert.deepEqual(await group.read(), { version, record });
      break;
    }
    for (const startMs = performance.now(); seen?.version !== version; await sleep(20))
      assert.ok(performance.now() - startMs < 5_000, `${what}: the watch goes on`);
  };
  await goesOn('all members');
  for (const fault of ['kill', 'pause'] as const) {
    const failed = new Set([0, await cluster.leader()]);
    for (const index of failed) {
      await cluster[fault](index);
      for (let writes = 0; writes < 5; writes++) await goesOn(`${fault} ${index}`);
      if (fault === 'kill') await cluster.startMember(index);
      else cluster.resume(index);
      await goesOn(`${fault} ${index}, and back`);
    }
  }
});

/** As a primary does: a write without an answer is repeated as it is. */
async function write(
  group: ReturnType<Coordination['group']>,
  version: number,
  record: ReturnType<typeof groupRecord>,
) {
  for (let tries = 0; tries < 20; tries++) {
    try {
      return await group.compareAndSet(version, record);
    } catch (error) {
      assert.ok(isNostosError(error, 'COORDINATOR_UNAVAILABLE'), String(error));
    }
  }
  return undefined;
}

test('etcd: without a majority calls fail in time and say so, and go on with one', options, async (t) => {
  const group = (
    await openAt(t, urlOf(cluster.endpoints, freshPrefix(), 'attempt-timeout-ms=400&timeout-ms=1500'))
  ).group();
  const first = groupRecord();
  assert.deepEqual(await group.compareAndSet(0, first), { ok: true, version: 1 });
  for (const down of [
    [1, 2],
    [0, 1, 2],
  ]) {
    for (const index of down) await cluster.kill(index);
    const record = groupRecord();
    const current = await group.read().catch((error: unknown) => error);
    assert.ok(isNostosError(current, 'COORDINATOR_UNAVAILABLE'), String(current));
    for (const call of [() => group.read(), () => group.compareAndSet(1, record)]) {
      const startMs = performance.now();
      await assert.rejects(call(), (error: unknown) => isNostosError(error, 'COORDINATOR_UNAVAILABLE'));
      assert.ok(performance.now() - startMs < 2_500, 'within its time');
    }
    await cluster.startAll();
    const read = await group.read();
    assert.ok(read !== undefined);
    // What the member that was alone had taken in may be carried out now, or not.
    assert.ok([first.nonce, record.nonce].includes(read.record.nonce));
    if (read.version === 2) return;
  }
});

test('etcd: a cluster that comes back from older disks stops who saw more', options, async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'nostos-seen-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  const older = await EtcdCluster.start({ members: 1 });
  t.after(() => older.close());
  const prefix = freshPrefix();
  const url = urlOf(older.endpoints, prefix);
  const coordination = await openAt(t, url);
  const node = new RememberingCoordinator(coordination.group(), new NewestSeen(systemDisk, join(dir, 'node.json')));
  await node.compareAndSet(0, groupRecord());
  const restore = await older.image();
  await node.read();
  assert.equal((await node.compareAndSet(1, groupRecord())).ok, true);
  const lostRevision = await modRevision(older.endpoints[0]!, prefix);
  await restore();
  const other = groupRecord();
  assert.deepEqual(await (await openAt(t, url)).group().compareAndSet(1, other), { ok: true, version: 2 });
  assert.equal(await modRevision(older.endpoints[0]!, prefix), lostRevision, 'etcd numbers another record alike');
  const regressed = (error: unknown): boolean => isNostosError(error, 'COORDINATOR_REGRESSED');
  await assert.rejects(node.compareAndSet(2, groupRecord()), regressed);
  await assert.rejects(node.read(), regressed);
  assert.deepEqual(await coordination.group().read(), { version: 2, record: other });
});

async function modRevision(endpoint: string, prefix: string): Promise<unknown> {
  const key = Buffer.from(`${prefix}/groups/main`).toString('base64');
  const { kvs = [] } = await gateway(endpoint, '/v3/kv/range', { key });
  return kvs[0]?.mod_revision;
}

interface Range {
  readonly kvs?: readonly { readonly key: string; readonly value: string; readonly mod_revision: string }[];
}

async function gateway(endpoint: string, path: string, body: object): Promise<Range> {
  const response = await fetch(`http://${endpoint}${path}`, { method: 'POST', body: JSON.stringify(body) });
  assert.equal(response.status, 200);
  return (await response.json()) as Range;
}

/** The keys below a prefix, put back one by one as an operator would. */
async function keyImage(url: string): Promise<() => Promise<void>> {
  const [, endpoint = '', prefix] = /^etcd:\/\/([^,/]+)[^/]*\/([^?]+)/.exec(url) ?? [];
  const key = Buffer.from(`${prefix}/`).toString('base64');
  const range_end = Buffer.from(`${prefix}0`).toString('base64');
  const { kvs = [] } = await gateway(endpoint, '/v3/kv/range', { key, range_end });
  return async () => {
    await gateway(endpoint, '/v3/kv/deleterange', { key, range_end });
    for (const { key: name, value } of kvs) await gateway(endpoint, '/v3/kv/put', { key: name, value });
  };
}
