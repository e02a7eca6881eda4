/** A child process that answers calls one at a time, and can be killed in the midst of one and started anew. */
import { fork, type ChildProcess } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { NostosError, deserializeError, type SerializedError } from '../base/errors.ts';

export interface ProcessCall {
  readonly id: number;
  readonly method: string;
  readonly input: unknown;
}

export type ProcessReply =
  | { readonly id: number; readonly output: unknown }
  | { readonly id: number; readonly error: SerializedError };

interface Waiting {
  resolve(output: unknown): void;
  reject(error: unknown): void;
}

export class CallProcess {
  readonly #path: string;
  #child: ChildProcess | undefined;
  #nextId = 1;
  readonly #waiting = new Map<number, Waiting>();

  constructor(url: URL) {
    this.#path = fileURLToPath(url);
  }

  get busy(): boolean {
    return this.#waiting.size > 0;
  }

  call<T>(method: string, input: unknown): Promise<T> {
    const child = this.#start();
    return new Promise<T>((resolve, reject) => {
      const id = this.#nextId++;
      this.#waiting.set(id, { resolve, reject });
      this.#hold(child);
      child.send({ id, method, input } satisfies ProcessCall, (error) => {
        if (error !== null) this.#gone(child, error.message);
      });
    });
  }

  /** Rejects what waits with `reason` and kills the process; resolves when it has ended. */
  async end(reason: unknown): Promise<void> {
    const child = this.#child;
    this.#child = undefined;
    this.#fail(reason);
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()));
    child.ref();
    child.kill('SIGKILL');
    await exited;
  }

  #start(): ChildProcess {
    if (this.#child !== undefined) return this.#child;
    const child = fork(this.#path, {
      execArgv: [],
      serialization: 'advanced',
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    });
    this.#child = child;
    child.on('message', (reply: ProcessReply) => this.#take(child, reply));
    child.on('error', (error) => this.#gone(child, error.message));
    child.on('exit', (code, signal) => this.#gone(child, `it ended with ${signal ?? `code ${code}`}`));
    return child;
  }

  /** The parent lives on for an answer that it waits for, not for an idle reader. */
  #hold(child: ChildProcess): void {
    if (this.busy) {
      child.ref();
      child.channel?.ref();
    } else {
      child.unref();
      child.channel?.unref();
    }
  }

  #take(child: ChildProcess, reply: ProcessReply): void {
    const waiting = this.#waiting.get(reply.id);
    if (waiting === undefined) return;
    this.#waiting.delete(reply.id);
    this.#hold(child);
    if ('error' in reply) waiting.reject(deserializeError(reply.error));
    else waiting.resolve(reply.output);
  }

  #gone(child: ChildProcess, why: string): void {
    if (this.#child !== child) return;
    this.#child = undefined;
    child.kill('SIGKILL');
    this.#fail(new NostosError('IO_FAILED', `the reader process failed: ${why}; the query changed nothing`));
  }

  #fail(reason: unknown): void {
    const waiting = [...this.#waiting.values()];
    this.#waiting.clear();
    for (const { reject } of waiting) reject(reason);
  }
}
