/**
 * Writers of a primary that wait for their record, in the order of its log. They are answered within the reign in which
 * they wrote, or told that their outcome is unknown: after it, another record may stand at their LSN.
 */
import type { Lsn } from '../base/brands.ts';

export type Durability = 'quorum' | 'local';

interface Waiter<T> {
  readonly lsn: Lsn;
  readonly durability: Durability;
  readonly value: T;
}

export class Waiters<T> {
  #waiting: Waiter<T>[] = [];

  get size(): number {
    return this.#waiting.length;
  }

  add(lsn: Lsn, durability: Durability, value: T): void {
    this.#waiting.push({ lsn, durability, value });
  }

  /** Takes those who may be answered: what is committed, and what is `local` and fsynced while the lease holds. */
  settle(watermark: Lsn, durable: Lsn, leaseHolds: boolean): T[] {
    const answered = (waiter: Waiter<T>): boolean =>
      waiter.lsn <= watermark || (waiter.durability === 'local' && leaseHolds && waiter.lsn <= durable);
    const settled = this.#waiting.filter(answered);
    if (settled.length > 0) this.#waiting = this.#waiting.filter((waiter) => !answered(waiter));
    return settled.map(({ value }) => value);
  }

  /** The reign is over: takes everyone who is left. */
  end(): T[] {
    const left = this.#waiting.map(({ value }) => value);
    this.#waiting = [];
    return left;
  }
}
