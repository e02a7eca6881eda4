/** A coordinator whose answers are all checked against, and added to, what this node has seen before. */
import type { CasResult, Coordinator, GroupRecord, Versioned } from './coordinator.ts';
import type { NewestSeen } from './newest-seen.ts';

export class RememberingCoordinator implements Coordinator {
  readonly #coordinator: Coordinator;
  readonly #seen: NewestSeen;

  constructor(coordinator: Coordinator, seen: NewestSeen) {
    this.#coordinator = coordinator;
    this.#seen = seen;
  }

  async read(): Promise<Versioned | undefined> {
    const since = this.#seen.newest;
    return this.#seen.acceptSince(since, await this.#coordinator.read());
  }

  async compareAndSet(expectedVersion: number, record: GroupRecord): Promise<CasResult> {
    const since = this.#seen.newest;
    const result = await this.#coordinator.compareAndSet(expectedVersion, record);
    if (!result.ok) return { ok: false, current: this.#seen.acceptSince(since, result.current) };
    this.#seen.acceptSince(since, { version: result.version, record });
    return result;
  }

  /** What a watch tells may be late, or not be kept for lack of space: it is left out then, and a read says why. */
  watch(listener: (current: Versioned) => void, options: { signal: AbortSignal }): void {
    this.#coordinator.watch((current) => {
      if (this.#accepts(current)) listener(current);
    }, options);
  }

  #accepts(current: Versioned): boolean {
    try {
      this.#seen.accept(current);
      return true;
    } catch {
      return false;
    }
  }
}
