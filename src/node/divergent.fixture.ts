/**
 * A deposed primary's directory, and the one that it would be if it had stopped at the common point. Run as a process, it
 * rolls a directory back and kills itself at the step that it is told.
 */
import assert from 'node:assert/strict';
import { cpSync } from 'node:fs';
import { join } from 'node:path';
import { NO_TENANT } from '../base/brands.ts';
import { systemClock } from '../base/clock.ts';
import { DEFAULT_LIMITS } from '../base/limits.ts';
import type { ChainPoint } from '../log/chain.ts';
import { RecordKind } from '../log/record.ts';
import { rootedDisk } from '../rollback/run/killed-run.fixture.ts';
import type { RollbackRequest } from '../rollback/run/runner.ts';
import type { CommonPoint } from '../rollback/types.ts';
import { idempotent, migrateStore } from '../store/tenant.ts';
import { NodeParts } from './node-parts.fixture.ts';

const SCHEMA = [
  'create table rows (id integer primary key autoincrement, body text unique, n integer)',
  'create table parts (row integer references rows on delete cascade, k text, data blob, primary key (row, k)) without rowid',
  'create table seen (id integer primary key not null, body text)',
  'create trigger noted after insert on rows begin insert into seen values (new.id, new.body); end',
];

/** Records of a tail: acknowledged local ones, and three that nobody was told of. */
export const LOCAL_RECORDS = 121;
export const OTHER_RECORDS = 3;

export interface Divergent {
  /** The whole tail. */
  readonly base: string;
  /** Never had it. */
  readonly clean: string;
  readonly request: RollbackRequest;
}

export async function makeDivergent(root: string): Promise<Divergent> {
  const primary = join(root, 'primary');
  const parts = new NodeParts(primary, { role: 'primary' });
  parts.startTerm(1);
  parts.direct.committing = true;
  for (const name of ['acme', 'beta', 'gamma', 'delta']) {
    await parts.createTenant(name, SCHEMA);
    for (let i = 0; i < 20; i++) await insert(parts, name, `${name} committed ${i}`);
  }
  // From here on the group does not answer. What is acknowledged as local up to the common point reached another node.
  parts.direct.committing = false;
  for (let i = 0; i < 5; i++) for (const name of ['acme', 'beta', 'delta']) await insert(parts, name, `shipped ${i}`);
  const common = commonPoint(parts.log.end);
  const clean = join(root, 'clean');
  cpSync(primary, clean, { recursive: true });

  for (let i = 0; i < 40; i++)
    for (const name of ['acme', 'beta', 'gamma']) {
      await insert(parts, name, `lost ${i}`);
      if (i === 20) await parts.with(name, (store) => store.checkpoint());
    }
  await once(parts, 'acme', 'order-7');
  const unanswered = [
    parts.direct.append([{ tenant: NO_TENANT, kind: RecordKind.noop, payload: new Uint8Array(30_000) }]),
    parts.write('acme', 'quorum', (tx) => void tx.run("insert into rows (body) values ('never visible')")),
    parts.with('gamma', (store) =>
      migrateStore(store, [...SCHEMA, 'create table more (id integer primary key not null)']),
    ),
  ];
  const ended = Promise.allSettled(unanswered);
  await new Promise((resolve) => void setTimeout(resolve, 20));
  assert.equal(parts.log.end.lsn, common.lsn + LOCAL_RECORDS + OTHER_RECORDS);
  const base = join(root, 'base');
  cpSync(primary, base, { recursive: true });
  await parts.close();
  assert.ok((await ended).every(({ status }) => status === 'rejected'));
  return { base, clean, request: requestFor(common) };
}

export function requestFor(common: CommonPoint, term = 2): RollbackRequest {
  return { common, primary: { address: 'b:7000', term }, selfAddress: 'a:7000' };
}

export function commonPoint({ term, lsn, hash }: ChainPoint): CommonPoint {
  return { term, lsn, hash: Buffer.from(hash).toString('hex') };
}

/** Rows with a counter, a trigger, a foreign key and a BLOB. */
export async function insert(parts: NodeParts, tenant: string, body: string): Promise<void> {
  await parts.write(tenant, 'local', (tx) => {
    const { lastInsertRowid: row } = tx.run('insert into rows (body, n) values (?, ?)', [body, body.length]);
    tx.run('insert into parts values (?, ?, ?)', [row, 'k', new Uint8Array(900).fill(body.length)]);
    tx.run('update rows set n = n + 1 where id % 7 = ?', [Number(row) % 7]);
    tx.run('delete from rows where id = ?', [Number(row) - 15]);
  });
}

export async function once(parts: NodeParts, tenant: string, id: string): Promise<unknown> {
  const deps = { clock: systemClock, limits: DEFAULT_LIMITS };
  const run = idempotent((tx) => tx.run('insert into rows (body) values (?)', [id]).lastInsertRowid, id, deps);
  return parts.with(tenant, (store) => store.write(run, { int64: 'number', durability: 'local' }));
}

if (import.meta.main) {
  const [dir = '', killAt = '', request = ''] = process.argv.slice(2);
  let steps = 0;
  const step = (partly?: () => void): void => {
    if (steps++ !== Number(killAt)) return;
    partly?.();
    process.kill(process.pid, 'SIGKILL');
  };
  const disk = rootedDisk('/', step);
  const parts = new NodeParts(dir, { role: 'replica', disk, onStep: () => step() });
  steps = 0; // opening is not what is looked at
  process.stdout.write('rolling back\n');
  await parts.runner().run(JSON.parse(request) as RollbackRequest);
  process.stdout.write(`${steps}\n`);
}
