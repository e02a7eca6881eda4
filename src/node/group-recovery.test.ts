import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Generation, Lsn, Position, StoreId, Term } from '../base/brands.ts';
import type { GroupRecord } from '../coordination/coordinator.ts';
import { groupRecord } from '../testing/coordinator-compliance.ts';
import type { RecoveryDecision } from './group-recovery.ts';
import { decideRecovery, recoveredRecord } from './group-recovery.ts';
import { parseStoreReport, type StoreReport } from './stopped-directory.ts';

const ids = (['a', 'b', 'c', 'd', 'e'] as const).map((digit) => digit.repeat(32) as StoreId);
const [a, b, c, d, e] = ids as [StoreId, StoreId, StoreId, StoreId, StoreId];
const { generation } = groupRecord();

function at(term: number, lsn: number): Position {
  return { generation, term: term as Term, lsn: lsn as Lsn };
}

/** A log whose terms begin at 1 and 51; `term` 2 reaches above that. */
function report(
  store: StoreId,
  [term, lsn]: readonly [number, number],
  change: Partial<StoreReport> = {},
): StoreReport {
  const terms = [at(1, 1), at(2, 51), at(3, 81)].filter((one) => one.term <= term);
  return parseStoreReport(
    {
      node: store,
      store,
      cluster: '0'.repeat(32),
      generation,
      end: at(term, lsn),
      endHash: `${term}${lsn}`.padStart(64, '0'),
      watermark: 0,
      anchor: 0,
      terms: terms.map((one) => ({ generation, term: one.term, firstLsn: one.lsn })),
      restoreUnfinished: false,
      copy: false,
      seen: null,
      ...change,
    },
    'test',
  );
}

/** The newest record of the group: b and c, or the first three, are in sync; records up to 60 are known to be committed. */
const three = groupRecord({
  members: [a, b, c],
  inSync: [b, c],
  minInSync: 2,
  committed: at(2, 60),
  term: 4 as Term,
});
const five = { ...three, members: ids, inSync: [a, b, c], minInSync: 3 };

interface Asked {
  readonly record: GroupRecord;
  readonly reports: readonly StoreReport[];
  readonly setBack?: boolean;
  readonly acceptLoss?: boolean;
}

/** The coordinator holds the newest record, or was set back to the first one. */
function decide({ record, reports, setBack = false, acceptLoss = false }: Asked): RecoveryDecision {
  const first = { version: 1, record: { ...record, term: 1 as Term, committed: null, inSync: record.members } };
  const seen = { version: 7, record };
  const decided = decideRecovery({
    current: setBack ? first : seen,
    reports: reports.map((one) => ({ ...one, seen })),
    acceptLoss,
  });
  assert.ok(decided !== undefined);
  assert.equal(decided.regressed, setBack && reports.length > 0);
  return decided;
}

type Row = readonly [title: string, asked: Asked, kind: RecoveryDecision['kind'], store?: StoreId];
const setBack = true;
const image = report(b, [2, 59]);

const ROWS: readonly Row[] = [
  ['a store in sync is there', { record: three, reports: [report(c, [2, 60])] }, 'not-needed'],
  ['those in sync are gone', { record: three, reports: [report(a, [2, 60])] }, 'too-few', a],
  [
    'in sync, but damaged',
    { record: three, reports: [report(c, [2, 60], { damage: 'x' }), report(a, [2, 50])] },
    'too-few',
    a,
  ],
  ['in sync, but an older image', { record: three, reports: [image, report(a, [2, 58])] }, 'too-few', a],
  [
    'set back: two of three',
    { record: three, reports: [report(a, [2, 60]), report(b, [2, 62])], setBack },
    'lead-from',
    b,
  ],
  ['set back: one of three', { record: three, reports: [report(b, [2, 62])], setBack }, 'too-few', b],
  [
    'set back: the later term, not the longer log',
    { record: three, reports: [report(a, [1, 900]), report(b, [2, 60])], setBack },
    'lead-from',
    b,
  ],
  [
    'set back: three of five',
    { record: five, reports: [report(a, [2, 60]), report(d, [2, 61]), report(e, [1, 99])], setBack },
    'lead-from',
    d,
  ],
  ['set back: two of five', { record: five, reports: [report(a, [2, 60]), report(d, [2, 61])], setBack }, 'too-few', d],
  [
    'a store and its copy',
    { record: three, reports: [report(a, [2, 60]), report(a, [2, 60])], setBack },
    'contradiction',
  ],
  [
    'one record with two hashes',
    { record: three, reports: [report(a, [2, 60]), report(b, [2, 60], { endHash: 'f'.repeat(64) })], setBack },
    'contradiction',
  ],
  [
    'a stranger counts for nothing',
    { record: three, reports: [report(a, [2, 60]), report(d, [3, 99])], setBack },
    'too-few',
    a,
  ],
  [
    'nor another generation',
    {
      record: three,
      reports: [report(a, [2, 60]), report(b, [3, 99], { generation: 'f'.repeat(32) as Generation })],
      setBack,
    },
    'too-few',
    a,
  ],
  [
    'nor an unfinished restore',
    { record: three, reports: [report(a, [2, 60]), report(b, [3, 99], { restoreUnfinished: true })], setBack },
    'too-few',
    a,
  ],
  [
    'nor one that has begun to drop its tail',
    { record: three, reports: [report(a, [2, 60]), report(b, [3, 99], { rollbackUnderWay: true })], setBack },
    'too-few',
    a,
  ],
  [
    'a copy that a restore made has joined, and counts',
    { record: three, reports: [report(a, [2, 60]), report(b, [3, 99], { copy: true })], setBack },
    'lead-from',
    b,
  ],
  [
    'nor one that was found to lack what it had acknowledged, though it is in sync',
    { record: three, reports: [report(a, [2, 60]), report(b, [3, 99], { lostRecords: true })] },
    'too-few',
    a,
  ],
  [
    'only older images of what was in sync: the longest of them, where the loss is accepted',
    { record: three, reports: [report(b, [2, 55]), report(c, [3, 99], { lostRecords: true })] },
    'too-few',
    c,
  ],
  ['nor an older image', { record: three, reports: [report(a, [2, 60]), image], setBack }, 'too-few', a],
  [
    'enough, but none has what was committed',
    { record: { ...three, inSync: [c, d] }, reports: [report(a, [2, 58]), report(b, [2, 59])], setBack },
    'too-few',
    b,
  ],
  ['nobody', { record: three, reports: [] }, 'too-few'],
];

for (const [title, asked, kind, store] of ROWS)
  test(`group recover: ${title} → ${kind}`, () => {
    const decided = decide(asked);
    assert.equal(decided.kind, kind, decided.reason);
    if (decided.kind === 'lead-from') assert.equal(decided.store, store);
    if (decided.kind === 'too-few') assert.equal(decided.best, store ?? null);
    const accepted = decide({ ...asked, acceptLoss: true });
    assert.equal(accepted.kind, kind === 'too-few' && store !== undefined ? 'accept-loss' : kind);
  });

test('group recover: without any record there is no group', () => {
  assert.equal(decideRecovery({ current: undefined, reports: [report(a, [2, 60])] }), undefined);
});

test('group recover: of records that went apart the one of the later term is the newest', () => {
  const seen = { version: 90, record: { ...three, term: 3 as Term } };
  const current = { version: 20, record: { ...three, term: 5 as Term, nonce: 'd'.repeat(32) } };
  const decided = decideRecovery({ current, reports: [{ ...report(a, [2, 60]), seen }] });
  assert.deepEqual([decided?.newest, decided?.regressed], [current, true]);
});

test('group recover: the new record has a term above all, keeps what was committed, and an in-sync set of equal logs', () => {
  const reports = [report(a, [2, 70]), report(d, [2, 70]), report(e, [2, 65]), report(b, [2, 60])];
  const decided = decide({ record: five, reports, setBack });
  assert.ok(decided.kind === 'lead-from', decided.reason);
  assert.deepEqual([decided.inSync, decided.minInSync], [[a, d], 2]);
  const next = recoveredRecord(decided, { above: [2, 8, 3] as Term[], nonce: '1'.repeat(32) });
  assert.deepEqual(next, {
    ...five,
    term: 9,
    primary: null,
    inSync: [a, d],
    minInSync: 2,
    renewal: 1,
    nonce: '1'.repeat(32),
  });
});

test('group recover: the report of a loss says what is known, and who may have more', () => {
  const loss = (one: StoreReport): unknown => {
    const decided = decide({ record: three, reports: [one], acceptLoss: true });
    assert.ok(decided.kind === 'accept-loss');
    return decided.loss;
  };
  const common = { onlyOn: [b, c], committed: at(2, 60) };
  assert.deepEqual(loss(report(a, [2, 55])), { after: { term: 2, lsn: 55 }, known: { from: 56, to: 60 }, ...common });
  const forked = { after: { term: 1, lsn: 80 }, known: { from: 60, to: 60 }, ...common };
  assert.deepEqual(loss(report(a, [1, 80])), forked, 'what is longer may be of another history');
  assert.deepEqual(loss(report(a, [2, 60])), { after: { term: 2, lsn: 60 }, known: null, ...common });
});

test('group recover: whoever answers, a committed record is never left behind', () => {
  // Record 60 of term 2 is on all stores of every possible in-sync set; the others have a longer log of term 1.
  let recovered = 0;
  for (const minInSync of [1, 2, 3])
    for (let sync = 1; sync < 32; sync++)
      for (let answer = 1; answer < 32; answer++) {
        const inSync = ids.filter((_, i) => (sync >> i) & 1);
        if (inSync.length < minInSync) continue;
        const reports = ids
          .filter((_, i) => (answer >> i) & 1)
          .map((store) => report(store, inSync.includes(store) ? [2, 60] : [1, 95]));
        // None of those who answer has heard of it yet.
        const record = { ...five, minInSync, inSync: ids, committed: at(1, 40) };
        const decided = decide({ record, reports, setBack });
        if (decided.kind !== 'lead-from') continue;
        assert.ok(inSync.includes(decided.store) && decided.inSync.every((store) => inSync.includes(store)));
        recovered += 1;
      }
  assert.ok(recovered > 300, `${recovered}`);
});

test('a report of a store from elsewhere is checked', () => {
  const good = JSON.parse(JSON.stringify(report(a, [2, 60]))) as Record<string, unknown>;
  assert.deepEqual(parseStoreReport(good, 'x'), report(a, [2, 60]));
  for (const change of [
    { store: 'A' },
    { end: null },
    { terms: [{}] },
    { extra: 1 },
    { endHash: 'z' },
    { copy: 'no' },
    { seen: {} },
  ])
    assert.throws(() => parseStoreReport({ ...good, ...change }, 'x.json'), /x\.json is no report of a store: /);
});
