import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { Generation, Hlc, Lsn, TenantId, Term } from '../base/brands.ts';
import { ZERO_HASH } from '../base/brands.ts';
import { isNostosError } from '../base/errors.ts';
import type { RecordFields } from './record.ts';
import { GroupEncoder, RecordKind, decodeRecord, hashRecord } from './record.ts';
import { decodePoint, encodePoint, sealedTable } from './sealed.ts';
import { decodeSegmentHeader, encodeSegmentHeader, segmentName, segmentNumber } from './segment-header.ts';
import { decodeTable, encodeTable } from './table-file.ts';
import { termTable } from './terms.ts';

const counter = fc.maxSafeNat();
const bytes = (size: number) => fc.uint8Array({ minLength: size, maxLength: size });
const generation = bytes(16).map((raw) => Buffer.from(raw).toString('hex') as Generation);
const fields = fc.record({
  term: counter.map((value) => value as Term),
  lsn: counter.map((value) => value as Lsn),
  hlc: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }).map((value) => value as Hlc),
  tenant: counter.map((value) => value as TenantId),
  kind: fc.constantFrom(...Object.values(RecordKind)),
  watermark: counter.map((value) => value as Lsn),
  payload: fc.uint8Array({ maxLength: 300 }),
});
const point = fc.record(
  { generation, term: counter, lsn: counter, hash: bytes(32) },
  { noNullPrototype: true },
) as fc.Arbitrary<never>;

function encode(record: RecordFields, of: Generation): Uint8Array {
  const encoder = new GroupEncoder();
  encoder.begin(1000);
  encoder.add(Buffer.from(of, 'hex'), record, ZERO_HASH);
  return encoder.bytes(0, encoder.length).slice();
}

test('a record decodes to what was encoded', () => {
  fc.assert(
    fc.property(fc.array(fields, { minLength: 1, maxLength: 5 }), generation, (records, of) => {
      const encoder = new GroupEncoder();
      encoder.begin(records.reduce((sum, record) => sum + 100 + record.payload.length, 0));
      let hash: Uint8Array = ZERO_HASH;
      let at = 0;
      for (const record of records) {
        const previous = hash;
        hash = encoder.add(Buffer.from(of, 'hex'), record, previous);
        const decoded = decodeRecord(encoder.bytes(at, encoder.length));
        assert.ok(typeof decoded !== 'string');
        const { bytes: whole, previousHash, payload, ...rest } = decoded;
        const { payload: given, ...expected } = record;
        assert.deepEqual(rest, { ...expected, generation: of });
        assert.deepEqual(Buffer.from(payload), Buffer.from(given));
        assert.deepEqual(Buffer.from(previousHash), Buffer.from(previous));
        assert.deepEqual(Buffer.from(hashRecord(decoded)), Buffer.from(hash));
        at += whole.length;
      }
    }),
  );
});

test('any changed byte and any missing one is noticed', () => {
  fc.assert(
    fc.property(fields, generation, fc.nat(), fc.integer({ min: 1, max: 255 }), (record, of, where, change) => {
      const good = encode(record, of);
      const bad = Uint8Array.from(good);
      const at = where % good.length;
      bad[at] = (bad[at] as number) ^ change;
      assert.ok(typeof decodeRecord(bad) === 'string');
      assert.ok(typeof decodeRecord(good.subarray(0, at)) === 'string');
    }),
  );
});

test('decoders answer any bytes with a value, a fault or a typed error', () => {
  const decoders = [
    decodeRecord,
    decodeSegmentHeader,
    (source: Uint8Array) => decodeTable(sealedTable, source),
    (source: Uint8Array) => decodeTable(termTable, source),
  ];
  const almost = fields.chain((record) =>
    fc
      .tuple(fc.constant(encode(record, '0'.repeat(32) as Generation)), fc.nat(), fc.nat(255))
      .map(([good, at, value]) => {
        good[at % good.length] = value;
        return good;
      }),
  );
  fc.assert(
    fc.property(fc.oneof(fc.uint8Array({ maxLength: 400 }), almost), (source) => {
      for (const decode of decoders)
        try {
          decode(source);
        } catch (error) {
          assert.ok(isNostosError(error), String(error));
        }
    }),
    { numRuns: 2_000 },
  );
});

test('a number beyond 2^53-1 is refused, not rounded', () => {
  for (const offset of [18, 26, 42, 56]) {
    const record = Buffer.from(encode(someRecord(), '1'.repeat(32) as Generation));
    record.writeBigUInt64LE(2n ** 53n, offset);
    record.writeUInt32LE(crc(record), 64);
    assert.throws(
      () => decodeRecord(record),
      (error: unknown) => isNostosError(error, 'UNSUPPORTED_FORMAT'),
    );
  }
});

test('a version or kind from the future is refused, and says which', () => {
  for (const [offset, value] of [
    [0, 2],
    [50, 0],
    [50, 10],
  ] as const) {
    const record = Buffer.from(encode(someRecord(), '1'.repeat(32) as Generation));
    record.writeUInt16LE(value, offset);
    record.writeUInt32LE(crc(record), 64);
    assert.throws(
      () => decodeRecord(record),
      (error: unknown) => isNostosError(error, 'UNSUPPORTED_FORMAT'),
    );
  }
});

test('segment headers and tables decode to what was encoded', () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 2 ** 32 - 1 }), point, (number, anchor) => {
      const header = decodeSegmentHeader(encodeSegmentHeader({ number, anchor }));
      assert.deepEqual(header, { number, anchor });
      assert.equal(segmentNumber(segmentName(number)), number);
      const raw = new Uint8Array(64);
      encodePoint(anchor, new DataView(raw.buffer), raw, 0);
      assert.deepEqual(decodePoint(new DataView(raw.buffer), raw, 0), anchor);
    }),
  );
  const row = fc.record(
    {
      number: fc.nat(),
      sizeBytes: counter,
      digest: bytes(32),
      anchor: point,
      last: point,
      lastHlc: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
    },
    { noNullPrototype: true },
  ) as fc.Arbitrary<never>;
  fc.assert(
    fc.property(fc.array(row, { maxLength: 5 }), fc.nat(), (rows, base) => {
      const encoded = encodeTable(sealedTable, { base, rows });
      assert.deepEqual(decodeTable(sealedTable, encoded), { base, rows });
      for (const at of [0, 9, 13, 30, encoded.length - 1])
        if (at < encoded.length)
          assert.equal(
            decodeTable(
              sealedTable,
              Uint8Array.from(encoded, (b, i) => (i === at ? b ^ 1 : b)),
            ),
            undefined,
          );
    }),
  );
});

function someRecord(): RecordFields {
  const [one, time] = [1 as never, 5n as Hlc];
  return {
    term: one,
    lsn: one,
    hlc: time,
    tenant: one,
    kind: RecordKind.noop,
    watermark: 0 as Lsn,
    payload: Buffer.from('x'),
  };
}

/** CRC-32 as the standard has it, bit by bit: the codec is not checked with itself. */
function crc(record: Buffer): number {
  let value = 0xffff_ffff;
  for (const byte of Buffer.concat([record.subarray(0, 64), record.subarray(68)])) {
    value ^= byte;
    for (let bit = 0; bit < 8; bit++) value = (value >>> 1) ^ (value & 1 ? 0xedb8_8320 : 0);
  }
  return ~value >>> 0;
}
