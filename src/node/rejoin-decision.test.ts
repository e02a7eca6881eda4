import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Generation, Lsn, Position, StoreId, Term } from '../base/brands.ts';
import { groupRecord } from '../testing/coordinator-compliance.ts';
import type { RejoinAction, RejoinFound, RejoinRow } from './rejoin-decision.ts';
import { NOT_BUILT, decideRejoin } from './rejoin-decision.ts';
import type { RejoinProgress } from './rejoin-progress.ts';
import { arrived, begunAnew, describeRejoin, stepFailed, takeUp } from './rejoin-progress.ts';

const { generation } = groupRecord();
const OTHER_GENERATION = 'f'.repeat(32) as Generation;
const [own, other] = ['1', '2'].map((digit) => digit.repeat(32) as StoreId) as [StoreId, StoreId];
const committed: Position = { generation, term: 3 as Term, lsn: 90 as Lsn };
const record = groupRecord({ members: [own, other], inSync: [other], committed, term: 4 as Term, minInSync: 1 });
const inSync = { ...record, inSync: [own, other] };
const current = { version: 7, record };
const newer = { version: 8, record: { ...record, nonce: 'e'.repeat(32) } };

/** A replica that is not in sync, whole, with a tail above its W; the primary is another node. */
function found(change: Partial<RejoinFound> = {}): RejoinFound {
  return {
    store: own,
    generation,
    log: { end: { term: 3 as Term, lsn: 100 as Lsn }, watermark: 90 as Lsn, anchor: 10 as Lsn },
    holds: ({ lsn }) => lsn <= 100,
    coordinator: { current },
    seen: current,
    primary: 'other',
    ...change,
  };
}

const lsn = (value: number): Lsn => value as Lsn;
const asInSync = { coordinator: { current: { version: 7, record: inSync } }, seen: undefined } as const;
const regressed = { seen: newer } as const;
const otherGeneration = {
  coordinator: { current: { version: 7, record: { ...record, generation: OTHER_GENERATION } } },
} as const;
const damage = { damage: 'segment 3' } as const;
const empty = { log: { end: { term: 0 as Term, lsn: lsn(0) }, watermark: lsn(0), anchor: lsn(0) } } as const;
const noPrimary = { primary: 'none' } as const;

/** Each row of DESIGN section 6, with what it turns into where something it needs is not there. */
const ROWS: readonly (readonly [string, Partial<RejoinFound>, RejoinRow, RejoinAction])[] = [
  ['no primary, eligible', { ...asInSync, ...noPrimary }, 'no-primary', 'stand'],
  ['no primary, not in sync', noPrimary, 'no-primary', 'wait'],
  ['no primary, in sync without room', { ...asInSync, ...noPrimary, hasRoom: false }, 'no-primary', 'wait'],
  ['no primary, no member', { ...noPrimary, store: '9'.repeat(32) as StoreId }, 'no-primary', 'wait'],
  ['the coordinator away', { coordinator: 'away' }, 'coordinator-away', 'go-on'],
  ['the coordinator away, leading', { coordinator: 'away', primary: 'self' }, 'coordinator-away', 'go-on'],
  ['the coordinator away, two hashes', { coordinator: 'away', stopped: 'diverged' }, 'coordinator-away', 'wait'],
  ['the coordinator away, a failed fsync', { coordinator: 'away', stopped: 'log-failed' }, 'log-failed', 'reopen'],
  ['the coordinator away, damaged', { coordinator: 'away', ...damage }, 'coordinator-away', 'go-on'],
  ['the record older than one seen', regressed, 'coordinator-regressed', 'stop'],
  ['the record gone', { coordinator: { current: undefined } }, 'coordinator-regressed', 'stop'],
  ['the machine saw an older record', { stopped: 'coordinator-regressed' }, 'coordinator-regressed', 'stop'],
  ['a prefix of the primary', { commonPoint: lsn(100) }, 'prefix', 'stream'],
  ['not searched yet', {}, 'search', 'stream'],
  ['a tail above the common point', { commonPoint: lsn(95) }, 'divergent-tail', 'rollback'],
  ['a tail, the common point at W', { commonPoint: lsn(90) }, 'divergent-tail', 'rollback'],
  ['the common point below W', { commonPoint: lsn(89) }, 'contradiction', 'refuse'],
  ['the common point below W, said by the machine', { stopped: 'below-watermark' }, 'contradiction', 'refuse'],
  ['two hashes', { stopped: 'diverged' }, 'contradiction', 'refuse'],
  ['empty', empty, 'too-old', 'network-restore'],
  ['older than what is retained', { stopped: 'network-restore' }, 'too-old', 'network-restore'],
  ['older, and in sync', { ...asInSync, stopped: 'network-restore' }, 'too-old', 'leave-and-restore'],
  ['damage while in sync', { ...asInSync, ...damage }, 'damage', 'leave-and-restore'],
  ['damage of a primary', { ...asInSync, ...damage, primary: 'self' }, 'damage', 'leave-and-restore'],
  ['damage, not in sync', damage, 'damage', 'network-restore'],
  ['damage while in sync, no primary', { ...asInSync, ...damage, ...noPrimary }, 'damage', 'wait'],
  ['an older image, in sync', { ...asInSync, holds: () => false }, 'damage', 'leave-and-restore'],
  ['less than acknowledged', { stopped: 'lost-records' }, 'damage', 'network-restore'],
  ['another generation', otherGeneration, 'other-generation', 'set-aside-and-restore'],
  ['differs', { commonPoint: lsn(100), differs: 'tenant acme' }, 'differs', 'anti-entropy'],
  ['elsewhere', { commonPoint: lsn(100), elsewhere: 'actor a' }, 'elsewhere', 'live-migration'],
  ['no living peer', { ...empty, providers: 0, hasBackup: true }, 'too-old', 'wait'],
  ['no group', { coordinator: { current: undefined }, seen: undefined }, 'no-group', 'wait'],
  ['it leads', { ...asInSync, primary: 'self' }, 'leads', 'lead'],
  ['a failed fsync', { stopped: 'log-failed' }, 'log-failed', 'reopen'],
  ['a copied directory', { stopped: 'superseded' }, 'superseded', 'stop'],
  ['an unfinished restore', { restoreUnfinished: 'fetching' }, 'restore-unfinished', 'network-restore'],
  [
    'an unfinished restore over what is in sync, and nobody leads',
    { ...asInSync, ...noPrimary, restoreUnfinished: 'fetching' },
    'restore-unfinished',
    'wait',
  ],
  [
    'an unfinished restore over what is in sync, and who leads is not known',
    { coordinator: 'away', seen: asInSync.coordinator.current, restoreUnfinished: 'fetching' },
    'restore-unfinished',
    'wait',
  ],
  [
    'an unfinished restore over what is in sync, while another one leads',
    { ...asInSync, restoreUnfinished: 'fetching' },
    'restore-unfinished',
    'network-restore',
  ],
  [
    'a restore that was cut off while it put its files in place',
    { ...asInSync, ...noPrimary, restoreUnfinished: 'swapping' },
    'restore-unfinished',
    'network-restore',
  ],
  ['a restore that waits for a primary', { ...empty, ...noPrimary }, 'too-old', 'wait'],
];

for (const [title, change, row, action] of ROWS)
  test(`rejoin: ${title} → ${action}`, () => {
    const decided = decideRejoin(found(change));
    assert.deepEqual([decided.row, decided.action], [row, action]);
    assert.ok(decided.reason.length > 10);
    const resting =
      ['lead', 'stop', 'refuse'].includes(action) || decided.row === 'no-group' || title.startsWith('no primary,');
    assert.ok(resting || decided.next.length > 0, 'what comes next is named');
  });

/** From the strongest: each row wins over all behind it. */
const BY_STRENGTH: readonly (readonly [RejoinRow, Partial<RejoinFound>])[] = [
  ['coordinator-regressed', { stopped: 'coordinator-regressed' }],
  ['superseded', { stopped: 'superseded' }],
  ['restore-unfinished', { restoreUnfinished: 'fetching' }],
  ['log-failed', { stopped: 'log-failed' }],
  ['coordinator-away', { coordinator: 'away' }],
  ['no-group', { coordinator: { current: undefined }, seen: undefined }],
  ['other-generation', otherGeneration],
  ['contradiction', { commonPoint: lsn(1) }],
  ['damage', damage],
  ['too-old', empty],
  ['no-primary', noPrimary],
  ['elsewhere', { elsewhere: 'actor a' }],
  ['differs', { differs: 'tenant acme' }],
];

test('rejoin: of two rows that hold the stronger one decides', () => {
  let pairs = 0;
  for (const [i, [row, strong]] of BY_STRENGTH.entries())
    for (const [weaker, weak] of BY_STRENGTH.slice(i + 1)) {
      // Both say what is at the coordinator, why the machine stopped, or what log there is: they cannot both hold.
      if (Object.keys(strong).some((key) => key in weak)) continue;
      const { log = found().log } = { ...weak, ...strong };
      const both = found({ ...weak, ...strong, log: row === 'contradiction' ? { ...log, watermark: lsn(90) } : log });
      assert.equal(decideRejoin(both).row, row, `${row} over ${weaker}`);
      pairs += 1;
    }
  assert.ok(pairs > 60, `${pairs} pairs`);
});

test('rejoin: a common point is looked at whatever else holds, and a restore never hides a contradiction', () => {
  for (const extra of [damage, empty, { providers: 0 }, { ...asInSync }, noPrimary])
    assert.equal(decideRejoin(found({ ...extra, stopped: 'diverged' })).action, 'refuse');
});

test('rejoin: what is in sync is never replaced without being dropped first, whatever is found', () => {
  const facts: readonly Partial<RejoinFound>[] = [
    {},
    damage,
    empty,
    noPrimary,
    { stopped: 'lost-records' },
    { stopped: 'network-restore' },
    { commonPoint: lsn(95) },
    { commonPoint: lsn(100) },
    { differs: 'tenant acme' },
    { providers: 0 },
    { holds: () => false },
    { primary: 'self' },
  ];
  let replaced = 0;
  for (const a of facts)
    for (const b of facts) {
      const { action, next } = decideRejoin(found({ ...a, ...b, ...asInSync }));
      for (const way of [action, ...next]) {
        assert.ok(way !== 'network-restore' && way !== 'set-aside-and-restore', JSON.stringify([a, b, action, next]));
        if (way === 'leave-and-restore') replaced += 1;
      }
    }
  assert.ok(replaced > 20);
});

const limits = { rejoinAttemptsMax: 3, rejoinTotalAttemptsMax: 12 };

function fail(progress: RejoinProgress, times: number): RejoinProgress {
  let after = progress;
  for (let i = 0; i < times; i++) after = stepFailed(after, `failure ${i}`, { limits, nowMs: i });
  return after;
}

test('rejoin progress: a step that keeps failing gives way to the next safe one, and the last to a person', () => {
  const start = takeUp(decideRejoin(found({ commonPoint: lsn(95) })), { limits, nowMs: 0 });
  assert.deepEqual([start.current, start.attempt], ['rollback', 1]);
  assert.deepEqual([fail(start, 2).current, fail(start, 2).attempt], ['rollback', 3]);
  const second = fail(start, 3);
  assert.deepEqual([second.current, second.attempt], ['set-aside-and-restore', 1]);
  assert.match(describeRejoin(second), /^set-aside-and-restore: .*instead of rollback: failure 2$/);
  assert.equal(fail(start, 11).current, 'set-aside-and-restore', 'the last way is tried as often as is left');
  const last = fail(start, 12);
  assert.equal(last.current, 'operator');
  assert.deepEqual(fail(last, 5), last, 'nothing more is tried');
  assert.equal(last.history.length, 12);
  assert.deepEqual([begunAnew(last, 20).current, begunAnew(last, 20).attemptsTotal], ['rollback', 0]);
});

test('rejoin progress: decisions that alternate end too, and count anew only after the node came back', () => {
  const rollback = decideRejoin(found({ commonPoint: lsn(95) }));
  const stream = decideRejoin(found({ commonPoint: lsn(100) }));
  let progress = takeUp(rollback, { limits, nowMs: 0 });
  let rounds = 0;
  for (; progress.current !== 'operator' && rounds < 100; rounds++) {
    progress = stepFailed(progress, 'no', { limits, nowMs: rounds });
    progress = takeUp(rounds % 2 === 0 ? stream : rollback, { before: progress, limits, nowMs: rounds });
  }
  assert.equal(rounds, limits.rejoinTotalAttemptsMax);
  assert.equal(takeUp(stream, { before: progress, limits, nowMs: 0 }).current, 'operator');
  const back = arrived(progress, 99);
  assert.equal(takeUp(rollback, { before: back, limits, nowMs: 100 }).attemptsTotal, 0);
});

test('rejoin progress: the same decision again goes on counting', () => {
  const decided = decideRejoin(found({ commonPoint: lsn(95) }));
  const failed = fail(takeUp(decided, { limits, nowMs: 0 }), 1);
  const again = takeUp(decideRejoin(found({ commonPoint: lsn(96) })), { before: failed, limits, nowMs: 5 });
  assert.deepEqual([again.attempt, again.attemptsTotal], [2, 1]);
  assert.match(again.decision.reason, /97 to 100/, 'with what is found now');
});

test('rejoin progress: a way that is not built is named and passed over', () => {
  for (const [change, instead] of [
    [{ differs: 'tenant acme' }, 'leave-and-restore'],
    [{ elsewhere: 'actor a' }, 'go-on'],
  ] as const) {
    const decided = decideRejoin(found({ ...change, commonPoint: lsn(100) }));
    assert.ok(NOT_BUILT.has(decided.action));
    assert.match(decided.advice ?? '', /not built yet/);
    const { current, history } = takeUp(decided, { limits, nowMs: 0 });
    assert.equal(current, instead);
    assert.deepEqual(
      history.map(({ action, outcome }) => [action, outcome]),
      [[decided.action, 'not-built']],
    );
  }
});
