/**
 * The one who appends. SPEC.md has its states and what each event does to them:
 *
 * - `term-ended`: nothing is appended before `startTerm` with a higher term. So it is after opening, since a term ends
 *   with its process, and after an append that the disk refused and that was cut again.
 * - `open`: within a term, records are only added.
 * - `failed`: what is on disk is not known, because a sync failed or a cut did. Only `reopen` leads out.
 *
 * An append is written at once and durable with the next `sync`. Of an append that throws `DISK_FULL` or `IO_FAILED`
 * in state `term-ended` nothing is left; one that leaves the writer `failed` may come back with `reopen`, or not.
 */
import { join } from 'node:path';
import type { Hlc, Lsn, Position, TenantId, Term } from '../base/brands.ts';
import { HASH_BYTES, NO_TENANT } from '../base/brands.ts';
import type { HybridClock } from '../base/clock.ts';
import type { Disk } from '../base/disk.ts';
import { NostosError } from '../base/errors.ts';
import type { ChainPoint } from './chain.ts';
import { OpenSegment } from './open-segment.ts';
import { GroupEncoder, RECORD_HEADER_BYTES, RecordKind, type LogRecord } from './record.ts';
import type { Recovered } from './recovery.ts';
import type { SealedSegment } from './sealed.ts';
import { SEALED_FILE, sealedTable } from './sealed.ts';
import { segmentName } from './segment-header.ts';
import type { LentTail } from './shared-tail.ts';
import { SparseIndexes } from './sparse-index.ts';
import { saveTable } from './table-file.ts';
import type { TermTable } from './terms.ts';
import { TERMS_FILE, termTable } from './terms.ts';

export type WriterState = 'open' | 'term-ended' | 'failed' | 'closed';

export interface LogEntry {
  readonly tenant: TenantId;
  readonly kind: RecordKind;
  readonly payload: Uint8Array;
}

export interface Appended {
  readonly firstLsn: Lsn;
  readonly positions: readonly Position[];
  /** The hash of each record, 32 bytes after one another. */
  readonly hashes: Uint8Array;
}

export interface WriterOptions {
  readonly dir: string;
  readonly segmentBytesMax: number;
  readonly recordBytesMax: number;
  readonly preallocateBytes: number;
}

/** A borrower may write so much before the owner takes it in, which is not to take long. */
const LEND_BYTES = 256 * 1024;

/** Where to go back to when an append fails. */
interface Mark {
  readonly segment: number;
  readonly offset: number;
  readonly end: ChainPoint;
  readonly endHlc: Hlc;
  readonly sealed: number;
}

export class LogWriter {
  readonly #disk: Disk;
  readonly #clock: HybridClock;
  readonly #options: WriterOptions;
  readonly #encoder = new GroupEncoder();
  readonly sealed: SealedSegment[];
  readonly terms: TermTable;
  readonly indexes = new SparseIndexes();
  #open: OpenSegment;
  #state: WriterState = 'term-ended';
  #end: ChainPoint;
  #endHlc: Hlc;
  #durable: ChainPoint;
  #watermark: Lsn;
  #generationBytes: Buffer;

  constructor(deps: { disk: Disk; clock: HybridClock }, options: WriterOptions, recovered: Recovered) {
    this.#disk = deps.disk;
    this.#clock = deps.clock;
    this.#options = options;
    this.sealed = recovered.sealed;
    this.terms = recovered.terms;
    this.#open = recovered.open;
    this.#end = recovered.end;
    this.#endHlc = recovered.endHlc;
    this.#durable = recovered.end;
    this.#watermark = recovered.watermark;
    this.#generationBytes = Buffer.from(recovered.end.generation, 'hex');
    this.#clock.resume(recovered.endHlc);
  }

  get state(): WriterState {
    return this.#state;
  }

  get open(): OpenSegment {
    return this.#open;
  }

  get end(): ChainPoint {
    return this.#end;
  }

  get durable(): ChainPoint {
    return this.#durable;
  }

  get watermark(): Lsn {
    return this.#watermark;
  }

  /** W goes into the records from now on; it only rises. */
  setWatermark(lsn: Lsn): void {
    if (lsn > this.#end.lsn)
      throw new NostosError('INVALID_ARGUMENT', `Watermark ${lsn} is above the end of the log, ${this.#end.lsn}`, {
        details: { watermark: lsn, end: this.#end.lsn },
      });
    if (lsn > this.#watermark) this.#watermark = lsn;
  }

  append(entries: readonly LogEntry[]): Appended {
    if (this.#state !== 'open') throw this.#refusal('append');
    if (entries.some((entry) => entry.kind === RecordKind.termStart))
      throw new NostosError('INVALID_ARGUMENT', 'A term-start is written by startTerm, not by append');
    return this.#write(entries, this.#end.term);
  }

  /** The first record of a new term; what the payload says is up to the caller. */
  startTerm(term: Term, payload: Uint8Array): Appended {
    if (this.#state === 'failed' || this.#state === 'closed') throw this.#refusal('start a term');
    if (term <= this.#end.term)
      throw new NostosError(
        'INVALID_ARGUMENT',
        `Term ${term} cannot start: the log is in term ${this.#end.term}; ask the coordinator for a higher one`,
        { details: { term, current: this.#end.term } },
      );
    const previous = this.#end;
    const appended = this.#write([{ tenant: NO_TENANT, kind: RecordKind.termStart, payload }], term);
    this.terms.add({ term, generation: previous.generation, firstLsn: appended.firstLsn, previous });
    this.#state = 'open';
    return appended;
  }

  /** Makes everything appended so far durable. A failure ends the term, and only `reopen` tells what is left. */
  sync(): void {
    if (this.#state === 'failed' || this.#state === 'closed') throw this.#refusal('sync');
    const end = this.#end;
    if (end === this.#durable) return;
    try {
      this.#open.dataSync();
    } catch (error) {
      this.#state = 'failed';
      throw error;
    }
    this.#durable = end;
  }

  /** The tail as another thread may have it now; undefined where nobody but us may append. */
  lend(): LentTail | undefined {
    if (this.#state !== 'open' || this.#durable !== this.#end) return undefined;
    const { term, lsn, hash } = this.#end;
    const { number: segment, endOffset, limitOffset } = this.#open;
    return {
      ...{ term, lsn, hash, hlc: this.#endHlc, watermark: this.#watermark, segment, endOffset },
      limitOffset: Math.min(limitOffset, endOffset + LEND_BYTES),
    };
  }

  /** Takes in what another thread has appended and synced to the tail that it was lent. */
  adopt(tail: LentTail, onRecord?: (record: LogRecord) => void): void {
    const { generation } = this.#end;
    const end = this.#end;
    // First what must not be lost, whatever comes next.
    this.#end = { generation, term: tail.term, lsn: tail.lsn, hash: tail.hash };
    this.#durable = this.#end;
    this.#endHlc = tail.hlc;
    this.#watermark = tail.watermark;
    this.#clock.resume(tail.hlc);
    try {
      this.#open.adopt(end, tail, onRecord);
    } catch (error) {
      this.#state = 'failed';
      throw error;
    }
  }

  /** A write or sync of another thread has failed: what is behind the end is not known. */
  fail(): void {
    if (this.#state !== 'closed') this.#state = 'failed';
  }

  /** Ends the term without a failure: at step-down. */
  endTerm(): void {
    if (this.#state === 'open') this.#state = 'term-ended';
  }

  /** Lets go of the file, to be read anew; stays `failed` where that does not succeed. */
  abandon(): void {
    this.#state = 'failed';
    this.#open.close();
  }

  close(): void {
    this.#state = 'closed';
    this.#open.close();
  }

  #write(entries: readonly LogEntry[], term: Term): Appended {
    const totalBytes = this.#measure(entries);
    const mark: Mark = {
      segment: this.#open.number,
      offset: this.#open.endOffset,
      end: this.#end,
      endHlc: this.#endHlc,
      sealed: this.sealed.length,
    };
    try {
      return this.#encode(entries, term, totalBytes);
    } catch (error) {
      this.#undo(mark, error);
      throw error;
    }
  }

  #measure(entries: readonly LogEntry[]): number {
    let totalBytes = 0;
    for (const { payload } of entries) {
      if (payload.length > this.#options.recordBytesMax)
        throw new NostosError(
          'TRANSACTION_TOO_LARGE',
          `A record of ${payload.length} bytes is beyond recordBytesMax, ${this.#options.recordBytesMax}; write in smaller transactions`,
          { details: { bytes: payload.length, recordBytesMax: this.#options.recordBytesMax } },
        );
      totalBytes += RECORD_HEADER_BYTES + payload.length;
    }
    return totalBytes;
  }

  #encode(entries: readonly LogEntry[], term: Term, totalBytes: number): Appended {
    const encoder = this.#encoder;
    const generation = this.#end.generation;
    const firstLsn = (this.#end.lsn + 1) as Lsn;
    const positions: Position[] = [];
    const hashes = new Uint8Array(entries.length * HASH_BYTES);
    encoder.begin(totalBytes);
    let written = 0;
    let last = this.#end;
    let hlc = this.#endHlc;
    const flush = (): void => {
      if (encoder.length > written) this.#open.append(encoder.bytes(written, encoder.length));
      written = encoder.length;
    };
    for (const { tenant, kind, payload } of entries) {
      const offset = this.#open.endOffset + encoder.length - written;
      if (offset + RECORD_HEADER_BYTES + payload.length > this.#options.segmentBytesMax) {
        flush();
        this.#roll(last, hlc);
      }
      const lsn = (last.lsn + 1) as Lsn;
      hlc = this.#clock.next();
      this.#open.index.add(lsn, this.#open.endOffset + encoder.length - written);
      const record = { term, lsn, hlc, tenant, kind, watermark: this.#watermark, payload };
      const hash = encoder.add(this.#generationBytes, record, last.hash);
      hashes.set(hash, positions.length * HASH_BYTES);
      positions.push({ generation, term, lsn });
      last = { generation, term, lsn, hash };
    }
    flush();
    this.#end = last;
    this.#endHlc = hlc;
    return { firstLsn, positions, hashes };
  }

  /** Seals the open segment and makes the next one; terms first, as `terms.ts` promises. */
  #roll(last: ChainPoint, lastHlc: Hlc): void {
    const { dir } = this.#options;
    const row = this.#open.seal(last, lastHlc);
    if (this.terms.dirty) {
      saveTable(this.#disk, join(dir, TERMS_FILE), termTable, { base: 0, rows: [...this.terms.entries] });
      this.terms.dirty = false;
    }
    this.sealed.push(row);
    this.indexes.set(row.number, this.#open.index);
    saveTable(this.#disk, join(dir, SEALED_FILE), sealedTable, {
      base: (this.sealed[0] as SealedSegment).number,
      rows: this.sealed,
    });
    const next = OpenSegment.create({ disk: this.#disk, number: row.number + 1, anchor: last, ...this.#options });
    this.#open.close();
    this.#open = next;
  }

  /**
   * Takes back what an append has done, durably: the segments that it made go first, from the highest down, then the
   * records in the one where it began. A crash in between leaves a longer prefix, never a hole.
   */
  #undo(mark: Mark, cause: unknown): void {
    this.#state = 'failed';
    if (isFailedSync(cause)) return;
    try {
      if (this.sealed.length > mark.sealed || this.#disk.exists(this.#path(mark.segment + 1))) this.#unroll(mark);
      this.#open.cut(mark.offset);
      this.#end = mark.end;
      this.#endHlc = mark.endHlc;
      this.#state = 'term-ended';
    } catch {
      // What is on disk is not known now; the first error tells why, and `reopen` finds out.
    }
  }

  #unroll(mark: Mark): void {
    for (let number = this.#open.number + 1; number > mark.segment; number--) {
      if (!this.#disk.exists(this.#path(number))) continue;
      this.#disk.remove(this.#path(number));
      this.#disk.syncDirectory(this.#options.dir);
    }
    const { anchor } = this.sealed[mark.sealed] ?? this.#open;
    this.sealed.length = mark.sealed;
    const reopened = OpenSegment.resume(
      { disk: this.#disk, number: mark.segment, anchor, ...this.#options },
      mark.offset,
      this.#open.number === mark.segment ? this.#open.index : this.indexes.get(mark.segment),
    );
    this.#open.close();
    this.#open = reopened;
  }

  #path(number: number): string {
    return join(this.#options.dir, segmentName(number));
  }

  #refusal(what: string): NostosError {
    const details = { state: this.#state, term: this.#end.term };
    if (this.#state === 'closed') return new NostosError('CLOSED', `Cannot ${what}: the log is closed`, { details });
    if (this.#state === 'failed')
      return new NostosError('TERM_ENDED', `Cannot ${what}: a write or sync failed; reopen the log first`, { details });
    return new NostosError('TERM_ENDED', `Cannot ${what}: term ${this.#end.term} has ended; start a higher one`, {
      details,
    });
  }
}

/** A failed sync may have dropped records that were written before this append. */
function isFailedSync(cause: unknown): boolean {
  return cause instanceof NostosError && cause.details.operation === 'sync';
}
