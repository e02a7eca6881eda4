/**
 * Changes of the catalog: a record of the log first, then the file. What the file missed (a crash, a full disk, an
 * outcome that was not known) it takes from the log, on opening and before the next change.
 *
 * The files of a dropped or replaced tenant go after its record; what it forgot is in the ledger before that, also where its
 * file never was given it. Then the file of what has replaced it is given the name. `heldFrom` keeps the log from counting as done with a change
 * before all of that has happened, so that after a crash the next opening goes on with it.
 */
import { readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { NO_LSN, NO_TENANT, type Lsn, type Position, type TenantId } from '../base/brands.ts';
import { NostosError } from '../base/errors.ts';
import { readCommitted, type CommittedRecord } from '../log/commit-log.ts';
import type { ForgetLedger } from '../log/ledger.ts';
import { CATALOG_KINDS, RecordKind } from '../log/record.ts';
import type { Catalog, CatalogRecord } from '../store/catalog.ts';
import { Connection } from '../store/connection.ts';
import { renameTenantFile } from '../store/create-tenant-file.ts';
import {
  decodeTenantReset,
  encodeTenantCreate,
  encodeTenantDrop,
  encodeTenantReset,
  ledgerEntryOf,
  type TenantCreatePayload,
  type TenantResetPayload,
} from '../store/payload.ts';
import { readTenantMeta } from '../store/tenant-file.ts';
import type { EngineClient } from './engine-client.ts';
import { tenantDir, tenantPath } from './paths.ts';

export class CatalogLog {
  readonly #engine: EngineClient;
  readonly #catalog: Catalog;
  readonly #ledger: ForgetLedger;
  readonly #dir: string;
  readonly #held = new Set<{ readonly from: Lsn }>();
  #stale = false;

  constructor(
    deps: { readonly engine: EngineClient; readonly catalog: Catalog; readonly ledger: ForgetLedger },
    dir: string,
  ) {
    this.#engine = deps.engine;
    this.#catalog = deps.catalog;
    this.#ledger = deps.ledger;
    this.#dir = dir;
  }

  /** Changes after this position are under way; undefined when there are none. */
  get heldFrom(): Lsn | undefined {
    let lowest: Lsn | undefined;
    for (const { from } of this.#held) if (lowest === undefined || from < lowest) lowest = from;
    return lowest;
  }

  /** Checks the catalog against the log and applies what it lacks. */
  async open(): Promise<void> {
    const { applied } = this.#catalog;
    const { watermark, durable } = this.#engine.opened;
    const { firstLsn } = await this.#engine.status();
    if (applied > watermark || (applied >= firstLsn && !(await this.#isCatalogRecord(applied))))
      throw new NostosError(
        'LOG_DAMAGED',
        `the catalog of ${this.#dir} holds record ${applied}, which this log (${firstLsn} to ${watermark}) does not have: acknowledged records are lost; restore this node`,
        { details: { lsn: applied, watermark } },
      );
    // Without a catalog, or with one that an accident emptied, everything that the log holds counts.
    const lost = applied === NO_LSN && durable > NO_LSN;
    const dropped = await this.#follow(lost ? firstLsn : ((durable + 1) as Lsn));
    if (!lost) return;
    if (firstLsn > 1) this.#adoptFiles(dropped);
    this.#catalog.setAllOpened();
  }

  async create(payload: TenantCreatePayload): Promise<void> {
    await this.#change(RecordKind.tenantCreate, () => this.#catalog.takeId(), encodeTenantCreate(payload));
  }

  async drop(id: TenantId, removeFiles: () => Promise<void>): Promise<void> {
    await this.#change(RecordKind.tenantDrop, () => id, encodeTenantDrop(), removeFiles);
  }

  /** One tenant takes the place of another one; both are closed. Answers with where in the log. */
  reset(id: TenantId, by: TenantResetPayload, removeFiles: () => Promise<void>): Promise<Position> {
    return this.#change(
      RecordKind.tenantReset,
      () => id,
      encodeTenantReset(by),
      async () => {
        await removeFiles();
        this.rename(by);
      },
    );
  }

  /** The file says itself whose it is, for a catalog that is lost. */
  rename({ tenant, name }: TenantResetPayload): void {
    renameTenantFile(tenantPath(this.#dir, tenant), name);
  }

  /** After a change whose outcome is not known: finds out, and takes it up. */
  async settle(): Promise<void> {
    if (this.#stale) await this.#follow((this.#catalog.applied + 1) as Lsn);
  }

  async #change(
    kind: RecordKind,
    takeTenant: () => TenantId,
    payload: Uint8Array,
    then?: () => Promise<void>,
  ): Promise<Position> {
    const held = { from: this.#engine.watermark };
    this.#held.add(held);
    try {
      await this.settle();
      const tenant = takeTenant();
      const kept = Uint8Array.from(payload); // the engine takes the other one
      this.#stale = true;
      const { generation, term, firstLsn: lsn } = await this.#engine.append([{ tenant, kind, payload }]);
      await this.#apply({ kind, term, lsn, tenant, payload: kept });
      this.#stale = false;
      await then?.();
      return { generation, term, lsn };
    } finally {
      this.#held.delete(held);
    }
  }

  /** On a replica: a change that the primary has made, and is committed. May come twice. */
  async follow(record: CommittedRecord, then: () => Promise<void>): Promise<void> {
    const held = { from: (record.lsn - 1) as Lsn };
    this.#held.add(held);
    try {
      if (record.lsn > this.#catalog.applied) await this.#apply(record);
      await then();
    } finally {
      this.#held.delete(held);
    }
  }

  /** Applies what the log has from here on, and removes the files of tenants that are gone; answers with their ids. */
  async #follow(from: Lsn): Promise<Set<TenantId>> {
    const dropped = new Set<TenantId>();
    const { last } = await this.#engine.locate(NO_TENANT, NO_LSN);
    const to = from > this.#engine.opened.durable ? last : this.#engine.watermark;
    if (to < from) return dropped;
    for await (const page of readCommitted(this.#engine, { from, to, kinds: CATALOG_KINDS }))
      for (const record of page) {
        await this.#apply(record);
        if (record.kind === RecordKind.tenantCreate) continue;
        dropped.add(record.tenant);
        rmSync(tenantDir(this.#dir, record.tenant), { recursive: true, force: true });
        if (record.kind === RecordKind.tenantReset) this.rename(decodeTenantReset(record.payload));
      }
    this.#stale = false;
    return dropped;
  }

  async #apply(record: CatalogRecord): Promise<void> {
    if (record.kind !== RecordKind.tenantCreate) await this.#keepForgets(record.tenant, record.lsn);
    this.#catalog.apply(record);
  }

  /** Of a tenant that is about to go: what it forgot before that. */
  async #keepForgets(tenant: TenantId, through: Lsn): Promise<void> {
    const entry = this.#catalog.byId(tenant);
    if (entry === undefined) return;
    const { last, durable } = await this.#engine.locate(tenant, NO_LSN);
    // What its file held when it was closed, the ledger had before.
    const from = Math.max(entry.createdAt, durable + 1, entry.held + 1) as Lsn;
    const to = Math.min(last, through) as Lsn;
    if (to < from) return;
    for await (const page of readCommitted(this.#engine, { from, to, tenant, kinds: [RecordKind.changeset] }))
      this.#ledger.add(page.flatMap((record) => ledgerEntryOf(record, entry.uuid) ?? []));
  }

  async #isCatalogRecord(lsn: Lsn): Promise<boolean> {
    const { records } = await this.#engine.readPage({ from: lsn, to: lsn, kinds: CATALOG_KINDS, bytesMax: 1 });
    return records.length > 0;
  }

  /** The files know to whom they belong: so a lost catalog comes back where the log no longer reaches. */
  #adoptFiles(dropped: ReadonlySet<TenantId>): void {
    for (const name of list(join(this.#dir, 'tenants'))) {
      const path = join(this.#dir, 'tenants', name, 'data.sqlite');
      let meta: ReturnType<typeof readTenantMeta>;
      try {
        using connection = new Connection(path, { role: 'reader', statementCacheMax: 1 });
        meta = readTenantMeta(connection);
      } catch {
        continue; // who it was cannot be told
      }
      if (meta !== undefined && !dropped.has(meta.identity.id)) this.#catalog.adopt(meta.identity);
    }
  }
}

function list(dir: string): string[] {
  try {
    return readdirSync(dir);
  } catch {
    return []; // no tenant was ever open
  }
}
