/** Values as they pass between JavaScript and SQLite. */

/** What may be bound to a parameter. Whole numbers are stored as INTEGER, all others as REAL. */
export type SqlInput = null | number | bigint | string | boolean | Uint8Array;

/** What a column may hold. INTEGERs come as number, or as bigint with `int64: 'bigint'`. */
export type SqlValue = null | number | bigint | string | Uint8Array;

export type Row = Record<string, SqlValue>;

/** Positional (`?`) or named (`:name`, `$name`, `@name`, given without the sign) parameters. */
export type SqlParameters = readonly SqlInput[] | Readonly<Record<string, SqlInput>>;

/** How INTEGER columns are read: a number that does not fit fails with `INTEGER_OUT_OF_RANGE`. */
export type Int64Mode = 'number' | 'bigint';

export interface RunResult {
  /** Rows that the statement inserted, updated or deleted; not those of triggers or cascades. */
  readonly changes: number;
  readonly lastInsertRowid: number | bigint;
}

/** SQL text with its parameters, made by the `sql` tag. */
export interface SqlStatement {
  readonly text: string;
  readonly parameters: readonly SqlInput[];
}

/**
 * `sql` tag: each `${value}` becomes a bound parameter, never text.
 *
 * @example tx.run(sql`insert into notes (body) values (${body})`)
 */
export function sql(strings: TemplateStringsArray, ...values: readonly SqlInput[]): SqlStatement {
  return { text: strings.join('?'), parameters: values };
}
