/** A node whose log went on in a new generation, its old segments pruned, and copies of it: who it is, and positions. */
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { toGeneration, type Position } from '../base/brands.ts';
import { HybridClock, systemClock } from '../base/clock.ts';
import { systemDisk } from '../base/disk.ts';
import { isNostosError, type ErrorCode } from '../base/errors.ts';
import { beginGeneration } from '../log/generation.ts';
import { until } from './group.fixture.ts';
import { loadNode, writeNode } from './node-file.ts';
import { openNode } from './open-node.ts';
import { restoreNode } from './restore-node.ts';
import type { Node } from './types.ts';

const code = (wanted: ErrorCode) => (error: unknown) => isNostosError(error, wanted);
const limits = { segmentBytesMax: 512 * 1024, recordBytesMax: 128 * 1024, logRetainBytes: 0 };
const migrations = ['create table item (id integer primary key not null, body text not null)'];
const open = (dir: string): Promise<Node> =>
  openNode({ dir, migrations, limits, scrubIntervalMs: false, listen: { port: 0 } });

async function write(node: Node, rows: number): Promise<Position> {
  const acme = node.tenant('acme');
  for (let i = 0; i < rows; i++)
    await acme.write((tx) => void tx.run('insert into item (body) values (?)', ['x'.repeat(50_000)]));
  return acme.position();
}

test('a node in its second generation: log, pruning, verification and copies, and the positions of both', async (t) => {
  const root = await mkdtemp(join(tmpdir(), 'nostos-generation-'));
  t.after(() => rm(root, { recursive: true, force: true }));
  const [dir, copied] = [join(root, 'data'), join(root, 'copy')];
  const parent: Position[] = [];
  {
    await using node = await open(dir);
    await node.tenants.create('acme');
    for (let i = 0; i < 3; i++) parent.push(await write(node, 8));
  }
  const identity = loadNode(dir, undefined);
  const generation = toGeneration('5'.repeat(32));
  const { fork, start } = beginGeneration(
    { disk: systemDisk, clock: new HybridClock(systemClock) },
    {
      dir: join(dir, 'log'),
      parent: identity.generation,
      generation,
      term: (parent.at(-1)!.term + 5) as Position['term'],
    },
  );
  await assert.rejects(open(dir), code('DIRECTORY_FOREIGN'), 'node.json has to say the same');
  writeNode(dir, { ...identity, generation });

  const above = { ...fork, lsn: (fork.lsn + 1) as Position['lsn'] };
  const checked = async (node: Node): Promise<void> => {
    const acme = node.tenant('acme');
    for (const min of [...parent, fork, start]) await acme.read(() => 0, { min });
    for (const min of [above, { ...above, term: start.term }])
      await assert.rejects(
        acme.read(() => 0, { min }),
        code('POSITION_LOST'),
      );
    assert.equal((await node.status()).log.generation, generation);
    assert.deepEqual((await node.verify()).problems, []);
  };
  await using node = await open(dir);
  const before = await node.tenant('acme').position();
  assert.deepEqual(before, parent.at(-1), 'a tenant is at the record that it was at');
  const first = await write(node, 1);
  assert.equal(first.generation, generation);
  const seen = await Array.fromAsync(node.log());
  assert.deepEqual(
    seen.map(({ position }) => position.generation),
    seen.map(({ position }) => (position.lsn <= fork.lsn ? identity.generation : generation)),
  );
  assert.ok(
    seen.some(({ position }) => position.lsn <= fork.lsn),
    'it reads across the fork',
  );
  await checked(node);
  await restoreNode({ dir: copied, from: [node.address!] });
  {
    await using copy = await open(copied);
    await checked(copy);
  }

  await until('the parent is pruned', async () => {
    await write(node, 12);
    return (await node.status()).log.firstLsn > start.lsn;
  });
  await checked(node);
  await assert.rejects(Array.fromAsync(node.tenant('acme').changes({ from: parent[0]! })), code('LOG_PRUNED'));
  await rm(copied, { recursive: true });
  await restoreNode({ dir: copied, from: [node.address!] });
  await using copy = await open(copied);
  assert.ok((await copy.status()).log.firstLsn > start.lsn);
  await checked(copy);
});
