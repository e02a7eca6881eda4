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
  assert.fail(`nothing failed, ${code} was due`);
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
  statement('VACUUM', 'SQL_FAILED', 'vacuum'),
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
      await null;
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
      assert.equal((await node.status()).log.lastLsn - before, migrations === SCHEMA ? 1 : 4, 'they shared a group');
      assert.deepEqual((await node.verify({ tenant: tenant.name })).problems, []);
    });
}
