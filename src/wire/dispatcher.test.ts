/** The dispatcher: services, limits, and peers that do not play by the rules. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { test, type TestContext } from 'node:test';
import type { NostosError } from '../base/errors.ts';
import { failsWith } from '../testing/channel-compliance.ts';
import {
  ECHO,
  eventually,
  frame,
  handler,
  handOver,
  preamble,
  rawClient,
  sleep,
  startDispatcher,
  tlsIdentity,
  NODE_A,
  u32,
  untilEnd,
} from '../testing/wire.fixture.ts';
import { parseAddress } from './address.ts';
import type { ServiceContext } from './channel.ts';
import { connectToService } from './connect.ts';
import { TcpServiceDispatcher } from './dispatcher.ts';
import { Listener } from './listener.ts';

const SOON_MS = 5_000;

function named(serviceName: string, answer: string) {
  return handler(serviceName, async (channel) => channel.send(Buffer.from(answer)));
}

async function ask(address: string, name: string): Promise<string> {
  const channel = await connectToService(address, name);
  const answer = await channel.receive(SOON_MS);
  channel.close();
  return Buffer.from(answer!).toString();
}

test('services are registered, replaced, listed and taken away', async (t) => {
  const { dispatcher, address } = await startDispatcher(t, [named('B', 'b'), named('A', 'a')]);
  assert.deepEqual(dispatcher.listServices(), ['A', 'B']);
  assert.equal(await ask(address, 'B'), 'b');
  const other = named('B', 'other');
  dispatcher.register(other);
  assert.equal(dispatcher.getHandler('B'), other);
  assert.equal(await ask(address, 'B'), 'other');
  assert.equal(dispatcher.unregister('B'), other);
  assert.equal(dispatcher.unregister('B'), undefined);
  assert.equal(dispatcher.getHandler('B'), undefined);
  await assert.rejects(ask(address, 'B'), failsWith('CHANNEL_CLOSED'));
  assert.equal(dispatcher.stats.refused['UNKNOWN_SERVICE'], 1);
  for (const name of ['', 'n'.repeat(257)])
    assert.throws(() => dispatcher.register(named(name, '')), failsWith('INVALID_ARGUMENT'));
});

test('the address stays as it was given; the bound one is the answer of start', async (t) => {
  const { dispatcher, address } = await startDispatcher(t, []);
  assert.equal(dispatcher.addr(), '127.0.0.1:0');
  assert.match(address, /^127\.0\.0\.1:[1-9]\d*$/);
  await assert.rejects(dispatcher.start(), failsWith('INVALID_ARGUMENT'));
  const second = new TcpServiceDispatcher(address);
  await assert.rejects(second.start(), failsWith('NETWORK_FAILED'));
  assert.equal(second.isRunning, false);
  await dispatcher.stop();
  assert.equal(await second.start(), address);
  await second.stop();
});

test('names of a host and IPv6', async (t) => {
  for (const [host, bound] of [
    ['localhost', /^(?:127\.0\.0\.1|\[::1\]):\d+$/],
    ['[::1]', /^\[::1\]:\d+$/],
  ] as const) {
    const dispatcher = new TcpServiceDispatcher(`${host}:0`);
    t.after(() => dispatcher.stop());
    dispatcher.register(named('A', 'a'));
    const address = await dispatcher.start();
    assert.match(address, bound);
    assert.equal(await ask(`${host}:${parseAddress(address).port}`, 'A'), 'a');
  }
});

test('preamble and first frame may come in one write, or byte by byte', async (t) => {
  const { address } = await startDispatcher(t, [ECHO]);
  const bytes = Buffer.concat([preamble('ECHO'), frame('hello')]);
  for (const size of [bytes.length, 1]) {
    const client = await rawClient(t, address);
    client.setNoDelay(true);
    for (let offset = 0; offset < bytes.length; offset += size) {
      client.write(bytes.subarray(offset, offset + size));
      await sleep(1);
    }
    client.end();
    assert.deepEqual(await untilEnd(client), frame('hello'));
  }
});

/** What a stranger sends, and the reason under which it is counted; each is closed without a byte of answer. */
const strangers: readonly (readonly [string, (socket: Socket) => void, string])[] = [
  ['sends nothing', () => {}, 'PREAMBLE_TIMEOUT'],
  ['sends half a length', (socket) => socket.write('\u0004\0'), 'PREAMBLE_TIMEOUT'],
  ['sends half a name', (socket) => socket.write(preamble('ECHO').subarray(0, 6)), 'PREAMBLE_TIMEOUT'],
  [
    'drips a byte at a time',
    (socket) => {
      const bytes = [...Buffer.concat([u32(200), Buffer.alloc(200, 'n')])];
      const timer = setInterval(() => socket.write(Buffer.of(bytes.shift()!)), 20);
      socket.once('close', () => clearInterval(timer)).once('end', () => clearInterval(timer));
    },
    'PREAMBLE_TIMEOUT',
  ],
  ['closes at once', (socket) => socket.end(), 'BAD_PREAMBLE'],
  ['closes inside the length', (socket) => socket.end('\u0004'), 'BAD_PREAMBLE'],
  ['closes inside the name', (socket) => socket.end(preamble('ECHO').subarray(0, 5)), 'BAD_PREAMBLE'],
  ['names nothing', (socket) => socket.write(u32(0)), 'BAD_PREAMBLE'],
  ['names 257 bytes', (socket) => socket.write(Buffer.concat([u32(257), Buffer.alloc(257, 'n')])), 'BAD_PREAMBLE'],
  ['names 4 GiB', (socket) => socket.write(Buffer.alloc(70_000, 0xff)), 'BAD_PREAMBLE'],
  ['sends the magic of the raw protocol', (socket) => socket.write('TSRN'), 'BAD_PREAMBLE'],
  ['speaks HTTP', (socket) => socket.write('GET / HTTP/1.1\r\n\r\n'), 'BAD_PREAMBLE'],
  ['speaks TLS', (socket) => socket.write(Buffer.from('16030100c8010000c40303', 'hex')), 'BAD_PREAMBLE'],
  ['names no UTF-8', (socket) => socket.write(Buffer.concat([u32(2), Buffer.of(0xc3, 0x28)])), 'BAD_PREAMBLE'],
  ['names what is not there', (socket) => socket.write(preamble('NOPE')), 'UNKNOWN_SERVICE'],
  ['names with a NUL', (socket) => socket.write(preamble('ECHO\0')), 'UNKNOWN_SERVICE'],
  ['names in other case', (socket) => socket.write(preamble('echo')), 'UNKNOWN_SERVICE'],
  [
    'names what is not there and goes on sending',
    (socket) => socket.write(Buffer.concat([preamble('NOPE'), Buffer.alloc(1024 * 1024)])),
    'UNKNOWN_SERVICE',
  ],
];

for (const [what, send, reason] of strangers)
  test(`a stranger that ${what} is closed without a word`, async (t) => {
    const refusals: NostosError[] = [];
    const { dispatcher, address } = await startDispatcher(t, [ECHO], {
      preambleTimeoutMs: 150,
      onRefused: (error) => refusals.push(error),
    });
    const client = await rawClient(t, address);
    let failure: Error | undefined;
    client.on('error', (error) => (failure = error));
    send(client);
    assert.equal((await untilEnd(client)).length, 0);
    assert.equal(failure, undefined, 'an end, not a reset');
    client.destroy();
    assert.deepEqual(dispatcher.stats.refused, { [reason]: 1 });
    assert.equal(refusals[0]?.details['reason'], reason);
    assert.equal(dispatcher.stats.served, 0);
    await eventually(() => dispatcher.stats.connections === 0, 'the connection is forgotten');
  });

test('connections in all and from one address are limited, and free again when they end', async (t) => {
  for (const [limits, reason] of [
    [{ peerConnectionsMax: 3 }, 'TOO_MANY_CONNECTIONS'],
    [{ connectionsPerAddressMax: 3 }, 'TOO_MANY_FROM_ADDRESS'],
  ] as const) {
    const { dispatcher, address } = await startDispatcher(t, [ECHO], limits);
    const clients = [await rawClient(t, address), await rawClient(t, address), await rawClient(t, address)];
    await eventually(() => dispatcher.stats.connections === 3, 'three connections');
    await untilEnd(await rawClient(t, address));
    assert.deepEqual(dispatcher.stats.refused, { [reason]: 1 });
    clients[0]!.destroy();
    await eventually(() => dispatcher.stats.connections === 2, 'one has ended');
    const channel = await connectToService(address, 'ECHO');
    await channel.send(Buffer.from('in'));
    assert.equal((await channel.receive(SOON_MS))?.length, 2);
    channel.close();
  }
});

test('one peer that stalls does not hold up another', async (t) => {
  const { address } = await startDispatcher(t, [ECHO, named('A', 'a')]);
  const stalled = await rawClient(t, address);
  stalled.write(preamble('ECHO').subarray(0, 3));
  const deaf = await connectToService(address, 'ECHO');
  await deaf.send(new Uint8Array(1_000_000));
  assert.equal(await ask(address, 'A'), 'a');
  deaf.close();
});

test('an idle peer is disconnected', async (t) => {
  const errors: string[] = [];
  const { dispatcher, address } = await startDispatcher(t, [ECHO], {
    idleTimeoutMs: 100,
    onError: (error) => errors.push((error as NostosError).code),
  });
  const channel = await connectToService(address, 'ECHO');
  await assert.rejects(channel.receive(SOON_MS), failsWith('CHANNEL_CLOSED'));
  await eventually(() => dispatcher.stats.connections === 0, 'the connection is gone');
  assert.deepEqual(errors, ['NETWORK_TIMEOUT']);
});

test('the limit of frames holds for both directions of a service', async (t) => {
  const errors: string[] = [];
  const big = handler('BIG', async (channel) => channel.send(new Uint8Array(1001)));
  const { address } = await startDispatcher(t, [ECHO, big], {
    frameBytesMax: 1000,
    onError: (error, { service }) => errors.push(`${service} ${(error as NostosError).code}`),
  });
  const sender = await connectToService(address, 'ECHO');
  await sender.send(new Uint8Array(1001));
  await assert.rejects(sender.receive(SOON_MS), failsWith('CHANNEL_CLOSED'));
  const receiver = await connectToService(address, 'BIG');
  await assert.rejects(receiver.receive(SOON_MS), failsWith('CHANNEL_CLOSED'));
  assert.deepEqual(errors, ['ECHO PROTOCOL_ERROR', 'BIG FRAME_TOO_LARGE']);
});

for (const [what, asked, allowedBytes] of [
  ['that asks for 4 KiB', 4096, 4096],
  ['that asks for more than any frame may have', 2 ** 31, 2 * 1024 * 1024],
  ['that says nothing', undefined, 1024 * 1024],
] as const)
  test(`a service ${what} gets frames of ${allowedBytes} bytes and none that is larger`, async (t) => {
    const errors: string[] = [];
    const { address } = await startDispatcher(t, [{ ...ECHO, requestBytesMax: asked }], {
      frameBytesMax: 2 * 1024 * 1024,
      onError: (error) => errors.push((error as NostosError).code),
    });
    const channel = await connectToService(address, 'ECHO');
    await channel.send(new Uint8Array(allowedBytes));
    assert.equal((await channel.receive(SOON_MS))?.length, allowedBytes);
    const client = await rawClient(t, address);
    client.write(Buffer.concat([preamble('ECHO'), u32(allowedBytes + 1)]));
    assert.equal((await untilEnd(client)).length, 0);
    assert.deepEqual(errors, ['PROTOCOL_ERROR']);
    channel.close();
  });

test('strangers that send far more than their service takes make the server hold next to nothing', async (t) => {
  const small = { ...handOver('SMALL').service, requestBytesMax: 4096 };
  const { dispatcher, address } = await startDispatcher(t, [small]);
  const taken: number[] = [];
  const before = process.memoryUsage().arrayBuffers;
  for (let count = 0; count < 8; count++) {
    const client = await rawClient(t, address);
    client.write(preamble('SMALL'));
    client.write(Buffer.alloc(8 * 1024 * 1024), () => taken.push(count));
  }
  await eventually(() => dispatcher.stats.served === 8, 'all are served');
  await sleep(100);
  // What the strangers, who are in this process, could not send is theirs.
  const held = process.memoryUsage().arrayBuffers - before - (8 - taken.length) * 8 * 1024 * 1024;
  assert.deepEqual(taken, [], 'nobody takes it from them');
  assert.ok(held < 4 * 1024 * 1024, `${held} bytes`);
});

test('stop() right after start() ends it, also one that waits for an earlier stop', async (t) => {
  const dispatcher = new TcpServiceDispatcher('127.0.0.1:0');
  t.after(() => dispatcher.stop());
  for (const pause of [undefined, 0, 1]) {
    const closed = assert.rejects(dispatcher.start(), failsWith('CLOSED'));
    // Some turns later it is about to bind.
    for (let turn = 0; turn < (pause ?? 0); turn++) await Promise.resolve();
    await dispatcher.stop();
    await closed;
    assert.equal(dispatcher.isRunning, false);
  }
  await dispatcher.start();
  const stopping = dispatcher.stop();
  const closed = assert.rejects(dispatcher.start(), failsWith('CLOSED'));
  await Promise.all([stopping, dispatcher.stop(), closed]);
  assert.equal(dispatcher.isRunning, false);
  assert.match(await dispatcher.start(), /:\d+$/);
});

test('a listener that is closed while it binds frees the port', async () => {
  for (let turns = 0; turns < 6; turns++) {
    const listener = new Listener('127.0.0.1:0', {}, (stream) => stream.close());
    const bound = listener.start().catch((error: NostosError) => error.code);
    for (let turn = 0; turn < turns; turn++) await new Promise((done) => process.nextTick(done));
    listener.close();
    // After some turns it has bound, and frees the port again.
    assert.match(await bound, turns === 0 ? /^CLOSED$/ : /^CLOSED$|^127/);
    assert.equal(listener.isListening, false);
  }
});

test('what a handler throws is told, and ends its connection only', async (t) => {
  const told: unknown[] = [];
  const { dispatcher, address } = await startDispatcher(
    t,
    [
      handler('REJECTS', async () => Promise.reject(new Error('rejected'))),
      handler('THROWS', () => {
        throw new Error('thrown');
      }),
      named('A', 'a'),
    ],
    {
      onError(error, { service, peer }) {
        told.push([(error as Error).message, service, /^127\.0\.0\.1:\d+$/.test(peer)]);
        throw new Error('a hook that fails too');
      },
    },
  );
  for (const service of ['REJECTS', 'THROWS']) await assert.rejects(ask(address, service), failsWith('CHANNEL_CLOSED'));
  assert.deepEqual(told, [
    ['rejected', 'REJECTS', true],
    ['thrown', 'THROWS', true],
  ]);
  assert.equal(dispatcher.stats.handlerErrors, 2);
  assert.equal(await ask(address, 'A'), 'a');
});

test('the signal of a handler is aborted when its peer goes, however it goes', async (t) => {
  for (const leave of ['end', 'resetAndDestroy', 'destroy'] as const) {
    const contexts = Promise.withResolvers<ServiceContext>();
    const waits = handler('WAITS', async (_channel, context) => {
      contexts.resolve(context);
      await once(context.signal, 'abort');
    });
    const { dispatcher, address } = await startDispatcher(t, [waits], { halfOpenTimeoutMs: 50 });
    const client = await rawClient(t, address);
    client.write(preamble('WAITS'));
    const { signal } = await contexts.promise;
    assert.equal(signal.aborted, false);
    client[leave]();
    await eventually(() => signal.aborted, `the signal is aborted after ${leave}`);
    await eventually(() => dispatcher.stats.connections === 0, 'the connection is gone');
  }
});

test('a peer that has ended its own side gets all of its answer', async (t) => {
  const slow = handler('SLOW', async (channel, { signal }) => {
    await channel.receive(SOON_MS);
    for (let part = 0; part < 10; part++) {
      await sleep(30);
      signal.throwIfAborted();
      await channel.send(new Uint8Array(500_000));
    }
  });
  const { dispatcher, address } = await startDispatcher(t, [slow], { halfOpenTimeoutMs: 200 });
  const client = await rawClient(t, address);
  client.end(Buffer.concat([preamble('SLOW'), frame('go')]));
  assert.equal((await untilEnd(client)).length, 10 * 500_004);
  assert.equal(dispatcher.stats.handlerErrors, 0);
});

for (const secure of [false, true])
  test(`frames that came before the peer left are received before the signal is aborted, ${secure ? 'TLS' : 'TCP'}`, async (t) => {
    const tls = secure ? { ...(await tlsIdentity(NODE_A)), allowNodes: [NODE_A] } : undefined;
    const results = Promise.withResolvers<boolean[]>();
    const counts = handler('COUNTS', async (channel, { signal }) => {
      await sleep(100);
      const states = [signal.aborted];
      await channel.receive(SOON_MS);
      states.push(signal.aborted);
      await channel.receive(SOON_MS);
      await sleep(100);
      states.push(signal.aborted);
      results.resolve(states);
    });
    const { address } = await startDispatcher(t, [counts], { halfOpenTimeoutMs: 20, tls });
    const channel = await connectToService(address, 'COUNTS', { tls });
    void channel.send(Buffer.from('one'));
    void channel.send(Buffer.from('two'));
    channel.close();
    assert.deepEqual(await results.promise, [false, false, true]);
  });

/** A dispatcher with a connection in each state that it can be in. */
async function busy(t: TestContext) {
  const { service, channel } = handOver('HELD');
  const { dispatcher, address } = await startDispatcher(t, [service, ECHO], { stopTimeoutMs: 1_000 });
  const silent = await rawClient(t, address);
  const held = await connectToService(address, 'HELD');
  const receiving = await connectToService(address, 'ECHO');
  await receiving.send(Buffer.from('x'));
  await receiving.receive(SOON_MS);
  return { dispatcher, address, silent, held, receiving, server: await channel };
}

test('stop frees the port, aborts handlers, closes channels, and may be called again', async (t) => {
  const { dispatcher, address, silent, held, receiving, server } = await busy(t);
  const startedMs = performance.now();
  await Promise.all([dispatcher.stop(), dispatcher.stop()]);
  await dispatcher.stop();
  assert.ok(performance.now() - startedMs < 3_000);
  assert.equal(dispatcher.isRunning, false);
  assert.equal(server.isOpen, false);
  for (const channel of [held, receiving]) await assert.rejects(channel.receive(SOON_MS), failsWith('CHANNEL_CLOSED'));
  await untilEnd(silent);
  assert.equal(dispatcher.stats.connections, 0);
  assert.equal(dispatcher.stats.handlerErrors, 0);
  await assert.rejects(connectToService(address, 'ECHO'), failsWith('NETWORK_FAILED'));
  const successor = new TcpServiceDispatcher(address);
  assert.equal(await successor.start(), address);
  await successor.stop();
});

test('what a handler sent before a stop still arrives', async (t) => {
  const { dispatcher, held, server } = await busy(t);
  await server.send(new Uint8Array(100_000));
  await dispatcher.stop();
  assert.equal((await held.receive(SOON_MS))?.length, 100_000);
});

test('a handler that does not end holds up a stop for the time that is allowed, no longer', async (t) => {
  const stuck = handler('STUCK', () => new Promise<void>(() => {}));
  const { dispatcher, address } = await startDispatcher(t, [stuck], { stopTimeoutMs: 100 });
  const client = await rawClient(t, address);
  client.write(preamble('STUCK'));
  await eventually(() => dispatcher.stats.served === 1, 'the handler runs');
  const startedMs = performance.now();
  const stopping = dispatcher.stop();
  await assert.rejects(connectToService(address, 'STUCK'), failsWith('NETWORK_FAILED'), 'the port is free already');
  await stopping;
  const tookMs = performance.now() - startedMs;
  assert.ok(tookMs >= 90 && tookMs < 3_000, `${tookMs} ms`);
});

test('a handler that looks at its channel only ends with a stop', async (t) => {
  const ends: string[] = [];
  const deaf = handler('DEAF', async (channel) => {
    await channel.receive(60_000).catch((error: NostosError) => ends.push(error.code));
  });
  const { dispatcher, address } = await startDispatcher(t, [deaf], { stopTimeoutMs: 60_000 });
  const channel = await connectToService(address, 'DEAF');
  await eventually(() => dispatcher.stats.served === 1, 'the handler runs');
  await dispatcher.stop();
  assert.deepEqual(ends, ['CHANNEL_CLOSED']);
  channel.close();
});

test('a dispatcher starts again after a stop', async (t) => {
  const { dispatcher } = await startDispatcher(t, [named('A', 'a')]);
  await dispatcher.stop();
  const address = await dispatcher.start();
  assert.ok(dispatcher.isRunning);
  assert.equal(await ask(address, 'A'), 'a');
});

test('without TLS nothing but loopback is listened on', async () => {
  for (const host of ['0.0.0.0', '[::]', '192.0.2.1', '[2001:db8::1]']) {
    const dispatcher = new TcpServiceDispatcher(`${host}:0`);
    await assert.rejects(dispatcher.start(), (error: Error) => {
      assert.match(error.message, /needs TLS/);
      return failsWith('INVALID_ARGUMENT')(error);
    });
    assert.equal(dispatcher.isRunning, false);
  }
  for (const address of ['localhost', 'a:b', ''])
    assert.throws(() => new TcpServiceDispatcher(address), failsWith('INVALID_ARGUMENT'));
});

test('with TLS any address may be listened on', async (t) => {
  const tls = { ...(await tlsIdentity(NODE_A)), allowNodes: [NODE_A] };
  const dispatcher = new TcpServiceDispatcher('0.0.0.0:0', { tls });
  t.after(() => dispatcher.stop());
  dispatcher.register(named('A', 'a'));
  const { port } = parseAddress(await dispatcher.start());
  const channel = await connectToService(`127.0.0.1:${port}`, 'A', { tls });
  assert.equal((await channel.receive(SOON_MS))?.length, 1);
  channel.close();
});

test('a peer that vanished without a word does not keep stop waiting', async (t) => {
  const { dispatcher, address } = await startDispatcher(t, [ECHO]);
  const client = connect(parseAddress(address));
  await once(client, 'connect');
  client.write(preamble('ECHO'));
  await eventually(() => dispatcher.stats.served === 1, 'the handler runs');
  client.pause();
  const startedMs = performance.now();
  await dispatcher.stop();
  assert.ok(performance.now() - startedMs < 4_000);
  client.destroy();
});
