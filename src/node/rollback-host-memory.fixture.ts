/**
 * A process that makes a directory whose tail has so many MiB, in one tenant and then in many; or one that rolls it back,
 * and prints the most memory that it ever had, in MiB.
 */
import { readFileSync } from 'node:fs';
import { commonPoint, requestFor } from './divergent.fixture.ts';
import { NodeParts } from './node-parts.fixture.ts';

const SCHEMA = ['create table rows (id integer primary key not null, body blob)'];
const ROW_BYTES = 60_000;
const ROWS_PER_SMALL_TENANT = 10;

const [what, dir = '', mebibytes = '0'] = process.argv.slice(2);
if (what === 'make') {
  const rows = Math.ceil((Number(mebibytes) * 1024 * 1024) / ROW_BYTES);
  const names = Array.from({ length: Math.ceil(rows / (2 * ROWS_PER_SMALL_TENANT)) }, (_, i) => `small${i}`);
  const parts = new NodeParts(dir, { role: 'primary' });
  parts.startTerm(1);
  parts.direct.committing = true;
  for (const name of ['large', ...names]) await parts.createTenant(name, SCHEMA);
  parts.direct.committing = false;
  const common = commonPoint(parts.log.end);
  const insert = (name: string): Promise<unknown> =>
    parts.write(name, 'local', (tx) => void tx.run('insert into rows (body) values (zeroblob(?))', [ROW_BYTES]));
  // Those of one tenant that come together share a sync.
  for (const name of names)
    await Promise.all(
      Array.from({ length: 2 * ROWS_PER_SMALL_TENANT }, (_, i) => insert(i % 2 === 0 ? 'large' : name)),
    );
  await parts.close();
  process.stdout.write(JSON.stringify(requestFor(common)));
} else {
  const parts = new NodeParts(dir, { role: 'replica' });
  const { file } = await parts.runner().run(JSON.parse(what!) as ReturnType<typeof requestFor>);
  const peak = Number(/^VmHWM:\s+(\d+) kB/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]) / 1024;
  process.stdout.write(JSON.stringify({ peak, bytes: file?.bytes }));
  await parts.close();
}
