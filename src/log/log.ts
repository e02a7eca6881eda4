/** The log of one store: opened, appended to, made durable, read, and pruned. One thread owns it. */
import type { Generation, Hlc, Lsn, Position, Term } from '../base/brands.ts';
import { NO_LSN } from '../base/brands.ts';
import type { HybridClock } from '../base/clock.ts';
import type { Disk } from '../base/disk.ts';
import { NostosError } from '../base/errors.ts';
import { DEFAULT_LIMITS } from '../base/limits.ts';
import type { ChainPoint } from './chain.ts';
import { RECORD_HEADER_BYTES, type LogRecord } from './record.ts';
import type { LogBatch, ReadableSegment, ReadOptions, ReaderSource } from './reader.ts';
import { locateRecord, placeBehind, pruned, readLog } from './reader.ts';
import type { RecoveryOptions, RecoveryReport } from './recovery.ts';
import { recover } from './recovery.ts';
import type { PruneOptions, PruneReport, Reservation } from './retention.ts';
import { pruneSegments, Reservations } from './retention.ts';
import type { SealedSegment } from './sealed.ts';
import type { SharedTail } from './shared-tail.ts';
import { SEGMENT_HEADER_BYTES } from './segment-header.ts';
import type { TermEntry, TermTable } from './terms.ts';
import type { Appended, LogEntry, LogPlace, WriterState } from './writer.ts';
import { LogWriter } from './writer.ts';

export interface LogDeps {
  readonly disk: Disk;
  readonly clock: HybridClock;
  /** Lent to another thread of this process, which appends there (`direct-append.ts`); then see `own`. */
  readonly tail?: SharedTail;
}

export interface LogOptions {
  /** The directory of the segments; made when it is not there. */
  readonly dir: string;
  /** Of the log when it is made; otherwise that in which it must end. */
  readonly generation: Generation;
  readonly segmentBytesMax?: number;
  readonly recordBytesMax?: number;
  /** Zeros are written ahead of the records in such steps. */
  readonly preallocateBytes?: number;
  /** Known to be committed from tenants or the group record: opening fails where any of it is missing. */
  readonly knownWatermark?: Lsn;
  /** The highest position that any tenant holds; asked only where a torn tail would be cut. */
  readonly highestApplied?: () => Lsn;
  /** Records from here on are read and checked on opening, besides those of the open segment. */
  readonly scanFrom?: Lsn;
  /**
   * Called with each record that is read on opening, in order: from `scanFrom` on all of them, below it some. Also with
   * those that another thread has appended, and those that came from a primary.
   */
  readonly onRecord?: (record: LogRecord) => void;
}

const PREALLOCATE_BYTES = 4 * 1024 * 1024;

export class Log {
  readonly #deps: LogDeps;
  readonly #options: RecoveryOptions & { readonly recordBytesMax: number };
  readonly #reservations: Reservations;
  #writer: LogWriter;
  #cuts = 0;
  /** Whether a record is committed once it is on this disk, so that who borrows the tail may say so. */
  lending = false;

  private constructor(
    deps: LogDeps,
    options: RecoveryOptions & { readonly recordBytesMax: number },
    writer: LogWriter,
  ) {
    this.#deps = deps;
    this.#options = options;
    this.#writer = writer;
    this.#reservations = new Reservations(deps.clock.clock);
  }

  static open(deps: LogDeps, given: LogOptions): { log: Log; report: RecoveryReport } {
    const options = {
      segmentBytesMax: DEFAULT_LIMITS.segmentBytesMax,
      recordBytesMax: DEFAULT_LIMITS.recordBytesMax,
      preallocateBytes: PREALLOCATE_BYTES,
      knownWatermark: NO_LSN,
      ...given,
    };
    const largestBytes = SEGMENT_HEADER_BYTES + RECORD_HEADER_BYTES + options.recordBytesMax;
    if (largestBytes > options.segmentBytesMax)
      throw new NostosError(
        'INVALID_ARGUMENT',
        `recordBytesMax ${options.recordBytesMax} does not fit a segment of ${options.segmentBytesMax} bytes`,
        { details: { recordBytesMax: options.recordBytesMax, segmentBytesMax: options.segmentBytesMax } },
      );
    const recovered = recover(deps.disk, options);
    const log = new Log(deps, options, new LogWriter(deps, options, recovered));
    return { log, report: recovered.report };
  }

  /**
   * Runs `fn`, which is synchronous, while nobody else appends; before it what was appended meanwhile is taken in. With
   * a tail that is lent, everything that asks or changes the log runs in here.
   */
  own<T>(fn: () => T): T {
    const { tail } = this.#deps;
    if (tail === undefined) return fn();
    tail.acquire();
    try {
      if (tail.status !== 'kept' && this.state !== 'closed') this.#takeIn(tail);
      return fn();
    } finally {
      tail.publish(this.lending ? this.#writer.lend() : undefined);
      tail.release();
    }
  }

  #takeIn(tail: SharedTail): void {
    const failed = tail.status === 'failed';
    if (tail.lsn !== this.end.lsn) this.#writer.adopt(tail.read(), this.#options.onRecord);
    if (failed) this.#writer.fail();
  }

  /** What may be done now; see `writer.ts`. */
  get state(): WriterState {
    return this.#writer.state;
  }

  /** The last record that was appended. */
  get end(): ChainPoint {
    return this.#writer.end;
  }

  /** The last record that is known to survive a power cut. */
  get durable(): ChainPoint {
    return this.#writer.durable;
  }

  get watermark(): Lsn {
    return this.#writer.watermark;
  }

  /** The record before the first one that is held. */
  get anchor(): ChainPoint {
    return this.#writer.sealed[0]?.anchor ?? this.#writer.open.anchor;
  }

  get firstLsn(): Lsn {
    return (this.anchor.lsn + 1) as Lsn;
  }

  /** Every term that this history has seen, also those whose records are pruned. */
  get terms(): readonly TermEntry[] {
    return this.#writer.terms.entries;
  }

  get history(): TermTable {
    return this.#writer.terms;
  }

  get sealed(): readonly SealedSegment[] {
    return this.#writer.sealed;
  }

  /** The number of the segment that grows. */
  get openSegment(): number {
    return this.#writer.open.number;
  }

  /** Bytes of records on disk, without what is preallocated. */
  get sizeBytes(): number {
    return this.#writer.sealed.reduce((sum, row) => sum + row.sizeBytes, this.#writer.open.endOffset);
  }

  /** Whether the position lies on this history. */
  contains(position: Position): boolean {
    return this.#writer.terms.contains(position, this.end.lsn);
  }

  /** Writes a group in the current term; it is durable after the next `sync`. */
  append(entries: readonly LogEntry[]): Appended {
    return this.#writer.append(entries);
  }

  startTerm(term: Term, payload: Uint8Array): Appended {
    return this.#writer.startTerm(term, payload);
  }

  /** Goes on in a new generation, from its end; see `generation.ts`, which makes it durable. */
  startGeneration(generation: Generation, term: Term): Appended {
    return this.#writer.startGeneration(generation, term);
  }

  endTerm(): void {
    this.#writer.endTerm();
  }

  sync(): void {
    const { tail, clock } = this.#deps;
    const startedMs = clock.clock.monotonicMs();
    const news = this.end !== this.durable;
    this.#writer.sync();
    if (news) tail?.observeSync(clock.clock.monotonicMs() - startedMs);
  }

  setWatermark(lsn: Lsn): void {
    this.#writer.setWatermark(lsn);
  }

  /**
   * Takes in a W that was heard from a primary: it counts up to `matched`, where this log is known to equal the primary's,
   * and only as far as records are durable. Answers with W as it is then.
   */
  raiseWatermark(heard: Lsn, matched: Lsn): Lsn {
    this.#writer.setWatermark(Math.min(heard, matched, this.durable.lsn) as Lsn);
    return this.watermark;
  }

  /**
   * Makes W durable, and answers with it: it never falls below that, whatever happens to this process. Between such calls
   * durable are those that records name.
   */
  saveWatermark(): Lsn {
    this.#writer.saveWatermark();
    return this.watermark;
  }

  /**
   * Writes records from a primary as they are, back to back in `run`; durable with the next `sync`. Refuses all of them
   * with `RECORD_REFUSED` where one does not go on with the history of this log.
   */
  appendReplicated(run: Uint8Array): void {
    this.#writer.appendReplicated(run, this.#options.onRecord);
  }

  /** A record that is held, or the anchor. */
  pointAt(lsn: Lsn): ChainPoint {
    return lsn === this.end.lsn ? this.end : this.#placeBehind(lsn).point;
  }

  /**
   * Gives up every record above `lsn`, which costs what these records and one segment take. Never one at or below W. In no
   * term of its own; after a failure the log is `failed`, and `reopen` and a second call go on.
   */
  cutTo(lsn: Lsn): void {
    this.sync(); // what it has heard of W counts
    if (lsn >= this.end.lsn) return;
    if (lsn < this.watermark)
      throw new NostosError(
        'WATERMARK_VIOLATION',
        `The log cannot be cut to LSN ${lsn}: everything up to ${this.watermark} is committed`,
        { details: { lsn, watermark: this.watermark } },
      );
    const place = this.#placeBehind(lsn);
    this.#cuts += 1;
    this.#writer.cutTo(place);
  }

  /**
   * Finds out what the disk really holds, after a failed sync or a cut that failed. What comes after the last sync that
   * is known to hold is read back, checked, and written once more; it may be there in whole, in part, or not at all.
   */
  reopen(): RecoveryReport {
    const { durable, watermark, state } = this.#writer;
    if (state === 'closed') throw closed('reopen');
    this.#writer.abandon();
    const recovered = recover(this.#deps.disk, {
      ...this.#options,
      knownWatermark: Math.max(watermark, durable.lsn) as Lsn,
      rewriteAbove: durable.lsn,
    });
    this.#writer = new LogWriter(this.#deps, this.#options, recovered);
    return recovered.report;
  }

  /** Durable records in order, a batch at a time. */
  read(options: ReadOptions): Generator<LogBatch, void, void> {
    return readLog(this.#source(), options);
  }

  /** In which segment a record is, and where it begins there. */
  locate(lsn: Lsn): { segment: string; offset: number } {
    return locateRecord(this.#source(), lsn);
  }

  /** Holds the log from `fromLsn` on against pruning. */
  reserve(fromLsn: Lsn, { timeoutMs }: { timeoutMs: number }): Reservation {
    if (fromLsn < this.firstLsn) throw pruned(fromLsn, this.firstLsn);
    return this.#reservations.add(fromLsn, timeoutMs);
  }

  prune(options: PruneOptions): PruneReport {
    if (this.state === 'closed') throw closed('prune');
    const { sealed, terms, open } = this.#writer;
    const gone = pruneSegments(
      {
        disk: this.#deps.disk,
        dir: this.#options.dir,
        sealed,
        openBytes: open.endOffset,
        terms,
        reservedFrom: this.#reservations.lowest(),
      },
      options,
    );
    return { ...gone, firstLsn: this.firstLsn };
  }

  /** Does not sync: what was not synced may or may not be there at the next opening. */
  close(): void {
    if (this.state !== 'closed') this.#writer.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #source(): ReaderSource {
    if (this.state === 'closed') throw closed('read');
    const log = this;
    return {
      disk: this.#deps.disk,
      dir: this.#options.dir,
      get durable() {
        return log.durable;
      },
      get firstLsn() {
        return log.firstLsn;
      },
      get cuts() {
        return log.#cuts;
      },
      segmentOf: (lsn) => this.#segmentOf(lsn),
    };
  }

  #placeBehind(lsn: Lsn): LogPlace {
    const { anchor } = this;
    if (lsn < anchor.lsn) throw pruned(lsn, this.firstLsn);
    const segment = this.sealed[0]?.number ?? this.openSegment;
    if (lsn === anchor.lsn) return { segment, offset: SEGMENT_HEADER_BYTES, point: anchor, hlc: 0n as Hlc };
    return placeBehind(this.#source(), lsn);
  }

  #segmentOf(lsn: Lsn): ReadableSegment {
    const { open, sealed, indexes } = this.#writer;
    if (lsn > open.anchor.lsn)
      return {
        number: open.number,
        anchor: open.anchor,
        lastLsn: this.end.lsn,
        endOffset: open.endOffset,
        index: open.index,
      };
    let [low, high] = [0, sealed.length - 1];
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((sealed[middle] as SealedSegment).last.lsn < lsn) low = middle + 1;
      else high = middle;
    }
    const row = sealed[low] as SealedSegment;
    return {
      number: row.number,
      anchor: row.anchor,
      lastLsn: row.last.lsn,
      endOffset: row.sizeBytes,
      index: indexes.get(row.number),
    };
  }
}

function closed(what: string): NostosError {
  return new NostosError('CLOSED', `Cannot ${what}: the log is closed`);
}
