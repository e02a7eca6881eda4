/**
 * The shape of what is replicated: tables with the columns that stand in their changesets, in that order. Changesets know
 * columns by position only; fingerprints and change feeds get the names from here.
 *
 * The session extension leaves out generated columns, stored ones too, so the shape does. Shadow tables of FTS and R-tree
 * count as tables. SQLite's own tables and what Nostos keeps for the one node are not part of it.
 */
import type { DatabaseSync } from 'node:sqlite';
import { type CatalogTable, readObjects, readTables } from './schema-catalog.ts';
import { LOCAL_TABLES } from './own-tables.ts';
import { asciiUpper, significantTokens } from './sql-tokens.ts';

export interface TableShape {
  readonly name: string;
  readonly type: 'table' | 'shadow';
  /** In the order of changesets. */
  readonly columns: readonly string[];
  /** In the order of the key. */
  readonly keyColumns: readonly string[];
  readonly hasAutoincrement: boolean;
  readonly hasForeignKeys: boolean;
  /** A violation of these shows only at COMMIT, so it must be looked for before. */
  readonly hasDeferrableForeignKeys: boolean;
  readonly hasTriggers: boolean;
}

export interface SchemaShape {
  readonly tables: ReadonlyMap<string, TableShape>;
  /** Column names in the order of changesets; none for a table that is not replicated. */
  readonly columnNames: (table: string) => readonly string[];
}

export function readSchemaShape(db: DatabaseSync): SchemaShape {
  const triggered = tablesWithTriggers(db);
  const tables = new Map<string, TableShape>();
  for (const table of readTables(db)) {
    if (table.type !== 'table' && table.type !== 'shadow') continue;
    if (LOCAL_TABLES.includes(table.name.toLowerCase())) continue;
    tables.set(table.name, tableShape(table, triggered));
  }
  return shapeOf(tables);
}

function shapeOf(tables: ReadonlyMap<string, TableShape>): SchemaShape {
  return { tables, columnNames: (table) => tables.get(table)?.columns ?? [] };
}

/** As it is kept in a tenant file for each schema version. */
export function serializeShape(shape: SchemaShape): string {
  return JSON.stringify([...shape.tables.values()]);
}

export function parseShape(text: string): SchemaShape {
  const tables = JSON.parse(text) as TableShape[];
  return shapeOf(new Map(tables.map((table) => [table.name, table])));
}

function tableShape(table: CatalogTable, triggered: ReadonlySet<string>): TableShape {
  const words = significantTokens(table.sql).map((token) => token.word);
  const keys = table.columns.filter((column) => column.keyPosition > 0);
  return {
    name: table.name,
    type: table.type === 'shadow' ? 'shadow' : 'table',
    columns: table.columns.filter((column) => !column.hidden).map((column) => column.name),
    keyColumns: keys.toSorted((a, b) => a.keyPosition - b.keyPosition).map((column) => column.name),
    hasAutoincrement: words.includes('AUTOINCREMENT'),
    hasForeignKeys: words.includes('REFERENCES'),
    // Also true for NOT DEFERRABLE INITIALLY DEFERRED, where looking costs a few microseconds for nothing.
    hasDeferrableForeignKeys: words.some((word, at) => word === 'INITIALLY' && words[at + 1] === 'DEFERRED'),
    hasTriggers: triggered.has(asciiUpper(table.name)),
  };
}

function tablesWithTriggers(db: DatabaseSync): Set<string> {
  const triggers = readObjects(db).filter((object) => object.type === 'trigger');
  return new Set(triggers.map((trigger) => asciiUpper(trigger.tableName)));
}
