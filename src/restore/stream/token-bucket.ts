/** A rate limit. Taking is paid afterwards: who takes more than there is waits until the debt is gone. */
import type { Timers } from './timers.ts';

/** What may be taken at once after a pause, in seconds of the rate. */
const BURST_SECONDS = 0.1;

export class TokenBucket {
  readonly bytesPerSecond: number;
  readonly #timers: Timers;
  #tokens = 0;
  #atMs: number;

  constructor(bytesPerSecond: number, timers: Timers) {
    this.bytesPerSecond = bytesPerSecond;
    this.#timers = timers;
    this.#atMs = timers.monotonicMs();
  }

  /** How long to wait before these bytes may leave; they count as taken. */
  take(bytes: number): number {
    const nowMs = this.#timers.monotonicMs();
    const earned = ((nowMs - this.#atMs) / 1000) * this.bytesPerSecond;
    this.#atMs = nowMs;
    this.#tokens = Math.min(this.#tokens + earned, this.bytesPerSecond * BURST_SECONDS) - bytes;
    return this.#tokens >= 0 ? 0 : (-this.#tokens / this.bytesPerSecond) * 1000;
  }
}
