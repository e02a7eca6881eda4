/**
 * A member of a group that replaces the content of tenant `acme` once it leads, and is killed at one step of that. Arguments:
 * data directory, coordinator, file, step. With the step `held` it waits before the record until there is a file of that name
 * beside the other one.
 */
import fs, { existsSync, writeSync } from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { FAST, MIGRATIONS } from './group.fixture.ts';
import { openNode } from './open-node.ts';

const [dir, coordinator, file, step] = process.argv.slice(2) as [string, string, string, string];
const die = (): void => void process.kill(process.pid, 'SIGKILL');

const { rmSync } = fs;
fs.rmSync = (path, options): void => {
  if (String(path).endsWith('tenant_1') && step === 'the record is committed') die();
  rmSync(path, options);
};
syncBuiltinESMExports();

/** Of this thread alone: the engine goes on. */
function pause(ms: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
}

const node = await openNode({
  dir,
  migrations: MIGRATIONS,
  scrubIntervalMs: false,
  limits: FAST,
  group: { coordinator, listen: { port: 0 } },
});
writeSync(1, `${(await node.status()).store}\n`);
while (node.role !== 'primary') await new Promise((resolve) => void setTimeout(resolve, 20));
await node.tenants.replace('acme', file, {
  onProgress: ({ phase }) => {
    if (phase === step) die();
    if (phase !== 'replacing the content' || step !== 'held') return;
    writeSync(1, 'held\n');
    while (!existsSync(`${file}.held`)) pause(10);
  },
});
