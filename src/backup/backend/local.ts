/**
 * A directory as the storage of backups. An object is written under a name of its own beside its place, synced, and
 * linked (or, to replace, renamed) to its key; then the directory is synced. A crash leaves the object whole or a file
 * `.tmp-…`, which nobody lists and which is removed when it is a day old.
 *
 * The root may be reached through a symbolic link; below it none is followed.
 */
import { randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import type { FileHandle } from 'node:fs/promises';
import { link, lstat, mkdir, open, readdir, realpath, rename, unlink } from 'node:fs/promises';
import { dirname, join, sep } from 'node:path';
import { diskError } from '../../base/disk.ts';
import { NostosError } from '../../base/errors.ts';
import type { CallOptions, GetOptions, ListOptions, ObjectBackend, ObjectEntry, PutOptions } from './backend.ts';
import { checkKey, checkPrefix } from './backend.ts';

const TEMPORARY = '.tmp-';
const TEMPORARY_KEEP_MS = 24 * 60 * 60 * 1000;
const STREAM_BYTES = 1024 * 1024;
const { O_RDONLY, O_WRONLY, O_CREAT, O_EXCL, O_NOFOLLOW } = constants;

export class LocalBackend implements ObjectBackend {
  readonly url: string;
  readonly honoursConditions = true;
  readonly #root: string;
  /** Directories that were found to be real ones. */
  readonly #directories = new Set<string>();
  readonly #syncs = new Map<string, DirectorySync>();

  private constructor(root: string) {
    this.#root = root;
    this.url = `file:${root}`;
  }

  /** The directory is made when it is not there. */
  static async open(path: string): Promise<LocalBackend> {
    return attempt('open', path, async () => {
      await mkdir(path, { recursive: true, mode: 0o700 });
      return new LocalBackend(await realpath(path));
    });
  }

  async put(key: string, bytes: Uint8Array, options: PutOptions = {}): Promise<'created' | 'exists'> {
    return this.#write(key, options, async (file) => {
      await writeWhole(file, bytes, 0);
    });
  }

  async putStream(
    key: string,
    source: AsyncIterable<Uint8Array>,
    bytes: number,
    options: PutOptions = {},
  ): Promise<'created' | 'exists'> {
    return this.#write(key, options, async (file) => {
      let at = 0;
      for await (const part of source) {
        options.signal?.throwIfAborted();
        await writeWhole(file, part, at);
        at += part.length;
      }
      if (at !== bytes)
        throw new NostosError('INVALID_ARGUMENT', `A source of ${bytes} bytes for ${key} gave ${at}`, {
          details: { key },
        });
    });
  }

  async get(key: string, { range, signal }: GetOptions = {}): Promise<Uint8Array | undefined> {
    return this.#read(key, signal, async (file) => {
      const { size } = await file.stat();
      const start = Math.min(range?.start ?? 0, size);
      const bytes = Buffer.allocUnsafeSlow(Math.max(0, Math.min(range?.end ?? size, size) - start));
      return bytes.subarray(0, await readWhole(file, bytes, start));
    });
  }

  async *stream(key: string, { signal }: CallOptions = {}): AsyncGenerator<Uint8Array, void, void> {
    for (let at = 0; ;) {
      const bytes = await this.get(key, { range: { start: at, end: at + STREAM_BYTES }, signal });
      if (bytes === undefined) throw diskError('open', join(this.#root, key), { code: 'ENOENT' });
      if (bytes.length === 0) return;
      at += bytes.length;
      yield bytes;
    }
  }

  async head(key: string, { signal }: CallOptions = {}): Promise<ObjectEntry | undefined> {
    return this.#read(key, signal, async (file) => {
      const { size, mtimeMs } = await file.stat();
      return { key, bytes: size, modifiedMs: mtimeMs };
    });
  }

  async *list(prefix: string, { after = '', signal }: ListOptions = {}): AsyncGenerator<ObjectEntry, void, void> {
    checkPrefix(prefix);
    const dir = prefix.slice(0, prefix.lastIndexOf('/') + 1);
    for await (const entry of this.#walk(dir, prefix, after, signal)) yield entry;
  }

  async delete(key: string, { signal }: CallOptions = {}): Promise<void> {
    checkKey(key);
    signal?.throwIfAborted();
    const path = join(this.#root, key);
    if (!(await this.#isDirectory(dirname(path)))) return;
    await attempt('remove', path, async () => {
      try {
        await unlink(path);
      } catch (error) {
        if (!isErrno(error, 'ENOENT') && !isErrno(error, 'EISDIR')) throw error;
      }
      await this.#syncDirectory(dirname(path));
    });
  }

  async close(): Promise<void> {}

  async #write(
    key: string,
    { ifAbsent = false, signal }: PutOptions,
    fill: (file: FileHandle) => Promise<void>,
  ): Promise<'created' | 'exists'> {
    checkKey(key);
    signal?.throwIfAborted();
    const path = join(this.#root, key);
    const dir = dirname(path);
    await this.#makeDirectory(dir);
    const temporary = join(dir, TEMPORARY + randomBytes(8).toString('hex'));
    return attempt('write', path, async () => {
      let placed = false;
      const file = await open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600);
      try {
        try {
          await fill(file);
          await file.datasync();
        } finally {
          await file.close();
        }
        if (!ifAbsent) {
          await rename(temporary, path);
          placed = true;
        } else if (!(await linkNew(temporary, path))) {
          // Its writer may not have synced the directory yet, and the caller builds on what is there.
          await this.#syncDirectory(dir);
          return 'exists';
        }
      } finally {
        if (!placed) await unlink(temporary).catch(() => undefined);
      }
      await this.#syncDirectory(dir);
      return 'created';
    });
  }

  async #read<T>(
    key: string,
    signal: AbortSignal | undefined,
    use: (file: FileHandle) => Promise<T>,
  ): Promise<T | undefined> {
    checkKey(key);
    signal?.throwIfAborted();
    const path = join(this.#root, key);
    if (!(await this.#isDirectory(dirname(path)))) return undefined;
    return attempt('read', path, async () => {
      let file: FileHandle;
      try {
        file = await open(path, O_RDONLY | O_NOFOLLOW);
      } catch (error) {
        if (isErrno(error, 'ENOENT')) return undefined;
        throw error;
      }
      try {
        if (!(await file.stat()).isFile()) return undefined;
        return await use(file);
      } finally {
        await file.close();
      }
    });
  }

  async *#walk(
    dir: string,
    prefix: string,
    after: string,
    signal: AbortSignal | undefined,
  ): AsyncGenerator<ObjectEntry, void, void> {
    signal?.throwIfAborted();
    const path = join(this.#root, dir);
    if (!(await this.#isDirectory(path.endsWith(sep) ? path.slice(0, -1) : path))) return;
    const found = await attempt('list', path, () => readdir(path, { withFileTypes: true }).catch(ignoreAbsent));
    // As part of a key the name of a directory ends with "/", which sorts behind "-" and ".".
    const names = (found ?? []).map((entry) => (entry.isDirectory() ? `${entry.name}/` : entry.name));
    for (const name of names.sort()) {
      const key = dir + name;
      if (name.startsWith(TEMPORARY)) await removeIfOld(join(path, name));
      if (name.startsWith('.')) continue;
      if (name.endsWith('/')) {
        const isWanted = key.startsWith(prefix) || prefix.startsWith(key);
        const isBehind = key > after || after.startsWith(key);
        if (isWanted && isBehind) for await (const entry of this.#walk(key, prefix, after, signal)) yield entry;
      } else if (key.startsWith(prefix) && key > after) {
        const stats = await lstat(join(path, name)).catch(() => undefined);
        if (stats?.isFile() === true) yield { key, bytes: stats.size, modifiedMs: stats.mtimeMs };
      }
    }
  }

  /** With its parents up to the root, each synced into the one above before anything in it counts. */
  async #makeDirectory(dir: string): Promise<void> {
    if (this.#directories.has(dir)) return;
    const parent = dirname(dir);
    if (dir !== this.#root) await this.#makeDirectory(parent);
    await attempt('create the directory', dir, async () => {
      try {
        await mkdir(dir, { mode: 0o700 });
      } catch (error) {
        if (!isErrno(error, 'EEXIST')) throw error;
      }
    });
    if (!(await this.#isDirectory(dir)))
      throw new NostosError('BACKEND_UNSUITABLE', `${dir} is not a directory; nothing is written through it`);
    if (dir !== this.#root) await this.#syncDirectory(parent);
  }

  /** False when there is nothing, or a file; a symbolic link is refused. */
  async #isDirectory(dir: string): Promise<boolean> {
    if (this.#directories.has(dir)) return true;
    if (dir !== this.#root && !(await this.#isDirectory(dirname(dir)))) return false;
    const stats = await attempt('stat', dir, () => lstat(dir).catch(ignoreAbsent));
    if (stats?.isSymbolicLink() === true)
      throw new NostosError('BACKEND_UNSUITABLE', `${dir} is a symbolic link; below ${this.#root} none is followed`, {
        details: { path: dir },
      });
    if (stats?.isDirectory() !== true) return false;
    this.#directories.add(dir);
    return true;
  }

  /** Writers that meet here share a sync: one that begins now covers whatever was linked before. */
  async #syncDirectory(dir: string): Promise<void> {
    const running = this.#syncs.get(dir);
    if (running !== undefined)
      return (running.next ??= running.done.catch(() => undefined).then(() => this.#syncNow(dir)));
    return this.#syncNow(dir);
  }

  async #syncNow(dir: string): Promise<void> {
    const sync: DirectorySync = { done: syncDirectory(dir), next: undefined };
    this.#syncs.set(dir, sync);
    try {
      await sync.done;
    } finally {
      if (this.#syncs.get(dir) === sync && sync.next === undefined) this.#syncs.delete(dir);
    }
  }
}

interface DirectorySync {
  readonly done: Promise<void>;
  next: Promise<void> | undefined;
}

async function syncDirectory(dir: string): Promise<void> {
  await attempt('sync', dir, async () => {
    const handle = await open(dir, O_RDONLY);
    try {
      await handle.sync();
    } finally {
      await handle.close();
    }
  });
}

async function writeWhole(file: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < bytes.length;)
    done += (await file.write(bytes, done, bytes.length - done, position + done)).bytesWritten;
}

async function readWhole(file: FileHandle, bytes: Uint8Array, position: number): Promise<number> {
  let done = 0;
  while (done < bytes.length) {
    const { bytesRead } = await file.read(bytes, done, bytes.length - done, position + done);
    if (bytesRead === 0) break;
    done += bytesRead;
  }
  return done;
}

/** False when the name is taken. */
async function linkNew(from: string, to: string): Promise<boolean> {
  try {
    await link(from, to);
    return true;
  } catch (error) {
    if (isErrno(error, 'EEXIST')) return false;
    throw error;
  }
}

async function removeIfOld(path: string): Promise<void> {
  const stats = await lstat(path).catch(() => undefined);
  if (stats !== undefined && Date.now() - stats.mtimeMs > TEMPORARY_KEEP_MS) await unlink(path).catch(() => undefined);
}

function ignoreAbsent(error: unknown): undefined {
  if (!isErrno(error, 'ENOENT')) throw error;
  return undefined;
}

function isErrno(error: unknown, code: string): boolean {
  return (error as NodeJS.ErrnoException | null)?.code === code;
}

async function attempt<T>(operation: string, path: string, run: () => Promise<T>): Promise<T> {
  try {
    return await run();
  } catch (error) {
    if (typeof (error as NodeJS.ErrnoException | null)?.errno === 'number') throw diskError(operation, path, error);
    throw error;
  }
}
