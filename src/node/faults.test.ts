/**
 * Bad input and faults on a whole node. Each case makes its fault, and asserts that it fired and what it did; after
 * each the harness asserts that nothing else was touched: the tenant goes on, and the node verifies.
 */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { isNostosError, type ErrorCode } from '../base/errors.ts';
import { openNode } from './open-node.ts';
import type { Migration, Node, Reader, Tenant, Transaction } from './types.ts';

const SCHEMA: Migration[] = [
  `create table rows (id integer primary key, body text unique);
   create table parents (id integer primary key);
   create table children (id integer primary key, parent integer not null references parents (id) deferrable initially deferred);
   create table strict_rows (id integer primary key, n integer not null, u text unique) strict;
   create index strict_n on strict_rows (n);
   create table guarded (id integer primary key);
   create trigger no_two before insert on guarded when new.id = 2 begin select raise(abort, 'no two'); end`,
];

/** With these SQLite may roll the whole transaction back, so groups run in the separate way. */
const ROLLING_BACK: Migration[] = [
  ...SCHEMA,
  `create table harsh (id integer primary key, n integer not null on conflict rollback);
   create trigger no_three before insert on guarded when new.id = 3 begin select raise(rollback, 'no three'); end`,
];

const LIMITS = { recordBytesMax: 1024 * 1024, lockTimeoutMs: 50, transactionTimeoutMs: 300 };

const dir = mkdtempSync(join(tmpdir(), 'nostos-faults-'));
const node = await openNode({ dir, limits: LIMITS, scrubIntervalMs: false });

test.after(async () => {
  await node.close();
  rmSync(dir, { recursive: true, force: true });
});

let made = 0;
async function tenantWith(migrations: readonly Migration[], on: Node = node): Promise<Tenant> {
  const tenant = await on.tenants.create(`tenant ${(made += 1)}`);
  await tenant.migrate(migrations);
  return tenant;
}

const count = (tenant: Tenant): Promise<number> =>
  tenant.read((reader: Reader) => reader.value<number>('select count(*) from rows') as number);

async function failsWith(running: Promise<unknown>, code: ErrorCode): Promise<unknown> {
  try {
    await running;
  } catch (error) {
    assert.ok(isNostosError(error), `a typed error, got ${String(error)}`);
    assert.equal(error.code, code, error.message);
    return error;
  }
  return assert.fail(`nothing failed, ${code} was due`);
}

/** What one transaction does wrong, and how it fails. The culprit writes a row first, which must go too. */
interface Culprit {
  readonly name: string;
  readonly code: ErrorCode;
  readonly run: (tx: Transaction) => unknown;
  readonly rollsBack?: boolean;
}

const statement = (name: string, code: ErrorCode, sql: string, rollsBack = false): Culprit => ({
  name,
  code,
  run: (tx) => tx.run(sql),
  rollsBack,
});

const CULPRITS: readonly Culprit[] = [
  statement('SQL that is none', 'SQL_FAILED', 'insrt into rows values (1)'),
  statement('a table that is not there', 'SQL_FAILED', 'insert into nowhere values (1)'),
  statement('a violated UNIQUE', 'CONSTRAINT_FAILED', 'insert into rows select 900, body from rows limit 1'),
  statement(
    'INSERT OR ROLLBACK',
    'CONSTRAINT_FAILED',
    'insert or rollback into rows select id, body from rows limit 1',
  ),
  statement(
    'UPDATE OR ROLLBACK',
    'CONSTRAINT_FAILED',
    'update or rollback rows set id = (select min(id) from rows) where id = 999',
  ),
  statement('RAISE(ABORT) in a trigger', 'CONSTRAINT_FAILED', 'insert into guarded values (2)'),
  statement('RAISE(ROLLBACK) in a trigger', 'CONSTRAINT_FAILED', 'insert into guarded values (3)', true),
  statement('a column with ON CONFLICT ROLLBACK', 'CONSTRAINT_FAILED', 'insert into harsh values (1, null)', true),
  statement('a deferred key, violated at commit', 'CONSTRAINT_FAILED', 'insert into children values (1, 77)'),
  statement('COMMIT', 'SQL_DENIED', 'commit'),
  statement('END', 'SQL_DENIED', 'end transaction'),
  statement('ROLLBACK', 'SQL_DENIED', 'rollback'),
  statement('BEGIN', 'SQL_DENIED', 'begin'),
  statement('SAVEPOINT', 'SQL_DENIED', 'savepoint x'),
  statement('RELEASE of our savepoint', 'SQL_DENIED', 'release nostos_tx'),
  statement('ROLLBACK TO our savepoint', 'SQL_DENIED', 'rollback to nostos_tx'),
  statement('PRAGMA that sets', 'SQL_DENIED', 'pragma synchronous = off'),
  statement('PRAGMA foreign_keys', 'SQL_DENIED', 'pragma foreign_keys = off'),
  statement('PRAGMA writable_schema', 'SQL_DENIED', 'pragma writable_schema = on'),
  statement('PRAGMA wal_checkpoint', 'SQL_DENIED', 'pragma wal_checkpoint'),
  statement('ATTACH', 'SQL_DENIED', "attach ':memory:' as other"),
  statement('VACUUM', 'SQL_DENIED', 'vacuum'),
  statement('ANALYZE', 'SQL_DENIED', 'analyze'),
  statement('CREATE TABLE', 'SQL_DENIED', 'create table other (id integer primary key)'),
  statement('CREATE TEMP TABLE', 'SQL_DENIED', 'create temp table other (id integer primary key)'),
  statement('DROP TABLE', 'SQL_DENIED', 'drop table rows'),
  statement('ALTER TABLE', 'SQL_DENIED', 'alter table rows add column x'),
  statement('a table of Nostos', 'SQL_DENIED', 'update nostos_meta set lsn = 0'),
  statement('a table of Nostos, otherwise written', 'SQL_DENIED', 'delete from "NOSTOS_results"'),
  statement('the counters of SQLite', 'SQL_FAILED', 'delete from sqlite_sequence'),
  statement('the schema table', 'SQL_FAILED', "delete from sqlite_schema where name = 'rows'"),
  statement(
    'two statements in one text',
    'INVALID_ARGUMENT',
    "insert into rows values (901, 'a'); insert into rows values (902, 'b')",
  ),
  statement('no statement', 'INVALID_ARGUMENT', '-- nothing'),
  {
    name: 'undefined as a parameter',
    code: 'INVALID_ARGUMENT',
    run: (tx) => tx.run('insert into rows values (?, ?)', [1, undefined as never]),
  },
  {
    name: 'a Date as a parameter',
    code: 'INVALID_ARGUMENT',
    run: (tx) => tx.run('insert into rows values (?, ?)', [1, new Date() as never]),
  },
  {
    name: 'NaN as a parameter',
    code: 'INVALID_ARGUMENT',
    run: (tx) => tx.run('insert into rows values (?, ?)', [1, Number.NaN]),
  },
  {
    name: 'a bigint beyond 64 bits',
    code: 'INVALID_ARGUMENT',
    run: (tx) => tx.run('insert into rows values (?, ?)', [2n ** 63n, 'x']),
  },
  {
    name: 'a function as a parameter',
    code: 'INVALID_ARGUMENT',
    run: (tx) => tx.run('insert into rows values (?, ?)', [1, (() => 1) as never]),
  },
  {
    name: 'an unknown named parameter',
    code: 'INVALID_ARGUMENT',
    run: (tx) => tx.run('insert into rows values (:a, :b)', { a: 1, b: 'x', c: 2 }),
  },
  {
    name: 'a number for parameters',
    code: 'INVALID_ARGUMENT',
    run: (tx) => tx.run('insert into rows values (?, ?)', 5 as never),
  },
  { name: 'a statement that is no text', code: 'INVALID_ARGUMENT', run: (tx) => tx.run(5 as never) },
  {
    name: 'an integer that JavaScript cannot hold',
    code: 'INTEGER_OUT_OF_RANGE',
    run: (tx) => tx.get('select 9007199254740993 as n'),
  },
  {
    name: 'a callback that returns a promise',
    code: 'INVALID_ARGUMENT',
    run: async (tx) => {
      await Promise.resolve();
      tx.run("insert into rows values (903, 'late')");
    },
  },
  {
    name: 'a failed statement that was swallowed',
    code: 'TRANSACTION_DOOMED',
    run: (tx) => {
      assert.throws(() => tx.run('insert into rows select * from rows limit 1'));
      assert.throws(
        () => tx.get('select 1'),
        (error) => isNostosError(error, 'TRANSACTION_DOOMED'),
      );
    },
  },
  {
    name: 'INSERT OR REPLACE of an ill-typed value into a STRICT table, swallowed',
    code: 'TRANSACTION_DOOMED',
    run: (tx) => {
      tx.run("insert into strict_rows values (1, 1, 'a'), (2, 2, 'b')");
      assert.throws(() => tx.run("insert or replace into strict_rows values (3, 'no number', 'a')"));
    },
  },
  {
    name: 'an iteration left open over a write',
    code: 'CONSTRAINT_FAILED',
    run: (tx) => {
      tx.iterate("insert into rows values (904, 'a'), (905, 'b') returning id").next();
      tx.run('insert into rows values (904, null)');
    },
  },
  {
    name: 'a transaction beyond the limit of size',
    code: 'TRANSACTION_TOO_LARGE',
    run: (tx) => tx.run('insert into rows values (906, hex(zeroblob(700000)))'),
  },
];

for (const { name, code, run, rollsBack = false } of CULPRITS) {
  test(`alone, ${name} fails with ${code} and leaves nothing`, async () => {
    const tenant = await tenantWith(rollsBack ? ROLLING_BACK : SCHEMA);
    await tenant.write((tx) => tx.run("insert into rows values (1, 'first')"));
    await failsWith(
      tenant.write((tx) => {
        tx.run("insert into rows values (999, 'culprit')");
        return run(tx);
      }),
      code,
    );
    assert.equal(await count(tenant), 1);
    await tenant.write((tx) => tx.run("insert into rows values (2, 'second')"));
    assert.equal(await count(tenant), 2);
    assert.deepEqual((await node.verify({ tenant: tenant.name })).problems, []);
  });

  for (const migrations of rollsBack ? [ROLLING_BACK] : [SCHEMA, ROLLING_BACK])
    test(`in a ${migrations === SCHEMA ? 'shared' : 'separate'} group, ${name} fails alone`, async () => {
      const tenant = await tenantWith(migrations);
      await tenant.write((tx) => tx.run("insert into rows values (1, 'first')"));
      const before = (await node.status()).log.lastLsn;
      const good = (id: number): Promise<unknown> =>
        tenant.write((tx) => tx.run('insert into rows values (?, ?)', [id, `row ${id}`]));
      const group = [
        good(10),
        good(11),
        tenant.write((tx) => {
          tx.run("insert into rows values (999, 'culprit')");
          return run(tx);
        }),
        good(12),
        good(13),
      ];
      const results = await Promise.allSettled(group);
      assert.deepEqual(
        results.map(({ status }) => status),
        ['fulfilled', 'fulfilled', 'rejected', 'fulfilled', 'fulfilled'],
      );
      const { reason } = results[2] as PromiseRejectedResult;
      assert.ok(isNostosError(reason, code), `${code} was due, got ${String(reason)}`);
      assert.equal(await count(tenant), 5);
      const records = (await node.status()).log.lastLsn - before;
      // What was too large together is run again, one by one.
      const shared = migrations === SCHEMA && code !== 'TRANSACTION_TOO_LARGE';
      assert.ok(shared ? records === 1 : records <= 4, `they shared a group of ${records} records`);
      assert.deepEqual((await node.verify({ tenant: tenant.name })).problems, []);
    });
}

test('a savepoint heals: what failed in it is undone, the transaction goes on and is kept', async () => {
  const tenant = await tenantWith(SCHEMA);
  await tenant.write((tx) => {
    tx.run("insert into rows values (1, 'a')");
    tx.run("insert into strict_rows values (1, 1, 'a')");
    assert.throws(() =>
      tx.savepoint(() => {
        tx.run("insert into rows values (2, 'b')");
        tx.run("insert into rows values (3, 'a')");
      }),
    );
    assert.throws(() => tx.savepoint(() => tx.run("insert or replace into strict_rows values (2, 'no number', 'a')")));
    assert.throws(() =>
      tx.savepoint(() => {
        try {
          tx.run('nonsense');
        } catch {
          // swallowed: the savepoint itself still fails
        }
      }),
    );
    assert.throws(() => tx.savepoint(async () => {}), { code: 'INVALID_ARGUMENT' });
    tx.savepoint(() => tx.savepoint(() => tx.run("insert into rows values (4, 'd')")));
    tx.run("insert into rows values (5, 'e')");
  });
  assert.deepEqual(
    await tenant.read((reader) => reader.all('select id from rows order by id').map(({ id }) => id)),
    [1, 4, 5],
  );
  assert.deepEqual((await node.verify({ tenant: tenant.name })).problems, []);
});

test('a leaked transaction or reader does nothing after its callback', async () => {
  const tenant = await tenantWith(SCHEMA);
  let leaked: Transaction | undefined;
  let iteration: IterableIterator<unknown> | undefined;
  await tenant.write((tx) => {
    leaked = tx;
    tx.run("insert into rows values (1, 'a'), (2, 'b')");
    iteration = tx.iterate('select * from rows');
    iteration.next();
  });
  assert.throws(() => leaked?.run("insert into rows values (9, 'z')"), { code: 'CLOSED' });
  assert.throws(() => leaked?.savepoint(() => 1), { code: 'CLOSED' });
  assert.throws(() => iteration?.next(), { code: 'CLOSED' });
  await assert.rejects(
    tenant.write(() => leaked?.run("insert into rows values (9, 'z')")),
    { code: 'CLOSED' },
  );

  let reader: Reader | undefined;
  let rows: IterableIterator<unknown> | undefined;
  await tenant.read((given) => {
    reader = given;
    rows = given.iterate('select * from rows');
    rows.next();
  });
  await tenant.write((tx) => tx.run("insert into rows values (3, 'c')"));
  assert.equal(await count(tenant), 3, 'an iteration left open does not hold later reads in the past');
  assert.throws(() => reader?.all('select * from rows'), { code: 'CLOSED' });
  assert.throws(() => rows?.next(), { code: 'CLOSED' });
});

test('read() cannot write, and its callback must be synchronous', async () => {
  const tenant = await tenantWith(SCHEMA);
  await failsWith(
    tenant.read((reader) => reader.all("insert into rows values (1, 'a') returning id")),
    'SQL_DENIED',
  );
  await failsWith(tenant.query("insert into rows values (1, 'a') returning id"), 'SQL_DENIED');
  await failsWith(
    tenant.read(async () => 1),
    'INVALID_ARGUMENT',
  );
  await failsWith(tenant.read(undefined as never), 'INVALID_ARGUMENT');
  await failsWith(tenant.write(undefined as never), 'INVALID_ARGUMENT');
  await failsWith(tenant.transaction('no' as never), 'INVALID_ARGUMENT');
  await failsWith(tenant.migrate('no' as never), 'INVALID_ARGUMENT');
  await failsWith(
    tenant.write(() => 1, { id: '' }),
    'INVALID_ARGUMENT',
  );
  await failsWith(
    tenant.write(() => () => 1, { id: 'function' }),
    'INVALID_ARGUMENT',
  );
  for (const parameters of [[() => 1], [undefined], [new Date()], [Number.NaN], [2n ** 64n], 7])
    await failsWith(tenant.query('select ?', parameters as never), 'INVALID_ARGUMENT');
  await failsWith(tenant.query('select 1', [], { timeoutMs: Number.NaN }), 'INVALID_ARGUMENT');
  await failsWith(tenant.query(undefined as never), 'INVALID_ARGUMENT');
  assert.deepEqual(await tenant.query('select ? as n', [1]), [{ n: 1 }], 'the thread goes on');
});

test('transaction(): time, signal, errors and nested writes leave nothing and block nobody', async () => {
  const tenant = await tenantWith(SCHEMA);
  const never = new Promise<never>(() => {});
  let late: unknown;
  await failsWith(
    tenant.transaction(
      async (tx) => {
        tx.run("insert into rows values (1, 'slow')");
        await new Promise((resolve) => setTimeout(resolve, 60));
        try {
          tx.run("insert into rows values (2, 'late')");
        } catch (error) {
          late = error;
        }
      },
      { timeoutMs: 20 },
    ),
    'TRANSACTION_TIMEOUT',
  );
  const abort = new AbortController();
  const reason = new Error('no longer wanted');
  const aborted = tenant.transaction(
    async (tx) => {
      tx.run("insert into rows values (3, 'aborted')");
      abort.abort(reason);
      await never;
    },
    { signal: abort.signal },
  );
  await assert.rejects(aborted, reason);
  await failsWith(
    tenant.transaction(async (tx) => {
      tx.run("insert into rows values (4, 'a')");
      await Promise.resolve();
      tx.run("insert into rows values (4, 'b')");
    }),
    'CONSTRAINT_FAILED',
  );
  await failsWith(
    tenant.transaction(async (tx) => {
      try {
        tx.run('nonsense');
      } catch {
        // swallowed
      }
    }),
    'TRANSACTION_DOOMED',
  );
  await failsWith(
    tenant.transaction(async (tx) => tx.run('insert into children values (1, 77)')),
    'CONSTRAINT_FAILED',
  );
  await failsWith(
    tenant.transaction(async (tx) => tx.run('insert into rows values (5, hex(zeroblob(700000)))')),
    'TRANSACTION_TOO_LARGE',
  );
  // It waits for the end of the transaction that waits for it, until time is up; then it has its turn.
  let nested: Promise<unknown> | undefined;
  await failsWith(
    tenant.transaction(
      async () => {
        nested = tenant.write((tx) => tx.run("insert into rows values (6, 'nested')"));
        await nested;
      },
      { timeoutMs: 30 },
    ),
    'TRANSACTION_TIMEOUT',
  );
  await nested;
  assert.deepEqual(await tenant.read((reader) => reader.all('select id from rows').map(({ id }) => id)), [6]);

  // One that waits for its turn gives up when it is told to.
  const waiting = new AbortController();
  let ran = false;
  const first = tenant.transaction(async () => {
    waiting.abort(reason);
    await Promise.resolve();
  });
  const second = tenant.transaction(async () => void (ran = true), { signal: waiting.signal });
  await first;
  await assert.rejects(second, reason);
  assert.equal(ran, false);
  const cancelled = new AbortController();
  cancelled.abort(reason);
  await assert.rejects(
    tenant.write(() => 1, { signal: cancelled.signal }),
    reason,
  );
  while (late === undefined) await new Promise((resolve) => setTimeout(resolve, 10)); // it comes 60 ms after its start
  assert.ok(isNostosError(late, 'CLOSED'));
  assert.deepEqual((await node.verify({ tenant: tenant.name })).problems, []);
});

/** Schemas that SQLite cannot capture or replay faithfully. */
const REFUSED: readonly (readonly [name: string, sql: string])[] = [
  ['no PRIMARY KEY', 'create table t (a unique not null)'],
  ['a key that may be NULL', 'create table t (a text primary key)'],
  ['a key of another collation', 'create table t (a text primary key not null collate nocase)'],
  ['a REAL key', 'create table t (a real primary key not null)'],
  ['a NUMERIC key', 'create table t (a numeric primary key not null)'],
  ['an untyped key', 'create table t (a primary key not null)'],
  ['UNIQUE ON CONFLICT REPLACE', 'create table t (id integer primary key, a unique on conflict replace)'],
  ['UNIQUE ON CONFLICT IGNORE', 'create table t (id integer primary key, a unique on conflict ignore)'],
  ['UNIQUE ON CONFLICT ROLLBACK', 'create table t (id integer primary key, a unique on conflict rollback)'],
  ['CREATE TABLE AS', 'create table t as select 1 as a'],
  ['CREATE TEMP TABLE', 'create temp table t (id integer primary key)'],
  ['a name of Nostos', 'create table nostos_mine (id integer primary key)'],
  ['a table of Nostos', 'drop table nostos_meta'],
  ['COMMIT', 'create table t (id integer primary key); commit'],
  ['ATTACH', "attach ':memory:' as m"],
  ['PRAGMA', 'pragma journal_mode = delete'],
  ['VACUUM', 'vacuum'],
];

for (const [name, sql] of REFUSED)
  test(`a migration with ${name} is refused and leaves the schema as it was`, async () => {
    const tenant = await tenantWith(SCHEMA);
    const before = await tenant.query('select sql from sqlite_schema order by name');
    const { fingerprint } = await tenant.status();
    await assert.rejects(tenant.migrate([...SCHEMA, `create table fine (id integer primary key); ${sql}`]), (error) => {
      assert.ok(isNostosError(error, 'SCHEMA_REFUSED') || isNostosError(error, 'MIGRATION_FAILED'), String(error));
      return true;
    });
    assert.deepEqual(await tenant.query('select sql from sqlite_schema order by name'), before);
    const status = await tenant.status();
    assert.equal(status.schemaVersion, 1);
    assert.equal(status.fingerprint, fingerprint);
    await tenant.write((tx) => tx.run("insert into rows values (1, 'a')"));
  });

test('migrations that fail in the midst, that return a promise, or that leave keys pointing nowhere are undone', async () => {
  const tenant = await tenantWith(SCHEMA);
  await tenant.write((tx) => {
    tx.run('insert into parents values (1)');
    tx.run('insert into children values (1, 1)');
  });
  const cases: readonly Migration[] = [
    'create table more (id integer primary key); insert into more values (1), (1)',
    (tx) => {
      tx.run("insert into rows values (7, 'x')");
      throw new Error('changed its mind');
    },
    async (tx: Transaction) => void tx.run("insert into rows values (7, 'x')"),
    (tx) => {
      try {
        tx.run('nonsense');
      } catch {
        // swallowed
      }
    },
    'delete from parents',
  ];
  for (const migration of cases) await failsWith(tenant.migrate([...SCHEMA, migration]), 'MIGRATION_FAILED');
  await failsWith(tenant.migrate([]), 'SCHEMA_MISMATCH');
  assert.equal((await tenant.status()).schemaVersion, 1);
  assert.equal(await count(tenant), 0);
  await failsWith(
    tenant.write((tx) => tx.run('insert into children values (2, 99)')),
    'CONSTRAINT_FAILED',
  );
  assert.deepEqual((await node.verify({ tenant: tenant.name })).problems, []);
});

test('names, positions and LSNs out of range are refused', async () => {
  const tenant = await tenantWith(SCHEMA);
  await tenant.write((tx) => tx.run("insert into rows values (1, 'a')"));
  for (const name of ['', 'x'.repeat(201), 'line\nbreak', 'nul\0', '\ud800', 5, undefined])
    await failsWith(node.tenants.create(name as string), 'INVALID_ARGUMENT');
  await failsWith(node.tenants.create(tenant.name), 'TENANT_EXISTS');
  await failsWith(node.tenants.drop('nobody'), 'TENANT_NOT_FOUND');
  await failsWith(
    node.tenant('nobody').write(() => 1),
    'TENANT_NOT_FOUND',
  );
  await failsWith(node.tenant('nobody').status(), 'TENANT_NOT_FOUND');
  await failsWith(node.verify({ tenant: 'nobody' }), 'TENANT_NOT_FOUND');
  await failsWith(node.tenants.list({ limit: 0 }), 'INVALID_ARGUMENT');
  const { log } = await node.status();
  const read = async (iterable: AsyncIterable<unknown>): Promise<number> => {
    let n = 0;
    for await (const _ of iterable) n += 1;
    return n;
  };
  for (const from of [0, -1, 1.5, Number.NaN, '1', 2 ** 60])
    await failsWith(read(node.log({ from: from as never })), 'INVALID_ARGUMENT');
  assert.equal(await read(node.log({ from: (log.lastLsn + 1_000) as never })), 0);
  assert.equal(await read(node.log({ from: log.lastLsn, to: 1 as never })), 0);
  const here = { generation: log.generation, term: log.term, lsn: log.lastLsn };
  const feed = (from: object): Promise<number> => read(tenant.changes({ from: from as never, untilCaughtUp: true }));
  assert.equal(await feed(here), 0);
  await failsWith(feed({ ...here, lsn: log.lastLsn + 1_000 }), 'POSITION_LOST');
  await failsWith(feed({ ...here, term: log.term + 1 }), 'POSITION_LOST');
  await failsWith(feed({ ...here, generation: 'ff'.repeat(16) }), 'POSITION_LOST');
  for (const from of [{}, { ...here, lsn: -1 }, { ...here, lsn: Number.NaN }, 'now and then'])
    await failsWith(feed(from), 'INVALID_ARGUMENT');
});

test('after close every call answers CLOSED, those that waited are answered, and closing again is nothing', async () => {
  const own = mkdtempSync(join(tmpdir(), 'nostos-faults-'));
  const short = await openNode({ dir: own, scrubIntervalMs: false });
  const tenant = await tenantWith(SCHEMA, short);
  const following = (async () => {
    for await (const _ of tenant.changes()) continue;
  })();
  const writes = Array.from({ length: 50 }, (_, id) =>
    tenant.write((tx) => tx.run('insert into rows values (?, ?)', [id, `row ${id}`])),
  );
  const slow = tenant.query(
    'with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n limit 1',
    [],
    {
      timeoutMs: 50,
    },
  );
  await Promise.allSettled([failsWith(slow, 'QUERY_TIMEOUT')]);
  const ended = failsWith(following, 'CLOSED');
  await Promise.all([short.close(), short.close(), ...writes, ended]);
  await failsWith(
    tenant.write(() => 1),
    'CLOSED',
  );
  await failsWith(
    tenant.read(() => 1),
    'CLOSED',
  );
  await failsWith(tenant.query('select 1'), 'CLOSED');
  await failsWith(tenant.status(), 'CLOSED');
  await failsWith(short.status(), 'CLOSED');
  await failsWith(short.tenants.count(), 'CLOSED');
  await short.close();
  const again = await openNode({ dir: own, scrubIntervalMs: false });
  assert.equal(await count(again.tenant(tenant.name)), 50);
  await again.close();
  rmSync(own, { recursive: true, force: true });
});
