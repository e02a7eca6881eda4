/** Each rule twice: that it refuses, and what SQLite does where it is broken. */
import assert from 'node:assert/strict';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { isDeepStrictEqual } from 'node:util';
import { seededRandom } from '../base/random.ts';
import { isNostosError } from '../base/errors.ts';
import { countChanges, parseChangeset } from './changeset.ts';
import { checkMigrationStatement, checkSchema, schemaMayRollBack } from './schema-check.ts';
import { replaceOrRollback, splitStatements, statementKeyword } from './sql-tokens.ts';
import { guardTrigger, unguardTrigger } from './trigger-guard.ts';

function open(schema: string): DatabaseSync {
  const db = new DatabaseSync(':memory:', { enableForeignKeyConstraints: false, defensive: false });
  db.exec(schema);
  return db;
}

function capture(db: DatabaseSync, sql: string): Uint8Array {
  using session = db.createSession();
  db.exec(sql);
  return session.changeset();
}

function codes(schema: string): string[] {
  return checkSchema(open(schema)).map((problem) => `${problem.code} ${problem.object}`);
}

function rows(db: DatabaseSync, sql: string): unknown {
  return db.prepare(sql).all();
}

/** Whether a replica refuses the changeset of a statement, or has other rows after it. */
function goesWrong(schema: string, setup: string, sql: string): boolean {
  const [source, replica] = [open(schema), open(schema)];
  for (const db of [source, replica]) db.exec(setup);
  const changeset = capture(source, sql);
  try {
    if (!replica.applyChangeset(changeset)) return true;
  } catch {
    return true;
  }
  const [expected, actual] = [source, replica].map((db) => rows(db, 'SELECT *, typeof(a) FROM t ORDER BY 1, 2'));
  return !isDeepStrictEqual(actual, expected);
}

test('a table without PRIMARY KEY is refused: nothing of it is captured', () => {
  const schema = 'CREATE TABLE t(a UNIQUE NOT NULL, b)';
  assert.deepEqual(codes(schema), ['NO_PRIMARY_KEY t']);
  assert.equal(capture(open(schema), 'INSERT INTO t VALUES (1, 2)').length, 0);
});

test('a key column that may be NULL is refused: rows with a NULL key are not captured', () => {
  const schema = 'CREATE TABLE t(a TEXT, b INTEGER NOT NULL, PRIMARY KEY (a, b))';
  assert.deepEqual(codes(schema), ['NULLABLE_KEY t.a']);
  const db = open(schema);
  assert.equal(capture(db, 'INSERT INTO t VALUES (NULL, 1)').length, 0);
  db.exec(`INSERT INTO t VALUES ('x', 2)`);
  const [group] = parseChangeset(capture(db, `UPDATE t SET a = NULL WHERE a = 'x'`));
  assert.deepEqual(
    group!.changes.map((change) => change.op),
    ['delete'],
    'the row is still there',
  );
  assert.deepEqual(codes('CREATE TABLE t(id INTEGER PRIMARY KEY DESC)'), ['NULLABLE_KEY t.id']);
  assert.deepEqual(codes('CREATE TABLE t(id INT PRIMARY KEY)'), ['NULLABLE_KEY t.id']);
});

test('a key that is not compared byte by byte is refused: a change of case cannot be applied', () => {
  const schema = 'CREATE TABLE t(a TEXT COLLATE NOCASE PRIMARY KEY NOT NULL, v)';
  assert.deepEqual(codes(schema), ['KEY_COLLATION t.a']);
  assert.ok(goesWrong(schema, `INSERT INTO t VALUES ('key', 1)`, `UPDATE t SET a = 'KEY'`));
  assert.deepEqual(codes('CREATE TABLE t(a TEXT NOT NULL, PRIMARY KEY (a COLLATE rtrim)) WITHOUT ROWID'), [
    'KEY_COLLATION t.a',
  ]);
});

test('a key column of another collation than its key is refused: applying finds the wrong row', () => {
  const schema = 'CREATE TABLE t(a TEXT COLLATE NOCASE NOT NULL, v, PRIMARY KEY (a COLLATE BINARY))';
  assert.deepEqual(codes(schema), ['KEY_COLLATION t.a']);
  assert.ok(goesWrong(schema, `INSERT INTO t VALUES ('a', 1), ('A', 1)`, `DELETE FROM t WHERE a = 'A' COLLATE BINARY`));
});

test('a REAL, NUMERIC or untyped key column is refused: 1 and 1.0 are one key to SQLite and two to the session', () => {
  for (const type of ['REAL', 'NUMERIC', '', 'BLOB', 'DECIMAL(10,5)', 'DATE'])
    assert.deepEqual(codes(`CREATE TABLE t(a ${type} PRIMARY KEY NOT NULL)`), ['KEY_TYPE t.a'], type);
  for (const type of ['REAL', 'ANY'])
    assert.deepEqual(codes(`CREATE TABLE t(a ${type} PRIMARY KEY NOT NULL) STRICT`), ['KEY_TYPE t.a']);
  for (const type of ['INT', 'INTEGER', 'TEXT', 'BLOB'])
    assert.deepEqual(codes(`CREATE TABLE t(a ${type} PRIMARY KEY NOT NULL, b ANY) STRICT`), []);
  for (const type of ['BIGINT', 'varchar(9)', 'CLOB', 'TEXT'])
    assert.deepEqual(codes(`CREATE TABLE t(a ${type} PRIMARY KEY NOT NULL)`), [], type);
  const untyped = 'CREATE TABLE t(a PRIMARY KEY NOT NULL, v)';
  assert.ok(goesWrong(untyped, 'INSERT INTO t VALUES (1, 0)', 'UPDATE t SET a = 1.0, v = 2'));
});

test('an insert and a delete of one REAL key leave a phantom DELETE', () => {
  const db = open('CREATE TABLE t(a REAL PRIMARY KEY NOT NULL)');
  let phantoms = 0;
  for (let value = 0; value < 400; value += 1)
    if (countChanges(capture(db, `BEGIN; INSERT INTO t VALUES (${value}); DELETE FROM t; COMMIT`)) > 0) phantoms += 1;
  assert.ok(phantoms > 0);
});

test('ON CONFLICT REPLACE, IGNORE and ROLLBACK of a key are refused: they act again on the replica', () => {
  for (const action of ['REPLACE', 'IGNORE', 'ROLLBACK'])
    for (const schema of [
      `CREATE TABLE t(id INTEGER PRIMARY KEY ON CONFLICT ${action})`,
      `CREATE TABLE t(id INTEGER PRIMARY KEY, a UNIQUE ON CONFLICT ${action} CHECK (a > 0))`,
      `CREATE TABLE t(id INTEGER PRIMARY KEY, a, b, UNIQUE (a, b) ON CONFLICT ${action})`,
    ])
      assert.deepEqual(codes(schema), ['CONFLICT_CLAUSE t'], schema);
  for (const schema of [
    'CREATE TABLE t(id INTEGER PRIMARY KEY, a NOT NULL ON CONFLICT REPLACE DEFAULT 1)',
    `CREATE TABLE t(id INTEGER PRIMARY KEY ON CONFLICT ABORT, a UNIQUE ON CONFLICT FAIL, "UNIQUE ON CONFLICT IGNORE")`,
    'CREATE TABLE t(id INTEGER PRIMARY KEY, a UNIQUE NOT NULL ON CONFLICT IGNORE, CHECK (a > 0) ON CONFLICT ROLLBACK)',
  ])
    assert.deepEqual(codes(schema), [], schema);
});

test('unique values swapped under ON CONFLICT REPLACE or IGNORE go wrong on the replica', () => {
  for (const action of ['REPLACE', 'IGNORE']) {
    const schema = `CREATE TABLE t(id INTEGER PRIMARY KEY, a UNIQUE ON CONFLICT ${action})`;
    const swap = 'UPDATE t SET a = 9 WHERE id = 1; UPDATE t SET a = 1 WHERE id = 2; UPDATE t SET a = 2 WHERE id = 1';
    assert.ok(goesWrong(schema, 'INSERT INTO t VALUES (1, 1), (2, 2)', swap), action);
  }
});

test('full text over a table without INTEGER PRIMARY KEY is refused: rowids differ on the replica', () => {
  const table = (key: string): string => `CREATE TABLE doc(${key}, body TEXT);`;
  const search = (options: string): string => `CREATE VIRTUAL TABLE search USING fts5(body, ${options});`;
  const broken = table('k TEXT PRIMARY KEY NOT NULL') + search("content='doc'");
  assert.deepEqual(codes(broken), ['CONTENT_WITHOUT_KEY search']);
  assert.deepEqual(
    codes(table('k TEXT PRIMARY KEY NOT NULL, n INTEGER') + search('content = "doc", content_rowid=n')),
    [],
  );
  assert.deepEqual(codes(table('k INTEGER PRIMARY KEY') + search('content=doc, content_rowid=k')), []);
  assert.deepEqual(codes(search("content=''")), []);
  assert.deepEqual(
    codes(table('k TEXT PRIMARY KEY NOT NULL') + 'CREATE VIRTUAL TABLE search USING fts4(content="doc", body)'),
    ['CONTENT_WITHOUT_KEY search'],
  );
  assert.deepEqual(
    codes(
      `${table('k TEXT PRIMARY KEY NOT NULL')} CREATE VIEW v AS SELECT rowid AS n, body FROM doc; ${search('content=v, content_rowid=n')}`,
    ),
    ['CONTENT_WITHOUT_KEY search'],
  );

  const [source, replica] = [open(broken), open(broken)];
  const changesets = ['b', 'a'].map((key) =>
    capture(
      source,
      `BEGIN; INSERT INTO doc(rowid, k, body) VALUES (${key.charCodeAt(0)}, '${key}', 'word${key}'); INSERT INTO search(rowid, body) SELECT rowid, body FROM doc WHERE k = '${key}'; COMMIT`,
    ),
  );
  for (const changeset of changesets) replica.applyChangeset(changeset);
  const found = (db: DatabaseSync): unknown =>
    rows(db, `SELECT doc.k FROM search JOIN doc ON doc.rowid = search.rowid WHERE search MATCH 'worda'`);
  assert.notDeepEqual(found(replica), found(source));
});

test('full text and R-tree tables with their shadow tables are accepted, other stores are not', () => {
  assert.deepEqual(
    codes(`CREATE VIRTUAL TABLE a USING fts5(x); CREATE VIRTUAL TABLE b USING fts4(x); CREATE VIRTUAL TABLE c USING rtree(id, x0, x1);
      CREATE VIRTUAL TABLE d USING rtree_i32(id, x0, x1); CREATE VIRTUAL TABLE e USING geopoly(); CREATE VIRTUAL TABLE f USING fts5vocab(a, row)`),
    [],
  );
});

test('a name with the prefix of Nostos is refused, whatever it names', () => {
  assert.deepEqual(
    codes(
      `CREATE TABLE Nostos_x(id INTEGER PRIMARY KEY, v); CREATE INDEX nostos_i ON Nostos_x(v); CREATE VIEW nostos_v AS SELECT 1`,
    ),
    ['RESERVED_NAME Nostos_x', 'RESERVED_NAME nostos_i', 'RESERVED_NAME nostos_v'],
  );
  const own = open('CREATE TABLE nostos_results(id TEXT PRIMARY KEY NOT NULL)');
  assert.deepEqual(checkSchema(own), []);
  assert.equal(checkSchema(own, { ownTables: [] }).length, 1);
});

test('temporary objects are refused: they are not captured', () => {
  const schema = 'CREATE TEMP TABLE t(id INTEGER PRIMARY KEY)';
  assert.deepEqual(codes(schema), ['TEMP_OBJECT temp.t']);
  assert.equal(capture(open(schema), 'INSERT INTO t VALUES (1)').length, 0);
});

test('ordinary schemas pass', () => {
  assert.deepEqual(
    codes(`CREATE TABLE a(id INTEGER PRIMARY KEY AUTOINCREMENT, v COLLATE NOCASE UNIQUE);
      CREATE TABLE b(x TEXT, y INTEGER, g AS (y + 1), PRIMARY KEY (y, x)) WITHOUT ROWID;
      CREATE TABLE c(k BLOB PRIMARY KEY) STRICT; CREATE INDEX i ON a(lower(v)); CREATE VIEW w AS SELECT * FROM a;
      CREATE TABLE "quo""ted"(k TEXT NOT NULL PRIMARY KEY); INSERT INTO a(v) VALUES (1); ANALYZE`),
    [],
  );
});

test('statements that a migration may not run', () => {
  const code = (sql: string): string | undefined => checkMigrationStatement(sql)?.code;
  for (const sql of [
    'BEGIN',
    'commit',
    'END',
    '/* x */ ROLLBACK',
    'SAVEPOINT a',
    'RELEASE a',
    "ATTACH 'x' AS y",
    'DETACH y',
    'VACUUM',
    "VACUUM INTO 'x'",
    'PRAGMA foreign_keys=OFF',
    'PRAGMA temp.user_version',
    'EXPLAIN PRAGMA journal_mode = delete',
  ])
    assert.equal(code(sql), 'STATEMENT', sql);
  for (const sql of [
    'CREATE TEMP TABLE t(id INTEGER PRIMARY KEY)',
    'create temporary view v as select 1',
    'CREATE TABLE temp.t(id INTEGER PRIMARY KEY)',
    'CREATE TABLE IF NOT EXISTS "temp".t(id)',
  ])
    assert.equal(code(sql), 'TEMP_OBJECT', sql);
  for (const sql of [
    'CREATE TABLE t AS SELECT 1',
    'CREATE TABLE IF NOT EXISTS main."t" AS SELECT 1',
    'CREATE TABLE [as] AS VALUES (1)',
  ])
    assert.equal(code(sql), 'CREATE_TABLE_AS', sql);
  for (const sql of [
    'DROP TABLE nostos_meta',
    'INSERT INTO "nostos_results" VALUES (1)',
    'CREATE TABLE Nostos_(id INTEGER PRIMARY KEY)',
  ])
    assert.equal(code(sql), 'RESERVED_NAME', sql);
  for (const sql of [
    'PRAGMA user_version = 3',
    'PRAGMA main.user_version',
    'CREATE TABLE t(id INTEGER PRIMARY KEY, g AS (id + 1))',
    'CREATE VIEW v AS SELECT 1',
    'CREATE TABLE "temp"(id INTEGER PRIMARY KEY)',
    "SELECT 'nostos_meta'",
    "CREATE TRIGGER x AFTER INSERT ON t BEGIN SELECT RAISE(ROLLBACK, 'no'); END",
    'ALTER TABLE t ADD COLUMN x',
    '',
  ])
    assert.equal(code(sql), undefined, sql);
});

test('a schema that may roll back a whole transaction is known', () => {
  const table = 'CREATE TABLE t(id INTEGER PRIMARY KEY, rollback);';
  assert.equal(schemaMayRollBack(open(`${table} CREATE VIEW v AS SELECT 1 OR rollback FROM t`)), false);
  assert.equal(
    schemaMayRollBack(
      open(
        `${table} CREATE TRIGGER x AFTER INSERT ON t BEGIN SELECT 'RAISE(ROLLBACK)', new.rollback OR rollback FROM t; END`,
      ),
    ),
    false,
  );
  assert.equal(
    schemaMayRollBack(open(`${table} CREATE TRIGGER x AFTER INSERT ON t BEGIN SELECT RAISE(ROLLBACK, 'no'); END`)),
    true,
  );
  assert.equal(
    schemaMayRollBack(open(`${table} CREATE TRIGGER x AFTER INSERT ON t BEGIN UPDATE OR ROLLBACK t SET id = 1; END`)),
    true,
  );
  assert.equal(
    schemaMayRollBack(open('CREATE TABLE t(id INTEGER PRIMARY KEY, a NOT NULL ON CONFLICT ROLLBACK)')),
    true,
  );
});

test('no text makes the reading of statements throw anything but a typed error', () => {
  const random = seededRandom(5);
  const words = [
    'CREATE',
    'TEMP',
    'TABLE',
    'TRIGGER',
    'IF',
    'NOT',
    'EXISTS',
    '.',
    'x',
    '"y"',
    'AS',
    '(',
    ')',
    'WHEN',
    'BEGIN',
    'ON',
    'END',
    ';',
    'PRAGMA',
    "'",
    '/*',
    '--',
    'EXPLAIN',
    'QUERY',
    'PLAN',
    'INSERT',
    'OR',
    'ROLLBACK',
    '\0',
  ];
  for (let round = 0; round < 20_000; round += 1) {
    const sql = Array.from({ length: random.below(12) }, () => words[random.below(words.length)]).join(
      random.chance(0.9) ? ' ' : '',
    );
    checkMigrationStatement(sql);
    replaceOrRollback(sql);
    splitStatements(sql).forEach(statementKeyword);
    try {
      assert.equal(unguardTrigger(guardTrigger(sql)), sql);
    } catch (error) {
      assert.ok(isNostosError(error, 'INVALID_ARGUMENT'), String(error));
    }
  }
});
