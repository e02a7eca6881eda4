/**
 * What Nostos keeps inside a tenant's own database file, beside the tables of the user.
 *
 * - `nostos_meta`: who this is, and the applied position. It is written in the same SQLite transaction as the rows, so
 *   after any crash the file says itself up to which record of the log it holds the tenant's state.
 * - `nostos_fingerprint`: the expected fingerprint by bucket, as of a position of its own. Written before each
 *   checkpoint rather than with each commit (it has 16 KiB); the log is kept from there on, so that the buckets can
 *   always be brought up to the applied position.
 * - `nostos_shapes`: columns and keys of each schema version, to read older records of the log.
 * - `nostos_results`: answers of idempotent writes. Unlike the others it is captured and replicated like user tables.
 */
import type { Hash, Lsn, TenantId, TenantUuid, Term } from '../base/brands.ts';
import {
  HASH_BYTES,
  NO_LSN,
  NO_TERM,
  ZERO_HASH,
  toHash,
  toLsn,
  toTenantId,
  toTenantUuid,
  toTerm,
} from '../base/brands.ts';
import type { DatabaseSync } from 'node:sqlite';
import { NostosError } from '../base/errors.ts';
import { releaseBuffer } from '../base/release.ts';
import type { Connection } from './connection.ts';
import { NO_COUNTER, type SequenceValue } from './payload.ts';
import { readSchemaShape, serializeShape } from './schema-shape.ts';
import { fromSqlite } from './sqlite-errors.ts';

export const TENANT_FORMAT = 1;

const CREATE = `
create table nostos_meta (
  id integer primary key check (id = 1), format integer not null, tenant integer not null, uuid text not null,
  name text not null, term integer not null, lsn integer not null, hash blob not null, fingerprint blob not null,
  schema_version integer not null) strict;
create table nostos_fingerprint (
  id integer primary key check (id = 1), lsn integer not null, buckets blob not null) strict;
create table nostos_shapes (version integer primary key, shape text not null) strict;
create table nostos_results (
  id text primary key not null, result blob not null, at_ms integer not null) strict, without rowid;
create index nostos_results_at on nostos_results (at_ms);
`;

export interface AppliedPosition {
  readonly term: Term;
  readonly lsn: Lsn;
  readonly hash: Hash;
  /** Total of the expected fingerprint at this position, 16 bytes. */
  readonly fingerprint: Uint8Array;
}

export interface TenantIdentity {
  readonly id: TenantId;
  readonly uuid: TenantUuid;
  readonly name: string;
}

export interface TenantMeta extends AppliedPosition {
  readonly identity: TenantIdentity;
  readonly schemaVersion: number;
}

/** Creates the tables of Nostos in an empty database. */
export function formatTenant(database: DatabaseSync, identity: TenantIdentity): void {
  database.exec(CREATE);
  database
    .prepare('insert into nostos_meta values (1, ?, ?, ?, ?, ?, ?, ?, zeroblob(16), 0)')
    .run(TENANT_FORMAT, identity.id, identity.uuid, identity.name, NO_TERM, NO_LSN, ZERO_HASH);
  database.prepare('insert into nostos_shapes values (0, ?)').run(serializeShape(readSchemaShape(database)));
}

/** The meta row, or undefined in a file that was never formatted. */
export function readTenantMeta(connection: Connection): TenantMeta | undefined {
  try {
    const exists = connection.database
      .prepare("select 1 from sqlite_schema where type = 'table' and name = 'nostos_meta'")
      .get();
    if (exists === undefined) return undefined;
    const row = connection.database.prepare('select * from nostos_meta where id = 1').get() as
      | Record<string, unknown>
      | undefined;
    if (row === undefined) throw damaged(connection.path, 'nostos_meta is empty');
    if ((row['format'] as number) > TENANT_FORMAT)
      throw new NostosError('UNSUPPORTED_FORMAT', `${connection.path} has tenant format ${String(row['format'])}`);
    return {
      identity: {
        id: toTenantId(row['tenant']),
        uuid: toTenantUuid(row['uuid']),
        name: row['name'] as string,
      },
      term: toTerm(row['term']),
      lsn: toLsn(row['lsn']),
      hash: toHash(row['hash'] as Uint8Array),
      fingerprint: row['fingerprint'] as Uint8Array,
      schemaVersion: row['schema_version'] as number,
    };
  } catch (error) {
    throw fromSqlite(error);
  }
}

export function writeName(connection: Connection, name: string): void {
  connection.internal('update nostos_meta set name = ?1 where id = 1 and name <> ?1').run(name);
}

/** Part of the transaction that changes the rows, after its session has been closed. */
export function writeApplied(connection: Connection, applied: AppliedPosition): void {
  connection
    .internal('update nostos_meta set term = ?, lsn = ?, hash = ?, fingerprint = ? where id = 1')
    .run(applied.term, applied.lsn, applied.hash, applied.fingerprint);
}

/** The hash of the last of several appended records. */
export function lastHash(hashes: Uint8Array): Hash {
  return toHash(hashes.subarray(hashes.length - HASH_BYTES));
}

export function writeSchemaVersion(connection: Connection, version: number, shape: string): void {
  connection.internal('update nostos_meta set schema_version = ? where id = 1').run(version);
  connection.internal('insert or replace into nostos_shapes values (?, ?)').run(version, shape);
}

export function readShapes(connection: Connection): Map<number, string> {
  const rows = connection.database.prepare('select version, shape from nostos_shapes').all();
  return new Map(rows.map((row) => [row['version'] as number, row['shape'] as string]));
}

/** Gives the memory of `buckets` back. */
export function writeFingerprint(connection: Connection, lsn: Lsn, buckets: Uint8Array): void {
  connection.internal('insert or replace into nostos_fingerprint values (1, ?, ?)').run(lsn, buckets);
  releaseBuffer(buckets);
}

export function readFingerprint(
  connection: Connection,
): { readonly lsn: Lsn; readonly buckets: Uint8Array } | undefined {
  const row = connection.database.prepare('select lsn, buckets from nostos_fingerprint where id = 1').get();
  if (row === undefined) return undefined;
  return { lsn: toLsn(row['lsn']), buckets: row['buckets'] as Uint8Array };
}

/** The counters of AUTOINCREMENT tables; changesets do not carry them. */
export function readSequences(connection: Connection, tables: readonly string[]): SequenceValue[] {
  if (tables.length === 0) return []; // without such a table, sqlite_sequence is not there either
  const select = connection.internal('select seq from sqlite_sequence where name = ?');
  return tables.flatMap((table) => {
    const row = select.get(table);
    return row === undefined ? [] : [{ table, value: row['seq'] as bigint }];
  });
}

export function writeSequences(connection: Connection, sequences: readonly SequenceValue[]): void {
  for (const { table, value } of sequences) {
    const { changes } = connection.internal('update sqlite_sequence set seq = ? where name = ?').run(value, table);
    if (changes === 0n) connection.internal('insert into sqlite_sequence (name, seq) values (?, ?)').run(table, value);
  }
}

/** The same after changes that were applied: rows of a later record may have raised a counter further already. */
export function raiseSequences(connection: Connection, sequences: readonly SequenceValue[]): void {
  const held = new Map(
    readSequences(
      connection,
      sequences.map(({ table }) => table),
    ).map(({ table, value }) => [table, value]),
  );
  writeSequences(
    connection,
    sequences.filter(({ table, value }) => value > (held.get(table) ?? -1n)),
  );
}

/** Puts counters back to what they were, or takes them away. */
export function restoreSequences(connection: Connection, before: ReadonlyMap<string, bigint>): void {
  for (const [table, value] of before) {
    if (value === NO_COUNTER) connection.internal('delete from sqlite_sequence where name = ?').run(table);
    else writeSequences(connection, [{ table, value }]);
  }
}

function damaged(path: string, why: string): NostosError {
  return new NostosError('TENANT_DAMAGED', `${path}: ${why}; restore this tenant from a backup or a peer`);
}
