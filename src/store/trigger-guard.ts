/**
 * User triggers fire once: on the writer, where the statement runs. Their effects are in the changeset, so the connection
 * that applies changesets must not fire them again. SQLite's JavaScript API cannot switch triggers off, hence a guard in
 * the trigger itself: `WHEN nostos_live() AND (…)`, a function that answers 1 on the writer and 0 on the applier. A
 * connection without that function (an outside tool) cannot fire the trigger at all, which is right too.
 *
 * The guard is marked by comments that no user text may contain, so that taking it out gives back the original text byte
 * for byte. INSTEAD OF triggers belong to views and never fire on apply; they stay as they are.
 */
import { NostosError } from '../base/errors.ts';
import { significantTokens, type Token, tokenize } from './sql-tokens.ts';

const MARK = '/*nostos:guard*/';
const MARK_END = '/*nostos:end*/';
/** Stands before BEGIN when the trigger had no WHEN. */
const WHOLE = `${MARK}WHEN nostos_live()${MARK_END} `;
/** Stands behind WHEN, and `CLOSE` behind the condition that was there. */
const OPEN = `${MARK} nostos_live() AND (${MARK_END}`;
/** The line break ends a comment that the condition may end with. */
const CLOSE = `${MARK}\n)${MARK_END}`;

export const GUARD_FUNCTION = 'nostos_live';

/** Whether the trigger has the guard exactly as `guardTrigger` writes it. */
export function isGuarded(sql: string): boolean {
  const original = removeGuard(sql);
  return original !== sql && addGuard(original) === sql;
}

/** The trigger with a guard; unchanged if it has one or needs none. */
export function guardTrigger(sql: string): string {
  if (isGuarded(sql)) return sql;
  if (hasMark(sql))
    throw new NostosError('INVALID_ARGUMENT', `a trigger may not contain the comment ${MARK}: ${sql.slice(0, 200)}`);
  return addGuard(sql);
}

/** The text that `guardTrigger` was given. */
export function unguardTrigger(sql: string): string {
  return isGuarded(sql) ? removeGuard(sql) : sql;
}

function hasMark(sql: string): boolean {
  return tokenize(sql).some((token) => token.kind === 'comment' && sql.slice(token.start, token.end) === MARK);
}

function addGuard(sql: string): string {
  const tokens = significantTokens(sql);
  const header = parseHeader(sql, tokens);
  if (header === undefined) return sql;
  const { when, begin } = header;
  if (when === undefined) return sql.slice(0, begin.start) + WHOLE + sql.slice(begin.start);
  const conditionEnd = tokens[tokens.indexOf(begin) - 1]!.end;
  return sql.slice(0, when.end) + OPEN + sql.slice(when.end, conditionEnd) + CLOSE + sql.slice(conditionEnd);
}

function removeGuard(sql: string): string {
  let result = sql;
  for (const part of [WHOLE, OPEN, CLOSE]) {
    const at = markAt(result, part);
    if (at >= 0) result = result.slice(0, at) + result.slice(at + part.length);
  }
  return result;
}

/** Where a part of the guard stands as SQL, not as text within a string or another comment. */
function markAt(sql: string, part: string): number {
  return tokenize(sql).find((token) => token.kind === 'comment' && sql.startsWith(part, token.start))?.start ?? -1;
}

interface TriggerHeader {
  readonly when: Token | undefined;
  readonly begin: Token;
}

/** WHEN and BEGIN as keywords of the trigger itself; undefined for INSTEAD OF. */
function parseHeader(sql: string, tokens: readonly Token[]): TriggerHeader | undefined {
  const word = (at: number): string => tokens[at]?.word ?? '';
  const refuse = (): never => {
    throw new NostosError('INVALID_ARGUMENT', `not a CREATE TRIGGER statement: ${sql.slice(0, 200)}`);
  };
  let at = word(1) === 'TEMP' || word(1) === 'TEMPORARY' ? 2 : 1;
  if (word(0) !== 'CREATE' || word(at) !== 'TRIGGER') return refuse();
  at += 1;
  if (word(at) === 'IF' && word(at + 1) === 'NOT') at += 3;
  at += word(at + 1) === '.' ? 3 : 1;
  if (word(at) === 'INSTEAD') return undefined;
  // The event: no name before ON is the keyword ON, which is reserved.
  while (at < tokens.length && word(at) !== 'ON') at += 1;
  at += word(at + 2) === '.' ? 4 : 2;
  if (word(at) === 'FOR' && word(at + 1) === 'EACH') at += 3;
  const when = word(at) === 'WHEN' ? tokens[at] : undefined;
  const begin = when === undefined ? at : beginAfter(tokens, at + 1);
  if (word(begin) !== 'BEGIN') return refuse();
  return { when, begin: tokens[begin]! };
}

/**
 * BEGIN may also be a column name in the condition (`WHEN new.begin > 0`, `WHEN a = begin BEGIN`). The one that opens the
 * body is the first one, outside of parentheses, that a statement follows: an expression cannot go on with one of these
 * words, since they are reserved or, after a column name, out of place.
 */
function beginAfter(tokens: readonly Token[], from: number): number {
  let depth = 0;
  for (let at = from; at < tokens.length; at += 1) {
    const { word } = tokens[at]!;
    if (word === '(') depth += 1;
    else if (word === ')') depth -= 1;
    else if (word === 'BEGIN' && depth === 0 && STATEMENT_WORDS.has(tokens[at + 1]?.word ?? '')) return at;
  }
  return -1;
}

const STATEMENT_WORDS: ReadonlySet<string> = new Set([
  'INSERT',
  'REPLACE',
  'UPDATE',
  'DELETE',
  'SELECT',
  'VALUES',
  'WITH',
]);
