/** The node's side of the thread that makes backups (`backup-thread.ts`): calls go there, its questions are answered here. */
import { extname } from 'node:path';
import { Worker } from 'node:worker_threads';
import { NostosError, deserializeError, serializeError } from '../base/errors.ts';
import type { ArchiveHost } from './backup-host.ts';
import type {
  BackupCalls,
  BackupMethod,
  BackupThreadOptions,
  FromBackupThread,
  HostQuestion,
  ToBackupThread,
} from './backup-thread-protocol.ts';
import type { RestoreHost } from './restore-host.ts';
import { THREAD_LIMITS } from './threads.ts';
import type { LongCallOptions, Progress } from './types.ts';

export interface BackupThreadDeps {
  readonly host: RestoreHost;
  readonly archiveHost: ArchiveHost;
  readonly onWarning?: (message: string) => void;
}

interface Waiting {
  resolve(output: unknown): void;
  reject(error: unknown): void;
  readonly onProgress: ((progress: Progress) => void) | undefined;
}

export class BackupThread {
  readonly #deps: BackupThreadDeps;
  readonly #options: BackupThreadOptions;
  readonly #waiting = new Map<number, Waiting>();
  /** What the thread holds of the node, given up with it. */
  readonly #sessions = new Set<number>();
  readonly #logs = new Set<number>();
  #worker: Worker | undefined;
  #exited: Promise<void> = Promise.resolve();
  #nextId = 1;
  #stopped = false;

  constructor(deps: BackupThreadDeps, options: BackupThreadOptions) {
    this.#deps = deps;
    this.#options = options;
  }

  /** A thread that failed is started again by the next call. */
  async call<M extends BackupMethod>(
    method: M,
    input: Parameters<BackupCalls[M]>[0],
    { signal, onProgress }: LongCallOptions = {},
  ): Promise<Awaited<ReturnType<BackupCalls[M]>>> {
    signal?.throwIfAborted();
    if (this.#stopped) throw new NostosError('CLOSED', 'the node is closing');
    const worker = (this.#worker ??= this.#start());
    worker.ref();
    const id = this.#nextId++;
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    this.#waiting.set(id, { resolve, reject, onProgress });
    worker.postMessage({ kind: 'call', id, method, input } satisfies ToBackupThread);
    const cancel = (): void => worker.postMessage({ kind: 'cancel', id } satisfies ToBackupThread);
    signal?.addEventListener('abort', cancel, { once: true });
    try {
      return (await promise) as Awaited<ReturnType<BackupCalls[M]>>;
    } catch (error) {
      signal?.throwIfAborted();
      throw error;
    } finally {
      signal?.removeEventListener('abort', cancel);
      if (this.#waiting.size === 0) worker.unref();
    }
  }

  /** What runs is cancelled; a thread that is stuck is ended. */
  async stop(): Promise<void> {
    this.#stopped = true;
    const worker = this.#worker;
    worker?.postMessage({ kind: 'stop' } satisfies ToBackupThread);
    const overdue = setTimeout(() => void worker?.terminate(), this.#options.limits.stopTimeoutMs);
    await this.#exited;
    clearTimeout(overdue);
  }

  #start(): Worker {
    const url = new URL(`./backup-thread${extname(import.meta.url)}`, import.meta.url);
    const worker = new Worker(url, {
      workerData: this.#options,
      name: 'nostos-backup',
      resourceLimits: THREAD_LIMITS,
    });
    let cause: unknown;
    worker.on('error', (error) => (cause = error));
    worker.on('message', (message: FromBackupThread) => this.#take(worker, message));
    this.#exited = new Promise((resolve) => {
      worker.on('exit', () => void this.#ended(cause).finally(resolve));
    });
    return worker;
  }

  #take(worker: Worker, message: FromBackupThread): void {
    if (message.kind === 'ask') {
      void this.#answer(worker, message);
      return;
    }
    if (message.kind === 'warning') {
      this.#deps.onWarning?.(message.message);
      return;
    }
    const waiting = this.#waiting.get(message.id);
    if (message.kind === 'progress') {
      waiting?.onProgress?.(message.progress);
      return;
    }
    this.#waiting.delete(message.id);
    if (message.kind === 'done') waiting?.resolve(message.output);
    else waiting?.reject(deserializeError(message.error));
  }

  async #answer(worker: Worker, { id, method, input }: Extract<FromBackupThread, { kind: 'ask' }>): Promise<void> {
    let reply: ToBackupThread;
    try {
      const output = await this.#ask(method, input);
      this.#note(method, input, output);
      reply = { kind: 'answer', id, output };
    } catch (error) {
      reply = { kind: 'refusal', id, error: serializeError(error) };
    }
    worker.postMessage(reply);
  }

  #ask(method: HostQuestion, input: readonly unknown[]): Promise<unknown> {
    const { host, archiveHost } = this.#deps;
    const target = (method in archiveHost ? archiveHost : host) as unknown as Record<
      string,
      (...input: readonly unknown[]) => Promise<unknown>
    >;
    return target[method]!(...input);
  }

  #note(method: HostQuestion, input: readonly unknown[], output: unknown): void {
    if (method === 'begin') this.#sessions.add((output as { session: number }).session);
    else if (method === 'end') this.#sessions.delete(input[0] as number);
    else if (method === 'openArchive') this.#logs.add((output as { log: number }).log);
    else if (method === 'closeArchive') this.#logs.delete(input[0] as number);
  }

  async #ended(cause: unknown): Promise<void> {
    this.#worker = undefined;
    const error = this.#stopped
      ? new NostosError('CLOSED', 'the node is closing')
      : new NostosError('INTERNAL', 'the thread that makes backups has failed', { cause });
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
    const { host, archiveHost } = this.#deps;
    for (const session of this.#sessions) await host.end(session);
    for (const log of this.#logs) await archiveHost.closeArchive(log);
    this.#sessions.clear();
    this.#logs.clear();
  }
}
