/**
 * The transaction object that user code gets. It is alive only while its callback runs: afterwards every call fails
 * with `CLOSED`, so that a leaked object cannot write into somebody else's transaction.
 *
 * A failed statement dooms the transaction: what SQLite leaves behind after some failures is not what the statement
 * says (a failed INSERT OR REPLACE into a STRICT table corrupts an index unless it is rolled back). `savepoint` rolls
 * back, so it heals.
 */
import { NostosError } from '../base/errors.ts';
import type { ForgottenKey } from '../log/ledger.ts';
import type { Connection } from './connection.ts';
import { forgetTarget, type ForgetContext } from './forget.ts';
import { Statements } from './statements.ts';
import type { Int64Mode, Row, RunResult, SqlInput, SqlParameters, SqlStatement, SqlValue } from './values.ts';

export class WriterTransaction {
  readonly #connection: Connection;
  readonly #statements: Statements;
  readonly #forgetting: ForgetContext | undefined;
  readonly #forgotten: ForgottenKey[] = [];
  #open = true;
  #doom: unknown;
  #doomed = false;
  #depth = 0;
  /** Rows changed by statements so far, as a rough measure of size. */
  changes = 0;

  /** Without `forgetting` it forgets nothing: its record could not say so. */
  constructor(connection: Connection, int64: Int64Mode, forgetting?: ForgetContext) {
    this.#connection = connection;
    this.#statements = new Statements(connection, int64);
    this.#forgetting = forgetting;
  }

  /** What its record must say, once it has finished. */
  get forgotten(): readonly ForgottenKey[] {
    return this.#forgotten;
  }

  run(statement: string | SqlStatement, parameters?: SqlParameters): RunResult {
    const result = this.#guard(() => this.#statements.run(statement, parameters));
    this.changes += result.changes;
    return result;
  }

  get<R = Row>(statement: string | SqlStatement, parameters?: SqlParameters): R | undefined {
    return this.#guard(() => this.#statements.get<R>(statement, parameters));
  }

  all<R = Row>(statement: string | SqlStatement, parameters?: SqlParameters): R[] {
    return this.#guard(() => this.#statements.all<R>(statement, parameters));
  }

  value<V extends SqlValue = SqlValue>(statement: string | SqlStatement, parameters?: SqlParameters): V | undefined {
    return this.#guard(() => this.#statements.value<V>(statement, parameters));
  }

  *iterate<R = Row>(statement: string | SqlStatement, parameters?: SqlParameters): IterableIterator<R> {
    const rows = this.#guard(() => this.#statements.iterate<R>(statement, parameters));
    try {
      for (;;) {
        const next = this.#guard(() => rows.next());
        if (next.done === true) return;
        yield next.value;
      }
    } finally {
      rows.return?.();
    }
  }

  forget(table: string, key: Readonly<Record<string, SqlInput>>): boolean {
    return this.#guard(() => {
      if (this.#forgetting === undefined)
        throw new NostosError('INVALID_ARGUMENT', 'a migration forgets nothing; forget rows in a write of their own');
      const { database } = this.#connection;
      const { table: name, forgotten, remove, look } = forgetTarget(database, this.#forgetting, { table, key });
      database.exec('pragma secure_delete = on');
      try {
        const { changes } = this.#statements.run(remove);
        if (this.#statements.get(look) !== undefined)
          throw new NostosError('CONSTRAINT_FAILED', `a trigger of ${name} keeps the row that is forgotten`);
        this.#forgotten.push(...forgotten);
        this.changes += Math.max(1, changes); // what is not there takes room in the record, too
        return changes > 0;
      } finally {
        database.exec('pragma secure_delete = off');
      }
    });
  }

  savepoint<T>(fn: () => T): T {
    this.#assertUsable();
    const forgotten = this.#forgotten.length;
    const name = `nostos_user_${this.#depth}`;
    const { database } = this.#connection;
    database.exec(`savepoint ${name}`);
    this.#depth += 1;
    try {
      const result = fn();
      if (isThenable(result))
        throw new NostosError('INVALID_ARGUMENT', 'a savepoint callback must be synchronous, it returned a promise');
      if (this.#doomed) throw this.#doom;
      database.exec(`release ${name}`);
      return result;
    } catch (error) {
      // Where SQLite rolled the whole transaction back there is nothing left to go on with.
      if (database.isTransaction) {
        database.exec(`rollback to ${name}; release ${name}`);
        this.#forgotten.length = forgotten;
        this.#doomed = false;
        this.#doom = undefined;
      }
      throw error;
    } finally {
      this.#depth -= 1;
    }
  }

  /** Ends the object's life; throws if the transaction must not be kept. */
  finish(): void {
    this.abandon();
    if (this.#doomed) {
      const cause = this.#doom;
      const why = cause instanceof Error ? cause.message : String(cause);
      throw new NostosError(
        'TRANSACTION_DOOMED',
        `the transaction was undone because a statement in it failed earlier: ${why}; run statements that may fail inside tx.savepoint()`,
        { cause },
      );
    }
  }

  /** Ends the object's life whatever its state. Iterations that were left open would keep SQLite from committing. */
  abandon(): void {
    this.#open = false;
    this.#statements.end('the transaction has ended; use the tx object only inside its callback');
  }

  #guard<T>(call: () => T): T {
    this.#assertUsable();
    try {
      return call();
    } catch (error) {
      if (!(error instanceof NostosError) || error.code !== 'INVALID_ARGUMENT') {
        this.#doomed = true;
        this.#doom = error;
      }
      throw error;
    }
  }

  #assertUsable(): void {
    if (!this.#open)
      throw new NostosError('CLOSED', 'the transaction has ended; use the tx object only inside its callback');
    if (this.#doomed)
      throw new NostosError('TRANSACTION_DOOMED', 'a statement failed earlier in this transaction', {
        cause: this.#doom,
      });
    if (!this.#connection.inTransaction)
      throw new NostosError('TRANSACTION_DOOMED', 'SQLite has rolled this transaction back');
  }
}

export function isThenable(value: unknown): value is PromiseLike<unknown> {
  return typeof value === 'object' && value !== null && typeof (value as { then?: unknown }).then === 'function';
}
