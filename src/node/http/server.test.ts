import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, stat } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { isNostosError } from '../../base/errors.ts';
import { openNode } from '../open-node.ts';
import type { Node } from '../types.ts';
import { serveHttp, type HttpServer } from './server.ts';
import { addToken, createToken, hashToken, ownerToken, readTokenFile, type Grant } from './tokens.ts';

const LIMITS = { requestBytesMax: 10_000 };
const tokens = { admin: createToken(), reader: createToken(), writer: createToken(), watcher: createToken() };
const grants: Grant[] = [
  { hash: hashToken(tokens.admin), tenants: ['*'], access: 'admin' },
  { hash: hashToken(tokens.reader), tenants: ['acme'], access: 'read' },
  { hash: hashToken(tokens.writer), tenants: ['acme'], access: 'write' },
  { hash: hashToken(tokens.watcher), tenants: ['*'], access: 'read' },
];

let dir: string;
let node: Node;
let server: HttpServer;

before(async () => {
  dir = await mkdtemp(join(tmpdir(), 'nostos-test-'));
  node = await openNode({ dir: join(dir, 'data'), scrubIntervalMs: false });
  for (const name of ['acme', 'globex']) {
    const tenant = await node.tenants.create(name);
    await tenant.migrate(['create table notes (id integer primary key not null, body text, big integer, bytes blob)']);
  }
  server = await serveHttp({ node, port: 0, grants, limits: LIMITS });
});

after(async () => {
  await server.close();
  await node.close();
  await rm(dir, { recursive: true, force: true });
});

interface Answer {
  readonly status: number;
  readonly body: unknown;
}

async function ask(method: string, path: string, token?: string, body?: unknown): Promise<Answer> {
  const headers: Record<string, string> = { 'content-type': 'application/json' };
  if (token !== undefined) headers['authorization'] = `Bearer ${token}`;
  const init = {
    method,
    headers,
    ...(body === undefined ? {} : { body: typeof body === 'string' ? body : JSON.stringify(body) }),
  };
  const response = await fetch(server.url + path, init);
  const text = await response.text();
  const isJson = response.headers.get('content-type')?.startsWith('application/json') ?? false;
  return { status: response.status, body: isJson ? JSON.parse(text) : text };
}

function codeOf({ body }: Answer): string {
  return (body as { error: { code: string } }).error.code;
}

test('probes and the page need no token; the page holds no data and allows nothing from elsewhere', async () => {
  assert.deepEqual(await ask('GET', '/healthz'), { status: 200, body: 'ok\n' });
  assert.deepEqual(await ask('GET', '/readyz'), { status: 200, body: 'ready\n' });
  const page = await fetch(`${server.url}/`);
  const html = await page.text();
  assert.match(html, /^<!doctype html>/);
  assert.ok(!html.includes('acme') && !html.includes(dir));
  assert.match(page.headers.get('content-security-policy')!, /default-src 'none'.*connect-src 'self'/);
  assert.doesNotMatch(html, /(?:src|href)="https?:/);
});

test('rights are per tenant and by kind', async () => {
  const select = { sql: 'select 1 as one' };
  const insert = { sql: "insert into notes (body) values ('by right')" };
  const cases: readonly (readonly [string, string, string | undefined, unknown, number])[] = [
    ['GET', '/v1/status', undefined, undefined, 401],
    ['GET', '/v1/status', 'wrong', undefined, 401],
    ['GET', '/v1/status', tokens.reader, undefined, 403],
    ['GET', '/v1/status', tokens.watcher, undefined, 200],
    ['GET', '/metrics', undefined, undefined, 401],
    ['GET', '/metrics', tokens.reader, undefined, 403],
    ['GET', '/metrics', tokens.watcher, undefined, 200],
    ['POST', '/v1/tenants/acme/query', tokens.reader, select, 200],
    ['POST', '/v1/tenants/globex/query', tokens.reader, select, 403],
    ['POST', '/v1/tenants/acme/execute', tokens.reader, insert, 403],
    ['POST', '/v1/tenants/acme/execute', tokens.writer, insert, 200],
    ['POST', '/v1/tenants/acme/query', tokens.reader, { ...select, tenant: 'globex' }, 200],
    ['DELETE', '/v1/tenants/acme', tokens.writer, undefined, 403],
    ['POST', '/v1/tenants', tokens.watcher, { name: 'new' }, 403],
    ['POST', '/v1/verify', tokens.reader, { tenant: ['acme'] }, 403],
    ['GET', '/v1/log?tenant=acme', tokens.reader, undefined, 200],
    ['GET', '/v1/log', tokens.reader, undefined, 403],
  ];
  for (const [method, path, token, body, status] of cases)
    assert.equal((await ask(method, path, token, body)).status, status, `${method} ${path} by ${token?.slice(0, 12)}`);
});

test('a right to read cannot write, however the SQL is dressed', async () => {
  const count = async (): Promise<unknown> => (await node.tenant('acme').query('select count(*) as n from notes'))[0];
  const beforehand = await count();
  for (const sql of [
    "insert into notes (body) values ('x')",
    "with a as (select 1) insert into notes (body) values ('x')",
    "/* select */ update notes set body = 'x'",
    'select 1; delete from notes',
    'pragma user_version = 7',
    "attach 'other.sqlite' as other",
    'drop table notes',
  ]) {
    const { status } = await ask('POST', '/v1/tenants/acme/query', tokens.reader, { sql });
    assert.ok(status >= 400 && status < 500, `${sql}: ${status}`);
  }
  assert.deepEqual(await count(), beforehand);
});

test('tenants are made, migrated, written, read and dropped; integers and bytes stay whole', async () => {
  const path = '/v1/tenants/a%2F..%2Fb';
  assert.equal((await ask('POST', '/v1/tenants', tokens.admin, { name: 'café' })).status, 200);
  const cafe = `/v1/tenants/${encodeURIComponent('café')}`;
  const migrations = ['create table t (id integer primary key not null, n integer, b blob)'];
  assert.equal((await ask('POST', `${cafe}/migrate`, tokens.admin, { migrations })).status, 200);
  const parameters = [1, { $int: '9223372036854775807' }, { $bytes: 'AAH/' }];
  const insert = { sql: 'insert into t values (?, ?, ?)', parameters, id: 'first' };
  const [first] = (await ask('POST', `${cafe}/execute`, tokens.admin, insert)).body as unknown[];
  assert.deepEqual(first, { verb: 'INSERT', changes: 1, lastInsertRowid: 1 });
  assert.deepEqual((await ask('POST', `${cafe}/execute`, tokens.admin, insert)).body, [first]);
  assert.deepEqual((await ask('POST', `${cafe}/query`, tokens.admin, { sql: 'select n, b from t' })).body, [
    { verb: 'SELECT', rows: [{ n: parameters[1], b: parameters[2] }] },
  ]);
  assert.equal(codeOf(await ask('POST', '/v1/tenants', tokens.admin, { name: 'café' })), 'TENANT_EXISTS');
  assert.equal((await ask('DELETE', cafe, tokens.admin)).status, 200);
  assert.equal((await ask('GET', cafe, tokens.admin)).status, 404);
  assert.ok([400, 404].includes((await ask('GET', path, tokens.admin)).status));
});

test('bad requests are told what is wrong, and nothing else', async () => {
  const query = '/v1/tenants/acme/query';
  const cases: readonly (readonly [string, string, unknown, number, string])[] = [
    ['POST', query, '{', 400, 'INVALID_ARGUMENT'],
    ['POST', query, '[1]', 400, 'INVALID_ARGUMENT'],
    ['POST', query, { sql: 7 }, 400, 'INVALID_ARGUMENT'],
    ['POST', query, { sql: 'select 1', more: true }, 400, 'INVALID_ARGUMENT'],
    ['POST', query, { sql: 'selec 1' }, 400, 'SQL_DENIED'],
    ['POST', query, { sql: 'select * from absent' }, 422, 'SQL_FAILED'],
    ['POST', query, { sql: 'x'.repeat(20_000) }, 413, 'FRAME_TOO_LARGE'],
    ['POST', query, { sql: 'x'.repeat(2_000_000) }, 413, 'FRAME_TOO_LARGE'],
    ['GET', '/v1/log?limit=-1', undefined, 400, 'INVALID_ARGUMENT'],
    ['GET', '/v1/log?limit=1&limit=2', undefined, 400, 'INVALID_ARGUMENT'],
    ['GET', '/v1/tenants/%zz', undefined, 404, 'INVALID_ARGUMENT'],
    ['PUT', query, { sql: 'select 1' }, 404, 'INVALID_ARGUMENT'],
    ['GET', '/v1/absent', undefined, 404, 'INVALID_ARGUMENT'],
    ['GET', '/v1/tenants/nobody', undefined, 404, 'TENANT_NOT_FOUND'],
  ];
  for (const [method, path, body, status, code] of cases) {
    const answer = await ask(method, path, tokens.admin, body);
    assert.equal(codeOf(answer), code, `${method} ${path} ${JSON.stringify(body)?.slice(0, 60)}`);
    if (code !== 'SQL_DENIED') assert.equal(answer.status, status, path);
  }
});

function dial(to: HttpServer = server): Socket {
  return connect(Number(new URL(to.url).port), '127.0.0.1').on('error', () => {});
}

/** What is answered to these bytes, as soon as it is what was expected, or the connection is closed, or nothing comes. */
async function sendBytes(bytes: string | Uint8Array, expected: RegExp): Promise<string> {
  const socket = dial();
  socket.write(bytes);
  socket.setTimeout(5_000, () => socket.destroy());
  let said = '';
  for await (const chunk of socket.setEncoding('utf8') as AsyncIterable<string>)
    if (expected.test((said += chunk))) break;
  socket.destroy();
  return said;
}

test('requests that no library would send are answered, at once, and leave nothing that is taken for another one', async () => {
  const bearer = `host: x\r\nauthorization: bEARER ${tokens.admin}\r\n`;
  const json = 'content-type: application/json\r\n';
  const [create, get] = [`POST /v1/tenants HTTP/1.1\r\n`, `GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n`];
  const notUtf8 = Buffer.from(`${create}${bearer}${json}content-length: 15\r\n\r\n{"name":"caf\xe9"}`, 'latin1');
  const cases: readonly (readonly [string, string | Uint8Array, RegExp])[] = [
    ['a HEAD of a stream', `HEAD /v1/log?follow=true HTTP/1.1\r\n${bearer}\r\n`, /^HTTP\/1.1 200 .*x-ndjson/s],
    ['a HEAD', `HEAD /v1/status HTTP/1.1\r\n${bearer}\r\n${get}`, /^HTTP\/1.1 200 .*\r\n\r\nHTTP\/1.1 200 .*ok\n$/s],
    ['a connection goes on after a 404', `GET /absent HTTP/1.1\r\n${bearer}\r\n${get}`, /^HTTP\/1.1 404 .*ok\n$/s],
    ['a body that a GET has', `GET /healthz HTTP/1.1\r\n${bearer}content-length: 3\r\n\r\nGET${get}`, /ok\n.*ok\n$/s],
    [
      'a 404 with a body',
      `PUT /absent HTTP/1.1\r\n${bearer}content-length: 99\r\n\r\n${get}`,
      /^HTTP\/1.1 404 (?!.*ok\n)/s,
    ],
    [
      'too much is announced, and sent when asked for',
      `${create}${bearer}${json}expect: 100-continue\r\ncontent-length: 99999999\r\n\r\n`,
      /HTTP\/1.1 413 .*connection: close.*FRAME_TOO_LARGE/s,
    ],
    [
      'too much comes in chunks without end',
      `${create}${bearer}${json}transfer-encoding: chunked\r\n\r\n2711\r\n${'x'.repeat(0x2711)}\r\n`,
      /HTTP\/1.1 413 .*connection: close.*FRAME_TOO_LARGE/s,
    ],
    ['a stranger keeps its body', `${create}host: x\r\n${json}content-length: 9\r\n\r\n{`, /^HTTP\/1.1 401 .*close/s],
    ['two lengths', `${create}${bearer}content-length: 2\r\ncontent-length: 3\r\n\r\n{}x`, /^HTTP\/1.1 400 /],
    [
      'length and chunks',
      `${create}${bearer}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n`,
      /^HTTP\/1.1 400 /,
    ],
    ['text that is not UTF-8', notUtf8, /^HTTP\/1.1 400 .*not UTF-8/s],
    [
      'a prototype',
      `${create}${bearer}${json}content-length: 37\r\n\r\n{"__proto__":{"name":"x"},"name":"y"}`,
      /^HTTP\/1.1 400 /,
    ],
    ['a NUL', `GET /v1/tenants/a%00b HTTP/1.1\r\n${bearer}\r\n`, /^HTTP\/1.1 400 .*INVALID_ARGUMENT/s],
    ['half a character', `GET /v1/tenants/%c3 HTTP/1.1\r\n${bearer}\r\n`, /^HTTP\/1.1 404 .*INVALID_ARGUMENT/s],
    ['a long name', `GET /v1/tenants/${'x'.repeat(1_001)} HTTP/1.1\r\n${bearer}\r\n`, /^HTTP\/1.1 404 /],
    ['a long address', `GET /${'x'.repeat(20_000)} HTTP/1.1\r\n${bearer}\r\n`, /^HTTP\/1.1 431 /],
    ['no address', `OPTIONS * HTTP/1.1\r\n${bearer}\r\n`, /^HTTP\/1.1 404 .*INVALID_ARGUMENT/s],
    [
      'another protocol',
      `GET /healthz HTTP/1.1\r\n${bearer}connection: upgrade\r\nupgrade: h2c\r\n\r\n`,
      /^HTTP\/1.1 200 /,
    ],
  ];
  for (const [what, bytes, expected] of cases) assert.match(await sendBytes(bytes, expected), expected, what);
  assert.deepEqual((await node.tenants.list()).map(({ name }) => name).toSorted(), ['acme', 'globex']);
});

test('what was asked by a client that went away ends, also where it had not had its turn', async () => {
  let polls = 0;
  const counted = new Proxy(node, {
    get: (target, key) => {
      if (key === 'log') polls += 1;
      const value: unknown = Reflect.get(target, key, target);
      return typeof value === 'function' ? (value.bind(target) as unknown) : value;
    },
  });
  await using own = await served(counted);
  const socket = dial(own.server);
  socket.write(
    `GET /v1/log?follow=true HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${tokens.admin}\r\n\r\n`.repeat(20),
  );
  await once(socket, 'data');
  while (polls < 60) await delay(20);
  socket.destroy();
  await delay(300);
  const after = polls;
  await delay(600); // two polls of each that goes on
  assert.equal(polls, after);
});

test('a server closes at once while it answers, is sent to and waits, and closes twice', async () => {
  const own = await served(node);
  const head = `host: x\r\nauthorization: Bearer ${tokens.admin}\r\n`;
  const sockets = [
    `GET /v1/log?follow=true HTTP/1.1\r\n${head}\r\n`,
    `POST /v1/tenants HTTP/1.1\r\n${head}content-type: application/json\r\ncontent-length: 100\r\n\r\n{`,
    'GET / HT',
    '',
  ].map((bytes) => {
    const socket = dial(own.server).resume();
    socket.write(bytes);
    return { socket, closed: new Promise((resolve) => socket.once('close', resolve)) }; // by a reset, perhaps
  });
  await once(sockets[0]!.socket, 'data');
  await Promise.all([own.server.close(), own.server.close()]);
  await Promise.all(sockets.map(({ closed }) => closed));
  await own.server.close();
  assert.equal((await ask('GET', '/v1/status', tokens.admin)).status, 200, 'the node is still open');
});

async function served(on: Node): Promise<{ readonly server: HttpServer } & AsyncDisposable> {
  const own = await serveHttp({ node: on, port: 0, grants, limits: LIMITS });
  return { server: own, [Symbol.asyncDispose]: () => own.close() };
}

test('changes come as lines and as events, from a position on', async () => {
  const tenant = node.tenant('globex');
  for (const body of ['one', 'two']) await tenant.write((tx) => tx.run('insert into notes (body) values (?)', [body]));
  const headers = { authorization: `Bearer ${tokens.watcher}` };
  const lines = (await (await fetch(`${server.url}/v1/tenants/globex/changes`, { headers })).text()).trim().split('\n');
  const items = lines.map(
    (line) => JSON.parse(line) as { item?: { position: string; kind: string }; result?: unknown },
  );
  const changes = items.filter(({ item }) => item?.kind === 'changeset');
  assert.equal(changes.length, 2);
  assert.deepEqual(items.at(-1), { result: { count: items.length - 1 } });

  const abort = new AbortController();
  const response = await fetch(`${server.url}/v1/tenants/globex/changes?follow=true`, {
    headers: { ...headers, accept: 'text/event-stream', 'last-event-id': changes[0]!.item!.position },
    signal: abort.signal,
  });
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  const readUntil = async (pattern: RegExp): Promise<void> => {
    while (!pattern.test(text)) text += (await reader.read()).value ?? '';
  };
  await readUntil(/two.*\n\n/);
  assert.doesNotMatch(text, /"one"/);
  await tenant.write((tx) => tx.run("insert into notes (body) values ('three')"));
  await readUntil(/event: item\nid: [0-9a-f]{32}:\d+:\d+\ndata: .*three/);
  abort.abort();
});

test('who waits for events hears that it does, before there are any', async () => {
  const path = `${server.url}/v1/tenants/acme/changes?follow=true&from=now`;
  const headers = { authorization: `Bearer ${tokens.watcher}`, accept: 'text/event-stream' };
  const response = await fetch(path, { headers, signal: AbortSignal.timeout(5_000) });
  assert.equal(response.status, 200);
  await response.body?.cancel();
});

test('records that come as events go on behind the last one that was read', async () => {
  const headers = { authorization: `Bearer ${tokens.watcher}`, accept: 'text/event-stream' };
  const events = async (lastEventId?: string): Promise<readonly (string | undefined)[]> => {
    const more: Record<string, string> = lastEventId === undefined ? {} : { 'last-event-id': lastEventId };
    const response = await fetch(`${server.url}/v1/log?limit=3`, { headers: { ...headers, ...more } });
    return [...(await response.text()).matchAll(/^id: (.*)$/gm)].map(([, id]) => id);
  };
  const [first, ...rest] = await events();
  assert.equal(rest.length, 2);
  assert.deepEqual((await events(first)).slice(0, 2), rest);
  assert.deepEqual(await events('no position'), []);
});

test('metrics are in the format of Prometheus', async () => {
  const { body } = await ask('GET', '/metrics', tokens.watcher);
  assert.match(body as string, /^# HELP nostos_tenants .*\n# TYPE nostos_tenants gauge\nnostos_tenants 2$/m);
  assert.match(body as string, /^nostos_writes_committed_total [1-9]/m);
});

test('only loopback is served', async () => {
  for (const host of ['0.0.0.0', '::', '192.168.1.10', 'example.org'])
    await assert.rejects(serveHttp({ node, host, port: 0, grants }), (error) =>
      isNostosError(error, 'INVALID_ARGUMENT'),
    );
});

test('a token file holds hashes, for its owner only; the owner’s token is made once', async () => {
  const file = join(dir, 'tokens.json');
  const token = await addToken(file, { tenants: ['acme'], access: 'read' });
  await addToken(file, { name: 'ci', tenants: ['*'], access: 'admin' });
  assert.ok(!(await readFile(file, 'utf8')).includes(token));
  const [first, second] = await readTokenFile(file);
  assert.deepEqual(first, { hash: hashToken(token), tenants: ['acme'], access: 'read' });
  assert.equal(second?.name, 'ci');
  assert.equal((await stat(file)).mode & 0o777, 0o600);
  const owner = join(dir, 'owner.token');
  assert.equal(await ownerToken(owner), await ownerToken(owner));
  assert.equal((await stat(owner)).mode & 0o777, 0o600);
});
