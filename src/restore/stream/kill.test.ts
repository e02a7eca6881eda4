import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runRestoreKills } from './kill.fixture.ts';

test('kill -9 of either side at random points: the next run ends with every file and sends what was missing', async () => {
  const report = await runRestoreKills({ rounds: 4, seed: 3 });
  assert.equal(report.killedSource + report.killedReceiver, 4);
  assert.ok(report.killedSource > 0 && report.killedReceiver > 0, JSON.stringify(report));
});
