import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { isNostosError } from '../base/errors.ts';
import { parseJson, stringifyJson } from './json-values.ts';

const scalar = fc.oneof(
  fc.constant(null),
  fc.boolean(),
  fc.double(),
  fc.constantFrom(-0, Infinity, -Infinity, NaN),
  fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }),
  fc.string(),
  fc.uint8Array({ maxLength: 40 }),
);
const key = fc.oneof(fc.string(), fc.constantFrom('$int', '$bytes', '$object', '$real', '__proto__', 'toString'));
const { value } = fc.letrec((tie) => ({
  value: fc.oneof(
    { depthSize: 'small' },
    scalar,
    fc.array(tie('value')),
    fc.dictionary(key, tie('value'), { noNullPrototype: true }),
  ),
}));

test('whatever is encoded is decoded to the same, also where names look like tags', () => {
  fc.assert(fc.property(value, (original) => assert.deepStrictEqual(parseJson(stringifyJson(original)), original)));
});

test('integers and bytes have the documented form', () => {
  assert.equal(
    stringifyJson({ id: 2n ** 63n - 1n, body: new Uint8Array([1, 2]), small: 5, none: undefined }),
    '{"id":{"$int":"9223372036854775807"},"body":{"$bytes":"AQI="},"small":5}',
  );
});

test('text that is not JSON, and unknown tags, are refused', () => {
  for (const text of ['', '{', '{"$date": 1}', '{"$int": "1e3"}'])
    assert.throws(
      () => parseJson(text),
      (error) => isNostosError(error, 'INVALID_ARGUMENT'),
    );
});
