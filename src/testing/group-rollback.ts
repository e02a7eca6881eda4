/**
 * The rollback of a simulated node: the real run (`rollback/run/`) with its machine, decision and resumption, on a
 * directory, tenants and a log that lose power at any of its effects. What a process that has died would still do does
 * not happen.
 */
import { NostosError } from '../base/errors.ts';
import { samePoint, type ChainPoint } from '../log/chain.ts';
import type { Lsn } from '../base/brands.ts';
import type { Effect } from '../replication/effects.ts';
import type { Journal } from '../rollback/run/journal.ts';
import type { Outbox } from '../rollback/run/outbox.ts';
import { RollbackRunner, isUnderWay, type Frozen, type RollbackHost } from '../rollback/run/runner.ts';
import { ROLLBACK_LIMITS, type Plan, type PreservedFile, type RollbackNotice } from '../rollback/types.ts';
import type { BrokenStep } from './group-broken.ts';
import type { SimDirectory, SimFile } from './group-directory.ts';
import { Violation } from './group-violation.ts';
import type { SimRecord, SimStore } from './group-store.ts';
import type { SimNode } from './group-node.ts';

/** Steps at which a rollback may die. */
export type RollbackStep =
  | 'journal'
  | 'file-begin'
  | 'file-sync'
  | 'file-link'
  | 'undo'
  | 'undo-checkpoint'
  | 'cut'
  | 'outbox-put'
  | 'outbox-remove'
  | 'told';

/** How far the step is when the process ends. */
export type Death = 'before' | 'half' | 'after';

export const DEATHS: readonly Death[] = ['before', 'half', 'after'];

type Wish = Extract<Effect<readonly SimRecord[]>, { kind: 'rollback' }>;

/** The process is gone. */
class Died extends Error {
  override readonly name = 'Died';
}

/** Of one opening of a store. */
export class SimRollback {
  readonly #node: SimNode;
  readonly #boot: number;
  readonly #store: SimStore;
  readonly #runner: RollbackRunner;
  #working: Promise<void> = Promise.resolve();
  #journal: Journal | undefined;

  constructor(node: SimNode) {
    const { world, store } = node;
    [this.#node, this.#boot, this.#store] = [node, node.boots, store];
    const clock = { nowMs: () => node.now.wallMs, monotonicMs: () => node.now.monotonicMs };
    this.#runner = new RollbackRunner({
      host: this.#host(),
      journal: { load: () => this.#loadJournal(), save: (journal) => this.#saveJournal(journal) },
      outbox: this.#outbox(),
      sink: (notice) => this.#tell(notice),
      ...{ clock, random: world.random, limits: ROLLBACK_LIMITS },
    });
  }

  /** Whether it has begun to drop records, and not come to its end: until then the node neither stands nor follows. */
  get isUnderWay(): boolean {
    return !this.#breaks('standsHalfway') && isUnderWay(this.#store.directory.journal.intent);
  }

  /** As a node starts: what had begun is brought to its end, and told. */
  settle(done: () => void): void {
    this.#inTurn(
      () => (this.#breaks('standsHalfway') ? this.#runner.deliver() : this.#runner.settle()),
      (ok) => (ok || !this.isUnderWay ? done() : this.#again(() => this.settle(done))),
    );
  }

  run(wish: Wish, done: (ok: boolean) => void): void {
    const { to, primary, term } = wish;
    const common = { term: to.term, lsn: to.lsn, hash: Buffer.from(to.hash).toString('hex') };
    const request = { common, primary: { address: primary.store, term } };
    this.#inTurn(
      () => this.#runner.run(request),
      (ok) => (ok || !this.isUnderWay ? done(ok) : this.#again(() => this.run(wish, done))),
    );
  }

  #again(run: () => void): void {
    const { world } = this.#node;
    world.count('rollbacksTriedAgain');
    world.after(50, () => this.#isAlive && run());
  }

  #inTurn(run: () => Promise<unknown>, done: (ok: boolean) => void): void {
    const { world } = this.#node;
    this.#working = this.#work(this.#working, run, done).catch((error: unknown) => {
      world.violation ??= error instanceof Violation ? error : new Violation(`a rollback breaks: ${String(error)}`);
    });
    world.isUnsettled = true;
  }

  /** An outcome that a node may have to live with is a `NostosError`. */
  async #work(before: Promise<void>, run: () => Promise<unknown>, done: (ok: boolean) => void): Promise<void> {
    const { world } = this.#node;
    let ok = true;
    await before;
    try {
      await run();
    } catch (error) {
      if (error instanceof Died) return;
      if (!(error instanceof NostosError)) throw error;
      world.count(`rollback-${error.code}`);
      world.trace(() => `${this.#node.name}: its rollback fails: ${error.message}`);
      ok = false;
    }
    if (this.#isAlive) done(ok);
  }

  get #isAlive(): boolean {
    return this.#node.isUp && this.#node.boots === this.#boot;
  }

  #breaks(step: BrokenStep): boolean {
    return this.#node.world.broken === step;
  }

  get #directory(): SimDirectory {
    if (!this.#isAlive) throw new Died();
    return this.#store.directory;
  }

  /** One change of the disk, which may be the last one of this process: then it is done half, whole, or not at all. */
  #change(step: RollbackStep, whole: () => void, half: () => void = whole): void {
    const { world } = this.#node;
    if (!this.#isAlive) throw new Died();
    let death = world.rollbackDies(this.#node, step);
    if (--world.crashAfterEffects <= 0) {
      death ??= DEATHS[world.random.below(DEATHS.length)];
      world.crashAfterEffects = Infinity;
    }
    if (death === undefined) return whole();
    world.count('crashesInRollback');
    world.count(`crashes-${step}`);
    if (death !== 'before') (death === 'half' ? half : whole)();
    this.#node.crashAndRestart();
    throw new Died();
  }

  #needsRoom(): void {
    if (!this.#node.full) return;
    this.#node.world.count('rollbacksWithoutRoom');
    throw new NostosError('DISK_FULL', 'there is no room');
  }

  /** Time passes; a process that is gone, or replaced, never hears that it has. */
  #wait(ms: number): Promise<void> {
    const { world } = this.#node;
    return new Promise((resolve) => {
      const on = (): void => {
        if (!this.#isAlive) return;
        if (this.#node.isPaused) return world.after(10, on);
        world.isUnsettled = true;
        resolve();
      };
      world.after(ms, on);
    });
  }

  // ─── Journal and outbox ───

  /** The broken one knows only what this process has done. */
  #loadJournal(): Journal {
    const { journal } = this.#directory;
    if (!this.#breaks('planRecomputed') || this.#journal !== undefined) return journal;
    const { intent: _, ...rest } = journal;
    return rest;
  }

  #saveJournal(journal: Journal): void {
    const { directory } = this.#store;
    this.#change(
      'journal',
      () => {
        this.#needsRoom();
        directory.replaceJournal(journal);
      },
      () => directory.replaceJournalHalfway(journal),
    );
    this.#journal = journal;
    this.#node.world.trace(() => `${this.#node.name}: its rollback is ${journal.intent?.state}`);
  }

  #outbox(): Outbox {
    const put = (notice: RollbackNotice): void => {
      if (this.#breaks('noOutbox')) return void this.#tell(notice).catch(() => {});
      const { outbox } = this.#directory;
      this.#change('outbox-put', () => {
        this.#needsRoom();
        outbox.set(notice.key, notice);
      });
    };
    return {
      put,
      keys: () => [...this.#directory.outbox.keys()],
      read: (key) => this.#directory.outbox.get(key)!,
      remove: (key) => {
        const { outbox } = this.#directory;
        this.#change('outbox-remove', () => void outbox.delete(key));
      },
    };
  }

  async #tell(notice: RollbackNotice): Promise<void> {
    const { world } = this.#node;
    if (!this.#isAlive) throw new Died();
    if (world.sinkFails()) {
      world.count('noticesNotTaken');
      throw new Error('nobody takes the notice');
    }
    this.#change('told', () => void world.told.add(notice.key));
  }

  // ─── Host ───

  #host(): RollbackHost {
    return {
      look: () => this.#look(),
      freeze: () => this.#look(),
      preserve: (plan) => this.#preserve(plan),
      recover: (plan) => this.#recover(plan),
      rejoin: () => this.#wait(1),
    };
  }

  async #look(): Promise<Frozen> {
    await this.#wait(1);
    const store = this.#store;
    store.durable = store.end.lsn;
    store.keptWatermark = store.watermark;
    const { term, lsn } = store.end;
    return { frontier: { term, lsn }, watermark: store.watermark, generation: store.generation };
  }

  async #preserve(plan: Plan): Promise<PreservedFile> {
    const { files } = this.#directory;
    const { common, frontier } = plan;
    await this.#wait(1 + this.#node.world.random.below(5));
    const known = files.get(plan.id);
    if (known?.state !== 'whole') {
      const records = this.#store
        .above(common.lsn)
        .filter(({ lsn }) => lsn <= frontier.lsn)
        .map((record) => ({ record, acknowledged: this.#isAcknowledged(record) }));
      if (records.length !== frontier.lsn - common.lsn)
        throw new NostosError('TAIL_READ_FAILED', `the log has ${records.length} records above ${common.lsn}`);
      let file: SimFile = { records, state: 'temporary', synced: false };
      const step = (name: RollbackStep, next: Partial<SimFile>): void =>
        this.#change(name, () => void files.set(plan.id, (file = { ...file, ...next })));
      this.#needsRoom();
      step('file-begin', {});
      await this.#wait(1 + this.#node.world.random.below(10));
      this.#needsRoom();
      if (!this.#breaks('fileNotSynced')) step('file-sync', { synced: true });
      step('file-link', { state: 'whole' });
    } else this.#node.world.count('filesUsedAgain');
    const { records } = files.get(plan.id)!;
    return {
      ...{ path: plan.id, digest: '', bytes: records.length, records: records.length },
      acknowledged: records.filter(({ acknowledged }) => acknowledged).length,
    };
  }

  #isAcknowledged({ kind, lsn }: SimRecord): boolean {
    return this.#breaks('acknowledgedByW') ? lsn <= this.#store.watermark : kind === 'local';
  }

  async #recover({ id, common }: Plan): Promise<void> {
    const store = this.#store;
    await this.#wait(1);
    if (common.lsn >= store.end.lsn) return;
    const target = store.pointAt(common.lsn as Lsn);
    if (Buffer.from(target.hash).toString('hex') !== common.hash)
      throw new NostosError('RECOVER_FAILED', `LSN ${common.lsn} is another record`);
    if (this.#breaks('cutBeforeTenants')) await this.#cut(target, id);
    for (const tenant of store.tenants.all) {
      if (tenant.position.lsn <= target.lsn) continue;
      this.#needsRoom();
      if (!samePoint(tenant.position, target)) this.#change('undo', () => tenant.undoTo(target));
      this.#node.world.count('tenantsUndone');
      await this.#wait(1);
      if (!this.#breaks('undoNotDurable')) this.#change('undo-checkpoint', () => tenant.checkpoint());
    }
    await this.#cut(target, id);
  }

  /** From the highest down: a crash in between leaves a longer prefix. */
  async #cut(target: ChainPoint, plan: string): Promise<void> {
    const store = this.#store;
    while (store.end.lsn > target.lsn) {
      const to = target.lsn + this.#node.world.random.below(store.end.lsn - target.lsn);
      this.#change('cut', () => this.#node.drop(to, plan));
      await this.#wait(1);
    }
  }
}
