/** Backups and back, by the command line. */
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, symlinkSync } from 'node:fs';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { createRepository } from '../backup/repository/repository.ts';
import { backUp, idsOf, insert, open } from '../node/backup-restore.fixture.ts';
import { inProcess } from './nostos-process.fixture.ts';

async function place(t: TestContext) {
  const cwd = await mkdtemp(join(tmpdir(), 'nostos-restore-backup-'));
  t.after(() => rm(cwd, { recursive: true, force: true }));
  const data = join(cwd, 'data');
  await using repository = await createRepository(`file:${join(cwd, 'backup')}`);
  {
    await using node = await open(data);
    await node.tenants.create('acme');
    await insert(node, 'acme', [1, 2, 3]);
  }
  const snapshot = await backUp(repository, data);
  {
    await using node = await open(data);
    await insert(node, 'acme', [4]);
  }
  await backUp(repository, data, { reuse: true });
  return { cwd, data, snapshot };
}

test('nostos restore from a backup: plan, restore into an empty directory, in place, and refusals', async (t) => {
  const { cwd, data, snapshot } = await place(t);
  const run = (...args: string[]) => inProcess(cwd, ['restore', ...args]);
  const json = async (...args: string[]) => {
    const ended = await run(...args, '--json');
    assert.equal(ended.code, 0, ended.stderr);
    return JSON.parse(ended.stdout) as { backup: { snapshot: string }; state: string; setAside: string | null };
  };
  const from = ['--from', 'file:backup'];
  assert.equal((await json(...from, '--dir', 'new', '--dry-run')).state, 'as-it-was');
  assert.ok(!existsSync(join(cwd, 'new')));
  const text = await run(...from, '--dir', 'new');
  assert.match(text.stdout, /restored and verified/);
  assert.match(text.stdout, /new generation/);
  {
    await using node = await open(join(cwd, 'new'));
    assert.deepEqual(await idsOf(node, 'acme'), [1, 2, 3, 4]);
  }
  const back = await json(...from, '--dir', 'data', '--mode', 'wipe_and_restore', '--snapshot', snapshot.id);
  assert.equal(back.backup.snapshot, snapshot.id);
  assert.equal(back.setAside, 'set-aside.1');
  {
    await using node = await open(data);
    assert.deepEqual(await idsOf(node, 'acme'), [1, 2, 3]);
    const busy = await run(...from, '--dir', 'data', '--mode', 'wipe_and_restore');
    assert.equal(busy.code, 75);
    assert.match(busy.stderr, /DIRECTORY_LOCKED/);
  }
  symlinkSync(data, join(cwd, 'link'));
  mkdirSync(join(cwd, 'outer'));
  symlinkSync(join(cwd, 'backup'), join(cwd, 'outer', 'inside'));
  const refusals: readonly [readonly string[], RegExp, number][] = [
    [[...from, '--dir', 'data'], /--mode wipe_and_restore/, 2],
    [[...from, '--dir', 'data', '--mode', 'new_cluster'], /not empty.*BACKUP_REFUSED/s, 1],
    [[...from, '--dir', 'link', '--mode', 'wipe_and_restore'], /symbolic link/, 1],
    [[...from, '--dir', '/', '--mode', 'wipe_and_restore'], /root of the file system/, 1],
    [[...from, '--dir', '.', '--mode', 'wipe_and_restore'], /lies in it/, 1],
    [[...from, '--dir', 'backup/data'], /it lies in the backup repository/, 1],
    [[...from, '--dir', 'x', '--to-time', '2026-05-01T10:00:00'], /with its zone/, 2],
    [[...from, '--dir', 'x', '--without', 'nobody'], /no tenant nobody/, 66],
    [[...from, '--dir', 'x', '--keys', 'missing'], /no keyring/, 66],
    [['--from', 'file:nothing', '--dir', 'x'], /BACKUP_NOT_FOUND/, 66],
    [[...from, '--from', '127.0.0.1:1', '--dir', 'x'], /goes with no other source/, 2],
    [['--from', '127.0.0.1:1', '--dir', 'x', '--to-lsn', '3'], /--to-lsn is for backups/, 2],
  ];
  for (const [args, message, exit] of refusals) {
    const ended = await run(...args);
    assert.match(ended.stderr, message, args.join(' '));
    assert.equal(ended.code, exit, args.join(' '));
    if (existsSync(join(cwd, 'x', 'restore.marker'))) await inProcess(cwd, ['restore', '--dir', 'x', '--abandon']);
  }
});

test('nostos backup drill restores, measures, and leaves nothing', async (t) => {
  const { cwd } = await place(t);
  mkdirSync(join(cwd, 'scratch'));
  const ended = await inProcess(cwd, ['backup', 'drill', '--from', 'backup', '--scratch', 'scratch', '--json']);
  assert.equal(ended.code, 0, ended.stderr);
  const report = JSON.parse(ended.stdout) as { recoveryMs: number; verified: { rows: number } };
  assert.equal(report.verified.rows, 4);
  assert.ok(report.recoveryMs > 0);
  assert.deepEqual(await readdir(join(cwd, 'scratch')), []);
});

test('one tenant by the command line, into a node that runs and into one that does not, and a fork', async (t) => {
  const { cwd, data, snapshot } = await place(t);
  const to = ['--from', 'file:backup', '--dir', 'data', '--tenant', 'acme', '--snapshot', snapshot.id];
  const ok = async (...args: string[]): Promise<void> => {
    const ended = await inProcess(cwd, args);
    assert.equal(ended.code, 0, ended.stderr);
    assert.match(ended.stdout, /in place/);
  };
  {
    await using node = await open(data);
    await ok('restore', ...to, '--mode', 'single_tenant');
    assert.deepEqual(await idsOf(node, 'acme'), [1, 2, 3]);
    await insert(node, 'acme', [9]);
  }
  await ok('restore', ...to);
  await ok('backup', 'fork', ...to.slice(0, 6), '--as', 'acme now');
  const taken = await inProcess(cwd, ['backup', 'fork', ...to, '--as', 'acme']);
  assert.match(taken.stderr, /TENANT_EXISTS/);
  for (const [args, message] of [
    [['--mode', 'single_tenant', '--from', 'file:backup'], /goes with --tenant/],
    [[...to, '--mode', 'wipe_and_restore'], /goes with --tenant/],
    [[...to, '--dry-run'], /--dry-run is for whole nodes/],
  ] as const)
    assert.match((await inProcess(cwd, ['restore', ...args])).stderr, message);
  await using node = await open(data);
  assert.deepEqual(await idsOf(node, 'acme'), [1, 2, 3]);
  assert.deepEqual(await idsOf(node, 'acme now'), [1, 2, 3, 4]);
});
