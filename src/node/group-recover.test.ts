/** A group of real nodes from its beginning, through a coordinator that lost everything, and on. */
import assert from 'node:assert/strict';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { tmpdir } from 'node:os';
import { mkdtemp, rm } from 'node:fs/promises';
import { isNostosError } from '../base/errors.ts';
import { openCoordinator } from '../coordination/open-coordinator.ts';
import { FAST, until } from './group.fixture.ts';
import { initGroup } from './group-init.ts';
import { adoptRecovered, recoverGroup } from './group-recover.ts';
import { loadNode } from './node-file.ts';
import { openNode } from './open-node.ts';
import { runOperation, type OperationInput } from './operations.ts';
import { planRejoin } from './rejoin-plan.ts';
import { restoreNode } from './restore-node.ts';
import type { Node } from './types.ts';

const context = { signal: new AbortController().signal, onProgress: () => {}, emit: async () => {} };

function change(node: Node, input: OperationInput<'group.change'>): Promise<unknown> {
  return runOperation(node, { name: 'group.change', input }, context);
}

async function rows(node: Node): Promise<number | undefined> {
  return node.tenant('acme').read((reader) => reader.value<number>('select count(*) from item'));
}

test('a group begins, loses its coordinator, is recovered from two of three, and the third adopts it', async (t) => {
  const root = await mkdtemp(join(tmpdir(), 'nostos-group-'));
  t.after(() => rm(root, { recursive: true, force: true }));
  const [a, b, c] = ['a', 'b', 'c'].map((name) => join(root, name)) as [string, string, string];
  const coordinator = `embedded:${join(root, 'coordinator')}`;
  await using coordination = await openCoordinator(coordinator);
  const group = coordination.group('main');
  const migrations = ['create table item (id integer primary key not null)'];
  const open = (dir: string): Promise<Node> =>
    openNode({ dir, migrations, scrubIntervalMs: false, limits: FAST, group: { coordinator, listen: { port: 0 } } });
  const leads = async (node: Node): Promise<void> => until('a primary', () => node.role === 'primary');
  {
    await using first = await openNode({ dir: a, migrations, listen: { port: 0 }, scrubIntervalMs: false });
    const tenant = await first.tenants.create('acme');
    await tenant.write((tx) => void tx.run('insert into item values (1)'));
    for (const dir of [b, c]) await restoreNode({ dir, from: [first.address!] });
  }
  await initGroup(group, a);
  {
    await using first = await open(a);
    await leads(first);
    await using second = await open(b);
    await using third = await open(c);
    for (const dir of [b, c]) await change(first, { add: loadNode(dir, undefined).store });
    const { record } = (await group.read())!;
    assert.deepEqual([record.members.length, record.minInSync], [3, 2], 'a majority stays one');
    await first.tenant('acme').write((tx) => void tx.run('insert into item values (2)'));
    await until('replicas', async () => (await rows(second)) === 2 && (await rows(third)) === 2);
  }

  rmSync(join(root, 'coordinator'), { recursive: true });
  assert.equal((await planRejoin(group, b)).decision.row, 'coordinator-regressed');
  const { decision, done } = await recoverGroup(group, { dirs: [a, b] });
  assert.ok(done, decision?.reason ?? 'nothing was decided');
  const plan = await planRejoin(group, c);
  assert.equal(plan.decision.row, 'coordinator-regressed', 'it has not heard of it');

  await using first = await open(a);
  await using second = await open(b);
  await until('a primary', () => [first, second].some(({ role }) => role === 'primary'));
  const primary = first.role === 'primary' ? first : second;
  assert.equal(await rows(primary), 2);
  await primary.tenant('acme').write((tx) => void tx.run('insert into item values (3)'));
  await adoptRecovered(group, c);
  await using third = await open(c);
  await until('the third follows', async () => (await rows(third)) === 3);
  await assert.rejects(change(third, { minInSync: 1 }), (error: unknown) => isNostosError(error));
});
