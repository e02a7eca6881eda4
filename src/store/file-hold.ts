/**
 * Keeps the file of a tenant as it is, all of it at one position, for those who copy it, while writers go on in the WAL.
 * It ends when the last of them lets go, when the WAL has grown too far meanwhile, or when the tenant is closed.
 */
import { closeSync, fstatSync, openSync } from 'node:fs';
import { diskError } from '../base/disk.ts';
import { NostosError } from '../base/errors.ts';
import type { Limits } from '../base/limits.ts';
import type { Connection } from './connection.ts';
import type { OpenFile } from './open-file.ts';
import { readTenantMeta, type AppliedPosition } from './tenant-file.ts';
import type { WalKeeper } from './wal-keeper.ts';

/** The file of a tenant while it stands still: all of it at one position. */
export interface HeldFile {
  /** To read from; it belongs to the store, which closes it. */
  readonly descriptor: number;
  readonly bytes: number;
  readonly applied: AppliedPosition;
}

export interface Holder {
  /** The hold is over: from now on the file changes. Called at once, or never once it was released. */
  onLost(error: NostosError): void;
}

interface Held {
  readonly file: HeldFile;
  readonly holders: Set<Holder>;
  /** A connection more: without it, closing the writer to recover would move the WAL into the file. */
  readonly guard: Connection;
}

export interface FileHoldDeps {
  readonly file: OpenFile;
  readonly wal: WalKeeper;
  /** The file changes again: what has gathered in the WAL may be moved. */
  readonly onEnded: () => void;
}

export class FileHold {
  readonly #file: OpenFile;
  readonly #wal: WalKeeper;
  readonly #onEnded: () => void;
  readonly #bytesMax: number;
  #held: Held | undefined;
  /** Closing any descriptor of a file drops all locks that SQLite has on it, so this one waits for the last of them. */
  #descriptor: number | undefined;

  constructor({ file, wal, onEnded }: FileHoldDeps, { restoreHoldBytesMax }: Limits) {
    this.#file = file;
    this.#wal = wal;
    this.#onEnded = onEnded;
    this.#bytesMax = restoreHoldBytesMax;
  }

  get active(): boolean {
    return this.#held !== undefined;
  }

  get openFiles(): number {
    return (this.#descriptor === undefined ? 0 : 1) + (this.#held === undefined ? 0 : 2);
  }

  /** For callers that have the writer. Undefined where a reader that began earlier is in the way. */
  async add(holder: Holder): Promise<HeldFile | undefined> {
    const held = (this.#held ??= await this.#start());
    held?.holders.add(holder);
    return held?.file;
  }

  remove(holder: Holder): void {
    if (this.#held?.holders.delete(holder) === true && this.#held.holders.size === 0) this.end();
  }

  end(reason?: NostosError): void {
    const held = this.#held;
    if (held === undefined) return;
    if (reason !== undefined) for (const holder of held.holders) holder.onLost(reason);
    this.#held = undefined;
    held.guard.close();
    this.#wal.thaw();
    this.#onEnded();
  }

  /** Once all connections are closed. */
  closeDescriptor(): void {
    if (this.#descriptor !== undefined) closeSync(this.#descriptor);
    this.#descriptor = undefined;
  }

  async #start(): Promise<Held | undefined> {
    await this.#wal.settled();
    if (!this.#wal.isWhole && !(await this.#wal.checkpoint())) return undefined;
    const { path, applied } = this.#file;
    const guard = this.#file.connect('reader');
    try {
      readTenantMeta(guard);
      this.#descriptor ??= openSync(path, 'r');
      const file = { descriptor: this.#descriptor, bytes: fstatSync(this.#descriptor).size, applied };
      this.#wal.freeze({
        onGrown: (walBytes) => {
          if (walBytes > this.#bytesMax) this.end(this.#grown(walBytes));
        },
      });
      return { file, holders: new Set(), guard };
    } catch (error) {
      guard.close();
      throw diskError('open', path, error);
    }
  }

  #grown(heldBytes: number): NostosError {
    const { name } = this.#file.identity;
    const heldFrom = this.#held?.file.applied.lsn;
    const { lsn } = this.#file.applied;
    return new NostosError(
      'RESERVATION_EXPIRED',
      `the copy of tenant ${name} as of LSN ${heldFrom} was given up: its writers have gone on for ${heldBytes} bytes meanwhile, the limit restoreHoldBytesMax is ${this.#bytesMax}; fetch it again, or raise the limit`,
      { details: { tenant: name, heldBytes, limitBytes: this.#bytesMax, heldFrom, lsn } },
    );
  }
}
