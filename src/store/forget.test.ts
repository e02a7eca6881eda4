/** Forgetting: which key is meant, what the record and the ledger say, and in which order that becomes durable. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import fc from 'fast-check';
import type { Lsn } from '../base/brands.ts';
import { systemClock } from '../base/clock.ts';
import { systemDisk, type Disk } from '../base/disk.ts';
import { NostosError, isNostosError } from '../base/errors.ts';
import { DEFAULT_LIMITS } from '../base/limits.ts';
import type { ForgetLedger, LedgerEntry } from '../log/ledger.ts';
import { RecordKind } from '../log/record.ts';
import type { MemoryLog } from '../testing/memory-log.ts';
import {
  assertSound,
  contentOf,
  copyOf,
  failsWith,
  groupLog,
  identity,
  ledgerBeside,
  stores,
  write,
} from '../testing/tenant-store.fixture.ts';
import { forgetTarget, keyHash, type KeyValue } from './forget.ts';
import { decodeChangesetPayload, encodeChangesetPayload } from './payload.ts';
import { readSchemaShape } from './schema-shape.ts';
import { migrateStore, runTransaction } from './tenant.ts';
import type { TenantStore } from './tenant-store.ts';
import type { SqlInput } from './values.ts';

const SCHEMA = [
  `create table users (id integer primary key, name text);
   create table tags (user integer not null, tag text not null, n integer, primary key (user, tag)) without rowid;
   create table files (hash blob primary key not null, name text) strict;
   create table mails (address text primary key not null, user integer references users (id) on delete cascade);
   create table pinned (id integer primary key);
   create trigger keep before delete on pinned begin select raise(ignore); end;
   create table log (what text, id integer primary key);
   create trigger gone after delete on users begin insert into log (what) values ('gone'); end`,
];
const deps = { clock: systemClock, limits: DEFAULT_LIMITS };
const end = (log: MemoryLog): Lsn => log.records.length as Lsn;
const entriesOf = (ledger: ForgetLedger): LedgerEntry[] => [...ledger.entries()];
const tablesOf = (ledger: ForgetLedger): string[][] =>
  entriesOf(ledger).map(({ keys }) => keys.map(({ table }) => table));

async function filled(store: TenantStore): Promise<void> {
  await migrateStore(store, SCHEMA);
  await write(store, 'quorum', (tx) => {
    for (let id = 1; id <= 5; id += 1) {
      tx.run('insert into users values (?, ?)', [id, `secret-name-${id}`]);
      tx.run('insert into tags values (?, ?, 1)', [id, 'a']);
      tx.run('insert into mails values (?, ?)', [`${id}@example.org`, id]);
    }
    tx.run('insert into files values (?, ?)', [new Uint8Array([1, 2]), 'f']);
    tx.run('insert into pinned values (1)');
  });
}

test('a key has one hash however it is given, and no other key has it, exactly as SQLite compares them', () => {
  using database = new DatabaseSync(':memory:');
  database.exec(
    `create table i (k integer primary key not null, v); create table n (k INT not null primary key, v) without rowid;
    create table t (k text not null primary key, v); create table b (k blob not null primary key, v any) strict`,
  );
  const context = { shape: readSchemaShape(database), hashKey: () => new Uint8Array(32).fill(7) };
  const value = fc.oneof(
    fc.integer({ min: -3, max: 3 }),
    fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }),
    fc.constantFrom(2 ** 53, 2 ** 53 + 2, 2 ** 63, -(2 ** 63), 1e300, 0.5, -0, true, false),
    fc.double({ noNaN: true }),
    fc.constantFrom(
      '1',
      ' 1 ',
      '1.0',
      '1e0',
      '0x1',
      '01',
      '9223372036854775807',
      '9223372036854775808',
      '0.5',
      '-0',
      '',
    ),
    fc.string({ maxLength: 4 }),
    fc.uint8Array({ maxLength: 3 }),
  );
  const twice = value.map((given): [SqlInput, SqlInput] => [
    given,
    given instanceof Uint8Array ? given : String(given),
  ]);
  const equal = { yes: 0, no: 0 };
  const check = (table: string, [a, b]: readonly [SqlInput, SqlInput]): void => {
    let stored: Record<string, unknown> | undefined;
    database.exec(`delete from ${table}`);
    const bind = (given: SqlInput) =>
      typeof given === 'number' && Number.isSafeInteger(given) && !Object.is(given, -0)
        ? BigInt(given)
        : typeof given === 'boolean'
          ? BigInt(given)
          : given;
    try {
      database.prepare(`insert into ${table} (k) values (?)`).run(bind(a));
      const read = database.prepare(`select typeof(k) as type, k, cast(k as blob) as bytes from ${table}`);
      read.setReadBigInts(true);
      stored = read.get();
    } catch {
      return; // no row can have this key
    }
    const key = stored!['type'] === 'text' ? { text: stored!['bytes'] as Uint8Array } : (stored!['k'] as KeyValue);
    const hash = (given: SqlInput): string =>
      Buffer.from(forgetTarget(database, context, { table, key: { k: given } }).forgotten[0]!.hash).toString('hex');
    const ofRow = Buffer.from(keyHash(context.hashKey(), table, [key])).toString('hex');
    assert.equal(hash(a), ofRow, 'what is stored is what was given');
    const same = database.prepare(`select 1 from ${table} where k = ?`).get(bind(b)) !== undefined;
    assert.equal(hash(b) === ofRow, same, `${String(a)} and ${String(b)} in ${table}`);
    equal[same ? 'yes' : 'no'] += 1;
  };
  fc.assert(fc.property(fc.constantFrom('i', 'n', 't', 'b'), fc.oneof(fc.tuple(value, value), twice), check), {
    numRuns: 4_000,
  });
  const known: [string, SqlInput, SqlInput][] = [
    ['i', 1, '1'],
    ['i', 1, 1.0],
    ['n', '1e0', 1n],
    ['n', 'x', 'x'],
    ['t', 1, '1'],
    ['t', 'a', 'A'],
    ['b', new Uint8Array([0x61]), 'a'],
  ];
  for (const [table, a, b] of known) check(table, [a, b]);
  assert.ok(equal.yes > 50 && equal.no > 500, JSON.stringify(equal));
});

test('keys of several columns are told apart wherever one ends, and tables are', () => {
  const hashKey = new Uint8Array(32);
  const hashes = [
    keyHash(hashKey, 't', ['ab', 'c']),
    keyHash(hashKey, 't', ['a', 'bc']),
    keyHash(hashKey, 't', [new Uint8Array([0x61]), 'bc']),
    keyHash(hashKey, 't', [1n, 2n]),
    keyHash(hashKey, 't', [2n, 1n]),
    keyHash(hashKey, 'u', [1n, 2n]),
    keyHash(new Uint8Array(32).fill(1), 't', [1n, 2n]),
  ];
  assert.equal(new Set(hashes.map((hash) => Buffer.from(hash).toString('hex'))).size, hashes.length);
  assert.deepEqual(keyHash(hashKey, 'T', [1]), keyHash(hashKey, 't', [1n]));
  const golden = keyHash(new Uint8Array(32).fill(7), 'users', [7n, 'a', new Uint8Array([0xff]), 0.5]);
  assert.equal(Buffer.from(golden).toString('hex'), '6fd67d809a36767ab0759d702a4a6e2a', 'ledgers keep it for good');
});

test('payloads with forgets come back as they were; others are what they were before', () => {
  const base = { schemaVersion: 3, fingerprint: new Uint8Array(16).fill(9), sequences: [{ table: 's', value: 4n }] };
  const changeset = new Uint8Array([1, 2, 3]);
  const forgets = {
    atMs: 1_700_000_000_000,
    hashKey: new Uint8Array(32).fill(5),
    keys: [
      { table: 'users', hash: new Uint8Array(16).fill(1) },
      { table: 't\u00e4gs', hash: new Uint8Array(16).fill(2) },
    ],
  };
  const bytes = encodeChangesetPayload({ ...base, changeset, forgets });
  assert.equal(bytes[0], 3, 'which software that knows no forgets refuses');
  const back = decodeChangesetPayload(bytes);
  assert.deepEqual(back.forgets, forgets);
  assert.deepEqual(Uint8Array.from(back.changeset), changeset);
  assert.deepEqual(back.sequences, base.sequences);
  assert.equal(back.local, false);
  const golden = [
    '03 00 03000000', // version 3, schema version 3
    '09'.repeat(16),
    '0100 0100 73 0400000000000000', // a sequence
    '0068e5cf8b010000', // the time
    '05'.repeat(32),
    '01000000 0500 7573657273',
    '01'.repeat(16),
    '010203',
  ];
  const one = encodeChangesetPayload({ ...base, changeset, forgets: { ...forgets, keys: forgets.keys.slice(0, 1) } });
  assert.equal(Buffer.from(one).toString('hex'), golden.join('').replaceAll(' ', ''));
  const plain = encodeChangesetPayload({ ...base, changeset });
  assert.equal(plain[0], 1);
  assert.equal('forgets' in decodeChangesetPayload(plain), false);
  for (let size = 0; size < bytes.length - changeset.length; size += 1)
    assert.throws(
      () => decodeChangesetPayload(bytes.subarray(0, size)),
      (error) => isNostosError(error, 'LOG_DAMAGED') || assert.fail(String(error)),
    );
});

test('what was forgotten is gone, is in the ledger, and is said by whether it was there', async (t) => {
  const files = stores(t);
  const path = files.newPath();
  const ledger = ledgerBeside(path);
  const store = await files.open(await groupLog({ prompt: true }), { path, ledger });
  await filled(store);
  const found = await write(store, 'local', (tx) => [
    tx.forget('USERS', { ID: 1 }),
    tx.forget('users', { id: 77n }),
    tx.forget('tags', { tag: 'a', user: '2' }),
    tx.forget('files', { hash: new Uint8Array([1, 2]) }),
  ]);
  assert.deepEqual(found, [true, false, true, true]);
  assert.deepEqual(tablesOf(ledger), [['users', 'users', 'tags', 'files']]);
  const rows = await write(store, 'quorum', (tx) => ({
    users: tx.all('select id from users').length,
    mails: tx.all('select address from mails').length,
    tags: tx.all('select user from tags').length,
    files: tx.all('select name from files').length,
    log: tx.all('select what from log').length,
  }));
  assert.deepEqual(rows, { users: 4, mails: 4, tags: 4, files: 0, log: 1 }, 'triggers and cascades did what they do');
  const [entry] = entriesOf(ledger);
  assert.equal(entry?.uuid, identity.uuid);
  assert.equal(entry?.position.lsn, store.applied.lsn);
  assertSound(store);
});

test('a table that was renamed is forgotten under each name that it had, and no other table has now', async (t) => {
  const files = stores(t);
  const path = files.newPath();
  const ledger = ledgerBeside(path);
  const log = await groupLog({ prompt: true });
  const store = await files.open(log, { path, ledger });
  const steps: string[] = [];
  const namesAfter = async (target: TenantStore, sql: string, table: string): Promise<string[]> => {
    steps.push(sql);
    await migrateStore(target, [...SCHEMA, ...steps]);
    await write(target, 'quorum', (tx) => tx.forget(table, { id: 1 }));
    const { keys, hashKey } = entriesOf(ledger).at(-1)!;
    for (const { table: name, hash } of keys) assert.deepEqual(hash, keyHash(hashKey, name, [1n]));
    return keys.map((key) => key.table);
  };
  await migrateStore(store, SCHEMA);
  assert.deepEqual(await namesAfter(store, 'alter table users rename to people', 'people'), ['people', 'users']);
  assert.deepEqual(await namesAfter(store, 'alter table main."people" rename to [the persons]', 'the persons'), [
    'the persons',
    'people',
    'users',
  ]);
  assert.deepEqual(
    await namesAfter(store, 'alter table "the persons" rename name to label', 'the persons'),
    ['the persons', 'people', 'users'],
    'a column was renamed',
  );
  // A replica that has applied all of it leads now.
  log.commitTo(end(log));
  const next = await files.open(log, { path: files.newPath(), role: 'replica', ledger });
  await next.becomePrimary();
  assert.deepEqual(
    await namesAfter(next, 'create table people (id integer primary key)', 'the persons'),
    ['the persons', 'users'],
    'another table has the name now',
  );
  assert.deepEqual(await namesAfter(next, 'create index by_id on people (id)', 'people'), ['people']);
  // Made anew under its name, as ALTER TABLE cannot do everything.
  const anew = `create table other (id integer primary key, label text, more text);
    insert into other select id, label, null from "the persons"; drop table if exists main."the persons";
    alter table other rename to "the persons"`;
  assert.deepEqual(await namesAfter(next, anew, 'the persons'), ['the persons', 'users']);
  assertSound(next);
});

test('a record without rows, an undone savepoint, a failed transaction and one with an id', async (t) => {
  const files = stores(t);
  const path = files.newPath();
  const ledger = ledgerBeside(path);
  const log = await groupLog({ prompt: true });
  const store = await files.open(log, { path, ledger });
  await filled(store);
  const before = end(log);
  await write(store, 'quorum', (tx) => tx.forget('users', { id: 100 }));
  assert.equal(end(log), before + 1, 'it is a record though it changes no row');
  await write(store, 'quorum', (tx) => {
    tx.forget('users', { id: 1 });
    try {
      tx.savepoint(() => {
        tx.forget('users', { id: 2 });
        throw new Error('no');
      });
    } catch {
      // undone
    }
    tx.savepoint(() => tx.forget('users', { id: 3 }));
  });
  // One group: the failed one leaves nothing, in the record that all share.
  const together = await Promise.allSettled([
    write(store, 'quorum', (tx) => tx.forget('users', { id: 4 })),
    write(store, 'quorum', (tx) => {
      tx.forget('users', { id: 5 });
      throw new Error('no');
    }),
    write(store, 'local', (tx) => tx.run('insert into users values (9, null)')),
  ]);
  assert.deepEqual(
    together.map(({ status }) => status),
    ['fulfilled', 'rejected', 'fulfilled'],
  );
  await runTransaction(
    store,
    async (tx) => {
      await Promise.resolve();
      return tx.forget('tags', { user: 1, tag: 'a' });
    },
    { int64: 'number', timeoutMs: 5_000, durability: 'local', id: 'once' },
    deps,
  );
  assert.deepEqual(tablesOf(ledger), [['users'], ['users', 'users'], ['users'], ['tags']]);
  const left = await store.read(({ database }) =>
    database
      .prepare('select id from users order by id')
      .all()
      .map((row) => row['id']),
  );
  assert.deepEqual(left, [2, 5, 9]);
  const times = entriesOf(ledger).map(({ atMs }) => atMs);
  assert.ok(
    times.every((at, i) => i === 0 || at > times[i - 1]!),
    'each later than the one before',
  );
});

test('what names no row of a table is refused, and dooms nothing; a trigger that keeps the row does', async (t) => {
  const files = stores(t);
  const path = files.newPath();
  const ledger = ledgerBeside(path);
  const store = await files.open(await groupLog({ prompt: true }), { path, ledger });
  await filled(store);
  const bad: [string, unknown][] = [
    ['nobody', { id: 1 }],
    ['nostos_results', { id: 'x' }],
    ['sqlite_schema', { id: 1 }],
    ['users', {}],
    ['users', { id: null }],
    ['users', { id: 1, name: 'x' }],
    ['users', { name: 'x' }],
    ['users', { id: 1, ID: 1 }],
    ['users', { id: undefined }],
    ['users', { id: {} }],
    ['users', { id: Number.NaN }],
    ['users', null],
    ['users', [1]],
    ['users', 1],
    ['tags', { user: 1 }],
  ];
  await write(store, 'quorum', (tx) => {
    for (const [table, key] of bad)
      assert.throws(
        () => tx.forget(table, key as Record<string, SqlInput>),
        (error) => isNostosError(error, 'INVALID_ARGUMENT') || assert.fail(`${table} ${String(key)}: ${String(error)}`),
      );
    tx.run("insert into users values (50, 'kept')");
  });
  assert.deepEqual(entriesOf(ledger), []);
  await failsWith(
    write(store, 'quorum', (tx) => tx.forget('pinned', { id: 1 })),
    'CONSTRAINT_FAILED',
  );
  await failsWith(migrateStore(store, [...SCHEMA, (tx) => void tx.forget('users', { id: 1 })]), 'MIGRATION_FAILED');
  assert.deepEqual(entriesOf(ledger), []);
});

test('a group waits for the quorum if one of its transactions forgets, and nobody is told before', async (t) => {
  const files = stores(t);
  const path = files.newPath();
  const ledger = ledgerBeside(path);
  const log = await groupLog({ prompt: true });
  const store = await files.open(log, { path, ledger });
  await filled(store);
  log.onQuorum = () => {}; // from now on the group is slow
  let answered = false;
  const forgetting = write(store, 'local', (tx) => tx.forget('users', { id: 1 })).then(
    (found) => ((answered = true), found),
  );
  await new Promise(setImmediate);
  await new Promise(setImmediate);
  assert.equal(answered, false);
  assert.deepEqual(entriesOf(ledger), [], 'only what is committed gets there');
  log.commitTo(end(log));
  assert.equal(await forgetting, true);
  assert.equal(entriesOf(ledger).length, 1);
});

test('the same ledger comes of writing, of applying as a replica, and of recovery from any older file', async (t) => {
  const files = stores(t);
  const log = await groupLog({ prompt: true });
  const path = files.newPath();
  const ledger = ledgerBeside(path);
  const primary = await files.open(log, { path, ledger });
  await filled(primary);
  for (let id = 1; id <= 4; id += 1) {
    await write(primary, 'quorum', (tx) => tx.forget('users', { id }));
    await write(primary, 'local', (tx) => tx.run('insert into users values (?, null)', [id + 20]));
  }
  const wanted = entriesOf(ledger);
  assert.equal(wanted.length, 4);
  for (const at of [1, 3, end(log) - 1, end(log)]) {
    const own = copyOf(log, at);
    own.committing = false;
    own.commitTo(at as Lsn);
    const copy = files.newPath();
    const theirs = ledgerBeside(copy);
    const replica = await files.open(own, { path: copy, role: 'replica', ledger: theirs });
    own.records.push(...log.records.slice(at));
    own.commitTo(end(log));
    await replica.applyUpTo(end(log));
    assert.deepEqual(entriesOf(theirs), wanted, `from ${at}`);
    assert.deepEqual(contentOf(replica), contentOf(primary));
  }
  log.commitTo(end(log));
  // Recovery reads records that the ledger has: they are not noted twice.
  const again = await files.open(log, { path: files.newPath(), ledger });
  assert.deepEqual(contentOf(again), contentOf(primary));
  assert.deepEqual(entriesOf(ledger), wanted);
});

/** Where a forget is cut off, and what must be so after the next opening. */
const CUTS = [
  { at: 'before the record', record: false },
  { at: 'between record and ledger', record: true },
  { at: 'between ledger and COMMIT', record: true },
] as const;

for (const { at, record } of CUTS)
  test(`cut off ${at}, a forget is either whole in file and ledger, or in neither`, async (t) => {
    const files = stores(t);
    const log = await groupLog({ prompt: true });
    const path = files.newPath();
    const fired = { count: 0 };
    const crash = new NostosError('IO_FAILED', 'the process ends here');
    let strike = false;
    const disk: Disk = {
      ...systemDisk,
      open: (file, mode) => {
        if (strike && at === 'between record and ledger' && mode !== 'read') {
          fired.count += 1;
          throw crash;
        }
        return systemDisk.open(file, mode);
      },
    };
    const ledger = ledgerBeside(path, disk);
    const store = await files.open(log, { path, ledger });
    await filled(store);
    await write(store, 'quorum', (tx) => tx.forget('users', { id: 5 }));
    const { applied } = store;
    strike = true;
    if (at === 'before the record')
      log.beforeAppend = () => {
        fired.count += 1;
        throw crash;
      };
    if (at === 'between ledger and COMMIT')
      ledger.onAdded(() => {
        fired.count += 1;
        // What COMMIT is part of is gone; the file stays as it was.
        store.rollback();
      });
    await assert.rejects(
      write(store, 'quorum', (tx) => tx.forget('users', { id: 1 })).then((found) => {
        if (at === 'between ledger and COMMIT') throw crash; // it succeeds, since it is committed
        return found;
      }),
      (error) => isNostosError(error, at === 'between record and ledger' ? 'FORGET_PENDING' : 'IO_FAILED'),
    );
    assert.ok(fired.count > 0);
    strike = false;
    log.beforeAppend = () => {};
    if (at === 'between record and ledger') {
      using reader = new DatabaseSync(path, { readOnly: true });
      const { lsn } = reader.prepare('select lsn from nostos_meta').get() as { lsn: number };
      assert.equal(lsn, applied.lsn, 'the file waits for the ledger');
    }
    // As another process finds it.
    const after = ledgerBeside(path);
    const reopened = await files.open(log, { path, ledger: after });
    const ids = await reopened.read(({ database }) =>
      database
        .prepare('select id from users')
        .all()
        .map((row) => row['id']),
    );
    assert.equal(ids.includes(1), !record);
    assert.equal(entriesOf(after).length, record ? 2 : 1);
    assertSound(reopened);
  });

test('a forgotten row is overwritten where it was in the file', async (t) => {
  const files = stores(t);
  const path = files.newPath();
  const log = await groupLog({ prompt: true });
  const store = await files.open(log, { path });
  await filled(store);
  await store.checkpoint();
  assert.ok(readFileSync(path).includes('secret-name-3'));
  await write(store, 'quorum', (tx) => tx.forget('users', { id: 3 }));
  await store.checkpoint();
  assert.ok(!readFileSync(path).includes('secret-name-3'));
  const copy = files.newPath();
  const own = copyOf(log, end(log) - 1);
  own.committing = false;
  own.commitTo(end(own));
  const replica = await files.open(own, { path: copy, role: 'replica' });
  await replica.checkpoint();
  assert.ok(readFileSync(copy).includes('secret-name-3'));
  own.records.push(log.records.at(-1)!);
  assert.equal(own.records.at(-1)?.kind, RecordKind.changeset);
  own.commitTo(end(own));
  await replica.applyUpTo(end(own));
  await replica.checkpoint();
  assert.ok(!readFileSync(copy).includes('secret-name-3'));
});
