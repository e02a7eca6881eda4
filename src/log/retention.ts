/**
 * What of the log may go: whole sealed segments, oldest first, below everything that is still needed. The table is
 * written before the files go, so a crash in between leaves files that the next opening removes.
 */
import { join } from 'node:path';
import type { Lsn } from '../base/brands.ts';
import type { Clock } from '../base/clock.ts';
import type { Disk } from '../base/disk.ts';
import { NostosError } from '../base/errors.ts';
import type { SealedSegment } from './sealed.ts';
import { SEALED_FILE, sealedTable } from './sealed.ts';
import { segmentName } from './segment-header.ts';
import { saveTable } from './table-file.ts';
import type { TermTable } from './terms.ts';
import { TERMS_FILE, termTable } from './terms.ts';

export interface PruneOptions {
  /** Every tenant holds everything up to here in files that survive a power cut. */
  readonly durableApplied: Lsn;
  /** The archive holds everything up to here; leave it out where there is none. */
  readonly archive?: Lsn;
  /** Nothing above W is ever pruned. */
  readonly watermark: Lsn;
  /** So many bytes of the newest log stay even where they are not needed. */
  readonly retainBytes: number;
}

export interface PruneReport {
  readonly segments: number;
  readonly bytes: number;
  /** The first record that is still held. */
  readonly firstLsn: Lsn;
}

/** Holds the log from some record on, for a reader that takes long; expires when it makes no progress. */
export interface Reservation {
  /** The first record that is held for it. */
  readonly fromLsn: Lsn;
  readonly expired: boolean;
  /** Everything below `lsn` is no longer needed; throws `RESERVATION_EXPIRED` when it came too late. */
  progress(lsn: Lsn): void;
  release(): void;
  [Symbol.dispose](): void;
}

export class Reservations {
  readonly #clock: Clock;
  readonly #held = new Set<HeldReservation>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  add(fromLsn: Lsn, timeoutMs: number): Reservation {
    const reservation = new HeldReservation(this.#clock, fromLsn, timeoutMs, () => this.#held.delete(reservation));
    this.#held.add(reservation);
    return reservation;
  }

  /** The first record that some reservation holds. */
  lowest(): Lsn | undefined {
    let lowest: Lsn | undefined;
    for (const held of this.#held) {
      if (held.expired) this.#held.delete(held);
      else if (lowest === undefined || held.fromLsn < lowest) lowest = held.fromLsn;
    }
    return lowest;
  }
}

class HeldReservation implements Reservation {
  readonly #clock: Clock;
  readonly #timeoutMs: number;
  readonly #onRelease: () => void;
  fromLsn: Lsn;
  #renewedAtMs: number;
  #gone = false;

  constructor(clock: Clock, fromLsn: Lsn, timeoutMs: number, onRelease: () => void) {
    this.#clock = clock;
    this.fromLsn = fromLsn;
    this.#timeoutMs = timeoutMs;
    this.#onRelease = onRelease;
    this.#renewedAtMs = clock.monotonicMs();
  }

  /** Once expired it stays so: what it held may be pruned already. */
  get expired(): boolean {
    if (this.#clock.monotonicMs() - this.#renewedAtMs > this.#timeoutMs) this.#gone = true;
    return this.#gone;
  }

  progress(lsn: Lsn): void {
    if (this.expired)
      throw new NostosError(
        'RESERVATION_EXPIRED',
        `The reservation from LSN ${this.fromLsn} made no progress for ${this.#timeoutMs} ms and was given up; start over`,
        { details: { fromLsn: this.fromLsn, timeoutMs: this.#timeoutMs } },
      );
    if (lsn <= this.fromLsn) return;
    this.fromLsn = lsn;
    this.#renewedAtMs = this.#clock.monotonicMs();
  }

  release(): void {
    this.#gone = true;
    this.#onRelease();
  }

  [Symbol.dispose](): void {
    this.release();
  }
}

export interface PruneTarget {
  readonly disk: Disk;
  readonly dir: string;
  readonly sealed: SealedSegment[];
  readonly openBytes: number;
  readonly terms: TermTable;
  readonly reservedFrom: Lsn | undefined;
}

/** Removes what may go from `target.sealed` and from disk; answers with what went. */
export function pruneSegments(target: PruneTarget, options: PruneOptions): { segments: number; bytes: number } {
  const { disk, dir, sealed } = target;
  const bound = Math.min(
    options.durableApplied,
    options.watermark,
    options.archive ?? Infinity,
    (target.reservedFrom ?? Infinity) - 1,
  );
  let heldBytes = sealed.reduce((sum, row) => sum + row.sizeBytes, target.openBytes);
  let count = 0;
  for (const row of sealed) {
    if (row.last.lsn > bound || heldBytes - row.sizeBytes < options.retainBytes) break;
    heldBytes -= row.sizeBytes;
    count += 1;
  }
  if (count === 0) return { segments: 0, bytes: 0 };
  const kept = sealed.slice(count);
  const gone = sealed.slice(0, count);
  if (target.terms.dirty) {
    saveTable(disk, join(dir, TERMS_FILE), termTable, { base: 0, rows: [...target.terms.entries] });
    target.terms.dirty = false;
  }
  const base = (gone.at(-1) as SealedSegment).number + 1;
  saveTable(disk, join(dir, SEALED_FILE), sealedTable, { base, rows: kept });
  sealed.splice(0, count);
  for (const row of gone) disk.remove(join(dir, segmentName(row.number)));
  disk.syncDirectory(dir);
  return { segments: count, bytes: gone.reduce((sum, row) => sum + row.sizeBytes, 0) };
}
