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
import { asciiUpper, nameOf, significantTokens } from './sql-tokens.ts';

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
  /** What it was called before, the latest first, as far as no other table has the name now; absent where it never was. */
  readonly formerNames?: readonly string[];
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

const FORMER_NAMES_MAX = 16;

/** With the names that tables had before: `statements` are those of the migration that made `after` of `before`. */
export function withFormerNames(before: SchemaShape, after: SchemaShape, statements: readonly string[]): SchemaShape {
  const present = new Set([...after.tables.keys()].map(asciiUpper));
  const atFirst = new Map(
    [...before.tables.values()].map((table) => [asciiUpper(table.name), table.formerNames ?? []]),
  );
  const former = new Map(atFirst);
  for (const sql of statements) {
    const { dropped, renamed } = tableChange(sql);
    if (dropped !== undefined) former.delete(asciiUpper(dropped));
    const earlier = renamed === undefined ? undefined : former.get(asciiUpper(renamed.from));
    if (renamed === undefined || earlier === undefined) continue;
    former.delete(asciiUpper(renamed.from));
    former.set(asciiUpper(renamed.to), [renamed.from, ...earlier]);
  }
  const tables = [...after.tables.values()].map((table): [string, TableShape] => {
    const name = asciiUpper(table.name);
    // One that was made anew under its own name goes on as what it was.
    const names = former.get(name) ?? atFirst.get(name) ?? [];
    const formerNames = names.filter((one) => !present.has(asciiUpper(one))).slice(0, FORMER_NAMES_MAX);
    return [table.name, formerNames.length === 0 ? table : { ...table, formerNames }];
  });
  return shapeOf(new Map(tables));
}

interface TableChange {
  readonly dropped?: string;
  readonly renamed?: { readonly from: string; readonly to: string };
}

/** What DROP TABLE or ALTER TABLE … RENAME TO does. */
function tableChange(sql: string): TableChange {
  const tokens = significantTokens(sql);
  const isWord = (at: number, word: string): boolean => tokens[at]?.word === word;
  const [drops, alters] = [isWord(0, 'DROP'), isWord(0, 'ALTER')];
  if (!(drops || alters) || !isWord(1, 'TABLE')) return {};
  let at = drops && isWord(2, 'IF') ? 4 : 2;
  if (isWord(at + 1, '.')) at += 2;
  const [name, to] = [tokens[at], tokens[at + 3]];
  if (name === undefined) return {};
  if (drops) return { dropped: nameOf(sql, name) };
  if (!isWord(at + 1, 'RENAME') || !isWord(at + 2, 'TO') || to === undefined) return {};
  return { renamed: { from: nameOf(sql, name), to: nameOf(sql, to) } };
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
