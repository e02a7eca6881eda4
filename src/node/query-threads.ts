/**
 * The reader threads behind `tenant.query`. A query that is cancelled or too slow is given up at once; its thread, which
 * SQLite holds until the statement ends, counts against `readerThreadsMax` until then, so that slow queries cannot
 * pile up threads.
 */
import { extname } from 'node:path';
import { NostosError } from '../base/errors.ts';
import type { QueryInput } from './query-thread.ts';
import type { Row } from '../store/values.ts';
import { CallThread } from './threads.ts';

const TIMER_MAX_MS = 2 ** 31 - 1;

export interface QueryCall extends QueryInput {
  readonly timeoutMs: number;
  readonly signal: AbortSignal | undefined;
}

export class QueryThreads {
  readonly #max: number;
  readonly #idle: CallThread[] = [];
  readonly #all = new Set<CallThread>();
  readonly #waiting: (() => void)[] = [];
  #closed = false;

  constructor(options: { readonly readerThreadsMax: number }) {
    this.#max = Math.max(1, options.readerThreadsMax);
  }

  async query(call: QueryCall): Promise<Row[]> {
    const { signal, timeoutMs, ...input } = call;
    signal?.throwIfAborted();
    const giveUp = new AbortController();
    const timer = setTimeout(() => giveUp.abort(tooSlow(timeoutMs)), Math.min(timeoutMs, TIMER_MAX_MS));
    const abort = (): void => giveUp.abort(signal?.reason);
    signal?.addEventListener('abort', abort, { once: true });
    try {
      return await this.#run(input, giveUp.signal);
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener('abort', abort);
    }
  }

  async #run(input: QueryInput, signal: AbortSignal): Promise<Row[]> {
    const thread = await this.#take(signal);
    const end = (): void => void thread.end(signal.reason).then(() => this.#lose(thread));
    signal.addEventListener('abort', end, { once: true });
    try {
      return await thread.call<Row[]>('query', input);
    } finally {
      signal.removeEventListener('abort', end);
      if (!signal.aborted) this.#give(thread);
    }
  }

  /** Lets go of a file that is about to be removed. */
  async forget(path: string): Promise<void> {
    await Promise.all([...this.#all].filter((thread) => !thread.busy).map((thread) => thread.call('forget', { path })));
  }

  async close(): Promise<void> {
    this.#closed = true;
    const error = new NostosError('CLOSED', 'the node is closed');
    for (const wake of this.#waiting.splice(0)) wake();
    await Promise.all([...this.#all].map((thread) => thread.end(error)));
  }

  async #take(signal: AbortSignal): Promise<CallThread> {
    for (;;) {
      signal.throwIfAborted();
      if (this.#closed) throw new NostosError('CLOSED', 'the node is closed');
      const idle = this.#idle.pop();
      if (idle !== undefined) return idle;
      if (this.#all.size < this.#max) {
        const url = new URL(`./query-thread${extname(import.meta.url)}`, import.meta.url);
        const thread = new CallThread(url, 'nostos-query');
        this.#all.add(thread);
        return thread;
      }
      await this.#turn(signal);
    }
  }

  /** Resolves when a thread may be free. Who gives up leaves the line, or would be woken in the place of another. */
  #turn(signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const wake = (): void => {
        signal.removeEventListener('abort', leave);
        resolve();
      };
      const leave = (): void => {
        this.#waiting.splice(this.#waiting.indexOf(wake), 1);
        resolve();
      };
      this.#waiting.push(wake);
      signal.addEventListener('abort', leave, { once: true });
    });
  }

  #give(thread: CallThread): void {
    this.#idle.push(thread);
    this.#waiting.shift()?.();
  }

  #lose(thread: CallThread): void {
    this.#all.delete(thread);
    this.#waiting.shift()?.();
  }
}

function tooSlow(timeoutMs: number): NostosError {
  return new NostosError('QUERY_TIMEOUT', `the query took longer than ${timeoutMs} ms; give timeoutMs, or an index`, {
    details: { timeoutMs },
  });
}
