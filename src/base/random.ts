/** Randomness comes in from outside, so that a failing seed replays. */
import { randomBytes } from 'node:crypto';

export interface Random {
  bytes(count: number): Uint8Array;
}

export const systemRandom: Random = { bytes: (count) => randomBytes(count) };

export interface SeededRandom extends Random {
  /** A whole number from 0 to `end` - 1. */
  below(end: number): number;
  /** True in `share` of the calls. */
  chance(share: number): boolean;
}

/** The same seed gives the same sequence on every machine (sfc32). Not for secrets. */
export function seededRandom(seed: number): SeededRandom {
  let [a, b, c, counter] = [seed >>> 0, (seed / 2 ** 32) >>> 0, 0x9e3779b9, 1];
  const word = (): number => {
    const result = (a + b + counter) >>> 0;
    counter = (counter + 1) >>> 0;
    a = (b ^ (b >>> 9)) >>> 0;
    b = (c + (c << 3)) >>> 0;
    c = (((c << 21) | (c >>> 11)) + result) >>> 0;
    return result;
  };
  for (let i = 0; i < 12; i++) word();
  return {
    bytes(count) {
      const result = new Uint8Array(count);
      for (let i = 0; i < count; i++) result[i] = word() & 0xff;
      return result;
    },
    below: (end) => Math.floor((word() / 2 ** 32) * end),
    chance: (share) => word() / 2 ** 32 < share,
  };
}

/** 128 random bits as 32 lowercase hex digits. */
export function randomHex128(random: Random): string {
  return Buffer.from(random.bytes(16)).toString('hex');
}
