/**
 * Files of a snapshot, made where a restore wants them. Chunks that are there already, by an attempt before or in the
 * directory that is replaced, are taken from there; what stands at the place of a file is never believed, only compared.
 */
import type { Disk } from '../base/disk.ts';
import { releaseBuffer } from '../base/release.ts';
import type { SnapshotItem } from '../backup/repository/manifest.ts';
import type { Repository } from '../backup/repository/repository.ts';
import type { FetchTarget } from '../restore/feed.ts';
import { parseItemName, type ItemName } from '../restore/item-name.ts';

export function itemNameOf(item: SnapshotItem): ItemName {
  return parseItemName(item.kind === 'catalog' ? 'catalog' : `tenant/${item.id}`);
}

export interface FileProgress {
  /** Bytes that are at their place, and how many of these were there before. */
  readonly bytes: number;
  readonly reused: boolean;
}

export interface FetchFileOptions {
  readonly signal?: AbortSignal | undefined;
  readonly onBytes?: (progress: FileProgress) => void;
}

/** Files at a time; each has `backupConcurrency` chunks under way. */
const FILES_AT_ONCE = 4;

export async function fetchFiles(
  { repository, disk, target }: { readonly repository: Repository; readonly disk: Disk; readonly target: FetchTarget },
  items: readonly SnapshotItem[],
  options: FetchFileOptions,
): Promise<void> {
  const failed = new AbortController();
  const signal = options.signal === undefined ? failed.signal : AbortSignal.any([options.signal, failed.signal]);
  const waiting = items.values();
  const worker = async (): Promise<void> => {
    try {
      for (const item of waiting) await fetchFile({ repository, disk, target }, item, { ...options, signal });
    } catch (error) {
      failed.abort(error);
      throw error;
    }
  };
  const ended = await Promise.allSettled(Array.from({ length: FILES_AT_ONCE }, worker));
  if (failed.signal.aborted) throw failed.signal.reason;
  for (const one of ended) if (one.status === 'rejected') throw one.reason;
}

async function fetchFile(
  { repository, disk, target }: { readonly repository: Repository; readonly disk: Disk; readonly target: FetchTarget },
  item: SnapshotItem,
  { signal, onBytes }: FetchFileOptions,
): Promise<void> {
  const name = itemNameOf(item);
  const path = target.pathOf(name);
  const basePath = target.baseOf(name);
  // SQLite would take what an earlier attempt left beside the file for its newest content.
  for (const suffix of ['-wal', '-shm', '-journal']) if (disk.exists(path + suffix)) disk.remove(path + suffix);
  const base = basePath === undefined || basePath === path ? undefined : disk.open(basePath, 'read');
  const file = disk.open(path, disk.exists(path) ? 'write' : 'create');
  const from = base ?? file;
  const taken = new Map<number, Uint8Array>();
  try {
    const size = from.size();
    const have = (offset: number, bytes: number): Uint8Array | undefined => {
      if (offset + bytes > size) return undefined;
      const chunk = Buffer.allocUnsafeSlow(bytes);
      if (from.read(chunk, offset) !== bytes) return undefined;
      taken.set(offset, chunk);
      return chunk;
    };
    const write = async (bytes: Uint8Array, offset: number): Promise<void> => {
      const seen = taken.get(offset);
      taken.delete(offset);
      const reused = seen === bytes;
      if (!reused && seen !== undefined) releaseBuffer(seen);
      if (!reused || from !== file) file.write(bytes, offset);
      onBytes?.({ bytes: bytes.length, reused });
    };
    await repository.readFile(item, { write }, { signal, have });
    file.truncate(item.bytes);
  } finally {
    base?.close();
    file.close();
  }
}
