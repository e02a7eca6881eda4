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
import type { Generation, Hlc, Lsn, Position, TenantId, Term } from '../base/brands.ts';
import { HASH_BYTES, NO_LSN, NO_TENANT, NO_TERM } from '../base/brands.ts';
import type { HybridClock } from '../base/clock.ts';
import type { Disk } from '../base/disk.ts';
import { NostosError } from '../base/errors.ts';
import type { ChainPoint } from './chain.ts';
import { encodeFork } from './fork.ts';
import type { Marks } from './marks-file.ts';
import { saveMarks } from './marks-file.ts';
import { OpenSegment } from './open-segment.ts';
import { GroupEncoder, RECORD_HEADER_BYTES, RecordKind, type LogRecord } from './record.ts';
import type { Recovered } from './recovery.ts';
import type { ReplicatedRecord } from './replicated-run.ts';
import { checkRun } from './replicated-run.ts';
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
  /** The records as they stand in the log, for those who follow; valid until the next append. */
  readonly bytes: Uint8Array;
}

/** A place in the log right behind a record. */
export interface LogPlace {
  readonly segment: number;
  readonly offset: number;
  readonly point: ChainPoint;
  readonly hlc: Hlc;
}

export interface WriterOptions {
  readonly dir: string;
  readonly segmentBytesMax: number;
  readonly recordBytesMax: number;
  readonly preallocateBytes: number;
}

type Reign = Pick<Position, 'generation' | 'term'>;

/** A borrower may write so much before the owner takes it in, which is not to take long. */
const LEND_BYTES = 256 * 1024;

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
  /** As they are on disk. */
  #marks: Marks | undefined;
  /** The highest W that records name which were received since the last sync. */
  #heardWatermark = NO_LSN;
  /** The generation that was written last. */
  #encoded: { readonly generation: Generation; readonly bytes: Uint8Array } | undefined;

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
    this.#marks = recovered.marks;
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
    if (lsn > this.#durable.lsn)
      throw new NostosError(
        'INVALID_ARGUMENT',
        `Watermark ${lsn} is above what is durable here, ${this.#durable.lsn}`,
        {
          details: { watermark: lsn, durable: this.#durable.lsn },
        },
      );
    if (lsn > this.#watermark) this.#watermark = lsn;
  }

  /** Makes W durable where no record that is names it. */
  saveWatermark(): void {
    if (this.#state === 'closed') throw this.#refusal('save the watermark');
    if (this.#watermark > (this.#marks?.watermark.lsn ?? NO_LSN)) this.#saveMarks(this.#marks?.bulkFrom);
  }

  #saveMarks(bulkFrom: Position | undefined): void {
    const marks = { watermark: this.#positionOf(this.#watermark), bulkFrom };
    saveMarks(this.#disk, this.#options.dir, marks);
    this.#marks = marks;
  }

  #positionOf(lsn: Lsn): Position {
    const { generation, term } = this.terms.at(lsn) ?? { generation: this.#end.generation, term: NO_TERM };
    return { generation, term, lsn };
  }

  /** Notes durably, before they are written, that records come which name what is not synced here; see `marks-file.ts`. */
  #noteBulk(records: readonly ReplicatedRecord[]): void {
    const isBulk = records.some(({ record }) => record.watermark > this.#durable.lsn);
    const isNoted = this.#marks?.bulkFrom !== undefined;
    if (isBulk && !isNoted) this.#saveMarks(this.#positionOf(this.#durable.lsn));
    else if (!isBulk && isNoted && this.#durable === this.#end) this.#saveMarks(undefined);
  }

  append(entries: readonly LogEntry[]): Appended {
    if (this.#state !== 'open') throw this.#refusal('append');
    if (entries.some((entry) => entry.kind === RecordKind.termStart))
      throw new NostosError('INVALID_ARGUMENT', 'A term-start is written by startTerm, not by append');
    return this.#write(entries, this.#end);
  }

  /** The first record of a new term; what the payload says is up to the caller. */
  startTerm(term: Term, payload: Uint8Array): Appended {
    const appended = this.#start({ term, generation: this.#end.generation }, payload);
    this.#state = 'open';
    return appended;
  }

  /**
   * The first record of a new generation, which goes on from the end of this log. Nobody reigns in its term: whoever leads
   * in the new generation begins a higher one.
   */
  startGeneration(generation: Generation, term: Term): Appended {
    if (this.#end.generation === generation || this.terms.generations.some((one) => one.generation === generation))
      throw new NostosError('INVALID_ARGUMENT', `Generation ${generation} cannot begin: the log has been in it`, {
        details: { generation },
      });
    const appended = this.#start({ term, generation }, encodeFork(this.#end));
    this.#state = 'term-ended';
    return appended;
  }

  #start({ term, generation }: Reign, payload: Uint8Array): Appended {
    if (this.#state === 'failed' || this.#state === 'closed') throw this.#refusal('start a term');
    if (term <= this.#end.term)
      throw new NostosError(
        'INVALID_ARGUMENT',
        `Term ${term} cannot start: the log is in term ${this.#end.term}; ask the coordinator for a higher one`,
        { details: { term, current: this.#end.term } },
      );
    this.sync(); // what was received may name a W above the one that this term's records will name
    if (this.#marks?.bulkFrom !== undefined) this.#saveMarks(undefined);
    const previous = this.#end;
    const appended = this.#write([{ tenant: NO_TENANT, kind: RecordKind.termStart, payload }], { term, generation });
    this.terms.add({ term, generation, firstLsn: appended.firstLsn, previous });
    return appended;
  }

  /**
   * Writes records that a primary has sent, exactly as they are; durable after the next `sync`. Not while this log has a
   * term of its own. All of them are checked before one is written.
   */
  appendReplicated(run: Uint8Array, onRecord?: (record: LogRecord) => void): void {
    if (this.#state !== 'term-ended') throw this.#refusal('take records from a primary');
    const records = checkRun(run, this.#end, this.#options.recordBytesMax);
    if (records.length === 0) return;
    this.#noteBulk(records);
    this.#attempt(() => this.#writeRun(run, records));
    for (const { record } of records) {
      onRecord?.(record);
      if (record.watermark > this.#heardWatermark) this.#heardWatermark = record.watermark;
    }
    this.#clock.resume(this.#endHlc);
  }

  /**
   * Gives up every record behind `place`, which is at or above W: whole segments from the highest down, then the rest of
   * the one that stays. A crash in between leaves a longer prefix, never a hole; so does a failure, after which `reopen`
   * finds out what is left, and the cut is made again.
   */
  cutTo(place: LogPlace): void {
    if (this.#state === 'open')
      throw new NostosError('INVALID_ARGUMENT', `The log is in term ${this.#end.term}; end it before records are cut`);
    if (this.#state !== 'term-ended') throw this.#refusal('cut');
    // Records to be cut may be the only ones that name W, and what comes in their place is synced up to here only.
    const bulkFrom = this.#marks?.bulkFrom;
    if (bulkFrom !== undefined && bulkFrom.lsn > place.point.lsn) this.#saveMarks(this.#positionOf(place.point.lsn));
    else this.saveWatermark();
    this.#state = 'failed';
    if (this.#durable.lsn > place.point.lsn) this.#durable = place.point; // what is above need not be found again
    this.#goBack(place);
    this.#durable = this.#end;
    this.#state = 'term-ended';
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
    if (this.#heardWatermark > this.#watermark) this.#watermark = this.#heardWatermark;
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

  #write(entries: readonly LogEntry[], reign: Reign): Appended {
    const totalBytes = this.#measure(entries);
    return this.#attempt(() => this.#encode(entries, reign, totalBytes));
  }

  /** Runs `write`, which appends; where it throws, nothing of it stays, or the writer is `failed`. */
  #attempt<T>(write: () => T): T {
    const { number: segment, endOffset: offset } = this.#open;
    const before = { segment, offset, point: this.#end, hlc: this.#endHlc };
    try {
      return write();
    } catch (error) {
      this.#undo(before, error);
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

  #encode(entries: readonly LogEntry[], { term, generation }: Reign, totalBytes: number): Appended {
    const encoder = this.#encoder;
    const generationBytes = this.#bytesOf(generation);
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
      if (this.#isBeyond(encoder.length - written + RECORD_HEADER_BYTES + payload.length)) {
        flush();
        this.#roll(last, hlc);
      }
      const lsn = (last.lsn + 1) as Lsn;
      hlc = this.#clock.next();
      this.#open.index.add(lsn, this.#open.endOffset + encoder.length - written);
      const record = { term, lsn, hlc, tenant, kind, watermark: this.#watermark, payload };
      const hash = encoder.add(generationBytes, record, last.hash);
      hashes.set(hash, positions.length * HASH_BYTES);
      positions.push({ generation, term, lsn });
      last = { generation, term, lsn, hash };
    }
    flush();
    this.#end = last;
    this.#endHlc = hlc;
    return { firstLsn, positions, hashes, bytes: encoder.bytes(0, encoder.length) };
  }

  #bytesOf(generation: Generation): Uint8Array {
    if (this.#encoded?.generation !== generation) this.#encoded = { generation, bytes: Buffer.from(generation, 'hex') };
    return this.#encoded.bytes;
  }

  #writeRun(run: Uint8Array, records: readonly ReplicatedRecord[]): void {
    let [written, at] = [0, 0];
    const flush = (): void => {
      if (at > written) this.#open.append(run.subarray(written, at));
      written = at;
    };
    for (const { record, point } of records) {
      if (this.#isBeyond(at - written + record.bytes.length)) {
        flush();
        this.#roll(this.#end, this.#endHlc);
      }
      this.#open.index.add(record.lsn, this.#open.endOffset + at - written);
      at += record.bytes.length;
      const { term, generation, lsn } = record;
      if (record.kind === RecordKind.termStart)
        this.terms.add({ term, generation, firstLsn: lsn, previous: this.#end });
      this.#end = point;
      this.#endHlc = record.hlc;
    }
    flush();
  }

  /** Whether so many bytes more pass the end of the open segment. */
  #isBeyond(bytes: number): boolean {
    return this.#open.endOffset + bytes > this.#options.segmentBytesMax;
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
    if (this.#marks?.bulkFrom !== undefined) this.#saveMarks(this.#positionOf(last.lsn));
    const next = OpenSegment.create({ disk: this.#disk, number: row.number + 1, anchor: last, ...this.#options });
    this.#open.close();
    this.#open = next;
  }

  /** Takes back what an append has done, durably. */
  #undo(before: LogPlace, cause: unknown): void {
    this.#state = 'failed';
    if (isFailedSync(cause)) return;
    try {
      this.#goBack(before);
      this.#state = 'term-ended';
    } catch {
      // What is on disk is not known now; the first error tells why, and `reopen` finds out.
    }
  }

  /**
   * Makes the log end at `place`: segments behind it go first, from the highest down, then the records behind it in its
   * own. A crash in between leaves a longer prefix, never a hole.
   */
  #goBack(place: LogPlace): void {
    const wasSealed = this.sealed.some((row) => row.number === place.segment);
    if (wasSealed || this.#disk.exists(this.#path(place.segment + 1))) this.#removeBehind(place);
    this.#open.cut(place.offset);
    this.terms.cut(place.point.lsn);
    this.#end = place.point;
    this.#endHlc = place.hlc;
  }

  #removeBehind({ segment, offset }: LogPlace): void {
    for (let number = this.#open.number + 1; number > segment; number--) {
      if (!this.#disk.exists(this.#path(number))) continue;
      this.#disk.remove(this.#path(number));
      this.#disk.syncDirectory(this.#options.dir);
    }
    const kept = this.sealed.findIndex((row) => row.number === segment);
    const { anchor } = this.sealed[kept] ?? this.#open;
    if (kept >= 0) this.sealed.length = kept;
    const reopened = OpenSegment.resume(
      { disk: this.#disk, number: segment, anchor, ...this.#options },
      offset,
      this.#open.number === segment ? this.#open.index : this.indexes.get(segment),
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
