/** The rollback files of a directory, each with its state. */
import { join } from 'node:path';
import type { Disk } from '../../base/disk.ts';
import { NostosError } from '../../base/errors.ts';
import { SET_ASIDE_SUFFIX, TEMPORARY_SUFFIX, isFileName } from './file-name.ts';
import { describeFile, verifyFile, type FileDescription } from './reader.ts';

export type ListedFile =
  | ({ readonly state: 'whole'; readonly name: string; readonly path: string } & FileDescription)
  | { readonly state: 'damaged'; readonly name: string; readonly path: string; readonly error: NostosError }
  /** The rollback that was writing it has not ended; it is removed or replaced when it goes on. */
  | { readonly state: 'unfinished'; readonly name: string; readonly path: string };

export interface ListOptions {
  /** `ends` looks at header and footer only. */
  readonly verify?: 'all' | 'ends';
  readonly signal?: AbortSignal;
}

/** By name; nothing where the directory is not there. */
export async function listRollbackFiles(disk: Disk, dir: string, options: ListOptions = {}): Promise<ListedFile[]> {
  const files: ListedFile[] = [];
  if (!disk.exists(dir)) return files;
  for (const name of disk.list(dir)) {
    const path = join(dir, name);
    if (name.endsWith(TEMPORARY_SUFFIX)) files.push({ state: 'unfinished', name, path });
    if (isFileName(name)) files.push(await look(disk, name, path, options));
  }
  return files;
}

async function look(disk: Disk, name: string, path: string, { verify, signal }: ListOptions): Promise<ListedFile> {
  try {
    const quick = verify === 'ends' && !name.endsWith(SET_ASIDE_SUFFIX);
    const description = quick ? describeFile(disk, path) : await verifyFile(disk, path, signal);
    return { state: 'whole', name, path, ...description };
  } catch (error) {
    if (!(error instanceof NostosError)) throw error;
    return { state: 'damaged', name, path, error };
  }
}
