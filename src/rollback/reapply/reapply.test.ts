import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RecordKind } from '../../log/record.ts';
import { encodeSchemaPayload, encodeTenantCreate } from '../../store/payload.ts';
import { toTenantUuid } from '../../base/brands.ts';
import { FaultyDisk } from '../../testing/faulty-disk.ts';
import type { TenantSchema } from '../file/format.ts';
import { DIR, batched, headerOf, makeTail, writerDeps, type MadeRecord } from '../file/tail.fixture.ts';
import { writeRollbackFile } from '../file/writer.ts';
import { exportFile, showFile, type Shown } from '../show.ts';
import { reapplyFile, type ReapplyOptions } from './reapply.ts';
import { FixtureTenant, targetOf } from './tenant.fixture.ts';
import { POLICIES, type ReapplyReport } from './types.ts';

const SCHEMA =
  "create table notes (id integer primary key, body text, n integer); insert into notes values (1, 'one', 1), (2, 'two', 2)";

async function fileOf(
  records: readonly MadeRecord[],
  schema: TenantSchema,
): Promise<{ disk: FaultyDisk; path: string }> {
  const disk = new FaultyDisk();
  disk.makeDirectory(DIR);
  const deps = writerDeps(disk, { schemaOf: (tenant) => (tenant === 1 ? schema : undefined) });
  const { path } = await writeRollbackFile(deps, headerOf(records.length), () => batched(makeTail(records)));
  return { disk, path };
}

/** The old primary's writes, one record each, and a target that went on from the same start. */
async function diverged(
  transactions: readonly (string | readonly [sql: string, ...ids: string[]])[],
  { schema = SCHEMA, since = '' } = {},
): Promise<{
  target: FixtureTenant;
  old: FixtureTenant;
  run: (options?: ReapplyOptions) => Promise<ReapplyReport>;
  show: () => Promise<Shown[]>;
  disk: FaultyDisk;
  path: string;
}> {
  const old = new FixtureTenant(schema);
  const target = new FixtureTenant(schema).exec(since);
  const records = transactions.map((one) => {
    const [sql, ...ids] = typeof one === 'string' ? [one] : one;
    return { payload: old.record(sql, ids) };
  });
  const { disk, path } = await fileOf(records, old.schema);
  return {
    old,
    target,
    disk,
    path,
    run: (options) => reapplyFile({ disk, target: targetOf({ acme: target }) }, path, options),
    show: () => Array.fromAsync(showFile(disk, path)),
  };
}

const NOTES = 'select id, body, n from notes order by id';

test('a tail without conflicts gives the rows of the old primary; a second run writes nothing', async () => {
  const { old, target, run } = await diverged([
    "insert into notes values (3, 'three', 3), (4, 'four', 4)",
    "update notes set body = 'TWO' where id = 2; delete from notes where id = 1",
    'update notes set n = 30 where id = 3; update notes set n = 40 where id = 4',
    'delete from notes where id = 4',
  ]);
  const report = await run();
  assert.deepEqual(target.rows(NOTES), old.rows(NOTES));
  assert.deepEqual(report.transactions, { applied: 4, present: 0, repeated: 0, leftOut: 0 });
  assert.deepEqual(report.rows, { applied: 7, present: 0, conflicts: 0, indirect: 0, derived: 0, forgotten: 0 });
  assert.equal(target.writes, 4);
  target.exec("update notes set body = 'later' where id = 2");
  for (const policy of POLICIES) {
    const again = await run({ policy });
    assert.deepEqual(again.transactions, { applied: 0, present: 0, repeated: 4, leftOut: 0 });
  }
  assert.equal(target.writes, 4);
  assert.deepEqual(target.rows('select body from notes where id = 2'), [['later']]);
});

test('when the ids of the first run have expired, the rows say that they are there', async () => {
  const { target, run } = await diverged(["insert into notes values (3, 'x', 0)", 'delete from notes where id = 1']);
  await run();
  const before = target.rows(NOTES);
  target.exec('delete from nostos_results');
  const { transactions, conflicts } = await run({ policy: 'ours' });
  assert.deepEqual(transactions, { applied: 0, present: 2, repeated: 0, leftOut: 0 });
  assert.deepEqual([target.rows(NOTES), conflicts], [before, []]);
});

/** One transaction that changes the row of the case, and row 2, which is never in conflict. */
const CASES: readonly {
  readonly name: string;
  readonly tail: string;
  readonly since: string;
  readonly conflict?: string;
  /** Row 1 or 5 afterwards. */
  readonly skip: unknown[];
  readonly theirs: unknown[];
  readonly ours: unknown[];
}[] = [
  {
    name: 'insert, exists',
    tail: "insert into notes values (5, 'tail', 5)",
    since: "insert into notes values (5, 'since', 6)",
    conflict: 'exists',
    skip: [5, 'since', 6],
    theirs: [5, 'since', 6],
    ours: [5, 'tail', 5],
  },
  {
    name: 'insert, equal',
    tail: "insert into notes values (5, 'tail', 5)",
    since: "insert into notes values (5, 'tail', 5)",
    skip: [5, 'tail', 5],
    theirs: [5, 'tail', 5],
    ours: [5, 'tail', 5],
  },
  {
    name: 'update, changed',
    tail: "update notes set body = 'tail' where id = 1",
    since: "update notes set body = 'since' where id = 1",
    conflict: 'changed',
    skip: [1, 'since', 1],
    theirs: [1, 'since', 1],
    ours: [1, 'tail', 1],
  },
  {
    name: 'update, another column changed',
    tail: "update notes set body = 'tail' where id = 1",
    since: 'update notes set n = 9 where id = 1',
    skip: [1, 'tail', 9],
    theirs: [1, 'tail', 9],
    ours: [1, 'tail', 9],
  },
  {
    name: 'update, equal',
    tail: "update notes set body = 'tail' where id = 1",
    since: "update notes set body = 'tail' where id = 1",
    skip: [1, 'tail', 1],
    theirs: [1, 'tail', 1],
    ours: [1, 'tail', 1],
  },
  {
    name: 'update, missing',
    tail: "update notes set body = 'tail' where id = 1",
    since: 'delete from notes where id = 1',
    conflict: 'missing',
    skip: [],
    theirs: [],
    ours: [],
  },
  {
    name: 'delete, changed',
    tail: 'delete from notes where id = 1',
    since: 'update notes set n = 9 where id = 1',
    conflict: 'changed',
    skip: [1, 'one', 9],
    theirs: [1, 'one', 9],
    ours: [],
  },
  {
    name: 'delete, missing',
    tail: 'delete from notes where id = 1',
    since: 'delete from notes where id = 1',
    skip: [],
    theirs: [],
    ours: [],
  },
];
for (const { name, tail, since, conflict, ...expected } of CASES)
  for (const policy of POLICIES)
    test(`${name}, ${policy}: a dry run says what the run then does`, async () => {
      const { target, run } = await diverged([`${tail}; update notes set n = 20 where id = 2`], { since });
      const before = target.rows(NOTES);
      const dry = await run({ policy, dryRun: true });
      assert.deepEqual([target.rows(NOTES), target.writes], [before, 0]);
      const report = await run({ policy });
      assert.deepEqual(dry, { ...report, dryRun: true });
      const rows = target.rows(NOTES) as unknown[][];
      assert.deepEqual(
        rows.find(([id]) => (id === 1 || id === 5 ? id === (tail.includes('(5') ? 5 : 1) : false)) ?? [],
        expected[policy],
      );
      const skipped = policy === 'skip' && conflict !== undefined;
      assert.deepEqual(
        rows.find(([id]) => id === 2),
        [2, 'two', skipped ? 2 : 20],
      );
      assert.deepEqual(
        report.conflicts.map(({ kind, resolution, table, lsn }) => [kind, resolution, table, lsn]),
        conflict === undefined
          ? []
          : [
              [
                conflict,
                skipped ? 'skipped' : policy === 'ours' && conflict !== 'missing' ? 'overwritten' : 'kept',
                'notes',
                101,
              ],
            ],
      );
      assert.deepEqual(
        report.leftOut.map(({ kind }) => kind),
        skipped ? ['conflict'] : [],
      );
    });

test('a conflict names key, old, new and present values', async () => {
  const { run } = await diverged(["update notes set body = 'tail' where id = 1"], {
    since: "update notes set body = 'since' where id = 1",
  });
  const { conflicts } = await run({ dryRun: true });
  assert.deepEqual(conflicts, [
    {
      lsn: 101,
      tenant: 'acme',
      table: 'notes',
      op: 'update',
      kind: 'changed',
      key: { id: 1n },
      old: { body: 'one' },
      new: { body: 'tail' },
      present: { id: 1n, body: 'since', n: 1n },
      resolution: 'skipped',
    },
  ]);
});

test('what was skipped can be run again with another policy, and what theirs left, with ours', async () => {
  const { target, run } = await diverged(
    ["update notes set body = 'tail' where id = 1; update notes set n = 20 where id = 2"],
    {
      since: "update notes set body = 'since' where id = 1",
    },
  );
  assert.equal((await run()).transactions.leftOut, 1);
  assert.equal((await run({ policy: 'theirs' })).rows.applied, 1);
  assert.deepEqual(target.rows(NOTES), [
    [1, 'since', 1],
    [2, 'two', 20],
  ]);
  assert.equal((await run({ policy: 'theirs' })).transactions.repeated, 1);
  assert.equal((await run({ policy: 'ours' })).rows.applied, 1);
  assert.deepEqual(target.rows(NOTES), [
    [1, 'tail', 1],
    [2, 'two', 20],
  ]);
});

test('a write that its client has tried again is left out, and the ids of the others answer from then on', async () => {
  const { target, run } = await diverged([
    ["insert into notes values (10, 'order a', 1)", 'a'],
    ["insert into notes values (11, 'order b', 1)", 'b'],
    ["insert into notes values (12, 'order c', 1); insert into notes values (13, 'order d', 1)", 'c', 'd'],
  ]);
  // The client of a and c has tried again, and got other keys.
  target.record("insert into notes values (20, 'order a', 1)", ['a']);
  target.record("insert into notes values (21, 'order c', 1)", ['c']);
  const dry = await run({ dryRun: true, policy: 'ours' });
  const report = await run({ policy: 'ours' });
  assert.deepEqual(dry, { ...report, dryRun: true });
  assert.deepEqual(
    report.leftOut.map(({ lsn, kind, missingRows }) => [lsn, kind, missingRows]),
    [
      [101, 'retried', 1],
      [103, 'retried', 2],
    ],
  );
  assert.deepEqual(target.rows('select body from notes where id > 2 order by id'), [
    ['order b'],
    ['order a'],
    ['order c'],
  ]);
  assert.deepEqual(target.rows("select id from nostos_results where id in ('a', 'b', 'c', 'd') order by id"), [
    ['a'],
    ['b'],
    ['c'],
  ]);
  const forced = await run({ policy: 'ours', retried: 'apply' });
  assert.deepEqual(forced.transactions, { applied: 2, present: 0, repeated: 1, leftOut: 0 });
  assert.deepEqual(target.rows('select id from notes where id > 2 order by id').flat(), [10, 11, 12, 13, 20, 21]);
});

test('rows come in any order: children before parents, both gone, and a refusal leaves its transaction out', async () => {
  const schema = `create table a_child (id integer primary key, parent integer not null references parent);
    create table parent (id integer primary key, name text unique)`;
  const { old, target, run } = await diverged(
    [
      "insert into parent values (1, 'p'), (2, 'q'); insert into a_child values (1, 1), (2, 2)",
      'delete from a_child where id = 1; delete from parent where id = 1',
      "insert into parent values (3, 'taken')",
      "insert into parent values (4, 's')",
    ],
    { schema, since: "insert into parent values (9, 'taken')" },
  );
  const { leftOut, transactions } = await run({ policy: 'ours' });
  assert.deepEqual(
    leftOut.map(({ lsn, kind }) => [lsn, kind]),
    [[103, 'refused']],
  );
  assert.match(leftOut[0]!.why, /UNIQUE/);
  assert.equal(transactions.applied, 3);
  assert.deepEqual(target.rows('select id from parent where id < 9'), [[2], [4]]);
  assert.deepEqual(target.rows('select * from a_child'), old.rows('select * from a_child'));
});

test('triggers and foreign keys do their part again, once; shadow tables are left to them', async () => {
  const schema = `create table notes (id integer primary key, body text);
    create table audit (id integer primary key autoincrement, note integer, body text);
    create virtual table search using fts5(body, content='notes', content_rowid='id');
    create trigger note_added after insert on notes begin
      insert into audit (note, body) values (new.id, new.body);
      insert into search (rowid, body) values (new.id, new.body);
    end`;
  const { target, run } = await diverged(
    ["insert into notes values (1, 'hello world')", "insert into notes values (2, 'goodbye')"],
    {
      schema,
      since: "insert into notes values (7, 'since')",
    },
  );
  const { rows, conflicts } = await run();
  assert.deepEqual(conflicts, []);
  assert.equal(rows.applied, 2);
  assert.equal(rows.indirect, 2);
  assert.ok(rows.derived > 0);
  assert.deepEqual(target.rows('select note, body from audit'), [
    [7, 'since'],
    [1, 'hello world'],
    [2, 'goodbye'],
  ]);
  assert.deepEqual(target.rows("select rowid from search where search match 'hello'"), [[1]]);
});

test('values come back as they were, whatever their type', async () => {
  const schema = 'create table v (id integer primary key, a, b blob, "select" text, "a b""c" real) ';
  const { old, target, run } = await diverged(
    [
      `insert into v values (1, 5.0, x'00ff', 'quo''te', 1e300), (2, 9223372036854775807, null, 'nul' || char(0) || 'x', -0.5),
        (3, cast(x'ff41' as text), zeroblob(3), '', 9e999), (-9223372036854775808, 5, '5', 'ünï', 3.0)`,
      `update v set a = cast(x'fe' as text), "a b""c" = 7.0 where id = 1; delete from v where id = 2`,
      'delete from v where id = 3',
    ],
    { schema },
  );
  const { transactions } = await run();
  assert.equal(transactions.applied, 3);
  const exact =
    'select id || \'\', typeof(a), hex(a), typeof(b), hex(b), typeof("select"), hex("select"), typeof("a b""c"), "a b""c" from v';
  assert.deepEqual(target.rows(exact), old.rows(exact));
});

test('tables that changed or went, another tenant of the name, and what is no changeset, are named', async () => {
  const old = new FixtureTenant(
    `${SCHEMA}; create table gone (id integer primary key, x); create table narrow (id integer primary key, x, y)`,
  );
  const target = new FixtureTenant(
    `${SCHEMA}; alter table notes add column extra default 'e'; create table narrow (id integer primary key, x)`,
  );
  const schemaPayload = encodeSchemaPayload({
    schemaVersion: 2,
    steps: [{ sql: 'create table t (id integer primary key)' }],
    userVersion: 0,
    sequences: [],
    fingerprint: new Uint8Array(16),
  });
  const records: MadeRecord[] = [
    { payload: old.record("insert into notes values (3, 'wider now', 3)") },
    { payload: old.record('insert into gone values (1, 1)') },
    { payload: old.record('insert into narrow values (1, 1, 1)') },
    { payload: schemaPayload, kind: RecordKind.schema },
    {
      payload: encodeTenantCreate({ name: 'new', uuid: toTenantUuid('05'.repeat(16)) }),
      kind: RecordKind.tenantCreate,
      tenant: 2,
    },
    { payload: old.record("insert into notes values (4, 'x', 3)"), tenant: 2 },
    { payload: Uint8Array.of(1, 2, 3), tenant: 1 },
  ];
  const { disk, path } = await fileOf(records, old.schema);
  const report = await reapplyFile({ disk, target: targetOf({ acme: target }) }, path);
  assert.deepEqual(target.rows('select * from notes where id > 2'), [[3, 'wider now', 3, 'e']]);
  assert.deepEqual(
    report.conflicts.map(({ kind, table }) => [kind, table]),
    [
      ['schema', 'gone'],
      ['schema', 'narrow'],
    ],
  );
  assert.deepEqual(
    report.leftOut.map(({ lsn, kind }) => [lsn, kind]),
    [
      [102, 'conflict'],
      [103, 'conflict'],
      [104, 'record'],
      [105, 'record'],
      [106, 'unreadable'],
      [107, 'unreadable'],
    ],
  );
  const shown = await Array.fromAsync(showFile(disk, path));
  assert.deepEqual(
    shown.map(({ kind }) => kind),
    ['row', 'row', 'row', 'schema', 'tenant-create', 'row', 'other'],
  );
  assert.partialDeepStrictEqual(shown[5], { tenant: '#2', key: { column1: 4 }, new: { column2: 'x' } });

  const other = Object.assign(new FixtureTenant(SCHEMA), { uuid: 'ee'.repeat(16) });
  for (const tenants of [{}, { acme: other }] as Record<string, FixtureTenant>[]) {
    const { leftOut } = await reapplyFile({ disk, target: targetOf(tenants) }, path);
    assert.deepEqual(
      leftOut.slice(0, 3).map(({ kind }) => kind),
      ['tenant', 'tenant', 'tenant'],
    );
  }
});

test('a damaged file is not applied by half', async () => {
  const { target, run, disk, path } = await diverged([
    "insert into notes values (3, 'x', 0)",
    "insert into notes values (4, 'x', 0)",
  ]);
  disk.flip(path, disk.size(path) - 150, 1);
  await assert.rejects(run(), { code: 'ROLLBACK_FILE_DAMAGED' });
  assert.equal(target.writes, 0);
});

test('a dry run follows the tail over its own writes, within a bound; long reports are cut and counted', async () => {
  const { target, run } = await diverged(
    [
      "insert into notes values (3, 'x', 0)",
      'update notes set n = n + 1 where id = 3',
      'delete from notes where id = 3',
      "insert into notes values (3, 'y', 1)",
      'update notes set n = 9',
    ],
    { since: 'update notes set n = 100' },
  );
  const dry = await run({ dryRun: true });
  assert.deepEqual(dry.transactions, { applied: 4, present: 0, repeated: 0, leftOut: 1 });
  assert.equal(dry.conflicts.length, 2);
  assert.deepEqual(dry, { ...(await run()), dryRun: true });
  assert.deepEqual(target.rows('select * from notes where id = 3'), [[3, 'y', 1]]);
  const fresh = await diverged(["insert into notes values (3, 'x', 0)", 'update notes set n = 9'], {
    since: 'update notes set n = 100',
  });
  await assert.rejects(fresh.run({ dryRun: true, limits: { dryRunRowsMax: 0 } }), { code: 'ROLLBACK_TOO_LARGE' });
  const cut = await fresh.run({ dryRun: true, limits: { conflictsListedMax: 1 } });
  assert.deepEqual([cut.conflicts.length, cut.rows.conflicts, cut.unlisted], [1, 2, 1]);
});

test('show: table, key, old and new; export as SQL does what the tail did', async () => {
  const { old, show, disk, path } = await diverged([
    ["update notes set body = 'it''s' || char(10) || 'new' where id = 1", 'client-1'],
    "insert into notes values (3, cast(x'ff' as text), null); delete from notes where id = 2",
  ]);
  const shown = await show();
  assert.deepEqual(
    shown.map(({ kind, lsn, tenant, acknowledged }) => [kind, lsn, tenant, acknowledged]),
    [
      ['row', 101, 'acme', true],
      ['answer', 101, 'acme', true],
      ['row', 102, 'acme', false],
      ['row', 102, 'acme', false],
    ],
  );
  assert.partialDeepStrictEqual(shown[0], {
    op: 'update',
    table: 'notes',
    key: { id: 1 },
    old: { body: 'one' },
    new: { body: "it's\nnew" },
  });
  const stringify = (item: Shown): string =>
    JSON.stringify(item, (_, value: unknown) => (typeof value === 'bigint' ? Number(value) : value));
  const lines = await Array.fromAsync(exportFile(disk, path, { format: 'jsonl', stringify }));
  assert.deepEqual(
    lines.map((line) => (JSON.parse(line) as Shown).kind),
    ['row', 'answer', 'row', 'row'],
  );
  const target = new FixtureTenant(SCHEMA);
  const sql = await Array.fromAsync(exportFile(disk, path, { format: 'sql', stringify }));
  assert.ok(sql.every((line) => !line.includes('\n')));
  for (const line of sql) target.exec(line);
  const exact = 'select id, hex(body), typeof(body), n from notes';
  assert.deepEqual(target.rows(exact), old.rows(exact));
  assert.equal(disk.openFiles, 0);
});
