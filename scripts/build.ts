/** `npm run build`: src/ to dist/, with declarations; what is not TypeScript (WASM and the like) is copied beside it. */
import { execFileSync } from 'node:child_process';
import { copyFileSync, globSync, mkdirSync, readFileSync, rmSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const dist = join(root, 'dist');
const ASSETS = 'src/**/*.wasm';

rmSync(dist, { recursive: true, force: true });
const typescript = fileURLToPath(import.meta.resolve('typescript/package.json'));
const { bin } = JSON.parse(readFileSync(typescript, 'utf8')) as { bin: { tsc: string } };
execFileSync(process.execPath, [join(dirname(typescript), bin.tsc), '-p', 'tsconfig.build.json'], {
  cwd: root,
  stdio: 'inherit',
});

for (const asset of globSync(ASSETS, { cwd: root })) {
  const target = join(dist, relative('src', asset));
  mkdirSync(dirname(target), { recursive: true });
  copyFileSync(join(root, asset), target);
}
