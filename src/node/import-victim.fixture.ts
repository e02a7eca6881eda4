/** A process that is killed in the midst of an import. Arguments: data directory, file. */
import { writeSync } from 'node:fs';
import { openNode } from './open-node.ts';

const [dir, file] = process.argv.slice(2) as [string, string];
await using node = await openNode({ dir, scrubIntervalMs: false });
await node.tenant('x').importFile(file, {
  onProgress: ({ done, total }) => {
    if (total === undefined || done < total / 3) return;
    writeSync(1, 'third\n');
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0); // for the end
  },
});
