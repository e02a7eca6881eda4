/**
 * Small files that are replaced whole. A reader sees the old content or the new one, never a mixture: the new one is
 * written beside it, fsynced, renamed over it, and the directory fsynced. A crash before the rename leaves the old file
 * and a `.tmp` that the next write replaces; after it, and before the directory is synced, either may be there.
 */
import { dirname } from 'node:path';
import type { Disk } from './disk.ts';

export function writeDurably(disk: Disk, path: string, bytes: Uint8Array): void {
  const temporary = `${path}.tmp`;
  const file = disk.open(temporary, 'create');
  try {
    file.write(bytes, 0);
    file.sync();
  } finally {
    file.close();
  }
  disk.rename(temporary, path);
  disk.syncDirectory(dirname(path));
}

export function readIfExists(disk: Disk, path: string): Uint8Array | undefined {
  if (!disk.exists(path)) return undefined;
  const file = disk.open(path, 'read');
  try {
    const bytes = new Uint8Array(file.size());
    return bytes.subarray(0, file.read(bytes, 0));
  } finally {
    file.close();
  }
}
