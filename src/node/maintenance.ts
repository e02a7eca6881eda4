/**
 * Maintenance of tenant files in two threads: one for checkpoints, which writers may wait for, and one for long work,
 * which is ended when its caller gives up.
 */
import { extname } from 'node:path';
import { NostosError } from '../base/errors.ts';
import type { LogVerification, VerifyProgress } from '../log/verify.ts';
import type { CheckpointMode, CheckpointResult } from '../store/checkpoint.ts';
import type {
  CopyReport,
  CopyRequest,
  InspectReport,
  InspectRequest,
  LongWork,
  Maintenance,
  ScrubReport,
  ScrubRequest,
} from '../store/maintenance.ts';
import { CallThread } from './threads.ts';

export class ThreadMaintenance implements Maintenance {
  readonly #checkpoints: CallThread;
  readonly #long: CallThread;
  /** Long calls go one after another, so that ending one ends no other. */
  #last: Promise<unknown> = Promise.resolve();

  constructor() {
    const url = new URL(`./maintenance-thread${extname(import.meta.url)}`, import.meta.url);
    this.#checkpoints = new CallThread(url, 'nostos-checkpoint');
    this.#long = new CallThread(url, 'nostos-maintenance');
  }

  checkpoint(path: string, mode: CheckpointMode): Promise<CheckpointResult> {
    return this.#checkpoints.call('checkpoint', { path, mode });
  }

  scrub(request: ScrubRequest, options: LongWork<number> = {}): Promise<ScrubReport> {
    return this.#inTurn('scrub', request, options);
  }

  exportPlain(request: CopyRequest, options: LongWork<string> = {}): Promise<CopyReport> {
    return this.#inTurn('exportPlain', request, options);
  }

  inspect(request: InspectRequest, options: LongWork<string> = {}): Promise<InspectReport> {
    return this.#inTurn('inspect', request, options);
  }

  verifyLog(dir: string, options: LongWork<VerifyProgress> = {}): Promise<LogVerification> {
    return this.#inTurn('verifyLog', { dir }, options);
  }

  async close(): Promise<void> {
    const error = new NostosError('CLOSED', 'the node is closed');
    await Promise.all([this.#checkpoints.end(error), this.#long.end(error)]);
  }

  #inTurn<T, P>(method: string, request: unknown, { signal, onProgress }: LongWork<P>): Promise<T> {
    const turn = this.#last.then(async () => {
      signal?.throwIfAborted();
      const abort = (): void => void this.#long.end(signal?.reason);
      signal?.addEventListener('abort', abort, { once: true });
      try {
        return await this.#long.call<T>(method, request, onProgress as ((progress: unknown) => void) | undefined);
      } finally {
        signal?.removeEventListener('abort', abort);
      }
    });
    this.#last = turn.catch(() => {});
    return turn;
  }
}
