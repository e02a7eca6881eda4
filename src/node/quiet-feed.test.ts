/** Feeds on a log that was pruned: who missed nothing goes on, who missed something is told. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Position } from '../base/brands.ts';
import { isNostosError } from '../base/errors.ts';
import { openNode } from './open-node.ts';
import type { Tenant } from './types.ts';

const LIMITS = {
  segmentBytesMax: 256 * 1024,
  recordBytesMax: 128 * 1024,
  logRetainBytes: 0,
  checkpointBytes: 64 * 1024,
};

async function positions(tenant: Tenant, from?: Position): Promise<Position[]> {
  const seen: Position[] = [];
  const options = { untilCaughtUp: true, ...(from === undefined ? {} : { from }) };
  for await (const { position } of tenant.changes(options)) seen.push(position);
  return seen;
}

test('the feed of a quiet tenant goes on from its last position however much of others was pruned', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'nostos-quiet-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  const schema = 'create table t (id integer primary key, body blob)';
  const insert = (tenant: Tenant, id: number): Promise<unknown> =>
    tenant.write((tx) => tx.run('insert into t values (?, randomblob(20000))', [id]));
  let last: Position | undefined;
  let before: Position | undefined;
  {
    await using node = await openNode({ dir, limits: LIMITS, migrations: [schema], scrubIntervalMs: false });
    const quiet = await node.tenants.create('quiet');
    await insert(quiet, 1);
    await insert(quiet, 2);
    [before, last] = (await positions(quiet)).slice(-2);
    const busy = await node.tenants.create('busy');
    for (let id = 0; id < 60; id += 1) await insert(busy, id);
  }
  // Closing made everything durable in the files, and pruned what nobody needs.
  await using node = await openNode({ dir, limits: LIMITS, migrations: [schema], scrubIntervalMs: false });
  const { firstLsn } = (await node.status()).log;
  assert.ok(last !== undefined && firstLsn > last.lsn + 1, `pruned up to ${firstLsn}, quiet at ${last?.lsn}`);
  const quiet = node.tenant('quiet');
  assert.deepEqual(await positions(quiet, last), []);
  const following = quiet.changes({ from: last });
  const next = following.next();
  await insert(quiet, 3);
  const found = await next;
  assert.equal(found.done, false);
  assert.ok(found.value.position.lsn > firstLsn);
  await following.return?.();
  await assert.rejects(positions(quiet, before), (error) => isNostosError(error, 'LOG_PRUNED'));
  assert.deepEqual(await positions(quiet, last), [found.value.position]);
});
