/** The connecting side, and who may connect to whom over TLS. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type Socket } from 'node:net';
import { test, type TestContext } from 'node:test';
import { connect as connectTls, createServer as createTlsServer } from 'node:tls';
import { isNostosError, type ErrorCode, type NostosError } from '../base/errors.ts';
import { failsWith } from '../testing/channel-compliance.ts';
import {
  CLUSTER,
  ECHO,
  eventually,
  handOver,
  NODE_A,
  NODE_B,
  preamble,
  rawClient,
  rawServer,
  startDispatcher,
  tlsIdentity,
  untilEnd,
} from '../testing/wire.fixture.ts';
import { parseAddress } from './address.ts';
import { createAuthority, createNodeCertificate } from './certificates.ts';
import { TcpServiceDispatcher } from './dispatcher.ts';
import { connectStream, connectToService, type ClientTls } from './connect.ts';
import { Listener, type ServerTls } from './listener.ts';

const SOON_MS = 5_000;
const validity = { nowMs: Date.now(), days: 30 };

const badArguments: readonly (readonly [string, string])[] = [
  ['127.0.0.1:1', ''],
  ['127.0.0.1:1', 'n'.repeat(257)],
  ['127.0.0.1', 'X'],
  ['127.0.0.1:0', 'X'],
  ['::1:80', 'X'],
];

test('names and addresses are checked before anything is sent', async (t) => {
  let connections = 0;
  const address = await rawServer(t, () => (connections += 1));
  for (const [bad, name] of badArguments)
    await assert.rejects(connectToService(bad.replace('127.0.0.1:1', address), name), failsWith('INVALID_ARGUMENT'));
  for (const limits of [{ frameBytesMax: 2 ** 32 }, { writeTimeoutMs: -1 }, { connectTimeoutMs: Number.NaN }]) {
    await assert.rejects(connectToService(address, 'X', limits), failsWith('INVALID_ARGUMENT'));
    assert.throws(() => new TcpServiceDispatcher(address, limits), failsWith('INVALID_ARGUMENT'));
  }
  assert.equal(connections, 0);
});

test('the preamble is all that is sent before the first frame', async (t) => {
  const { promise, resolve } = Promise.withResolvers<Socket>();
  const channel = await connectToService(await rawServer(t, resolve), 'RESTORE');
  await channel.send(Buffer.from('TSRN'));
  channel.close();
  const expected = Buffer.from('07000000524553544f524504000000 5453524e'.replace(' ', ''), 'hex');
  assert.deepEqual(await untilEnd(await promise), expected);
});

test('a host that nobody has and a port that nobody listens on', async (t) => {
  const closed = createServer().listen(0, '127.0.0.1');
  await once(closed, 'listening');
  const { port } = closed.address() as { port: number };
  closed.close();
  for (const address of [`127.0.0.1:${port}`, `localhost:${port}`, 'no-such-host.invalid:80'])
    await assert.rejects(connectToService(address, 'X'), (error) => {
      assert.ok((error as Error).message.length > address.length, 'the message says why');
      return failsWith('NETWORK_FAILED')(error);
    });
  await Promise.resolve(t);
});

test('a port that nobody listens on: the message says what to do next', async () => {
  const listener = new Listener('127.0.0.1:0', {}, (stream) => stream.close());
  const address = await listener.start();
  listener.close();
  await assert.rejects(connectToService(address, 'X'), /ECONNREFUSED.*nostos serve --listen/);
});

test('connecting ends at its timeout and at a signal, TLS handshake included', async (t) => {
  // Takes the connection and never answers the handshake.
  const address = await rawServer(t, () => {});
  const tls = await tlsIdentity(NODE_A);
  await assert.rejects(connectToService(address, 'X', { tls, connectTimeoutMs: 50 }), failsWith('NETWORK_TIMEOUT'));
  const reason = new Error('enough');
  const controller = new AbortController();
  const connecting = connectToService(address, 'X', { tls, signal: controller.signal });
  controller.abort(reason);
  await assert.rejects(connecting, reason);
  await assert.rejects(connectToService(address, 'X', { signal: AbortSignal.abort(reason) }), reason);
});

test('a signal that is aborted later does not touch the channel', async (t) => {
  const { address } = await startDispatcher(t, [ECHO]);
  const controller = new AbortController();
  const channel = await connectToService(address, 'ECHO', { signal: controller.signal });
  controller.abort();
  await channel.send(Buffer.from('on'));
  assert.equal((await channel.receive(SOON_MS))?.length, 2);
  channel.close();
});

test('bytes can be read exactly, and written, without frames', async (t) => {
  const { promise, resolve } = Promise.withResolvers<Socket>();
  await using stack = new AsyncDisposableStack();
  const listener = new Listener('127.0.0.1:0', { halfOpen: true }, (stream) => {
    void (async () => {
      const magic = await stream.readExactly(4, { timeoutMs: SOON_MS });
      await stream.write([magic!, Buffer.alloc(300_000, 'z')]);
      stream.close();
    })();
  });
  stack.defer(() => listener.destroy());
  const address = await listener.start();
  const raw = await rawClient(t, address);
  raw.end('TSRN');
  assert.equal((await untilEnd(raw)).length, 300_004);
  const stream = await connectStream(address);
  await stream.write([Buffer.from('TS')]);
  assert.equal(await stream.readExactly(4, { timeoutMs: 20 }), null);
  await stream.write([Buffer.from('RN')]);
  assert.equal(Buffer.from((await stream.readExactly(4, { timeoutMs: SOON_MS }))!).toString(), 'TSRN');
  assert.equal((await stream.readExactly(299_999, { timeoutMs: SOON_MS }))!.length, 299_999);
  await assert.rejects(stream.readExactly(2, { timeoutMs: SOON_MS }), failsWith('NETWORK_FAILED'));
  assert.equal((await stream.readExactly(1, { timeoutMs: SOON_MS }))!.length, 1);
  await assert.rejects(stream.readExactly(1, { timeoutMs: SOON_MS }), failsWith('CHANNEL_CLOSED'));
  stream.close();
  resolve(raw);
  await promise;
});

interface TlsCase {
  readonly what: string;
  readonly server?: Partial<ServerTls>;
  readonly client?: Partial<ClientTls> | 'plain';
  /** Undefined: they speak. */
  readonly fails?: readonly ErrorCode[];
  /** What the dispatcher counts. */
  readonly refused?: RegExp;
}

const otherAuthority = createAuthority(CLUSTER, validity);
const otherCluster = createAuthority('d'.repeat(32), validity);
const noCluster = createAuthority(undefined, validity);

async function both(authority: ReturnType<typeof createAuthority>): Promise<readonly [ServerTls, ClientTls]> {
  const [a, b] = await Promise.all([tlsIdentity(NODE_A, authority), tlsIdentity(NODE_B, authority)]);
  return [{ ...a, allowNodes: [NODE_B] }, b];
}

const REFUSED = ['PEER_REFUSED'] as const;
/** With TLS 1.3 the client is done before the server has looked at its certificate. */
const REFUSED_LATER = ['PEER_REFUSED', 'CHANNEL_CLOSED', 'NETWORK_FAILED'] as const;

const tlsCases: readonly TlsCase[] = [
  { what: 'a node on the list' },
  { what: 'a node that a function lets in', server: { allowNodes: ({ node }) => node === NODE_B } },
  { what: 'the cluster that both expect', server: { cluster: CLUSTER }, client: { cluster: CLUSTER } },
  { what: 'the node that was expected', client: { node: NODE_A } },
  {
    what: 'a node that is not on the list',
    server: { allowNodes: [NODE_A] },
    fails: REFUSED_LATER,
    refused: /NOT_ALLOWED/,
  },
  {
    what: 'a node that a function keeps out',
    server: { allowNodes: () => false },
    fails: REFUSED_LATER,
    refused: /NOT_ALLOWED/,
  },
  {
    what: 'a function that throws',
    server: {
      allowNodes: () => {
        throw new Error('cannot tell');
      },
    },
    fails: REFUSED_LATER,
    refused: /ALLOW_FAILED/,
  },
  { what: 'another node than expected', client: { node: NODE_B }, fails: REFUSED, refused: /./ },
  {
    what: 'another cluster than the client expects',
    client: { cluster: 'd'.repeat(32) },
    fails: REFUSED,
    refused: /./,
  },
  {
    what: 'another cluster than the server expects',
    server: { cluster: 'd'.repeat(32) },
    fails: REFUSED_LATER,
    refused: /OTHER_CLUSTER/,
  },
  { what: 'no TLS at all', client: 'plain', fails: REFUSED_LATER, refused: /SSL|TLS|ECONNRESET/ },
];

async function speak(t: TestContext, server: ServerTls, client: ClientTls | undefined) {
  const { dispatcher, address } = await startDispatcher(t, [ECHO], { tls: server });
  const exchange = async (): Promise<string> => {
    const channel = await connectToService(address, 'ECHO', { tls: client });
    try {
      await channel.send(Buffer.from('hello'));
      return `${Buffer.from((await channel.receive(SOON_MS))!).toString()} from ${channel.peerNode}`;
    } finally {
      channel.close();
    }
  };
  const result = await exchange().catch((error: NostosError) => error);
  return { result, dispatcher };
}

for (const { what, server = {}, client = {}, fails, refused } of tlsCases)
  test(`TLS: ${what}`, async (t) => {
    const [ours, theirs] = await both(createAuthority(CLUSTER, validity));
    const clientTls = client === 'plain' ? undefined : { ...theirs, ...client };
    const { result, dispatcher } = await speak(t, { ...ours, ...server }, clientTls);
    if (fails === undefined) {
      assert.equal(result, `hello from ${NODE_A}`);
      assert.deepEqual(dispatcher.stats.refused, {});
      return;
    }
    assert.ok(isNostosError(result) && fails.includes(result.code), String(result));
    assert.equal(dispatcher.stats.served, 0);
    await eventually(() => Object.keys(dispatcher.stats.refused).length > 0, 'the refusal is counted');
    assert.match(Object.keys(dispatcher.stats.refused).join(), refused!);
    await eventually(() => dispatcher.stats.connections === 0, 'the connection is gone');
  });

test('TLS: certificates of another authority do not pass, on either side, whatever they say', async (t) => {
  const [server] = await both(otherAuthority);
  const [, stranger] = await both(otherCluster);
  const refusedByClient = await speak(t, server, { ...stranger, node: NODE_A });
  assert.ok(isNostosError(refusedByClient.result, 'PEER_REFUSED'), String(refusedByClient.result));
  // One that believes our authority, but shows a certificate of its own.
  const liar = { ...stranger, ca: server.ca };
  const refusedByServer = await speak(t, { ...server, allowNodes: () => true }, liar);
  assert.ok(isNostosError(refusedByServer.result), String(refusedByServer.result));
  assert.equal(refusedByServer.dispatcher.stats.served, 0);
  await eventually(() => Object.keys(refusedByServer.dispatcher.stats.refused).length === 1, 'it is counted');
});

test('TLS: a setting of the process cannot switch off that the server is checked', async (t) => {
  const before = process.env['NODE_TLS_REJECT_UNAUTHORIZED'];
  process.env['NODE_TLS_REJECT_UNAUTHORIZED'] = '0';
  t.after(() => {
    if (before === undefined) delete process.env['NODE_TLS_REJECT_UNAUTHORIZED'];
    else process.env['NODE_TLS_REJECT_UNAUTHORIZED'] = before;
  });
  const foreign = await createAuthority(undefined, validity);
  const [ours, theirs] = [await tlsIdentity(NODE_A), await tlsIdentity(NODE_B, foreign)];
  // The impostor lets everyone in: the certificate of our authority is no secret.
  const lure = { ...theirs, ca: ours.ca, allowNodes: () => true };
  const { address } = await startDispatcher(t, [ECHO], { tls: lure });
  await assert.rejects(connectToService(address, 'ECHO', { tls: ours }), failsWith('PEER_REFUSED'));
  const real = await startDispatcher(t, [ECHO], { tls: { ...ours, allowNodes: () => true } });
  const expected = { ...(await tlsIdentity(NODE_B)), node: NODE_B };
  await assert.rejects(connectToService(real.address, 'ECHO', { tls: expected }), failsWith('PEER_REFUSED'));
  const channel = await connectToService(real.address, 'ECHO', { tls: { ...expected, node: NODE_A } });
  assert.equal(channel.peerNode, NODE_A);
  channel.close();
});

test('TLS: a stranger without a certificate reaches no service, and is counted', async (t) => {
  const [server] = await both(otherAuthority);
  const refusals: NostosError[] = [];
  const { dispatcher, address } = await startDispatcher(t, [ECHO], { tls: server, onRefused: (e) => refusals.push(e) });
  const socket = connectTls({ ...parseAddress(address), rejectUnauthorized: false });
  socket.on('error', () => {}).on('secureConnect', () => socket.write(preamble('ECHO')));
  assert.equal((await untilEnd(socket)).length, 0);
  socket.destroy();
  await eventually(() => refusals.length === 1, 'the refusal is told');
  assert.equal(refusals[0]!.code, 'PEER_REFUSED');
  assert.equal(dispatcher.stats.served, 0);
  assert.match(Object.keys(dispatcher.stats.refused).join(), /CERTIFICATE/);
});

test('TLS: a stranger that never ends the handshake is disconnected in time', async (t) => {
  const [server] = await both(otherAuthority);
  const { dispatcher, address } = await startDispatcher(t, [ECHO], { tls: server, preambleTimeoutMs: 100 });
  const client = await rawClient(t, address);
  client.write(Buffer.from('16030100', 'hex'));
  await untilEnd(client);
  await eventually(() => dispatcher.stats.connections === 0, 'the connection is gone');
  assert.match(Object.keys(dispatcher.stats.refused).join(), /TIMEOUT/);
});

test('TLS: a certificate without a node id, an expired one, and a cluster where none is named', async (t) => {
  const [server] = await both(otherAuthority);
  const issuer = await otherAuthority;
  const expired = await createNodeCertificate(
    issuer,
    { node: NODE_B, hosts: [] },
    { nowMs: Date.now() - 3 * 24 * 3_600_000, days: 1 },
  );
  const late = await speak(t, server, { ca: issuer.cert, ...expired, node: NODE_A });
  assert.ok(isNostosError(late.result), String(late.result));
  assert.equal(late.dispatcher.stats.served, 0);
  // The authority itself shows its own certificate, which names no node.
  const bare = await speak(t, { ...server, allowNodes: () => true }, { ca: issuer.cert, ...issuer, node: NODE_A });
  assert.ok(isNostosError(bare.result), String(bare.result));
  assert.equal(bare.dispatcher.stats.served, 0);
  const [free, anyone] = await both(noCluster);
  assert.equal((await speak(t, free, anyone)).result, `hello from ${NODE_A}`);
  const strict = await speak(t, { ...free, cluster: CLUSTER }, anyone);
  assert.ok(isNostosError(strict.result), String(strict.result));
  assert.deepEqual(strict.dispatcher.stats.refused, { OTHER_CLUSTER: 1 });
});

test('TLS: without an expected node the host must be in the certificate, with one it need not', async (t) => {
  const issuer = await otherAuthority;
  const server = await tlsIdentity(NODE_A, issuer, ['db.example.com']);
  const client = await tlsIdentity(NODE_B, issuer);
  const tls = { ...server, allowNodes: [NODE_B] };
  const byName = await speak(t, tls, client);
  assert.ok(isNostosError(byName.result, 'PEER_REFUSED'), String(byName.result));
  assert.equal((await speak(t, tls, { ...client, node: NODE_A })).result, `hello from ${NODE_A}`);
});

test('TLS: a server of the same authority that is no node is refused', async (t) => {
  const issuer = await otherAuthority;
  const [, client] = await both(otherAuthority);
  const server = createTlsServer({ cert: issuer.cert, key: issuer.key }, (socket) => socket.on('error', () => {}));
  server.on('tlsClientError', () => {}).listen(0, '127.0.0.1');
  t.after(() => server.close());
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  await assert.rejects(connectStream(`127.0.0.1:${port}`, { tls: client }), failsWith('PEER_REFUSED'));
});

test('TLS: the service learns the node of its peer', async (t) => {
  const [server, client] = await both(otherAuthority);
  const { service, channel } = handOver('WHO');
  const { address } = await startDispatcher(t, [service], { tls: server });
  const ours = await connectToService(address, 'WHO', { tls: client });
  assert.equal((await channel).peerNode, NODE_B);
  assert.equal(ours.peerNode, NODE_A);
  ours.close();
});

test('TLS: identities that are not usable are told at once', async (t) => {
  const [server, client] = await both(otherAuthority);
  const broken = { ...client, key: server.key };
  await assert.rejects(connectToService('127.0.0.1:1', 'X', { tls: broken }), failsWith('INVALID_ARGUMENT'));
  for (const tls of [
    { ...server, key: client.key },
    { ...server, cert: 'x' },
    { ...server, allowNodes: [] },
  ]) {
    const listener = new Listener('127.0.0.1:0', { tls }, () => {});
    await assert.rejects(listener.start(), failsWith('INVALID_ARGUMENT'));
    assert.equal(listener.isListening, false);
  }
  await Promise.resolve(t);
});
