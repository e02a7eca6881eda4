import assert from 'node:assert/strict';
import { cpSync, mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { HybridClock, systemClock } from '../base/clock.ts';
import { systemDisk } from '../base/disk.ts';
import { FaultyDisk } from '../testing/faulty-disk.ts';
import { GOLDEN_GENERATION, GOLDEN_OPTIONS, writeGoldenLog } from './golden.fixture.ts';
import { layoutSegments } from './layout.ts';
import { Log } from './log.ts';
import { RecordKind } from './record.ts';
import { verifyLog } from './verify.ts';

const GOLDEN = new URL('./golden/v1', import.meta.url).pathname;
const golden = (name: string): Buffer => readFileSync(join(GOLDEN, name));

test('the writer still makes the golden files of format version 1, byte for byte', () => {
  const disk = new FaultyDisk();
  writeGoldenLog(disk, '/log').close();
  assert.deepEqual(disk.list('/log'), readdirSync(GOLDEN).sort());
  for (const name of disk.list('/log')) {
    const expected = golden(name);
    const actual = Buffer.from(disk.bytes(`/log/${name}`));
    assert.deepEqual(actual.subarray(0, expected.length), expected, name);
    assert.ok(
      actual.subarray(expected.length).every((byte) => byte === 0),
      `${name} ends in zeros`,
    );
  }
});

test('the golden log of format version 1 opens, verifies and reads', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'nostos-golden-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  cpSync(GOLDEN, dir, { recursive: true });
  const verified = await verifyLog({ disk: systemDisk, dir });
  assert.deepEqual([verified.ok, verified.records, verified.terms], [true, 11, 2]);
  const options = { dir, generation: GOLDEN_GENERATION, ...GOLDEN_OPTIONS, scanFrom: 1 as never };
  const { log, report } = Log.open({ disk: systemDisk, clock: new HybridClock(systemClock) }, options);
  assert.deepEqual([report.end.lsn, report.end.term, report.tornBytes, report.watermark], [11, 7, 0, 9]);
  assert.deepEqual(
    log.terms.map((entry) => [entry.term, entry.firstLsn]),
    [
      [1, 1],
      [7, 10],
    ],
  );
  const records = [...log.read({ from: log.firstLsn })].flatMap((batch) => batch.records.map(({ record }) => record));
  assert.deepEqual(new Set(records.map((record) => record.kind)), new Set(Object.values(RecordKind)));
  assert.equal(records[10]?.tenant, 2 ** 40);
  assert.equal(Buffer.from(records[10]?.payload ?? []).toString(), 'far tenant');
  assert.equal(records[0]?.hlc, 1_700_000_000_000n << 16n);
  const start = { number: 1, anchor: log.anchor, segmentBytesMax: GOLDEN_OPTIONS.segmentBytesMax };
  for (const [name, bytes] of layoutSegments(
    start,
    records.map((record) => record.bytes),
  ))
    assert.deepEqual(bytes, golden(name), name);
  log.close();
});
