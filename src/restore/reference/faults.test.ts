/** Sources that stall, drip, lie, and close at every byte; clients that do; files that change while they are served. */
import assert from 'node:assert/strict';
import { appendFileSync, renameSync, truncateSync, unlinkSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import type { TestContext } from 'node:test';
import type { ErrorCode } from '../../base/errors.ts';
import { isNostosError } from '../../base/errors.ts';
import { TcpServiceDispatcher } from '../../wire/dispatcher.ts';
import { encodePreamble } from '../../wire/preamble.ts';
import { encodeCount, encodeFileHeader } from './body.ts';
import type { Protocol } from './fetch.ts';
import type { NetworkRestoreOptions } from './network-restore.ts';
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
import { NetworkRestoreServer } from './server.ts';

const OLD: Files = { '00000001.ndb': 'old', '00000009.ndb': 'stale' };
const FILES: Files = { '00000001.ndb': 'first', '00000002.ndb': 'in the middle', '00000003.ndb': 'last' };
const PROTOCOLS = ['raw', 'dispatcher'] as const;
const MAGIC = Buffer.from('5453524e', 'hex');

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
const answerOf = (protocol: Protocol, body: Buffer): Buffer => (protocol === 'raw' ? body : frameOf(body));
const requestBytes = (protocol: Protocol): number => (protocol === 'raw' ? 4 : DISPATCHER_REQUEST_BYTES);

/** Runs a restore that must fail, and sees that it did no harm. */
async function failingRestore(
  t: TestContext,
  protocol: Protocol,
  port: number,
  options: NetworkRestoreOptions = {},
): Promise<unknown> {
  const home = directoryOf(t, { neighbour: 'untouched' });
  const dir = join(home, 'env');
  const restore = new NetworkRestore(configFor(port, { retainLogFiles: false }), options).withLocalDir(dir);
  const inside = directoryOf(t, OLD);
  renameSync(inside, dir);
  const error: unknown = await (protocol === 'raw' ? restore.execute() : restore.executeViaDispatcher()).then(
    () => assert.fail('the restore succeeded'),
    (reason: unknown) => reason,
  );
  assert.equal(restore.getState(), 'Failed');
  assert.equal(restore.getError(), error);
  assert.deepEqual(contentOf(dir), OLD);
  assert.deepEqual(contentOf(home), { env: '(directory)', neighbour: 'untouched' });
  assert.deepEqual(stagedIn(dir), []);
  return error;
}

interface SourceFault {
  readonly what: string;
  /** What the source does once it was asked; calls `fired` when the fault has struck. */
  readonly answer: (socket: Socket, protocol: Protocol, fired: () => void) => void | Promise<void>;
  readonly code: ErrorCode;
  readonly message: RegExp;
  readonly options?: NetworkRestoreOptions;
}

/** The whole answer is these bytes. */
const says =
  (body: Buffer, end: 'end' | 'stay' | 'reset' = 'end'): SourceFault['answer'] =>
  (socket, protocol, fired) => {
    fired();
    socket.write(answerOf(protocol, body), () => {
      if (end === 'end') socket.end();
      else if (end === 'reset') setTimeout(() => socket.resetAndDestroy(), 20);
    });
  };
const half = bodyOf(FILES).subarray(0, 60);
/** In a frame that announces the rest, too. */
const saysOnly =
  (bytes: number, end: 'end' | 'stay' | 'reset'): SourceFault['answer'] =>
  (socket, protocol, fired) => {
    fired();
    const whole = answerOf(protocol, bodyOf(FILES));
    socket.write(whole.subarray(0, bytes), () => {
      if (end === 'end') socket.end();
      else if (end === 'reset') setTimeout(() => socket.resetAndDestroy(), 20);
    });
  };
const wrongChecksum = (name: string): Buffer =>
  bodyOf(FILES, { crc: (one, right) => (one === name ? 0xffff_ffff - right : right) });
const sizeOf = (bytes: bigint): Buffer => {
  const header = Buffer.from(encodeFileHeader('00000001.ndb', 0));
  header.writeBigUInt64LE(bytes, header.length - 8);
  return Buffer.concat([encodeCount(1), header, Buffer.alloc(100)]);
};
const QUICK = { stallTimeoutMs: 150 };

const sourceFaults: readonly SourceFault[] = [
  {
    what: 'says nothing',
    answer: (_, __, fired) => fired(),
    code: 'NETWORK_TIMEOUT',
    message: /0 bytes in 150 ms|sent nothing in 150 ms/,
    options: QUICK,
  },
  {
    what: 'stalls in the middle',
    answer: saysOnly(half.length, 'stay'),
    code: 'NETWORK_TIMEOUT',
    message: /bytes in 150 ms/,
    options: QUICK,
  },
  {
    what: 'drips',
    answer: async (socket, protocol, fired) => {
      for (const byte of answerOf(protocol, bodyOf(FILES))) {
        if (socket.destroyed) return fired();
        socket.write(Uint8Array.of(byte));
        await pause(20);
      }
    },
    code: 'NETWORK_TIMEOUT',
    message: /bytes in 150 ms, at least 65536 were expected/,
    options: QUICK,
  },
  {
    what: 'closes without a word',
    answer: saysOnly(0, 'end'),
    code: 'NETWORK_FAILED',
    message: /without an answer|ends before the number of files/,
  },
  {
    what: 'resets in the middle',
    answer: saysOnly(half.length, 'reset'),
    code: 'NETWORK_FAILED',
    message: /ends in file 2 of 3/,
  },
  {
    what: 'has a wrong checksum in the first file',
    answer: says(wrongChecksum('00000001.ndb')),
    code: 'RESTORE_FAILED',
    message: /checksum of "00000001.ndb"/,
  },
  {
    what: 'has a wrong checksum in the middle',
    answer: says(wrongChecksum('00000002.ndb')),
    code: 'RESTORE_FAILED',
    message: /checksum of "00000002.ndb"/,
  },
  {
    what: 'has a wrong checksum in the last file',
    answer: says(wrongChecksum('00000003.ndb')),
    code: 'RESTORE_FAILED',
    message: /checksum of "00000003.ndb"/,
  },
  {
    what: 'announces 2^32 - 1 files',
    answer: says(Buffer.alloc(100, 0xff)),
    code: 'RESTORE_TOO_LARGE',
    message: /4294967295 files/,
  },
  {
    what: 'announces more files than the limit',
    answer: says(bodyOf(FILES)),
    code: 'RESTORE_TOO_LARGE',
    message: /3 files/,
    options: { filesMax: 2 },
  },
  {
    what: 'announces 2^64 - 1 bytes',
    answer: says(sizeOf(2n ** 64n - 1n)),
    code: 'RESTORE_TOO_LARGE',
    message: /18446744073709551615 bytes/,
  },
  {
    what: 'announces more bytes than the limit',
    answer: says(bodyOf(FILES)),
    code: 'RESTORE_TOO_LARGE',
    message: /22 in all/,
    options: { bytesMax: 21 },
  },
  {
    what: 'uses a name of 64 KiB',
    answer: says(bodyOf({ ['n'.repeat(65_535)]: '' })),
    code: 'PROTOCOL_ERROR',
    message: /unsafe filename/,
  },
  ...['../neighbour', '/tmp/x', 'a/b', 'a\\b', '..', '.', '.bashrc', 'a\0b', 'lock', ''].map((name) => ({
    what: `uses the name ${JSON.stringify(name)}`,
    answer: says(bodyOf({ [name]: 'x' })),
    code: 'PROTOCOL_ERROR' as const,
    message: /unsafe filename/,
  })),
  {
    what: 'uses another name where strict ones are asked for',
    answer: says(bodyOf({ 'vlsn.idx': 'x' })),
    code: 'PROTOCOL_ERROR',
    message: /unsafe filename/,
    options: { names: 'strict' },
  },
  {
    what: 'sends one name twice',
    answer: says(
      Buffer.concat([encodeCount(2), bodyOf({ 'a.ndb': '1' }).subarray(4), bodyOf({ 'a.ndb': '2' }).subarray(4)]),
    ),
    code: 'PROTOCOL_ERROR',
    message: /unsafe filename: "a.ndb": the source sent it before/,
  },
  {
    what: 'does not send the checksums that were asked for',
    answer: says(bodyOf({ 'a.ndb': '1' }, { trailer: 'none' })),
    code: 'NETWORK_FAILED',
    message: /ends in file 1 of 1/,
  },
];

for (const protocol of PROTOCOLS) {
  for (const { what, answer, code, message, options } of sourceFaults)
    test(`${protocol}: a source that ${what}`, async (t) => {
      const fired = Promise.withResolvers<void>();
      const peer = await peerThat(t, (socket) => answer(socket, protocol, fired.resolve), requestBytes(protocol));
      const error = await failingRestore(t, protocol, peer.port, options);
      const expected =
        protocol === 'dispatcher' && /^announces 2|does not send/.test(what)
          ? [code, 'PROTOCOL_ERROR' as const]
          : [code];
      assert.ok(
        expected.some((one) => isNostosError(error, one)),
        String(error),
      );
      if (isNostosError(error, code)) assert.match(error.message, message);
      await fired.promise;
    });

  test(`${protocol}: a source that closes at every byte`, async (t) => {
    const whole = answerOf(protocol, bodyOf({ 'a.ndb': 'x', 'b.ndb': '' }));
    let at = 0;
    const peer = await peerThat(t, (socket) => void socket.end(whole.subarray(0, at)), requestBytes(protocol));
    for (; at < whole.length; at++) {
      const error = await failingRestore(t, protocol, peer.port);
      assert.ok(isNostosError(error, 'NETWORK_FAILED'), `at ${at}: ${String(error)}`);
    }
    assert.equal(peer.connections(), whole.length);
  });

  test(`${protocol}: a slow source that makes progress is waited for`, async (t) => {
    const whole = answerOf(protocol, bodyOf(FILES));
    const peer = await peerThat(
      t,
      async (socket) => {
        for (let at = 0; at < whole.length; at += 12) {
          socket.write(whole.subarray(at, at + 12));
          await pause(150);
        }
      },
      requestBytes(protocol),
    );
    const dir = directoryOf(t);
    const restore = new NetworkRestore(configFor(peer.port), {
      stallTimeoutMs: 1_000,
      progressBytesMin: 12,
    }).withLocalDir(dir);
    await (protocol === 'raw' ? restore.execute() : restore.executeViaDispatcher());
    assert.deepEqual(contentOf(dir), FILES);
    assert.ok(restore.getProgress().elapsed > 1_000);
  });

  test(`${protocol}: nobody listens`, async (t) => {
    const server = new NetworkRestoreServer(directoryOf(t));
    const port = Number((await server.start('127.0.0.1:0')).split(':')[1]);
    await server.stop();
    assert.ok(isNostosError(await failingRestore(t, protocol, port), 'NETWORK_FAILED'));
  });
}

const frames: readonly [what: string, bytes: Buffer, code: ErrorCode, message: RegExp][] = [
  ['announces 4 GiB', Buffer.from('ffffffff', 'hex'), 'PROTOCOL_ERROR', /frame payload too large: .* 4294967295 bytes/],
  [
    'announces one byte more than 64 MiB',
    encodeCount(64 * 1024 * 1024 + 1) as Buffer,
    'PROTOCOL_ERROR',
    /67108865 bytes/,
  ],
  ['is empty', encodeCount(0) as Buffer, 'PROTOCOL_ERROR', /too small/],
  ['has three bytes', frameOf(Buffer.alloc(3)), 'PROTOCOL_ERROR', /too small/],
  ['ends before a name', frameOf(bodyOf(FILES).subarray(0, 4)), 'PROTOCOL_ERROR', /3 files in a frame of 4 bytes/],
  ['ends in a header', frameOf(bodyOf(FILES).subarray(0, 80)), 'PROTOCOL_ERROR', /ends before file 3 of 3/],
  [
    'ends in a file',
    frameOf(bodyOf({ 'a.ndb': 'abc' }).subarray(0, -5)),
    'PROTOCOL_ERROR',
    /more than its frame still holds/,
  ],
];

for (const [what, bytes, code, message] of frames)
  test(`dispatcher: a frame that ${what}`, async (t) => {
    const peer = await peerThat(t, (socket) => void socket.write(bytes), DISPATCHER_REQUEST_BYTES);
    const error = await failingRestore(t, 'dispatcher', peer.port);
    assert.ok(isNostosError(error, code), String(error));
    assert.match(error.message, message);
    assert.equal(peer.connections(), 1);
  });

const BIG = 24 * 1024 * 1024;

/** A source with one large file and one after it, and a client that does something to them once the first one comes. */
async function whileServed(t: TestContext, change: (dir: string) => void, openFilesMax = 256) {
  const dir = directoryOf(t, { '00000001.ndb': 'b'.repeat(BIG), '00000002.ndb': 'two' });
  const errors: unknown[] = [];
  const server = new NetworkRestoreServer(dir, { openFilesMax, onError: (error) => errors.push(error) });
  t.after(() => server.stop());
  const port = Number((await server.start('127.0.0.1:0')).split(':')[1]);
  let changed = 0;
  const options: NetworkRestoreOptions = {
    onProgress: (event) => {
      if (event.kind !== 'file-started' || event.name !== '00000001.ndb') return;
      changed += 1;
      change(dir);
    },
  };
  return { port, options, errors, changed: () => changed };
}

test('dispatcher: a client that takes its frame too slowly is cut off, and the next one is served', async (t) => {
  const dir = directoryOf(t, { '00000001.ndb': 'b'.repeat(BIG) });
  const errors: unknown[] = [];
  const dispatcher = new TcpServiceDispatcher('127.0.0.1:0', {
    stopTimeoutMs: 50,
    onError: (error) => errors.push(error),
  });
  t.after(() => dispatcher.stop());
  dispatcher.register(new NetworkRestoreServer(dir, { framesMax: 1, frameTimeoutMs: 300 }));
  const port = Number((await dispatcher.start()).split(':')[1]);
  const slow = connect(port, '127.0.0.1');
  slow.on('error', () => {}).write(Buffer.concat([encodePreamble('RESTORE'), frameOf(MAGIC)]));
  t.after(() => slow.destroy());
  // It drips: each of its reads is a sign of life.
  const timer = setInterval(() => slow.read(64 * 1024), 20);
  slow.on('readable', () => {});
  t.after(() => clearInterval(timer));
  while (errors.length === 0) await pause(20);
  assert.ok(isNostosError(errors[0], 'NETWORK_TIMEOUT'), String(errors[0]));
  const restore = new NetworkRestore(configFor(port)).withLocalDir(directoryOf(t));
  assert.equal((await restore.executeViaDispatcher()).files[0]?.bytes, BIG);
  while (dispatcher.stats.connections > 0) await pause(20);
});

for (const protocol of PROTOCOLS)
  test(`${protocol}: a source without files takes nothing away, unless that is asked for`, async (t) => {
    const empty = await peerThat(
      t,
      (socket) => void socket.end(answerOf(protocol, bodyOf({}))),
      requestBytes(protocol),
    );
    for (const [options, retainLogFiles, left] of [
      [{}, false, OLD],
      [{}, true, OLD],
      [{ allowEmptySource: true }, true, { '00000001.ndb.bak': 'old', '00000009.ndb.bak': 'stale' }],
      [{ allowEmptySource: true }, false, {}],
    ] as const) {
      const dir = directoryOf(t, OLD);
      const restore = new NetworkRestore(configFor(empty.port, { retainLogFiles }), options).withLocalDir(dir);
      const report = await (protocol === 'raw' ? restore.execute() : restore.executeViaDispatcher());
      assert.equal(restore.getState(), 'Completed');
      assert.deepEqual(contentOf(dir), left);
      assert.equal(report.removed.length, 'allowEmptySource' in options && !retainLogFiles ? 2 : 0);
    }
  });

test('raw: at a dispatcher the error says which call is for it', async (t) => {
  const dispatcher = new TcpServiceDispatcher('127.0.0.1:0');
  t.after(() => dispatcher.stop());
  dispatcher.register(new NetworkRestoreServer(directoryOf(t, FILES)));
  const port = Number((await dispatcher.start()).split(':')[1]);
  const error = await failingRestore(t, 'raw', port);
  assert.ok(isNostosError(error, 'NETWORK_FAILED'), String(error));
  assert.match(error.message, /executeViaDispatcher/);
});

const harmful: readonly [what: string, change: (dir: string) => void, openFilesMax: number, message: RegExp][] = [
  [
    'shrinks',
    (dir) => truncateSync(join(dir, '00000001.ndb'), 1024),
    256,
    /00000001.ndb has become shorter than 25165824 bytes/,
  ],
  ['vanishes before it was opened', (dir) => unlinkSync(join(dir, '00000002.ndb')), 0, /00000002.ndb is gone/],
];
for (const [what, change, openFilesMax, message] of harmful)
  test(`a file that ${what} while it is served: both sides fail, and nothing false arrives`, async (t) => {
    const source = await whileServed(t, change, openFilesMax);
    const error = await failingRestore(t, 'raw', source.port, source.options);
    assert.ok(isNostosError(error, 'NETWORK_FAILED'), String(error));
    assert.equal(source.changed(), 1);
    assert.equal(source.errors.length, 1);
    assert.ok(isNostosError(source.errors[0], 'RESTORE_FAILED'));
    assert.match(source.errors[0].message, message);
  });

const harmless: Record<string, (dir: string) => void> = {
  grows: (dir) => appendFileSync(join(dir, '00000001.ndb'), 'more'),
  vanishes: (dir) => unlinkSync(join(dir, '00000002.ndb')),
  'is replaced': (dir) => {
    writeFileSync(join(dir, 'new'), 'another one');
    renameSync(join(dir, 'new'), join(dir, '00000002.ndb'));
  },
};
for (const [what, change] of Object.entries(harmless))
  test(`a file that ${what} while it is served: it arrives as it was when the restore began`, async (t) => {
    const source = await whileServed(t, change);
    const dir = directoryOf(t);
    await new NetworkRestore(configFor(source.port), source.options).withLocalDir(dir).execute();
    assert.equal(source.changed(), 1);
    assert.deepEqual(contentOf(dir), { '00000001.ndb': 'b'.repeat(BIG), '00000002.ndb': 'two' });
    assert.deepEqual(source.errors, []);
  });

interface ClientFault {
  readonly what: string;
  readonly pieces: readonly Buffer[];
  readonly end: boolean;
  readonly code: ErrorCode;
}
const clientFaults: readonly ClientFault[] = [
  { what: 'says nothing', pieces: [], end: false, code: 'NETWORK_TIMEOUT' },
  { what: 'says half of the magic', pieces: [MAGIC.subarray(0, 2)], end: false, code: 'NETWORK_TIMEOUT' },
  { what: 'says half of the magic and goes', pieces: [MAGIC.subarray(0, 2)], end: true, code: 'NETWORK_FAILED' },
  { what: 'goes at once', pieces: [], end: true, code: 'CHANNEL_CLOSED' },
  { what: 'says something else', pieces: [Buffer.from('NRST')], end: false, code: 'PROTOCOL_ERROR' },
];
for (const { what, pieces, end, code } of clientFaults)
  test(`a client that ${what} is closed upon without a word`, async (t) => {
    const failed = Promise.withResolvers<unknown>();
    const server = new NetworkRestoreServer(directoryOf(t, FILES), { requestTimeoutMs: 100, onError: failed.resolve });
    t.after(() => server.stop());
    const address = await server.start('127.0.0.1:0');
    const socket = connect(Number(address.split(':')[1]), '127.0.0.1');
    const got: Buffer[] = [];
    socket.on('data', (chunk: Buffer) => got.push(chunk)).on('error', () => {});
    for (const piece of pieces) socket.write(piece);
    if (end) socket.end();
    await new Promise<void>((resolve) => socket.on('close', () => resolve()));
    const error = await failed.promise;
    assert.ok(isNostosError(error, code), String(error));
    assert.deepEqual(Buffer.concat(got), Buffer.alloc(0));
    // It serves the next one.
    assert.deepEqual(await exchange(address, [MAGIC]), bodyOf(FILES));
  });

test('a client that reads nothing is given up', async (t) => {
  const failed = Promise.withResolvers<unknown>();
  const dir = directoryOf(t, { '00000001.ndb': 'b'.repeat(BIG) });
  const server = new NetworkRestoreServer(dir, { writeTimeoutMs: 150, onError: failed.resolve });
  t.after(() => server.stop());
  const address = await server.start('127.0.0.1:0');
  const socket = connect(Number(address.split(':')[1]), '127.0.0.1');
  t.after(() => socket.destroy());
  socket.on('error', () => {}).write(MAGIC);
  assert.ok(isNostosError(await failed.promise, 'NETWORK_TIMEOUT'));
});

test('no more sessions and frames at a time than the limits', async (t) => {
  const errors: unknown[] = [];
  const refused = Promise.withResolvers<void>();
  const onError = (error: unknown): void => {
    errors.push(error);
    refused.resolve();
  };
  const dir = directoryOf(t, { '00000001.ndb': 'b'.repeat(BIG) });
  const server = new NetworkRestoreServer(dir, { sessionsMax: 1, framesMax: 0, onError });
  const dispatcher = new TcpServiceDispatcher('127.0.0.1:0', { onError });
  dispatcher.register(server);
  t.after(async () => {
    await server.stop();
    await dispatcher.stop();
  });
  const raw = Number((await server.start('127.0.0.1:0')).split(':')[1]);
  const first = connect(raw, '127.0.0.1');
  t.after(() => first.destroy());
  first.write(MAGIC);
  await new Promise<void>((resolve) => first.once('data', () => resolve(void first.pause())));
  assert.ok(isNostosError(await failingRestore(t, 'raw', raw), 'NETWORK_FAILED'));
  await refused.promise;
  assert.ok(isNostosError(errors[0], 'QUEUE_FULL'), String(errors[0]));
  const port = Number((await dispatcher.start()).split(':')[1]);
  assert.ok(isNostosError(await failingRestore(t, 'dispatcher', port), 'NETWORK_FAILED'));
  assert.ok(isNostosError(errors[1], 'QUEUE_FULL'), String(errors[1]));
});

test('a directory that cannot be read: the server says so on its side, the client fails', async (t) => {
  const errors: unknown[] = [];
  const server = new NetworkRestoreServer(join(directoryOf(t), 'nowhere'), { onError: (error) => errors.push(error) });
  t.after(() => server.stop());
  const port = Number((await server.start('127.0.0.1:0')).split(':')[1]);
  assert.ok(isNostosError(await failingRestore(t, 'raw', port), 'NETWORK_FAILED'));
  assert.ok(isNostosError(errors[0], 'IO_FAILED'), String(errors[0]));
});
