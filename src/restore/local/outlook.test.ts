import assert from 'node:assert/strict';
import { test } from 'node:test';
import { toClusterId, toGeneration, toNodeId, toStoreId } from '../../base/brands.ts';
import { writeDurably } from '../../base/durable-file.ts';
import { isNostosError, type ErrorCode } from '../../base/errors.ts';
import { seededRandom } from '../../base/random.ts';
import { FaultyDisk } from '../../testing/faulty-disk.ts';
import { assertSound, depsOf, makeWorld, optionsOf, restoreInto } from '../../testing/restore-simulation.ts';
import { parseItemName } from '../item-name.ts';
import type { RestorePlan } from '../source.ts';
import type { DirectoryIdentity } from './identity.ts';
import { readMarker } from './marker.ts';
import { assertReplaceable, historyOf, lookAhead } from './outlook.ts';
import { abandonRestore, restoreDirectory } from './restore-directory.ts';
import { ownedByNode } from './swap.ts';

const id = (digit: string): string => digit.repeat(32);
const plan: RestorePlan = {
  kind: 'node',
  cluster: id('c'),
  generation: id('1'),
  store: id('b'),
  node: id('a'),
  term: 1,
  watermark: 9,
  items: ['tenant/1', 'tenant/2', 'tenant/3'].map((name) => ({ name: parseItemName(name), bytes: 1_000 })),
  tailBytes: 500,
};
const own: DirectoryIdentity = {
  node: toNodeId(id('d')),
  store: toStoreId(id('e')),
  cluster: toClusterId(id('c')),
  generation: toGeneration(id('1')),
};

test('what is there is counted as fetched or reusable, the rest as missing, and all but the fetched needs room', () => {
  const disk = new FaultyDisk();
  disk.free = 10_000;
  for (const [path, size] of [
    ['restore/tenants/tenant_1/data.sqlite', 400],
    ['tenants/tenant_1/data.sqlite', 1_000],
    ['tenants/tenant_2/data.sqlite', 2_000],
    ['log/00000001.ndb', 200],
    ['set-aside.3/log/terms', 10],
  ] as const) {
    disk.makeDirectory(`/d/${path.slice(0, path.lastIndexOf('/'))}`);
    writeDurably(disk, `/d/${path}`, Buffer.alloc(size));
  }
  assert.deepEqual(lookAhead(disk, { dir: '/d', plan, reserveBytes: 64 }), {
    total: { files: 3, bytes: 3_500 },
    staged: { files: 1, bytes: 400 },
    reusable: { files: 1, bytes: 1_200 },
    missing: { files: 1, bytes: 1_900 },
    setAside: { as: 'set-aside.4', names: ['log', 'tenants'] },
    space: { neededBytes: 3_100, reserveBytes: 64, freeBytes: 10_000, enough: true },
  });
  disk.free = 3_163;
  assert.equal(lookAhead(disk, { dir: '/d', plan, reserveBytes: 64 }).space.enough, false);
  assert.equal(lookAhead(disk, { dir: '/d/not/there/yet', plan, reserveBytes: 64 }).space.freeBytes, 3_163);
});

test('a disk without room refuses a restore before anything is changed', async () => {
  for (const seed of [1, 2, 3, 4]) {
    const world = makeWorld(seededRandom(seed));
    world.disk.free = 10;
    await assert.rejects(
      restoreInto(world, world.disk),
      (error: unknown) =>
        isNostosError(error, 'DISK_FULL') && /make room/.test(error.message) && error.details['freeBytes'] === 10,
    );
    world.disk.free = 1_000_000;
    const existed = world.before.size > 0;
    if (existed) assert.equal(assertSound(world, world.disk), 'as-it-was');
    await restoreInto(world, world.disk);
    assert.equal(assertSound(world, world.disk), 'restored');
  }
});

test('a mount point that would be renamed is refused before anything is changed; others are not looked at', async () => {
  const world = makeWorld(seededRandom(2));
  for (const mounted of ['/data/node/log', '/data/node/tenants/tenant_1']) {
    const { disk } = world;
    disk.mounts = [mounted];
    const steps = disk.trace.length;
    await assert.rejects(
      restoreInto(world, disk),
      (error: unknown) =>
        isNostosError(error, 'INVALID_ARGUMENT') && /(?:log|tenants) in .* mount point.*Mount/s.test(error.message),
    );
    assert.deepEqual(
      disk.trace.slice(steps).filter(({ kind }) => kind !== 'sync-directory'),
      [],
    );
  }
  world.disk.mounts = ['/data/node/lost+found', '/data/node'];
  await restoreInto(world, world.disk);
  assert.equal(assertSound(world, world.disk), 'restored');
});

test('what the system will not rename, seen too late: the error says how to go back, and that works', async () => {
  const worlds = [1, 2, 3, 4, 5, 6, 7, 8].map((seed) => makeWorld(seededRandom(seed)));
  const world = worlds.find(({ before }) => before.has('node.json') && before.has('log/terms'))!;
  const { disk } = world;
  const last = disk.list('/data/node').findLast(ownedByNode)!;
  disk.mounts = [`/data/node/${last}`];
  disk.mountsIn = () => [];
  await assert.rejects(
    restoreInto(world, disk),
    (error: unknown) => isNostosError(error, 'IO_FAILED') && /EBUSY.*--abandon/s.test(error.message),
  );
  const marker = readMarker(disk, '/data/node')!;
  assert.ok(marker.phase === 'swapping' && !disk.exists('/data/node/log'), 'some of it was set aside');
  assert.equal(assertSound(world, disk), 'unfinished');
  await abandonRestore(depsOf(world, disk), { dir: '/data/node' });
  assert.equal(assertSound(world, disk), 'as-it-was');
});

test('what is mounted while a restore runs is seen before the swap, and giving up returns to what was there', async () => {
  const world = makeWorld(seededRandom(2));
  const { disk } = world;
  const run = restoreDirectory(
    {
      ...depsOf(world, disk),
      verify: async (...args) => {
        const verified = await depsOf(world, disk).verify(...args);
        disk.mounts = ['/data/node/log'];
        return verified;
      },
    },
    optionsOf(world, disk),
  );
  await assert.rejects(run, (error: unknown) => isNostosError(error, 'INVALID_ARGUMENT'));
  assert.equal(readMarker(disk, '/data/node')?.phase, 'fetching');
  await abandonRestore(depsOf(world, disk), { dir: '/data/node' });
  assert.equal(assertSound(world, disk), 'as-it-was');
});

const TABLE: readonly {
  readonly name: string;
  readonly own?: Partial<DirectoryIdentity>;
  readonly none?: true;
  readonly replace?: true;
  readonly refused?: ErrorCode;
}[] = [
  { name: 'a directory without identity', none: true },
  { name: 'the same history' },
  { name: 'another generation', own: { generation: toGeneration(id('2')) }, refused: 'DIRECTORY_FOREIGN' },
  { name: 'another cluster', own: { cluster: toClusterId(id('4')) }, refused: 'DIRECTORY_FOREIGN' },
  { name: 'another generation, replaced', own: { generation: toGeneration(id('2')) }, replace: true },
  { name: 'another cluster, replaced', own: { cluster: toClusterId(id('4')) }, replace: true },
  { name: 'the source itself', own: { store: toStoreId(id('b')) }, refused: 'INVALID_ARGUMENT' },
  {
    name: 'the source itself, replaced',
    own: { store: toStoreId(id('b')) },
    replace: true,
    refused: 'INVALID_ARGUMENT',
  },
];

for (const { name, own: changes, none, replace = false, refused } of TABLE)
  test(`${name}: ${refused ?? 'may be replaced'}`, () => {
    const run = (): void => assertReplaceable(none ? undefined : { ...own, ...changes }, { dir: '/d', plan, replace });
    if (refused === undefined) run();
    else assert.throws(run, (error: unknown) => isNostosError(error, refused) && error.message.includes('/d'));
  });

test('a directory of plain files has no history to restore', () => {
  for (const one of [{ kind: 'files' }, { cluster: null }, { generation: null }] as const)
    assert.throws(
      () => historyOf({ ...plan, ...one }),
      (error: unknown) => isNostosError(error, 'INVALID_ARGUMENT') && /plain files/.test(error.message),
    );
});
