/** What becomes of one transaction of a tail, given the rows as they are now: pure. `docs/rollback-files.md` has the table. */
import { RESULTS_TABLE } from '../../store/own-tables.ts';
import type { TableNames } from '../file/format.ts';
import { sameValue, type TailRow, type Values } from '../rows.ts';
import type { Conflict, ConflictKind, Policy } from './types.ts';

/** A row to be written: inserted whole, set in some columns, or deleted. */
export interface RowWrite {
  readonly table: string;
  readonly op: TailRow['op'];
  readonly key: Values;
  /** All columns of an insert, the changed ones of an update. */
  readonly set: Values;
}

/** The answer to a write with an id, as the tail had it. */
export interface Answer {
  readonly id: string;
  readonly result: Uint8Array;
}

export interface TransactionPlan {
  readonly writes: readonly RowWrite[];
  readonly conflicts: readonly Omit<Conflict, 'lsn' | 'tenant'>[];
  /** The policy leaves all of it out. */
  readonly skipped: boolean;
  readonly present: number;
  /** What triggers and foreign keys had made, and will make again. */
  readonly indirect: readonly RowWrite[];
  readonly derived: number;
}

export interface Present {
  /** The row with this key, undefined where there is none. */
  row(names: TableNames, key: Values): Values | undefined;
  /** The table as it is now. */
  table(name: string): TableNames | undefined;
}

/** The answers that a transaction leaves; they are no rows of the user. */
export function answersOf(rows: readonly TailRow[]): Answer[] {
  return rows.flatMap(({ table, op, new: values }) => {
    if (table !== RESULTS_TABLE || op !== 'insert') return [];
    // By place, since a file may lack the names of this table.
    const [id, result] = Object.values(values ?? {});
    return typeof id === 'string' && result instanceof Uint8Array ? [{ id, result }] : [];
  });
}

export function planTransaction(rows: readonly TailRow[], present: Present, policy: Policy): TransactionPlan {
  const writes: RowWrite[] = [];
  const conflicts: Omit<Conflict, 'lsn' | 'tenant'>[] = [];
  const indirect: RowWrite[] = [];
  const counts = { present: 0, derived: 0 };
  for (const row of rows) {
    if (row.table === RESULTS_TABLE) continue;
    const now = present.table(row.table);
    if (row.names?.type === 'shadow' || now?.type === 'shadow') counts.derived += 1;
    else if (row.indirect) indirect.push({ ...describe(row), set: row.new ?? {} });
    else {
      const found = look(row, now, present);
      if (found.kind === 'present') counts.present += 1;
      else if (found.kind === 'write') writes.push(found.write);
      else {
        const overwrite = policy === 'ours' ? overwriting(row, found.conflict) : undefined;
        if (overwrite !== undefined) writes.push(overwrite);
        conflicts.push({
          ...describe(row),
          kind: found.conflict,
          ...(found.row === undefined ? {} : { present: found.row }),
          resolution: policy === 'skip' ? 'skipped' : overwrite === undefined ? 'kept' : 'overwritten',
        });
      }
    }
  }
  const skipped = policy === 'skip' && conflicts.length > 0;
  return { writes: skipped ? [] : writes, conflicts, skipped, indirect, ...counts };
}

type Look =
  | { readonly kind: 'present' }
  | { readonly kind: 'write'; readonly write: RowWrite }
  | { readonly kind: 'conflict'; readonly conflict: ConflictKind; readonly row?: Values };

function look(row: TailRow, now: TableNames | undefined, present: Present): Look {
  const { table, op, key, names } = row;
  const [before, after] = [row.old ?? {}, row.new ?? {}];
  if (names === undefined || now === undefined || !fits(names, now)) return { kind: 'conflict', conflict: 'schema' };
  const found = present.row(names, key);
  const write: Look = { kind: 'write', write: { table, op, key, set: after } };
  switch (op) {
    case 'insert':
      if (found === undefined) return write;
      return holds(found, after) ? { kind: 'present' } : { kind: 'conflict', conflict: 'exists', row: found };
    case 'update':
      if (found === undefined) return { kind: 'conflict', conflict: 'missing' };
      if (holds(found, before)) return write;
      return holds(found, after) ? { kind: 'present' } : { kind: 'conflict', conflict: 'changed', row: found };
    case 'delete':
      if (found === undefined) return { kind: 'present' };
      return holds(found, before) ? write : { kind: 'conflict', conflict: 'changed', row: found };
    default:
      return op satisfies never;
  }
}

/** How a row in conflict becomes what the tail made of it; undefined where it cannot. */
function overwriting({ table, op, key, new: values = {} }: TailRow, conflict: ConflictKind): RowWrite | undefined {
  if (conflict === 'schema' || conflict === 'missing') return undefined;
  if (op === 'delete') return { table, op, key, set: {} };
  const set = Object.fromEntries(Object.entries(values).filter(([name]) => !Object.hasOwn(key, name)));
  return { table, op: 'update', key, set };
}

/** A table may have gained columns since. */
function fits(then: TableNames, now: TableNames): boolean {
  return (
    then.columns.every((column) => now.columns.includes(column)) &&
    then.keyColumns.length === now.keyColumns.length &&
    then.keyColumns.every((column) => now.keyColumns.includes(column))
  );
}

function holds(row: Values, values: Values): boolean {
  return Object.entries(values).every(([name, value]) => sameValue(value, row[name]));
}

function describe({
  table,
  op,
  key,
  old,
  new: values,
}: TailRow): Pick<Conflict, 'table' | 'op' | 'key' | 'old' | 'new'> {
  return { table, op, key, ...(old === undefined ? {} : { old }), ...(values === undefined ? {} : { new: values }) };
}
