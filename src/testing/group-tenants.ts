/**
 * The tenants of a simulated node: which records each of them has, and what a power cut leaves of that. SQLite runs with
 * `synchronous=NORMAL`: a cut may take any number of the last transactions, back to the last checkpoint.
 */
import { assert } from '../base/assert.ts';
import type { Lsn } from '../base/brands.ts';
import { NO_LSN } from '../base/brands.ts';
import type { SeededRandom } from '../base/random.ts';
import type { ChainPoint } from '../log/chain.ts';
import { Violation } from './group-violation.ts';
import type { SimRecord } from './group-store.ts';

export const TENANTS = 3;

/** Undefined for what is no tenant's. */
export function tenantOf({ kind, id }: Pick<SimRecord, 'kind' | 'id'>): number | undefined {
  return kind === 'start' ? undefined : id % TENANTS;
}

/** What a file holds: its position, and its records, the last one first. Never changed, so versions share what they have. */
interface Content {
  readonly position: ChainPoint;
  readonly rows: Rows | undefined;
}

interface Rows {
  readonly record: SimRecord;
  readonly below: Rows | undefined;
}

export class SimTenant {
  /** What the file was after each transaction since the last checkpoint, which made the first one durable. */
  #versions: [Content, ...Content[]];
  /** A COMMIT failed: the file is behind, and nobody reads it, until it has taken from the log what it lacks. */
  stale = false;

  constructor(content: Content) {
    this.#versions = [content];
  }

  get #content(): Content {
    return this.#versions.at(-1)!;
  }

  get position(): ChainPoint {
    return this.#content.position;
  }

  /** The LSN of the last record that it has. */
  get last(): Lsn {
    return this.#content.rows?.record.lsn ?? NO_LSN;
  }

  get isDurable(): boolean {
    return this.#versions.length === 1;
  }

  /** Newest first. */
  *records(): Generator<SimRecord> {
    for (let rows = this.#content.rows; rows !== undefined; rows = rows.below) yield rows.record;
  }

  apply(record: SimRecord): void {
    const { rows, position } = this.#content;
    if (record.lsn <= position.lsn)
      throw new Violation(`G5: a tenant at LSN ${position.lsn} is given LSN ${record.lsn}`);
    this.#versions.push({ position: record, rows: { record, below: rows } });
  }

  /** One transaction that takes back everything above `target`; only what was `local` may be there. */
  undoTo(target: ChainPoint): void {
    let { rows } = this.#content;
    for (; rows !== undefined && rows.record.lsn > target.lsn; rows = rows.below)
      if (rows.record.kind !== 'local')
        throw new Violation(`G5: a tenant has the quorum write at LSN ${rows.record.lsn}`);
    this.#versions.push({ position: target, rows });
  }

  checkpoint(): void {
    this.#versions = [this.#content];
  }

  loseTransactions(random: SeededRandom): void {
    this.#versions = [this.#versions[random.below(this.#versions.length)]!];
    this.stale = false;
  }

  copy(): SimTenant {
    return new SimTenant(this.#content);
  }

  /** A copy as others may have it: nothing above `point`, which is committed. */
  copyUpTo(point: ChainPoint): SimTenant {
    let { rows } = this.#content;
    while (rows !== undefined && rows.record.lsn > point.lsn) rows = rows.below;
    return new SimTenant({ position: this.position.lsn > point.lsn ? point : this.position, rows });
  }
}

export class SimTenants {
  readonly all: readonly SimTenant[];
  /** Each file durably has everything up to here, so the log may forget it. */
  durable: Lsn;

  constructor(all: readonly SimTenant[], durable: Lsn) {
    assert(all.length === TENANTS, 'each tenant has a file');
    [this.all, this.durable] = [all, durable];
  }

  static empty(origin: ChainPoint): SimTenants {
    return new SimTenants(
      Array.from({ length: TENANTS }, () => new SimTenant({ position: origin, rows: undefined })),
      origin.lsn,
    );
  }

  of(record: SimRecord): SimTenant | undefined {
    const index = tenantOf(record);
    return index === undefined ? undefined : this.all[index];
  }

  /** `applied`: up to where they were given all that is committed. */
  checkpoint(applied: Lsn): void {
    for (const tenant of this.all) tenant.checkpoint();
    if (this.all.every(({ stale }) => !stale)) this.durable = applied;
  }

  copy(): SimTenants {
    return new SimTenants(
      this.all.map((tenant) => tenant.copy()),
      this.durable,
    );
  }

  copyUpTo(point: ChainPoint): SimTenants {
    return new SimTenants(
      this.all.map((tenant) => tenant.copyUpTo(point)),
      Math.min(this.durable, point.lsn) as Lsn,
    );
  }
}
