/** A fault at every step of a scripted workload; each is seen to fire. The random walk is `testing/log-simulation.ts`. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Generation, Lsn, TenantId, Term } from '../base/brands.ts';
import { HybridClock } from '../base/clock.ts';
import { isNostosError } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import type { StepKind } from '../testing/faulty-disk.ts';
import { FaultyDisk, PowerCut } from '../testing/faulty-disk.ts';
import { VirtualClock } from '../testing/virtual-clock.ts';
import { layoutSegments } from './layout.ts';
import { Log } from './log.ts';
import { RecordKind } from './record.ts';
import { simulateLog } from '../testing/log-simulation.ts';
import { verifyLog } from './verify.ts';
import type { LogEntry } from './writer.ts';

const DIR = '/log';
const GENERATION = 'feedfacefeedfacefeedfacefeedface' as Generation;
const OPTIONS = { dir: DIR, generation: GENERATION, segmentBytesMax: 2048, recordBytesMax: 700, preallocateBytes: 512 };

function openLog(disk: FaultyDisk, knownWatermark = 0): Log {
  const clock = new HybridClock(new VirtualClock());
  return Log.open({ disk, clock }, { ...OPTIONS, knownWatermark: knownWatermark as Lsn }).log;
}

const group = (seed: number, count: number): LogEntry[] =>
  Array.from({ length: count }, (_, i) => ({
    tenant: 1 as TenantId,
    kind: RecordKind.changeset,
    payload: new Uint8Array(60 + ((seed * 37 + i * 11) % 300)).fill(seed + i),
  }));

/** What the workload may hold the log to: LSN → bytes of the records that were synced. */
type Acknowledged = Map<number, Buffer>;

function acknowledge(log: Log, acknowledged: Acknowledged): void {
  log.sync();
  const from = Math.max(log.firstLsn, acknowledged.size + 1) as Lsn;
  for (const batch of log.read({ from }))
    for (const { record } of batch.records) acknowledged.set(record.lsn, Buffer.from(record.bytes));
  log.setWatermark(log.durable.lsn);
}

/** Groups, rolls, a group over several segments, a new term, a pruning. `onFailure` decides how to go on. */
function workload(disk: FaultyDisk, acknowledged: Acknowledged, onFailure: (log: Log, error: unknown) => void): Log {
  const log = openLog(disk);
  let term = 0;
  const attempt = (run: () => void): void => {
    for (let tries = 0; ; tries++) {
      try {
        if (log.state === 'term-ended') {
          log.startTerm(++term as Term, Buffer.from('term'));
          acknowledge(log, acknowledged);
        }
        return run();
      } catch (error) {
        if (tries > 8) throw error;
        onFailure(log, error);
      }
    }
  };
  for (let i = 0; i < 6; i++) {
    attempt(() => void log.append(group(i, 2)));
    attempt(() => void log.append(group(i + 50, 1)));
    attempt(() => acknowledge(log, acknowledged));
  }
  attempt(() => void log.append(group(90, 20)));
  attempt(() => acknowledge(log, acknowledged));
  attempt(() => void log.prune({ durableApplied: 12 as Lsn, watermark: log.watermark, retainBytes: 0 }));
  log.endTerm();
  attempt(() => void log.append(group(70, 3)));
  attempt(() => acknowledge(log, acknowledged));
  return log;
}

const rethrow = (_log: Log, error: unknown): never => {
  throw error;
};

const goOn = (log: Log, error: unknown): void => {
  if (!isNostosError(error)) throw error;
  assert.ok(['DISK_FULL', 'IO_FAILED', 'TERM_ENDED'].includes(error.code), error.message);
  if (log.state === 'failed') log.reopen();
};

/** All that was acknowledged is there, the files are what their records make, and nothing else is wrong. */
async function check(disk: FaultyDisk, acknowledged: Acknowledged, knownWatermark: number): Promise<void> {
  const log = openLog(disk, knownWatermark);
  const records = [...log.read({ from: log.firstLsn })].flatMap((batch) => batch.records.map(({ record }) => record));
  assert.ok(log.end.lsn >= acknowledged.size, `ends at ${log.end.lsn}, acknowledged ${acknowledged.size}`);
  for (const record of records) {
    const expected = acknowledged.get(record.lsn);
    if (expected !== undefined) assert.deepEqual(Buffer.from(record.bytes), expected, `LSN ${record.lsn}`);
  }
  const start = {
    number: log.sealed[0]?.number ?? log.openSegment,
    anchor: log.anchor,
    segmentBytesMax: OPTIONS.segmentBytesMax,
  };
  const expected = layoutSegments(
    start,
    records.map((record) => record.bytes),
  );
  for (const [name, bytes] of expected)
    assert.deepEqual(Buffer.from(disk.bytes(`${DIR}/${name}`)).subarray(0, bytes.length), bytes, name);
  assert.equal(expected.size, log.sealed.length + 1);
  // And it serves again.
  log.startTerm((log.end.term + 1) as Term, Buffer.from('after'));
  log.append(group(1, 3));
  log.sync();
  log.close();
  assert.equal(disk.openFiles, 0, 'no file is left open');
  const verified = await verifyLog({ disk, dir: DIR });
  assert.deepEqual(verified.damages, []);
}

function stepsOfWorkload(): readonly { number: number; kind: StepKind }[] {
  const disk = new FaultyDisk();
  workload(disk, new Map(), rethrow).close();
  return [...disk.trace];
}

test('a power cut at any step loses nothing that was synced, and leaves no hole', async () => {
  const steps = stepsOfWorkload();
  assert.ok(steps.length > 100);
  for (const { number } of steps)
    for (let seed = 0; seed < 6; seed++) {
      const disk = new FaultyDisk();
      const acknowledged: Acknowledged = new Map();
      disk.inject({ atStep: number, kind: 'power' });
      assert.throws(() => workload(disk, acknowledged, rethrow), PowerCut);
      assert.equal(disk.fired.length, 1);
      await check(disk.crash(seededRandom(number * 100 + seed)), acknowledged, seed % 2 === 0 ? acknowledged.size : 0);
    }
});

test('a second power cut, while recovering from the first, changes nothing of that', async () => {
  let fired = 0;
  for (const { number } of stepsOfWorkload().filter((step) => step.number % 5 === 0))
    for (let second = 0; second < 6; second++) {
      const disk = new FaultyDisk();
      const acknowledged: Acknowledged = new Map();
      disk.inject({ atStep: number, kind: 'power' });
      assert.throws(() => workload(disk, acknowledged, rethrow), PowerCut);
      let after = disk.crash(seededRandom(number));
      after.inject({ atStep: second, kind: 'power' });
      try {
        openLog(after, acknowledged.size).close();
      } catch (error) {
        assert.ok(error instanceof PowerCut);
        fired += 1;
      }
      after.inject(undefined);
      after = after.crash(seededRandom(number + second));
      await check(after, acknowledged, acknowledged.size);
    }
  assert.ok(fired > 50, `${fired} cuts while recovering`);
});

for (const kind of ['ENOSPC', 'EIO'] as const)
  for (const repeat of [0, 2])
    test(`${kind}${repeat > 0 ? ' that lasts' : ''} at any write or sync loses nothing that was synced, and service goes on`, async () => {
      const struck = new Set<StepKind>();
      for (const { number } of stepsOfWorkload()) {
        const disk = new FaultyDisk();
        const acknowledged: Acknowledged = new Map();
        disk.inject({ atStep: number, kind, repeat });
        let log: Log | undefined;
        try {
          log = workload(disk, acknowledged, (failed, error) => {
            try {
              goOn(failed, error);
            } catch (again) {
              if (!isNostosError(again, 'IO_FAILED') && !isNostosError(again, 'DISK_FULL')) throw again;
            }
          });
        } catch (error) {
          assert.ok(isNostosError(error), String(error));
          assert.equal(acknowledged.size, 0, `only opening may fail for good: ${error.message}`);
        }
        for (const step of disk.fired) struck.add(step.kind);
        if (number < 100) assert.ok(disk.fired.length > 0);
        disk.inject(undefined);
        if (log !== undefined) {
          assert.equal(log.end.lsn, acknowledged.size);
          log.close();
        }
        assert.equal(disk.openFiles, 0, 'no file is left open');
        await check(disk.crash(seededRandom(number)), acknowledged, acknowledged.size);
      }
      assert.ok(struck.has('write') && struck.has('create') && struck.has('rename'));
      assert.equal(struck.has('sync') && struck.has('sync-directory') && struck.has('remove'), kind === 'EIO');
    });

test('random walks over faults find no loss', async () => {
  const totals = await simulateLog({ seeds: Array.from({ length: 250 }, (_, seed) => seed) });
  for (const [what, count] of Object.entries(totals)) assert.ok(count > 20, `${what} happened ${count} times`);
});
