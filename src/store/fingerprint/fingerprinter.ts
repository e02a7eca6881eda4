/**
 * Turns changesets into fingerprints with the WASM kernel (`assembly/kernel.ts` says what exactly is summed).
 *
 * The kernel sees the changeset through a window of its memory, which moves over it at change boundaries: memory is
 * bounded by the window and the largest single change, not by the changeset. What `delta` adds to `into` is all of a
 * changeset or, if the bytes are not one, nothing.
 */
import { NostosError } from '../../base/errors.ts';
import { DEFAULT_LIMITS } from '../../base/limits.ts';
import { ChangesetCursor } from '../changeset-cursor.ts';
import { type Fingerprint } from './fingerprint.ts';
import { KERNEL_WASM_BASE64 } from './kernel.wasm.ts';

interface Kernel {
  readonly memory: { readonly buffer: ArrayBuffer; grow(pages: number): number };
  readonly lo: { readonly value: bigint };
  readonly hi: { readonly value: bigint };
  readonly position: { readonly value: number };
  readonly touched: { readonly value: number };
  setKey(a: bigint, b: bigint): void;
  setTable(a: bigint, b: bigint, count: number, columns: number): void;
  prf(a: bigint, b: bigint, c: bigint, bytes: number, length: number): void;
  walk(from: number, end: number): number;
  clear(): void;
}

interface TableHashes {
  readonly names: readonly string[];
  readonly lo: bigint;
  readonly hi: bigint;
  /** Little-endian, eight bytes per column. */
  readonly columnIds: Uint8Array;
}

/** Names of a table's columns in the order of its changesets. */
export type ColumnNames = (table: string) => readonly string[];

export const FINGERPRINT_KEY_BYTES = 16;

const PAGE_BYTES = 65_536;
const TOUCHED_AT = 17_408;
const NAME_AT = 19_456;
const COLUMNS_AT = 32_768;
/** The kernel reads eight bytes at a time and may look past the last cell. */
const SPARE_BYTES = 8;
const WINDOW_BYTES = 512 * 1024;
const WINDOW_BYTES_MAX = DEFAULT_LIMITS.recordBytesMax;
const COLUMNS_MIN = 64;
/** A cached table costs a few hundred bytes; schemas with more tables than this only lose the cache. */
const TABLES_CACHED_MAX = 4_096;

const [AT_TABLE, INCOMPLETE, INVALID] = [1, 2, 3];

/** What is used of the WebAssembly API, which Node has without the types of the DOM. */
declare const WebAssembly: {
  readonly Module: new (bytes: Uint8Array) => object;
  readonly Instance: new (module: object) => { readonly exports: unknown };
};

let compiled: object | undefined;

function instantiate(): Kernel {
  compiled ??= new WebAssembly.Module(Buffer.from(KERNEL_WASM_BASE64, 'base64'));
  return new WebAssembly.Instance(compiled).exports as Kernel;
}

const utf8 = new TextEncoder();

/** An instance of the kernel with views of its memory. */
class KernelMemory {
  readonly kernel = instantiate();
  memory!: Uint8Array;
  buckets!: Uint32Array;
  touched!: Uint16Array;
  columnsMax = COLUMNS_MIN;

  constructor() {
    this.#view();
  }

  reserve(end: number): void {
    const missing = end + SPARE_BYTES - this.memory.length;
    if (missing <= 0) return;
    this.kernel.memory.grow(Math.ceil(missing / PAGE_BYTES));
    this.#view();
  }

  #view(): void {
    const { buffer } = this.kernel.memory;
    this.memory = new Uint8Array(buffer);
    this.buckets = new Uint32Array(buffer, 0, TOUCHED_AT / 4);
    this.touched = new Uint16Array(buffer, TOUCHED_AT, 1024);
  }
}

/** One for all tenants of a thread, since a walk is never interrupted: an instance each would be 100 KiB each. */
let shared: KernelMemory | undefined;

export class Fingerprinter {
  readonly #key: readonly [bigint, bigint];
  readonly #tables = new Map<string, TableHashes>();
  #shared!: KernelMemory;

  constructor(key: Uint8Array) {
    if (key.length !== FINGERPRINT_KEY_BYTES)
      throw new NostosError(
        'INVALID_ARGUMENT',
        `a fingerprint key has ${FINGERPRINT_KEY_BYTES} bytes, got ${key.length}`,
      );
    const view = new DataView(key.buffer, key.byteOffset, key.byteLength);
    this.#key = [view.getBigUint64(0, true), view.getBigUint64(8, true)];
  }

  /** Adds to `into` what the changeset changes: the hashes of new cells, minus those of old ones. */
  delta(changeset: Uint8Array, columnNames: ColumnNames, into: Fingerprint): void {
    if (changeset.length === 0) return;
    this.#shared = shared ??= new KernelMemory();
    const { kernel } = this.#shared;
    kernel.setKey(...this.#key);
    try {
      this.#walk(changeset, columnNames);
      const { buckets, touched } = this.#shared;
      const count = kernel.touched.value;
      for (let index = 0; index < count; index += 1) into.addBucket(buckets, touched[index]!);
    } finally {
      kernel.clear();
      // WASM memory never shrinks; a new instance gives back what one large change took.
      if (this.#shared.memory.length > 4 * WINDOW_BYTES) shared = undefined;
    }
  }

  #walk(changeset: Uint8Array, columnNames: ColumnNames): void {
    const cursor = new ChangesetCursor(changeset);
    const { kernel } = this.#shared;
    kernel.setTable(0n, 0n, 0, COLUMNS_AT);
    let at = 0;
    let window = WINDOW_BYTES;
    while (at < changeset.length) {
      const start = this.#windowStart();
      const loaded = Math.min(window, changeset.length - at);
      this.#shared.reserve(start + loaded);
      this.#shared.memory.set(changeset.subarray(at, at + loaded), start);
      // Within the window until it is used up, or has to be laid out anew for a table of more columns.
      let next = start;
      let status = kernel.walk(next, start + loaded);
      while (status === AT_TABLE) {
        const header = at + kernel.position.value - start;
        next = start + cursor.readTable(header) - at;
        this.#setTable(cursor, columnNames);
        if (next > start + loaded || this.#windowStart() !== start) break;
        status = kernel.walk(next, start + loaded);
      }
      if (status === INVALID) refuse(changeset, at + kernel.position.value - start);
      if (status !== AT_TABLE) next = kernel.position.value;
      if (status === INCOMPLETE && next === start) window = widen(window, changeset, at);
      at += next - start;
    }
  }

  #setTable(cursor: ChangesetCursor, columnNames: ColumnNames): void {
    const { table, columnCount } = cursor;
    const hashes = this.#tableHashes(table, columnNames(table));
    if (hashes.names.length < columnCount)
      throw new NostosError(
        'CHANGESET_INVALID',
        `the changeset has ${columnCount} columns for table ${table}, the schema has ${hashes.names.length}`,
        { details: { offset: cursor.tableStart, table } },
      );
    const { kernel } = this.#shared;
    if (columnCount > this.#shared.columnsMax) this.#shared.columnsMax = 2 ** Math.ceil(Math.log2(columnCount));
    this.#shared.reserve(this.#windowStart());
    this.#shared.memory.set(hashes.columnIds.subarray(0, 8 * columnCount), COLUMNS_AT);
    this.#shared.memory.set(
      cursor.bytes.subarray(cursor.keyFlagsStart, cursor.keyFlagsStart + columnCount),
      COLUMNS_AT + 8 * columnCount,
    );
    kernel.setTable(hashes.lo, hashes.hi, columnCount, COLUMNS_AT);
  }

  #tableHashes(table: string, names: readonly string[]): TableHashes {
    const known = this.#tables.get(table);
    if (known !== undefined && sameNames(known.names, names)) return known;
    const [lo, hi] = this.#prf(0n, 0n, 1n, table);
    const columnIds = new Uint8Array(8 * names.length);
    const view = new DataView(columnIds.buffer);
    for (const [column, name] of names.entries()) view.setBigUint64(8 * column, this.#prf(lo, hi, 2n, name)[0], true);
    const hashes = { names, lo, hi, columnIds };
    if (this.#tables.size >= TABLES_CACHED_MAX) this.#tables.clear();
    this.#tables.set(table, hashes);
    return hashes;
  }

  /** Hash of a name. The window is in use meanwhile, so the name goes where it is not. */
  #prf(a: bigint, b: bigint, c: bigint, name: string): readonly [bigint, bigint] {
    const bytes = utf8.encode(name);
    const { kernel } = this.#shared;
    const at = bytes.length <= COLUMNS_AT - NAME_AT - SPARE_BYTES ? NAME_AT : this.#shared.memory.length;
    this.#shared.reserve(at + bytes.length);
    this.#shared.memory.set(bytes, at);
    kernel.prf(a, b, c, at, bytes.length);
    return [BigInt.asUintN(64, kernel.lo.value), BigInt.asUintN(64, kernel.hi.value)];
  }

  /** Behind ids (8 bytes), key flags (1) and offsets of old and new cells (2 x 4) of each column, and some. */
  #windowStart(): number {
    return COLUMNS_AT + 17 * this.#shared.columnsMax + 16;
  }
}

function sameNames(a: readonly string[], b: readonly string[]): boolean {
  return a === b || (a.length === b.length && a.every((name, column) => name === b[column]));
}

function widen(window: number, changeset: Uint8Array, at: number): number {
  if (window >= changeset.length - at) refuse(changeset, at);
  if (window >= WINDOW_BYTES_MAX)
    throw new NostosError(
      'TRANSACTION_TOO_LARGE',
      `one change (offset ${at} of ${changeset.length}) is larger than the ${WINDOW_BYTES_MAX} bytes of a record`,
      { details: { offset: at, limit: 'recordBytesMax' } },
    );
  return Math.min(2 * window, WINDOW_BYTES_MAX);
}

/** Lets the strict walk say what is wrong. */
function refuse(changeset: Uint8Array, offset: number): never {
  const cursor = new ChangesetCursor(changeset);
  while (cursor.next());
  throw new NostosError('CHANGESET_INVALID', `the changeset cannot be read at offset ${offset}`, {
    details: { offset },
  });
}
