/** A tenant of a replica: it applies what is committed, is read meanwhile, and changes its role. */
import assert from 'node:assert/strict';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import type { Lsn } from '../base/brands.ts';
import { systemClock } from '../base/clock.ts';
import { NostosError, isNostosError } from '../base/errors.ts';
import { DEFAULT_LIMITS } from '../base/limits.ts';
import { seededRandom } from '../base/random.ts';
import { RecordKind } from '../log/record.ts';
import type { MemoryLog } from '../testing/memory-log.ts';
import { assertSound, contentOf, copyOf, failsWith, groupLog, stores, write } from '../testing/tenant-store.fixture.ts';
import { migrateStore, runTransaction } from './tenant.ts';
import type { WriterTransaction } from './writer-transaction.ts';

const MIGRATIONS = [
  'create table rows (id integer primary key autoincrement, body text); create virtual table docs using fts5 (body)',
  'create table totals (k text primary key not null, n integer) without rowid',
  'alter table rows add column extra text',
  (tx: WriterTransaction) => void tx.run('update rows set extra = hex(randomblob(4))'),
];
const insert = (body: string) => (tx: WriterTransaction) =>
  tx.run('insert into rows (body) values (?)', [body]).lastInsertRowid;
const end = (log: MemoryLog): Lsn => log.records.length as Lsn;
const deps = { clock: systemClock, limits: DEFAULT_LIMITS };

/** An empty log of a replica, into which the records of another one come. */
function following(): MemoryLog {
  const log = copyOf({ records: [] } as unknown as MemoryLog, 0);
  log.committing = false;
  return log;
}

test('applied in any pieces, given or read from the log, a replica has the rows and the fingerprint of the primary', async (t) => {
  const files = stores(t);
  const log = await groupLog({ prompt: true });
  const primary = await files.open(log, { path: files.newPath() });
  const random = seededRandom(7);
  for (let i = 0; i < 60; i++) {
    if (i % 15 === 0) await migrateStore(primary, MIGRATIONS.slice(0, 1 + i / 15));
    if (random.chance(0.2))
      await log.append([{ tenant: 2 as never, kind: RecordKind.changeset, payload: random.bytes(9) }]);
    await write(primary, random.chance(0.5) ? 'quorum' : 'local', (tx) => {
      insert(`row ${i}`)(tx);
      tx.run('insert into docs (body) values (?)', [`word${i} all`]);
      if (random.chance(0.3)) tx.run('delete from rows where id = (select min(id) from rows)');
      if (i > 15) tx.run("insert into totals values ('n', 1) on conflict do update set n = n + 1");
    });
    log.commitTo(end(log));
  }
  const ways = { given: 0, read: 0, reopened: 0 };
  for (let seed = 0; seed < 12; seed++) {
    const pieces = seededRandom(seed);
    const own = following();
    own.records.push(log.records[0]!);
    own.commitTo(1 as Lsn);
    const path = files.newPath();
    let replica = await files.open(own, { path, role: 'replica' });
    while (end(own) < end(log)) {
      const after = end(own);
      const next = Math.min(end(log), after + 1 + pieces.below(pieces.chance(0.3) ? 30 : 4)) as Lsn;
      own.records.push(...log.records.slice(after, next));
      own.commitTo(next);
      assert.equal(replica.lag, replica.durable < replica.applied.lsn ? replica.durable : replica.appliedTo);
      const given = pieces.chance(0.5);
      const records = log.records.slice(after, next).filter(({ tenant }) => tenant === replica.identity.id);
      const pages = own.pagesRead;
      assert.equal(await replica.applyUpTo(next, given ? { after, records } : undefined), next);
      if (given) assert.equal(own.pagesRead, pages, 'what is given is not read');
      ways[given ? 'given' : 'read'] += 1;
      if (pieces.chance(0.1)) {
        await replica.close();
        replica = await files.open(own, { path, role: 'replica' });
        ways.reopened += 1;
      }
    }
    assert.deepEqual(contentOf(replica), contentOf(primary), `seed ${seed}`);
    assert.deepEqual([...replica.shapes().keys()], [...primary.shapes().keys()]);
    assertSound(replica);
    const found = await replica.read(({ database }) =>
      database.prepare("select count(*) as n from docs where docs match 'all'").get(),
    );
    assert.equal(found?.['n'], 60, 'full text is found');
    await replica.close();
  }
  assert.ok(ways.given > 20 && ways.read > 20 && ways.reopened > 5, JSON.stringify(ways));
});

test('who reads meanwhile sees the rows of one position, and the position itself', async (t) => {
  const files = stores(t);
  const log = await groupLog({ prompt: true });
  const primary = await files.open(log, { path: files.newPath() });
  await migrateStore(primary, MIGRATIONS.slice(0, 2));
  const rowsAt = new Map<number, number>();
  for (let i = 1; i <= 40; i++) {
    await write(primary, 'quorum', insert(`row ${i}`));
    rowsAt.set(primary.applied.lsn, i);
  }
  const own = following();
  own.records.push(...log.records.slice(0, 3));
  own.commitTo(3 as Lsn);
  const path = files.newPath();
  const replica = await files.open(own, { path, role: 'replica' });
  using reader = new DatabaseSync(path, { readOnly: true });
  const look = (): number => {
    const { lsn } = reader.prepare('select lsn from nostos_meta').get() as { lsn: number };
    const { n } = reader.prepare('select count(*) as n from rows').get() as { n: number };
    assert.equal(n, rowsAt.get(lsn) ?? 0, `at ${lsn}`);
    return lsn;
  };
  const seen = new Set<number>();
  for (let next = 5; next <= end(log); next += 5) {
    own.records.push(...log.records.slice(end(own), next));
    own.commitTo(end(own));
    reader.exec('begin');
    const before = look();
    await replica.applyUpTo(end(own));
    assert.equal(look(), before, 'a snapshot stays');
    reader.exec('commit');
    seen.add(look());
  }
  assert.ok(seen.size >= 7);
});

test('calls for each new watermark are cheap: those that wait are done with the one that works', async (t) => {
  const files = stores(t);
  const log = await groupLog({ prompt: true });
  const primary = await files.open(log, { path: files.newPath() });
  await migrateStore(primary, MIGRATIONS.slice(0, 1));
  for (let i = 0; i < 30; i++) await write(primary, 'quorum', insert(`row ${i}`));
  const own = copyOf(log);
  own.committing = false;
  own.commitTo(2 as Lsn);
  const replica = await files.open(own, { path: files.newPath(), role: 'replica' });
  own.commitTo(end(own));
  own.pagesRead = 0;
  const done = await Promise.all(Array.from({ length: 28 }, (_, i) => replica.applyUpTo((i + 3) as Lsn)));
  assert.ok(
    done.every((lsn) => lsn >= 30),
    String(done),
  );
  assert.ok(own.pagesRead <= 2, `${own.pagesRead} pages`);
  await replica.applyUpTo(end(own));
  assert.deepEqual(contentOf(replica), contentOf(primary));
});

test('a replica refuses what writes, and never applies what is not committed', async (t) => {
  const files = stores(t);
  const log = await groupLog({ prompt: true });
  const primary = await files.open(log, { path: files.newPath() });
  await migrateStore(primary, MIGRATIONS.slice(0, 1));
  await write(primary, 'quorum', insert('committed'));
  const own = copyOf(log);
  own.committing = false;
  own.commitTo((end(own) - 1) as Lsn);
  const replica = await files.open(own, { path: files.newPath(), role: 'replica' });
  assert.equal(await replica.applyUpTo(99 as Lsn), end(own) - 1);
  await failsWith(write(replica, 'quorum', insert('x')), 'NOT_PRIMARY');
  await failsWith(write(replica, 'local', insert('x')), 'NOT_PRIMARY');
  await failsWith(migrateStore(replica, MIGRATIONS.slice(0, 2)), 'NOT_PRIMARY');
  const options = { int64: 'number', timeoutMs: 1_000 } as const;
  await failsWith(
    runTransaction(replica, async (tx) => void insert('x')(tx), options, deps),
    'NOT_PRIMARY',
  );
  const count = await replica.read(({ database }) => database.prepare('select count(*) as n from rows').get());
  assert.equal(count?.['n'], 0);
  await replica.checkpoint();
  assert.equal(replica.durable, replica.applied.lsn);
});

test('records that do not fit the rows are refused, and the file stays where it was', async (t) => {
  const files = stores(t);
  const log = await groupLog({ prompt: true });
  const primary = await files.open(log, { path: files.newPath() });
  await migrateStore(primary, MIGRATIONS.slice(0, 1));
  await write(primary, 'quorum', insert('one'));
  const own = copyOf(log);
  own.committing = false;
  own.commitTo(end(own));
  const path = files.newPath();
  const replica = await files.open(own, { path, role: 'replica' });
  await write(primary, 'quorum', (tx) => tx.run("update rows set body = 'two'"));
  using rogue = new DatabaseSync(path);
  rogue.exec("update rows set body = 'rogue'");
  own.records.push(log.records.at(-1)!);
  own.commitTo(end(own));
  const before = replica.applied;
  await failsWith(replica.applyUpTo(end(own)), 'TENANT_DAMAGED');
  assert.deepEqual(replica.applied, before);
  rogue.exec("update rows set body = 'one'");
  await replica.applyUpTo(end(own));
  assert.deepEqual(contentOf(replica), contentOf(primary));
});

test('stepping down ends what is open, and says of what waits where it stands; what the group kept comes back', async (t) => {
  const files = stores(t);
  const log = await groupLog({ prompt: true });
  const store = await files.open(log, { path: files.newPath() });
  await migrateStore(store, MIGRATIONS.slice(0, 1));
  await write(store, 'quorum', insert('committed'));
  log.onQuorum = () => {};
  const waiting = write(store, 'quorum', insert('waiting'));
  const queued = write(store, 'quorum', insert('queued'));
  await new Promise(setImmediate);
  const behind = runTransaction(
    store,
    async () => assert.fail('it never began'),
    { int64: 'number', timeoutMs: 5_000 },
    deps,
  );
  const later = write(store, 'local', insert('later'));
  const rejected = Promise.allSettled([waiting, queued, behind, later]);
  const stepped = store.becomeReplica();
  await failsWith(write(store, 'local', insert('after')), 'NOT_PRIMARY');
  log.stepDown();
  await stepped;
  const [first, ...others] = await rejected;
  assert.ok(first?.status === 'rejected' && isNostosError(first.reason, 'OUTCOME_UNKNOWN'));
  assert.equal((first.reason.details['position'] as { lsn: number }).lsn, end(log));
  for (const one of others) {
    assert.ok(one.status === 'rejected');
    // The second write shares the first one's group.
    assert.ok(isNostosError(one.reason, 'NOT_PRIMARY') || isNostosError(one.reason, 'OUTCOME_UNKNOWN'));
  }
  const count = (): Promise<unknown> =>
    store.read(({ database }) => database.prepare('select count(*) as n from rows').get()?.['n']);
  assert.equal(await count(), 1, 'not yet committed');
  log.commitTo(end(log));
  await store.applyUpTo(end(log));
  assert.equal(await count(), 3, 'the new primary kept the record');
  assertSound(store);
});

test('who reads at a position does not fail with the first try to apply it: the file is opened anew', async (t) => {
  const files = stores(t);
  const log = await groupLog({ prompt: true });
  const primary = await files.open(log, { path: files.newPath() });
  await migrateStore(primary, MIGRATIONS.slice(0, 1));
  const own = copyOf(log);
  own.committing = false;
  own.commitTo(end(own));
  const replica = await files.open(own, { path: files.newPath(), role: 'replica' });
  for (let i = 0; i < 5; i += 1) await write(primary, 'quorum', insert(`row ${i}`));
  own.records.push(...log.records.slice(end(own)));
  own.commitTo(end(own));
  const readPage = own.readPage.bind(own);
  let failures = 1;
  own.readPage = (request) =>
    (failures -= 1) >= 0 ? Promise.reject(new NostosError('IO_FAILED', 'disk I/O error')) : readPage(request);
  assert.equal(await replica.applyUpTo(end(own)), end(own));
  assert.ok(failures < 0, 'it has failed once');
  assert.deepEqual(contentOf(replica), contentOf(primary));
  failures = Infinity;
  await write(primary, 'quorum', insert('one more'));
  own.records.push(...log.records.slice(end(own)));
  own.commitTo(end(own));
  await failsWith(replica.applyUpTo(end(own)), 'IO_FAILED');
  failures = 0;
  assert.equal(await replica.applyUpTo(end(own)), end(own));
  assert.deepEqual(contentOf(replica), contentOf(primary));
});

test('an open transaction ends at once when its node steps down', async (t) => {
  const files = stores(t);
  const log = await groupLog({ prompt: true });
  const store = await files.open(log, { path: files.newPath() });
  await migrateStore(store, MIGRATIONS.slice(0, 1));
  const never = new Promise<never>(() => {});
  let use: (() => unknown) | undefined;
  const open = runTransaction(
    store,
    async (tx) => {
      insert('open')(tx);
      use = () => insert('still open')(tx);
      await never;
    },
    { int64: 'number', timeoutMs: 60_000 },
    deps,
  );
  const failed = failsWith(open, 'NOT_PRIMARY');
  while (use === undefined) await new Promise(setImmediate);
  await store.becomeReplica();
  await failed;
  assert.throws(use, { code: 'CLOSED' });
  assert.equal(log.records.length, 2);
});

test('who becomes primary has applied the tail before the first transaction, and counts on where it ended', async (t) => {
  const files = stores(t);
  const log = await groupLog({ prompt: true });
  const first = await files.open(log, { path: files.newPath() });
  await migrateStore(first, MIGRATIONS.slice(0, 1));
  const own = copyOf(log);
  own.committing = false;
  own.commitTo(end(own));
  const path = files.newPath();
  const second = await files.open(own, { path, role: 'replica' });
  for (const body of ['a', 'b', 'c']) await write(first, 'quorum', insert(body));
  await write(first, 'quorum', (tx) => tx.run("delete from rows where body = 'c'"));
  own.records.push(...log.records.slice(end(own)));
  own.commitTo(end(own));
  await second.becomePrimary();
  own.onQuorum = () => own.commitTo(end(own));
  assert.equal(await write(second, 'quorum', insert('d')), 4, 'the number of the deleted row is not used again');
  assert.equal(await write(second, 'quorum', (tx) => (tx.run("insert into docs (body) values ('home')"), 1)), 1);
  await second.becomeReplica();
  await second.becomePrimary();
  assert.equal(await write(second, 'local', insert('e')), 5);
  const found = await second.read(({ database }) =>
    database.prepare("select count(*) as n from docs where docs match 'home'").get(),
  );
  assert.equal(found?.['n'], 1);
  assertSound(second);
});
