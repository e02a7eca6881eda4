/**
 * Tells the engine up to where no tenant needs the log any more, so that it can be pruned and the next open need not
 * read it.
 *
 * The bound is the lowest position that some file lacks durably. Two things keep it moving: tenants that lag are
 * checkpointed after a while even if their WAL is small, and tenants that a crash left behind are opened once.
 */
import type { Lsn, TenantId } from '../base/brands.ts';
import type { Clock } from '../base/clock.ts';
import type { Catalog } from '../store/catalog.ts';
import type { OpenTenants } from '../store/open-tenants.ts';
import type { CatalogLog } from './catalog-log.ts';
import type { EngineClient } from './engine-client.ts';
import type { ThreadMaintenance } from './maintenance.ts';

const TICK_MS = 5_000;
const LAG_MAX_MS = 30_000;

export interface DurableBoundDeps {
  readonly engine: EngineClient;
  readonly catalog: Catalog;
  readonly catalogLog: CatalogLog;
  readonly tenants: OpenTenants;
  readonly clock: Clock;
  readonly maintenance: ThreadMaintenance;
  /** Of a replica: up to where all tenants were given what is committed. */
  readonly lowest?: () => Lsn;
}

export class DurableBound {
  readonly #deps: DurableBoundDeps;
  /** Left behind by the last process; until they are brought up to date they hold the bound where it was. */
  readonly #behind = new Set<TenantId>();
  readonly #laggingSinceMs = new Map<TenantId, number>();
  #timer: NodeJS.Timeout | undefined;
  #running: Promise<void> = Promise.resolve();
  #stopped = false;
  #told = -1;

  constructor(deps: DurableBoundDeps) {
    this.#deps = deps;
  }

  start(dirty: readonly TenantId[]): void {
    for (const id of dirty) this.#behind.add(id);
    this.#running = this.#catchUp().catch(() => {}); // what could not be told is told with the first tick
    this.#timer = setInterval(() => {
      this.#running = this.#running.then(() => this.#tick()).catch(() => {}); // tried again with the next tick
    }, TICK_MS);
    this.#timer.unref();
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    clearInterval(this.#timer);
    await this.#running.catch(() => {});
  }

  get bound(): Lsn {
    const { engine, catalog, catalogLog, tenants } = this.#deps;
    if (this.#behind.size > 0) return engine.opened.durable;
    let bound: number = this.#deps.lowest?.() ?? engine.watermark;
    for (const lag of tenants.lags()) bound = Math.min(bound, lag.durable);
    if (catalog.durable < catalog.applied) bound = Math.min(bound, catalog.durable);
    return Math.min(bound, catalogLog.heldFrom ?? bound) as Lsn;
  }

  async advance(): Promise<void> {
    const { bound } = this;
    if (bound === this.#told) return;
    await this.#deps.engine.advance(bound);
    this.#told = bound;
  }

  /** Opens what the last process left behind, which applies the log, and makes it durable. */
  async #catchUp(): Promise<void> {
    const { catalog, tenants } = this.#deps;
    for (const id of [...this.#behind]) {
      if (this.#stopped) return;
      const entry = catalog.byId(id);
      try {
        if (entry !== undefined) await tenants.with(entry, (store) => store.checkpoint(), { keep: false });
        this.#behind.delete(id);
      } catch {
        continue; // a damaged tenant keeps the log that it may be repaired from; its users see the error
      }
    }
    await this.advance();
  }

  async #tick(): Promise<void> {
    const { catalog, tenants, clock, maintenance } = this.#deps;
    const nowMs = clock.monotonicMs();
    const lagging = new Set<TenantId>();
    for (const { id, store } of [...tenants.lags()]) {
      lagging.add(id);
      const sinceMs = this.#laggingSinceMs.get(id);
      if (sinceMs === undefined) this.#laggingSinceMs.set(id, nowMs);
      else if (nowMs - sinceMs > LAG_MAX_MS && !this.#stopped) {
        this.#laggingSinceMs.delete(id);
        await store?.checkpoint().catch(() => {}); // it lags on, and its turn comes again
      }
    }
    for (const id of this.#laggingSinceMs.keys()) if (!lagging.has(id)) this.#laggingSinceMs.delete(id);
    await catalog.checkpoint(maintenance);
    await this.advance();
  }
}
