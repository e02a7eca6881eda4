/**
 * A tokenizer for SQL as SQLite reads it (`tokenize.c` of 3.53). Everything that edits or classifies a user's SQL stands
 * on it, so it must never take text inside a string, a quoted name or a comment for SQL: that would rewrite data.
 *
 * Tokens cover the text without a gap: joined, they give it back. Any text has tokens; what SQLite would refuse is
 * `illegal` here, and SQLite says so itself when the statement is prepared.
 */
export type TokenKind =
  | 'space'
  | 'comment'
  | 'word'
  | 'quoted'
  | 'string'
  | 'blob'
  | 'number'
  | 'variable'
  | 'operator'
  | 'illegal';

export interface Token {
  readonly kind: TokenKind;
  readonly start: number;
  readonly end: number;
  /** A word in upper case (ASCII letters only, as SQLite compares keywords), an operator as it is, else ''. */
  readonly word: string;
}

/** Upper case of ASCII letters only: `toUpperCase` would turn the name `ınsert` (dotless i) into a keyword. */
export function asciiUpper(text: string): string {
  return text.replace(/[a-z]+/g, (letters) => letters.toUpperCase());
}

const SPACE = /[ \t\n\f\r\uFEFF]+/y;
const WORD = /[A-Za-z_\u0080-\uFFFF][\w$\u0080-\uFFFF]*/y;
const NUMBER = /0[xX][\da-fA-F_]+|(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)(?:[eE][+-]?\d[\d_]*)?/y;
const VARIABLE = /\?\d*|[@#:][\w$\u0080-\uFFFF]+|\$(?:[\w$\u0080-\uFFFF]|::)+(?:\([^\s)]*\))?/y;
const OPERATOR = /->>|->|\|\||<<|>>|<=|>=|<>|!=|==|[-+*/%=<>&|~,.;()]/y;

const RULES: readonly (readonly [TokenKind, RegExp])[] = [
  ['space', SPACE],
  ['word', WORD],
  ['number', NUMBER],
  ['variable', VARIABLE],
  ['operator', OPERATOR],
];

/** End of a quoted text whose quote is doubled inside; -1 if it is never closed. */
function quoteEnd(sql: string, start: number, quote: string): number {
  let at = sql.indexOf(quote, start + 1);
  while (at >= 0 && sql[at + 1] === quote) at = sql.indexOf(quote, at + 2);
  return at < 0 ? -1 : at + 1;
}

function blockCommentEnd(sql: string, start: number): number {
  const close = sql.indexOf('*/', start + 2);
  return close < 0 ? sql.length : close + 2;
}

/** Kind and end of what is scanned for its closing mark instead of matched: a regular expression would recurse. */
function delimitedAt(sql: string, start: number): readonly [TokenKind, number] | undefined {
  const first = sql[start]!;
  switch (first) {
    case "'":
      return ['string', quoteEnd(sql, start, first)];
    case '"':
    case '`':
      return ['quoted', quoteEnd(sql, start, first)];
    case '[':
      return ['quoted', sql.indexOf(']', start) + 1 || -1];
    case 'x':
    case 'X':
      return sql[start + 1] === "'" ? ['blob', quoteEnd(sql, start + 1, "'")] : undefined;
    case '-':
      return sql[start + 1] === '-' ? ['comment', sql.indexOf('\n', start) + 1 || sql.length] : undefined;
    case '/':
      return sql[start + 1] === '*' ? ['comment', blockCommentEnd(sql, start)] : undefined;
    default:
      return undefined;
  }
}

function tokenAt(sql: string, start: number): Token {
  const delimited = delimitedAt(sql, start);
  if (delimited !== undefined) {
    const [kind, end] = delimited;
    // A quote that is never closed swallows the rest, as in SQLite.
    return end < 0 ? { kind: 'illegal', start, end: sql.length, word: '' } : { kind, start, end, word: '' };
  }
  for (const [kind, rule] of RULES) {
    rule.lastIndex = start;
    if (!rule.test(sql)) continue;
    const end = rule.lastIndex;
    const word = kind === 'word' ? asciiUpper(sql.slice(start, end)) : kind === 'operator' ? sql.slice(start, end) : '';
    return { kind, start, end, word };
  }
  return { kind: 'illegal', start, end: start + 1, word: '' };
}

export function tokenize(sql: string): Token[] {
  const tokens: Token[] = [];
  for (let at = 0; at < sql.length;) {
    const token = tokenAt(sql, at);
    tokens.push(token);
    at = token.end;
  }
  return tokens;
}

/** The tokens that carry meaning: all but white space and comments. */
export function significantTokens(sql: string): Token[] {
  return tokenize(sql).filter((token) => token.kind !== 'space' && token.kind !== 'comment');
}

/** The name that a word or a quoted name (or, as SQLite allows, a string) stands for. */
export function nameOf(sql: string, token: Token): string {
  const text = sql.slice(token.start, token.end);
  if (token.kind !== 'quoted' && token.kind !== 'string') return text;
  const quote = text[0]!;
  const inner = text.slice(1, -1);
  return quote === '[' ? inner : inner.replaceAll(quote + quote, quote);
}

/** Skips `EXPLAIN [QUERY PLAN]`. */
export function statementStart(tokens: readonly Token[]): number {
  let at = 0;
  while (tokens[at]?.word === ';') at += 1;
  if (tokens[at]?.word !== 'EXPLAIN') return at;
  return tokens[at + 1]?.word === 'QUERY' && tokens[at + 2]?.word === 'PLAN' ? at + 3 : at + 1;
}

function isCreateTrigger(tokens: readonly Token[]): boolean {
  const at = statementStart(tokens);
  if (tokens[at]?.word !== 'CREATE') return false;
  const next = tokens[at + 1]?.word;
  return next === 'TRIGGER' || ((next === 'TEMP' || next === 'TEMPORARY') && tokens[at + 2]?.word === 'TRIGGER');
}

/**
 * The statements of a script, without their `;` and without the white space and comments around them. The body of a
 * trigger ends at the `END` that follows a `;`: no other END can, since CASE … END stands inside of a statement.
 */
export function splitStatements(sql: string): string[] {
  const statements: string[] = [];
  let current: Token[] = [];
  let inTriggerBody = false;
  const finish = (): void => {
    if (current.length > 0) statements.push(sql.slice(current[0]!.start, current.at(-1)!.end));
    current = [];
    inTriggerBody = false;
  };
  for (const token of significantTokens(sql)) {
    if (token.word === ';' && !inTriggerBody) {
      finish();
      continue;
    }
    if (token.word === 'BEGIN' && isCreateTrigger(current)) inTriggerBody = true;
    if (token.word === 'END' && inTriggerBody && current.at(-1)?.word === ';') inTriggerBody = false;
    current.push(token);
  }
  finish();
  return statements;
}

/** The first keyword of a statement in upper case, after comments and stray `;`; undefined where there is none. */
export function statementKeyword(sql: string): string | undefined {
  for (let at = 0; at < sql.length;) {
    const token = tokenAt(sql, at);
    at = token.end;
    if (token.kind === 'space' || token.kind === 'comment' || token.word === ';') continue;
    return token.kind === 'word' ? token.word : undefined;
  }
  return undefined;
}

/**
 * `INSERT OR ROLLBACK` and `UPDATE OR ROLLBACK` become `OR ABORT`: inside a group commit ROLLBACK would throw away the
 * transactions of others. ROLLBACK is a legal column name (`SELECT a OR rollback`), hence the check of the word before
 * OR, which can be nothing but a keyword.
 */
export function replaceOrRollback(sql: string): string {
  if (!/rollback/i.test(sql)) return sql;
  const tokens = significantTokens(sql);
  let result = '';
  let copied = 0;
  for (const [index, token] of tokens.entries()) {
    if (token.word !== 'ROLLBACK' || tokens[index - 1]?.word !== 'OR') continue;
    const verb = tokens[index - 2]?.word;
    if (verb !== 'INSERT' && verb !== 'UPDATE') continue;
    result += `${sql.slice(copied, token.start)}ABORT`;
    copied = token.end;
  }
  return copied === 0 ? sql : result + sql.slice(copied);
}
