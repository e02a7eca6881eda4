/**
 * One of three web servers over one group. A write may come to any of them: a replica sends it to the primary. Each answer
 * of a write sets a cookie with its position, and a read with that cookie, wherever it comes to, contains the write.
 *
 * node group.ts <index> <dir> <coordinator URL>: HTTP on 127.0.0.1:8080 + index.
 */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { NostosError, formatPosition, isNostosError, openNode, parsePosition } from 'nostos';

const [index = '0', dir = './group-data', coordinator = ''] = process.argv.slice(2);
const { HTTP_BASE = '8080', GROUP_BASE = '4100' } = process.env;
const [httpBase, groupBase] = [Number(HTTP_BASE), Number(GROUP_BASE)];
await using node = await openNode({
  dir,
  migrations: ['create table note (id integer primary key not null, body text not null)'],
  group: { coordinator, listen: { port: groupBase + Number(index) } },
});
node.group!.onEvent(({ kind, text }) => console.log(kind, text));

async function write(request: IncomingMessage, response: ServerResponse): Promise<void> {
  const body = Buffer.concat(await request.toArray()).toString();
  try {
    const notes = await node.tenants.create('notes', { ifNotExists: true });
    // The same id again, here or at another primary, has the effect of once.
    const id = String(request.headers['idempotency-key'] ?? crypto.randomUUID());
    await notes.write((tx) => tx.run('insert into note (body) values (?)', [body]).changes, { id });
    const position = formatPosition(await notes.position());
    response.setHeader('set-cookie', `position=${position}; HttpOnly; SameSite=Lax`).end('kept\n');
  } catch (error) {
    if (!isNostosError(error, 'NOT_PRIMARY') || typeof error.details['address'] !== 'string') throw error;
    // Members say where their group reaches them; the web server of each is a fixed distance from there.
    const port = Number(error.details['address'].split(':').at(-1)) - groupBase + httpBase;
    const headers = { 'idempotency-key': String(request.headers['idempotency-key'] ?? crypto.randomUUID()) };
    const answer = await fetch(`http://127.0.0.1:${port}/`, { method: 'POST', body, headers });
    const cookie = answer.headers.get('set-cookie');
    if (cookie !== null) response.setHeader('set-cookie', cookie);
    response.writeHead(answer.status).end(await answer.text());
  }
}

async function read(request: IncomingMessage, response: ServerResponse): Promise<void> {
  const cookie = /(?:^|; )position=([\w:.-]+)/.exec(request.headers.cookie ?? '')?.[1];
  const min = cookie === undefined ? {} : { min: parsePosition(cookie) };
  const rows = await node
    .tenant('notes')
    .read((reader) => reader.all('select id, body from note order by id desc limit 10'), min);
  response.end(`${JSON.stringify(rows)}\n`);
}

const server = createServer((request, response) => {
  (request.method === 'POST' ? write : read)(request, response).catch((error: unknown) => {
    const known = error instanceof NostosError ? error.toJSON() : { code: 'INTERNAL', message: String(error) };
    response.writeHead(known.code === 'NOT_PRIMARY' ? 503 : 500).end(`${JSON.stringify(known)}\n`);
  });
});
server.listen(httpBase + Number(index), '127.0.0.1', () =>
  console.log(`http://127.0.0.1:${httpBase + Number(index)}/`),
);
await new Promise((resolve) => process.once('SIGTERM', resolve).once('SIGINT', resolve));
server.close().closeAllConnections();
