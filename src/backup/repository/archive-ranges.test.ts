import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Generation, Lsn, Term } from '../../base/brands.ts';
import type { ChainPoint } from '../../log/chain.ts';
import { genesis } from '../../log/chain.ts';
import type { TermEntry } from '../../log/terms.ts';
import type { ArchiveName } from './archive-format.ts';
import { rangesOf } from './archive-ranges.ts';
import type { Snapshot } from './manifest.ts';
import { archiveNeed } from './prune.ts';

const [A, B, C, X] = ['a', 'b', 'c', 'd'].map((digit) => digit.repeat(32) as Generation) as [
  Generation,
  Generation,
  Generation,
  Generation,
];
const at = (generation: Generation, lsn: number, term = 1): ChainPoint => ({
  ...genesis(generation),
  lsn: lsn as Lsn,
  term: term as Term,
});
const start = (generation: Generation, term: number, firstLsn: number, previous: ChainPoint): TermEntry => ({
  generation,
  term: term as Term,
  firstLsn: firstLsn as Lsn,
  previous,
});
/** A from 1, B from 101 of A, C from 151 of B; a second term of A at 50. */
const TERMS = [
  start(A, 1, 1, genesis(A)),
  start(A, 2, 50, at(A, 49)),
  start(B, 3, 101, at(A, 100, 2)),
  start(C, 4, 151, at(B, 150, 3)),
];

test('a span over generations is a range in each of them', () => {
  const ranges = (after: ChainPoint, through: ChainPoint) =>
    rangesOf(TERMS, { after, through }).map(({ generation, from, to }) => [generation, from, to]);
  assert.deepEqual(ranges(at(A, 20), at(A, 90)), [[A, 21, 90]]);
  assert.deepEqual(ranges(at(A, 100), at(B, 120)), [[B, 101, 120]]);
  assert.deepEqual(ranges(at(A, 99), at(B, 101)), [
    [A, 100, 100],
    [B, 101, 101],
  ]);
  assert.deepEqual(ranges(at(A, 0), at(C, 200)), [
    [A, 1, 100],
    [B, 101, 150],
    [C, 151, 200],
  ]);
  assert.deepEqual(
    rangesOf([], { after: at(X, 3), through: at(X, 9) }).map(({ from, to }) => [from, to]),
    [[4, 9]],
  );
  assert.deepEqual(ranges(at(A, 90), at(A, 90)), []);
  assert.deepEqual(rangesOf(TERMS, undefined), []);
});

test('records are needed from the oldest kept snapshot on, along every line that leads from it', () => {
  const snapshot = (position: ChainPoint, terms: number, after?: ChainPoint) =>
    ({
      position,
      terms: TERMS.slice(0, terms),
      archive: after && { after, through: position },
    }) as Partial<Snapshot> as Snapshot;
  const needs = (kept: readonly Snapshot[]) => {
    const isNeeded = archiveNeed(kept);
    const object = (generation: Generation, to: number) => ({ generation, to: to as Lsn }) as ArchiveName;
    const wanted = [
      [A, 40],
      [A, 60],
      [A, 100],
      [B, 110],
      [B, 150],
      [C, 160],
      [C, 300],
      [X, 5],
    ] as const;
    return wanted
      .filter(([generation, to]) => isNeeded(object(generation, to)))
      .map(([generation, to]) => generation[0]! + to);
  };
  assert.deepEqual(needs([snapshot(at(C, 200), 4)]), ['c300', 'd5']);
  assert.deepEqual(needs([snapshot(at(C, 200), 4, at(C, 155))]), ['c160', 'c300', 'd5']);
  assert.deepEqual(needs([snapshot(at(C, 200), 4, at(B, 120))]), ['b150', 'c160', 'c300', 'd5']);
  assert.deepEqual(needs([snapshot(at(A, 60), 2, at(A, 50)), snapshot(at(C, 200), 4)]), [
    'a60',
    'a100',
    'b110',
    'b150',
    'c160',
    'c300',
    'd5',
  ]);
  assert.deepEqual(needs([snapshot(at(A, 60), 2)]), ['a100', 'b110', 'b150', 'c160', 'c300', 'd5']);
  assert.deepEqual(needs([]).length, 8);
});
