/** What users could do to themselves or to others around the rules of the write path. */
import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { isNostosError } from '../base/errors.ts';
import type { Limits } from '../base/limits.ts';
import { openNode } from './open-node.ts';
import type { Node } from './types.ts';

const SCHEMA = 'create table kv (k integer primary key, v); create index kv_v on kv (v)';

async function open(t: TestContext, limits: Partial<Limits> = {}): Promise<{ node: Node; dir: string }> {
  const dir = mkdtempSync(join(tmpdir(), 'nostos-guards-'));
  const node = await openNode({ dir, limits, scrubIntervalMs: false });
  t.after(async () => {
    await node.close();
    rmSync(dir, { recursive: true, force: true });
  });
  return { node, dir };
}

const denied = { code: 'SQL_DENIED' };

test('VACUUM INTO writes no file from a query', async (t) => {
  const { node, dir } = await open(t);
  const tenant = await node.tenants.create('t');
  const target = join(dir, 'copy.sqlite');
  for (const statement of [`vacuum into '${target}'`, `;/* x */ VACUUM main INTO '${target}'`])
    await assert.rejects(tenant.query(statement), denied);
  assert.equal(existsSync(target), false);
});

test('pragma_optimize as a table fails its own transaction only', async (t) => {
  const { node } = await open(t);
  const tenant = await node.tenants.create('t');
  await tenant.migrate([SCHEMA]);
  await tenant.write((tx) => tx.run('insert into kv values (1, 1)'));
  const [before, culprit, after] = await Promise.allSettled([
    tenant.write((tx) => tx.run('insert into kv values (2, 1)')),
    tenant.write((tx) => {
      tx.all('select * from pragma_optimize(0x10002)');
      throw new Error('undone');
    }),
    tenant.write((tx) => tx.run('insert into kv values (3, 1)')),
  ]);
  assert.equal(before.status, 'fulfilled');
  assert.equal(after.status, 'fulfilled');
  assert.ok(culprit.status === 'rejected' && isNostosError(culprit.reason, 'SQL_DENIED'));
});

test('a migration cannot change the tables of Nostos, whatever quotes it uses', async (t) => {
  const { node } = await open(t);
  const tenant = await node.tenants.create('t');
  await tenant.migrate([SCHEMA]);
  for (const statement of ["delete from 'nostos_results'", "update 'nostos_meta' set lsn = 1"])
    await assert.rejects(tenant.migrate([SCHEMA, statement]), { code: 'MIGRATION_FAILED' });
});

test('an id is checked by transaction() as by write(), and two never become one', async (t) => {
  const { node } = await open(t);
  const tenant = await node.tenants.create('t');
  for (const id of ['', 'x'.repeat(513), '\ud800', 5 as unknown as string]) {
    await assert.rejects(
      tenant.transaction(async () => 1, { id }),
      { code: 'INVALID_ARGUMENT' },
    );
    await assert.rejects(
      tenant.write(() => 1, { id }),
      { code: 'INVALID_ARGUMENT' },
    );
  }
});

test('many expired answers go little by little and fail nobody', async (t) => {
  const { node } = await open(t, { recordBytesMax: 256 * 1024, idempotencyKeepMs: 1 });
  const tenant = await node.tenants.create('t');
  const answer = 'x'.repeat(2_000);
  for (let round = 0; round < 40; round += 1)
    await Promise.all(
      Array.from({ length: 10 }, (_, index) => tenant.write(() => answer, { id: `${round} ${index}` })),
    );
  const left = async (): Promise<number> =>
    tenant.read((reader) => reader.value<number>('select count(*) from nostos_results') as number);
  const untilMs = performance.now() + 10_000;
  for (let index = 0; (await left()) >= 200 && performance.now() < untilMs; index += 1)
    await tenant.write(() => answer, { id: `late ${index}` });
  assert.ok((await left()) < 200);
});

test('a transaction limit beyond what a timer can count does not end transactions at once', async (t) => {
  const { node } = await open(t, { transactionTimeoutMs: 2 ** 40 });
  const tenant = await node.tenants.create('t');
  const pause = (tx: unknown): Promise<boolean> => new Promise((resolve) => setTimeout(resolve, 20, tx !== undefined));
  assert.equal(await tenant.transaction(pause), true);
});

test('a node that closes opens no tenant any more for those who wait for room', async (t) => {
  const { node } = await open(t, { openFilesMax: 10 });
  const tenants = await Promise.all(Array.from({ length: 12 }, (_, index) => node.tenants.create(`t ${index}`)));
  for (const tenant of tenants) await tenant.migrate([SCHEMA]);
  const writes = Array.from({ length: 240 }, (_, index) =>
    tenants[index % 12]!.write((tx) => tx.run('insert into kv values (?, 1)', [index])),
  );
  const closing = node.close();
  const results = await Promise.allSettled(writes);
  await closing;
  for (const result of results)
    assert.ok(result.status === 'fulfilled' || isNostosError(result.reason, 'CLOSED'), JSON.stringify(result));
  assert.ok(results.some(({ status }) => status === 'rejected'));
});
