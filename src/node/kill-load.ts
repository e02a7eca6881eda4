/**
 * What the kill harness writes, as far as the child that writes and the parent that checks must agree on it: schema,
 * migrations, and content that follows from an id, so that a row can be checked without knowing who wrote it.
 */
import { createHash } from 'node:crypto';
import type { Migration, NodeOptions } from './types.ts';

/** Ids of one round are below those of the next. */
export const IDS_PER_ROUND = 1_000_000;
/** A round kills some more children while they open, which may come to write. */
export const IDS_PER_CHILD = 50_000;
/** Rows older than so many rounds are trimmed, so that a long soak does not slow down. */
export const ROUNDS_KEPT = 3;

export const STABLE_TENANTS = ['t0', 't1', 't2', 't3', 't4', 't5'] as const;
export const ACCOUNTS = 8;
export const BALANCE = 100;

/**
 * Small, so that segments roll, the log is pruned, tenants are checkpointed and evicted while the child is killed; a record
 * has room for what a merge of the full-text index changes after many rounds (186 kB in round 75 of seed 22).
 */
export const KILL_LIMITS = {
  segmentBytesMax: 448 * 1024,
  recordBytesMax: 432 * 1024,
  logRetainBytes: 1024 * 1024,
  checkpointBytes: 96 * 1024,
  checkpointHoldBytes: 256 * 1024,
  openFilesMax: 24,
  /** Also on a slow disk, whoever is alone appends by itself. */
  directSyncMicros: 1_000_000_000,
  lockTimeoutMs: 10_000,
} satisfies NodeOptions['limits'];

export type Ack =
  | { readonly k: 'opening' | 'ready' }
  /** One row; `multi`: all parts of one transaction. */
  | { readonly k: 'single' | 'multi' | 'doc'; readonly t: string; readonly id: number }
  | { readonly k: 'once-begin'; readonly t: string; readonly id: number }
  /** `n` is what the write answered with, the first time and ever after. */
  | { readonly k: 'once'; readonly t: string; readonly id: number; readonly n: number }
  | { readonly k: 'auto'; readonly t: string; readonly id: number }
  | { readonly k: 'migrated'; readonly t: string; readonly version: number }
  | { readonly k: 'created' | 'drop-begin' | 'dropped'; readonly t: string };

export function contentOf(id: number): string {
  const hash = createHash('sha256').update(String(id)).digest('hex');
  return hash.repeat(1 + (id % 7));
}

export const partsOf = (id: number): number => 2 + (id % 6);

const BASE: readonly string[] = [
  `create table items (id integer primary key, body text not null);
   create table tally (id integer primary key, n integer not null);
   insert into tally values (1, 0);
   create trigger items_added after insert on items begin update tally set n = n + 1 where id = 1; end;
   create trigger items_removed after delete on items begin update tally set n = n - 1 where id = 1; end;
   create table parts (tx integer not null, part integer not null, body text not null, primary key (tx, part)) without rowid;
   create table accounts (id integer primary key, balance integer not null check (balance >= 0));
   create table once (id integer primary key, n integer not null);
   create table counter (id integer primary key, n integer not null);
   insert into counter values (1, 0);
   create table auto (id integer primary key autoincrement, body text not null);
   create table parents (id integer primary key);
   create table children (id integer primary key, parent integer references parents (id) deferrable initially deferred)`,
  `create virtual table docs using fts5 (body);
   create virtual table boxes using rtree (id, x0, x1)`,
];

/** Each round adds one migration: DDL, rows that only their record can repeat, and a drop of what an older one made. */
export function migrationsOf(round: number): Migration[] {
  const seed: Migration = (tx) => {
    for (let id = 1; id <= ACCOUNTS; id += 1) tx.run('insert into accounts values (?, ?)', [id, BALANCE]);
  };
  const migrations: Migration[] = [...BASE, seed];
  for (let n = 1; n <= round; n += 1) {
    const add = n % 16 === 0 ? `alter table items add column c${n} integer;` : '';
    const drop = n > 2 ? `drop table extra${n - 2};` : '';
    migrations.push(
      `create table extra${n} (id integer primary key, r integer not null, b blob);
       insert into extra${n} select id, random(), randomblob(40) from accounts;
       ${add} ${drop} update extra${n} set r = random() where id % 2 = 0`,
    );
  }
  return migrations;
}
