/**
 * Bytes that have arrived and were not taken yet. Memory is bounded by bytes, not by how they were cut: a peer that
 * drips single bytes costs no more than one that sends blocks.
 */
const EMPTY = new Uint8Array(0);
/** Smaller chunks are put together, larger ones are kept as they came. */
const COPY_BELOW_BYTES = 4096;
const SLAB_BYTES = 64 * 1024;
/** A take of more than this grows with what arrives: a length by itself costs no memory. */
const ALLOCATE_AT_ONCE_BYTES = 1024 * 1024;

export class ByteQueue {
  #chunks: Uint8Array[] = [];
  /** Bytes of the first chunk that were taken. */
  #offset = 0;
  #queued = 0;
  /** The last chunk, while it is ours and has room. */
  #slab: Uint8Array = EMPTY;
  #slabUsed = 0;
  /** What a take that is not complete has got so far. */
  #target: Uint8Array = EMPTY;
  #filled = 0;
  #wanted = 0;

  /** Bytes that no take has asked for yet. */
  get readAhead(): number {
    return this.#queued;
  }

  /** Everything that has arrived and was not handed out. */
  get bytes(): number {
    return this.#queued + this.#filled;
  }

  /** Keeps the chunk itself where it is large, so its owner must not reuse it. */
  push(chunk: Uint8Array): void {
    let rest = chunk;
    if (this.#wanted > this.#filled) {
      const part = rest.subarray(0, this.#wanted - this.#filled);
      this.#fill(part);
      rest = rest.subarray(part.length);
    }
    if (rest.length === 0) return;
    this.#queued += rest.length;
    if (rest.length >= COPY_BELOW_BYTES) {
      this.#chunks.push(rest);
      this.#slab = EMPTY;
      this.#slabUsed = 0;
      return;
    }
    if (this.#slabUsed + rest.length > this.#slab.length) {
      this.#slab = new Uint8Array(SLAB_BYTES);
      this.#slabUsed = 0;
    } else this.#chunks.pop();
    this.#slab.set(rest, this.#slabUsed);
    this.#slabUsed += rest.length;
    this.#chunks.push(this.#slab.subarray(0, this.#slabUsed));
  }

  /**
   * The next `count` bytes, in memory that is the caller's alone; undefined until all are there. The next call goes on
   * with what has come until then, also when it asks for another count.
   */
  take(count: number): Uint8Array | undefined {
    if (this.#wanted !== count) this.#start(count);
    while (this.#filled < count && this.#queued > 0) {
      const first = this.#chunks[0]!;
      const part = first.subarray(this.#offset, this.#offset + count - this.#filled);
      this.#fill(part);
      this.#queued -= part.length;
      this.#offset += part.length;
      if (this.#offset === first.length) this.#dropFirst();
    }
    if (this.#filled < count) return undefined;
    const taken = this.#target.subarray(0, count);
    this.#target = EMPTY;
    this.#filled = this.#wanted = 0;
    return taken;
  }

  /** The next four bytes as a little-endian number; undefined until all are there. */
  takeU32(): number | undefined {
    const first = this.#chunks[0];
    if (this.#filled === 0 && first !== undefined && first.length - this.#offset > 4) {
      const value = readU32(first, this.#offset);
      this.#offset += 4;
      this.#queued -= 4;
      this.#wanted = 0;
      return value;
    }
    const bytes = this.take(4);
    return bytes === undefined ? undefined : readU32(bytes, 0);
  }

  /** Forgets everything. */
  clear(): void {
    this.#chunks = [];
    this.#target = this.#slab = EMPTY;
    this.#offset = this.#queued = this.#slabUsed = this.#filled = this.#wanted = 0;
  }

  #start(count: number): void {
    if (this.#filled > 0) {
      if (this.#offset > 0) this.#chunks[0] = this.#chunks[0]!.subarray(this.#offset);
      this.#offset = 0;
      this.#chunks.unshift(this.#target.subarray(0, this.#filled));
      this.#queued += this.#filled;
    }
    this.#wanted = count;
    this.#filled = 0;
    this.#target = allocate(Math.min(count, ALLOCATE_AT_ONCE_BYTES));
  }

  #fill(part: Uint8Array): void {
    const end = this.#filled + part.length;
    if (end > this.#target.length) {
      const grown = allocate(Math.min(this.#wanted, Math.max(end, 2 * this.#target.length)));
      grown.set(this.#target.subarray(0, this.#filled));
      this.#target = grown;
    }
    this.#target.set(part, this.#filled);
    this.#filled = end;
  }

  #dropFirst(): void {
    this.#chunks.shift();
    this.#offset = 0;
    if (this.#chunks.length === 0) this.#dropSlab();
  }

  #dropSlab(): void {
    this.#slab = EMPTY;
    this.#slabUsed = 0;
  }
}

function readU32(bytes: Uint8Array, offset: number): number {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength).getUint32(offset, true);
}

/** Large ones are not zeroed: only what was filled is ever handed out. */
function allocate(bytes: number): Uint8Array {
  if (bytes < COPY_BELOW_BYTES) return new Uint8Array(bytes);
  const buffer = Buffer.allocUnsafeSlow(bytes);
  return new Uint8Array(buffer.buffer, buffer.byteOffset, bytes);
}
