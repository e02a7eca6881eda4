/** A log that goes on in a new generation: at any step, once, and taken for nothing else by whoever reads it. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Generation, Hash, Hlc, Lsn, TenantId, Term } from '../base/brands.ts';
import { NO_TENANT } from '../base/brands.ts';
import { HybridClock } from '../base/clock.ts';
import type { Disk } from '../base/disk.ts';
import { isNostosError, type ErrorCode } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import type { StepKind } from '../testing/faulty-disk.ts';
import { FaultyDisk, PowerCut } from '../testing/faulty-disk.ts';
import { VirtualClock } from '../testing/virtual-clock.ts';
import type { ChainPoint } from './chain.ts';
import { encodeFork } from './fork.ts';
import { beginGeneration } from './generation.ts';
import { layoutSegments } from './layout.ts';
import { Log } from './log.ts';
import { GroupEncoder, RecordKind } from './record.ts';
import { verifyLog } from './verify.ts';

const DIR = '/log';
const [FIRST, SECOND, THIRD] = ['1', '2', '3'].map((digit) => digit.repeat(32)) as [Generation, Generation, Generation];
const FIXED = { dir: DIR, segmentBytesMax: 2048, recordBytesMax: 700, preallocateBytes: 512 };
const code = (wanted: ErrorCode) => (error: unknown) => isNostosError(error, wanted);
const deps = (disk: Disk) => ({ disk, clock: new HybridClock(new VirtualClock()) });
const openLog = (disk: Disk, generation: Generation): Log => Log.open(deps(disk), { ...FIXED, generation }).log;
const begin = (disk: Disk, generation = SECOND, options: object = {}): ReturnType<typeof beginGeneration> =>
  beginGeneration(deps(disk), { ...FIXED, parent: FIRST, generation, term: 9 as Term, ...options });

function write(log: Log, term: number, records: number): ChainPoint {
  log.startTerm(term as Term, Buffer.from('start'));
  for (let i = 0; i < records; i++)
    log.append([{ tenant: 1 as TenantId, kind: RecordKind.changeset, payload: new Uint8Array(150).fill(i) }]);
  log.sync();
  return log.end;
}

/** Terms 1 and 4, of which a part is known to be committed. */
function parent(records = 9): { readonly disk: FaultyDisk; readonly end: ChainPoint } {
  const disk = new FaultyDisk();
  const log = openLog(disk, FIRST);
  write(log, 1, records);
  log.setWatermark(2 as Lsn);
  const end = write(log, 4, records);
  log.close();
  return { disk, end };
}

test('a generation goes on from the end of its parent, and all of that is committed', async () => {
  const { disk, end } = parent();
  const { fork, start } = begin(disk);
  assert.deepEqual(fork, end);
  assert.deepEqual([start.generation, start.term, start.lsn], [SECOND, 9, end.lsn + 1]);
  const log = openLog(disk, SECOND);
  assert.deepEqual(log.end, start);
  assert.equal(log.watermark, start.lsn);
  assert.throws(() => log.cutTo(fork.lsn), code('WATERMARK_VIOLATION'));
  write(log, 10, 9);
  assert.deepEqual(log.history.generations, [
    { generation: FIRST, firstLsn: 1 },
    { generation: SECOND, firstLsn: start.lsn },
  ]);
  const records = [...log.read({ from: log.firstLsn })].flatMap((batch) => batch.records.map(({ record }) => record));
  for (const { lsn, generation } of records) assert.equal(generation, lsn <= fork.lsn ? FIRST : SECOND, `LSN ${lsn}`);
  const laid = layoutSegments(
    { number: 1, anchor: log.anchor, segmentBytesMax: FIXED.segmentBytesMax },
    records.map(({ bytes }) => bytes),
  );
  for (const [name, bytes] of laid)
    assert.deepEqual(Buffer.from(disk.bytes(`${DIR}/${name}`)).subarray(0, bytes.length), bytes);
  const verified = await verifyLog({ disk, dir: DIR });
  assert.deepEqual([verified.ok, verified.terms, verified.lastLsn], [true, 4, log.end.lsn]);
  log.close();
});

test('an empty log, and one whose segment is full, go on too, and a third generation behind the second', () => {
  const disk = new FaultyDisk();
  const { fork } = begin(disk);
  assert.deepEqual([fork.generation, fork.lsn], [FIRST, 0]);
  for (let records = 2; records < 12; records++) {
    const { disk, end } = parent(records);
    const { start } = begin(disk);
    const next = begin(disk, THIRD, { parent: SECOND, term: 12 });
    assert.deepEqual([next.fork, next.start.lsn], [start, end.lsn + 2]);
    openLog(disk, THIRD).close();
  }
});

test('it begins once, where it was to begin, and never with a generation or a term of the past', () => {
  const { disk, end } = parent();
  const once = begin(disk, SECOND, { fork: end });
  assert.deepEqual(begin(disk, SECOND, { fork: end }), once);
  assert.throws(() => begin(disk, SECOND, { fork: once.start }), code('INVALID_ARGUMENT'));
  assert.throws(() => begin(disk, SECOND, { term: 11 }), code('INVALID_ARGUMENT'), 'with another term');
  assert.throws(() => begin(disk, FIRST, { parent: SECOND, term: 11 }), code('INVALID_ARGUMENT'), 'back');
  assert.throws(() => begin(disk, THIRD, { parent: SECOND, term: 9 }), code('INVALID_ARGUMENT'), 'a term again');
  const log = openLog(disk, SECOND);
  assert.deepEqual(log.end, once.start);
  write(log, 10, 1);
  log.close();
  assert.throws(() => begin(disk), code('INVALID_ARGUMENT'), 'it has gone on');
  const fresh = parent();
  assert.throws(() => begin(fresh.disk, SECOND, { fork: { ...end, lsn: end.lsn - 1 } }), code('INVALID_ARGUMENT'));
  assert.throws(() => begin(fresh.disk, SECOND, { parent: THIRD }), code('DIRECTORY_FOREIGN'));
});

test('a power cut at any step of it: the same call goes on, to the same end', () => {
  const { disk: start, end } = parent();
  const whole = start.clone();
  const from = whole.trace.length;
  begin(whole, SECOND, { fork: end });
  const struck = new Set<StepKind>();
  for (let step = from; step < whole.trace.length; step++)
    for (let seed = 0; seed < 8; seed++) {
      const disk = start.clone();
      disk.inject({ atStep: step, kind: 'power' });
      assert.throws(() => begin(disk, SECOND, { fork: end }), PowerCut);
      for (const { kind } of disk.fired) struck.add(kind);
      const after = disk.crash(seededRandom(step * 100 + seed));
      const { fork, start: first } = begin(after, SECOND, { fork: end });
      assert.deepEqual([fork, first.lsn], [end, end.lsn + 1]);
      const log = openLog(after, SECOND);
      assert.deepEqual([log.end, log.watermark], [first, first.lsn]);
      log.close();
    }
  for (const kind of ['write', 'sync', 'rename', 'sync-directory'] as const)
    assert.ok(struck.has(kind), `no power cut at a ${kind}`);
});

/** A record as it would follow `end`, whatever it says. */
function record(end: ChainPoint, generation: Generation, payload: Uint8Array, kind: RecordKind): Uint8Array {
  const encoder = new GroupEncoder();
  encoder.begin(4096);
  const [term, lsn] = [(end.term + Number(kind === RecordKind.termStart)) as Term, (end.lsn + 1) as Lsn];
  const fields = { term, lsn, hlc: 1n as Hlc, tenant: NO_TENANT, kind, watermark: 0 as Lsn, payload };
  encoder.add(Buffer.from(generation, 'hex'), fields, end.hash);
  return Uint8Array.from(encoder.bytes(0, encoder.length));
}

const FOREIGN: Readonly<Record<string, (end: ChainPoint) => Uint8Array>> = {
  'a term-start that names no fork': (end) => record(end, SECOND, Buffer.from('start'), RecordKind.termStart),
  'one that names another record': (end) =>
    record(end, SECOND, encodeFork({ ...end, hash: Buffer.alloc(32) as Uint8Array as Hash }), RecordKind.termStart),
  'one that names another parent': (end) =>
    record(end, SECOND, encodeFork({ ...end, generation: THIRD }), RecordKind.termStart),
  'no term-start': (end) => record(end, SECOND, encodeFork(end), RecordKind.changeset),
};

for (const [what, make] of Object.entries(FOREIGN))
  test(`a record of another generation that is ${what} is no part of the log, nor of a message`, async () => {
    const { disk, end } = parent();
    const bytes = make(end);
    const path = `${DIR}/${disk.list(DIR).findLast((name) => name.endsWith('.ndb'))!}`;
    const at = endOfRecords(disk);
    disk.overwrite(path, (before) => Buffer.concat([before.subarray(0, at), bytes]));
    assert.deepEqual((await verifyLog({ disk, dir: DIR })).lastLsn, end.lsn);
    const log = openLog(disk, FIRST);
    assert.deepEqual(log.end, end);
    assert.throws(() => log.appendReplicated(bytes), code('RECORD_REFUSED'));
    assert.deepEqual(log.end, end);
    log.close();
  });

test('a generation of the past that comes again, with its fork, is damage', () => {
  const { disk } = parent();
  const { start } = begin(disk);
  const path = `${DIR}/${disk.list(DIR).findLast((name) => name.endsWith('.ndb'))!}`;
  const probe = openLog(disk.clone(), SECOND);
  const { offset } = probe.locate(write(probe, 10, 0).lsn);
  const again = record(start, FIRST, encodeFork(start), RecordKind.termStart);
  disk.overwrite(path, (bytes) => Buffer.concat([bytes.subarray(0, offset), again]));
  for (const generation of [FIRST, SECOND])
    assert.throws(() => openLog(disk, generation), code('LOG_DAMAGED'), generation);
});

/** In the last segment: that of a clone that goes on there. */
function endOfRecords(disk: FaultyDisk): number {
  const log = openLog(disk.clone(), FIRST);
  const next = write(log, log.end.term + 1, 0);
  return log.locate(next.lsn).offset;
}

test('a primary of the next generation streams nothing to a log of its parent, be it equal up to the fork', () => {
  const { disk } = parent();
  const behind = openLog(disk.clone(), FIRST);
  const { start } = begin(disk);
  const log = openLog(disk, SECOND);
  const [batch] = log.read({ from: start.lsn });
  const run = Buffer.from(batch!.records[0]!.record.bytes);
  assert.throws(() => behind.appendReplicated(run), code('RECORD_REFUSED'));
  assert.equal(behind.end.lsn, start.lsn - 1);
});

test('damage before the fork is no torn tail, though only a record of the next generation says so', () => {
  const { disk, end } = parent();
  begin(disk);
  const path = `${DIR}/${disk.list(DIR).findLast((name) => name.endsWith('.ndb'))!}`;
  const log = openLog(disk, SECOND);
  write(log, 10, 0);
  log.setWatermark(log.end.lsn);
  write(log, 11, 0);
  const { offset } = log.locate(end.lsn);
  log.close();
  disk.remove(`${DIR}/marks`);
  disk.flip(path, offset + 120, 2);
  const before = Buffer.from(disk.bytes(path));
  assert.throws(() => openLog(disk, SECOND), code('LOG_DAMAGED'));
  assert.deepEqual(Buffer.from(disk.bytes(path)), before);
});

test('each generation opens as itself only, and the tables are made again over both', () => {
  const { disk } = parent();
  begin(disk);
  assert.throws(() => openLog(disk, FIRST), code('DIRECTORY_FOREIGN'));
  const log = openLog(disk, SECOND);
  for (let term = 10; term < 13; term++) write(log, term, 9);
  const { terms } = log;
  log.close();
  for (const name of ['terms', 'sealed']) {
    disk.remove(`${DIR}/${name}`);
    const again = openLog(disk, SECOND);
    assert.deepEqual(again.terms, terms);
    again.close();
  }
});
