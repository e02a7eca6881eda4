import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runDirectoryKills } from './restore-kill-harness.ts';

test(
  'kill -9 of a restore, or of its source, at random points: run again it ends whole',
  { timeout: 120_000 },
  async () => {
    const report = await runDirectoryKills({ kills: 2, seed: 3 });
    assert.equal(report.kills, 2);
    assert.equal(report.sourceKills, 1);
    assert.ok(report.rowsChecked > 3_000, JSON.stringify(report));
  },
);
