import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Plan, PreservedFile } from '../types.ts';
import { RUN_STATES, resume, step, type Intent, type Resume, type RunEvent, type RunState } from './machine.ts';

const plan: Plan = {
  id: '0a'.repeat(16),
  createdAtMs: 1,
  common: { term: 3, lsn: 100, hash: 'ab'.repeat(32) },
  frontier: { term: 4, lsn: 106 },
  watermark: 90,
  primary: { address: 'b:1', term: 6 },
};
const file: PreservedFile = { path: '/f', records: 6, acknowledged: 2, bytes: 600, digest: '' };
const intentOf = (state: RunState | 'none'): Intent | undefined =>
  state === 'none' ? undefined : state === 'planned' ? { state, plan } : { state, plan, file };

const EVENTS: readonly RunEvent[] = [
  { kind: 'begin', plan: { ...plan, id: '0b'.repeat(16) } },
  { kind: 'preserved', file },
  { kind: 'recover' },
  { kind: 'recovered' },
  { kind: 'announced' },
  { kind: 'rejoined' },
];

/** Rows of the table in SPEC.md; a pair that is not here is a defect. */
const STEPS: Readonly<Record<RunState | 'none', Partial<Record<RunEvent['kind'], RunState>>>> = {
  none: { begin: 'planned' },
  planned: { begin: 'planned', preserved: 'preserved' },
  preserved: { begin: 'planned', recover: 'recovering' },
  recovering: { recover: 'recovering', recovered: 'recovered' },
  recovered: { recover: 'recovering', announced: 'announced' },
  announced: { recover: 'recovering', rejoined: 'rejoined' },
  rejoined: { begin: 'planned' },
};

test('every state and event: where it leads, and that plan and file stay', () => {
  for (const state of ['none', ...RUN_STATES] as const)
    for (const event of EVENTS) {
      const next = step(intentOf(state), event);
      assert.equal(next?.state, STEPS[state][event.kind], `${state}, ${event.kind}`);
      if (next === undefined) continue;
      assert.deepEqual(next.plan, event.kind === 'begin' ? event.plan : plan);
      if (next.state !== 'planned') assert.deepEqual(next.file, file);
    }
});

/** Frontiers as they may be found, by name. */
const FRONTIERS = {
  common: { term: 3, lsn: 100 },
  part: { term: 4, lsn: 103 },
  same: { term: 4, lsn: 106 },
  'another term': { term: 5, lsn: 106 },
  more: { term: 4, lsn: 107 },
  followed: { term: 6, lsn: 104 },
} as const;
const REQUESTS = {
  same: { common: plan.common, primary: plan.primary },
  'later term': { common: plan.common, primary: { address: 'c:1', term: 9 } },
  'earlier term': { common: plan.common, primary: { address: 'c:1', term: 5 } },
  'other point': { common: { term: 3, lsn: 99, hash: 'cd'.repeat(32) }, primary: { address: 'c:1', term: 9 } },
} as const;

type Row = Readonly<Record<keyof typeof FRONTIERS, Resume>>;
const all = (how: Resume): Row => ({
  common: how,
  part: how,
  same: how,
  'another term': how,
  more: how,
  followed: how,
});
const RESUMES: Readonly<Record<RunState | 'none', { readonly same: Row; readonly other: Row }>> = {
  none: { same: all('begin'), other: all('begin') },
  planned: { same: { ...all('discard'), same: 'continue' }, other: all('discard') },
  preserved: {
    same: { ...all('discard'), common: 'continue', part: 'continue', same: 'continue' },
    other: all('discard'),
  },
  recovering: {
    same: { ...all('refuse'), common: 'continue', part: 'continue', same: 'continue', followed: 'followed' },
    other: {
      ...all('refuse'),
      common: 'finish-first',
      part: 'finish-first',
      same: 'finish-first',
      followed: 'followed',
    },
  },
  recovered: {
    same: {
      common: 'continue',
      part: 'recover-again',
      same: 'recover-again',
      'another term': 'refuse',
      more: 'refuse',
      followed: 'finish-first',
    },
    other: {
      common: 'finish-first',
      part: 'recover-again',
      same: 'recover-again',
      'another term': 'refuse',
      more: 'refuse',
      followed: 'finish-first',
    },
  },
  get announced() {
    return this.recovered;
  },
  rejoined: { same: all('begin'), other: all('begin') },
};

test('what becomes of an unfinished run: every state, request and frontier', () => {
  for (const state of ['none', ...RUN_STATES] as const)
    for (const [requestName, request] of Object.entries(REQUESTS))
      for (const [name, frontier] of Object.entries(FRONTIERS) as [keyof typeof FRONTIERS, Plan['frontier']][]) {
        const row = RESUMES[state][requestName === 'same' || requestName === 'later term' ? 'same' : 'other'];
        assert.equal(resume(intentOf(state), { ...request, frontier }), row[name], `${state}, ${requestName}, ${name}`);
      }
});
