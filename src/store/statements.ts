/** Runs user statements on one connection: binding, reading, and errors that name the statement. */
import type { StatementSync } from 'node:sqlite';
import { NostosError } from '../base/errors.ts';
import { checkStatement, type Connection } from './connection.ts';
import { fromSqlite } from './sqlite-errors.ts';
import type { Int64Mode, Row, RunResult, SqlInput, SqlParameters, SqlStatement, SqlValue } from './values.ts';

type Bindable = null | number | bigint | string | Uint8Array;

const NONE: readonly SqlInput[] = [];

/** Throws for what cannot be bound. */
export function checkParameters(parameters: SqlParameters): void {
  bindings(parameters);
}

/** Whole numbers are bound as INTEGER: bound as they are, `5` would be stored as 5.0 in a column without a type. */
export function bindable(value: SqlInput): Bindable {
  switch (typeof value) {
    case 'string':
      return value;
    case 'number':
      if (Number.isSafeInteger(value)) return Object.is(value, -0) ? value : BigInt(value);
      if (Number.isNaN(value))
        throw new NostosError('INVALID_ARGUMENT', 'NaN cannot be stored; SQLite would silently make it NULL');
      return value;
    case 'boolean':
      return value ? 1n : 0n;
    case 'bigint':
      if (BigInt.asIntN(64, value) !== value)
        throw new NostosError('INVALID_ARGUMENT', `${value} does not fit 64 bits`);
      return value;
    default:
      if (value === null || value instanceof Uint8Array) return value;
      throw new NostosError(
        'INVALID_ARGUMENT',
        `a parameter must be null, number, bigint, string, boolean or Uint8Array, got ${describe(value)}`,
      );
  }
}

function describe(value: unknown): string {
  if (value instanceof Date) return 'a Date (give toISOString() or getTime())';
  return value === undefined ? 'undefined (give null)' : `a ${typeof value}`;
}

function bindings(parameters: SqlParameters): [Bindable[]] | [[], Record<string, Bindable>] {
  if (typeof parameters !== 'object' || parameters === null || parameters instanceof Uint8Array)
    throw new NostosError('INVALID_ARGUMENT', `parameters must be a list or an object, got ${describe(parameters)}`);
  if (Array.isArray(parameters)) {
    const list = parameters as readonly SqlInput[];
    const bound: Bindable[] = [];
    for (const value of list) bound.push(bindable(value));
    return [bound];
  }
  const named: Record<string, Bindable> = {};
  for (const [name, value] of Object.entries(parameters as Record<string, SqlInput>)) named[name] = bindable(value);
  return [[], named];
}

export class Statements {
  readonly #connection: Connection;
  readonly #int64: Int64Mode;
  #iterations: Set<Iterator<unknown>> | undefined;
  #ended: string | undefined;

  constructor(connection: Connection, int64: Int64Mode) {
    this.#connection = connection;
    this.#int64 = int64;
  }

  /** Closes what is still being iterated; from now on each call fails with `CLOSED` and says why. */
  end(why: string): void {
    this.#ended = why;
    for (const rows of this.#iterations ?? []) rows.return?.();
    this.#iterations = undefined;
  }

  run(statement: string | SqlStatement, parameters?: SqlParameters): RunResult {
    return this.#with(
      statement,
      parameters,
      (prepared, bound, named) => {
        const { changes, lastInsertRowid } = named === undefined ? prepared.run(...bound) : prepared.run(named);
        return { changes: Number(changes), lastInsertRowid: this.#integer(lastInsertRowid as bigint) };
      },
      'run',
    );
  }

  get<R = Row>(statement: string | SqlStatement, parameters?: SqlParameters): R | undefined {
    return this.#with(statement, parameters, (prepared, bound, named) =>
      named === undefined ? prepared.get(...bound) : prepared.get(named),
    ) as R | undefined;
  }

  all<R = Row>(statement: string | SqlStatement, parameters?: SqlParameters): R[] {
    return this.#with(statement, parameters, (prepared, bound, named) =>
      named === undefined ? prepared.all(...bound) : prepared.all(named),
    ) as R[];
  }

  /** A statement of its own, so that two iterations of the same text do not disturb each other. */
  *iterate<R = Row>(statement: string | SqlStatement, parameters?: SqlParameters): IterableIterator<R> {
    const rows = this.#with(
      statement,
      parameters,
      (prepared, bound, named) => (named === undefined ? prepared.iterate(...bound) : prepared.iterate(named)),
      'own',
    );
    (this.#iterations ??= new Set()).add(rows);
    try {
      for (const row of rows) {
        yield row as R;
        if (this.#ended !== undefined) throw new NostosError('CLOSED', this.#ended);
      }
    } catch (error) {
      throw fromSqlite(error, typeof statement === 'string' ? statement : statement.text);
    } finally {
      this.#iterations?.delete(rows);
    }
  }

  value<V extends SqlValue = SqlValue>(statement: string | SqlStatement, parameters?: SqlParameters): V | undefined {
    const row = this.get(statement, parameters);
    return row === undefined ? undefined : (Object.values(row)[0] as V);
  }

  #integer(value: bigint): number | bigint {
    const number = Number(value);
    return this.#int64 === 'bigint' || !Number.isSafeInteger(number) ? value : number;
  }

  #with<T>(
    statement: string | SqlStatement,
    parameters: SqlParameters | undefined,
    call: (prepared: StatementSync, bound: Bindable[], named: Record<string, Bindable> | undefined) => T,
    which: 'cached' | 'own' | 'run' = 'cached',
  ): T {
    if (this.#ended !== undefined) throw new NostosError('CLOSED', this.#ended);
    const text = typeof statement === 'string' ? statement : statement?.text;
    checkStatement(text);
    const given = parameters ?? (typeof statement === 'string' ? NONE : statement.parameters);
    const [bound, named] = bindings(given);
    // `run` reads nothing but the last rowid, which SQLite may have from an earlier statement and beyond 2^53.
    const int64 = which === 'run' ? 'bigint' : this.#int64;
    const prepared = which === 'own' ? this.#connection.prepareUser(text, int64) : this.#connection.user(text, int64);
    try {
      return call(prepared, bound, named);
    } catch (error) {
      throw fromSqlite(error, text);
    }
  }
}
