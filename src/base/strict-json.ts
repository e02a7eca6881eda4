/**
 * JSON from outside, without what `JSON.parse` lets pass: a key that stands twice, integers that lose digits, text that is
 * no Unicode, nesting and sizes without a bound. The grammar stays that of `JSON.parse`; before it a scan of the brackets
 * and keys bounds its work, and afterwards every integer, whatever its size, is a bigint.
 */
import { NostosError } from './errors.ts';

export type StrictJson = null | boolean | number | bigint | string | StrictJson[] | { [key: string]: StrictJson };

export const STRICT_JSON_LIMITS = {
  jsonBytesMax: 16 * 1024 * 1024,
  /** Arrays and objects within each other; what serde_json takes. */
  jsonDepthMax: 127,
} as const;

const WHOLE = /^(?:0|-?[1-9]\d*)$/;
const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const COLON = 0x3a;
const SPACE = [0x20, 0x09, 0x0a, 0x0d];

/** A number is a bigint where it is written as a whole one; `1.0`, `1e3` and `-0` are not. */
export function parseStrictJson(
  bytes: Uint8Array,
  limits: Partial<Record<keyof typeof STRICT_JSON_LIMITS, number>> = {},
): StrictJson {
  const { jsonBytesMax, jsonDepthMax } = { ...STRICT_JSON_LIMITS, ...limits };
  if (bytes.length > jsonBytesMax) throw refused(`it has ${bytes.length} bytes, more than ${jsonBytesMax}`);
  try {
    const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
    checkNesting(text, jsonDepthMax);
    return JSON.parse(text, revive) as StrictJson;
  } catch (error) {
    if (error instanceof NostosError) throw error;
    throw refused((error as Error).message, error);
  }
}

function revive(key: string, value: unknown, context?: { readonly source?: string }): unknown {
  if (!key.isWellFormed() || (typeof value === 'string' && !value.isWellFormed()))
    throw refused('a text in it is no Unicode');
  if (typeof value !== 'number') return value;
  if (!Number.isFinite(value)) throw refused('a number in it is out of range');
  const source = context?.source ?? '';
  return WHOLE.test(source) ? BigInt(source) : value;
}

/** Text that is not JSON gets through here, and no further. */
function checkNesting(text: string, depthMax: number): void {
  const open: (Set<string> | undefined)[] = [];
  for (let at = 0; at < text.length; at++) {
    const char = text.charAt(at);
    if (char === '{' || char === '[') {
      if (open.push(char === '{' ? new Set() : undefined) > depthMax)
        throw refused(`it is nested deeper than ${depthMax}`);
    } else if (char === '}' || char === ']') open.pop();
    else if (char === '"') {
      const end = endOfText(text, at);
      const keys = open.at(-1);
      if (keys !== undefined && text.charCodeAt(afterSpace(text, end)) === COLON) {
        const key = JSON.parse(text.slice(at, end)) as string;
        if (keys.has(key)) throw refused(`the key ${JSON.stringify(key.slice(0, 100))} stands twice in one object`);
        keys.add(key);
      }
      at = end - 1;
    }
  }
}

function endOfText(text: string, start: number): number {
  for (let at = start + 1; at < text.length; at++) {
    const code = text.charCodeAt(at);
    if (code === QUOTE) return at + 1;
    if (code === BACKSLASH) at += 1;
  }
  return text.length;
}

function afterSpace(text: string, start: number): number {
  let at = start;
  while (SPACE.includes(text.charCodeAt(at))) at += 1;
  return at;
}

function refused(why: string, cause?: unknown): NostosError {
  return new NostosError('INVALID_ARGUMENT', `this JSON is refused: ${why}`, cause === undefined ? {} : { cause });
}
