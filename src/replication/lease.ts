/** The two sides of a lease: what its holder may rely on, and how long everybody else waits. */
import type { GroupRecord } from '../coordination/coordinator.ts';

/** Now, by both clocks of one process. */
export interface Instant {
  readonly monotonicMs: number;
  readonly wallMs: number;
}

/**
 * Whether what was sent then still gives a lease. The wall clock is asked too, since some monotonic clocks stand still
 * while a machine sleeps; one that was set back gives nothing.
 */
export function leaseHolds(sent: Instant, now: Instant, leaseMs: number, drift: number): boolean {
  const validMs = leaseMs * (1 - drift);
  const wallMs = now.wallMs - sent.wallMs;
  return now.monotonicMs - sent.monotonicMs < validMs && wallMs >= 0 && wallMs < validMs;
}

/** Since when (term, renewal) has stood still, seen from here: since the reply that showed it first. */
export class Standstill {
  #term = -1;
  #renewal = -1;
  #sinceMs = Infinity;

  observe({ term, renewal }: GroupRecord, nowMs: number): void {
    if (term === this.#term && renewal === this.#renewal) return;
    [this.#term, this.#renewal, this.#sinceMs] = [term, renewal, nowMs];
  }

  /** From then on no lease is out. */
  endsMs(leaseMs: number, drift: number): number {
    return this.#sinceMs + leaseMs * (1 + drift);
  }
}
