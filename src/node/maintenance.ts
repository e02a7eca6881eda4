/**
 * Maintenance of tenant files in threads: one for checkpoints, which writers may wait for, one for long work, which is
 * ended when its caller gives up, and one for the WALs that have grown while their tenants were copied: writers of other
 * tenants are not to wait for those. Where there are no writers one does it all: each takes 12 MiB.
 */
import { statSync } from 'node:fs';
import { extname, resolve } from 'node:path';
import type { Lsn } from '../base/brands.ts';
import { NostosError } from '../base/errors.ts';
import { randomHex128, systemRandom } from '../base/random.ts';
import type { LogVerification, VerifyProgress } from '../log/verify.ts';
import type { CheckpointMode, CheckpointRequest, CheckpointResult } from '../store/checkpoint.ts';
import { removeTemporary } from '../store/export-file.ts';
import type { ForgottenRow, ForgottenRowsRequest } from '../store/forgotten-rows.ts';
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

/** Moving a larger WAL takes longer than a writer may wait. */
const LARGE_WAL_BYTES = 64 * 1024 * 1024;

export class ThreadMaintenance implements Maintenance {
  readonly #checkpoints: CallThread;
  readonly #large: CallThread;
  readonly #long: CallThread;
  /** Long calls go one after another, so that ending one ends no other. */
  #last: Promise<unknown> = Promise.resolve();
  /** When the thread that was given up has really ended: SQLite holds it until its statement does. */
  #ending: Promise<void> = Promise.resolve();
  #closed: NostosError | undefined;

  constructor({ writers }: { readonly writers: boolean }) {
    const url = new URL(`./maintenance-thread${extname(import.meta.url)}`, import.meta.url);
    this.#long = new CallThread(url, 'nostos-maintenance');
    this.#checkpoints = writers ? new CallThread(url, 'nostos-checkpoint') : this.#long;
    this.#large = writers ? new CallThread(url, 'nostos-checkpoint-large') : this.#long;
  }

  checkpoint(path: string, mode: CheckpointMode, directories: readonly string[] = []): Promise<CheckpointResult> {
    const request = { path, mode, directories, hold: false };
    const walBytes = statSync(`${path}-wal`, { throwIfNoEntry: false })?.size ?? 0;
    return mode === 'passive' && walBytes > LARGE_WAL_BYTES
      ? this.#large.call('checkpoint', request)
      : this.#checkpoint(request);
  }

  async checkpointAndClose(path: string, directories: readonly string[], close: () => void): Promise<CheckpointResult> {
    try {
      return await this.#checkpoint({ path, mode: 'truncate', directories, hold: true });
    } finally {
      close();
      await this.#checkpoints.call('letGo', { path }).catch(() => {}); // it goes with its thread then
    }
  }

  #checkpoint(request: CheckpointRequest): Promise<CheckpointResult> {
    return this.#checkpoints.call('checkpoint', request);
  }

  scrub(request: ScrubRequest, options: LongWork<number> = {}): Promise<ScrubReport> {
    return this.#inTurn('scrub', request, options);
  }

  exportPlain(request: CopyRequest, options: LongWork<string> = {}): Promise<CopyReport> {
    const temporary = `${resolve(request.target)}.${randomHex128(systemRandom).slice(0, 8)}.nostos-export`;
    // A thread that is ended cannot clean up after itself.
    const cleanUp = (): void => removeTemporary(temporary);
    return this.#inTurn('exportPlain', { ...request, temporary }, options, cleanUp);
  }

  inspect(request: InspectRequest, options: LongWork<string> = {}): Promise<InspectReport> {
    return this.#inTurn('inspect', request, options);
  }

  /** Reads all keys of the tables of which something was forgotten. */
  findForgotten(request: ForgottenRowsRequest, options: LongWork<never> = {}): Promise<ForgottenRow[]> {
    return this.#inTurn('findForgotten', request, options);
  }

  /** Of a log that is in use: records from `inUseFrom` on are being written meanwhile. */
  verifyLog(dir: string, inUseFrom: Lsn, options: LongWork<VerifyProgress> = {}): Promise<LogVerification> {
    return this.#inTurn('verifyLog', { dir, inUseFrom }, options);
  }

  async close(): Promise<void> {
    const error = new NostosError('CLOSED', 'the node is closed');
    this.#closed = error;
    this.#ending = this.#long.end(error);
    await Promise.all([this.#checkpoints.end(error), this.#large.end(error), this.#ending]);
    await this.#last;
  }

  #inTurn<T, P>(
    method: string,
    request: unknown,
    { signal, onProgress }: LongWork<P>,
    cleanUp?: () => void,
  ): Promise<T> {
    const turn = this.#last.then(async () => {
      signal?.throwIfAborted();
      if (this.#closed !== undefined) throw this.#closed;
      const abort = (): void => void (this.#ending = this.#long.end(signal?.reason));
      signal?.addEventListener('abort', abort, { once: true });
      try {
        return await this.#long.call<T>(method, request, onProgress as ((progress: unknown) => void) | undefined);
      } catch (error) {
        if (cleanUp !== undefined) await this.#ending.then(cleanUp);
        throw error;
      } finally {
        signal?.removeEventListener('abort', abort);
      }
    });
    this.#last = turn.catch(() => {});
    return turn;
  }
}
