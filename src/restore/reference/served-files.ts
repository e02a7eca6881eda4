/**
 * The files that a server sends: the regular files of one directory whose extension is exactly `ndb`, sorted bytewise,
 * under names that a client accepts. A file is sent as long as it was when it was opened: what is added later is left
 * out, and one that became shorter ends the transfer, since its size was promised.
 *
 * Files are open before the number of files is told, up to `openFilesMax`, so that one that is removed meanwhile is sent
 * all the same. Those after that are opened as the first ones are done.
 */
import { constants } from 'node:fs';
import type { FileHandle } from 'node:fs/promises';
import { open, readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { diskError } from '../../base/disk.ts';
import { NostosError } from '../../base/errors.ts';
import { isLogFileName, nameProblem } from './file-name.ts';
import { PLAN, STAGING } from './local-directory.ts';

export interface ListedFile {
  readonly name: string;
  readonly bytes: number;
}

export interface ServedFile extends ListedFile {
  /** Fills the whole of `target` from there on. */
  read(target: Uint8Array, offset: number): Promise<void>;
}

/** Of each file, how many bytes are served; undefined: the file is not. */
export type SizeOf = (name: string) => number | undefined;

/** A log that is written to meanwhile: what may be sent of it, which stays as it is until this is disposed of. */
export interface ServedLog extends AsyncDisposable {
  readonly sizeOf: SizeOf;
}

const whole: SizeOf = () => Infinity;

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** With the sizes of now. A directory between two states is not served. */
export async function listLogFiles(dir: string, sizeOf: SizeOf = whole): Promise<ListedFile[]> {
  const plan = join(dir, STAGING, PLAN);
  if ((await ifExists('stat', plan, () => stat(plan))) !== undefined)
    throw new NostosError(
      'RESTORE_UNFINISHED',
      `${dir} is not served: a restore into it was cut off while it put files in place. Restore again, or call finishRestore`,
      { details: { dir } },
    );
  const names = (await attempt('list', dir, () => readdir(dir, { encoding: 'buffer' })))
    .sort(Buffer.compare)
    .map(decodeName)
    .filter((name) => name !== undefined && isLogFileName(name) && nameProblem(name, 'reference') === undefined);
  const files: ListedFile[] = [];
  for (const name of names as string[]) {
    const upTo = sizeOf(name);
    if (upTo === undefined) continue;
    const found = await ifExists('stat', join(dir, name), () => stat(join(dir, name)));
    if (found?.isFile() === true) files.push({ name, bytes: Math.min(found.size, upTo) });
  }
  return files;
}

export class ServedFiles implements AsyncDisposable {
  readonly #dir: string;
  readonly #open: OpenFile[] = [];
  readonly #sizeOf: SizeOf;
  #waiting: readonly string[];
  #current: OpenFile | undefined;

  static async open(dir: string, openFilesMax: number, sizeOf: SizeOf = whole): Promise<ServedFiles> {
    const names = (await listLogFiles(dir, sizeOf)).map((file) => file.name);
    const served = new ServedFiles(dir, names.slice(openFilesMax), sizeOf);
    try {
      for (const name of names.slice(0, openFilesMax)) {
        const file = await OpenFile.open(dir, name, sizeOf(name));
        if (file !== undefined) served.#open.push(file);
      }
    } catch (error) {
      await served[Symbol.asyncDispose]();
      throw error;
    }
    return served;
  }

  private constructor(dir: string, waiting: readonly string[], sizeOf: SizeOf) {
    this.#dir = dir;
    this.#sizeOf = sizeOf;
    this.#waiting = waiting;
  }

  /** How many `next` will still give. */
  get count(): number {
    return this.#open.length + this.#waiting.length;
  }

  /** The next one, which is open until the one after it is asked for. */
  async next(): Promise<ServedFile | undefined> {
    await this.#current?.close();
    this.#current = this.#open.shift();
    const [name, ...rest] = this.#waiting;
    if (name !== undefined) {
      const file = await OpenFile.open(this.#dir, name, this.#sizeOf(name));
      if (file === undefined)
        throw changed(this.#dir, name, 'is gone, and it was counted already; the client is cut off and may ask again');
      this.#open.push(file);
      this.#waiting = rest;
    }
    this.#current ??= this.#open.shift();
    return this.#current;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const open = this.#current === undefined ? [] : [this.#current];
    this.#current = undefined;
    await Promise.all([...open, ...this.#open.splice(0)].map((file) => file.close()));
  }
}

/** The content of a file as it is now, as far as it is served; undefined when it is gone. */
export async function readWholeFile(
  dir: string,
  name: string,
  { bytesMax, upTo }: { readonly bytesMax: number; readonly upTo?: number | undefined },
): Promise<Uint8Array | undefined> {
  const file = await OpenFile.open(dir, name, upTo);
  if (file === undefined) return undefined;
  try {
    if (file.bytes > bytesMax) throw changed(dir, name, `has grown to ${file.bytes} bytes and no longer fits`);
    const bytes = new Uint8Array(file.bytes);
    await file.read(bytes, 0);
    return bytes;
  } finally {
    await file.close();
  }
}

class OpenFile implements ServedFile {
  readonly name: string;
  readonly bytes: number;
  readonly #dir: string;
  readonly #handle: FileHandle;

  /** Undefined when it is gone, or no longer a file. Never waits for the other end of a pipe. */
  static async open(dir: string, name: string, upTo = Infinity): Promise<OpenFile | undefined> {
    const path = join(dir, name);
    // oxlint-disable-next-line no-bitwise -- flags
    const handle = await ifExists('open', path, () => open(path, constants.O_RDONLY | constants.O_NONBLOCK));
    if (handle === undefined) return undefined;
    try {
      const found = await handle.stat();
      if (found.isFile()) return new OpenFile(dir, name, { handle, bytes: Math.min(found.size, upTo) });
    } catch (error) {
      await handle.close();
      throw error;
    }
    await handle.close();
    return undefined;
  }

  private constructor(dir: string, name: string, { handle, bytes }: { handle: FileHandle; bytes: number }) {
    this.#dir = dir;
    this.name = name;
    this.bytes = bytes;
    this.#handle = handle;
  }

  async read(target: Uint8Array, offset: number): Promise<void> {
    for (let done = 0; done < target.length;) {
      const { bytesRead } = await attempt('read', join(this.#dir, this.name), () =>
        this.#handle.read(target, done, target.length - done, offset + done),
      );
      if (bytesRead === 0)
        throw changed(
          this.#dir,
          this.name,
          `has become shorter than ${this.bytes} bytes while it was sent; the client is cut off and may ask again`,
        );
      done += bytesRead;
    }
  }

  close(): Promise<void> {
    return this.#handle.close();
  }
}

function decodeName(bytes: Uint8Array): string | undefined {
  try {
    return utf8.decode(bytes);
  } catch {
    return undefined;
  }
}

function changed(dir: string, name: string, what: string): NostosError {
  return new NostosError('RESTORE_FAILED', `${join(dir, name)} ${what}`, { details: { dir, name } });
}

async function ifExists<T>(operation: string, path: string, run: () => Promise<T>): Promise<T | undefined> {
  return attempt(operation, path, async () => {
    try {
      return await run();
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
      throw error;
    }
  });
}

async function attempt<T>(operation: string, path: string, run: () => Promise<T>): Promise<T> {
  try {
    return await run();
  } catch (error) {
    throw diskError(operation, path, error);
  }
}
