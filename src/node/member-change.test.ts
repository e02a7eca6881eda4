import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { StoreId } from '../base/brands.ts';
import { memberChange } from './member-change.ts';

const stores = ['a', 'b', 'c', 'd'].map((digit) => digit.repeat(32) as StoreId);
const [a, b, , d] = stores as [StoreId, StoreId, StoreId, StoreId];

/** Members, minInSync, what is asked, and the minInSync that goes with it. */
const CASES: readonly (readonly [number, number, Parameters<typeof memberChange>[1], number | undefined])[] = [
  [1, 1, { add: d }, 2],
  [2, 2, { add: d }, 2],
  [3, 2, { add: d }, 3],
  [3, 2, { remove: a }, 2],
  [2, 2, { remove: b }, 1],
  [3, 2, { add: d, remove: a }, 2],
  [3, 2, { add: a }, 2],
  [2, 2, { remove: d }, 2],
  [3, 1, { add: d }, undefined],
  [3, 3, { remove: a }, undefined],
  [3, 2, { add: d, minInSync: 1 }, 1],
  [3, 1, { minInSync: 2 }, 2],
];

for (const [count, minInSync, asked, wanted] of CASES)
  test(`minInSync ${minInSync} of ${count}, asked ${Object.keys(asked).join(', ')}: ${wanted ?? 'unchanged'}`, () => {
    const change = memberChange({ members: stores.slice(0, count), minInSync }, asked);
    assert.deepEqual(change, wanted === undefined ? asked : { ...asked, minInSync: wanted });
  });
