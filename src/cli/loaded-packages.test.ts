/** What importing Nostos loads is memory of every process that embeds it, used or not. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { test } from 'node:test';
import { promisify } from 'node:util';

const run = promisify(execFile);

/** The packages, and `node:http`, that a process has loaded when its import is done. */
async function loadedBy(module: string): Promise<readonly string[]> {
  const script = `
    import { registerHooks } from 'node:module';
    const loaded = new Set();
    registerHooks({
      load(url, context, next) {
        const name = /^node:https?$/.exec(url) ?? /.*\\/node_modules\\/((?:@[^/]+\\/)?[^/]+)/.exec(url);
        if (name !== null) loaded.add(name.at(-1));
        return next(url, context);
      },
    });
    await import(${JSON.stringify(import.meta.resolve(module))});
    process.stdout.write(JSON.stringify([...loaded].sort()));`;
  const { stdout } = await run(process.execPath, ['--input-type=module', '--eval', script]);
  return JSON.parse(stdout) as string[];
}

/** Without the one that is named after this platform. */
const packages = async (module: string): Promise<readonly string[]> =>
  (await loadedBy(module)).filter((name) => !name.startsWith('@napi-rs/blake-hash-'));

test('what is loaded is seen', async () => {
  assert.deepEqual(await packages('node:http'), ['node:http']);
  const metrics = await packages('prom-client');
  for (const name of ['prom-client', '@opentelemetry/api']) assert.ok(metrics.includes(name), String(metrics));
});

test('importing Nostos loads no schemas, no metrics and no HTTP: what is asked for them loads them', async () => {
  assert.deepEqual(await packages('../index.ts'), ['@msgpack/msgpack', '@napi-rs/blake-hash']);
});

test('a restore loads no metrics and no HTTP, and the command line no verb before it knows which', async () => {
  assert.deepEqual(await packages('./restore.ts'), [
    '@msgpack/msgpack',
    '@napi-rs/blake-hash',
    'commander',
    'valibot',
    'xxhash-wasm',
  ]);
  assert.ok(!(await packages('./main.ts')).includes('xxhash-wasm'));
});
