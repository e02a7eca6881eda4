import assert from 'node:assert/strict';
import { test } from 'node:test';
import { seededRandom } from '../../base/random.ts';
import { FaultyDisk, PowerCut, type InjectedFault } from '../../testing/faulty-disk.ts';
import { DIR } from '../file/tail.fixture.ts';
import { FileJournal } from './journal.ts';
import {
  REQUEST,
  World,
  assertNothingLost,
  assertRolledBack,
  formatNode,
  isDiskError,
  openRunner,
} from './simulated-node.fixture.ts';

function newDisk(): FaultyDisk {
  const disk = new FaultyDisk({ directories: 'synced' });
  formatNode(disk);
  return disk;
}

async function stepsWithoutFault(): Promise<{ readonly first: number; readonly steps: number }> {
  const [disk, world] = [newDisk(), new World()];
  const first = disk.trace.length;
  const result = await openRunner(disk, world).run(REQUEST);
  assert.deepEqual([result.kind, result.rejoined, result.announced, result.counter], ['rolled-back', true, true, 1]);
  await assertRolledBack(disk, world);
  return { first, steps: disk.trace.length };
}

const FAULTS: readonly { readonly name: string; readonly kind: InjectedFault['kind']; readonly repeat?: number }[] = [
  { name: 'a power cut', kind: 'power' },
  { name: 'a full disk', kind: 'ENOSPC' },
  { name: 'a disk that stays full for a while', kind: 'ENOSPC', repeat: 4 },
  { name: 'a failing disk', kind: 'EIO' },
  { name: 'a disk that fails for a while', kind: 'EIO', repeat: 3 },
];

for (const { name, kind, repeat = 0 } of FAULTS)
  test(`${name} at any step: nothing is lost, and the next run ends it with the same plan and file`, async () => {
    const { first, steps } = await stepsWithoutFault();
    const states = new Map<string, number>();
    let fired = 0;
    for (let atStep = first; atStep < steps; atStep++)
      for (let seed = 0; seed < (kind === 'power' ? 8 : 1); seed++) {
        const [disk, world] = [newDisk(), new World()];
        disk.inject({ atStep, kind, repeat });
        const error = await openRunner(disk, world)
          .run(REQUEST)
          .catch((thrown: unknown) => thrown);
        fired += disk.fired.length > 0 ? 1 : 0;
        assert.ok(!(error instanceof Error) || error instanceof PowerCut || isDiskError(error), String(error));
        disk.inject(undefined);
        const after = kind === 'power' ? disk.crash(seededRandom(seed * 1_000 + atStep)) : disk;
        await assertNothingLost(after);
        const { intent } = new FileJournal(after, DIR).load();
        states.set(intent?.state ?? 'none', (states.get(intent?.state ?? 'none') ?? 0) + 1);
        // Another run has other random bytes: an id that stays is one that was read.
        const again = openRunner(after, world, { seed: 2 });
        if (intent?.state !== 'rejoined') await again.run(REQUEST);
        await again.deliver();
        await assertRolledBack(after, world, intent === undefined ? {} : { id: intent.plan.id });
        assert.equal(after.openFiles, 0);
        // What it has said holds after one more power cut.
        await assertRolledBack(after.crash(seededRandom(atStep)), world);
      }
    assert.ok(fired >= 30, `fired ${fired} times`);
    for (const state of ['planned', 'preserved', 'recovering', 'recovered', 'announced'])
      assert.ok((states.get(state) ?? 0) > 0, `${state} was never found: ${JSON.stringify([...states])}`);
  });

test('a disk that fails at any step, and the power that goes in the midst of the next run', async () => {
  const { first, steps } = await stepsWithoutFault();
  let cuts = 0;
  for (let atStep = first; atStep < steps; atStep++)
    for (let cut = 0; ; cut++) {
      const [disk, world] = [newDisk(), new World()];
      disk.inject({ atStep, kind: 'EIO' });
      await openRunner(disk, world)
        .run(REQUEST)
        .catch(() => {});
      disk.inject({ atStep: disk.trace.length + cut, kind: 'power' });
      const before = disk.fired.length;
      await openRunner(disk, world, { seed: 2 })
        .run(REQUEST)
        .catch(() => {});
      if (disk.fired.length === before) break;
      cuts += 1;
      const after = disk.crash(seededRandom(atStep * 1_000 + cut));
      await assertNothingLost(after);
      const again = openRunner(after, world, { seed: 3 });
      const { intent } = again.journal();
      if (intent?.state !== 'rejoined') await again.run(REQUEST);
      await again.deliver();
      await assertRolledBack(after, world, intent === undefined ? {} : { id: intent.plan.id });
    }
  assert.ok(cuts > 500, `the power went ${cuts} times`);
});

test('random faults one after another, while primaries change: rolled back once, told under one key, nothing lost', async () => {
  const random = seededRandom(1);
  const seen = { power: 0, disk: 0, host: 0, resumed: 0 };
  for (let seed = 0; seed < 400; seed++) {
    const world = new World();
    let disk = newDisk();
    let { primary } = REQUEST;
    let known: string | undefined;
    for (let attempt = 0; attempt < 6; attempt++) {
      if (random.chance(0.3)) primary = { address: `p${seed}.${attempt}`, term: primary.term + 1 };
      const kind = (['power', 'EIO', 'ENOSPC'] as const)[random.below(3)]!;
      const hostFails = random.chance(0.3);
      const atStep = disk.trace.length + random.below(25);
      disk.inject(hostFails ? undefined : { atStep, kind, repeat: random.below(3) });
      world.failCall = { number: world.calls.length + random.below(5), when: random.chance(0.5) ? 'before' : 'after' };
      if (!hostFails) world.failCall = undefined;
      const [struck, fired] = [disk.fired.length, world.fired];
      const runner = openRunner(disk, world, { seed: seed * 10 + attempt });
      await runner.run({ ...REQUEST, primary }).catch(() => {});
      if (disk.fired.length > struck) seen[kind === 'power' ? 'power' : 'disk'] += 1;
      if (world.fired > fired) seen.host += 1;
      disk.inject(undefined);
      world.failCall = undefined;
      if (kind === 'power' && disk.fired.length > struck) disk = disk.crash(random);
      await assertNothingLost(disk);
      const { intent, counter } = new FileJournal(disk, DIR).load();
      if (known !== undefined && intent?.plan.id === known) seen.resumed += 1;
      assert.ok(counter <= 1);
      known = intent?.plan.id;
    }
    const last = openRunner(disk, world, { seed: -1 });
    if (last.journal().intent?.state !== 'rejoined' || world.following?.primary !== primary)
      await last.run({ ...REQUEST, primary });
    await last.deliver();
    await assertRolledBack(disk, world, { primary });
  }
  for (const [name, count] of Object.entries(seen)) assert.ok(count > 20, `${name}: ${count}`);
});

for (const when of ['before', 'after'] as const)
  test(`each call of the host fails ${when} it has worked: the next run ends it, and every failure is told`, async () => {
    const clean = new World();
    await openRunner(newDisk(), clean).run(REQUEST);
    assert.deepEqual(clean.calls, ['look', 'freeze', 'preserve', 'recover', 'sink', 'rejoin']);
    for (let number = 0; number < clean.calls.length; number++) {
      const [disk, world] = [newDisk(), new World()];
      world.failCall = { number, when };
      const runner = openRunner(disk, world);
      const name = clean.calls[number]!;
      const result = await runner.run(REQUEST).catch((error: unknown) => error);
      assert.equal(world.fired, 1);
      await assertNothingLost(disk);
      if (name === 'rejoin')
        assert.partialDeepStrictEqual(result, { kind: 'rolled-back', rejoined: false, counter: 1 });
      else if (name === 'sink') assert.partialDeepStrictEqual(result, { rejoined: true, announced: false });
      else assert.ok(result instanceof Error);
      const failed = world.told.filter(({ kind }) => kind === 'failed');
      const told = ['preserve', 'recover', 'rejoin'].includes(name);
      assert.deepEqual(
        failed.map((notice) => notice.kind === 'failed' && notice.step),
        told ? [name] : [],
      );
      if (told) assert.equal(runner.journal().attempts, 1);
      if (runner.journal().intent?.state !== 'rejoined') await runner.run(REQUEST);
      await runner.deliver();
      await assertRolledBack(disk, world);
      if (name === 'sink' && when === 'after') assert.equal(world.told.length, 2, 'it was told once more');
    }
  });
