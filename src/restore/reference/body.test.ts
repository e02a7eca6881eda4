import assert from 'node:assert/strict';
import { test } from 'node:test';
import { crc32 } from 'node:zlib';
import * as fc from 'fast-check';
import { isNostosError } from '../../base/errors.ts';
import type { ErrorCode } from '../../base/errors.ts';
import type { BodyOptions } from './body.ts';
import { BodyParser, bodyBytes, encodeCount, encodeCrc, encodeFileHeader, encodeMagic } from './body.ts';
import { nameProblem } from './file-name.ts';
import { RESTORE_LIMITS } from './types.ts';

const OPTIONS: BodyOptions = { ...RESTORE_LIMITS, trailer: 'crc32', names: 'reference' };

interface File {
  readonly name: string;
  readonly content: Uint8Array;
}

function encode(files: readonly File[], trailer: 'crc32' | 'none' = 'crc32'): Buffer {
  const parts = files.flatMap(({ name, content }) => [
    encodeFileHeader(name, content.length),
    content,
    ...(trailer === 'crc32' ? [encodeCrc(crc32(content))] : []),
  ]);
  return Buffer.concat([encodeCount(files.length), ...parts]);
}

/** What the parser makes of these pieces. */
function parse(pieces: Iterable<Uint8Array>, options: BodyOptions = OPTIONS): File[] {
  const parser = new BodyParser(options);
  const files: { name: string; content: Buffer; bytes: number }[] = [];
  let ended = 0;
  for (const piece of pieces)
    for (const event of parser.push(piece)) {
      const last = files.at(-1);
      if (event.kind === 'start') assert.equal(files.length, 0);
      else if (event.kind === 'file') files.push({ name: event.name, bytes: event.bytes, content: Buffer.alloc(0) });
      else if (event.kind === 'data') last!.content = Buffer.concat([last!.content, event.bytes]);
      else if (event.kind === 'file-end') assert.equal(last!.content.length, last!.bytes);
      else ended += 1;
    }
  parser.finish('the source');
  assert.equal(ended, 1);
  return files.map(({ name, content }) => ({ name, content }));
}

const hex = (text: string): Buffer => Buffer.from(text.replaceAll(/\s/g, ''), 'hex');
const GOLDEN_ONE = hex(`01 00 00 00  0C 00 ${Buffer.from('00000001.ndb').toString('hex')}
  03 00 00 00 00 00 00 00  61 62 63  C2 41 24 35`);
const ONE = [{ name: '00000001.ndb', content: Buffer.from('abc') }];

test('the bytes of the specification, both ways', () => {
  assert.deepEqual(encodeMagic(), hex('54 53 52 4E'));
  assert.deepEqual(encode(ONE), GOLDEN_ONE);
  assert.equal(GOLDEN_ONE.length, 0x21);
  assert.equal(bodyBytes([{ name: '00000001.ndb', bytes: 3 }], 'crc32'), 0x21);
  assert.deepEqual(parse([GOLDEN_ONE]), ONE);
  assert.deepEqual(encode([]), hex('00 00 00 00'));
  assert.deepEqual(parse([hex('00 00 00 00')]), []);
});

test('without the trailer of reference 4.1.0', () => {
  const old = GOLDEN_ONE.subarray(0, -4);
  assert.deepEqual(encode(ONE, 'none'), old);
  assert.equal(bodyBytes([{ name: '00000001.ndb', bytes: 3 }], 'none'), old.length);
  assert.deepEqual(parse([old], { ...OPTIONS, trailer: 'none' }), ONE);
});

test('split at every byte, and byte by byte', () => {
  for (let at = 0; at <= GOLDEN_ONE.length; at++)
    assert.deepEqual(parse([GOLDEN_ONE.subarray(0, at), GOLDEN_ONE.subarray(at)]), ONE, `split at ${at}`);
  assert.deepEqual(parse([...GOLDEN_ONE].map((byte) => Uint8Array.of(byte))), ONE);
});

test('any files in any pieces come out as they went in', () => {
  const name = fc.string({ unit: 'grapheme', minLength: 1, maxLength: 60 }).filter((one) => {
    return one.isWellFormed() && nameProblem(one, 'reference') === undefined;
  });
  const content = fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes));
  const file = fc.record({ name, content }, { noNullPrototype: true });
  const files = fc.uniqueArray(file, { selector: (one) => one.name, maxLength: 6 });
  fc.assert(
    fc.property(
      files,
      fc.constantFrom('crc32' as const, 'none' as const),
      fc.integer({ min: 1, max: 97 }),
      (all, trailer, step) => {
        const bytes = encode(all, trailer);
        assert.equal(
          bytes.length,
          bodyBytes(
            all.map((one) => ({ name: one.name, bytes: one.content.length })),
            trailer,
          ),
        );
        const pieces = Array.from({ length: Math.ceil(bytes.length / step) }, (_, i) =>
          bytes.subarray(i * step, (i + 1) * step),
        );
        assert.deepEqual(parse(pieces, { ...OPTIONS, trailer, bodyBytes: bytes.length }), all);
      },
    ),
    { numRuns: 200, seed: 7 },
  );
});

test('any bytes are files or a typed error, and never more than they are', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), fc.integer({ min: 0, max: 3 }), (noise, count) => {
      const bytes = Buffer.concat([encodeCount(count), noise]);
      try {
        const total = parse([bytes]).reduce((sum, file) => sum + file.content.length, 0);
        assert.ok(total <= bytes.length);
      } catch (error) {
        assert.ok(isNostosError(error), String(error));
      }
    }),
    { numRuns: 500, seed: 11 },
  );
});

const withSize = (size: bigint): Buffer => {
  const header = Buffer.from(encodeFileHeader('a.ndb', 0));
  header.writeBigUInt64LE(size, header.length - 8);
  return Buffer.concat([encodeCount(1), header]);
};
const withName = (name: Uint8Array): Buffer => {
  const length = Buffer.alloc(2);
  length.writeUInt16LE(name.length);
  return Buffer.concat([encodeCount(1), length, name, Buffer.alloc(8), Buffer.alloc(4)]);
};
const named = (name: string): Buffer => withName(Buffer.from(name));
const wrongCrc = Buffer.from(GOLDEN_ONE);
wrongCrc[wrongCrc.length - 1]! ^= 0x80;

interface Refusal {
  readonly what: string;
  readonly bytes: Uint8Array;
  readonly code: ErrorCode;
  readonly message: RegExp;
  readonly options?: Partial<BodyOptions>;
}

const refusals: readonly Refusal[] = [
  {
    what: 'a count near 2^32',
    bytes: encodeCount(0xffff_ffff),
    code: 'RESTORE_TOO_LARGE',
    message: /4294967295 files/,
  },
  {
    what: 'a count that its frame cannot hold',
    bytes: encodeCount(3),
    options: { bodyBytes: 4 + 2 * 15 },
    code: 'PROTOCOL_ERROR',
    message: /3 files in a frame of 34 bytes/,
  },
  {
    what: 'a size near 2^64',
    bytes: withSize(2n ** 64n - 1n),
    code: 'RESTORE_TOO_LARGE',
    message: /18446744073709551615 bytes/,
  },
  { what: 'a size of 2^53', bytes: withSize(2n ** 53n), code: 'RESTORE_TOO_LARGE', message: /9007199254740992/ },
  {
    what: 'a size near 2^64 in a frame',
    bytes: withSize(2n ** 64n - 9n),
    options: { bodyBytes: 40 },
    code: 'RESTORE_TOO_LARGE',
    message: /18446744073709551607/,
  },
  {
    what: 'a size beyond its frame',
    bytes: withSize(18n),
    options: { bodyBytes: 40 },
    code: 'PROTOCOL_ERROR',
    message: /18 bytes .* more than its frame still holds/,
  },
  {
    what: 'a size beyond the limit',
    bytes: withSize(1001n),
    options: { bytesMax: 1000 },
    code: 'RESTORE_TOO_LARGE',
    message: /1001 bytes/,
  },
  {
    what: 'a name of 64 KiB',
    bytes: withName(Buffer.alloc(65_535, 'a')),
    code: 'PROTOCOL_ERROR',
    message: /unsafe filename: its length is 65535/,
  },
  {
    what: 'a name of 256 bytes',
    bytes: withName(Buffer.alloc(256, 'a')),
    code: 'PROTOCOL_ERROR',
    message: /256 bytes/,
  },
  { what: 'an empty name', bytes: named(''), code: 'PROTOCOL_ERROR', message: /unsafe filename/ },
  { what: 'a dot', bytes: named('.'), code: 'PROTOCOL_ERROR', message: /unsafe filename/ },
  { what: 'two dots', bytes: named('..'), code: 'PROTOCOL_ERROR', message: /unsafe filename/ },
  { what: 'a leading dot', bytes: named('.nostos-restore'), code: 'PROTOCOL_ERROR', message: /begins with a dot/ },
  { what: 'a way up', bytes: named('../a.ndb'), code: 'PROTOCOL_ERROR', message: /unsafe filename/ },
  { what: 'a separator', bytes: named('a/b.ndb'), code: 'PROTOCOL_ERROR', message: /separator/ },
  { what: 'an absolute path', bytes: named('/etc/passwd'), code: 'PROTOCOL_ERROR', message: /separator/ },
  { what: 'a separator of Windows', bytes: named('a\\b.ndb'), code: 'PROTOCOL_ERROR', message: /separator/ },
  { what: 'a NUL', bytes: named('a\0.ndb'), code: 'PROTOCOL_ERROR', message: /NUL/ },
  {
    what: 'bytes that are not UTF-8',
    bytes: withName(Buffer.from('61ff2e6e6462', 'hex')),
    code: 'PROTOCOL_ERROR',
    message: /61ff2e6e6462 \(hex\) is not UTF-8/,
  },
  { what: 'the lock of the directory', bytes: named('lock'), code: 'PROTOCOL_ERROR', message: /the lock/ },
  { what: 'a journal of the lock', bytes: named('LOCK-journal'), code: 'PROTOCOL_ERROR', message: /the lock/ },
  {
    what: 'one name twice',
    bytes: Buffer.concat([encodeCount(2), encode(ONE).subarray(4), encode(ONE).subarray(4)]),
    code: 'PROTOCOL_ERROR',
    message: /00000001.ndb.*before/,
  },
  {
    what: 'another name, strictly',
    bytes: named('data.bin'),
    options: { names: 'strict' },
    code: 'PROTOCOL_ERROR',
    message: /eight lowercase hex/,
  },
  {
    what: 'capitals, strictly',
    bytes: named('0000000A.ndb'),
    options: { names: 'strict' },
    code: 'PROTOCOL_ERROR',
    message: /eight lowercase hex/,
  },
  {
    what: 'a wrong checksum',
    bytes: wrongCrc,
    code: 'RESTORE_FAILED',
    message: /"00000001.ndb" is wrong: expected b52441c2, got 352441c2/,
  },
];

for (const { what, bytes, code, message, options } of refusals)
  test(`refused: ${what}, whole and byte by byte`, () => {
    const refused = (error: unknown): boolean => {
      assert.ok(isNostosError(error, code), String(error));
      assert.match(error.message, message);
      return true;
    };
    const whole = { ...OPTIONS, ...options };
    assert.throws(() => parse([bytes], whole), refused);
    assert.throws(
      () =>
        parse(
          [...bytes].map((byte) => Uint8Array.of(byte)),
          whole,
        ),
      refused,
    );
  });

test('names that the reference accepts are accepted', () => {
  for (const name of [
    'data.bin',
    'vlsn.idx',
    'acceptor.state',
    'large.ndb',
    'a b',
    'ü.ndb',
    'lock.ndb',
    'a..b',
    'x'.repeat(255),
  ])
    assert.equal(parse([named(name)])[0]?.name, name);
});

test('cut off at every byte: an error that says where', () => {
  for (let at = 0; at < GOLDEN_ONE.length; at++)
    assert.throws(
      () => parse([GOLDEN_ONE.subarray(0, at)]),
      (error: unknown) =>
        isNostosError(error, 'NETWORK_FAILED') &&
        /ends (before the number|before file 1 of 1|in file 1 of 1)/.test(error.message),
      `at ${at}`,
    );
});

test('what follows the last file is ignored, as the reference does', () => {
  assert.deepEqual(parse([Buffer.concat([GOLDEN_ONE, Buffer.from('more')])]), ONE);
});

test('a received length costs no memory', () => {
  const parser = new BodyParser(OPTIONS);
  const before = process.memoryUsage().arrayBuffers;
  for (const _ of parser.push(withSize(2n ** 52n)));
  assert.ok(process.memoryUsage().arrayBuffers - before < 1024 * 1024);
});
