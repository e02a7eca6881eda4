/**
 * What an import will do, worked out before anything is written: the schema of a file as statements for a tenant, what
 * of it cannot be taken, and which tables get a new key where that was asked for.
 *
 * What must hold: whatever is taken means in the tenant what it meant in the file. So the schema is tried out in memory
 * as the tenant will run it, and a view or trigger that no longer compiles, or would see other columns, is refused.
 */
import { DatabaseSync } from 'node:sqlite';
import { NostosError } from '../base/errors.ts';
import {
  catalogRows,
  quoteName,
  readObjects,
  readTables,
  type CatalogObject,
  type CatalogTable,
} from './schema-catalog.ts';
import { checkSchema, type SchemaProblem } from './schema-check.ts';
import { nameOf, significantTokens } from './sql-tokens.ts';
import { isGuarded, unguardTrigger } from './trigger-guard.ts';

export interface ImportTable {
  readonly name: string;
  readonly type: 'table' | 'shadow';
  /** SQL names of the columns to fill; generated ones follow by themselves. */
  readonly columns: readonly string[];
  /** What they are filled with. */
  readonly sources: readonly string[];
  /** SQL names by whose order the rows of the source are walked: its rowid, or its key. */
  readonly walk: readonly string[];
  /** The rowid of a copied row is that of its source, so the last one says how far the walk has come. */
  readonly keepsRowid: boolean;
  /** Sources that may be long, for bounding how much is copied at once. */
  readonly sized: readonly string[];
  /** The new key column, where one was added. */
  readonly addedKey?: string;
}

export interface ImportPlan {
  /** Tables and views: run before the rows come. */
  readonly create: readonly string[];
  /** Run once the rows are there: building an index of sorted rows is faster than keeping it, and triggers must not fire. */
  readonly indexes: readonly { readonly table: string; readonly sql: string }[];
  readonly triggers: readonly string[];
  readonly tables: readonly ImportTable[];
  readonly userVersion: number;
  readonly applicationId: number;
  readonly sequences: readonly { readonly table: string; readonly value: bigint }[];
}

const KEY_PROBLEMS: ReadonlySet<SchemaProblem['code']> = new Set([
  'NO_PRIMARY_KEY',
  'NULLABLE_KEY',
  'KEY_COLLATION',
  'KEY_TYPE',
]);

interface Refusal {
  readonly object: string;
  readonly code: string;
  readonly why: string;
  readonly remedy: string;
}

export function planImport(source: DatabaseSync, options: { readonly addKey: boolean }): ImportPlan {
  checkEncoding(source);
  checkViews(source);
  const tables = readTables(source);
  const byName = new Map(tables.map((table) => [table.name, table]));
  const objects = readObjects(source)
    .filter(
      ({ name, sql }) => sql !== '' && !name.toLowerCase().startsWith('sqlite_') && byName.get(name)?.type !== 'shadow',
    )
    .map(unguarded);
  const addedKeys = new Map<string, string>();
  let planned = objects;
  let problems: Refusal[] = tryOut(planned, checkForeign);
  if (options.addKey && problems.length > 0) {
    const keyless = keylessTables(problems, tables);
    planned = objects.map((object) => {
      const table = object.type === 'table' && keyless.has(object.name) ? byName.get(object.name) : undefined;
      return table === undefined ? object : { ...object, sql: withNewKey(table, addedKeys) };
    });
    problems = [...tryOut(planned, checkForeign), ...checkAddedKeys(source, tables, objects, addedKeys)];
  }
  problems.push(...tryOut(planned, (scratch) => checkCompiled(scratch, objects)));
  if (problems.length > 0) throw refused(problems, options.addKey);
  const only = (...types: CatalogObject['type'][]): CatalogObject[] =>
    planned.filter(({ type }) => types.includes(type));
  return {
    create: only('table', 'view').map(({ sql }) => sql),
    indexes: only('index').map(({ tableName, sql }) => ({ table: tableName, sql })),
    triggers: only('trigger').map(({ sql }) => sql),
    tables: tables.flatMap((table) => importTable(table, addedKeys)),
    userVersion: pragma(source, 'user_version'),
    applicationId: pragma(source, 'application_id'),
    sequences: readSourceSequences(source, tables),
  };
}

/** A schema that comes from elsewhere has nothing of ours. */
function checkForeign(scratch: DatabaseSync): Refusal[] {
  return checkSchema(scratch, { ownTables: [] });
}

/** A view that does not compile makes SQLite's own description of the schema fail. */
function checkViews(source: DatabaseSync): void {
  const broken: Refusal[] = [];
  for (const { type, name } of readObjects(source)) {
    if (type !== 'view') continue;
    try {
      source.prepare(`select * from ${quoteName(name)}`);
    } catch (error) {
      const remedy = 'drop the view, or mend it (text stands in single quotes)';
      broken.push({
        object: name,
        code: 'STATEMENT',
        why: `this view does not work: ${(error as Error).message}`,
        remedy,
      });
    }
  }
  if (broken.length > 0) throw refused(broken, true);
}

function pragma(source: DatabaseSync, name: string): number {
  return catalogRows<Record<string, number>>(source, `pragma ${name}`)[0]![name]!;
}

function checkEncoding(source: DatabaseSync): void {
  const [row] = catalogRows<{ encoding: string }>(source, 'pragma encoding');
  if (row!.encoding === 'UTF-8') return;
  throw new NostosError(
    'IMPORT_REFUSED',
    `its text is encoded as ${row!.encoding}, tenants hold UTF-8; convert it first: sqlite3 old.sqlite .dump | sqlite3 new.sqlite`,
  );
}

function importTable(table: CatalogTable, addedKeys: ReadonlyMap<string, string>): ImportTable[] {
  if (table.type !== 'table' && table.type !== 'shadow') return [];
  const addedKey = addedKeys.get(table.name);
  const copied = table.columns.filter((column) => !column.hidden);
  const names = copied.map((column) => quoteName(column.name));
  const walk = walkOf(table);
  return [
    {
      name: table.name,
      type: table.type,
      columns: addedKey === undefined ? names : [quoteName(addedKey), ...names],
      // A new key takes the values of the rowid, by which full-text tables may know the rows.
      sources: addedKey === undefined ? names : [...walk, ...names],
      walk,
      keepsRowid: table.rowidKey || addedKey !== undefined,
      sized: copied
        .filter((column) => !/INT|REAL|FLOA|DOUB/i.test(column.declaredType))
        .map((column) => quoteName(column.name)),
      ...(addedKey === undefined ? {} : { addedKey }),
    },
  ];
}

function walkOf(table: CatalogTable): string[] {
  const keys = table.columns
    .filter((column) => column.keyPosition > 0)
    .toSorted((a, b) => a.keyPosition - b.keyPosition)
    .map((column) => quoteName(column.name));
  if (table.withoutRowid) return keys;
  // A name for the rowid that no column has taken.
  const taken = new Set(table.columns.map((column) => column.name.toLowerCase()));
  const free = ['rowid', '_rowid_', 'oid'].find((name) => !taken.has(name));
  return free === undefined ? keys : [free];
}

/** A file that was once copied out of a tenant by other means may still have our guards. */
function unguarded(object: CatalogObject): CatalogObject {
  return object.type === 'trigger' && isGuarded(object.sql) ? { ...object, sql: unguardTrigger(object.sql) } : object;
}

/** Runs the schema in memory, as the tenant will, and lets `look` say what it finds. */
function tryOut<T>(objects: readonly CatalogObject[], look: (scratch: DatabaseSync) => T): T {
  using scratch = new DatabaseSync(':memory:', {
    enableForeignKeyConstraints: false,
    enableDoubleQuotedStringLiterals: false,
  });
  const order: CatalogObject['type'][][] = [['table', 'view'], ['index'], ['trigger']];
  for (const { type, name, sql } of order.flatMap((types) => objects.filter((object) => types.includes(object.type)))) {
    try {
      scratch.exec(sql);
    } catch (error) {
      throw refused(
        [
          {
            object: name,
            code: 'STATEMENT',
            why: (error as Error).message,
            remedy: `change the ${type}: ${sql.length > 200 ? `${sql.slice(0, 200)}…` : sql}`,
          },
        ],
        true,
      );
    }
  }
  return look(scratch);
}

function keylessTables(problems: readonly Refusal[], tables: readonly CatalogTable[]): Set<string> {
  const blamed = problems.filter(({ code }) => KEY_PROBLEMS.has(code as SchemaProblem['code']));
  const isBlamed = ({ name, columns }: CatalogTable): boolean =>
    blamed.some(({ object }) => object === name || columns.some((column) => object === `${name}.${column.name}`));
  return new Set(tables.filter((table) => table.type === 'table' && isBlamed(table)).map(({ name }) => name));
}

/** CREATE TABLE with a new INTEGER PRIMARY KEY in front; an unusable key that was there becomes UNIQUE. */
function withNewKey(table: CatalogTable, addedKeys: Map<string, string>): string {
  const { sql } = table;
  const tokens = significantTokens(sql);
  const open = tokens.find((token) => token.word === '(');
  if (open === undefined || table.withoutRowid) return sql;
  const name = freeName(table);
  addedKeys.set(table.name, name);
  let text = `${sql.slice(0, open.end)}"${name}" INTEGER PRIMARY KEY, `;
  let at = open.end;
  for (const [index, token] of tokens.entries()) {
    if (token.word !== 'PRIMARY' || tokens[index + 1]?.word !== 'KEY' || token.start < at) continue;
    text += `${sql.slice(at, token.start)}UNIQUE`;
    at = tokens[index + 1]!.end;
    const order = tokens[index + 2]?.word;
    if (order === 'ASC' || order === 'DESC') at = tokens[index + 2]!.end;
  }
  return text + sql.slice(at);
}

function freeName(table: CatalogTable): string {
  const taken = new Set(table.columns.map((column) => column.name.toLowerCase()));
  for (let index = 0; ; index += 1) {
    const name = index === 0 ? 'row_id' : `row_id_${index}`;
    if (!taken.has(name)) return name;
  }
}

/** What a new column in front of a table would change the meaning of. */
function checkAddedKeys(
  source: DatabaseSync,
  tables: readonly CatalogTable[],
  objects: readonly CatalogObject[],
  addedKeys: ReadonlyMap<string, string>,
): Refusal[] {
  const problems: Refusal[] = [];
  const added = new Map([...addedKeys].map(([table, key]) => [table.toLowerCase(), key]));
  for (const table of tables) {
    const isAdded = addedKeys.has(table.name);
    if (
      isAdded &&
      ['rowid', '_rowid_', 'oid'].every((name) => table.columns.some((c) => c.name.toLowerCase() === name))
    )
      problems.push({
        object: table.name,
        code: 'NO_PRIMARY_KEY',
        why: 'its columns take all names of the rowid, so its rows cannot be told apart',
        remedy: 'give it a PRIMARY KEY, or rename one of the columns',
      });
    const keys = catalogRows<{ table: string; from: string; to: string | null }>(
      source,
      `select "table", "from", "to" from pragma_foreign_key_list(?, 'main')`,
      table.name,
    );
    for (const { table: parent, from, to } of keys)
      if (to === null && added.has(parent.toLowerCase()))
        problems.push({
          object: `${table.name}.${from}`,
          code: 'IMPLICIT_REFERENCE',
          why: `it refers to the primary key of ${parent} without naming it, and would come to mean the new one`,
          remedy: `name the column: REFERENCES ${parent}(…)`,
        });
  }
  for (const { type, name, sql } of objects) {
    if (type !== 'view' && type !== 'trigger') continue;
    const table = allColumnsOf(sql, added);
    if (table !== undefined)
      problems.push({
        object: name,
        code: 'ALL_COLUMNS',
        why: `it takes all columns (*) of ${table}, and would take the new one too`,
        remedy: 'name the columns',
      });
  }
  return problems;
}

/** The table among those that get a key whose columns a statement takes by `*`. */
function allColumnsOf(sql: string, added: ReadonlyMap<string, string>): string | undefined {
  const tokens = significantTokens(sql);
  const isAll = tokens.some(
    ({ word }, index) =>
      word === '*' && ['SELECT', 'DISTINCT', 'ALL', ',', '.'].includes(tokens[index - 1]?.word ?? ''),
  );
  if (!isAll) return undefined;
  return tokens.map((token) => nameOf(sql, token)).find((name) => added.has(name.toLowerCase()));
}

/** Views and triggers that work in the file and would not in the tenant. */
function checkCompiled(scratch: DatabaseSync, originals: readonly CatalogObject[]): Refusal[] {
  const failing = failures(scratch);
  if (failing.size === 0) return [];
  using original = new DatabaseSync(':memory:', {
    enableForeignKeyConstraints: false,
    enableDoubleQuotedStringLiterals: true,
  });
  for (const { sql } of originals) {
    try {
      original.exec(sql);
    } catch {
      return []; // then it is not the same as the file, and nothing can be said
    }
  }
  const broken = failures(original);
  return [...failing]
    .filter(([object]) => !broken.has(object))
    .map(([object, message]) => ({
      object,
      code: 'STATEMENT',
      why: message,
      remedy: 'write text in single quotes, and name the columns in INSERT',
    }));
}

/** What cannot be used: views, and tables or views whose triggers do not compile. */
function failures(db: DatabaseSync): Map<string, string> {
  const failed = new Map<string, string>();
  const attempt = (object: string, sql: string): void => {
    try {
      db.prepare(sql);
    } catch (error) {
      failed.set(object, (error as Error).message);
    }
  };
  const objects = readObjects(db);
  const tables = new Map(readTables(db).map((table) => [table.name.toLowerCase(), table]));
  for (const { type, name } of objects) if (type === 'view') attempt(name, `select * from ${quoteName(name)}`);
  for (const { type, name, tableName } of objects) {
    if (type !== 'trigger') continue;
    const table = tables.get(tableName.toLowerCase());
    if (table === undefined || failed.has(table.name)) continue;
    const target = quoteName(tableName);
    const column = table.columns.filter(({ hidden }) => !hidden).map((each) => quoteName(each.name));
    const sets = column.map((each) => `${each} = ${each}`).join(', ');
    // Preparing compiles the triggers that would fire; all of the table stand or fall together.
    attempt(name, `insert into ${target} (${column.join(', ')}) values (${column.map(() => '?').join(', ')})`);
    if (!failed.has(name)) attempt(name, `update ${target} set ${sets}`);
    if (!failed.has(name)) attempt(name, `delete from ${target}`);
  }
  return failed;
}

function readSourceSequences(
  source: DatabaseSync,
  tables: readonly CatalogTable[],
): { table: string; value: bigint }[] {
  if (source.prepare(`select 1 from sqlite_schema where name = 'sqlite_sequence'`).get() === undefined) return [];
  const statement = source.prepare(
    `select name, seq from sqlite_sequence where typeof(name) = 'text' and typeof(seq) = 'integer'`,
  );
  statement.setReadBigInts(true);
  const counting = new Set(
    tables
      .filter(({ sql }) => significantTokens(sql).some(({ word }) => word === 'AUTOINCREMENT'))
      .map(({ name }) => name),
  );
  // Counters may be left of tables that are gone, or no longer count.
  return statement
    .all()
    .map((row) => ({ table: row['name'] as string, value: row['seq'] as bigint }))
    .filter(({ table }) => counting.has(table));
}

function refused(problems: readonly Refusal[], addedKeys: boolean): NostosError {
  const list = problems.map(({ object, why, remedy }) => `${object}: ${why}; ${remedy}`).join('\n  ');
  const keys = !addedKeys && problems.some(({ code }) => KEY_PROBLEMS.has(code as SchemaProblem['code']));
  const hint = keys ? '\nImport with addKey (--add-key) to give tables without a usable key a new one.' : '';
  return new NostosError('IMPORT_REFUSED', `the file has what cannot be replicated:\n  ${list}${hint}`, {
    details: { problems },
  });
}
