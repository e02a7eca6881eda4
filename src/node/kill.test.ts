import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runKillRounds } from './kill-harness.ts';

test('what was acknowledged survives kill -9 under load and during recovery, exactly once', async () => {
  const report = await runKillRounds({ rounds: 5, seed: 7 });
  assert.equal(report.rounds, 5);
  assert.ok(report.killedWriting > 0, 'at least one child was killed while it wrote');
  assert.ok(report.acknowledged > 0, 'and it had been told of writes');
});
