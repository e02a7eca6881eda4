/**
 * Keeps the WAL of a tenant small: in the background first, and with the queue held when that was not enough. Nothing
 * is moved while the file is frozen for somebody who copies it.
 */
import { dirname } from 'node:path';
import type { Limits } from '../base/limits.ts';
import type { CheckpointMode } from './checkpoint.ts';
import type { Connection } from './connection.ts';
import type { Maintenance } from './maintenance.ts';
import type { OpenFile } from './open-file.ts';

const WAL_STATE = 'pragma wal_checkpoint(noop)';
/** A page with its header. */
const WAL_FRAME_BYTES = 4_096 + 24;
/** The WAL is looked at after so many bytes of changes. */
const WAL_CHECK_BYTES = 128 * 1024;

export interface Freeze {
  /** The WAL has grown so far meanwhile. */
  onGrown(walBytes: number): void;
}

export class WalKeeper {
  readonly #file: OpenFile;
  readonly #maintenance: Maintenance;
  readonly #limits: Limits;
  #changedBytes = 0;
  #running: Promise<unknown> | undefined;
  /** Size of the WAL at which the queue is held for a checkpoint. */
  #holdAtBytes: number;
  /** Size that it had when it was allowed to grow further than the limit; smaller, it has begun anew. */
  #extendedAtBytes = 0;
  #frozen: Freeze | undefined;

  constructor(file: OpenFile, deps: { readonly maintenance: Maintenance }, limits: Limits) {
    this.#file = file;
    this.#maintenance = deps.maintenance;
    this.#limits = limits;
    this.#holdAtBytes = limits.checkpointHoldBytes;
  }

  changed(bytes: number): void {
    this.#changedBytes += bytes;
  }

  /** For callers that have the writer: looks at the WAL where enough has changed since it did. */
  async relieveIfDue(): Promise<void> {
    if (this.#changedBytes >= WAL_CHECK_BYTES) await this.relieve();
  }

  async relieve(): Promise<void> {
    this.#changedBytes = 0;
    const { checkpointBytes, checkpointHoldBytes } = this.#limits;
    const bytes = walContentBytes(this.#file.main);
    if (this.#frozen !== undefined) return this.#frozen.onGrown(bytes);
    if (bytes < this.#extendedAtBytes) [this.#extendedAtBytes, this.#holdAtBytes] = [0, checkpointHoldBytes];
    if (bytes >= this.#holdAtBytes) {
      await this.#running;
      const complete = await this.#checkpoint('restart').catch(() => false);
      // A reader with an old snapshot is in the way: its writers are not made to wait for it again before the WAL has
      // grown by as much once more. How long it may be is bounded by the age of readers.
      this.#extendedAtBytes = complete ? 0 : bytes;
      this.#holdAtBytes = this.#extendedAtBytes + checkpointHoldBytes;
    } else if (bytes >= checkpointBytes) this.checkpointAside();
  }

  /** Brings the file itself up to date; true when everything that the WAL held is in it. */
  async checkpoint(): Promise<boolean> {
    await this.#running;
    return this.#checkpoint('passive');
  }

  /** The same, and waits a little for readers that are in the way. */
  async checkpointWhole(): Promise<boolean> {
    return (await this.checkpoint()) || (await this.#checkpoint('restart'));
  }

  /** The same, and the WAL is empty then, so that nothing is left to do when the file is closed. */
  async checkpointEmptied(): Promise<boolean> {
    await this.#running;
    return (await this.#checkpoint('truncate')) || (await this.checkpointWhole());
  }

  /** For callers between two transactions; beside it writers go on. */
  checkpointAside(): void {
    this.#running ??= this.#checkpoint('passive')
      .catch(() => false)
      .finally(() => (this.#running = undefined));
  }

  /** Resolves when no checkpoint runs aside. */
  async settled(): Promise<void> {
    await this.#running;
  }

  /** Whether the file itself has everything. A cold tenant was closed like that: nothing has to be moved for its copy. */
  get isWhole(): boolean {
    const { log, checkpointed } = this.#file.main.internal(WAL_STATE).get() as { log: bigint; checkpointed: bigint };
    return log === checkpointed && this.#file.noted === this.#file.applied.lsn;
  }

  freeze(freeze: Freeze): void {
    this.#frozen = freeze;
  }

  thaw(): void {
    this.#frozen = undefined;
    if (!this.#file.isOpen) return;
    // What has gathered meanwhile is moved in the background, which takes its time, before writers are held up for it.
    this.#extendedAtBytes = walContentBytes(this.#file.main);
    const roomBytes = Math.max(this.#limits.checkpointHoldBytes, this.#extendedAtBytes / 2);
    this.#holdAtBytes = this.#extendedAtBytes + roomBytes;
  }

  /** Writes everything into the file and closes its connections. */
  async checkpointAndClose(): Promise<void> {
    await this.#running;
    const file = this.#file;
    if (file.stale || !file.isOpen) return;
    const { lsn } = file.applied;
    file.noteFingerprint();
    // Nothing is to be moved or synced, so nothing takes long.
    if (file.durable >= lsn && file.findable && file.walBytes() === 0) return file.release();
    const close = (): void => file.release();
    const { complete } = await this.#maintenance.checkpointAndClose(file.path, this.#unfound(), close);
    if (complete) file.heldDurably(lsn);
  }

  async #checkpoint(mode: CheckpointMode): Promise<boolean> {
    const file = this.#file;
    if (file.stale || !file.isOpen || this.#frozen !== undefined) return false;
    const { lsn } = file.applied;
    file.noteFingerprint();
    const { complete } = await this.#maintenance.checkpoint(file.path, mode, this.#unfound());
    if (complete) file.heldDurably(lsn);
    return complete;
  }

  /** Directories that a power cut may yet forget this file in, up to the data directory. */
  #unfound(): readonly string[] {
    if (this.#file.findable) return [];
    const own = dirname(this.#file.path);
    return [own, dirname(own), dirname(dirname(own))];
  }
}

/** What is in the WAL since it began anew; its file keeps the size that it once had. */
function walContentBytes(connection: Connection): number {
  const row = connection.internal(WAL_STATE).get() as { log: bigint };
  return Number(row.log) * WAL_FRAME_BYTES;
}
