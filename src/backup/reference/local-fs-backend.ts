/**
 * `<root>/manifests/<id>.json` and `<root>/<key>`, as the reference has them. What is written is there whole and durably or
 * not at all: it is written beside under a name of its own (a crash may leave a `.nostos-*.tmp`), fsynced, renamed, and the
 * directory fsynced. The disk is synchronous: an application that cannot wait for a sync runs this in a worker.
 */
import { dirname, join, resolve } from 'node:path';
import { makeDurableDirectory } from '../../base/directory-tree.ts';
import { systemDisk, type Disk, type DiskFile } from '../../base/disk.ts';
import { NostosError } from '../../base/errors.ts';
import { yieldToEventLoop } from '../../base/event-loop.ts';
import { randomHex128, systemRandom, type Random } from '../../base/random.ts';
import type { BackupBackend, ContentRange } from './backend.ts';
import { BackupBackendError, ManifestValidationError } from './errors.ts';
import { SnapshotManifest } from './manifest.ts';
import { BACKUP_REFERENCE_LIMITS } from './types.ts';

const MANIFESTS = 'manifests';
const SUFFIX = '.json';

export interface LocalFsBackendDeps {
  readonly disk: Disk;
  readonly random: Random;
}

export class LocalFsBackend implements BackupBackend {
  readonly #root: string;
  readonly #disk: Disk;
  readonly #random: Random;

  /** Makes the directory. */
  constructor(root: string, { disk = systemDisk, random = systemRandom }: Partial<LocalFsBackendDeps> = {}) {
    this.#root = resolve(root);
    this.#disk = disk;
    this.#random = random;
    attempt(() => makeDurableDirectory(disk, join(this.#root, MANIFESTS)));
  }

  name(): string {
    return 'local_fs';
  }

  root(): string {
    return this.#root;
  }

  async putManifest(manifest: SnapshotManifest): Promise<void> {
    try {
      manifest.validateInternal();
    } catch (error) {
      if (!(error instanceof ManifestValidationError)) throw error;
      throw new BackupBackendError('ManifestValidation', error.message, {}, error);
    }
    const path = this.#manifestPath(manifest.snapshotId);
    const json = manifest.toJson();
    attempt(() => this.#replace(path, Buffer.from(json)));
  }

  async getManifest(id: string): Promise<SnapshotManifest> {
    const path = this.#manifestPath(id);
    const bytes = this.#read(path, BACKUP_REFERENCE_LIMITS.manifestBytesMax, () => {
      return new BackupBackendError('ManifestNotFound', `there is no manifest at ${path}`, { key: id });
    });
    try {
      new TextDecoder('utf-8', { fatal: true }).decode(bytes);
    } catch {
      throw new BackupBackendError('Other', `${path} is not UTF-8`);
    }
    return SnapshotManifest.fromJson(bytes);
  }

  async listManifests(): Promise<string[]> {
    const dir = join(this.#root, MANIFESTS);
    const names = attempt(() => (this.#disk.exists(dir) ? this.#disk.list(dir) : []));
    return names
      .filter((name) => name.endsWith(SUFFIX))
      .map((name) => name.slice(0, -SUFFIX.length))
      .toSorted((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
  }

  async deleteManifest(id: string): Promise<void> {
    this.#delete(this.#manifestPath(id));
  }

  async putContent(key: string, bytes: Uint8Array): Promise<void> {
    const path = this.#contentPath(key);
    attempt(() => {
      makeDurableDirectory(this.#disk, dirname(path));
      this.#replace(path, bytes);
    });
  }

  async getContent(key: string): Promise<Uint8Array> {
    return this.#read(this.#contentPath(key), Number.MAX_SAFE_INTEGER, () => contentNotFound(key));
  }

  async deleteContent(key: string): Promise<void> {
    this.#delete(this.#contentPath(key));
  }

  async contentBytes(key: string): Promise<number> {
    const file = this.#open(this.#contentPath(key), () => contentNotFound(key));
    try {
      return attempt(() => file.size());
    } finally {
      file.close();
    }
  }

  async *readContent(
    key: string,
    { offset = 0, length = Infinity, signal }: ContentRange = {},
  ): AsyncIterable<Uint8Array> {
    const file = this.#open(this.#contentPath(key), () => contentNotFound(key));
    try {
      const end = Math.min(
        offset + length,
        attempt(() => file.size()),
      );
      const buffer = new Uint8Array(Math.min(BACKUP_REFERENCE_LIMITS.readBytes, Math.max(0, end - offset)));
      for (let at = offset; at < end; await yieldToEventLoop()) {
        signal?.throwIfAborted();
        const count = attempt(() => file.read(buffer.subarray(0, Math.min(buffer.length, end - at)), at));
        if (count === 0) return;
        yield buffer.subarray(0, count);
        at += count;
      }
    } finally {
      file.close();
    }
  }

  #manifestPath(id: string): string {
    const reason = idProblem(id);
    if (reason !== undefined) throw invalidKey(id, reason);
    return join(this.#root, MANIFESTS, id + SUFFIX);
  }

  #contentPath(key: string): string {
    const reason = keyProblem(key);
    if (reason !== undefined) throw invalidKey(key, reason);
    return join(this.#root, key);
  }

  #open(path: string, notFound: () => BackupBackendError): DiskFile {
    try {
      return this.#disk.open(path, 'read');
    } catch (error) {
      throw isNotThere(error) ? notFound() : asIo(error);
    }
  }

  #read(path: string, bytesMax: number, notFound: () => BackupBackendError): Uint8Array {
    const file = this.#open(path, notFound);
    try {
      return attempt(() => {
        const size = file.size();
        if (size > bytesMax)
          throw new BackupBackendError(
            'Serialization',
            `${path} has ${size} bytes, more than the ${bytesMax} of a manifest`,
          );
        const bytes = new Uint8Array(size);
        return bytes.subarray(0, file.read(bytes, 0));
      });
    } finally {
      file.close();
    }
  }

  #replace(path: string, bytes: Uint8Array): void {
    const disk = this.#disk;
    const temporary = join(dirname(path), `.nostos-${randomHex128(this.#random)}.tmp`);
    try {
      const file = disk.open(temporary, 'create');
      try {
        file.write(bytes, 0);
        file.sync();
      } finally {
        file.close();
      }
      disk.rename(temporary, path);
    } catch (error) {
      try {
        if (disk.exists(temporary)) disk.remove(temporary);
      } catch {
        // It is in nobody's way.
      }
      throw error;
    }
    disk.syncDirectory(dirname(path));
  }

  #delete(path: string): void {
    try {
      this.#disk.remove(path);
      this.#disk.syncDirectory(dirname(path));
    } catch (error) {
      if (!isNotThere(error)) throw asIo(error);
    }
  }
}

/** Why there can be no manifest of this id; undefined when there can. */
export function idProblem(id: string): string | undefined {
  if (id === '') return 'empty id';
  if (id.includes('..')) return 'it has two dots in a row';
  if (/[/\\]/.test(id)) return 'it has a separator';
  return undefined;
}

/** Why there can be no content of this key; undefined when there can. */
export function keyProblem(key: string): string | undefined {
  if (key === '') return 'empty key';
  if (key.split('/').some((segment) => segment === '.' || segment === '..')) return 'a part of it is . or ..';
  if (key.includes('\\')) return 'it has a backslash';
  if (key.startsWith('/')) return 'it begins with a slash';
  return undefined;
}

function invalidKey(key: string, reason: string): BackupBackendError {
  return new BackupBackendError('InvalidKey', `${JSON.stringify(key)} cannot be a key: ${reason}`, { key, reason });
}

function contentNotFound(key: string): BackupBackendError {
  return new BackupBackendError('ContentNotFound', `there is no content under ${JSON.stringify(key)}`, { key });
}

function attempt<T>(run: () => T): T {
  try {
    return run();
  } catch (error) {
    throw asIo(error);
  }
}

function asIo(error: unknown): unknown {
  if (!(error instanceof NostosError) || error instanceof BackupBackendError) return error;
  return new BackupBackendError('Io', error.message, {}, error);
}

function isNotThere(error: unknown): boolean {
  return error instanceof NostosError && error.details['errno'] === 'ENOENT';
}
