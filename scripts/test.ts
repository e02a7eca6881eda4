/**
 * `npm test`: every `*.test.ts`, one process per file. `npm test -- src/log scripts/x.test.ts` runs those folders and
 * files only; flags such as `--test-name-pattern=…` go on to `node --test`.
 */
import { spawn } from 'node:child_process';
import { globSync, statSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';

const ROOTS = ['src', 'scripts', 'bench', 'examples'];
/** A test that hangs is a bug; no single one takes this long. */
const TIMEOUT_MS = 300_000;

/** Modules as they were compiled last, for this process and all that tests start: that is half of the time of a start. */
const COMPILED = fileURLToPath(new URL('../node_modules/.cache/compiled', import.meta.url));

function testFiles(path: string): string[] {
  if (statSync(path, { throwIfNoEntry: false })?.isDirectory() === false) return [path];
  return globSync(`${path.replace(/\/$/, '')}/**/*.test.ts`).toSorted();
}

const wanted = process.argv.slice(2);
const flags = wanted.filter((argument) => argument.startsWith('-'));
const paths = wanted.filter((argument) => !argument.startsWith('-'));
const files = (paths.length === 0 ? ROOTS : paths).flatMap(testFiles);
if (files.length === 0) {
  process.stderr.write(`no test file under ${paths.join(' ') || ROOTS.join(' ')}\n`);
  process.exit(1);
}

const startedMs = performance.now();
const run = spawn(
  process.execPath,
  [
    '--test',
    '--test-reporter=spec',
    `--test-concurrency=${Math.min(4, availableParallelism())}`,
    `--test-timeout=${TIMEOUT_MS}`,
    ...flags,
    ...files,
  ],
  { stdio: 'inherit', env: { NODE_COMPILE_CACHE: COMPILED, ...process.env } },
);
run.on('exit', (code, signal) => {
  const seconds = ((performance.now() - startedMs) / 1000).toFixed(1);
  const verdict = code === 0 ? 'passed' : `failed (${signal ?? `exit code ${code}`})`;
  process.stdout.write(`\n${files.length} test files ${verdict} in ${seconds} s\n`);
  process.exitCode = code ?? 1;
});
