import assert from 'node:assert/strict';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { guardTrigger, isGuarded, unguardTrigger } from './trigger-guard.ts';

const SCHEMA = `
  CREATE TABLE t(id INTEGER PRIMARY KEY, a, "when", begin, "on");
  CREATE TABLE "begin when"(id INTEGER PRIMARY KEY, v);
  CREATE TABLE log(id INTEGER PRIMARY KEY, what);`;

const LOG = `INSERT INTO log(what) VALUES ('fired')`;

/** Each trigger with a statement that fires it once. */
const TRIGGERS: readonly (readonly [trigger: string, statement: string])[] = [
  [`CREATE TRIGGER x AFTER INSERT ON t BEGIN ${LOG}; END`, 'INSERT INTO t(id) VALUES (9)'],
  [`CREATE TRIGGER x BEFORE DELETE ON main.t FOR EACH ROW BEGIN ${LOG}; END`, 'DELETE FROM t WHERE id = 1'],
  [
    `CREATE TRIGGER "x ON when" AFTER UPDATE OF a, "when", begin ON t WHEN new.a > 1 BEGIN ${LOG}; END`,
    'UPDATE t SET a = 2 WHERE id = 1',
  ],
  [
    `create trigger if not exists begin after insert on t when new.begin begin ${LOG}; end`,
    'INSERT INTO t(begin) VALUES (1)',
  ],
  [
    `CREATE TRIGGER x AFTER INSERT ON t WHEN CASE new.a WHEN 'BEGIN SELECT' THEN 1 ELSE 0 END BEGIN ${LOG}; END`,
    `INSERT INTO t(a) VALUES ('BEGIN SELECT')`,
  ],
  [
    `CREATE TRIGGER x AFTER INSERT ON t WHEN new."when" IS NULL -- BEGIN; )\n BEGIN ${LOG}; END`,
    'INSERT INTO t(a) VALUES (1)',
  ],
  [`CREATE TRIGGER x AFTER INSERT ON t WHEN 0 OR 1 /* OR ( */ BEGIN ${LOG}; END`, 'INSERT INTO t(a) VALUES (1)'],
  [
    `CREATE TRIGGER x AFTER INSERT ON t/**/WHEN(new.a)BEGIN WITH c AS (SELECT 1) ${LOG}; END`.replace(
      'WITH c AS (SELECT 1) ',
      '',
    ),
    'INSERT INTO t(a) VALUES (1)',
  ],
  [
    `CREATE TRIGGER x AFTER INSERT ON "begin when" WHEN (SELECT count(*) FROM t WHERE begin IS NULL) BEGIN ${LOG}; END`,
    'INSERT INTO "begin when" VALUES (1, 2)',
  ],
  [
    `CREATE TRIGGER x AFTER INSERT ON [begin when] BEGIN SELECT CASE WHEN 1 THEN 2 END; ${LOG}; END`,
    'INSERT INTO "begin when" VALUES (1, 2)',
  ],
];

function open(trigger: string, live: 0n | 1n): DatabaseSync {
  const db = new DatabaseSync(':memory:', { enableForeignKeyConstraints: false, defensive: false });
  db.function('nostos_live', () => live);
  db.exec(`${SCHEMA} INSERT INTO t(id, a) VALUES (1, 1); ${trigger}`);
  return db;
}

function countLog(db: DatabaseSync): unknown {
  return db.prepare('SELECT count(*) AS n FROM log').get()!['n'];
}

/** Runs the statement on a writer, applies its changeset elsewhere; how often the trigger left its mark in each. */
function fired(trigger: string, statement: string): unknown[] {
  const [writer, applier] = [open(trigger, 1n), open(trigger, 0n)];
  using session = writer.createSession();
  writer.exec(statement);
  assert.equal(applier.applyChangeset(session.changeset(), { onConflict: () => 0 }), true);
  return [countLog(writer), countLog(applier)];
}

for (const [trigger, statement] of TRIGGERS) {
  test(`fires once over writer and applier: ${trigger.slice(0, 90)}`, () => {
    assert.deepEqual(fired(guardTrigger(trigger), statement), [1, 1]);
  });

  test(`comes back byte for byte: ${trigger.slice(0, 90)}`, () => {
    const guarded = guardTrigger(trigger);
    assert.notEqual(guarded, trigger);
    assert.equal(isGuarded(guarded), true);
    assert.equal(isGuarded(trigger), false);
    assert.equal(guardTrigger(guarded), guarded);
    assert.equal(unguardTrigger(guarded), trigger);
    assert.equal(unguardTrigger(trigger), trigger);
  });
}

test('without the guard the applier fires again', () => {
  const trigger = `CREATE TRIGGER x AFTER INSERT ON t BEGIN ${LOG}; END`;
  const [writer, applier] = [open(trigger, 1n), open(trigger, 0n)];
  using session = writer.createSession();
  writer.exec('INSERT INTO t(id) VALUES (9)');
  const applied = applier.applyChangeset(session.changeset());
  assert.ok(!applied || countLog(applier) !== 1);
});

test('the condition keeps its meaning, OR included', () => {
  const trigger = guardTrigger(`CREATE TRIGGER x AFTER INSERT ON t WHEN 0 OR new.a BEGIN ${LOG}; END`);
  assert.deepEqual(fired(trigger, 'INSERT INTO t(a) VALUES (0)'), [0, 0]);
  assert.deepEqual(fired(trigger, 'INSERT INTO t(a) VALUES (1)'), [1, 1]);
});

test('what SQLite stores, and keeps over ALTER TABLE, can still be unguarded', () => {
  const trigger = `CREATE TRIGGER x AFTER INSERT ON t WHEN new.a /* c */ BEGIN ${LOG}; END`;
  const db = open(guardTrigger(trigger), 1n);
  db.exec('ALTER TABLE t RENAME COLUMN a TO b; ALTER TABLE t RENAME TO t2');
  const stored = db.prepare(`SELECT sql FROM sqlite_schema WHERE name = 'x'`).get()!['sql'] as string;
  assert.equal(isGuarded(stored), true);
  assert.equal(unguardTrigger(stored), trigger.replace('ON t', 'ON "t2"').replace('new.a', 'new.b'));
});

test('an outside connection cannot fire a guarded trigger', () => {
  const db = new DatabaseSync(':memory:');
  db.exec(SCHEMA + guardTrigger(`CREATE TRIGGER x AFTER INSERT ON t BEGIN ${LOG}; END`));
  assert.throws(() => db.exec('INSERT INTO t(id) VALUES (1)'), /no such function/);
});

test('INSTEAD OF triggers stay as they are', () => {
  const trigger = `CREATE TRIGGER x INSTEAD OF INSERT ON v BEGIN ${LOG}; END`;
  assert.equal(guardTrigger(trigger), trigger);
});

test('a text that only looks guarded is refused, other text is too', () => {
  assert.throws(
    () => guardTrigger(`CREATE TRIGGER x AFTER INSERT ON t /*nostos:guard*/ BEGIN ${LOG}; END`),
    /may not contain/,
  );
  assert.throws(() => guardTrigger('CREATE TABLE t(id)'), /not a CREATE TRIGGER/);
  const inString = `CREATE TRIGGER x AFTER INSERT ON t BEGIN SELECT '/*nostos:guard*/WHEN nostos_live()/*nostos:end*/ '; END`;
  assert.equal(unguardTrigger(guardTrigger(inString)), inString);
});
