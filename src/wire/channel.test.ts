/** Channels over TCP and TLS: the compliance suite, and what a peer may do to them. */
import assert from 'node:assert/strict';
import type { Socket } from 'node:net';
import { test, type TestContext } from 'node:test';
import type { ErrorCode, NostosError } from '../base/errors.ts';
import { channelCompliance, COMPLIANCE_FRAME_BYTES_MAX, failsWith } from '../testing/channel-compliance.ts';
import {
  CLUSTER,
  frame,
  handOver,
  NODE_A,
  NODE_B,
  rawServer,
  startDispatcher,
  tlsIdentity,
  u32,
  untilEnd,
} from '../testing/wire.fixture.ts';
import type { Channel } from './channel.ts';
import { connectToService, type ServiceConnectOptions } from './connect.ts';

const frameBytesMax = COMPLIANCE_FRAME_BYTES_MAX;

channelCompliance({
  name: 'TCP',
  async pair(t) {
    const { service, channel } = handOver('PAIR');
    const { address } = await startDispatcher(t, [service], { frameBytesMax });
    return [await connectToService(address, 'PAIR', { frameBytesMax }), await channel];
  },
});

channelCompliance({
  name: 'TLS',
  async pair(t) {
    const [a, b] = await Promise.all([tlsIdentity(NODE_A), tlsIdentity(NODE_B)]);
    const { service, channel } = handOver('PAIR');
    const tls = { ...a, allowNodes: [NODE_B], cluster: CLUSTER };
    const { address } = await startDispatcher(t, [service], { frameBytesMax, tls });
    const client = await connectToService(address, 'PAIR', { frameBytesMax, tls: { ...b, node: NODE_A } });
    return [client, await channel];
  },
});

/** A channel whose peer does what the test says. */
async function channelTo(t: TestContext, serve: (socket: Socket) => void, options: ServiceConnectOptions = {}) {
  return connectToService(await rawServer(t, serve), 'X', options);
}

/** The frames as text until the channel fails, and the code that it fails with. */
async function collect(channel: Channel): Promise<string[]> {
  const frames: string[] = [];
  try {
    for (;;) {
      const payload = await channel.receive(5_000);
      assert.ok(payload !== null, 'a frame or an end within the time');
      frames.push(Buffer.from(payload).toString());
    }
  } catch (error) {
    return [...frames, `! ${(error as NostosError).code}`];
  }
}

const ends: readonly (readonly [string, (socket: Socket) => void, readonly string[]])[] = [
  ['closes at once', (socket) => socket.end(), ['! CHANNEL_CLOSED']],
  ['closes inside a prefix', (socket) => socket.end(u32(5).subarray(0, 2)), ['! CHANNEL_CLOSED']],
  ['closes after a prefix', (socket) => socket.end(u32(5)), ['! NETWORK_FAILED']],
  ['closes inside a payload', (socket) => socket.end(frame('hello').subarray(0, 7)), ['! NETWORK_FAILED']],
  ['closes after a frame', (socket) => socket.end(frame('hello')), ['hello', '! CHANNEL_CLOSED']],
  ['closes after an empty frame', (socket) => socket.end(u32(0)), ['', '! CHANNEL_CLOSED']],
  [
    'closes inside the second payload',
    (socket) => socket.end(Buffer.concat([frame('one'), frame('two').subarray(0, 6)])),
    ['one', '! NETWORK_FAILED'],
  ],
  ['announces one byte too many', (socket) => socket.write(u32(1025)), ['! PROTOCOL_ERROR']],
  ['announces 4 GiB', (socket) => socket.write(Buffer.alloc(1024, 0xff)), ['! PROTOCOL_ERROR']],
  [
    'announces too much after a frame',
    (socket) => socket.write(Buffer.concat([frame('ok'), u32(2 ** 31), frame('lost')])),
    ['ok', '! PROTOCOL_ERROR'],
  ],
];

for (const [what, serve, expected] of ends)
  test(`a peer that ${what}`, async (t) => {
    const channel = await channelTo(t, serve, { frameBytesMax: 1024 });
    assert.deepEqual(await collect(channel), expected);
    assert.equal(channel.isOpen, false);
    channel.close();
  });

test('a reset between frames is a close, inside one a failure', async (t) => {
  for (const [bytes, code] of [
    [frame('a'), 'CHANNEL_CLOSED'],
    [frame('abc').subarray(0, 5), 'NETWORK_FAILED'],
  ] as const) {
    const { promise, resolve } = Promise.withResolvers<Socket>();
    const channel = await channelTo(t, (socket) => void socket.write(bytes, () => resolve(socket)));
    if (code === 'CHANNEL_CLOSED') assert.equal((await channel.receive(5_000))?.length, 1);
    else assert.equal(await channel.receive(20), null);
    (await promise).resetAndDestroy();
    await assert.rejects(channel.receive(5_000), failsWith(code));
  }
});

test('timeouts at each byte of two frames lose nothing', async (t) => {
  const bytes = Buffer.concat([frame('one'), frame('two')]);
  const { promise, resolve } = Promise.withResolvers<Socket>();
  const channel = await channelTo(t, resolve);
  const peer = await promise;
  const got: string[] = [];
  let timeouts = 0;
  for (const byte of bytes) {
    peer.write(Buffer.of(byte));
    const payload = await channel.receive(15);
    if (payload === null) timeouts += 1;
    else got.push(Buffer.from(payload).toString());
  }
  while (got.length < 2) got.push(Buffer.from((await channel.receive(5_000))!).toString());
  assert.deepEqual(got, ['one', 'two']);
  assert.ok(timeouts >= 10, `${timeouts} timeouts`);
});

test('a frame that times out in the middle leaves the memory that was given for it alone', async (t) => {
  const { promise, resolve } = Promise.withResolvers<Socket>();
  const channel = await channelTo(
    t,
    (socket) => void socket.write(frame('hello').subarray(0, 7), () => resolve(socket)),
  );
  const into = new Uint8Array(5);
  while ((await channel.receive(20, { into })) === null && into[2] === 0);
  into.fill(0);
  (await promise).write('lo');
  const payload = await channel.receive(5_000);
  assert.equal(Buffer.from(payload!).toString(), 'hello');
  assert.deepEqual([...into], [0, 0, 0, 0, 0]);
});

test('a channel that nobody receives from stops reading', async (t) => {
  let written = 0;
  const { promise, resolve } = Promise.withResolvers<Socket>();
  const channel = await channelTo(t, resolve, { receiveBufferBytes: 64 * 1024 });
  const peer = await promise;
  const chunk = frame(new Uint8Array(64 * 1024));
  const before = process.memoryUsage().arrayBuffers;
  while (peer.write(chunk) || peer.writableLength < 4 * chunk.length) {
    written += 1;
    assert.ok(written < 1_000, 'the peer can write 64 MB to a channel that nobody receives from');
    await new Promise((done) => setImmediate(done));
  }
  assert.ok(process.memoryUsage().arrayBuffers - before < 8 * 1024 * 1024);
  for (let index = 0; index < written; index++) assert.equal((await channel.receive(5_000))?.length, 64 * 1024);
});

const lives: readonly (readonly [string, ServiceConnectOptions, (socket: Socket) => () => void, ErrorCode])[] = [
  ['silent peer', { idleTimeoutMs: 100 }, () => () => {}, 'NETWORK_TIMEOUT'],
  [
    'drip of single bytes',
    { idleTimeoutMs: 200 },
    (socket) => {
      socket.write(u32(1_000_000));
      const timer = setInterval(() => socket.write('x'), 10);
      return () => clearInterval(timer);
    },
    'NETWORK_TIMEOUT',
  ],
];

for (const [what, options, serve, code] of lives)
  test(`the idle timeout ends a ${what}, over several receives`, async (t) => {
    const channel = await channelTo(t, (socket) => t.after(serve(socket)), options);
    let waits = 0;
    const wait = async (): Promise<void> => {
      for (; waits < 200; waits++) assert.equal(await channel.receive(30), null);
    };
    await assert.rejects(wait(), failsWith(code));
    assert.ok(waits >= 2, `${waits} waits`);
    assert.equal(channel.isOpen, false);
  });

test('the idle timeout counts only while the peer is waited for, and a frame starts it anew', async (t) => {
  const channel = await channelTo(
    t,
    (socket) => {
      const timer = setInterval(() => socket.write(frame('tick')), 100);
      t.after(() => clearInterval(timer));
    },
    { idleTimeoutMs: 800 },
  );
  for (let index = 0; index < 12; index++) assert.ok(await channel.receive(5_000));
  await new Promise((done) => setTimeout(done, 1_200));
  assert.ok(await channel.receive(5_000));
  channel.close();
});

test('a peer that takes nothing ends a send at the write timeout', async (t) => {
  const channel = await channelTo(t, (socket) => void socket.pause(), { writeTimeoutMs: 200 });
  const chunk = new Uint8Array(1024 * 1024);
  const send = async (): Promise<void> => {
    for (let count = 0; count < 256; count++) await channel.send(chunk);
  };
  await assert.rejects(send(), failsWith('NETWORK_TIMEOUT'));
  await assert.rejects(channel.receive(1_000), failsWith('NETWORK_TIMEOUT'));
});

test('a peer that takes slowly does not', async (t) => {
  const channel = await channelTo(
    t,
    (socket) => {
      const timer = setInterval(() => socket.read(512 * 1024), 20);
      socket.on('readable', () => {});
      t.after(() => clearInterval(timer));
    },
    { writeTimeoutMs: 1_000 },
  );
  const startedMs = performance.now();
  for (let count = 0; count < 40; count++) await channel.send(new Uint8Array(1024 * 1024));
  assert.ok(performance.now() - startedMs > 1_000, 'it took longer than the timeout');
  channel.close();
});

test('closing tells the peer, also one that sends all the time', async (t) => {
  const seen = Promise.withResolvers<void>();
  const channel = await channelTo(t, (socket) => {
    const timer = setInterval(() => socket.write(frame('noise')), 1);
    socket.once('close', () => clearInterval(timer));
    void untilEnd(socket).then(() => seen.resolve());
  });
  await channel.receive(5_000);
  await channel.send(Buffer.from('bye'));
  channel.close();
  await seen.promise;
});
