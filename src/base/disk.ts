/**
 * The disk as the log sees it: synchronous, because the thread that owns the log has nothing better to do while it
 * waits, and narrow, so that `testing/faulty-disk.ts` can be the same disk with a page cache that loses power.
 *
 * What callers may rely on: `write` is whole or throws (and may then have written a part); nothing is durable before
 * `dataSync`, `sync` or `syncDirectory` returned; after one of these threw, what was written since the last one that
 * returned may be lost although it still reads back, and a second sync may succeed without it.
 */
import {
  closeSync,
  existsSync,
  fdatasyncSync,
  fstatSync,
  fsyncSync,
  ftruncateSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  readFileSync,
  readdirSync,
  readSync,
  realpathSync,
  renameSync,
  rmdirSync,
  statfsSync,
  statSync,
  unlinkSync,
  writeSync,
} from 'node:fs';
import { join, sep } from 'node:path';
import { NostosError } from './errors.ts';

/** `read`: the file exists. `write`: the file exists, and is read and written. `create`: made anew, or emptied. */
export type OpenMode = 'read' | 'write' | 'create';

export interface DiskFile {
  readonly path: string;
  /** Fills `target` from there on; fewer bytes only at the end of the file. */
  read(target: Uint8Array, offsetInFile: number): number;
  write(bytes: Uint8Array, offsetInFile: number): void;
  /** Content, and the size where it changed, but no times: fdatasync. */
  dataSync(): void;
  sync(): void;
  truncate(sizeBytes: number): void;
  size(): number;
  close(): void;
}

export interface Disk {
  open(path: string, mode: OpenMode): DiskFile;
  /** Names in a directory, sorted. */
  list(dir: string): string[];
  exists(path: string): boolean;
  /** False for a symbolic link, wherever it leads: who walks a directory never leaves it. */
  isDirectory(path: string): boolean;
  size(path: string): number;
  /** What this user may still write on the file system that holds the path. */
  freeBytes(path: string): number;
  /** Names in a directory on which, or below which, something is mounted: these cannot be renamed or removed. */
  mountsIn(dir: string): string[];
  /** A file replaces the one that has the name; the new name of a directory must be free. */
  rename(from: string, to: string): void;
  remove(path: string): void;
  /** An empty one. */
  removeDirectory(path: string): void;
  /** With its parents; nothing happens when it exists. */
  makeDirectory(path: string): void;
  /** Makes creations, renames and removals in this directory durable. */
  syncDirectory(path: string): void;
  /** A second name for a file; `FILE_EXISTS` when the name is taken, which nothing can overwrite. */
  link(from: string, to: string): void;
}

const FLAGS = { read: 'r', write: 'r+', create: 'w+' } as const satisfies Record<OpenMode, string>;

export const systemDisk: Disk = {
  open: (path, mode) =>
    new SystemFile(
      path,
      attempt('open', path, () => openSync(path, FLAGS[mode])),
    ),
  list: (dir) => attempt('list', dir, () => readdirSync(dir).sort()),
  exists: (path) => existsSync(path),
  isDirectory: (path) =>
    attempt('stat', path, () => lstatSync(path, { throwIfNoEntry: false })?.isDirectory() === true),
  size: (path) => attempt('stat', path, () => statSync(path).size),
  freeBytes: (path) =>
    attempt('stat', path, () => {
      const { bavail, bsize } = statfsSync(path);
      return bavail * bsize;
    }),
  mountsIn: (dir) => attempt('stat', dir, () => mountsIn(dir)),
  rename: (from, to) => attempt('rename', from, () => renameSync(from, to)),
  remove: (path) => attempt('remove', path, () => unlinkSync(path)),
  removeDirectory: (path) => attempt('remove', path, () => rmdirSync(path)),
  makeDirectory: (path) => attempt('create the directory', path, () => void mkdirSync(path, { recursive: true })),
  syncDirectory: (path) =>
    attempt('sync', path, () => {
      const fd = openSync(path, 'r');
      try {
        fsyncSync(fd);
      } finally {
        closeSync(fd);
      }
    }),
  link: (from, to) => attempt('link', to, () => linkSync(from, to)),
};

class SystemFile implements DiskFile {
  readonly path: string;
  #fd: number;

  constructor(path: string, fd: number) {
    this.path = path;
    this.#fd = fd;
  }

  read(target: Uint8Array, offsetInFile: number): number {
    return attempt('read', this.path, () => {
      let done = 0;
      while (done < target.length) {
        const count = readSync(this.#fd, target, done, target.length - done, offsetInFile + done);
        if (count === 0) break;
        done += count;
      }
      return done;
    });
  }

  write(bytes: Uint8Array, offsetInFile: number): void {
    attempt('write', this.path, () => {
      let done = 0;
      while (done < bytes.length) done += writeSync(this.#fd, bytes, done, bytes.length - done, offsetInFile + done);
    });
  }

  dataSync(): void {
    attempt('sync', this.path, () => fdatasyncSync(this.#fd));
  }

  sync(): void {
    attempt('sync', this.path, () => fsyncSync(this.#fd));
  }

  truncate(sizeBytes: number): void {
    attempt('truncate', this.path, () => ftruncateSync(this.#fd, sizeBytes));
  }

  size(): number {
    return attempt('stat', this.path, () => fstatSync(this.#fd).size);
  }

  close(): void {
    if (this.#fd < 0) return;
    const fd = this.#fd;
    this.#fd = -1;
    attempt('close', this.path, () => closeSync(fd));
  }
}

function mountsIn(dir: string): string[] {
  const { dev } = statSync(dir);
  const isOther = (name: string): boolean => {
    const stats = lstatSync(join(dir, name), { throwIfNoEntry: false });
    // In an overlay also files that nobody has mounted have a device of their own.
    return stats?.isDirectory() === true && stats.dev !== dev;
  };
  const mounted = new Set(readdirSync(dir).filter(isOther));
  // A bind mount has the same device; and what is mounted deeper shows here only.
  const above = join(realpathSync(dir), sep);
  for (const path of mountPoints()) {
    const [name] = path.startsWith(above) ? path.slice(above.length).split(sep) : [];
    if (name !== undefined && name !== '') mounted.add(name);
  }
  return [...mounted].sort();
}

/** Linux only; elsewhere what the device says must do. */
function mountPoints(): string[] {
  let text: string;
  try {
    text = readFileSync('/proc/self/mountinfo', 'utf8');
  } catch {
    return [];
  }
  // The fifth field, with white space and backslashes as octal numbers.
  return text.split('\n').flatMap((line) => {
    const path = line.split(' ')[4];
    return path === undefined
      ? []
      : [path.replace(/\\([0-7]{3})/g, (_, octal) => String.fromCharCode(parseInt(octal, 8)))];
  });
}

function attempt<T>(operation: string, path: string, run: () => T): T {
  try {
    return run();
  } catch (error) {
    throw diskError(operation, path, error);
  }
}

/** The typed form of what the operating system answered. */
export function diskError(operation: string, path: string, cause: unknown): NostosError {
  const errno = (cause as NodeJS.ErrnoException | undefined)?.code ?? 'UNKNOWN';
  const details = { operation, path, errno };
  if (errno === 'ENOSPC' || errno === 'EDQUOT')
    return new NostosError('DISK_FULL', `Cannot ${operation} ${path}: no space is left (${errno}); free some`, {
      details,
      cause,
    });
  if (errno === 'EEXIST')
    return new NostosError('FILE_EXISTS', `Cannot ${operation} ${path}: it exists already`, { details, cause });
  return new NostosError('IO_FAILED', `Cannot ${operation} ${path}: ${errno}`, { details, cause });
}
