/**
 * A log in memory, for tests of what stands on one: it keeps what it is given, and fails when it is told to. As the log of
 * a lone node it commits what it has; with `committing = false` it is that of a primary whose group is slow: `commitTo` is
 * what the group does.
 */
import { createHash } from 'node:crypto';
import {
  NO_LSN,
  ZERO_HASH,
  toGeneration,
  toHash,
  toTerm,
  type Generation,
  type Hlc,
  type Lsn,
  type TenantId,
  type Term,
} from '../base/brands.ts';
import { NostosError } from '../base/errors.ts';
import type { ChainPoint } from '../log/chain.ts';
import type {
  Appended,
  CommitLog,
  CommittedRecord,
  Durability,
  LogEntry,
  LogHold,
  LogPage,
  PageRequest,
  TenantLocation,
} from '../log/commit-log.ts';

interface Waiting {
  readonly last: Lsn;
  resolve(): void;
  reject(error: NostosError): void;
}

export class MemoryLog implements CommitLog {
  readonly generation: Generation = toGeneration('0'.repeat(32));
  readonly records: CommittedRecord[] = [];
  /** As `TenantLocation.durable`; records up to here count as done. */
  durable: Lsn = NO_LSN;
  term: Term = toTerm(1);
  committing = true;
  /** Runs within each append, when its records are kept and nobody knows of it yet. What it throws is the answer. */
  onAppend: (entries: readonly LogEntry[]) => void = () => {};
  /** Runs before anything of an append is kept. */
  beforeAppend: (entries: readonly LogEntry[]) => void = () => {};
  /** Runs when an append has begun to wait for the group. */
  onQuorum: () => void = () => {};
  /** How many pages were asked for. */
  pagesRead = 0;
  #committed: Lsn = NO_LSN;
  #waiting: Waiting[] = [];
  readonly #listeners = new Set<() => void>();

  get watermark(): Lsn {
    return this.committing ? (this.records.length as Lsn) : this.#committed;
  }

  // A real one answers from another thread: never in the same turn.
  async append(
    entries: readonly LogEntry[],
    { durability }: { readonly durability: Durability } = { durability: 'quorum' },
  ): Promise<Appended> {
    await Promise.resolve();
    this.beforeAppend(entries);
    const firstLsn = (this.records.length + 1) as Lsn;
    const hashes = new Uint8Array(entries.length * 32);
    for (const [index, entry] of entries.entries()) hashes.set(this.#keep(entry), index * 32);
    this.onAppend(entries);
    const { generation, term } = this;
    if (!this.committing && durability === 'quorum') await this.#committedUpTo(this.records.length as Lsn);
    return { generation, term, firstLsn, hashes };
  }

  /** The group has everything up to there. */
  commitTo(lsn: Lsn): void {
    this.#committed = lsn;
    const [done, left] = [
      this.#waiting.filter(({ last }) => last <= lsn),
      this.#waiting.filter(({ last }) => last > lsn),
    ];
    this.#waiting = left;
    for (const { resolve } of done) resolve();
    for (const listener of this.#listeners) listener();
  }

  /** The primary's reign ends: what waits is not known to be kept. */
  stepDown(): void {
    for (const { last, reject } of this.#waiting.splice(0))
      reject(
        new NostosError('OUTCOME_UNKNOWN', 'the node has stepped down', {
          details: { position: { generation: this.generation, term: this.term, lsn: last } },
        }),
      );
  }

  /** Gives up what is above `lsn`. */
  cutTo(lsn: Lsn): void {
    this.records.length = lsn;
  }

  /** A record, or the point before the first one. */
  pointAt(lsn: Lsn): ChainPoint {
    const record = this.records[lsn - 1];
    const { generation } = this;
    return { generation, term: record?.term ?? toTerm(0), lsn, hash: record?.hash ?? ZERO_HASH };
  }

  async reserve(): Promise<LogHold> {
    return { progress: () => {}, release: () => {} };
  }

  async readPage({ from, to, tenant, kinds, uncommitted, bytesMax }: PageRequest): Promise<LogPage> {
    this.pagesRead += 1;
    const known = uncommitted === true ? this.records.length : this.watermark;
    const end = Math.min(to ?? Infinity, known) as Lsn;
    const records: CommittedRecord[] = [];
    let next: number = from;
    for (let bytes = 0; next <= end && bytes < bytesMax; next++) {
      const record = this.records[next - 1]!;
      bytes += record.payload.length;
      if (tenant !== undefined && record.tenant !== tenant) continue;
      if (kinds === undefined || kinds.includes(record.kind)) records.push(record);
    }
    return { records, next: next as Lsn, end };
  }

  async locate(tenant: TenantId, lsn: Lsn): Promise<TenantLocation> {
    const last = this.records.findLast((record) => record.tenant === tenant && record.lsn > this.durable);
    const at = this.records[lsn - 1];
    return { last: last?.lsn ?? NO_LSN, durable: this.durable, ...(at === undefined ? {} : { at }) };
  }

  onWatermark(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  #keep({ tenant, kind, payload }: LogEntry): Uint8Array {
    const previous = this.records.at(-1)?.hash ?? new Uint8Array(32);
    const hash = toHash(Uint8Array.from(createHash('sha256').update(previous).update(payload).digest()));
    const lsn = (this.records.length + 1) as Lsn;
    this.records.push({
      ...{ generation: this.generation, term: this.term, lsn, hlc: BigInt(lsn) as Hlc, tenant, kind, hash },
      watermark: (lsn - 1) as Lsn,
      payload: Uint8Array.from(payload),
    });
    return hash;
  }

  #committedUpTo(last: Lsn): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ last, resolve, reject });
      this.onQuorum();
    });
  }
}
