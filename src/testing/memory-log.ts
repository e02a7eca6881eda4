/** A log in memory, for tests of what stands on one: it keeps what it is given, and fails when it is told to. */
import { createHash } from 'node:crypto';
import {
  NO_LSN,
  toGeneration,
  toHash,
  toTerm,
  type Generation,
  type Hlc,
  type Lsn,
  type TenantId,
  type Term,
} from '../base/brands.ts';
import type {
  Appended,
  CommitLog,
  CommittedRecord,
  LogEntry,
  LogHold,
  LogPage,
  PageRequest,
  TenantLocation,
} from '../log/commit-log.ts';

export class MemoryLog implements CommitLog {
  readonly generation: Generation = toGeneration('0'.repeat(32));
  readonly records: CommittedRecord[] = [];
  /** As `TenantLocation.durable`; records up to here count as done. */
  durable: Lsn = NO_LSN;
  term: Term = toTerm(1);
  /** Runs within each append, when its records are kept and nobody knows of it yet. What it throws is the answer. */
  onAppend: (entries: readonly LogEntry[]) => void = () => {};
  /** Runs before anything of an append is kept. */
  beforeAppend: (entries: readonly LogEntry[]) => void = () => {};

  get watermark(): Lsn {
    return this.records.length as Lsn;
  }

  // A real one answers from another thread: never in the same turn.
  async append(entries: readonly LogEntry[]): Promise<Appended> {
    await Promise.resolve();
    this.beforeAppend(entries);
    const firstLsn = (this.watermark + 1) as Lsn;
    const hashes = new Uint8Array(entries.length * 32);
    for (const [index, { tenant, kind, payload }] of entries.entries()) {
      const previous = this.records.at(-1)?.hash ?? new Uint8Array(32);
      const hash = toHash(Uint8Array.from(createHash('sha256').update(previous).update(payload).digest()));
      hashes.set(hash, index * 32);
      const lsn = (this.watermark + 1) as Lsn;
      const position = { generation: this.generation, term: this.term, lsn, hlc: BigInt(lsn) as Hlc };
      this.records.push({
        ...position,
        tenant,
        kind,
        watermark: (lsn - 1) as Lsn,
        hash,
        payload: Uint8Array.from(payload),
      });
    }
    this.onAppend(entries);
    return { generation: this.generation, term: this.term, firstLsn, hashes };
  }

  async reserve(): Promise<LogHold> {
    return { progress: () => {}, release: () => {} };
  }

  async readPage({ from, to, tenant, kinds }: PageRequest): Promise<LogPage> {
    const end = Math.min(to ?? Infinity, this.watermark) as Lsn;
    const records = this.records
      .slice(from - 1, end)
      .filter((record) => tenant === undefined || record.tenant === tenant)
      .filter((record) => kinds === undefined || kinds.includes(record.kind));
    return { records, next: (end + 1) as Lsn, end };
  }

  async locate(tenant: TenantId, lsn: Lsn): Promise<TenantLocation> {
    const last = this.records.findLast((record) => record.tenant === tenant && record.lsn > this.durable);
    const at = this.records[lsn - 1];
    return { last: last?.lsn ?? NO_LSN, durable: this.durable, ...(at === undefined ? {} : { at }) };
  }

  onWatermark(): () => void {
    return () => {};
  }
}
