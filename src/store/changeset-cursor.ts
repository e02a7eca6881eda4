/**
 * A walk over the bytes of an SQLite changeset without a single object per change or cell.
 *
 * The format: groups of `'T' columnCount:varint keyFlags[columnCount] name NUL`, each followed by changes
 * `op indirect cells`. A cell is a type byte and its payload. INSERT and DELETE have one cell per column. UPDATE has
 * twice as many: the old ones (key columns and changed columns), then the new ones (changed columns); what is not there
 * is the one byte 0.
 *
 * Every byte is checked before it is trusted: anything that SQLite's session extension would not have written ends in
 * `CHANGESET_INVALID` with the offset, never in another exception. A truncation between two changes cannot be seen from
 * the bytes; the CRC of the log record is what catches it.
 */
import { NostosError } from '../base/errors.ts';

export const OP_DELETE = 9;
export const OP_INSERT = 18;
export const OP_UPDATE = 23;

export const CELL_ABSENT = 0;
export const CELL_INTEGER = 1;
export const CELL_REAL = 2;
export const CELL_TEXT = 3;
export const CELL_BLOB = 4;
export const CELL_NULL = 5;

const TABLE = 0x54;
const PATCHSET_TABLE = 0x50;
/** SQLite's own limit in `sessionChangesetReadTblhdr`. */
const COLUMNS_MAX = 65_536;
const BYTES_MAX = 2 ** 31 - 1;

const utf8 = new TextDecoder('utf-8', { ignoreBOM: true });

/** Most names are short and ASCII, where setting up a decoder costs more than decoding. */
function decodeName(bytes: Uint8Array, start: number, end: number): string {
  let name = '';
  for (let at = start; at < end; at += 1) {
    const byte = bytes[at]!;
    if (byte >= 0x80 || at > start + 64) return utf8.decode(bytes.subarray(start, end));
    name += String.fromCharCode(byte);
  }
  return name;
}

export class ChangesetCursor {
  readonly bytes: Uint8Array;
  /** Of the current table group. */
  tableStart = 0;
  nameStart = 0;
  nameEnd = 0;
  keyFlagsStart = 0;
  columnCount = 0;
  /** Counts the groups seen so far, so that a change of table is one comparison. */
  tableOrdinal = 0;
  /** Of the current change. `end` is also where the next change or group starts. */
  start = 0;
  op = 0;
  end = 0;
  /**
   * Offsets of the current change's cells; cell `i` is `bytes[cellAt[i] .. cellAt[i + 1]]`. For an UPDATE, old cells are
   * `0 .. columnCount - 1`, new ones `columnCount .. 2 * columnCount - 1`. A plain array: a cursor is made for every
   * transaction, and a typed array costs more to make than a small changeset to walk.
   */
  readonly cellAt: number[] = [];
  #table: string | undefined;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
    if (bytes.length > BYTES_MAX) this.#fail(0, `is ${bytes.length} bytes long; at most ${BYTES_MAX} are read`);
  }

  /** Moves to the next change; false at the end. A group without changes is passed over. */
  next(): boolean {
    const { bytes } = this;
    let at = this.end;
    while (at < bytes.length) {
      const byte = bytes[at]!;
      if (byte === OP_INSERT || byte === OP_UPDATE || byte === OP_DELETE) {
        if (this.tableOrdinal === 0) this.#fail(at, 'starts with a change instead of a table');
        this.#readChange(at, byte);
        return true;
      }
      if (byte === PATCHSET_TABLE) this.#fail(at, 'is a patchset, which holds no old values');
      if (byte !== TABLE) this.#fail(at, `has ${byte} where a table or a change must start`);
      at = this.readTable(at);
      this.end = at;
    }
    return false;
  }

  get indirect(): boolean {
    return this.bytes[this.start + 1] !== 0;
  }

  /** Name of the current table; decoded once per group. */
  get table(): string {
    return (this.#table ??= decodeName(this.bytes, this.nameStart, this.nameEnd));
  }

  isKey(column: number): boolean {
    return this.bytes[this.keyFlagsStart + column] !== 0;
  }

  /** Bytes of the current group's header. */
  tableHeader(): Uint8Array {
    return this.bytes.subarray(this.tableStart, this.nameEnd + 1);
  }

  /** Reads the table header that starts here; answers where it ends. For walks that find the headers themselves. */
  readTable(start: number): number {
    const { bytes } = this;
    let at = start + 1;
    const columnCount = this.#varint(at);
    at += this.#varintLength(at);
    if (columnCount < 1 || columnCount > COLUMNS_MAX) this.#fail(start, `names a table of ${columnCount} columns`);
    if (at + columnCount > bytes.length) this.#fail(start, 'ends within the header of a table');
    let keys = 0;
    for (let column = 0; column < columnCount; column += 1) if (bytes[at + column] !== 0) keys += 1;
    if (keys === 0) this.#fail(start, 'names a table without a key column');
    const nameEnd = bytes.indexOf(0, at + columnCount);
    if (nameEnd < 0) this.#fail(start, 'ends within the name of a table');
    this.tableStart = start;
    this.keyFlagsStart = at;
    this.columnCount = columnCount;
    this.nameStart = at + columnCount;
    this.nameEnd = nameEnd;
    this.tableOrdinal += 1;
    this.#table = undefined;
    return nameEnd + 1;
  }

  #readChange(start: number, op: number): void {
    const { bytes, columnCount, cellAt } = this;
    const cells = op === OP_UPDATE ? 2 * columnCount : columnCount;
    if (start + 2 > bytes.length) this.#fail(start, 'ends within a change');
    if (bytes[start + 1]! > 1)
      this.#fail(start + 1, `has ${bytes[start + 1]} where 0 or 1 says whether it is indirect`);
    let at = start + 2;
    for (let cell = 0; cell < cells; cell += 1) {
      cellAt[cell] = at;
      at = this.#skipCell(at);
    }
    cellAt[cells] = at;
    this.start = start;
    this.op = op;
    this.end = at;
    if (op === OP_UPDATE) this.#checkUpdate();
    else this.#checkWhole();
  }

  #skipCell(at: number): number {
    const { bytes } = this;
    let end = at + 1;
    switch (bytes[at]) {
      case CELL_ABSENT:
      case CELL_NULL:
        return end;
      case CELL_INTEGER:
      case CELL_REAL:
        end += 8;
        break;
      case CELL_TEXT:
      case CELL_BLOB: {
        const first = bytes[end];
        if (first !== undefined && first < 0x80) end += 1 + first;
        else end += this.#varintLength(end) + this.#varint(end);
        break;
      }
      case undefined:
        return this.#fail(at, 'ends within a change');
      default:
        return this.#fail(at, `has a cell of the unknown type ${bytes[at]}`);
    }
    if (end > bytes.length) this.#fail(at, 'ends within a cell');
    return end;
  }

  #checkWhole(): void {
    const { bytes, columnCount, cellAt } = this;
    for (let column = 0; column < columnCount; column += 1)
      if (bytes[cellAt[column]!] === CELL_ABSENT) this.#fail(cellAt[column]!, `lacks the value of column ${column}`);
  }

  #checkUpdate(): void {
    const { bytes, columnCount, cellAt } = this;
    for (let column = 0; column < columnCount; column += 1) {
      const hasOld = bytes[cellAt[column]!] !== CELL_ABSENT;
      const hasNew = bytes[cellAt[column + columnCount]!] !== CELL_ABSENT;
      if (this.isKey(column)) {
        if (!hasOld) this.#fail(cellAt[column]!, `lacks the value of key column ${column}`);
        if (hasNew) this.#fail(cellAt[column + columnCount]!, `changes key column ${column} in an UPDATE`);
      } else if (hasOld !== hasNew) {
        this.#fail(cellAt[column]!, `has just one of the old and new values of column ${column}`);
      }
    }
  }

  /** Big-endian groups of seven bits, at most nine bytes, the ninth with eight; here never above 2^31 - 1. */
  #varint(start: number): number {
    const length = this.#varintLength(start);
    let value = 0;
    for (let index = 0; index < length; index += 1) {
      const byte = this.bytes[start + index]!;
      value = index === 8 ? value * 256 + byte : value * 128 + (byte & 0x7f);
    }
    if (value > BYTES_MAX) this.#fail(start, `has the length ${value}`);
    return value;
  }

  #varintLength(start: number): number {
    for (let length = 1; length <= 9; length += 1) {
      const byte = this.bytes[start + length - 1];
      if (byte === undefined) this.#fail(start, 'ends within a length');
      if (byte < 0x80 || length === 9) return length;
    }
    return this.#fail(start, 'has an endless length');
  }

  #fail(offset: number, what: string): never {
    throw new NostosError('CHANGESET_INVALID', `the changeset ${what} (offset ${offset} of ${this.bytes.length})`, {
      details: { offset, length: this.bytes.length },
    });
  }
}
