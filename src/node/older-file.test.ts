import assert from 'node:assert/strict';
import { copyFileSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { isNostosError } from '../base/errors.ts';
import { openNode } from './open-node.ts';
import type { Node } from './types.ts';

const MIGRATIONS = ['create table notes (id integer primary key, body text not null)'];
const SMALL = { segmentBytesMax: 128 * 1024, recordBytesMax: 100 * 1024, logRetainBytes: 0 };

/** A node whose tenant file was, while it was closed, replaced by the one of an earlier closing. */
async function withOlderFile(t: TestContext, limits: Partial<typeof SMALL>, rowsBetween: number): Promise<Node> {
  const dir = mkdtempSync(join(tmpdir(), 'nostos-older-'));
  const options = { dir, migrations: MIGRATIONS, limits };
  const file = join(dir, 'tenants', 'tenant_1', 'data.sqlite');
  const open: Node[] = [];
  const openAgain = async (): Promise<Node> => {
    const node = await openNode(options);
    open.push(node);
    return node;
  };
  t.after(async () => {
    for (const node of open) await node.close();
    rmSync(dir, { recursive: true, force: true });
  });
  const first = await openAgain();
  await (await first.tenants.create('acme')).write((tx) => tx.run(`insert into notes values (1, 'early')`));
  await first.close();
  copyFileSync(file, join(dir, 'older.sqlite'));
  const second = await openAgain();
  for (let row = 0; row < rowsBetween; row += 1)
    await second.tenant('acme').write((tx) => tx.run('insert into notes (body) values (?)', ['x'.repeat(2_000)]));
  await second.close();
  copyFileSync(join(dir, 'older.sqlite'), file);
  return openAgain();
}

test('a tenant file that was replaced by an older copy catches up from the log', async (t) => {
  const node = await withOlderFile(t, {}, 20);
  assert.equal(await node.tenant('acme').read((reader) => reader.value('select count(*) from notes')), 21);
  assert.deepEqual((await node.verify()).problems, []);
});

test('an older copy that the log cannot bring up to date is refused, not served', async (t) => {
  const node = await withOlderFile(t, SMALL, 200);
  assert.ok((await node.status()).log.firstLsn > 20, 'the log between is pruned');
  await assert.rejects(
    node.tenant('acme').read((reader) => reader.value('select count(*) from notes')),
    (error) => isNostosError(error, 'TENANT_DAMAGED') && /older copy/.test(error.message),
  );
});
