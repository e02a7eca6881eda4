/**
 * What an import will do, worked out before anything is written: the schema of a file as migrations of a tenant, what of
 * it cannot be taken, and which tables get a new key where that was asked for.
 */
import { DatabaseSync } from 'node:sqlite';
import { NostosError } from '../base/errors.ts';
import { readObjects, readTables, type CatalogObject, type CatalogTable } from './schema-catalog.ts';
import { checkSchema, type SchemaProblem } from './schema-check.ts';
import { significantTokens } from './sql-tokens.ts';
import { fromSqlite } from './sqlite-errors.ts';
import { unguardTrigger, isGuarded } from './trigger-guard.ts';

export interface ImportTable {
  readonly name: string;
  readonly type: 'table' | 'shadow';
  /** The columns to copy; generated ones follow by themselves. */
  readonly columns: readonly string[];
  readonly keyColumns: readonly string[];
  readonly withoutRowid: boolean;
  /** The new key column, where one was added. */
  readonly addedKey?: string;
}

export interface ImportPlan {
  readonly statements: readonly string[];
  readonly tables: readonly ImportTable[];
  readonly userVersion: number;
  readonly sequences: readonly { readonly table: string; readonly value: bigint }[];
}

const KEY_PROBLEMS: ReadonlySet<SchemaProblem['code']> = new Set([
  'NO_PRIMARY_KEY',
  'NULLABLE_KEY',
  'KEY_COLLATION',
  'KEY_TYPE',
]);

export function planImport(source: DatabaseSync, options: { readonly addKey: boolean }): ImportPlan {
  try {
    const tables = readTables(source);
    const byName = new Map(tables.map((table) => [table.name, table]));
    const objects = readObjects(source).filter(
      ({ name, sql }) => sql !== '' && !name.toLowerCase().startsWith('sqlite_') && byName.get(name)?.type !== 'shadow',
    );
    const addedKeys = new Map<string, string>();
    let statements = objects.map(plainSql);
    let problems = tryOut(statements);
    if (options.addKey && problems.length > 0) {
      const keyless = new Set(
        problems.filter(({ code }) => KEY_PROBLEMS.has(code)).map(({ object }) => tableOf(object, byName)),
      );
      statements = objects.map((object) => {
        const table = object.type === 'table' && keyless.has(object.name) ? byName.get(object.name) : undefined;
        return table === undefined ? plainSql(object) : withNewKey(table, addedKeys);
      });
      problems = tryOut(statements);
    }
    if (problems.length > 0) throw refused(problems, options.addKey);
    return {
      statements,
      tables: tables.flatMap((table) => importTable(table, addedKeys)),
      userVersion: (source.prepare('pragma user_version').get() as { user_version: number }).user_version,
      sequences: readSourceSequences(source),
    };
  } catch (error) {
    throw fromSqlite(error);
  }
}

function importTable(table: CatalogTable, addedKeys: ReadonlyMap<string, string>): ImportTable[] {
  if (table.type !== 'table' && table.type !== 'shadow') return [];
  const addedKey = addedKeys.get(table.name);
  const keys = table.columns
    .filter((column) => column.keyPosition > 0)
    .toSorted((a, b) => a.keyPosition - b.keyPosition);
  return [
    {
      name: table.name,
      type: table.type,
      columns: table.columns.filter((column) => !column.hidden).map((column) => column.name),
      keyColumns: keys.map((column) => column.name),
      withoutRowid: table.withoutRowid,
      ...(addedKey === undefined ? {} : { addedKey }),
    },
  ];
}

/** A file that was once copied out of a tenant by other means may still have our guards. */
function plainSql({ type, sql }: CatalogObject): string {
  return type === 'trigger' && isGuarded(sql) ? unguardTrigger(sql) : sql;
}

/** Runs the schema in memory and checks what comes of it. */
function tryOut(statements: readonly string[]): SchemaProblem[] {
  using scratch = new DatabaseSync(':memory:', { enableForeignKeyConstraints: false });
  for (const statement of statements) {
    try {
      scratch.exec(statement);
    } catch (error) {
      throw new NostosError('IMPORT_REFUSED', `${(error as Error).message}, in ${statement.slice(0, 200)}`, {
        cause: error,
      });
    }
  }
  return checkSchema(scratch, { ownTables: [] });
}

function tableOf(object: string, tables: ReadonlyMap<string, CatalogTable>): string {
  if (tables.has(object)) return object;
  return object.slice(0, Math.max(0, object.lastIndexOf('.')));
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

function readSourceSequences(source: DatabaseSync): { table: string; value: bigint }[] {
  if (source.prepare(`select 1 from sqlite_schema where name = 'sqlite_sequence'`).get() === undefined) return [];
  const statement = source.prepare('select name, seq from sqlite_sequence where seq is not null');
  statement.setReadBigInts(true);
  return statement.all().map((row) => ({ table: row['name'] as string, value: row['seq'] as bigint }));
}

function refused(problems: readonly SchemaProblem[], addedKeys: boolean): NostosError {
  const list = problems.map(({ object, why, remedy }) => `${object}: ${why}; ${remedy}`).join('\n  ');
  const keys = !addedKeys && problems.some(({ code }) => KEY_PROBLEMS.has(code));
  const hint = keys ? '\nImport with addKey (--add-key) to give tables without a usable key a new one.' : '';
  return new NostosError('IMPORT_REFUSED', `the file has what cannot be replicated:\n  ${list}${hint}`, {
    details: { problems },
  });
}
