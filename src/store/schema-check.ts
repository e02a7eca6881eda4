/**
 * Which schemas can be replicated. SQLite's session extension misses or misreports the changes of some tables, without
 * an error: rows that replicas never get, changesets that nobody can apply. Each rule here stands for one such case that
 * was observed (the tests show it on SQLite), so nothing that breaks a rule may get into a tenant, by migration or import.
 */
import type { DatabaseSync } from 'node:sqlite';
import {
  type CatalogColumn,
  type CatalogTable,
  catalogRows,
  quoteName,
  readObjects,
  readTables,
} from './schema-catalog.ts';
import { asciiUpper, nameOf, significantTokens, statementStart, type Token } from './sql-tokens.ts';
import { OWN_OBJECTS, RESERVED_PREFIX } from './own-tables.ts';

export type SchemaProblemCode =
  | 'NO_PRIMARY_KEY'
  | 'NULLABLE_KEY'
  | 'KEY_COLLATION'
  | 'KEY_TYPE'
  | 'CONFLICT_CLAUSE'
  | 'CONTENT_WITHOUT_KEY'
  | 'VIRTUAL_TABLE'
  | 'RESERVED_NAME'
  | 'TEMP_OBJECT'
  | 'CREATE_TABLE_AS'
  | 'STATEMENT';

export interface SchemaProblem {
  /** Name of the object, with the column where one is to blame: `orders.id`. */
  readonly object: string;
  readonly kind: 'table' | 'column' | 'index' | 'view' | 'trigger' | 'statement';
  readonly code: SchemaProblemCode;
  readonly why: string;
  readonly remedy: string;
}

export interface SchemaCheckOptions {
  /** Tables with the reserved prefix that may be there, in lower case. None in a file that comes from elsewhere. */
  readonly ownTables?: readonly string[];
}

const isReserved = (name: string): boolean => name.toLowerCase().startsWith(RESERVED_PREFIX);

/** Everything in the database that cannot be replicated; an empty list when all can. */
export function checkSchema(db: DatabaseSync, options: SchemaCheckOptions = {}): SchemaProblem[] {
  const own = options.ownTables ?? OWN_OBJECTS;
  const tables = readTables(db);
  return [
    ...checkNames(db, own),
    ...checkTemp(db),
    ...tables.filter((table) => table.type === 'table').flatMap((table) => checkTable(db, table)),
    ...tables.filter((table) => table.type === 'virtual').flatMap((table) => checkVirtual(table, tables)),
  ];
}

function checkNames(db: DatabaseSync, own: readonly string[]): SchemaProblem[] {
  return readObjects(db)
    .filter((object) => isReserved(object.name) && !own.includes(object.name.toLowerCase()))
    .map((object) => ({
      object: object.name,
      kind: object.type,
      code: 'RESERVED_NAME',
      why: `names that start with ${RESERVED_PREFIX} belong to Nostos`,
      remedy: `rename the ${object.type}`,
    }));
}

function checkTemp(db: DatabaseSync): SchemaProblem[] {
  return catalogRows<{ type: SchemaProblem['kind']; name: string }>(
    db,
    'SELECT type, name FROM temp.sqlite_schema ORDER BY rowid',
  ).map(({ type, name }) => ({
    object: `temp.${name}`,
    kind: type,
    code: 'TEMP_OBJECT',
    why: 'temporary objects live in one connection and are not replicated',
    remedy: `create the ${type} without TEMP, or drop it`,
  }));
}

function checkTable(db: DatabaseSync, table: CatalogTable): SchemaProblem[] {
  const keys = table.columns.filter((column) => column.keyPosition > 0);
  const clauses = checkConflictClauses(table);
  if (keys.length === 0)
    return [
      {
        object: table.name,
        kind: 'table',
        code: 'NO_PRIMARY_KEY',
        why: 'SQLite does not capture the changes of a table without a PRIMARY KEY; UNIQUE NOT NULL does not replace it',
        remedy: 'add a column id INTEGER PRIMARY KEY, or declare the identifying columns as PRIMARY KEY',
      },
      ...clauses,
    ];
  if (table.rowidKey) return clauses;
  return [...keys.flatMap((column) => checkKeyColumn(db, table, column)), ...clauses];
}

function checkKeyColumn(db: DatabaseSync, table: CatalogTable, column: CatalogColumn): SchemaProblem[] {
  const problems: SchemaProblem[] = [];
  const add = (code: SchemaProblemCode, why: string, remedy: string): void => {
    problems.push({ object: `${table.name}.${column.name}`, kind: 'column', code, why, remedy });
  };
  if (!column.notNull)
    add('NULLABLE_KEY', 'the key column may be NULL, and rows with a NULL key are not captured', 'declare it NOT NULL');
  const collation = foreignCollation(db, table.name, column.name);
  if (collation !== undefined)
    add(
      'KEY_COLLATION',
      `the key column compares by ${collation}: a key that changes only in what ${collation} ignores cannot be applied`,
      'use COLLATE BINARY in the key, and a UNIQUE index with the other collation where that is needed',
    );
  if (!isKeyType(column, table.strict))
    add(
      'KEY_TYPE',
      `a key column of type ${column.declaredType || '(none)'} may hold 1 and 1.0, which SQLite mixes up in changesets`,
      table.strict
        ? 'declare it INTEGER, TEXT or BLOB'
        : 'declare it INTEGER or TEXT, or make the table STRICT with a BLOB key',
    );
  return problems;
}

/** The rules of SQLite's `sqlite3AffinityType`, as far as they tell INTEGER and TEXT from the rest. */
function isKeyType(column: CatalogColumn, strict: boolean): boolean {
  const type = asciiUpper(column.declaredType);
  if (strict) return ['INT', 'INTEGER', 'TEXT', 'BLOB'].includes(type);
  return /INT|CHAR|CLOB|TEXT/.test(type);
}

/** The collation by which a column or its place in the key compares, unless it is BINARY. */
function foreignCollation(db: DatabaseSync, table: string, column: string): string | undefined {
  const inKey = catalogRows<{ coll: string }>(
    db,
    `SELECT x.coll FROM pragma_index_list(?1, 'main') AS l, pragma_index_xinfo(l.name, 'main') AS x
     WHERE l.origin = 'pk' AND x.key = 1 AND x.name = ?2`,
    table,
    column,
  ).map((row) => row.coll);
  return [...inKey, columnCollation(db, table, column)].find((collation) => asciiUpper(collation) !== 'BINARY');
}

/**
 * A column may have another collation than its key, and applying a changeset compares by the column's. No pragma tells
 * it; the compiled comparison does.
 */
function columnCollation(db: DatabaseSync, table: string, column: string): string {
  const program = catalogRows<{ opcode: string; p4: string | null }>(
    db,
    `EXPLAIN SELECT ${quoteName(column)} = 'x' FROM main.${quoteName(table)}`,
  );
  const comparison = program.find((step) => step.opcode === 'Eq' || step.opcode === 'Ne');
  return comparison?.p4?.replace(/-\d+$/, '') ?? 'BINARY';
}

/** `ON CONFLICT REPLACE`, `IGNORE` and `ROLLBACK` of UNIQUE and PRIMARY KEY; on NOT NULL and CHECK they do no harm. */
function checkConflictClauses(table: CatalogTable): SchemaProblem[] {
  return conflictClauses(table.sql)
    .filter(({ constraint, action }) => constraint === 'KEY' && ['REPLACE', 'IGNORE', 'ROLLBACK'].includes(action))
    .map(({ action }) => ({
      object: table.name,
      kind: 'table',
      code: 'CONFLICT_CLAUSE',
      why: `ON CONFLICT ${action} acts again when a replica applies the change, and gives another result there`,
      remedy: `take the clause out of the table and write INSERT OR ${action === 'ROLLBACK' ? 'ABORT' : action} instead`,
    }));
}

interface ConflictClause {
  readonly constraint: 'KEY' | 'OTHER';
  readonly action: string;
}

function conflictClauses(createTable: string): ConflictClause[] {
  const clauses: ConflictClause[] = [];
  const enclosing: ConflictClause['constraint'][] = [];
  let constraint: ConflictClause['constraint'] = 'OTHER';
  const tokens = significantTokens(createTable);
  for (const [index, { word }] of tokens.entries()) {
    if (word === '(') enclosing.push(constraint);
    else if (word === ')') constraint = enclosing.pop() ?? 'OTHER';
    else if (word === 'UNIQUE' || word === 'PRIMARY') constraint = 'KEY';
    else if (word === 'NOT' || word === 'NULL' || word === 'CHECK') constraint = 'OTHER';
    else if (word === 'ON' && tokens[index + 1]?.word === 'CONFLICT')
      clauses.push({ constraint, action: tokens[index + 2]?.word ?? '' });
  }
  return clauses;
}

/** Modules whose content is in shadow tables, which are captured like any table. */
/** FTS3 is not among them: it makes a shadow table in the midst of a transaction, which cannot be captured. */
const SHADOWED_MODULES = ['fts5', 'fts4', 'rtree', 'rtree_i32', 'geopoly'];
/** Modules that only show what is stored elsewhere. */
const VIEWING_MODULES: ReadonlySet<string> = new Set(['fts5vocab', 'fts4aux', 'fts3tokenize', 'dbstat']);

interface VirtualDeclaration {
  readonly module: string;
  readonly options: ReadonlyMap<string, string>;
}

/** `CREATE VIRTUAL TABLE … USING module(…, option = value, …)`. */
function parseVirtual(sql: string): VirtualDeclaration {
  const tokens = significantTokens(sql);
  const using = tokens.findIndex((token) => token.word === 'USING');
  const name = tokens[using + 1];
  const options = new Map<string, string>();
  for (const [index, token] of tokens.entries()) {
    const value = tokens[index + 2];
    const opens = tokens[index - 1]?.word === '(' || tokens[index - 1]?.word === ',';
    if (index > using && opens && token.kind === 'word' && tokens[index + 1]?.word === '=' && value !== undefined)
      options.set(token.word.toLowerCase(), nameOf(sql, value));
  }
  return { module: name === undefined ? '' : nameOf(sql, name).toLowerCase(), options };
}

function checkVirtual(table: CatalogTable, tables: readonly CatalogTable[]): SchemaProblem[] {
  const { module, options } = parseVirtual(table.sql);
  if (VIEWING_MODULES.has(module)) return [];
  if (!SHADOWED_MODULES.includes(module))
    return [
      {
        object: table.name,
        kind: 'table',
        code: 'VIRTUAL_TABLE',
        why: `what a virtual table of the module ${module} stores is not captured`,
        remedy: `use an ordinary table, or one of ${SHADOWED_MODULES.join(', ')}`,
      },
    ];
  const content = options.get('content')?.toLowerCase();
  const source = content ? tables.find((candidate) => candidate.name.toLowerCase() === content) : undefined;
  if (source === undefined || hasStableRowid(source, options.get('content_rowid'))) return [];
  return [
    {
      object: table.name,
      kind: 'table',
      code: 'CONTENT_WITHOUT_KEY',
      why: `its rows are found by the rowids of ${source.name}, which differ from replica to replica`,
      remedy: `give ${source.name} an INTEGER PRIMARY KEY and name it as content_rowid`,
    },
  ];
}

/** Whether the ids under which a full-text table knows its content are values that replicas share. */
function hasStableRowid(source: CatalogTable, contentRowid: string | undefined): boolean {
  const named = contentRowid?.toLowerCase();
  const isColumn = named !== undefined && source.columns.some((column) => column.name.toLowerCase() === named);
  if (source.type !== 'view') return source.rowidKey || isColumn;
  const usesRowid = significantTokens(source.sql).some((token) => ['ROWID', '_ROWID_', 'OID'].includes(token.word));
  return isColumn && !usesRowid;
}

/**
 * True when the schema itself can roll back a whole transaction, and with it the transactions of others in the same
 * group: `RAISE(ROLLBACK)` or `OR ROLLBACK` in a trigger, `ON CONFLICT ROLLBACK` in a table. Allowed, but such a tenant
 * has to look after each statement whether its transaction is still there.
 */
export function schemaMayRollBack(db: DatabaseSync): boolean {
  return readObjects(db).some(({ type, sql }) => {
    if (type !== 'trigger' && type !== 'table') return false;
    if (!/rollback/i.test(sql)) return false; // spares most tenants the tokens of their schema at each opening
    const tokens = significantTokens(sql);
    return tokens.some((token, index) => token.word === 'ROLLBACK' && isConflictAction(tokens, index));
  });
}

function isConflictAction(tokens: readonly Token[], index: number): boolean {
  const [before, previous] = [tokens[index - 2]?.word, tokens[index - 1]?.word];
  return (
    (before === 'RAISE' && previous === '(') ||
    (before === 'ON' && previous === 'CONFLICT') ||
    ((before === 'INSERT' || before === 'UPDATE') && previous === 'OR')
  );
}

const TRANSACTION_CONTROL: ReadonlySet<string> = new Set([
  'BEGIN',
  'COMMIT',
  'END',
  'ROLLBACK',
  'SAVEPOINT',
  'RELEASE',
]);

/** Why one statement of a migration is not allowed, before it runs; what it creates is seen by `checkSchema` after. */
export function checkMigrationStatement(sql: string): SchemaProblem | undefined {
  const all = significantTokens(sql);
  const tokens = all.slice(statementStart(all));
  const verb = tokens[0]?.word ?? '';
  const refuse = (code: SchemaProblemCode, why: string, remedy: string): SchemaProblem => ({
    object: sql.length > 200 ? `${sql.slice(0, 200)}…` : sql,
    kind: 'statement',
    code,
    why,
    remedy,
  });
  if (TRANSACTION_CONTROL.has(verb))
    return refuse('STATEMENT', `a migration is one transaction, which ${verb} would interfere with`, 'leave it out');
  if (verb === 'ATTACH' || verb === 'DETACH')
    return refuse('STATEMENT', 'attached databases are not replicated', 'put the tables into this tenant');
  if (verb === 'VACUUM')
    return refuse('STATEMENT', 'VACUUM cannot run in a transaction and is not replicated', 'leave it out');
  if (verb === 'PRAGMA' && !isUserVersion(sql, tokens))
    return refuse('STATEMENT', 'settings of a connection are those of Nostos', 'of all PRAGMAs, use only user_version');
  const reserved = tokens.find((t) => (t.kind === 'word' || t.kind === 'quoted') && isReserved(nameOf(sql, t)));
  if (reserved !== undefined)
    return refuse(
      'RESERVED_NAME',
      `names that start with ${RESERVED_PREFIX} belong to Nostos: ${nameOf(sql, reserved)}`,
      'choose another name',
    );
  return verb === 'CREATE' ? checkCreate(sql, tokens, refuse) : undefined;
}

function isUserVersion(sql: string, tokens: readonly Token[]): boolean {
  const qualified = tokens[2]?.word === '.';
  const name = tokens[qualified ? 3 : 1];
  if (qualified && nameOf(sql, tokens[1]!).toLowerCase() !== 'main') return false;
  return name !== undefined && nameOf(sql, name).toLowerCase() === 'user_version';
}

function checkCreate(
  sql: string,
  tokens: readonly Token[],
  refuse: (code: SchemaProblemCode, why: string, remedy: string) => SchemaProblem,
): SchemaProblem | undefined {
  const kind = tokens.findIndex((token) => ['TABLE', 'VIEW', 'TRIGGER', 'INDEX'].includes(token.word));
  const name = tokens[kind + 1]?.word === 'IF' && tokens[kind + 2]?.word === 'NOT' ? kind + 4 : kind + 1;
  const qualified = tokens[name + 1]?.word === '.';
  const schema = qualified ? nameOf(sql, tokens[name]!).toLowerCase() : '';
  if (['TEMP', 'TEMPORARY'].includes(tokens[1]?.word ?? '') || schema === 'temp')
    return refuse('TEMP_OBJECT', 'temporary objects are not replicated', 'create it without TEMP, or not at all');
  if (tokens[kind]?.word === 'TABLE' && tokens[name + (qualified ? 3 : 1)]?.word === 'AS')
    return refuse(
      'CREATE_TABLE_AS',
      'a table made by CREATE TABLE … AS has no PRIMARY KEY, so its changes are not captured',
      'create the table with a PRIMARY KEY, then INSERT INTO … SELECT',
    );
  return undefined;
}
