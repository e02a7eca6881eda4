/** A whole node from a backup, to a snapshot, a position, or a time. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import type { Position } from '../base/brands.ts';
import { isNostosError, type ErrorCode } from '../base/errors.ts';
import { createRepository } from '../backup/repository/repository.ts';
import { restoreBackup } from './backup-restore.ts';
import { S3_BUCKET, realS3Missing, startRealS3, useTestCredentials } from '../testing/coordinator-s3.ts';
import { backUp, idsOf, insert, open, scratch } from './backup-restore.fixture.ts';
import type { Node } from './types.ts';

const code = (wanted: ErrorCode) => (error: unknown) => isNostosError(error, wanted);
const range = (from: number, to: number): number[] => Array.from({ length: to - from + 1 }, (_, at) => from + at);

async function first<T>(source: AsyncIterable<T>): Promise<T> {
  for await (const one of source) return one;
  throw new Error('it ended without any');
}

test('a node comes back from a snapshot, leads, and tells its positions from those that are lost', async (t) => {
  const root = await scratch(t);
  const [data, url] = [join(root, 'data'), `file:${join(root, 'backup')}`];
  await using repository = await createRepository(url);
  let early: Position;
  let at: Position;
  {
    await using node = await open(data);
    for (const name of ['acme', 'other']) await node.tenants.create(name);
    await insert(node, 'acme', [100]);
    early = await node.tenant('acme').position();
    await insert(node, 'acme', range(1, 99));
    await insert(node, 'other', [1]);
    at = await node.tenant('acme').position();
  }
  await backUp(repository, data);
  let above: Position;
  {
    await using node = await open(data);
    await insert(node, 'acme', range(101, 200));
    await node.tenants.drop('other');
    above = await node.tenant('acme').position();
  }
  await assert.rejects(restoreBackup({ from: url, dir: data, mode: 'new_cluster' }), code('BACKUP_REFUSED'));
  const report = await restoreBackup({ from: url, dir: data, mode: 'wipe_and_restore' });
  assert.equal(report.setAside, 'set-aside.1');
  assert.equal(report.verified?.rows, 101);
  await using node = await open(data);
  assert.deepEqual(await idsOf(node, 'acme'), range(1, 100));
  assert.deepEqual(await idsOf(node, 'other'), [1]);
  await node.tenant('acme').read(() => 0, { min: at });
  await assert.rejects(
    node.tenant('acme').read(() => 0, { min: above }),
    code('POSITION_LOST'),
  );
  await assert.rejects(node.tenant('acme').changes({ from: early }).next(), code('LOG_PRUNED'));
  await assert.rejects(node.tenant('acme').changes({ from: above }).next(), code('POSITION_LOST'));
  await insert(node, 'acme', [1_000]);
  const change = await first(node.tenant('acme').changes({ from: at }));
  assert.equal(change.position.generation, (await node.status()).log.generation, 'a feed goes on over the fork');
  const now = await node.tenant('acme').position();
  assert.notEqual(now.generation, at.generation);
  assert.ok(now.term > at.term && now.lsn > report.backup!.parent.lsn);
  assert.deepEqual((await node.verify()).problems, []);
});

/** Three snapshots: files of the first one, which the log carries on; tenants made and dropped; rows forgotten. */
async function history(t: TestContext) {
  const root = await scratch(t);
  const [data, url] = [join(root, 'data'), `file:${join(root, 'backup')}`];
  const repository = await createRepository(url);
  t.after(() => repository.close());
  const at: Record<string, { readonly lsn: number; readonly timeMs: number }> = {};
  const mark = async (name: string, node: Node): Promise<void> => {
    const { watermark } = (await node.status()).log;
    await setTimeout(5); // so that a time names one record
    at[name] = { lsn: watermark, timeMs: Date.now() };
    await setTimeout(5);
  };
  {
    await using node = await open(data);
    for (const name of ['acme', 'gone']) await node.tenants.create(name);
    await insert(node, 'acme', range(1, 10));
    await insert(node, 'gone', [1]);
    await mark('before the first', node);
    await insert(node, 'acme', [11]);
  }
  const first = await backUp(repository, data);
  {
    await using node = await open(data);
    await insert(node, 'acme', [12]);
    await mark('gone is there', node);
    await node.tenants.drop('gone');
    await node.tenants.create('late');
    await node.tenants.create('never opened');
    await insert(node, 'late', [1, 2]);
    await node.tenant('acme').write((tx) => tx.run('update item set body = ? where id = 1', ['changed']));
    await mark('late is there', node);
    await node.tenant('acme').write((tx) => tx.forget('item', { id: 5 }));
    await insert(node, 'acme', [13]);
    await mark('forgotten', node);
  }
  const second = await backUp(repository, data, { reuse: true });
  {
    await using node = await open(data);
    await insert(node, 'acme', [14, 15]);
    await node.tenant('acme').write((tx) => {
      tx.forget('item', { id: 14 });
      tx.forget('item', { id: 1 });
    });
    await insert(node, 'acme', [1], 'new');
    await mark('end', node);
  }
  const third = await backUp(repository, data);
  return { root, data, url, repository, at, snapshots: { first, second, third } };
}

test('a node comes back to any position and time; what was forgotten since stays forgotten, what came later stays', async (t) => {
  const { root, url, at, snapshots } = await history(t);
  const all = (...without: number[]): number[] => range(1, 15).filter((id) => !without.includes(id));
  const cases = [
    {
      name: 'the first snapshot',
      to: { snapshot: snapshots.first.id },
      acme: all(1, 5, 12, 13, 14, 15),
      others: ['gone'],
    },
    {
      name: 'the second',
      to: { snapshot: snapshots.second.id },
      acme: all(1, 5, 14, 15),
      others: ['late', 'never opened'],
    },
    { name: 'the end', to: {}, acme: all(5, 14), others: ['late', 'never opened'] },
    { name: 'a position', to: { toLsn: at['gone is there']!.lsn }, acme: all(1, 5, 13, 14, 15), others: ['gone'] },
    {
      name: 'a time',
      to: { toTimeMs: at['late is there']!.timeMs },
      acme: all(1, 5, 13, 14, 15),
      others: ['late', 'never opened'],
    },
    {
      name: 'a time past a forget',
      to: { toTimeMs: at['forgotten']!.timeMs },
      acme: all(1, 5, 14, 15),
      others: ['late', 'never opened'],
    },
  ];
  for (const { name, to, acme, others } of cases) {
    const dir = join(root, name);
    await restoreBackup({ from: url, dir, mode: 'new_cluster', ...to });
    await using node = await open(dir);
    assert.deepEqual(await idsOf(node, 'acme'), acme, name);
    assert.deepEqual(
      (await node.tenants.list()).map((one) => one.name).toSorted(),
      ['acme', ...others].toSorted(),
      name,
    );
    if (others.includes('late')) assert.deepEqual(await idsOf(node, 'late'), [1, 2]);
    // What is inserted after it is new, whatever was forgotten once; and a restore of the restored node agrees.
    await insert(node, 'acme', [5], 'again');
    assert.deepEqual((await node.verify()).problems, [], name);
  }
});

test('what a restore removed as forgotten, and is inserted anew, is there after the next one', async (t) => {
  const { root, url, repository, at } = await history(t);
  const dir = join(root, 'restored');
  await restoreBackup({ from: url, dir, mode: 'new_cluster', toLsn: at['gone is there']!.lsn });
  {
    await using node = await open(dir);
    await insert(node, 'acme', [5], 'again');
  }
  const snapshot = await backUp(repository, dir);
  await restoreBackup({ from: url, dir, mode: 'wipe_and_restore', snapshot: snapshot.id });
  await using node = await open(dir);
  assert.deepEqual(await idsOf(node, 'acme'), [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
  for (const [name, to] of [
    ['a position below the fork', { toLsn: at['gone is there']!.lsn }],
    ['a time before it', { toTimeMs: at['gone is there']!.timeMs }],
  ] as const) {
    const { backup } = await restoreBackup({ from: url, dir: join(root, name), mode: 'new_cluster', ...to });
    assert.equal(backup?.parent.lsn, at['gone is there']!.lsn, name);
    assert.equal(backup?.parent.generation, snapshot.terms[0]!.generation, name);
  }
  const { terms } = snapshot;
  assert.equal(new Set(terms.map(({ generation }) => generation)).size, 2, 'the lineage stands in the backup');
});

test('a target that cannot be reached is refused by name, with what can be, and nothing is changed', async (t) => {
  const { root, data, url, repository, at, snapshots } = await history(t);
  const names = await repository.archive.objects(snapshots.first.position.generation);
  const lost = names.filter(({ from, to }) => from <= at['late is there']!.lsn && at['late is there']!.lsn <= to);
  const cases: readonly [string, object, ErrorCode, RegExp][] = [
    [
      'behind the end',
      { toLsn: 10_000 },
      'ARCHIVE_GAP',
      new RegExp(`lacks LSN ${snapshots.third.position.lsn + 1}-10000`),
    ],
    ['in the future', { toTimeMs: Date.now() + 3_600_000 }, 'ARCHIVE_GAP', /it ends at/],
    ['before the first', { toLsn: at['before the first']!.lsn }, 'BACKUP_NOT_FOUND', /first position .* is LSN \d+/],
    ['a time before all', { toTimeMs: 1_000 }, 'BACKUP_NOT_FOUND', /first snapshot is of/],
    ['no such snapshot', { snapshot: '01900000-0000-7000-8000-000000000000' }, 'BACKUP_NOT_FOUND', /no snapshot 0190/],
    ['both', { toLsn: 3, toTimeMs: 3 }, 'INVALID_ARGUMENT', /not to both/],
    [
      'below the snapshot that is asked for',
      { snapshot: snapshots.third.id, toLsn: at['late is there']!.lsn },
      'BACKUP_NOT_FOUND',
      /leads to LSN 22-22 .*, not to LSN 16 .*; the snapshot/,
    ],
  ];
  for (const [name, to, wanted, message] of cases)
    await assert.rejects(
      restoreBackup({ from: url, dir: data, mode: 'wipe_and_restore', ...to }),
      (error) => code(wanted)(error) && message.test((error as Error).message),
      name,
    );
  assert.ok(lost.length > 0);
  for (const { key } of lost) await repository.deps.backend.delete(key);
  await assert.rejects(
    restoreBackup({ from: url, dir: join(root, 'gap'), mode: 'new_cluster', toLsn: at['late is there']!.lsn }),
    (error) =>
      code('ARCHIVE_GAP')(error) &&
      /leads to LSN \d+-\d+, or to LSN \d+-\d+ by the snapshot/.test((error as Error).message),
  );
  await restoreBackup({
    from: url,
    dir: join(root, 'before'),
    mode: 'new_cluster',
    toLsn: snapshots.first.position.lsn,
  });
  await using node = await open(data);
  assert.deepEqual((await node.verify()).problems, []);
});

test('out of object storage, by the same URL that the marker keeps', { skip: realS3Missing() ?? false }, async (t) => {
  const root = await scratch(t);
  const data = join(root, 'data');
  useTestCredentials();
  const server = await startRealS3();
  t.after(() => server.close());
  const url = `s3://${S3_BUCKET}/shop?endpoint=http://${server.endpoint}&region=us-east-1`;
  await using repository = await createRepository(url);
  {
    await using node = await open(data);
    await node.tenants.create('acme');
    await insert(node, 'acme', range(1, 200), 'x'.repeat(10_000));
  }
  await backUp(repository, data);
  {
    await using node = await open(data);
    await insert(node, 'acme', [201]);
  }
  await backUp(repository, data, { reuse: true });
  const dir = join(root, 'restored');
  const stop = new AbortController();
  const stopped = restoreBackup({
    from: url,
    dir,
    mode: 'new_cluster',
    signal: stop.signal,
    onProgress: ({ phase }) => void (phase.includes('archived') && stop.abort(new Error('enough'))),
  });
  await assert.rejects(stopped, /enough/);
  await restoreBackup({ dir, mode: 'new_cluster' });
  await using node = await open(dir);
  assert.deepEqual(await idsOf(node, 'acme'), range(1, 201));
});
