import assert from 'node:assert/strict';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { parseChangeset } from './changeset.ts';
import { readSchemaShape } from './schema-shape.ts';

const SCHEMA = `
  CREATE TABLE a(id INTEGER PRIMARY KEY AUTOINCREMENT, v, "INITIALLY DEFERRED", b AS (v + 1), c AS (v) STORED, d);
  CREATE TABLE p(x TEXT, r REFERENCES a DEFERRABLE INITIALLY DEFERRED, y INTEGER, g AS (y), PRIMARY KEY (y, x)) WITHOUT ROWID;
  CREATE TABLE q(id INTEGER PRIMARY KEY, r REFERENCES a ON DELETE CASCADE);
  CREATE TRIGGER tr AFTER INSERT ON Q BEGIN SELECT 1; END;
  CREATE VIRTUAL TABLE f USING fts5(text); CREATE VIRTUAL TABLE geo USING rtree(id, x0, x1);
  CREATE TABLE nostos_meta(id INTEGER PRIMARY KEY); CREATE TABLE nostos_results(id TEXT PRIMARY KEY NOT NULL);
  CREATE VIEW v AS SELECT 1; ANALYZE;`;

test('the columns are those of changesets, for every table that is captured', () => {
  const db = new DatabaseSync(':memory:', { enableForeignKeyConstraints: false });
  db.exec(SCHEMA);
  const shape = readSchemaShape(db);
  using session = db.createSession();
  db.exec(`INSERT INTO a(v, d) VALUES (1, 2); INSERT INTO p(x, y) VALUES ('x', 1); INSERT INTO q VALUES (1, 1);
    INSERT INTO f VALUES ('word'); INSERT INTO geo VALUES (1, 2, 3); INSERT INTO nostos_results VALUES ('r')`);
  const seen = new Set<string>();
  for (const group of parseChangeset(session.changeset())) {
    seen.add(group.table);
    assert.equal(shape.columnNames(group.table).length, group.columnCount, group.table);
    const keys = shape.columnNames(group.table).filter((_, column) => group.keyFlags[column] !== 0);
    assert.deepEqual(keys.toSorted(), shape.tables.get(group.table)!.keyColumns.toSorted());
  }
  assert.ok(seen.has('f_data') && seen.has('geo_node') && seen.has('nostos_results'));
  assert.deepEqual(
    [...shape.tables.keys()].filter((name) => shape.tables.get(name)!.type === 'table'),
    ['a', 'nostos_results', 'p', 'q'],
  );
});

test('keys, sequences, foreign keys and triggers are seen', () => {
  const db = new DatabaseSync(':memory:');
  db.exec(SCHEMA);
  const { tables, columnNames } = readSchemaShape(db);
  const [a, p, q] = ['a', 'p', 'q'].map((name) => tables.get(name)!);
  assert.deepEqual(a!.columns, ['id', 'v', 'INITIALLY DEFERRED', 'd']);
  assert.deepEqual(p!.keyColumns, ['y', 'x']);
  assert.deepEqual([a!.hasAutoincrement, p!.hasAutoincrement], [true, false]);
  assert.deepEqual([a!.hasForeignKeys, p!.hasForeignKeys, q!.hasForeignKeys], [false, true, true]);
  assert.deepEqual(
    [a!.hasDeferrableForeignKeys, p!.hasDeferrableForeignKeys, q!.hasDeferrableForeignKeys],
    [false, true, false],
  );
  assert.deepEqual([a!.hasTriggers, q!.hasTriggers], [false, true]);
  assert.deepEqual(columnNames('nostos_meta'), []);
});
