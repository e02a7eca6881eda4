import assert from 'node:assert/strict';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { isNostosError } from '../../base/errors.ts';
import { concatChangesets, invertChangeset, parseChangeset } from '../changeset.ts';
import { readSchemaShape } from '../schema-shape.ts';
import { fingerprintRows, scanRows } from './fingerprint-rows.ts';
import { Fingerprint } from './fingerprint.ts';
import { type ColumnNames, Fingerprinter } from './fingerprinter.ts';
import { ReferenceFingerprint, siphash13 } from './reference.fixture.ts';

const KEY = Uint8Array.from({ length: 16 }, (_, index) => index);

const SCHEMA = `
  CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, price REAL, data BLOB, any);
  CREATE TABLE "größe x"(b TEXT NOT NULL, v, a INTEGER NOT NULL, g AS (a + 1), PRIMARY KEY(a, b)) WITHOUT ROWID;
  CREATE TABLE named(rowid TEXT, _rowid_ TEXT, oid TEXT PRIMARY KEY NOT NULL);
  CREATE VIRTUAL TABLE search USING fts5(name);`;

const HISTORY = [
  `INSERT INTO item VALUES (1, 'a', 1.5, x'0001', NULL), (-9223372036854775808, 'b', 9e999, zeroblob(300), 9007199254740993);
   INSERT INTO "größe x" VALUES ('k', 1, 1), ('k', 'text', 2), ('größe', NULL, 2); INSERT INTO named VALUES (1, 2, 3), (1, 2, 'x')`,
  `UPDATE item SET name = CAST(x'ff0041' AS TEXT), price = NULL WHERE id = 1; UPDATE "größe x" SET a = 3 WHERE a = 2;
   DELETE FROM item WHERE id < 0; INSERT INTO search VALUES ('some words'), ('other words')`,
  `INSERT INTO item VALUES (5, char(0), -0.0, NULL, 5), (6, '', 5, x'', 5.0); UPDATE "größe x" SET v = v || 'x'; DELETE FROM search WHERE rowid = 1`,
  `WITH RECURSIVE n(i) AS (SELECT 10 UNION ALL SELECT i + 1 FROM n WHERE i < 900) INSERT INTO item SELECT i, 'name' || i, i / 7.0, zeroblob(i), i FROM n;
   WITH RECURSIVE n(i) AS (SELECT 10 UNION ALL SELECT i + 1 FROM n WHERE i < 300) INSERT INTO "größe x" SELECT 'b' || (i % 7), i, i / 10 FROM n WHERE true ON CONFLICT DO NOTHING`,
];

function open(): DatabaseSync {
  const db = new DatabaseSync(':memory:', { enableForeignKeyConstraints: false, defensive: false });
  db.exec(SCHEMA);
  return db;
}

function capture(db: DatabaseSync, sql: string): Uint8Array {
  using session = db.createSession();
  db.exec(`BEGIN; ${sql}; COMMIT`);
  return session.changeset();
}

function of(changeset: Uint8Array, names: ColumnNames, fingerprinter = new Fingerprinter(KEY)): Fingerprint {
  const result = new Fingerprint();
  fingerprinter.delta(changeset, names, result);
  return result;
}

function history(): { db: DatabaseSync; changesets: Uint8Array[]; names: ColumnNames; initial: Fingerprint } {
  const db = open();
  const initial = fingerprintRows(db, new Fingerprinter(KEY));
  const changesets = HISTORY.map((sql) => capture(db, sql));
  return { db, changesets, names: readSchemaShape(db).columnNames, initial };
}

test('the reference hash is SipHash with 128 bits, by the official vectors for 2 and 4 rounds', () => {
  const hash = (message: number[]): string => siphash13(KEY, Uint8Array.from(message), 2, 4).toString(16);
  assert.equal(hash([]), '930255c71472f66de6a825ba047f81a3');
  assert.equal(hash([0]), '45fc229b1159763444af996bd8c187da');
});

test('the kernel does what a slow reference in BigInt does', () => {
  const { changesets, names } = history();
  const reference = new ReferenceFingerprint(KEY);
  const result = new Fingerprint();
  const fingerprinter = new Fingerprinter(KEY);
  for (const changeset of changesets) {
    fingerprinter.delta(changeset, names, result);
    reference.delta(parseChangeset(changeset), names);
    assert.deepEqual(result.buckets, reference.buckets);
  }
});

test('what followed the changes equals what is computed from the rows', () => {
  const { db, changesets, names, initial } = history();
  const followed = initial.clone();
  for (const changeset of changesets) followed.add(of(changeset, names));
  for (const batchRows of [1, 7, 5_000])
    assert.deepEqual(fingerprintRows(db, new Fingerprinter(KEY), { batchRows }), followed);
  assert.deepEqual(fingerprintRows(db, new Fingerprinter(KEY), { batchBytesMax: 1_000 }), followed);
});

test('a change of one cell, type included, changes the fingerprint; damage to the rows is found', () => {
  const { db } = history();
  const before = fingerprintRows(db, new Fingerprinter(KEY));
  db.exec('UPDATE item SET any = 5.0 WHERE id = 5');
  const after = fingerprintRows(db, new Fingerprinter(KEY));
  assert.equal(after.equals(before), false);
  assert.equal(after.differingBuckets(before).length, 1);
  db.exec('UPDATE item SET any = 5 WHERE id = 5');
  assert.equal(fingerprintRows(db, new Fingerprinter(KEY)).equals(before), true);
});

test('forward and inverse give nothing', () => {
  const { changesets, names } = history();
  const sum = new Fingerprint();
  const fingerprinter = new Fingerprinter(KEY);
  for (const changeset of changesets) fingerprinter.delta(changeset, names, sum);
  assert.equal(sum.isZero(), false);
  for (const changeset of changesets) fingerprinter.delta(invertChangeset(changeset), names, sum);
  assert.equal(sum.isZero(), true);
});

test('order and grouping do not matter', () => {
  const { changesets, names } = history();
  const one = of(concatChangesets(changesets), names);
  const other = of(concatChangesets(changesets.toReversed()), names);
  assert.deepEqual(one, other);
  assert.deepEqual(one.total(), other.total());
});

test('a column that was added and is NULL does not count, the order of columns neither', () => {
  const db = new DatabaseSync(':memory:');
  db.exec('CREATE TABLE t(id INTEGER PRIMARY KEY, a, b); INSERT INTO t VALUES (1, 2, 3), (2, NULL, 5)');
  const before = fingerprintRows(db, new Fingerprinter(KEY));
  db.exec('ALTER TABLE t ADD COLUMN c');
  assert.deepEqual(fingerprintRows(db, new Fingerprinter(KEY)), before);
  const permuted = new DatabaseSync(':memory:');
  permuted.exec(
    'CREATE TABLE t(b, id INTEGER PRIMARY KEY, c, a); INSERT INTO t(id, a, b) VALUES (2, NULL, 5), (1, 2, 3)',
  );
  assert.deepEqual(fingerprintRows(permuted, new Fingerprinter(KEY)), before);
  permuted.exec('ALTER TABLE t RENAME COLUMN a TO z');
  assert.equal(fingerprintRows(permuted, new Fingerprinter(KEY)).equals(before), false);
});

test('another key gives another fingerprint, another table name too', () => {
  const { changesets, names } = history();
  const base = of(changesets[0]!, names);
  assert.equal(of(changesets[0]!, names, new Fingerprinter(new Uint8Array(16))).equals(base), false);
  assert.throws(
    () => new Fingerprinter(new Uint8Array(15)),
    (error) => isNostosError(error, 'INVALID_ARGUMENT'),
  );
});

test('changesets larger than the window, and changes larger than that, need no more memory than they must', () => {
  const db = open();
  const names = readSchemaShape(db).columnNames;
  const bulk = capture(
    db,
    `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60000) INSERT INTO item SELECT i, 'name' || i, i / 7.0, NULL, i FROM n`,
  );
  const large = capture(
    db,
    `INSERT INTO item VALUES (70001, 'x', 1, randomblob(3000000), randomblob(5000000)), (70002, 'y', 0, NULL, NULL)`,
  );
  assert.ok(bulk.length > 2_000_000);
  const initial = fingerprintRows(open(), new Fingerprinter(KEY));
  const sum = of(concatChangesets([large, bulk]), names);
  sum.add(initial);
  assert.deepEqual(fingerprintRows(db, new Fingerprinter(KEY)), sum);
});

test('tables of up to two thousand columns', () => {
  const db = new DatabaseSync(':memory:');
  const columns = Array.from({ length: 1_999 }, (_, index) => `c${index}`);
  db.exec(
    `CREATE TABLE small(id INTEGER PRIMARY KEY, v); CREATE TABLE wide(id INTEGER PRIMARY KEY, ${columns.join()})`,
  );
  const sql = `INSERT INTO small VALUES (1, 2); INSERT INTO wide(id, c0, c1998) VALUES (1, 2, 3), (2, 3, 4); UPDATE wide SET c5 = 6`;
  const changeset = capture(db, sql);
  assert.deepEqual(fingerprintRows(db, new Fingerprinter(KEY)), of(changeset, readSchemaShape(db).columnNames));
});

test('bytes that are no changeset add nothing and say where they are wrong', () => {
  const { changesets, names } = history();
  const fingerprinter = new Fingerprinter(KEY);
  const into = new Fingerprint();
  const expected = of(changesets[1]!, names);
  let refused = 0;
  for (let cut = 1; cut < changesets[1]!.length; cut += 1) {
    const mutated = cut % 2 === 0 ? changesets[1]!.slice(0, cut) : changesets[1]!.with(cut, (cut * 37) & 0xff);
    const before = into.clone();
    try {
      fingerprinter.delta(mutated, (table) => (table === 'item' ? names('item') : names(table)), into);
    } catch (error) {
      assert.ok(isNostosError(error, 'CHANGESET_INVALID'), String(error));
      assert.equal(typeof error.details['offset'], 'number');
      assert.deepEqual(into, before);
      refused += 1;
    }
  }
  assert.ok(refused > 50, `only ${refused} were refused`);
  assert.throws(
    () => fingerprinter.delta(Uint8Array.of(18, 0, 5, 5), names, into),
    (error) => isNostosError(error, 'CHANGESET_INVALID'),
  );
  assert.throws(
    () => fingerprinter.delta(changesets[0]!, () => ['id'], into),
    (error) => isNostosError(error, 'CHANGESET_INVALID'),
  );
  assert.deepEqual(of(changesets[1]!, names, fingerprinter), expected, 'nothing is left over');
});

test('sums, differences, copies and bytes', () => {
  const { changesets, names } = history();
  const [a, b] = [of(changesets[0]!, names), of(changesets[3]!, names)];
  const sum = a.clone();
  sum.add(b);
  assert.equal(sum.equals(a), false);
  sum.subtract(b);
  assert.equal(sum.equals(a), true);
  assert.deepEqual(Fingerprint.parse(b.serialize()), b);
  assert.equal(b.total().length, 16);
  assert.throws(
    () => Fingerprint.parse(new Uint8Array(5)),
    (error) => isNostosError(error, 'INVALID_ARGUMENT'),
  );
});

test('a scan can be paced and ended, and leaves nothing behind', () => {
  const { db } = history();
  for (const _ of scanRows(db, new Fingerprinter(KEY), new Fingerprint(), { batchRows: 10 })) break;
  assert.equal(db.isTransaction, false);
  assert.deepEqual(db.prepare('SELECT * FROM temp.sqlite_schema').all(), []);
  const abort = new AbortController();
  const stop = (): unknown =>
    fingerprintRows(db, new Fingerprinter(KEY), {
      signal: abort.signal,
      onBatch: () => abort.abort(new Error('enough')),
    });
  assert.throws(stop, /enough/);
  assert.equal(db.isTransaction, false);
});

test('the fingerprint of known bytes is the one that earlier versions wrote into logs', () => {
  // INSERT INTO t(id, v) VALUES (1, 'x'), then UPDATE t SET v = NULL of row 2, which had 'y'.
  const integer = (value: number): number[] => [1, 0, 0, 0, 0, 0, 0, 0, value];
  const insert = [18, 0, ...integer(1), 3, 1, 0x78];
  const update = [23, 0, ...integer(2), 3, 1, 0x79, 0, 5];
  const changeset = Uint8Array.from([0x54, 2, 1, 0, 0x74, 0, ...insert, ...update]);
  const total = of(changeset, () => ['id', 'v']).total();
  assert.equal(Buffer.from(total).toString('hex'), 'de35b7b6933841507df0a2a42614d569');
});
