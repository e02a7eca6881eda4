/** The fingerprint once more, slowly and in BigInt, from its definition: what the kernel is compared with. */
import type { CellView, Changeset } from '../changeset.ts';
import type { ColumnNames } from './fingerprinter.ts';

const MASK = (1n << 64n) - 1n;
const rotl = (x: bigint, bits: bigint): bigint => ((x << bits) | (x >> (64n - bits))) & MASK;

function littleEndian(bytes: Uint8Array): bigint {
  return bytes.reduceRight((value, byte) => (value << 8n) | BigInt(byte), 0n);
}

/** SipHash with 128 bits of output, low word in the low bits. */
export function siphash13(key: Uint8Array, message: Uint8Array, rounds = 1, finalRounds = 3): bigint {
  const [k0, k1] = [littleEndian(key.subarray(0, 8)), littleEndian(key.subarray(8))];
  let [v0, v1, v2, v3] = [
    k0 ^ 0x736f6d6570736575n,
    k1 ^ 0x646f72616e646f6dn ^ 0xeen,
    k0 ^ 0x6c7967656e657261n,
    k1 ^ 0x7465646279746573n,
  ];
  const round = (times: number): void => {
    for (; times > 0; times -= 1) {
      v0 = (v0 + v1) & MASK;
      v1 = rotl(v1, 13n) ^ v0;
      v0 = rotl(v0, 32n);
      v2 = (v2 + v3) & MASK;
      v3 = rotl(v3, 16n) ^ v2;
      v0 = (v0 + v3) & MASK;
      v3 = rotl(v3, 21n) ^ v0;
      v2 = (v2 + v1) & MASK;
      v1 = rotl(v1, 17n) ^ v2;
      v2 = rotl(v2, 32n);
    }
  };
  const absorb = (word: bigint): void => {
    v3 ^= word;
    round(rounds);
    v0 ^= word;
  };
  const whole = message.length - (message.length % 8);
  for (let at = 0; at < whole; at += 8) absorb(littleEndian(message.subarray(at, at + 8)));
  absorb(littleEndian(message.subarray(whole)) | (BigInt(message.length & 0xff) << 56n));
  v2 ^= 0xeen;
  round(finalRounds);
  const low = v0 ^ v1 ^ v2 ^ v3;
  v1 ^= 0xddn;
  round(finalRounds);
  return low | ((v0 ^ v1 ^ v2 ^ v3) << 64n);
}

export class ReferenceFingerprint {
  readonly buckets = new BigUint64Array(2048);
  readonly #key: Uint8Array;

  constructor(key: Uint8Array) {
    this.#key = key;
  }

  #prf(ab: bigint, c: bigint, bytes: Uint8Array): bigint {
    const message = new Uint8Array(24 + bytes.length);
    const view = new DataView(message.buffer);
    view.setBigUint64(0, ab & MASK, true);
    view.setBigUint64(8, ab >> 64n, true);
    view.setBigUint64(16, c, true);
    message.set(bytes, 24);
    return siphash13(this.#key, message);
  }

  delta(changeset: Changeset, columnNames: ColumnNames): void {
    const utf8 = new TextEncoder();
    for (const group of changeset) {
      const table = this.#prf(0n, 1n, utf8.encode(group.table));
      const ids = columnNames(group.table).map((name) => this.#prf(table, 2n, utf8.encode(name)) & MASK);
      for (const change of group.changes) {
        const cells = change.op === 'insert' ? change.new : change.old;
        let row = table;
        for (const [column, flag] of group.keyFlags.entries())
          if (flag !== 0) row = this.#prf(row, ids[column]!, cells[column]!);
        if (change.op === 'insert') this.#add(row, row, 1n);
        if (change.op === 'delete') this.#add(row, row, -1n);
        for (const [column, flag] of group.keyFlags.entries()) {
          if (flag !== 0) continue;
          this.#cell(row, ids[column]!, change.old[column], -1n);
          this.#cell(row, ids[column]!, change.new[column], 1n);
        }
      }
    }
  }

  #cell(row: bigint, column: bigint, cell: CellView | undefined, sign: bigint): void {
    if (cell !== undefined && cell[0] !== 5) this.#add(row, this.#prf(row, column, cell), sign);
  }

  #add(row: bigint, hash: bigint, sign: bigint): void {
    const bucket = 2 * Number(row & 1023n);
    this.buckets[bucket]! += sign * (hash & MASK);
    this.buckets[bucket + 1]! += sign * (hash >> 64n);
  }
}
