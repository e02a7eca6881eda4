import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { blake3 } from '@napi-rs/blake-hash';
import { seededRandom } from './random.ts';

const OUTPUT = join(import.meta.dirname, 'blake3.wasm.ts');

function compile(): string {
  const directory = mkdtempSync(join(tmpdir(), 'nostos-blake3-'));
  try {
    const output = join(directory, 'kernel.wasm');
    const compiler = createRequire(import.meta.url).resolve('assemblyscript/bin/asc.js');
    const options = [
      '--runtime',
      'stub',
      '-O3',
      '--converge',
      '--noAssert',
      '--enable',
      'simd',
      '--memoryBase',
      '2048',
    ];
    const source = join(import.meta.dirname, 'assembly/blake3.ts');
    execFileSync(process.execPath, [compiler, source, '--outFile', output, ...options], { stdio: 'inherit' });
    const lines =
      readFileSync(output)
        .toString('base64')
        .match(/.{1,100}/g) ?? [];
    return `/** Generated from \`assembly/blake3.ts\` by \`NOSTOS_UPDATE=1 node --test src/base/blake3.test.ts\`; do not edit. */
export const BLAKE3_WASM_BASE64 =
${lines.map((line) => `  '${line}'`).join(' +\n')};
`;
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

test('the committed kernel is what its source gives', () => {
  const text = compile();
  if (process.env.NOSTOS_UPDATE === '1') writeFileSync(OUTPUT, text);
  assert.equal(readFileSync(OUTPUT, 'utf8'), text);
});

test('the hash is BLAKE3 at every length that the kernel takes, and beyond', async () => {
  const { hashBlake3 } = await import('./blake3.ts');
  const random = seededRandom(5);
  for (let length = 0; length < 1_400; length++) {
    const bytes = random.bytes(length);
    const hash = hashBlake3(bytes);
    assert.equal(Buffer.from(hash).toString('hex'), blake3(bytes).toString('hex'), `${length} bytes`);
  }
});

test('a hash stays what it is when another is made', async () => {
  const { hashBlake3 } = await import('./blake3.ts');
  const first = hashBlake3(Buffer.from('first'));
  const copy = Uint8Array.from(first);
  hashBlake3(Buffer.from('second'));
  assert.deepEqual(first, copy);
});
