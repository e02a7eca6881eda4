/** The ledger of what was forgotten, on a disk that loses power, fails and is damaged. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { crc32 } from 'node:zlib';
import { toGeneration, toTenantUuid, toTerm, type Lsn } from '../base/brands.ts';
import { isNostosError, type ErrorCode } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import { FaultyDisk, PowerCut } from '../testing/faulty-disk.ts';
import { ForgetLedger, LEDGER_FILE, LEDGER_START, type LedgerEntry, type LedgerPoint } from './ledger.ts';

const DIR = '/log';
const PATH = `${DIR}/${LEDGER_FILE}`;
const UUIDS = ['aa', 'bb', 'cc'].map((byte) => toTenantUuid(byte.repeat(16)));
const GENERATION = toGeneration('0a'.repeat(16));

function entry(lsn: number, { tenant = 0, keys = 1 }: { tenant?: number; keys?: number } = {}): LedgerEntry {
  return {
    uuid: UUIDS[tenant]!,
    position: { generation: GENERATION, term: toTerm(1 + Math.floor(lsn / 10)), lsn: lsn as Lsn },
    atMs: 1_000 + lsn,
    hashKey: new Uint8Array(32).fill(tenant + 1),
    keys: Array.from({ length: keys }, (_, i) => ({ table: `t\u00e4ble ${i}`, hash: new Uint8Array(16).fill(lsn) })),
  };
}

function newDisk(): FaultyDisk {
  const disk = new FaultyDisk({ directories: 'synced' });
  disk.makeDirectory(DIR);
  disk.syncDirectory('/');
  return disk;
}

const all = (disk: FaultyDisk): LedgerEntry[] => [...ForgetLedger.open(disk, DIR).entries()];

function failsWith(run: () => unknown, code: ErrorCode): void {
  assert.throws(run, (error) => isNostosError(error, code) || assert.fail(`${code}, not ${String(error)}`));
}

function put(disk: FaultyDisk, bytes: Uint8Array): void {
  const file = disk.open(PATH, 'create');
  file.write(bytes, 0);
  file.sync();
  file.close();
}

test('what is added is there after opening it again, once; a tenant keeps its hash key and its time rises', () => {
  const disk = newDisk();
  const ledger = ForgetLedger.open(disk, DIR);
  const minted = ledger.hashKeyOf(UUIDS[2]!);
  assert.equal(disk.exists(PATH), false, 'nothing was forgotten yet');
  ledger.add([entry(3), entry(4, { tenant: 1, keys: 3 })]);
  ledger.add([entry(3), entry(4, { tenant: 1 }), entry(5)]);
  ledger.add([]);
  const wanted = [entry(3), entry(4, { tenant: 1, keys: 3 }), entry(5)];
  assert.deepEqual([...ledger.entries()], wanted);
  const again = ForgetLedger.open(disk, DIR);
  assert.deepEqual([...again.entries()], wanted);
  assert.deepEqual(again.end, ledger.end);
  assert.deepEqual(again.hashKeyOf(UUIDS[1]!), new Uint8Array(32).fill(2));
  assert.equal(again.timeFor(UUIDS[0]!, 7), 1_006);
  assert.equal(again.timeFor(UUIDS[0]!, 9_000), 9_000);
  assert.deepEqual(ledger.hashKeyOf(UUIDS[2]!), minted);
  ledger.add([entry(9, { tenant: 2 })]);
  assert.deepEqual(ledger.hashKeyOf(UUIDS[2]!), new Uint8Array(32).fill(3), 'the one of the log counts');
  assert.equal(disk.openFiles, 0);
});

test('reading goes on from any point between frames, and from none of another ledger', () => {
  const disk = newDisk();
  const ledger = ForgetLedger.open(disk, DIR);
  for (let lsn = 1; lsn <= 20; lsn += 1) ledger.add([entry(lsn)]);
  const points: LedgerPoint[] = [LEDGER_START, ...[...ledger.pages()].map(({ next }) => next)];
  for (const [index, point] of points.entries()) {
    assert.ok(ledger.isPoint(point));
    const rest = [...ledger.pages(point)].flatMap(({ entries }) => entries.map(({ position }) => position.lsn));
    assert.deepEqual(
      rest,
      Array.from({ length: 20 - index }, (_, i) => index + 1 + i),
    );
    assert.ok(!ledger.isPoint({ ...point, crc: point.crc ^ 1 }));
    assert.ok(!ledger.isPoint({ ...point, offset: point.offset + 1 }));
  }
  const other = newDisk();
  ForgetLedger.open(other, DIR).add([entry(2)]);
  assert.ok(!ForgetLedger.open(other, DIR).isPoint(ledger.end));
});

test('a power cut at any step keeps everything that was added, and tears what was not', () => {
  const work = (disk: FaultyDisk, added: (lsn: number) => void): void => {
    const ledger = ForgetLedger.open(disk, DIR);
    for (let lsn = 1; lsn <= 4; lsn += 1) {
      ledger.add([entry(lsn, { keys: 90 })]); // over several sectors
      added(lsn);
    }
  };
  const whole = newDisk();
  const before = whole.trace.length;
  work(whole, () => {});
  const seen = { cut: 0, torn: 0, kept: 0 };
  for (let atStep = before; atStep < whole.trace.length; atStep += 1) {
    for (let seed = 0; seed < 24; seed += 1) {
      const disk = newDisk();
      disk.inject({ atStep, kind: 'power' });
      let last = 0;
      assert.throws(
        () => work(disk, (lsn) => (last = lsn)),
        (error) => error instanceof PowerCut,
      );
      assert.equal(disk.fired.length, 1);
      const after = disk.crash(seededRandom(1_000 * atStep + seed));
      const size = after.exists(PATH) ? after.size(PATH) : 0;
      const found = all(after).map(({ position }) => position.lsn as number);
      assert.ok(
        found.length === last || found.length === last + 1,
        `step ${atStep}, seed ${seed}: ${found.length} of ${last}`,
      );
      assert.deepEqual(
        found,
        Array.from({ length: found.length }, (_, i) => i + 1),
      );
      seen.cut += 1;
      if (after.exists(PATH) && after.size(PATH) < size) seen.torn += 1;
      if (found.length > last) seen.kept += 1;
      const ledger = ForgetLedger.open(after, DIR);
      for (let lsn = 1; lsn <= 5; lsn += 1) ledger.add([entry(lsn, { keys: 90 })]);
      assert.equal(all(after).length, 5);
    }
  }
  assert.ok(seen.cut > 60 && seen.torn > 3 && seen.kept > 0, JSON.stringify(seen));
});

test('after a write or sync that failed the next append leaves nothing out, whatever a power cut then takes', () => {
  const whole = newDisk();
  const ledger = ForgetLedger.open(whole, DIR);
  ledger.add([entry(1)]);
  const before = whole.trace.length;
  ledger.add([entry(2)]);
  let struck = 0;
  for (const kind of ['EIO', 'ENOSPC'] as const)
    for (let atStep = before; atStep < whole.trace.length; atStep += 1)
      for (let seed = 0; seed < 12; seed += 1) {
        const disk = newDisk();
        const failing = ForgetLedger.open(disk, DIR);
        failing.add([entry(1)]);
        disk.inject({ atStep, kind });
        try {
          failing.add([entry(2)]);
        } catch (error) {
          assert.ok(isNostosError(error, 'IO_FAILED') || isNostosError(error, 'DISK_FULL'));
        }
        if (disk.fired.length === 0) continue; // this step cannot fail like that
        struck += 1;
        assert.ok(!failing.has(entry(2)), 'what was not kept is not said to be');
        disk.inject(undefined);
        failing.add([entry(2), entry(3)]);
        assert.deepEqual(
          all(disk.crash(seededRandom(1_000 * atStep + seed))).map(({ position }) => position.lsn as number),
          [1, 2, 3],
          `${kind} at ${atStep}, seed ${seed}`,
        );
      }
  assert.ok(struck >= 12, `${struck} faults struck`);
});

test('every flipped byte but in the last frame is damage, and there it is a tear; no truncation is more than one', () => {
  const disk = newDisk();
  const ledger = ForgetLedger.open(disk, DIR);
  let lastAt = 0;
  for (let lsn = 1; lsn <= 4; lsn += 1) {
    lastAt = ledger.end.offset;
    ledger.add([entry(lsn)]);
  }
  const bytes = disk.bytes(PATH);
  for (let at = 0; at < bytes.length; at += 1) {
    const flipped = Uint8Array.from(bytes);
    flipped[at]! ^= 0x10;
    put(disk, flipped);
    if (at < lastAt) failsWith(() => all(disk), 'LOG_DAMAGED');
    else assert.equal(all(disk).length, 3, `flipped at ${at}`);
  }
  for (let size = LEDGER_START.offset; size < bytes.length; size += 1) {
    put(disk, bytes.subarray(0, size));
    const found = all(disk);
    assert.deepEqual(
      found,
      [1, 2, 3, 4].slice(0, found.length).map((lsn) => entry(lsn)),
    );
  }
  const newer = Uint8Array.from(bytes);
  newer[8] = 2;
  new DataView(newer.buffer).setUint32(12, crc32(newer.subarray(0, 12)), true);
  put(disk, newer);
  failsWith(() => all(disk), 'UNSUPPORTED_FORMAT');
});

test('the bytes of a ledger are those of version 1, and come back', () => {
  const disk = newDisk();
  ForgetLedger.open(disk, DIR).add([entry(3)]);
  const golden = [
    '4e4f53544f53464c 0100 0000 ae7a9484', // NOSTOSFL, version 1, CRC
    '76000000 ae7a9484 1b3968f5 1a33bd49', // a frame of 118 bytes
    'aa'.repeat(16),
    '0a'.repeat(16),
    '0100000000000000 0300000000000000 eb03000000000000', // term, LSN, time
    '01'.repeat(32),
    '01000000 0800 74c3a4626c652030',
    '03'.repeat(16),
  ];
  assert.equal(Buffer.from(disk.bytes(PATH)).toString('hex'), golden.join('').replaceAll(' ', ''));
  assert.deepEqual(all(disk), [entry(3)]);
});

test('a frame that is missing between two is damage', () => {
  const disk = newDisk();
  const ledger = ForgetLedger.open(disk, DIR);
  const ends = [1, 2, 3].map((lsn) => {
    ledger.add([entry(lsn)]);
    return ledger.end.offset;
  });
  const bytes = disk.bytes(PATH);
  put(disk, Buffer.concat([bytes.subarray(0, ends[0]), bytes.subarray(ends[1])]));
  failsWith(() => all(disk), 'LOG_DAMAGED');
});
