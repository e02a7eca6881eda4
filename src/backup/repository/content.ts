/**
 * Files as content-addressed objects. A file is cut at fixed offsets, so a changed page changes one chunk. One of at most
 * one chunk is that chunk; a larger one is a list, itself an object, of the ids of its chunks, 32 bytes each. A list is
 * never encrypted: ids of encrypted chunks say nothing, and so a repository is pruned without any key.
 *
 * Several chunks are under way at a time and no more: memory does not depend on the size of a file. The hash of the whole
 * file is taken in passing, as the chunks go by in order.
 */
import { Blake3Hasher } from '@napi-rs/blake-hash';
import { hashBlake3 } from '../../base/blake3.ts';
import type { Hash } from '../../base/brands.ts';
import { NostosError } from '../../base/errors.ts';
import type { Random } from '../../base/random.ts';
import { releaseBuffer } from '../../base/release.ts';
import type { ObjectBackend } from '../backend/backend.ts';
import { absent } from '../backend/backend.ts';
import type { BackupKey, KeyId, KeyProvider } from './keys.ts';
import type { ObjectId } from './object-format.ts';
import { decodeObject, encodeObject, OBJECT_BYTES_MAX, objectId, objectKey } from './object-format.ts';
import { releaseOutput } from './sealing.ts';
import { Window } from './window.ts';

export const CHUNK_BYTES = 1024 * 1024;
const ID_BYTES = 32;
/** 512 GiB. */
export const FILE_BYTES_MAX = (OBJECT_BYTES_MAX / ID_BYTES) * CHUNK_BYTES;

/** A file to back up: what is read of it must not change meanwhile. */
export interface ContentSource {
  readonly bytes: number;
  /** Fills `target` from there on. */
  read(target: Uint8Array, offset: number): Promise<void>;
}

/** Where a file goes. Ranges come in order, but the next ones may be asked for before this one is done. */
export interface ContentSink {
  write(bytes: Uint8Array, offset: number): Promise<void>;
}

/** How a manifest names the content of a file. */
export interface Content {
  readonly bytes: number;
  /** BLAKE3 of the whole file. */
  readonly hash: Hash;
  /** The only chunk, or the list of chunks. */
  readonly root: ObjectId;
  readonly key: KeyId | undefined;
}

export interface StoredContent extends Content {
  /** Bytes of the objects that were written for it; what was there already costs nothing. */
  readonly bytesStored: number;
}

export interface TransferOptions {
  readonly signal?: AbortSignal | undefined;
  readonly onBytes?: ((count: number) => void) | undefined;
}

export interface ReadOptions extends TransferOptions {
  /**
   * What may be there of the file already, asked chunk by chunk, in order: where it is what the chunk must be, that is not
   * fetched, and these very bytes go to the sink.
   */
  readonly have?: ((offset: number, bytes: number) => Uint8Array | undefined) | undefined;
}

export interface ContentDeps {
  readonly backend: ObjectBackend;
  readonly repository: string;
  readonly keys: KeyProvider;
  readonly random: Random;
  readonly concurrency: number;
}

/** Ids that are known to be stored: so many are remembered, about 100 bytes each. */
const KNOWN_IDS_MAX = 500_000;

export class ContentStore {
  readonly #deps: ContentDeps;
  readonly #known = new Set<ObjectId>();

  constructor(deps: ContentDeps) {
    this.#deps = deps;
  }

  /** Objects that a snapshot needs, so that nobody removes them while we hold the lock of a creator. */
  async know(content: Content, options: TransferOptions = {}): Promise<void> {
    this.#remember(content.root);
    for (const id of await this.chunksOf(content, options)) this.#remember(id);
  }

  async write(
    source: ContentSource,
    key: BackupKey | undefined,
    { signal, onBytes }: TransferOptions = {},
  ): Promise<StoredContent> {
    if (source.bytes > FILE_BYTES_MAX)
      throw new NostosError('INVALID_ARGUMENT', `A file of ${source.bytes} bytes is too large for a backup`, {
        details: { bytes: source.bytes, bytesMax: FILE_BYTES_MAX },
      });
    const count = Math.max(1, Math.ceil(source.bytes / CHUNK_BYTES));
    const ids = Buffer.allocUnsafeSlow(count * ID_BYTES);
    const file = new Blake3Hasher();
    const window = new Window(this.#deps.concurrency);
    const free: Uint8Array[] = [];
    let bytesStored = 0;
    try {
      for (let index = 0; index < count; index++) {
        signal?.throwIfAborted();
        const offset = index * CHUNK_BYTES;
        const buffer = free.pop() ?? Buffer.allocUnsafeSlow(Math.min(CHUNK_BYTES, source.bytes));
        const chunk = buffer.subarray(0, Math.min(CHUNK_BYTES, source.bytes - offset));
        await source.read(chunk, offset);
        file.update(chunk);
        const id = objectId(hashBlake3(chunk), key);
        ids.write(id, index * ID_BYTES, 'hex');
        await window.run(async () => {
          const stored = await this.#put(id, chunk, key, signal);
          bytesStored += stored;
          free.push(buffer);
          onBytes?.(chunk.length);
        });
      }
      await window.settled();
    } finally {
      await window.ended();
      for (const buffer of free) releaseBuffer(buffer);
    }
    const root = count === 1 ? (ids.toString('hex') as ObjectId) : objectId(hashBlake3(ids), undefined);
    if (count > 1) bytesStored += await this.#put(root, ids, undefined, signal);
    const hash = new Uint8Array(file.digestBuffer()) as Hash;
    return { bytes: source.bytes, hash, root, key: key?.id, bytesStored };
  }

  /** Every byte that reaches the sink belongs to a chunk that was checked; the whole is checked at the end. */
  async read(content: Content, sink: ContentSink, { signal, onBytes, have }: ReadOptions = {}): Promise<void> {
    const ids = await this.chunksOf(content, { signal });
    const key =
      have === undefined || content.key === undefined ? undefined : await this.#deps.keys.keyById(content.key);
    const present = (id: ObjectId, index: number): Uint8Array | undefined => {
      const offset = index * CHUNK_BYTES;
      const bytes = have?.(offset, Math.min(CHUNK_BYTES, content.bytes - offset));
      return bytes !== undefined && objectId(hashBlake3(bytes), key) === id ? bytes : undefined;
    };
    const file = new Blake3Hasher();
    const writes = new Window(this.#deps.concurrency);
    const ahead: Promise<Uint8Array>[] = [];
    let asked = 0;
    try {
      for (let index = 0; index < ids.length; index++) {
        for (; asked < ids.length && ahead.length < this.#deps.concurrency; asked++) {
          const id = ids[asked]!;
          const chunk = Promise.resolve(present(id, asked) ?? this.get(id, { signal }));
          chunk.catch(() => undefined); // whoever fails first is reported
          ahead.push(chunk);
        }
        const chunk = await ahead.shift()!;
        signal?.throwIfAborted();
        const offset = index * CHUNK_BYTES;
        if (chunk.length !== Math.min(CHUNK_BYTES, content.bytes - offset))
          throw damaged(content, `its chunk ${index} has ${chunk.length} bytes`);
        file.update(chunk);
        await writes.run(async () => {
          await sink.write(chunk, offset);
          onBytes?.(chunk.length);
          releaseOutput(chunk);
        });
      }
      await writes.settled();
    } finally {
      await writes.ended();
      await Promise.allSettled(ahead);
    }
    if (file.digestBuffer().compare(content.hash) !== 0) throw damaged(content, 'its hash is another one');
  }

  /** The chunks that make up a file, in order. */
  async chunksOf({ root, bytes }: Content, options: TransferOptions = {}): Promise<ObjectId[]> {
    if (bytes <= CHUNK_BYTES) return [root];
    const list = await this.get(root, options);
    const count = Math.ceil(bytes / CHUNK_BYTES);
    if (list.length !== count * ID_BYTES)
      throw new NostosError('BACKUP_DAMAGED', `The list ${root} of the backup does not fit a file of ${bytes} bytes`, {
        details: { object: root, key: objectKey(root), problem: `it has ${list.length} bytes` },
      });
    const text = Buffer.from(list.buffer, list.byteOffset, list.length).toString('hex');
    return Array.from({ length: count }, (_, index) => text.slice(index * 64, index * 64 + 64) as ObjectId);
  }

  async get(id: ObjectId, { signal }: TransferOptions = {}): Promise<Uint8Array> {
    const { backend, repository, keys } = this.#deps;
    const bytes = await backend.get(objectKey(id), { signal });
    if (bytes === undefined) throw absent(backend, objectKey(id));
    const plain = await decodeObject(bytes, (key) => keys.keyById(key), { repository, id });
    // Raw content is a view of what was read.
    if (plain.buffer !== bytes.buffer) releaseBuffer(bytes);
    return plain;
  }

  /** How many bytes it took. */
  async #put(
    id: ObjectId,
    plain: Uint8Array,
    key: BackupKey | undefined,
    signal: AbortSignal | undefined,
  ): Promise<number> {
    if (this.#known.has(id)) return 0;
    const { backend, repository, random } = this.#deps;
    const bytes = await encodeObject(plain, key, { repository, id, random });
    const put = await backend.put(objectKey(id), bytes, { ifAbsent: true, signal });
    this.#remember(id);
    const stored = put === 'created' ? bytes.length : 0;
    releaseBuffer(bytes);
    return stored;
  }

  #remember(id: ObjectId): void {
    if (this.#known.size < KNOWN_IDS_MAX) this.#known.add(id);
  }
}

function damaged({ root }: Content, problem: string): NostosError {
  return new NostosError('BACKUP_DAMAGED', `The file ${root} of the backup is damaged: ${problem}`, {
    details: { object: root, key: objectKey(root), problem },
  });
}
