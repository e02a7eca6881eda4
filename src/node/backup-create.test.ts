/** Backups of nodes that go on meanwhile, read back by the repository's reader alone. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { test } from 'node:test';
import { KeyringFile } from '../backup/repository/keyring-file.ts';
import { verify } from '../backup/repository/verify.ts';
import { isNostosError } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import { realS3Missing, S3_BUCKET, startRealS3, useTestCredentials } from '../testing/coordinator-s3.ts';
import { mountRefusal, mountSmall } from '../testing/small-disk.fixture.ts';
import { backupNode } from './backup-operations.ts';
import { add, newTenant, openFor, rowsAt, scratch, SMALL, snapshotsOf, writeMeanwhile } from './backup.fixture.ts';
import { until } from './group.fixture.ts';
import type { NostosNode } from './node.ts';
import type { Progress } from './types.ts';

const upTo = (last: number): number[] => Array.from({ length: last }, (_, index) => index + 1);

async function addMany(node: NostosNode, name: string, rows: number): Promise<void> {
  for (let n = 0; n < rows; n += 1) await add(node.tenant(name));
}

test('a backup under load is at one position of all tenants: each has a prefix of its writes', async (t) => {
  const path = scratch(t);
  await using node = await openFor(path('node'), { limits: SMALL });
  const names = ['a', 'b', 'c', 'd', 'e'];
  const tenants = await Promise.all(names.map((name) => newTenant(node, name)));
  for (const tenant of tenants) for (let n = 0; n < 20; n += 1) await add(tenant);
  const stop = writeMeanwhile(tenants);
  const report = await backupNode(node, { to: path('backup') });
  const during = await stop();
  assert.ok(during > 0, 'writers went on');
  assert.deepEqual([report.tenants, report.archive.gaps], [{ read: 5, reused: 0, dropped: 0 }, []]);
  const { repository, all } = await snapshotsOf(path('backup'));
  const snapshot = all[0]!;
  assert.equal(snapshot.id, report.snapshot);
  const counts: number[] = [];
  for (const name of names) {
    const rows = await rowsAt(repository, snapshot, { name, path: path(`${name}.sqlite`) });
    assert.deepEqual(rows, upTo(rows.length), `${name} has no hole`);
    counts.push(rows.length);
  }
  assert.ok(
    counts[0]! >= 20 && counts.toSorted((a, b) => b - a).join() === counts.join(),
    `in order: ${counts.join()}`,
  );
  assert.ok(counts[0]! - counts.at(-1)! <= 1, `one position: ${counts.join()}`);
  assert.deepEqual((await verify(repository)).problems, []);
  await repository.close();
});

test('the next one goes on with the files while the log since is small, then reads what has changed; full reads all', async (t) => {
  const path = scratch(t);
  const to = path('backup');
  await using node = await openFor(path('node'), { limits: SMALL });
  for (const name of ['big', 'idle']) await newTenant(node, name);
  await addMany(node, 'big', 400);
  const first = await backupNode(node, { to });
  await addMany(node, 'big', 5);
  const second = await backupNode(node, { to });
  assert.deepEqual([second.tenants, second.bytesRead, second.why], [{ read: 0, reused: 2, dropped: 0 }, 0, null]);
  assert.ok(second.bytesStored * 10 <= first.bytesStored, `${second.bytesStored} of ${first.bytesStored} bytes`);
  // What compresses badly passes the share at once.
  const random = seededRandom(1);
  for (let n = 0; n < 60; n += 1) await add(node.tenant('big'), Buffer.from(random.bytes(9_000)).toString('base64'));
  const third = await backupNode(node, { to });
  assert.deepEqual(third.tenants, { read: 1, reused: 1, dropped: 0 }, 'a tenant without records keeps its file');
  assert.match(third.why!, /backupLogPercentMax/);
  const full = await backupNode(node, { to, full: true });
  assert.deepEqual(full.tenants, { read: 2, reused: 0, dropped: 0 });
  const planned = await backupNode(node, { to, dryRun: true });
  assert.deepEqual([planned.snapshot, planned.tenants.reused], [null, 2]);

  const { repository, all } = await snapshotsOf(to);
  assert.equal(all.length, 4, 'a dry run leaves none');
  for (const [index, rows] of [400, 405, 465, 465].entries())
    assert.deepEqual(
      await rowsAt(repository, all[index]!, { name: 'big', path: path(`big-${index}.sqlite`) }),
      upTo(rows),
      `snapshot ${index}`,
    );
  await repository.close();
});

test('a log that was pruned before it was archived is a gap that is named; the files are read again', async (t) => {
  const path = scratch(t);
  const to = path('backup');
  const first = await openFor(path('node'), { limits: SMALL });
  await newTenant(first, 'a');
  await addMany(first, 'a', 100);
  const before = await backupNode(first, { to });
  await addMany(first, 'a', 300);
  await first.close();
  await using node = await openFor(path('node'), { limits: SMALL });
  await until('the log is pruned', async () => {
    await add(node.tenant('a'));
    return (await node.status()).log.firstLsn > before.position!.lsn + 1;
  });
  const after = await backupNode(node, { to });
  const [gap] = after.archive.gaps;
  assert.equal(gap?.from, before.position!.lsn + 1);
  assert.match(after.why!, new RegExp(`lacks LSN ${gap.from}-${gap.to}`));
  assert.equal(after.tenants.read, 1);
  const { repository, all } = await snapshotsOf(to);
  const rows = await rowsAt(repository, all[1]!, { name: 'a', path: path('a.sqlite') });
  assert.deepEqual(rows, upTo(rows.length));
  assert.ok(rows.length > 400);
  assert.deepEqual((await verify(repository)).problems, []);
  await repository.close();
});

test('tenants that are dropped and made while a backup is made: the log says so', async (t) => {
  const path = scratch(t);
  await using node = await openFor(path('node'), { limits: { ...SMALL, backupTenantsMax: 1 } });
  for (const name of ['a', 'b', 'z']) {
    await newTenant(node, name);
    await addMany(node, name, 10);
  }
  let meanwhile: Promise<unknown> | undefined;
  const change = async (): Promise<void> => {
    await node.tenants.drop('z');
    await newTenant(node, 'new');
    await addMany(node, 'new', 3);
  };
  const onProgress = ({ phase }: Progress): void => {
    if (phase.startsWith('copying')) meanwhile ??= change();
  };
  const report = await backupNode(node, { to: path('backup') }, { onProgress });
  assert.ok(meanwhile !== undefined, 'it happened while files were copied');
  await meanwhile;
  const { repository, all } = await snapshotsOf(path('backup'));
  const names = all[0]!.items.flatMap((item) => (item.kind === 'tenant' ? [item.name] : []));
  assert.equal(names.length + report.tenants.dropped, 3);
  assert.deepEqual((await verify(repository)).problems, []);
  const second = await backupNode(node, { to: path('backup') });
  const again = (await snapshotsOf(path('backup'))).all[1]!;
  assert.equal(again.id, second.snapshot);
  assert.deepEqual(again.items.flatMap((item) => (item.kind === 'tenant' ? [item.name] : [])).toSorted(), [
    'a',
    'b',
    'new',
  ]);
  await repository.close();
});

test('one tenant alone, encrypted: the snapshot has no catalog, and nobody reads it without the keys', async (t) => {
  const path = scratch(t);
  await using node = await openFor(path('node'));
  for (const name of ['a', 'b']) {
    await newTenant(node, name);
    await addMany(node, name, 5);
  }
  const to = path('backup');
  await assert.rejects(backupNode(node, { to, tenants: ['c'] }), (e) => isNostosError(e, 'TENANT_NOT_FOUND'));
  const report = await backupNode(node, { to, keys: path('keys'), tenants: ['b'], label: 'only b' });
  const keys = KeyringFile.open(path('keys'));
  const { repository, all } = await snapshotsOf(to, keys);
  const snapshot = all[0]!;
  assert.deepEqual([snapshot.label, snapshot.items.map(({ kind }) => kind)], ['only b', ['tenant']]);
  assert.equal(snapshot.id, report.snapshot);
  assert.deepEqual(await rowsAt(repository, snapshot, { name: 'b', path: path('b.sqlite') }), upTo(5));
  const blind = await snapshotsOf(to);
  await assert.rejects(rowsAt(blind.repository, snapshot, { name: 'b', path: path('no.sqlite') }), (e) =>
    isNostosError(e, 'BACKUP_KEY_MISSING'),
  );
  await Promise.all([repository.close(), blind.repository.close()]);
});

test('a backup that is cancelled leaves no snapshot, holds nothing, and the next one is made', async (t) => {
  const path = scratch(t);
  await using node = await openFor(path('node'));
  await newTenant(node, 'a');
  await addMany(node, 'a', 2_000);
  const stop = new AbortController();
  const reason = new Error('enough');
  const onProgress = ({ phase }: Progress): void => {
    if (phase.startsWith('copying')) stop.abort(reason);
  };
  await assert.rejects(backupNode(node, { to: path('backup') }, { signal: stop.signal, onProgress }), reason);
  assert.deepEqual((await node.status()).serving, []);
  const report = await backupNode(node, { to: path('backup') });
  const { repository, all } = await snapshotsOf(path('backup'));
  assert.deepEqual(
    all.map(({ id }) => id),
    [report.snapshot],
  );
  await repository.close();
});

for (const [what, to] of [
  ['the data directory', 'node'],
  ['a directory in it', 'node/backups/deep'],
] as const)
  test(`${what} is no place for a backup`, async (t) => {
    const path = scratch(t);
    await using node = await openFor(path('node'));
    await assert.rejects(backupNode(node, { to: path(to) }), (e) => isNostosError(e, 'INVALID_ARGUMENT'));
  });

test('kill -9 at any step leaves whole snapshots only, and all that anybody was told of', async (t) => {
  const path = scratch(t);
  const child = fileURLToPath(new URL('./backup-child.fixture.ts', import.meta.url));
  const random = seededRandom(7);
  const told: string[] = [];
  for (const [at, waitMs] of [
    ['begun', 0],
    ['archiving', 0],
    ['copying', 0],
    ['made', 0],
    ['copying', random.below(20)],
    ['begun', random.below(100)],
    ['begun', random.below(100)],
  ] as const) {
    const killed = spawn(process.execPath, [child, path('node'), path('backup')], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    let hasFired = false;
    for await (const line of createInterface({ input: killed.stdout })) {
      if (line.startsWith('made ')) told.push(line.slice('made '.length));
      if (hasFired || !line.startsWith(at)) continue;
      hasFired = true;
      setTimeout(() => killed.kill('SIGKILL'), waitMs);
    }
    if (killed.exitCode === null && killed.signalCode === null) await once(killed, 'exit');
    assert.deepEqual([hasFired, killed.signalCode], [true, 'SIGKILL'], at);
  }
  assert.ok(told.length > 0);
  // Locks that the dead ones left are shared among creators.
  await using node = await openFor(path('node'));
  const last = await backupNode(node, { to: path('backup') });
  const { repository, all } = await snapshotsOf(path('backup'));
  const ids = new Set<string>(all.map(({ id }) => id));
  for (const id of [...told, last.snapshot!]) assert.ok(ids.has(id), `${id} is there`);
  assert.deepEqual((await verify(repository)).problems, []);
  await repository.close();
});

test('a storage that is full fails a backup and keeps what was there', { skip: mountRefusal() ?? false }, async (t) => {
  const path = scratch(t);
  using disk = mountSmall(4 * 1024 * 1024);
  const to = `${disk.dir}/backup`;
  await using node = await openFor(path('node'));
  await newTenant(node, 'a');
  await addMany(node, 'a', 20);
  const first = await backupNode(node, { to });
  const random = seededRandom(3);
  for (let n = 0; n < 40; n += 1) await add(node.tenant('a'), Buffer.from(random.bytes(150_000)).toString('base64'));
  await assert.rejects(backupNode(node, { to }), (e) => isNostosError(e, 'DISK_FULL'));
  const found = await snapshotsOf(to);
  assert.deepEqual(
    found.all.map(({ id }) => id),
    [first.snapshot],
  );
  assert.deepEqual(await rowsAt(found.repository, found.all[0]!, { name: 'a', path: path('a.sqlite') }), upTo(20));
  await found.repository.close();
  disk.grow(64 * 1024 * 1024);
  assert.notEqual((await backupNode(node, { to })).snapshot, null, 'with room it goes on');
});

test('into object storage', { skip: realS3Missing() ?? false }, async (t) => {
  useTestCredentials();
  const server = await startRealS3();
  t.after(() => server.close());
  const path = scratch(t);
  const to = `s3://${S3_BUCKET}/shop?endpoint=http://${server.endpoint}&region=us-east-1`;
  await using node = await openFor(path('node'));
  await newTenant(node, 'a');
  await addMany(node, 'a', 50);
  const report = await backupNode(node, { to, keys: path('keys') });
  await addMany(node, 'a', 5);
  assert.equal((await backupNode(node, { to, keys: path('keys') })).tenants.reused, 1);
  const { repository, all } = await snapshotsOf(to, KeyringFile.open(path('keys')));
  assert.equal(all[0]!.id, report.snapshot);
  assert.deepEqual(await rowsAt(repository, all[1]!, { name: 'a', path: path('a.sqlite') }), upTo(55));
  await repository.close();
});
