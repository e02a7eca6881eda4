import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Generation, Lsn, Position, StoreId, Term } from '../base/brands.ts';
import { GENERATION, SimStore } from '../testing/group-store.ts';
import { outlookOf } from './store-view.ts';

/** Terms 1 (LSN 1 to 4), 3 (5 to 8) and 5 (9 to 10), committed up to 7. */
function view(): SimStore {
  const store = new SimStore('1'.repeat(32) as StoreId);
  let id = 0;
  for (const [term, count] of [
    [1, 4],
    [3, 4],
    [5, 2],
  ] as const)
    for (let i = 0; i < count; i++)
      store.append(store.make(term as Term, ++id, i === 0 ? 'start' : 'quorum', 0 as Lsn));
  store.watermark = 7 as Lsn;
  return store;
}

const at = (term: number, lsn: number, generation = GENERATION): Position => ({
  generation,
  term: term as Term,
  lsn: lsn as Lsn,
});

for (const [what, position, expected] of [
  ['committed in its term', at(1, 4), { kind: 'reached' }],
  ['at W', at(3, 7), { kind: 'reached' }],
  ['the beginning', at(0, 0), { kind: 'reached' }],
  ['in the log, not committed yet', at(3, 8), { kind: 'ahead' }],
  ['uncommitted, where this log has another term, which may still go', at(3, 9), { kind: 'ahead' }],
  ['of a term to come', at(9, 30), { kind: 'ahead' }],
  ['of a tail that the next term cut off', at(1, 5), { kind: 'lost', fork: at(1, 4) }],
  ['of such a tail, above W', at(1, 20), { kind: 'lost', fork: at(1, 4) }],
  ['of a term that left nothing', at(2, 6), { kind: 'lost', fork: at(1, 4) }],
  ['of a later term, where another one is committed', at(5, 6), { kind: 'lost', fork: at(3, 6) }],
  ['of another generation', at(3, 6, '9'.repeat(32) as Generation), { kind: 'lost', fork: at(0, 0) }],
  ['of a generation that may have begun since', at(9, 6, '9'.repeat(32) as Generation), { kind: 'ahead' }],
] as const)
  test(`a position that is ${what}: ${expected.kind}`, () => {
    assert.deepEqual(outlookOf(view(), position), expected);
  });
