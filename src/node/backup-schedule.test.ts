/** Backups that nodes make by themselves, the forgets that go there, and what of a deposed primary is never stored. */
import assert from 'node:assert/strict';
import { renameSync, rmSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { readForgets } from '../backup/repository/forgets.ts';
import { openRepository } from '../backup/repository/repository.ts';
import { timeline } from '../backup/repository/timeline.ts';
import { isNostosError } from '../base/errors.ts';
import type { Lsn } from '../base/brands.ts';
import { backupNode } from './backup-operations.ts';
import { add, newTenant, openFor, rowsAt, scratch, SMALL, snapshotsOf } from './backup.fixture.ts';
import { makeGroup, until } from './group.fixture.ts';
import type { NostosNode } from './node.ts';
import type { BackupStatus, NodeStatus } from './types.ts';

const backupOf = async (node: NostosNode): Promise<BackupStatus> =>
  ((await node.status()) as Required<NodeStatus>).backup;
const isArchived = async (node: NostosNode): Promise<boolean> => (await backupOf(node)).lagRecords === 0;

test('a node backs itself up: the archive follows the log, snapshots come and go by the policy, a restart goes on', async (t) => {
  const path = scratch(t);
  const backup = { to: path('backup'), everyMs: 300, archiveEveryMs: 20, keep: { last: 2 } };
  const open = (): Promise<NostosNode> => openFor(path('node'), { limits: SMALL, backup });
  const seen = new Set<string>();
  {
    await using node = await open();
    const tenant = await newTenant(node, 'a');
    await until('four snapshots were made', async () => {
      await add(tenant);
      const { last } = await backupOf(node);
      if (last !== null) seen.add(last.snapshot);
      return seen.size >= 4;
    });
    await until('the archive has everything', () => isArchived(node));
    assert.deepEqual([(await backupOf(node)).failures, (await backupOf(node)).error], [0, null]);
    assert.match(
      await (await import('./metrics.ts')).renderMetrics(await node.status()),
      /nostos_backup_archive_lag_records 0/,
    );
  }
  {
    await using node = await open();
    await add(node.tenant('a'));
    await until('the archive goes on', () => isArchived(node));
  }
  await using repository = await openRepository(backup.to);
  const { spans, gaps, snapshots } = await timeline(repository);
  assert.deepEqual([spans.length, gaps], [1, []], 'nothing was pruned before it was archived');
  assert.ok(snapshots.length <= 3, `${snapshots.length} are kept`);
});

test('a forget resolves when the backup has it; a storage that is away is told of, and gets it later', async (t) => {
  const path = scratch(t);
  const limits = { forgetTimeoutMs: 300, forgetRetryMs: 50, backupRetryMs: 50 };
  const backup = { to: path('backup'), everyMs: 60_000, archiveEveryMs: 50, keys: path('keys') };
  await using node = await openFor(path('node'), { limits, backup });
  const tenant = await newTenant(node, 'a');
  for (let n = 0; n < 5; n += 1) await add(tenant);
  await until('there is a snapshot', async () => (await backupOf(node)).last !== null);
  const { KeyringFile } = await import('../backup/repository/keyring-file.ts');
  const forgotten = async (): Promise<number> => {
    await using repository = await openRepository(backup.to, { keys: KeyringFile.open(backup.keys) });
    return (await Array.fromAsync(readForgets(repository))).flat().length;
  };
  assert.equal(await tenant.write((tx) => tx.forget('rows', { id: 1 })), true);
  assert.equal(await forgotten(), 1);

  renameSync(path('backup'), path('away'));
  writeFileSync(path('backup'), 'in the way');
  await assert.rejects(
    tenant.write((tx) => tx.forget('rows', { id: 2 })),
    (e) => isNostosError(e, 'FORGET_PENDING'),
  );
  await add(tenant);
  await until('a failure shows', async () => (await backupOf(node)).failures > 0);
  assert.notEqual((await backupOf(node)).error, null);
  rmSync(path('backup'));
  renameSync(path('away'), path('backup'));
  await until('it gets there', async () => (await forgotten()) === 2);
  await until('the archive catches up', () => isArchived(node));
});

test('a key that another process has rotated or destroyed seals nothing more', async (t) => {
  const path = scratch(t);
  const { KeyringFile } = await import('../backup/repository/keyring-file.ts');
  const backup = { to: path('backup'), keys: path('keys'), everyMs: 60_000, archiveEveryMs: 20 };
  await using node = await openFor(path('node'), { backup });
  const tenant = await newTenant(node, 'a');
  await add(tenant);
  await until('there is a snapshot', async () => (await backupOf(node)).last !== null);
  const { uuid } = (await node.tenants.get('a'))!;
  await backupNode(node, { to: backup.to, keys: backup.keys });
  await KeyringFile.open(backup.keys).destroy(uuid);
  await add(tenant);
  const report = await backupNode(node, { to: backup.to, keys: backup.keys, full: true });
  const { repository, all } = await snapshotsOf(backup.to, KeyringFile.open(backup.keys));
  const snapshot = all.find(({ id }) => id === report.snapshot)!;
  assert.deepEqual(await rowsAt(repository, snapshot, { name: 'a', path: path('a.sqlite') }), [1, 2]);
  await repository.close();
});

test('what a storage does not take is held back to a limit; beyond it the archive has a gap that is named', async (t) => {
  const path = scratch(t);
  writeFileSync(path('backup'), 'in the way');
  const limits = { ...SMALL, archiveHoldBytesMax: 64 * 1024, reservationTimeoutMs: 200, backupRetryMs: 20 };
  const backup = { to: path('backup'), everyMs: 60_000, archiveEveryMs: 20 };
  await using node = await openFor(path('node'), { limits, backup });
  const tenant = await newTenant(node, 'a');
  await until('the log is pruned although nothing is archived', async () => {
    await add(tenant);
    return (await node.status()).log.firstLsn > 50;
  });
  rmSync(path('backup'));
  await until('a backup is made all the same', async () => (await backupOf(node)).last !== null);
  const { repository, all } = await snapshotsOf(path('backup'));
  assert.ok(all[0]!.position.lsn > 50);
  await repository.close();
});

test('of a primary that is deposed nothing above its watermark is stored; as a replica it can be backed up', async (t) => {
  const path = scratch(t);
  const to = path('backup');
  const group = await makeGroup(t, 3);
  await using a = (await group.open(0)) as NostosNode;
  await until('node 0 leads', () => a.role === 'primary');
  await using second = await group.open(1);
  await using third = await group.open(2);
  const others = [second, third];
  for (const node of others) await a.group!.changeMembers({ add: (await node.status()).store, minInSync: 2 });
  await a.tenant('acme').write((tx) => void tx.run("insert into item values (1, 'everywhere')"));
  const first = await backupNode(a, { to });
  for (const node of others) await node.close();
  await a
    .tenant('acme')
    .write((tx) => void tx.run("insert into item values (2, 'only here')"), { durability: 'local' });
  const { watermark, lastLsn } = (await a.status()).log;
  assert.ok(lastLsn > watermark, 'it has what the group has not');
  // The tenant's file, with the write that is only here, is no part of any backup.
  await assert.rejects(
    backupNode(a, { to, full: true }, { signal: AbortSignal.timeout(3_000) }),
    (e) => isNostosError(e, 'RESERVATION_EXPIRED') || (e as Error).name === 'TimeoutError',
  );
  {
    const { repository, all } = await snapshotsOf(to);
    assert.deepEqual(
      all.map(({ id }) => id),
      [first.snapshot],
      'no snapshot is left',
    );
    for (const { to: last } of (await timeline(repository)).spans) assert.ok(last <= watermark);
    await repository.close();
  }
  await a.close();
  await using b2 = (await group.open(1)) as NostosNode;
  await using c2 = (await group.open(2)) as NostosNode;
  await until('another one leads', () => [b2, c2].some(({ role }) => role === 'primary'), 30_000);
  const primary = b2.role === 'primary' ? b2 : c2;
  await until('it takes writes', () =>
    primary
      .tenant('acme')
      .write((tx) => void tx.run("insert or replace into item values (3, 'later')"))
      .then(
        () => true,
        () => false,
      ),
  );
  await using a2 = (await group.open(0)) as NostosNode;
  await until(
    'it follows',
    async () => a2.role === 'replica' && (await a2.status()).log.watermark >= primary.watermark,
    30_000,
  );
  const asReplica = await backupNode(a2, { to });
  const { repository, all } = await snapshotsOf(to);
  assert.equal(all.at(-1)!.id, asReplica.snapshot);
  const history = new Map<Lsn, string>();
  for await (const { position, hash } of primary.log()) history.set(position.lsn, hash);
  let compared = 0;
  for (const { generation, from, to: last } of (await timeline(repository)).spans)
    for await (const page of repository.archive.records({ generation, from, to: last }))
      for (const { header, hash } of page) {
        assert.equal(Buffer.from(hash).toString('hex'), history.get(header.lsn), `LSN ${header.lsn}`);
        compared += 1;
      }
  assert.ok(compared >= 3 && asReplica.position!.lsn > watermark, `${compared} records are those of the primary`);
  await repository.close();
});
