import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Generation, Lsn, StoreId, Term } from '../base/brands.ts';
import type { SeededRandom } from '../base/random.ts';
import { seededRandom } from '../base/random.ts';
import { GENERATION, SimStore } from '../testing/group-store.ts';
import { answerPoint, nextProposal } from './common-point.ts';

const STORE = '1'.repeat(32) as StoreId;

function grow(store: SimStore, term: number, count: number, ids: () => number): void {
  if (term > store.end.term) store.append(store.make(term as Term, ids(), 'start', 0 as Lsn));
  for (let i = 1; i < count; i++) store.append(store.make(store.end.term, ids(), 'quorum', 0 as Lsn));
  store.durable = store.end.lsn;
}

/** Logs of a group whose primaries came and went: each term goes on from a prefix of an earlier log. */
function histories(random: SeededRandom): SimStore[] {
  let id = 0;
  const logs = [new SimStore(STORE)];
  for (let term = 1; term <= 1 + random.below(8); term++) {
    const log = logs[random.below(logs.length)]!.image();
    grow(log, term, 1 + random.below(5), () => ++id);
    logs.push(log);
    // Somebody who followed that primary only for a while.
    const follower = log.image();
    follower.cut(log.end.lsn - random.below(Math.min(3, log.end.lsn)));
    logs.push(follower);
  }
  return logs;
}

function commonLsn(a: SimStore, b: SimStore): number {
  let lsn = 0;
  while (a.record(lsn + 1) !== undefined && a.record(lsn + 1)?.id === b.record(lsn + 1)?.id) lsn += 1;
  return lsn;
}

/** Plays the search; answers with where it ends and how many round trips that took. */
function search(primary: SimStore, follower: SimStore): { end: number | string; trips: number } {
  let point = follower.end;
  for (let trips = 1; ; trips++) {
    assert.ok(trips < 50, 'the search ends');
    const answer = answerPoint(primary, point);
    if (answer.held === 'held') return { end: point.lsn, trips };
    if (answer.held !== 'below') return { end: answer.held, trips };
    const next = nextProposal(follower, point.lsn, answer);
    if (next === undefined) return { end: 'below-anchor', trips };
    assert.ok(next.lsn < point.lsn, 'each proposal is lower');
    point = next;
  }
}

test('the search finds the last common record of any two logs, in one trip per differing term and one', () => {
  let longest = 0;
  for (let seed = 0; seed < 2_000; seed++) {
    const random = seededRandom(seed);
    const logs = histories(random);
    const [primary, follower] = [logs[random.below(logs.length)]!, logs[random.below(logs.length)]!];
    const { end, trips } = search(primary, follower);
    const common = commonLsn(primary, follower);
    assert.equal(end, common, `seed ${seed}`);
    const differing = new Set(follower.above(common).map(({ term }) => term)).size;
    assert.ok(trips <= differing + 1, `seed ${seed}: ${trips} trips for ${differing} terms`);
    longest = Math.max(longest, trips);
  }
  assert.ok(longest > 3, 'some of them were long');
});

test('what the primary has pruned is not guessed, and what the follower has pruned is not proposed', () => {
  let id = 0;
  const base = new SimStore(STORE);
  grow(base, 1, 10, () => ++id);
  const [primary, follower] = [base.image(), base.image()];
  grow(primary, 3, 5, () => ++id);
  grow(follower, 2, 5, () => ++id);
  primary.watermark = follower.watermark = 12 as Lsn;
  const pruned = primary.image();
  pruned.prune(11);
  assert.deepEqual(search(pruned, follower), { end: 'pruned', trips: 2 });
  const short = follower.image();
  short.prune(11);
  assert.deepEqual(search(primary, short), { end: 'below-anchor', trips: 1 });
});

test('one (term, LSN) with two hashes is told apart from a record that is not held', () => {
  let id = 0;
  const [a, b] = [new SimStore(STORE), new SimStore(STORE)];
  grow(a, 1, 3, () => ++id);
  grow(b, 1, 3, () => ++id);
  assert.deepEqual(answerPoint(a, b.end), { held: 'diverged' });
  const other = { generation: GENERATION, term: 2 as Term, lsn: 9 as Lsn, hash: a.end.hash };
  assert.deepEqual(answerPoint(a, other), { held: 'below', term: 1, lsn: 3 });
});

test('an empty store of a later generation takes a copy of a log that begins in an earlier one; it has not diverged', () => {
  let id = 0;
  const log = new SimStore(STORE);
  grow(log, 1, 3, () => ++id);
  log.beginGeneration('2'.repeat(32) as Generation, 2 as Term, ++id);
  assert.deepEqual(answerPoint(log, new SimStore(STORE, '2'.repeat(32) as Generation).end), { held: 'pruned' });
  assert.deepEqual(answerPoint(log, new SimStore(STORE).end), { held: 'held' });
});
