/**
 * Records in a store of keys whose writes can be bound to what they replace: etcd, an object store. The condition is on
 * the whole content that was read (or a tag that stands for it), and every content has a nonce of its own. So a write
 * takes effect on nothing but the version that its writer saw, however late it arrives, however often, and also where the
 * store was set back to an older image in between; and since it carries the version after that one, versions rise by one.
 *
 * A key that is gone reads as no record. Who has seen one before takes that for a step back (`remembering.ts`).
 */
import { toStoreId } from '../base/brands.ts';
import type { Coordination } from './coordination.ts';
import type { CasResult, Coordinator, RecordKind, Register, Versioned } from './coordinator.ts';
import { checkGroupName, coordinatorDamaged, DEFAULT_GROUP, GROUP_RECORD } from './coordinator.ts';
import type { Collection, ListOptions, Page } from './directory.ts';
import { checkDirectoryId, checkListOptions, DIRECTORY_ENTRY } from './directory.ts';
import { encodeEnvelope, parseEnvelope } from './envelope.ts';
import { MEMBER_ENTRY } from './member.ts';
import { watchByReading } from './watch.ts';

export interface Stored {
  readonly bytes: Uint8Array;
  /** Stands for exactly this content in a condition. */
  readonly tag: string;
}

export type PutResult =
  | { readonly written: true; readonly tag: string }
  | { readonly written: false; readonly current: Stored | undefined };

export interface ConditionalStore {
  /** Where a key is, in messages. */
  nameOf(key: string): string;
  /** Linearizable: what any write left that was answered before. */
  get(key: string): Promise<Stored | undefined>;
  /**
   * Writes if the content is the one of `tag`; undefined: if there is none. A request is sent once: when it throws, it may
   * have been carried out, or still be.
   */
  putIf(key: string, bytes: Uint8Array, tag: string | undefined): Promise<PutResult>;
  /** At most `limit` keys that begin with `prefix` and are behind `after`, in the order of their bytes. */
  list(prefix: string, after: string | undefined, limit: number): Promise<(Stored & { readonly key: string })[]>;
  check(): Promise<void>;
  /** Calls `changed` when the key may have another content; without it, watches only poll. */
  hints?(key: string, changed: () => void, options: { signal: AbortSignal }): void;
  close(): Promise<void>;
}

class ConditionalRegister<R extends { readonly nonce: string }> implements Register<R> {
  readonly #kind: RecordKind<R>;
  readonly #store: ConditionalStore;
  readonly #key: string;
  readonly #pollMs: number;
  /** What was last read or written: it saves a writer the read before. It may be old; the condition tells. */
  #last: Held<R> | undefined;

  constructor(kind: RecordKind<R>, store: ConditionalStore, { key, pollMs }: { key: string; pollMs: number }) {
    this.#kind = kind;
    this.#store = store;
    this.#key = key;
    this.#pollMs = pollMs;
  }

  async read(): Promise<Versioned<R> | undefined> {
    return this.#take(await this.#store.get(this.#key))?.current;
  }

  async compareAndSet(expectedVersion: number, record: R): Promise<CasResult<R>> {
    this.#kind.parse(JSON.parse(this.#kind.encode(record)), 'the record to write');
    await this.#store.check();
    let held = this.#last;
    if (held?.current.version !== expectedVersion) held = this.#take(await this.#store.get(this.#key));
    if ((held?.current.version ?? 0) !== expectedVersion) return refused(record, held?.current);
    if (held !== undefined) this.#kind.checkSuccessor?.(record, held.current.record);
    const written = { version: expectedVersion + 1, parent: held?.current.record.nonce ?? null, record };
    const result = await this.#store.putIf(this.#key, encodeEnvelope(this.#kind, written), held?.tag);
    if (!result.written) return refused(record, this.#take(result.current)?.current);
    this.#last = { current: { version: written.version, record }, tag: result.tag };
    return { ok: true, version: written.version };
  }

  watch(listener: (current: Versioned<R>) => void, options: { signal: AbortSignal }): void {
    const store = this.#store;
    const key = this.#key;
    const hints = store.hints?.bind(store, key);
    watchByReading({ read: () => this.read(), pollMs: this.#pollMs, ...(hints && { hints }) }, listener, options);
  }

  #take(stored: Stored | undefined): Held<R> | undefined {
    if (stored === undefined) return (this.#last = undefined);
    const { version, record } = parseEnvelope(this.#kind, stored.bytes, this.#store.nameOf(this.#key));
    return (this.#last = { current: { version, record }, tag: stored.tag });
  }
}

interface Held<R> {
  readonly current: Versioned<R>;
  readonly tag: string;
}

/** A refused writer that finds its own record there has won: only the answer was lost. */
function refused<R extends { readonly nonce: string }>(record: R, current: Versioned<R> | undefined): CasResult<R> {
  if (current !== undefined && current.record.nonce === record.nonce) return { ok: true, version: current.version };
  return { ok: false, current };
}

class ConditionalCollection<R extends { readonly nonce: string }> implements Collection<R> {
  readonly #kind: RecordKind<R>;
  readonly #store: ConditionalStore;
  readonly #prefix: string;
  readonly #pollMs: number;

  constructor(kind: RecordKind<R>, store: ConditionalStore, { prefix, pollMs }: { prefix: string; pollMs: number }) {
    this.#kind = kind;
    this.#store = store;
    this.#prefix = prefix;
    this.#pollMs = pollMs;
  }

  entry(id: string): Register<R> {
    const key = `${this.#prefix}${checkDirectoryId(id)}`;
    return new ConditionalRegister(this.#kind, this.#store, { key, pollMs: this.#pollMs });
  }

  async list(options: ListOptions = {}): Promise<Page<R>> {
    const { prefix, after, limit } = checkListOptions(options);
    const afterKey = after === undefined ? undefined : `${this.#prefix}${after}`;
    const found = await this.#store.list(`${this.#prefix}${prefix}`, afterKey, limit);
    const entries = found.map(({ key, bytes }) => {
      const source = this.#store.nameOf(key);
      const { version, record } = parseEnvelope(this.#kind, bytes, source);
      return { id: this.#idOf(key, source), version, record };
    });
    return { entries, next: entries.length < limit ? undefined : entries.at(-1)?.id };
  }

  #idOf(key: string, source: string): string {
    try {
      return checkDirectoryId(key.slice(this.#prefix.length));
    } catch (cause) {
      throw coordinatorDamaged(source, cause);
    }
  }
}

export interface ConditionalCoordinationOptions {
  /** What all keys begin with; empty, or it ends with a slash. */
  readonly prefix: string;
  readonly pollMs: number;
}

export function conditionalCoordination(
  store: ConditionalStore,
  { prefix, pollMs }: ConditionalCoordinationOptions,
): Coordination {
  const close = (): Promise<void> => store.close();
  const members = new ConditionalCollection(MEMBER_ENTRY, store, { prefix: `${prefix}members/`, pollMs });
  return {
    group(name = DEFAULT_GROUP): Coordinator {
      const key = `${prefix}groups/${checkGroupName(name)}`;
      return new ConditionalRegister(GROUP_RECORD, store, { key, pollMs });
    },
    directory: new ConditionalCollection(DIRECTORY_ENTRY, store, { prefix: `${prefix}directory/`, pollMs }),
    member: (id) => members.entry(toStoreId(id)),
    members: (options) => members.list(options),
    check: () => store.check(),
    close,
    [Symbol.asyncDispose]: close,
  };
}
