/** Damage to segments at rest: it is named, or it is a tail that may be cut; never a silent loss, never a change. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Generation, Lsn, TenantId, Term } from '../base/brands.ts';
import { HybridClock } from '../base/clock.ts';
import { isNostosError } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import { FaultyDisk } from '../testing/faulty-disk.ts';
import { VirtualClock } from '../testing/virtual-clock.ts';
import type { LogOptions } from './log.ts';
import { Log } from './log.ts';
import { RECORD_HEADER_BYTES, RecordKind } from './record.ts';
import type { RecoveryReport } from './recovery.ts';
import { SEGMENT_HEADER_BYTES } from './segment-header.ts';
import { verifyLog } from './verify.ts';

const DIR = '/log';
const GENERATION = 'feedfacefeedfacefeedfacefeedface' as Generation;
const OTHER = 'deadbeefdeadbeefdeadbeefdeadbeef' as Generation;
const PAYLOAD_BYTES = 60;
const RECORD_BYTES = RECORD_HEADER_BYTES + PAYLOAD_BYTES;
/** Six records to a segment; three segments, the last with five of them. */
const PER_SEGMENT = 6;
const LAST_LSN = 17;
const SEGMENT_BYTES_MAX = SEGMENT_HEADER_BYTES + PER_SEGMENT * RECORD_BYTES;
const OPEN_SEGMENT = `${DIR}/00000003.ndb`;

function open(disk: FaultyDisk, options: Partial<LogOptions> = {}): { log: Log; report: RecoveryReport } {
  const deps = { disk, clock: new HybridClock(new VirtualClock()) };
  const fixed = { dir: DIR, segmentBytesMax: SEGMENT_BYTES_MAX, recordBytesMax: PAYLOAD_BYTES, preallocateBytes: 512 };
  return Log.open(deps, { ...fixed, generation: GENERATION, ...options });
}

/** Records of one size, so that each offset is known; `watermarks`: whether later records name earlier ones. */
function makeLog(watermarks: boolean, generation = GENERATION): FaultyDisk {
  const disk = new FaultyDisk();
  const { log } = open(disk, { generation });
  log.startTerm(1 as Term, new Uint8Array(PAYLOAD_BYTES).fill(1));
  for (let i = 2; i <= LAST_LSN; i++) {
    log.append([{ tenant: 1 as TenantId, kind: RecordKind.changeset, payload: new Uint8Array(PAYLOAD_BYTES).fill(i) }]);
    log.sync();
    if (watermarks) log.setWatermark(log.durable.lsn);
  }
  log.close();
  return disk;
}

const offsetOf = (indexInSegment: number): number => SEGMENT_HEADER_BYTES + indexInSegment * RECORD_BYTES;

function contentOf(disk: FaultyDisk): string {
  return disk
    .list(DIR)
    .map((name) => Buffer.from(disk.bytes(`${DIR}/${name}`)).toString('hex'))
    .join();
}

function assertDamaged(disk: FaultyDisk, where: { segment: string; lsn: number }, options: Partial<LogOptions> = {}) {
  const before = contentOf(disk);
  assert.throws(
    () => open(disk, options),
    (error: unknown) => {
      assert.ok(isNostosError(error, 'LOG_DAMAGED'), String(error));
      assert.equal(error.details.segment, where.segment);
      assert.equal(error.details.lsn, where.lsn);
      assert.equal(typeof error.details.offset, 'number');
      return true;
    },
  );
  assert.equal(contentOf(disk), before, 'nothing on disk is changed');
  assert.equal(disk.openFiles, 0);
}

test('any flipped bit in a record below a watermark is damage of that record', () => {
  for (let index = 0; index < 4; index++)
    for (let at = 0; at < RECORD_BYTES; at++) {
      const disk = makeLog(true);
      disk.flip(OPEN_SEGMENT, offsetOf(index) + at, at % 8);
      assertDamaged(disk, { segment: '00000003.ndb', lsn: 13 + index });
    }
});

test('any flipped bit in the last record is a tear, reported and cut, or damage where the record was committed', () => {
  for (let at = 0; at < RECORD_BYTES; at++) {
    const disk = makeLog(true);
    disk.flip(OPEN_SEGMENT, offsetOf(4) + at, (at + 3) % 8);
    assertDamaged(disk, { segment: '00000003.ndb', lsn: LAST_LSN }, { knownWatermark: LAST_LSN as Lsn });
    const { log, report } = open(disk, { knownWatermark: (LAST_LSN - 1) as Lsn });
    assert.deepEqual([report.end.lsn, report.cutFromLsn, report.tornBytes], [LAST_LSN - 1, LAST_LSN, RECORD_BYTES]);
    assert.ok(
      disk
        .bytes(OPEN_SEGMENT)
        .subarray(offsetOf(4))
        .every((byte) => byte === 0),
    );
    log.close();
    assert.equal(open(disk).report.tornBytes, 0);
  }
});

test('any flipped bit in the header of any segment is damage', () => {
  for (const name of ['00000001.ndb', '00000002.ndb', '00000003.ndb'])
    for (let at = 0; at < SEGMENT_HEADER_BYTES; at++) {
      const disk = makeLog(false);
      disk.flip(`${DIR}/${name}`, at, at % 8);
      assert.throws(
        () => open(disk),
        (error: unknown) => isNostosError(error, 'LOG_DAMAGED') && error.details.segment === name,
        `${name} byte ${at}`,
      );
    }
});

test('any flipped bit in a sealed segment is found by reading, by scanning and by verify', async () => {
  const random = seededRandom(7);
  for (let at = SEGMENT_HEADER_BYTES; at < SEGMENT_BYTES_MAX; at += 1 + random.below(9)) {
    const disk = makeLog(true);
    disk.flip(`${DIR}/00000002.ndb`, at, at % 8);
    const lsn = 7 + Math.floor((at - SEGMENT_HEADER_BYTES) / RECORD_BYTES);
    assertDamaged(disk, { segment: '00000002.ndb', lsn }, { scanFrom: 8 as Lsn });
    const { log } = open(disk);
    const read: number[] = [];
    assert.throws(
      () => {
        for (const batch of log.read({ from: 1 as Lsn, bytesMax: 1 }))
          read.push(...batch.records.map(({ record }) => record.lsn as number));
      },
      (error: unknown) => isNostosError(error, 'LOG_DAMAGED') && error.details.lsn === lsn,
    );
    assert.equal(read.at(-1), lsn - 1);
    log.close();
    const verified = await verifyLog({ disk, dir: DIR });
    assert.deepEqual(
      verified.damages.map((damage) => [damage.segment, damage.lsn]),
      [['00000002.ndb', lsn]],
    );
    assert.equal(verified.lastLsn, LAST_LSN, 'it goes on behind the damage');
  }
});

test('a segment cut short anywhere is a tear in the open one and damage in a sealed one', () => {
  for (let size = 0; size < SEGMENT_BYTES_MAX; size += 13) {
    const sealed = makeLog(false);
    sealed.overwrite(`${DIR}/00000002.ndb`, (bytes) => bytes.subarray(0, size));
    assert.throws(
      () => open(sealed),
      (error: unknown) => isNostosError(error, 'LOG_DAMAGED'),
    );

    const disk = makeLog(false);
    disk.overwrite(OPEN_SEGMENT, (bytes) => bytes.subarray(0, size));
    assert.throws(
      () => open(disk, { knownWatermark: LAST_LSN as Lsn }).log.close(),
      (error: unknown) => size < offsetOf(5) && isNostosError(error, 'LOG_DAMAGED'),
      `${size}`,
    );
    const kept = Math.max(0, Math.min(5, Math.floor((size - SEGMENT_HEADER_BYTES) / RECORD_BYTES)));
    const { log, report } = open(disk);
    assert.equal(report.end.lsn, 12 + kept);
    log.close();
    if (size + 13 >= offsetOf(5)) break;
  }
});

test('zeros where a committed record should be are damage, although they look like the end', () => {
  const disk = makeLog(true);
  disk.overwrite(OPEN_SEGMENT, (bytes) => bytes.fill(0, offsetOf(2), offsetOf(3)));
  assertDamaged(disk, { segment: '00000003.ndb', lsn: 15 });
});

test('a missing segment is damage, wherever it was', () => {
  for (const [name, lsn] of [
    ['00000001.ndb', 1],
    ['00000002.ndb', 7],
  ] as const) {
    const disk = makeLog(true);
    disk.remove(`${DIR}/${name}`);
    assertDamaged(disk, { segment: name, lsn });
  }
  const last = makeLog(true);
  last.remove(OPEN_SEGMENT);
  assertDamaged(last, { segment: '00000002.ndb', lsn: 13 }, { knownWatermark: 16 as Lsn });
  const all = makeLog(true);
  for (const number of [1, 2, 3]) all.remove(`${DIR}/0000000${number}.ndb`);
  assertDamaged(all, { segment: '00000001.ndb', lsn: 1 });
});

test('a segment of another history, or under another name, is damage', () => {
  const foreign = makeLog(true, OTHER);
  for (const number of [1, 2, 3]) {
    const disk = makeLog(true);
    disk.overwrite(`${DIR}/0000000${number}.ndb`, () => foreign.bytes(`${DIR}/0000000${number}.ndb`));
    assert.throws(
      () => open(disk),
      (error: unknown) => isNostosError(error, 'LOG_DAMAGED'),
      `segment ${number}`,
    );
  }
  const renamed = makeLog(true);
  renamed.overwrite(`${DIR}/00000002.ndb`, () => renamed.bytes(`${DIR}/00000001.ndb`));
  assertDamaged(renamed, { segment: '00000002.ndb', lsn: 7 });
  assert.throws(
    () => open(makeLog(true), { generation: OTHER }),
    (error: unknown) => isNostosError(error, 'DIRECTORY_FOREIGN'),
  );
});

test('the tables beside the segments are made again where they are missing or damaged', () => {
  for (const name of ['sealed', 'terms'])
    for (const change of ['flip', 'remove', 'cut'] as const) {
      const disk = makeLog(true);
      if (change === 'flip') disk.flip(`${DIR}/${name}`, 30, 2);
      else if (change === 'cut') disk.overwrite(`${DIR}/${name}`, (bytes) => bytes.subarray(0, -1));
      else disk.remove(`${DIR}/${name}`);
      const { log, report } = open(disk);
      assert.deepEqual([...report.rebuilt], [name]);
      assert.deepEqual([report.end.lsn, log.terms.length, log.sealed.length], [LAST_LSN, 1, 2]);
      log.close();
    }
});

test('a term table that is lost with the records that could tell is damage', () => {
  const disk = makeLog(true);
  const { log } = open(disk);
  log.prune({ durableApplied: 16 as Lsn, watermark: log.watermark, retainBytes: 0 });
  assert.equal(log.firstLsn, 13);
  log.close();
  disk.remove(`${DIR}/terms`);
  assertDamaged(disk, { segment: 'terms', lsn: 12 });
});

test('a record of a newer format refuses to open and says so', () => {
  const disk = makeLog(true);
  disk.overwrite(OPEN_SEGMENT, (bytes) => {
    const record = Buffer.from(bytes.subarray(offsetOf(4), offsetOf(5)));
    record.writeUInt16LE(77, 50);
    record.writeUInt32LE(crcOf(record), 64);
    bytes.set(record, offsetOf(4));
    return bytes;
  });
  assert.throws(
    () => open(disk),
    (error: unknown) => isNostosError(error, 'UNSUPPORTED_FORMAT') && error.details.kind === 77,
  );
  assert.equal(disk.openFiles, 0);
});

function crcOf(record: Buffer): number {
  let crc = 0xffff_ffff;
  for (const byte of Buffer.concat([record.subarray(0, 64), record.subarray(68)])) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb8_8320 : 0);
  }
  return ~crc >>> 0;
}

test('whatever bytes stand in a segment or a table, opening answers or fails with a typed error', () => {
  const names = ['00000001.ndb', '00000002.ndb', '00000003.ndb', 'sealed', 'terms'];
  const codes = new Set<string>();
  for (let seed = 0; seed < 400; seed++) {
    const random = seededRandom(seed);
    const disk = makeLog(random.chance(0.5));
    const path = `${DIR}/${names[random.below(names.length)]}`;
    disk.overwrite(path, (bytes) => {
      const at = random.below(bytes.length);
      bytes.set(random.bytes(Math.min(1 + random.below(200), bytes.length - at)), at);
      return random.chance(0.2) ? random.bytes(random.below(500)) : bytes;
    });
    try {
      const { log } = open(disk, random.chance(0.5) ? { scanFrom: 1 as Lsn } : {});
      for (const _ of log.read({ from: log.firstLsn }));
      log.close();
      codes.add('opened');
    } catch (error) {
      assert.ok(isNostosError(error), `seed ${seed}: ${String(error)}`);
      codes.add(error.code);
    }
  }
  assert.ok(codes.has('opened') && codes.has('LOG_DAMAGED'), [...codes].join());
});
