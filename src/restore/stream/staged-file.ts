/**
 * A file that is being fetched. It is written in place, and whatever a crash leaves of it is a base for the next run; it
 * counts only once `finish` returned and its hash was right. A long file goes to the disk while more arrives, so that the
 * last sync has little left to do.
 */
import { constants, copyFile, fdatasync, fsync, open, close, write, type PathLike } from 'node:fs';
import { fstatSync, ftruncateSync, readSync, rmSync, statSync, writeSync } from 'node:fs';
import { statfs } from 'node:fs/promises';
import { dirname } from 'node:path';
import { promisify } from 'node:util';
import { diskError } from '../../base/disk.ts';
import { NostosError } from '../../base/errors.ts';
import type { Run } from './frames.ts';

const openFile = promisify((path: PathLike, flags: number, done: (error: Error | null, fd: number) => void) =>
  open(path, flags, 0o600, done),
);
const copy = promisify((from: string, to: string, done: (error: Error | null) => void) =>
  copyFile(from, to, constants.COPYFILE_FICLONE | constants.COPYFILE_EXCL, done),
);
const [closeFile, syncFile, syncData] = [promisify(close), promisify(fsync), promisify(fdatasync)];

/** Bytes written before the disk is asked to take them. */
const SYNC_EVERY_BYTES = 64 * 1024 * 1024;

/** Below this a write takes less than handing it to another thread. */
const WRITE_HERE_BYTES = 64 * 1024;

export type Copying = (copied: Promise<void>, bytes: () => number) => Promise<void>;

export class StagedFile {
  readonly path: string;
  readonly #fd: number;
  #unsynced = 0;
  #syncing: Promise<void> | undefined;

  private constructor(path: string, fd: number) {
    this.path = path;
    this.#fd = fd;
  }

  /**
   * What is at `path`; else a copy of `base`, as a clone where the file system can; else an empty file. `copying` waits for
   * the copy, and may ask how many bytes of it are there.
   */
  static async open(
    path: string,
    base: string | undefined,
    copying: Copying = (copied) => copied,
  ): Promise<StagedFile> {
    if (base !== undefined && statSync(path, { throwIfNoEntry: false }) === undefined)
      await copying(copy(base, path), () => statSync(path, { throwIfNoEntry: false })?.size ?? 0).catch(
        (error: NodeJS.ErrnoException) => {
          if (error.code !== 'ENOENT') throw diskError(`copy ${base} to`, path, error);
        },
      );
    const flags = constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW;
    return new StagedFile(
      path,
      await openFile(path, flags).catch((error: unknown) => {
        throw diskError('open', path, error);
      }),
    );
  }

  get bytes(): number {
    return this.#attempt('stat', () => fstatSync(this.#fd).size);
  }

  /** Throws where there is no room for `bytes` more. */
  async reserve(bytes: number): Promise<void> {
    const { bavail, bsize } = await statfs(dirname(this.path));
    if (bytes <= bavail * bsize) return;
    throw new NostosError(
      'DISK_FULL',
      `${this.path} needs ${bytes} more bytes, ${bavail * bsize} are free; free some and run the restore again`,
      { details: { path: this.path, neededBytes: bytes, freeBytes: bavail * bsize } },
    );
  }

  read(target: Uint8Array, offset: number): void {
    this.#attempt('read', () => {
      for (let done = 0; done < target.length;) {
        const count = readSync(this.#fd, target, done, target.length - done, offset + done);
        if (count === 0) throw Object.assign(new Error('the file became shorter'), { code: 'EOF' });
        done += count;
      }
    });
  }

  /** Writes `data`, one run after another. Waits only where the disk is a whole interval behind. */
  async writeRuns(runs: readonly Run[], data: Uint8Array): Promise<void> {
    let taken = 0;
    for (const { offset, length } of runs) {
      const bytes = data.subarray(taken, taken + length);
      if (length < WRITE_HERE_BYTES) this.#attempt('write', () => writeAll(this.#fd, bytes, offset));
      else await this.#write(bytes, offset);
      taken += length;
    }
    this.#unsynced += data.length;
    if (this.#unsynced < SYNC_EVERY_BYTES) return;
    await this.#syncing;
    this.#unsynced = 0;
    this.#syncing = syncData(this.#fd).catch((error: unknown) => this.#giveUp(error));
    this.#syncing.catch(() => undefined);
  }

  async #write(bytes: Uint8Array, offset: number): Promise<void> {
    try {
      for (let done = 0; done < bytes.length;)
        done += await writeSome(this.#fd, bytes, done, bytes.length - done, offset + done);
    } catch (error) {
      throw diskError('write', this.path, error);
    }
  }

  /** Cuts the file to its size and makes it durable. */
  async finish(bytes: number): Promise<void> {
    await this.#syncing;
    if (this.bytes !== bytes) this.#attempt('truncate', () => ftruncateSync(this.#fd, bytes));
    await syncFile(this.#fd).catch((error: unknown) => this.#giveUp(error));
  }

  /** After a failed sync the file may read back better than it is on the disk: it must not become a base. */
  #giveUp(cause: unknown): never {
    rmSync(this.path, { force: true });
    throw diskError('sync', this.path, cause);
  }

  async close(): Promise<void> {
    await this.#syncing?.catch(() => undefined);
    await closeFile(this.#fd);
  }

  #attempt<T>(operation: string, run: () => T): T {
    try {
      return run();
    } catch (error) {
      throw diskError(operation, this.path, error);
    }
  }
}

function writeAll(fd: number, bytes: Uint8Array, offset: number): void {
  for (let done = 0; done < bytes.length;) done += writeSync(fd, bytes, done, bytes.length - done, offset + done);
}

function writeSome(fd: number, bytes: Uint8Array, from: number, length: number, offset: number): Promise<number> {
  return new Promise((resolve, reject) => {
    write(fd, bytes, from, length, offset, (error, written) => {
      if (error === null) resolve(written);
      else reject(error);
    });
  });
}
