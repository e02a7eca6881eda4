/** One test per defect of the reference that this folder's README lists; the names are those of its table. */
import assert from 'node:assert/strict';
import { mkdirSync, truncateSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import type { TestContext } from 'node:test';
import { acquireDirectoryLock } from '../../base/directory-lock.ts';
import { isNostosError } from '../../base/errors.ts';
import { createAuthority, createNodeCertificate } from '../../wire/certificates.ts';
import { connectStream, connectToService } from '../../wire/connect.ts';
import { TcpServiceDispatcher } from '../../wire/dispatcher.ts';
import type { ServiceHandler } from '../../wire/channel.ts';
import { BodyParser, encodeCount, encodeFileHeader } from './body.ts';
import { NetworkRestore } from './network-restore.ts';
import type { Files } from './peers.fixture.ts';
import {
  DISPATCHER_REQUEST_BYTES,
  bodyOf,
  configFor,
  contentOf,
  directoryOf,
  exchange,
  frameOf,
  peerThat,
  stagedIn,
} from './peers.fixture.ts';
import type { NetworkRestoreServerOptions } from './server.ts';
import { NetworkRestoreServer } from './server.ts';
import { RESTORE_LIMITS } from './types.ts';

const FILES: Files = { '00000001.ndb': 'abc' };
const OLD: Files = { '00000001.ndb': 'old', '00000009.ndb': 'stale' };
const MAGIC = Buffer.from('5453524e', 'hex');
const ASK = Buffer.concat([
  Buffer.from('07000000', 'hex'),
  Buffer.from('RESTORE'),
  Buffer.from('04000000', 'hex'),
  MAGIC,
]);
const portOf = (address: string): number => Number(address.split(':').at(-1));

async function dispatcherFor(t: TestContext, dir: string, options: NetworkRestoreServerOptions = {}) {
  const errors: unknown[] = [];
  const dispatcher = new TcpServiceDispatcher('127.0.0.1:0', {
    onError: (error) => errors.push(error),
    onRefused: (error) => errors.push(error),
    preambleTimeoutMs: 2_000,
    stopTimeoutMs: 200,
  });
  dispatcher.register(new NetworkRestoreServer(dir, options));
  t.after(() => dispatcher.stop());
  const address = await dispatcher.start();
  return { address, port: portOf(address), errors, dispatcher };
}

async function rawFor(t: TestContext, dir: string, options: NetworkRestoreServerOptions = {}) {
  const server = new NetworkRestoreServer(dir, options);
  t.after(() => server.stop());
  const address = await server.start('127.0.0.1:0');
  return { address, port: portOf(address), server };
}

const failure = (run: Promise<unknown>): Promise<unknown> =>
  run.then(
    () => assert.fail('it succeeded'),
    (error: unknown) => error,
  );

test('F2: a raw client at a dispatcher: its magic is refused as the length of a name', async (t) => {
  const served = await dispatcherFor(t, directoryOf(t, FILES));
  const before = process.memoryUsage().arrayBuffers;
  assert.deepEqual(await exchange(served.address, [MAGIC]), Buffer.alloc(0));
  assert.ok(process.memoryUsage().arrayBuffers - before < 16 * 1024 * 1024);
  assert.match(String(served.errors[0]), /1314018132 bytes/);
  const restore = new NetworkRestore(configFor(served.port)).withLocalDir(directoryOf(t));
  assert.ok(isNostosError(await failure(restore.execute()), 'NETWORK_FAILED'));
});

test('F4: the client parses the one frame while it arrives: memory does not follow its size', async (t) => {
  const chunk = Buffer.alloc(64 * 1024, 'x');
  const chunks = 1000;
  const header = Buffer.concat([encodeCount(1), encodeFileHeader('00000001.ndb', chunks * chunk.length)]);
  const peer = await peerThat(
    t,
    async (socket) => {
      socket.write(Buffer.concat([encodeCount(header.length + chunks * chunk.length), header]));
      for (let sent = 0; sent < chunks; sent++)
        await new Promise<void>((resolve) => socket.write(chunk, () => resolve()));
    },
    DISPATCHER_REQUEST_BYTES,
  );
  const dir = directoryOf(t);
  const before = process.memoryUsage().arrayBuffers;
  let peak = 0;
  let early = false;
  const options = {
    trailer: 'none' as const,
    onProgress: (event: { readonly kind: string; readonly received?: number }) => {
      early ||= event.kind === 'bytes' && event.received! < chunk.length * 10;
      peak = Math.max(peak, process.memoryUsage().arrayBuffers - before);
    },
  };
  await new NetworkRestore(configFor(peer.port), options).withLocalDir(dir).executeViaDispatcher();
  assert.ok(early);
  assert.ok(peak < 40 * 1024 * 1024, `${peak} bytes`);
});

test('F4, LOG-2: a set that does not fit into one frame is refused before a byte of it is read or sent', async (t) => {
  const dir = directoryOf(t, { '00000001.ndb': '', '00000002.ndb': '' });
  const room = RESTORE_LIMITS.frameBytesMax - 4 - 2 * (2 + 12 + 8 + 4);
  truncateSync(join(dir, '00000001.ndb'), 1000);
  truncateSync(join(dir, '00000002.ndb'), room - 1000 + 1);
  const served = await dispatcherFor(t, dir);
  assert.deepEqual(await exchange(served.address, [ASK]), Buffer.alloc(0));
  assert.ok(isNostosError(served.errors[0], 'FRAME_TOO_LARGE'), String(served.errors[0]));
  assert.match(served.errors[0].message, /the 2 files of .* need 67108865 bytes/);
  truncateSync(join(dir, '00000002.ndb'), room - 1000);
  assert.equal((await exchange(served.address, [ASK])).length, 4 + RESTORE_LIMITS.frameBytesMax);
});

test('F3: a name of a service longer than 256 bytes is refused by its length', async (t) => {
  const served = await dispatcherFor(t, directoryOf(t, FILES));
  for (const length of [0, 257, 0xffff_ffff])
    assert.deepEqual(await exchange(served.address, [encodeCount(length)]), Buffer.alloc(0));
  assert.equal(served.errors.length, 3);
  assert.ok(served.errors.every((error) => isNostosError(error, 'PROTOCOL_ERROR')));
});

test('#23: files come into place whole and together: a broken transfer leaves all the old ones', async (t) => {
  const body = bodyOf({ ...FILES, '00000002.ndb': 'two' });
  for (const cut of [20, 40, body.length - 1]) {
    const peer = await peerThat(t, (socket) => void socket.end(body.subarray(0, cut)));
    const dir = directoryOf(t, OLD);
    await failure(new NetworkRestore(configFor(peer.port)).withLocalDir(dir).execute());
    assert.deepEqual(contentOf(dir), OLD);
    assert.deepEqual(stagedIn(dir), []);
  }
});

test('#24, NA-2, NA-8: the client speaks TLS with certificates, and without one nobody gets the logs', async (t) => {
  const validity = { nowMs: Date.now(), days: 1 };
  const [authority, other] = [await createAuthority(undefined, validity), await createAuthority(undefined, validity)];
  const ids = ['1'.repeat(32), '2'.repeat(32)] as const;
  const identity = async (ca: typeof authority, node: string) => ({
    ca: ca.cert,
    ...(await createNodeCertificate(ca, { node, hosts: ['127.0.0.1'] }, validity)),
  });
  const tls = { ...(await identity(authority, ids[0])), allowNodes: [ids[1]] };
  const home = directoryOf(t, FILES);
  const refusals: unknown[] = [];
  const raw = await rawFor(t, home, { tls, onError: (error) => refusals.push(error) });
  const dispatcher = new TcpServiceDispatcher('127.0.0.1:0', { tls, onRefused: (error) => refusals.push(error) });
  dispatcher.register(new NetworkRestoreServer(home));
  t.after(() => dispatcher.stop());
  const port = portOf(await dispatcher.start());
  const mine = await identity(authority, ids[1]);
  const run = async (clientTls: typeof mine | undefined, viaDispatcher: boolean): Promise<Files> => {
    const dir = directoryOf(t);
    const options = clientTls === undefined ? { stallTimeoutMs: 300 } : { tls: clientTls };
    const restore = new NetworkRestore(configFor(viaDispatcher ? port : raw.port), options).withLocalDir(dir);
    await (viaDispatcher ? restore.executeViaDispatcher() : restore.execute());
    return contentOf(dir);
  };
  const strangers = [undefined, await identity(other, ids[1]), await identity(authority, '3'.repeat(32))];
  for (const viaDispatcher of [false, true]) {
    assert.deepEqual(await run(mine, viaDispatcher), FILES);
    for (const stranger of strangers) assert.ok(isNostosError(await failure(run(stranger, viaDispatcher))));
  }
  // Each server has refused at least the node that is not on its list; it may know of it after the client.
  const refusedPeers = (): number => refusals.filter((error) => isNostosError(error, 'PEER_REFUSED')).length;
  for (let wait = 0; refusedPeers() < 2 && wait < 100; wait++) await new Promise((resolve) => setTimeout(resolve, 20));
  assert.ok(refusedPeers() >= 2, refusals.map(String).join('\n'));
  for (const address of ['0.0.0.0:0', '[::]:0'])
    assert.ok(isNostosError(await failure(new NetworkRestoreServer(home).start(address)), 'INVALID_ARGUMENT'));
});

test('LOG-4: names that lead elsewhere write nothing anywhere', async (t) => {
  const home = directoryOf(t);
  mkdirSync(join(home, 'env'));
  for (const name of [
    '../outside',
    join(home, 'outside'),
    '..\\outside',
    'x/../../outside',
    '.nostos-restore',
    '.hidden',
  ]) {
    const peer = await peerThat(t, (socket) => void socket.end(bodyOf({ [name]: 'x' })));
    const error = await failure(new NetworkRestore(configFor(peer.port)).withLocalDir(join(home, 'env')).execute());
    assert.ok(isNostosError(error, 'PROTOCOL_ERROR') && /unsafe filename/.test(error.message), String(error));
  }
  assert.deepEqual(contentOf(home), { env: '(directory)' });
  assert.deepEqual(contentOf(join(home, 'env')), {});
});

test('D10: one wrong bit is seen, and names the file, what was expected and what came', async (t) => {
  const body = bodyOf(FILES);
  body[body.length - 6]! ^= 1;
  const peer = await peerThat(t, (socket) => void socket.end(body));
  const error = await failure(new NetworkRestore(configFor(peer.port)).withLocalDir(directoryOf(t)).execute());
  assert.ok(isNostosError(error, 'RESTORE_FAILED'));
  assert.match(error.message, /"00000001.ndb" is wrong: expected 352441c2, got/);
});

test('an error ends in Failed, not in InProgress', async (t) => {
  const peer = await peerThat(t, (socket) => void socket.end(), 4);
  for (const call of ['execute', 'executeViaDispatcher'] as const) {
    const restore = new NetworkRestore(configFor(peer.port)).withLocalDir(directoryOf(t));
    const error = await failure(restore[call]());
    assert.deepEqual([restore.getState(), restore.getError()], ['Failed', error]);
  }
});

test('a size near 2^64 overflows nothing', () => {
  for (const size of [2n ** 64n - 1n, 2n ** 64n - 12n, 2n ** 63n, 2n ** 53n]) {
    const header = Buffer.from(encodeFileHeader('a.ndb', 0));
    header.writeBigUInt64LE(size, header.length - 8);
    const two = Buffer.concat([bodyOf({ 'b.ndb': 'b' }).subarray(4), header]);
    for (const bodyBytes of [undefined, 4 + two.length]) {
      const frame = bodyBytes === undefined ? {} : { bodyBytes };
      const parser = new BodyParser({ ...RESTORE_LIMITS, trailer: 'crc32', names: 'reference', ...frame });
      const all = Buffer.concat([encodeCount(2), two]);
      assert.throws(
        () => [...parser.push(all)],
        (error) => isNostosError(error, 'RESTORE_TOO_LARGE') && error.message.includes(`${size} bytes`),
      );
    }
  }
});

test('a source cannot fill the disk: bytesMax and what is free bound it, before anything is written', async (t) => {
  const endless = Buffer.concat([encodeCount(1), encodeFileHeader('00000001.ndb', 2 ** 52)]);
  const peer = await peerThat(t, (socket) => void socket.write(endless));
  for (const [options, code] of [
    [{}, 'DISK_FULL'],
    [{ bytesMax: 2 ** 40 }, 'RESTORE_TOO_LARGE'],
  ] as const) {
    const dir = directoryOf(t, OLD);
    const error = await failure(new NetworkRestore(configFor(peer.port), options).withLocalDir(dir).execute());
    assert.ok(isNostosError(error, code), String(error));
    assert.deepEqual(contentOf(dir), OLD);
  }
});

test('a file of more than 4 GiB: announced with its whole length over raw TCP, refused in a frame', async (t) => {
  const dir = directoryOf(t, { '00000001.ndb': '' });
  const bytes = 5 * 2 ** 30;
  truncateSync(join(dir, '00000001.ndb'), bytes);
  const raw = await rawFor(t, dir);
  const stream = await connectStream(raw.address);
  await stream.write([MAGIC]);
  const header = Buffer.from((await stream.readExactly(4 + 2 + 12 + 8, { timeoutMs: 5_000 }))!);
  stream.close();
  assert.equal(header.readBigUInt64LE(18), BigInt(bytes));
  const served = await dispatcherFor(t, dir);
  assert.deepEqual(await exchange(served.address, [ASK]), Buffer.alloc(0));
  assert.ok(isNostosError(served.errors[0], 'FRAME_TOO_LARGE'));
});

test('a receive that times out within a length prefix loses nothing: the next one goes on with it', async (t) => {
  const peer = await peerThat(t, () => {}, 1);
  const channel = await connectToService(peer.address, 'RESTORE');
  t.after(() => channel.close());
  const handled = Promise.withResolvers<(Uint8Array | null)[]>();
  const handler: ServiceHandler = {
    serviceName: 'SLOW',
    async handle(at) {
      const got: (Uint8Array | null)[] = [];
      while (got.at(-1) === undefined || got.at(-1) === null) got.push(await at.receive(30));
      got.push(await at.receive(1000));
      handled.resolve(got);
    },
  };
  const dispatcher = new TcpServiceDispatcher('127.0.0.1:0');
  dispatcher.register(handler);
  t.after(() => dispatcher.stop());
  const socket = connect(portOf(await dispatcher.start()), '127.0.0.1');
  t.after(() => socket.destroy());
  const bytes = Buffer.concat([
    frameOf(Buffer.from('SLOW')),
    frameOf(Buffer.from('first')),
    frameOf(Buffer.from('second')),
  ]);
  for (const part of [bytes.subarray(0, 10), bytes.subarray(10, 14), bytes.subarray(14)]) {
    socket.write(part);
    await new Promise((resolve) => setTimeout(resolve, 60));
  }
  const got = await handled.promise;
  assert.equal(got[0], null);
  assert.deepEqual(
    got.filter((one) => one !== null).map((one) => Buffer.from(one).toString()),
    ['first', 'second'],
  );
});

test('stop() ends sessions and frees the port, of the raw server and of the dispatcher', async (t) => {
  const dir = directoryOf(t, { '00000001.ndb': 'x'.repeat(24 * 1024 * 1024) });
  const raw = await rawFor(t, dir);
  const served = await dispatcherFor(t, dir);
  const stop = { [raw.address]: () => raw.server.stop(), [served.address]: () => served.dispatcher.stop() };
  for (const [address, ask] of [
    [raw.address, MAGIC],
    [served.address, ASK],
  ] as const) {
    const socket = connect(portOf(address), '127.0.0.1');
    socket.on('error', () => {}).write(ask);
    await new Promise<void>((resolve) => socket.once('data', () => resolve(void socket.pause())));
    const closed = new Promise<void>((resolve) => socket.on('close', () => resolve()));
    await stop[address]!();
    socket.resume();
    await closed;
    const again = new NetworkRestoreServer(dir);
    assert.equal(await again.start(address), address);
    assert.equal(again.isRunning(), true);
    await again.stop();
    await again.stop();
    assert.equal(again.isRunning(), false);
  }
  assert.equal(raw.server.isRunning(), false);
  assert.equal(await raw.server.start(raw.address), raw.address, 'it can be started again');
  assert.ok(isNostosError(await failure(raw.server.start('127.0.0.1:0')), 'RESTORE_STATE'));
});

test('a second restore does not overwrite the first .bak', async (t) => {
  const { port } = await rawFor(t, directoryOf(t, FILES));
  const dir = directoryOf(t, OLD);
  for (let run = 0; run < 3; run++) await new NetworkRestore(configFor(port)).withLocalDir(dir).execute();
  assert.deepEqual(contentOf(dir), {
    ...FILES,
    '00000001.ndb.bak': 'old',
    '00000001.ndb.bak.1': 'abc',
    '00000001.ndb.bak.2': 'abc',
    '00000009.ndb.bak': 'stale',
  });
});

test('a directory that is in use is left alone', async (t) => {
  const { port } = await rawFor(t, directoryOf(t, FILES));
  const dir = directoryOf(t, OLD);
  using _ = await acquireDirectoryLock({ dir, timeoutMs: 0, holder: { command: 'a live node', version: '1' } });
  const restore = new NetworkRestore(configFor(port), { lockTimeoutMs: 0 }).withLocalDir(dir);
  const error = await failure(restore.execute());
  assert.ok(isNostosError(error, 'DIRECTORY_LOCKED') && error.message.includes('a live node'), String(error));
  assert.deepEqual(contentOf(dir), OLD);
});

test('stale logs with higher numbers do not stay beside the restored ones', async (t) => {
  const { port } = await rawFor(t, directoryOf(t, FILES));
  const dir = directoryOf(t, OLD);
  await new NetworkRestore(configFor(port, { retainLogFiles: false })).withLocalDir(dir).execute();
  assert.deepEqual(contentOf(dir), FILES);
});

test('the path through the dispatcher takes DNS names, too', async (t) => {
  const served = await dispatcherFor(t, directoryOf(t, FILES));
  const dir = directoryOf(t);
  const config = configFor(served.port, { sourceHost: 'localhost' });
  await new NetworkRestore(config).withLocalDir(dir).executeViaDispatcher();
  assert.deepEqual(contentOf(dir), FILES);
});

test('a directory called x.ndb does not break the send', async (t) => {
  const home = directoryOf(t, FILES);
  mkdirSync(join(home, '00000000.ndb'));
  writeFileSync(join(home, '00000000.ndb', '1.ndb'), 'not served');
  assert.deepEqual(await exchange((await rawFor(t, home)).address, [MAGIC]), bodyOf(FILES));
  assert.deepEqual(await exchange((await dispatcherFor(t, home)).address, [ASK]), frameOf(bodyOf(FILES)));
});

test('one name twice is refused, and strict names are an option', async (t) => {
  const one = bodyOf(FILES).subarray(4);
  const twice = await peerThat(t, (socket) => void socket.end(Buffer.concat([encodeCount(2), one, one])));
  const other = await peerThat(t, (socket) => void socket.end(bodyOf({ 'vlsn.idx': 'x' })));
  const dir = directoryOf(t);
  const error = await failure(new NetworkRestore(configFor(twice.port)).withLocalDir(dir).execute());
  assert.ok(isNostosError(error, 'PROTOCOL_ERROR'));
  const strict = new NetworkRestore(configFor(other.port), { names: 'strict' }).withLocalDir(dir).execute();
  assert.ok(isNostosError(await failure(strict), 'PROTOCOL_ERROR'));
  assert.deepEqual(contentOf(dir), {});
  await new NetworkRestore(configFor(other.port)).withLocalDir(dir).execute();
  assert.deepEqual(contentOf(dir), { 'vlsn.idx': 'x' });
});
