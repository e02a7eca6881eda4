/**
 * What SQLite itself says about a schema, read through its pragmas: never by parsing CREATE TABLE where a pragma knows.
 * Only the main database is read; TEMP and attached ones are not replicated.
 */
import type { DatabaseSync, SQLInputValue } from 'node:sqlite';

export interface CatalogColumn {
  readonly name: string;
  readonly declaredType: string;
  readonly notNull: boolean;
  /** Place in the primary key from 1; 0 for a column outside of it. */
  readonly keyPosition: number;
  /** A generated column (stored or virtual) or a hidden one of a virtual table: not part of a changeset. */
  readonly hidden: boolean;
}

export interface CatalogTable {
  readonly name: string;
  readonly type: 'table' | 'shadow' | 'virtual' | 'view';
  readonly withoutRowid: boolean;
  readonly strict: boolean;
  readonly sql: string;
  readonly columns: readonly CatalogColumn[];
  /** The key is `INTEGER PRIMARY KEY`, an alias of the rowid. */
  readonly rowidKey: boolean;
}

export interface CatalogObject {
  readonly type: 'table' | 'index' | 'view' | 'trigger';
  readonly name: string;
  /** The table or view that it belongs to; its own name for these. */
  readonly tableName: string;
  readonly sql: string;
}

/** Rows as objects with plain numbers, whatever the defaults of the connection are. */
export function catalogRows<Row>(db: DatabaseSync, sql: string, ...params: SQLInputValue[]): Row[] {
  const statement = db.prepare(sql);
  statement.setReadBigInts(false);
  statement.setReturnArrays(false);
  return statement.all(...params) as Row[];
}

export function quoteName(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}

/** All that `CREATE` made, in the order in which it was made; indexes that SQLite makes by itself have no SQL. */
export function readObjects(db: DatabaseSync): CatalogObject[] {
  return catalogRows(
    db,
    `SELECT type, name, tbl_name AS tableName, coalesce(sql, '') AS sql FROM main.sqlite_schema ORDER BY rowid`,
  );
}

/** Tables and views but those of SQLite itself (`sqlite_…`), by name. */
export function readTables(db: DatabaseSync): CatalogTable[] {
  const rows = catalogRows<{ name: string; type: CatalogTable['type']; wr: number; strict: number; sql: string }>(
    db,
    `SELECT l.name, l.type, l.wr, l.strict, coalesce(s.sql, '') AS sql
     FROM pragma_table_list AS l JOIN main.sqlite_schema AS s ON s.name = l.name AND s.type IN ('table', 'view')
     WHERE l.schema = 'main' AND lower(substr(l.name, 1, 7)) <> 'sqlite_' ORDER BY l.name`,
  );
  return rows.map((row) => {
    const columns = readColumns(db, row.name);
    const withoutRowid = row.wr !== 0;
    return {
      name: row.name,
      type: row.type,
      withoutRowid,
      strict: row.strict !== 0,
      sql: row.sql,
      columns,
      rowidKey: !withoutRowid && columns.some((column) => column.keyPosition > 0) && !hasKeyIndex(db, row.name),
    };
  });
}

function readColumns(db: DatabaseSync, table: string): CatalogColumn[] {
  return catalogRows<{ name: string; type: string; notnull: number; pk: number; hidden: number }>(
    db,
    `SELECT name, type, "notnull", pk, hidden FROM pragma_table_xinfo(?, 'main') ORDER BY cid`,
    table,
  ).map((row) => ({
    name: row.name,
    declaredType: row.type,
    notNull: row.notnull !== 0,
    keyPosition: row.pk,
    hidden: row.hidden !== 0,
  }));
}

/** Only a rowid alias needs no index for its key; `INTEGER PRIMARY KEY DESC`, which is none, has one. */
function hasKeyIndex(db: DatabaseSync, table: string): boolean {
  return catalogRows(db, `SELECT 1 FROM pragma_index_list(?, 'main') WHERE origin = 'pk'`, table).length > 0;
}
