import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { Connection } from './connection.ts';
import { raiseSequences, readSequences, writeSequences } from './tenant-file.ts';

test('a counter that rows have raised already is not lowered by the record before them', (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'nostos-sequences-'));
  t.after(() => rmSync(dir, { recursive: true }));
  using connection = new Connection(join(dir, 'a.sqlite'), { role: 'applier', statementCacheMax: 8 });
  connection.database.exec(`create table a (id integer primary key autoincrement);
    create table b (id integer primary key autoincrement); insert into a values (9)`);
  raiseSequences(connection, [
    { table: 'a', value: 5n },
    { table: 'b', value: 2n },
  ]);
  const values = (): unknown => readSequences(connection, ['a', 'b']).map(({ value }) => value);
  assert.deepEqual(values(), [9n, 2n]);
  raiseSequences(connection, [{ table: 'a', value: 2n ** 62n }]);
  assert.deepEqual(values(), [2n ** 62n, 2n]);
  writeSequences(connection, [{ table: 'a', value: 1n }]);
  assert.deepEqual(values(), [1n, 2n], 'a migration may lower it');
});
