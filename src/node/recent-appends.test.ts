import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Generation, Hash, Lsn, Term } from '../base/brands.ts';
import type { ChainPoint } from '../log/chain.ts';
import { RecentAppends } from './recent-appends.ts';

const at = (lsn: number): ChainPoint => ({
  generation: 'a'.repeat(32) as Generation,
  term: 1 as Term,
  lsn: lsn as Lsn,
  hash: new Uint8Array(32) as Hash,
});

test('what is kept stays what it was when the memory that it came in is used again', () => {
  const recent = new RecentAppends();
  const memory = Buffer.from('first');
  recent.add({ previous: at(0), last: at(1), payload: memory });
  memory.write('other');
  recent.add({ previous: at(1), last: at(2), payload: memory });
  const run = recent.from(1 as Lsn, 100);
  assert.equal(Buffer.from(run!.payload).toString(), 'firstother');
  assert.deepEqual([run!.previous.lsn, run!.last.lsn], [0, 2]);
  assert.equal(recent.from(3 as Lsn, 100), undefined);
});
