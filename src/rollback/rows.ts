/**
 * The rows of a changeset with the names that the file has for them. Values keep what SQLite had: an INTEGER is a bigint, a
 * REAL a number, so that they can be written again as they were.
 */
import {
  CELL_ABSENT,
  CELL_BLOB,
  CELL_INTEGER,
  CELL_REAL,
  CELL_TEXT,
  ChangesetCursor,
  OP_DELETE,
  OP_INSERT,
} from '../store/changeset-cursor.ts';
import type { ChangeOp } from '../store/changeset.ts';
import type { TableNames } from './file/format.ts';

/** Text that is not UTF-8. */
export interface RawText {
  readonly text: Uint8Array;
}

export type Value = null | bigint | number | string | Uint8Array | RawText;
export type Values = Readonly<Record<string, Value>>;

export interface TailRow {
  readonly table: string;
  readonly op: ChangeOp;
  /** Made by a trigger or a foreign key action. */
  readonly indirect: boolean;
  /** Undefined where the file does not know the table: columns are called `column1`, `column2`, … then. */
  readonly names: TableNames | undefined;
  readonly key: Values;
  /** All columns of a deleted row, the changed ones of an updated row. */
  readonly old: Values | undefined;
  /** All columns of an inserted row, the changed ones of an updated row. */
  readonly new: Values | undefined;
}

const utf8 = new TextDecoder('utf-8', { ignoreBOM: true, fatal: true });

export function* rowsOf(changeset: Uint8Array, tables: readonly TableNames[]): Generator<TailRow, void, undefined> {
  const cursor = new ChangesetCursor(changeset);
  const view = new DataView(changeset.buffer, changeset.byteOffset, changeset.byteLength);
  let ordinal = 0;
  let names: TableNames | undefined;
  let columns: readonly string[] = [];
  while (cursor.next()) {
    const { table, op, columnCount } = cursor;
    if (cursor.tableOrdinal !== ordinal) {
      ordinal = cursor.tableOrdinal;
      // A table may have gained columns since; it never lost one within a schema version.
      names = tables.find(({ name, columns }) => name === table && columns.length >= columnCount);
      columns = names?.columns ?? Array.from({ length: columnCount }, (_, i) => `column${i + 1}`);
    }
    const read = (first: number, which: (column: number) => boolean): Values => {
      // Columns may have any name, `__proto__` too.
      const entries: [string, Value][] = [];
      for (let column = 0; column < columnCount; column += 1) {
        const start = cursor.cellAt[first + column]!;
        if (changeset[start] !== CELL_ABSENT && which(column))
          entries.push([columns[column]!, valueAt(changeset, view, start, cursor.cellAt[first + column + 1]!)]);
      }
      return Object.fromEntries(entries);
    };
    const all = (): boolean => true;
    const isKey = (column: number): boolean => cursor.isKey(column);
    const isOther = (column: number): boolean => !cursor.isKey(column);
    const row = { table, indirect: cursor.indirect, names, key: read(0, isKey) };
    if (op === OP_INSERT) yield { ...row, op: 'insert', old: undefined, new: read(0, all) };
    else if (op === OP_DELETE) yield { ...row, op: 'delete', old: read(0, all), new: undefined };
    else yield { ...row, op: 'update', old: read(0, isOther), new: read(columnCount, isOther) };
  }
}

function valueAt(bytes: Uint8Array, view: DataView, start: number, end: number): Value {
  switch (bytes[start]) {
    case CELL_INTEGER:
      return view.getBigInt64(start + 1);
    case CELL_REAL:
      return view.getFloat64(start + 1);
    case CELL_TEXT:
      return textOf(bytes.subarray(payloadAt(bytes, start), end));
    case CELL_BLOB:
      // Copied: `slice` of a Buffer is a view, and the reader uses its memory again.
      return new Uint8Array(bytes.subarray(payloadAt(bytes, start), end));
    default:
      return null;
  }
}

function textOf(bytes: Uint8Array): string | RawText {
  try {
    return utf8.decode(bytes);
  } catch {
    return { text: new Uint8Array(bytes) };
  }
}

/** Behind the length, whose last byte is the first one below 128, or the ninth. */
function payloadAt(bytes: Uint8Array, start: number): number {
  let at = start + 1;
  while (bytes[at]! >= 0x80 && at < start + 9) at += 1;
  return at + 1;
}

export function isRawText(value: Value): value is RawText {
  return typeof value === 'object' && value !== null && !(value instanceof Uint8Array);
}

/** `present` as SQLite hands it out, which replaces what is not UTF-8 in a text. */
export function sameValue(a: Value, present: Value | undefined): boolean {
  if (a instanceof Uint8Array) return present instanceof Uint8Array && Buffer.compare(a, present) === 0;
  if (isRawText(a)) return Buffer.from(a.text).toString() === present;
  return a === present;
}
