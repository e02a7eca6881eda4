/** Where some of a segment's records begin, so that reading from any LSN starts at most `STEP_BYTES` before it. */
import type { Lsn } from '../base/brands.ts';

const STEP_BYTES = 64 * 1024;

export interface IndexEntry {
  readonly lsn: Lsn;
  readonly offset: number;
}

export class SparseIndex {
  readonly #lsns: number[] = [];
  readonly #offsets: number[] = [];
  #nextOffset = 0;

  /** Records come in order; most are skipped. */
  add(lsn: number, offset: number): void {
    if (offset < this.#nextOffset) return;
    this.#lsns.push(lsn);
    this.#offsets.push(offset);
    this.#nextOffset = offset + STEP_BYTES;
  }

  /** Forgets the records from this offset on. */
  cut(offset: number): void {
    while (this.#offsets.length > 0 && (this.#offsets.at(-1) as number) >= offset) {
      this.#offsets.pop();
      this.#lsns.pop();
    }
    this.#nextOffset = this.#offsets.length === 0 ? 0 : (this.#offsets.at(-1) as number) + STEP_BYTES;
  }

  /** The greatest known record at or below `lsn`. */
  floor(lsn: Lsn): IndexEntry | undefined {
    let [low, high] = [0, this.#lsns.length];
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#lsns[middle] as number) <= lsn) low = middle + 1;
      else high = middle;
    }
    if (low === 0) return undefined;
    return { lsn: this.#lsns[low - 1] as Lsn, offset: this.#offsets[low - 1] as number };
  }
}

const INDEXES_MAX = 64;

/** Indexes of sealed segments, the latest used. A segment without one is read from its beginning. */
export class SparseIndexes {
  readonly #indexes = new Map<number, SparseIndex>();

  get(segment: number): SparseIndex {
    const index = this.#indexes.get(segment) ?? new SparseIndex();
    this.set(segment, index);
    return index;
  }

  set(segment: number, index: SparseIndex): void {
    this.#indexes.delete(segment);
    this.#indexes.set(segment, index);
    const oldest = this.#indexes.keys().next();
    if (this.#indexes.size > INDEXES_MAX && oldest.done !== true) this.#indexes.delete(oldest.value);
  }
}
