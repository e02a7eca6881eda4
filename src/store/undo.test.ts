/** `local` writes, and taking them back: at any record, as often as it takes, whatever a crash leaves. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DatabaseSync } from 'node:sqlite';
import { DEFAULT_LIMITS } from '../base/limits.ts';
import type { Lsn, TenantId } from '../base/brands.ts';
import { systemClock } from '../base/clock.ts';
import { isNostosError } from '../base/errors.ts';
import { seededRandom, type SeededRandom } from '../base/random.ts';
import type { CommittedRecord } from '../log/commit-log.ts';
import { RecordKind } from '../log/record.ts';
import type { MemoryLog } from '../testing/memory-log.ts';
import { randomSchema, randomTransaction, type RandomSchema, type Step } from '../testing/random-schema.ts';
import { decodeChangesetPayload, decodeSchemaPayload, type SequenceValue } from './payload.ts';
import {
  OTHER_TENANT,
  assertSound,
  contentOf,
  copyFiles,
  copyOf,
  failsWith,
  groupLog,
  stores,
  write,
  type Stores,
} from '../testing/tenant-store.fixture.ts';
import type { TenantStore } from './tenant-store.ts';
import { idempotent, migrateStore, runTransaction } from './tenant.ts';
import type { WriterTransaction } from './writer-transaction.ts';

const ROWS = ['create table rows (id integer primary key autoincrement, body text)'];
const insert = (body: string) => (tx: WriterTransaction) =>
  tx.run('insert into rows (body) values (?)', [body]).lastInsertRowid;
const bodies = (store: TenantStore): Promise<unknown> =>
  store.read(({ database }) =>
    database
      .prepare('select body from rows order by id')
      .all()
      .map((row) => row['body']),
  );
const end = (log: MemoryLog): Lsn => log.records.length as Lsn;

/** A primary whose group has everything so far, and then stands still. */
async function slowGroup(files: Stores): Promise<{ log: MemoryLog; store: TenantStore; path: string }> {
  const log = await groupLog({ prompt: true });
  const path = files.newPath();
  const store = await files.open(log, { path });
  await migrateStore(store, ROWS);
  await write(store, 'quorum', insert('committed'));
  log.onQuorum = () => {};
  return { log, store, path };
}

test('a local write is answered and visible at once; a quorum write behind it is neither before the group has it', async (t) => {
  const { log, store } = await slowGroup(stores(t));
  await write(store, 'local', insert('local'));
  assert.ok(store.applied.lsn > log.watermark);
  let answered = false;
  const quorum = write(store, 'quorum', insert('quorum')).then(() => (answered = true));
  const behind = write(store, 'local', insert('behind'));
  await new Promise(setImmediate);
  assert.deepEqual(await bodies(store), ['committed', 'local']);
  assert.equal(answered, false);
  log.commitTo(end(log));
  await Promise.all([quorum, behind]);
  assert.deepEqual(await bodies(store), ['committed', 'local', 'quorum', 'behind']);
  const durabilities = log.records
    .filter(({ kind }) => kind === RecordKind.changeset)
    .map(({ payload }) => decodeChangesetPayload(payload).local);
  // The two that waited together are one group, and took the stricter of both.
  assert.deepEqual(durabilities, [false, true, false]);
  assertSound(store);
});

test('asynchronous transactions may be local; a migration behind them waits for the group', async (t) => {
  const { log, store } = await slowGroup(stores(t));
  const options = { int64: 'number', timeoutMs: 1_000, durability: 'local' } as const;
  const deps = { clock: systemClock, limits: DEFAULT_LIMITS };
  await runTransaction(store, async (tx) => void tx.run("insert into rows (body) values ('async')"), options, deps);
  assert.deepEqual(await bodies(store), ['committed', 'async']);
  let migrated = false;
  const migrating = migrateStore(store, [...ROWS, 'create table more (id integer primary key)']).finally(
    () => (migrated = true),
  );
  await new Promise(setImmediate);
  assert.equal(migrated, false);
  log.commitTo(end(log));
  await migrating;
  assert.equal(store.schemaVersion, 2);
});

test('a quorum transaction that writes nothing answers when what it may have read is committed', async (t) => {
  const { log, store } = await slowGroup(stores(t));
  await write(store, 'local', insert('local'));
  assert.equal(await write(store, 'local', (tx) => tx.value('select count(*) from rows')), 2);
  let answered = false;
  const reading = write(store, 'quorum', (tx) => tx.value('select count(*) from rows')).finally(
    () => (answered = true),
  );
  await new Promise(setImmediate);
  assert.equal(answered, false);
  log.commitTo(end(log));
  assert.equal(await reading, 2);

  await write(store, 'local', insert('lost'));
  const lost = write(store, 'quorum', (tx) => tx.value('select count(*) from rows'));
  await new Promise(setImmediate);
  const steppedDown = store.becomeReplica();
  await failsWith(lost, 'OUTCOME_UNKNOWN');
  await steppedDown;
});

test('a COMMIT that fails on a local record is a success, although the group does not have the record', async (t) => {
  const { log, store } = await slowGroup(stores(t));
  let fired = 0;
  log.onAppend = () => {
    log.onAppend = () => {};
    fired += 1;
    store.writer.database.exec('rollback'); // COMMIT finds no transaction
  };
  await write(store, 'local', insert('kept'));
  assert.equal(fired, 1);
  assert.ok(log.watermark < end(log));
  assert.deepEqual(await bodies(store), ['committed', 'kept']);
  await write(store, 'local', insert('next'));
  log.commitTo(end(log));
  assert.deepEqual(contentOf(store).fingerprint.length, 32);
  assertSound(store);
});

test('an id of a write that was taken back is new again, and so is the number that its row had', async (t) => {
  const files = stores(t);
  const { log, store } = await slowGroup(files);
  const deps = { clock: systemClock, limits: DEFAULT_LIMITS };
  const once = idempotent((tx: WriterTransaction) => insert('once')(tx), 'order-1', deps);
  const first = await store.write<number>(once, { int64: 'number', durability: 'local' });
  assert.equal(await store.write<number>(once, { int64: 'number', durability: 'local' }), first);
  await store.becomeReplica();
  assert.equal(await store.undoTo(log.pointAt(log.watermark)), 1);
  log.cutTo(log.watermark);
  await store.becomePrimary();
  await write(store, 'local', insert('another'));
  const again = await store.write<number>(once, { int64: 'number', durability: 'local' });
  assert.deepEqual([first, again], [2, 3]);
  assert.deepEqual(await bodies(store), ['committed', 'another', 'once']);
});

interface History {
  readonly log: MemoryLog;
  readonly store: TenantStore;
  readonly schema: RandomSchema;
}

/** Random writes over a random schema: of both kinds, and then a tail of local ones that the group does not have. */
async function randomHistory(files: Stores, random: SeededRandom, path: string): Promise<History | undefined> {
  const log = await groupLog({ prompt: true });
  const store = await files.open(log, { path });
  const schema = randomSchema(random);
  try {
    await migrateStore(store, [schema.statements.join(';\n')]);
  } catch (error) {
    if (isNostosError(error)) return undefined; // two of the schema's names collide with what a migration allows
    throw error;
  }
  for (let i = 0; i < 6; i++) {
    log.commitTo(end(log)); // also for a transaction that writes nothing and waits for what it has read
    await randomWrite(store, random, schema, random.chance(0.5) ? 'quorum' : 'local');
    if (random.chance(0.3)) await store.checkpoint();
  }
  for (let i = 0; i < 8; i++) {
    if (random.chance(0.3)) await log.append([foreign(random)], { durability: 'local' });
    await randomWrite(store, random, schema, 'local');
    if (random.chance(0.2)) await store.checkpoint();
  }
  return { log, store, schema };
}

const foreign = (random: SeededRandom) => ({
  tenant: OTHER_TENANT,
  kind: RecordKind.changeset,
  payload: random.bytes(50),
});

async function randomWrite(
  store: TenantStore,
  random: SeededRandom,
  schema: RandomSchema,
  durability: 'quorum' | 'local',
): Promise<void> {
  const steps = randomTransaction(random, schema);
  await write(store, durability, (tx) => runSteps(tx, steps)).catch((error: unknown) => {
    if (!isNostosError(error)) throw error; // as with any constraint: nothing of it is left
  });
}

function runSteps(tx: WriterTransaction, steps: readonly Step[]): void {
  for (const step of steps) {
    if (step.kind === 'run') tx.run(step.sql);
    else
      try {
        tx.savepoint(() => {
          runSteps(tx, step.steps);
          if (step.undo) throw new Error('undo');
        });
      } catch {
        // the savepoint is undone
      }
  }
}

/**
 * Without the counters: an UPDATE of a key raises those where it is applied, but not where it was made. Where they are to
 * be after an undo, `namedCounters` says.
 */
function rowsOf(store: TenantStore): unknown {
  const { dump, fingerprint } = contentOf(store);
  const { sqlite_sequence: _counters, ...rows } = dump.rows;
  return { ...dump, rows, fingerprint };
}

function countersIn(records: readonly CommittedRecord[], tenant: TenantId): readonly SequenceValue[] {
  return records
    .filter((record) => record.tenant === tenant)
    .flatMap(({ kind, payload }) => {
      if (kind === RecordKind.schema) return decodeSchemaPayload(payload).sequences;
      return kind === RecordKind.changeset ? decodeChangesetPayload(payload).sequences : [];
    });
}

/** What the records up to `target` say of the counters that later ones have moved. */
function namedCounters(log: MemoryLog, target: Lsn, tenant: TenantId): Record<string, bigint> {
  const moved = new Set(countersIn(log.records.slice(target), tenant).map(({ table }) => table));
  const named = countersIn(log.records.slice(0, target), tenant).filter(({ table }) => moved.has(table));
  return Object.fromEntries(named.map(({ table, value }) => [table, value]));
}

async function heldCounters(store: TenantStore, log: MemoryLog, target: Lsn): Promise<Record<string, bigint>> {
  const moved = new Set(countersIn(log.records.slice(target), store.identity.id).map(({ table }) => table));
  return store.read(({ database }) => {
    if (database.prepare("select 1 from sqlite_schema where name = 'sqlite_sequence'").get() === undefined) return {};
    const select = database.prepare('select name, seq from sqlite_sequence order by name');
    select.setReadBigInts(true);
    const rows = select.all().filter(({ name }) => moved.has(name as string));
    return Object.fromEntries(rows.map(({ name, seq }) => [name as string, seq as bigint]));
  });
}

test('undone to any record, a tenant is what the log up to there makes, and goes on from there', async (t) => {
  const files = stores(t);
  const counts = { histories: 0, targets: 0, undone: 0, pages: 0, wentOn: 0, counters: 0 };
  for (let seed = 0; seed < 15; seed++) {
    const random = seededRandom(seed);
    const path = files.newPath();
    const history = await randomHistory(files, random, path);
    if (history === undefined) continue;
    const { log, store, schema } = history;
    counts.histories += 1;
    const closed = random.chance(0.5);
    if (closed) await store.close();
    for (let target = log.watermark; target <= end(log); target = (target + 1 + random.below(3)) as Lsn) {
      const where = `seed ${seed}, undone to ${target} of ${end(log)}`;
      const copy = files.newPath();
      copyFiles(path, copy);
      const own = copyOf(log);
      own.committing = false;
      own.commitTo(log.watermark);
      const replica = await files.open(own, { path: copy, role: 'replica' });
      const before = own.pagesRead;
      const undone = await replica.undoTo(own.pointAt(target));
      counts.undone += undone;
      counts.pages += own.pagesRead - before;
      const expected = await files.open(copyOf(log, target), { path: files.newPath() });
      assert.deepEqual(rowsOf(replica), rowsOf(expected), where);
      const counters = namedCounters(log, target, replica.identity.id);
      assert.deepEqual(await heldCounters(replica, log, target), counters, where);
      counts.counters += Object.keys(counters).length;
      assert.ok(replica.applied.lsn <= target, where);
      if (undone > 0) assert.equal(replica.lag, undefined, `${where}: what is there is there durably`);
      counts.targets += 1;
      if (random.chance(0.3)) {
        // Another node leads now, and writes at the LSNs that were given up.
        own.cutTo(target);
        const leader = copyOf(log, target);
        leader.term = 2 as MemoryLog['term'];
        const led = await files.open(leader, { path: files.newPath() });
        for (let i = 0; i < 4; i++) await randomWrite(led, random, schema, 'quorum');
        own.records.push(...leader.records.slice(target));
        own.commitTo(end(own));
        await replica.applyUpTo(end(own));
        assert.deepEqual(rowsOf(replica), rowsOf(led), `${where}, went on`);
        counts.wentOn += end(own) > target ? 1 : 0;
        await led.close();
      }
      await Promise.all([replica.close(), expected.close()]);
    }
    await store.close();
  }
  assert.ok(
    counts.histories > 9 && counts.undone > 60 && counts.wentOn > 5 && counts.counters > 10,
    JSON.stringify(counts),
  );
});

test('many pages of records are undone newest first, without holding them all', async (t) => {
  const files = stores(t);
  const { log, store } = await slowGroup(files);
  for (let i = 0; i < 12; i++)
    await write(store, 'local', (tx) => {
      tx.run('insert into rows (body) values (?)', ['x'.repeat(1024 * 1024)]);
      tx.run('update rows set body = ? where id = 1', [`version ${i}`]);
    });
  await store.becomeReplica();
  log.pagesRead = 0;
  assert.equal(await store.undoTo(log.pointAt((log.watermark + 1) as Lsn)), 11);
  assert.ok(log.pagesRead >= 5, `${log.pagesRead} pages`);
  const [first, second] = (await bodies(store)) as string[];
  assert.deepEqual([first, second?.length], ['version 0', 1024 * 1024]);
  assertSound(store);
});

test('what is committed is never undone, and a tenant whose rows were changed is not undone wrongly', async (t) => {
  const files = stores(t);
  const { log, store, path } = await slowGroup(files);
  const below = log.pointAt((log.watermark - 1) as Lsn);
  await write(store, 'local', insert('local'));
  await failsWith(store.undoTo(below), 'INVALID_ARGUMENT');
  await store.becomeReplica();
  const before = contentOf(store);
  await failsWith(store.undoTo(below), 'ROLLBACK_REFUSED');
  assert.deepEqual(contentOf(store), before);
  await failsWith(store.undoTo({ ...log.pointAt(end(log)), term: 9 as MemoryLog['term'] }), 'POSITION_LOST');

  using rogue = new DatabaseSync(path);
  rogue.exec("update rows set body = 'rogue' where body = 'local'");
  await failsWith(store.undoTo(log.pointAt(log.watermark)), 'TENANT_DAMAGED');
  assert.deepEqual(await bodies(store), ['committed', 'rogue']);
  assert.equal(store.applied.lsn, end(log));
  rogue.exec("update rows set body = 'local' where body = 'rogue'");
  assert.equal(await store.undoTo(log.pointAt(log.watermark)), 1);
  assert.deepEqual(await bodies(store), ['committed']);
});

test('the log is not to be cut before the file itself is back: a reader in the way is told of, a copy is ended', async (t) => {
  const { log, store, path } = await slowGroup(stores(t));
  const lost: string[] = [];
  const holder = { onLost: ({ code }: { code: string }) => void lost.push(code) };
  assert.ok((await store.hold(holder)) !== undefined);
  await write(store, 'local', insert('local'));
  assert.equal(await store.hold({ onLost: () => {} }), undefined, 'what is not committed leaves no node');
  await store.becomeReplica();
  const reader = new DatabaseSync(path, { readOnly: true });
  reader.exec('begin');
  reader.prepare('select count(*) from rows').get();
  await failsWith(store.undoTo(log.pointAt(log.watermark)), 'RECOVER_FAILED');
  assert.deepEqual(lost, ['POSITION_LOST']);
  reader.exec('rollback');
  reader.close();
  assert.equal(await store.undoTo(log.pointAt(log.watermark)), 0, 'it was undone, and is durable now');
  assert.equal(store.lag, undefined);
});

test('a crash at any step of undoing and cutting leaves what a second attempt brings to the same end', async (t) => {
  const files = stores(t);
  const { log, store, path } = await slowGroup(files);
  await store.checkpoint();
  for (let i = 0; i < 5; i++) await write(store, 'local', insert(`local ${i}`));
  const target = log.watermark;
  const states: { what: string; path: string; log: MemoryLog }[] = [];
  const keep = (what: string, { wal = true, cut = end(log) } = {}): void => {
    const copy = files.newPath();
    copyFiles(path, copy, { wal });
    const own = copyOf(log, cut);
    own.committing = false;
    own.commitTo(target);
    states.push({ what, path: copy, log: own });
  };
  keep('before');
  keep('before, without the WAL', { wal: false });
  await store.checkpoint();
  keep('before, checkpointed', { wal: false });
  await store.becomeReplica();
  using blocker = new DatabaseSync(path, { readOnly: true });
  blocker.exec('begin');
  blocker.prepare('select count(*) from rows').get();
  await failsWith(store.undoTo(log.pointAt(target)), 'RECOVER_FAILED');
  keep('undone, in the WAL');
  keep('undone, and the WAL was lost', { wal: false });
  blocker.exec('rollback');
  await store.undoTo(log.pointAt(target));
  for (let cut = end(log); cut >= target; cut = (cut - 1) as Lsn) {
    keep(`undone durably, the log cut to ${cut}`, { cut });
    keep(`undone durably, the log cut to ${cut}, without the WAL`, { cut, wal: false });
  }
  const expected = await files.open(copyOf(log, target), { path: files.newPath() });
  for (const { what, path: found, log: own } of states) {
    const again = await files.open(own, { path: found, role: 'replica' });
    await again.undoTo(own.pointAt(target));
    own.cutTo(target);
    assert.deepEqual(contentOf(again), contentOf(expected), what);
    assertSound(again);
    assert.equal(again.lag, undefined, what);
    await again.close();
    // Durably: without the WAL it is the same.
    const after = await files.open(own, { path: found });
    assert.deepEqual(contentOf(after), contentOf(expected), `${what}, opened again`);
    await after.close();
  }
  assert.equal(states.length, 5 + 2 * 6);
});

test('a file that holds more than its log, which was cut first, is not opened', async (t) => {
  const files = stores(t);
  const { log, store, path } = await slowGroup(files);
  await write(store, 'local', insert('local'));
  const copy = files.newPath();
  copyFiles(path, copy);
  const cut = copyOf(log, log.watermark);
  await failsWith(files.open(cut, { path: copy, role: 'replica' }), 'LOG_DAMAGED');
});
