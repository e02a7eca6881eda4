/**
 * Changesets as the history of a tenant: read, written, inverted, joined, filtered, on raw bytes.
 *
 * Cells stay the bytes that SQLite wrote. As JavaScript values they would not survive: `5` binds as REAL, integers above
 * 2^53 lose digits, invalid UTF-8 is replaced. Whatever is undone or sent on is therefore exact.
 *
 * The inverse of a changeset holds for what one session captured, where each row occurs once. Several changesets are
 * inverted by `invertAll`, which also turns their order around.
 */
import { NostosError } from '../base/errors.ts';
import { CELL_ABSENT, ChangesetCursor, OP_DELETE, OP_INSERT, OP_UPDATE } from './changeset-cursor.ts';

/** The bytes of one value: type byte, then payload. A view into the changeset, valid as long as that is. */
export type CellView = Uint8Array;

export type ChangeOp = 'insert' | 'update' | 'delete';

export interface Change {
  readonly op: ChangeOp;
  /** Made by a trigger or a foreign key action instead of the statement itself. */
  readonly indirect: boolean;
  /** One cell per column, empty for an insert; of an update only key and changed columns are there. */
  readonly old: readonly (CellView | undefined)[];
  /** One cell per column, empty for a delete; of an update only changed columns are there. */
  readonly new: readonly (CellView | undefined)[];
}

export interface TableGroup {
  readonly table: string;
  /** The name as it stands in the bytes, which need not be valid UTF-8. */
  readonly tableBytes: Uint8Array;
  readonly columnCount: number;
  /** Per column 0, or the column's place in the primary key from 1. */
  readonly keyFlags: Uint8Array;
  readonly changes: readonly Change[];
}

export type Changeset = readonly TableGroup[];

const OP_NAMES: Readonly<Record<number, ChangeOp>> = {
  [OP_INSERT]: 'insert',
  [OP_UPDATE]: 'update',
  [OP_DELETE]: 'delete',
};
const OP_CODES: Readonly<Record<ChangeOp, number>> = { insert: OP_INSERT, update: OP_UPDATE, delete: OP_DELETE };

function cells(cursor: ChangesetCursor, from: number): (CellView | undefined)[] {
  const views: (CellView | undefined)[] = [];
  for (let cell = from; cell < from + cursor.columnCount; cell += 1) {
    const view = cursor.bytes.subarray(cursor.cellAt[cell], cursor.cellAt[cell + 1]);
    views.push(view[0] === CELL_ABSENT ? undefined : view);
  }
  return views;
}

function currentChange(cursor: ChangesetCursor): Change {
  const { op, indirect } = cursor;
  return {
    op: OP_NAMES[op]!,
    indirect,
    old: op === OP_INSERT ? [] : cells(cursor, 0),
    new: op === OP_DELETE ? [] : cells(cursor, op === OP_UPDATE ? cursor.columnCount : 0),
  };
}

/** The whole changeset as objects: for tools and tests. Paths that run per transaction use `ChangesetCursor`. */
export function parseChangeset(bytes: Uint8Array): Changeset {
  const groups: (TableGroup & { changes: Change[] })[] = [];
  const cursor = new ChangesetCursor(bytes);
  let ordinal = 0;
  while (cursor.next()) {
    if (cursor.tableOrdinal !== ordinal) {
      ordinal = cursor.tableOrdinal;
      groups.push({
        table: cursor.table,
        tableBytes: bytes.subarray(cursor.nameStart, cursor.nameEnd),
        columnCount: cursor.columnCount,
        keyFlags: bytes.subarray(cursor.keyFlagsStart, cursor.keyFlagsStart + cursor.columnCount),
        changes: [],
      });
    }
    groups.at(-1)!.changes.push(currentChange(cursor));
  }
  return groups;
}

function varint(value: number): number[] {
  const result = [value & 0x7f];
  for (let rest = Math.floor(value / 128); rest > 0; rest = Math.floor(rest / 128))
    result.unshift((rest & 0x7f) | 0x80);
  return result;
}

const ABSENT = Uint8Array.of(CELL_ABSENT);

/** The bytes of a parsed changeset; what `parseChangeset` read comes out as it was. */
export function encodeChangeset(changeset: Iterable<TableGroup>): Uint8Array {
  const parts: Uint8Array[] = [];
  for (const group of changeset) {
    parts.push(Uint8Array.of(0x54, ...varint(group.columnCount)), group.keyFlags, group.tableBytes, Uint8Array.of(0));
    for (const change of group.changes) {
      parts.push(Uint8Array.of(OP_CODES[change.op], change.indirect ? 1 : 0));
      for (const cell of change.old) parts.push(cell ?? ABSENT);
      for (const cell of change.new) parts.push(cell ?? ABSENT);
    }
  }
  return concatChangesets(parts);
}

/** One buffer of all changesets in order, which SQLite applies ten times faster than one by one. */
export function concatChangesets(list: readonly Uint8Array[]): Uint8Array {
  let length = 0;
  for (const bytes of list) length += bytes.length;
  const result = new Uint8Array(length);
  let at = 0;
  for (const bytes of list) {
    result.set(bytes, at);
    at += bytes.length;
  }
  return result;
}

/** Writes the inverse of `bytes`, which has the same length, at `at`. */
function invertInto(bytes: Uint8Array, target: Uint8Array, at: number): void {
  target.set(bytes, at);
  const cursor = new ChangesetCursor(bytes);
  while (cursor.next()) {
    if (cursor.op === OP_INSERT) target[at + cursor.start] = OP_DELETE;
    else if (cursor.op === OP_DELETE) target[at + cursor.start] = OP_INSERT;
    else swapUpdate(cursor, target, at);
  }
}

/** Old and new change places, except in key columns, whose values stay in old. */
function swapUpdate(cursor: ChangesetCursor, target: Uint8Array, base: number): void {
  const { bytes, cellAt, columnCount } = cursor;
  let at = base + cursor.start + 2;
  for (let cell = 0; cell < 2 * columnCount; cell += 1) {
    const column = cell % columnCount;
    const source = cursor.isKey(column) ? cell : (cell + columnCount) % (2 * columnCount);
    const end = cellAt[source + 1]!;
    for (let from = cellAt[source]!; from < end; from += 1) target[at++] = bytes[from]!;
  }
}

/** What undoes the changes of one session. */
export function invertChangeset(bytes: Uint8Array): Uint8Array {
  const result = new Uint8Array(bytes.length);
  invertInto(bytes, result, 0);
  return result;
}

/** What undoes each of them, the last one first; views of one buffer, which is the answer's first part. */
export function invertEach(changesets: readonly Uint8Array[]): { bytes: Uint8Array; inverses: Uint8Array[] } {
  const bytes = invertAll(changesets);
  let at = 0;
  const inverses = changesets.toReversed().map(({ length }) => bytes.subarray(at, (at += length)));
  return { bytes, inverses };
}

/** What undoes a history: the inverses of changesets that are given in the order in which they happened. */
export function invertAll(changesets: readonly Uint8Array[]): Uint8Array {
  let end = 0;
  for (const bytes of changesets) end += bytes.length;
  const result = new Uint8Array(end);
  for (const bytes of changesets) {
    end -= bytes.length;
    invertInto(bytes, result, end);
  }
  return result;
}

interface TableSpan {
  readonly table: string;
  /** From its header to the next one. */
  readonly bytes: Uint8Array;
  readonly headerBytes: number;
}

/** The parts of a changeset, each with its header and the changes of one table. */
function tableSpans(bytes: Uint8Array): TableSpan[] {
  const spans: TableSpan[] = [];
  const cursor = new ChangesetCursor(bytes);
  let open: { table: string; start: number; headerBytes: number } | undefined;
  const close = (end: number): void => {
    if (open === undefined) return;
    const { table, start, headerBytes } = open;
    spans.push({ table, bytes: bytes.subarray(start, end), headerBytes });
  };
  for (let ordinal = 0; cursor.next();) {
    if (cursor.tableOrdinal === ordinal) continue;
    ordinal = cursor.tableOrdinal;
    close(cursor.tableStart);
    open = { table: cursor.table, start: cursor.tableStart, headerBytes: cursor.start - cursor.tableStart };
  }
  close(bytes.length);
  return spans;
}

/**
 * All changes in one changeset with one header for each table. For each header SQLite prepares statements anew, which
 * costs it more than the few changes behind it. Changes of one table keep their order, and rows of different tables do
 * not depend on each other where foreign keys are not enforced.
 */
export function concatByTable(list: readonly Uint8Array[]): Uint8Array {
  if (list.length === 1) return list[0]!;
  const parts = new Map<string, Uint8Array[]>();
  for (const changeset of list)
    for (const { table, bytes, headerBytes } of tableSpans(changeset)) {
      const known = parts.get(table);
      if (known === undefined) parts.set(table, [bytes]);
      else known.push(bytes.subarray(headerBytes));
    }
  return concatChangesets([...parts.values()].flat());
}

/** The changeset without the tables that `strip` names; the very same bytes where there is nothing to strip. */
export function stripTables(bytes: Uint8Array, strip: (table: string) => boolean): Uint8Array {
  const spans = tableSpans(bytes);
  const kept = spans.filter(({ table }) => !strip(table));
  return kept.length === spans.length ? bytes : concatChangesets(kept.map((span) => span.bytes));
}

/** Names of the tables that change, each once, in the order of their first change. */
export function touchedTables(bytes: Uint8Array): string[] {
  return [...new Set(tableSpans(bytes).map(({ table }) => table))];
}

export function countChanges(bytes: Uint8Array): number {
  const cursor = new ChangesetCursor(bytes);
  let count = 0;
  while (cursor.next()) count += 1;
  return count;
}

/** Throws `CHANGESET_INVALID` unless the bytes are a changeset. */
export function assertChangeset(bytes: unknown): asserts bytes is Uint8Array {
  if (!(bytes instanceof Uint8Array))
    throw new NostosError('CHANGESET_INVALID', `a changeset is a Uint8Array, got ${typeof bytes}`);
  countChanges(bytes);
}

export { changesetRows, type ChangeRow, type ChangeValue, type ChangesetRowsOptions } from './changeset-rows.ts';
