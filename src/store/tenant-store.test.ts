/** One tenant on a log that fails when it is told to, and a file that loses what SQLite may lose. */
import assert from 'node:assert/strict';
import { copyFileSync, existsSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { test, type TestContext } from 'node:test';
import { NO_LSN, toTenantId, toTenantUuid, type Lsn } from '../base/brands.ts';
import { systemClock } from '../base/clock.ts';
import { systemDisk } from '../base/disk.ts';
import { NostosError, isNostosError, type ErrorCode } from '../base/errors.ts';
import { DEFAULT_LIMITS, type Limits } from '../base/limits.ts';
import { ForgetLedger } from '../log/ledger.ts';
import { RecordKind } from '../log/record.ts';
import { MemoryLog } from '../testing/memory-log.ts';
import { checkpointFile } from './checkpoint.ts';
import type { Maintenance } from './maintenance.ts';
import type { Migration } from './migration.ts';
import { encodeTenantCreate } from './payload.ts';
import { scrubFile } from './scrub.ts';
import { migrateStore, runTransaction } from './tenant.ts';
import { TenantStore } from './tenant-store.ts';
import type { Row } from './values.ts';
import type { WriterTransaction } from './writer-transaction.ts';

const identity = { id: toTenantId(1), uuid: toTenantUuid('ab'.repeat(16)), name: 'acme' };

const SCHEMA: Migration[] = [
  `create table rows (id integer primary key autoincrement, body text);
   create table strict_rows (id integer primary key, n integer not null on conflict rollback) strict`,
];
const SHARED_SCHEMA: Migration[] = ['create table rows (id integer primary key autoincrement, body text)'];

interface Setup {
  readonly dir: string;
  readonly path: string;
  readonly log: MemoryLog;
  readonly checkpoints: { failing: boolean };
  open(options?: { opened?: boolean; limits?: Partial<Limits>; path?: string }): Promise<TenantStore>;
}

async function setUp(t: TestContext): Promise<Setup> {
  const dir = mkdtempSync(join(tmpdir(), 'nostos-store-'));
  const path = join(dir, 'data.sqlite');
  const log = new MemoryLog();
  const checkpoints = { failing: false };
  const opened: TenantStore[] = [];
  t.after(async () => {
    for (const store of opened) await store.close();
    rmSync(dir, { recursive: true, force: true });
  });
  const maintenance = {
    checkpoint: async (file, mode) => {
      if (checkpoints.failing) throw new NostosError('DISK_FULL', 'no space for the checkpoint');
      return checkpointFile({ path: file, mode, directories: [], hold: false });
    },
    checkpointAndClose: async (file, directories, close) => {
      if (checkpoints.failing) throw new NostosError('DISK_FULL', 'no space for the checkpoint');
      const result = checkpointFile({ path: file, mode: 'truncate', directories, hold: false });
      close();
      return result;
    },
  } satisfies Partial<Maintenance> as unknown as Maintenance;
  await log.append([{ tenant: identity.id, kind: RecordKind.tenantCreate, payload: encodeTenantCreate(identity) }]);
  return {
    dir,
    path,
    log,
    checkpoints,
    open: async ({ opened: wasOpen = true, limits = {}, path: file = path } = {}) => {
      const store = await TenantStore.open(
        { log, clock: systemClock, maintenance, ledger: ForgetLedger.open(systemDisk, dir) },
        {
          identity,
          path: file,
          limits: { ...DEFAULT_LIMITS, ...limits },
          createdAt: 1 as Lsn,
          opened: wasOpen,
          held: NO_LSN,
        },
      );
      opened.push(store);
      return store;
    },
  };
}

const run = <T>(store: TenantStore, fn: (tx: WriterTransaction) => T): Promise<T> =>
  store.write<T>(fn, { int64: 'number' });
const insert = (store: TenantStore, body: string): Promise<unknown> =>
  run(store, (tx) => tx.run('insert into rows (body) values (?)', [body]).lastInsertRowid);
const bodies = (store: TenantStore): Promise<unknown[]> =>
  store.read((connection) =>
    connection.database
      .prepare('select body from rows order by id')
      .all()
      .map((row) => (row as Row)['body']),
  );

async function failsWith(running: Promise<unknown>, code: ErrorCode): Promise<void> {
  await assert.rejects(running, (error) => isNostosError(error, code) || assert.fail(`${code}, not ${String(error)}`));
}

/** The rows, by SQLite's own account and by the fingerprint, are what the log says. */
async function assertSound(store: TenantStore): Promise<void> {
  await store.ready();
  const report = scrubFile({ path: store.path, integrity: true }, () => {});
  assert.deepEqual(report.integrity, []);
  assert.equal(report.actual, report.expected);
  assert.equal(report.expected, Buffer.from(store.expected.total()).toString('hex'));
}

/** What a power cut may leave: the file as its last checkpoint made it, without anything of the WAL. */
function loseWal(path: string): void {
  const bytes = statSync(`${path}-wal`).size;
  assert.ok(bytes > 0, 'there was a WAL to lose');
  copyFileSync(path, `${path}.cut`);
  for (const suffix of ['', '-wal', '-shm']) rmSync(path + suffix);
  copyFileSync(`${path}.cut`, path);
}

test('a power cut that loses the whole WAL costs nothing: the log gives the same rows and fingerprint', async (t) => {
  const { open, path } = await setUp(t);
  const store = await open({ opened: false });
  await migrateStore(store, [
    ...SHARED_SCHEMA,
    `create virtual table docs using fts5 (body);
     insert into rows (body) select hex(randomblob(8)) from (values (1), (2), (3))`,
    'alter table rows add column extra text',
  ]);
  await insert(store, 'checkpointed');
  await store.checkpoint();
  const durable = store.durable;
  assert.equal(durable, store.applied.lsn);
  for (let n = 0; n < 20; n += 1)
    await run(store, (tx) => {
      tx.run('insert into rows (body, extra) values (?, ?)', [`row ${n}`, 'x']);
      tx.run('insert into docs (body) values (?)', [`word${n} all`]);
      if (n % 4 === 0) tx.run('delete from rows where id = (select max(id) from rows)');
    });
  await migrateStore(store, [
    ...SHARED_SCHEMA,
    'select 1',
    'select 1',
    `create table later (id integer primary key, r integer);
     insert into later select id, random() from rows`,
  ]);
  const whole = (from: TenantStore): Promise<unknown> =>
    from.read(({ database }) => [
      database.prepare('select * from rows order by id').all(),
      database.prepare('select id, cast(r as text) from later order by id').all(),
      database.prepare('select * from sqlite_sequence order by name').all(),
      database.prepare('select rowid from docs where docs match ?').all('all'),
      database.prepare('select sql from sqlite_schema order by name').all(),
    ]);
  const [before, fingerprint] = [await whole(store), store.expected.total()];
  store.writer.database.exec('select 1'); // the store is left open, as a process that is cut off leaves it
  loseWal(path);

  const again = await open();
  assert.ok(again.applied.lsn > durable);
  assert.deepEqual(await whole(again), before);
  assert.deepEqual(again.expected.total(), fingerprint);
  await assertSound(again);
  await insert(again, 'goes on');
});

test('what a crash left in the WAL does not count as durable before it is in the file', async (t) => {
  const { open, path, checkpoints } = await setUp(t);
  const store = await open({ opened: false });
  await migrateStore(store, SHARED_SCHEMA);
  await insert(store, 'one');
  // The fingerprint is noted in the file before a checkpoint; here that one fails.
  checkpoints.failing = true;
  await assert.rejects(store.checkpoint(), { code: 'DISK_FULL' });
  assert.ok(store.durable < store.applied.lsn);

  checkpoints.failing = false;
  const copy = `${path}.crashed`;
  copyFileSync(path, copy);
  copyFileSync(`${path}-wal`, `${copy}-wal`);
  const again = await open({ path: copy });
  assert.equal(again.applied.lsn, store.applied.lsn);
  assert.ok(again.durable < again.applied.lsn, `durable ${again.durable}, applied ${again.applied.lsn}`);
  assert.equal(again.lag, again.durable, 'so the log is kept for it');
  await again.checkpoint();
  assert.equal(again.durable, again.applied.lsn);
});

test('a COMMIT that fails on committed records is a success: the tenant replays and goes on', async (t) => {
  const { open, log } = await setUp(t);
  const store = await open({ opened: false });
  await migrateStore(store, SHARED_SCHEMA);
  let fired = 0;
  const failCommit = (): void => {
    log.onAppend = () => {};
    fired += 1;
    store.writer.database.exec('rollback'); // COMMIT finds no transaction
  };
  log.onAppend = failCommit;
  const ids = await Promise.all([insert(store, 'a'), insert(store, 'b')]);
  assert.equal(fired, 1);
  assert.deepEqual(ids, [1, 2]);
  assert.deepEqual(await bodies(store), ['a', 'b']);

  log.onAppend = failCommit;
  const deps = { clock: systemClock, limits: DEFAULT_LIMITS };
  const asynchronous = runTransaction(
    store,
    async (tx) => {
      await Promise.resolve();
      tx.run("insert into rows (body) values ('c')");
    },
    { int64: 'number', timeoutMs: 1_000 },
    deps,
  );
  await asynchronous;
  assert.equal(fired, 2);
  assert.deepEqual(await bodies(store), ['a', 'b', 'c'], 'a read waits until the file has caught up');
  await insert(store, 'd');
  assert.deepEqual(await bodies(store), ['a', 'b', 'c', 'd']);
  await assertSound(store);
});

test('a migration whose COMMIT fails is not run a second time', async (t) => {
  const { open, log } = await setUp(t);
  const store = await open({ opened: false });
  let fired = 0;
  log.onAppend = () => {
    log.onAppend = () => {};
    fired += 1;
    store.writer.database.exec('rollback');
  };
  await migrateStore(store, [...SHARED_SCHEMA, "insert into rows (body) values ('seed')"]);
  assert.equal(fired, 1);
  assert.equal(store.schemaVersion, 2);
  assert.equal(log.records.filter(({ kind }) => kind === RecordKind.schema).length, 2);
  assert.deepEqual(await bodies(store), ['seed']);
  await assertSound(store);
  await store.close();
  assert.deepEqual(await bodies(await open()), ['seed']);
});

test('writes that the log refuses leave nothing, and the next ones succeed', async (t) => {
  const { open, log } = await setUp(t);
  const store = await open({ opened: false });
  await migrateStore(store, SHARED_SCHEMA);
  await insert(store, 'before');
  const fingerprint = store.expected.total();
  let fired = 0;
  log.beforeAppend = () => {
    fired += 1;
    throw new NostosError('DISK_FULL', 'no space left');
  };
  const results = await Promise.allSettled([insert(store, 'x'), insert(store, 'y')]);
  assert.deepEqual(
    results.map(({ status }) => status),
    ['rejected', 'rejected'],
  );
  await failsWith(insert(store, 'z'), 'DISK_FULL');
  await failsWith(migrateStore(store, [...SHARED_SCHEMA, 'create table other (id integer primary key)']), 'DISK_FULL');
  assert.equal(fired, 3);
  assert.deepEqual(await bodies(store), ['before']);
  assert.deepEqual(store.expected.total(), fingerprint);
  log.beforeAppend = () => {};
  assert.equal(await insert(store, 'after'), 2, 'the counter went back as well');
  await assertSound(store);
});

for (const kept of [true, false])
  test(`after an outcome that is not known the tenant follows the log, which ${kept ? 'has' : 'lacks'} the record`, async (t) => {
    const { open, log } = await setUp(t);
    const store = await open({ opened: false });
    await migrateStore(store, SHARED_SCHEMA);
    let fired = 0;
    const fail = (): void => {
      log.onAppend = log.beforeAppend = () => {};
      fired += 1;
      throw new NostosError('OUTCOME_UNKNOWN', 'the disk failed');
    };
    if (kept) log.onAppend = fail;
    else log.beforeAppend = fail;
    await failsWith(insert(store, 'perhaps'), 'OUTCOME_UNKNOWN');
    assert.equal(fired, 1);
    assert.ok(store.lag !== undefined, 'the log is kept until that is settled');
    await insert(store, 'after');
    assert.deepEqual(await bodies(store), kept ? ['perhaps', 'after'] : ['after']);
    await assertSound(store);
  });

for (const schema of [SHARED_SCHEMA, SCHEMA])
  test(`a database that is full fails only the transaction that fills it (${schema === SCHEMA ? 'separate' : 'shared'} group)`, async (t) => {
    const { open } = await setUp(t);
    const store = await open({ opened: false });
    await migrateStore(store, schema);
    await insert(store, 'before');
    const { database } = store.writer;
    const pages = (database.prepare('pragma page_count').get() as { page_count: number }).page_count;
    database.exec(`pragma max_page_count = ${pages + 8}`);
    const results = await Promise.allSettled([
      insert(store, 'a'),
      insert(store, 'b'),
      run(store, (tx) => tx.run('insert into rows (body) values (hex(zeroblob(100000)))')),
      insert(store, 'c'),
    ]);
    assert.deepEqual(
      results.map(({ status }) => status),
      ['fulfilled', 'fulfilled', 'rejected', 'fulfilled'],
    );
    assert.ok(isNostosError((results[2] as PromiseRejectedResult).reason, 'DISK_FULL'));
    assert.deepEqual(await bodies(store), ['before', 'a', 'b', 'c']);
    await assertSound(store);
    await store.close();
    const again = await open();
    assert.deepEqual(await bodies(again), ['before', 'a', 'b', 'c']);
    assert.equal(await insert(again, 'd'), 5, 'AUTOINCREMENT goes on above what was given');
  });

test('a group that SQLite rolled back is restored from its records, counters too', async (t) => {
  const { open } = await setUp(t);
  const store = await open({ opened: false });
  await migrateStore(store, SCHEMA);
  assert.equal(await insert(store, 'before'), 1);
  const results = await Promise.allSettled([
    insert(store, 'a'),
    insert(store, 'b'),
    run(store, (tx) => tx.run("delete from rows where body = 'b'").changes),
    run(store, (tx) => tx.run('insert into strict_rows values (1, null)')), // ON CONFLICT ROLLBACK
    insert(store, 'c'),
  ]);
  assert.deepEqual(
    results.map((result) => (result.status === 'fulfilled' ? result.value : 'failed')),
    [2, 3, 1, 'failed', 4],
  );
  assert.deepEqual(await bodies(store), ['before', 'a', 'c']);
  await assertSound(store);
});

test('a group whose changes do not fit one record is split, and one transaction that does not fit is refused', async (t) => {
  const { open, log } = await setUp(t);
  const limits = { recordBytesMax: 164 * 1024 };
  const store = await open({ opened: false, limits });
  await migrateStore(store, SHARED_SCHEMA);
  const before = log.records.length;
  const big = 'x'.repeat(60_000);
  const results = await Promise.allSettled([
    insert(store, big),
    insert(store, big),
    insert(store, 'y'.repeat(200_000)),
    insert(store, big),
    insert(store, 'small'),
  ]);
  assert.deepEqual(
    results.map(({ status }) => status),
    ['fulfilled', 'fulfilled', 'rejected', 'fulfilled', 'fulfilled'],
  );
  assert.ok(isNostosError((results[2] as PromiseRejectedResult).reason, 'TRANSACTION_TOO_LARGE'));
  assert.ok(log.records.length - before >= 2);
  for (const { payload } of log.records) assert.ok(payload.length <= limits.recordBytesMax);
  await failsWith(
    migrateStore(store, [...SHARED_SCHEMA, 'insert into rows (body) values (hex(zeroblob(100000)))']),
    'TRANSACTION_TOO_LARGE',
  );
  assert.equal((await bodies(store)).length, 4);
  await assertSound(store);
});

test('a file that is lost is made again while the log holds all of the tenant, and refused afterwards', async (t) => {
  const { open, log, path } = await setUp(t);
  const store = await open({ opened: false });
  await migrateStore(store, SHARED_SCHEMA);
  for (const body of ['a', 'b', 'c']) await insert(store, body);
  const fingerprint = store.expected.total();
  await store.close();
  log.durable = log.watermark; // nothing is left that a file might lack
  rmSync(path);
  const again = await open();
  assert.deepEqual(await bodies(again), ['a', 'b', 'c']);
  assert.deepEqual(again.expected.total(), fingerprint);
  await again.close();

  rmSync(path);
  log.locate = async () => ({ last: 0 as Lsn, durable: log.durable }); // the beginning is pruned
  await failsWith(open(), 'TENANT_DAMAGED');
});

test('an idle tenant opens although the log below its next record is gone', async (t) => {
  const { open, log } = await setUp(t);
  const store = await open({ opened: false });
  await migrateStore(store, SHARED_SCHEMA);
  await insert(store, 'a');
  await store.close();
  const other = { tenant: toTenantId(2), kind: RecordKind.noop, payload: new Uint8Array(1) };
  for (let n = 0; n < 10; n += 1) await log.append([other]);
  log.durable = log.watermark;
  const again = await open();
  await insert(again, 'b'); // and then the process dies
  const read = log.readPage.bind(log);
  let lowest = Infinity;
  log.readPage = (request) => {
    lowest = Math.min(lowest, request.from);
    return read(request);
  };
  await (await open()).close();
  assert.ok(lowest > log.durable, `read from ${lowest}, pruned up to ${log.durable}`);
  assert.ok(lowest < Infinity);
});

test('rows that were changed behind our back stop a replay instead of being built upon', async (t) => {
  const { open, path, log } = await setUp(t);
  const store = await open({ opened: false });
  await migrateStore(store, SHARED_SCHEMA);
  await insert(store, 'a');
  await store.checkpoint();
  await run(store, (tx) => tx.run("update rows set body = 'b' where id = 1"));
  loseWal(path);
  const { DatabaseSync } = await import('node:sqlite');
  {
    using outside = new DatabaseSync(path);
    outside.exec("update rows set body = 'tampered' where id = 1");
  }
  await failsWith(open(), 'TENANT_DAMAGED');
  assert.ok(log.records.length > 0);
});

test('closing lets what runs end, refuses what comes later, and answers everybody', async (t) => {
  const { open, path } = await setUp(t);
  const store = await open({ opened: false });
  await migrateStore(store, SHARED_SCHEMA);
  const writes = Array.from({ length: 20 }, (_, n) => insert(store, `row ${n}`));
  const closing = store.close();
  await failsWith(
    store.read(() => 1).then(() => store.write(() => 1, { int64: 'number' })),
    'CLOSED',
  );
  await Promise.all([...writes, closing]);
  await failsWith(insert(store, 'late'), 'CLOSED');
  await failsWith(store.reader(), 'CLOSED');
  assert.ok(!existsSync(`${path}-wal`), `nothing is left open in ${dirname(path)}`);
  assert.equal((await bodies(await open())).length, 20);
});

test('a queue that is full refuses users, but neither checkpoints nor closing', async (t) => {
  const { open } = await setUp(t);
  const store = await open({ opened: false, limits: { tenantQueueMax: 3 } });
  await migrateStore(store, SHARED_SCHEMA);
  const writes = [insert(store, 'a'), insert(store, 'b'), insert(store, 'c')];
  const refused = [
    insert(store, 'd'),
    runTransaction(
      store,
      async () => {},
      { int64: 'number', timeoutMs: 100 },
      { clock: systemClock, limits: DEFAULT_LIMITS },
    ),
  ];
  const checkpoint = store.checkpoint();
  for (const call of refused) await failsWith(call, 'QUEUE_FULL');
  await Promise.all([...writes, checkpoint]);
  assert.equal(store.durable, store.applied.lsn);
});

/** What would move the WAL into the file, if that were not held. */
const WHILE_HELD: readonly { readonly what: string; readonly act: (store: TenantStore) => Promise<unknown> }[] = [
  {
    what: 'writers fill the WAL beyond its limits',
    act: async (store) => {
      for (let n = 0; n < 30; n += 1) await insert(store, 'x'.repeat(20_000));
    },
  },
  { what: 'its turn for a checkpoint comes', act: (store) => store.checkpoint() },
  {
    what: 'it has to be opened anew',
    act: async (store) => {
      store.invalidate();
      await store.ready();
    },
  },
  {
    what: 'it is migrated',
    act: (store) => migrateStore(store, [...SHARED_SCHEMA, 'create table more (id integer primary key)']),
  },
];

for (const { what, act } of WHILE_HELD)
  test(`a file that is held stays as it is although ${what}`, async (t) => {
    const { open, path, dir } = await setUp(t);
    const limits = { checkpointBytes: 64 * 1024, checkpointHoldBytes: 128 * 1024 };
    const store = await open({ opened: false, limits });
    await migrateStore(store, SHARED_SCHEMA);
    await insert(store, 'before');
    let lost: NostosError | undefined;
    const holder = { onLost: (error: NostosError) => (lost = error) };
    const held = (await store.hold(holder))!;
    assert.equal(held.applied.lsn, store.applied.lsn);
    const bytes = readFileSync(path);
    assert.equal(held.bytes, bytes.length);
    await insert(store, 'meanwhile');
    const walBytes = store.walBytes();
    await act(store);
    await insert(store, 'after');
    assert.ok(store.walBytes() >= walBytes, 'the WAL has grown');
    assert.ok(readFileSync(path).equals(bytes), 'the file has not changed');
    assert.equal(lost, undefined);

    const copy = join(dir, 'copy.sqlite');
    copyFileSync(path, copy);
    const copied = await open({ path: copy });
    assert.deepEqual(await bodies(copied), await bodies(store), 'the copy catches up from the log');
    await assertSound(copied);
    store.releaseHold(holder);
    await store.checkpoint();
    assert.equal(store.durable, store.applied.lsn);
    assert.ok(!readFileSync(path).equals(bytes), 'afterwards it goes on');
    await assertSound(store);
  });

test('a hold is lost when its WAL exceeds the limit or the tenant closes, before the file changes', async (t) => {
  const { open, path } = await setUp(t);
  const limits = { checkpointBytes: 64 * 1024, checkpointHoldBytes: 128 * 1024, restoreHoldBytesMax: 512 * 1024 };
  const store = await open({ opened: false, limits });
  await migrateStore(store, SHARED_SCHEMA);
  const told: { readonly code: ErrorCode; readonly unchanged: boolean }[] = [];
  for (const end of ['bytes', 'close'] as const) {
    const holders = [1, 2].map(() => ({
      onLost: (error: NostosError) => told.push({ code: error.code, unchanged: readFileSync(path).equals(bytes) }),
    }));
    for (const holder of holders) assert.ok(await store.hold(holder));
    const bytes = readFileSync(path);
    if (end === 'bytes') for (let n = 0; told.length === 0 && n < 100; n += 1) await insert(store, 'x'.repeat(20_000));
    else await store.close();
    for (const holder of holders) store.releaseHold(holder); // which no longer means anything
  }
  assert.deepEqual(
    told,
    ['RESERVATION_EXPIRED', 'RESERVATION_EXPIRED', 'TENANT_NOT_FOUND', 'TENANT_NOT_FOUND'].map((code) => ({
      code,
      unchanged: true,
    })),
  );
  await failsWith(store.hold({ onLost: () => {} }), 'CLOSED');
  assert.ok(!existsSync(`${path}-wal`), 'and everything is in the file');
});

test('a reader with an older snapshot keeps a hold from beginning, and writers do not wait for it', async (t) => {
  const { open, path } = await setUp(t);
  const store = await open({ opened: false });
  await migrateStore(store, SHARED_SCHEMA);
  await insert(store, 'one');
  using reader = new DatabaseSync(path, { readOnly: true });
  reader.exec('begin; select count(*) from rows');
  await insert(store, 'two');
  const holder = { onLost: () => assert.fail('it was never held') };
  assert.equal(await store.hold(holder), undefined);
  await insert(store, 'three');
  reader.exec('rollback');
  assert.equal((await store.hold({ onLost: () => {} }))!.applied.lsn, store.applied.lsn);
});
