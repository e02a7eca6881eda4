/**
 * Comes home and exits. Given a number, it dies by SIGKILL right before that change of names in its directory: each of its
 * durable steps ends with one.
 */
import { systemClock } from '../base/clock.ts';
import { systemDisk, type Disk } from '../base/disk.ts';
import { NostosError } from '../base/errors.ts';
import { DEFAULT_LIMITS } from '../base/limits.ts';
import { comeHome } from './rejoin-home.ts';
import { RejoinFile } from './rejoin-file.ts';

export interface KillTask {
  readonly dir: string;
  readonly coordinator: string;
  readonly killAt?: number;
  /** The disk is full at changes that begin so. */
  readonly fullAt?: string;
}

const [, , task = ''] = process.argv;
if (import.meta.main) {
  const { dir, coordinator, killAt, fullAt } = JSON.parse(task) as KillTask;
  let changes = 0;
  const disk: { -readonly [K in keyof Disk]: Disk[K] } = systemDisk;
  const changing = (what: string, path: string): void => {
    if (!path.startsWith(dir)) return;
    if (changes++ === killAt) process.kill(process.pid, 'SIGKILL');
    const change = `${what} ${path.slice(dir.length + 1)}`;
    process.stdout.write(`${change}\n`);
    if (fullAt !== undefined && change.startsWith(fullAt))
      throw new NostosError('DISK_FULL', 'no room, says this test');
  };
  const { rename, link, remove, makeDirectory, removeDirectory } = systemDisk;
  disk.rename = (from, to) => (changing('rename', to), rename.call(disk, from, to));
  disk.link = (from, to) => (changing('link', to), link.call(disk, from, to));
  disk.remove = (path) => (changing('remove', path), remove.call(disk, path));
  disk.makeDirectory = (path) => (changing('make', path), makeDirectory.call(disk, path));
  disk.removeDirectory = (path) => (changing('unmake', path), removeDirectory.call(disk, path));
  await comeHome(new RejoinFile(systemDisk, dir), {
    ...{ dir, coordinator, name: 'main', restoreFrom: [], limits: DEFAULT_LIMITS, clock: systemClock },
    signal: new AbortController().signal,
    onStep: () => {},
  });
}
