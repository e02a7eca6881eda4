/** What a run finds of one that died: all that may be wrong with it, beyond where it stopped. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { filesBelow } from '../../base/directory-tree.ts';
import { isNostosError } from '../../base/errors.ts';
import { FaultyDisk } from '../../testing/faulty-disk.ts';
import { RestoreExecutorError, type RestoreExecutorErrorKind } from './errors.ts';
import { RestoreExecutor } from './executor.ts';
import { JOURNAL, WORK } from './journal.ts';
import { RESTORE_MARKER } from './marker.ts';
import { LocalFsBackend } from './local-fs-backend.ts';
import { RESTORED, fillBackend, planOf } from './snapshot.fixture.ts';
import { RestoreMode, RestorePlanItemKind, type RestoreEvent, type RestorePlan } from './types.ts';

const DIR = '/srv/data';
const STAGED = `${DIR}/${WORK}/new/tenant_7`;
const MARKER = `${DIR}/${RESTORE_MARKER}`;
const JOURNAL_PATH = `${DIR}/${WORK}/${JOURNAL}`;
/** How often a run writes its journal up to there: as it begins, after each of three items, for the swap, after the swap. */
const SAVED = { begun: 1, 'one item': 2, 'all items': 4, swapping: 5, swapped: 6 } as const;

interface World {
  readonly disk: FaultyDisk;
  readonly plan: RestorePlan;
  run(change?: Partial<RestorePlan>, mode?: RestoreMode): Promise<readonly RestoreEvent[]>;
  abandon(): Promise<boolean>;
}

function put(disk: FaultyDisk, path: string, text: string): void {
  disk.makeDirectory(path.slice(0, path.lastIndexOf('/')));
  const file = disk.open(path, 'create');
  file.write(Buffer.from(text), 0);
  file.close();
}

const textOf = (disk: FaultyDisk, path: string): string => Buffer.from(disk.bytes(path)).toString();

function changeJournal(disk: FaultyDisk, change: (journal: Record<string, unknown>) => unknown): void {
  const journal = JSON.parse(textOf(disk, JOURNAL_PATH)) as Record<string, unknown>;
  put(disk, JOURNAL_PATH, JSON.stringify(change(journal) ?? journal));
}

/** A wipe that was killed just after its journal said so. */
async function killedWhen(state: keyof typeof SAVED): Promise<World> {
  const backend = await fillBackend(new LocalFsBackend('/backups', { disk: new FaultyDisk() }));
  const plan = await planOf(backend);
  const fresh = new FaultyDisk();
  put(fresh, `${DIR}/control.db`, 'control');
  put(fresh, `${DIR}/tenant_7/data.sqlite`, 'old');
  const start = (disk: FaultyDisk): RestoreExecutor =>
    new RestoreExecutor(backend, DIR, {}, { disk, lock: async () => ({ release() {} }) });
  const probe = fresh.clone();
  await start(probe).execute(plan, RestoreMode.WipeAndRestore);
  const saves = probe.trace.filter((step) => step.kind === 'rename' && step.path === `${JOURNAL_PATH}.tmp`);
  assert.equal(saves.length, SAVED.swapped);
  const killed = fresh.clone();
  killed.inject({ atStep: saves[SAVED[state] - 1]!.number + 2, kind: 'power' });
  await assert.rejects(start(killed).execute(plan, RestoreMode.WipeAndRestore));
  const disk = killed.clone();
  return {
    disk,
    plan,
    abandon: () => start(disk).abandon(),
    run: async (change = {}, mode = RestoreMode.WipeAndRestore) => {
      const events: RestoreEvent[] = [];
      await start(disk).execute({ ...plan, ...change }, mode, { onProgress: (event) => events.push(event) });
      return events;
    },
  };
}

const isRestored = (disk: FaultyDisk): void => {
  assert.deepEqual([...filesBelow(disk, DIR)].toSorted(), Object.keys(RESTORED).toSorted());
  for (const [path, text] of Object.entries(RESTORED)) assert.ok(textOf(disk, `${DIR}/${path}`) === text, path);
};
const isOld = (disk: FaultyDisk): void => {
  assert.deepEqual([...filesBelow(disk, DIR)].toSorted(), ['control.db', 'tenant_7/data.sqlite']);
  assert.equal(textOf(disk, `${DIR}/tenant_7/data.sqlite`), 'old');
};
const staged = (events: readonly RestoreEvent[]): string[] =>
  events.flatMap((event) => (event.kind === 'reading' ? [event.contentKey] : []));

const [SQLITE, MINI] = ['snap-1/sqlite.db', 'snap-1/hnsw-MiniLM.bin'];
const GOES_ON: Readonly<
  Record<string, readonly [killed: keyof typeof SAVED, damage: (disk: FaultyDisk) => void, fetched: readonly string[]]>
> = {
  'nothing came yet': ['begun', () => {}, [SQLITE, MINI]],
  'one item came': ['one item', () => {}, [MINI]],
  'all items came': ['all items', () => {}, []],
  'the swap has begun': ['swapping', () => {}, []],
  'the swap is over': ['swapped', () => {}, []],
  'a staged file has changed': ['all items', (disk) => disk.flip(`${STAGED}/hnsw/MiniLM.bin`, 3, 1), [MINI]],
  'a staged file has changed, and the swap has begun': [
    'swapping',
    (disk) => {
      disk.rename(`${DIR}/control.db`, `${DIR}/${WORK}/old/control.db`);
      disk.flip(`${STAGED}/data.sqlite`, 50_000, 0);
    },
    [SQLITE, MINI],
  ],
  'a staged file is gone': ['all items', (disk) => disk.remove(`${STAGED}/data.sqlite`), [SQLITE, MINI]],
  'a staged file is longer': [
    'one item',
    (disk) => put(disk, `${STAGED}/data.sqlite`, `${RESTORED['tenant_7/data.sqlite']}x`),
    [SQLITE, MINI],
  ],
  'somebody removed the marker before the swap': ['all items', (disk) => disk.remove(MARKER), [SQLITE, MINI]],
  'somebody removed the marker within the swap': [
    'swapping',
    (disk) => {
      disk.rename(`${DIR}/control.db`, `${DIR}/${WORK}/old/control.db`);
      disk.remove(MARKER);
    },
    [],
  ],
  'somebody removed the journal’s directory, and the marker': [
    'one item',
    (disk) => {
      for (const path of filesBelow(disk, `${DIR}/${WORK}`)) disk.remove(`${DIR}/${WORK}/${path}`);
      disk.remove(MARKER);
    },
    [SQLITE, MINI],
  ],
};

for (const [name, [state, damage, fetched]] of Object.entries(GOES_ON))
  test(`the same call goes on, and fetches what it has to: ${name}`, async () => {
    const world = await killedWhen(state);
    damage(world.disk);
    assert.deepEqual(staged(await world.run()), fetched);
    isRestored(world.disk);
  });

const ANEW = { kind: RestorePlanItemKind.SqliteCheckpoint, contentKey: 'snap-1/sqlite.db', expectedChecksum: null };
const REFUSED: Readonly<
  Record<
    string,
    readonly [
      killed: keyof typeof SAVED,
      damage: (disk: FaultyDisk) => void,
      kind: RestoreExecutorErrorKind,
      call?: readonly [change: Partial<RestorePlan>, mode?: RestoreMode],
    ]
  >
> = {
  'another snapshot': ['one item', () => {}, 'RestoreInProgress', [{ snapshotId: 'snap-2' }]],
  'another tenant': ['one item', () => {}, 'RestoreInProgress', [{ tenantId: 8n }]],
  'another mode': ['one item', () => {}, 'RestoreInProgress', [{}, RestoreMode.SingleTenant]],
  'the same snapshot, written anew': ['one item', () => {}, 'RestoreInProgress', [{ items: [ANEW] }]],
  'another one within a swap whose marker was removed': [
    'swapping',
    (disk) => disk.remove(MARKER),
    'RestoreInProgress',
    [{ snapshotId: 'snap-2' }],
  ],
  'a marker without a journal': ['one item', (disk) => disk.remove(JOURNAL_PATH), 'RestoreInProgress'],
  'a journal that is cut off': [
    'one item',
    (disk) => put(disk, JOURNAL_PATH, textOf(disk, JOURNAL_PATH).slice(0, 100)),
    'RestoreInProgress',
  ],
  'a journal of another release': [
    'one item',
    (disk) => changeJournal(disk, (journal) => ({ ...journal, format: 2 })),
    'RestoreInProgress',
  ],
  'a journal whose paths climb': [
    'one item',
    (disk) =>
      changeJournal(disk, ({ run }) => {
        (run as { items: { path: string }[] }).items[0]!.path = '../../x';
      }),
    'RestoreInProgress',
  ],
  'a journal that sets aside what lies elsewhere': [
    'swapping',
    (disk) => changeJournal(disk, (journal) => ({ ...journal, setAside: ['../other'] })),
    'RestoreInProgress',
  ],
};

for (const [name, [state, damage, kind, [change, mode] = [{}]]] of Object.entries(REFUSED))
  test(`refused, and nothing is changed: ${name}`, async () => {
    const world = await killedWhen(state);
    damage(world.disk);
    const before = world.disk.trace.length;
    await assert.rejects(
      world.run(change, mode),
      (error) => error instanceof RestoreExecutorError && error.kind === kind && error.code === 'RESTORE_UNFINISHED',
    );
    assert.equal(world.disk.trace.length, before);
  });

test('abandon leads back until the new tenant has its name, and refuses from then on', async () => {
  for (const state of ['begun', 'one item', 'all items', 'swapping'] as const) {
    const { disk, abandon } = await killedWhen(state);
    if (state === 'swapping') disk.rename(`${DIR}/control.db`, `${DIR}/${WORK}/old/control.db`);
    assert.equal(await abandon(), true);
    isOld(disk);
    assert.equal(await abandon(), false);
  }
  const world = await killedWhen('swapped');
  await assert.rejects(
    world.abandon(),
    (error) => error instanceof RestoreExecutorError && error.kind === 'RestoreInProgress',
  );
  await world.run();
  isRestored(world.disk);
});

test('what lies where the old state comes back to is not replaced: the restore says that it has not ended', async () => {
  const world = await killedWhen('swapping');
  const { disk } = world;
  for (const name of ['control.db', 'tenant_7']) disk.rename(`${DIR}/${name}`, `${DIR}/${WORK}/old/${name}`);
  put(disk, `${DIR}/tenant_7/somebody`, 'else');
  put(disk, `${DIR}/control.db`, 'else');
  // It was set aside before, so this is not what the journal speaks of.
  await assert.rejects(
    world.run(),
    (error) =>
      error instanceof RestoreExecutorError && error.kind === 'Unfinished' && error.code === 'RESTORE_UNFINISHED',
  );
  assert.equal(textOf(disk, `${DIR}/tenant_7/somebody`), 'else');
  assert.equal(textOf(disk, `${DIR}/control.db`), 'else');
  assert.equal(textOf(disk, `${DIR}/${WORK}/old/control.db`), 'control');
  await assert.rejects(world.abandon(), (error) => isNostosError(error, 'FILE_EXISTS'));
  for (const name of ['control.db', 'tenant_7']) disk.rename(`${DIR}/${name}`, `/srv/${name}`);
  await world.run();
  isRestored(disk);
});
