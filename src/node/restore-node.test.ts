import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { openNode } from './open-node.ts';
import { restoreNode } from './restore-node.ts';

function temporary(t: TestContext): string {
  const dir = mkdtempSync(join(tmpdir(), 'nostos-restore-node-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

test('one call restores; called off, the next one goes on from the same source with what was fetched', async (t) => {
  const root = temporary(t);
  const dir = join(root, 'copy');
  await using source = await openNode({ dir: join(root, 'source'), listen: { port: 0 } });
  const tenant = await source.tenants.create('acme');
  await tenant.migrate(['create table noise (id integer primary key not null, bytes blob not null)']);
  for (let id = 0; id < 4; id += 1)
    await tenant.write((tx) => tx.run('insert into noise values (?, randomblob(500000))', [id]));

  const enough = new AbortController();
  const calledOff = restoreNode({
    dir,
    from: [source.address!],
    rateBytesPerSecond: 2_000_000,
    signal: enough.signal,
    onProgress: ({ unit, done }) => {
      if (unit === 'bytes' && done > 500_000) enough.abort(new Error('enough'));
    },
  });
  await assert.rejects(calledOff, /enough/);
  await assert.rejects(openNode({ dir }), { code: 'RESTORE_UNFINISHED' });

  const events: string[] = [];
  const report = await restoreNode({ dir, onEvent: ({ kind }) => events.push(kind) });
  assert.equal(report.resumed, 'fetching');
  assert.ok(report.fetched!.bytesReused > 0, 'what was fetched counts');
  assert.equal(report.verified!.rows, 4);
  assert.deepEqual(events, ['chosen']);
  await using copy = await openNode({ dir });
  const sums = (reader: { value: (sql: string) => unknown }): unknown =>
    reader.value('select group_concat(hex(substr(bytes, 1, 8))) from noise');
  assert.equal(await copy.tenant('acme').read(sums), await tenant.read(sums));
  await assert.rejects(copy.tenants.create('other'), { code: 'NOT_PRIMARY' });
});

test('without a source, and without a restore to go on with, it says what is missing and changes nothing', async (t) => {
  const dir = join(temporary(t), 'copy');
  await assert.rejects(restoreNode({ dir }), { code: 'INVALID_ARGUMENT', message: /needs from/ });
  await using node = await openNode({ dir });
  assert.equal(await node.tenants.count(), 0);
});
