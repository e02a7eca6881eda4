/**
 * Bytes that have arrived and were not taken yet. Everything is copied in, so a chunk may be reused by whoever pushed
 * it, and memory is bounded by bytes, not by how they were cut: a peer that drips costs no more than one that sends.
 */
const EMPTY = new Uint8Array(0);
const BUFFER_BYTES_LEAST = 16 * 1024;
/** A larger buffer is given up when it is empty. */
const BUFFER_BYTES_KEPT = 512 * 1024;
/** A take of more than this grows with what arrives: a length by itself costs no memory. */
const ALLOCATE_AT_ONCE_BYTES = 1024 * 1024;
const ZEROED_BELOW_BYTES = 4096;

export class ByteQueue {
  /** What no take has asked for yet is in `#buffer` from `#start` to `#end`. */
  #buffer: Uint8Array = EMPTY;
  #start = 0;
  #end = 0;
  /** What a take that is not complete has got so far, which is before all that is in the buffer. */
  #target: Uint8Array = EMPTY;
  #filled = 0;
  #wanted = 0;

  /** Bytes that no take has asked for yet. */
  get readAhead(): number {
    return this.#end - this.#start;
  }

  /** Everything that has arrived and was not handed out. */
  get bytes(): number {
    return this.readAhead + this.#filled;
  }

  push(chunk: Uint8Array): void {
    const forTarget = Math.min(this.#wanted - this.#filled, chunk.length);
    if (forTarget > 0) this.#fill(chunk.subarray(0, forTarget));
    if (forTarget < chunk.length) this.#append(forTarget > 0 ? chunk.subarray(forTarget) : chunk);
  }

  /**
   * The next `count` bytes, in memory that is the caller's alone; undefined until all are there. The next call goes on
   * with what has come until then, also when it asks for another count. They are put `into` memory of the caller where
   * they fit in; `own` takes it off again.
   */
  take(count: number, into?: Uint8Array): Uint8Array | undefined {
    if (this.#wanted !== count) this.#open(count);
    if (into !== undefined && this.#target.buffer !== into.buffer && count <= into.length) {
      into.set(this.#target.subarray(0, this.#filled));
      this.#target = into.subarray(0, count);
    }
    const part = Math.min(count - this.#filled, this.readAhead);
    if (part > 0) {
      this.#fill(this.#buffer.subarray(this.#start, this.#start + part));
      this.#drop(part);
    }
    if (this.#filled < count) return undefined;
    const taken = this.#target;
    this.#target = EMPTY;
    this.#filled = this.#wanted = 0;
    return taken;
  }

  /** The next four bytes as a little-endian number; undefined until all are there. */
  takeU32(): number | undefined {
    if (this.#filled > 0 || this.readAhead < 4) {
      const bytes = this.take(4);
      return bytes && readU32(bytes, 0);
    }
    const value = readU32(this.#buffer, this.#start);
    this.#wanted = 0;
    this.#drop(4);
    return value;
  }

  /** What was taken in part is no longer in memory of the caller. */
  own(): void {
    if (this.#filled > 0) this.#target = moved(this.#target, 0, this.#filled, this.#filled);
    else this.#wanted = 0;
  }

  /** Forgets everything. */
  clear(): void {
    this.#buffer = this.#target = EMPTY;
    this.#start = this.#end = this.#filled = this.#wanted = 0;
  }

  #open(count: number): void {
    if (this.#filled > 0) {
      const rest = this.#buffer.subarray(this.#start, this.#end);
      this.#buffer = Buffer.concat([this.#target.subarray(0, this.#filled), rest]);
      this.#start = 0;
      this.#end = this.#buffer.length;
    }
    this.#wanted = count;
    this.#filled = 0;
    this.#target = EMPTY;
  }

  #fill(part: Uint8Array): void {
    const end = this.#filled + part.length;
    if (end > this.#target.length)
      this.#target = moved(
        this.#target,
        0,
        this.#filled,
        Math.min(this.#wanted, Math.max(end, 2 * this.#filled, ALLOCATE_AT_ONCE_BYTES)),
      );
    this.#target.set(part, this.#filled);
    this.#filled = end;
  }

  #append(bytes: Uint8Array): void {
    const needed = this.readAhead + bytes.length;
    if (this.#end + bytes.length > this.#buffer.length) {
      // Moving to the front is cheap only where most of the buffer is free.
      if (2 * needed <= this.#buffer.length) this.#buffer.copyWithin(0, this.#start, this.#end);
      else this.#buffer = moved(this.#buffer, this.#start, this.#end, Math.max(2 * needed, BUFFER_BYTES_LEAST));
      this.#end -= this.#start;
      this.#start = 0;
    }
    this.#buffer.set(bytes, this.#end);
    this.#end += bytes.length;
  }

  #drop(count: number): void {
    this.#start += count;
    if (this.#start < this.#end) return;
    this.#start = this.#end = 0;
    if (this.#buffer.length > BUFFER_BYTES_KEPT) this.#buffer = EMPTY;
  }
}

function moved(from: Uint8Array, start: number, end: number, bytes: number): Uint8Array {
  const to = allocate(bytes);
  to.set(from.subarray(start, end));
  return to;
}

function readU32(bytes: Uint8Array, offset: number): number {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength).getUint32(offset, true);
}

/** Large ones are not zeroed: only what was filled is ever handed out. */
function allocate(bytes: number): Uint8Array {
  if (bytes < ZEROED_BELOW_BYTES) return new Uint8Array(bytes);
  const buffer = Buffer.allocUnsafeSlow(bytes);
  return new Uint8Array(buffer.buffer, buffer.byteOffset, bytes);
}
