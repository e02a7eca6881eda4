import assert from 'node:assert/strict';
import { test } from 'node:test';
import { seededRandom } from '../base/random.ts';
import { checkLinearizability, type Operation, type RegisterStep, type Value } from './linearizability.ts';

const read = (value: Value): RegisterStep => ({ kind: 'read', value });
const write = (value: Value): RegisterStep => ({ kind: 'write', value });
const replace = (expected: Value, value: Value): RegisterStep => ({ kind: 'replace', expected, value });
const never = Infinity;

type Line = readonly [calledMs: number, answeredMs: number, step: RegisterStep, key?: string];

const historyOf = (lines: readonly Line[]): Operation[] =>
  lines.map(([calledMs, answeredMs, step, key = 'x'], client) => ({ key, client, calledMs, answeredMs, step }));

const CASES: readonly (readonly [what: string, linearizable: boolean, lines: readonly Line[]])[] = [
  [
    'what was written is read',
    true,
    [
      [0, 1, write(1)],
      [2, 3, read(1)],
    ],
  ],
  [
    'a read that overlaps a write sees either',
    true,
    [
      [0, 9, write(1)],
      [1, 2, read(0)],
      [3, 4, read(1)],
    ],
  ],
  [
    'but not the new value and then the old one',
    false,
    [
      [0, 9, write(1)],
      [1, 2, read(1)],
      [3, 4, read(0)],
    ],
  ],
  [
    'a stale read after an answered write',
    false,
    [
      [0, 1, write(1)],
      [2, 3, read(0)],
    ],
  ],
  [
    'a value that nobody wrote',
    false,
    [
      [0, 9, write(1)],
      [1, 2, read(7)],
    ],
  ],
  [
    'a lost update: two replaced the same value',
    false,
    [
      [0, 5, replace(0, 1)],
      [1, 6, replace(0, 2)],
    ],
  ],
  [
    'two that replaced one another',
    true,
    [
      [0, 5, replace(1, 2)],
      [1, 6, replace(0, 1)],
      [7, 8, read(2)],
    ],
  ],
  [
    'a write without an answer happened later',
    true,
    [
      [0, never, write(1)],
      [2, 3, read(0)],
      [4, 5, read(1)],
    ],
  ],
  [
    'or never',
    true,
    [
      [0, never, write(1)],
      [2, 3, read(0)],
    ],
  ],
  [
    'but not before its call',
    false,
    [
      [1, 2, read(1)],
      [3, never, write(1)],
    ],
  ],
  [
    'nor can it be undone',
    false,
    [
      [0, never, write(1)],
      [2, 3, read(1)],
      [4, 5, read(0)],
    ],
  ],
  [
    'a replacement without an answer needs its value',
    false,
    [
      [0, never, replace(5, 1)],
      [2, 3, read(1)],
    ],
  ],
  [
    'an unanswered one in the middle of a chain',
    true,
    [
      [0, never, replace(0, 1)],
      [2, 9, replace(1, 2)],
      [9, 10, read(2)],
    ],
  ],
  [
    'keys are independent',
    true,
    [
      [0, 1, write(1), 'x'],
      [2, 3, read(0), 'y'],
      [2, 3, read(1), 'x'],
    ],
  ],
  [
    'each of them is checked',
    false,
    [
      [0, 1, write(1), 'y'],
      [2, 3, read(1), 'y'],
      [2, 3, read(1), 'x'],
    ],
  ],
];

test('planted violations are found, and what may be is let pass', () => {
  for (const [what, expected, lines] of CASES)
    assert.equal(checkLinearizability(historyOf(lines), { initial: 0 }).linearizable, expected, what);
});

test('the verdict names the key and the operation that fits nowhere', () => {
  const history = historyOf([
    [0, 1, write(1)],
    [2, 3, write(2)],
    [4, 5, read(1)],
    [6, 7, read(2)],
  ]);
  const verdict = checkLinearizability(history, { initial: 0 });
  assert.ok(!verdict.linearizable);
  assert.deepEqual([verdict.key, verdict.blocked, verdict.order], ['x', history[2], history.slice(0, 2)]);
});

/** A register that really takes effect at a moment between call and answer, and how clients see it. */
function simulate(seed: number, operations: number): Operation[] {
  const random = seededRandom(seed);
  const history: Operation[] = [];
  let value: Value = 0;
  let written = 0;
  for (let at = 10; history.length < operations; at += 1 + random.below(3)) {
    const [calledMs, answeredMs] = [at - random.below(6), at + random.below(6)];
    const common = { key: 'x', client: history.length, calledMs };
    const kind = random.below(4);
    const [expected, next]: [Value, Value] = [value, (written += 1)];
    if (kind === 0) history.push({ ...common, answeredMs, step: read(value) });
    else if (random.chance(0.1)) {
      if (random.chance(0.5)) value = next;
      history.push({ ...common, answeredMs: never, step: write(next) });
    } else {
      history.push({ ...common, answeredMs, step: kind === 1 ? replace(expected, next) : write(next) });
      value = next;
    }
  }
  return history;
}

test('histories of a real register pass; with one read changed to an overwritten value they do not', () => {
  let changed = 0;
  for (let seed = 1; seed <= 200; seed += 1) {
    const history = simulate(seed, 120);
    assert.ok(checkLinearizability(history, { initial: 0 }).linearizable, `seed ${seed}`);
    const late = history.findLastIndex(({ step }) => step.kind === 'read' && step.value !== 0);
    const victim = history[late];
    if (victim === undefined || victim.calledMs < 100) continue;
    history[late] = { ...victim, step: read(0) };
    changed += 1;
    assert.ok(!checkLinearizability(history, { initial: 0 }).linearizable, `seed ${seed}: value 0 came back`);
  }
  assert.ok(changed > 150, `only ${changed} histories were changed`);
});

test('a search without end is given up, and says so', () => {
  const writes = Array.from({ length: 24 }, (_, id): Line => [0, 9, write(id + 1)]);
  assert.throws(
    () => checkLinearizability(historyOf([...writes, [10, 11, read(99)]]), { initial: 0, statesMax: 5_000 }),
    /too many orders/,
  );
});
