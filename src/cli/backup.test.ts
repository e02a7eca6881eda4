import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { test, type TestContext } from 'node:test';
import type { BackupReport } from '../node/backup-create.ts';
import type { BackupStatus } from '../node/types.ts';
import { EXIT_CODES, type ExitName } from './exit-codes.ts';
import { ENTRY, nostos, temporaryDirectory } from './nostos-process.fixture.ts';

async function run(cwd: string, args: readonly string[], exit: ExitName = 'ok'): Promise<string> {
  const ended = await nostos(cwd, args);
  assert.equal(ended.code, EXIT_CODES[exit][0], `nostos ${args.join(' ')}: ${ended.stdout}${ended.stderr}`);
  return exit === 'ok' ? ended.stdout : ended.stdout + ended.stderr;
}

async function json<T>(cwd: string, args: readonly string[]): Promise<T> {
  return JSON.parse(await run(cwd, [...args, '--json'])) as T;
}

async function withNotes(t: TestContext): Promise<string> {
  const cwd = await temporaryDirectory(t);
  await run(cwd, ['tenant', 'create', 'acme']);
  await writeFile(join(cwd, '1.sql'), 'create table notes (id integer primary key not null, body text unique)');
  await run(cwd, ['migrate', '1.sql', '--tenant', 'acme']);
  return cwd;
}

const insert = (cwd: string, body: string): Promise<string> =>
  run(cwd, ['sql', '--tenant', 'acme', `insert into notes (body) values ('${body}')`]);

test('a stopped directory is backed up, listed, verified and pruned, without a node where none is needed', async (t) => {
  const cwd = await withNotes(t);
  const at = ['--from', './backups', '--keys', 'keys.json'];
  await insert(cwd, 'one');
  assert.match(await run(cwd, ['backup', 'list', '--from', './backups'], 'notFound'), /no backup repository/);
  const create = ['backup', 'create', '--to', './backups', '--keys', 'keys.json'];
  const first = await json<BackupReport>(cwd, [...create, '--label', 'the first']);
  await insert(cwd, 'two');
  assert.match(await run(cwd, [...create, '--dry-run']), /dry run: nothing was stored/);
  const second = await json<BackupReport>(cwd, create);
  assert.ok(first.position!.lsn < second.position!.lsn);

  const list = await json<{
    snapshots: { id: string; label: string | null; lsn: number; encrypted: boolean; restorable: { to: number } }[];
    gaps: unknown[];
  }>(cwd, ['backup', 'list', '--from', './backups']);
  assert.deepEqual(
    list.snapshots.map(({ id, label, encrypted }) => [id, label, encrypted]),
    [
      [first.snapshot, 'the first', true],
      [second.snapshot, null, true],
    ],
  );
  assert.equal(list.snapshots[0]!.restorable.to, second.position!.lsn, 'the log leads further');
  assert.match(await run(cwd, ['backup', 'list', '--from', './backups']), /RESTORES TO[^]*the first/);
  assert.match(await run(cwd, ['backup', 'verify', ...at]), /2 snapshots[^]*as it was written/);
  assert.match(await run(cwd, ['backup', 'verify', '--from', './backups'], 'failed'), /BACKUP_KEY|not in the keyring/);

  await run(cwd, ['backup', 'pin', first.snapshot!, '--from', './backups']);
  const prune = ['backup', 'prune', '--from', './backups', '--keep', 'last=1'];
  assert.deepEqual((await json<{ removed: string[] }>(cwd, [...prune, '--dry-run'])).removed, []);
  await run(cwd, ['backup', 'pin', first.snapshot!, '--from', './backups', '--remove']);
  assert.deepEqual((await json<{ removed: string[] }>(cwd, prune)).removed, [first.snapshot]);
  assert.match(await run(cwd, ['backup', 'verify', ...at]), /1 snapshots/);

  // What was encrypted is gone with its key, and said so.
  const keys = ['backup', 'keys'];
  assert.equal((await json<unknown[]>(cwd, [...keys, 'list', '--keys', 'keys.json'])).length, 2);
  assert.doesNotMatch(
    await run(cwd, [...keys, 'list', '--keys', 'keys.json']),
    secretOf(await readFile(join(cwd, 'keys.json'), 'utf8')),
  );
  await run(cwd, [...keys, 'rotate', '--keys', 'keys.json', '--tenant', 'acme']);
  await run(cwd, [...keys, 'destroy', '--keys', 'keys.json', '--tenant', 'acme'], 'usage');
  const gone = await json<{ destroyed: number }>(cwd, [
    ...keys,
    'destroy',
    '--keys',
    'keys.json',
    '--tenant',
    'acme',
    '--yes',
  ]);
  assert.equal(gone.destroyed, 2);
  assert.match(await run(cwd, ['backup', 'verify', ...at], 'failed'), /A destroyed key brings nothing back/);
});

function secretOf(text: string): RegExp {
  const { keys } = JSON.parse(text) as { keys: { secret: string }[] };
  return new RegExp(keys.map(({ secret }) => secret).join('|'));
}

for (const [what, args, says] of [
  ['a place in the data directory', ['create', '--to', './nostos-data/backups'], /lies in the data directory/],
  ['a place that is none', ['create', '--to', 'ftp://x/y'], /names no place for backups/],
  ['a policy that keeps nothing', ['prune', '--from', 'b', '--keep', 'last=0'], /would keep nothing/],
  ['a policy with a typo', ['prune', '--from', 'b', '--keep', 'lst=3'], /takes counts of last, hourly/],
  ['a sample of nothing', ['verify', '--from', 'b', '--sample', '0'], /--sample takes a percentage/],
  ['a span without a unit', ['schedule', '--max-age', '10'], /takes a span of time/],
] as const)
  test(`${what} is refused before anything is done`, async (t) => {
    const cwd = await withNotes(t);
    assert.match(await run(cwd, ['backup', ...args], 'usage'), says);
  });

test('nostos serve backs itself up; a backup through it joins in, and monitoring sees how old the newest is', async (t) => {
  const cwd = await withNotes(t);
  await insert(cwd, 'one');
  const serve = ['serve', '--port', '0', '--backup-to', './backups', '--backup-every', '1h', '--archive-every', '1s'];
  const child = spawn(process.execPath, [ENTRY, ...serve, '--backup-keep', 'last=3'], {
    cwd,
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.after(() => child.kill('SIGKILL'));
  for await (const line of createInterface({ input: child.stdout })) if (line.includes('status page')) break;
  const shown = async (): Promise<BackupStatus> =>
    (await json<{ backup: BackupStatus }>(cwd, ['backup', 'schedule'])).backup;
  const endMs = performance.now() + 30_000;
  while ((await shown()).last === null) assert.ok(performance.now() < endMs, 'a snapshot is made at once');
  assert.match(await run(cwd, ['backup', 'schedule', '--check', '--max-age', '1h']), /records behind/);
  await insert(cwd, 'two');
  const report = await json<BackupReport>(cwd, ['backup', 'create', '--to', './backups']);
  assert.equal((await shown()).last!.snapshot, report.snapshot);
  child.kill('SIGTERM');
  const [code] = (await once(child, 'exit')) as [number | null];
  assert.equal(code, 0);
  assert.match(await run(cwd, ['backup', 'schedule', '--check'], 'notFound'), /no node runs/);
  assert.match(await run(cwd, ['backup', 'verify', '--from', './backups']), /2 snapshots/);
});
