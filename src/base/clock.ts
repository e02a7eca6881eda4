/**
 * Time comes in from outside. The wall clock names moments for people and may jump; the monotonic clock measures spans
 * and never goes back; the hybrid clock stamps records so that a later record of one history never has an earlier time,
 * whatever the wall clock does.
 */
import type { Hlc } from './brands.ts';
import { NostosError } from './errors.ts';

export interface Clock {
  /** Milliseconds since the epoch by the wall clock, whole. */
  nowMs(): number;
  /** Milliseconds since some fixed moment of this process. */
  monotonicMs(): number;
}

export const systemClock: Clock = {
  nowMs: () => Date.now(),
  monotonicMs: () => performance.now(),
};

const COUNTER_BITS = 16n;
const COUNTER_END = 1 << 16;
const MS_END = 2 ** 48;

export interface HybridClockOptions {
  /** A time from elsewhere that is further ahead of our wall clock than this is refused. */
  readonly aheadMaxMs?: number;
}

/**
 * `next` is above everything that it returned, observed or resumed from before, and at the wall clock otherwise.
 * The counter overflows into the milliseconds, so that a stopped or set-back wall clock costs order nothing.
 */
export class HybridClock {
  readonly clock: Clock;
  readonly #aheadMaxMs: number;
  #ms = 0;
  #counter = -1;
  #base = 0n;

  constructor(clock: Clock, options: HybridClockOptions = {}) {
    this.clock = clock;
    this.#aheadMaxMs = options.aheadMaxMs ?? 60_000;
  }

  next(): Hlc {
    const wall = this.clock.nowMs();
    if (wall > this.#ms) this.#set(wall, 0);
    else if (this.#counter + 1 < COUNTER_END) this.#counter += 1;
    else this.#set(this.#ms + 1, 0);
    return (this.#base + BigInt(this.#counter)) as Hlc;
  }

  /** Takes in a time from another node; one too far ahead would drag every later record with it, so it is refused. */
  observe(hlc: Hlc): void {
    const aheadMs = hlcToMs(hlc) - this.clock.nowMs();
    if (aheadMs > this.#aheadMaxMs)
      throw new NostosError(
        'CLOCK_DRIFT',
        `A time from another node is ${aheadMs} ms ahead of this machine's clock, more than the ${this.#aheadMaxMs} ms allowed; set both clocks`,
        { details: { aheadMs, aheadMaxMs: this.#aheadMaxMs } },
      );
    this.resume(hlc);
  }

  /** Takes in the last time of our own log, however far ahead it is: history already has it. */
  resume(hlc: Hlc): void {
    const ms = hlcToMs(hlc);
    const counter = Number(hlc & 0xffffn);
    if (ms > this.#ms || (ms === this.#ms && counter > this.#counter)) this.#set(ms, counter);
  }

  #set(ms: number, counter: number): void {
    if (!(ms < MS_END)) throw new NostosError('CLOCK_DRIFT', `The clock reads ${ms} ms, beyond what a record can hold`);
    this.#ms = ms;
    this.#counter = counter;
    this.#base = BigInt(ms) << COUNTER_BITS;
  }
}

/** The wall-clock part of a hybrid time, in milliseconds since the epoch. */
export function hlcToMs(hlc: Hlc): number {
  return Number(hlc >> COUNTER_BITS);
}
