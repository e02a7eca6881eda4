/**
 * A process that replaces the content of tenant `acme`, and is killed at one step of that. Arguments: data directory, file,
 * step. The steps are those of the progress, and two at the files of the old tenant, which go after the record.
 */
import fs from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { openNode } from './open-node.ts';

const [dir, file, step] = process.argv.slice(2) as [string, string, string];
const die = (): void => void process.kill(process.pid, 'SIGKILL');

const { rmSync } = fs;
fs.rmSync = (path, options): void => {
  const isOld = String(path).endsWith('tenant_1');
  if (isOld && step === 'the record is committed') die();
  rmSync(path, options);
  if (isOld && step === 'the old files are gone') die();
};
syncBuiltinESMExports();

await using node = await openNode({ dir, scrubIntervalMs: false });
await node.tenants.replace('acme', file, {
  onProgress: ({ phase, done, total }) => {
    if (phase === step || (step === 'half of the rows are copied' && total !== undefined && done > total / 2)) die();
  },
});
