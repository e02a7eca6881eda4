/** Compares two SQLite files cell by cell, with nothing of Nostos in between. */
import { DatabaseSync, type SQLOutputValue } from 'node:sqlite';

export interface TableComparison {
  readonly table: string;
  readonly rows: number;
  /** Rows that are missing, too many, or differ in a cell. */
  readonly differences: number;
}

export interface Comparison {
  readonly tables: readonly TableComparison[];
  readonly rows: number;
  readonly cells: number;
  readonly differences: number;
}

interface TableShape {
  readonly name: string;
  readonly columns: readonly string[];
  readonly orderBy: string;
}

const quote = (name: string): string => `"${name.replaceAll('"', '""')}"`;

/** Ordinary and virtual tables; the shadow tables of virtual ones depend on the order of writes. */
function tablesOf(db: DatabaseSync): TableShape[] {
  const names = db
    .prepare(`select name, type from pragma_table_list where schema = 'main' and type in ('table', 'virtual')`)
    .all() as { name: string; type: string }[];
  return names
    .filter(({ name }) => !/^(?:sqlite|nostos)_/i.test(name))
    .map(({ name, type }) => {
      const columns = db.prepare('select name, pk from pragma_table_xinfo(?) where hidden <> 1').all(name) as {
        name: string;
        pk: number;
      }[];
      const key = columns.filter(({ pk }) => pk > 0).toSorted((a, b) => a.pk - b.pk);
      const order = (key.length > 0 ? key : columns).map((column) => quote(column.name));
      return {
        name,
        columns: columns.map((column) => column.name),
        orderBy: type === 'virtual' ? 'rowid' : order.join(', '),
      };
    })
    .toSorted((a, b) => (a.name < b.name ? -1 : 1));
}

function sameCell(a: SQLOutputValue, b: SQLOutputValue): boolean {
  if (a instanceof Uint8Array && b instanceof Uint8Array) return Buffer.compare(a, b) === 0;
  return Object.is(a, b);
}

function compareTable(expected: DatabaseSync, actual: DatabaseSync, shape: TableShape): TableComparison {
  const sql = `select ${shape.columns.map(quote).join(', ')} from ${quote(shape.name)} order by ${shape.orderBy}`;
  const read = (db: DatabaseSync): Iterator<Record<string, SQLOutputValue>> => {
    const statement = db.prepare(sql);
    statement.setReadBigInts(true);
    return statement.iterate() as Iterator<Record<string, SQLOutputValue>>;
  };
  const wanted = read(expected);
  const found = read(actual);
  let rows = 0;
  let differences = 0;
  for (;;) {
    const a = wanted.next();
    const b = found.next();
    if (a.done && b.done) return { table: shape.name, rows, differences };
    rows += 1;
    if (a.done || b.done || !shape.columns.every((name) => sameCell(a.value[name]!, b.value[name]!))) differences += 1;
  }
}

/** Compares every table of `expectedFile` with the one of that name in `actualFile`. */
export function compareFiles(expectedFile: string, actualFile: string): Comparison {
  using expected = new DatabaseSync(expectedFile, { readOnly: true });
  using actual = new DatabaseSync(actualFile, { readOnly: true });
  let cells = 0;
  const tables = tablesOf(expected).map((shape) => {
    const comparison = compareTable(expected, actual, shape);
    cells += comparison.rows * shape.columns.length;
    return comparison;
  });
  const sum = (of: (one: TableComparison) => number): number => tables.reduce((total, one) => total + of(one), 0);
  return { tables, rows: sum((one) => one.rows), cells, differences: sum((one) => one.differences) };
}
