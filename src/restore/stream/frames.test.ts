import assert from 'node:assert/strict';
import { test } from 'node:test';
import { encode } from '@msgpack/msgpack';
import { isNostosError } from '../../base/errors.ts';
import { seededRandom } from '../../base/random.ts';
import { encodePatch, hashesFrame, parseHashes, parsePatch } from './frames.ts';
import { encodeMessage, errorMessage, errorOf, parseAnswer, parseRequest, type AnswerOf } from './messages.ts';
import { PAGE_BYTES, hashPage, hashPages } from './pages.ts';

const hex = (pieces: readonly Uint8Array[]): string => Buffer.concat(pieces).toString('hex');
const bytesOf = (pieces: readonly Uint8Array[]): Uint8Array => new Uint8Array(Buffer.concat(pieces));

test('golden bytes of a data frame', () => {
  const patch = {
    coveredTo: 12_288,
    prefixHash: Uint8Array.from({ length: 16 }, (_, index) => index),
    runs: [{ offset: 8192, length: 3 }],
    dataBytes: 3,
    data: Buffer.from('abc'),
    compressed: false,
  };
  const golden =
    '02' +
    '00' +
    '0100' +
    '03000000' +
    '0030000000000000' +
    '000102030405060708090a0b0c0d0e0f' + // header
    '0020000000000000' +
    '03000000' + // its run
    '616263';
  assert.equal(hex(encodePatch(patch)), golden);
  const parsed = parsePatch(Buffer.from(golden, 'hex'));
  assert.deepEqual({ ...parsed, data: Buffer.from(parsed.data), prefixHash: new Uint8Array(parsed.prefixHash) }, patch);
});

test('golden bytes of hashes and messages', () => {
  const page = Buffer.alloc(PAGE_BYTES, 'nostos');
  const frame = hashesFrame();
  const end = hashPages(Buffer.concat([page, page.subarray(0, 100)]), frame.bytes, frame.start);
  const bytes = frame.bytes.subarray(0, end);
  assert.equal(bytes.toString('hex'), '01' + GOLDEN_PAGE_HASH + GOLDEN_PART_HASH);
  const hashes = parseHashes(bytes);
  assert.deepEqual([hashes.count, hashes.at(0), hashes.at(1)], [2, hashPage(page), hashPage(page.subarray(0, 100))]);
  assert.equal(hex(encodeMessage({ kind: 'ping' })), '0081a46b696e64a470696e67');
  assert.equal(
    hex(encodeMessage({ kind: 'fetch', name: 'tenant/7', base: 4096 })),
    '0083a46b696e64a56665746368a46e616d65a874656e616e742f37a462617365cd1000',
  );
});

const GOLDEN_PAGE_HASH = 'bdaafa7206b2cfd7';
const GOLDEN_PART_HASH = 'cd06fb649bdb9b06';

const header = (change: (bytes: Buffer) => void, data = 'abc'): Uint8Array => {
  const run = { offset: 0, length: 3 };
  const patch = { coveredTo: 3, prefixHash: new Uint8Array(16), runs: [run], dataBytes: 3, compressed: false };
  const bytes = Buffer.from(bytesOf(encodePatch({ ...patch, data: Buffer.from(data) })));
  change(bytes);
  return bytes;
};

const WRONG_PATCHES: Readonly<Record<string, Uint8Array>> = {
  'shorter than a header': Uint8Array.of(2, 0, 0),
  'unknown flags': header((bytes) => bytes.writeUInt8(2, 1)),
  'more runs than bytes': header((bytes) => bytes.writeUInt16LE(0xffff, 2)),
  'data near 4 GiB': header((bytes) => bytes.writeUInt32LE(0xffffffff, 4)),
  'covered up to 2^64 - 1': header((bytes) => bytes.fill(0xff, 8, 16)),
  'a run at 2^64 - 1': header((bytes) => bytes.fill(0xff, 32, 40)),
  'a run of no bytes': header((bytes) => bytes.writeUInt32LE(0, 40)),
  'a run beyond what is covered': header((bytes) => bytes.writeUInt8(2, 8)),
  'a run off a page': header((bytes) => bytes.writeUInt8(1, 32)),
  'less data than runs': header(() => undefined, 'ab'),
  'more data than runs': header(() => undefined, 'abcd'),
};

for (const [what, frame] of Object.entries(WRONG_PATCHES))
  test(`a data frame with ${what} is refused`, () => {
    assert.throws(() => parsePatch(frame), { code: 'PROTOCOL_ERROR' });
  });

const WRONG_MESSAGES: Readonly<Record<string, unknown>> = {
  'no map': 7,
  'an unknown kind': { kind: 'please' },
  'a size of 2^64': { kind: 'opened', bytes: 2 ** 64, attributes: {} },
  'a size below 0': { kind: 'opened', bytes: -1, attributes: {} },
  'a size that is no whole number': { kind: 'opened', bytes: 0.5, attributes: {} },
  'more items than a message may have': { kind: 'items', items: Array.from({ length: 1001 }, () => ['file/a', 1]) },
  'a name that climbs': { kind: 'items', items: [['file/../a', 1]] },
  'a name with a separator': { kind: 'items', items: [['file/a/b', 1]] },
  'a name with NUL': { kind: 'items', items: [['file/a\0', 1]] },
  'a name that is hidden': { kind: 'items', items: [['file/.a', 1]] },
  'a name of 64 KiB': { kind: 'items', items: [[`file/${'a'.repeat(65_536)}`, 1]] },
  'an absolute name': { kind: 'items', items: [['/etc/passwd', 1]] },
  'a digest of 31 bytes': { kind: 'done', digest: new Uint8Array(31) },
  'attributes that are nested': { kind: 'opened', bytes: 1, attributes: { a: { b: 1 } } },
  'too many attributes': {
    kind: 'opened',
    bytes: 1,
    attributes: Object.fromEntries(Array.from({ length: 33 }, (_, index) => [`a${index}`, 1])),
  },
};

for (const [what, message] of Object.entries(WRONG_MESSAGES))
  test(`an answer with ${what} is refused`, () => {
    const frame = Buffer.concat([Uint8Array.of(0), encode(message)]);
    assert.throws(() => parseAnswer(frame), { code: 'PROTOCOL_ERROR' });
  });

test('no bytes whatever make a parser fail otherwise than by PROTOCOL_ERROR', () => {
  const random = seededRandom(11);
  const good = [
    bytesOf(encodeMessage({ kind: 'begin', rateBytesPerSecond: null, compression: 'auto' })),
    bytesOf(encodeMessage({ kind: 'items', items: [['file/a', 5]] })),
    header(() => undefined),
  ];
  let refused = 0;
  for (let round = 0; round < 6_000; round += 1) {
    const bytes = round % 2 === 0 ? random.bytes(random.below(200)) : good[random.below(3)]!.slice();
    for (let flips = random.below(4); flips > 0 && bytes.length > 0; flips -= 1)
      bytes[random.below(bytes.length)] = random.below(256);
    for (const parse of [parsePatch, parseHashes, parseRequest, parseAnswer])
      try {
        parse(bytes);
      } catch (error) {
        refused += 1;
        assert.ok(isNostosError(error, 'PROTOCOL_ERROR'), String((error as Error).stack));
      }
  }
  assert.ok(refused > 12_000, `${refused} were refused`);
});

test('an error arrives with its code and its numbers, and with nothing nested or endless', () => {
  const sent = {
    code: 'RESERVATION_EXPIRED',
    message: 'x'.repeat(10_000),
    retry: 'safe',
    details: { heldBytes: 7, item: 'tenant/1', nested: { secret: 1 }, long: 'y'.repeat(5_000) },
  } as const;
  const received = errorOf(parseAnswer(bytesOf(encodeMessage(errorMessage(sent)))) as AnswerOf<'error'>);
  assert.equal(received.code, 'RESERVATION_EXPIRED');
  assert.equal(received.message.length, 4096);
  assert.deepEqual(received.details, { heldBytes: 7, item: 'tenant/1' });
  const foreign = { kind: 'error', error: { code: 'toString', message: 'm', details: {} } } as const;
  assert.equal(errorOf(foreign).code, 'INTERNAL');
});
