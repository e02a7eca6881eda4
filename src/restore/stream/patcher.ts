/**
 * Checks the data frames of one item, each of which says how far the item is right with it and what the hash is up to
 * there. Nothing of a frame is written before it has passed.
 */
import { Blake3Hasher } from '@napi-rs/blake-hash';
import { NostosError } from '../../base/errors.ts';
import type { ItemName } from '../item-name.ts';
import { PREFIX_HASH_BYTES, protocolError, type Patch } from './frames.ts';
import { PAGE_BYTES, pagesOf } from './pages.ts';

const READ_BYTES = 256 * 1024;

/** The file that is patched; its first `baseBytes` are there. */
export interface BaseFile {
  read(target: Uint8Array, offset: number): void;
}

export class Patcher {
  readonly #name: ItemName;
  readonly #file: BaseFile;
  readonly #bytes: number;
  /** What the base may be read for: whole pages, or the end of the item. */
  readonly #baseBytes: number;
  readonly #hasher = new Blake3Hasher();
  #buffer: Buffer | undefined;
  #coveredTo = 0;
  #receivedBytes = 0;

  constructor(name: ItemName, file: BaseFile, sizes: { readonly bytes: number; readonly baseBytes: number }) {
    this.#name = name;
    this.#file = file;
    this.#bytes = sizes.bytes;
    this.#baseBytes = Math.min(sizes.bytes, sizes.baseBytes);
  }

  get coveredTo(): number {
    return this.#coveredTo;
  }

  get receivedBytes(): number {
    return this.#receivedBytes;
  }

  /** `data`: the bytes of the runs, decompressed. */
  check({ coveredTo, prefixHash, runs }: Patch, data: Uint8Array): void {
    const from = this.#coveredTo;
    if (coveredTo <= from || coveredTo > this.#bytes || (coveredTo % PAGE_BYTES !== 0 && coveredTo !== this.#bytes))
      throw protocolError(`${this.#name}: a frame for ${from} to ${coveredTo} of ${this.#bytes} bytes`);
    let [at, taken] = [from, 0];
    for (const { offset, length } of runs) {
      const end = offset + length;
      if (offset < from || (end % PAGE_BYTES !== 0 && end !== this.#bytes))
        throw protocolError(`${this.#name}: a run from ${offset} to ${end} in a frame for ${from} to ${coveredTo}`);
      this.#hashBase(at, offset);
      this.#hasher.update(data.subarray(taken, taken + length));
      [at, taken] = [end, taken + length];
    }
    this.#hashBase(at, coveredTo);
    const found = this.#hasher.digestBuffer();
    if (found.compare(prefixHash, 0, PREFIX_HASH_BYTES, 0, PREFIX_HASH_BYTES) !== 0)
      throw this.#damaged(from, coveredTo);
    this.#coveredTo = coveredTo;
    this.#receivedBytes += data.length;
  }

  /** The digest, when it is that of the source. */
  finish(digest: Uint8Array): string {
    if (this.#coveredTo !== this.#bytes)
      throw protocolError(`${this.#name}: ended at ${this.#coveredTo} of ${this.#bytes} bytes`);
    const found = this.#hasher.digestBuffer();
    if (found.compare(digest) !== 0) throw this.#damaged(0, this.#bytes);
    return found.toString('hex');
  }

  #hashBase(from: number, to: number): void {
    if (from === to) return;
    if (to > this.#baseBytes)
      throw protocolError(`${this.#name}: nothing for ${from} to ${to}, where the base ends at ${this.#baseBytes}`);
    // Of small items there may be many, and the collector finds buffers late.
    this.#buffer ??= Buffer.allocUnsafeSlow(Math.min(READ_BYTES, this.#bytes));
    for (let at = from; at < to;) {
      const part = this.#buffer.subarray(0, Math.min(this.#buffer.length, to - at));
      this.#file.read(part, at);
      this.#hasher.update(part);
      at += part.length;
    }
  }

  #damaged(from: number, to: number): NostosError {
    return new NostosError(
      'TRANSFER_DAMAGED',
      `${this.#name}: what arrived for the bytes ${from} to ${to} of ${this.#bytes} is not what the source read; run the restore again, and test the machines' memory if it stays so`,
      { details: { item: this.#name, from, to, bytes: this.#bytes, pages: pagesOf(to - from) } },
    );
  }
}
