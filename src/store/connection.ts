/**
 * One SQLite connection to a tenant file, in one of three roles.
 *
 * - writer: runs user transactions. Foreign keys on, triggers live, automatic checkpoints off (checkpoints are ours).
 * - reader: read-only, one snapshot at a time.
 * - applier: applies changesets of the log. Foreign keys off (their actions are in the changeset already), user
 *   triggers silent, defensive off (shadow tables of FTS and R-tree are applied like any table). It is never queried
 *   by users: FTS keeps caches per connection that applied rows would leave stale.
 *
 * An authorizer denies user SQL whatever would break the frame around it: transaction control, DDL, ATTACH, PRAGMA
 * that set something, the `nostos_` tables. It looks only while user SQL is being prepared: SQLite prepares statements
 * of its own while user statements run (the session extension's PRAGMA table_xinfo, FTS5), and denied these fail.
 */
import { DatabaseSync, constants, type StatementSync } from 'node:sqlite';
import { NostosError } from '../base/errors.ts';
import { replaceOrRollback, significantTokens, statementKeyword } from './sql-tokens.ts';
import { fromSqlite } from './sqlite-errors.ts';
import type { Int64Mode } from './values.ts';

export type ConnectionRole = 'writer' | 'reader' | 'applier';

export interface ConnectionOptions {
  readonly role: ConnectionRole;
  readonly statementCacheMax: number;
}

/** Kept small so that a WAL that once grew gives its space back. */
const JOURNAL_SIZE_LIMIT_BYTES = 32 * 1024 * 1024;
const BUSY_TIMEOUT_MS = 5_000;

const READ_PRAGMAS = new Set(
  (
    'table_info table_xinfo table_list index_list index_info index_xinfo foreign_key_list foreign_key_check ' +
    'data_version function_list module_list collation_list compile_options database_list integrity_check quick_check'
  ).split(' '),
);
const READ_PRAGMAS_WITHOUT_VALUE = new Set(
  'user_version application_id schema_version page_count page_size freelist_count encoding'.split(' '),
);

export class Connection {
  readonly database: DatabaseSync;
  readonly role: ConnectionRole;
  readonly path: string;
  /** What user triggers see: 1 where they must fire. */
  triggersLive: boolean;
  #preparing: 'user' | 'migration' | undefined;
  readonly #statements = new Map<string, StatementSync>();
  readonly #internal = new Map<string, StatementSync>();
  readonly #cacheMax: number;

  constructor(path: string, options: ConnectionOptions) {
    this.path = path;
    this.role = options.role;
    this.#cacheMax = options.statementCacheMax;
    this.triggersLive = options.role === 'writer';
    try {
      this.database = new DatabaseSync(path, {
        readOnly: options.role === 'reader',
        enableForeignKeyConstraints: options.role === 'writer',
        enableDoubleQuotedStringLiterals: false,
        allowExtension: false,
        defensive: options.role !== 'applier',
        timeout: BUSY_TIMEOUT_MS,
      });
      if (options.role !== 'reader')
        this.database.exec(
          `pragma journal_mode = wal; pragma synchronous = normal; pragma wal_autocheckpoint = 0; ` +
            `pragma journal_size_limit = ${JOURNAL_SIZE_LIMIT_BYTES}`,
        );
      this.database.function('nostos_live', { directOnly: false }, () => (this.triggersLive ? 1n : 0n));
      this.database.setAuthorizer((action, arg1, arg2) => this.#authorize(action, arg1, arg2));
    } catch (error) {
      throw fromSqlite(error);
    }
  }

  /**
   * A statement of Nostos itself, kept for the life of the connection. Integers come as bigint: `run` answers with the
   * last rowid whatever it did itself, and as a number one beyond 2^53 would make it throw after it has worked.
   */
  internal(statement: string): StatementSync {
    let prepared = this.#internal.get(statement);
    if (prepared !== undefined) return prepared;
    prepared = this.database.prepare(statement);
    prepared.setReadBigInts(true);
    this.#internal.set(statement, prepared);
    return prepared;
  }

  /** A statement of the user, checked, and cached by its text. */
  user(statement: string, int64: Int64Mode): StatementSync {
    const key = int64 === 'bigint' ? `${statement}\u0000` : statement;
    let prepared = this.#statements.get(key);
    if (prepared !== undefined) {
      if (this.#statements.size > this.#cacheMax / 2) {
        this.#statements.delete(key);
        this.#statements.set(key, prepared);
      }
      return prepared;
    }
    prepared = this.prepareUser(statement, int64);
    this.#statements.set(key, prepared);
    if (this.#statements.size > this.#cacheMax) {
      const oldest = this.#statements.keys().next().value as string;
      this.#statements.delete(oldest);
    }
    return prepared;
  }

  /** Runs DDL of a migration: its own rules apply, and are checked on the statement before. */
  migrationStatement(statement: string): void {
    this.#preparing = 'migration';
    try {
      this.database.exec(statement);
    } catch (error) {
      throw fromSqlite(error, statement);
    } finally {
      this.#preparing = undefined;
    }
  }

  get inTransaction(): boolean {
    return this.database.isTransaction;
  }

  close(): void {
    this.#statements.clear();
    this.#internal.clear();
    if (this.database.isOpen) this.database.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /** A statement of the user, checked, that nobody else uses. */
  prepareUser(statement: string, int64: Int64Mode): StatementSync {
    // A failed statement dooms its transaction anyway, so ROLLBACK as a conflict action means what ABORT does, without
    // taking the other transactions of the group along.
    const text = replaceOrRollback(statement);
    assertNoVacuum(text);
    this.#preparing = 'user';
    try {
      const prepared = this.database.prepare(text);
      assertSingle(text.slice(prepared.sourceSQL.length));
      if (int64 === 'bigint') prepared.setReadBigInts(true);
      return prepared;
    } catch (error) {
      throw fromSqlite(error, statement);
    } finally {
      this.#preparing = undefined;
    }
  }

  #authorize(action: number, arg1: string | null, arg2: string | null): number {
    if (this.#preparing === undefined) return constants.SQLITE_OK;
    switch (action) {
      case constants.SQLITE_READ:
        // As a table it would run ANALYZE, whose tables come in the midst of a session, which then has no changeset.
        return arg1?.toLowerCase() === 'pragma_optimize' ? constants.SQLITE_DENY : constants.SQLITE_OK;
      case constants.SQLITE_SELECT:
      case constants.SQLITE_FUNCTION:
      case constants.SQLITE_RECURSIVE:
        return constants.SQLITE_OK;
      case constants.SQLITE_INSERT:
      case constants.SQLITE_UPDATE:
      case constants.SQLITE_DELETE:
        // A migration may reset SQLite's counters, which travel in its record.
        return (this.#preparing === 'user' ? isOurs(arg1) : isNostos(arg1))
          ? constants.SQLITE_DENY
          : constants.SQLITE_OK;
      case constants.SQLITE_PRAGMA: {
        const name = arg1?.toLowerCase() ?? '';
        if (READ_PRAGMAS.has(name)) return constants.SQLITE_OK;
        if (arg2 === null && READ_PRAGMAS_WITHOUT_VALUE.has(name)) return constants.SQLITE_OK;
        return this.#preparing === 'migration' && (name === 'user_version' || name === 'application_id')
          ? constants.SQLITE_OK
          : constants.SQLITE_DENY;
      }
      case constants.SQLITE_TRANSACTION:
      case constants.SQLITE_SAVEPOINT:
      case constants.SQLITE_ATTACH:
      case constants.SQLITE_DETACH:
        return constants.SQLITE_DENY;
      default:
        return this.#preparing === 'migration' ? constants.SQLITE_OK : constants.SQLITE_DENY;
    }
  }
}

/** Tables of Nostos; and SQLite's counters and statistics, whose changes no changeset carries. */
function isOurs(table: string | null): boolean {
  const name = table?.toLowerCase() ?? '';
  return isNostos(name) || name === 'sqlite_sequence' || name.startsWith('sqlite_stat');
}

function isNostos(table: string | null): boolean {
  return table?.toLowerCase().startsWith('nostos_') ?? false;
}

/** VACUUM asks no authorizer, and VACUUM INTO writes a file of any name even where the database is read-only. */
function assertNoVacuum(statement: string): void {
  if (!/vacuum/i.test(statement) || statementKeyword(statement) !== 'VACUUM') return;
  throw new NostosError('SQL_DENIED', 'VACUUM is not allowed here; tenant.exportFile writes a copy');
}

/** SQLite compiles the first statement of a text and would silently leave out the others. */
function assertSingle(rest: string): void {
  if (/^[\s;]*$/.test(rest) || significantTokens(rest).every(({ word }) => word === ';')) return;
  throw new NostosError(
    'INVALID_ARGUMENT',
    `one call runs one statement; run separately: ${JSON.stringify(rest.trim().slice(0, 200))}`,
  );
}

/** Asserts that a value given as SQL is usable text. */
export function checkStatement(statement: unknown): asserts statement is string {
  if (typeof statement !== 'string' || statement.length === 0)
    throw new NostosError('INVALID_ARGUMENT', `a statement must be SQL text, got ${typeof statement}`);
}
