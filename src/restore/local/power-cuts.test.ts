import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isNostosError } from '../../base/errors.ts';
import { seededRandom } from '../../base/random.ts';
import { PowerCut, type InjectedFault } from '../../testing/faulty-disk.ts';
import {
  assertSound,
  depsOf,
  makeWorld,
  restoreInto,
  simulateRestore,
  type World,
} from '../../testing/restore-simulation.ts';
import { abandonRestore } from './restore-directory.ts';
import { readMarker } from './marker.ts';

const DIR = '/data/node';
/** Seeds whose directories have something to lose, in each of the ways. */
const WORLDS = [1, 2, 3, 4, 5, 6];

const FAULTS: readonly { readonly name: string; readonly kind: InjectedFault['kind']; readonly repeat?: number }[] = [
  { name: 'a power cut', kind: 'power' },
  { name: 'a full disk', kind: 'ENOSPC' },
  { name: 'a full disk that stays full for a while', kind: 'ENOSPC', repeat: 3 },
  { name: 'a failing disk', kind: 'EIO' },
];

async function stepsWithoutFault(seed: number): Promise<number> {
  const world = makeWorld(seededRandom(seed));
  await restoreInto(world, world.disk);
  assert.equal(assertSound(world, world.disk), 'restored');
  return world.disk.trace.length;
}

/** The step after which the marker says `swapping`. */
async function stepsOfSwap(seed: number): Promise<{ readonly begins: number }> {
  const world = makeWorld(seededRandom(seed));
  await restoreInto(world, world.disk);
  const renames = world.disk.trace.filter(({ kind, path }) => kind === 'rename' && path.endsWith('restore.marker.tmp'));
  return { begins: renames[1]!.number };
}

async function faulty(world: World, fault: InjectedFault): Promise<unknown> {
  world.disk.inject(fault);
  const error = await restoreInto(world, world.disk).then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  world.disk.inject(undefined);
  return error;
}

for (const { name, kind, repeat = 0 } of FAULTS)
  test(`${name} at any step: the directory is as it was, or refuses to open and is resumed to the end`, async () => {
    let fired = 0;
    for (const seed of WORLDS) {
      const steps = await stepsWithoutFault(seed);
      for (let atStep = 0; atStep < steps; atStep++) {
        const world = makeWorld(seededRandom(seed));
        const error = await faulty(world, { atStep, kind, repeat });
        fired += world.disk.fired.length > 0 ? 1 : 0;
        assert.ok(
          error === undefined ||
            error instanceof PowerCut ||
            isNostosError(error, 'DISK_FULL') ||
            isNostosError(error, 'IO_FAILED'),
          String(error),
        );
        const disk = kind === 'power' ? world.disk.crash(seededRandom(atStep)) : world.disk;
        const state = assertSound(world, disk);
        if (state !== 'restored') await restoreInto(world, disk);
        assert.equal(assertSound(world, disk), 'restored');
        const later = disk.crash(seededRandom(atStep));
        // The last step is to make the removal of the marker durable; if that failed it may be back.
        if (error !== undefined && state === 'restored' && assertSound(world, later) === 'unfinished')
          await restoreInto(world, later);
        assert.equal(assertSound(world, later), 'restored');
      }
    }
    assert.ok(fired > 200, `fired ${fired} times`);
  });

test('a power cut at any step, then giving up: as it was, or too late for that', async () => {
  const seen = { gaveUp: 0, wentBack: 0, tooLate: 0, nothing: 0 };
  for (const seed of WORLDS) {
    const steps = await stepsWithoutFault(seed);
    for (let atStep = 0; atStep < steps; atStep++) {
      const world = makeWorld(seededRandom(seed));
      await faulty(world, { atStep, kind: 'power' });
      const disk = world.disk.crash(seededRandom(atStep + 1));
      const phase = disk.exists(DIR) ? readMarker(disk, DIR)?.phase : undefined;
      const error = await abandonRestore(depsOf(world, disk), { dir: DIR }).then(
        () => undefined,
        (thrown: unknown) => thrown,
      );
      if (phase === 'fetching') {
        assert.equal(error, undefined);
        assert.equal(assertSound(world, disk.crash(seededRandom(atStep))), 'as-it-was');
        seen.gaveUp += 1;
      } else if (phase === 'swapping' && error === undefined) {
        assert.equal(assertSound(world, disk.crash(seededRandom(atStep))), 'as-it-was');
        seen.wentBack += 1;
      } else if (phase === undefined) {
        assert.ok(isNostosError(error, 'INVALID_ARGUMENT'), String(error));
        seen.nothing += 1;
      } else {
        assert.ok(isNostosError(error, 'RESTORE_UNFINISHED'), String(error));
        assert.equal(assertSound(world, disk), 'unfinished');
        seen.tooLate += 1;
      }
    }
  }
  assert.ok(seen.gaveUp > 50 && seen.wentBack > 20 && seen.tooLate > 20 && seen.nothing > 5, JSON.stringify(seen));
});

/** Where a failing disk leaves a restore, and the step of giving it up before which the power goes. */
const GIVEN_UP = [
  {
    name: 'while it fetched',
    phase: 'fetching',
    failAt: async (world: World, seed: number) =>
      world.disk.trace.length + Math.floor((await stepsWithoutFault(seed)) / 3),
    cutAt: (cut: number) => cut,
  },
  {
    // Of the entries that are set aside some are, when the disk begins to fail.
    name: 'when its swap had begun',
    phase: 'swapping',
    failAt: async (_: World, seed: number, cut: number) => (await stepsOfSwap(seed)).begins + 2 + (cut % 3),
    cutAt: (cut: number) => Math.floor(cut / 3),
  },
] as const;

for (const { name, phase, failAt, cutAt } of GIVEN_UP)
  test(`a power cut while a restore is given up ${name}: that, or the restore, goes on to the end`, async () => {
    let cuts = 0;
    for (const seed of WORLDS)
      for (let cut = 0; ; cut++) {
        const world = makeWorld(seededRandom(seed));
        await faulty(world, { atStep: await failAt(world, seed, cut), kind: 'EIO', repeat: 2 });
        const { disk } = world;
        if (readMarker(disk, DIR)?.phase !== phase) break;
        disk.inject({ atStep: disk.trace.length + cutAt(cut), kind: 'power' });
        const error = await abandonRestore(depsOf(world, disk), { dir: DIR }).then(
          () => undefined,
          (thrown: unknown) => thrown,
        );
        if (error === undefined) break;
        cuts += 1;
        const after = disk.crash(seededRandom(cut));
        const state = assertSound(world, after);
        assert.notEqual(state, 'restored');
        if (state === 'unfinished' && cut % 2 === 0) {
          await abandonRestore(depsOf(world, after), { dir: DIR });
          assert.equal(assertSound(world, after.crash(seededRandom(cut))), 'as-it-was');
        } else {
          await restoreInto(world, after);
          assert.equal(assertSound(world, after), 'restored');
        }
      }
    assert.ok(cuts > 20, `${cuts} cuts`);
  });

test('random walks over faults, kills and power cuts end whole or as it was', async () => {
  const totals = await simulateRestore({ seeds: Array.from({ length: 150 }, (_, seed) => seed) });
  for (const [what, count] of Object.entries(totals)) assert.ok(count > 5, `${what}: ${count}`);
});
