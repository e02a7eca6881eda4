/**
 * The process that is killed: it forgets rows of two tenants, many at once, and says of each forget that it was told of it.
 * Arguments: directory, first id.
 */
import { writeSync } from 'node:fs';
import { openNode } from './open-node.ts';

const [dir, first] = process.argv.slice(2) as [string, string];
const limits = {
  segmentBytesMax: 128 * 1024,
  recordBytesMax: 96 * 1024,
  logRetainBytes: 256 * 1024,
  checkpointBytes: 64 * 1024,
};
const node = await openNode({ dir, scrubIntervalMs: false, limits });
const tenants = [node.tenant('a'), node.tenant('b')];
writeSync(1, '"ready"\n');

async function forgetting(from: number): Promise<void> {
  for (let id = from; ; id += 8)
    for (const tenant of tenants) {
      await tenant.write((tx) => {
        tx.forget('users', { id });
        tx.run('insert into noise (bytes) values (randomblob(2000))');
      });
      writeSync(1, `${JSON.stringify([tenant.name, id])}\n`);
    }
}

await Promise.all(Array.from({ length: 8 }, (_, index) => forgetting(Number(first) + index)));
