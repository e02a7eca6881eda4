/**
 * The tenants that are open, at most as many as the limit of open files allows. Files open at the first use and close
 * by least use; a tenant in use is never closed. Closing checkpoints, so a closed tenant needs nothing from the log.
 */
import type { Lsn, TenantId } from '../base/brands.ts';
import { collectIfGrown } from '../base/collect.ts';
import { NostosError } from '../base/errors.ts';
import type { CatalogEntry } from './catalog.ts';
import type { TenantStore } from './tenant-store.ts';

/** What a tenant may come to hold open: writer 3, reader 2. */
const FILES_PER_TENANT = 5;
/** Above this part of the limit, closing begins in the background, so that opening seldom waits for it. */
const HIGH_WATER = 0.9;
const CLOSES_AT_ONCE = 4;
/** Who waits for room looks again this often, if nothing else tells of it. */
const TICK_MS = 20;
/** When nothing was opened or closed for so long, one is let in beyond the limit. */
const STILL_MAX_MS = 1_000;

/** A tenant whose file lacks, durably, what comes after `durable`. */
export interface Lag {
  readonly id: TenantId;
  readonly durable: Lsn;
  /** Where it is open. */
  readonly store?: TenantStore;
}

interface Entry {
  readonly opening: Promise<TenantStore>;
  store: TenantStore | undefined;
  pins: number;
  /** Counts uses, to find the one used least recently. */
  usedAt: number;
  /** False where it was opened for a look only: it is closed again at once. */
  kept: boolean;
}

export interface OpenTenantsDeps {
  readonly open: (entry: CatalogEntry) => Promise<TenantStore>;
  readonly pause: (ms: number) => Promise<void>;
  /** Called with each tenant that was closed with everything in its file. */
  readonly onClosed?: (store: TenantStore) => void;
}

export class OpenTenants {
  readonly #open: OpenTenantsDeps['open'];
  readonly #pause: OpenTenantsDeps['pause'];
  readonly #onClosed: OpenTenantsDeps['onClosed'];
  readonly #filesMax: number;
  readonly #entries = new Map<TenantId, Entry>();
  readonly #closing = new Map<TenantId, { readonly done: Promise<void>; readonly store: TenantStore | undefined }>();
  /** Closed without everything in their files: the log must be kept for them. */
  readonly #behind = new Map<TenantId, Lsn>();
  #relieving: Promise<void> | undefined;
  /** Those that were opened for a look only, and wait until they have nothing more to do. */
  readonly #looked = new Set<TenantId>();
  #uses = 0;
  /** Those who wait until they may open a tenant, the first to come first. */
  readonly #waiting: ((overdue: boolean) => void)[] = [];
  #ticking: Promise<void> | undefined;
  /** Counts openings and closings. */
  #moves = 0;
  #closed = false;

  constructor(deps: OpenTenantsDeps, options: { readonly openFilesMax: number }) {
    this.#open = deps.open;
    this.#pause = deps.pause;
    this.#onClosed = deps.onClosed;
    this.#filesMax = Math.max(options.openFilesMax, FILES_PER_TENANT);
  }

  get count(): number {
    return this.#entries.size;
  }

  get openFiles(): number {
    let files = 0;
    for (const { store } of this.#entries.values()) files += store?.openFiles ?? FILES_PER_TENANT;
    return files + this.#closing.size * FILES_PER_TENANT;
  }

  *lags(): Iterable<Lag> {
    for (const [id, { store }] of this.#entries) if (store?.lag !== undefined) yield { id, durable: store.lag, store };
    for (const [id, { store }] of this.#closing) if (store?.lag !== undefined) yield { id, durable: store.lag };
    for (const [id, durable] of this.#behind) yield { id, durable };
  }

  /**
   * Runs `fn` with the tenant open; it stays open until `fn` has ended, and longer unless `keep` is false: who looks at
   * all tenants one after another needs none of them again, and each takes memory while it is open.
   */
  async with<T>(
    entry: CatalogEntry,
    fn: (store: TenantStore) => Promise<T> | T,
    { keep = true }: { readonly keep?: boolean } = {},
  ): Promise<T> {
    const open = await this.#pin(entry);
    open.kept ||= keep;
    try {
      return await fn(await open.opening);
    } finally {
      open.pins -= 1;
      if (open.pins === 0) {
        if (!open.kept) this.#looked.add(entry.id);
        this.#closeLooked();
        this.#relieve();
      }
    }
  }

  /**
   * The tenant if it is open already. Only for a call that puts something into its queue at once: what waits there keeps
   * it open.
   */
  peek(id: TenantId): TenantStore | undefined {
    const open = this.#entries.get(id);
    if (open?.store === undefined) return undefined;
    open.usedAt = this.#uses += 1;
    open.kept = true;
    return open.store;
  }

  /** Closes a tenant and keeps it closed while `fn` runs; whoever wants it meanwhile waits. */
  async closed<T>(id: TenantId, fn: () => Promise<T>): Promise<T> {
    for (let closing = this.#closing.get(id); closing !== undefined; closing = this.#closing.get(id))
      await closing.done.catch(() => {});
    const entry = this.#entries.get(id);
    const held = Promise.withResolvers<void>();
    this.#entries.delete(id);
    this.#closing.set(id, { done: held.promise, store: entry?.store });
    try {
      if (entry !== undefined) await this.#closeStore(id, entry);
      return await fn();
    } finally {
      this.#closing.delete(id);
      held.resolve();
    }
  }

  /** Resolves when that has ended for which a tenant is kept closed; undefined where it is not. */
  closing(id: TenantId): Promise<void> | undefined {
    return this.#closing.get(id)?.done.catch(() => {});
  }

  /** Runs `fn` on all that are open or being opened; also where it fails with some. */
  async each(fn: (store: TenantStore) => Promise<void>): Promise<void> {
    const run = async ({ opening }: Entry): Promise<void> => {
      const store = await opening.catch(() => undefined); // its users are told
      if (store !== undefined) await fn(store);
    };
    const results = await Promise.allSettled([...this.#entries.values()].map(run));
    for (const result of results) if (result.status === 'rejected') throw result.reason;
  }

  /** A tenant has nothing more to do, so that it may be closed. */
  oneIsIdle(): void {
    this.#closeLooked();
    if (this.#waiting.length > 0) this.#relieve();
  }

  /** A dropped tenant lacks nothing any more. */
  forget(id: TenantId): void {
    this.#behind.delete(id);
  }

  /** Closes every tenant; from now on none is opened, also not for those who wait for room. */
  async closeAll(): Promise<void> {
    this.#closed = true;
    const results = await Promise.allSettled([...this.#entries.keys()].map((id) => this.#close(id)));
    await Promise.allSettled([...this.#closing.values()].map(({ done }) => done));
    for (const result of results) if (result.status === 'rejected') throw result.reason;
  }

  async #pin(entry: CatalogEntry): Promise<Entry> {
    for (let overdue = false; ;) {
      if (this.#closed) throw new NostosError('CLOSED', 'the node is closed');
      const known = this.#entries.get(entry.id);
      if (known !== undefined) {
        known.usedAt = this.#uses += 1;
        known.pins += 1;
        return known;
      }
      const closing = this.#closing.get(entry.id);
      if (closing !== undefined) {
        await closing.done.catch(() => {});
        continue;
      }
      this.#relieve();
      if (!overdue && this.#isFull) {
        overdue = await this.#turn();
        continue;
      }
      return this.#start(entry);
    }
  }

  #start(entry: CatalogEntry): Entry {
    const opening = this.#open(entry);
    const created: Entry = { opening, store: undefined, pins: 1, usedAt: (this.#uses += 1), kept: false };
    this.#entries.set(entry.id, created);
    this.#moves += 1;
    void this.#settle(entry.id, created);
    return created;
  }

  async #settle(id: TenantId, created: Entry): Promise<void> {
    try {
      created.store = await created.opening;
      this.#behind.delete(id);
    } catch {
      // Its users are told; the next one tries again.
      if (this.#entries.get(id) === created) this.#entries.delete(id);
    }
  }

  get #isFull(): boolean {
    return this.#entries.size > 0 && this.openFiles + FILES_PER_TENANT > this.#filesMax;
  }

  #closeLooked(): void {
    for (const id of this.#looked) {
      const entry = this.#entries.get(id);
      const wanted = entry === undefined || entry.kept || entry.pins > 0;
      if (!wanted && entry.store?.idle !== true) continue;
      this.#looked.delete(id);
      if (!wanted)
        void this.#close(id)
          .catch(() => undefined) // what it lacks is noted, and the log keeps it
          .then(() => collectIfGrown());
    }
  }

  /** Starts closing if needed. */
  #relieve(): void {
    if (this.openFiles + FILES_PER_TENANT <= this.#filesMax * HIGH_WATER) return;
    this.#relieving ??= this.#closeIdle().finally(() => (this.#relieving = undefined));
  }

  /**
   * Resolves when there may be room, or with true when nothing has moved for too long. Then the limit gives way, of
   * which the process allows twice as much: those that have tenants open may be waiting for the one that comes now.
   */
  #turn(): Promise<boolean> {
    const turn = new Promise<boolean>((resolve) => this.#waiting.push(resolve));
    this.#ticking ??= this.#tick().finally(() => (this.#ticking = undefined));
    return turn;
  }

  async #tick(): Promise<void> {
    let seen = this.#moves;
    for (let stillMs = 0; this.#waiting.length > 0; stillMs += TICK_MS) {
      await this.#pause(TICK_MS);
      if (this.#moves !== seen) stillMs = 0;
      seen = this.#moves;
      this.#relieve();
      if (!this.#isFull) this.#waiting.shift()?.(false);
      else if (stillMs >= STILL_MAX_MS) this.#waiting.shift()?.(true);
    }
  }

  async #closeIdle(): Promise<void> {
    const idle = [...this.#entries]
      .filter(([, entry]) => entry.pins === 0 && entry.store?.idle === true)
      .toSorted(([, a], [, b]) => a.usedAt - b.usedAt)
      .slice(0, CLOSES_AT_ONCE)
      .map(([id]) => id);
    await Promise.allSettled(idle.map((id) => this.#close(id)));
    for (const _ of idle) this.#waiting.shift()?.(false);
  }

  #close(id: TenantId): Promise<void> {
    const entry = this.#entries.get(id);
    if (entry === undefined) return this.#closing.get(id)?.done ?? Promise.resolve();
    this.#entries.delete(id);
    this.#moves += 1;
    const done = this.#closeStore(id, entry).finally(() => this.#closing.delete(id));
    this.#closing.set(id, { done, store: entry.store });
    return done;
  }

  async #closeStore(id: TenantId, entry: Entry): Promise<void> {
    // One that could not be opened has told its users, and what it lacks the log keeps as it did before.
    const store = await entry.opening.catch(() => undefined);
    try {
      await store?.close();
    } finally {
      if (store?.lag !== undefined) this.#behind.set(id, store.lag);
      else if (store?.findable === true) this.#onClosed?.(store);
    }
  }
}
