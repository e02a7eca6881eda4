/** The part `backup` of the tour as a visitor runs it, on the sample and on a database of their own. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { nostos, temporaryDirectory } from '../nostos-process.fixture.ts';

test('the tour shows a backup and the way back, and every check of it holds', async (t) => {
  const cwd = await temporaryDirectory(t);
  using own = new DatabaseSync(join(cwd, 'own.sqlite'));
  own.exec(`create table tour_people (name text); insert into tour_people values ('a'), ('b');
    create table parts (id integer primary key, part_of integer references parts (id)); insert into parts values (1, 1), (2, 1);
    create view v as select name from tour_people`);
  for (const args of [[], ['own.sqlite']]) {
    const { code, stdout, stderr } = await nostos(cwd, ['tour', ...args, '--only', 'backup', '--json']);
    assert.equal(code, 0, stdout + stderr);
    const { ok, parts } = JSON.parse(stdout) as { ok: boolean; parts: { checks: { ok: boolean; figure: string }[] }[] };
    assert.ok(ok);
    assert.equal(parts[0]!.checks.length, 7);
  }
});
