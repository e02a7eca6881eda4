/** The process of one member, which is asked over IPC, killed, stopped and gone on with, and may run under another program. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { extname } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { StoreId } from '../base/brands.ts';
import { deserializeError, NostosError } from '../base/errors.ts';
import type { Calls, FromChild, Method, Opened } from './group-child.fixture.ts';
import type { NodeOptions } from './types.ts';

const ASK_TIMEOUT_MS = 10_000;
const OPEN_TIMEOUT_MS = 20_000;
/** Everything that a group has to wait out before it goes on, many times over. */
export const SETTLE_MS = 20_000;

const POLL_MS = 40;

export interface MemberEnvironment {
  /** Its wall clock is ahead by the milliseconds in this file. */
  readonly clockFile?: string;
  /** The program that becomes, or starts, the process; it must keep its id. */
  readonly launcher?: readonly string[];
  /** Where the modules that it runs are kept compiled: that is half of the time of a start. */
  readonly compileCache?: string;
  readonly onOpened?: (opened: Opened) => void;
}

/** The next process of the same directory is a new `Member`. */
export class Member {
  readonly #process: ChildProcess;
  readonly #waiting = new Map<number, { resolve(output: unknown): void; reject(error: unknown): void }>();
  readonly #exited: Promise<unknown>;
  readonly #errors: string[] = [];
  #nextId = 1;
  #opened: Opened | undefined;
  readonly opened: Promise<Opened>;
  /** What it has said of its way home. */
  readonly steps: string[] = [];

  constructor(options: NodeOptions, environment: MemberEnvironment = {}) {
    const url = (name: string): URL => new URL(`./${name}${extname(import.meta.url)}`, import.meta.url);
    const { clockFile, compileCache, launcher = [] } = environment;
    const flags = clockFile === undefined ? [] : ['--import', url('group-harness-clock.fixture').href];
    const child = [process.execPath, ...flags, fileURLToPath(url('group-child.fixture')), JSON.stringify(options)];
    const [command = '', ...rest] = [...launcher, ...child];
    this.#process = spawn(command, rest, {
      stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
      env: {
        ...process.env,
        ...(clockFile === undefined ? {} : { NOSTOS_TEST_CLOCK: clockFile }),
        ...(compileCache === undefined ? {} : { NODE_COMPILE_CACHE: compileCache }),
      },
    });
    this.#process.stderr?.setEncoding('utf8').on('data', (text: string) => this.#errors.push(text));
    this.#exited = once(this.#process, 'exit');
    const { promise, resolve, reject } = Promise.withResolvers<Opened>();
    this.opened = promise;
    promise.catch(() => {});
    this.#process.on('message', (message: FromChild) => {
      if ('opened' in message) {
        this.#opened = message.opened;
        environment.onOpened?.(message.opened);
        resolve(message.opened);
      } else if ('step' in message) this.steps.push(message.step);
      else if ('failed' in message) reject(deserializeError(message.failed));
      else this.#answer(message);
    });
    this.#process.once('exit', () => {
      const gone = new NostosError('CLOSED', `the process has ended ${this.#errors.join('').slice(0, 2_000)}`);
      reject(gone);
      for (const waiting of this.#waiting.values()) waiting.reject(gone);
      this.#waiting.clear();
    });
  }

  get store(): StoreId | undefined {
    return this.#opened?.store;
  }

  get pid(): number {
    return this.#process.pid ?? 0;
  }

  /** Resolves with the signal that has ended it, if one has. */
  async exited(): Promise<NodeJS.Signals | null> {
    await this.#exited;
    return this.#process.signalCode;
  }

  get alive(): boolean {
    return this.#process.exitCode === null && this.#process.signalCode === null;
  }

  ask<M extends Method>(method: M, input: Calls[M][0], timeoutMs = ASK_TIMEOUT_MS): Promise<Calls[M][1]> {
    const id = this.#nextId++;
    const asked = new Promise<Calls[M][1]>((resolve, reject) => {
      if (!this.#process.connected) return reject(new NostosError('CLOSED', 'the process has ended'));
      this.#waiting.set(id, { resolve, reject });
      this.#process.send({ id, method, input }, (error) => {
        if (error !== null) this.#take(id)?.reject(new NostosError('CLOSED', error.message));
      });
    });
    if (timeoutMs === Infinity) return asked;
    const late = AbortSignal.timeout(timeoutMs);
    return Promise.race([
      asked,
      once(late, 'abort').then(() => Promise.reject(new NostosError('NETWORK_TIMEOUT', `${method} was not answered`))),
    ]);
  }

  #take(id: number): { resolve(output: unknown): void; reject(error: unknown): void } | undefined {
    const waiting = this.#waiting.get(id);
    this.#waiting.delete(id);
    return waiting;
  }

  #answer(message: Extract<FromChild, { id: number }>): void {
    const waiting = this.#take(message.id);
    if ('error' in message) waiting?.reject(deserializeError(message.error));
    else waiting?.resolve(message.output);
  }

  async kill(): Promise<void> {
    this.#process.kill('SIGKILL');
    await this.#exited;
  }

  /** SIGSTOP; `resume` is SIGCONT. */
  pause(): void {
    this.#process.kill('SIGSTOP');
  }

  resume(): void {
    this.#process.kill('SIGCONT');
  }

  /** Closes the node; the process ends by itself. */
  async close(): Promise<void> {
    if (this.alive && this.#opened !== undefined) {
      await this.ask('close', undefined, OPEN_TIMEOUT_MS).catch(() => this.#process.kill('SIGKILL'));
    } else this.#process.kill('SIGKILL');
    await this.#exited;
  }
}

export async function until(
  what: string,
  test: () => boolean | Promise<boolean>,
  timeoutMs = SETTLE_MS,
  told: () => string = () => '',
): Promise<void> {
  const endMs = performance.now() + timeoutMs;
  while (!(await test())) {
    if (performance.now() > endMs) throw new Error(`not in time: ${what} ${told()}`);
    await sleep(POLL_MS);
  }
}
