import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { DatabaseSync } from 'node:sqlite';
import { test, type TestContext } from 'node:test';
import { EXIT_CODES } from './exit-codes.ts';
import { ENTRY, nostos, temporaryDirectory } from './nostos-process.fixture.ts';
import { createSample } from './sample.ts';
import { compareFiles } from './tour/compare.ts';

const [OK] = EXIT_CODES.ok;

async function ok(cwd: string, args: readonly string[], stdin?: string): Promise<string> {
  const ended = await nostos(cwd, args, stdin);
  assert.equal(ended.code, OK, `nostos ${args.join(' ')}: ${ended.stderr}`);
  return ended.stdout;
}

async function okJson<T>(cwd: string, args: readonly string[]): Promise<T> {
  return JSON.parse(await ok(cwd, [...args, '--json'])) as T;
}

/** A directory with a tenant acme that has a table notes. */
async function withNotes(t: TestContext): Promise<string> {
  const cwd = await temporaryDirectory(t);
  await ok(cwd, ['tenant', 'create', 'acme']);
  await writeFile(join(cwd, '1.sql'), 'create table notes (id integer primary key not null, body text unique)');
  await ok(cwd, ['migrate', '1.sql', '--tenant', 'acme']);
  return cwd;
}

/** A process that serves the directory until the test ends. */
async function serveProcess(t: TestContext, cwd: string): Promise<{ url: string; end: () => Promise<number | null> }> {
  const child = spawn(process.execPath, [ENTRY, 'serve', '--port', '0'], { cwd, stdio: ['ignore', 'pipe', 'inherit'] });
  t.after(() => child.kill('SIGKILL'));
  for await (const line of createInterface({ input: child.stdout })) {
    const url = /status page +(http\S+)\//.exec(line)?.[1];
    if (url === undefined) continue;
    const end = async (): Promise<number | null> => {
      child.kill('SIGTERM');
      const [code] = (await once(child, 'exit')) as [number | null];
      return code;
    };
    return { url, end };
  }
  throw new Error('serve said nothing');
}

test('a database is imported, changed, verified and exported, equal cell by cell', async (t) => {
  const cwd = await temporaryDirectory(t);
  createSample(join(cwd, 'library.sqlite'));
  const dry = await okJson<{ dryRun: boolean }>(cwd, ['import', 'library.sqlite', '--tenant', 'lib', '--dry-run']);
  assert.equal(dry.dryRun, true);
  assert.equal((await nostos(cwd, ['tenant', 'status', 'lib'])).code, EXIT_CODES.notFound[0]);

  const report = await okJson<{ rows: number }>(cwd, ['import', 'library.sqlite', '--tenant', 'lib']);
  assert.ok(report.rows > 10_000);
  await ok(cwd, ['export', 'copy.sqlite', '--tenant', 'lib']);
  assert.equal(compareFiles(join(cwd, 'library.sqlite'), join(cwd, 'copy.sqlite')).differences, 0);

  const change = "update books set title = 'Nostoi' where id = 7";
  await ok(cwd, ['sql', change, '--tenant', 'lib']);
  assert.equal((await nostos(cwd, ['export', 'copy.sqlite', '--tenant', 'lib'])).code, EXIT_CODES.failed[0]);
  await ok(cwd, ['export', 'copy.sqlite', '--tenant', 'lib', '--overwrite']);
  const { differences, tables } = compareFiles(join(cwd, 'library.sqlite'), join(cwd, 'copy.sqlite'));
  assert.equal(differences, 1);
  assert.equal(tables.find((one) => one.differences > 0)?.table, 'books');

  const verified = await okJson<{ ok: boolean; tenants: unknown[] }>(cwd, ['verify']);
  assert.equal(verified.ok, true);
  assert.equal(verified.tenants.length, 1);
});

test('sql takes arguments, stdin and parameters, and answers as a table and as JSON', async (t) => {
  const cwd = await withNotes(t);
  const tenant = ['--tenant', 'acme'];
  await writeFile(join(cwd, '2.sql'), 'create table numbers (id integer primary key not null, n integer, body text)');
  await ok(cwd, ['migrate', '1.sql', '2.sql', ...tenant]);
  await ok(
    cwd,
    ['sql', ...tenant],
    "insert into numbers values (1, 1, 'one'); insert into numbers values (2, 2, 'a;b')",
  );
  const big = '[3, {"$int": "9007199254740993"}, null]';
  await ok(cwd, ['sql', 'insert into numbers values (?, ?, ?)', '--params', big, ...tenant]);
  const select = ['sql', 'select n, body from numbers order by id', ...tenant];
  assert.equal(
    await ok(cwd, select),
    '               n  body\n               1  one\n               2  a;b\n9007199254740993  NULL\n',
  );
  assert.deepEqual(await okJson(cwd, select), [
    {
      verb: 'SELECT',
      rows: [
        { n: 1, body: 'one' },
        { n: 2, body: 'a;b' },
        { n: { $int: '9007199254740993' }, body: null },
      ],
    },
  ]);
});

test('a script is all or nothing; with an id it runs once', async (t) => {
  const cwd = await withNotes(t);
  const failed = await nostos(cwd, [
    'sql',
    "insert into notes values (1, 'x'); insert into notes values (2, 'x')",
    '--tenant',
    'acme',
  ]);
  assert.equal(failed.code, EXIT_CODES.data[0]);
  assert.match(failed.stderr, /^error: .*CONSTRAINT_FAILED/s);
  const insert = ['sql', "insert into notes (body) values ('once')", '--id', 'n1', '--tenant', 'acme'];
  await ok(cwd, insert);
  await ok(cwd, insert);
  assert.match(await ok(cwd, ['sql', 'select count(*) as n from notes', '--tenant', 'acme']), /^n\n1\n$/);
});

test('a verb works through the process that serves the directory', async (t) => {
  const cwd = await withNotes(t);
  const { url, end } = await serveProcess(t, cwd);
  assert.equal((await fetch(`${url}/healthz`)).status, 200);
  await ok(cwd, ['sql', "insert into notes values (1, 'through the socket')", '--tenant', 'acme']);
  assert.match(await ok(cwd, ['sql', 'select body from notes', '--tenant', 'acme']), /through the socket/);
  assert.match(await ok(cwd, ['status']), /running +process \d+/);
  const page = await okJson<{ tenants: { name: string }[] }>(cwd, ['tenant', 'list']);
  assert.deepEqual(
    page.tenants.map(({ name }) => name),
    ['acme'],
  );
  assert.equal((await nostos(cwd, ['serve', '--port', '0'])).code, EXIT_CODES.retry[0]);
  const records = (await ok(cwd, ['log', '--json'])).trim().split('\n');
  assert.ok(records.length >= 4);
  for (const line of records)
    assert.match((JSON.parse(line) as { position: string }).position, /^[0-9a-f]{32}:\d+:\d+$/);
  assert.equal(await end(), OK);
  assert.ok(!(await readdir(join(cwd, 'nostos-data'))).includes('admin.sock'));
});

test('migrations are files in order of name, for one tenant or for all', async (t) => {
  const cwd = await withNotes(t);
  await ok(cwd, ['tenant', 'create', 'globex']);
  await mkdir(join(cwd, 'migrations'));
  await writeFile(
    join(cwd, 'migrations', '1.sql'),
    'create table notes (id integer primary key not null, body text unique)',
  );
  await writeFile(join(cwd, 'migrations', '10.sql'), 'alter table notes add column stars integer');
  await writeFile(join(cwd, 'migrations', '2.sql'), 'alter table notes add column at text');
  const report = await okJson<{ migrated: unknown[]; failed: unknown[] }>(cwd, ['migrate', 'migrations', '--all']);
  assert.deepEqual(report, {
    migrated: [
      { tenant: 'acme', from: 1, to: 3 },
      { tenant: 'globex', from: 0, to: 3 },
    ],
    failed: [],
  });
  assert.equal((await nostos(cwd, ['migrate', 'migrations'])).code, EXIT_CODES.usage[0]);
  await writeFile(join(cwd, 'migrations', '11.sql'), 'create table keyless (a text)');
  const refused = await nostos(cwd, ['migrate', 'migrations', '--tenant', 'acme', '--json']);
  assert.equal(refused.code, EXIT_CODES.data[0]);
  assert.equal((JSON.parse(refused.stderr) as { error: { code: string } }).error.code, 'SCHEMA_REFUSED');
});

test('a tenant is dropped only when that is said', async (t) => {
  const cwd = await withNotes(t);
  assert.equal((await nostos(cwd, ['tenant', 'drop', 'acme'])).code, EXIT_CODES.usage[0]);
  await ok(cwd, ['tenant', 'drop', 'acme', '--yes']);
  assert.equal((await nostos(cwd, ['tenant', 'status', 'acme'])).code, EXIT_CODES.notFound[0]);
});

test('wrong command lines and missing things have their exit codes and say what to do', async (t) => {
  const cwd = await temporaryDirectory(t);
  const cases: readonly (readonly [readonly string[], keyof typeof EXIT_CODES, RegExp])[] = [
    [['stats'], 'usage', /Did you mean status/],
    [['sql', 'select 1'], 'usage', /--tenant/],
    [['log', '--limit', 'ten'], 'usage', /whole number/],
    [['status'], 'notFound', /no Nostos data directory[^]*→/],
    [['tour', 'absent.sqlite'], 'notFound', /there is no file/],
    [['serve', '--host', '0.0.0.0', '--port', '0'], 'usage', /in the clear/],
  ];
  for (const [args, exit, message] of cases) {
    const ended = await nostos(cwd, args);
    assert.equal(ended.code, EXIT_CODES[exit][0], args.join(' '));
    assert.match(ended.stderr, message);
    assert.equal(ended.stdout, '');
  }
});

test('a file that is no database is refused with its reason', async (t) => {
  const cwd = await temporaryDirectory(t);
  await writeFile(join(cwd, 'text.sqlite'), 'not a database, '.repeat(100));
  const ended = await nostos(cwd, ['import', 'text.sqlite', '--tenant', 'x']);
  assert.equal(ended.code, EXIT_CODES.data[0], ended.stderr);
  assert.match(ended.stderr, /IMPORT_REFUSED/);
});

test('Ctrl-C ends what runs, as a signal does, and leaves the node usable', async (t) => {
  const cwd = await withNotes(t);
  const child = spawn(process.execPath, [ENTRY, 'log', '--follow'], { cwd, stdio: ['ignore', 'pipe', 'inherit'] });
  t.after(() => child.kill('SIGKILL'));
  await once(child.stdout, 'data');
  child.kill('SIGINT');
  assert.deepEqual(await once(child, 'exit'), [null, 'SIGINT']);
  assert.ok(!(await readdir(join(cwd, 'nostos-data'))).includes('admin.sock'));
  await ok(cwd, ['verify']);
});

test('the reader of a pipe may leave early', async (t) => {
  const cwd = await withNotes(t);
  const child = spawn(process.execPath, [ENTRY, 'log', '--follow'], { cwd, stdio: ['ignore', 'pipe', 'inherit'] });
  t.after(() => child.kill('SIGKILL'));
  await once(child.stdout, 'data');
  child.stdout.destroy();
  const exit = once(child, 'exit');
  await ok(cwd, ['sql', "insert into notes values (1, 'makes a record')", '--tenant', 'acme']);
  assert.deepEqual(await exit, [OK, null]);
});

test(
  'your own database takes the tour too, with names that clash and tables without a key',
  { timeout: 180_000 },
  async (t) => {
    const cwd = await temporaryDirectory(t);
    {
      using db = new DatabaseSync(join(cwd, 'own.sqlite'));
      db.exec(`create table tour_writes (a text); insert into tour_writes values ('mine'), ('mine'), (null);
      create table things (id integer primary key not null, x real); insert into things values (1, 0.1), (2, 9e999);`);
    }
    const report = await okJson<{ ok: boolean; source: string }>(cwd, ['tour', 'own.sqlite']);
    assert.deepEqual({ ok: report.ok, source: report.source }, { ok: true, source: 'own' });
  },
);
