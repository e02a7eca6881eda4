/**
 * A group in virtual time: the real machines on simulated stores, a network, a coordinator and clocks. Nothing goes wrong
 * here by itself; `group-simulation.ts` does that at random, `group-scenarios.ts` by script.
 */
import { assert } from '../base/assert.ts';
import type { BootId, Lsn, StoreId, Term } from '../base/brands.ts';
import { NO_LSN, toGeneration } from '../base/brands.ts';
import type { SeededRandom } from '../base/random.ts';
import { seededRandom } from '../base/random.ts';
import type { CasResult, GroupRecord, Versioned } from '../coordination/coordinator.ts';
import type { Effect, GroupEvent, StopReason } from '../replication/effects.ts';
import { GroupMachine } from '../replication/group-machine.ts';
import type { Instant } from '../replication/lease.ts';
import type { ChannelId, Message } from '../replication/messages.ts';
import type { GroupLimits, GroupOptions } from '../replication/options.ts';
import { DEFAULT_GROUP_LIMITS } from '../replication/options.ts';
import { holdsDurably, positionAt } from '../replication/store-view.ts';
import { Waiters } from '../replication/waiters.ts';
import type { Broken } from './group-broken.ts';
import { isBrokenRule } from './group-broken.ts';
import { GroupOracle } from './group-oracle.ts';
import { SimRollback, type Death, type RollbackStep } from './group-rollback.ts';
import type { SimRecord } from './group-store.ts';
import { GENERATION, SimStore } from './group-store.ts';
import { TENANTS, tenantOf, type SimTenant } from './group-tenants.ts';
import { Violation } from './group-violation.ts';

type Payload = readonly SimRecord[];

export const SIM_LIMITS = {
  ...DEFAULT_GROUP_LIMITS,
  leaseMs: 1_000,
  renewIntervalMs: 300,
  coordinatorPollMs: 120,
  coordinatorRetryMs: 60,
  ackTimeoutMs: 250,
  streamHeartbeatMs: 100,
  streamTimeoutMs: 400,
  reopenMs: 10,
  streamWindowRecords: 50,
  streamBatchRecords: 8,
  streamsMax: 8,
  probeWaitMs: 40,
  termStartTimeoutMs: 2_000,
  commitStallMs: 2_000,
  candidateBackoffMs: 200,
  candidateBackoffMaxMs: 2_000,
  handoverTimeoutMs: 400,
};

export const COORDINATOR_TIMEOUT_MS = 150;
/** Within this, a group that is left alone commits again. */
export const QUIET_BOUND_MS = 20 * SIM_LIMITS.leaseMs;

export interface WorldOptions {
  readonly seed: number;
  readonly nodes: number;
  readonly minInSync?: number;
  readonly broken?: Broken;
  /** Replicas that are not members at first. */
  readonly guests?: number;
  /** Machines that have no process at first, and never become members. */
  readonly spares?: number;
  readonly limits?: Partial<GroupLimits>;
  readonly traced?: boolean;
}

/** What happens to one message. */
export interface Fate {
  readonly delayMs: number;
  readonly ordered: boolean;
  readonly copies: number;
  /** It goes to this node instead. */
  readonly astray?: number;
}

export interface Envelope {
  readonly from: number;
  readonly to: number;
  readonly channel: ChannelId;
  readonly message: Message<Payload>;
}

/** What happens to one request to the coordinator. `late`: performed so long after it was given up. */
export interface RequestFate {
  readonly kind: 'normal' | 'lost' | 'reply-lost' | 'late';
  readonly delayMs: number;
  readonly lateMs?: number;
}

export interface CasRequest {
  readonly node: number;
  readonly expectedVersion: number;
  readonly record: GroupRecord;
}

interface Channel {
  /** Opener and the other side: node and boot. */
  readonly ends: { node: number; boot: number; closed: boolean; lastAtMs: number }[];
}

/** A binary heap of what is to happen, by time and then by the order in which it was asked for. */
class Agenda {
  #heap: { atMs: number; order: number; run: () => void }[] = [];
  #order = 0;

  add(atMs: number, run: () => void): void {
    const heap = this.#heap;
    const item = { atMs, order: this.#order++, run };
    let at = heap.length;
    heap.push(item);
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!before(item, heap[parent]!)) break;
      heap[at] = heap[parent]!;
      at = parent;
    }
    heap[at] = item;
  }

  get nextMs(): number {
    return this.#heap[0]?.atMs ?? Infinity;
  }

  take(): () => void {
    const heap = this.#heap;
    const first = heap[0]!;
    const last = heap.pop()!;
    if (heap.length === 0) return first.run;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && before(heap[child + 1]!, heap[child]!)) child += 1;
      if (!before(heap[child]!, last)) break;
      heap[at] = heap[child]!;
      at = child;
    }
    heap[at] = last;
    return first.run;
  }
}

function before(a: { atMs: number; order: number }, b: { atMs: number; order: number }): boolean {
  return a.atMs < b.atMs || (a.atMs === b.atMs && a.order < b.order);
}

const TRACE_LINES = 80;
/** Events within one millisecond. */
const STILL_EVENTS_MAX = 10_000;

export class World {
  readonly random: SeededRandom;
  readonly options: GroupOptions;
  readonly oracle = new GroupOracle();
  readonly nodes: SimNode[] = [];
  readonly counts: Record<string, number> = {};
  nowMs = 0;
  /** The coordinator, and all that it ever held. */
  readonly history: Versioned[] = [];
  /** Replaced by those who make things go wrong. */
  fate: (envelope: Envelope) => Fate | 'lost' = () => ({ delayMs: 1, ordered: true, copies: 1 });
  requestFate: (node: number, cas: CasRequest | undefined) => RequestFate = () => ({ kind: 'normal', delayMs: 1 });
  syncMs: (node: number) => number = () => 1;
  /** Whether SQLite refuses to COMMIT what a primary has in its log. */
  commitFails: (node: number) => boolean = () => false;
  rollbackDies: (node: SimNode, step: RollbackStep) => Death | undefined = () => undefined;
  /** Whether nobody takes a notice of a rollback just now. */
  sinkFails: () => boolean = () => false;
  /** Keys of the notices that were taken. */
  readonly told = new Set<string>();
  /** What a rollback ran into, which runs beside the agenda. */
  violation: Violation | undefined;
  /** A rollback has something to do before the next event. */
  isUnsettled = false;
  readonly broken: Broken | undefined;
  /** After so many effects, the node that performs them crashes. */
  crashAfterEffects = Infinity;
  restartMs = 30;
  /** Whether clocks and waits are such that leases can be relied on. */
  leasesHold = true;
  readonly #agenda = new Agenda();
  readonly #channels = new Map<ChannelId, Channel>();
  readonly #trace: string[] = [];
  readonly #traced: boolean;
  #ids = 0;
  #stillEvents = 0;
  #stores = 0;

  constructor(options: WorldOptions) {
    const { seed, nodes, minInSync = Math.floor(nodes / 2) + 1, broken, guests = 0, spares = 0, limits } = options;
    this.random = seededRandom(seed);
    this.broken = broken;
    this.options = { ...SIM_LIMITS, ...limits, ...(isBrokenRule(broken) ? { broken } : {}) };
    this.#traced = options.traced ?? false;
    for (let index = 0; index < nodes + guests + spares; index++) this.nodes.push(new SimNode(this, index));
    const members = this.nodes.slice(0, nodes).map((node) => node.store.store);
    this.history.push({
      version: 1,
      record: {
        generation: GENERATION,
        term: 0 as Term,
        primary: null,
        members,
        inSync: members,
        minInSync,
        renewal: 0,
        committed: null,
        nonce: '0'.repeat(32),
      },
    });
    for (const node of this.nodes) {
      node.joins = node.index < nodes + guests;
      if (node.joins) node.open();
    }
  }

  get current(): Versioned {
    return this.history.at(-1)!;
  }

  get traceLines(): readonly string[] {
    return this.#trace;
  }

  nextId(): number {
    return ++this.#ids;
  }

  nextStore(): StoreId {
    return (++this.#stores).toString(16).padStart(32, '0') as StoreId;
  }

  count(name: string): void {
    this.counts[name] = (this.counts[name] ?? 0) + 1;
  }

  trace(text: () => string): void {
    if (!this.#traced) return;
    this.#trace.push(`${String(this.nowMs).padStart(6)} ${text()}`);
    if (this.#trace.length > TRACE_LINES) this.#trace.shift();
  }

  after(ms: number, run: () => void): void {
    this.#agenda.add(this.nowMs + Math.max(0, Math.ceil(ms)), run);
  }

  async run(ms: number): Promise<void> {
    const endMs = this.nowMs + ms;
    if (this.isUnsettled) await this.#settle();
    while (this.#agenda.nextMs <= endMs) {
      this.#advance();
      if (this.isUnsettled) await this.#settle();
    }
    this.nowMs = endMs;
  }

  /** Runs until it holds; false where it does not within that time. */
  async until(holds: () => boolean, ms: number): Promise<boolean> {
    const endMs = this.nowMs + ms;
    if (this.isUnsettled) await this.#settle();
    while (!holds()) {
      if (this.#agenda.nextMs > endMs) return false;
      this.#advance();
      if (this.isUnsettled) await this.#settle();
    }
    return true;
  }

  /** Rollbacks are asynchronous: they get as far as they can before time goes on, so that a seed replays. */
  async #settle(): Promise<void> {
    while (this.isUnsettled) {
      this.isUnsettled = false;
      await new Promise((resolve) => void setImmediate(resolve));
    }
    if (this.violation !== undefined) throw this.violation;
  }

  #advance(): void {
    this.#stillEvents = this.#agenda.nextMs > this.nowMs ? 0 : this.#stillEvents + 1;
    if (this.#stillEvents > STILL_EVENTS_MAX)
      throw new Violation('time stands still: somebody repeats without a pause');
    this.nowMs = this.#agenda.nextMs;
    this.#agenda.take()();
  }

  // ─── Network ───

  send(from: number, channel: ChannelId, to: StoreId | undefined, message: Message<Payload>): void {
    const sender = this.nodes[from]!;
    if (to !== undefined) {
      const there = this.nodes.filter((node) => node.store.store === to && node.index !== from && node.isUp);
      const target = there[there.length > 1 ? this.random.below(there.length) : 0];
      if (target === undefined) return this.after(1, () => sender.step({ kind: 'channel-closed', channel }));
      this.#channels.set(channel, {
        ends: [
          { node: from, boot: sender.boots, closed: false, lastAtMs: 0 },
          { node: target.index, boot: target.boots, closed: false, lastAtMs: 0 },
        ],
      });
    }
    const known = this.#channels.get(channel);
    const own = known?.ends.find((end) => end.node === from && end.boot === sender.boots);
    const peer = known?.ends.find((end) => end !== own);
    if (known === undefined || own === undefined || peer === undefined || own.closed) return;
    const envelope: Envelope = { from, to: peer.node, channel, message };
    const fate = this.fate(envelope);
    if (fate === 'lost') return;
    for (let copy = 0; copy < fate.copies; copy++) {
      let atMs = this.nowMs + fate.delayMs * (copy + 1);
      if (fate.ordered && copy === 0) peer.lastAtMs = atMs = Math.max(atMs, peer.lastAtMs);
      this.after(atMs - this.nowMs, () => this.deliver(envelope, fate.astray));
    }
  }

  deliver({ channel, to, message }: Envelope, astray?: number): void {
    const known = this.#channels.get(channel);
    if (astray !== undefined) return this.nodes[astray]!.step({ kind: 'message', channel, message });
    const end = known?.ends.find((one) => one.node === to);
    const node = this.nodes[to]!;
    if (end === undefined || end.closed || !node.isUp || node.boots !== end.boot) return;
    node.step({ kind: 'message', channel, message });
  }

  /** One side closes: what is on its way to it is gone, and the other side is told unless that is lost, too. */
  close(from: number, channel: ChannelId): void {
    const known = this.#channels.get(channel);
    if (known === undefined) return;
    for (const end of known.ends) {
      if (end.node === from) end.closed = true;
      else if (!end.closed) this.#tellClosed(from, end, channel);
    }
  }

  #tellClosed(from: number, end: Channel['ends'][number], channel: ChannelId): void {
    const message = { kind: 'lead', generation: GENERATION, term: 0 as Term } as const; // stands for the end of a stream
    const fate = this.fate({ from, to: end.node, channel, message });
    if (fate === 'lost') return;
    this.after(Math.max(fate.delayMs, end.lastAtMs - this.nowMs), () => {
      const node = this.nodes[end.node]!;
      if (end.closed || !node.isUp || node.boots !== end.boot) return;
      end.closed = true;
      node.step({ kind: 'channel-closed', channel });
    });
  }

  /** A process ended: whoever was connected learns of it. */
  disconnect(index: number): void {
    for (const [channel, { ends }] of this.#channels) {
      if (ends.every((end) => end.closed)) this.#channels.delete(channel);
      else if (ends.some((end) => end.node === index && !end.closed)) this.close(index, channel);
    }
  }

  // ─── Coordinator ───

  read(node: SimNode, request: number): void {
    this.#request(node, request, undefined, () => ({ kind: 'read-answered', request, current: this.current }));
  }

  compareAndSet(node: SimNode, request: number, expectedVersion: number, record: GroupRecord): void {
    const cas: CasRequest = { node: node.index, expectedVersion, record };
    this.#request(node, request, cas, () => ({ kind: 'cas-answered', request, result: this.perform(cas) }));
  }

  perform({ node, expectedVersion, record }: CasRequest): CasResult {
    const { current } = this;
    if (current.version !== expectedVersion) {
      if (current.record.nonce === record.nonce) return { ok: true, version: current.version };
      return { ok: false, current };
    }
    assert(record.inSync.length >= record.minInSync, 'an in-sync set below the minimum was written');
    this.#checkSuccession(current.record, record);
    const version = expectedVersion + 1;
    this.history.push({ version, record });
    const shorten = (stores: readonly StoreId[]): string => stores.map((store) => this.nameOf(store)).join();
    this.trace(
      () =>
        `coordinator: n${node} writes version ${version}: term ${record.term} primary ${this.nameOf(record.primary?.store)} ` +
        `inSync ${shorten(record.inSync)} of ${shorten(record.members)} committed ${record.committed?.lsn ?? 0}`,
    );
    return { ok: true, version };
  }

  /** Within a term only its primary writes, and a new one is the next. */
  #checkSuccession(current: GroupRecord, next: GroupRecord): void {
    const same = next.primary?.store === current.primary?.store && next.primary?.boot === current.primary?.boot;
    const follows = next.term === current.term ? same : next.term === current.term + 1;
    const kept = next.term === current.term || next.inSync.every((store) => current.inSync.includes(store));
    if (!follows || (!kept && this.options.broken !== 'anyTakes'))
      throw new Violation(
        `G9: the record of term ${current.term} is followed by one of term ${next.term} that may not`,
      );
    if ((next.committed?.lsn ?? 0) < (current.committed?.lsn ?? 0) && this.options.broken === undefined)
      throw new Violation(`G9: committed falls from ${current.committed?.lsn} to ${next.committed?.lsn}`);
  }

  #request(node: SimNode, request: number, cas: CasRequest | undefined, perform: () => GroupEvent<Payload>): void {
    const boot = node.boots;
    const tell = (event: GroupEvent<Payload>): void => {
      if (node.boots === boot) node.step(event);
    };
    const fate = this.requestFate(node.index, cas);
    this.after(COORDINATOR_TIMEOUT_MS, () => tell({ kind: 'request-failed', request }));
    if (fate.kind === 'lost') return;
    this.after(fate.kind === 'late' ? (fate.lateMs ?? 0) : fate.delayMs, () => {
      const answer = perform();
      if (fate.kind === 'normal') this.after(fate.delayMs, () => tell(answer));
    });
  }

  // ─── For those who look ───

  nameOf(store: StoreId | undefined): string {
    return this.nodes.find((node) => node.store.store === store)?.name ?? `(${Number.parseInt(store ?? '0', 16)})`;
  }

  /** Nodes of the history that is the group's now. */
  get #present(): SimNode[] {
    const { generation } = this.current.record;
    return this.nodes.filter((node) => node.isUp && node.store.generation === generation);
  }

  get leader(): SimNode | undefined {
    const leading = this.#present.filter((node) => node.machine.acceptsWrites);
    return leading.toSorted((a, b) => b.machine.status.term - a.machine.status.term)[0];
  }

  /**
   * `nostos group recover --accept-loss` with the directories of these nodes, by the rule of `node/group-recovery.ts`: none of
   * those in sync is among them, so they are too few to have every committed record, and what they have becomes the history of
   * a new generation. False where that would be refused. The others may live on, and learn of it when they read the record.
   */
  recoverWith(answering: readonly SimNode[]): boolean {
    const { version, record } = this.current;
    const usable = answering.filter(
      ({ store }) => record.members.includes(store.store) && store.generation === record.generation,
    );
    if (usable.length === 0 || usable.some(({ store }) => record.inSync.includes(store.store))) return false;
    for (const node of usable) node.crash();
    const byEnd = (a: SimNode, b: SimNode): number =>
      b.store.end.term - a.store.end.term || b.store.end.lsn - a.store.end.lsn;
    const { store } = usable.toSorted(byEnd)[0]!;
    const seen = usable.map((node) => node.store.newest?.record.term ?? 0);
    const term = (Math.max(record.term, ...seen) + 1) as Term;
    const id = this.nextId();
    const generation = this.broken === 'recoverKeepsGeneration' ? record.generation : toGeneration(hex(id));
    this.oracle.appended(store.beginGeneration(generation, term, id));
    this.oracle.forked(store, record.generation);
    this.trace(() => `an operator goes on with ${this.nameOf(store.store)} from LSN ${store.end.lsn} in term ${term}`);
    this.history.push({
      version: version + 1,
      record: {
        ...{ generation, term, primary: null, members: [store.store], inSync: [store.store], minInSync: 1 },
        ...{ renewal: record.renewal + 1, committed: positionAt(store, store.end.lsn), nonce: hex(id) },
      },
    });
    for (const node of usable) node.restart(this.restartMs);
    return true;
  }

  /** What an operator, or the node itself after a restore, asks for: stores that are no members become some. */
  admit(): void {
    // One that cannot commit may be waiting for just this newcomer.
    const leader = this.#present.find((node) => node.reigns);
    const { members } = this.current.record;
    for (const node of this.nodes) {
      if (leader === undefined || node === leader || !node.isUp || !node.joins) continue;
      const add = node.store.store;
      if (members.includes(add)) continue;
      const remove = node.formerStores.find((store) => members.includes(store));
      leader.step({ kind: 'change-members', change: { add, ...(remove === undefined ? {} : { remove }) } });
    }
  }
}

function hex(id: number): string {
  return id.toString(16).padStart(32, '0');
}

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
