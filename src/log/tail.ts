/**
 * What stands behind the last record that checks out: nothing, a tear, or damage. A tear is what a power cut leaves of
 * records that nobody was told about; it may be cut. If any of it was committed it is damage: the caller knows of it,
 * or a whole record further on names a watermark that reaches into it and that was synced before that record came.
 */
import { NO_LSN, type Generation, type Lsn } from '../base/brands.ts';
import type { Disk, DiskFile } from '../base/disk.ts';
import { logDamaged } from './damage.ts';
import { decodeRecord, recordPrefix } from './record.ts';
import type { ScanResult } from './scan.ts';
import { SCAN_CHUNK_BYTES } from './segment-cursor.ts';

export interface Tail {
  readonly endOffset: number;
  /** Bytes behind the end that are not zeros, with the zeros between them. */
  readonly tornBytes: number;
}

export interface TailQuestion {
  readonly file: DiskFile;
  readonly name: string;
  readonly sizeBytes: number;
  readonly scan: ScanResult;
  /** In which records may stand behind the end. */
  readonly generations: Iterable<Generation>;
  readonly knownWatermark: Lsn;
  /** What was received in bulk above this record may name parts of itself that a power cut has taken. */
  readonly bulkFrom?: Lsn | undefined;
  /** What takes long to find out, asked only where something would be cut. */
  readonly highestApplied?: (() => Lsn) | undefined;
}

export function judgeTail(question: TailQuestion): Tail {
  const { file, name, sizeBytes, scan, generations, knownWatermark, bulkFrom = Infinity, highestApplied } = question;
  const { endOffset, last } = scan;
  const missing = (last.lsn + 1) as Lsn;
  const tornBytes = lastNonZero(file, endOffset, sizeBytes) - endOffset;
  if (knownWatermark >= missing)
    throw logDamaged({
      segment: name,
      offset: endOffset,
      lsn: missing,
      reason: `${scan.fault ?? 'the log ends here'}, but LSN ${missing} to ${knownWatermark} were committed`,
    });
  if (tornBytes === 0) return { endOffset, tornBytes };
  const later = missing > bulkFrom ? undefined : highestWatermark(file, endOffset, endOffset + tornBytes, generations);
  if (later !== undefined && later >= missing)
    throw logDamaged({
      segment: name,
      offset: endOffset,
      lsn: missing,
      reason: `${scan.fault ?? 'zeros stand where a record should'}, but a whole record behind it says that LSN ${missing} to ${later} were committed`,
    });
  const applied = highestApplied?.() ?? NO_LSN;
  if (applied >= missing)
    throw logDamaged({
      segment: name,
      offset: endOffset,
      lsn: missing,
      reason: `${scan.fault ?? 'zeros stand where a record should'}, but a tenant holds LSN ${applied}, so LSN ${missing} to ${applied} were committed`,
    });
  return { endOffset, tornBytes };
}

/** The highest W of the whole records of these generations in a file; undefined when there is none. */
export function watermarkOfRecordsIn(
  disk: Disk,
  path: string,
  from: number,
  generations: Iterable<Generation>,
): Lsn | undefined {
  const file = disk.open(path, 'read');
  try {
    return highestWatermark(file, from, file.size(), generations);
  } finally {
    file.close();
  }
}

/** Looks at every place where a record of these generations could begin, whatever stands between. */
export function highestWatermark(
  file: DiskFile,
  from: number,
  to: number,
  generations: Iterable<Generation>,
): Lsn | undefined {
  const bytes = Buffer.allocUnsafeSlow(Math.max(0, to - from));
  const filled = file.read(bytes, from);
  let highest: Lsn | undefined;
  for (const prefix of new Set(generations).values().map(recordPrefix))
    for (let at = bytes.indexOf(prefix); at >= 0 && at < filled; at = bytes.indexOf(prefix, at + 1)) {
      const found = decodeRecord(bytes.subarray(at, filled));
      if (typeof found !== 'string' && (highest === undefined || found.watermark > highest)) highest = found.watermark;
    }
  return highest;
}

/** Where the last byte that is not zero ends; `from` when there is none. */
export function lastNonZero(file: DiskFile, from: number, to: number): number {
  const chunk = Buffer.allocUnsafeSlow(Math.min(SCAN_CHUNK_BYTES, Math.max(0, to - from)));
  for (let end = to; end > from;) {
    const start = Math.max(from, end - chunk.length);
    const filled = file.read(chunk.subarray(0, end - start), start);
    for (let i = filled - 1; i >= 0; i--) if (chunk[i] !== 0) return start + i + 1;
    end = start;
  }
  return from;
}
