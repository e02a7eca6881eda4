/** A follower's log: records from a primary, W that never falls, and the cut of a divergent tail. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Generation, Lsn, TenantId, Term } from '../base/brands.ts';
import { HybridClock } from '../base/clock.ts';
import type { Disk } from '../base/disk.ts';
import { isNostosError } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import type { StepKind } from '../testing/faulty-disk.ts';
import { FaultyDisk, PowerCut } from '../testing/faulty-disk.ts';
import { VirtualClock } from '../testing/virtual-clock.ts';
import { layoutSegments } from './layout.ts';
import { Log } from './log.ts';
import { RecordKind } from './record.ts';
import { verifyLog } from './verify.ts';
import type { LogEntry } from './writer.ts';

const DIR = '/log';
const GENERATION = 'feedfacefeedfacefeedfacefeedface' as Generation;
const OPTIONS = { dir: DIR, generation: GENERATION, segmentBytesMax: 2048, recordBytesMax: 700, preallocateBytes: 512 };
const lsn = (value: number): Lsn => value as Lsn;
const code = (expected: string) => (error: unknown) => isNostosError(error) && error.code === expected;

function openLog(disk: Disk): Log {
  return Log.open({ disk, clock: new HybridClock(new VirtualClock()) }, OPTIONS).log;
}

const group = (seed: number, count: number): LogEntry[] =>
  Array.from({ length: count }, (_, i) => ({
    tenant: 1 as TenantId,
    kind: RecordKind.changeset,
    payload: new Uint8Array(60 + ((seed * 37 + i * 11) % 300)).fill(seed + i),
  }));

/** Terms of groups; what was written is committed up to `committed`. Ends in no term. */
function write(log: Log, { terms = 3, groups = 4, committed = 0 } = {}): Uint8Array[] {
  const first = log.end.lsn + 1;
  for (let term = 1; term <= terms; term++) {
    log.startTerm((log.end.term + 1) as Term, Buffer.from(`term ${log.end.term + 1}`));
    for (let i = 0; i < groups; i++) log.append(group(term * 10 + i, 3));
    log.sync();
    if (committed > log.watermark) log.setWatermark(lsn(Math.min(committed, log.durable.lsn)));
  }
  log.endTerm();
  return recordsOf(log).slice(first - 1);
}

const recordsOf = (log: Log): Uint8Array[] =>
  [...log.read({ from: log.firstLsn })].flatMap((batch) =>
    batch.records.map(({ record }) => Buffer.from(record.bytes)),
  );

/** The files are what the records make, and hold nothing else. */
async function assertHolds(disk: FaultyDisk, log: Log, records: readonly Uint8Array[]): Promise<void> {
  assert.deepEqual(recordsOf(log), records.map(Buffer.from));
  const start = { number: 1, anchor: log.anchor, segmentBytesMax: OPTIONS.segmentBytesMax };
  const expected = layoutSegments(start, records);
  assert.deepEqual(
    disk.list(DIR).filter((name) => name.endsWith('.ndb')),
    [...expected.keys()],
  );
  for (const [name, bytes] of expected) {
    const actual = Buffer.from(disk.bytes(`${DIR}/${name}`));
    assert.deepEqual(actual.subarray(0, bytes.length), bytes, name);
    assert.ok(
      actual.subarray(bytes.length).every((byte) => byte === 0),
      `${name} ends in zeros`,
    );
  }
  assert.deepEqual((await verifyLog({ disk, dir: DIR })).damages, []);
}

test('a log cut anywhere is the log that ended there, also once it is opened again and goes on', async () => {
  const whole = new FaultyDisk();
  const records = write(openLog(whole));
  for (let end = 0; end <= records.length; end++) {
    const disk = whole.clone();
    const log = openLog(disk);
    log.cutTo(lsn(end));
    assert.deepEqual([log.end.lsn, log.durable.lsn, log.state], [end, end, 'term-ended']);
    await assertHolds(disk, log, records.slice(0, end));
    assert.equal(log.terms.at(-1)?.term ?? 0, log.end.term);
    log.close();

    const again = openLog(disk);
    assert.deepEqual(again.end, log.end);
    again.startTerm(9 as Term, Buffer.from('next'));
    again.append(group(90, 12));
    again.sync();
    const after = recordsOf(again);
    assert.deepEqual(after.slice(0, end), records.slice(0, end).map(Buffer.from));
    again.close();
    await assertHolds(disk, openLog(disk), after);
  }
});

test('a power cut at any step of a cut leaves a longer prefix, and the second call ends where the first would have', async () => {
  const start = new FaultyDisk();
  const records = write(openLog(start), { committed: 8 });
  const first = start.clone();
  const from = first.trace.length;
  openLog(first).cutTo(lsn(10));
  const struck = new Set<StepKind>();
  for (let step = from; step < first.trace.length; step++)
    for (let seed = 0; seed < 8; seed++) {
      const disk = start.clone();
      disk.inject({ atStep: step, kind: 'power' });
      assert.throws(() => openLog(disk).cutTo(lsn(10)), PowerCut);
      for (const { kind } of disk.fired) struck.add(kind);
      const after = disk.crash(seededRandom(step * 100 + seed));
      const log = openLog(after);
      assert.ok(log.end.lsn >= 10 && log.end.lsn <= records.length);
      assert.equal(log.watermark, 8);
      await assertHolds(after, log, records.slice(0, log.end.lsn));
      log.cutTo(lsn(10));
      await assertHolds(after, log, records.slice(0, 10));
      log.close();
      assert.equal(openLog(after).watermark, 8, 'which only records that are cut had named');
    }
  for (const kind of ['remove', 'sync-directory', 'truncate', 'sync', 'write', 'rename'] as const)
    assert.ok(struck.has(kind), `no power cut at a ${kind}`);
});

for (const kind of ['ENOSPC', 'EIO'] as const)
  test(`${kind} at any step of a cut changes nothing, or leaves the log failed and is made good by a second call`, async () => {
    const start = new FaultyDisk();
    const records = write(openLog(start), { committed: 8 });
    const first = start.clone();
    openLog(first).cutTo(lsn(10));
    let [failed, intact] = [0, 0];
    for (let step = 0; step < first.trace.length; step++) {
      const disk = start.clone();
      const log = openLog(disk);
      disk.inject({ atStep: disk.trace.length + step, kind });
      try {
        log.cutTo(lsn(10));
        assert.equal(disk.fired.length, 0);
        break;
      } catch (error) {
        assert.ok(code('IO_FAILED')(error) || code('DISK_FULL')(error), String(error));
        assert.equal(disk.fired.length, 1);
      }
      if (log.state === 'failed') {
        failed += 1;
        assert.throws(() => log.cutTo(lsn(10)), code('TERM_ENDED'));
        log.reopen();
      } else {
        intact += 1;
        assert.equal(log.end.lsn, records.length);
      }
      assert.ok(log.end.lsn >= 10);
      log.cutTo(lsn(10));
      await assertHolds(disk, log, records.slice(0, 10));
      log.close();
      assert.equal(disk.openFiles, 0);
    }
    assert.ok(intact > 1, `${intact} left the log as it was`);
    assert.equal(failed > 3, kind === 'EIO', `${failed} left it failed`);
  });

test('nothing at or below W is ever cut, nor in a term, nor below what the log still holds', () => {
  const disk = new FaultyDisk();
  const log = openLog(disk);
  write(log, { committed: 20 });
  assert.throws(() => log.cutTo(lsn(19)), code('WATERMARK_VIOLATION'));
  log.startTerm(4 as Term, Buffer.from('own'));
  assert.throws(() => log.cutTo(lsn(30)), code('INVALID_ARGUMENT'));
  log.endTerm();
  log.cutTo(lsn(20));
  assert.equal(log.end.lsn, 20);
  log.close();
  assert.throws(() => log.cutTo(lsn(20)), code('CLOSED'));
});

test('what a cut reads and writes does not grow with the log', () => {
  const costs = [4, 40].map((groups) => {
    const disk = new FaultyDisk();
    const log = openLog(disk);
    write(log, { groups });
    log.close();
    let bytes = 0;
    const counting: Disk = {
      ...delegate(disk),
      open: (path, mode) => {
        const file = disk.open(path, mode);
        return {
          path,
          read: (target, at) => {
            const count = file.read(target, at);
            bytes += count;
            return count;
          },
          write: (part, at) => file.write(part, at),
          dataSync: () => file.dataSync(),
          sync: () => file.sync(),
          truncate: (size) => file.truncate(size),
          size: () => file.size(),
          close: () => file.close(),
        };
      },
    };
    const counted = openLog(counting);
    bytes = 0;
    const steps = disk.trace.length;
    counted.cutTo(lsn(counted.end.lsn - 20));
    return { bytes, steps: disk.trace.length - steps };
  });
  for (const { bytes, steps } of costs) {
    assert.ok(bytes <= 2 * OPTIONS.segmentBytesMax, `${bytes} bytes read`);
    assert.ok(steps <= 2 * 20 + 8, `${steps} steps`);
  }
});

function delegate(disk: FaultyDisk): Disk {
  return {
    open: (path, mode) => disk.open(path, mode),
    list: (dir) => disk.list(dir),
    exists: (path) => disk.exists(path),
    isDirectory: (path) => disk.isDirectory(path),
    size: (path) => disk.size(path),
    freeBytes: (path) => disk.freeBytes(path),
    mountsIn: (dir) => disk.mountsIn(dir),
    rename: (from, to) => disk.rename(from, to),
    remove: (path) => disk.remove(path),
    removeDirectory: (path) => disk.removeDirectory(path),
    makeDirectory: (path) => disk.makeDirectory(path),
    syncDirectory: (path) => disk.syncDirectory(path),
    link: (from, to) => disk.link(from, to),
  };
}

test('who reads while the log is cut is told so, instead of finding damage', () => {
  const log = openLog(new FaultyDisk());
  write(log);
  const reading = log.read({ from: lsn(1), bytesMax: 400 });
  assert.ok(reading.next().done === false);
  log.cutTo(lsn(5));
  assert.throws(() => reading.next(), code('POSITION_LOST'));
});

test('a follower has the files of its primary, byte for byte, however the records come', async () => {
  const records = write(openLog(new FaultyDisk()), { terms: 4, groups: 6 });
  for (let seed = 0; seed < 50; seed++) {
    const random = seededRandom(seed);
    const disk = new FaultyDisk();
    const log = openLog(disk);
    for (let at = 0; at < records.length;) {
      const run = records.slice(at, at + 1 + random.below(9));
      log.appendReplicated(Buffer.concat(run));
      at += run.length;
      assert.equal(log.end.lsn, at);
      if (random.chance(0.4)) log.sync();
      if (random.chance(0.1)) {
        log.sync();
        log.cutTo(lsn(log.watermark + random.below(at - log.watermark + 1)));
        at = log.end.lsn;
      }
    }
    log.sync();
    await assertHolds(disk, log, records);
    assert.deepEqual(
      log.terms.map(({ term }) => term),
      [1, 2, 3, 4],
    );
  }
});

test('records that do not go on with this history are refused, all of a message, and nothing changes', () => {
  const primary = openLog(new FaultyDisk());
  const records = write(primary);
  const at = (from: number, to: number): Buffer => Buffer.concat(records.slice(from - 1, to));
  const log = openLog(new FaultyDisk());
  log.appendReplicated(at(1, 10));
  const other = openLog(new FaultyDisk());
  other.startTerm(1 as Term, Buffer.from('another'));
  const foreign = write(other, { terms: 1 });
  const cases: Record<string, Uint8Array> = {
    repeated: at(10, 12),
    skipped: at(12, 14),
    'out of order': Buffer.concat([records[11]!, records[10]!]),
    'cut short': at(11, 12).subarray(0, -1),
    'flipped in the payload': flip(at(11, 12), 150),
    'flipped hash of the one before': flip(at(11, 12), 70),
    'of another history': foreign[9]!,
    'followed by zeros': Buffer.concat([at(11, 11), Buffer.alloc(200)]),
  };
  for (const [what, run] of Object.entries(cases)) {
    assert.throws(() => log.appendReplicated(run), code('RECORD_REFUSED'), what);
    assert.deepEqual([log.end.lsn, log.state], [10, 'term-ended'], what);
  }
  log.appendReplicated(at(11, 14));
  assert.equal(log.end.lsn, 14);
  log.startTerm(9 as Term, Buffer.from('own'));
  assert.throws(() => log.appendReplicated(at(15, 15)), code('TERM_ENDED'), 'whoever leads takes nothing');
});

function flip(bytes: Uint8Array, at: number): Uint8Array {
  const flipped = Uint8Array.from(bytes);
  flipped[at]! ^= 4;
  return flipped;
}

test('W of a follower counts up to what matches and is durable, and what was saved of it never falls', () => {
  const disk = new FaultyDisk();
  const records = write(openLog(new FaultyDisk()));
  const log = openLog(disk);
  log.appendReplicated(Buffer.concat(records.slice(0, 20)));
  assert.equal(log.raiseWatermark(lsn(15), lsn(20)), 0, 'nothing is synced');
  log.sync();
  assert.equal(log.raiseWatermark(lsn(15), lsn(12)), 12, 'as far as it matches');
  assert.equal(log.raiseWatermark(lsn(9), lsn(20)), 12);
  assert.equal(log.raiseWatermark(lsn(99), lsn(99)), 20, 'as far as it is durable');
  assert.throws(() => log.setWatermark(lsn(21)), code('INVALID_ARGUMENT'));
  assert.equal(log.saveWatermark(), 20);
  const steps = disk.trace.length;
  log.saveWatermark();
  assert.equal(disk.trace.length, steps, 'said once is enough');
  const again = openLog(disk.crash(seededRandom(1)));
  assert.equal(again.watermark, 20);
  assert.throws(() => again.cutTo(lsn(19)), code('WATERMARK_VIOLATION'));
});

/** Eight records, of which the last three name the one before them, or near it, as committed. */
function recordsInStep(): Uint8Array[] {
  const primary = openLog(new FaultyDisk());
  write(primary, { terms: 1, groups: 1 });
  primary.startTerm(2 as Term, Buffer.from('two'));
  primary.setWatermark(primary.durable.lsn);
  for (let i = 0; i < 3; i++) {
    primary.append(group(i, 1));
    primary.sync();
    primary.setWatermark(primary.durable.lsn); // each record names the one before as committed
  }
  return recordsOf(primary);
}

/** As a power cut does that keeps the last sectors of a write and loses earlier ones. */
function tear(disk: FaultyDisk, records: readonly Uint8Array[], behind: number): void {
  const offset = 84 + Buffer.concat(records.slice(0, behind)).length;
  disk.overwrite(`${DIR}/00000001.ndb`, (bytes) => bytes.fill(0, offset, offset + 100));
}

test('a tear in what was received in bulk is cut; the same in what was received in step is damage', () => {
  const records = recordsInStep();
  for (const bulk of [true, false]) {
    const disk = new FaultyDisk();
    const log = openLog(disk);
    for (const run of bulk ? [Buffer.concat(records)] : records) {
      log.appendReplicated(run);
      if (!bulk) log.sync();
    }
    log.close();
    tear(disk, records, 6);
    if (bulk) assert.equal(openLog(disk).end.lsn, 6);
    else assert.throws(() => openLog(disk), code('LOG_DAMAGED'));
  }
});

test('where bulk began is noted anew when the log was cut below it', () => {
  const records = recordsInStep();
  const disk = new FaultyDisk();
  const log = openLog(disk);
  log.appendReplicated(Buffer.concat(records.slice(0, 5)));
  log.sync();
  disk.inject({ atStep: disk.trace.length + 4, kind: 'ENOSPC' });
  assert.throws(() => log.appendReplicated(Buffer.concat(records.slice(5))), code('DISK_FULL'));
  assert.match(disk.fired[0]!.path, /ndb$/, 'where bulk begins was noted, and the records refused');
  log.cutTo(lsn(2));
  log.appendReplicated(Buffer.concat(records.slice(2)));
  log.close();
  tear(disk, records, 3);
  assert.equal(openLog(disk).end.lsn, 3);
});
