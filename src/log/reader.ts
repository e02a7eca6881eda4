/**
 * Streams any range of durable records across segments: a batch at a time, in bounded memory, each record checked
 * against its CRC and the one before it. Records are views of buffers that belong to their batch, so they may be kept; with
 * `passing` only until the next batch is asked for, or the iteration closed.
 *
 * A reader holds one file open between batches; close the iteration (leave the loop) to let go of it.
 */
import { join } from 'node:path';
import type { Hash, Hlc, Lsn, TenantId } from '../base/brands.ts';
import { assert } from '../base/assert.ts';
import type { Disk, DiskFile } from '../base/disk.ts';
import { NostosError } from '../base/errors.ts';
import type { ChainPoint } from './chain.ts';
import { brokenLink, pointOf, sameBytes } from './chain.ts';
import { logDamaged } from './damage.ts';
import type { LogRecord } from './record.ts';
import { hashRecord } from './record.ts';
import { SegmentCursor } from './segment-cursor.ts';
import { SEGMENT_HEADER_BYTES, segmentName } from './segment-header.ts';
import type { LogPlace } from './writer.ts';
import type { IndexEntry, SparseIndex } from './sparse-index.ts';

export interface ReadOptions {
  readonly from: Lsn;
  /** The last record to read; by default the last one that is durable when reading starts. */
  readonly to?: Lsn;
  /** Only the records of this tenant. */
  readonly tenant?: TenantId;
  /** Records that are handed out at once, in bytes; at least one. */
  readonly bytesMax?: number;
  /** The memory of a batch is used for the next one. */
  readonly passing?: boolean;
}

export interface ReadRecord {
  readonly record: LogRecord;
  readonly hash: Hash;
}

export interface LogBatch {
  readonly records: readonly ReadRecord[];
  /** Everything up to here was read, also what the tenant filter left out. */
  readonly through: Lsn;
}

/** A segment as a reader needs it; the open one ends where its durable records do. */
export interface ReadableSegment {
  readonly number: number;
  readonly anchor: ChainPoint;
  readonly lastLsn: Lsn;
  readonly endOffset: number;
  readonly index: SparseIndex;
}

export interface ReaderSource {
  readonly disk: Disk;
  readonly dir: string;
  readonly durable: ChainPoint;
  readonly firstLsn: Lsn;
  /** How often the log was cut: what a reader knows of its segments from before does not hold after. */
  readonly cuts: number;
  /** The segment that holds this record, which is from `firstLsn` to `durable`. */
  segmentOf(lsn: Lsn): ReadableSegment;
}

const BATCH_BYTES = 1024 * 1024;

export function* readLog(source: ReaderSource, options: ReadOptions): Generator<LogBatch, void, void> {
  const bytesMax = options.bytesMax ?? BATCH_BYTES;
  const to = Math.min(options.to ?? Infinity, source.durable.lsn) as Lsn;
  const { cuts } = source;
  let next = options.from;
  let previous: ChainPoint | undefined;
  while (next <= to) {
    if (next < source.firstLsn) throw pruned(next, source.firstLsn);
    const segment = source.segmentOf(next);
    const file = openSegment(source, segment, next);
    const walk = new SegmentWalk(file, segment, { from: next, bytesMax, passing: options.passing ?? false });
    try {
      walk.start(previous);
      while (next <= to && next <= segment.lastLsn) {
        if (source.cuts !== cuts) throw cutMeanwhile(next);
        const batch = walk.batch(next, to, options.tenant);
        next = (batch.through + 1) as Lsn;
        if (batch.records.length > 0 || next > to) yield batch;
      }
      previous = walk.previous;
    } finally {
      walk.release();
      file.close();
    }
  }
}

/** Where a record begins. */
export function locateRecord(source: ReaderSource, lsn: Lsn): { segment: string; offset: number } {
  if (lsn < source.firstLsn) throw pruned(lsn, source.firstLsn);
  if (lsn > source.durable.lsn)
    throw new NostosError('INVALID_ARGUMENT', `LSN ${lsn} is above the durable end of the log, ${source.durable.lsn}`, {
      details: { lsn, durable: source.durable.lsn },
    });
  const segment = source.segmentOf(lsn);
  return walkTo(source, segment, { from: lsn }, ({ offset }) => ({ segment: segmentName(segment.number), offset }));
}

/** The place right behind a record that is held. */
export function placeBehind(source: ReaderSource, lsn: Lsn): LogPlace {
  const segment = source.segmentOf(lsn);
  const from = (lsn + 1) as Lsn;
  return walkTo(source, segment, { from, behind: true }, ({ offset, previous, hlc }) => {
    assert(previous?.lsn === lsn, `the walk to LSN ${lsn} ended at ${previous?.lsn}`);
    return { segment: segment.number, offset, point: previous, hlc };
  });
}

/** Calls back with a walk that stands at the record `from`, or where it would follow the last one of the segment. */
function walkTo<T>(
  source: ReaderSource,
  segment: ReadableSegment,
  options: Pick<WalkOptions, 'from' | 'behind'>,
  fn: (walk: SegmentWalk) => T,
): T {
  const file = openSegment(source, segment, options.from);
  const walk = new SegmentWalk(file, segment, { ...options, bytesMax: BATCH_BYTES, passing: true });
  try {
    walk.start(undefined);
    return fn(walk);
  } finally {
    walk.release();
    file.close();
  }
}

interface WalkOptions {
  readonly from: Lsn;
  readonly bytesMax: number;
  readonly passing: boolean;
  /** `start` walks over the record before `from`, and so knows it. */
  readonly behind?: boolean;
}

class SegmentWalk {
  readonly #segment: ReadableSegment;
  readonly #cursor: SegmentCursor;
  readonly #bytesMax: number;
  readonly #from: Lsn;
  readonly #start: IndexEntry | undefined;
  previous: ChainPoint | undefined;
  /** Of `previous`, where it was walked over. */
  hlc = 0n as Hlc;

  constructor(file: DiskFile, segment: ReadableSegment, { from, bytesMax, passing, behind = false }: WalkOptions) {
    this.#segment = segment;
    this.#bytesMax = bytesMax;
    this.#from = from;
    this.#start = segment.index.floor((behind ? from - 1 : from) as Lsn);
    this.#cursor = new SegmentCursor(file, this.#start?.offset ?? SEGMENT_HEADER_BYTES, segment.endOffset, {
      chunkBytes: Math.min(BATCH_BYTES, Math.max(64 * 1024, bytesMax)),
      reuse: passing,
    });
  }

  /** Moves to the record `from`. */
  start(previous: ChainPoint | undefined): void {
    const { anchor } = this.#segment;
    if (previous !== undefined && !sameBytes(previous.hash, anchor.hash))
      throw this.#damage(this.#from, 'its anchor is not the record before it');
    if (this.#from === anchor.lsn + 1) this.previous = anchor;
    else this.#skipTo(this.#from, this.#start?.lsn ?? ((anchor.lsn + 1) as Lsn));
  }

  release(): void {
    this.#cursor.release();
  }

  get offset(): number {
    return this.#cursor.offset;
  }

  batch(from: Lsn, to: Lsn, tenant: TenantId | undefined): LogBatch {
    this.#cursor.forget();
    const records: ReadRecord[] = [];
    let through = (from - 1) as Lsn;
    const end = Math.min(to, this.#segment.lastLsn);
    for (let bytes = 0; through < end && bytes < this.#bytesMax;) {
      const lsn = (through + 1) as Lsn;
      const record = this.#record(lsn);
      bytes += record.bytes.length;
      if (bytes > this.#bytesMax && records.length > 0) {
        this.#cursor.back(record);
        break;
      }
      const broken = this.previous === undefined ? wrongLsn(record, lsn) : brokenLink(this.previous, record);
      if (broken !== undefined) {
        this.#cursor.back(record);
        throw this.#damage(lsn, broken);
      }
      const hash = hashRecord(record);
      this.previous = pointOf(record, hash);
      through = lsn;
      if (tenant === undefined || record.tenant === tenant) records.push({ record, hash });
    }
    if (through === this.#segment.lastLsn && this.#cursor.offset !== this.#segment.endOffset)
      throw this.#damage(through, 'it has more bytes than its records');
    return { records, through };
  }

  #skipTo(lsn: Lsn, start: Lsn): void {
    for (let at = start; at < lsn; at++) {
      const offset = this.#cursor.offset;
      this.#cursor.forget();
      const record = this.#record(at);
      if (record.lsn !== at) throw this.#damage(at, `LSN ${record.lsn} stands in its place`, offset);
      this.#segment.index.add(at, offset);
      if (at + 1 === lsn) [this.previous, this.hlc] = [pointOf(record, hashRecord(record)), record.hlc];
    }
  }

  #record(lsn: Lsn): LogRecord {
    const found = this.#cursor.next();
    if (typeof found !== 'string') return found;
    throw this.#damage(lsn, found === 'corrupt' ? 'its CRC does not hold' : 'the record is not there');
  }

  #damage(lsn: Lsn, reason: string, offset = this.#cursor.offset): NostosError {
    return logDamaged({ segment: segmentName(this.#segment.number), offset, lsn, reason });
  }
}

function wrongLsn(record: LogRecord, lsn: Lsn): string | undefined {
  return record.lsn === lsn ? undefined : `LSN ${record.lsn} stands in its place`;
}

function openSegment(source: ReaderSource, segment: ReadableSegment, lsn: Lsn): DiskFile {
  const path = join(source.dir, segmentName(segment.number));
  if (!source.disk.exists(path))
    throw logDamaged({ segment: segmentName(segment.number), offset: 0, lsn, reason: 'the segment is missing' });
  return source.disk.open(path, 'read');
}

function cutMeanwhile(lsn: Lsn): NostosError {
  return new NostosError('POSITION_LOST', `The log was cut while it was read, before LSN ${lsn}; read it again`, {
    details: { lsn },
  });
}

export function pruned(lsn: Lsn, firstLsn: Lsn): NostosError {
  return new NostosError(
    'LOG_PRUNED',
    `The log no longer holds LSN ${lsn}; it begins at ${firstLsn}. Restore from a snapshot that reaches ${firstLsn - 1} or further`,
    { details: { lsn, firstLsn } },
  );
}
