import assert from 'node:assert/strict';
import { test } from 'node:test';
import { releaseBuffer } from './release.ts';

test('the memory of a whole buffer is given back; a part of one, and the empty one, are left alone', () => {
  const whole = Buffer.allocUnsafeSlow(20_000);
  const view = whole.subarray(0, 19_999);
  releaseBuffer(view);
  assert.equal(view.length, 19_999);
  releaseBuffer(whole);
  assert.deepEqual([whole.length, view.length], [0, 0]);
  releaseBuffer(whole);
  const [empty, pooled] = [Buffer.alloc(0), Buffer.from('pooled')];
  releaseBuffer(empty);
  releaseBuffer(pooled);
  assert.ok(!empty.buffer.detached);
  assert.equal(pooled.toString(), 'pooled');
});
