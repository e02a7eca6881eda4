/**
 * Tenant files of a state that is being restored, while archived records are applied to them. Nothing but the restore knows
 * of them, and what is cut off is compared with the backup anew, so none of it is synced here: all of it is at the end.
 *
 * The log that these records were in does not come along. So a file that is closed notes the fingerprint of its last record,
 * from which the node goes on.
 */
import { existsSync, rmSync } from 'node:fs';
import type { TenantId } from '../base/brands.ts';
import type { Disk } from '../base/disk.ts';
import { NostosError } from '../base/errors.ts';
import type { CommittedRecord } from '../log/commit-log.ts';
import type { ForgetLedger } from '../log/ledger.ts';
import type { Catalog, CatalogEntry } from '../store/catalog.ts';
import { Connection } from '../store/connection.ts';
import { createTenantFile } from '../store/create-tenant-file.ts';
import { ExpectedFingerprint } from '../store/expected-fingerprint.ts';
import { Replay, shapesFrom, type FileContent } from '../store/replay.ts';
import { readSchemaShape } from '../store/schema-shape.ts';
import { fromSqlite } from '../store/sqlite-errors.ts';
import { readFingerprint, readShapes, readTenantMeta, writeFingerprint, writeName } from '../store/tenant-file.ts';
import { tenantDir, tenantPath } from './paths.ts';

export interface StagedTenantsDeps {
  readonly disk: Disk;
  /** The data directory that will be. */
  readonly dir: string;
  readonly catalog: Catalog;
  readonly ledger: ForgetLedger;
}

const OPEN_MAX = 64;
/** Changes that a WAL takes before it is moved into its file. */
const WAL_BYTES = 32 * 1024 * 1024;

export class StagedTenants {
  readonly #deps: StagedTenantsDeps;
  /** The one that was used last comes last. */
  readonly #open = new Map<TenantId, StagedTenant>();
  readonly #settled = new Set<TenantId>();

  constructor(deps: StagedTenantsDeps) {
    this.#deps = deps;
  }

  async apply(id: TenantId, records: readonly CommittedRecord[]): Promise<void> {
    const { catalog, ledger, dir } = this.#deps;
    let tenant = this.#open.get(id);
    if (tenant === undefined) {
      const entry = catalog.byId(id);
      if (entry === undefined)
        throw new NostosError('BACKUP_DAMAGED', `record ${records[0]?.lsn} is of tenant ${id}, which there is not`, {
          details: { tenant: id, lsn: records[0]?.lsn ?? 0, problem: 'a record of no tenant' },
        });
      tenant = await StagedTenant.open(tenantPath(dir, id), entry, ledger);
    }
    this.#open.delete(id);
    this.#open.set(id, tenant);
    this.#settled.delete(id);
    tenant.apply(records);
    const [oldest] = this.#open.keys();
    if (this.#open.size > OPEN_MAX && oldest !== undefined) this.#settle(oldest);
  }

  drop(id: TenantId): void {
    this.#open.get(id)?.close();
    this.#open.delete(id);
    this.#settled.delete(id);
    rmSync(tenantDir(this.#deps.dir, id), { recursive: true, force: true });
  }

  /** It has another name from here on, which its file is given when it is closed. */
  renamed(id: TenantId): void {
    this.#settle(id);
    this.#settled.delete(id);
  }

  /** Closes all, those too that no record changed: each file says by itself where it is, and the catalog knows of it. */
  async finish(onDone: (done: number) => void = () => {}): Promise<void> {
    const { catalog, disk, dir, ledger } = this.#deps;
    for (const id of this.#open.keys()) this.#settle(id);
    let done = 0;
    for (const entry of entriesOf(catalog)) {
      const path = tenantPath(dir, entry.id);
      if (!this.#settled.has(entry.id) && disk.exists(path)) {
        this.#open.set(entry.id, await StagedTenant.open(path, entry, ledger));
        this.#settle(entry.id);
      }
      onDone((done += 1));
    }
  }

  close(): void {
    for (const tenant of this.#open.values()) tenant.close();
    this.#open.clear();
  }

  #settle(id: TenantId): void {
    const tenant = this.#open.get(id);
    if (tenant === undefined) return;
    this.#open.delete(id);
    try {
      const { entry, content } = tenant;
      tenant.note();
      const { catalog } = this.#deps;
      catalog.setSchemaVersion(id, content.schemaVersion);
      catalog.setOpened(entry);
      catalog.setHeld(entry, content.applied.lsn);
      this.#settled.add(id);
    } finally {
      tenant.close();
    }
  }
}

export function* entriesOf(catalog: Catalog): Iterable<CatalogEntry> {
  for (let after = ''; ;) {
    const page = catalog.list(after, 1_000);
    yield* page;
    if (page.length < 1_000) return;
    after = page.at(-1)!.name;
  }
}

class StagedTenant {
  readonly entry: CatalogEntry;
  readonly content: FileContent;
  readonly #connection: Connection;
  readonly #replay: Replay;
  #walBytes = 0;

  private constructor(path: string, entry: CatalogEntry, ledger: ForgetLedger) {
    this.entry = entry;
    this.#connection = new Connection(path, { role: 'applier', statementCacheMax: 1 });
    try {
      this.#connection.database.exec('pragma synchronous = off');
      this.content = readContent(this.#connection, entry);
      this.#replay = new Replay(this.#connection, this.content, { ledger, uuid: entry.uuid });
    } catch (error) {
      this.#connection.close();
      throw fromSqlite(error);
    }
  }

  static async open(path: string, entry: CatalogEntry, ledger: ForgetLedger): Promise<StagedTenant> {
    if (!existsSync(path)) await createTenantFile(path, entry);
    return new StagedTenant(path, entry, ledger);
  }

  apply(records: readonly CommittedRecord[]): void {
    this.#replay.apply(records);
    this.#walBytes += this.#replay.takeAppliedBytes();
    if (this.#walBytes < WAL_BYTES) return;
    this.#connection.database.exec('pragma wal_checkpoint(truncate)');
    this.#walBytes = 0;
  }

  note(): void {
    const { applied, expected } = this.content;
    if (readFingerprint(this.#connection)?.lsn !== applied.lsn)
      writeFingerprint(this.#connection, applied.lsn, expected.serialize());
    writeName(this.#connection, this.entry.name);
  }

  close(): void {
    this.content.expected.release();
    this.#connection.close();
  }
}

/** A stored fingerprint that lags behind the rows is worked out anew: the log that would bring it up is not there. */
function readContent(connection: Connection, { uuid, name }: CatalogEntry): FileContent {
  const meta = readTenantMeta(connection);
  if (meta?.identity.uuid !== uuid)
    throw new NostosError('BACKUP_DAMAGED', `${connection.path} is not the file of tenant ${name}`, {
      details: { path: connection.path, problem: 'of another tenant' },
    });
  const noted = readFingerprint(connection);
  const isNew = meta.lsn === 0;
  const expected = ExpectedFingerprint.parse(uuid, noted?.lsn === meta.lsn ? noted.buckets : undefined);
  if (!isNew && noted?.lsn !== meta.lsn) expected.recompute(connection.database, readSchemaShape(connection.database));
  if (!Buffer.from(expected.total()).equals(meta.fingerprint))
    throw new NostosError(
      'BACKUP_DAMAGED',
      `the rows of tenant ${name} in the backup are not what its fingerprint says at record ${meta.lsn}`,
      { details: { tenant: name, lsn: meta.lsn, problem: 'its rows' } },
    );
  return { applied: meta, schemaVersion: meta.schemaVersion, shapes: shapesFrom(readShapes(connection)), expected };
}
