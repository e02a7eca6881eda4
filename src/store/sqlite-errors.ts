/** Turns what `node:sqlite` throws into a `NostosError`: the code follows from SQLite's primary result code. */
import { NostosError, type ErrorCode } from '../base/errors.ts';

const PRIMARY_CODES: Readonly<Record<number, ErrorCode>> = {
  5: 'IO_FAILED', // BUSY: an outsider holds a lock on the file
  8: 'SQL_DENIED', // READONLY
  10: 'IO_FAILED',
  11: 'TENANT_DAMAGED',
  13: 'DISK_FULL',
  14: 'IO_FAILED', // CANTOPEN
  18: 'TRANSACTION_TOO_LARGE', // TOOBIG
  19: 'CONSTRAINT_FAILED',
  23: 'SQL_DENIED',
  26: 'TENANT_DAMAGED', // NOTADB
};

interface SqliteError extends Error {
  readonly errcode: number;
  readonly errstr: string;
}

export function isSqliteError(error: unknown): error is SqliteError {
  return error instanceof Error && (error as { code?: unknown }).code === 'ERR_SQLITE_ERROR';
}

/** The primary result code of SQLite, or undefined where the error is not of SQLite. */
export function sqliteCode(error: unknown): number | undefined {
  return isSqliteError(error) ? error.errcode & 0xff : undefined;
}

/** `statement` is the user's own SQL; it is named in the message, shortened. */
export function fromSqlite(error: unknown, statement?: string): unknown {
  const where = statement === undefined ? '' : ` in ${JSON.stringify(shorten(statement))}`;
  if (isSqliteError(error)) {
    const code = PRIMARY_CODES[error.errcode & 0xff] ?? 'SQL_FAILED';
    const message = code === 'SQL_DENIED' ? deniedMessage(statement, error) : `${error.message}${where}`;
    return new NostosError(code, message, {
      cause: error,
      details: { sqliteCode: error.errcode, ...(statement === undefined ? {} : { statement: shorten(statement) }) },
    });
  }
  if (!(error instanceof Error)) return error;
  const code = (error as { code?: unknown }).code;
  if (code === 'ERR_OUT_OF_RANGE')
    return new NostosError('INTEGER_OUT_OF_RANGE', `${error.message}${where}; read it with int64: "bigint"`, {
      cause: error,
    });
  if (code === 'ERR_INVALID_ARG_TYPE' || code === 'ERR_INVALID_ARG_VALUE' || code === 'ERR_INVALID_STATE')
    return new NostosError('INVALID_ARGUMENT', `${error.message}${where}`, { cause: error });
  return error;
}

function deniedMessage(statement: string | undefined, error: Error): string {
  const shown = statement === undefined ? 'the statement' : JSON.stringify(shorten(statement));
  return (
    `${shown} is not allowed here (${error.message}): transactions are begun and ended by Nostos, ` +
    'the schema changes through tenant.migrate, and PRAGMA, ATTACH and the nostos_ tables are not for user SQL'
  );
}

function shorten(statement: string): string {
  return statement.length > 200 ? `${statement.slice(0, 200)}…` : statement;
}
