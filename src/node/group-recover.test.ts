/** A group of real nodes from its beginning, through a coordinator that lost everything, and on. */
import assert from 'node:assert/strict';
import { cpSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { tmpdir } from 'node:os';
import { isDeepStrictEqual } from 'node:util';
import { mkdtemp, rm } from 'node:fs/promises';
import { toTerm, type Position } from '../base/brands.ts';
import { isNostosError } from '../base/errors.ts';
import { systemDisk } from '../base/disk.ts';
import { openCoordinator } from '../coordination/open-coordinator.ts';
import { SEGMENT_HEADER_BYTES } from '../log/segment-header.ts';
import { listRollbackFiles } from '../rollback/file/list.ts';
import { showFile } from '../rollback/show.ts';
import { FAST, until } from './group.fixture.ts';
import { initGroup } from './group-init.ts';
import { adoptRecovered, recoverGroup } from './group-recover.ts';
import { loadNode } from './node-file.ts';
import { openNode } from './open-node.ts';
import { runOperation, type OperationInput } from './operations.ts';
import { planRejoin } from './rejoin-plan.ts';
import { keepTail } from './rejoin-tail.ts';
import { restoreNode } from './restore-node.ts';
import { readStopped } from './stopped-directory.ts';
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

test('two of three are lost: the third goes on in a new generation, and what comes back joins it as a copy', async (t) => {
  const root = await mkdtemp(join(tmpdir(), 'nostos-group-'));
  t.after(() => rm(root, { recursive: true, force: true }));
  const [a, b, c] = ['a', 'b', 'c'].map((name) => join(root, name)) as [string, string, string];
  const coordinator = `embedded:${join(root, 'coordinator')}`;
  await using coordination = await openCoordinator(coordinator);
  const group = coordination.group('main');
  const migrations = ['create table item (id integer primary key not null)'];
  const common = { migrations, scrubIntervalMs: false, limits: FAST } as const;
  const open = (dir: string): Promise<Node> =>
    openNode({ dir, ...common, listen: { port: 0 }, group: { coordinator, listen: { port: 0 } } });
  const insert = async (node: Node, id: number): Promise<Position> => {
    await node.tenant('acme').write((tx) => void tx.run('insert into item values (?)', [id]));
    return node.tenant('acme').position();
  };
  {
    await using first = await openNode({ dir: a, ...common, listen: { port: 0 } });
    await first.tenants.create('acme');
    await insert(first, 1);
    for (const dir of [b, c]) await restoreNode({ dir, from: [first.address!] });
  }
  await initGroup(group, a);
  let [shared, above] = [undefined, undefined] as (Position | undefined)[];
  {
    await using first = await open(a);
    await until('a primary', () => first.role === 'primary');
    await using second = await open(b);
    {
      await using third = await open(c);
      for (const dir of [b, c]) await change(first, { add: loadNode(dir, undefined).store });
      shared = await insert(first, 2);
      await until('the third', async () => (await rows(third)) === 2);
    }
    const { store } = loadNode(c, undefined);
    await insert(first, 3);
    await until('the third is dropped', async () => (await group.read())!.record.inSync.every((one) => one !== store));
    above = await insert(first, 4);
    await until('the second', async () => (await rows(second)) === 4);
  }
  const parent = loadNode(c, undefined);
  assert.equal((await recoverGroup(group, { dirs: [c] })).decision?.kind, 'too-few');
  const { begins, done } = await recoverGroup(group, { dirs: [c], acceptLoss: true, stillMs: FAST.leaseMs! });
  assert.ok(done && begins !== null && begins.fork.lsn >= shared.lsn && begins.fork.lsn < above.lsn);
  assert.equal(begins.loss.onlyOn.length, 2);

  await using third = await open(c);
  await until('it leads alone', () => third.role === 'primary');
  const acme = third.tenant('acme');
  assert.equal(await acme.read((reader) => reader.value('select count(*) from item'), { min: shared }), 2);
  const before = await acme.position();
  assert.deepEqual([before.generation, before.lsn >= shared.lsn], [parent.generation, true], 'of the record it is at');
  const next = await insert(third, 5);
  assert.equal(next.generation, begins.generation);
  const lost = (error: unknown): boolean =>
    isNostosError(error, 'POSITION_LOST') &&
    isDeepStrictEqual(error.details['fork'], { generation: parent.generation, ...begins.fork });
  await assert.rejects(
    acme.read(() => 0, { min: above }),
    lost,
  );
  const changesFrom = async (from: Position): Promise<readonly Position[]> =>
    (await Array.fromAsync(acme.changes({ from, untilCaughtUp: true }))).map(({ position }) => position);
  await assert.rejects(changesFrom(above), lost);
  assert.deepEqual(await changesFrom(shared), [next]);
  const all = await Array.fromAsync(acme.changes({ untilCaughtUp: true }));
  assert.deepEqual(
    [...new Set(all.map(({ position }) => position.generation))],
    [parent.generation, begins.generation],
  );
  for (const { position } of all) assert.deepEqual(await acme.read(() => true, { min: position }), true);

  assert.equal((await planRejoin(group, b)).decision.row, 'other-generation');
  await assert.rejects(restoreNode({ dir: b, from: [third.address!] }), (error: unknown) =>
    isNostosError(error, 'DIRECTORY_FOREIGN'),
  );
  const old = loadNode(b, undefined);
  await restoreNode({ dir: b, from: [third.address!], replace: true });
  const copy = loadNode(b, undefined);
  assert.deepEqual([copy.generation, copy.node], [begins.generation, old.node]);
  assert.equal(loadNode(join(b, 'set-aside.1'), undefined).store, old.store, 'with what nobody else had');
  {
    await using second = await open(b);
    await until('it has the place of its old store, and is in sync', async () => {
      const { members, inSync } = (await group.read())!.record;
      return members.length === 3 && !members.includes(old.store) && inSync.includes(copy.store);
    });
    await change(third, { minInSync: 2 });
    await insert(third, 6);
    await until('it has all, and nothing else', async () => (await rows(second)) === 4);
    const seen = await second.tenant('acme').read((reader) => reader.all('select id from item order by id'), {
      min: next,
    });
    assert.deepEqual(
      seen.map(({ id }) => id),
      [1, 2, 5, 6],
    );
    await assert.rejects(
      second.tenant('acme').read(() => 0, { min: above }),
      lost,
    );
    const prints = await Promise.all(
      [third, second].map(async (node) => (await node.tenant('acme').status()).fingerprint),
    );
    assert.equal(prints[0], prints[1]);
    assert.ok((await second.verify()).ok);
    await runOperation(third, { name: 'group.handover', input: {} }, context);
    await until('the copy leads', () => second.role === 'primary');
    assert.equal((await insert(second, 7)).generation, begins.generation);
    await until('and is followed', async () => (await rows(third)) === 5);

    // Who is only started comes home in the same way, and keeps what was committed above the fork where people find it.
    const { store } = loadNode(a, undefined);
    await using first = await open(a);
    await until('the first has the place of its old store', async () => {
      const { members, inSync } = (await group.read())!.record;
      return !members.includes(store) && inSync.length === 3;
    });
    await until('it has all', async () => (await rows(first)) === 5);
    const kept = async (dir: string): Promise<void> => {
      const files = await listRollbackFiles(systemDisk, join(dir, 'rollback'));
      assert.equal(files.length, 1);
      const [file] = files;
      assert.ok(file?.state === 'whole');
      assert.deepEqual([file.header.generation, file.header.common.lsn], [parent.generation, begins.fork.lsn]);
      const shown = await Array.fromAsync(showFile(systemDisk, file.path));
      const dropped = shown.filter((one) => one.kind === 'row');
      assert.deepEqual(
        dropped.map(({ key, acknowledged }) => [key, acknowledged]),
        [
          [{ id: 3 }, true],
          [{ id: 4 }, true],
        ],
      );
    };
    await kept(a);

    // Its log may be damaged below the fork, and not say any more where its generation ended.
    const damaged = join(root, 'damaged');
    cpSync(a, damaged, { recursive: true, filter: (path) => !path.endsWith('.sock') });
    rmSync(join(damaged, 'rollback'), { recursive: true });
    const aside = join(damaged, 'set-aside.1');
    const { watermark, anchor } = readStopped(aside).report;
    const segment = readdirSync(join(aside, 'log')).find((name) => name.endsWith('.ndb'))!;
    const path = join(aside, 'log', segment);
    const bytes = readFileSync(path);
    assert.ok(anchor < begins.fork.lsn - 1);
    bytes[SEGMENT_HEADER_BYTES + 40]! ^= 1;
    writeFileSync(path, bytes);
    assert.ok(readStopped(aside).report.damage !== undefined);
    const { signal } = new AbortController();
    await keepTail({ store, above: watermark, term: toTerm(99) }, { dir: damaged, signal });
    await kept(damaged);
  }
});
