import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { compileKernel, KERNEL_OUTPUT } from '../../../scripts/build-kernel.ts';

test('the committed kernel is what its source gives', () => {
  assert.equal(readFileSync(KERNEL_OUTPUT, 'utf8'), compileKernel());
});
