/** What the recorded process and the one that checks must agree on. */
import { createHash } from 'node:crypto';
import { DatabaseSync } from 'node:sqlite';

/** Small, so that segments roll, the log is pruned and checkpoints run within a few hundred writes. */
export const CUT_LIMITS = {
  segmentBytesMax: 128 * 1024,
  recordBytesMax: 96 * 1024,
  logRetainBytes: 128 * 1024,
  checkpointBytes: 64 * 1024,
  checkpointHoldBytes: 192 * 1024,
  /** Under strace every disk is slow; whoever is alone is to append by itself all the same. */
  directSyncMicros: 1_000_000_000,
} as const;

export const CUT_MIGRATIONS = [
  `create table parts (id integer not null, part integer not null, body blob, primary key (id, part)) without rowid;
   create table total (id integer primary key, writes integer not null); insert into total values (1, 0);
   create table scratch (id integer primary key, filler blob)`,
  'create index parts_body on parts (body)',
  `alter table parts add column note text not null default 'none'`,
] as const;

/** Rows of one write; all of them or none. */
export const CUT_PARTS = 3;

/** Imported once per recorded process, from a file beside its directory. */
export const CUT_IMPORT = { tenant: 'imported', rows: 400 } as const;

export function makeImportFile(path: string): void {
  using database = new DatabaseSync(path);
  database.exec('create table old (id integer primary key not null, body blob not null); begin');
  const insert = database.prepare('insert into old values (?, ?)');
  for (let id = 1; id <= CUT_IMPORT.rows; id += 1) insert.run(id, bodyOf(id, 0));
  database.exec('commit; create index old_body on old (body)');
}

export type CutAck =
  | { readonly kind: 'written'; readonly tenant: string; readonly id: number }
  | { readonly kind: 'migrated'; readonly tenant: string; readonly version: number }
  | { readonly kind: 'imported'; readonly tenant: string }
  | { readonly kind: 'dropped'; readonly tenant: string };

export function bodyOf(id: number, part: number): Uint8Array {
  return createHash('sha256').update(`${id}:${part}`).digest();
}
