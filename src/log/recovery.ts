/**
 * Opening a log: find where it ends, and make sure of it. First everything is read and judged, and nothing on disk is
 * changed; then the plan is carried out. So damage leaves the files as they were found.
 *
 * - A torn tail is cut at the last whole record, but never at or below a known watermark: one that the caller knows, or
 *   that a whole later record names. There it is damage.
 * - No record is written before its segment's header is durable; so a last segment without a header that holds no
 *   record was never made, and one that does hold records is damaged.
 * - What is found is written once more and fsynced before its end counts: after a failed fsync Linux marks pages clean
 *   that never reached the disk, so neither what reads back nor a second fsync proves anything. Records up to a
 *   watermark were durable when a later record named it; only what is above is rewritten.
 *
 * A crash in the middle of carrying out leaves a log that recovers in the same way: leftovers are removed again, a
 * tail is cut again, the same bytes are rewritten.
 */
import { join } from 'node:path';
import type { Generation, Hlc, Lsn } from '../base/brands.ts';
import { NO_LSN } from '../base/brands.ts';
import type { Disk } from '../base/disk.ts';
import { NostosError } from '../base/errors.ts';
import type { ChainPoint } from './chain.ts';
import { genesis, sameBytes, samePoint } from './chain.ts';
import { logDamaged } from './damage.ts';
import type { Marks } from './marks-file.ts';
import { loadMarks } from './marks-file.ts';
import { OpenSegment, digestFile } from './open-segment.ts';
import { RecordKind, type LogRecord } from './record.ts';
import type { OnRecord } from './scan.ts';
import { scanChain } from './scan.ts';
import type { SealedSegment } from './sealed.ts';
import { SEALED_FILE, sealedTable } from './sealed.ts';
import { SegmentCursor } from './segment-cursor.ts';
import type { SegmentHeader } from './segment-header.ts';
import { SEGMENT_HEADER_BYTES, decodeSegmentHeader, segmentName, segmentNumber } from './segment-header.ts';
import { SparseIndex } from './sparse-index.ts';
import { loadTable } from './table-file.ts';
import type { Tail } from './tail.ts';
import { judgeTail, watermarkOfRecordsIn } from './tail.ts';
import type { TermEntry } from './terms.ts';
import { TERMS_FILE, TermTable, termTable } from './terms.ts';

export interface RecoveryOptions {
  readonly dir: string;
  /** Of the log when it is made; otherwise that in which it must end. */
  readonly generation: Generation;
  readonly segmentBytesMax: number;
  readonly preallocateBytes: number;
  /** Known to be committed from elsewhere: tenants, the group record. Nothing up to there may be missing. */
  readonly knownWatermark: Lsn;
  /** The highest position that any tenant holds; asked only where a torn tail would be cut. */
  readonly highestApplied?: () => Lsn;
  /** Records from here on are read and checked, besides those of the last segment. */
  readonly scanFrom?: Lsn;
  /** Called with each record that is read, valid during the call: from `scanFrom` on all of them, below it some. */
  readonly onRecord?: (record: LogRecord) => void;
  /** Records above this one are rewritten even where a watermark covers them: the last fsync that is known to hold. */
  readonly rewriteAbove?: Lsn;
}

export interface RecoveryReport {
  /** Whether the log was made by this call. */
  readonly created: boolean;
  /** The first record held, or the one that will come first. */
  readonly firstLsn: Lsn;
  readonly end: ChainPoint;
  readonly watermark: Lsn;
  readonly segments: number;
  readonly recordsScanned: number;
  /** Bytes of a torn tail that were cut, and the LSN that would have come next; 0 when there was none. */
  readonly tornBytes: number;
  readonly cutFromLsn: Lsn;
  /** Tables beside the segments that were missing or unreadable, and were made again. */
  readonly rebuilt: readonly string[];
}

export interface Recovered {
  readonly sealed: SealedSegment[];
  readonly open: OpenSegment;
  readonly terms: TermTable;
  readonly end: ChainPoint;
  readonly endHlc: Hlc;
  readonly watermark: Lsn;
  readonly marks: Marks | undefined;
  readonly report: RecoveryReport;
}

export function recover(disk: Disk, options: RecoveryOptions): Recovered {
  disk.makeDirectory(options.dir);
  const plan = new RecoveryPlan(disk, options);
  const found = plan.read();
  return found === undefined ? createLog(disk, options) : carryOut(disk, options, found);
}

/** What opening would find, judged in the same way, and without the changes. Undefined: there is no log yet. */
export function inspectLog(disk: Disk, options: RecoveryOptions): Findings | undefined {
  return disk.isDirectory(options.dir) ? new RecoveryPlan(disk, options).read() : undefined;
}

/** What reading found; nothing on disk has changed yet. */
export interface Findings {
  readonly leftovers: readonly string[];
  readonly sealed: SealedSegment[];
  readonly last: { readonly header: SegmentHeader; readonly index: SparseIndex; readonly tail: Tail };
  readonly terms: TermTable;
  readonly end: ChainPoint;
  readonly endHlc: Hlc;
  readonly watermark: Lsn;
  readonly marks: Marks | undefined;
  readonly recordsScanned: number;
  readonly rebuilt: readonly string[];
}

class RecoveryPlan {
  readonly #disk: Disk;
  readonly #options: RecoveryOptions;
  readonly #marks: Marks | undefined;
  #records = 0;
  #watermark: Lsn;

  constructor(disk: Disk, options: RecoveryOptions) {
    this.#disk = disk;
    this.#options = options;
    this.#marks = loadMarks(disk, options.dir);
    this.#watermark = Math.max(options.knownWatermark, this.#marks?.watermark.lsn ?? NO_LSN) as Lsn;
  }

  read(): Findings | undefined {
    const { dir } = this.#options;
    const rebuilt: string[] = [];
    const held = loadTable(this.#disk, join(dir, SEALED_FILE), sealedTable);
    const heldTerms = loadTable(this.#disk, join(dir, TERMS_FILE), termTable);
    const all = this.#disk
      .list(dir)
      .map(segmentNumber)
      .filter((number) => number !== undefined);
    const first = held?.base ?? all[0] ?? 1;
    const numbers = all.filter((number) => number >= first);
    const leftovers = all.filter((number) => number < first).map(segmentName);
    this.#refuseGaps(first, numbers, held !== undefined || heldTerms !== undefined);
    const unmade = this.#unmadeLast(numbers);
    if (unmade !== undefined) {
      leftovers.push(unmade);
      numbers.pop();
    }
    const lastNumber = numbers.at(-1);
    if (lastNumber === undefined) return undefined;
    if (held === undefined && numbers.length > 1) rebuilt.push(SEALED_FILE);

    const needTerms = heldTerms === undefined && numbers.length > 1;
    if (needTerms) rebuilt.push(TERMS_FILE);
    const terms = new TermTable(heldTerms?.rows ?? [], needTerms);
    const rows = new Map(held?.rows.map((row) => [row.number, row]));
    const sealed: SealedSegment[] = [];
    for (const number of numbers.slice(0, -1)) {
      const row = this.#sealed(number, sealed.at(-1)?.last, rows.get(number), needTerms, terms);
      sealed.push(row);
    }
    return this.#last(lastNumber, sealed, terms, leftovers, rebuilt);
  }

  #refuseGaps(first: number, numbers: readonly number[], hasTables: boolean): void {
    const missing = numbers.length === 0 ? first : numbers.find((number, i) => number !== first + i);
    if (missing === undefined || (numbers.length === 0 && !hasTables && this.#watermark === 0)) return;
    const absent = numbers.length === 0 ? first : first + numbers.indexOf(missing);
    throw logDamaged({
      segment: segmentName(absent),
      offset: 0,
      lsn: (this.#endBefore(absent) + 1) as Lsn,
      reason: 'the segment is missing',
    });
  }

  /** The last LSN below that segment as far as the tables say; for naming damage only. */
  #endBefore(number: number): number {
    const rows = loadTable(this.#disk, join(this.#options.dir, SEALED_FILE), sealedTable)?.rows ?? [];
    return rows.findLast((row) => row.number < number)?.last.lsn ?? 0;
  }

  /** Names the last segment where its creation was interrupted. */
  #unmadeLast(numbers: readonly number[]): string | undefined {
    const number = numbers.at(-1);
    if (number === undefined || this.#header(number) !== undefined) return undefined;
    const name = segmentName(number);
    const path = join(this.#options.dir, name);
    if (watermarkOfRecordsIn(this.#disk, path, 0, this.#generations()) !== undefined || this.#isOnlyOne(numbers))
      throw logDamaged({ segment: name, offset: 0, lsn: (this.#endBefore(number) + 1) as Lsn, reason: BAD_HEADER });
    return name;
  }

  /** Those in which records may be, as far as is known before any is read. */
  #generations(): Set<Generation> {
    const rows = loadTable(this.#disk, join(this.#options.dir, TERMS_FILE), termTable)?.rows ?? [];
    const marked = this.#marks === undefined ? [] : [this.#marks.watermark.generation];
    return new Set([this.#options.generation, ...marked, ...rows.map(({ generation }) => generation)]);
  }

  /** A log whose first segment has no header has lost everything, unless it was just being made. */
  #isOnlyOne(numbers: readonly number[]): boolean {
    return numbers.length === 1 && (this.#watermark > 0 || this.#disk.exists(join(this.#options.dir, TERMS_FILE)));
  }

  #header(number: number): SegmentHeader | undefined {
    const file = this.#disk.open(join(this.#options.dir, segmentName(number)), 'read');
    try {
      const bytes = new Uint8Array(SEGMENT_HEADER_BYTES);
      return decodeSegmentHeader(bytes.subarray(0, file.read(bytes, 0)));
    } finally {
      file.close();
    }
  }

  /** Reads a sealed segment once more, for what W its records name. */
  #watermarkIn({ number, sizeBytes, anchor }: SealedSegment): Lsn {
    const file = this.#disk.open(join(this.#options.dir, segmentName(number)), 'read');
    try {
      return scanChain(new SegmentCursor(file, SEGMENT_HEADER_BYTES, sizeBytes, { reuse: true }), anchor).watermark;
    } finally {
      file.close();
    }
  }

  #checkedHeader(number: number, previous: ChainPoint | undefined): SegmentHeader {
    const header = this.#header(number);
    const lsn = ((previous?.lsn ?? header?.anchor.lsn ?? 0) + 1) as Lsn;
    const damage = (reason: string): NostosError =>
      logDamaged({ segment: segmentName(number), offset: 0, lsn, reason });
    if (header === undefined) throw damage(BAD_HEADER);
    if (header.number !== number) throw damage(`it is segment ${header.number} under another name`);
    if (previous !== undefined && !samePoint(header.anchor, previous))
      throw damage(
        `it follows (${header.anchor.generation}, term ${header.anchor.term}, LSN ${header.anchor.lsn}), ` +
          `but the segment before it ends elsewhere, at LSN ${previous.lsn}; it is of another history`,
      );
    return header;
  }

  #sealed(
    number: number,
    previous: ChainPoint | undefined,
    row: SealedSegment | undefined,
    readWhole: boolean,
    terms: TermTable,
  ): SealedSegment {
    const name = segmentName(number);
    const { anchor } = this.#checkedHeader(number, previous);
    const file = this.#disk.open(join(this.#options.dir, name), 'read');
    try {
      const sizeBytes = file.size();
      if (row !== undefined && samePoint(row.anchor, anchor) && row.last.lsn < (this.#options.scanFrom ?? Infinity)) {
        if (sizeBytes !== row.sizeBytes)
          throw logDamaged({
            segment: name,
            offset: Math.min(sizeBytes, row.sizeBytes),
            lsn: (anchor.lsn + 1) as Lsn,
            reason: `it has ${sizeBytes} bytes instead of ${row.sizeBytes}`,
          });
        if (!readWhole) return row;
      }
      const scan = scanChain(
        new SegmentCursor(file, SEGMENT_HEADER_BYTES, sizeBytes, { reuse: true }),
        anchor,
        this.#collect(name, terms),
      );
      if (scan.fault !== undefined || scan.endOffset !== sizeBytes || scan.lastRecord === undefined)
        throw logDamaged({
          segment: name,
          offset: scan.endOffset,
          lsn: (scan.last.lsn + 1) as Lsn,
          reason: scan.fault ?? 'zeros stand where a record should',
        });
      const digest = digestFile(file);
      if (row !== undefined && samePoint(row.last, scan.last) && !sameBytes(row.digest, digest))
        throw logDamaged({
          segment: name,
          offset: 0,
          lsn: (anchor.lsn + 1) as Lsn,
          reason: 'its BLAKE3 is another one',
        });
      this.#saw(scan.records, scan.watermark);
      return {
        number,
        sizeBytes,
        digest,
        anchor,
        last: scan.last,
        lastHlc: scan.lastRecord.hlc,
      };
    } finally {
      file.close();
    }
  }

  #last(
    number: number,
    sealed: SealedSegment[],
    terms: TermTable,
    leftovers: readonly string[],
    rebuilt: readonly string[],
  ): Findings {
    const name = segmentName(number);
    const header = this.#checkedHeader(number, sealed.at(-1)?.last);
    const index = new SparseIndex();
    // The table may name a term whose first record was not synced and is lost: of this segment only records tell.
    terms.cut(header.anchor.lsn);
    const collect = this.#collect(name, terms);
    const file = this.#disk.open(join(this.#options.dir, name), 'read');
    try {
      const sizeBytes = file.size();
      const scan = scanChain(
        new SegmentCursor(file, SEGMENT_HEADER_BYTES, sizeBytes, { reuse: true }),
        header.anchor,
        (record, hash, offset, previous) => {
          index.add(record.lsn, offset);
          collect(record, hash, offset, previous);
        },
      );
      this.#saw(scan.records, scan.watermark);
      // Then the segment before it is open again, and its records are the last that name a W.
      const before = scan.records === 0 ? sealed.at(-1) : undefined;
      if (before !== undefined) this.#saw(0, this.#watermarkIn(before));
      const tail = judgeTail({
        file,
        name,
        sizeBytes,
        scan,
        generations: this.#generations().add(scan.last.generation),
        knownWatermark: this.#watermark,
        bulkFrom: this.#marks?.bulkFrom?.lsn,
        highestApplied: this.#options.highestApplied,
      });
      this.#checkTerms(sealed, header, scan.last, terms);
      return {
        leftovers,
        sealed,
        last: { header, index, tail },
        terms,
        end: scan.last,
        endHlc: scan.lastRecord?.hlc ?? sealed.at(-1)?.lastHlc ?? (0n as Hlc),
        watermark: this.#watermark,
        marks: this.#marks,
        recordsScanned: this.#records,
        rebuilt,
      };
    } finally {
      file.close();
    }
  }

  #collect(segment: string, terms: TermTable): OnRecord {
    return (record, _hash, offset, previous) => {
      this.#options.onRecord?.(record);
      if (record.kind !== RecordKind.termStart) return;
      const { term, generation, lsn } = record;
      if (!terms.add({ term, generation, firstLsn: lsn, previous }))
        throw logDamaged({ segment, offset, lsn, reason: `its term ${term} is another one in the term table` });
    };
  }

  /** Every term that a segment names has to be in the table, at the right place. */
  #checkTerms(sealed: readonly SealedSegment[], last: SegmentHeader, end: ChainPoint, terms: TermTable): void {
    const points = [sealed[0]?.anchor ?? last.anchor, ...sealed.map((row) => row.last), last.anchor, end];
    const { entries } = terms;
    const lost =
      points.find((point) => !terms.contains(point, end.lsn)) ??
      entries.find(({ previous }, i) => !follows(previous, entries[i - 1]))?.previous;
    if (lost !== undefined)
      throw logDamaged({
        segment: TERMS_FILE,
        offset: 0,
        lsn: lost.lsn,
        reason: `the term table does not have term ${lost.term} of generation ${lost.generation} at LSN ${lost.lsn}`,
      });
    if (end.generation !== this.#options.generation)
      throw new NostosError(
        'DIRECTORY_FOREIGN',
        `The log in ${this.#options.dir} is of generation ${end.generation}, not of ${this.#options.generation}`,
        { details: { dir: this.#options.dir, found: end.generation, expected: this.#options.generation } },
      );
  }

  #saw(records: number, watermark: Lsn): void {
    this.#records += records;
    if (watermark > this.#watermark) this.#watermark = watermark;
  }
}

/** Whether a term began where the one before it in the table ended. */
function follows(previous: ChainPoint, before: TermEntry | undefined): boolean {
  if (before === undefined) return previous.term === 0;
  return previous.term === before.term && previous.generation === before.generation;
}

const BAD_HEADER = 'its header does not check out';

function createLog(disk: Disk, options: RecoveryOptions): Recovered {
  const anchor = genesis(options.generation);
  const open = OpenSegment.create({ disk, number: 1, anchor, ...options });
  return {
    sealed: [],
    open,
    terms: new TermTable([]),
    end: anchor,
    endHlc: 0n as Hlc,
    watermark: NO_LSN,
    marks: undefined,
    report: {
      created: true,
      firstLsn: 1 as Lsn,
      end: anchor,
      watermark: NO_LSN,
      segments: 1,
      recordsScanned: 0,
      tornBytes: 0,
      cutFromLsn: NO_LSN,
      rebuilt: [],
    },
  };
}

function carryOut(disk: Disk, options: RecoveryOptions, found: Findings): Recovered {
  const { header, tail } = found.last;
  for (const name of found.leftovers) disk.remove(join(options.dir, name));
  const open = found.end.lsn === header.anchor.lsn ? takeBack(disk, options, found) : resume(disk, options, found);
  return {
    sealed: found.sealed,
    open,
    terms: found.terms,
    end: found.end,
    endHlc: found.endHlc,
    watermark: found.watermark,
    marks: found.marks,
    report: {
      created: false,
      firstLsn: ((found.sealed[0]?.anchor.lsn ?? header.anchor.lsn) + 1) as Lsn,
      end: found.end,
      watermark: found.watermark,
      segments: found.sealed.length + 1,
      recordsScanned: found.recordsScanned,
      tornBytes: tail.tornBytes,
      cutFromLsn: tail.tornBytes > 0 ? ((found.end.lsn + 1) as Lsn) : NO_LSN,
      rebuilt: found.rebuilt,
    },
  };
}

/** The last segment goes on. What is above the watermark is written once more, and all of it synced. */
function resume(disk: Disk, options: RecoveryOptions, found: Findings): OpenSegment {
  const { header, index, tail } = found.last;
  const open = OpenSegment.resume({ disk, ...header, ...options }, tail.endOffset, index);
  try {
    if (tail.tornBytes > 0) open.cut(tail.endOffset);
    const above = Math.min(found.watermark, options.rewriteAbove ?? Infinity) as Lsn;
    open.rewrite(above <= header.anchor.lsn ? 0 : (index.floor(above)?.offset ?? 0));
    disk.syncDirectory(options.dir);
    return open;
  } catch (error) {
    open.close();
    throw error;
  }
}

/**
 * The last segment holds no record: the one for which it was made is lost. What comes now may fit the segment before
 * it, and segments are rolled by content, so that one is open again. It was synced whole before this one was made.
 */
function takeBack(disk: Disk, options: RecoveryOptions, found: Findings): OpenSegment {
  const before = found.sealed.at(-1);
  if (before === undefined) return resume(disk, options, found);
  disk.remove(join(options.dir, segmentName(found.last.header.number)));
  disk.syncDirectory(options.dir);
  found.sealed.pop();
  return OpenSegment.resume({ disk, ...before, ...options }, before.sizeBytes, new SparseIndex());
}
