/**
 * The end of the log in shared memory, and the right to append there: who owns the log lends it, so that another thread
 * of the process may append without waking the owner's (ADR 0004).
 *
 * The right is a lock, held for one append and its sync, or for one operation of the owner; the fields are read and
 * written only by its holder. Another thread never waits for it: where it is taken, the append goes the ordinary way.
 */
import { assert } from '../base/assert.ts';
import type { Hash, Hlc, Lsn, Term } from '../base/brands.ts';
import { HASH_BYTES } from '../base/brands.ts';

/** Where the next record goes, and what it is chained to. */
export interface TailPoint {
  readonly term: Term;
  readonly lsn: Lsn;
  readonly hash: Hash;
  readonly hlc: Hlc;
  readonly watermark: Lsn;
  readonly endOffset: number;
}

export interface LentTail extends TailPoint {
  readonly segment: number;
  /** Records may be written up to there: it is preallocated, and part of this segment. */
  readonly limitOffset: number;
}

/** `kept`: only the owner appends. `failed`: a write or sync of a borrower failed, and the owner has to look. */
export type TailStatus = 'kept' | 'lent' | 'failed';

const STATUSES: readonly TailStatus[] = ['kept', 'lent', 'failed'];
const LOCK = 0;
const STATUS = 1;
const FREE = 0;
const OWNER = 1;
const BORROWER = 2;
const HLC_AT = 8;
const HASH_AT = 16;
const NUMBERS_AT = 48;
const TERM = 0;
const LSN = 1;
const WATERMARK = 2;
const END_OFFSET = 3;
const SEGMENT = 4;
const LIMIT_OFFSET = 5;
const SYNC_MS = 6;
const BYTES = NUMBERS_AT + 7 * 8;
/** Weight of the latest sync in their average. */
const SYNC_WEIGHT = 1 / 8;

export class SharedTail {
  readonly memory: SharedArrayBuffer;
  readonly #control: Int32Array;
  readonly #hlc: BigUint64Array;
  readonly #hash: Uint8Array;
  readonly #numbers: Float64Array;

  constructor(memory: SharedArrayBuffer = new SharedArrayBuffer(BYTES)) {
    this.memory = memory;
    this.#control = new Int32Array(memory, 0, 2);
    this.#hlc = new BigUint64Array(memory, HLC_AT, 1);
    this.#hash = new Uint8Array(memory, HASH_AT, HASH_BYTES);
    this.#numbers = new Float64Array(memory, NUMBERS_AT, 7);
  }

  /** For the owner: waits for a borrower who is appending, which takes no longer than a write and a sync. */
  acquire(): void {
    for (;;) {
      const holder = Atomics.compareExchange(this.#control, LOCK, FREE, OWNER);
      if (holder === FREE) return;
      assert(holder === BORROWER, 'the owner of the log has its tail already');
      Atomics.wait(this.#control, LOCK, BORROWER);
    }
  }

  /** For a borrower: false where somebody has it. */
  tryAcquire(): boolean {
    return Atomics.compareExchange(this.#control, LOCK, FREE, BORROWER) === FREE;
  }

  release(): void {
    Atomics.store(this.#control, LOCK, FREE);
    Atomics.notify(this.#control, LOCK);
  }

  /** May be asked without holding the lock, as a guess. */
  get status(): TailStatus {
    return STATUSES[Atomics.load(this.#control, STATUS)]!;
  }

  /** A running average of how long a sync takes; may be asked without holding the lock, as a guess. */
  get syncMs(): number {
    return this.#numbers[SYNC_MS]!;
  }

  observeSync(ms: number): void {
    this.#numbers[SYNC_MS] = this.syncMs + (ms - this.syncMs) * SYNC_WEIGHT;
  }

  /** The last LSN; what changes it is appending. */
  get lsn(): Lsn {
    return this.#numbers[LSN] as Lsn;
  }

  read(): LentTail {
    const numbers = this.#numbers;
    return {
      term: numbers[TERM] as Term,
      lsn: numbers[LSN] as Lsn,
      hash: this.#hash.slice() as Hash,
      hlc: this.#hlc[0] as Hlc,
      watermark: numbers[WATERMARK] as Lsn,
      endOffset: numbers[END_OFFSET]!,
      segment: numbers[SEGMENT]!,
      limitOffset: numbers[LIMIT_OFFSET]!,
    };
  }

  /** For the owner, before it releases: `undefined` keeps the tail. */
  publish(tail: LentTail | undefined): void {
    if (tail !== undefined) {
      this.move(tail);
      this.#numbers[SEGMENT] = tail.segment;
      this.#numbers[LIMIT_OFFSET] = tail.limitOffset;
    }
    this.#setStatus(tail === undefined ? 'kept' : 'lent');
  }

  /** For a borrower, once its records are durable. */
  move(point: TailPoint): void {
    const numbers = this.#numbers;
    numbers[TERM] = point.term;
    numbers[LSN] = point.lsn;
    numbers[WATERMARK] = point.watermark;
    numbers[END_OFFSET] = point.endOffset;
    this.#hlc[0] = point.hlc;
    this.#hash.set(point.hash);
  }

  /** For a borrower whose write or sync failed: what is behind the tail is not known now. */
  fail(): void {
    this.#setStatus('failed');
  }

  #setStatus(status: TailStatus): void {
    Atomics.store(this.#control, STATUS, STATUSES.indexOf(status));
  }
}
