import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { cp, readFile, readdir, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { createInterface } from 'node:readline';
import { test, type TestContext } from 'node:test';
import { makeLostTail } from '../node/lost-tail.fixture.ts';
import type { ReapplyReport } from '../rollback/reapply/types.ts';
import { EXIT_CODES, type ExitName } from './exit-codes.ts';
import { ENTRY, nostos, temporaryDirectory, type Ended } from './nostos-process.fixture.ts';

/** In `old` a rollback file of three transactions; `present` is the node that went on. */
async function directories(t: TestContext): Promise<{ cwd: string; name: string; id: string }> {
  const cwd = await temporaryDirectory(t);
  const { file } = await makeLostTail(cwd, {
    migrations: ['create table orders (id integer primary key not null, customer text, total, doc blob)'],
    before: (tx) =>
      void tx.run("insert into orders values (1, 'Ada', 10, null), (2, 'Bob', 20, null), (3, 'Cy', 3, null)"),
    lost: [
      (tx) =>
        void tx.run(
          `insert into orders values (4, 'Dora O''Neil', 9.5, x'00ff'), (5, 'a' || char(10, 27) || '[31m', 1, zeroblob(99))`,
        ),
      (tx) => void tx.run('update orders set total = 25 where id = 2'),
      (tx) => void tx.run('delete from orders where id = 3'),
    ],
  });
  const name = basename(file);
  return { cwd, name, id: /([0-9a-f]{32})/.exec(name)![1]! };
}

async function run(cwd: string, args: readonly string[], exit: ExitName = 'ok'): Promise<Ended> {
  const ended = await nostos(cwd, ['rollback', ...args]);
  assert.equal(ended.code, EXIT_CODES[exit][0], `rollback ${args.join(' ')}: ${ended.stdout}${ended.stderr}`);
  return ended;
}

async function json<T>(cwd: string, args: readonly string[], exit: ExitName = 'ok'): Promise<T> {
  return JSON.parse((await run(cwd, [...args, '--json'], exit)).stdout) as T;
}

/** Flips a bit behind the first record with rows, and says where. */
async function damage(path: string): Promise<number> {
  const bytes = await readFile(path);
  const at = Math.floor(bytes.length * 0.7);
  bytes[at] = bytes[at]! ^ 1;
  await writeFile(path, bytes);
  return at;
}

test('rollback files are listed, shown and exported as people read them, without opening the node', async (t) => {
  const { cwd, name, id } = await directories(t);
  await writeFile(join(cwd, 'old', 'node.json'), '{'); // a node that cannot run
  const old = ['--dir', 'old'];
  const listed = (await run(cwd, ['list', ...old])).stdout;
  assert.match(listed, new RegExp(`${id.slice(0, 8)} .* 2 → 3  5 to 8 +4 +3 .*whole`));
  assert.match(listed, /rollbacks of this node so far: 1/);
  const list = await json<{ files: { state: string; name: string; footer: { acknowledged: number } }[] }>(cwd, [
    ...['list', '--quick', ...old],
  ]);
  assert.deepEqual(
    list.files.map((file) => [file.state, file.name, file.footer.acknowledged]),
    [['whole', name, 3]],
  );

  const shown = (await run(cwd, ['show', ...old])).stdout;
  const lines = shown.slice(shown.indexOf('LSN 5  ')).replaceAll(/ {2}\d{4}-\S+Z/g, '');
  assert.equal(
    lines,
    [
      'LSN 5  term 2',
      '  term 2 began',
      '',
      'LSN 6  term 2  acme  acknowledged',
      `  insert  orders  id=4  customer='Dora O''Neil', total=9.5, doc=x'00ff'`,
      `  insert  orders  id=5  customer='a\\n\\u001b[31m', total=1, doc=x'${'00'.repeat(16)}…' (99 bytes)`,
      '',
      'LSN 7  term 2  acme  acknowledged',
      '  update  orders  id=2  total: 20 → 25',
      '',
      'LSN 8  term 2  acme  acknowledged',
      `  delete  orders  id=3  customer='Cy', total=3, doc=NULL`,
      '',
    ].join('\n'),
  );
  for (const wanted of [name, id, id.slice(0, 6), join('old', 'rollback', name)])
    assert.equal(
      (await run(cwd, ['show', wanted, ...old])).stdout.split('\n').slice(1).join('\n'),
      shown.split('\n').slice(1).join('\n'),
    );

  const filtered = (await run(cwd, ['show', '--table', 'orders', '--acknowledged', '--limit', '2', '--json', ...old]))
    .stdout;
  const items = filtered
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as { lsn: number; key: unknown });
  assert.deepEqual(
    items.map(({ lsn, key }) => [lsn, key]),
    [
      [6, { id: 4 }],
      [6, { id: 5 }],
    ],
  );

  const sql = (await run(cwd, ['export', '--format', 'sql', ...old])).stdout;
  assert.match(sql, /^update "orders" set "total" = 25 where "id" = 2; -- acme$/m);
  await run(cwd, ['export', id, '--out', 'lost.jsonl', ...old]);
  assert.equal((await readFile(join(cwd, 'lost.jsonl'), 'utf8')).trim().split('\n').length, 5);
  assert.match((await run(cwd, ['export', '--out', 'lost.jsonl', ...old], 'failed')).stderr, /FILE_EXISTS/);
  await run(cwd, ['export', '--out', 'lost.jsonl', '--overwrite', ...old]);
});

test('what is not there, not one, or not a whole file is said, with what to do', async (t) => {
  const { cwd, name, id } = await directories(t);
  const path = join(cwd, 'old', 'rollback', name);
  const old = ['--dir', 'old'];
  const cases: readonly (readonly [string, readonly string[], ExitName, RegExp])[] = [
    ['no directory', ['list', '--dir', 'nowhere'], 'notFound', /there is no Nostos data directory/],
    ['no files', ['show', '--dir', 'present'], 'notFound', /there are no rollback files/],
    ['no such id', ['show', 'ffff', ...old], 'notFound', /no rollback file .* is called ffff/],
    ['no such path', ['reapply', './gone.nrb', ...old], 'notFound', /there is no file/],
    ['another file', ['show', join('present', 'node.json')], 'failed', /ROLLBACK_FILE_DAMAGED/],
    ['a policy', ['reapply', id, '--on-conflict', 'mine', ...old], 'usage', /Allowed choices are skip, theirs, ours/],
  ];
  for (const [what, args, exit, message] of cases) assert.match((await run(cwd, args, exit)).stderr, message, what);

  await cp(path, path.replace(id, `${id.slice(0, 8)}${'0'.repeat(24)}`));
  assert.match((await run(cwd, ['show', id.slice(0, 8), ...old], 'usage')).stderr, /beginning of 2 ids/);

  const at = await damage(path);
  const listed = await run(cwd, ['list', ...old], 'failed');
  assert.match(listed.stdout, /damaged at byte \d+: /);
  assert.match(listed.stdout, /whole/);
  const shown = await run(cwd, ['show', id, ...old], 'failed');
  assert.match(shown.stdout, /LSN 6 .*\n.*Dora/, 'what stands before it is shown');
  const offset = Number(/damaged at byte (\d+)/.exec(shown.stderr)?.[1]);
  assert.ok(offset <= at && at - offset < 1_000, shown.stderr);
  await run(cwd, ['export', id, '--out', 'rest.jsonl', ...old], 'failed');
  assert.match(await readFile(join(cwd, 'rest.jsonl'), 'utf8'), /Dora/);
  await run(cwd, ['reapply', join('old', 'rollback', name), '--dir', 'present'], 'failed');
  const rows = await nostos(cwd, ['sql', 'select count(*) as n from orders', '--tenant', 'acme', '--dir', 'present']);
  assert.match(rows.stdout, /^n\n3\n/, 'nothing of a damaged file is applied');

  await writeFile(join(cwd, 'old', 'rollback', 'journal.json'), '{');
  assert.match(
    (await run(cwd, ['list', ...old], 'failed')).stdout,
    /whole/,
    'the files are listed without the journal',
  );
});

/** A process that serves `present` until the test ends. */
async function serve(t: TestContext, cwd: string): Promise<() => Promise<void>> {
  const args = [ENTRY, 'serve', '--port', '0', '--dir', 'present'];
  const child = spawn(process.execPath, args, { cwd, stdio: ['ignore', 'pipe', 'inherit'] });
  t.after(() => child.kill('SIGKILL'));
  for await (const line of createInterface({ input: child.stdout }))
    if (line.includes('status page'))
      return async () => {
        child.kill('SIGTERM');
        await once(child, 'exit');
      };
  throw new Error('serve said nothing');
}

test('a file is re-applied to a stopped directory and to a served node, each transaction once', async (t) => {
  const { cwd, name } = await directories(t);
  const present = ['--dir', 'present'];
  const file = join('old', 'rollback', name);
  const reapply = (args: readonly string[], exit?: ExitName): Promise<ReapplyReport> =>
    json(cwd, ['reapply', file, ...args, ...present], exit);
  const sql = async (statement: string): Promise<string> =>
    (await nostos(cwd, ['sql', statement, '--tenant', 'acme', ...present])).stdout;
  const totals = (): Promise<string> =>
    sql("select group_concat(id || ':' || total, ' ') as t from orders order by id");

  assert.equal((await reapply(['--dry-run'])).transactions.applied, 3);
  assert.equal(await totals(), 't\n1:10 2:20 3:3\n', 'a dry run writes nothing');
  await sql('update orders set total = 30 where id = 2');
  const end = await serve(t, cwd);
  const dry = await run(cwd, ['reapply', file, '--dry-run', ...present], 'failed');
  assert.match(dry.stdout, /2 would be written, 0 there already, 0 by an earlier run, 1 left out/);
  const skipped = await run(cwd, ['reapply', file, ...present], 'failed');
  assert.match(
    skipped.stdout,
    /update orders {2}id=2 {2}total: 20 → 25\n +the row has changed since; now total=30; skipped/,
  );
  assert.match(skipped.stdout, /→ --on-conflict theirs/);
  assert.match(skipped.stderr, /left out: 1 of 4 records/);
  assert.equal(await totals(), 't\n1:10 2:30 4:9.5 5:1\n');
  await end();

  const ours = await reapply(['--on-conflict', 'ours']);
  assert.deepEqual(ours.transactions, { applied: 1, present: 0, repeated: 2, leftOut: 0 });
  assert.equal(await totals(), 't\n1:10 2:25 4:9.5 5:1\n');
  assert.equal((await reapply([])).transactions.repeated, 3);
});

test('a file is deleted once its rows are elsewhere, or by force, and never under a rollback that has not ended', async (t) => {
  const { cwd, name, id } = await directories(t);
  const old = ['--dir', 'old'];
  const path = join(cwd, 'old', 'rollback', name);
  const refused = await run(cwd, ['delete', id.slice(0, 8), ...old], 'failed');
  assert.match(refused.stderr, /neither exported nor re-applied[\s\S]*rollback export [0-9a-f]{8} --out/);
  await run(cwd, ['export', id, ...old, '--out', 'lost.jsonl']);
  await run(cwd, ['delete', id, ...old, '--dry-run']);
  assert.ok(existsSync(path));

  const journal = join(cwd, 'old', 'rollback', 'journal.json');
  const ended = await readFile(journal, 'utf8');
  await writeFile(journal, ended.replace('"state": "rejoined"', '"state": "recovering"'));
  const running = await run(cwd, ['delete', id, ...old, '--force'], 'failed');
  assert.match(running.stderr, /is recovering, and goes on with it/);
  assert.ok(existsSync(path));

  await writeFile(journal, ended);
  const removed = await json<{ file: string; exportedAtMs: number; dryRun: boolean }>(cwd, ['delete', id, ...old]);
  assert.deepEqual([removed.file, removed.dryRun, removed.exportedAtMs > 0], [path, false, true]);
  assert.deepEqual(
    (await readdir(join(cwd, 'old', 'rollback'))).filter((file) => file.includes(id)),
    [],
  );
  await run(cwd, ['delete', id, ...old], 'notFound');
});

test('what was re-applied whole may be deleted, a damaged file only by force', async (t) => {
  const { cwd, name, id } = await directories(t);
  const path = join(cwd, 'old', 'rollback', name);
  await cp(path, join(cwd, name));
  await run(cwd, ['reapply', path, '--dir', 'present', '--dry-run']);
  await run(cwd, ['delete', path], 'failed');
  await run(cwd, ['reapply', path, '--dir', 'present']);
  await run(cwd, ['delete', id, '--dir', 'old']);
  await damage(join(cwd, name));
  await run(cwd, ['delete', join(cwd, name)], 'failed');
  await run(cwd, ['delete', join(cwd, name), '--force']);
  assert.ok(!existsSync(path) && !existsSync(join(cwd, name)));
  await run(cwd, ['delete', join('present', 'catalog.sqlite')], 'usage');
});
