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
    return this.#seen.accept(await this.#coordinator.read());
  }

  async compareAndSet(expectedVersion: number, record: GroupRecord): Promise<CasResult> {
    const result = await this.#coordinator.compareAndSet(expectedVersion, record);
    this.#seen.accept(result.ok ? { version: result.version, record } : result.current);
    return result;
  }

  watch(listener: (current: Versioned) => void, options: { signal: AbortSignal }): void {
    this.#coordinator.watch((current) => listener(this.#seen.accept(current)!), options);
  }
}
