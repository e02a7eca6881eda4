/**
 * The source of the kill harness: a node that is written to without pause while it is copied. On stdout its address; then,
 * for each write that was acknowledged, its number. Arguments: data directory, port.
 */
import { openNode } from '../node/open-node.ts';
import { sql } from '../store/values.ts';

const [dir, port] = process.argv.slice(2) as [string, string];

const KILL_TENANTS = ['t1', 't2', 't3'];
/** Each write adds one row with its number, so that what a copy holds is always 1 to n. */
const BODY_BYTES = 8_000;
const ROWS_AT_FIRST = 400;
const PAUSE_MS = 5;

process.stdin.resume().once('end', () => process.exit(1));

const node = await openNode({ dir, listen: { host: '127.0.0.1', port: Number(port) }, scrubIntervalMs: false });
const write = async (name: string): Promise<number> =>
  node.tenant(name).write((tx) => {
    const next = (tx.value<number>('select max(id) from item') ?? 0) + 1;
    tx.run(sql`insert into item (id, body) values (${next}, randomblob(${BODY_BYTES}))`);
    return next;
  });
for (const name of KILL_TENANTS) {
  const tenant = await node.tenants.create(name, { ifNotExists: true });
  await tenant.migrate(['create table item (id integer primary key not null, body blob not null)']);
  while ((await tenant.read((reader) => reader.value<number>('select count(*) from item')))! < ROWS_AT_FIRST)
    await Promise.all(Array.from({ length: 20 }, () => write(name)));
}
process.stdout.write(`${JSON.stringify({ address: node.address })}\n`);
for (;;) {
  for (const name of KILL_TENANTS) process.stdout.write(`${JSON.stringify({ tenant: name, id: await write(name) })}\n`);
  await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
}
