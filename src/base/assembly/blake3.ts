/**
 * BLAKE3 of one chunk: at most 1,024 bytes, which is what most records have. The four rows of the state are vectors;
 * the columns of a round are computed at once, then its diagonals by turning the rows. Compiled by `blake3.test.ts`.
 */
const INPUT: usize = 0;
const OUTPUT: usize = 1024;
const BLOCK_BYTES: u32 = 64;
const CHUNK_START: u32 = 1;
const CHUNK_END: u32 = 2;
const ROOT: u32 = 8;

function words(block: usize, a: usize, b: usize, c: usize, d: usize): v128 {
  let v = v128.load_zero<u32>(block + a * 4);
  v = v128.load_lane<u32>(block + b * 4, v, 1);
  v = v128.load_lane<u32>(block + c * 4, v, 2);
  return v128.load_lane<u32>(block + d * 4, v, 3);
}

function rotate(v: v128, by: i32): v128 {
  return v128.or(v128.shr<u32>(v, by), v128.shl<u32>(v, 32 - by));
}

/** The hash of the first `length` bytes of the input, into the output. */
export function hash(length: u32): void {
  const iv0 = i32x4(0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a);
  const iv1 = i32x4(0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19);
  let low = iv0;
  let high = iv1;
  const last: u32 = length == 0 ? 0 : (length - 1) / BLOCK_BYTES;
  memory.fill(INPUT + length, 0, (last + 1) * BLOCK_BYTES - length);
  for (let block: u32 = 0; block <= last; block++) {
    let flags: u32 = block == 0 ? CHUNK_START : 0;
    let size: u32 = BLOCK_BYTES;
    if (block == last) {
      flags |= CHUNK_END | ROOT;
      size = length - block * BLOCK_BYTES;
    }
    const m = INPUT + block * BLOCK_BYTES;
    let a = low;
    let b = high;
    let c = iv0;
    let d = i32x4.replace_lane(i32x4.replace_lane(i32x4.splat(0), 2, size), 3, flags);
    // Round 1: columns, then diagonals.
    a = i32x4.add(i32x4.add(a, b), words(m, 0, 2, 4, 6));
    d = rotate(v128.xor(d, a), 16);
    c = i32x4.add(c, d);
    b = rotate(v128.xor(b, c), 12);
    a = i32x4.add(i32x4.add(a, b), words(m, 1, 3, 5, 7));
    d = rotate(v128.xor(d, a), 8);
    c = i32x4.add(c, d);
    b = rotate(v128.xor(b, c), 7);
    b = v128.shuffle<u32>(b, b, 1, 2, 3, 0);
    c = v128.shuffle<u32>(c, c, 2, 3, 0, 1);
    d = v128.shuffle<u32>(d, d, 3, 0, 1, 2);
    a = i32x4.add(i32x4.add(a, b), words(m, 8, 10, 12, 14));
    d = rotate(v128.xor(d, a), 16);
    c = i32x4.add(c, d);
    b = rotate(v128.xor(b, c), 12);
    a = i32x4.add(i32x4.add(a, b), words(m, 9, 11, 13, 15));
    d = rotate(v128.xor(d, a), 8);
    c = i32x4.add(c, d);
    b = rotate(v128.xor(b, c), 7);
    b = v128.shuffle<u32>(b, b, 3, 0, 1, 2);
    c = v128.shuffle<u32>(c, c, 2, 3, 0, 1);
    d = v128.shuffle<u32>(d, d, 1, 2, 3, 0);
    // Round 2: columns, then diagonals.
    a = i32x4.add(i32x4.add(a, b), words(m, 2, 3, 7, 4));
    d = rotate(v128.xor(d, a), 16);
    c = i32x4.add(c, d);
    b = rotate(v128.xor(b, c), 12);
    a = i32x4.add(i32x4.add(a, b), words(m, 6, 10, 0, 13));
    d = rotate(v128.xor(d, a), 8);
    c = i32x4.add(c, d);
    b = rotate(v128.xor(b, c), 7);
    b = v128.shuffle<u32>(b, b, 1, 2, 3, 0);
    c = v128.shuffle<u32>(c, c, 2, 3, 0, 1);
    d = v128.shuffle<u32>(d, d, 3, 0, 1, 2);
    a = i32x4.add(i32x4.add(a, b), words(m, 1, 12, 9, 15));
    d = rotate(v128.xor(d, a), 16);
    c = i32x4.add(c, d);
    b = rotate(v128.xor(b, c), 12);
    a = i32x4.add(i32x4.add(a, b), words(m, 11, 5, 14, 8));
    d = rotate(v128.xor(d, a), 8);
    c = i32x4.add(c, d);
    b = rotate(v128.xor(b, c), 7);
    b = v128.shuffle<u32>(b, b, 3, 0, 1, 2);
    c = v128.shuffle<u32>(c, c, 2, 3, 0, 1);
    d = v128.shuffle<u32>(d, d, 1, 2, 3, 0);
    // Round 3: columns, then diagonals.
    a = i32x4.add(i32x4.add(a, b), words(m, 3, 10, 13, 7));
    d = rotate(v128.xor(d, a), 16);
    c = i32x4.add(c, d);
    b = rotate(v128.xor(b, c), 12);
    a = i32x4.add(i32x4.add(a, b), words(m, 4, 12, 2, 14));
    d = rotate(v128.xor(d, a), 8);
    c = i32x4.add(c, d);
    b = rotate(v128.xor(b, c), 7);
    b = v128.shuffle<u32>(b, b, 1, 2, 3, 0);
    c = v128.shuffle<u32>(c, c, 2, 3, 0, 1);
    d = v128.shuffle<u32>(d, d, 3, 0, 1, 2);
    a = i32x4.add(i32x4.add(a, b), words(m, 6, 9, 11, 8));
    d = rotate(v128.xor(d, a), 16);
    c = i32x4.add(c, d);
    b = rotate(v128.xor(b, c), 12);
    a = i32x4.add(i32x4.add(a, b), words(m, 5, 0, 15, 1));
    d = rotate(v128.xor(d, a), 8);
    c = i32x4.add(c, d);
    b = rotate(v128.xor(b, c), 7);
    b = v128.shuffle<u32>(b, b, 3, 0, 1, 2);
    c = v128.shuffle<u32>(c, c, 2, 3, 0, 1);
    d = v128.shuffle<u32>(d, d, 1, 2, 3, 0);
    // Round 4: columns, then diagonals.
    a = i32x4.add(i32x4.add(a, b), words(m, 10, 12, 14, 13));
    d = rotate(v128.xor(d, a), 16);
    c = i32x4.add(c, d);
    b = rotate(v128.xor(b, c), 12);
    a = i32x4.add(i32x4.add(a, b), words(m, 7, 9, 3, 15));
    d = rotate(v128.xor(d, a), 8);
    c = i32x4.add(c, d);
    b = rotate(v128.xor(b, c), 7);
    b = v128.shuffle<u32>(b, b, 1, 2, 3, 0);
    c = v128.shuffle<u32>(c, c, 2, 3, 0, 1);
    d = v128.shuffle<u32>(d, d, 3, 0, 1, 2);
    a = i32x4.add(i32x4.add(a, b), words(m, 4, 11, 5, 1));
    d = rotate(v128.xor(d, a), 16);
    c = i32x4.add(c, d);
    b = rotate(v128.xor(b, c), 12);
    a = i32x4.add(i32x4.add(a, b), words(m, 0, 2, 8, 6));
    d = rotate(v128.xor(d, a), 8);
    c = i32x4.add(c, d);
    b = rotate(v128.xor(b, c), 7);
    b = v128.shuffle<u32>(b, b, 3, 0, 1, 2);
    c = v128.shuffle<u32>(c, c, 2, 3, 0, 1);
    d = v128.shuffle<u32>(d, d, 1, 2, 3, 0);
    // Round 5: columns, then diagonals.
    a = i32x4.add(i32x4.add(a, b), words(m, 12, 9, 15, 14));
    d = rotate(v128.xor(d, a), 16);
    c = i32x4.add(c, d);
    b = rotate(v128.xor(b, c), 12);
    a = i32x4.add(i32x4.add(a, b), words(m, 13, 11, 10, 8));
    d = rotate(v128.xor(d, a), 8);
    c = i32x4.add(c, d);
    b = rotate(v128.xor(b, c), 7);
    b = v128.shuffle<u32>(b, b, 1, 2, 3, 0);
    c = v128.shuffle<u32>(c, c, 2, 3, 0, 1);
    d = v128.shuffle<u32>(d, d, 3, 0, 1, 2);
    a = i32x4.add(i32x4.add(a, b), words(m, 7, 5, 0, 6));
    d = rotate(v128.xor(d, a), 16);
    c = i32x4.add(c, d);
    b = rotate(v128.xor(b, c), 12);
    a = i32x4.add(i32x4.add(a, b), words(m, 2, 3, 1, 4));
    d = rotate(v128.xor(d, a), 8);
    c = i32x4.add(c, d);
    b = rotate(v128.xor(b, c), 7);
    b = v128.shuffle<u32>(b, b, 3, 0, 1, 2);
    c = v128.shuffle<u32>(c, c, 2, 3, 0, 1);
    d = v128.shuffle<u32>(d, d, 1, 2, 3, 0);
    // Round 6: columns, then diagonals.
    a = i32x4.add(i32x4.add(a, b), words(m, 9, 11, 8, 15));
    d = rotate(v128.xor(d, a), 16);
    c = i32x4.add(c, d);
    b = rotate(v128.xor(b, c), 12);
    a = i32x4.add(i32x4.add(a, b), words(m, 14, 5, 12, 1));
    d = rotate(v128.xor(d, a), 8);
    c = i32x4.add(c, d);
    b = rotate(v128.xor(b, c), 7);
    b = v128.shuffle<u32>(b, b, 1, 2, 3, 0);
    c = v128.shuffle<u32>(c, c, 2, 3, 0, 1);
    d = v128.shuffle<u32>(d, d, 3, 0, 1, 2);
    a = i32x4.add(i32x4.add(a, b), words(m, 13, 0, 2, 4));
    d = rotate(v128.xor(d, a), 16);
    c = i32x4.add(c, d);
    b = rotate(v128.xor(b, c), 12);
    a = i32x4.add(i32x4.add(a, b), words(m, 3, 10, 6, 7));
    d = rotate(v128.xor(d, a), 8);
    c = i32x4.add(c, d);
    b = rotate(v128.xor(b, c), 7);
    b = v128.shuffle<u32>(b, b, 3, 0, 1, 2);
    c = v128.shuffle<u32>(c, c, 2, 3, 0, 1);
    d = v128.shuffle<u32>(d, d, 1, 2, 3, 0);
    // Round 7: columns, then diagonals.
    a = i32x4.add(i32x4.add(a, b), words(m, 11, 5, 1, 8));
    d = rotate(v128.xor(d, a), 16);
    c = i32x4.add(c, d);
    b = rotate(v128.xor(b, c), 12);
    a = i32x4.add(i32x4.add(a, b), words(m, 15, 0, 9, 6));
    d = rotate(v128.xor(d, a), 8);
    c = i32x4.add(c, d);
    b = rotate(v128.xor(b, c), 7);
    b = v128.shuffle<u32>(b, b, 1, 2, 3, 0);
    c = v128.shuffle<u32>(c, c, 2, 3, 0, 1);
    d = v128.shuffle<u32>(d, d, 3, 0, 1, 2);
    a = i32x4.add(i32x4.add(a, b), words(m, 14, 2, 3, 7));
    d = rotate(v128.xor(d, a), 16);
    c = i32x4.add(c, d);
    b = rotate(v128.xor(b, c), 12);
    a = i32x4.add(i32x4.add(a, b), words(m, 10, 12, 4, 13));
    d = rotate(v128.xor(d, a), 8);
    c = i32x4.add(c, d);
    b = rotate(v128.xor(b, c), 7);
    b = v128.shuffle<u32>(b, b, 3, 0, 1, 2);
    c = v128.shuffle<u32>(c, c, 2, 3, 0, 1);
    d = v128.shuffle<u32>(d, d, 1, 2, 3, 0);
    low = v128.xor(a, c);
    high = v128.xor(b, d);
  }
  v128.store(OUTPUT, low);
  v128.store(OUTPUT + 16, high);
}
