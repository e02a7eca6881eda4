/**
 * A repository of backups in the native layout. It needs no node: `node/` brings the files and the records.
 *
 *     const repository = await openRepository('file:/backups/shop', { keys });     // createRepository makes one
 *
 *     // A recovery point: records first, then files, the manifest last.
 *     const through = await repository.archive.write(pagesOfLog, { uuidOf });
 *     await using writer = await repository.createSnapshot({ cluster, store, node });
 *     const item = await writer.addFile({ kind: 'tenant', id, uuid, name, schemaVersion, applied }, source);
 *     writer.reuse(writer.previous.items[0]);                      // or the same file as in the snapshot before
 *     const snapshot = await writer.commit({ position, time, terms, archive: { after, through } });
 *
 *     // Back: the files, then the records from where they are.
 *     for await (const snapshot of repository.snapshots()) …
 *     await repository.readFile(item, sink);
 *     for await (const page of repository.archive.records({ generation, from, to }, { after })) …
 *
 * A crash of a creator leaves no snapshot or a whole one, and objects that prune removes when they are old enough.
 */
import { hostname } from 'node:os';
import type { Clock } from '../../base/clock.ts';
import { systemClock } from '../../base/clock.ts';
import type { ClusterId, NodeId, StoreId, TenantUuid } from '../../base/brands.ts';
import { isNostosError, NostosError } from '../../base/errors.ts';
import { DEFAULT_LIMITS } from '../../base/limits.ts';
import type { Limits } from '../../base/limits.ts';
import type { Random } from '../../base/random.ts';
import { randomHex128, systemRandom } from '../../base/random.ts';
import { parseStrictJson } from '../../base/strict-json.ts';
import type { ObjectBackend } from '../backend/backend.ts';
import { holds } from '../backend/backend.ts';
import { openBackend } from '../backend/open-backend.ts';
import { Archive } from './archive.ts';
import { rangesOf } from './archive-ranges.ts';
import type { Content, ContentSink, ContentSource, ReadOptions, TransferOptions } from './content.ts';
import { ContentStore } from './content.ts';
import type { Timers } from './heartbeat.ts';
import { systemTimers } from './heartbeat.ts';
import type { KeyProvider } from './keys.ts';
import { NO_TENANT_UUID, noKeys } from './keys.ts';
import type { LockDeps, RepositoryLock } from './locks.ts';
import { acquireLock, tombstone } from './locks.ts';
import type { CatalogItem, RepositoryId, Snapshot, SnapshotId, SnapshotItem, TenantItem } from './manifest.ts';
import { decodeManifest, encodeManifest, manifestKey } from './manifest.ts';
import { newSnapshotId } from './snapshot-id.ts';

export interface OpenRepositoryOptions {
  readonly keys?: KeyProvider;
  readonly limits?: Partial<Limits>;
  /** Told what went otherwise than it should, and was got over. */
  readonly onWarning?: (message: string) => void;
  readonly clock?: Clock;
  readonly random?: Random;
  readonly timers?: Timers;
  readonly signal?: AbortSignal;
}

export function pinKey(id: SnapshotId): string {
  return `pins/${id}`;
}

export const REPOSITORY_KEY = 'nostos-backup.json';
export const REPOSITORY_FORMAT = 2;

export interface RepositoryDeps {
  readonly backend: ObjectBackend;
  readonly id: RepositoryId;
  readonly keys: KeyProvider;
  readonly limits: Limits;
  readonly clock: Clock;
  readonly random: Random;
  readonly timers: Timers;
  readonly onWarning: (message: string) => void;
}

/** Of whom a snapshot is. */
export interface SnapshotOrigin {
  readonly cluster: ClusterId;
  readonly store: StoreId;
  readonly node: NodeId;
}

/** What is known of a file before it is stored. */
export type FileDescription = Omit<CatalogItem, keyof Content> | Omit<TenantItem, keyof Content>;

export type SnapshotSeal = Pick<Snapshot, 'position' | 'time' | 'terms'> & Partial<Pick<Snapshot, 'archive' | 'label'>>;

/** Makes the repository when it is not there; of two that try at once both get the same one. */
export async function createRepository(
  at: string | ObjectBackend,
  options: OpenRepositoryOptions = {},
): Promise<Repository> {
  return withBackend(at, options, async (backend) => {
    const { clock = systemClock, random = systemRandom, signal } = options;
    const json = { format: REPOSITORY_FORMAT, repository: randomHex128(random), created_at_ms: clock.nowMs() };
    await backend.put(REPOSITORY_KEY, Buffer.from(`${JSON.stringify(json)}\n`), { ifAbsent: true, signal });
    return open(backend, options);
  });
}

export async function openRepository(
  at: string | ObjectBackend,
  options: OpenRepositoryOptions = {},
): Promise<Repository> {
  return withBackend(at, options, (backend) => open(backend, options));
}

export class Repository {
  readonly id: RepositoryId;
  readonly url: string;
  readonly archive: Archive;
  readonly deps: RepositoryDeps;
  readonly content: ContentStore;

  constructor(deps: RepositoryDeps) {
    const { backend, id, keys, random, limits } = deps;
    this.deps = deps;
    this.id = id;
    this.url = backend.url;
    this.archive = new Archive({ backend, repository: id, keys, random, objectBytesMax: limits.archiveObjectBytesMax });
    this.content = newContent(deps);
  }

  /** Ids of the snapshots, oldest first, by name alone: of a run that was given up there may be one that is none. */
  async *snapshotIds({ signal }: { signal?: AbortSignal | undefined } = {}): AsyncGenerator<SnapshotId, void, void> {
    for await (const { key } of this.deps.backend.list('manifests/', { signal })) {
      const id = /^manifests\/([0-9a-f-]{36})\.json$/.exec(key)?.[1];
      if (id !== undefined) yield id as SnapshotId;
    }
  }

  /** Oldest first. One that cannot be read throws; `verify` goes on and reports it. */
  async *snapshots({ signal }: { signal?: AbortSignal } = {}): AsyncGenerator<Snapshot, void, void> {
    for await (const id of this.snapshotIds({ signal })) {
      const snapshot = await this.findSnapshot(id, { signal });
      if (snapshot !== undefined) yield snapshot;
    }
  }

  async readManifest(id: SnapshotId, options: { signal?: AbortSignal } = {}): Promise<Snapshot> {
    const snapshot = await this.findSnapshot(id, options);
    if (snapshot !== undefined) return snapshot;
    throw new NostosError('BACKUP_NOT_FOUND', `${this.url} has no snapshot ${id}`, { details: { snapshot: id } });
  }

  /** Undefined when there is none, or its run was given up. */
  async findSnapshot(
    id: SnapshotId,
    { signal }: { signal?: AbortSignal | undefined } = {},
  ): Promise<Snapshot | undefined> {
    const { backend, limits } = this.deps;
    const bytes = await backend.get(manifestKey(id), { signal });
    if (bytes === undefined || Buffer.compare(bytes, tombstone(id)) === 0) return undefined;
    const snapshot = decodeManifest(bytes, id, limits.manifestBytesMax);
    if (snapshot.repository === this.id) return snapshot;
    throw new NostosError(
      'BACKUP_DAMAGED',
      `The manifest of the snapshot ${id} belongs to the repository ${snapshot.repository}, not to ${this.url}`,
      { details: { snapshot: id, key: manifestKey(id), problem: 'of another repository' } },
    );
  }

  /** Writes a file, range by range in order, each range checked. Memory is bounded by `backupConcurrency`. */
  async readFile(item: Content, sink: ContentSink, options: ReadOptions = {}): Promise<void> {
    await this.content.read(item, sink, options);
  }

  async createSnapshot(origin: SnapshotOrigin, { signal }: { signal?: AbortSignal } = {}): Promise<SnapshotWriter> {
    const { clock, random } = this.deps;
    const lock = await acquireLock(lockDeps(this.deps), { run: newSnapshotId(clock, random), kind: 'create', signal });
    try {
      // What is there now stays as long as the lock is held: nobody prunes.
      const previous = await this.#newestOf(origin.cluster, signal);
      return new SnapshotWriter({ ...this.deps, archive: this.archive, lock, previous }, origin);
    } catch (error) {
      await lock.release();
      throw error;
    }
  }

  /** One that cannot be read is no base for others. */
  async #newestOf(cluster: ClusterId, signal: AbortSignal | undefined): Promise<Snapshot | undefined> {
    const ids: SnapshotId[] = [];
    for await (const id of this.snapshotIds({ signal })) ids.push(id);
    for (const id of ids.toReversed()) {
      try {
        const snapshot = await this.findSnapshot(id, { signal });
        if (snapshot?.cluster === cluster) return snapshot;
      } catch (error) {
        if (!isNostosError(error, 'BACKUP_DAMAGED')) throw error;
        this.deps.onWarning(error.message);
      }
    }
    return undefined;
  }

  /** While it is held nothing is pruned: for a restore, which reads what an expired snapshot needs. */
  async hold({ signal }: { signal?: AbortSignal } = {}): Promise<RepositoryLock> {
    const { clock, random } = this.deps;
    return acquireLock(lockDeps(this.deps), { run: newSnapshotId(clock, random), kind: 'read', signal });
  }

  async pin(id: SnapshotId): Promise<void> {
    await this.readManifest(id);
    await this.deps.backend.put(pinKey(id), new Uint8Array());
  }

  async unpin(id: SnapshotId): Promise<void> {
    await this.deps.backend.delete(pinKey(id));
  }

  async close(): Promise<void> {
    await this.deps.backend.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

interface WriterDeps extends RepositoryDeps {
  readonly archive: Archive;
  readonly lock: RepositoryLock;
  readonly previous: Snapshot | undefined;
}

/** One snapshot in the making. Left without `commit`, there is none; what it has stored is removed by a later prune. */
export class SnapshotWriter {
  readonly id: SnapshotId;
  /** The newest snapshot of the same cluster. */
  readonly previous: Snapshot | undefined;
  readonly #deps: WriterDeps;
  readonly #origin: SnapshotOrigin;
  readonly #lock: RepositoryLock;
  readonly #content: ContentStore;
  readonly #items: SnapshotItem[] = [];
  /** Taken once: a commit that is repeated, since its outcome is open, has to write the same bytes. */
  readonly #createdAtMs: number;
  #bytesStored = 0;

  constructor(deps: WriterDeps, origin: SnapshotOrigin) {
    this.#createdAtMs = deps.clock.nowMs();
    this.id = deps.lock.run;
    this.previous = deps.previous;
    this.#deps = deps;
    this.#origin = origin;
    this.#lock = deps.lock;
    this.#content = newContent(deps);
  }

  /** Bytes of objects that had to be written so far. */
  get bytesStored(): number {
    return this.#bytesStored;
  }

  /** Stores a file. Of what it has in common with the same file in `previous` nothing is compressed or sent. */
  async addFile(
    description: FileDescription & { readonly kind: 'tenant' },
    source: ContentSource,
    options?: TransferOptions,
  ): Promise<TenantItem>;
  async addFile(description: FileDescription, source: ContentSource, options?: TransferOptions): Promise<SnapshotItem>;
  async addFile(
    description: FileDescription,
    source: ContentSource,
    { signal, onBytes }: TransferOptions = {},
  ): Promise<SnapshotItem> {
    const both = signal === undefined ? this.#lock.signal : AbortSignal.any([signal, this.#lock.signal]);
    both.throwIfAborted();
    const owner = ownerOf(description);
    const key = await this.#deps.keys.keyFor(owner);
    const base = this.previous?.items.find((item) => ownerOf(item) === owner);
    // With another key all ids are others.
    if (base !== undefined && base.key === key?.id) await this.#content.know(base, { signal: both });
    const stored = await this.#content.write(source, key, { signal: both, onBytes });
    const { bytesStored, ...content } = stored;
    this.#bytesStored += bytesStored;
    const item: SnapshotItem = { ...description, ...content };
    this.#items.push(item);
    return item;
  }

  /** Takes a file of `previous` as it is: the archived log carries it on. */
  reuse(item: SnapshotItem): void {
    if (this.previous?.items.includes(item) !== true)
      throw new NostosError('INVALID_ARGUMENT', 'Only a file of the snapshot before can be taken into this one');
    this.#items.push(item);
  }

  /**
   * Checks that the archive has the records that are needed, and makes the snapshot, all of it, be there. After a failure
   * of the storage it may be called again.
   */
  async commit(seal: SnapshotSeal, { signal }: { signal?: AbortSignal } = {}): Promise<Snapshot> {
    const { backend, id: repository, limits } = this.#deps;
    const bytes = encodeManifest({
      id: this.id,
      repository,
      createdAtMs: this.#createdAtMs,
      ...this.#origin,
      position: seal.position,
      time: seal.time,
      terms: seal.terms,
      items: this.#items,
      archive: seal.archive,
      label: seal.label,
    });
    // What a reader would refuse must fail now, not when the backup is needed.
    const snapshot = decodeManifest(bytes, this.id, limits.manifestBytesMax);
    for (const range of rangesOf(seal.terms, seal.archive)) await this.#deps.archive.checkCovered(range, { signal });
    await this.#lock.confirm();
    const put = await backend.put(manifestKey(this.id), bytes, { ifAbsent: true, signal });
    if (put === 'exists' && !(await holds(backend, manifestKey(this.id), bytes)))
      throw new NostosError('BACKUP_LOCK_LOST', `The snapshot ${this.id} was given up by others; make it again`, {
        details: { run: this.id },
      });
    await this.close();
    return snapshot;
  }

  /** After it, what was not committed will not be. */
  async close(): Promise<void> {
    await this.#lock.release();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

function ownerOf(item: FileDescription): TenantUuid {
  return item.kind === 'tenant' ? item.uuid : NO_TENANT_UUID;
}

async function open(backend: ObjectBackend, options: OpenRepositoryOptions): Promise<Repository> {
  const bytes = await backend.get(REPOSITORY_KEY, { signal: options.signal });
  if (bytes === undefined)
    throw new NostosError('BACKUP_NOT_FOUND', `There is no backup repository at ${backend.url}`, {
      details: { url: backend.url },
    });
  const { keys = noKeys, clock = systemClock, random = systemRandom, timers = systemTimers } = options;
  const limits: Limits = { ...DEFAULT_LIMITS, ...options.limits };
  const onWarning = options.onWarning ?? (() => undefined);
  return new Repository({ backend, id: readId(bytes, backend), keys, limits, clock, random, timers, onWarning });
}

function readId(bytes: Uint8Array, backend: ObjectBackend): RepositoryId {
  let json: unknown;
  try {
    json = parseStrictJson(bytes, { jsonBytesMax: 4_096 });
  } catch (cause) {
    throw damaged(backend, 'it is not JSON as it was written', cause);
  }
  const { format, repository } = (json ?? {}) as Record<string, unknown>;
  if (typeof format === 'bigint' && format !== BigInt(REPOSITORY_FORMAT))
    throw new NostosError(
      'UNSUPPORTED_FORMAT',
      `The backup repository ${backend.url} has format ${format}; this Nostos knows ${REPOSITORY_FORMAT}`,
      { details: { url: backend.url, format: format.toString() } },
    );
  if (typeof format !== 'bigint' || typeof repository !== 'string' || !/^[0-9a-f]{32}$/.test(repository))
    throw damaged(backend, 'it names no repository');
  return repository as RepositoryId;
}

function damaged(backend: ObjectBackend, problem: string, cause?: unknown): NostosError {
  return new NostosError('BACKUP_DAMAGED', `${REPOSITORY_KEY} of ${backend.url} is damaged: ${problem}`, {
    details: { key: REPOSITORY_KEY, problem },
    cause,
  });
}

async function withBackend<T>(
  at: string | ObjectBackend,
  options: OpenRepositoryOptions,
  use: (backend: ObjectBackend) => Promise<T>,
): Promise<T> {
  if (typeof at !== 'string') return use(at);
  const backend = await openBackend(at, options);
  try {
    return await use(backend);
  } catch (error) {
    await backend.close();
    throw error;
  }
}

function newContent({ backend, id, keys, random, limits }: RepositoryDeps): ContentStore {
  return new ContentStore({ backend, repository: id, keys, random, concurrency: limits.backupConcurrency });
}

export function lockDeps(deps: RepositoryDeps): LockDeps {
  return { ...deps, holder: `${hostname()}, process ${process.pid}` };
}
