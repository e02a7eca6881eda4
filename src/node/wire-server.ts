/** Where other nodes connect: a thread of its own (`wire-thread.ts`), whose questions are answered here. */
import { extname } from 'node:path';
import { Worker } from 'node:worker_threads';
import { NostosError, deserializeError, serializeError } from '../base/errors.ts';
import type { NodeRestoreHost, RestoreHost } from './restore-host.ts';
import { THREAD_LIMITS } from './threads.ts';
import type { FromWire, ToWire, WireOptions } from './wire-protocol.ts';

export interface WireServerDeps {
  readonly host: NodeRestoreHost;
  /** The thread has ended by itself, which it never should: nobody is served any more. */
  readonly onLost?: (error: NostosError) => void;
  /** How many peers were refused or failed since the start, by reason. */
  readonly onRefused?: (refused: Readonly<Record<string, number>>) => void;
}

/** The dispatcher in the thread waits for its handlers first. */
const STOP_MARGIN_MS = 2_000;

export class WireServer {
  readonly address: string;
  readonly #worker: Worker;
  readonly #exited: Promise<void>;
  readonly #stopTimeoutMs: number;
  #stopping = false;

  private constructor(worker: Worker, address: string, { host, onLost }: WireServerDeps, { limits }: WireOptions) {
    this.#worker = worker;
    this.#stopTimeoutMs = limits.stopTimeoutMs;
    this.address = address;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#exited = promise;
    let cause: unknown;
    worker.on('error', (error) => (cause = error));
    worker.on('exit', () => {
      resolve();
      if (this.#stopping) return;
      const lost = new NostosError('INTERNAL', 'the thread that serves other nodes has failed', { cause });
      void host.endAll(lost);
      onLost?.(lost);
    });
  }

  static async start(deps: WireServerDeps, options: WireOptions): Promise<WireServer> {
    const url = new URL(`./wire-thread${extname(import.meta.url)}`, import.meta.url);
    const worker = new Worker(url, { workerData: options, name: 'nostos-wire', resourceLimits: THREAD_LIMITS });
    const { promise, resolve, reject } = Promise.withResolvers<string>();
    worker.once('error', reject);
    worker.on('message', (message: FromWire) => {
      if (message.kind === 'ask') void answer(worker, deps.host, message);
      else if (message.kind === 'refused') deps.onRefused?.(message.refused);
      else if (message.kind === 'started') resolve(message.address);
      else reject(deserializeError(message.error));
    });
    const address = await promise;
    worker.off('error', reject);
    return new WireServer(worker, address, deps, options);
  }

  /** Frees the port and ends what is being served; a thread that is stuck is ended. */
  async stop(): Promise<void> {
    this.#stopping = true;
    this.#worker.postMessage({ kind: 'stop' } satisfies ToWire);
    const overdue = setTimeout(() => void this.#worker.terminate(), this.#stopTimeoutMs + STOP_MARGIN_MS);
    await this.#exited;
    clearTimeout(overdue);
  }
}

async function answer(
  worker: Worker,
  host: RestoreHost,
  { id, method, input }: Extract<FromWire, { kind: 'ask' }>,
): Promise<void> {
  let reply: ToWire;
  try {
    const call = host[method].bind(host) as (...input: readonly unknown[]) => Promise<unknown>;
    reply = { kind: 'answer', id, output: await call(...input) };
  } catch (error) {
    reply = { kind: 'refusal', id, error: serializeError(error) };
  }
  worker.postMessage(reply);
}
