import assert from 'node:assert/strict';
import { test } from 'node:test';
import { inspect } from 'node:util';
import * as v from 'valibot';
import { finiteNumber, plainRecord, readInput, wholeNumber } from './input-schema.ts';

function problem(schema: v.GenericSchema, input: unknown): string {
  const read = readInput(schema, input);
  assert.ok(!read.ok, `${inspect(input)} is taken`);
  return read.problem;
}

function value(schema: v.GenericSchema, input: unknown): unknown {
  const read = readInput(schema, input);
  assert.ok(read.ok, JSON.stringify(read));
  return read.value;
}

test('a refusal names the field and what was due there, and repeats no text', () => {
  const schema = v.strictObject({
    name: v.pipe(v.string(), v.minLength(2)),
    size: wholeNumber(1),
    mode: v.picklist(['a', 'b']),
    nested: v.object({ list: v.array(wholeNumber()) }),
  });
  const good = { name: 'ab', size: 1, mode: 'a', nested: { list: [] } };
  const cases: readonly (readonly [string, unknown, string])[] = [
    ['no object', null, 'expected Object, got null'],
    ['missing', { ...good, mode: undefined }, 'mode: expected ("a" | "b"), got undefined'],
    ['absent', { name: 'ab', size: 1, mode: 'a' }, 'nested: it is missing'],
    ['one too many', { ...good, extra: 1 }, 'extra: there is no such field'],
    [
      'a name from a prototype',
      JSON.parse(`{"__proto__":1,${JSON.stringify(good).slice(1)}`),
      '__proto__: there is no such field',
    ],
    ['too short', { ...good, name: 'a' }, 'name: expected a length >=2, got 1'],
    ['too small', { ...good, size: 0 }, 'size: expected >=1, got 0'],
    ['nested', { ...good, nested: { list: [0, 'secret'] } }, 'nested.list.1: expected number, got text'],
    ['no choice', { ...good, mode: 'secret' }, 'mode: expected ("a" | "b"), got text'],
  ];
  for (const [name, input, expected] of cases) assert.ok(problem(schema, input).includes(expected), name);
});

test('nothing is looked at behind the first problem', () => {
  let looks = 0;
  const item = v.union([v.null(), v.custom<string>((found) => (looks += 1) < 0 || typeof found === 'string')]);
  const wrong = Array.from({ length: 100_000 }, () => ({}));
  assert.equal(problem(v.object({ list: v.array(item) }), { list: wrong }).startsWith('list.0: '), true);
  assert.ok(problem(plainRecord(item), Object.fromEntries(wrong.entries())).startsWith('0: '));
  assert.equal(looks, 2);
});

test('numbers are exact', () => {
  for (const good of [0, 1, Number.MAX_SAFE_INTEGER]) assert.equal(value(wholeNumber(), good), good);
  for (const bad of [-1, 0.5, Number.NaN, Infinity, 2 ** 53, '1', 1n, null]) problem(wholeNumber(), bad);
  for (const bad of [Number.NaN, Infinity, -Infinity, '1']) problem(finiteNumber, bad);
});

test('a record takes plain objects, with every name but __proto__', () => {
  const record = plainRecord(finiteNumber, { nameCharsMax: 11, entriesMax: 3 });
  const hostile: unknown = JSON.parse('{"__proto__":{"a":1},"constructor":1,"prototype":2}');
  assert.deepEqual(Object.entries(value(record, hostile) as object), [
    ['constructor', 1],
    ['prototype', 2],
  ]);
  assert.deepEqual(value(record, Object.create(null)), {});
  for (const bad of [null, 'a', [], [1], new Uint8Array(2), new Map(), new Date(0)])
    assert.equal(problem(record, bad), 'expected a map');
  assert.equal(problem(record, { a: 'secret' }), 'a: expected number, got text');
  assert.equal(problem(record, { abcdefghijkl: 1 }), 'a name in it is longer than 11 characters');
  assert.equal(problem(record, { a: 1, b: 2, c: 3, d: 4 }), 'more than 3 entries');
  assert.equal(problem(plainRecord(record), { a: { b: 'x' } }), 'a.b: expected number, got text');
});
