/** Opens the copy in the directory of its first argument, reads all of it, says so, and waits to be killed. */
import { openNode } from './open-node.ts';

const node = await openNode({ dir: process.argv[2]!, scrubIntervalMs: false });
for (const { name } of await node.tenants.list()) await node.tenant(name).status();
process.stdout.write('open\n');
setInterval(() => {}, 1_000);
