/**
 * The process that the tour kills: it opens the node and writes from many callers at once until it dies. On stdout it
 * says `+<n>` when it asks for write n and `=<n>` when that is acknowledged, never earlier.
 *
 * Arguments: data directory, tenant, number of the first write, workload as JSON.
 */
import { writeSync } from 'node:fs';
import { openNode } from '../../node/open-node.ts';
import { runWrite, type Workload } from './workload.ts';

const WRITERS = 64;

const [dir, tenantName, first, workloadJson] = process.argv.slice(2) as [string, string, string, string];
const workload = JSON.parse(workloadJson) as Workload;
let next = Number(first);

// When the tour itself dies, this process must not go on for ever.
process.stdin.resume().once('end', () => process.exit(1));

await using node = await openNode({ dir, scrubIntervalMs: false });
const tenant = node.tenant(tenantName);

/** With the system before the next step: what `process.stdout` keeps for a reader who is slow dies with this process. */
function say(line: string): void {
  for (;;)
    try {
      writeSync(1, line); // a line is taken whole, or not at all
      return;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error;
      Atomics.wait(pause, 0, 0, 1);
    }
}

const pause = new Int32Array(new SharedArrayBuffer(4));

async function writeForEver(): Promise<never> {
  for (;;) {
    const id = next++;
    say(`+${id}\n`);
    await tenant.write((tx) => runWrite(tx, workload, id));
    say(`=${id}\n`);
  }
}

await Promise.all(Array.from({ length: WRITERS }, writeForEver));
