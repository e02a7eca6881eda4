/**
 * What can still be read of a damaged log above a record: every record that checks out by itself, in order, and between
 * them what is missing and why. For whoever gives such a log up; nothing else reads past damage. It changes nothing.
 *
 * - A record counts where its CRC holds, its LSN and term go on rising, and it names the hash of the record right before
 *   it where that was readable. Behind what does not check out the next place is sought where one could begin.
 * - Records and gaps together are dense from the first LSN to the last.
 * - Where a disk fails to read, the blocks that it fails with count as zeros, and the others are read.
 * - Memory is a few chunks, or one record where that is larger.
 */
import { join } from 'node:path';
import { NO_LSN, NO_TERM, type Generation, type Lsn, type Term } from '../base/brands.ts';
import type { Disk, DiskFile } from '../base/disk.ts';
import { isNostosError } from '../base/errors.ts';
import { brokenLink, pointOf, type ChainPoint } from './chain.ts';
import type { Damage } from './damage.ts';
import { loadMarks } from './marks-file.ts';
import type { ReadRecord } from './reader.ts';
import { hashRecord, recordPrefix, type LogRecord } from './record.ts';
import { SCAN_CHUNK_BYTES, SegmentCursor } from './segment-cursor.ts';
import { SEALED_FILE, sealedTable } from './sealed.ts';
import {
  SEGMENT_HEADER_BYTES,
  decodeSegmentHeader,
  segmentName,
  segmentNumber,
  type SegmentHeader,
} from './segment-header.ts';
import { loadTable } from './table-file.ts';
import { lastNonZero } from './tail.ts';
import { TERMS_FILE, termTable } from './terms.ts';

/** A disk that fails to read a chunk is asked for it in such blocks. */
const BLOCK_BYTES = 4096;

export interface LogGap {
  readonly from: Lsn;
  readonly to: Lsn;
  /** It is not known how many records followed `to`. */
  readonly more: boolean;
  /** Where in which segment it was found, and what. */
  readonly reason: string;
}

/** Valid until the next one is asked for. */
export type ReadablePart =
  | { readonly kind: 'records'; readonly records: readonly ReadRecord[] }
  | { readonly kind: 'gap'; readonly gap: LogGap };

export interface ReadableOptions {
  /** The directory of the segments. */
  readonly dir: string;
  readonly above: Lsn;
  /** The generation of the node; others are known from the log itself. */
  readonly generation: Generation;
  /** A record that is known to have been there: what is missing up to it is a gap. */
  readonly reaches?: Lsn;
}

type Fault = Omit<Damage, 'lsn'>;

export class ReadableLog {
  readonly #disk: Disk;
  readonly #options: ReadableOptions;
  readonly #prefixes: readonly Buffer[];
  readonly #headers: ReadonlyMap<number, SegmentHeader | undefined>;
  readonly #numbers: readonly number[];
  #next: Lsn;
  #term: Term = NO_TERM;
  /** The record before `#next`, where that was readable. */
  #previous: ChainPoint | undefined;
  /** Why the record `#next` was not where it should be. */
  #fault: Fault | undefined;
  /** The record `above`, as far as the log itself says. */
  start: ChainPoint | undefined;

  constructor(disk: Disk, options: ReadableOptions) {
    this.#disk = disk;
    this.#options = options;
    this.#next = (options.above + 1) as Lsn;
    const names = disk.isDirectory(options.dir) ? disk.list(options.dir) : [];
    this.#numbers = names.map(segmentNumber).filter((number) => number !== undefined);
    this.#headers = new Map(this.#numbers.map((number) => [number, this.#header(number)]));
    this.#prefixes = [...this.#generations()].map(recordPrefix);
  }

  *parts(): Generator<ReadablePart, void, undefined> {
    for (const [i, number] of this.#numbers.entries()) {
      const [before, after] = [this.#numbers[i - 1], this.#numbers[i + 1]];
      if (before !== undefined && number !== before + 1 && this.#mayBeAbove(number))
        this.#fault ??= { segment: segmentName(number - 1), offset: 0, reason: 'the segment is missing' };
      if (this.#mayBeAbove(after)) yield* this.#segment(number);
    }
    const last = this.#known();
    if (this.#fault === undefined && last < this.#next) return;
    const more = this.#fault !== undefined;
    yield { kind: 'gap', gap: this.#gap(Math.max(this.#next, last) as Lsn, more) };
  }

  /** Whether what is before this segment may have records that are wanted. */
  #mayBeAbove(number: number | undefined): boolean {
    const header = number === undefined ? undefined : this.#headers.get(number);
    return header === undefined || header.anchor.lsn > this.#options.above;
  }

  *#segment(number: number): Generator<ReadablePart, void, undefined> {
    const name = segmentName(number);
    const header = this.#headers.get(number);
    if (header !== undefined && this.#previous === undefined) this.#know(header.anchor);
    const file = blockwise(this.#disk.open(join(this.#options.dir, name), 'read'));
    try {
      const size = file.size();
      const start = Math.min(SEGMENT_HEADER_BYTES, size);
      // Its records may be whole all the same; one that has none was just being made.
      if (header === undefined && lastNonZero(file, start, size) > start)
        this.#fault ??= { segment: name, offset: 0, reason: 'its header does not check out' };
      for (let at = start; at < size;) {
        at = yield* this.#run(file, name, at, size);
        if (at < size) at = this.#seek(file, at + 1, size);
      }
    } finally {
      file.close();
    }
  }

  /** Records from there on, up to the first that is none; answers with where that is, or the end. */
  *#run(file: DiskFile, name: string, start: number, size: number): Generator<ReadablePart, number, undefined> {
    const cursor = new SegmentCursor(file, start, size, { reuse: true });
    let records: ReadRecord[] = [];
    let bytes = 0;
    try {
      for (;;) {
        const offset = cursor.offset;
        const found = cursor.done ? 'blank' : cursor.next();
        const reason = typeof found === 'string' ? this.#faultOf(found, file, offset, size) : this.#misfit(found);
        if (typeof found === 'string' || reason !== undefined) {
          if (records.length > 0) yield { kind: 'records', records };
          if (reason === undefined) return size;
          this.#fault ??= { segment: name, offset, reason };
          this.#previous = undefined;
          return offset;
        }
        const hash = hashRecord(found);
        if (found.lsn >= this.#next) {
          if (found.lsn > this.#next) {
            if (records.length > 0) yield { kind: 'records', records };
            records = [];
            bytes = 0;
            yield { kind: 'gap', gap: this.#gap((found.lsn - 1) as Lsn, false) };
          }
          records.push({ record: found, hash });
          bytes += found.bytes.length;
          this.#term = found.term;
          this.#previous = pointOf(found, hash);
          this.#next = (found.lsn + 1) as Lsn;
        } else if (found.lsn === this.#options.above) this.#know(pointOf(found, hash));
        this.#fault = undefined;
        if (bytes < SCAN_CHUNK_BYTES && found.lsn >= this.#options.above) continue;
        if (records.length > 0) yield { kind: 'records', records };
        records = [];
        bytes = 0;
        cursor.forget();
      }
    } finally {
      cursor.release();
    }
  }

  /** Zeros up to the end of a file are its end. */
  #faultOf(found: 'blank' | 'short' | 'corrupt', file: DiskFile, offset: number, size: number): string | undefined {
    if (found === 'corrupt') return 'its CRC does not hold';
    if (found === 'short') return 'the record is not whole';
    return lastNonZero(file, offset, size) === offset ? undefined : 'zeros stand where a record should';
  }

  /** Why a record that is whole is none of this history. */
  #misfit(record: LogRecord): string | undefined {
    const { lsn, term, watermark } = record;
    if (lsn < this.#next) return lsn <= this.#options.above ? undefined : `LSN ${lsn} stands in its place`;
    if (this.#previous !== undefined && lsn === this.#next) return brokenLink(this.#previous, record);
    if (term < this.#term) return `term ${term} follows ${this.#term}`;
    return watermark >= lsn ? `its watermark ${watermark} is not below its own LSN` : undefined;
  }

  /** The next place from there on where a record could begin; the end of the file where there is none. */
  #seek(file: DiskFile, from: number, size: number): number {
    const overlap = Math.max(...this.#prefixes.map(({ length }) => length)) - 1;
    const chunk = Buffer.allocUnsafeSlow(Math.min(SCAN_CHUNK_BYTES, Math.max(size - from, 0)));
    for (let at = from; at < size; at += SCAN_CHUNK_BYTES - overlap) {
      const filled = chunk.subarray(0, file.read(chunk.subarray(0, size - at), at));
      const found = this.#prefixes.map((prefix) => filled.indexOf(prefix)).filter((index) => index >= 0);
      if (found.length > 0) return at + Math.min(...found);
    }
    return size;
  }

  #know(point: ChainPoint): void {
    if (point.lsn + 1 !== this.#next) return;
    this.#previous = point;
    this.#term = point.term;
    if (point.lsn === this.#options.above) this.start = point;
  }

  #gap(to: Lsn, more: boolean): LogGap {
    const { segment, offset, reason } = this.#fault ?? { segment: '', offset: 0, reason: 'the log ends before it' };
    const from = this.#next;
    this.#next = (to + 1) as Lsn;
    this.#previous = undefined;
    this.#fault = undefined;
    return { from, to, more, reason: segment === '' ? reason : `${segment} at byte ${offset}: ${reason}` };
  }

  /** The last record that anything says there was. */
  #known(): Lsn {
    const { dir, reaches = NO_LSN } = this.#options;
    if (!this.#disk.isDirectory(dir)) return reaches;
    const rows = loadTable(this.#disk, join(dir, SEALED_FILE), sealedTable)?.rows ?? [];
    const marked = loadMarks(this.#disk, dir)?.watermark.lsn ?? NO_LSN;
    // The row of the last segment is not to be believed.
    const sealed = rows.findLast(({ number }) => number < (this.#numbers.at(-1) ?? 0))?.last.lsn ?? NO_LSN;
    return Math.max(reaches, marked, sealed) as Lsn;
  }

  #generations(): Set<Generation> {
    const { dir, generation } = this.#options;
    const terms = this.#disk.isDirectory(dir) ? loadTable(this.#disk, join(dir, TERMS_FILE), termTable)?.rows : [];
    const anchors = [...this.#headers.values()].flatMap((header) => header?.anchor.generation ?? []);
    return new Set([generation, ...anchors, ...(terms ?? []).map((entry) => entry.generation)]);
  }

  #header(number: number): SegmentHeader | undefined {
    const file = blockwise(this.#disk.open(join(this.#options.dir, segmentName(number)), 'read'));
    try {
      const bytes = new Uint8Array(SEGMENT_HEADER_BYTES);
      const header = decodeSegmentHeader(bytes.subarray(0, file.read(bytes, 0)));
      return header?.number === number ? header : undefined;
    } finally {
      file.close();
    }
  }
}

/** A file whose blocks that cannot be read are zeros. */
function blockwise(file: DiskFile): DiskFile {
  return {
    ...{ path: file.path, size: () => file.size(), close: () => file.close() },
    ...{ write: unwritable, dataSync: unwritable, sync: unwritable, truncate: unwritable },
    read(target, offset) {
      const whole = tryRead(file, target, offset);
      if (whole !== undefined) return whole;
      const length = Math.min(target.length, Math.max(0, file.size() - offset));
      for (let at = 0; at < length;) {
        const end = Math.min(length, at + BLOCK_BYTES - ((offset + at) % BLOCK_BYTES));
        const block = target.subarray(at, end);
        if (tryRead(file, block, offset + at) === undefined) block.fill(0);
        at = end;
      }
      return length;
    },
  };
}

function tryRead(file: DiskFile, target: Uint8Array, offset: number): number | undefined {
  try {
    return file.read(target, offset);
  } catch (error) {
    if (!isNostosError(error, 'IO_FAILED')) throw error;
    return undefined;
  }
}

function unwritable(): never {
  throw new Error('a log that is given up is only read');
}
