/** A worker thread that answers calls by name, one at a time, and can be ended and started anew. */
import { Worker } from 'node:worker_threads';
import { NostosError, deserializeError, type SerializedError } from '../base/errors.ts';

/**
 * Of each thread of ours. What it makes dies young or is given back, so it needs no large nursery, which would take 4 MiB
 * more of each; writes are as fast with a small one (`npm run bench -- --only writers-64`).
 */
export const THREAD_LIMITS = { maxYoungGenerationSizeMb: 1 } as const;

export interface ThreadCall {
  readonly id: number;
  readonly method: string;
  readonly input: unknown;
}

export type ThreadReply =
  | { readonly id: number; readonly progress: unknown }
  | { readonly id: number; readonly output: unknown }
  | { readonly id: number; readonly error: SerializedError };

interface Waiting {
  resolve(output: unknown): void;
  reject(error: unknown): void;
  readonly onProgress: ((progress: unknown) => void) | undefined;
}

export class CallThread {
  readonly #url: URL;
  readonly #name: string;
  #worker: Worker | undefined;
  #nextId = 1;
  readonly #waiting = new Map<number, Waiting>();

  constructor(url: URL, name: string) {
    this.#url = url;
    this.#name = name;
  }

  get busy(): boolean {
    return this.#waiting.size > 0;
  }

  call<T>(method: string, input: unknown, onProgress?: (progress: unknown) => void): Promise<T> {
    const worker = this.#start();
    return new Promise<T>((resolve, reject) => {
      const id = this.#nextId++;
      worker.postMessage({ id, method, input } satisfies ThreadCall); // throws for what cannot be sent
      this.#waiting.set(id, { resolve, reject, onProgress });
      worker.ref();
    });
  }

  /**
   * Rejects what waits with `reason` at once and abandons the thread. SQLite cannot be interrupted from outside, so the
   * thread itself ends when its statement does; the promise says when.
   */
  async end(reason: unknown): Promise<void> {
    const worker = this.#worker;
    this.#worker = undefined;
    this.#fail(reason);
    await worker?.terminate();
  }

  #start(): Worker {
    if (this.#worker !== undefined) return this.#worker;
    const worker = new Worker(this.#url, { name: this.#name, resourceLimits: THREAD_LIMITS });
    this.#worker = worker;
    worker.on('message', (reply: ThreadReply) => this.#take(worker, reply));
    worker.on('error', (error: Error) => {
      if (this.#worker !== worker) return;
      this.#worker = undefined;
      this.#fail(new NostosError('INTERNAL', `the ${this.#name} thread failed: ${error.message}`, { cause: error }));
    });
    worker.unref();
    return worker;
  }

  #take(worker: Worker, reply: ThreadReply): void {
    const waiting = this.#waiting.get(reply.id);
    if (waiting === undefined) return;
    if ('progress' in reply) return waiting.onProgress?.(reply.progress);
    this.#waiting.delete(reply.id);
    if (this.#waiting.size === 0) worker.unref();
    if ('error' in reply) waiting.reject(deserializeError(reply.error));
    else waiting.resolve(reply.output);
  }

  #fail(reason: unknown): void {
    const waiting = [...this.#waiting.values()];
    this.#waiting.clear();
    for (const { reject } of waiting) reject(reason);
  }
}
