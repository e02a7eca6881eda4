import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { BrokenRule, InterleavingOutcome } from './interleaving.fixture.ts';
import { interleave } from './interleaving.fixture.ts';

const SEEDS = 60;

test('whoever is killed or stopped, no snapshot loses what it needs, and none that was made is lost', async () => {
  const total: Record<keyof InterleavingOutcome, number> = {
    committed: 0,
    pruned: 0,
    killed: 0,
    givenUp: 0,
    refused: 0,
  };
  for (let seed = 1; seed <= SEEDS; seed++) {
    const outcome = await interleave(seed);
    for (const name of Object.keys(total) as (keyof InterleavingOutcome)[]) total[name] += outcome[name];
  }
  for (const [name, count] of Object.entries(total)) assert.ok(count >= SEEDS / 3, `${name}: ${count}`);
});

const BROKEN: readonly BrokenRule[] = [
  'prune sees no locks',
  'no tombstone for who is given up',
  'objects go before manifests',
];

for (const rule of BROKEN)
  test(`the simulation notices when a rule is broken: ${rule}`, async () => {
    for (let seed = 1; seed <= 10 * SEEDS; seed++) {
      try {
        await interleave(seed, rule);
      } catch (error) {
        assert.match((error as Error).message, /has lost an object/);
        return;
      }
    }
    assert.fail('it did not');
  });
