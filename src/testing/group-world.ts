/**
 * A group in virtual time: the real machines on simulated stores, a network, a coordinator and clocks. Nothing goes wrong
 * here by itself; `group-simulation.ts` does that at random, `group-scenarios.ts` by script.
 */
import { assert } from '../base/assert.ts';
import type { StoreId, Term } from '../base/brands.ts';
import { toGeneration } from '../base/brands.ts';
import type { SeededRandom } from '../base/random.ts';
import { seededRandom } from '../base/random.ts';
import type { CasResult, GroupRecord, Versioned } from '../coordination/coordinator.ts';
import type { GroupEvent } from '../replication/effects.ts';
import type { ChannelId, Message } from '../replication/messages.ts';
import type { GroupLimits, GroupOptions } from '../replication/options.ts';
import { DEFAULT_GROUP_LIMITS } from '../replication/options.ts';
import { positionAt } from '../replication/store-view.ts';
import { isUnderWay } from '../rollback/run/runner.ts';
import type { Broken } from './group-broken.ts';
import { isBrokenRule } from './group-broken.ts';
import { GroupOracle } from './group-oracle.ts';
import { SimNode } from './group-node.ts';
import type { Death, RollbackStep } from './group-rollback.ts';
import type { SimRecord } from './group-store.ts';
import { GENERATION } from './group-store.ts';
import { Violation } from './group-violation.ts';

export type Payload = readonly SimRecord[];

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
      ({ store }) =>
        record.members.includes(store.store) &&
        store.generation === record.generation &&
        // What is left of a tail that is being dropped is no history; started once, the node ends that.
        !isUnderWay(store.directory.journal.intent),
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
        ...record,
        ...{ generation, term, primary: null, inSync: [store.store], minInSync: 1 },
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
