/**
 * Reads a whole log and lists what is wrong with it: CRC and chain of every record, BLAKE3 of every sealed segment, and
 * the tables against the segments. It changes nothing, and goes on behind damage wherever the next segment says where
 * it begins. What it finds behind the last record is reported as a tail: on a log that is in use it is not damage.
 */
import { join } from 'node:path';
import type { Lsn } from '../base/brands.ts';
import { NO_LSN } from '../base/brands.ts';
import type { Disk, DiskFile } from '../base/disk.ts';
import { yieldToEventLoop } from '../base/event-loop.ts';
import type { ChainPoint } from './chain.ts';
import { sameBytes, samePoint } from './chain.ts';
import type { Damage } from './damage.ts';
import { loadMarks } from './marks-file.ts';
import { digestFile } from './open-segment.ts';
import { RecordKind } from './record.ts';
import type { ScanResult } from './scan.ts';
import { scanChain } from './scan.ts';
import type { SealedSegment } from './sealed.ts';
import { SEALED_FILE, sealedTable } from './sealed.ts';
import { SegmentCursor } from './segment-cursor.ts';
import { SEGMENT_HEADER_BYTES, decodeSegmentHeader, segmentName, segmentNumber } from './segment-header.ts';
import type { SegmentHeader } from './segment-header.ts';
import { loadTable } from './table-file.ts';
import { highestWatermark, lastNonZero } from './tail.ts';
import type { TermEntry } from './terms.ts';
import { TERMS_FILE, TermTable, sameEntry, termTable } from './terms.ts';

export interface LogVerification {
  readonly ok: boolean;
  readonly damages: readonly Damage[];
  readonly segments: number;
  readonly records: number;
  readonly bytes: number;
  readonly firstLsn: Lsn;
  readonly lastLsn: Lsn;
  readonly terms: number;
  /** Bytes behind the last record that are no record: an append in flight, or a tear that opening will judge. */
  readonly tailBytes: number;
}

export interface VerifyProgress {
  readonly bytesDone: number;
  readonly bytesTotal: number;
}

export interface VerifyCallbacks {
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: VerifyProgress) => void;
}

/**
 * `inUseFrom`: the log is in use, and records from here on are written while this reads. Parts of them may be seen in
 * any order, so that nothing behind the record before it is judged.
 */
export async function verifyLog(
  { disk, dir, inUseFrom }: { readonly disk: Disk; readonly dir: string; readonly inUseFrom?: Lsn },
  { signal, onProgress }: VerifyCallbacks = {},
): Promise<LogVerification> {
  const verifier = new Verifier(disk, dir, inUseFrom);
  let bytesDone = 0;
  for (const number of verifier.numbers) {
    signal?.throwIfAborted();
    bytesDone += verifier.segment(number);
    onProgress?.({ bytesDone, bytesTotal: verifier.bytesTotal });
    await yieldToEventLoop();
  }
  return verifier.finish();
}

class Verifier {
  readonly #disk: Disk;
  readonly #dir: string;
  readonly numbers: readonly number[];
  readonly bytesTotal: number;
  readonly #damages: Damage[] = [];
  readonly #rows: ReadonlyMap<number, SealedSegment>;
  readonly #held: readonly TermEntry[] | undefined;
  readonly #terms = new TermTable([]);
  readonly #starts: TermEntry[] = [];
  /** The end of the segment before; undefined where that one is missing or damaged. */
  #previous: ChainPoint | undefined;
  #expectedNumber: number;
  #firstLsn: Lsn | undefined;
  #lastLsn = NO_LSN;
  /** The record before the open segment. */
  #openFrom = NO_LSN;
  readonly #inUseFrom: Lsn | undefined;
  readonly #bulkFrom: Lsn | undefined;
  #records = 0;
  #bytes = 0;
  #tailBytes = 0;

  constructor(disk: Disk, dir: string, inUseFrom: Lsn | undefined) {
    this.#inUseFrom = inUseFrom;
    this.#bulkFrom = loadMarks(disk, dir)?.bulkFrom?.lsn;
    this.#disk = disk;
    this.#dir = dir;
    const table = loadTable(disk, join(dir, SEALED_FILE), sealedTable);
    this.#rows = new Map(table?.rows.map((row) => [row.number, row]));
    this.#held = loadTable(disk, join(dir, TERMS_FILE), termTable)?.rows;
    const all = disk
      .list(dir)
      .map(segmentNumber)
      .filter((number) => number !== undefined);
    this.#expectedNumber = table?.base ?? all[0] ?? 1;
    this.numbers = all.filter((number) => number >= this.#expectedNumber);
    this.bytesTotal = this.numbers.reduce((sum, number) => sum + disk.size(join(dir, segmentName(number))), 0);
    if (this.numbers.length === 0) this.#damage(segmentName(this.#expectedNumber), 0, 1, 'the segment is missing');
  }

  /** Checks one segment; answers with its size. */
  segment(number: number): number {
    const name = segmentName(number);
    for (; this.#expectedNumber < number; this.#expectedNumber++) {
      this.#damage(segmentName(this.#expectedNumber), 0, this.#lastLsn + 1, 'the segment is missing');
      this.#previous = undefined;
    }
    this.#expectedNumber = number + 1;
    const file = this.#disk.open(join(this.#dir, name), 'read');
    try {
      const sizeBytes = file.size();
      this.#content(file, number, name, sizeBytes);
      return sizeBytes;
    } finally {
      file.close();
    }
  }

  finish(): LogVerification {
    // Of the open segment only its records tell; see `terms.ts`.
    for (const entry of (this.#held ?? []).filter((held) => held.firstLsn <= this.#openFrom)) {
      const found = this.#starts.find((start) => start.term === entry.term);
      const isHeld = this.#firstLsn !== undefined && entry.firstLsn >= this.#firstLsn;
      if (found !== undefined && !sameEntry(found, entry))
        this.#damage(TERMS_FILE, 0, entry.firstLsn, `it has term ${entry.term} elsewhere than the segments`);
      else if (found === undefined && isHeld && this.#damages.length === 0)
        this.#damage(TERMS_FILE, 0, entry.firstLsn, `it has term ${entry.term}, which no segment has`);
    }
    return {
      ok: this.#damages.length === 0,
      damages: this.#damages,
      segments: this.numbers.length,
      records: this.#records,
      bytes: this.#bytes,
      firstLsn: this.#firstLsn ?? NO_LSN,
      lastLsn: this.#lastLsn,
      terms: Math.max(this.#held?.length ?? 0, this.#terms.entries.length),
      tailBytes: this.#tailBytes,
    };
  }

  #content(file: DiskFile, number: number, name: string, sizeBytes: number): void {
    const isLast = number === this.numbers.at(-1);
    const header = this.#header(file, number, name);
    const from = header?.anchor ?? this.#previous;
    if (from === undefined) return;
    this.#firstLsn ??= (from.lsn + 1) as Lsn;
    const scan = scanChain(
      new SegmentCursor(file, SEGMENT_HEADER_BYTES, sizeBytes, { reuse: true }),
      from,
      (record, _hash, _at, previous) => {
        if (record.kind !== RecordKind.termStart) return;
        const entry = { term: record.term, generation: record.generation, firstLsn: record.lsn, previous };
        this.#starts.push(entry);
        this.#terms.add(entry);
      },
    );
    this.#records += scan.records;
    this.#lastLsn = scan.last.lsn;
    this.#bytes += scan.endOffset;
    this.#previous = scan.last;
    if (isLast) {
      this.#openFrom = from.lsn;
      this.#tail(file, name, sizeBytes, scan);
    } else if (scan.fault !== undefined || scan.endOffset !== sizeBytes) {
      this.#damage(name, scan.endOffset, scan.last.lsn + 1, scan.fault ?? 'zeros stand where a record should');
      this.#previous = undefined;
    } else this.#sealed(file, name, scan, this.#rows.get(number));
  }

  #header(file: DiskFile, number: number, name: string): SegmentHeader | undefined {
    const bytes = new Uint8Array(SEGMENT_HEADER_BYTES);
    const header = decodeSegmentHeader(bytes.subarray(0, file.read(bytes, 0)));
    const lsn = (this.#previous ?? header?.anchor)?.lsn ?? this.#lastLsn;
    if (header === undefined) this.#damage(name, 0, lsn + 1, 'its header does not check out');
    else if (header.number !== number)
      this.#damage(name, 0, lsn + 1, `it is segment ${header.number} under another name`);
    else if (this.#previous !== undefined && !samePoint(header.anchor, this.#previous))
      this.#damage(name, 0, lsn + 1, 'its anchor is not the end of the segment before it');
    return header;
  }

  /** Records of the last segment that the chain does not reach, although a later whole one says they were committed. */
  #tail(file: DiskFile, name: string, sizeBytes: number, scan: ScanResult): void {
    this.#tailBytes = lastNonZero(file, scan.endOffset, sizeBytes) - scan.endOffset;
    if (this.#tailBytes === 0) return;
    if (this.#inUseFrom !== undefined && scan.last.lsn + 1 >= this.#inUseFrom) return;
    if (scan.last.lsn >= (this.#bulkFrom ?? Infinity)) return;
    const generations = [scan.last.generation, ...(this.#held ?? []).map(({ generation }) => generation)];
    const later = highestWatermark(file, scan.endOffset, scan.endOffset + this.#tailBytes, generations);
    if (later !== undefined && later > scan.last.lsn)
      this.#damage(name, scan.endOffset, scan.last.lsn + 1, scan.fault ?? 'zeros stand where a record should');
  }

  #sealed(file: DiskFile, name: string, scan: ScanResult, row: SealedSegment | undefined): void {
    if (row === undefined) return;
    if (!samePoint(row.last, scan.last))
      this.#damage(SEALED_FILE, 0, scan.last.lsn, `it says that ${name} ends at LSN ${row.last.lsn}`);
    else if (!sameBytes(row.digest, digestFile(file)))
      this.#damage(name, 0, row.anchor.lsn + 1, 'its BLAKE3 is not the one that was recorded');
  }

  #damage(segment: string, offset: number, lsn: number, reason: string): void {
    this.#damages.push({ segment, offset, lsn: lsn as Lsn, reason });
  }
}
