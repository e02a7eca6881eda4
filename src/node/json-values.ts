/**
 * JSON for values that JSON lacks, on the admin socket, in `/v1` and in `--json`:
 *
 * | value | JSON |
 * |---|---|
 * | bigint | `{"$int": "9223372036854775807"}` |
 * | Uint8Array | `{"$bytes": "<base64>"}` |
 * | Infinity, -Infinity, NaN, -0 | `{"$real": "Infinity"}` |
 * | an object whose only key starts with `$` | `{"$object": {…}}` |
 *
 * Decoding gives back exactly what was encoded. Numbers that JSON can hold stay plain.
 */
import { NostosError } from '../base/errors.ts';

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

const REALS: Readonly<Record<string, number>> = { Infinity, '-Infinity': -Infinity, NaN, '-0': -0 };

function encodeNumber(value: number): Json {
  if (Object.is(value, -0)) return { $real: '-0' };
  return Number.isFinite(value) ? value : { $real: String(value) };
}

/** A property that was assigned `__proto__` as a literal would be lost. */
function define(target: object, key: string, value: unknown): void {
  Object.defineProperty(target, key, { value, enumerable: true, writable: true, configurable: true });
}

function base64(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('base64');
}

export function toJsonValue(value: unknown): Json {
  switch (typeof value) {
    case 'bigint':
      return { $int: String(value) };
    case 'number':
      return encodeNumber(value);
    case 'string':
    case 'boolean':
      return value;
    case 'object':
      break;
    default:
      return null;
  }
  if (value === null) return null;
  if (value instanceof Uint8Array) return { $bytes: base64(value) };
  if (Array.isArray(value)) return value.map(toJsonValue);
  if ('toJSON' in value && typeof value.toJSON === 'function') return toJsonValue(value.toJSON());
  const object: { [key: string]: Json } = {};
  const entries = Object.entries(value).filter(([, item]) => item !== undefined);
  for (const [key, item] of entries) define(object, key, toJsonValue(item));
  return entries.length === 1 && entries[0]![0].startsWith('$') ? { $object: object } : object;
}

function untag(key: string, tagged: unknown): unknown {
  if (key === '$int' && typeof tagged === 'string' && /^-?\d{1,20}$/.test(tagged)) return BigInt(tagged);
  if (key === '$bytes' && typeof tagged === 'string') return new Uint8Array(Buffer.from(tagged, 'base64'));
  if (key === '$real' && typeof tagged === 'string' && Object.hasOwn(REALS, tagged)) return REALS[tagged];
  if (key === '$object' && typeof tagged === 'object' && tagged !== null) return decodeObject(tagged);
  throw new NostosError('INVALID_ARGUMENT', `unknown value {"${key}": …}: known are $int, $bytes, $real and $object`);
}

function decodeObject(value: object): object {
  const object = {};
  for (const [key, item] of Object.entries(value)) define(object, key, fromJsonValue(item));
  return object;
}

export function fromJsonValue(value: unknown): unknown {
  if (typeof value !== 'object' || value === null) return value;
  if (Array.isArray(value)) return value.map(fromJsonValue);
  const keys = Object.keys(value);
  const [first] = keys;
  if (keys.length === 1 && first!.startsWith('$')) return untag(first!, (value as Record<string, unknown>)[first!]);
  return decodeObject(value);
}

export function stringifyJson(value: unknown, indent?: number): string {
  return JSON.stringify(toJsonValue(value), null, indent);
}

export function parseJson(text: string): unknown {
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (error) {
    throw new NostosError('INVALID_ARGUMENT', `the text is not JSON: ${(error as Error).message}`, { cause: error });
  }
  return fromJsonValue(parsed);
}
