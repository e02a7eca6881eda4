import assert from 'node:assert/strict';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { isNostosError } from '../base/errors.ts';
import {
  changesetRows,
  concatChangesets,
  countChanges,
  encodeChangeset,
  invertAll,
  invertChangeset,
  parseChangeset,
  stripTables,
  touchedTables,
} from './changeset.ts';

const SCHEMA = `
  CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, price REAL, data BLOB, any);
  CREATE TABLE "größe x"(b TEXT NOT NULL, v, a INTEGER NOT NULL, PRIMARY KEY(a, b)) WITHOUT ROWID;`;

function open(): DatabaseSync {
  const db = new DatabaseSync(':memory:', { enableForeignKeyConstraints: false, defensive: false });
  db.exec(SCHEMA);
  return db;
}

function capture(db: DatabaseSync, sql: string): Uint8Array {
  using session = db.createSession();
  db.exec(sql);
  return session.changeset();
}

function dump(db: DatabaseSync): unknown {
  return ['item', '"größe x"'].map((table) =>
    db.prepare(`SELECT * FROM ${table} ORDER BY 1, 2`, { readBigInts: true }).all(),
  );
}

const HISTORY = [
  `INSERT INTO item VALUES (1, 'a', 1.5, x'0001', NULL), (-9223372036854775808, 'b', 9e999, zeroblob(300), 9007199254740993);
   INSERT INTO "größe x" VALUES ('k', 1, 1), ('k', 'text', 2)`,
  `UPDATE item SET name = CAST(x'ff0041' AS TEXT), price = NULL WHERE id = 1; UPDATE "größe x" SET a = 3 WHERE a = 2;
   DELETE FROM item WHERE id < 0`,
  `INSERT INTO item VALUES (5, char(0), -0.0, NULL, 5); UPDATE "größe x" SET v = v || 'x'`,
];

function history(): { db: DatabaseSync; changesets: Uint8Array[]; states: unknown[] } {
  const db = open();
  const states = [dump(db)];
  const changesets = HISTORY.map((sql) => {
    const bytes = capture(db, sql);
    states.push(dump(db));
    return bytes;
  });
  return { db, changesets, states };
}

test('what was parsed is written back byte for byte', () => {
  for (const bytes of history().changesets) assert.deepEqual(encodeChangeset(parseChangeset(bytes)), bytes);
});

test('tables, keys, operations and cells are what SQLite says', () => {
  const [first, second] = history().changesets.map(parseChangeset);
  const group = first!.find((candidate) => candidate.table === 'größe x')!;
  assert.equal(group.columnCount, 3);
  assert.deepEqual([...group.keyFlags], [2, 0, 1]);
  assert.deepEqual(
    group.changes.map((change) => change.op),
    ['insert', 'insert'],
  );
  const update = second!
    .find((candidate) => candidate.table === 'item')!
    .changes.find((change) => change.op === 'update')!;
  assert.deepEqual(
    update.new.map((cell) => cell !== undefined),
    [false, true, true, false, false],
  );
  assert.deepEqual([...update.new[1]!], [3, 3, 0xff, 0x00, 0x41]);
  assert.equal(update.indirect, false);
});

test('changes made by a trigger are marked indirect', () => {
  const db = open();
  db.exec('CREATE TRIGGER tr AFTER INSERT ON item BEGIN INSERT INTO "größe x" VALUES (\'t\', 0, new.id); END');
  const groups = parseChangeset(capture(db, 'INSERT INTO item(id) VALUES (1)'));
  assert.deepEqual(
    groups.map((group) => [group.table, group.changes[0]!.indirect]),
    [
      ['item', false],
      ['größe x', true],
    ],
  );
});

test('one buffer of all changesets gives the last state, the inverses give back the first', () => {
  const { changesets, states } = history();
  const copy = open();
  assert.equal(copy.applyChangeset(concatChangesets(changesets)), true);
  assert.deepEqual(dump(copy), states.at(-1));
  for (let index = changesets.length - 1; index >= 0; index -= 1) {
    assert.equal(copy.applyChangeset(invertChangeset(changesets[index]!)), true);
    assert.deepEqual(dump(copy), states[index]);
  }
  copy.applyChangeset(concatChangesets(changesets));
  assert.equal(copy.applyChangeset(invertAll(changesets)), true);
  assert.deepEqual(dump(copy), states[0]);
});

test('the inverse of the inverse is the changeset', () => {
  for (const bytes of history().changesets) assert.deepEqual(invertChangeset(invertChangeset(bytes)), bytes);
});

test('tables can be taken out; without one to take out the bytes are not copied', () => {
  const db = open();
  const bytes = capture(db, `${HISTORY[0]}; CREATE INDEX i ON item(name); ANALYZE`);
  assert.ok(touchedTables(bytes).includes('sqlite_stat1'), 'SQLite captures its statistics: the rule is needed');
  const stripped = stripTables(bytes, (table) => table.startsWith('sqlite_'));
  assert.deepEqual(
    touchedTables(stripped),
    touchedTables(bytes).filter((table) => table !== 'sqlite_stat1'),
  );
  assert.equal(
    stripTables(stripped, (table) => table === 'sqlite_stat1'),
    stripped,
  );
  for (const gone of touchedTables(bytes)) {
    const groups = parseChangeset(bytes).filter((group) => group.table !== gone);
    assert.deepEqual(
      stripTables(bytes, (table) => table === gone),
      encodeChangeset(groups),
    );
  }
  assert.equal(stripTables(bytes, () => true).length, 0);
  assert.ok(countChanges(bytes) > countChanges(stripped));
});

const COLUMNS: Record<string, string[]> = { item: ['id', 'name', 'price', 'data', 'any'], 'größe x': ['b', 'v', 'a'] };

test('rows for a change feed', () => {
  const db = open();
  const columns = (table: string): string[] => COLUMNS[table]!;
  const insert = capture(db, `INSERT INTO item VALUES (1, 'é', 0.5, x'01', NULL)`);
  assert.deepEqual(
    [...changesetRows(insert, columns)],
    [
      {
        table: 'item',
        op: 'insert',
        key: { id: 1 },
        new: { id: 1, name: 'é', price: 0.5, data: Uint8Array.of(1), any: null },
      },
    ],
  );
  const update = capture(db, `UPDATE item SET any = 7`);
  assert.deepEqual(
    [...changesetRows(update, columns, { int64: 'bigint' })],
    [{ table: 'item', op: 'update', key: { id: 1n }, old: { any: null }, new: { any: 7n } }],
  );
  const remove = capture(db, `DELETE FROM item`);
  assert.deepEqual(
    [...changesetRows(remove, columns)].map((row) => [row.op, row.key, row.old?.['any'], row.new]),
    [['delete', { id: 1 }, 7, undefined]],
  );
});

test("a row of a feed is the user's own: it does not change with the page of the log that it came from", () => {
  const page = Buffer.from(capture(open(), `INSERT INTO item VALUES (1, 'é', 0.5, x'0102', NULL)`));
  const [row] = changesetRows(page, (table) => COLUMNS[table]!);
  page.fill(0);
  assert.deepEqual(row?.new, { id: 1, name: 'é', price: 0.5, data: Uint8Array.of(1, 2), any: null });
  assert.equal((row.new['data'] as Uint8Array).buffer.byteLength, 2, 'it keeps no page from being collected');
});

test('an integer that a number cannot hold is refused, not rounded', () => {
  const bytes = capture(open(), 'INSERT INTO item(id) VALUES (9007199254740993)');
  const columns = (table: string): string[] => COLUMNS[table]!;
  assert.throws(
    () => [...changesetRows(bytes, columns)],
    (error) => isNostosError(error, 'INTEGER_OUT_OF_RANGE'),
  );
  assert.equal([...changesetRows(bytes, columns, { int64: 'bigint' })][0]!.key['id'], 9007199254740993n);
});

test('a column named __proto__ is a column', () => {
  const bytes = capture(open(), `INSERT INTO item VALUES (1, 'x', 0, NULL, NULL)`);
  const [row] = changesetRows(bytes, () => ['id', '__proto__', 'c', 'd', 'e']);
  assert.equal(Object.getOwnPropertyDescriptor(row!.new, '__proto__')?.value, 'x');
});

const MANY_NAMES = Array.from({ length: 70_000 }, (_, index) => `c${index}`);

/** Everything that reads a changeset; each must answer or throw CHANGESET_INVALID with an offset. */
const READERS: readonly ((bytes: Uint8Array) => unknown)[] = [
  (bytes) => encodeChangeset(parseChangeset(bytes)),
  invertChangeset,
  touchedTables,
  countChanges,
  (bytes) => stripTables(bytes, (table) => table === 'item'),
  (bytes) => [...changesetRows(bytes, () => MANY_NAMES, { int64: 'bigint' })],
];

function survives(bytes: Uint8Array): boolean {
  let valid = true;
  for (const read of READERS) {
    try {
      read(bytes);
    } catch (error) {
      if (!isNostosError(error, 'CHANGESET_INVALID')) throw error;
      assert.equal(typeof error.details['offset'], 'number');
      valid = false;
    }
  }
  return valid;
}

test('no bytes get anything but CHANGESET_INVALID out of a reader', () => {
  let state = 12345;
  const random = (below: number): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  const seeds = history().changesets;
  let refused = 0;
  for (let round = 0; round < 6_000; round += 1) {
    const seed = seeds[round % seeds.length]!;
    let bytes: Uint8Array;
    if (round % 3 === 0)
      bytes = Uint8Array.from({ length: random(60) }, () => [0x54, 0, 1, 3, 5, 18, 9, 23, random(256)][random(9)]!);
    else if (round % 3 === 1) bytes = seed.slice(0, random(seed.length));
    else {
      bytes = seed.slice();
      for (let flips = 1 + random(3); flips > 0; flips -= 1) bytes[random(bytes.length)] = random(256);
    }
    if (!survives(bytes)) refused += 1;
  }
  assert.ok(refused > 2_000, `only ${refused} were refused`);
});

test('lengths near 2^31 and beyond are refused by their offset', () => {
  const header = [0x54, 1, 1, 0x74, 0, 18, 0];
  for (const length of [
    [0x87, 0xff, 0xff, 0xff, 0x7f],
    [0x88, 0x80, 0x80, 0x80, 0x00],
    [0x8f, 0xff, 0xff, 0xff, 0x7f],
    Array<number>(9).fill(0xff),
    [0xff],
  ])
    for (const type of [3, 4]) assert.equal(survives(Uint8Array.from([...header, type, ...length, 1, 2, 3])), false);
  assert.equal(survives(Uint8Array.from([0x54, 0x87, 0xff, 0xff, 0xff, 0x7f, 1, 0])), false);
  assert.equal(survives(new Uint8Array(0)), true);
});

test('a patchset is refused by name', () => {
  const db = open();
  using session = db.createSession();
  db.exec('INSERT INTO item(id) VALUES (1)');
  assert.throws(() => countChanges(session.patchset()), /patchset/);
});
