/**
 * A digest of all cells of a tenant: 1,024 buckets of two 64-bit lanes, each the wrapping sum of keyed hashes of the cells
 * of the rows that fall into it. Sums do not depend on order, and what is added can be taken away again, so a fingerprint
 * follows every change without reading any row, and the difference of two says in which buckets the rows differ.
 *
 * Two fingerprints can be compared only if they were made under the same key.
 */
import { NostosError } from '../../base/errors.ts';

export const BUCKET_COUNT = 1024;
/** Two lanes each. */
const LANES = 2 * BUCKET_COUNT;
export const FINGERPRINT_BYTES = 8 * LANES;

export class Fingerprint {
  /** Low and high lane of bucket `b` at `2 * b` and `2 * b + 1`. */
  readonly buckets: BigUint64Array;
  /** The same lanes in halves, for sums without bigints. */
  readonly #halves: Uint32Array;

  constructor() {
    this.buckets = new BigUint64Array(LANES);
    this.#halves = new Uint32Array(this.buckets.buffer);
  }

  static parse(bytes: Uint8Array): Fingerprint {
    if (bytes.length !== FINGERPRINT_BYTES)
      throw new NostosError('INVALID_ARGUMENT', `a fingerprint has ${FINGERPRINT_BYTES} bytes, got ${bytes.length}`);
    const result = new Fingerprint();
    new Uint8Array(result.buckets.buffer).set(bytes);
    return result;
  }

  serialize(): Uint8Array {
    return new Uint8Array(this.buckets.buffer.slice(0));
  }

  /** 16 bytes: the wrapping sum of all buckets, lane by lane. */
  total(): Uint8Array {
    const sum = new BigUint64Array(2);
    for (let lane = 0; lane < LANES; lane += 1) sum[lane % 2]! += this.buckets[lane]!;
    return new Uint8Array(sum.buffer);
  }

  add(other: Fingerprint): void {
    for (let bucket = 0; bucket < BUCKET_COUNT; bucket += 1) this.addBucket(other.#halves, bucket);
  }

  subtract(other: Fingerprint): void {
    for (let lane = 0; lane < LANES; lane += 1) this.buckets[lane]! -= other.buckets[lane]!;
  }

  /** Adds one bucket out of an array that is laid out like `buckets`, in halves of its lanes. */
  addBucket(from: Uint32Array, bucket: number): void {
    const halves = this.#halves;
    for (let at = 4 * bucket; at < 4 * bucket + 4; at += 2) {
      const low = halves[at]! + from[at]!;
      halves[at] = low;
      halves[at + 1] = halves[at + 1]! + from[at + 1]! + (low > 0xffffffff ? 1 : 0);
    }
  }

  equals(other: Fingerprint): boolean {
    return this.buckets.every((value, lane) => value === other.buckets[lane]);
  }

  isZero(): boolean {
    return this.#halves.every((half) => half === 0);
  }

  /** Buckets whose sums differ: where to look for the rows that do. */
  differingBuckets(other: Fingerprint): number[] {
    const differing: number[] = [];
    for (let bucket = 0; bucket < BUCKET_COUNT; bucket += 1)
      if (this.#differs(other, 2 * bucket) || this.#differs(other, 2 * bucket + 1)) differing.push(bucket);
    return differing;
  }

  #differs(other: Fingerprint, lane: number): boolean {
    return this.buckets[lane] !== other.buckets[lane];
  }

  clone(): Fingerprint {
    const copy = new Fingerprint();
    copy.buckets.set(this.buckets);
    return copy;
  }
}
