import assert from 'node:assert/strict';
import { test } from 'node:test';
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
