/**
 * What goes wrong while a backup is restored: each fault is seen to fire, by the error that names it, and after each the
 * former state still opens, with all that it had. Processes are killed before their steps, in each mode and at each state of
 * the marker; what goes on afterwards ends like a run that nobody disturbed.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import {
  copyFileSync,
  cpSync,
  existsSync,
  readFileSync,
  readdirSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import { systemDisk } from '../base/disk.ts';
import { isNostosError, type ErrorCode } from '../base/errors.ts';
import { KeyringFile } from '../backup/repository/keyring-file.ts';
import { objectKey } from '../backup/repository/object-format.ts';
import type { Snapshot } from '../backup/repository/manifest.ts';
import { createRepository } from '../backup/repository/repository.ts';
import { MARKER_FILE, readMarker } from '../restore/local/marker.ts';
import { abandonRestore } from '../restore/local/restore-directory.ts';
import { mountRefusal, mountSmall } from '../testing/small-disk.fixture.ts';
import type { ChildOptions } from './backup-restore-child.fixture.ts';
import { restoreBackup, type RestoreBackupOptions } from './backup-restore.ts';
import { backUp, idsOf, insert, open, scratch } from './backup-restore.fixture.ts';
import { restoreDeps } from './restore-run.ts';

const CHILD = fileURLToPath(new URL('./backup-restore-child.fixture.ts', import.meta.url));
const range = (from: number, to: number): number[] => Array.from({ length: to - from + 1 }, (_, at) => from + at);

interface World {
  readonly root: string;
  /** A node that went on after its last backup. */
  readonly data: string;
  readonly backup: string;
  readonly keys: string;
  readonly snapshot: Snapshot;
  /** Files of objects of the tenant, of its archive, and of another one. */
  readonly objects: readonly string[];
  readonly archived: readonly string[];
}

async function world(t: TestContext): Promise<World> {
  const root = await scratch(t);
  const [data, backup, keys] = [join(root, 'data'), join(root, 'backup'), join(root, 'keys')];
  const repository = await createRepository(`file:${backup}`, { keys: KeyringFile.open(keys) });
  try {
    {
      await using node = await open(data);
      for (const name of ['acme', 'other']) await node.tenants.create(name);
      await insert(node, 'other', [1]);
      for (const at of range(0, 3))
        await insert(node, 'acme', range(at * 10 + 1, at * 10 + 10), randomBytes(40_000).toString('base64'));
    }
    await backUp(repository, data);
    {
      await using node = await open(data);
      await insert(node, 'acme', [41]);
      await node.tenant('acme').write((tx) => tx.forget('item', { id: 7 }));
      await insert(node, 'other', [2]);
    }
    const snapshot = await backUp(repository, data, { reuse: true });
    {
      await using node = await open(data);
      await insert(node, 'acme', [42]);
    }
    const item = snapshot.items.find((one) => one.kind === 'tenant' && one.name === 'acme')!;
    const objects = (await repository.content.chunksOf(item)).map((id) => join(backup, objectKey(id)));
    const archived = (await repository.archive.objects(snapshot.position.generation)).map(({ key }) =>
      join(backup, key),
    );
    return { root, data, backup, keys, snapshot, objects, archived };
  } finally {
    await repository.close();
  }
}

const flip = (path: string): void => {
  const bytes = readFileSync(path);
  const at = Math.floor(bytes.length / 2);
  bytes.writeUInt8(bytes.readUInt8(at) ^ 0x40, at);
  writeFileSync(path, bytes);
};

interface Fault {
  readonly name: string;
  readonly strike: (w: World) => void | Promise<void>;
  readonly options?: (w: World) => Partial<RestoreBackupOptions>;
  readonly code: ErrorCode;
  readonly says: RegExp;
}

const FAULTS: readonly Fault[] = [
  {
    name: 'a chunk is missing',
    strike: ({ objects }) => rmSync(objects[1]!),
    code: 'BACKUP_DAMAGED',
    says: /objects\//,
  },
  {
    name: 'two chunks are swapped',
    strike: ({ objects }) => copyFileSync(objects[0]!, objects[1]!),
    code: 'BACKUP_DAMAGED',
    says: /object/,
  },
  {
    name: 'a chunk is cut short',
    strike: ({ objects }) => truncateSync(objects[1]!, 100),
    code: 'BACKUP_DAMAGED',
    says: /object/,
  },
  {
    name: 'a bit of a chunk is flipped',
    strike: ({ objects }) => flip(objects[0]!),
    code: 'BACKUP_DAMAGED',
    says: /object/,
  },
  {
    name: 'the archive is missing',
    strike: ({ archived }) => archived.forEach((path) => rmSync(path)),
    code: 'ARCHIVE_GAP',
    says: /lacks LSN \d+/,
  },
  {
    name: 'the archive is cut short',
    strike: ({ archived }) => archived.forEach((path) => truncateSync(path, 300)),
    code: 'BACKUP_DAMAGED',
    says: /archive/,
  },
  {
    name: 'a bit of the archive is flipped',
    strike: ({ archived }) => archived.forEach(flip),
    code: 'BACKUP_DAMAGED',
    says: /archive/,
  },
  {
    name: 'an object of the archive is another one',
    strike: ({ archived }) =>
      archived.forEach((path) => copyFileSync(archived[0] === path ? archived.at(-1)! : archived[0]!, path)),
    code: 'BACKUP_DAMAGED',
    says: /archive/,
  },
  {
    name: 'another keyring',
    strike: () => {},
    options: ({ root }) => ({ keys: KeyringFile.open(join(root, 'other keys')) }),
    code: 'BACKUP_KEY_MISSING',
    says: /--keys/,
  },
  {
    name: 'a key that was destroyed',
    strike: async ({ keys, snapshot }) => {
      const item = snapshot.items.find((one) => one.kind === 'tenant' && one.name === 'acme')!;
      assert.equal(item.kind === 'tenant' ? await KeyringFile.open(keys).destroy(item.uuid) : 0, 1);
    },
    code: 'BACKUP_KEY_MISSING',
    says: /tenant acme .*--without acme/,
  },
  {
    name: 'the manifest is damaged',
    strike: ({ backup, snapshot }) => flip(join(backup, 'manifests', `${snapshot.id}.json`)),
    code: 'BACKUP_DAMAGED',
    says: /manifest/,
  },
  {
    name: 'what was forgotten cannot be read',
    strike: ({ backup }) => readdirSync(join(backup, 'forget')).forEach((name) => flip(join(backup, 'forget', name))),
    code: 'BACKUP_DAMAGED',
    says: /object/,
  },
  {
    name: 'a marker of a restore from a peer',
    strike: ({ data }) => {
      const id = (digit: string): string => digit.repeat(32);
      const history = { cluster: id('c'), generation: id('1') };
      const identity = { node: id('d'), store: id('e'), ...history };
      const marker = {
        format: 1,
        run: id('a'),
        startedAt: '2026-01-01T00:00:00.000Z',
        sources: ['peer:4050'],
        history,
        identity,
        phase: 'fetching',
      };
      writeFileSync(join(data, MARKER_FILE), JSON.stringify(marker));
    },
    code: 'RESTORE_UNFINISHED',
    says: /peer:4050 lies here/,
  },
];

async function assertAsItWas({ data }: World): Promise<void> {
  if (existsSync(join(data, MARKER_FILE))) await abandonRestore(restoreDeps, { dir: data });
  await using node = await open(data);
  assert.deepEqual(
    await idsOf(node, 'acme'),
    range(1, 42).filter((id) => id !== 7),
  );
  assert.deepEqual((await node.verify()).problems, []);
}

test('whatever is wrong with a backup is named, and the former state opens', async (t) => {
  const made = await world(t);
  for (const { name, strike, options, code, says } of FAULTS)
    await t.test(name, async () => {
      const [kept, keptKeys] = [join(made.root, 'kept'), join(made.root, 'kept keys')];
      cpSync(made.backup, kept, { recursive: true });
      copyFileSync(made.keys, keptKeys);
      try {
        await strike(made);
        const restore = restoreBackup({
          from: `file:${made.backup}`,
          dir: made.data,
          mode: 'wipe_and_restore',
          keys: KeyringFile.open(made.keys),
          ...options?.(made),
        });
        await assert.rejects(restore, (error) => isNostosError(error, code) && says.test(error.message));
        await assertAsItWas(made);
      } finally {
        rmSync(made.backup, { recursive: true });
        cpSync(kept, made.backup, { recursive: true });
        copyFileSync(keptKeys, made.keys);
        rmSync(kept, { recursive: true });
      }
    });
});

test('a tenant whose key was destroyed is left out where it is named, and the report says so', async (t) => {
  const { backup, keys, root, snapshot } = await world(t);
  const item = snapshot.items.find((one) => one.kind === 'tenant' && one.name === 'acme')!;
  if (item.kind === 'tenant') await KeyringFile.open(keys).destroy(item.uuid);
  const dir = join(root, 'restored');
  const options = { from: `file:${backup}`, dir, mode: 'new_cluster', keys: KeyringFile.open(keys) } as const;
  const { backup: done } = await restoreBackup({ ...options, without: ['acme'] });
  assert.deepEqual(done?.leftOut, ['acme']);
  await using node = await open(dir);
  assert.deepEqual(
    (await node.tenants.list()).map(({ name }) => name),
    ['other'],
  );
  assert.deepEqual(await idsOf(node, 'other'), [1, 2]);
});

test('two restores at once: one of them is refused', async (t) => {
  const { backup, keys, data } = await world(t);
  const options = {
    from: `file:${backup}`,
    dir: data,
    mode: 'wipe_and_restore',
    keys: KeyringFile.open(keys),
  } as const;
  const ended = await Promise.allSettled([restoreBackup(options), restoreBackup(options)]);
  const failed = ended.filter((one) => one.status === 'rejected');
  assert.equal(failed.length, 1);
  assert.ok(isNostosError(failed[0]!.reason, 'DIRECTORY_LOCKED'));
});

test('a full disk, then room', async (t) => {
  const refusal = mountRefusal();
  if (refusal !== undefined) return t.skip(refusal);
  const { backup, keys } = await world(t);
  using disk = mountSmall(80 * 1024 * 1024);
  const options = {
    from: `file:${backup}`,
    dir: join(disk.dir, 'data'),
    mode: 'new_cluster',
    keys: KeyringFile.open(keys),
  } as const;
  const full = (error: unknown): boolean => isNostosError(error, 'DISK_FULL');
  const before = disk.fill();
  await assert.rejects(restoreBackup(options), full);
  rmSync(before);
  // And in the middle of a file.
  let meanwhile: string | undefined;
  await assert.rejects(restoreBackup({ ...options, onProgress: () => void (meanwhile ??= disk.fill()) }), full);
  assert.equal(readMarker(systemDisk, options.dir)?.phase, 'fetching');
  rmSync(meanwhile!);
  await restoreBackup(options);
  await using node = await open(options.dir);
  assert.deepEqual(
    await idsOf(node, 'acme'),
    range(1, 41).filter((id) => id !== 7),
  );
});

for (const mode of ['new_cluster', 'wipe_and_restore'] as const)
  test(`kill -9 before its steps, ${mode}: what goes on ends the same`, async (t) => {
    const made = await world(t);
    const plain = join(made.root, 'plain backup');
    {
      // The child has no keys: a backup without.
      await using repository = await createRepository(`file:${plain}`);
      await backUp(repository, made.data);
    }
    const run = (dir: string, killAt: number): ReturnType<typeof spawnSync> => {
      const options: ChildOptions = { from: `file:${plain}`, dir, mode, killAt, discard: true };
      return spawnSync(process.execPath, [CHILD, JSON.stringify(options)], { encoding: 'utf8' });
    };
    const fresh = (name: string): string => {
      const dir = join(made.root, name);
      if (mode === 'wipe_and_restore') cpSync(made.data, dir, { recursive: true });
      return dir;
    };
    const whole = run(fresh('whole'), -1);
    assert.equal(whole.status, 0, String(whole.stderr));
    const { steps } = JSON.parse(String(whole.stdout)) as { steps: number };
    const seen = { 'as-it-was': 0, fetching: 0, swapping: 0, disposing: 0 };
    // The marker changes near the end, where the steps are few.
    const points = [
      ...range(0, 5).map((at) => Math.floor((at * steps) / 6)),
      ...range(1, 9).map((at) => steps - 4 * at),
    ];
    for (const killAt of points) {
      const dir = fresh(`killed ${killAt}`);
      const { signal, stderr } = run(dir, killAt);
      assert.equal(signal, 'SIGKILL', `step ${killAt} of ${steps}: ${String(stderr)}`);
      const marker = readMarker(systemDisk, dir);
      seen[marker?.phase ?? 'as-it-was'] += 1;
      if (marker?.phase === 'fetching' && killAt % 2 === 0 && mode === 'wipe_and_restore') {
        await assertAsItWas({ ...made, data: dir });
      } else {
        const isDone = marker === undefined && killAt > steps / 2;
        if (!isDone) await restoreBackup({ from: `file:${plain}`, dir, mode: 'wipe_and_restore', discard: true });
        assert.equal(readMarker(systemDisk, dir), undefined);
        await using node = await open(dir);
        assert.deepEqual(
          await idsOf(node, 'acme'),
          range(1, 42).filter((id) => id !== 7),
        );
        if (marker !== undefined) assert.equal((await node.status()).log.generation, marker.history.generation);
        assert.deepEqual((await node.verify()).problems, []);
      }
      assert.deepEqual(
        readdirSync(dir).filter((name) => name.startsWith('set-aside') || name === 'restore'),
        [],
      );
      rmSync(dir, { recursive: true });
    }
    assert.ok(seen.fetching >= 2 && seen.swapping >= 1 && seen.disposing >= 1, JSON.stringify(seen));
  });
