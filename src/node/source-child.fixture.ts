/** Serves the node in the directory of its first argument, writes to it all the while, and waits to be killed. */
import { openNode } from './open-node.ts';

const node = await openNode({ dir: process.argv[2]!, listen: { port: 0 }, scrubIntervalMs: false });
process.stdout.write(`${node.address}\n`);
for (let n = 0; ; n += 1) {
  const names = (await node.tenants.list()).map(({ name }) => name);
  for (const name of names)
    await node.tenant(name).write((tx) => tx.run('insert into rows (body) values (?)', [`${n} ${'z'.repeat(2_000)}`]));
}
