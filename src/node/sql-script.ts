/** Runs the SQL that a person or a request gives as text: one or more statements, reads or one transaction. */
import { NostosError } from '../base/errors.ts';
import { significantTokens, splitStatements, statementKeyword, type Token } from '../store/sql-tokens.ts';
import type { Row, SqlParameters, SqlValue } from '../store/values.ts';
import type { Tenant, Transaction } from './types.ts';

export interface StatementResult {
  /** First keyword, in upper case. */
  readonly verb: string;
  /** Rows of a SELECT, or of RETURNING. INTEGERs that a number cannot hold come as bigint. */
  readonly rows?: readonly Row[];
  readonly changes?: number;
  readonly lastInsertRowid?: number | bigint;
}

export interface ScriptInput {
  readonly sql: string;
  readonly parameters?: SqlParameters | undefined;
  /** Makes a write idempotent. */
  readonly id?: string | undefined;
  readonly timeoutMs?: number | undefined;
}

const READING = new Set(['SELECT', 'VALUES', 'EXPLAIN', 'PRAGMA']);
const WRITING = new Set(['INSERT', 'UPDATE', 'DELETE']);

/** The tokens outside of parentheses. */
function topLevel(statement: string): Token[] {
  let depth = 0;
  return significantTokens(statement).filter((token) => {
    if (token.word === '(') depth += 1;
    if (token.word === ')') depth -= 1;
    return depth === 0;
  });
}

/** Whether a statement only reads. What this takes for a read runs on a connection that cannot write. */
export function isRead(statement: string): boolean {
  const verb = statementKeyword(statement);
  if (verb !== 'WITH') return verb !== undefined && READING.has(verb);
  const tokens = topLevel(statement);
  return !tokens.some(
    (token, index) => WRITING.has(token.word) || (token.word === 'REPLACE' && tokens[index + 1]?.word === 'INTO'),
  );
}

/** Whether a script holds nothing but reads, and so may run with the right to read. */
export function readsOnly(sql: string): boolean {
  return splitStatements(sql).every(isRead);
}

function parse(input: ScriptInput): string[] {
  const statements = splitStatements(input.sql);
  if (statements.length === 0) throw new NostosError('INVALID_ARGUMENT', 'there is no SQL statement to run');
  if (statements.length > 1 && input.parameters !== undefined)
    throw new NostosError('INVALID_ARGUMENT', 'parameters go with one statement; this text has several');
  return statements;
}

function exact(value: SqlValue): SqlValue {
  return typeof value === 'bigint' && Number.isSafeInteger(Number(value)) ? Number(value) : value;
}

function exactRow(row: Row): Row {
  const result: Row = {};
  for (const [name, value] of Object.entries(row))
    Object.defineProperty(result, name, { value: exact(value), enumerable: true, writable: true, configurable: true });
  return result;
}

function runOne(tx: Transaction, statement: string, parameters: SqlParameters | undefined): StatementResult {
  const verb = statementKeyword(statement) ?? '';
  if (isRead(statement) || topLevel(statement).some((token) => token.word === 'RETURNING'))
    return { verb, rows: tx.all(statement, parameters).map(exactRow) };
  const { changes, lastInsertRowid } = tx.run(statement, parameters);
  return { verb, changes, lastInsertRowid: exact(lastInsertRowid) as number | bigint };
}

/** Runs reads in a reader process, one after the other; fails with `SQL_DENIED` when a statement would write. */
export async function queryScript(tenant: Tenant, input: ScriptInput, signal: AbortSignal): Promise<StatementResult[]> {
  const results: StatementResult[] = [];
  for (const statement of parse(input)) {
    const verb = statementKeyword(statement) ?? '';
    if (!isRead(statement)) throw new NostosError('SQL_DENIED', `${verb} changes data; this call only reads`);
    const rows = await tenant.query(statement, input.parameters, {
      int64: 'bigint',
      signal,
      ...(input.timeoutMs === undefined ? {} : { timeoutMs: input.timeoutMs }),
    });
    results.push({ verb, rows: rows.map(exactRow) });
  }
  return results;
}

/** Runs all statements in one transaction: either every one counts, or none. */
export async function executeScript(
  tenant: Tenant,
  input: ScriptInput,
  signal: AbortSignal,
): Promise<StatementResult[]> {
  const statements = parse(input);
  return tenant.write((tx) => statements.map((statement) => runOne(tx, statement, input.parameters)), {
    int64: 'bigint',
    signal,
    ...(input.id === undefined ? {} : { id: input.id }),
  });
}
