/**
 * One node of a simulated group: the machine of replication on a store that may lose power, and what performs its effects:
 * tenants, writers, fsyncs, rollbacks, restores.
 */
import { assert } from '../base/assert.ts';
import type { BootId, Lsn, StoreId } from '../base/brands.ts';
import { NO_LSN } from '../base/brands.ts';
import type { Effect, GroupEvent, StopReason } from '../replication/effects.ts';
import { GroupMachine } from '../replication/group-machine.ts';
import type { Instant } from '../replication/lease.ts';
import { holdsDurably } from '../replication/store-view.ts';
import { Waiters } from '../replication/waiters.ts';
import { SimRollback } from './group-rollback.ts';
import type { SimRecord } from './group-store.ts';
import { SimStore } from './group-store.ts';
import { TENANTS, tenantOf, type SimTenant } from './group-tenants.ts';
import { Violation } from './group-violation.ts';
import type { Payload, World } from './group-world.ts';

export class SimNode {
  readonly world: World;
  readonly index: number;
  store: SimStore;
  readonly formerStores: StoreId[] = [];
  machine!: GroupMachine<Payload>;
  readonly waiters = new Waiters<SimRecord>();
  isUp = false;
  /** Whether it should be a member. */
  joins = true;
  full = false;
  /** Each opening of its store has another number. */
  boots = 0;
  clockRate = 1;
  wallOffsetMs = 1_000_000;
  syncHeld = false;
  /** By tenant, of this reign: the last quorum write, and the last `local` one that was answered. */
  readonly lastQuorum: Lsn[] = Array.from({ length: TENANTS }, () => NO_LSN);
  readonly lastLocal: Lsn[] = Array.from({ length: TENANTS }, () => NO_LSN);
  /** It has begun a reign, so that a higher W is a commit and not hearsay. */
  reigns = false;
  lastStop: StopReason | undefined;
  #openedMs = 0;
  #pausedUntilMs = 0;
  #inbox: GroupEvent<Payload>[] = [];
  #syncing = false;
  #tickAtMs = Infinity;
  #performing = false;
  #rollback!: SimRollback;
  /** A rollback of the last process is brought to its end first. */
  #isHeld = false;
  #hasBegun = false;

  constructor(world: World, index: number) {
    this.world = world;
    this.index = index;
    this.store = new SimStore(world.nextStore());
  }

  get name(): string {
    return `n${this.index}`;
  }

  get now(): Instant {
    const sinceMs = (this.world.nowMs - this.#openedMs) * this.clockRate;
    return { monotonicMs: sinceMs, wallMs: sinceMs + this.wallOffsetMs };
  }

  get isPaused(): boolean {
    return this.#pausedUntilMs > this.world.nowMs;
  }

  open(): void {
    this.isUp = true;
    this.boots += 1;
    this.#openedMs = this.world.nowMs;
    [this.#inbox, this.#syncing, this.#tickAtMs, this.reigns] = [[], false, Infinity, false];
    this.#hasBegun = false;
    const boot = (this.index.toString(16) + this.boots.toString(16).padStart(15, '0')).padEnd(32, '0') as BootId;
    const { store } = this.store;
    const { generation } = this.store;
    this.machine = new GroupMachine({ generation, store, boot }, this.store, this.world.options, this.store.newest);
    this.world.trace(() => `${this.name} opens its store: W ${this.store.watermark}, ${this.#logText()}`);
    this.lastQuorum.fill(NO_LSN);
    this.lastLocal.fill(NO_LSN);
    this.world.oracle.tenantsOpen(this.name, this.store);
    this.#bringUpSoon(this.world.random.below(20));
    this.#rollback = new SimRollback(this);
    this.#isHeld = this.#rollback.isUnderWay;
    if (this.#isHeld) this.world.count('rollbacksResumed');
    this.#rollback.settle(() => this.#begin());
    if (!this.#isHeld) this.#begin();
  }

  #begin(): void {
    if (this.#hasBegun) return;
    [this.#isHeld, this.#hasBegun] = [false, true];
    if (this.full) this.step({ kind: 'eligible', eligible: false });
    this.step({ kind: 'tick' });
  }

  crash(keep?: number): void {
    if (!this.isUp) return;
    this.#end();
    const lost = this.store.crash(this.world.random, keep);
    this.world.oracle.torn(this.name, this.store.store, lost);
    this.world.trace(() => `${this.name} crashes: ${this.#logText()}`);
  }

  /** The process is gone; writers that wait never hear of it. */
  #end(): void {
    this.isUp = false;
    this.boots += 1;
    this.#pausedUntilMs = 0;
    this.waiters.end();
    this.world.disconnect(this.index);
  }

  crashAndRestart(afterMs = this.world.restartMs): void {
    this.crash();
    this.restart(afterMs);
  }

  restart(afterMs: number): void {
    this.world.after(afterMs, () => this.isUp || this.open());
  }

  /** SIGSTOP; SIGCONT comes by itself. */
  pause(ms: number): void {
    this.#pausedUntilMs = Math.max(this.#pausedUntilMs, this.world.nowMs + ms);
    this.world.after(ms, () => this.#continue());
  }

  #continue(): void {
    if (this.isPaused) return;
    const inbox = this.#inbox;
    this.#inbox = [];
    for (const event of inbox) this.step(event);
  }

  /** The disk is another one, or the directory was given up: this node is a newcomer. */
  renew(): void {
    assert(!this.isUp, 'only a stopped node gets a new store');
    const { newest, store } = this.store;
    const keepsId = this.world.options.broken === 'noStoreId';
    this.store = new SimStore(keepsId ? store : this.world.nextStore(), this.world.current.record.generation);
    if (!keepsId) this.formerStores.push(store);
    this.store.newest = newest;
  }

  /** Network restore: the committed log of another node, as a new store. False where nobody has one. */
  restore(): boolean {
    const { generation } = this.world.current.record;
    const providers = this.world.nodes.filter(
      (node) => node !== this && node.isUp && node.store.generation === generation,
    );
    const provider = providers.toSorted((a, b) => b.store.watermark - a.store.watermark)[0];
    if (provider === undefined && this.store.generation !== generation) return false;
    this.world.oracle.setAside(this.store);
    this.renew();
    if (provider === undefined) return true;
    const { store, newest } = this.store;
    this.store = provider.store.committedCopy(store);
    this.store.newest = newest;
    this.world.count('restores');
    return true;
  }

  step(event: GroupEvent<Payload>): void {
    if (!this.isUp || this.#isHeld) return;
    if (this.isPaused) return void this.#inbox.push(event);
    assert(!this.#performing, 'a step ends before the next one begins');
    const boot = this.boots;
    if (event.kind === 'read-answered' || event.kind === 'cas-answered') this.#keepNewest(event);
    this.#performing = true;
    try {
      for (const effect of this.machine.step(event, this.now)) {
        if (--this.world.crashAfterEffects <= 0) {
          this.world.crashAfterEffects = Infinity;
          this.world.count('crashesBetweenEffects');
          this.crashAndRestart();
        }
        if (this.boots !== boot) return;
        this.#perform(effect);
      }
    } finally {
      this.#performing = false;
    }
    if (this.boots !== boot) return;
    const { role } = this.machine;
    this.reigns = role === 'starting' || role === 'leading' || role === 'draining';
    this.#scheduleTick();
  }

  /** The adapter's side: what was read is on disk before anything is done on it. */
  #keepNewest(event: Extract<GroupEvent<Payload>, { kind: 'read-answered' | 'cas-answered' }>): void {
    const seen = event.kind === 'read-answered' ? event.current : event.result.ok ? undefined : event.result.current;
    if (seen !== undefined && seen.version > (this.store.newest?.version ?? 0)) this.store.newest = seen;
    const own = event.kind === 'cas-answered' && event.result.ok ? event.result.version : 0;
    if (own > (this.store.newest?.version ?? 0)) this.store.newest = this.world.history[own - 1];
  }

  #scheduleTick(): void {
    const atMs = this.#openedMs + Math.ceil(this.machine.wakeAtMs / this.clockRate) + 1;
    if (atMs >= this.#tickAtMs || atMs === Infinity) return;
    this.#tickAtMs = atMs;
    const boot = this.boots;
    this.world.after(atMs - this.world.nowMs, () => {
      if (this.boots !== boot || this.#tickAtMs !== atMs) return;
      this.#tickAtMs = Infinity;
      this.step({ kind: 'tick' });
    });
  }

  #later(ms: number, event: GroupEvent<Payload>): void {
    const boot = this.boots;
    this.world.after(ms, () => this.boots === boot && this.step(event));
  }

  #perform(effect: Effect<Payload>): void {
    const { world, store } = this;
    switch (effect.kind) {
      case 'read':
        return world.read(this, effect.request);
      case 'cas':
        return world.compareAndSet(this, effect.request, effect.expectedVersion, effect.record);
      case 'send':
        return world.send(this.index, effect.channel, effect.to, effect.message);
      case 'feed':
        return this.#feed(effect);
      case 'close':
        return world.close(this.index, effect.channel);
      case 'start-term':
        world.oracle.reignBegins(this.name, store, effect.term);
        world.count('reigns');
        world.trace(() => `${this.name} begins term ${effect.term}: ${this.#logText()}`);
        this.reigns = true;
        return this.#append(store.make(effect.term, world.nextId(), 'start', effect.watermark));
      case 'append':
        return this.#appendReceived(effect.payload);
      case 'watermark':
        return this.#watermark(effect.lsn);
      case 'rollback':
        return this.#rollBack(effect);
      case 'lead':
        return world.count('leads');
      case 'drain':
        return this.#later(2, { kind: 'drained' });
      case 'resume':
        return world.count('handoversGivenUp');
      case 'step-down':
        world.count(effect.reason);
        world.trace(() => `${this.name} steps down from term ${effect.term}: ${effect.reason}`);
        this.lastQuorum.fill(NO_LSN);
        this.lastLocal.fill(NO_LSN);
        // The broken rule keeps its writers waiting for their LSN, whoever's record that will be.
        if (world.options.broken !== 'resolveByLsn') this.waiters.end();
        return this.#later(3, { kind: 'stepped-down' });
      case 'members-changed':
        return world.count(effect.ok ? 'membersChanged' : 'membersRefused');
      case 'stop':
        return this.#stopped(effect.reason, effect.details);
      default:
        effect satisfies never;
    }
  }

  #feed({ channel, term, from, to, watermark }: Extract<Effect<Payload>, { kind: 'feed' }>): void {
    const { store, world } = this;
    if (from <= store.anchor.lsn) {
      world.close(this.index, channel);
      return this.#later(0, { kind: 'channel-closed', channel });
    }
    const last = from + world.random.below(to - from + 1);
    const payload = store.slice(from, last);
    const [first, final] = [payload[0]!, payload.at(-1)!];
    const previous = store.pointAt((first.lsn - 1) as Lsn);
    const message = {
      kind: 'records',
      generation: store.generation,
      term,
      watermark,
      previous,
      last: final,
      payload,
    } as const;
    world.send(this.index, channel, undefined, message);
    this.#later(0, { kind: 'fed', channel, to: last as Lsn });
  }

  #append(record: SimRecord): void {
    this.world.oracle.appended(record);
    this.store.append(record);
    this.#sync();
    this.#later(0, { kind: 'progress' });
  }

  #appendReceived(payload: Payload): void {
    if (this.full) {
      this.world.count('appendsFailed');
      return this.#later(0, { kind: 'append-failed' });
    }
    for (const record of payload) {
      this.world.oracle.appended(record);
      this.store.append(record);
    }
    const last = payload.at(-1)!;
    this.world.trace(() => `${this.name} takes records up to ${last.lsn} of term ${last.term}`);
    this.#sync();
  }

  #sync(): void {
    if (this.#syncing || this.syncHeld) return;
    this.#syncing = true;
    const { store, boots } = this;
    const target = store.end.lsn;
    this.world.after(this.world.syncMs(this.index), () => this.#synced(store, boots, target));
  }

  #synced(store: SimStore, boots: number, target: Lsn): void {
    if (this.boots !== boots || this.store !== store) return;
    // The thread of a stopped process notices when it goes on.
    if (this.isPaused) return this.world.after(10, () => this.#synced(store, boots, target));
    this.#syncing = false;
    store.durable = Math.max(store.durable, Math.min(target, store.end.lsn)) as Lsn;
    if (this.world.broken === 'commitAtSync' && this.machine.acceptsWrites) this.#give(store.durable);
    this.#settle();
    this.step({ kind: 'progress' });
    if (this.isUp && store.end.lsn > store.durable) this.#sync();
  }

  /** Goes on with the fsync that a script held back. */
  releaseSync(): void {
    this.syncHeld = false;
    this.#sync();
  }

  #watermark(lsn: Lsn): void {
    const { store, world } = this;
    if (this.reigns) {
      world.oracle.commit(this.name, store, store.end.term, lsn);
      world.count('commits');
    } else world.oracle.believes(this.name, store, lsn);
    store.watermark = lsn;
    world.trace(() => `${this.name} raises W to ${lsn}${this.reigns ? ' by a commit' : ''}`);
    if (world.random.chance(0.3)) store.keptWatermark = lsn;
    this.#settle();
    // On a primary that serves, who has written puts it into the tenant; elsewhere it is given to them.
    if (this.#serves) store.applied = lsn;
    else this.#bringUpSoon(1);
  }

  get #serves(): boolean {
    return this.machine.role === 'leading' || this.machine.role === 'draining';
  }

  #bringUpSoon(ms: number): void {
    const { boots, store, world } = this;
    world.after(ms, () => {
      if (this.boots !== boots || this.store !== store || this.#serves || store.applied >= store.watermark) return;
      this.#give(world.broken === 'replayToEnd' ? store.end.lsn : store.watermark);
      store.applied = store.watermark;
      this.step({ kind: 'progress' });
    });
  }

  /** Gives each tenant what it lacks up to there. */
  #give(to: Lsn): void {
    for (const [index, tenant] of this.store.tenants.all.entries()) this.#giveOne(tenant, index, to);
  }

  #giveOne(tenant: SimTenant, index: number, to: Lsn): void {
    const { store, world } = this;
    const from = Math.max(tenant.position.lsn, store.tenants.durable) + 1;
    for (const record of store.slice(from, to)) {
      if (tenantOf(record) !== index) continue;
      world.oracle.applies(this.name, store, record, this.reigns && record.lsn <= this.lastLocal[index]!);
      tenant.apply(record);
    }
    tenant.stale = false;
  }

  #settle(): void {
    const { watermark, durable } = this.store;
    for (const record of this.waiters.settle(watermark, durable, this.machine.holdsLease(this.now))) {
      const { generation, term } = this.world.current.record;
      const isOver = generation === record.generation && term !== record.term; // an operator waits for no lease
      if (record.lsn > watermark && this.world.leasesHold && isOver)
        throw new Violation(`G7: ${this.name} acknowledges the local LSN ${record.lsn} after its term has ended`);
      if (!this.#commit(record)) continue;
      this.world.oracle.answered(this.name, this.store.store, record);
      this.world.count(record.kind === 'local' ? 'answersLocal' : 'answersQuorum');
    }
  }

  /** SQLite's COMMIT of what the log has. Where it fails, the write has succeeded all the same, and the file catches up. */
  #commit(record: SimRecord): boolean {
    const { store, world } = this;
    const index = tenantOf(record);
    const tenant = store.tenants.of(record);
    if (tenant === undefined || index === undefined) return true;
    const isLocal = record.kind === 'local';
    if (isLocal) this.lastLocal[index] = record.lsn;
    if (tenant.stale || tenant.position.lsn >= record.lsn) return true;
    world.oracle.applies(this.name, store, record, isLocal);
    if (!world.commitFails(this.index)) {
      tenant.apply(record);
      return true;
    }
    world.count('commitsFailed');
    tenant.stale = true;
    const { boots } = this;
    world.after(1 + world.random.below(10), () => {
      if (this.boots !== boots || this.store !== store || !tenant.stale) return;
      this.#giveOne(tenant, index, Math.max(store.watermark, this.lastLocal[index]!) as Lsn);
    });
    if (world.broken !== 'commitFailureTold') return true;
    world.oracle.refused(record);
    return false;
  }

  #rollBack(effect: Extract<Effect<Payload>, { kind: 'rollback' }>): void {
    // A new primary that drops its own tail does so before it goes on: the rule that is broken there.
    if (this.world.options.broken === 'takerTruncates' && this.machine.role === 'starting')
      return this.drop(effect.to.lsn);
    this.#rollback.run(effect, (ok) => {
      if (ok) this.world.count('rollbacks');
      if (this.world.current.record.primary?.store !== effect.primary.store) this.world.count('rollbacksOvertaken');
      this.step({ kind: 'rolled-back', ok });
    });
  }

  /** Records above `to` go from the log; `plan`: the rollback that has them in its file. */
  drop(to: number, plan?: string): void {
    const { world, store } = this;
    if (this.reigns && world.options.broken === undefined)
      throw new Violation(`G1: ${this.name} drops records while it leads`);
    const inSync = world.current.record.inSync.includes(store.store);
    world.oracle.drops(this.name, store, to, inSync, plan);
    world.trace(() => `${this.name} drops ${store.end.lsn - to} records above ${to}: ${this.#logText()}`);
    store.cut(to);
  }

  #stopped(reason: StopReason, details: object): void {
    const { world } = this;
    this.lastStop = reason;
    world.count(reason);
    world.trace(() => `${this.name} stops: ${reason} ${JSON.stringify(details)}`);
    if (reason === 'log-failed' || reason === 'superseded') return world.after(5, () => this.crashAndRestart(5));
    if (reason === 'network-restore' || reason === 'lost-records' || reason === 'generation') {
      const { boots } = this;
      return world.after(5, () => {
        if (this.boots !== boots) return;
        this.crash(this.store.end.lsn);
        this.restart(this.restore() ? 20 : 200);
      });
    }
    if (reason === 'coordinator-regressed') return;
    throw new Violation(`${this.name} refuses to go on: ${reason} ${JSON.stringify(details)}`);
  }

  // ─── What clients do ───

  write(wanted: 'quorum' | 'local' = 'quorum'): SimRecord | undefined {
    if (!this.isUp || this.isPaused || !this.machine.acceptsWrites) return undefined;
    if (this.full) {
      this.step({ kind: 'log-failed' });
      return undefined;
    }
    const { store, world } = this;
    const id = world.nextId();
    const tenant = id % TENANTS;
    // The open transaction of a tenant takes the strictest durability in it.
    const durability = this.lastQuorum[tenant]! > store.watermark ? 'quorum' : wanted;
    const record = store.make(store.end.term, id, durability, store.watermark);
    if (durability === 'quorum') this.lastQuorum[tenant] = record.lsn;
    this.waiters.add(record.lsn, durability, record);
    world.trace(
      () => `${this.name} writes record ${record.id} at ${record.lsn} in term ${record.term} (${durability})`,
    );
    world.count(durability);
    this.#append(record);
    return record;
  }

  /** A read under the lease; the process may be stopped for a while between its snapshot and its answer. */
  read(pauseMs: number): void {
    if (!this.isUp || this.isPaused) return;
    const { world, store } = this;
    const index = world.random.below(TENANTS);
    const tenant = store.tenants.all[index]!;
    if (tenant.stale) return;
    const seen = tenant.last;
    const before = Math.max(world.oracle.answeredIn(store, index), this.lastLocal[index]!);
    const answer = (): void => {
      if (!this.machine.holdsLease(this.now)) return;
      world.oracle.read(this.name, seen, before);
      world.count('leasedReads');
    };
    if (pauseMs === 0) return answer();
    const { boots } = this;
    this.pause(pauseMs);
    world.after(pauseMs, () => this.boots === boots && answer());
  }

  /** Tenants are checkpointed, and the log forgets what none of them needs. */
  prune(lsn: number): void {
    const { store } = this;
    store.tenants.checkpoint(store.applied);
    store.prune(Math.min(lsn, store.tenants.durable));
  }

  /** Whether each tenant has been given all that is committed up to there. */
  tenantsHave(lsn: number): boolean {
    return this.store.applied >= lsn && this.store.tenants.all.every(({ stale }) => !stale);
  }

  /** Whether the store has what the record says is committed. */
  get holdsCommitted(): boolean {
    return holdsDurably(this.store, this.world.current.record.committed);
  }

  #logText(): string {
    const { store } = this;
    const tail = store.above(Math.max(store.anchor.lsn, store.end.lsn - 8));
    return `log ..${tail.map((record) => `${record.lsn}:${record.term}.${record.id}`).join(' ')} (fsynced ${store.durable}, W ${store.watermark})`;
  }
}
