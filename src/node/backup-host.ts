/**
 * What a node holds of its log for those who archive it. This side runs in the node's own thread and is asked by the thread
 * that makes backups (`backup-thread.ts`), as `restore-host.ts` is by those who copy files.
 *
 * A hold keeps the log from what is not archived yet on, for as long as the archive lags, but no more than
 * `archiveHoldBytesMax`: a storage that is away for days must not fill the disk. What was let go shows as `LOG_PRUNED`, and
 * the archive then has a gap that every backup after it names.
 */
import type { Lsn } from '../base/brands.ts';
import { NostosError } from '../base/errors.ts';
import type { Limits } from '../base/limits.ts';
import type { LogHold } from '../log/commit-log.ts';
import type { GenerationEntry } from '../log/terms.ts';
import type { EngineClient } from './engine-client.ts';
import type { LogFiles } from './engine-protocol.ts';

export interface ArchiveLog extends LogFiles {
  readonly log: number;
}

/** Answers are plain data. */
export interface ArchiveHost {
  /** Holds the log from this record on. Throws `LOG_PRUNED`, whose details name the `firstLsn` that is there. */
  openArchive(from: Lsn): Promise<ArchiveLog>;
  /** The log from what is held on, up to the present watermark. */
  archiveFiles(log: number): Promise<LogFiles>;
  /** What comes before this record is archived. */
  archived(log: number, next: Lsn): Promise<void>;
  closeArchive(log: number): Promise<void>;
  /** Where each generation of the log begins. */
  generations(): Promise<readonly GenerationEntry[]>;
}

export interface BackupHostDeps {
  readonly engine: Pick<EngineClient, 'reserve' | 'logFiles' | 'opened' | 'status'>;
}

interface HeldLog {
  hold: LogHold;
  next: Lsn;
}

export class BackupHost implements ArchiveHost {
  readonly #deps: BackupHostDeps;
  readonly #limits: Limits;
  readonly #held = new Map<number, HeldLog>();
  #nextId = 0;
  #timer: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(deps: BackupHostDeps, limits: Limits) {
    this.#deps = deps;
    this.#limits = limits;
  }

  async openArchive(from: Lsn): Promise<ArchiveLog> {
    if (this.#closed) throw new NostosError('CLOSED', 'the node is closing');
    const { engine } = this.#deps;
    const hold = await engine.reserve(from);
    try {
      const files = await engine.logFiles(from);
      const log = (this.#nextId += 1);
      this.#held.set(log, { hold, next: from });
      const everyMs = Math.max(10, this.#limits.reservationTimeoutMs / 4);
      this.#timer ??= setInterval(() => void this.#renew(), everyMs).unref();
      return { ...files, log };
    } catch (error) {
      hold.release();
      throw error;
    }
  }

  archiveFiles(log: number): Promise<LogFiles> {
    return this.#deps.engine.logFiles(this.#find(log).next);
  }

  async archived(log: number, next: Lsn): Promise<void> {
    const held = this.#find(log);
    held.next = next;
    held.hold.progress(next);
  }

  async closeArchive(log: number): Promise<void> {
    this.#held.get(log)?.hold.release();
    this.#held.delete(log);
    if (this.#held.size > 0) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  async generations(): Promise<readonly GenerationEntry[]> {
    return this.#deps.engine.opened.generations;
  }

  async stop(): Promise<void> {
    this.#closed = true;
    for (const log of this.#held.keys()) await this.closeArchive(log);
  }

  #find(log: number): HeldLog {
    const held = this.#held.get(log);
    if (held !== undefined) return held;
    throw new NostosError(
      'RESERVATION_EXPIRED',
      `the log is held for the archive no longer: it would have kept more than archiveHoldBytesMax (${this.#limits.archiveHoldBytesMax} bytes)`,
      { details: { limitBytes: this.#limits.archiveHoldBytesMax } },
    );
  }

  /** A reservation that does not move expires, so it is made anew for an archive that waits for its storage. */
  async #renew(): Promise<void> {
    const { engine } = this.#deps;
    for (const [log, held] of this.#held) {
      try {
        const { bytes } = await engine.logFiles(held.next);
        if (bytes > this.#limits.archiveHoldBytesMax) {
          await this.closeArchive(log);
          continue;
        }
        const hold = await engine.reserve(held.next);
        held.hold.release();
        held.hold = hold;
        if (!this.#held.has(log)) hold.release();
      } catch {
        await this.closeArchive(log); // whoever asks next hears of it
      }
    }
  }
}
