import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isNostosError } from '../../base/errors.ts';
import type { BrokenRule, InterleavingOutcome } from './interleaving.fixture.ts';
import { interleave, sleepBeforeManifest } from './interleaving.fixture.ts';

const SEEDS = 40;

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
  for (const [name, count] of Object.entries(total)) assert.ok(count >= SEEDS / 4, `${name}: ${count}`);
});

const BROKEN: readonly BrokenRule[] = ['prune sees no locks', 'objects go before manifests'];

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

test('a creator that slept right before its manifest finds a tombstone there; without that its snapshot would be broken', async () => {
  const { commit, objectsLost } = await sleepBeforeManifest();
  assert.ok(commit.status === 'rejected' && isNostosError(commit.reason, 'BACKUP_LOCK_LOST'));
  assert.equal(objectsLost, 0);
  const broken = await sleepBeforeManifest('no tombstone for who is given up');
  assert.equal(broken.commit.status, 'fulfilled');
  assert.equal(broken.objectsLost, 1);
});
