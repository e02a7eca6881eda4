/** A process that rolls a node back in a real directory, and kills itself at the step of the disk that it is told. */
import { join } from 'node:path';
import { systemDisk, type Disk, type DiskFile } from '../../base/disk.ts';
import { REQUEST, World, openRunner } from './simulated-node.fixture.ts';

/** Called before each step that changes something; a write may do half of itself. */
type OnStep = (partly?: () => void) => void;

/** The simulated node's absolute paths, below a directory of the test. */
export function rootedDisk(root: string, onStep: OnStep = () => {}): Disk {
  const at = (path: string): string => join(root, path);
  const file = (inner: DiskFile): DiskFile => ({
    path: inner.path,
    read: (target, offset) => inner.read(target, offset),
    size: () => inner.size(),
    close: () => inner.close(),
    write: (bytes, offset) => {
      onStep(() => inner.write(bytes.subarray(0, bytes.length >>> 1), offset));
      inner.write(bytes, offset);
    },
    dataSync: () => (onStep(), inner.dataSync()),
    sync: () => (onStep(), inner.sync()),
    truncate: (size) => (onStep(), inner.truncate(size)),
  });
  return {
    ...systemDisk,
    open: (path, mode) => {
      if (mode === 'create') onStep();
      return file(systemDisk.open(at(path), mode));
    },
    list: (dir) => systemDisk.list(at(dir)),
    exists: (path) => systemDisk.exists(at(path)),
    rename: (from, to) => (onStep(), systemDisk.rename(at(from), at(to))),
    remove: (path) => (onStep(), systemDisk.remove(at(path))),
    makeDirectory: (path) => (onStep(), systemDisk.makeDirectory(at(path))),
    syncDirectory: (path) => (onStep(), systemDisk.syncDirectory(at(path))),
    link: (from, to) => (onStep(), systemDisk.link(at(from), at(to))),
  };
}

/** What operators were told, which outlives the process. */
export const toldPath = (root: string): string => join(root, 'told');

if (import.meta.main) {
  const [root = '', killAt = ''] = process.argv.slice(2);
  let steps = 0;
  const disk = rootedDisk(root, (partly) => {
    if (steps++ !== Number(killAt)) return;
    partly?.();
    process.kill(process.pid, 'SIGKILL');
  });
  const world = new World();
  const told = systemDisk.open(toldPath(root), 'create');
  world.tell = (notice) => told.write(Buffer.from(`${JSON.stringify(notice)}\n`), told.size());
  await openRunner(disk, world, { seed: process.pid }).run(REQUEST);
  process.stdout.write(String(steps));
}
