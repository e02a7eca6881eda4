/**
 * Applies what becomes committed to the tenants of a replica. It reads the log once for all of them, a page at a time, and
 * gives each tenant its records; what comes while it works is the next page, so a replica that is behind applies more at
 * once. Tenants are created and dropped at their place in the order.
 *
 * `givenTo` moves when all tenants of a page have theirs. A tenant that cannot take them (a full disk, rows that differ)
 * stands still while the others go on; it is tried again with its next records, and `lowest` keeps the log for it.
 */
import type { Lsn, TenantId } from '../base/brands.ts';
import { readCommitted, untilCommitted, type CommitLog, type CommittedRecord } from '../log/commit-log.ts';
import { CATALOG_KINDS, RecordKind } from '../log/record.ts';
import type { CatalogEntry } from './catalog.ts';
import type { OpenTenants } from './open-tenants.ts';

export interface ApplierCatalog {
  byId(id: TenantId): CatalogEntry | undefined;
  /** Takes up a tenant-create, -drop or -reset, and removes the files of what is gone by it. May come twice. */
  apply(record: CommittedRecord): Promise<void>;
}

export interface TenantApplierDeps {
  readonly log: CommitLog;
  readonly tenants: Pick<OpenTenants, 'with'>;
  readonly catalog: ApplierCatalog;
  /** A tenant could not take its records; called each time. */
  readonly onFailed: (id: TenantId, error: unknown) => void;
}

const PAGE_BYTES = 1024 * 1024;
const TENANTS_AT_ONCE = 8;

export class TenantApplier {
  readonly #deps: TenantApplierDeps;
  readonly #failed = new Map<TenantId, Lsn>();
  #givenTo: Lsn;

  /** All tenants have what is committed up to `from`: at the start, what all files hold; after a reign, W. */
  constructor(deps: TenantApplierDeps, from: Lsn) {
    this.#deps = deps;
    this.#givenTo = from;
  }

  get givenTo(): Lsn {
    return this.#givenTo;
  }

  /** Up to there no tenant lacks anything; what comes after must stay in the log. */
  get lowest(): Lsn {
    return Math.min(this.#givenTo, ...this.#failed.values()) as Lsn;
  }

  /** Goes on until the signal ends it, with its reason. */
  async run(signal: AbortSignal): Promise<never> {
    for (;;) {
      await untilCommitted(this.#deps.log, (this.#givenTo + 1) as Lsn, signal);
      await this.catchUp(signal);
    }
  }

  /** Applies everything that is committed now. One call at a time. */
  async catchUp(signal?: AbortSignal): Promise<void> {
    const { log } = this.#deps;
    const range = { from: (this.#givenTo + 1) as Lsn, to: log.watermark, bytesMax: PAGE_BYTES };
    for await (const page of readCommitted(log, { ...range, ...(signal === undefined ? {} : { signal }) }))
      await this.#applyPage(page);
  }

  async #applyPage(page: readonly CommittedRecord[]): Promise<void> {
    let byTenant = new Map<TenantId, CommittedRecord[]>();
    for (const record of page) {
      if (CATALOG_KINDS.includes(record.kind)) {
        await this.#give(byTenant, (record.lsn - 1) as Lsn);
        byTenant = new Map();
        await this.#deps.catalog.apply(record);
        if (record.kind !== RecordKind.tenantCreate) this.#failed.delete(record.tenant);
      } else if (record.kind === RecordKind.changeset || record.kind === RecordKind.schema) {
        const records = byTenant.get(record.tenant);
        if (records === undefined) byTenant.set(record.tenant, [record]);
        else records.push(record);
      }
    }
    await this.#give(byTenant, page.at(-1)?.lsn ?? this.#givenTo);
  }

  async #give(byTenant: ReadonlyMap<TenantId, readonly CommittedRecord[]>, through: Lsn): Promise<void> {
    const waiting = byTenant.entries();
    const worker = async (): Promise<void> => {
      for (const [id, records] of waiting) await this.#giveOne(id, records, through);
    };
    await Promise.all(Array.from({ length: Math.min(TENANTS_AT_ONCE, byTenant.size) }, worker));
    if (through > this.#givenTo) this.#givenTo = through;
  }

  async #giveOne(id: TenantId, records: readonly CommittedRecord[], through: Lsn): Promise<void> {
    const { tenants, catalog, onFailed } = this.#deps;
    const entry = catalog.byId(id);
    if (entry === undefined) return; // dropped further on, and its file is gone
    const after = this.#givenTo;
    try {
      await tenants.with(entry, (store) => store.applyUpTo(through, { after, records }));
      this.#failed.delete(id);
    } catch (error) {
      if (!this.#failed.has(id)) this.#failed.set(id, after);
      onFailed(id, error);
    }
  }
}
