import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { isNostosError } from './errors.ts';
import { parseStrictJson, STRICT_JSON_LIMITS, type StrictJson } from './strict-json.ts';

const parse = (text: string): StrictJson => parseStrictJson(Buffer.from(text));

test('whole numbers keep every digit; what is not written as a whole number is none', () => {
  assert.deepEqual(parse('[0, -1, 18446744073709551616, -9223372036854775809, 1.0, 1e3, -0, 0.5]'), [
    0n,
    -1n,
    18446744073709551616n,
    -9223372036854775809n,
    1,
    1000,
    -0,
    0.5,
  ]);
});

const nested = (depth: number): string => '['.repeat(depth) + ']'.repeat(depth);
const REFUSED: Readonly<Record<string, [text: string | Uint8Array, why: RegExp]>> = {
  'a key twice': ['{"a": 1, "b": {"a": 2}, "a": 1}', /"a" stands twice/],
  'a key twice, spelled differently': [String.raw`{"a": 1, "\u0061" : 1}`, /"a" stands twice/],
  'a key twice, deep in an array': ['[[{"x": [{"k\\"": 1, "k\\"": 2}]}]]', /stands twice/],
  '__proto__ twice': ['{"__proto__": 1, "__proto__": 1}', /stands twice/],
  'one level too deep': [nested(STRICT_JSON_LIMITS.jsonDepthMax + 1), /nested deeper than 127/],
  'a million levels': [nested(1_000_000), /nested deeper/],
  'half a surrogate pair': [String.raw`["\ud800"]`, /no Unicode/],
  'half a surrogate pair in a key': [String.raw`{"\udc00": 1}`, /no Unicode/],
  'bytes that are not UTF-8': [new Uint8Array([0x22, 0xff, 0x22]), /refused/],
  'a byte order mark': ['\ufeff{}', /refused/],
  'a number beyond all': ['[1e999]', /out of range/],
  'cut off': ['{"a": 1', /refused/],
  'cut off in a text': ['{"a', /refused/],
  'something after it': ['{} {}', /refused/],
  nothing: ['', /refused/],
  'a trailing comma': ['[1,]', /refused/],
  'a comment': ['{} // x', /refused/],
  'too many bytes': [`"${'x'.repeat(STRICT_JSON_LIMITS.jsonBytesMax)}"`, /has 16777218 bytes/],
};

for (const [name, [text, why]] of Object.entries(REFUSED))
  test(`refused: ${name}`, () => {
    assert.throws(
      () => parseStrictJson(typeof text === 'string' ? Buffer.from(text) : text),
      (error) => isNostosError(error, 'INVALID_ARGUMENT') && why.test(error.message),
    );
  });

test('the same key in different objects, in values and beside brackets in texts is none twice', () => {
  const text = String.raw`{"a": [{"a": "a"}, {"a": "{[\"a\":"}], "b" : "a", "__proto__": {"a": 1}, "\\": "\\"}`;
  const value = parse(text) as Record<string, StrictJson>;
  assert.deepEqual(Object.keys(value), ['a', 'b', '__proto__', '\\']);
  assert.equal(Object.getPrototypeOf(value), Object.prototype);
  assert.deepEqual(parse(nested(127)), JSON.parse(nested(127)));
});

test('whatever JSON.stringify writes is read as JSON.parse reads it', () => {
  fc.assert(
    fc.property(fc.json(), fc.constantFrom(undefined, 1, '\t'), (json, indent) => {
      const text = JSON.stringify(JSON.parse(json), null, indent);
      if (!text.isWellFormed() || /\\u[dD][89a-fA-F]/.test(text)) return;
      const bigints = (_: string, value: unknown): unknown => (typeof value === 'bigint' ? Number(value) : value);
      assert.equal(JSON.stringify(parse(text), bigints, indent), text);
    }),
  );
});

test('any bytes are read as JSON.parse reads them, or refused with a typed error', () => {
  const seeds = ['{"a": [1, "x", null, {"b": -2e5}]}', '[18446744073709551615, "\\u0041\\n", true, {}]'];
  let read = 0;
  fc.assert(
    fc.property(
      fc.constantFrom(...seeds),
      fc.array(fc.tuple(fc.nat(60), fc.constantFrom(...'{}[]":,\\ 0a\u0000-e.'.split(''))), { maxLength: 4 }),
      (seed, changes) => {
        const chars = seed.split('');
        for (const [at, char] of changes) chars[at % chars.length] = char;
        const text = chars.join('');
        try {
          parse(text);
        } catch (error) {
          assert.ok(isNostosError(error, 'INVALID_ARGUMENT'), String(error));
          return;
        }
        read += 1;
        JSON.parse(text);
      },
    ),
    { numRuns: 3000 },
  );
  assert.ok(read > 100, `${read} were read`);
});
