import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Generation, Hash, Lsn, Term } from '../base/brands.ts';
import type { ChainPoint } from '../log/chain.ts';
import { RecentAppends } from './recent-appends.ts';

const point = (lsn: number): ChainPoint => ({
  generation: '0'.repeat(32) as Generation,
  term: 1 as Term,
  lsn: lsn as Lsn,
  hash: new Uint8Array(32).fill(lsn) as Hash,
});

/** Appends of two records each, after the tenth; of each so many bytes, all of the value of its last LSN. */
function filled(sizes: readonly number[]): RecentAppends {
  const recent = new RecentAppends();
  const scratch = new Uint8Array(Math.max(...sizes));
  for (const [index, size] of sizes.entries()) {
    const last = 12 + 2 * index;
    scratch.fill(last);
    recent.add({ previous: point(last - 2), last: point(last), payload: scratch.subarray(0, size) });
  }
  return recent;
}

test('a follower gets the appends behind what it has, in one run, out of memory of its own', () => {
  const recent = filled([3, 2, 4]);
  const all = recent.from(11 as Lsn, 100);
  assert.deepEqual([all?.previous.lsn, all?.last.lsn], [10, 16]);
  assert.deepEqual([...all!.payload], [12, 12, 12, 14, 14, 16, 16, 16, 16]);
  const last = recent.from(15 as Lsn, 100);
  assert.deepEqual([last?.previous.lsn, last?.last.lsn, [...last!.payload]], [14, 16, [16, 16, 16, 16]]);
});

test('a run ends before the append that would make it too large, but never before the first', () => {
  const recent = filled([3, 2, 4]);
  assert.equal(recent.from(11 as Lsn, 8)?.last.lsn, 14);
  assert.equal(recent.from(11 as Lsn, 1)?.last.lsn, 12);
});

test('what is not kept is not made up: the middle of an append, what is to come, and what was let go', () => {
  const recent = filled([3, 2, 4]);
  for (const from of [10, 12, 17]) assert.equal(recent.from(from as Lsn, 100), undefined);
  const mib = 1024 * 1024;
  const many = filled([mib, mib, mib, mib, mib]);
  assert.equal(many.from(11 as Lsn, mib), undefined);
  assert.equal(many.from(13 as Lsn, mib)?.payload.length, mib);
  many.add({ previous: point(20), last: point(22), payload: new Uint8Array(5 * mib) });
  for (const from of [13, 21]) assert.equal(many.from(from as Lsn, mib), undefined);
  many.add({ previous: point(22), last: point(24), payload: new Uint8Array([1]) });
  many.clear();
  assert.equal(many.from(23 as Lsn, mib), undefined);
});
