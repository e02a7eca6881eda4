/**
 * `restore/`: the data directory that will be, while it is fetched. What an interrupted attempt left there is a base for
 * the next one, never believed as it is.
 */
import { dirname, join } from 'node:path';
import type { Disk } from '../../base/disk.ts';
import { writeDurably } from '../../base/durable-file.ts';
import type { FetchTarget } from '../feed.ts';
import { itemPath, type ItemName } from '../item-name.ts';
import { filesBelow } from '../../base/directory-tree.ts';

export const STAGING_DIR = 'restore';
const NODE_FILE = 'node.json';

export function stagingTarget(disk: Disk, dir: string): FetchTarget {
  const made = new Set<string>();
  return {
    pathOf(name) {
      const path = join(dir, STAGING_DIR, ...itemPath(name));
      const parent = dirname(path);
      if (!made.has(parent)) disk.makeDirectory(parent);
      made.add(parent);
      return path;
    },
    baseOf: (name) => baseOf(disk, dir, name)?.path,
  };
}

export interface Base {
  readonly path: string;
  readonly from: 'staging' | 'directory';
  readonly bytes: number;
}

/** What an earlier attempt fetched, else what the directory itself has under that name. */
export function baseOf(disk: Disk, dir: string, name: ItemName): Base | undefined {
  for (const from of ['staging', 'directory'] as const) {
    const path = join(dir, ...(from === 'staging' ? [STAGING_DIR] : []), ...itemPath(name));
    if (disk.exists(path) && !disk.isDirectory(path)) return { path, from, bytes: disk.size(path) };
  }
  return undefined;
}

/**
 * Leaves the items and nothing else: a WAL or journal that a killed verification left beside a database file would be
 * taken by SQLite for its newest content.
 */
export function tidyStaging(disk: Disk, dir: string, items: Iterable<ItemName>): void {
  const wanted = new Set<string>();
  for (const name of items) wanted.add(join(...itemPath(name)));
  const staging = join(dir, STAGING_DIR);
  for (const path of [...filesBelow(disk, staging)]) if (!wanted.has(path)) disk.remove(join(staging, path));
}

export function writeStagedIdentity(disk: Disk, dir: string, bytes: Uint8Array): void {
  writeDurably(disk, join(dir, STAGING_DIR, NODE_FILE), bytes);
}
