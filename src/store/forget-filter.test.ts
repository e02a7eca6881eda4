/** The filter on all that brings rows back, and the removal of what it finds from a file. */
import assert from 'node:assert/strict';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { toGeneration, toTerm, type Generation, type Lsn, type Position } from '../base/brands.ts';
import { isNostosError } from '../base/errors.ts';
import type { LedgerEntry } from '../log/ledger.ts';
import { copyFiles, groupLog, identity, ledgerBeside, stores, write } from '../testing/tenant-store.fixture.ts';
import { ForgetFilter, removeForgotten } from './forget-filter.ts';
import { keyHash } from './forget.ts';
import { scrubFile } from './scrub.ts';
import { migrateStore } from './tenant.ts';

const [A, B, C] = ['0a', '0b', '0c'].map((byte) => toGeneration(byte.repeat(16))) as [
  Generation,
  Generation,
  Generation,
];
const HASH_KEY = new Uint8Array(32).fill(3);
const at = (generation: Generation, lsn: number): Position => ({ generation, term: toTerm(1), lsn: lsn as Lsn });

function forget(id: number, position: Position, atMs: number, hashKey = HASH_KEY): LedgerEntry {
  return {
    uuid: identity.uuid,
    position,
    atMs,
    hashKey,
    keys: [{ table: 'users', hash: keyHash(hashKey, 'users', [id]) }],
  };
}

/** A history: how far each generation is part of it. */
const upTo =
  (...parts: readonly (readonly [Generation, number])[]) =>
  ({ generation, lsn }: Position): boolean =>
    parts.some(([part, last]) => part === generation && lsn <= last);

interface Case {
  readonly what: string;
  readonly entries: readonly LedgerEntry[];
  readonly state: (position: Position) => boolean;
  readonly forgotten: boolean;
}

const OTHER_KEY = new Uint8Array(32).fill(4);
const CASES: readonly Case[] = [
  { what: 'nothing was forgotten', entries: [], state: upTo([A, 99]), forgotten: false },
  { what: 'the log has deleted it', entries: [forget(7, at(A, 50), 1)], state: upTo([A, 50]), forgotten: false },
  { what: 'a state before the forget', entries: [forget(7, at(A, 50), 1)], state: upTo([A, 49]), forgotten: true },
  { what: 'another key', entries: [forget(8, at(A, 50), 1)], state: upTo([A, 49]), forgotten: false },
  {
    what: 'another tenant',
    entries: [{ ...forget(7, at(A, 50), 1), uuid: 'cd'.repeat(16) as LedgerEntry['uuid'] }],
    state: upTo([A, 49]),
    forgotten: false,
  },
  {
    what: 'forgotten behind the fork, which this generation never saw',
    entries: [forget(7, at(A, 100), 1)],
    state: upTo([A, 80], [B, 120]),
    forgotten: true,
  },
  {
    what: 'the same, noted where the generation began: a row of now was inserted since',
    entries: [forget(7, at(A, 100), 1), forget(7, at(B, 81), 5)],
    state: upTo([A, 80], [B, 120]),
    forgotten: false,
  },
  {
    what: 'forgotten, inserted and forgotten again, in a state between',
    entries: [forget(7, at(A, 50), 1), forget(7, at(A, 60), 2)],
    state: upTo([A, 55]),
    forgotten: true,
  },
  {
    what: 'forgotten elsewhere, and later here: the row is newer than both',
    entries: [forget(7, at(C, 70), 3), forget(7, at(A, 50), 4)],
    state: upTo([A, 60]),
    forgotten: false,
  },
  {
    what: 'forgotten here, and later elsewhere',
    entries: [forget(7, at(A, 50), 3), forget(7, at(C, 70), 4)],
    state: upTo([A, 60]),
    forgotten: true,
  },
  {
    what: 'the same under two hash keys, later here',
    entries: [forget(7, at(C, 70), 3), forget(7, at(A, 50), 4, OTHER_KEY)],
    state: upTo([A, 60]),
    forgotten: false,
  },
  {
    what: 'the same under two hash keys, later elsewhere',
    entries: [forget(7, at(A, 50), 3), forget(7, at(C, 70), 4, OTHER_KEY)],
    state: upTo([A, 60]),
    forgotten: true,
  },
];

for (const { what, entries, state, forgotten } of CASES)
  test(`a row ${forgotten ? 'stays away' : 'may be there'}: ${what}`, () => {
    for (const order of [entries, entries.toReversed()]) {
      const filter = ForgetFilter.of({ entries: () => order, uuid: identity.uuid, includes: state });
      assert.equal(filter.isForgotten('users', [7]), forgotten);
      assert.equal(filter.isForgotten('Users', [7n]), forgotten);
      assert.equal(filter.isForgotten('users', [1_000]), false);
      if (forgotten) assert.deepEqual(filter.tables, ['users']);
      // Noted once more where a new history begins, it is done with there, and only there.
      const restated = filter.restated(at(B, 500));
      const later = (includes: Case['state']): boolean =>
        ForgetFilter.of({ entries: () => [...order, ...restated], uuid: identity.uuid, includes }).isForgotten(
          'users',
          [7],
        );
      assert.equal(
        later((position) => state(position) || position.lsn === 500),
        false,
      );
      assert.equal(later(state), forgotten);
    }
  });

const SCHEMA = [
  `create table users (id integer primary key, name text);
   create table tags (user text not null, tag integer not null, primary key (user, tag)) without rowid;
   create table mails (address text primary key not null, user integer references users (id) on delete cascade);
   create table orders (id integer primary key, user integer references users (id));
   create table pinned (id integer primary key);
   create trigger keep before delete on pinned begin select raise(ignore); end;
   create table fragile (id integer primary key);
   create trigger burst before delete on fragile begin select raise(rollback, 'never'); end;
   create table notes (id integer primary key, body text);
   create virtual table found using fts5 (body, content = 'notes', content_rowid = 'id');
   create trigger noted after insert on notes begin insert into found (rowid, body) values (new.id, new.body); end;
   create trigger unnoted after delete on notes begin
     insert into found (found, rowid, body) values ('delete', old.id, old.body); end`,
];
const ROWS = 450;

test('removal deletes what counts and nothing else, cut off or not, and moves the fingerprint along', async (t) => {
  const files = stores(t);
  const path = files.newPath();
  const ledger = ledgerBeside(path);
  const store = await files.open(await groupLog({ prompt: true }), { path, ledger });
  await migrateStore(store, SCHEMA);
  await write(store, 'quorum', (tx) => {
    for (let id = 1; id <= ROWS; id += 1) {
      tx.run('insert into users values (?, ?)', [id, `secret-${id}-`]);
      tx.run('insert into mails values (?, ?)', [`m${id}`, id]);
      tx.run('insert into notes values (?, ?)', [id, `word${id} all`]);
    }
    tx.run(`insert into tags values ('a', 1), ('a', 2), (cast(x'ff00' as text), 1)`);
    tx.run('insert into orders values (1, 3), (2, 4)');
    tx.run('insert into pinned values (1), (2)');
    tx.run('insert into fragile values (1), (2), (3)');
  });
  await store.checkpoint();
  const backup = files.newPath();
  copyFiles(path, backup);
  const snapshot = store.applied.lsn;
  const includes = ({ lsn }: Position): boolean => lsn <= snapshot;
  await write(store, 'quorum', (tx) => {
    tx.run('delete from orders where user = 3'); // so that the user may go here, but not in the backup
    for (let id = 3; id <= ROWS; id += 2) tx.forget('users', { id });
    tx.forget('notes', { id: 10 });
    tx.forget('tags', { user: 'a', tag: '2' });
    tx.run('insert into users values (3, ?)', ['new']);
  });
  const invalid = { user: { text: new Uint8Array([0xff, 0]) }, tag: 1n };
  const [entry] = [...ledger.entries()];
  const key = (table: string, values: Parameters<typeof keyHash>[2]) => ({
    table,
    hash: keyHash(entry!.hashKey, table, values),
  });
  const extra: LedgerEntry = {
    ...entry!,
    position: { ...entry!.position, lsn: 10_000 as Lsn },
    keys: [key('tags', [invalid.user, invalid.tag]), key('pinned', [2]), key('fragile', [2]), key('gone', [1])],
  };
  const source = { entries: () => [...ledger.entries(), extra], uuid: identity.uuid };

  // Cut off after the first batch, and done again.
  const abort = new AbortController();
  const filter = ForgetFilter.of({ ...source, includes });
  assert.throws(
    () =>
      removeForgotten(backup, filter, { signal: abort.signal, onProgress: () => abort.abort(new Error('cut off')) }),
    /cut off/,
  );
  const between = scrubFile({ path: backup, integrity: true }, () => {});
  assert.equal(between.actual, between.expected, 'whole after each batch');
  const report = removeForgotten(backup, filter);
  assert.ok(report.rows < 224 + 5 && report.rows > 100, `${report.rows}: a batch was gone already`);
  assert.equal(report.forced, 2, 'those that triggers keep; the one that an order points to went before');
  assert.deepEqual(report.missingTables, ['gone']);
  using database = new DatabaseSync(backup);
  const all = (sql: string): unknown[] =>
    database
      .prepare(sql)
      .all()
      .map((row) => Object.values(row)[0]);
  assert.deepEqual(
    all('select id from users'),
    Array.from({ length: ROWS }, (_, i) => i + 1).filter((id) => id < 3 || id % 2 === 0),
  );
  assert.deepEqual(
    all('select count(*) from mails'),
    [(all('select count(*) from users')[0] as number) + 1],
    'cascades; the forced one has none',
  );
  assert.deepEqual(all('select tag from tags'), [1]);
  assert.deepEqual([all('select id from pinned'), all('select id from fragile')], [[1], [1, 3]]);
  assert.deepEqual(all(`select count(*) from found where found match 'word10'`), [0]);
  assert.deepEqual(all(`select count(*) from found where found match 'word11'`), [1]);
  const scrub = scrubFile({ path: backup, integrity: true }, () => {});
  assert.equal(scrub.actual, scrub.expected);
  assert.deepEqual(scrub.integrity, []);
  assert.equal(scrub.lsn, snapshot, 'its position is as it was');
  assert.deepEqual(removeForgotten(backup, filter).rows, 0);

  // The same file at its own time: what was forgotten by then is gone, and what came later stays.
  await store.checkpoint();
  const later = files.newPath();
  copyFiles(path, later);
  const now = ForgetFilter.of({ entries: () => ledger.entries(), uuid: identity.uuid, includes: () => true });
  assert.ok(now.isEmpty);
  assert.equal(removeForgotten(later, now).rows, 0);
  using present = new DatabaseSync(later, { readOnly: true });
  assert.equal(present.prepare('select name from users where id = 3').get()?.['name'], 'new');
});

test('a file whose rows are not what its fingerprint says is refused', async (t) => {
  const files = stores(t);
  const path = files.newPath();
  const store = await files.open(await groupLog({ prompt: true }), { path });
  await migrateStore(store, ['create table users (id integer primary key, name text)']);
  await write(store, 'quorum', (tx) => tx.run(`insert into users values (7, 'x')`));
  const { lsn } = store.applied;
  const copy = files.newPath();
  copyFiles(path, copy);
  {
    using database = new DatabaseSync(copy);
    database.exec(`update users set name = 'y'`);
  }
  const filter = ForgetFilter.of({
    entries: () => [forget(7, at(A, lsn + 1), 1)],
    uuid: identity.uuid,
    includes: () => false,
  });
  assert.throws(
    () => removeForgotten(copy, filter),
    (error) => isNostosError(error, 'TENANT_DAMAGED') || assert.fail(String(error)),
  );
});
