/**
 * Forgetting rows: which key is meant, and its hash. The hash is what stays of a forgotten row, in records and in ledgers,
 * so that a later restore recognises the row without anything saying what its key was.
 *
 * Keys that SQLite holds to be equal have one hash, others do not: a value is hashed as its column stores it. What a column
 * makes of a value it is asked itself, in a scratch table with columns of the same affinities.
 */
import { DatabaseSync, type StatementSync } from 'node:sqlite';
import { hashBlake3 } from '../base/blake3.ts';
import { NostosError } from '../base/errors.ts';
import { KEY_HASH_BYTES, type ForgottenKey } from '../log/ledger.ts';
import { catalogRows, quoteName } from './schema-catalog.ts';
import type { SchemaShape, TableShape } from './schema-shape.ts';
import { asciiUpper } from './sql-tokens.ts';
import { bindable } from './statements.ts';
import type { SqlInput, SqlStatement } from './values.ts';

/** As SQLite stores it. Text may come as its bytes, which need not be UTF-8. */
export type KeyValue = bigint | number | string | Uint8Array | { readonly text: Uint8Array };

/** What a transaction needs to forget. */
export interface ForgetContext {
  readonly shape: SchemaShape;
  readonly hashKey: () => Uint8Array;
}

/** A row that is to be forgotten: how to delete it, to see whether it is gone, and what stays of it. */
export interface ForgetTarget {
  readonly table: string;
  /** Under each name that the table has had: a backup may be older than a renaming. */
  readonly forgotten: readonly ForgottenKey[];
  readonly remove: SqlStatement;
  readonly look: SqlStatement;
}

const [TYPE_INTEGER, TYPE_REAL, TYPE_TEXT, TYPE_BLOB] = [1, 2, 3, 4];
const INT64_END = 2 ** 63;

/**
 * Under the hash key of the tenant, which goes first: BLAKE3 cannot be extended, so that is a keyed hash. `values` are those
 * of the key columns, in the order of the key.
 */
export function keyHash(hashKey: Uint8Array, table: string, values: readonly KeyValue[]): Uint8Array {
  const name = Buffer.from(`${asciiUpper(table)}\0`, 'utf8');
  const hash = hashBlake3(Buffer.concat([hashKey, name, ...values.map(encodeValue)]));
  return Uint8Array.from(hash.subarray(0, KEY_HASH_BYTES));
}

/** Its type, then 8 bytes, or u32 length and bytes; big-endian. A number that is an integer is one, as in comparisons. */
function encodeValue(value: KeyValue): Uint8Array {
  if (typeof value === 'bigint') {
    const bytes = Buffer.alloc(9);
    bytes[0] = TYPE_INTEGER;
    bytes.writeBigInt64BE(value, 1);
    return bytes;
  }
  if (typeof value === 'number') {
    if (Number.isInteger(value) && value >= -INT64_END && value < INT64_END) return encodeValue(BigInt(value));
    const bytes = Buffer.alloc(9);
    bytes[0] = TYPE_REAL;
    bytes.writeDoubleBE(value, 1);
    return bytes;
  }
  const isBlob = value instanceof Uint8Array;
  const content = typeof value === 'string' ? Buffer.from(value, 'utf8') : isBlob ? value : value.text;
  const head = Buffer.alloc(5);
  head[0] = isBlob ? TYPE_BLOB : TYPE_TEXT;
  head.writeUInt32BE(content.length, 1);
  return Buffer.concat([head, content]);
}

/** Throws `INVALID_ARGUMENT` for what names no row: another table than one of the user's, or not exactly its key. */
export function forgetTarget(
  database: DatabaseSync,
  { shape, hashKey }: ForgetContext,
  { table, key }: { readonly table: unknown; readonly key: unknown },
): ForgetTarget {
  const found = findTable(shape, table);
  const values = keyValues(found, key);
  const stored = values.map((value, at) => storedAs(value, affinityOf(database, found, found.keyColumns[at]!)));
  const where = found.keyColumns.map((column) => `${quoteName(column)} = ?`).join(' and ');
  const from = `from main.${quoteName(found.name)} where ${where}`;
  const names = [found.name, ...(found.formerNames ?? [])];
  return {
    table: found.name,
    forgotten: names.map((name) => ({ table: name, hash: keyHash(hashKey(), name, stored) })),
    remove: { text: `delete ${from}`, parameters: values },
    look: { text: `select 1 ${from}`, parameters: values },
  };
}

/** As SQLite finds it, whatever the case of its letters. */
export function tableNamed(shape: SchemaShape, name: string): TableShape | undefined {
  const wanted = asciiUpper(name);
  for (const table of shape.tables.values()) if (asciiUpper(table.name) === wanted) return table;
  return undefined;
}

function findTable(shape: SchemaShape, table: unknown): TableShape {
  if (typeof table !== 'string') throw invalid(`forget needs the name of a table, got ${typeof table}`, { table });
  const found = tableNamed(shape, table);
  if (found?.type === 'table' && !found.name.toLowerCase().startsWith('nostos_')) return found;
  throw invalid(`there is no table ${JSON.stringify(table)} whose rows could be forgotten`, { table });
}

function keyValues({ name, keyColumns }: TableShape, key: unknown): SqlInput[] {
  if (typeof key !== 'object' || key === null || Array.isArray(key) || key instanceof Uint8Array)
    throw invalid(`forget needs the key of a row of ${name} as an object {${keyColumns.join(', ')}}`, { table: name });
  const given = new Map(Object.entries(key).map(([column, value]) => [asciiUpper(column), value as SqlInput]));
  const known = new Set(keyColumns.map(asciiUpper));
  const extra = Object.keys(key).filter((column) => !known.has(asciiUpper(column)));
  const missing = keyColumns.filter((column) => given.get(asciiUpper(column)) === undefined);
  if (extra.length > 0 || missing.length > 0 || given.size !== Object.keys(key).length)
    throw invalid(
      `the primary key of ${name} is (${keyColumns.join(', ')}); ${JSON.stringify(Object.keys(key))} names another`,
      { table: name, missing, extra },
    );
  return keyColumns.map((column) => {
    const value = given.get(asciiUpper(column))!;
    if (value === null) throw invalid(`the key column ${column} of ${name} is never NULL`, { table: name, column });
    bindable(value); // throws for what cannot be bound
    return value;
  });
}

type Affinity = 'INTEGER' | 'TEXT' | 'BLOB';

/** Key columns have one of these; migrations refuse all others. */
function affinityOf(database: DatabaseSync, { name }: TableShape, column: string): Affinity {
  const [row] = catalogRows<{ type: string }>(
    database,
    `select type from pragma_table_xinfo(?, 'main') where name = ?`,
    name,
    column,
  );
  const type = asciiUpper(row?.type ?? '');
  if (type.includes('INT')) return 'INTEGER';
  return /CHAR|CLOB|TEXT/.test(type) ? 'TEXT' : 'BLOB';
}

let scratch: Readonly<Record<Affinity, StatementSync>> | undefined;

/** What a column makes of a value. */
function storedAs(value: SqlInput, affinity: Affinity): KeyValue {
  scratch ??= openScratch();
  const row = scratch[affinity].get(bindable(value)) as { type: string; value: KeyValue; bytes: Uint8Array };
  return row.type === 'text' ? { text: row.bytes } : row.value;
}

function openScratch(): Readonly<Record<Affinity, StatementSync>> {
  const database = new DatabaseSync(':memory:');
  const open = (affinity: Affinity): StatementSync => {
    const table = `as_${affinity.toLowerCase()}`;
    database.exec(`create table ${table} (value ${affinity}); insert into ${table} values (null)`);
    const statement = database.prepare(
      `update ${table} set value = ? returning typeof(value) as type, value, cast(value as blob) as bytes`,
    );
    statement.setReadBigInts(true);
    return statement;
  };
  return { INTEGER: open('INTEGER'), TEXT: open('TEXT'), BLOB: open('BLOB') };
}

function invalid(message: string, details: Readonly<Record<string, unknown>>): NostosError {
  return new NostosError('INVALID_ARGUMENT', message, { details });
}
