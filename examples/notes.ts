import { openNode, sql } from 'nostos';

await using node = await openNode({ dir: process.argv[2] ?? './notes-data' });
const notes = await node.tenants.create('notes', { ifNotExists: true });
await notes.migrate(['create table note (id integer primary key not null, body text not null)']);

// Durable when the promise resolves: kill -9 may come at any moment after.
const body = `opened at ${new Date().toISOString()}`;
await notes.write((tx) => tx.run(sql`insert into note (body) values (${body})`));

console.log(await notes.query('select id, body from note order by id desc limit 3'));
for await (const change of notes.changes({ untilCaughtUp: true }))
  console.log(change.position.lsn, change.kind, change.rows);
