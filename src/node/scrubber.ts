/**
 * Recomputes the fingerprint of one tenant after another from its rows, in the background, again and again; of a member of
 * a group it reads the log too, since others can heal it.
 */
import { isNostosError } from '../base/errors.ts';
import type { Catalog } from '../store/catalog.ts';
import type { OpenTenants } from '../store/open-tenants.ts';
import type { ThreadMaintenance } from './maintenance.ts';
import type { NodeStatus } from './types.ts';

export interface ScrubberDeps {
  readonly catalog: Catalog;
  readonly tenants: OpenTenants;
  readonly maintenance: ThreadMaintenance;
  /** Answers with what is damaged. */
  readonly verifyLog?: () => Promise<readonly string[]>;
  readonly onLogDamaged?: (what: string) => void;
  /** `damage`: the file cannot be read; `differs`: its rows are not what the log leads to. */
  readonly onDamaged?: (tenant: string, why: 'damage' | 'differs') => void;
}

export class Scrubber {
  readonly #deps: ScrubberDeps;
  readonly #intervalMs: number | false;
  readonly #stop = new AbortController();
  readonly #damaged = new Set<string>();
  #tenants = 0;
  #rows = 0;
  #timer: NodeJS.Timeout | undefined;

  constructor(deps: ScrubberDeps, options: { readonly intervalMs: number | false }) {
    this.#deps = deps;
    this.#intervalMs = options.intervalMs;
  }

  start(): void {
    if (this.#intervalMs === false) return;
    this.#timer = setTimeout(() => {
      void this.round().finally(() => {
        if (!this.#stop.signal.aborted) this.start();
      });
    }, this.#intervalMs);
    this.#timer.unref();
  }

  stop(): void {
    clearTimeout(this.#timer);
    this.#stop.abort();
  }

  status(): NodeStatus['scrub'] {
    return { tenants: this.#tenants, rows: this.#rows, damaged: [...this.#damaged] };
  }

  #found(tenant: string, why: 'damage' | 'differs'): void {
    this.#damaged.add(tenant);
    this.#deps.onDamaged?.(tenant, why);
  }

  /** Looks at every tenant once. */
  async round(): Promise<void> {
    const [log] = (await this.#deps.verifyLog?.().catch(() => [])) ?? []; // it is read again in the next round
    if (log !== undefined) this.#deps.onLogDamaged?.(log);
    const { catalog, tenants, maintenance } = this.#deps;
    const { signal } = this.#stop;
    let after = '';
    for (;;) {
      const page = catalog.list(after, 100);
      for (const entry of page) {
        if (signal.aborted) return;
        after = entry.name;
        try {
          const report = await tenants.with(
            entry,
            (store) => maintenance.scrub({ path: store.path, integrity: false }, { signal }),
            { keep: false },
          );
          this.#tenants += 1;
          this.#rows += report.rows;
          if (report.actual === report.expected) this.#damaged.delete(entry.name);
          else this.#found(entry.name, 'differs');
        } catch (error) {
          if (signal.aborted) return;
          if (isNostosError(error, 'TENANT_DAMAGED')) this.#found(entry.name, 'damage');
          else this.#damaged.add(entry.name);
        }
      }
      if (page.length < 100) return;
    }
  }
}
