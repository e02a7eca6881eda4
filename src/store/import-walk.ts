/**
 * Copies one table of an attached source, some rows at a time, in the order of its rowid or key. How far it has come is
 * kept in a temporary table: as JavaScript values, keys of invalid UTF-8 or beyond 2^53 would not be the same any more.
 */
import type { DatabaseSync, StatementSync } from 'node:sqlite';
import type { ImportTable } from './import-plan.ts';
import { quoteName } from './schema-catalog.ts';

const LAST = 'temp.nostos_import';

export function dropWalk(database: DatabaseSync): void {
  database.exec(`drop table if exists ${LAST}`);
}

export class TableWalk {
  readonly #table: ImportTable;
  readonly #prepare: (sql: string) => StatementSync;
  readonly #from: (started: boolean) => string;
  readonly #statements = new Map<string, StatementSync>();
  #started = false;

  constructor(database: DatabaseSync, table: ImportTable, source: string) {
    const places = table.walk.map((_, index) => `k${index}`);
    dropWalk(database);
    database.exec(`create table ${LAST} (id integer primary key, ${places.join(', ')})`);
    // The unary plus takes the affinity away: with it, SQLite would search by the first column of the key only.
    const after = `(${table.walk.join(', ')}) > (select ${places.map((place) => `+${place}`).join(', ')} from ${LAST})`;
    const order = `order by ${table.walk.join(', ')} limit ?`;
    this.#table = table;
    this.#from = (started) => `from ${source}.${quoteName(table.name)} ${started ? `where ${after}` : ''} ${order}`;
    this.#prepare = (sql) => {
      let statement = this.#statements.get(sql);
      if (statement === undefined) {
        this.#statements.set(sql, (statement = database.prepare(sql)));
        // With numbers, run() throws when the last rowid of the connection, whosever it was, is beyond 2^53.
        statement.setReadBigInts(true);
      }
      return statement;
    };
  }

  /** How many of the next rows to copy so that about `bytesMax` are copied, at most `rowsMax`. */
  fitting(rowsMax: number, bytesMax: number): number {
    const { sized } = this.#table;
    if (sized.length === 0) return rowsMax;
    const size = sum(sized.map((column) => `ifnull(octet_length(${column}), 0)`));
    const measure = this.#prepare(
      `select sum(size) as bytes from (select ${size} as size ${this.#from(this.#started)})`,
    );
    let rows = rowsMax;
    for (;;) {
      const bytes = Number((measure.get(rows) as { bytes: bigint | null }).bytes ?? 0);
      if (bytes <= 2 * bytesMax || rows === 1) return rows;
      rows = Math.max(1, Math.floor((rows * bytesMax) / bytes));
    }
  }

  /** Copies the next rows, inside the caller's transaction, and answers with their number; to be accepted, or undone. */
  copy(rowsMax: number): number {
    const { name, columns, sources, walk, keepsRowid } = this.#table;
    const from = this.#from(this.#started);
    const insert = `insert into main.${quoteName(name)} (${columns.join(', ')}) select ${sources.join(', ')} ${from}`;
    const { changes, lastInsertRowid } = this.#prepare(insert).run(rowsMax);
    const copied = Number(changes);
    if (copied === 0) return 0;
    if (keepsRowid) this.#prepare(`insert or replace into ${LAST} values (1, ?)`).run(lastInsertRowid);
    else
      this.#prepare(`insert or replace into ${LAST} select 1, * from (select ${walk.join(', ')} ${from} offset ?)`).run(
        1,
        copied - 1,
      );
    return copied;
  }

  /** To be called when what was copied is kept. */
  accept(): void {
    this.#started = true;
  }
}

/** A balanced sum: SQLite refuses expressions that are a thousand terms deep. */
function sum(terms: readonly string[]): string {
  if (terms.length === 1) return terms[0]!;
  const half = terms.length >> 1;
  return `(${sum(terms.slice(0, half))} + ${sum(terms.slice(half))})`;
}
