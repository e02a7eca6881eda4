import assert from 'node:assert/strict';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { replaceOrRollback, splitStatements, statementKeyword, tokenize } from './sql-tokens.ts';

test('tokens cover the text without a gap, whatever it is', () => {
  const alphabet = [
    "'",
    '"',
    '`',
    '[',
    ']',
    '-',
    '/',
    '*',
    '\n',
    ' ',
    'x',
    'a',
    '1',
    '.',
    'e',
    '$',
    '@',
    ';',
    '\0',
    'é',
    '\uFEFF',
    '(',
    '|',
  ];
  let state = 7;
  const random = (below: number): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state % below;
  };
  for (let round = 0; round < 5_000; round += 1) {
    const sql = Array.from({ length: random(30) }, () => alphabet[random(alphabet.length)]).join('');
    let at = 0;
    for (const token of tokenize(sql)) {
      assert.equal(token.start, at);
      assert.ok(token.end > at);
      at = token.end;
    }
    assert.equal(at, sql.length);
  }
});

test('kinds are those of SQLite', () => {
  const kinds = (sql: string): string[] =>
    tokenize(sql)
      .filter((t) => t.kind !== 'space')
      .map((t) => `${t.kind}:${sql.slice(t.start, t.end)}`);
  assert.deepEqual(kinds(`SELECT "a""b", 'it''s', x'0A', 1.5e-3, 0xFF, .5, ?1, :a, $b::c(d)`), [
    'word:SELECT',
    'quoted:"a""b"',
    'operator:,',
    "string:'it''s'",
    'operator:,',
    "blob:x'0A'",
    'operator:,',
    'number:1.5e-3',
    'operator:,',
    'number:0xFF',
    'operator:,',
    'number:.5',
    'operator:,',
    'variable:?1',
    'operator:,',
    'variable::a',
    'operator:,',
    'variable:$b::c(d)',
  ]);
  assert.deepEqual(kinds('[a]]`b`größe->>1--x\n/*y'), [
    'quoted:[a]',
    'illegal:]',
    'quoted:`b`',
    'word:größe',
    'operator:->>',
    'number:1',
    'comment:--x\n',
    'comment:/*y',
  ]);
  assert.deepEqual(kinds("'open ''"), ["illegal:'open ''"]);
});

test('a literal of many megabytes does not exhaust the stack', () => {
  const literal = `'${"a''b".repeat(4_000_000)}'`;
  assert.equal(tokenize(`SELECT ${literal}`).length, 3);
  assert.equal(splitStatements(`/*${'*'.repeat(10_000_000)}*/ SELECT 1`).length, 1);
});

test('a script is split where SQLite would end each statement', () => {
  const trigger = `CREATE TEMP TRIGGER begin AFTER UPDATE OF a ON t WHEN new.a > CASE WHEN 1 THEN 2 END BEGIN
    UPDATE t SET a = CASE WHEN a = ';' THEN 1 ELSE CASE 1 WHEN 1 THEN 2 END END; -- END;
    SELECT 'END;' /* END; */ ; END`;
  const script = `;; -- start; here\nCREATE TABLE t(a DEFAULT ';', "b;c");${trigger} ;\nINSERT INTO t VALUES ('x;y');; SELECT 1 -- last;`;
  assert.deepEqual(splitStatements(script), [
    `CREATE TABLE t(a DEFAULT ';', "b;c")`,
    trigger,
    `INSERT INTO t VALUES ('x;y')`,
    'SELECT 1',
  ]);
  assert.deepEqual(splitStatements(' -- nothing \n ; /* */ '), []);
  assert.deepEqual(splitStatements('BEGIN; SELECT 1; END; SELECT 2'), ['BEGIN', 'SELECT 1', 'END', 'SELECT 2']);
});

test('each split statement prepares, and together they do what the script does', () => {
  const script = `CREATE TABLE t(id INTEGER PRIMARY KEY, a); CREATE TABLE log(n);
    CREATE TRIGGER IF NOT EXISTS "my;trigger" AFTER INSERT ON t BEGIN INSERT INTO log VALUES (CASE WHEN new.a THEN 'x' ELSE 'END;' END); SELECT 1; END;
    INSERT INTO t(a) VALUES (0); INSERT INTO t(a) VALUES (1)`;
  const whole = new DatabaseSync(':memory:');
  whole.exec(script);
  const single = new DatabaseSync(':memory:');
  for (const statement of splitStatements(script)) single.prepare(statement).run();
  const rows = (db: DatabaseSync): unknown => db.prepare('SELECT * FROM log').all();
  assert.deepEqual(rows(single), rows(whole));
  assert.equal(splitStatements(script).length, 5);
});

test('the keyword is found after comments, and never inside of them', () => {
  assert.equal(statementKeyword(' ; -- drop\n/* create */ select 1'), 'SELECT');
  assert.equal(statementKeyword('-- only'), undefined);
  assert.equal(statementKeyword('(select 1)'), undefined);
  assert.notEqual(statementKeyword('ınsert'), 'INSERT');
});

test('OR ROLLBACK becomes OR ABORT in statements only', () => {
  assert.equal(
    replaceOrRollback("insert or /*x*/ rollback into t values ('INSERT OR ROLLBACK')"),
    "insert or /*x*/ ABORT into t values ('INSERT OR ROLLBACK')",
  );
  assert.equal(
    replaceOrRollback('WITH c AS (SELECT 1) UPDATE OR ROLLBACK t SET a=1'),
    'WITH c AS (SELECT 1) UPDATE OR ABORT t SET a=1',
  );
  for (const sql of [
    'SELECT a OR rollback FROM t',
    'SELECT 1 -- INSERT OR ROLLBACK',
    'INSERT INTO "INSERT OR ROLLBACK" VALUES (1)',
    'ROLLBACK',
  ])
    assert.equal(replaceOrRollback(sql), sql);
});

test('INSERT OR ROLLBACK no longer ends the transaction', () => {
  const db = new DatabaseSync(':memory:');
  db.exec('CREATE TABLE t(id INTEGER PRIMARY KEY); BEGIN; INSERT INTO t VALUES (1)');
  assert.throws(() => db.exec(replaceOrRollback('INSERT OR ROLLBACK INTO t VALUES (1)')));
  assert.equal(db.isTransaction, true);
  assert.throws(() => db.exec('INSERT OR ROLLBACK INTO t VALUES (1)'));
  assert.equal(db.isTransaction, false, 'the rule is needed');
});
