/** A rollback file against open nodes: what a deposed primary had written comes back as writes of the present one. */
import assert from 'node:assert/strict';
import { cpSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { isNostosError } from '../base/errors.ts';
import type { ReapplyReport } from '../rollback/reapply/types.ts';
import { makeLostTail, type LostTail } from './lost-tail.fixture.ts';
import { openNode } from './open-node.ts';
import { runOperation, type OperationInput } from './operations.ts';
import type { Node, Progress, Transaction } from './types.ts';

const ROWS =
  'create table rows (id integer primary key not null, body text unique, n, data blob, size integer generated always as (length(body)) stored)';
const MIGRATIONS = [
  ROWS,
  'create table log (id integer primary key autoincrement, body text)',
  "create trigger logged after insert on rows begin insert into log (body) values (new.body || '!'); end",
];
const BIG = 9007199254740993n;

interface Case {
  readonly what: string;
  readonly input?: Partial<OperationInput<'rollback.reapply'>>;
  /** What the present node has written since. */
  readonly since?: (tx: Transaction) => void;
  readonly sinceId?: string;
  readonly bodies: readonly string[];
  readonly transactions: ReapplyReport['transactions'];
  readonly conflicts?: readonly string[];
  readonly leftOut?: readonly string[];
}

const ALL = ['one', 'two changed', 'three', 'order-7'];
const CASES: readonly Case[] = [
  {
    what: 'nothing has happened since',
    bodies: ALL,
    transactions: { applied: 4, present: 0, repeated: 0, leftOut: 0 },
  },
  {
    what: 'a dry run',
    input: { dryRun: true },
    bodies: ['one', 'two', 'gone'],
    transactions: { applied: 4, present: 0, repeated: 0, leftOut: 0 },
  },
  {
    what: 'a row has changed since: skip',
    since: (tx) => void tx.run("update rows set body = 'two since' where id = 2"),
    bodies: ['one', 'two since', 'three', 'order-7'],
    transactions: { applied: 3, present: 0, repeated: 0, leftOut: 1 },
    conflicts: ['changed skipped'],
    leftOut: ['conflict'],
  },
  {
    what: 'a row has changed since: theirs',
    input: { policy: 'theirs' },
    since: (tx) => void tx.run("update rows set body = 'two since' where id = 2"),
    bodies: ['one', 'two since', 'three', 'order-7'],
    transactions: { applied: 3, present: 1, repeated: 0, leftOut: 0 },
    conflicts: ['changed kept'],
  },
  {
    what: 'a row has changed since: ours',
    input: { policy: 'ours' },
    since: (tx) => void tx.run("update rows set body = 'two since' where id = 2"),
    bodies: ALL,
    transactions: { applied: 4, present: 0, repeated: 0, leftOut: 0 },
    conflicts: ['changed overwritten'],
  },
  {
    what: 'a client has tried its write again',
    sinceId: 'order-7',
    bodies: ['one', 'two changed', 'three', 'order-7'],
    transactions: { applied: 3, present: 0, repeated: 0, leftOut: 1 },
    leftOut: ['retried'],
  },
  {
    what: 'a unique value is taken',
    since: (tx) => void tx.run("insert into rows (id, body) values (77, 'three')"),
    bodies: ['one', 'two changed', 'order-7', 'three'],
    transactions: { applied: 3, present: 0, repeated: 0, leftOut: 1 },
    leftOut: ['refused'],
  },
  {
    what: 'a row was forgotten since',
    since: (tx) => void tx.forget('rows', { id: 9 }),
    bodies: ['one', 'two changed', 'order-7'],
    transactions: { applied: 3, present: 0, repeated: 0, leftOut: 1 },
    leftOut: ['forgotten'],
  },
  {
    what: 'a row was forgotten since, and there is a new one with its key',
    input: { policy: 'ours' },
    since: (tx) => {
      tx.forget('rows', { id: 2 });
      tx.run("insert into rows (id, body) values (2, 'another')");
    },
    bodies: ['one', 'another', 'three', 'order-7'],
    transactions: { applied: 3, present: 0, repeated: 0, leftOut: 1 },
    leftOut: ['forgotten'],
  },
];

const insertOrder = (tx: Transaction): unknown =>
  tx.run("insert into rows (id, body) values (78, 'order-7')").lastInsertRowid;

function lostTail(root: string): Promise<LostTail> {
  return makeLostTail(root, {
    migrations: MIGRATIONS,
    before: (tx) => {
      tx.run("insert into rows (id, body) values (1, 'one'), (2, 'two'), (3, 'gone')");
      tx.forget('rows', { id: 9 }); // what the tail inserts there is new
    },
    lost: [
      (tx) => void tx.run("update rows set body = 'two changed' where id = 2"),
      (tx) => void tx.run('insert into rows values (?, ?, ?, ?)', [9, 'three', BIG, Uint8Array.of(1, 2)]),
      (tx) => void tx.run('delete from rows where id = 3'),
      'order-7',
    ],
  });
}

function temporaryDir(t: TestContext): string {
  const dir = mkdtempSync(join(tmpdir(), 'nostos-reapply-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

async function reapply(
  node: Node,
  input: OperationInput<'rollback.reapply'>,
  onProgress: (progress: Progress) => void = () => {},
): Promise<ReapplyReport> {
  const context = { signal: new AbortController().signal, onProgress, emit: async () => {} };
  return runOperation(node, { name: 'rollback.reapply', input }, context);
}

const bodies = (node: Node): Promise<unknown[]> =>
  node.tenant('acme').read((reader) => reader.all('select body from rows order by id').map(({ body }) => body));

test('a rollback file becomes new writes of an open node, whatever has happened since; twice is once', async (t) => {
  const root = temporaryDir(t);
  const { dir: present, file } = await lostTail(root);
  for (const [i, { what, input = {}, since, sinceId, ...expected }] of CASES.entries()) {
    const dir = join(root, `case-${i}`);
    cpSync(present, dir, { recursive: true });
    await using node = await openNode({ dir, scrubIntervalMs: false });
    const acme = node.tenant('acme');
    if (since !== undefined) await acme.write(since);
    if (sinceId !== undefined) await acme.write(insertOrder, { id: sinceId });
    const progress: Progress[] = [];
    const report = await reapply(node, { file, ...input }, (step) => progress.push(step));
    assert.deepEqual(await bodies(node), expected.bodies, what);
    assert.deepEqual(report.transactions, expected.transactions, what);
    assert.deepEqual(
      report.conflicts.map(({ kind, resolution }) => `${kind} ${resolution}`),
      expected.conflicts ?? [],
      what,
    );
    assert.deepEqual(
      report.leftOut.map(({ kind }) => kind),
      expected.leftOut ?? [],
      what,
    );
    assert.deepEqual([progress.at(-1)?.done, progress.at(-1)?.total], [5, 5], what);
    const { lsn } = (await acme.status()).applied;
    const again = await reapply(node, { file, ...input });
    assert.equal((await acme.status()).applied.lsn, lsn, `${what}: the second run writes nothing`);
    const done = report.transactions.applied + report.transactions.present;
    assert.equal(again.transactions.repeated, input.dryRun === true ? 0 : done, what);
    assert.ok((await node.verify()).ok, what);
  }
});

test('values keep their types, triggers run once, and a client that tries again gets its first answer', async (t) => {
  const { dir, file } = await lostTail(temporaryDir(t));
  await using node = await openNode({ dir, scrubIntervalMs: false });
  await reapply(node, { file });
  const acme = node.tenant('acme');
  const row = await acme.read((reader) => reader.get('select * from rows where id = 9'), { int64: 'bigint' });
  assert.deepEqual({ ...row }, { id: 9n, body: 'three', n: BIG, data: Uint8Array.of(1, 2), size: 5n });
  const logged = await acme.read((reader) => reader.all('select body from log order by id').map(({ body }) => body));
  assert.deepEqual(logged, ['one!', 'two!', 'gone!', 'three!', 'order-7!']);
  let called = 0;
  const answer = await acme.write(() => (called += 1), { id: 'order-7' });
  assert.deepEqual([answer, called], [10, 0], 'the number that the row had had');
});

test('a tenant that is gone or another one by now is left alone, and a damaged file is not applied by half', async (t) => {
  const { dir, file } = await lostTail(temporaryDir(t));
  await using node = await openNode({ dir, scrubIntervalMs: false });
  await node.tenants.drop('acme');
  const gone = await reapply(node, { file });
  assert.deepEqual(new Set(gone.leftOut.map(({ why }) => why)), new Set(['there is no tenant "acme"']));
  await (await node.tenants.create('acme')).migrate(MIGRATIONS);
  const other = await reapply(node, { file });
  assert.deepEqual(new Set(other.leftOut.map(({ kind }) => kind)), new Set(['tenant']));
  assert.deepEqual(await bodies(node), []);
  await assert.rejects(reapply(node, { file: join(dir, 'node.json') }), (error) =>
    isNostosError(error, 'ROLLBACK_FILE_DAMAGED'),
  );
  await assert.rejects(reapply(node, { file: join(dir, 'no-such-file') }), (error) =>
    isNostosError(error, 'IO_FAILED'),
  );
});
