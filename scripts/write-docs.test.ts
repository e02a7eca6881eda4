import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { DEFAULT_LIMITS } from '../src/base/limits.ts';
import { generatedPages } from './write-docs.ts';

const pages = await generatedPages();

for (const [path, text] of pages)
  test(`${path} is what the code says (else: npm run docs)`, () => {
    assert.equal(readFileSync(fileURLToPath(new URL(`../${path}`, import.meta.url)), 'utf8'), text);
  });

test('every limit says what it bounds', () => {
  const rows = pages
    .get('docs/limits.md')!
    .split('\n')
    .filter((line) => line.startsWith('| `'));
  assert.equal(rows.length, Object.keys(DEFAULT_LIMITS).length);
  for (const row of rows) assert.match(row, /\| [A-Z`].{10,} \|$/);
});

test('every verb shows examples', () => {
  const sections = pages.get('docs/cli.md')!.split('\n## ').slice(1);
  assert.ok(sections.length >= 13);
  for (const section of sections) assert.match(section, /Examples:\n {2}\$ /);
});
