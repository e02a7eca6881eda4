/**
 * Compiles the fingerprint kernel and writes it, as base64 in a TypeScript file, beside its user: the package needs neither
 * the compiler nor a file to look up at run time. With `--check` it only compares.
 */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const ROOT = join(import.meta.dirname, '..');
export const KERNEL_SOURCE = join(ROOT, 'src/store/fingerprint/assembly/kernel.ts');
export const KERNEL_OUTPUT = join(ROOT, 'src/store/fingerprint/kernel.wasm.ts');

/** The text of `kernel.wasm.ts` as the source gives it. */
export function compileKernel(): string {
  const directory = mkdtempSync(join(tmpdir(), 'nostos-kernel-'));
  try {
    const output = join(directory, 'kernel.wasm');
    const compiler = createRequire(import.meta.url).resolve('assemblyscript/bin/asc.js');
    const options = [
      '--runtime',
      'stub',
      '-O3',
      '--converge',
      '--noAssert',
      '--use',
      'abort=',
      '--memoryBase',
      '32768',
    ];
    execFileSync(process.execPath, [compiler, KERNEL_SOURCE, '--outFile', output, ...options], { stdio: 'inherit' });
    const base64 = readFileSync(output).toString('base64');
    const lines = base64.match(/.{1,100}/g)!.map((line) => `  '${line}'`);
    return `/** Generated from \`assembly/kernel.ts\` by \`scripts/build-kernel.ts\`; do not edit. */
export const KERNEL_WASM_BASE64 =
${lines.join(' +\n')};
`;
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

if (import.meta.main) {
  const text = compileKernel();
  const current = process.argv.includes('--check') ? readFileSync(KERNEL_OUTPUT, 'utf8') : undefined;
  if (current === undefined) writeFileSync(KERNEL_OUTPUT, text);
  else if (current !== text) {
    process.stderr.write('kernel.wasm.ts is not what its source gives; run node scripts/build-kernel.ts\n');
    process.exitCode = 1;
  }
}
