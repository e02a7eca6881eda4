import assert from 'node:assert/strict';
import { test } from 'node:test';
import { checkFile } from './check-layers.ts';

const rules = (file: string, text: string) => checkFile(file, text).map((violation) => violation.rule);

test('an import that points up or sideways is caught', () => {
  assert.deepEqual(rules('src/log/writer.ts', `import { openNode } from '../node/open-node.ts';`), ['direction']);
  assert.deepEqual(rules('src/backup/plan.ts', `export * from '../restore/client.ts';`), ['direction']);
  assert.deepEqual(rules('src/node/engine.ts', `const cli = await import('../cli/main.ts');`), ['direction']);
  assert.deepEqual(rules('src/log/record.ts', `import type { A } from '../store/tenant.ts';`), ['direction']);
  assert.deepEqual(rules('src/log/record.ts', `import type { A } from '../wire/frame.ts';`), ['direction']);
});

test('an import that points down, or stays in its folder, is fine', () => {
  assert.deepEqual(rules('src/cli/main.ts', `import { openNode } from '../node/open-node.ts';`), []);
  assert.deepEqual(rules('src/log/writer.ts', `import { a } from './record.ts';\nimport '../base/assert.ts';`), []);
});

test('testing is imported by tests only, and imports nothing of node', () => {
  assert.deepEqual(rules('src/log/writer.ts', `import { Clock } from '../testing/clock.ts';`), ['direction']);
  assert.deepEqual(rules('src/log/writer.test.ts', `import { Clock } from '../testing/clock.ts';`), []);
  assert.deepEqual(rules('src/testing/cluster.ts', `import { openNode } from '../node/open-node.ts';`), ['direction']);
});

test('I/O, clocks and randomness in a pure file are caught; the edge and comments are free', () => {
  assert.deepEqual(rules('src/rollback/machine.ts', `import { readFileSync } from 'node:fs';`), ['edge']);
  assert.deepEqual(rules('src/rollback/machine.ts', `const now = Date.now(); setTimeout(f, Math.random());`), [
    'edge',
    'edge',
    'edge',
  ]);
  assert.deepEqual(
    rules('src/rollback/machine.ts', `// Date.now() is not called\n/* setTimeout */ clock.setTimeout()`),
    [],
  );
  assert.deepEqual(rules('src/node/engine.ts', `import fs from 'node:fs'; Date.now();`), []);
});

test('a folder without a layer is caught', () => {
  assert.deepEqual(rules('src/utils/misc.ts', ''), ['unknown-folder']);
});
