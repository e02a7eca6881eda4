/** The process that is killed: it writes, and makes one backup after the other. Arguments: directory, place. */
import { writeSync } from 'node:fs';
import { backupNode } from './backup-operations.ts';
import { add, openFor } from './backup.fixture.ts';
import type { Progress } from './types.ts';

const [dir, to] = process.argv.slice(2) as [string, string];
const node = await openFor(dir);
const tenant = await node.tenants.create('a', { ifNotExists: true });
await tenant.migrate(['create table rows (id integer primary key, body text)']);
for (;;) {
  for (let n = 0; n < 20; n += 1) await add(tenant);
  writeSync(1, 'begun\n');
  const onProgress = ({ phase }: Progress): void => void writeSync(1, `${phase}\n`);
  const { snapshot } = await backupNode(node, { to, full: true }, { onProgress });
  writeSync(1, `made ${snapshot}\n`);
}
