/**
 * Where the objects of a backup are stored: bytes under keys, like files under paths. What callers rely on, and what
 * `testing/backend-compliance.ts` checks of every adapter:
 *
 * - An object is there whole or not at all, whatever crashes; when `put` resolves it is durable and everybody sees it.
 * - Of several writers with `ifAbsent` one is told `created`; the others `exists`, and change nothing. A writer that is
 *   told `exists` although its own earlier attempt succeeded (its answer was lost) holds the same bytes: compare them.
 * - `list` shows every object that was there before it began and is there when it ends.
 */
import { NostosError } from '../../base/errors.ts';

export interface ObjectEntry {
  readonly key: string;
  readonly bytes: number;
  /** When it was written, by the clock of the storage. */
  readonly modifiedMs: number;
}

export interface CallOptions {
  readonly signal?: AbortSignal | undefined;
}

export interface PutOptions extends CallOptions {
  /** Keeps the object that has the key already. */
  readonly ifAbsent?: boolean;
}

export interface GetOptions extends CallOptions {
  /** From `start` up to, and without, `end`; what lies behind the object's end is left out. */
  readonly range?: { readonly start: number; readonly end: number };
}

export interface ListOptions extends CallOptions {
  /** Only keys behind this one. */
  readonly after?: string;
}

export interface ObjectBackend {
  /** For people: without credentials. */
  readonly url: string;
  put(key: string, bytes: Uint8Array, options?: PutOptions): Promise<'created' | 'exists'>;
  /** For objects of any size; `bytes` is how many the source gives. */
  putStream(
    key: string,
    source: AsyncIterable<Uint8Array>,
    bytes: number,
    options?: PutOptions,
  ): Promise<'created' | 'exists'>;
  /** Bytes that belong to the caller; undefined when there is no such object. */
  get(key: string, options?: GetOptions): Promise<Uint8Array | undefined>;
  stream(key: string, options?: CallOptions): AsyncIterable<Uint8Array>;
  head(key: string, options?: CallOptions): Promise<ObjectEntry | undefined>;
  /** In byte order. A prefix may end anywhere. */
  list(prefix: string, options?: ListOptions): AsyncIterable<ObjectEntry>;
  /** Also of what is not there. */
  delete(key: string, options?: CallOptions): Promise<void>;
  /** Whether `ifAbsent` holds against other writers; undefined while nobody knows. */
  readonly honoursConditions: boolean | undefined;
  close(): Promise<void>;
}

const KEY_CHARS_MAX = 512;

/** Keys are ours, so they need few characters, and none of them means anything to a file system or in a URL. */
export function checkKey(key: string): void {
  const isPlain = /^[A-Za-z0-9_-][A-Za-z0-9._-]*(?:\/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$/.test(key);
  if (!isPlain || key.length > KEY_CHARS_MAX)
    throw new NostosError(
      'INVALID_ARGUMENT',
      `${JSON.stringify(key.slice(0, KEY_CHARS_MAX))} is no key: names of letters, digits, "_", "-" and "." with "/" between, at most ${KEY_CHARS_MAX} characters`,
    );
}

/** A prefix is the beginning of a key. */
export function checkPrefix(prefix: string): void {
  if (prefix !== '') checkKey(prefix.endsWith('/') ? prefix.slice(0, -1) : prefix);
}

export function absent(backend: ObjectBackend, key: string): NostosError {
  return new NostosError('BACKUP_DAMAGED', `${backend.url} has no object ${key}`, {
    details: { key, problem: 'absent' },
  });
}

/** Whether the object is exactly these bytes: how a writer that is told `exists` finds out whether it is its own. */
export async function holds(
  backend: ObjectBackend,
  key: string,
  bytes: Uint8Array,
  options: CallOptions = {},
): Promise<boolean> {
  const present = await backend.get(key, options);
  return present !== undefined && Buffer.compare(present, bytes) === 0;
}
