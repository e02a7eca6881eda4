/** Storage in memory, for simulations: each request happens at one moment, and may be held up or fail before or after. */
import type { Clock } from '../../base/clock.ts';
import { systemClock } from '../../base/clock.ts';
import { NostosError } from '../../base/errors.ts';
import type { CallOptions, GetOptions, ListOptions, ObjectBackend, ObjectEntry, PutOptions } from './backend.ts';
import { checkKey, checkPrefix } from './backend.ts';

export interface MemoryStorage {
  readonly objects: Map<string, { readonly bytes: Uint8Array; readonly modifiedMs: number }>;
}

export interface MemoryBackendOptions {
  readonly storage?: MemoryStorage;
  readonly clock?: Clock;
  /** Called before each request, and may wait, throw, or never come back. */
  readonly before?: (operation: string, key: string) => Promise<void>;
  /** Called once it was carried out, with the answer still under way. */
  readonly after?: (operation: string, key: string) => Promise<void>;
}

export class MemoryBackend implements ObjectBackend {
  readonly url = 'memory:';
  readonly honoursConditions = true;
  readonly storage: MemoryStorage;
  readonly #options: MemoryBackendOptions;
  readonly #clock: Clock;

  constructor(options: MemoryBackendOptions = {}) {
    this.#options = options;
    this.storage = options.storage ?? { objects: new Map() };
    this.#clock = options.clock ?? systemClock;
  }

  async put(key: string, bytes: Uint8Array, { ifAbsent = false, signal }: PutOptions = {}) {
    return this.#request('put', key, signal, () => {
      if (ifAbsent && this.storage.objects.has(key)) return 'exists';
      this.storage.objects.set(key, { bytes: Uint8Array.from(bytes), modifiedMs: this.#clock.nowMs() });
      return 'created';
    });
  }

  async putStream(key: string, source: AsyncIterable<Uint8Array>, bytes: number, options: PutOptions = {}) {
    const parts: Uint8Array[] = [];
    for await (const part of source) parts.push(part.slice());
    const whole = Buffer.concat(parts);
    if (whole.length !== bytes) throw new NostosError('INVALID_ARGUMENT', `${whole.length} bytes came, not ${bytes}`);
    return this.put(key, whole, options);
  }

  async get(key: string, { range, signal }: GetOptions = {}): Promise<Uint8Array | undefined> {
    return this.#request('get', key, signal, () =>
      this.storage.objects.get(key)?.bytes.slice(range?.start ?? 0, range?.end),
    );
  }

  async *stream(key: string, options: CallOptions = {}): AsyncGenerator<Uint8Array, void, void> {
    const bytes = await this.get(key, options);
    if (bytes === undefined) throw new NostosError('BACKUP_DAMAGED', `there is no ${key}`);
    yield bytes;
  }

  async head(key: string, { signal }: CallOptions = {}): Promise<ObjectEntry | undefined> {
    return this.#request('head', key, signal, () => {
      const found = this.storage.objects.get(key);
      return found && { key, bytes: found.bytes.length, modifiedMs: found.modifiedMs };
    });
  }

  async *list(prefix: string, { after = '', signal }: ListOptions = {}): AsyncGenerator<ObjectEntry, void, void> {
    checkPrefix(prefix);
    const page = await this.#request('list', prefix === '' ? 'all' : prefix.replace(/\/$/, ''), signal, () =>
      [...this.storage.objects]
        .filter(([key]) => key.startsWith(prefix) && key > after)
        .map(([key, { bytes, modifiedMs }]) => ({ key, bytes: bytes.length, modifiedMs })),
    );
    yield* page.toSorted((a, b) => (a.key < b.key ? -1 : 1));
  }

  async delete(key: string, { signal }: CallOptions = {}): Promise<void> {
    await this.#request('delete', key, signal, () => this.storage.objects.delete(key));
  }

  async close(): Promise<void> {}

  async #request<T>(operation: string, key: string, signal: AbortSignal | undefined, act: () => T): Promise<T> {
    checkKey(key);
    signal?.throwIfAborted();
    await this.#options.before?.(operation, key);
    const answer = act();
    await this.#options.after?.(operation, key);
    return answer;
  }
}
