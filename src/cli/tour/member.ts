/** A member of the tour's group as the tour sees it: its directory, its link to the others, and the process that has it open. */
import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { extname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { deserializeError } from '../../base/errors.ts';
import type { NodeOptions } from '../../node/types.ts';
import type { Link } from './link.ts';
import type { Load, MemberCall, MemberCalls, MemberMessage, MemberMethod, Opened } from './member-process.ts';

const CALL_TIMEOUT_MS = 60_000;
const STDERR_CHARACTERS_MAX = 4_000;

interface Waiting {
  resolve(output: unknown): void;
  reject(error: Error): void;
  readonly timeout: NodeJS.Timeout | undefined;
}

/** What a member was asked to write and has acknowledged, as far as its word got out. */
export interface LoadBook {
  readonly asked: Set<number>;
  readonly acknowledged: Set<number>;
  /** Why it has ended before it was asked to. */
  failed: Error | undefined;
}

export interface MemberOptions {
  readonly dir: string;
  readonly tenant: string;
  readonly link: Link;
  readonly coordinator: string;
  readonly limits: NonNullable<NodeOptions['limits']>;
}

export class Member {
  readonly name: string;
  readonly #options: MemberOptions;
  #process: ChildProcess | undefined;
  #stderr = '';
  #calls = 0;
  readonly #waiting = new Map<number, Waiting>();
  #book: LoadBook | undefined;

  constructor(name: string, options: MemberOptions) {
    this.name = name;
    this.#options = options;
  }

  get dir(): string {
    return this.#options.dir;
  }

  get link(): Link {
    return this.#options.link;
  }

  async start(): Promise<Opened> {
    const entry = fileURLToPath(new URL(`./member-process${extname(import.meta.url)}`, import.meta.url));
    const child = fork(entry, { serialization: 'advanced', execArgv: [], stdio: ['ignore', 'ignore', 'pipe', 'ipc'] });
    this.#process = child;
    this.#stderr = '';
    child.stderr?.on('data', (chunk: Buffer) => {
      this.#stderr = (this.#stderr + chunk.toString()).slice(-STDERR_CHARACTERS_MAX);
    });
    child.on('message', (message: MemberMessage) => this.#hear(message));
    child.once('close', () => this.#closed());
    const { dir, tenant, link, coordinator, limits } = this.#options;
    const group = { coordinator, listen: { port: 0 }, advertise: link.address };
    const opened = await this.ask('open', { options: { dir, limits, scrubIntervalMs: false, group }, tenant });
    link.port = opened.port;
    return opened;
  }

  ask<M extends MemberMethod>(method: M, input: MemberCalls[M][0]): Promise<MemberCalls[M][1]> {
    const child = this.#process;
    if (child === undefined) return Promise.reject(this.#gone());
    const id = this.#calls++;
    return new Promise((resolve, reject) => {
      const late = (): void =>
        this.#settle(id, () => reject(new Error(`${this.name} did not answer to \`${method}\` in time`)));
      // A load lasts as long as it is wanted.
      const timeout = method === 'load' ? undefined : setTimeout(late, CALL_TIMEOUT_MS);
      this.#waiting.set(id, { resolve, reject, timeout });
      child.send({ id, method, input } satisfies MemberCall, (error) => {
        if (error !== null) this.#settle(id, () => reject(error));
      });
    });
  }

  /** Writes until it is asked to `rest`, or dies. */
  load(load: Load): LoadBook {
    const book: LoadBook = { asked: new Set(), acknowledged: new Set(), failed: undefined };
    this.#book = book;
    this.ask('load', load).catch((error: Error) => (book.failed = error));
    return book;
  }

  /** SIGKILL. Resolves when the process is gone and its last word is read. */
  async kill(): Promise<void> {
    const child = this.#process;
    if (child === undefined) return;
    const closed = once(child, 'close');
    child.kill('SIGKILL');
    await closed;
  }

  #hear(message: MemberMessage): void {
    switch (message.kind) {
      case 'asked':
      case 'acknowledged':
        this.#book?.[message.kind].add(message.write);
        return;
      case 'answer':
        return this.#settle(message.id, ({ resolve }) => resolve(message.output));
      case 'error':
        return this.#settle(message.id, ({ reject }) => reject(deserializeError(message.error)));
      default:
        return message satisfies never;
    }
  }

  #settle(id: number, how: (waiting: Waiting) => void): void {
    const waiting = this.#waiting.get(id);
    if (waiting === undefined) return;
    this.#waiting.delete(id);
    clearTimeout(waiting.timeout);
    how(waiting);
  }

  #closed(): void {
    this.#process = undefined;
    this.link.port = undefined;
    for (const id of this.#waiting.keys()) this.#settle(id, ({ reject }) => reject(this.#gone()));
  }

  #gone(): Error {
    return new Error(`the process of ${this.name} has ended: ${this.#stderr.trim() || 'without a word'}`);
  }
}
