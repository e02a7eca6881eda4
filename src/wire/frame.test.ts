/** The pure parts: bytes that come in any pieces become frames, addresses and names. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { failsWith } from '../testing/channel-compliance.ts';
import { formatAddress, isLoopbackIp, parseAddress } from './address.ts';
import { ByteQueue } from './byte-queue.ts';
import { encodeFrameHeader, FrameDecoder } from './frame.ts';
import { encodePreamble, PreambleDecoder } from './preamble.ts';
import { parseIdentity } from './tls-identity.ts';

function wire(payload: Uint8Array): Buffer {
  return Buffer.concat([encodeFrameHeader(payload.length), payload]);
}

test('a frame is its length, little-endian, and its payload', () => {
  assert.equal(wire(Buffer.from('TSRN')).toString('hex'), '040000005453524e');
  assert.equal(Buffer.from(encodeFrameHeader(67_108_864)).toString('hex'), '00000004');
});

/** Cuts bytes into pieces of these sizes, over and over. */
function* pieces(bytes: Uint8Array, sizes: readonly number[]): Generator<Uint8Array> {
  for (let offset = 0, index = 0; offset < bytes.length; index++) {
    const size = sizes[index % sizes.length]!;
    yield bytes.subarray(offset, offset + size);
    offset += size;
  }
}

test('frames come out as they went in, however they were cut, with or without memory of the caller', () => {
  const payloads = fc.array(fc.uint8Array({ maxLength: 40_000 }), { maxLength: 8 });
  const sizes = fc.array(fc.integer({ min: 1, max: 70_000 }), { minLength: 1, maxLength: 5 });
  fc.assert(
    fc.property(payloads, sizes, fc.integer({ min: 0, max: 30_000 }), fc.boolean(), (sent, cuts, room, disown) => {
      const queue = new ByteQueue();
      const decoder = new FrameDecoder(40_000);
      const got: Buffer[] = [];
      const into = room === 0 ? undefined : new Uint8Array(room);
      for (const piece of pieces(Buffer.concat(sent.map(wire)), cuts)) {
        const reused = piece.slice();
        queue.push(reused);
        reused.fill(0xee);
        for (let payload; (payload = decoder.next(queue, into)) !== undefined;) got.push(Buffer.from(payload));
        if (disown) queue.own();
        if (disown) into?.fill(0xdd);
      }
      assert.equal(queue.bytes, 0);
      assert.deepEqual(
        got,
        sent.map((payload) => Buffer.from(payload)),
      );
    }),
    { numRuns: 200 },
  );
});

test('a take that is not complete may be followed by one of another size', () => {
  const queue = new ByteQueue();
  queue.push(Uint8Array.of(1, 2, 3));
  assert.equal(queue.take(5), undefined);
  assert.equal(queue.bytes, 3);
  queue.push(Uint8Array.of(4));
  assert.equal(queue.takeU32(), 0x04030201);
  queue.push(Uint8Array.of(5, 6));
  assert.equal(queue.takeU32(), undefined);
  assert.deepEqual([...queue.take(1)!], [5]);
  assert.deepEqual([...queue.take(1)!], [6]);
  assert.equal(queue.bytes, 0);
});

test('a length that was announced costs no memory before its bytes come', () => {
  const before = process.memoryUsage().arrayBuffers;
  const queues = Array.from({ length: 64 }, () => {
    const queue = new ByteQueue();
    const decoder = new FrameDecoder(2 ** 32);
    queue.push(encodeFrameHeader(2 ** 32 - 1));
    queue.push(Uint8Array.of(1));
    assert.equal(decoder.next(queue), undefined);
    return queue;
  });
  assert.ok(process.memoryUsage().arrayBuffers - before <= queues.length * 1.1 * 1024 * 1024);
});

test('bytes that drip in cost what they are', () => {
  const queue = new ByteQueue();
  const before = process.memoryUsage().arrayBuffers;
  for (let count = 0; count < 100_000; count++) queue.push(Uint8Array.of(count));
  assert.ok(process.memoryUsage().arrayBuffers - before < 1024 * 1024);
  assert.equal(queue.take(100_000)![99_999], 99_999 & 0xff);
});

const addresses: readonly (readonly [string, string | null, number])[] = [
  ['127.0.0.1:80', '127.0.0.1', 80],
  ['db-1.example.com:65535', 'db-1.example.com', 65_535],
  ['[::1]:0', '::1', 0],
  ['[fe80::1%eth0]:1', 'fe80::1%eth0', 1],
  ['::1:80', null, 0],
  ['[::1]', null, 0],
  ['[127.0.0.1]:80', null, 0],
  ['localhost', null, 0],
  ['localhost:', null, 0],
  [':80', null, 0],
  ['a:65536', null, 0],
  ['a:-1', null, 0],
  ['a:8 0', null, 0],
  ['a b:80', null, 0],
  ['http://a:80', null, 0],
  ['user@a:80', null, 0],
  ['a:1:2', null, 0],
  ['', null, 0],
];

test('addresses are host:port or [IPv6]:port', () => {
  for (const [text, host, port] of addresses)
    if (host === null) assert.throws(() => parseAddress(text), failsWith('INVALID_ARGUMENT'), text);
    else {
      assert.deepEqual(parseAddress(text), { host, port });
      assert.equal(formatAddress({ host, port }), text);
    }
});

test('loopback is 127/8 and ::1, nothing that looks like it', () => {
  for (const ip of ['127.0.0.1', '127.9.8.7', '::1', '::ffff:127.0.0.1']) assert.ok(isLoopbackIp(ip), ip);
  for (const ip of ['0.0.0.0', '::', '10.0.0.1', '128.0.0.1', '127.0.0.1.example.com', '::ffff:10.0.0.1', 'localhost'])
    assert.equal(isLoopbackIp(ip), false, ip);
});

test('a preamble is the length of a name and the name', () => {
  assert.equal(Buffer.from(encodePreamble('RESTORE')).toString('latin1'), '\u0007\0\0\0RESTORE');
  for (const name of ['', 'x'.repeat(257), 'é'.repeat(129), '\ud800'])
    assert.throws(() => encodePreamble(name), failsWith('INVALID_ARGUMENT'));
  for (const name of ['x'.repeat(256), 'é'.repeat(128), '\ufeffmark', 'a\0b']) {
    const queue = new ByteQueue();
    queue.push(encodePreamble(name));
    assert.equal(new PreambleDecoder().next(queue), name);
  }
});

const NODE = '1'.repeat(32);
const CLUSTER = '2'.repeat(32);
const identities: readonly (readonly [string | undefined, string | null, string?])[] = [
  [`URI:nostos:node:${NODE}`, NODE],
  [`DNS:a, URI:nostos:cluster:${CLUSTER}, URI:nostos:node:${NODE}, IP Address:10.0.0.1`, NODE, CLUSTER],
  [undefined, null],
  ['', null],
  ['DNS:a', null],
  [`URI:nostos:node:${NODE}, URI:nostos:node:${CLUSTER}`, null],
  [`URI:nostos:node:${NODE}0`, null],
  [`URI:nostos:node:${NODE.slice(1)}`, null],
  [`URI:nostos:node:${NODE}, URI:nostos:cluster:x`, null],
  [`URI:nostos:node:${NODE}, URI:nostos:cluster:${CLUSTER}, URI:nostos:cluster:${CLUSTER}`, null],
  [`DNS:nostos:node:${NODE}`, null],
  [`DNS:"x, URI:nostos:node:${NODE}, y"`, null],
];

test('an identity is exactly one node id and at most one cluster', () => {
  for (const [names, node, cluster] of identities)
    assert.deepEqual(parseIdentity(names), node === null ? undefined : { node, cluster }, String(names));
});

test('whatever bytes and texts come, parsers answer or fail by name', () => {
  const onlyFailsWith = (code: 'PROTOCOL_ERROR' | 'INVALID_ARGUMENT', parse: () => unknown): void => {
    try {
      parse();
    } catch (error) {
      failsWith(code)(error);
    }
  };
  const few = fc.uint8Array({ maxLength: 40 });
  fc.assert(
    fc.property(few, fc.integer({ min: 0, max: 300 }), fc.string(), (bytes, length, text) => {
      for (const input of [bytes, Buffer.concat([encodeFrameHeader(length), bytes])]) {
        const queue = new ByteQueue();
        queue.push(input);
        const frames = new FrameDecoder(100);
        onlyFailsWith('PROTOCOL_ERROR', () => {
          while (frames.next(queue) !== undefined);
        });
        const preambles = new ByteQueue();
        preambles.push(input);
        onlyFailsWith('PROTOCOL_ERROR', () => new PreambleDecoder().next(preambles));
      }
      onlyFailsWith('INVALID_ARGUMENT', () => assert.equal(formatAddress(parseAddress(`${text}:80`)), `${text}:80`));
      onlyFailsWith('INVALID_ARGUMENT', () => encodePreamble(text));
      parseIdentity(text);
    }),
    { numRuns: 500 },
  );
});
