import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Lsn, Position } from '../base/brands.ts';
import { isNostosError } from '../base/errors.ts';
import { makeGroup, until } from './group.fixture.ts';
import type { Node } from './types.ts';

async function rowsOf(node: Node): Promise<readonly unknown[]> {
  return node.tenant('acme').read((reader) => reader.all('select id, body from item order by id'));
}

test(
  'three nodes hold one log: writes reach the replicas, which read and do not write',
  { timeout: 60_000 },
  async (t) => {
    const group = await makeGroup(t, 3);
    await using first = await group.open(0);
    await until('the first leads', () => first.role === 'primary');
    await first.tenant('acme').write((tx) => void tx.run("insert into item values (1, 'alone')"));
    await using second = await group.open(1);
    await using third = await group.open(2);
    for (const node of [second, third]) {
      const { store } = await node.status();
      await first.group!.changeMembers({ add: store, minInSync: 2 });
    }
    await first.tenant('acme').write((tx) => void tx.run("insert into item values (2, 'together')"));
    const expected = await rowsOf(first);
    assert.equal(expected.length, 3);
    for (const node of [second, third])
      await until('the replica has it', async () => (await rowsOf(node)).length === expected.length);
    assert.deepEqual(await rowsOf(second), expected);
    assert.equal(second.role, 'replica');
    await assert.rejects(
      second.tenant('acme').write((tx) => void tx.run("insert into item values (3, 'x')")),
      (error) => isNostosError(error, 'NOT_PRIMARY'),
    );
    const fingerprints = await Promise.all(
      [first, second, third].map(async (node) => (await node.tenant('acme').status()).fingerprint),
    );
    assert.equal(new Set(fingerprints).size, 1);
  },
);

test('what an old primary alone had goes into a file, and it follows', { timeout: 90_000 }, async (t) => {
  const group = await makeGroup(t, 3);
  let dropped: Position;
  {
    await using first = await group.open(0);
    await until('the first leads', () => first.role === 'primary');
    const others = [await group.open(1), await group.open(2)];
    for (const node of others) await first.group!.changeMembers({ add: (await node.status()).store, minInSync: 2 });
    await insert(first, 1, 'kept');
    for (const node of others) await node.close();
    for (let id = 10; id < 20; id += 1) await insert(first, id, 'lost', 'local');
    assert.equal((await rowsOf(first)).length, 12, 'a local write is visible at once');
    dropped = await first.tenant('acme').position();
  }
  await using second = await group.open(1);
  await using third = await group.open(2);
  await until('another one leads', () => second.role === 'primary' || third.role === 'primary');
  const primary = second.role === 'primary' ? second : third;
  await insert(primary, 30, 'after the takeover');
  await using first = await group.open(0);
  await until('the old primary follows', async () => (await rowsOf(first)).length === 3);
  const nodes = [first, second, third];
  for (const node of nodes) assert.deepEqual(await rowsOf(node), await rowsOf(primary));
  for (const node of nodes)
    await assert.rejects(
      node.tenant('acme').read(() => 0, { min: dropped }),
      (error) => isNostosError(error, 'POSITION_LOST'),
    );
  const rolledBack = first.group!.events.find(({ kind }) => kind === 'rolled-back');
  assert.match(rolledBack!.text, /^10 records above LSN \d+, 10 of them acknowledged, are kept in /);
  const file = readdirSync(join(group.dirs[0]!, 'rollback')).find((name) => name.includes('lsn'));
  assert.ok(file !== undefined);
  const fingerprints = await Promise.all(nodes.map(async (node) => (await node.tenant('acme').status()).fingerprint));
  assert.equal(new Set(fingerprints).size, 1);
});

test(
  'a replica reads from a position on; a primary without a lease does not answer',
  { timeout: 60_000 },
  async (t) => {
    const group = await makeGroup(t, 2);
    await using first = await group.open(0);
    await until('the first leads', () => first.role === 'primary');
    await using second = await group.open(1);
    await first.group!.changeMembers({ add: (await second.status()).store, minInSync: 2 });
    for (let id = 1; id <= 20; id += 1) {
      await insert(first, id, 'row');
      const min = await first.tenant('acme').position();
      const seen = await second.tenant('acme').read((reader) => reader.value('select max(id) from item'), { min });
      assert.equal(seen, id);
    }
    const { term, generation, lsn } = await first.tenant('acme').position();
    await assert.rejects(
      second.tenant('acme').read(() => 0, { min: { generation, term, lsn: (lsn + 1_000) as Lsn }, timeoutMs: 100 }),
      (error) => isNostosError(error, 'QUERY_TIMEOUT'),
    );
    group.takeAway();
    await until('the lease has run out', async () =>
      first
        .tenant('acme')
        .read(() => false)
        .catch((error: unknown) => isNostosError(error, 'NOT_PRIMARY')),
    );
    assert.equal(
      await first.tenant('acme').read((reader) => reader.value('select max(id) from item'), { stale: true }),
      20,
    );
    await insert(first, 21, 'no quorum write needs the coordinator');
    group.bringBack();
    const read = (): Promise<unknown> =>
      first.tenant('acme').read((reader) => reader.value('select max(id) from item'));
    assert.equal(await eventually(read), 21);
  },
);

test('a planned handover moves the lead, and writes go on there', { timeout: 60_000 }, async (t) => {
  const group = await makeGroup(t, 2);
  await using first = await group.open(0);
  await until('the first leads', () => first.role === 'primary');
  await using second = await group.open(1);
  await first.group!.changeMembers({ add: (await second.status()).store, minInSync: 1 });
  await insert(first, 1, 'before');
  await first.group!.handover();
  await until('the second leads', () => second.role === 'primary');
  assert.equal(first.role, 'replica');
  await insert(second, 2, 'after');
  await until('the first follows', async () => (await rowsOf(first)).length === 3);
  assert.deepEqual(await rowsOf(first), await rowsOf(second));
});

async function insert(node: Node, id: number, body: string, durability: 'quorum' | 'local' = 'quorum'): Promise<void> {
  await node.tenant('acme').write((tx) => void tx.run('insert into item values (?, ?)', [id, body]), { durability });
}

/** Once the lease is back. */
async function eventually<T>(read: () => Promise<T>): Promise<T> {
  let result: T | undefined;
  await until('it is read', async () => {
    result = await read().catch(() => undefined);
    return result !== undefined;
  });
  return result as T;
}
