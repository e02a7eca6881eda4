/**
 * One attempt to fill a directory with the log files of a source. Nothing in the directory changes before everything was
 * received and verified; then `local-directory.ts` swaps it in. A run that fails ends in `Failed`, with its cause.
 */
import { resolve } from 'node:path';
import type { Clock } from '../../base/clock.ts';
import { systemClock } from '../../base/clock.ts';
import type { DirectoryLock } from '../../base/directory-lock.ts';
import { acquireDirectoryLock } from '../../base/directory-lock.ts';
import type { Disk } from '../../base/disk.ts';
import { makeDurableDirectory } from '../../base/directory-tree.ts';
import { systemDisk } from '../../base/disk.ts';
import { NostosError } from '../../base/errors.ts';
import { DEFAULT_LIMITS } from '../../base/limits.ts';
import { formatAddress, parseAddress } from '../../wire/address.ts';
import type { ClientTls } from '../../wire/connect.ts';
import { connectStream } from '../../wire/connect.ts';
import type { Protocol } from './fetch.ts';
import { fetchFiles } from './fetch.ts';
import type { SwapReport } from './local-directory.ts';
import { StagedRestore, finishSwap } from './local-directory.ts';
import { nextState } from './state.ts';
import type {
  NameRule,
  NetworkRestoreConfig,
  RestoreEvent,
  RestoreProgress,
  RestoreReport,
  RestoreState,
  Trailer,
} from './types.ts';
import { RESTORE_LIMITS } from './types.ts';

/** What the reference does not have. Limits have their defaults in `RESTORE_LIMITS`. */
export interface NetworkRestoreOptions {
  readonly signal?: AbortSignal;
  /** One that throws ends the run. */
  readonly onProgress?: (event: RestoreEvent) => void;
  /** `crc32` by default. */
  readonly trailer?: Trailer;
  /** `reference` by default. */
  readonly names?: NameRule;
  /** A source without files leaves none here either. Without it, nothing is set aside or removed then. */
  readonly allowEmptySource?: boolean;
  readonly tls?: ClientTls;
  readonly connectTimeoutMs?: number;
  /** How long to wait for another process to release the directory. */
  readonly lockTimeoutMs?: number;
  readonly stallTimeoutMs?: number;
  readonly progressBytesMin?: number;
  readonly filesMax?: number;
  readonly bytesMax?: number;
  readonly diskReserveBytes?: number;
}

export interface NetworkRestoreDeps {
  readonly disk: Disk;
  readonly clock: Clock;
  readonly lock: (dir: string, timeoutMs: number, signal?: AbortSignal) => Promise<Pick<DirectoryLock, 'release'>>;
}

const SYSTEM: NetworkRestoreDeps = {
  disk: systemDisk,
  clock: systemClock,
  lock: (dir, timeoutMs, signal) =>
    acquireDirectoryLock(
      { dir, timeoutMs, holder: { command: 'network restore', version: '' } },
      signal === undefined ? {} : { signal },
    ),
};

export class NetworkRestore {
  readonly #config: NetworkRestoreConfig;
  readonly #address: string;
  readonly #options: NetworkRestoreOptions;
  readonly #deps: NetworkRestoreDeps;
  #dir: string | undefined;
  #state: RestoreState = 'NotStarted';
  #error: unknown;
  #bytes = 0;
  #files = 0;
  #elapsedMs = 0;
  #run: AbortController | undefined;

  constructor(
    config: NetworkRestoreConfig,
    options: NetworkRestoreOptions = {},
    deps: Partial<NetworkRestoreDeps> = {},
  ) {
    const { sourceNode, sourceHost, sourcePort, retainLogFiles } = config;
    this.#config = Object.freeze({ sourceNode, sourceHost, sourcePort, retainLogFiles });
    this.#address = formatAddress({ host: sourceHost.replace(/^\[(.*)\]$/, '$1'), port: sourcePort });
    if (parseAddress(this.#address).port === 0)
      throw new NostosError('INVALID_ARGUMENT', `sourcePort is from 1 to 65535, got ${sourcePort}`);
    this.#options = options;
    this.#deps = { ...SYSTEM, ...deps };
  }

  /** Where the files go; the working directory of the process without it. Made with its parents when it is not there. */
  withLocalDir(dir: string): this {
    if (this.#run !== undefined)
      throw new NostosError('RESTORE_STATE', 'the directory cannot change while a restore runs', {
        details: { state: this.#state },
      });
    this.#dir = dir;
    return this;
  }

  getState(): RestoreState {
    return this.#state;
  }

  /** Stays as it was when the run has failed. */
  getProgress(): RestoreProgress {
    return {
      state: this.#state,
      bytesTransferred: this.#bytes,
      filesTransferred: this.#files,
      elapsed: this.#elapsedMs,
    };
  }

  getConfig(): NetworkRestoreConfig {
    return this.#config;
  }

  /** Why it is in `Failed`; undefined otherwise. */
  getError(): unknown {
    return this.#error;
  }

  /** Over raw TCP, from a `NetworkRestoreServer` that was started by itself. */
  execute(): Promise<RestoreReport> {
    return this.#execute('raw');
  }

  /** From the service RESTORE of a dispatcher: all files in one frame of at most 64 MiB. */
  executeViaDispatcher(): Promise<RestoreReport> {
    return this.#execute('dispatcher');
  }

  /** For who moves the bytes in another way: only the state changes. */
  start(): void {
    this.#state = nextState(this.#state, 'start');
  }

  /** Sets both, in any state. */
  updateProgress(bytes: number, files: number): void {
    this.#bytes = bytes;
    this.#files = files;
  }

  updateElapsed(elapsedMs: number): void {
    this.#elapsedMs = elapsedMs;
  }

  /** A run that `execute` has begun completes by itself, when its files are in place, and not before. */
  complete(): void {
    if (this.#run !== undefined)
      throw new NostosError('RESTORE_STATE', 'cannot complete this restore: its files are still on their way', {
        details: { state: this.#state },
      });
    this.#state = nextState(this.#state, 'complete');
  }

  /** Also ends a run that `execute` has begun, which rejects with this cause. */
  fail(cause?: unknown): void {
    this.#state = nextState(this.#state, 'fail');
    this.#error = cause ?? new NostosError('RESTORE_FAILED', 'the restore was given up by its caller');
    this.#run?.abort(this.#error);
  }

  async #execute(protocol: Protocol): Promise<RestoreReport> {
    this.#state = nextState(this.#state, 'execute');
    const { clock } = this.#deps;
    const startedMs = clock.monotonicMs();
    const elapsed = (): number => (this.#elapsedMs = clock.monotonicMs() - startedMs);
    const run = (this.#run = new AbortController());
    const { signal } = this.#options;
    try {
      const report = await this.#restore(protocol, {
        signal: signal === undefined ? run.signal : AbortSignal.any([signal, run.signal]),
        onEvent: (event) => {
          if (event.kind === 'file-received') this.updateProgress(this.#bytes + event.bytes, this.#files + 1);
          elapsed();
          this.#options.onProgress?.(event);
        },
      });
      this.#state = nextState(this.#state, 'complete');
      return report;
    } catch (error) {
      if (this.#state === 'InProgress') this.fail(error);
      throw error;
    } finally {
      this.#run = undefined;
      elapsed();
    }
  }

  async #restore(
    protocol: Protocol,
    { signal, onEvent }: { signal: AbortSignal; onEvent: (event: RestoreEvent) => void },
  ): Promise<RestoreReport> {
    const { disk, clock } = this.#deps;
    const dir = resolve(this.#dir ?? process.cwd());
    const { lockTimeoutMs = DEFAULT_LIMITS.lockTimeoutMs, connectTimeoutMs, tls } = this.#options;
    signal.throwIfAborted();
    let lock = disk.exists(dir) ? await this.#deps.lock(dir, lockTimeoutMs, signal) : undefined;
    try {
      const finishedEarlierRun = lock !== undefined && finishSwap(disk, dir) !== undefined;
      const stream = await connectStream(this.#address, { connectTimeoutMs, tls, signal });
      try {
        if (lock === undefined) makeDurableDirectory(disk, dir);
        lock ??= await this.#deps.lock(dir, lockTimeoutMs, signal);
        const limits = limitsOf(this.#options);
        const staged = StagedRestore.begin(disk, { dir, diskReserveBytes: limits.diskReserveBytes });
        try {
          const { trailer = 'crc32', names = 'reference' } = this.#options;
          await fetchFiles({ stream, staged, clock }, protocol, { ...limits, trailer, names, signal, onEvent });
          if (staged.files.length === 0 && this.#options.allowEmptySource !== true)
            return { dir, files: [], setAside: [], removed: [], finishedEarlierRun };
          onEvent({ kind: 'swapping', files: staged.files.length });
          signal.throwIfAborted();
          return { dir, ...staged.swap(this.#config.retainLogFiles), finishedEarlierRun };
        } finally {
          staged.abandon();
        }
      } finally {
        stream.close();
      }
    } finally {
      lock?.release();
    }
  }
}

/**
 * Finishes a restore into this directory that was cut off while it put files in place. Needs no source. For who opens
 * the directory next; undefined when there is nothing to finish.
 */
export async function finishRestore(
  dir: string,
  options: { readonly lockTimeoutMs?: number; readonly signal?: AbortSignal } = {},
  deps: Partial<NetworkRestoreDeps> = {},
): Promise<SwapReport | undefined> {
  const { disk, lock } = { ...SYSTEM, ...deps };
  const path = resolve(dir);
  if (!disk.exists(path)) return undefined;
  const held = await lock(path, options.lockTimeoutMs ?? DEFAULT_LIMITS.lockTimeoutMs, options.signal);
  try {
    return finishSwap(disk, path);
  } finally {
    held.release();
  }
}

function limitsOf(options: NetworkRestoreOptions): typeof RESTORE_LIMITS {
  const limits: Record<string, number> = { ...RESTORE_LIMITS };
  for (const name of Object.keys(RESTORE_LIMITS)) {
    const value = (options as Readonly<Record<string, unknown>>)[name];
    if (value === undefined) continue;
    if (typeof value !== 'number' || !(value >= 0))
      throw new NostosError('INVALID_ARGUMENT', `${name} must be a number from 0, got ${JSON.stringify(value)}`);
    limits[name] = value;
  }
  return limits as typeof RESTORE_LIMITS;
}
