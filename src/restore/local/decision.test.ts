import assert from 'node:assert/strict';
import { test } from 'node:test';
import { toClusterId, toGeneration, toNodeId, toStoreId } from '../../base/brands.ts';
import { isNostosError } from '../../base/errors.ts';
import { decide, type DirectoryState, type RestoreDecision, type RestoreEvent } from './decision.ts';
import type { Marker } from './marker.ts';

const id = (digit: string): string => digit.repeat(32);
const history = { cluster: toClusterId(id('c')), generation: toGeneration(id('1')) };
const base = {
  run: id('a'),
  startedAt: '2026-01-01T00:00:00.000Z',
  sources: ['peer:4050'],
  history,
  identity: { node: toNodeId(id('d')), store: toStoreId(id('e')), ...history },
};
const swap = { setAside: 'set-aside.1', entries: [] };

const MARKERS: Readonly<Record<DirectoryState, Marker | undefined>> = {
  'as-it-was': undefined,
  fetching: { ...base, phase: 'fetching' },
  swapping: { ...base, phase: 'swapping', swap },
  disposing: { ...base, phase: 'disposing', swap },
};

const EVENTS = {
  same: { kind: 'source', history },
  'other generation': { kind: 'source', history: { ...history, generation: toGeneration(id('2')) } },
  'other cluster': { kind: 'source', history: { ...history, cluster: toClusterId(id('b')) } },
  'go-on': { kind: 'go-on' },
  abandon: { kind: 'abandon' },
  open: { kind: 'open' },
} as const satisfies Record<string, RestoreEvent>;

type Outcome = RestoreDecision | 'RESTORE_UNFINISHED' | 'INVALID_ARGUMENT';

/** Complete: the compiler misses no cell. */
const TABLE: Readonly<Record<DirectoryState, Readonly<Record<keyof typeof EVENTS, Outcome>>>> = {
  'as-it-was': {
    same: 'begin',
    'other generation': 'begin',
    'other cluster': 'begin',
    'go-on': 'ask',
    abandon: 'INVALID_ARGUMENT',
    open: 'open',
  },
  fetching: {
    same: 'resume',
    'other generation': 'RESTORE_UNFINISHED',
    'other cluster': 'RESTORE_UNFINISHED',
    'go-on': 'ask',
    abandon: 'give-up',
    open: 'RESTORE_UNFINISHED',
  },
  swapping: {
    same: 'finish',
    'other generation': 'finish',
    'other cluster': 'finish',
    'go-on': 'finish',
    abandon: 'go-back',
    open: 'RESTORE_UNFINISHED',
  },
  disposing: {
    same: 'finish',
    'other generation': 'finish',
    'other cluster': 'finish',
    'go-on': 'finish',
    abandon: 'RESTORE_UNFINISHED',
    open: 'RESTORE_UNFINISHED',
  },
};

for (const [state, row] of Object.entries(TABLE))
  for (const [name, expected] of Object.entries(row))
    test(`${state}, ${name}: ${expected}`, () => {
      const marker = MARKERS[state as DirectoryState];
      const event = EVENTS[name as keyof typeof EVENTS];
      if (expected !== 'RESTORE_UNFINISHED' && expected !== 'INVALID_ARGUMENT')
        assert.equal(decide(marker, event), expected);
      else
        assert.throws(
          () => decide(marker, event),
          (error: unknown) =>
            isNostosError(error, expected) && /nostos restore|--abandon|nothing was changed/.test(error.message),
        );
    });
