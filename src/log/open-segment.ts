/**
 * The one segment that grows. Zeros are written and synced ahead of its records, in steps, so that the fdatasync of a
 * group changes no metadata; they are its end. Sealing trims them off.
 *
 * A crash in `create` leaves no file, or one without a whole header: either is as if the segment had never been made,
 * since no record is written before the header is durable. A crash in `seal` leaves the file trimmed or not.
 */
import { Blake3Hasher } from '@napi-rs/blake-hash';
import { join } from 'node:path';
import type { Hash, Hlc, Lsn } from '../base/brands.ts';
import type { Disk, DiskFile } from '../base/disk.ts';
import { releaseBuffer } from '../base/release.ts';
import { sameBytes, type ChainPoint } from './chain.ts';
import { logDamaged } from './damage.ts';
import type { LogRecord } from './record.ts';
import type { SealedSegment } from './sealed.ts';
import { scanChain } from './scan.ts';
import { SegmentCursor } from './segment-cursor.ts';
import { encodeSegmentHeader, SEGMENT_HEADER_BYTES, segmentName } from './segment-header.ts';
import type { TailPoint } from './shared-tail.ts';
import { SparseIndex } from './sparse-index.ts';

export interface OpenSegmentPlace {
  readonly disk: Disk;
  readonly dir: string;
  readonly number: number;
  readonly anchor: ChainPoint;
  readonly segmentBytesMax: number;
  readonly preallocateBytes: number;
}

const COPY_BYTES = 1024 * 1024;
const ADOPT_CHUNK_BYTES = 64 * 1024;

export class OpenSegment {
  readonly number: number;
  readonly anchor: ChainPoint;
  readonly index: SparseIndex;
  readonly #place: OpenSegmentPlace;
  readonly #file: DiskFile;
  #endOffset: number;
  #allocatedBytes: number;
  /** Digest of what is written so far; undefined once bytes were cut, then sealing reads the file again. */
  #hasher: Blake3Hasher | undefined;

  private constructor(place: OpenSegmentPlace, file: DiskFile, endOffset: number, index: SparseIndex) {
    this.#place = place;
    this.number = place.number;
    this.anchor = place.anchor;
    this.#file = file;
    this.#endOffset = endOffset;
    this.#allocatedBytes = file.size();
    this.index = index;
  }

  static create(place: OpenSegmentPlace): OpenSegment {
    const header = encodeSegmentHeader(place);
    const file = place.disk.open(join(place.dir, segmentName(place.number)), 'create');
    const segment = new OpenSegment(place, file, 0, new SparseIndex());
    try {
      segment.#hasher = new Blake3Hasher();
      segment.append(header);
      file.sync();
      place.disk.syncDirectory(place.dir);
      return segment;
    } catch (error) {
      closeQuietly(file);
      throw error;
    }
  }

  /** Takes up a segment whose records end at `endOffset`; everything behind them in the file is zeros. */
  static resume(place: OpenSegmentPlace, endOffset: number, index: SparseIndex): OpenSegment {
    const file = place.disk.open(join(place.dir, segmentName(place.number)), 'write');
    return new OpenSegment(place, file, endOffset, index);
  }

  get name(): string {
    return segmentName(this.number);
  }

  get endOffset(): number {
    return this.#endOffset;
  }

  /** Up to there records can be written without anything else: it is preallocated, and part of this segment. */
  get limitOffset(): number {
    return Math.min(this.#allocatedBytes, this.#place.segmentBytesMax);
  }

  get isEmpty(): boolean {
    return this.#endOffset === SEGMENT_HEADER_BYTES;
  }

  /** Records as they stand in the file; the end moves only when they are all written. */
  append(bytes: Uint8Array): void {
    this.#allocate(this.#endOffset + bytes.length);
    this.#file.write(bytes, this.#endOffset);
    this.#endOffset += bytes.length;
    this.#hasher?.update(bytes);
  }

  /** Takes in records that another thread has written behind the end; throws where they are not what it says. */
  adopt(end: ChainPoint, tail: TailPoint, onRecord?: (record: LogRecord) => void): void {
    const cursor = new SegmentCursor(this.#file, this.#endOffset, tail.endOffset, {
      chunkBytes: ADOPT_CHUNK_BYTES,
      reuse: true,
    });
    const { last, endOffset, fault } = scanChain(cursor, end, (record, _hash, offset) => {
      this.#hasher?.update(record.bytes);
      this.index.add(record.lsn, offset);
      onRecord?.(record);
    });
    this.#endOffset = endOffset;
    if (fault !== undefined || endOffset !== tail.endOffset || !sameBytes(last.hash, tail.hash)) {
      const reason = fault ?? 'what was just written there is not there';
      throw logDamaged({ segment: this.name, offset: endOffset, lsn: (last.lsn + 1) as Lsn, reason });
    }
  }

  dataSync(): void {
    this.#file.dataSync();
  }

  /** Gives up everything from `offset` on, durably; the space goes back to the disk, which may have run out of it. */
  cut(offset: number): void {
    this.#hasher = undefined;
    this.#file.truncate(offset);
    this.#file.sync();
    this.#endOffset = offset;
    this.#allocatedBytes = offset;
    this.index.cut(offset);
  }

  /** Writes the content from `offset` on once more, so that the next sync covers it whatever the last one said. */
  rewrite(offset: number): void {
    const chunk = Buffer.allocUnsafeSlow(Math.min(COPY_BYTES, Math.max(0, this.#endOffset - offset)));
    for (let at = offset; at < this.#endOffset;) {
      const part = chunk.subarray(0, Math.min(chunk.length, this.#endOffset - at));
      const filled = this.#file.read(part, at);
      this.#file.write(part.subarray(0, filled), at);
      at += filled;
    }
    releaseBuffer(chunk);
    this.#file.sync();
  }

  seal(last: ChainPoint, lastHlc: Hlc): SealedSegment {
    this.#file.truncate(this.#endOffset);
    this.#file.sync();
    const digest = this.#hasher === undefined ? digestFile(this.#file) : this.#hasher.digestBuffer();
    return {
      number: this.number,
      sizeBytes: this.#endOffset,
      digest: new Uint8Array(digest) as Hash,
      anchor: this.anchor,
      last,
      lastHlc,
    };
  }

  close(): void {
    this.#file.close();
  }

  #allocate(untilOffset: number): void {
    if (untilOffset <= this.#allocatedBytes) return;
    const { segmentBytesMax, preallocateBytes } = this.#place;
    const target = Math.min(
      Math.max(segmentBytesMax, untilOffset),
      Math.max(untilOffset, this.#allocatedBytes + preallocateBytes),
    );
    const zeros = new Uint8Array(Math.min(COPY_BYTES, target - this.#allocatedBytes));
    for (let at = this.#allocatedBytes; at < target; at += zeros.length)
      this.#file.write(zeros.subarray(0, Math.min(zeros.length, target - at)), at);
    releaseBuffer(zeros);
    this.#file.sync();
    this.#allocatedBytes = target;
  }
}

/** BLAKE3 of a whole file, read in bounded pieces. */
export function digestFile(file: DiskFile): Hash {
  const hasher = new Blake3Hasher();
  const chunk = Buffer.allocUnsafeSlow(COPY_BYTES);
  for (let at = 0; ;) {
    const filled = file.read(chunk, at);
    if (filled === 0) break;
    hasher.update(chunk.subarray(0, filled));
    at += filled;
  }
  releaseBuffer(chunk);
  return new Uint8Array(hasher.digestBuffer()) as Hash;
}

function closeQuietly(file: DiskFile): void {
  try {
    file.close();
  } catch {
    // The first error is the one that tells what went wrong.
  }
}
