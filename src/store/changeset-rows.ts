/**
 * The rows of a changeset as JavaScript values, for change feeds. This direction only: values never become a changeset
 * again, since they do not carry everything that the bytes do (see `changeset.ts`).
 */
import { NostosError } from '../base/errors.ts';
import {
  CELL_ABSENT,
  CELL_BLOB,
  CELL_INTEGER,
  CELL_REAL,
  CELL_TEXT,
  ChangesetCursor,
  OP_DELETE,
  OP_INSERT,
  OP_UPDATE,
} from './changeset-cursor.ts';
import type { ChangeOp } from './changeset.ts';

export type ChangeValue = null | number | bigint | string | Uint8Array;

export interface ChangeRow {
  readonly table: string;
  readonly op: ChangeOp;
  readonly key: Readonly<Record<string, ChangeValue>>;
  /** Whole row for a delete, changed columns for an update. */
  readonly old?: Readonly<Record<string, ChangeValue>>;
  /** Whole row for an insert, changed columns for an update. */
  readonly new?: Readonly<Record<string, ChangeValue>>;
}

export interface ChangesetRowsOptions {
  /** `number` refuses an integer beyond 2^53 with `INTEGER_OUT_OF_RANGE`; `bigint` gives every integer as a bigint. */
  readonly int64?: 'number' | 'bigint';
}

type Columns = (table: string) => readonly string[];

const utf8 = new TextDecoder('utf-8', { ignoreBOM: true });

class RowReader {
  readonly #cursor: ChangesetCursor;
  readonly #view: DataView;
  readonly #bigint: boolean;

  constructor(cursor: ChangesetCursor, bigint: boolean) {
    this.#cursor = cursor;
    this.#view = new DataView(cursor.bytes.buffer, cursor.bytes.byteOffset, cursor.bytes.byteLength);
    this.#bigint = bigint;
  }

  /** Values of the cells from `first` on by column name, absent ones left out. */
  read(names: readonly string[], first: number, keysOnly: boolean): Record<string, ChangeValue> {
    const { columnCount, cellAt, bytes } = this.#cursor;
    const row: Record<string, ChangeValue> = {};
    for (let column = 0; column < columnCount; column += 1) {
      const start = cellAt[first + column]!;
      if (bytes[start] === CELL_ABSENT || (keysOnly && !this.#cursor.isKey(column))) continue;
      const value = this.#value(start, cellAt[first + column + 1]!);
      // `row.__proto__ = …` would set the prototype instead of the column.
      if (names[column] === '__proto__') Object.defineProperty(row, '__proto__', { value, enumerable: true });
      else row[names[column]!] = value;
    }
    return row;
  }

  changedColumns(names: readonly string[], first: number): Record<string, ChangeValue> {
    const row = this.read(names, first, false);
    if (first === 0)
      for (let column = 0; column < this.#cursor.columnCount; column += 1)
        if (this.#cursor.isKey(column)) delete row[names[column]!];
    return row;
  }

  #value(start: number, end: number): ChangeValue {
    const { bytes } = this.#cursor;
    switch (bytes[start]) {
      case CELL_INTEGER:
        return this.#integer(this.#view.getBigInt64(start + 1));
      case CELL_REAL:
        return this.#view.getFloat64(start + 1);
      case CELL_TEXT:
        return utf8.decode(bytes.subarray(this.#payload(start), end));
      case CELL_BLOB:
        // Copied: `slice` of a Buffer is a view, which would keep a page of the log and change with it.
        return new Uint8Array(bytes.subarray(this.#payload(start), end));
      default:
        return null;
    }
  }

  #payload(start: number): number {
    let at = start + 1;
    while (this.#cursor.bytes[at]! >= 0x80 && at < start + 9) at += 1;
    return at + 1;
  }

  #integer(value: bigint): number | bigint {
    if (this.#bigint) return value;
    const number = Number(value);
    if (Number.isSafeInteger(number)) return number;
    throw new NostosError(
      'INTEGER_OUT_OF_RANGE',
      `table ${this.#cursor.table} holds ${value}, which a JavaScript number cannot; read with int64: 'bigint'`,
      { details: { table: this.#cursor.table, value: String(value) } },
    );
  }
}

/** Row changes in the order of the changeset. `columns` gives the names in the order of the table. */
export function* changesetRows(
  bytes: Uint8Array,
  columns: Columns,
  options: ChangesetRowsOptions = {},
): Generator<ChangeRow, void, undefined> {
  const cursor = new ChangesetCursor(bytes);
  const reader = new RowReader(cursor, options.int64 === 'bigint');
  let names: readonly string[] = [];
  let ordinal = 0;
  while (cursor.next()) {
    if (cursor.tableOrdinal !== ordinal) {
      ordinal = cursor.tableOrdinal;
      names = columnNames(cursor, columns);
    }
    yield currentRow(cursor, reader, names);
  }
}

function columnNames(cursor: ChangesetCursor, columns: Columns): readonly string[] {
  const names = columns(cursor.table);
  // A table may have gained columns since; it never lost one without a schema record in between.
  if (names.length >= cursor.columnCount) return names;
  throw new NostosError(
    'CHANGESET_INVALID',
    `the changeset has ${cursor.columnCount} columns for table ${cursor.table}, the schema has ${names.length}`,
    { details: { offset: cursor.tableStart, table: cursor.table } },
  );
}

function currentRow(cursor: ChangesetCursor, reader: RowReader, names: readonly string[]): ChangeRow {
  const { table, op, columnCount } = cursor;
  const key = reader.read(names, 0, true);
  switch (op) {
    case OP_INSERT:
      return { table, op: 'insert', key, new: reader.read(names, 0, false) };
    case OP_DELETE:
      return { table, op: 'delete', key, old: reader.read(names, 0, false) };
    case OP_UPDATE:
    default:
      return {
        table,
        op: 'update',
        key,
        old: reader.changedColumns(names, 0),
        new: reader.changedColumns(names, columnCount),
      };
  }
}
