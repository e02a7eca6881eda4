/**
 * Changes of the catalog: a record of the log first, then the file. What the file missed (a crash, a full disk, an
 * outcome that was not known) it takes from the log, on opening and before the next change.
 *
 * The files of a dropped tenant go after its record. `heldFrom` keeps the log from counting as done with a change
 * before all of that has happened, so that after a crash the next opening goes on with it.
 */
import { readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { NO_LSN, NO_TENANT, type Lsn, type TenantId } from '../base/brands.ts';
import { NostosError } from '../base/errors.ts';
import { readCommitted, type CommittedRecord } from '../log/commit-log.ts';
import { RecordKind } from '../log/record.ts';
import type { Catalog } from '../store/catalog.ts';
import { Connection } from '../store/connection.ts';
import { encodeTenantCreate, encodeTenantDrop, type TenantCreatePayload } from '../store/payload.ts';
import { readTenantMeta } from '../store/tenant-file.ts';
import type { EngineClient } from './engine-client.ts';
import { tenantDir } from './paths.ts';

const KINDS = [RecordKind.tenantCreate, RecordKind.tenantDrop];

export class CatalogLog {
  readonly #engine: EngineClient;
  readonly #catalog: Catalog;
  readonly #dir: string;
  readonly #held = new Set<{ readonly from: Lsn }>();
  #stale = false;

  constructor(deps: { readonly engine: EngineClient; readonly catalog: Catalog }, dir: string) {
    this.#engine = deps.engine;
    this.#catalog = deps.catalog;
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
    if (lost && firstLsn > 1) this.#adoptFiles(dropped);
  }

  create(payload: TenantCreatePayload): Promise<void> {
    return this.#change(RecordKind.tenantCreate, () => this.#catalog.takeId(), encodeTenantCreate(payload));
  }

  drop(id: TenantId, removeFiles: () => Promise<void>): Promise<void> {
    return this.#change(RecordKind.tenantDrop, () => id, encodeTenantDrop(), removeFiles);
  }

  async #change(
    kind: RecordKind,
    takeTenant: () => TenantId,
    payload: Uint8Array,
    then?: () => Promise<void>,
  ): Promise<void> {
    const held = { from: this.#engine.watermark };
    this.#held.add(held);
    try {
      if (this.#stale) await this.#follow((this.#catalog.applied + 1) as Lsn);
      const tenant = takeTenant();
      const kept = Uint8Array.from(payload); // the engine takes the other one
      this.#stale = true;
      const { firstLsn } = await this.#engine.append([{ tenant, kind, payload }]);
      this.#catalog.apply({ kind, lsn: firstLsn, tenant, payload: kept });
      this.#stale = false;
      await then?.();
    } finally {
      this.#held.delete(held);
    }
  }

  /** On a replica: a change that the primary has made, and is committed. May come twice. */
  async follow(record: CommittedRecord, then: () => Promise<void>): Promise<void> {
    const held = { from: (record.lsn - 1) as Lsn };
    this.#held.add(held);
    try {
      if (record.lsn > this.#catalog.applied) this.#catalog.apply(record);
      await then();
    } finally {
      this.#held.delete(held);
    }
  }

  /** Applies what the log has from here on, and removes the files of dropped tenants; answers with their ids. */
  async #follow(from: Lsn): Promise<Set<TenantId>> {
    const dropped = new Set<TenantId>();
    const { last } = await this.#engine.locate(NO_TENANT, NO_LSN);
    const to = from > this.#engine.opened.durable ? last : this.#engine.watermark;
    if (to < from) return dropped;
    for await (const page of readCommitted(this.#engine, { from, to, kinds: KINDS }))
      for (const record of page) {
        this.#catalog.apply(record);
        if (record.kind !== RecordKind.tenantDrop) continue;
        dropped.add(record.tenant);
        rmSync(tenantDir(this.#dir, record.tenant), { recursive: true, force: true });
      }
    this.#stale = false;
    return dropped;
  }

  async #isCatalogRecord(lsn: Lsn): Promise<boolean> {
    const { records } = await this.#engine.readPage({ from: lsn, to: lsn, kinds: KINDS, bytesMax: 1 });
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
