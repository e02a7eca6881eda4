/**
 * `catalog.sqlite`: name, id and uuid of every tenant. It follows the log like a tenant does: each change is a record
 * first, the file holds the LSN up to which it counts, and what it may have forgotten in a crash is read again from the
 * log. Ids are never used twice; a dropped name may be.
 */
import { statSync } from 'node:fs';
import { DatabaseSync, type StatementSync } from 'node:sqlite';
import {
  NO_LSN,
  NO_TERM,
  toLsn,
  toTenantId,
  toTenantUuid,
  toTerm,
  type Lsn,
  type TenantId,
  type Term,
} from '../base/brands.ts';
import { NostosError } from '../base/errors.ts';
import type { CommittedRecord } from '../log/commit-log.ts';
import { RecordKind } from '../log/record.ts';
import type { Maintenance } from './maintenance.ts';
import { decodeTenantCreate, decodeTenantReset } from './payload.ts';
import { fromSqlite } from './sqlite-errors.ts';
import type { TenantIdentity } from './tenant-file.ts';

const CATALOG_FORMAT = 1;
const WAL_PAGES_MAX = 4_000;
const KNOWN_MAX = 4_096;
const CREATE = `
create table if not exists catalog (
  id integer primary key check (id = 1), format integer not null, applied integer not null, next_id integer not null) strict;
create table if not exists tenants (
  id integer primary key, name text not null unique, uuid text not null, created_lsn integer not null,
  schema_version integer not null default 0, opened integer not null default 0,
  held_lsn integer not null default 0, reset_term integer not null default 0,
  reset_lsn integer not null default 0) strict;
`;
/** What catalogs of before lack. */
const ADDED_COLUMNS = ['reset_term', 'reset_lsn'];

/**
 * Names that no user can give: of tenants whose content is on its way into the log, and is to replace that of another one.
 * They come before all others.
 */
const HIDDEN_PREFIX = '\u0001';
export const HIDDEN_END = '\u0002';

/** Of the content that is to take the place of this tenant. */
export const replacementName = (tenant: TenantId): string => `${HIDDEN_PREFIX}${tenant}`;

export interface CatalogEntry extends TenantIdentity {
  readonly createdAt: Lsn;
  readonly schemaVersion: number;
  /** It was open once, so there must be a file. */
  readonly opened: boolean;
  /** Its file held everything up to here when it was last closed: one that holds less is an older copy. */
  readonly held: Lsn;
  /** The record by which its content replaced another one, which has no history here. */
  readonly reset?: { readonly term: Term; readonly lsn: Lsn };
}

/** Its record is no longer in the log, and its file is all that is known of it. */
const ADOPTED_LSN = 1 as Lsn;

export type CatalogRecord = Pick<CommittedRecord, 'kind' | 'lsn' | 'tenant' | 'payload'> & {
  /** Of a reset. */
  readonly term?: Term;
};

export class Catalog {
  readonly #database: DatabaseSync;
  readonly #path: string;
  readonly #statements = new Map<string, StatementSync>();
  /** Entries asked for lately: every call of a tenant begins with its name. */
  readonly #known = new Map<string, CatalogEntry>();
  #applied: Lsn;
  #durable: Lsn;
  #nextId: number;
  /** Something that follows from the files of tenants was changed since the last checkpoint. */
  #derived = false;

  private constructor(path: string) {
    this.#path = path;
    // Whoever closes a database last moves its WAL into the file and syncs that, before the WAL goes.
    const wholeFile = (statSync(`${path}-wal`, { throwIfNoEntry: false })?.size ?? 0) === 0;
    try {
      this.#database = new DatabaseSync(path, { timeout: 5_000 });
      this.#database.exec('pragma journal_mode = wal; pragma synchronous = normal');
      // `checkpoint` moves the WAL in another thread; only while changes never cease it is for this one to begin it anew.
      this.#database.exec(`pragma wal_autocheckpoint = ${WAL_PAGES_MAX}`);
      this.#database.exec(CREATE);
      for (const column of ADDED_COLUMNS) this.#addColumn(column);
      this.#database.prepare('insert or ignore into catalog values (1, ?, 0, 1)').run(CATALOG_FORMAT);
      const row = this.#database.prepare('select format, applied, next_id from catalog').get()!;
      if ((row['format'] as number) > CATALOG_FORMAT)
        throw new NostosError('UNSUPPORTED_FORMAT', `${path} has catalog format ${String(row['format'])}`);
      this.#applied = toLsn(row['applied']);
      this.#nextId = row['next_id'] as number;
      this.#durable = wholeFile ? this.#applied : NO_LSN;
    } catch (error) {
      throw fromSqlite(error);
    }
  }

  static open(path: string): Catalog {
    return new Catalog(path);
  }

  /** Every record up to here is in the catalog. */
  get applied(): Lsn {
    return this.#applied;
  }

  /** Every record up to here is in its file even after a power cut. */
  get durable(): Lsn {
    return this.#durable;
  }

  takeId(): TenantId {
    const id = toTenantId(this.#nextId);
    this.#nextId += 1;
    return id;
  }

  get(name: string): CatalogEntry | undefined {
    const known = this.#known.get(name);
    if (known !== undefined) return known;
    const row = this.#prepare('select * from tenants where name = ?').get(name);
    if (row === undefined) return undefined;
    const found = entry(row);
    if (this.#known.size >= KNOWN_MAX) this.#known.clear();
    this.#known.set(name, found);
    return found;
  }

  byId(id: TenantId): CatalogEntry | undefined {
    const row = this.#prepare('select * from tenants where id = ?').get(id);
    return row === undefined ? undefined : entry(row);
  }

  list(after: string, limit: number): CatalogEntry[] {
    return this.#prepare('select * from tenants where name > ? order by name limit ?').all(after, limit).map(entry);
  }

  /** Without hidden ones. */
  count(): number {
    return (this.#prepare('select count(*) as n from tenants where name >= ?').get(HIDDEN_END) as { n: number }).n;
  }

  /** Of which the log tells that they were made to replace others: not one that was adopted, whose file may lag behind. */
  hidden(limit: number): CatalogEntry[] {
    return this.#prepare('select * from tenants where name < ? and created_lsn > ? order by name limit ?')
      .all(HIDDEN_END, ADOPTED_LSN, limit)
      .map(entry);
  }

  /** The same record may come twice: at its commit and from a replay. */
  apply(record: CatalogRecord): void {
    if (record.lsn <= this.#applied) return;
    try {
      this.#database.exec('begin immediate');
      if (record.kind === RecordKind.tenantCreate) {
        const { name, uuid } = decodeTenantCreate(record.payload);
        this.#prepare('insert or replace into tenants (id, name, uuid, created_lsn) values (?, ?, ?, ?)').run(
          record.tenant,
          name,
          uuid,
          record.lsn,
        );
        this.#nextId = Math.max(this.#nextId, record.tenant + 1);
      } else if (record.kind === RecordKind.tenantDrop) {
        this.#prepare('delete from tenants where id = ?').run(record.tenant);
      } else if (record.kind === RecordKind.tenantReset) {
        const { name, uuid, tenant } = decodeTenantReset(record.payload);
        this.#prepare('delete from tenants where id = ?').run(record.tenant);
        this.#prepare(
          `insert into tenants (id, name, uuid, created_lsn, opened, reset_term, reset_lsn) values (?, ?, ?, ?, 1, ?, ?)
           on conflict (id) do update set name = excluded.name, reset_term = excluded.reset_term, reset_lsn = excluded.reset_lsn`,
        ).run(tenant, name, uuid, ADOPTED_LSN, record.term ?? NO_TERM, record.lsn);
        this.#nextId = Math.max(this.#nextId, tenant + 1);
      }
      this.#prepare('update catalog set applied = ?, next_id = ?').run(record.lsn, this.#nextId);
      this.#database.exec('commit');
      this.#applied = record.lsn;
      this.#known.clear();
    } catch (error) {
      if (this.#database.isTransaction) this.#database.exec('rollback');
      throw fromSqlite(error);
    }
  }

  /** Takes up a tenant whose file is there and whose record the log no longer holds. */
  adopt({ id, name, uuid }: TenantIdentity): void {
    this.#prepare('insert or ignore into tenants (id, name, uuid, created_lsn, opened) values (?, ?, ?, ?, 1)').run(
      id,
      name,
      uuid,
      ADOPTED_LSN,
    );
    this.#nextId = Math.max(this.#nextId, id + 1);
    this.#prepare('update catalog set next_id = ?').run(this.#nextId);
    this.#known.clear();
  }

  /** Of a catalog that is being restored, whose log goes on without this tenant. Its id is not used again. */
  leaveOut(id: TenantId): void {
    this.#prepare('delete from tenants where id = ?').run(id);
    this.#known.clear();
  }

  /** Derived from the tenant's file; kept here so that a list need not open it. */
  setSchemaVersion(id: TenantId, version: number): void {
    this.#prepare('update tenants set schema_version = ? where id = ? and schema_version <> ?').run(
      version,
      id,
      version,
    );
    this.#derived = true;
    this.#known.clear();
  }

  /** Derived like the schema version: from now on a missing file is a lost one. */
  setOpened({ id, name }: CatalogEntry): void {
    this.#prepare('update tenants set opened = 1 where id = ?').run(id);
    this.#derived = true;
    this.#known.delete(name);
  }

  /** Of a catalog that was lost: nobody knows who had a file, so one that is missing is a lost one. */
  setAllOpened(): void {
    this.#prepare('update tenants set opened = 1').run();
    this.#derived = true;
    this.#known.clear();
  }

  /** Remembers what the file of a tenant that was closed holds. */
  setHeld({ id, name }: TenantIdentity, lsn: Lsn): void {
    const { changes } = this.#prepare('update tenants set held_lsn = ? where id = ? and held_lsn <> ?').run(
      lsn,
      id,
      lsn,
    );
    if (changes === 0) return;
    this.#derived = true;
    this.#known.delete(name);
  }

  /** Tenants whose files were above `lsn` when they were last closed, or brought back. */
  heldAbove(lsn: Lsn): CatalogEntry[] {
    return this.#prepare('select * from tenants where held_lsn > ?').all(lsn).map(entry);
  }

  /** Makes what is applied durable in the file itself. */
  async checkpoint(maintenance: Maintenance): Promise<void> {
    const lsn = this.#applied;
    if (lsn <= this.#durable && !this.#derived) return;
    this.#derived = false;
    let complete = false;
    try {
      ({ complete } = await maintenance.checkpoint(this.#path, 'passive'));
    } finally {
      if (!complete) this.#derived = true; // the next time
    }
    if (complete) this.#durable = lsn;
  }

  close(): void {
    this.#statements.clear();
    if (this.#database.isOpen) this.#database.close();
  }

  #addColumn(column: string): void {
    const known = this.#database.prepare(`select 1 from pragma_table_info('tenants') where name = ?`).get(column);
    if (known === undefined) this.#database.exec(`alter table tenants add column ${column} integer not null default 0`);
  }

  #prepare(statement: string): StatementSync {
    let prepared = this.#statements.get(statement);
    if (prepared === undefined) this.#statements.set(statement, (prepared = this.#database.prepare(statement)));
    return prepared;
  }
}

function entry(row: Record<string, unknown>): CatalogEntry {
  return {
    id: toTenantId(row['id']),
    name: row['name'] as string,
    uuid: toTenantUuid(row['uuid']),
    createdAt: toLsn(row['created_lsn']),
    schemaVersion: row['schema_version'] as number,
    opened: row['opened'] === 1,
    held: toLsn(row['held_lsn']),
    ...(row['reset_lsn'] === 0 ? {} : { reset: { term: toTerm(row['reset_term']), lsn: toLsn(row['reset_lsn']) } }),
  };
}
