/**
 * An object store as a coordinator: one object for each record, replaced by a write that is bound to the ETag that the
 * writer read (`If-Match`), or to there being none (`If-None-Match: *`). Many stores take such writes and ignore the
 * condition, so that two primaries would both win; nothing is written before the store has proven that it refuses.
 *
 * Who leads is judged by those who watch, by their own monotonic clocks; the store's timestamps are never read. Reads must
 * be consistent after writes, as those of S3 are, which no probe can prove: a cache in front of the store is a mistake.
 */
import { NostosError } from '../base/errors.ts';
import type { Random } from '../base/random.ts';
import { randomHex128, systemRandom } from '../base/random.ts';
import type { Coordination } from './coordination.ts';
import type { ConditionalStore, PutResult, Stored } from './conditional-store.ts';
import { conditionalCoordination } from './conditional-store.ts';

export interface StoredObject {
  readonly bytes: Uint8Array;
  /** Another one for each content. */
  readonly etag: string;
}

export type ObjectPut = { readonly written: true; readonly etag: string } | { readonly written: false };

export interface ObjectStore {
  /** In messages, such as `s3://bucket`. */
  readonly name: string;
  get(key: string): Promise<StoredObject | undefined>;
  /**
   * Writes if the object has this ETag; undefined: if there is none. The request is sent once; when it throws, it is open
   * whether it was carried out.
   */
  putIf(key: string, bytes: Uint8Array, etag: string | undefined): Promise<ObjectPut>;
  /** At most `limit` keys that begin with `prefix` and are behind `after`, in the order of their bytes. */
  list(prefix: string, after: string | undefined, limit: number): Promise<string[]>;
  remove(key: string): Promise<void>;
  close(): Promise<void>;
}

export interface ObjectStoreOptions {
  /** What all keys begin with; empty, or it ends with a slash. */
  readonly prefix?: string;
  /** How often a watch reads. */
  readonly pollMs?: number;
}

export const OBJECT_STORE_POLL_MS = 1_000;
/** A store may refuse a write because of another one that then fails itself; the same condition is tried so often. */
const PUT_TRIES_MAX = 4;
const PROBE_WRITERS = 4;
const LIST_READS_MAX = 16;

export function objectStoreCoordination(
  store: ObjectStore,
  { prefix = '', pollMs = OBJECT_STORE_POLL_MS }: ObjectStoreOptions = {},
  { random = systemRandom }: { random?: Random } = {},
): Coordination {
  return conditionalCoordination(new ConditionalObjects(store, { prefix, random }), { prefix, pollMs });
}

class ConditionalObjects implements ConditionalStore {
  readonly #store: ObjectStore;
  readonly #prefix: string;
  readonly #random: Random;
  #proven: Promise<void> | undefined;

  constructor(store: ObjectStore, { prefix, random }: { prefix: string; random: Random }) {
    this.#store = store;
    this.#prefix = prefix;
    this.#random = random;
  }

  nameOf(key: string): string {
    return `${this.#store.name}/${key}`;
  }

  async get(key: string): Promise<Stored | undefined> {
    const object = await this.#store.get(key);
    return object && { bytes: object.bytes, tag: object.etag };
  }

  async putIf(key: string, bytes: Uint8Array, tag: string | undefined): Promise<PutResult> {
    for (let tries = 0; tries < PUT_TRIES_MAX; tries++) {
      const put = await this.#store.putIf(key, bytes, tag);
      if (put.written) return { written: true, tag: put.etag };
      const current = await this.get(key);
      if (current?.tag !== tag) return { written: false, current };
    }
    throw new NostosError(
      'COORDINATOR_UNAVAILABLE',
      `${this.nameOf(key)} is as it was read, but a write with that condition was refused ${PUT_TRIES_MAX} times`,
    );
  }

  async list(prefix: string, after: string | undefined, limit: number): Promise<(Stored & { key: string })[]> {
    const keys = await this.#store.list(prefix, after, limit);
    const found: (Stored & { key: string })[] = [];
    for (let at = 0; at < keys.length; at += LIST_READS_MAX) {
      const some = keys.slice(at, at + LIST_READS_MAX);
      const stored = await Promise.all(some.map((key) => this.get(key)));
      for (const [i, object] of stored.entries()) if (object !== undefined) found.push({ key: some[i]!, ...object });
    }
    return found;
  }

  /** Once it has passed it is not repeated; a store that could not be asked is asked again. */
  async check(): Promise<void> {
    this.#proven ??= probe(this.#store, `${this.#prefix}probe/${randomHex128(this.#random)}`);
    try {
      await this.#proven;
    } catch (error) {
      this.#proven = undefined;
      throw error;
    }
  }

  close(): Promise<void> {
    return this.#store.close();
  }
}

/** Writes of which the conditions do not hold must be refused and leave no trace; of several at a time one may pass. */
async function probe(store: ObjectStore, key: string): Promise<void> {
  const content = (n: number): Uint8Array => Buffer.from(`Nostos tries conditional writes here: ${n}\n`);
  const refuses = async (what: string, n: number, etag: string | undefined): Promise<void> => {
    if ((await store.putIf(key, content(n), etag)).written) throw ignoresConditions(store, what);
  };
  try {
    const races = Array.from({ length: PROBE_WRITERS }, (_, n) => store.putIf(key, content(n), undefined));
    const written = (await Promise.all(races)).filter((put) => put.written);
    const [first] = written;
    if (first === undefined) throw ignoresConditions(store, 'it refuses to create an object with If-None-Match: *');
    if (written.length > 1) throw ignoresConditions(store, 'If-None-Match: * let several writers create one object');
    await refuses('If-None-Match: * replaced an object', 10, undefined);
    const second = await store.putIf(key, content(11), first.etag);
    if (!second.written) throw ignoresConditions(store, 'it refuses If-Match with the current ETag');
    if (second.etag === first.etag) throw ignoresConditions(store, 'two contents have one ETag');
    await refuses('If-Match with an ETag of before replaced an object', 12, first.etag);
    const found = await store.get(key);
    if (found?.etag !== second.etag || !Buffer.from(found.bytes).equals(content(11)))
      throw ignoresConditions(store, 'a write that it refused left a trace, or a read gave an old content');
  } finally {
    // Who may not delete leaves a few bytes under a name that is never used again.
    await store.remove(key).catch(() => undefined);
  }
}

function ignoresConditions(store: ObjectStore, what: string): NostosError {
  return new NostosError(
    'COORDINATOR_UNSUITABLE',
    `${store.name} does not keep to the conditions of writes: ${what}. Two nodes could both believe that they lead. ` +
      'Use a store that honours If-Match and If-None-Match, such as Amazon S3, or etcd',
    { details: { store: store.name, reason: what } },
  );
}
