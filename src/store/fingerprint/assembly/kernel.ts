/**
 * The fingerprint kernel: AssemblyScript, compiled to `../kernel.wasm.ts` by `scripts/build-kernel.ts`. It walks the
 * changes of a changeset in linear memory and adds the hash of each cell to its bucket.
 *
 * One primitive: prf(a, b, c, bytes) = SipHash-1-3-128 under the secret key of the little-endian words a, b, c, then the
 * bytes. From it (`fingerprinter.ts` computes the first two):
 *
 *   table  = prf(0, 0, 1, name)
 *   column = low word of prf(table, 2, name)
 *   row    = table; then for each key column in order: row = prf(row, column, raw cell)
 *   cell   = prf(row, column, raw cell); that the row exists counts as row itself
 *   bucket = low 10 bits of row
 *
 * Memory, set up by `fingerprinter.ts`: buckets (1,024 x two u64 lanes) at 0, marks of touched buckets (u8) at 16,384, the
 * list of touched buckets (u16) at 17,408, then from `columns` on: column ids (u64 each), key flags (u8 each), room for the
 * offsets of cells (u32 each); from `window` on the bytes of the changeset with 8 spare bytes behind them.
 */
const MARKS: usize = 16384;
const TOUCHED: usize = 17408;

const DELETE: u8 = 9;
const INSERT: u8 = 18;
const UPDATE: u8 = 23;
const TABLE: u8 = 0x54;

const DONE: i32 = 0;
const AT_TABLE: i32 = 1;
/** The change at `position` goes on beyond the window. */
const INCOMPLETE: i32 = 2;
const INVALID: i32 = 3;

/** Answers of `skipCell` that are not an offset. */
const CUT: u32 = 0;
const WRONG: u32 = 1;

let k0: u64 = 0;
let k1: u64 = 0;
/** State of the hash after a and b. */
let s0: u64 = 0;
let s1: u64 = 0;
let s2: u64 = 0;
let s3: u64 = 0;

export let lo: u64 = 0;
export let hi: u64 = 0;
export let position: u32 = 0;
export let touched: u32 = 0;

let tableLo: u64 = 0;
let tableHi: u64 = 0;
let columnCount: u32 = 0;
let ids: usize = 0;
let flags: usize = 0;
let offsets: usize = 0;

export function setKey(a: u64, b: u64): void {
  k0 = a;
  k1 = b;
}

export function setTable(a: u64, b: u64, count: u32, columns: usize): void {
  tableLo = a;
  tableHi = b;
  columnCount = count;
  ids = columns;
  flags = columns + ((<usize>count) << 3);
  offsets = (flags + count + 3) & ~(<usize>3);
}

function start(a: u64, b: u64): void {
  let v0 = k0 ^ 0x736f6d6570736575;
  let v1 = k1 ^ 0x646f72616e646f6d ^ 0xee;
  let v2 = k0 ^ 0x6c7967656e657261;
  let v3 = k1 ^ 0x7465646279746573;
  let m = a;
  for (let i = 0; i < 2; i++) {
    v3 ^= m;
    v0 += v1;
    v1 = rotl(v1, 13) ^ v0;
    v0 = rotl(v0, 32);
    v2 += v3;
    v3 = rotl(v3, 16) ^ v2;
    v0 += v3;
    v3 = rotl(v3, 21) ^ v0;
    v2 += v1;
    v1 = rotl(v1, 17) ^ v2;
    v2 = rotl(v2, 32);
    v0 ^= m;
    m = b;
  }
  s0 = v0;
  s1 = v1;
  s2 = v2;
  s3 = v3;
}

/** prf(a, b, c, bytes) after `start(a, b)`; the result is in `lo` and `hi`. */
function finish(c: u64, bytes: usize, length: u32): void {
  let v0 = s0;
  let v1 = s1;
  let v2 = s2;
  let v3 = s3;
  let m = c;
  const whole = bytes + (length & ~7);
  const left = <u64>(length & 7);
  const last = (load<u64>(whole) & (((<u64>1) << (left << 3)) - 1)) | ((<u64>(24 + length)) << 56);
  let at = bytes;
  for (;;) {
    v3 ^= m;
    v0 += v1;
    v1 = rotl(v1, 13) ^ v0;
    v0 = rotl(v0, 32);
    v2 += v3;
    v3 = rotl(v3, 16) ^ v2;
    v0 += v3;
    v3 = rotl(v3, 21) ^ v0;
    v2 += v1;
    v1 = rotl(v1, 17) ^ v2;
    v2 = rotl(v2, 32);
    v0 ^= m;
    if (at > whole) break;
    m = at == whole ? last : load<u64>(at);
    at += 8;
  }
  v2 ^= 0xee;
  for (let i = 0; i < 6; i++) {
    if (i == 3) {
      lo = v0 ^ v1 ^ v2 ^ v3;
      v1 ^= 0xdd;
    }
    v0 += v1;
    v1 = rotl(v1, 13) ^ v0;
    v0 = rotl(v0, 32);
    v2 += v3;
    v3 = rotl(v3, 16) ^ v2;
    v0 += v3;
    v3 = rotl(v3, 21) ^ v0;
    v2 += v1;
    v1 = rotl(v1, 17) ^ v2;
    v2 = rotl(v2, 32);
  }
  hi = v0 ^ v1 ^ v2 ^ v3;
}

export function prf(a: u64, b: u64, c: u64, bytes: usize, length: u32): void {
  start(a, b);
  finish(c, bytes, length);
}

/** Offset behind the cell, or why there is none. */
function skipCell(at: u32, end: u32): u32 {
  if (at >= end) return CUT;
  const type = load<u8>(at);
  at += 1;
  if (type == 1 || type == 2) at += 8;
  else if (type == 3 || type == 4) {
    let length: u64 = 0;
    for (let i = 0; ; i++) {
      if (at >= end) return CUT;
      if (i == 9) return WRONG;
      const byte = <u64>load<u8>(at);
      at += 1;
      length = (length << 7) | (byte & 0x7f);
      if (byte < 0x80) break;
    }
    if (length > 0x7fffffff) return WRONG;
    at += <u32>length;
  } else if (type != 0 && type != 5) return WRONG;
  return at > end ? CUT : at;
}

function cellStart(cell: u32): u32 {
  return load<u32>(offsets + ((<usize>cell) << 2));
}

/** Hash of the row's identity, from the key cells of the change whose offsets are known; false if one is absent. */
function rowHash(): bool {
  lo = tableLo;
  hi = tableHi;
  for (let column: u32 = 0; column < columnCount; column++) {
    if (load<u8>(flags + column) == 0) continue;
    const from = cellStart(column);
    if (load<u8>(from) == 0) return false;
    start(lo, hi);
    finish(load<u64>(ids + ((<usize>column) << 3)), from, cellStart(column + 1) - from);
  }
  return true;
}

/** Adds the hash of one cell to a bucket, or takes it away; NULL counts as nothing. */
function count(column: u32, cell: u32, bucket: usize, plus: bool): void {
  const from = cellStart(cell);
  if (load<u8>(from) == 5) return;
  finish(load<u64>(ids + ((<usize>column) << 3)), from, cellStart(cell + 1) - from);
  add(bucket, plus);
}

function add(bucket: usize, plus: bool): void {
  const at = bucket << 4;
  store<u64>(at, load<u64>(at) + (plus ? lo : 0 - lo));
  store<u64>(at + 8, load<u64>(at + 8) + (plus ? hi : 0 - hi));
}

function touch(bucket: usize): void {
  if (load<u8>(MARKS + bucket) != 0) return;
  store<u8>(MARKS + bucket, 1);
  store<u16>(TOUCHED + ((<usize>touched) << 1), <u16>bucket);
  touched += 1;
}

function countChange(op: u8): bool {
  if (!rowHash()) return false;
  const bucket = <usize>(lo & 1023);
  touch(bucket);
  const plus = op == INSERT;
  if (op != UPDATE) add(bucket, plus);
  start(lo, hi);
  for (let column: u32 = 0; column < columnCount; column++) {
    const isKey = load<u8>(flags + column) != 0;
    const old = load<u8>(cellStart(column));
    if (op != UPDATE) {
      if (old == 0) return false;
      if (!isKey) count(column, column, bucket, plus);
      continue;
    }
    const now = load<u8>(cellStart(column + columnCount));
    if (isKey ? now != 0 : (old == 0) != (now == 0)) return false;
    if (isKey || old == 0) continue;
    count(column, column, bucket, false);
    count(column, column + columnCount, bucket, true);
  }
  return true;
}

/** Counts whole changes between two addresses, up to the end, a table header, or a change that is not all there. */
export function walk(from: u32, end: u32): i32 {
  position = from;
  while (position < end) {
    const op = load<u8>(position);
    if (op == TABLE) return AT_TABLE;
    if ((op != INSERT && op != UPDATE && op != DELETE) || columnCount == 0) return INVALID;
    if (position + 2 > end) return INCOMPLETE;
    if (load<u8>(position + 1) > 1) return INVALID;
    const cells = op == UPDATE ? columnCount << 1 : columnCount;
    let at = position + 2;
    for (let cell: u32 = 0; cell < cells; cell++) {
      store<u32>(offsets + ((<usize>cell) << 2), at);
      at = skipCell(at, end);
      if (at == CUT) return INCOMPLETE;
      if (at == WRONG) return INVALID;
    }
    store<u32>(offsets + ((<usize>cells) << 2), at);
    if (!countChange(op)) return INVALID;
    position = at;
  }
  return DONE;
}

/** Empties the touched buckets and the list of them. */
export function clear(): void {
  for (let index: u32 = 0; index < touched; index++) {
    const bucket = <usize>load<u16>(TOUCHED + ((<usize>index) << 1));
    store<u8>(MARKS + bucket, 0);
    store<u64>(bucket << 4, 0);
    store<u64>((bucket << 4) + 8, 0);
  }
  touched = 0;
}
