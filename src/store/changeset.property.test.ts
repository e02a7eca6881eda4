import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runSchemaHistories } from '../testing/schema-histories.ts';

test('random schemas and histories: forward, inverse, joined and fingerprint are exact', () => {
  const counts = runSchemaHistories({ seeds: Array.from({ length: 250 }, (_, seed) => seed) });
  assert.ok(counts.changes > 1_000, `only ${counts.changes} changes: the generator makes nothing happen`);
  assert.ok(counts.failedTransactions < counts.transactions * 0.8, JSON.stringify(counts));
});
