/** The state × event table of SPEC.md, on a disk that fails on command. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Generation, Lsn, TenantId, Term } from '../base/brands.ts';
import { HybridClock } from '../base/clock.ts';
import { isNostosError } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import { FaultyDisk } from '../testing/faulty-disk.ts';
import { VirtualClock } from '../testing/virtual-clock.ts';
import { Log } from './log.ts';
import { RecordKind } from './record.ts';
import { verifyLog } from './verify.ts';
import type { LogEntry } from './writer.ts';

const DIR = '/log';
const GENERATION = 'feedfacefeedfacefeedfacefeedface' as Generation;
const OPTIONS = {
  dir: DIR,
  generation: GENERATION,
  segmentBytesMax: 4096,
  recordBytesMax: 2000,
  preallocateBytes: 4096,
};
const NOTHING = new Uint8Array(0);
const term = (value: number): Term => value as Term;
const lsn = (value: number): Lsn => value as Lsn;
const code = (expected: string) => (error: unknown) => isNostosError(error) && error.code === expected;

function open(
  disk = new FaultyDisk(),
  clock = new VirtualClock(),
): { disk: FaultyDisk; log: Log; clock: VirtualClock } {
  const { log } = Log.open({ disk, clock: new HybridClock(clock) }, OPTIONS);
  return { disk, log, clock };
}

const entries = (count: number, bytes = 50): LogEntry[] =>
  Array.from({ length: count }, (_, i) => ({
    tenant: 1 as TenantId,
    kind: RecordKind.changeset,
    payload: new Uint8Array(bytes).fill(i + 1),
  }));

const strike = (disk: FaultyDisk, kind: 'ENOSPC' | 'EIO', repeat = 0): void =>
  disk.inject({ atStep: disk.trace.length, kind, repeat });

const lastRead = (log: Log): number => [...log.read({ from: log.firstLsn })].at(-1)?.through ?? 0;

test('a full disk refuses the append, cuts it, and ends the term; a higher one goes on', () => {
  const { disk, log } = open();
  log.startTerm(term(1), NOTHING);
  log.append(entries(3));
  log.sync();
  strike(disk, 'ENOSPC');
  assert.throws(() => log.append(entries(2)), code('DISK_FULL'));
  assert.equal(disk.fired.length, 1);
  assert.deepEqual([log.state, log.end.lsn, log.durable.lsn], ['term-ended', 4, 4]);
  assert.throws(() => log.append(entries(1)), code('TERM_ENDED'));
  assert.throws(() => log.startTerm(term(1), NOTHING), code('INVALID_ARGUMENT'));
  log.startTerm(term(2), NOTHING);
  log.append(entries(1));
  log.sync();
  assert.equal(lastRead(log), 6);
  log.close();
  const again = Log.open({ disk, clock: new HybridClock(new VirtualClock()) }, { ...OPTIONS, knownWatermark: lsn(6) });
  assert.equal(again.report.tornBytes, 0);
  again.log.close();
});

test('an append that cannot even be cut leaves the log failed, until it is reopened', () => {
  const { disk, log } = open();
  log.startTerm(term(1), NOTHING);
  log.append(entries(3));
  log.sync();
  strike(disk, 'EIO', 1);
  assert.throws(() => log.append(entries(2)), code('IO_FAILED'));
  assert.deepEqual(
    disk.fired.map((step) => step.kind),
    ['write', 'truncate'],
  );
  assert.equal(log.state, 'failed');
  for (const call of [() => log.append(entries(1)), () => log.startTerm(term(2), NOTHING), () => log.sync()])
    assert.throws(call, code('TERM_ENDED'));
  const report = log.reopen();
  assert.equal(log.state, 'term-ended');
  assert.ok(report.end.lsn === 4 || report.end.lsn === 5);
  log.startTerm(term(2), NOTHING);
  log.close();
});

test('after a failed sync the log is failed, and reopening makes durable what reads back', () => {
  const { disk, log } = open();
  log.startTerm(term(1), NOTHING);
  log.sync();
  log.append(entries(3));
  strike(disk, 'EIO');
  assert.throws(() => log.sync(), code('IO_FAILED'));
  assert.deepEqual([log.state, log.durable.lsn], ['failed', 1]);
  // The disk does not have them, whatever reads back; nor would another sync change that.
  assert.equal(open(disk.crash(seededRandom(3))).log.end.lsn, 1);
  strike(disk, 'EIO');
  assert.throws(() => log.reopen(), code('IO_FAILED'));
  assert.equal(log.state, 'failed');
  assert.equal(log.reopen().end.lsn, 4);
  assert.deepEqual([log.state, log.durable.lsn], ['term-ended', 4]);
  for (let seed = 0; seed < 20; seed++) assert.equal(open(disk.crash(seededRandom(seed))).log.end.lsn, 4);
  log.close();
});

test('a group over several segments is taken back whole', () => {
  const { disk, log } = open();
  log.startTerm(term(1), NOTHING);
  log.append(entries(2));
  log.sync();
  const before = Buffer.from(disk.bytes(`${DIR}/00000001.ndb`));
  const creations = (): number =>
    disk.trace.filter((step) => step.path.endsWith('.ndb') && step.kind === 'create').length;
  const probe = open(disk.clone());
  probe.log.startTerm(term(2), NOTHING);
  const from = probe.disk.trace.length;
  probe.log.append(entries(9, 1000));
  assert.ok(probe.log.openSegment >= 3);
  const third = probe.disk.trace.findLast((step) => step.kind === 'create' && step.path.endsWith('3.ndb'));
  assert.ok(third !== undefined && creations() === 1);
  disk.inject({ atStep: disk.trace.length + third.number - from + 1, kind: 'ENOSPC' });
  assert.throws(() => log.append(entries(9, 1000)), code('DISK_FULL'));
  assert.equal(creations(), 3);
  assert.deepEqual(
    disk.list(DIR).filter((name) => name.endsWith('.ndb')),
    ['00000001.ndb'],
  );
  assert.deepEqual([log.state, log.end.lsn, log.sealed.length], ['term-ended', 3, 0]);
  const after = Buffer.from(disk.bytes(`${DIR}/00000001.ndb`));
  assert.deepEqual(after, before.subarray(0, after.length));
  log.startTerm(term(2), NOTHING);
  log.append(entries(9, 1000));
  log.sync();
  assert.equal(lastRead(log), 13);
  log.close();
  assert.equal(disk.openFiles, 0);
});

test('a reader does not see what is not synced', () => {
  const { log } = open();
  log.startTerm(term(1), NOTHING);
  log.sync();
  log.append(entries(5));
  assert.equal(lastRead(log), 1);
  assert.throws(() => log.locate(lsn(2)), code('INVALID_ARGUMENT'));
  log.sync();
  assert.equal(lastRead(log), 6);
  assert.equal(log.locate(lsn(2)).offset, 184);
  log.close();
});

test('a closed log answers nothing, and closing twice is harmless', () => {
  const { log } = open();
  log.close();
  log.close();
  for (const call of [
    () => log.append(entries(1)),
    () => log.startTerm(term(1), NOTHING),
    () => log.sync(),
    () => log.reopen(),
    () => log.read({ from: lsn(1) }),
    () => log.prune({ durableApplied: lsn(0), watermark: lsn(0), retainBytes: 0 }),
  ])
    assert.throws(call, code('CLOSED'));
});

test('what cannot be is refused before anything is written', () => {
  const { disk, log } = open();
  log.startTerm(term(1), NOTHING);
  const steps = disk.trace.length;
  assert.throws(() => log.append([...entries(1), ...entries(1, 2001)]), code('TRANSACTION_TOO_LARGE'));
  assert.throws(
    () => log.append([{ tenant: 0 as TenantId, kind: RecordKind.termStart, payload: NOTHING }]),
    code('INVALID_ARGUMENT'),
  );
  assert.throws(() => log.setWatermark(lsn(2)), code('INVALID_ARGUMENT'));
  assert.equal(disk.trace.length, steps);
  assert.equal(log.state, 'open');
  log.append(entries(1, 2000));
  log.close();
  assert.throws(
    () =>
      Log.open(
        { disk: new FaultyDisk(), clock: new HybridClock(new VirtualClock()) },
        { ...OPTIONS, recordBytesMax: 4000 },
      ),
    code('INVALID_ARGUMENT'),
  );
});

test('a reservation holds the log while it makes progress, and no longer', () => {
  const { log, clock } = open();
  log.startTerm(term(1), NOTHING);
  for (let i = 0; i < 30; i++) log.append(entries(1, 1000));
  log.sync();
  log.setWatermark(log.durable.lsn);
  const all = { durableApplied: log.durable.lsn, watermark: log.watermark, retainBytes: 0 };
  const held = log.reserve(lsn(4), { timeoutMs: 1_000 });
  clock.advance(900);
  held.progress(lsn(10));
  clock.advance(900);
  assert.equal(held.expired, false);
  assert.ok(log.prune(all).firstLsn <= 10 && log.firstLsn > 4);
  held.progress(lsn(10));
  clock.advance(101);
  assert.equal(held.expired, true);
  assert.throws(() => held.progress(lsn(11)), code('RESERVATION_EXPIRED'));
  assert.ok(log.prune(all).firstLsn > 10);
  assert.throws(
    () => [...log.read({ from: lsn(4) })],
    (error: unknown) => isNostosError(error, 'LOG_PRUNED') && error.details.firstLsn === log.firstLsn,
  );
  log.close();
});

test('a term whose first record is lost leaves no trace, although pruning wrote it to the table', async () => {
  const { disk, log } = open();
  log.startTerm(term(1), NOTHING);
  for (let i = 0; i < 10; i++) log.append(entries(1, 1000));
  log.sync();
  log.setWatermark(log.durable.lsn);
  log.startTerm(term(2), NOTHING);
  assert.ok(log.prune({ durableApplied: log.durable.lsn, watermark: log.watermark, retainBytes: 0 }).segments > 0);
  let lost = 0;
  for (let seed = 0; seed < 20; seed++) {
    const crashed = disk.crash(seededRandom(seed));
    const after = open(crashed).log;
    if (after.end.lsn === 11) lost += 1;
    assert.deepEqual((await verifyLog({ disk: crashed, dir: DIR })).damages, []);
    after.startTerm(term(3), NOTHING);
    assert.deepEqual(
      after.terms.map((entry) => entry.term),
      after.end.lsn === 12 ? [1, 3] : [1, 2, 3],
    );
    after.close();
  }
  assert.ok(lost > 3);
});

test('times in the log never fall, also when the wall clock does', () => {
  const { disk, log, clock } = open();
  log.startTerm(term(1), NOTHING);
  log.append(entries(2));
  log.sync();
  log.close();
  clock.setWall(1_000);
  const again = open(disk, clock).log;
  again.startTerm(term(2), NOTHING);
  again.append(entries(2));
  again.sync();
  const times = [...again.read({ from: lsn(1) })].flatMap((batch) => batch.records.map(({ record }) => record.hlc));
  assert.deepEqual(
    times,
    [...times].sort((a, b) => (a < b ? -1 : 1)),
  );
  assert.equal(new Set(times).size, 6);
  again.close();
});
