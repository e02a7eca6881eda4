/**
 * The reader processes behind `tenant.query`, at most `readerProcessesMax` of them, started when they are first needed.
 * The process of a query that is cancelled or too slow is killed: nothing less ends a running SQLite statement.
 */
import { extname } from 'node:path';
import { NostosError } from '../base/errors.ts';
import type { QueryInput } from './query-process.ts';
import type { Row } from '../store/values.ts';
import { CallProcess } from './call-process.ts';

const TIMER_MAX_MS = 2 ** 31 - 1;

export interface QueryCall extends QueryInput {
  readonly timeoutMs: number;
  readonly signal: AbortSignal | undefined;
}

export class QueryProcesses {
  readonly #max: number;
  readonly #idle: CallProcess[] = [];
  readonly #all = new Set<CallProcess>();
  readonly #waiting: (() => void)[] = [];
  #closed = false;

  constructor(options: { readonly readerProcessesMax: number }) {
    this.#max = Math.max(1, options.readerProcessesMax);
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
    const reader = await this.#take(signal);
    const end = (): void => void reader.end(signal.reason).then(() => this.#lose(reader));
    signal.addEventListener('abort', end, { once: true });
    try {
      return await reader.call<Row[]>('query', input);
    } finally {
      signal.removeEventListener('abort', end);
      if (!signal.aborted) this.#give(reader);
    }
  }

  /** Lets go of a file that is about to be removed. */
  async forget(path: string): Promise<void> {
    await Promise.all([...this.#all].filter((reader) => !reader.busy).map((reader) => reader.call('forget', { path })));
  }

  async close(): Promise<void> {
    this.#closed = true;
    const error = new NostosError('CLOSED', 'the node is closed');
    for (const wake of this.#waiting.splice(0)) wake();
    await Promise.all([...this.#all].map((reader) => reader.end(error)));
  }

  async #take(signal: AbortSignal): Promise<CallProcess> {
    for (;;) {
      signal.throwIfAborted();
      if (this.#closed) throw new NostosError('CLOSED', 'the node is closed');
      const idle = this.#idle.pop();
      if (idle !== undefined) return idle;
      if (this.#all.size < this.#max) {
        const url = new URL(`./query-process${extname(import.meta.url)}`, import.meta.url);
        const reader = new CallProcess(url);
        this.#all.add(reader);
        return reader;
      }
      await this.#turn(signal);
    }
  }

  /** Resolves when a reader may be free. Who gives up leaves the line, or would be woken in the place of another. */
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

  #give(reader: CallProcess): void {
    this.#idle.push(reader);
    this.#waiting.shift()?.();
  }

  #lose(reader: CallProcess): void {
    this.#all.delete(reader);
    this.#waiting.shift()?.();
  }
}

function tooSlow(timeoutMs: number): NostosError {
  return new NostosError('QUERY_TIMEOUT', `the query took longer than ${timeoutMs} ms; give timeoutMs, or an index`, {
    details: { timeoutMs },
  });
}
