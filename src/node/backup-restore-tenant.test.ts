/** One tenant of a backup into a node that runs, and forks of it. */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { isNostosError, type ErrorCode } from '../base/errors.ts';
import { KeyringFile } from '../backup/repository/keyring-file.ts';
import { createRepository } from '../backup/repository/repository.ts';
import { restoreBackup } from './backup-restore.ts';
import { backUp, idsOf, insert, open, scratch } from './backup-restore.fixture.ts';
import { forkTenant, replacerOf, restoreTenant } from './backup-restore-tenant.ts';
import { openCoordinator } from '../coordination/open-coordinator.ts';
import { FAST, makeGroup, until } from './group.fixture.ts';
import { initGroup } from './group-init.ts';
import { runOperation } from './operations.ts';
import type { Node } from './types.ts';

const code = (wanted: ErrorCode) => (error: unknown) => isNostosError(error, wanted);
const range = (from: number, to: number): number[] => Array.from({ length: to - from + 1 }, (_, at) => from + at);

test('a tenant goes back while others are written to; what was forgotten stays so; it is in the next backup', async (t) => {
  const root = await scratch(t);
  const [data, url, temporary] = [join(root, 'data'), `file:${join(root, 'backup')}`, join(root, 'tmp')];
  await mkdir(temporary);
  const keys = KeyringFile.open(join(root, 'keys'));
  await using repository = await createRepository(url, { keys });
  let back: number;
  {
    await using node = await open(data);
    for (const name of ['acme', 'other', 'gone']) await node.tenants.create(name);
    for (const name of ['acme', 'other', 'gone']) await insert(node, name, range(1, 10));
  }
  await backUp(repository, data);
  {
    await using node = await open(data);
    await insert(node, 'acme', [11]);
    back = (await node.status()).log.watermark;
    await node.tenants.drop('gone');
    await node.tenant('acme').write((tx) => tx.run('delete from item where id > 3'));
  }
  const second = await backUp(repository, data, { reuse: true });
  // Of another tenant nothing is needed, its key neither.
  const other = second.items.find((item) => item.kind === 'tenant' && item.name === 'other')!;
  if (other.kind === 'tenant') await keys.destroy(other.uuid);
  const options = { from: url, tenant: 'acme', keys, scratch: temporary, toLsn: back } as const;
  {
    await using node = await open(data);
    await node.tenant('acme').write((tx) => tx.forget('item', { id: 2 }));
    const before = await node.tenant('acme').position();
    const writing = (async () => {
      for (const id of range(100, 140)) await insert(node, 'other', [id]);
    })();
    const report = await restoreTenant(replacerOf(node), options);
    await writing;
    assert.equal(report.forgotten, 1);
    const wanted = range(1, 11).filter((id) => id !== 2);
    assert.deepEqual(await idsOf(node, 'acme'), wanted);
    assert.deepEqual(await idsOf(node, 'other'), [...range(1, 10), ...range(100, 140)]);
    await assert.rejects(node.tenant('acme').changes({ from: before }).next(), code('TENANT_RESET'));
    await insert(node, 'acme', [2], 'new');

    const { uuid: gone } = second.items.find((item) => item.kind === 'tenant' && item.name === 'gone') as {
      uuid: string;
    };
    await restoreTenant(replacerOf(node), { ...options, tenant: 'gone' });
    assert.deepEqual(await idsOf(node, 'gone'), range(1, 10));
    assert.equal((await node.tenants.get('gone'))?.uuid, gone, 'it is the same tenant again');

    await forkTenant(replacerOf(node), { ...options, as: 'acme then' });
    assert.deepEqual(await idsOf(node, 'acme then'), wanted, 'a fork brings nothing back either');
    assert.notEqual((await node.tenants.get('acme then'))?.uuid, (await node.tenants.get('acme'))?.uuid);

    const refusals: readonly [() => Promise<unknown>, ErrorCode][] = [
      [() => forkTenant(replacerOf(node), { ...options, as: 'other' }), 'TENANT_EXISTS'],
      [() => restoreTenant(replacerOf(node), { ...options, tenant: 'nobody' }), 'TENANT_NOT_FOUND'],
      [
        () => restoreTenant(replacerOf(node), { ...options, tenant: 'gone', toLsn: second.position.lsn }),
        'TENANT_NOT_FOUND',
      ],
      [() => restoreTenant(replacerOf(node), { ...options, tenant: 'other' }), 'BACKUP_KEY_MISSING'],
      [() => restoreTenant(replacerOf(node), { ...options, toLsn: 100_000 }), 'ARCHIVE_GAP'],
    ];
    for (const [call, wantedCode] of refusals) await assert.rejects(call(), code(wantedCode));
    assert.deepEqual(readdirSync(temporary), []);
    assert.deepEqual((await node.verify()).problems, []);
    assert.deepEqual(
      (await node.tenants.list()).map(({ name }) => name),
      ['acme', 'acme then', 'gone', 'other'],
    );
  }
  // The reset stands in the archived log: a restore from the files of before replays it.
  const third = await backUp(repository, data, { reuse: true });
  const dir = join(root, 'restored');
  await restoreBackup({ from: url, dir, mode: 'new_cluster', keys, snapshot: third.id, without: ['other'] });
  await using node = await open(dir);
  assert.deepEqual(await idsOf(node, 'acme'), range(1, 11));
  assert.deepEqual(await idsOf(node, 'gone'), range(1, 10));
  assert.deepEqual((await node.verify()).problems, []);
});

test('a snapshot of one tenant alone brings back that one, and no node', async (t) => {
  const root = await scratch(t);
  const [data, url] = [join(root, 'data'), `file:${join(root, 'backup')}`];
  await using repository = await createRepository(url);
  {
    await using node = await open(data);
    for (const name of ['acme', 'other']) await node.tenants.create(name);
    for (const name of ['acme', 'other']) await insert(node, name, [1]);
  }
  const { id: snapshot } = await backUp(repository, data, { only: ['acme'], archive: false });
  await assert.rejects(
    restoreBackup({ from: url, dir: join(root, 'new'), mode: 'new_cluster', snapshot }),
    (error) => code('BACKUP_REFUSED')(error) && /single tenants/.test((error as Error).message),
  );
  await using node = await open(data);
  await insert(node, 'acme', [2]);
  await restoreTenant(replacerOf(node), { from: url, tenant: 'acme' });
  assert.deepEqual(await idsOf(node, 'acme'), [1]);
  await assert.rejects(restoreTenant(replacerOf(node), { from: url, tenant: 'other' }), code('BACKUP_NOT_FOUND'));
});

test('in a group: every member has the restored tenant, and so has a node that is made of a later backup', async (t) => {
  const root = await scratch(t);
  const url = `file:${join(root, 'backup')}`;
  await createRepository(url).then((repository) => repository.close());
  const group = await makeGroup(t, 2);
  const create = (node: Node) =>
    runOperation(
      node,
      { name: 'backup.create', input: { to: join(root, 'backup') } },
      { signal: new AbortController().signal, onProgress: () => {}, emit: async () => {} },
    );
  {
    await using primary = await group.open(0);
    await until('it leads', async () => (await primary.status()).role === 'primary');
    await using replica = await group.open(1);
    await insert(primary, 'acme', range(1, 50));
    await create(replica);
    await primary.tenant('acme').write((tx) => {
      tx.run('delete from item where id > 10');
      tx.forget('item', { id: 3 });
    });
    await assert.rejects(restoreTenant(replacerOf(replica), { from: url, tenant: 'acme' }), code('NOT_PRIMARY'));
    const report = await restoreTenant(replacerOf(primary), { from: url, tenant: 'acme' });
    const wanted = range(0, 50).filter((id) => id !== 3);
    assert.deepEqual(await idsOf(primary, 'acme'), wanted);
    const there = await replica
      .tenant('acme')
      .read((tx) => tx.all<{ id: number }>('select id from item order by id').map(({ id }) => id), {
        min: report.position,
      });
    assert.deepEqual(there, wanted);
    const [one, other] = await Promise.all([primary.tenant('acme').status(), replica.tenant('acme').status()]);
    assert.equal(one.fingerprint, other.fingerprint);
    await create(primary);
  }
  // The whole group is lost.
  const dir = join(root, 'restored');
  await restoreBackup({ from: url, dir, mode: 'new_cluster' });
  // It founds a group anew; the record of the lost one is of another generation.
  {
    await using coordination = await openCoordinator(group.coordinator);
    await initGroup(coordination.group('again'), dir);
  }
  const again = { coordinator: group.coordinator, name: 'again', listen: { port: 0 } };
  await using node = await open(dir, { group: again, limits: FAST });
  await until('it leads', async () => (await node.status()).role === 'primary');
  assert.deepEqual(
    await idsOf(node, 'acme'),
    range(0, 50).filter((id) => id !== 3),
  );
  await insert(node, 'acme', [3], 'new');
  assert.deepEqual((await node.verify()).problems, []);
});
