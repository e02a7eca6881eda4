/** The two sides of a lease: what its holder may rely on, and how long everybody else waits. */
import type { GroupRecord } from '../coordination/coordinator.ts';
import type { GroupLimits } from './options.ts';

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

/**
 * Since when (term, renewal) has stood still, seen from here: since the reply that showed it first. Who saw nothing for half
 * a lease begins again, or whoever is back first after the coordinator was away would depose a living primary.
 */
export class Standstill {
  readonly #limits: Pick<GroupLimits, 'leaseMs' | 'clockDriftMax'>;
  #term = -1;
  #renewal = -1;
  #sinceMs = Infinity;
  #seenMs = -Infinity;

  constructor(limits: Pick<GroupLimits, 'leaseMs' | 'clockDriftMax'>) {
    this.#limits = limits;
  }

  /** A reply shows this. */
  observe({ term, renewal }: GroupRecord, nowMs: number): void {
    const blind = nowMs > this.#seenMs + this.#limits.leaseMs / 2;
    if (term !== this.#term || renewal !== this.#renewal || blind) this.#sinceMs = nowMs;
    [this.#term, this.#renewal, this.#seenMs] = [term, renewal, nowMs];
  }

  /** When a lease that was out has ended, unless it is renewed. */
  get endsMs(): number {
    return this.#sinceMs + this.#limits.leaseMs * (1 + this.#limits.clockDriftMax);
  }

  /** A reply as late as that has shown it unchanged. */
  get isOver(): boolean {
    return this.#seenMs >= this.endsMs;
  }

  /** The coordinator has not answered for as long as a lease. */
  isBlind(nowMs: number): boolean {
    return nowMs >= this.#seenMs + this.#limits.leaseMs;
  }
}
