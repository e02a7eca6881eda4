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
  /** The sum of all buckets in halves, moved along: each commit asks for it. */
  readonly #sum = new Uint32Array(4);

  constructor() {
    this.buckets = new BigUint64Array(LANES);
    this.#halves = new Uint32Array(this.buckets.buffer);
  }

  static parse(bytes: Uint8Array): Fingerprint {
    if (bytes.length !== FINGERPRINT_BYTES)
      throw new NostosError('INVALID_ARGUMENT', `a fingerprint has ${FINGERPRINT_BYTES} bytes, got ${bytes.length}`);
    const result = new Fingerprint();
    new Uint8Array(result.buckets.buffer).set(bytes);
    result.#sumUp();
    return result;
  }

  serialize(): Uint8Array {
    return new Uint8Array(this.buckets.buffer.slice(0));
  }

  /** 16 bytes: the wrapping sum of all buckets, lane by lane. */
  total(): Uint8Array {
    return new Uint8Array(this.#sum.buffer.slice(0));
  }

  add(other: Fingerprint): void {
    for (let bucket = 0; bucket < BUCKET_COUNT; bucket += 1) this.addBucket(other.#halves, bucket);
  }

  subtract(other: Fingerprint): void {
    for (let lane = 0; lane < LANES; lane += 1) this.buckets[lane]! -= other.buckets[lane]!;
    this.#sumUp();
  }

  /** Adds one bucket out of an array that is laid out like `buckets`, in halves of its lanes. */
  addBucket(from: Uint32Array, bucket: number): void {
    const halves = this.#halves;
    const sum = this.#sum;
    for (let lane = 0; lane < 4; lane += 2) {
      const at = 4 * bucket + lane;
      addInto(halves, at, from[at]!, from[at + 1]!);
      addInto(sum, lane, from[at]!, from[at + 1]!);
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
    copy.#sum.set(this.#sum);
    return copy;
  }

  #sumUp(): void {
    const sum = new BigUint64Array(2);
    for (let lane = 0; lane < LANES; lane += 1) sum[lane % 2]! += this.buckets[lane]!;
    this.#sum.set(new Uint32Array(sum.buffer));
  }
}

/** Adds a 64-bit number to the one at `at`, both in halves, the low one first. */
function addInto(halves: Uint32Array, at: number, low: number, high: number): void {
  const sum = halves[at]! + low;
  halves[at] = sum;
  halves[at + 1] = halves[at + 1]! + high + (sum > 0xffffffff ? 1 : 0);
}
