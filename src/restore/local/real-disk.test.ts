/** The same as `power-cuts.test.ts` on the real file system, for a process that dies before any of its steps. */
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { spawnSync } from 'node:child_process';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { systemDisk, type Disk, type DiskFile } from '../../base/disk.ts';
import { seededRandom } from '../../base/random.ts';
import { assertSound, fill, makeWorld, restoreInto, type SimulatedDisk } from '../../testing/restore-simulation.ts';

/** A directory with something in each of its places. */
const SEED = 2;

class Died extends Error {}

/** The system's disk below a directory; from the step `diesAt` on, which is not done, everything that changes something fails. */
function mortalDisk(root: string, diesAt = Infinity): SimulatedDisk & { readonly steps: number } {
  let steps = 0;
  let openFiles = 0;
  const at = (path: string): string => join(root, path);
  const step = (): void => {
    if (steps++ >= diesAt) throw new Died();
  };
  const file = (opened: DiskFile): DiskFile => {
    openFiles += 1;
    return {
      path: opened.path,
      read: (target, offset) => opened.read(target, offset),
      write: (bytes, offset) => (step(), opened.write(bytes, offset)),
      dataSync: () => (step(), opened.dataSync()),
      sync: () => (step(), opened.sync()),
      truncate: (size) => (step(), opened.truncate(size)),
      size: () => opened.size(),
      close: () => {
        openFiles -= 1;
        opened.close();
      },
    };
  };
  const disk: Disk = {
    open: (path, mode) => {
      if (mode === 'create') step();
      return file(systemDisk.open(at(path), mode));
    },
    list: (dir) => systemDisk.list(at(dir)),
    exists: (path) => systemDisk.exists(at(path)),
    isDirectory: (path) => systemDisk.isDirectory(at(path)),
    size: (path) => systemDisk.size(at(path)),
    freeBytes: (path) => systemDisk.freeBytes(at(path)),
    mountsIn: (dir) => systemDisk.mountsIn(at(dir)),
    rename: (from, to) => (step(), systemDisk.rename(at(from), at(to))),
    remove: (path) => (step(), systemDisk.remove(at(path))),
    removeDirectory: (path) => (step(), systemDisk.removeDirectory(at(path))),
    makeDirectory: (path) => (step(), systemDisk.makeDirectory(at(path))),
    syncDirectory: (path) => (step(), systemDisk.syncDirectory(at(path))),
    link: (from, to) => (step(), systemDisk.link(at(from), at(to))),
  };
  return Object.defineProperties(
    { ...disk, openFiles: 0, steps: 0 },
    {
      openFiles: { get: () => openFiles },
      steps: { get: () => steps },
    },
  );
}

test('the system says what is mounted in a directory, also by a mount of the same device', (t) => {
  if (!existsSync('/proc/self/mountinfo')) return t.skip('not Linux');
  assert.ok(systemDisk.mountsIn('/').includes('proc'));
  const root = mkdtempSync(join(tmpdir(), 'nostos-mounts-'));
  t.after(() => rmSync(root, { recursive: true, force: true }));
  for (const name of ['plain', 'a b\\', 'deeper/mounted', 'other']) mkdirSync(join(root, name), { recursive: true });
  writeFileSync(join(root, 'file'), '');
  assert.deepEqual(systemDisk.mountsIn(root), []);
  const look = `import { systemDisk } from ${JSON.stringify(new URL('../../base/disk.ts', import.meta.url).href)};
    import { execFileSync } from 'node:child_process';
    execFileSync('mount', ['--bind', 'plain', 'a b\\\\']);
    execFileSync('mount', ['--bind', 'plain', 'deeper/mounted']);
    execFileSync('mount', ['-t', 'tmpfs', 'none', 'other']);
    console.log(JSON.stringify(systemDisk.mountsIn('.')));`;
  const node = [process.execPath, '--input-type=module', '-e', look];
  const ran = spawnSync('unshare', ['--user', '--map-root-user', '--mount', ...node], { cwd: root, encoding: 'utf8' });
  if (ran.status !== 0) return t.skip(`this user may not mount: ${ran.stderr}`);
  assert.deepEqual(JSON.parse(ran.stdout), ['a b\\', 'deeper', 'other']);
});

test('a process that dies before any step leaves what the next one brings to its end', async (t) => {
  const root = mkdtempSync(join(tmpdir(), 'nostos-restore-disk-'));
  t.after(() => rmSync(root, { recursive: true, force: true }));
  const seen = { 'as-it-was': 0, unfinished: 0, restored: 0 };
  for (let diesAt = 0, through = false; !through; diesAt++) {
    const world = makeWorld(seededRandom(SEED));
    const dir = join(root, String(diesAt));
    fill(mortalDisk(dir), world.before);
    const error = await restoreInto(world, mortalDisk(dir, diesAt)).then(
      () => undefined,
      (thrown: unknown) => thrown,
    );
    through = error === undefined;
    assert.ok(through || error instanceof Died, String(error));
    const disk = mortalDisk(dir);
    const state = assertSound(world, disk);
    seen[state] += 1;
    if (state !== 'restored') await restoreInto(world, disk);
    assert.equal(assertSound(world, disk), 'restored');
    rmSync(dir, { recursive: true });
  }
  assert.ok(seen['as-it-was'] >= 2 && seen.unfinished > 30 && seen.restored >= 1, JSON.stringify(seen));
});
