/**
 * The process that the tour kills: it opens the node and writes from many callers at once until it dies. On stdout it
 * says `+<n>` when it asks for write n and `=<n>` when that is acknowledged, never earlier.
 *
 * Arguments: data directory, tenant, number of the first write, workload as JSON.
 */
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

async function writeForEver(): Promise<never> {
  for (;;) {
    const id = next++;
    process.stdout.write(`+${id}\n`);
    await tenant.write((tx) => runWrite(tx, workload, id));
    process.stdout.write(`=${id}\n`);
  }
}

await Promise.all(Array.from({ length: WRITERS }, writeForEver));
