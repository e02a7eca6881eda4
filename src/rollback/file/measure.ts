import { join } from 'node:path';
import type { Disk } from '../../base/disk.ts';
import { isFileName } from './file-name.ts';

/** What the rollback files of a directory take, without a look into them: for status. */
export function measureRollbackFiles(disk: Disk, dir: string): { readonly count: number; readonly bytes: number } {
  let [count, bytes] = [0, 0];
  for (const name of disk.isDirectory(dir) ? disk.list(dir) : []) {
    if (!isFileName(name)) continue;
    try {
      bytes += disk.size(join(dir, name));
      count += 1;
    } catch {
      // Somebody has just deleted it.
    }
  }
  return { count, bytes };
}
