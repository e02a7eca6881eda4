/**
 * Walks the records of one segment file in bounded chunks. Each chunk is a buffer of its own, so the records that were
 * handed out stay valid as long as somebody holds them, and memory is one chunk, or one record where that is larger.
 * With `reuse` they are valid until `forget`, after which their memory is used again: a whole log passes through two chunks.
 */
import type { DiskFile } from '../base/disk.ts';
import { releaseBuffer } from '../base/release.ts';
import type { LogRecord, RecordFault } from './record.ts';
import { RECORD_HEADER_BYTES, RecordDecoder, recordBytesAt } from './record.ts';

export const SCAN_CHUNK_BYTES = 1024 * 1024;
const EMPTY = Buffer.alloc(0);

export class SegmentCursor {
  readonly #file: DiskFile;
  readonly #end: number;
  readonly #chunkBytes: number;
  readonly #reuse: boolean;
  readonly #decoder = new RecordDecoder();
  #buffer: Buffer = EMPTY;
  /** What of the buffer was read. */
  #chunk: Buffer = EMPTY;
  /** With `reuse`: chunks whose records may be in use, and the one that takes its turn next. */
  #passed: Buffer[] = [];
  #spare: Buffer = EMPTY;
  #view: DataView = new DataView(EMPTY.buffer, EMPTY.byteOffset, 0);
  #chunkStart: number;
  #at = 0;

  /** Reads from `offset` up to `end`, which is the end of the records or of the file. */
  constructor(
    file: DiskFile,
    offset: number,
    end: number,
    { chunkBytes = SCAN_CHUNK_BYTES, reuse = false }: { readonly chunkBytes?: number; readonly reuse?: boolean } = {},
  ) {
    this.#file = file;
    this.#chunkStart = offset;
    this.#end = end;
    this.#chunkBytes = chunkBytes;
    this.#reuse = reuse;
  }

  /** Where in the file the next record begins. */
  get offset(): number {
    return this.#chunkStart + this.#at;
  }

  get done(): boolean {
    return this.offset >= this.#end;
  }

  /** The record at `offset`, or why there is none; a fault does not move the cursor. */
  next(): LogRecord | RecordFault {
    let found = this.#decode();
    if (typeof found === 'string' && found !== 'corrupt' && this.#refill(found)) found = this.#decode();
    if (typeof found === 'string' && found === 'short' && this.#refill(found)) found = this.#decode();
    if (typeof found !== 'string') this.#at += found.bytes.length;
    return found;
  }

  /** Nobody uses records any more but those that come. */
  forget(): void {
    for (const buffer of this.#passed.splice(0)) {
      if (buffer.length > this.#spare.length) {
        releaseBuffer(this.#spare);
        this.#spare = buffer;
      } else releaseBuffer(buffer);
    }
  }

  /** The walk is over. With `reuse`, no record is valid any more. */
  release(): void {
    if (this.#reuse) for (const buffer of [...this.#passed, this.#spare, this.#buffer]) releaseBuffer(buffer);
    this.#passed = [];
    this.#chunk = this.#buffer = this.#spare = EMPTY;
  }

  /** Takes back the record that was just returned. */
  back(record: LogRecord): void {
    this.#at -= record.bytes.length;
  }

  #decode(): LogRecord | RecordFault {
    return this.#decoder.decode(this.#chunk, this.#view, this.#at, this.#chunk.length);
  }

  /** Moves the chunk so that the record at the cursor is whole in it; false when it already holds all there is. */
  #refill(fault: RecordFault): boolean {
    const offset = this.offset;
    const left = this.#chunk.length - this.#at;
    const available = this.#end - offset;
    if (left >= available) return false;
    if (fault === 'blank' && left >= 2) return false;
    const wanted = left >= RECORD_HEADER_BYTES ? recordBytesAt(this.#view, this.#at) : 0;
    const size = Math.min(available, Math.max(this.#chunkBytes, wanted));
    if (this.#reuse) this.#passed.push(this.#buffer);
    if (this.#spare.length >= size) [this.#buffer, this.#spare] = [this.#spare, EMPTY];
    else this.#buffer = Buffer.allocUnsafeSlow(size);
    const filled = this.#file.read(this.#buffer.subarray(0, size), offset);
    this.#chunk = this.#buffer.subarray(0, filled);
    this.#view = new DataView(this.#buffer.buffer, this.#buffer.byteOffset, filled);
    this.#chunkStart = offset;
    this.#at = 0;
    return filled > left;
  }
}
