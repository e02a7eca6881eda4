/** What a user of one node may rely on. */
import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { after, test } from 'node:test';
import type { Position } from '../base/brands.ts';
import { isNostosError, type ErrorCode } from '../base/errors.ts';
import { sql, type Row } from '../store/values.ts';
import { openNode } from './open-node.ts';
import type { Change, Migration, Node, NodeOptions, Reader, Tenant } from './types.ts';

const NOTES: Migration[] = ['create table notes (id integer primary key autoincrement, body text)'];

const root = mkdtempSync(join(tmpdir(), 'nostos-node-'));
let directories = 0;
const newDir = (): string => join(root, `node ${(directories += 1)}`);
const opened = new Set<Node>();
async function open(dir: string, options: Partial<NodeOptions> = {}): Promise<Node> {
  const node = await openNode({ dir, scrubIntervalMs: false, ...options });
  opened.add(node);
  return node;
}

const node = await open(newDir());
let tenants = 0;
async function tenantWith(migrations: readonly Migration[], on: Node = node): Promise<Tenant> {
  const tenant = await on.tenants.create(`tenant ${(tenants += 1)}`);
  await tenant.migrate(migrations);
  return tenant;
}
after(async () => {
  for (const one of opened) await one.close(); // those of a test that failed, too
  rmSync(root, { recursive: true, force: true });
});

const plain = (rows: readonly Row[]): Row[] => rows.map((row) => ({ ...row }));
const bodies = (tenant: Tenant): Promise<unknown[]> =>
  tenant.read((reader: Reader) => reader.all('select body from notes order by id').map(({ body }) => body));
const add = (tenant: Tenant, body: string): Promise<number | bigint> =>
  tenant.write((tx) => tx.run(sql`insert into notes (body) values (${body})`).lastInsertRowid);

async function failsWith(running: Promise<unknown>, code: ErrorCode): Promise<void> {
  await assert.rejects(running, (error) => isNostosError(error, code) || assert.fail(`${code}, not ${String(error)}`));
}

async function collect(changes: AsyncIterable<Change>): Promise<Change[]> {
  const all: Change[] = [];
  for await (const change of changes) all.push(change);
  return all;
}

test('a write is seen by every read and query that begins after it resolved', async () => {
  const tenant = await tenantWith(NOTES);
  for (let n = 1; n <= 20; n += 1) {
    await add(tenant, `note ${n}`);
    assert.equal(await tenant.read((reader) => reader.value('select count(*) from notes')), n);
    assert.deepEqual(plain(await tenant.query('select count(*) as n from notes')), [{ n }]);
  }
});

test('read() sees one snapshot, without what open transactions have written', async () => {
  const tenant = await tenantWith(NOTES);
  await add(tenant, 'before');
  let seen: unknown[] | undefined;
  await tenant.transaction(async (tx) => {
    tx.run("insert into notes (body) values ('uncommitted')");
    assert.equal(tx.value('select count(*) from notes'), 2, 'it sees its own');
    seen = await bodies(tenant);
  });
  assert.deepEqual(seen, ['before']);
  assert.deepEqual(await bodies(tenant), ['before', 'uncommitted']);
});

test('writes of one turn share a record, and each gets its own result', async () => {
  const tenant = await tenantWith(NOTES);
  const { lastLsn } = (await node.status()).log;
  const ids = await Promise.all(Array.from({ length: 30 }, (_, n) => add(tenant, `note ${n}`)));
  assert.deepEqual(
    ids,
    Array.from({ length: 30 }, (_, n) => n + 1),
  );
  assert.ok((await node.status()).log.lastLsn - lastLsn <= 2);
});

test('an idempotent write answers with its first result: at once, in one group, after reopening', async () => {
  const dir = newDir();
  const results: unknown[] = [];
  let runs = 0;
  const pay = (tenant: Tenant): Promise<unknown> =>
    tenant.write(
      (tx) => {
        runs += 1;
        const { lastInsertRowid } = tx.run("insert into notes (body) values ('paid')");
        return { id: lastInsertRowid, big: 2n ** 60n, at: new Uint8Array([1, 2]), list: [null, 'x'] };
      },
      { id: 'payment 1' },
    );
  for (let round = 0; round < 2; round += 1) {
    const own = await open(dir);
    const tenant = await own.tenants.create('shop', { ifNotExists: true });
    await tenant.migrate(NOTES);
    results.push(...(await Promise.all([pay(tenant), pay(tenant)])), await pay(tenant));
    results.push(await tenant.transaction(async () => 'not this', { id: 'payment 1' }));
    assert.deepEqual(await bodies(tenant), ['paid']);
    assert.equal(await tenant.write(() => undefined, { id: `nothing ${round}` }), undefined);
    assert.equal(await tenant.write(() => 1, { id: `nothing ${round}` }), undefined);
    await own.close();
  }
  assert.equal(runs, 1);
  for (const result of results) assert.deepEqual(result, results[0]);
});

test('an idempotent write that failed may be tried again', async () => {
  const tenant = await tenantWith(NOTES);
  await assert.rejects(
    tenant.write(
      () => {
        throw new Error('first time');
      },
      { id: 'x' },
    ),
    /first time/,
  );
  assert.equal(await tenant.write(() => 2, { id: 'x' }), 2);
});

test('integers: exact in both modes, refused where a number cannot hold them', async () => {
  const tenant = await tenantWith(['create table ints (id integer primary key, n, r real)']);
  const values = [0, 1, -1, 5, 2n ** 53n + 1n, -(2n ** 63n), 2n ** 63n - 1n, Number.MAX_SAFE_INTEGER, true];
  await tenant.write((tx) => {
    for (const [id, n] of values.entries()) tx.run('insert into ints values (?, ?, ?)', [id, n, 1.5]);
  });
  const read = await tenant.read((reader) => reader.all<{ n: bigint }>('select n from ints order by id'), {
    int64: 'bigint',
  });
  assert.deepEqual(
    read.map(({ n }) => n),
    values.map(BigInt),
  );
  assert.deepEqual(
    (await tenant.query<{ n: bigint }>('select n from ints order by id', [], { int64: 'bigint' })).map(({ n }) => n),
    values.map(BigInt),
  );
  assert.deepEqual(
    await tenant.read((reader) => reader.value('select group_concat(distinct typeof(n)) from ints')),
    'integer',
  );
  await failsWith(
    tenant.read((reader) => reader.all('select n from ints')),
    'INTEGER_OUT_OF_RANGE',
  );
  await failsWith(tenant.query('select n from ints'), 'INTEGER_OUT_OF_RANGE');
  assert.equal(
    await tenant.write((tx) => tx.run('insert into ints (id) values (?)', [2n ** 60n]).lastInsertRowid),
    2n ** 60n,
  );
  assert.equal(await tenant.read((reader) => reader.value('select r from ints where id = 1')), 1.5);
});

test('the sql tag binds values, never text; named parameters and iterations work; one text serves many times', async () => {
  const tenant = await tenantWith(NOTES);
  const nasty = `'); drop table notes; --`;
  await tenant.write((tx) => {
    assert.equal(tx.run(sql`insert into notes (body) values (${nasty})`).changes, 1);
    tx.run('insert into notes (body) values (:body)', { body: 'named' });
    for (let n = 0; n < 300; n += 1) tx.run(`insert into notes (body) values ('text ${n}')`);
    const seen: unknown[] = [];
    for (const outer of tx.iterate<{ id: number }>('select id from notes where id <= ? order by id', [2]))
      for (const inner of tx.iterate<{ id: number }>('select id from notes where id <= ? order by id', [2]))
        seen.push([outer.id, inner.id]);
    assert.deepEqual(seen, [
      [1, 1],
      [1, 2],
      [2, 1],
      [2, 2],
    ]);
    assert.equal(tx.get('select 1 as one where 0'), undefined);
    assert.equal(tx.value('select 1 where 0'), undefined);
  });
  assert.deepEqual((await bodies(tenant)).slice(0, 2), [nasty, 'named']);
});

test('triggers fire once for each row, live, after reopening and after replay', async () => {
  const dir = newDir();
  for (let round = 1; round <= 3; round += 1) {
    const own = await open(dir);
    const tenant = await own.tenants.create('t', { ifNotExists: true });
    await tenant.migrate([
      `create table rows (id integer primary key); create table fired (id integer primary key, n integer not null);
       insert into fired values (1, 0);
       create trigger counts after insert on rows begin update fired set n = n + 1 where id = 1; end`,
    ]);
    await tenant.write((tx) =>
      tx.run('insert into rows select value from json_each(?)', [JSON.stringify([round * 2, round * 2 + 1])]),
    );
    assert.deepEqual(await tenant.read((reader) => reader.value('select n from fired')), round * 2);
    await own.close();
    // What the file had goes, and comes back from the log.
    if (round === 2) rmSync(join(dir, 'tenants'), { recursive: true });
  }
});

test('migrations apply when a tenant is first used, once, and are known in lists', async () => {
  const dir = newDir();
  const first = await open(dir, { migrations: NOTES });
  await first.tenants.create('a');
  await first.tenants.create('b');
  await add(first.tenant('a'), 'one');
  assert.deepEqual(
    (await first.tenants.list()).map(({ schemaVersion }) => schemaVersion),
    [1, 0],
  );
  await first.close();

  const second = await open(dir, {
    migrations: [
      ...NOTES,
      'alter table notes add column tags text',
      (tx) => void tx.run("update notes set tags = 'old'"),
    ],
  });
  await Promise.all([add(second.tenant('a'), 'two'), bodies(second.tenant('a')), second.tenant('a').status()]);
  assert.deepEqual(plain(await second.tenant('a').query('select body, tags from notes order by id')), [
    { body: 'one', tags: 'old' },
    { body: 'two', tags: null },
  ]);
  assert.equal((await second.tenants.get('a'))?.schemaVersion, 3);
  assert.equal((await second.tenants.get('b'))?.schemaVersion, 0);
  await second.close();

  const older = await open(dir, { migrations: NOTES });
  await failsWith(bodies(older.tenant('a')), 'SCHEMA_MISMATCH');
  assert.deepEqual(await bodies(older.tenant('b')), []);
  await older.close();
});

test('migrateAll goes on past a tenant that fails, says which, and goes on where it was', async () => {
  const own = await open(newDir());
  const names = ['a', 'b', 'c', 'd'];
  for (const name of names) {
    await own.tenants.create(name);
    await own.tenant(name).migrate(NOTES);
  }
  await add(own.tenant('c'), 'twice');
  await add(own.tenant('c'), 'twice');
  const migrations = [...NOTES, 'create unique index no_two on notes (body)'];
  const progress: number[] = [];
  const first = await own.migrateAll({ migrations, onProgress: ({ done }) => progress.push(done) });
  assert.deepEqual(
    first.migrated.map(({ tenant, from, to }) => [tenant, from, to]),
    [
      ['a', 1, 2],
      ['b', 1, 2],
      ['d', 1, 2],
    ],
  );
  assert.deepEqual(
    first.failed.map(({ tenant, error }) => [tenant, isNostosError(error, 'MIGRATION_FAILED')]),
    [['c', true]],
  );
  assert.deepEqual(progress, [1, 2, 3, 4]);
  await own.tenant('c').write((tx) => tx.run('delete from notes where id = 2'));
  const second = await own.migrateAll({ migrations });
  assert.deepEqual(
    second.migrated.map(({ from, to }) => [from, to]),
    [
      [2, 2],
      [2, 2],
      [1, 2],
      [2, 2],
    ],
  );
  assert.deepEqual(second.failed, []);
  await failsWith(own.migrateAll(), 'INVALID_ARGUMENT');
  await own.close();
});

test('rows that a migration made by chance are the same ones after a replay', async () => {
  const dir = newDir();
  const first = await open(dir);
  const twenty = `json_each('${JSON.stringify(Array.from({ length: 20 }, (_, n) => n + 1))}')`;
  const tenant = await tenantWith(
    [
      `create table dice (id integer primary key, n integer, at text);
       insert into dice select value, random(), datetime('now', value || ' days') from ${twenty}`,
      (tx) => {
        for (let id = 1; id <= 10; id += 1)
          tx.run('update dice set n = ? where id = ?', [Math.floor(Math.random() * 1e9), id]);
      },
      `alter table dice rename column at to thrown_at;
       alter table dice add column extra integer default 7;
       update dice set extra = random() where id > 15`,
    ],
    first,
  );
  const all = (from: Tenant): Promise<Row[]> => from.query('select * from dice order by id', [], { int64: 'bigint' });
  const [before, { fingerprint }] = [await all(tenant), await tenant.status()];
  await first.close();
  rmSync(join(dir, 'tenants'), { recursive: true });
  const second = await open(dir);
  assert.deepEqual(await all(second.tenant(tenant.name)), before);
  assert.equal((await second.tenant(tenant.name).status()).fingerprint, fingerprint);
  assert.ok((await second.verify()).ok);
  await second.close();
});

test('the change feed tells rows by name across schema versions, resumes after a position, and follows', async () => {
  const tenant = await tenantWith(NOTES);
  await add(tenant, 'first');
  await tenant.migrate([
    ...NOTES,
    `alter table notes add column tag text default 'none'; update notes set tag = 'seen'`,
  ]);
  await tenant.write((tx) => tx.run("insert into notes (body, tag) values ('second', 'new')"));
  await tenant.migrate([
    ...NOTES,
    `alter table notes add column tag text default 'none'; update notes set tag = 'seen'`,
    'alter table notes rename column body to text',
  ]);
  await tenant.write((tx) => {
    tx.run("update notes set text = 'changed' where id = 1");
    tx.run('delete from notes where id = 2');
  });
  const changes = await collect(tenant.changes({ untilCaughtUp: true }));
  assert.deepEqual(
    changes.map(({ kind, schemaVersion, rows }) => [kind, schemaVersion, rows]),
    [
      ['schema', 1, []],
      ['changeset', 1, [{ table: 'notes', op: 'insert', key: { id: 1 }, new: { id: 1, body: 'first' } }]],
      ['schema', 2, [{ table: 'notes', op: 'update', key: { id: 1 }, old: { tag: 'none' }, new: { tag: 'seen' } }]],
      ['changeset', 2, [{ table: 'notes', op: 'insert', key: { id: 2 }, new: { id: 2, body: 'second', tag: 'new' } }]],
      ['schema', 3, []],
      [
        'changeset',
        3,
        [
          { table: 'notes', op: 'update', key: { id: 1 }, old: { text: 'first' }, new: { text: 'changed' } },
          { table: 'notes', op: 'delete', key: { id: 2 }, old: { id: 2, text: 'second', tag: 'new' } },
        ],
      ],
    ],
  );
  for (const [index, { position }] of changes.entries())
    assert.deepEqual(await collect(tenant.changes({ from: position, untilCaughtUp: true })), changes.slice(index + 1));
  assert.deepEqual(await collect(tenant.changes({ from: 'now', untilCaughtUp: true })), []);

  const stop = new AbortController();
  const reason = new Error('enough');
  const live: string[] = [];
  const following = (async () => {
    for await (const { rows } of tenant.changes({ from: changes.at(-1)!.position, signal: stop.signal })) {
      for (const row of rows) live.push(String(row.new?.['text']));
      if (live.length >= 40) stop.abort(reason);
    }
  })();
  for (let n = 0; n < 40; n += 1)
    await tenant.write((tx) => tx.run(sql`insert into notes (text) values (${`live ${n}`})`));
  await assert.rejects(following, reason);
  assert.deepEqual(
    live,
    Array.from({ length: 40 }, (_, n) => `live ${n}`),
  );
});

test('the feed leaves out what is not of the user: answers of idempotent writes, shadow tables of FTS', async () => {
  const tenant = await tenantWith([
    'create table notes (id integer primary key); create virtual table docs using fts5 (body)',
  ]);
  await tenant.write((tx) => tx.run("insert into docs (body) values ('hidden')"));
  await tenant.write(() => 1, { id: 'only an answer' });
  await tenant.write((tx) => tx.run('insert into notes values (1)'), { id: 'both' });
  const rows = (await collect(tenant.changes({ untilCaughtUp: true }))).flatMap((change) => change.rows);
  assert.deepEqual(
    rows.map(({ table }) => table),
    ['notes'],
  );
});

test('a feed ends with its tenant, and begins where the log does', async () => {
  const own = await open(newDir(), {
    limits: { segmentBytesMax: 128 * 1024, recordBytesMax: 100 * 1024, logRetainBytes: 0 },
  });
  const tenant = await tenantWith(NOTES, own);
  const ended = collect(tenant.changes());
  let position: Position | undefined;
  for (let n = 0; n < 12; n += 1) await add(tenant, 'x'.repeat(20_000));
  for (const change of await collect(tenant.changes({ untilCaughtUp: true }))) position ??= change.position;
  await own.tenants.drop(tenant.name);
  assert.equal((await ended).length, 13);
  await own.tenants.create('later');
  const { dir } = own;
  await own.close();

  const again = await open(dir, {
    limits: { segmentBytesMax: 128 * 1024, recordBytesMax: 100 * 1024, logRetainBytes: 0 },
  });
  assert.ok((await again.status()).log.firstLsn > position!.lsn + 1, 'the log was pruned');
  const later = again.tenant('later');
  await later.migrate(NOTES);
  await add(later, 'kept');
  assert.equal((await collect(later.changes({ untilCaughtUp: true }))).length, 2);
  // What was pruned since then was of others; who misses something of its own is told (`quiet-feed.test.ts`).
  assert.equal((await collect(later.changes({ from: position!, untilCaughtUp: true }))).length, 2);
  await again.close();
});

const ENDLESS = 'with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n';

test('a query ends by its time limit, its signal and its number of rows, and costs no other query', async () => {
  const own = await open(newDir(), { limits: { readerProcessesMax: 2, queryRowsMax: 100 } });
  const tenant = await tenantWith(NOTES, own);
  const endless = `${ENDLESS} limit 30000000`;
  const abort = new AbortController();
  const reason = new Error('not needed');
  const slow = tenant.query(endless, [], { timeoutMs: 60_000, signal: abort.signal });
  const timed = failsWith(tenant.query(endless, [], { timeoutMs: 40 }), 'QUERY_TIMEOUT');
  // Both threads are taken: these wait, and give up in the line without keeping others from their turn.
  const waiting = [1, 2, 3].map(() => failsWith(tenant.query('select 1', [], { timeoutMs: 5 }), 'QUERY_TIMEOUT'));
  const inLine = tenant.query('select 2 as n', [], { timeoutMs: 60_000 });
  await Promise.all([timed, ...waiting]);
  abort.abort(reason);
  await assert.rejects(slow, reason);
  assert.deepEqual(plain(await inLine), [{ n: 2 }]);
  assert.deepEqual(await add(tenant, 'writes go on'), 1);
  await failsWith(
    tenant.query(`select value from json_each(?)`, [JSON.stringify(Array.from({ length: 101 }, () => 0))]),
    'INVALID_ARGUMENT',
  );
  await assert.rejects(tenant.query('select 1', [], { signal: AbortSignal.abort(reason) }), reason);
  const queries = await Promise.all(
    Array.from({ length: 50 }, (_, n) => tenant.query<{ n: number }>('select ? as n', [n])),
  );
  assert.deepEqual(
    queries.map(([row]) => row?.n),
    Array.from({ length: 50 }, (_, n) => n),
  );
  await own.close();
});

test('many tenants work with a few open files', async () => {
  const dir = newDir();
  const own = await open(dir, { migrations: NOTES, limits: { openFilesMax: 40 } });
  const names = Array.from({ length: 120 }, (_, n) => `t${String(n).padStart(3, '0')}`);
  await Promise.all(names.map((name) => own.tenants.create(name)));
  assert.equal(await own.tenants.count(), 120);
  for (let round = 0; round < 2; round += 1)
    await Promise.all(names.map((name) => add(own.tenant(name), `round ${round}`)));
  const status = await own.status();
  assert.ok(status.tenants.open <= 16, `${status.tenants.open} are open`);
  for (const name of names) assert.deepEqual(await bodies(own.tenant(name)), ['round 0', 'round 1']);
  assert.deepEqual(
    (await own.tenants.list({ after: 't117' })).map(({ name }) => name),
    ['t118', 't119'],
  );
  const report = await own.verify();
  assert.ok(report.ok);
  assert.equal(report.tenants.length, 120);
  await own.close();
});

test('whoever holds a tenant may use others: the limit of open files gives way rather than block for ever', async () => {
  const own = await open(newDir(), { migrations: NOTES, limits: { openFilesMax: 10 } });
  const names = ['a', 'b', 'c', 'd'];
  for (const name of names) await own.tenants.create(name);
  const holding: Promise<unknown>[] = [];
  for (const [n, name] of names.entries()) {
    const next = own.tenant(names[(n + 1) % names.length]!);
    holding.push(
      own.tenant(name).transaction(async (tx) => {
        tx.run("insert into notes (body) values ('mine')");
        await next.read((reader) => reader.value('select 1'));
      }),
    );
  }
  await Promise.all(holding);
  for (const name of names) assert.deepEqual(await bodies(own.tenant(name)), ['mine']);
  await own.close();
});

test('a dropped tenant is gone, its name is free, and what came before stays apart', async () => {
  const dir = newDir();
  const own = await open(dir);
  const before = await own.tenants.create('again');
  await before.migrate(NOTES);
  await add(before, 'old');
  const { uuid } = (await own.tenants.get('again'))!;
  const racing = Array.from({ length: 20 }, (_, n) => add(before, `racing ${n}`).catch((error: unknown) => error));
  await own.tenants.drop('again');
  for (const result of await Promise.all(racing))
    assert.ok(
      typeof result === 'number' || isNostosError(result, 'CLOSED') || isNostosError(result, 'TENANT_NOT_FOUND'),
      String(result),
    );
  await failsWith(bodies(before), 'TENANT_NOT_FOUND');
  assert.deepEqual(readdirSync(join(dir, 'tenants')), []);
  const later = await own.tenants.create('again');
  await later.migrate(NOTES);
  assert.deepEqual(await bodies(later), []);
  assert.deepEqual(await bodies(before), [], 'a handle is a name');
  assert.notEqual((await own.tenants.get('again'))?.uuid, uuid);
  await add(later, 'new');
  await Promise.all([
    own.tenants.create('both', { ifNotExists: true }),
    own.tenants.create('both', { ifNotExists: true }),
  ]);
  await own.close();
  const again = await open(dir);
  assert.deepEqual(
    (await again.tenants.list()).map(({ name }) => name),
    ['again', 'both'],
  );
  assert.deepEqual(await bodies(again.tenant('again')), ['new']);
  await again.close();
});

test('an export is a plain database, and its import has the same rows', async () => {
  const tenant = await tenantWith([
    `create table kinds (id integer primary key, i integer, r real, t text, b blob, g text generated always as (t || '!') stored);
     create table pairs (a text not null, b integer not null, v any, primary key (a, b)) without rowid;
     create index kinds_t on kinds (t);
     create view both as select kinds.id, pairs.a from kinds, pairs;
     create virtual table docs using fts5 (body);
     create trigger after_kind after insert on kinds begin insert into docs (body) values (new.t); end`,
  ]);
  await tenant.write((tx) => {
    tx.run('insert into kinds (i, r, t, b) values (?, ?, ?, ?)', [
      2n ** 62n,
      1e300,
      'ünïcode \u0000 nul',
      new Uint8Array([0, 255]),
    ]);
    tx.run('insert into kinds (i, r, t, b) values (?, ?, ?, ?)', [-1, Infinity, '', null]);
    tx.run("insert into pairs values ('x', 1, 1.5), ('x', 2, 'text')");
  });
  const file = join(root, 'export.sqlite');
  const { position } = await tenant.exportFile(file);
  assert.equal(position.lsn, (await tenant.status()).applied.lsn);
  await failsWith(tenant.exportFile(file), 'FILE_EXISTS');
  {
    using database = new DatabaseSync(file, { readOnly: true });
    const names = database
      .prepare('select name from sqlite_schema')
      .all()
      .map(({ name }) => String(name));
    assert.ok(names.includes('kinds') && !names.some((name) => name.startsWith('nostos_')));
    assert.deepEqual(
      database
        .prepare('pragma integrity_check')
        .all()
        .map((row) => Object.values(row)),
      [['ok']],
    );
  }
  const copy = node.tenant('imported');
  await copy.importFile(file);
  for (const query of [
    'select * from kinds order by id',
    'select * from pairs order by a, b',
    'select * from both',
    "select rowid from docs where docs match 'code'",
  ])
    assert.deepEqual(
      await copy.query(query, [], { int64: 'bigint' }),
      await tenant.query(query, [], { int64: 'bigint' }),
      query,
    );
  await copy.write((tx) => tx.run("insert into kinds (t) values ('fires once')"));
  assert.deepEqual(plain(await copy.query("select count(*) as n from docs where docs match 'fires'")), [{ n: 1 }]);
  assert.ok((await node.verify({ tenant: 'imported' })).ok);
});

test('status tells where a tenant stands', async () => {
  const tenant = await tenantWith([...NOTES, 'create table empty (id integer primary key)']);
  await add(tenant, 'x');
  const status = await tenant.status();
  const { log, tenants: open, writes } = await node.status();
  assert.equal(status.schemaVersion, 2);
  assert.equal(status.applied.lsn, log.lastLsn);
  assert.equal(status.applied.term, log.term);
  assert.ok(status.durableApplied <= status.applied.lsn);
  assert.match(status.fingerprint, /^[0-9a-f]{32}$/);
  assert.deepEqual(
    status.tables.map((table) => ({ ...table })),
    [
      { name: 'empty', rows: 0 },
      { name: 'notes', rows: 1 },
    ],
  );
  assert.ok(status.fileBytes > 0 && open.total >= open.open && open.open > 0 && writes.committed > 0);
});

test('a node verifies while it is written to', async () => {
  const own = await open(newDir(), {
    limits: { segmentBytesMax: 128 * 1024, recordBytesMax: 100 * 1024, logRetainBytes: 200_000 },
  });
  const tenant = await tenantWith(NOTES, own);
  let writing = true;
  const writer = (async () => {
    while (writing) await add(tenant, 'x'.repeat(5_000));
  })();
  for (let n = 0; n < 4; n += 1) assert.deepEqual((await own.verify()).problems, []);
  writing = false;
  await writer;
  await own.close();
});
