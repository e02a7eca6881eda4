/** Appends of the caller's own thread beside the engine's, with real threads and a real disk (ADR 0004). */
import assert from 'node:assert/strict';
import fs, { mkdtempSync, rmSync } from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { isNostosError } from '../base/errors.ts';
import type { NostosNode } from './node.ts';
import { openNode } from './open-node.ts';
import type { Node, Tenant } from './types.ts';

const ALWAYS = 1_000_000_000;
const SCHEMA = 'create table item (id integer primary key not null, body text not null)';

/** The syncs of this thread, which the engine's and SQLite's own are not among. */
class OwnSyncs {
  count = 0;
  /** Runs instead of the next sync. */
  next: ((sync: () => void) => void) | undefined;

  constructor(t: TestContext) {
    const real = fs.fdatasyncSync;
    fs.fdatasyncSync = (fd) => {
      this.count += 1;
      const { next } = this;
      this.next = undefined;
      if (next === undefined) real(fd);
      else next(() => real(fd));
    };
    syncBuiltinESMExports();
    t.after(() => {
      fs.fdatasyncSync = real;
      syncBuiltinESMExports();
    });
  }
}

function failure(code: string): Error {
  return Object.assign(new Error(`${code}: injected`), { code });
}

async function openWith(
  t: TestContext,
  directSyncMicros: number,
): Promise<{ node: Node; tenant: Tenant; dir: string }> {
  const dir = mkdtempSync(join(tmpdir(), 'nostos-direct-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  const node = await openNode({ dir, limits: { directSyncMicros } });
  t.after(() => node.close());
  const tenant = await node.tenants.create('items');
  await tenant.migrate([SCHEMA]);
  return { node, tenant, dir };
}

const insert = (tenant: Tenant, body: string): Promise<unknown> =>
  tenant.write((tx) => tx.run('insert into item (body) values (?)', [body]));

async function assertHolds(node: Node, tenant: Tenant, bodies: readonly string[]): Promise<void> {
  const rows = await tenant.read((db) => db.all<{ body: string }>('select body from item order by body'));
  assert.deepEqual(
    rows.map(({ body }) => body),
    [...bodies].sort(),
  );
  const report = await node.verify();
  assert.ok(report.ok, JSON.stringify(report));
}

test('who writes alone syncs the log itself; who does not leaves it to the engine', async (t) => {
  const syncs = new OwnSyncs(t);
  const { node, tenant } = await openWith(t, ALWAYS);
  const others = await Promise.all(['b', 'c', 'd'].map((name) => node.tenants.create(name)));
  for (const other of others) await other.migrate([SCHEMA]);
  await insert(tenant, 'warm');
  syncs.count = 0;
  for (let n = 0; n < 50; n += 1) await insert(tenant, `alone ${n}`);
  assert.ok(syncs.count >= 48, `${syncs.count} of 50 were synced here`);
  syncs.count = 0;
  for (let n = 0; n < 50; n += 1) await Promise.all(others.map((other) => insert(other, `together ${n}`)));
  assert.ok(syncs.count <= 2, `${syncs.count} groups of several tenants were synced here`);
});

test('with the limit at 0 the engine does it all', async (t) => {
  const { tenant } = await openWith(t, 0);
  const syncs = new OwnSyncs(t);
  for (let n = 0; n < 20; n += 1) await insert(tenant, `row ${n}`);
  assert.equal(syncs.count, 0);
});

test('a disk that becomes slow no longer holds this thread up', async (t) => {
  const syncs = new OwnSyncs(t);
  const { tenant } = await openWith(t, 20_000);
  for (let n = 0; n < 5; n += 1) await insert(tenant, `fast ${n}`);
  assert.ok(syncs.count > 0, 'it syncs here while that is fast');
  const slow = (sync: () => void): void => {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 400);
    sync();
  };
  syncs.next = slow;
  await insert(tenant, 'slow');
  syncs.count = 0;
  await insert(tenant, 'after');
  assert.equal(syncs.count, 0, 'the engine does it now');
});

test('the caller writes and the engine appends at the same time: one chain, nothing missing', async (t) => {
  const syncs = new OwnSyncs(t);
  const { node, tenant } = await openWith(t, ALWAYS);
  const probing = (node as NostosNode).probe(1_000);
  const bodies: string[] = [];
  let running = true;
  void probing.then(() => (running = false));
  while (running) {
    bodies.push(`row ${bodies.length}`);
    await insert(tenant, bodies.at(-1)!);
  }
  const { appends } = await probing;
  assert.ok(appends > 20 && syncs.count > 100, `${appends} by the engine, ${syncs.count} here`);
  await assertHolds(node, tenant, bodies);
});

for (const { name, strike, kept } of [
  {
    name: 'a sync that fails after it did its work: the record is read back, and counts',
    strike: (sync: () => void): void => {
      sync();
      throw failure('EIO');
    },
    kept: true,
  },
  {
    name: 'a sync that fails because the space is gone: the record is read back, and written again',
    strike: (): void => {
      throw failure('ENOSPC');
    },
    kept: true,
  },
])
  test(name, async (t) => {
    const syncs = new OwnSyncs(t);
    const { node, tenant, dir } = await openWith(t, ALWAYS);
    await insert(tenant, 'before');
    syncs.next = strike;
    const before = syncs.count;
    const outcome = await insert(tenant, 'during').then(
      () => true,
      (error: unknown) => assert.ok(isNostosError(error), String(error)),
    );
    assert.equal(syncs.next, undefined, 'it struck');
    assert.equal(outcome, kept);
    const { watermark } = (await node.status()).log;
    const last: number[] = [];
    for await (const { position } of node.log({ from: watermark })) last.push(position.lsn);
    assert.deepEqual(last, [watermark], 'this thread knows of the settled record');
    const bodies = ['before', 'during'];
    for (let n = 0; n < 20; n += 1) {
      bodies.push(`after ${n}`);
      await insert(tenant, bodies.at(-1)!);
    }
    assert.ok(syncs.count > before + 1, 'the tail is lent again in the next term');
    await assertHolds(node, tenant, bodies);
    await node.close();
    await using again = await openNode({ dir });
    await assertHolds(again, again.tenant('items'), bodies);
  });

test('whoever replaces timers in tests does not stop writes', async (t) => {
  const { tenant } = await openWith(t, ALWAYS);
  t.mock.timers.enable({ apis: ['setImmediate', 'setTimeout', 'setInterval'] });
  await insert(tenant, 'row');
  t.mock.timers.reset();
});

test('a write that fails keeps nothing, and says so', async (t) => {
  const { node, tenant } = await openWith(t, ALWAYS);
  await insert(tenant, 'before');
  const real = fs.writeSync;
  let struck = 0;
  fs.writeSync = () => {
    struck += 1;
    throw failure('EIO');
  };
  syncBuiltinESMExports();
  try {
    await assert.rejects(insert(tenant, 'during'), (error) => isNostosError(error, 'IO_FAILED'));
  } finally {
    fs.writeSync = real;
    syncBuiltinESMExports();
  }
  assert.equal(struck, 1);
  await insert(tenant, 'after');
  await assertHolds(node, tenant, ['before', 'after']);
});
