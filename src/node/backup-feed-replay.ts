/**
 * Applies the archived log to a state that is being restored: one pass over the records, whoever they are of. Tenants are
 * made and dropped at their place in the order, and the term table grows along.
 */
import { toTenantId, type Lsn, type TenantId } from '../base/brands.ts';
import { NostosError } from '../base/errors.ts';
import type { ArchivedRecord } from '../backup/repository/archive-format.ts';
import { rangesOf } from '../backup/repository/archive-ranges.ts';
import type { Snapshot } from '../backup/repository/manifest.ts';
import type { Repository } from '../backup/repository/repository.ts';
import { archiveStart } from '../backup/repository/timeline.ts';
import { pointOf, sameBytes, type ChainPoint } from '../log/chain.ts';
import type { CommittedRecord } from '../log/commit-log.ts';
import { RecordKind } from '../log/record.ts';
import type { TermTable } from '../log/terms.ts';
import { HIDDEN_END, type Catalog } from '../store/catalog.ts';
import { decodeTenantCreate, decodeTenantReset } from '../store/payload.ts';
import type { StagedTenants } from './backup-feed-tenants.ts';

export interface ArchiveReplayDeps {
  readonly repository: Repository;
  readonly catalog: Catalog;
  readonly tenants: StagedTenants;
  /** Of the snapshot, up to the position that is gone to. */
  readonly terms: TermTable;
  readonly selection: Selection;
}

export interface ArchiveReplayOptions {
  readonly snapshot: Snapshot;
  readonly point: ChainPoint;
  readonly signal?: AbortSignal | undefined;
  readonly onRecords?: (done: number, total: number) => void;
}

/**
 * Which tenants are restored: all but those that are named, or one alone. A name may be `#<id>`, where nobody can read the
 * name any more. The hidden content that is to replace a tenant (`tenant-reset.ts`) goes with that tenant.
 */
export class Selection {
  readonly #only: string | undefined;
  readonly #without: ReadonlySet<string>;
  readonly #taken = new Set<TenantId>();
  readonly #omitted = new Map<TenantId, string>();
  readonly #used = new Set<string>();

  constructor({ only, without = [] }: { readonly only?: string; readonly without?: Iterable<string> }) {
    this.#only = only;
    this.#without = new Set(without);
  }

  /** Whether this tenant is left out; from then on its id tells. */
  omits(id: TenantId, name: string): boolean {
    if (!this.#isOmitted(id, name)) {
      this.#taken.add(id);
      return false;
    }
    this.#omitted.set(id, name);
    return true;
  }

  /** Whether records of this tenant are of no use, as far as it was heard of. */
  skips(id: TenantId): boolean {
    return this.#omitted.has(id) || (this.#only !== undefined && !this.#taken.has(id));
  }

  /** Of those that were to be left out. */
  get omitted(): readonly string[] {
    return [...this.#omitted.values()].filter((name) => !isHidden(name));
  }

  /** Asked for, and there was none. */
  get unknown(): readonly string[] {
    return [...this.#without].filter((name) => !this.#used.has(name));
  }

  #isOmitted(id: TenantId, name: string): boolean {
    if (isHidden(name)) return this.skips(toTenantId(Number(name.slice(1))));
    if (this.#only !== undefined) return name !== this.#only;
    const asked = [name, `#${id}`].find((one) => this.#without.has(one));
    if (asked !== undefined) this.#used.add(asked);
    return asked !== undefined;
  }
}

const isHidden = (name: string): boolean => name < HIDDEN_END;

export class ArchiveReplay {
  readonly #deps: ArchiveReplayDeps;
  /** Up to here the catalog of the snapshot knows who was made and dropped. */
  readonly #catalogAt: Lsn;
  #byTenant = new Map<TenantId, CommittedRecord[]>();
  #previous: ChainPoint;

  constructor(deps: ArchiveReplayDeps, { snapshot }: { readonly snapshot: Snapshot }) {
    this.#deps = deps;
    this.#catalogAt = deps.catalog.applied;
    this.#previous = archiveStart(snapshot);
  }

  /** Answers with how many records there were. */
  async run({ snapshot, point, signal, onRecords }: ArchiveReplayOptions): Promise<number> {
    const { archive } = this.#deps.repository;
    const after = archiveStart(snapshot);
    const total = Math.max(0, point.lsn - after.lsn);
    const positions = new Map(snapshot.items.map(({ applied }) => [applied.lsn, applied]));
    let done = 0;
    for (const range of rangesOf(snapshot.terms, { after, through: point }))
      for await (const page of oneAhead(archive.records(range, { after: this.#previous, signal }))) {
        for (const record of page) {
          checkPosition(record, positions.get(record.header.lsn));
          await this.#take(record);
        }
        await this.#flush();
        done += page.length;
        onRecords?.(done, total);
      }
    if (done > 0 && !sameBytes(this.#previous.hash, point.hash)) throw otherHistory(point.lsn);
    return done;
  }

  async #take({ header, hash, record }: ArchivedRecord): Promise<void> {
    const previous = this.#previous;
    this.#previous = pointOf(header, hash);
    const { kind, lsn, tenant } = header;
    const { catalog, tenants, selection } = this.#deps;
    switch (kind) {
      case RecordKind.termStart:
        return this.#startTerm(this.#previous, previous);
      case RecordKind.tenantDrop:
        if (lsn <= this.#catalogAt) return;
        await this.#flush();
        tenants.drop(tenant);
        return catalog.apply({ kind, lsn, tenant, payload: new Uint8Array() });
      case RecordKind.noop:
        return;
      default:
    }
    if (kind !== RecordKind.tenantCreate && selection.skips(tenant)) return;
    // Of one that was dropped before the catalog was taken nothing is needed.
    const isKnown = this.#byTenant.has(tenant) || catalog.byId(tenant) !== undefined;
    if (lsn <= this.#catalogAt && (!isKnown || kind === RecordKind.tenantCreate)) return;
    if (record === undefined) {
      const name = catalog.byId(tenant)?.name;
      if (selection.omits(tenant, name ?? `#${tenant}`)) return;
      throw keyMissing(tenant, name);
    }
    if (kind === RecordKind.tenantCreate) {
      await this.#flush();
      if (!selection.omits(tenant, decodeTenantCreate(record.payload).name)) catalog.apply(record);
      return;
    }
    if (kind === RecordKind.tenantReset) {
      if (lsn <= this.#catalogAt) return;
      await this.#flush();
      tenants.drop(tenant);
      catalog.apply(record);
      return tenants.renamed(decodeTenantReset(record.payload).tenant);
    }
    const committed = { ...header, hash, payload: record.payload };
    const waiting = this.#byTenant.get(tenant);
    if (waiting === undefined) this.#byTenant.set(tenant, [committed]);
    else waiting.push(committed);
  }

  #startTerm(start: ChainPoint, previous: ChainPoint): void {
    const { generation, term, lsn: firstLsn } = start;
    if (this.#deps.terms.add({ generation, term, firstLsn, previous })) return;
    throw otherHistory(firstLsn);
  }

  async #flush(): Promise<void> {
    const byTenant = this.#byTenant;
    this.#byTenant = new Map();
    for (const [id, records] of byTenant) await this.#deps.tenants.apply(id, records);
  }
}

/** The next page is fetched while one is applied. */
async function* oneAhead<T>(pages: AsyncGenerator<T, void, void>): AsyncGenerator<T, void, void> {
  try {
    for (let next = pages.next(); ;) {
      const { done, value } = await next;
      if (done === true) return;
      next = pages.next();
      next.catch(() => undefined); // awaited one step later
      yield value;
    }
  } finally {
    await pages.return();
  }
}

function checkPosition({ header, hash }: ArchivedRecord, applied: ChainPoint | undefined): void {
  if (applied === undefined || (applied.term === header.term && sameBytes(applied.hash, hash))) return;
  throw otherHistory(header.lsn);
}

function otherHistory(lsn: Lsn): NostosError {
  return new NostosError(
    'BACKUP_DAMAGED',
    `The archived log and the snapshot disagree about record ${lsn}: they are of different histories`,
    { details: { lsn, problem: 'another history' } },
  );
}

export function keyMissing(id: TenantId, name: string | undefined): NostosError {
  const who = name === undefined ? `the tenant with id ${id}` : `tenant ${name}`;
  return new NostosError(
    'BACKUP_KEY_MISSING',
    `${who} is encrypted with a key that is not there, or was destroyed; give its key (--keys), or leave the tenant out: --without ${name ?? `'#${id}'`}`,
    { details: { tenant: name ?? null, id } },
  );
}
