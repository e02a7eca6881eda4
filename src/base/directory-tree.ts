/** Directories with all that is in them, on any disk. Symbolic links are names like others: nothing here follows one. */
import { dirname, join } from 'node:path';
import type { Disk } from './disk.ts';

/** Paths relative to `dir`. */
export function* filesBelow(disk: Disk, dir: string, within = ''): Iterable<string> {
  for (const name of disk.list(join(dir, within))) {
    const path = join(within, name);
    if (disk.isDirectory(join(dir, path))) yield* filesBelow(disk, dir, path);
    else yield path;
  }
}

/** Deepest first. */
function* directoriesBelow(disk: Disk, dir: string): Iterable<string> {
  for (const name of disk.list(dir)) {
    const path = join(dir, name);
    if (disk.isDirectory(path)) yield* directoriesBelow(disk, path);
  }
  yield dir;
}

export function removeTree(disk: Disk, path: string): void {
  if (disk.isDirectory(path)) removeDirectory(disk, path);
  else if (disk.exists(path)) disk.remove(path);
}

function removeDirectory(disk: Disk, dir: string): void {
  for (const name of disk.list(dir)) {
    const path = join(dir, name);
    if (disk.isDirectory(path)) removeDirectory(disk, path);
    // A symbolic link that leads nowhere is listed, and does not "exist".
    else disk.remove(path);
  }
  disk.removeDirectory(dir);
}

/** With its parents, all of them durable. */
export function makeDurableDirectory(disk: Disk, dir: string): void {
  const missing: string[] = [];
  for (let path = dir; !disk.exists(path); path = dirname(path)) missing.push(path);
  if (missing.length === 0) return;
  disk.makeDirectory(dir);
  for (const path of missing.toReversed()) disk.syncDirectory(dirname(path));
}

/**
 * After it returned, everything below is there after a power cut. A file whose sync fails is removed: it may read back
 * well and a further sync may succeed, and still it is not on the disk, so nobody may build on it.
 */
export function syncTree(disk: Disk, dir: string): void {
  for (const path of filesBelow(disk, dir)) syncFile(disk, join(dir, path));
  for (const path of directoriesBelow(disk, dir)) disk.syncDirectory(path);
}

function syncFile(disk: Disk, path: string): void {
  const file = disk.open(path, 'read');
  try {
    file.sync();
  } catch (error) {
    disk.remove(path);
    throw error;
  } finally {
    file.close();
  }
}
