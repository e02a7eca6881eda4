/**
 * A fault at every step that a restore makes on its disk, and at every step of finishing it afterwards. Whatever
 * happens, the directory holds all the old files and no plan, or a plan that leads to all the new ones.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { systemClock } from '../../base/clock.ts';
import { isNostosError } from '../../base/errors.ts';
import { seededRandom } from '../../base/random.ts';
import type { InjectedFault } from '../../testing/faulty-disk.ts';
import { FaultyDisk, PowerCut } from '../../testing/faulty-disk.ts';
import { STAGING, finishSwap } from './local-directory.ts';
import { NetworkRestore } from './network-restore.ts';
import type { Files } from './peers.fixture.ts';
import { bodyOf, configFor, peerThat } from './peers.fixture.ts';

const DIR = '/data/env';
const OLD: Files = {
  '00000001.ndb': 'old one',
  '00000002.ndb': 'old two',
  '00000007.ndb': 'stale',
  '00000008.ndb': 'stale too',
};
const INCOMING: Files = { '00000001.ndb': 'new one', '00000002.ndb': 'new two', '00000003.ndb': 'new'.repeat(500) };
const SET_ASIDE = Object.fromEntries(Object.entries(OLD).map(([name, text]) => [`${name}.bak`, text]));
const SEEDS = Array.from({ length: 10 }, (_, i) => i);

function oldDirectory(): FaultyDisk {
  const disk = new FaultyDisk({ directories: 'synced' });
  disk.makeDirectory(DIR);
  disk.syncDirectory('/');
  disk.syncDirectory('/data');
  for (const [name, text] of Object.entries(OLD)) {
    const file = disk.open(`${DIR}/${name}`, 'create');
    file.write(Buffer.from(text), 0);
    file.sync();
    file.close();
  }
  disk.syncDirectory(DIR);
  return disk;
}

function contentOf(disk: FaultyDisk): Files {
  const names = disk.list(DIR).filter((name) => name !== STAGING);
  return Object.fromEntries(names.map((name) => [name, Buffer.from(disk.bytes(`${DIR}/${name}`)).toString()]));
}

const hasPlan = (disk: FaultyDisk): boolean => disk.exists(`${DIR}/${STAGING}/plan.json`);

/** The old files without a plan, or the new ones once the plan, if there is one, is through. */
function checkRecoverable(disk: FaultyDisk, expected: Files, where: string): 'old' | 'new' | 'finished' {
  if (hasPlan(disk)) {
    assert.ok(finishSwap(disk, DIR) !== undefined);
    assert.deepEqual(contentOf(disk), expected, where);
    assert.ok(!hasPlan(disk));
    return 'finished';
  }
  const found = contentOf(disk);
  const which = '00000003.ndb' in found ? 'new' : 'old';
  assert.deepEqual(found, which === 'new' ? expected : OLD, where);
  assert.equal(finishSwap(disk, DIR), undefined);
  return which;
}

function finishUntilCut(disk: FaultyDisk): void {
  try {
    finishSwap(disk, DIR);
  } catch (error) {
    assert.ok(error instanceof PowerCut || isNostosError(error, 'RESTORE_UNFINISHED'), String(error));
  }
}

for (const retainLogFiles of [true, false]) {
  const expected = retainLogFiles ? { ...INCOMING, ...SET_ASIDE } : INCOMING;

  test(`power cut, full disk and bad disk at every step; ${retainLogFiles ? 'old files kept' : 'old files removed'}`, async (t) => {
    const peer = await peerThat(t, (socket) => void socket.end(bodyOf(INCOMING)));
    const run = async (disk: FaultyDisk): Promise<unknown> => {
      const deps = { disk, clock: systemClock, lock: async () => ({ release() {} }) };
      const restore = new NetworkRestore(configFor(peer.port, { retainLogFiles }), {}, deps).withLocalDir(DIR);
      const error: unknown = await restore.execute().then(
        () => undefined,
        (reason: unknown) => reason,
      );
      assert.equal(restore.getState(), error === undefined ? 'Completed' : 'Failed');
      return error;
    };

    const clean = oldDirectory();
    const from = clean.trace.length;
    assert.equal(await run(clean), undefined);
    assert.deepEqual(contentOf(clean), expected);
    assert.ok(!clean.exists(`${DIR}/${STAGING}`));
    const steps = clean.trace.slice(from);
    assert.ok(steps.length > 25, `${steps.length} steps`);

    const outcomes = { old: 0, new: 0, finished: 0 };
    const struck = new Set<string>();
    let finishesCut = 0;
    for (const { number, kind: step } of steps)
      for (const kind of ['power', 'ENOSPC', 'EIO'] as const)
        for (const repeat of kind === 'power' ? [0] : [0, 1000]) {
          const fault: InjectedFault = { atStep: number, kind, repeat };
          const where = `${kind} at step ${number}, ${step}, and ${repeat} more`;
          const disk = oldDirectory();
          disk.inject(fault);
          const error = await run(disk);
          // Late in a run, no step may be left that a full disk can fail.
          if (disk.fired.length === 0) {
            assert.equal(kind, 'ENOSPC', where);
            continue;
          }
          struck.add(`${kind} ${disk.fired[0]!.kind}`);
          assert.equal(disk.openFiles, 0, where);
          if (kind !== 'power') {
            const codes = ['DISK_FULL', 'IO_FAILED', 'RESTORE_UNFINISHED'] as const;
            assert.ok(
              error === undefined || codes.some((code) => isNostosError(error, code)),
              `${where}: ${String(error)}`,
            );
            if (isNostosError(error, 'RESTORE_UNFINISHED')) assert.ok(hasPlan(disk) || kind === 'EIO', where);
            else if (error !== undefined) assert.ok(!hasPlan(disk) || repeat > 0 || kind === 'EIO', where);
            // The machine goes on, and the disk works again.
            const after = disk.clone();
            outcomes[checkRecoverable(after, expected, where)] += 1;
            // Or it loses power while the next run finishes what this one could only begin.
            for (let step = 0; hasPlan(disk) && step < 9; step++) {
              const cut = disk.clone();
              cut.inject({ atStep: cut.trace.length + step, kind: 'power' });
              finishUntilCut(cut);
              if (cut.fired.length === 0) break;
              finishesCut += 1;
              for (const seed of SEEDS)
                checkRecoverable(cut.crash(seededRandom(seed * 1000 + number)), expected, `${where}, cut at ${step}`);
            }
          }
          for (const seed of SEEDS) {
            const after = disk.crash(seededRandom(seed * 1000 + number));
            const again = after.clone();
            outcomes[checkRecoverable(after, expected, `${where}, seed ${seed}`)] += 1;
            // The next run gets there too, whatever was left.
            if (seed > 2) continue;
            const already = '00000003.ndb' in contentOf(again) || hasPlan(again);
            assert.equal(await run(again), undefined, where);
            const { '00000003.ndb': third, '00000001.ndb': first } = contentOf(again);
            assert.deepEqual([first, third], [INCOMING['00000001.ndb'], INCOMING['00000003.ndb']], where);
            if (!already) assert.deepEqual(contentOf(again), expected, where);
          }
        }
    assert.ok(outcomes.old > 100 && outcomes.new > 50 && outcomes.finished > 50, JSON.stringify(outcomes));
    assert.ok(finishesCut > 50, `${finishesCut} cut`);
    for (const kind of ['power', 'EIO'] as const)
      for (const step of ['create', 'write', 'sync', 'sync-directory', 'rename', 'remove'])
        assert.ok(struck.has(`${kind} ${step}`), `${kind} struck no ${step}`);
    for (const step of ['create', 'write', 'rename'])
      assert.ok(struck.has(`ENOSPC ${step}`), `ENOSPC struck no ${step}`);
  });

  test(`finishing is cut off at every step, again and again; ${retainLogFiles ? 'old files kept' : 'old files removed'}`, async (t) => {
    const peer = await peerThat(t, (socket) => void socket.end(bodyOf(INCOMING)));
    const deps = (disk: FaultyDisk) => ({ disk, clock: systemClock, lock: async () => ({ release() {} }) });
    const started = oldDirectory();
    const begin = started.trace.length;
    await new NetworkRestore(configFor(peer.port, { retainLogFiles }), {}, deps(started)).withLocalDir(DIR).execute();
    const planned = started.trace.findIndex((step, i) => i > begin && step.kind === 'rename');
    let cuts = 0;
    for (let number = planned + 2; number < started.trace.length; number++)
      for (const seed of SEEDS) {
        const disk = oldDirectory();
        disk.inject({ atStep: number, kind: 'power' });
        const restore = new NetworkRestore(configFor(peer.port, { retainLogFiles }), {}, deps(disk)).withLocalDir(DIR);
        await restore.execute().catch(() => {});
        assert.equal(disk.fired.length, 1);
        let left = disk.crash(seededRandom(seed * 1000 + number));
        for (let round = 0; hasPlan(left) && round < 3; round++) {
          const before = left.clone();
          left.inject({ atStep: left.trace.length + ((seed + round * 3) % 9), kind: 'power' });
          finishUntilCut(left);
          if (left.fired.length === 0) {
            left = before;
            break;
          }
          cuts += 1;
          left = left.crash(seededRandom(seed * 1000 + number * 10 + round));
        }
        checkRecoverable(left, expected, `step ${number}, seed ${seed}`);
      }
    assert.ok(cuts > 40, `${cuts} cuts`);
  });
}

test('a plan whose files are gone or changed is refused, changes nothing, and says what to do', async (t) => {
  const peer = await peerThat(t, (socket) => void socket.end(bodyOf(INCOMING)));
  const cutOff = async (): Promise<FaultyDisk> => {
    const disk = oldDirectory();
    const probe = oldDirectory();
    const deps = (one: FaultyDisk) => ({ disk: one, clock: systemClock, lock: async () => ({ release() {} }) });
    const run = (one: FaultyDisk) =>
      new NetworkRestore(configFor(peer.port), {}, deps(one)).withLocalDir(DIR).execute();
    await run(probe);
    const renames = probe.trace.filter((step) => step.kind === 'rename');
    disk.inject({ atStep: renames[1]!.number, kind: 'EIO' });
    await assert.rejects(run(disk), (error) => isNostosError(error, 'RESTORE_UNFINISHED'));
    assert.deepEqual(contentOf(disk), OLD);
    return disk;
  };
  const staged = `${DIR}/${STAGING}/1.tmp`;
  const damages: Record<string, (disk: FaultyDisk) => void> = {
    gone: (disk) => disk.remove(staged),
    changed: (disk) => disk.flip(staged, 3, 0),
  };
  for (const damage of Object.values(damages)) {
    const disk = await cutOff();
    damage(disk);
    assert.throws(
      () => finishSwap(disk, DIR),
      (error) =>
        isNostosError(error, 'RESTORE_UNFINISHED') && error.message.includes('"00000002.ndb" of it is gone or changed'),
    );
    assert.deepEqual(contentOf(disk), OLD);
  }
  for (const bad of ['', '{}', '{"format":2}', '{"format":1,"files":[],"setAside":[],"remove":["../../etc/passwd"]}']) {
    const disk = await cutOff();
    disk.overwrite(`${DIR}/${STAGING}/plan.json`, () => Buffer.from(bad));
    assert.throws(
      () => finishSwap(disk, DIR),
      (error) => isNostosError(error, 'UNSUPPORTED_FORMAT'),
    );
    assert.deepEqual(contentOf(disk), OLD);
  }
});

test('a file that has arrived stays where it is, also when the one it replaced was taken away', async (t) => {
  const peer = await peerThat(t, (socket) => void socket.end(bodyOf(INCOMING)));
  const disk = oldDirectory();
  const clean = oldDirectory();
  const run = (one: FaultyDisk) => {
    const deps = { disk: one, clock: systemClock, lock: async () => ({ release() {} }) };
    return new NetworkRestore(configFor(peer.port), {}, deps).withLocalDir(DIR).execute();
  };
  await run(clean);
  const arrivals = clean.trace.filter((step) => step.kind === 'rename' && step.path.endsWith('.tmp'));
  disk.inject({ atStep: arrivals.at(-1)!.number, kind: 'EIO' });
  await assert.rejects(run(disk), (error) => isNostosError(error, 'RESTORE_UNFINISHED'));
  disk.remove(`${DIR}/00000001.ndb.bak`);
  finishSwap(disk, DIR);
  const { '00000001.ndb.bak': _, ...kept } = SET_ASIDE;
  assert.deepEqual(contentOf(disk), { ...INCOMING, ...kept });
});

test('what does not fit is refused before it is written', async (t) => {
  const peer = await peerThat(t, (socket) => void socket.end(bodyOf(INCOMING)));
  const disk = oldDirectory();
  const deps = { disk, clock: systemClock, lock: async () => ({ release() {} }) };
  disk.free = 1000 + 14 + 100;
  const restore = new NetworkRestore(configFor(peer.port), { diskReserveBytes: 1000 }, deps).withLocalDir(DIR);
  await assert.rejects(
    restore.execute(),
    (error) => isNostosError(error, 'DISK_FULL') && /1500 bytes .* 1114 are free/.test(error.message),
  );
  assert.equal(restore.getProgress().filesTransferred, 2);
  assert.deepEqual(contentOf(disk), OLD);
  assert.ok(!disk.exists(`${DIR}/${STAGING}`));
});
