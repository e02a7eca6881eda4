import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isNostosError } from '../../base/errors.ts';
import {
  isSetAsideName,
  nextSwapStep,
  ownedByNode,
  planSwap,
  planWayBack,
  type SwapEntry,
  type SwapStep,
} from './swap.ts';

/** Every combination of what was planned for an entry and where its parts are: 4 × 8. `refused`: somebody moved it. */
const WHERE = ['000', '001', '010', '011', '100', '101', '110', '111'] as const; // directory, restore/, set-aside
type Where = (typeof WHERE)[number];
type Expected = SwapStep['kind'] | 'refused';

const TABLE: Readonly<Record<string, Partial<Record<Where, Expected>>>> = {
  'old and staged': { '110': 'set-aside', '011': 'move-in', '101': 'done' },
  'old only': { '100': 'set-aside', '001': 'done' },
  'staged only': { '010': 'move-in', '100': 'done' },
  neither: { '000': 'done' },
};
const ENTRIES: Readonly<Record<string, SwapEntry>> = {
  'old and staged': { name: 'log', old: true, staged: true },
  'old only': { name: 'log', old: true, staged: false },
  'staged only': { name: 'log', old: false, staged: true },
  neither: { name: 'log', old: false, staged: false },
};

for (const [plan, row] of Object.entries(TABLE))
  for (const where of WHERE)
    test(`${plan}, found at ${where}: ${row[where] ?? 'refused'}`, () => {
      const entry = ENTRIES[plan]!;
      const has = (at: number): Set<string> => new Set(where[at] === '1' ? ['log'] : []);
      const seen = { here: has(0), staged: has(1), aside: has(2) };
      const run = (): SwapStep => nextSwapStep({ setAside: 'set-aside.1', entries: [entry] }, seen);
      const expected = row[where] ?? 'refused';
      if (expected === 'refused')
        assert.throws(
          run,
          (error: unknown) => isNostosError(error, 'RESTORE_UNFINISHED') && error.message.includes('log'),
        );
      else assert.deepEqual(run(), expected === 'done' ? { kind: 'done' } : { kind: expected, names: ['log'] });
    });

/** The same for giving up: what is renamed back; `too late` where the new one is in the directory. */
const WAY_BACK: Readonly<Record<string, Partial<Record<Where, readonly string[] | 'too late'>>>> = {
  'old and staged': { '110': [], '011': ['log'], '101': 'too late' },
  'old only': { '100': [], '001': ['log'] },
  'staged only': { '010': [], '100': 'too late' },
  neither: { '000': [] },
};

for (const [plan, row] of Object.entries(WAY_BACK))
  for (const where of WHERE)
    test(`giving up, ${plan}, found at ${where}: ${String(row[where] ?? 'refused')}`, () => {
      const has = (at: number): Set<string> => new Set(where[at] === '1' ? ['log'] : []);
      const seen = { here: has(0), staged: has(1), aside: has(2) };
      const run = (): readonly string[] => planWayBack({ setAside: 'set-aside.1', entries: [ENTRIES[plan]!] }, seen);
      const expected = row[where];
      if (typeof expected === 'object') return assert.deepEqual(run(), expected);
      const why = expected === 'too late' ? /log of the new state is in place/ : /somebody else moved it/;
      assert.throws(run, (error: unknown) => isNostosError(error, 'RESTORE_UNFINISHED') && why.test(error.message));
    });

test('one entry that is moved in is enough: there is no way back', () => {
  const swap = planSwap({ here: ['log', 'tenants'], staged: ['log', 'tenants'] });
  const seen = { here: new Set(['log']), staged: new Set(['tenants']), aside: new Set(['log', 'tenants']) };
  assert.throws(() => planWayBack(swap, seen), /log of the new state/);
});

test('no number is left for what is set aside: refused, and a marker takes the last one', () => {
  assert.throws(
    () => planSwap({ here: ['log', 'set-aside.999999999'], staged: [] }),
    (error: unknown) => isNostosError(error, 'FILE_EXISTS') && /move it away/.test(error.message),
  );
  const { setAside } = planSwap({ here: ['log', 'set-aside.999999998'], staged: [] });
  assert.ok(isSetAsideName(setAside), setAside);
});

test('nothing new comes in before everything old is out', () => {
  const swap = planSwap({
    here: ['log', 'node.json', 'tenants'],
    staged: ['log', 'node.json', 'catalog.sqlite'],
  });
  const staged = new Set(['log', 'node.json', 'catalog.sqlite']);
  const step = nextSwapStep(swap, { here: new Set(['tenants']), staged, aside: new Set(['log', 'node.json']) });
  assert.deepEqual(step, { kind: 'set-aside', names: ['tenants'] });
});

test('only what belongs to a node is exchanged, and set aside under the next number', () => {
  const here = [
    'lock',
    'owner.token',
    'lost+found',
    'restore',
    'restore.marker',
    'admin.sock',
    'set-aside.2',
    'set-aside.10',
    'log',
    'rollback',
  ];
  assert.deepEqual(planSwap({ here, staged: ['lock', 'log', 'node.json', 'stray'] }), {
    setAside: 'set-aside.11',
    entries: [
      { name: 'log', old: true, staged: true },
      { name: 'node.json', old: false, staged: true },
    ],
  });
  for (const name of ['..', 'log/..', '', 'log\0', 'tenants.bak', 'lock', 'rollback'])
    assert.equal(ownedByNode(name), false, name);
});
