/**
 * The engine of a node in a group: owner of its log, its network and its conversation with the coordinator. It performs
 * what the machines of `replication/` want done, in their order, and tells them what came of it; the node's own thread
 * hears through notices what concerns tenants (`group-member.ts`).
 *
 * | asked of the node's thread | answered by |
 * |---|---|
 * | `lead` | nothing: writes begin there |
 * | `drain` | `drained`, behind the last append that was under way; or nothing, until `resume` or `step-down` |
 * | `step-down` | `steppedDown`, when no transaction is open any more |
 * | `rollback` | `rolledBack` |
 *
 * Appends are written and fsynced at once, and wait for the group: `quorum` until W covers them, `local` while the lease
 * holds no longer than that. Who waits when this node steps down does not know the outcome.
 *
 * A machine lives as long as its boot. After a failed write or fsync the log is opened again, under a new boot, with a new
 * machine, `RESTART_MS` later; so it is when anything throws that must not (`failed`). After `rejoinTotalAttemptsMax` times
 * in a row it is left to a person. For any other reason to stop, and where the log turns out to be damaged, the node decides
 * what to do (`rejoin-decision.ts`), which is told to its own thread as it changes. What a peer sends that is wrong ends
 * that conversation, and is counted.
 */
import { join } from 'node:path';
import {
  NO_LSN,
  toBootId,
  toLsn,
  type BootId,
  type Lsn,
  type NodeId,
  type StoreId,
  type Term,
} from '../base/brands.ts';
import { HASH_BYTES, NO_TENANT } from '../base/brands.ts';
import { systemClock } from '../base/clock.ts';
import { systemDisk } from '../base/disk.ts';
import { NostosError, isNostosError } from '../base/errors.ts';
import { randomHex128, systemRandom } from '../base/random.ts';
import type { Coordination } from '../coordination/coordination.ts';
import type { Coordinator, Versioned } from '../coordination/coordinator.ts';
import type { MemberEntry } from '../coordination/member.ts';
import { NewestSeen } from '../coordination/newest-seen.ts';
import { openCoordinator } from '../coordination/open-coordinator.ts';
import { pointOf, type ChainPoint } from '../log/chain.ts';
import type { Appended, PageRequest } from '../log/commit-log.ts';
import { RecordKind } from '../log/record.ts';
import type { ReadRecord } from '../log/reader.ts';
import type { Effect, GroupEvent, MemberChange, StopReason } from '../replication/effects.ts';
import { GroupMachine, type GroupStatus, type Role } from '../replication/group-machine.ts';
import type { Instant } from '../replication/lease.ts';
import type { ChannelId } from '../replication/messages.ts';
import { checkGroupLimits } from '../replication/options.ts';
import { GROUP_SERVICE_NAME, Peers } from '../replication/peers.ts';
import { holdsDurably, type StoreView } from '../replication/store-view.ts';
import { Waiters } from '../replication/waiters.ts';
import { FileJournal } from '../rollback/run/journal.ts';
import { isUnderWay } from '../rollback/run/runner.ts';
import { formatAddress } from '../wire/address.ts';
import type { Channel } from '../wire/channel.ts';
import { connectToService } from '../wire/connect.ts';
import { TcpServiceDispatcher } from '../wire/dispatcher.ts';
import type { AppendCall } from './engine.ts';
import type {
  EngineOptions,
  EngineRequests,
  GroupNotice,
  GroupReport,
  GroupSettings,
  PackedPage,
  ProbeReport,
} from './engine-protocol.ts';
import { RecentAppends, type RecordRun } from './recent-appends.ts';
import { LogService, note, openLog, type LogServiceDeps, type OpenedLog } from './log-service.ts';
import { damageOf, decideRejoin, type RejoinDecision } from './rejoin-decision.ts';
import type { Finding } from './rejoin-file.ts';
import { sharedMs } from './shared-clock.ts';
import { monitorTimer } from './timer-monitor.ts';

type Machine = GroupMachine<Uint8Array>;
type Event = GroupEvent<Uint8Array>;

interface Waiting {
  readonly call: AppendCall;
  readonly last: Lsn;
  readonly appended: Appended;
}

interface AskedChange {
  resolve(): void;
  reject(error: unknown): void;
}

const RESTART_MS = 1_000;
/** How often a primary looks whether a stream is of a member that came back with a new store. */
const ADMIT_MS = 500;
/** How often a node that has stopped looks who leads. */
const STOPPED_LOOK_MS = 500;
const FEED_BYTES = 1024 * 1024;
const ADDRESS_RETRY_MS = 1_000;
const ROOM_POLL_MS = 1_000;
/** What a follower needs before it tries again: what may be sent to it at once, some times over. */
const ROOM_BYTES = 4 * FEED_BYTES;
const endOfTurn = (): Promise<void> => new Promise((resolve) => void setImmediate(resolve));
/** The machine is stepped at least so often, also where no alarm is due. */
const TICK_MAX_MS = 1_000;

export interface GroupEngineDeps extends LogServiceDeps {
  readonly tell: (notice: GroupNotice) => void;
}

export class GroupEngine extends LogService {
  readonly #deps: GroupEngineDeps;
  readonly #settings: GroupSettings;
  readonly #coordination: Coordination;
  readonly #coordinator: Coordinator;
  readonly #newest: NewestSeen;
  readonly #peers: Peers;
  readonly #dispatcher: TcpServiceDispatcher;
  readonly #addresses = new Map<StoreId, { readonly address: string; readonly node: NodeId }>();
  readonly #closing = new AbortController();
  #address = '';
  #boot: BootId;
  #machine: Machine;
  #events: Event[] = [];
  #stepping = false;
  /** Until `settled`: the last process had begun a rollback, and what is left of its tail must neither lead nor stream. */
  #held: boolean;
  #timer: NodeJS.Timeout | undefined;
  #restarting: NodeJS.Timeout | undefined;
  #roomTimer: NodeJS.Timeout | undefined;
  /** Whose message is being handled: an append that the log refuses ends that conversation. */
  #from: ChannelId | undefined;
  readonly #waiting = new Waiters<Waiting>();
  readonly #sent = new Map<ChannelId, ChainPoint>();
  readonly #recent = new RecentAppends();
  /** They are made in any order: a newcomer that catches up first is added first. */
  readonly #changes = new Map<MemberChange, AskedChange>();
  #stopped: { readonly reason: StopReason; readonly details: Readonly<Record<string, string | number>> } | undefined;
  #told: GroupNotice | undefined;
  #leaseTold: Instant | undefined;
  #watermarkTold: Lsn;
  /** The last request to the coordinator had no answer. */
  #away = false;
  #peerErrors: GroupReport['peerErrors'] = { count: 0, last: null };
  /** What is known to be wrong with the store. */
  #finding: Finding = {};
  /** The last record that could not be read for a replica. */
  #unreadable: Lsn = NO_LSN;
  /** The common point that is being rolled back to, tried again until the node streams or another term begins. */
  #rollingBack: { readonly lsn: Lsn; readonly term: Term } | undefined;
  /** The node's thread still works for the last machine: the next one must not move W, or ask for more, before that ends. */
  #awaited: 'step-down' | 'rollback' | undefined;
  /** It was asked for that this store be in sync no more: room on the disk is no reason to come back. */
  #leaving = false;
  /** Since it last led or streamed. */
  #restarts = 0;
  #rejoinTold = '';
  /** Where this node lets itself be copied. */
  #copyAddress: string | undefined;
  #admitAtMs = 0;
  #lookAtMs = 0;
  readonly #admitting = new Set<StoreId>();

  private constructor(
    deps: GroupEngineDeps,
    opened: OpenedLog,
    parts: { readonly settings: GroupSettings; readonly coordination: Coordination },
  ) {
    super(opened);
    const { options, disk } = opened;
    const { settings, coordination } = parts;
    this.#deps = deps;
    this.#settings = settings;
    this.#coordination = coordination;
    this.#coordinator = coordination.group(settings.name);
    this.#newest = new NewestSeen(disk, join(options.dir, 'coordinator.json'));
    this.#boot = options.boot;
    this.#watermarkTold = opened.log.watermark;
    this.#peers = new Peers(
      {
        connect: (to, signal) => this.#connect(to, signal),
        onMessage: (channel, message) => this.#tell({ kind: 'message', channel, message }),
        onClosed: (channel, wrong) => this.#onClosed(channel, wrong),
      },
      { cluster: options.cluster, store: options.store, frameBytesMax: options.limits.frameBytesMax },
    );
    const { listen } = settings;
    const tls =
      listen.tls === undefined ? {} : { tls: { ...listen.tls, allowNodes: () => true, cluster: options.cluster } };
    this.#dispatcher = new TcpServiceDispatcher(
      formatAddress({ host: listen.host ?? '127.0.0.1', port: listen.port }),
      {
        ...options.limits,
        ...tls,
        onRefused: (error) => this.#noteWrong(error),
        onError: (error) => this.#noteWrong(error),
      },
    );
    this.#dispatcher.register(this.#peers);
    this.#machine = this.#newMachine();
    this.#held = isUnderWay(new FileJournal(disk, join(options.dir, 'rollback')).load().intent);
  }

  static async open(deps: GroupEngineDeps, options: EngineOptions, settings: GroupSettings): Promise<GroupEngine> {
    checkGroupLimits(options.limits);
    const coordination = await openCoordinator(settings.coordinator);
    try {
      // What the group has committed is here where this store was in sync; a tail above it may be torn.
      const seen = new NewestSeen(deps.disk ?? systemDisk, join(options.dir, 'coordinator.json')).newest?.record;
      const known =
        seen?.committed?.generation === options.generation && seen.inSync.includes(options.store)
          ? seen.committed.lsn
          : NO_LSN;
      const opened = openLog(deps, options, Math.max(known, options.copy?.lsn ?? NO_LSN) as Lsn);
      if (options.copy !== undefined) opened.log.setWatermark(options.copy.lsn);
      const engine = new GroupEngine(deps, opened, { settings, coordination });
      await engine.#start();
      return engine;
    } catch (error) {
      await coordination.close();
      throw error;
    }
  }

  async #start(): Promise<void> {
    this.#address = await this.#dispatcher.start();
    void this.#announce();
    this.#coordinator.watch(() => this.#tell({ kind: 'hint' }), { signal: this.#closing.signal });
    this.#begin();
  }

  #begin(): void {
    this.#tell(this.#settings.lostRecords === true ? { kind: 'lost-records' } : { kind: 'tick' });
  }

  /** Writes where this node is reached; without it the others cannot follow it, and it goes on trying. */
  async #announce(): Promise<void> {
    const { store, node } = { store: this.options.store, node: this.#settings.node };
    const address = this.#settings.advertise ?? this.#address;
    const entry = this.#coordination.member(store);
    while (!this.#closing.signal.aborted) {
      try {
        const current = await entry.read();
        const said = { node, address, ...(this.#copyAddress === undefined ? {} : { copyAddress: this.#copyAddress }) };
        if (current !== undefined && says(current.record, said)) return;
        const record = { ...said, nonce: randomHex128(systemRandom) };
        if ((await entry.compareAndSet(current?.version ?? 0, record)).ok) return;
      } catch {
        // The coordinator is away; the group goes on as it is.
      }
      await new Promise((resolve) => void setTimeout(resolve, ADDRESS_RETRY_MS).unref());
    }
  }

  get address(): string {
    return this.#address;
  }

  // ---- appends

  append(calls: readonly AppendCall[]): Promise<void> {
    this.appendNow(calls);
    return Promise.resolve();
  }

  /** Always does it, or refuses: in a group nobody begins a term to write. */
  appendNow(calls: readonly AppendCall[]): true {
    const { role } = this.#machine;
    if ((role !== 'leading' && role !== 'draining') || this.log.state !== 'open') {
      for (const call of calls) call.reject(this.#notPrimary());
      return true;
    }
    const previous = this.log.end;
    const first = previous.lsn + 1;
    let hashes: Uint8Array;
    try {
      const appended = this.log.append(calls.flatMap(({ entries }) => entries));
      ({ hashes } = appended);
      this.#recent.add({ previous, last: this.log.end, payload: appended.bytes });
    } catch (error) {
      const state: string = this.log.state;
      const refusal = state === 'failed' ? this.#outcomeUnknown(first as Lsn, error) : error;
      for (const call of calls) call.reject(refusal);
      if (state !== 'open') this.#tell({ kind: 'log-failed' });
      return true;
    }
    this.#await(calls, first, hashes);
    this.#tell({ kind: 'progress' }); // it leaves for the replicas, whose disks work meanwhile
    this.#sync();
    return true;
  }

  #await(calls: readonly AppendCall[], from: number, hashes: Uint8Array): void {
    const { term } = this.log.end;
    const { generation } = this.options;
    let at = 0;
    for (const call of calls) {
      const { entries } = call;
      const firstLsn = (from + at) as Lsn;
      for (const [index, { kind, tenant }] of entries.entries())
        note(this.last, { kind, tenant, lsn: (firstLsn + index) as Lsn });
      const own = hashes.slice(at * HASH_BYTES, (at + entries.length) * HASH_BYTES);
      at += entries.length;
      const appended = { generation, term, firstLsn, hashes: own };
      const last = (firstLsn + entries.length - 1) as Lsn;
      this.#waiting.add(last, call.durability, { call, last, appended });
    }
  }

  /** Makes what was appended durable, and lets the machine see it. */
  #sync(): void {
    try {
      this.log.sync();
    } catch {
      return this.#tell({ kind: 'log-failed' });
    }
    this.#answer();
    this.#tell({ kind: 'progress' });
  }

  /** Whoever may know by now: what is committed, and what is `local` and on this disk while the lease holds. */
  #answer(): void {
    const { watermark, durable } = this.log;
    const settled = this.#waiting.settle(watermark, durable.lsn, this.#machine.holdsLease(instant()));
    for (const { call, appended } of settled) call.resolve(appended);
  }

  override get awaitsPeers(): boolean {
    return this.#waiting.size > 0;
  }

  #notPrimary(): NostosError {
    const record = this.#newest.newest?.record;
    const primary = record?.primary?.store ?? null;
    const address = primary === null ? null : (this.#addresses.get(primary)?.address ?? null);
    return new NostosError(
      'NOT_PRIMARY',
      primary === null
        ? 'this node does not lead its group, and nobody does at the moment; try again'
        : `this node does not lead its group: store ${primary} does${address === null ? '' : `, at ${address}`}; write there`,
      { details: { role: 'replica', primary, address, term: record?.term ?? null } },
    );
  }

  #outcomeUnknown(lsn: Lsn, cause?: unknown): NostosError {
    const { generation } = this.options;
    return new NostosError(
      'OUTCOME_UNKNOWN',
      `it is not known whether the write at LSN ${lsn} was kept: this node no longer leads its group. Ask for its position, or write again with the same id`,
      { cause, details: { position: { generation, term: this.log.end.term, lsn } } },
    );
  }

  // ---- the machine

  #newMachine(): Machine {
    const { generation, store, limits } = this.options;
    return new GroupMachine<Uint8Array>(
      { generation, store, boot: this.#boot },
      this.#view(),
      limits,
      this.#newest.newest,
    );
  }

  #view(): StoreView {
    const { log } = this;
    return {
      get end() {
        return log.end;
      },
      get durable() {
        return log.durable.lsn;
      },
      get watermark() {
        return log.watermark;
      },
      // Tenants catch up where they are used, before anybody sees them.
      get applied() {
        return log.watermark;
      },
      get anchor() {
        return log.anchor;
      },
      get terms() {
        return log.history;
      },
      pointAt: (lsn) => log.pointAt(lsn),
      readable: (lsn) => lsn === NO_LSN || this.#readable(lsn),
    };
  }

  /** A log that is damaged in the midst still leads; who lacks what it cannot send takes a copy. */
  #readable(lsn: Lsn): boolean {
    try {
      this.log.pointAt(lsn);
      return lsn >= this.#unreadable;
    } catch (error) {
      if (!isNostosError(error, 'LOG_DAMAGED')) throw error;
      this.#noteUnreadable(error);
      return false;
    }
  }

  #noteUnreadable(error: unknown): void {
    if (!isNostosError(error, 'LOG_DAMAGED')) return;
    const { lsn } = error.details;
    if (typeof lsn === 'number' && lsn > this.#unreadable) this.#unreadable = toLsn(lsn);
    this.#noteDamage(error);
  }

  #tell(event: Event): void {
    if (this.#closing.signal.aborted || this.#held || this.#stopped?.reason === 'failed') return;
    this.#events.push(event);
    if (this.#stepping) return;
    this.#stepping = true;
    try {
      for (let next = this.#events.shift(); next !== undefined; next = this.#events.shift()) this.#step(next);
    } catch (error) {
      return this.#fail(error);
    } finally {
      this.#stepping = false;
    }
    this.#schedule();
    this.#report();
    void this.#admit().catch(() => {}); // the coordinator is away: looked at again
    void this.#lookStopped().catch(() => {}); // likewise
  }

  #step(event: Event): void {
    const machine = this.#machine;
    this.#from = event.kind === 'message' ? event.channel : undefined;
    for (const effect of machine.step(event, instant())) {
      if (this.#machine !== machine) return;
      this.#perform(machine, effect);
    }
  }

  /** How far the machine and the log have come with this event, nobody knows: this boot does nothing more. */
  #fail(error: unknown): void {
    const { term } = this.#machine.status;
    this.#events = [];
    this.#peers.closeAll();
    this.#boot = toBootId(randomHex128(systemRandom));
    this.#machine = this.#newMachine();
    this.#stepDown({ term, reason: 'stopped' });
    const code = isNostosError(error) ? error.code : 'INTERNAL';
    this.#noteDamage(error);
    this.#onStop({
      reason: 'failed',
      details: { code, error: error instanceof Error ? error.message : String(error) },
    });
    this.#report();
  }

  #schedule(): void {
    clearTimeout(this.#timer);
    const dueMs = this.#machine.wakeAtMs - systemClock.monotonicMs();
    this.#timer = setTimeout(() => this.#tell({ kind: 'tick' }), Math.min(Math.max(dueMs, 1), TICK_MAX_MS));
    this.#timer.unref();
  }

  #perform(machine: Machine, effect: Effect<Uint8Array>): void {
    switch (effect.kind) {
      case 'read':
      case 'cas':
        return void this.#ask(machine, effect);
      case 'send':
        if (effect.to !== undefined) this.#peers.open(effect.channel, effect.to);
        return void this.#peers.send(effect.channel, effect.message);
      case 'feed':
        return void this.#feed(machine, effect);
      case 'close':
        this.#sent.delete(effect.channel);
        return this.#peers.close(effect.channel);
      case 'start-term':
        return this.#startTerm(effect);
      case 'append':
        return this.#take(effect.payload);
      case 'watermark':
        this.log.setWatermark(effect.lsn);
        this.#answer();
        return this.#tellWatermark();
      case 'lead':
        return this.#deps.tell({ kind: 'lead', term: effect.term });
      case 'drain':
      case 'resume':
        return this.#deps.tell({ kind: effect.kind });
      case 'rollback': {
        const { to, primary, term } = effect;
        const address = this.#addresses.get(primary.store)?.address ?? `store ${primary.store}`;
        this.#rollingBack = { lsn: to.lsn, term };
        this.#awaited = 'rollback';
        return this.#deps.tell({ kind: 'rollback', to, address, term });
      }
      case 'step-down':
        return this.#stepDown(effect);
      case 'members-changed': {
        const asked = this.#changes.get(effect.change);
        this.#changes.delete(effect.change);
        if (effect.ok) asked?.resolve();
        else asked?.reject(new NostosError('INVALID_ARGUMENT', effect.why ?? 'the members could not be changed'));
        return;
      }
      case 'stop':
        return this.#onStop(effect);
      default:
        return effect satisfies never;
    }
  }

  async #ask(machine: Machine, effect: Extract<Effect<Uint8Array>, { kind: 'read' | 'cas' }>): Promise<void> {
    const { request } = effect;
    let answer: Event;
    try {
      if (effect.kind === 'read') {
        const current = await this.#coordinator.read();
        this.#accept(current);
        answer = { kind: 'read-answered', request, current };
      } else {
        const result = await this.#coordinator.compareAndSet(effect.expectedVersion, effect.record);
        this.#accept(result.ok ? { version: result.version, record: effect.record } : result.current);
        answer = { kind: 'cas-answered', request, result };
      }
      this.#away = false;
    } catch {
      this.#away = true;
      answer = { kind: 'request-failed', request };
    }
    if (this.#machine === machine) this.#tell(answer);
  }

  /** The newest record is durable before the machine hears of it; one that is older stops the machine, which sees that too. */
  #accept(current: Versioned | undefined): void {
    try {
      this.#newest.accept(current);
    } catch (error) {
      if (!isNostosError(error, 'COORDINATOR_REGRESSED')) throw error;
    }
  }

  async #feed(machine: Machine, effect: Extract<Effect<Uint8Array>, { kind: 'feed' }>): Promise<void> {
    const { channel, term, from, watermark } = effect;
    let to = (from - 1) as Lsn;
    try {
      let run = this.#recent.from(from, FEED_BYTES);
      if (run === undefined) {
        if (from > this.log.durable.lsn) await endOfTurn(); // until then it is synced
        if (this.#machine !== machine) return;
        run = this.#readRun(channel, from, effect.to);
      }
      if (run !== undefined) {
        const { generation } = this.options;
        await this.#peers.send(channel, { kind: 'records', generation, term, watermark, ...run });
        this.#sent.set(channel, run.last);
        to = run.last.lsn;
      }
    } catch (error) {
      this.#noteUnreadable(error);
      this.#peers.close(channel);
      if (this.#machine === machine) this.#tell({ kind: 'channel-closed', channel });
      return;
    }
    if (this.#machine === machine) this.#tell({ kind: 'fed', channel, to });
  }

  #readRun(channel: ChannelId, from: Lsn, to: Lsn): RecordRun | undefined {
    const sent = this.#sent.get(channel);
    const previous = sent?.lsn === from - 1 ? sent : this.log.pointAt((from - 1) as Lsn);
    for (const { records } of this.log.read({ from, to, bytesMax: FEED_BYTES })) {
      const { record, hash } = records.at(-1)!;
      return { previous, last: pointOf(record, hash), payload: joined(records) };
    }
    return undefined;
  }

  #startTerm({ term, watermark }: Extract<Effect<Uint8Array>, { kind: 'start-term' }>): void {
    const { store } = this.options;
    const { term: lastTerm, lsn } = this.log.end;
    const said = { primary: store, boot: this.#boot, previous: { term: lastTerm, lsn }, watermark };
    try {
      this.log.startTerm(term, Buffer.from(JSON.stringify(said)));
    } catch {
      return this.#tell({ kind: 'log-failed' });
    }
    this.#sync();
  }

  #take(payload: Uint8Array): void {
    try {
      this.log.appendReplicated(payload);
      this.log.sync();
      this.#tellWatermark();
    } catch (error) {
      const channel = this.#from;
      if (this.log.state === 'failed') this.#tell({ kind: 'log-failed' });
      else if (isNostosError(error, 'DISK_FULL')) {
        this.#tell({ kind: 'append-failed' });
        this.#awaitRoom();
      } else if (channel !== undefined) {
        this.#peers.close(channel);
        this.#onClosed(channel, error);
      }
      return;
    }
    this.#tell({ kind: 'progress' });
  }

  /** Records name a W too. The node's thread must have heard of it before `outlook` says that it is reached. */
  #tellWatermark(): void {
    const { watermark: lsn } = this.log;
    if (lsn <= this.#watermarkTold) return;
    this.#watermarkTold = lsn;
    this.#deps.tell({ kind: 'watermark', lsn });
  }

  #onClosed(channel: ChannelId, wrong: unknown): void {
    if (wrong !== undefined) this.#noteWrong(wrong);
    this.#tell({ kind: 'channel-closed', channel });
  }

  #noteWrong(wrong: unknown): void {
    const last = wrong instanceof Error ? wrong.message : String(wrong);
    this.#peerErrors = { count: this.#peerErrors.count + 1, last };
  }

  /** A full disk is no damage: with room again, this node is as fit to be in sync as before. */
  #awaitRoom(): void {
    clearTimeout(this.#roomTimer);
    this.#roomTimer = setTimeout(() => {
      if (systemDisk.freeBytes(this.options.dir) < ROOM_BYTES) this.#awaitRoom();
      else if (!this.#leaving) this.#tell({ kind: 'eligible', eligible: true });
    }, ROOM_POLL_MS);
    this.#roomTimer.unref();
  }

  #stepDown({ term, reason }: Omit<Extract<Effect<Uint8Array>, { kind: 'step-down' }>, 'kind'>): void {
    if (this.log.state === 'open') this.log.endTerm();
    this.#sent.clear();
    this.#recent.clear();
    for (const { call, last } of this.#waiting.end()) call.reject(this.#outcomeUnknown(last));
    for (const { reject } of this.#changes.values()) reject(this.#notPrimary());
    this.#changes.clear();
    this.#awaited = 'step-down';
    this.#deps.tell({ kind: 'step-down', term, reason });
  }

  #onStop({ reason, details }: Omit<Extract<Effect<Uint8Array>, { kind: 'stop' }>, 'kind'>): void {
    this.#stopped = { reason, details };
    this.#deps.tell({ kind: 'stopped', reason, details });
    if (reason !== 'log-failed' && reason !== 'failed') return;
    this.#restartLater();
  }

  #restartLater(): void {
    this.#restarts += 1;
    if (this.#finding.damage !== undefined) return;
    const { rejoinTotalAttemptsMax: most } = this.options.limits;
    if (this.#restarts > most)
      return this.#deps.tell({ kind: 'reopen-failed', why: `begun anew ${most} times in a row; open the node again` });
    this.#restarting = setTimeout(() => this.#restart(), RESTART_MS);
    this.#restarting.unref();
  }

  /** Under a new boot, with what the disk really has. */
  #restart(): void {
    if (this.#closing.signal.aborted) return;
    if (this.#awaited !== undefined) {
      this.#restarting = setTimeout(() => this.#restart(), RESTART_MS);
      this.#restarting.unref();
      return;
    }
    try {
      if (this.log.state === 'failed') this.log.reopen();
      this.#tellWatermark();
    } catch (error) {
      this.#noteDamage(error);
      this.#deps.tell({ kind: 'reopen-failed', why: (error as Error).message });
      return this.#restartLater();
    }
    this.#boot = toBootId(randomHex128(systemRandom));
    this.#stopped = undefined;
    this.#sent.clear();
    this.#recent.clear();
    this.#machine = this.#newMachine();
    this.#begin();
  }

  /**
   * A node that came back with a new store takes the place of its old one, once it has caught up; which node a store is of, and
   * where it is reached, the coordinator says. Anybody else is added by an operator.
   */
  async #admit(): Promise<void> {
    const machine = this.#machine;
    const nowMs = systemClock.monotonicMs();
    if (machine.role !== 'leading' || nowMs < this.#admitAtMs) return;
    this.#admitAtMs = nowMs + ADMIT_MS;
    const { replicas } = machine.status;
    const members = this.#newest.newest?.record.members ?? [];
    const streaming = new Set(replicas.filter(({ phase }) => phase === 'streaming').map(({ store }) => store));
    const gone = members.filter((store) => store !== this.options.store && !streaming.has(store));
    for (const add of streaming) {
      if (members.includes(add) || this.#admitting.has(add) || gone.length === 0) continue;
      const now = await this.#lookUp(add);
      for (const remove of gone) {
        const before = await this.#lookUp(remove);
        if (now === undefined || before === undefined || machine.role !== 'leading') continue;
        // A directory that was lost comes back under the id that it was given anew, where the lost one was.
        if (now.node !== before.node && now.address !== before.address) continue;
        this.#admitting.add(add);
        await this.changeMembers({ add, remove }).finally(() => this.#admitting.delete(add));
        return;
      }
    }
  }

  /** A machine that has stopped reads no record any more, and who leads by now decides how this node comes home. */
  async #lookStopped(): Promise<void> {
    const nowMs = systemClock.monotonicMs();
    if (this.#stopped === undefined || nowMs < this.#lookAtMs) return;
    this.#lookAtMs = nowMs + STOPPED_LOOK_MS;
    this.#accept(await this.#coordinator.read());
    if (!this.#closing.signal.aborted) this.#report();
  }

  /** Tells what has changed of the role, so that the node's thread need not ask. */
  #report(): void {
    const sent = this.#machine.leaseSent;
    if (sent !== this.#leaseTold) {
      this.#leaseTold = sent;
      this.#deps.tell({ kind: 'lease', sent: sent === undefined ? null : everywhere(sent) });
    }
    const { role, following, term, inSync } = this.#machine.status;
    this.#reportRejoin(role, following, inSync);
    const primary = following?.store ?? null;
    const primaryAddress = primary === null ? null : (this.#addresses.get(primary)?.address ?? null);
    const notice = { kind: 'role', role, term, inSync, primary, primaryAddress } as const;
    if (this.#told?.kind === 'role' && JSON.stringify(this.#told) === JSON.stringify(notice)) return;
    this.#told = notice;
    this.#deps.tell(notice);
  }

  /** The decision, where something has changed that it rests on. */
  #reportRejoin(role: Role, following: GroupStatus['following'], inSync: boolean): void {
    const { damage, differs } = this.#finding;
    const stopped = this.#stopped?.reason;
    const { term } = this.#newest.newest?.record ?? {};
    const streams = following?.phase === 'streaming';
    const home = role === 'leading' || streams;
    if (home) this.#restarts = 0;
    if (home || this.#rollingBack?.term !== term) this.#rollingBack = undefined;
    const restsOn = [role, following?.store, streams, term, inSync, this.#away, stopped, damage, differs].join(' ');
    const rests = `${restsOn} ${this.#rollingBack?.lsn}`;
    if (rests === this.#rejoinTold) return;
    this.#rejoinTold = rests;
    const isWhole = damage === undefined && differs === undefined;
    this.#deps.tell({ kind: 'rejoin', decision: this.#rejoin(), home: home && isWhole, stopped: stopped ?? null });
  }

  // ---- the network

  async #connect(to: StoreId, signal: AbortSignal): Promise<Channel> {
    const known = this.#addresses.get(to) ?? (await this.#lookUp(to));
    if (known === undefined) throw new NostosError('NETWORK_FAILED', `nobody says where store ${to} is reached`);
    const { tls } = this.#settings.listen;
    const identity =
      tls === undefined
        ? {}
        : { tls: { ca: tls.ca, cert: tls.cert, key: tls.key, node: known.node, cluster: this.options.cluster } };
    try {
      return await connectToService(known.address, GROUP_SERVICE_NAME, {
        signal,
        frameBytesMax: this.options.limits.frameBytesMax,
        ...identity,
      });
    } catch (error) {
      this.#addresses.delete(to); // it may have moved; the next time somebody asks
      if (isNostosError(error, 'PEER_REFUSED')) this.#noteWrong(error);
      throw error;
    }
  }

  async #lookUp(store: StoreId): Promise<{ readonly address: string; readonly node: NodeId } | undefined> {
    const record = (await this.#coordination.member(store).read())?.record;
    if (record !== undefined) this.#addresses.set(store, record);
    return record;
  }

  // ---- requests of the node's thread

  steppedDown(): void {
    this.#awaited = undefined;
    this.#tell({ kind: 'stepped-down' });
  }

  drained(): void {
    this.#tell({ kind: 'drained' });
  }

  rolledBack(ok: boolean): void {
    this.#awaited = undefined;
    this.#tell({ kind: 'rolled-back', ok });
  }

  settled(): void {
    if (!this.#held) return;
    this.#held = false;
    this.#begin();
  }

  cutTo(lsn: Lsn): void {
    this.log.cutTo(lsn);
    for (const [tenant, last] of this.last) if (last > lsn) this.last.set(tenant, lsn);
  }

  logEnd(): { readonly end: ChainPoint; readonly watermark: Lsn } {
    return { end: this.log.end, watermark: this.log.saveWatermark() };
  }

  readRun({ from, bytesMax }: EngineRequests['readRun'][0]): EngineRequests['readRun'][1] {
    try {
      const previous = this.log.pointAt((from - 1) as Lsn);
      for (const { records } of this.log.read({ from, bytesMax, passing: true }))
        return { previous, run: joined(records) };
      return { previous, run: new Uint8Array() };
    } catch (error) {
      this.#noteDamage(error);
      throw error;
    }
  }

  handover(to: StoreId | undefined): void {
    if (this.#machine.role !== 'leading') throw this.#notPrimary();
    this.#tell({ kind: 'handover', ...(to === undefined ? {} : { to }) });
  }

  changeMembers(change: MemberChange): Promise<undefined> {
    if (this.#machine.role !== 'leading') return Promise.reject(this.#notPrimary());
    return new Promise((resolve, reject) => {
      this.#changes.set(change, { resolve: () => resolve(undefined), reject });
      this.#tell({ kind: 'change-members', change });
    });
  }

  groupReport(): GroupReport {
    const { version: _, ...status } = this.#machine.status;
    const record = this.#newest.newest?.record;
    return {
      ...status,
      name: this.#settings.name,
      address: this.#address,
      boot: this.#boot,
      stopped: this.#stopped ?? null,
      lastLsn: this.log.end.lsn,
      waiting: this.#waiting.size,
      rejoin: this.#rejoin(),
      peerErrors: this.#peerErrors,
      record: record ?? null,
    };
  }

  found(finding: Finding): undefined {
    this.#finding = { ...finding, ...this.#finding };
    this.#report();
  }

  setEligible(eligible: boolean): undefined {
    this.#leaving = !eligible;
    this.#tell({ kind: 'eligible', eligible });
  }

  copiesAt(address: string): undefined {
    this.#copyAddress = address;
    void this.#announce();
  }

  /** The node's thread hears of a log that is damaged, and answers with `found`. */
  #noteDamage(error: unknown): void {
    if (!isNostosError(error, 'LOG_DAMAGED') || this.#finding.damage !== undefined) return;
    this.#deps.tell({ kind: 'damaged', what: damageOf(error) });
  }

  override async readPage(request: PageRequest): Promise<PackedPage> {
    try {
      return await super.readPage(request);
    } catch (error) {
      this.#noteDamage(error);
      throw error;
    }
  }

  /** How the state of this node comes back to its group, from what it has found so far. */
  #rejoin(): RejoinDecision {
    const { store, generation } = this.options;
    const { end, watermark, anchor } = this.log;
    const { role, following } = this.#machine.status;
    const { newest } = this.#newest;
    const leads = role === 'starting' || role === 'leading' || role === 'draining';
    // A log that cannot be opened again is damaged, not only to be opened again.
    const stopped = this.#finding.damage === undefined ? this.#stopped?.reason : undefined;
    const leader = newest?.record.primary?.store;
    const stoppedBeside = this.#stopped !== undefined && leader !== undefined && leader !== store;
    return decideRejoin({
      store,
      generation,
      log: { end: { term: end.term, lsn: end.lsn }, watermark, anchor: anchor.lsn },
      holds: (position) => holdsDurably(this.#view(), position),
      coordinator: this.#away ? 'away' : { current: newest },
      seen: newest,
      primary: leads ? 'self' : following !== undefined || stoppedBeside ? 'other' : 'none',
      ...(following?.phase === 'streaming' ? { commonPoint: end.lsn } : {}),
      ...(this.#rollingBack === undefined ? {} : { commonPoint: this.#rollingBack.lsn }),
      ...(stopped === undefined ? {} : { stopped }),
      ...this.#finding,
    });
  }

  // ---- what every engine does

  /** In a group nobody appends from another thread. */
  settle(): Promise<never> {
    return Promise.reject(new NostosError('INTERNAL', 'nothing was appended directly'));
  }

  async advance(durable: Lsn): Promise<void> {
    if (this.log.state !== 'failed') this.log.saveWatermark();
    this.noteDurable(durable);
    this.prune();
  }

  probe(durationMs: number): Promise<ProbeReport> {
    let appends = 0;
    return monitorTimer(durationMs, () => {
      const entries = [{ tenant: NO_TENANT, kind: RecordKind.noop, payload: new Uint8Array(100) }];
      this.appendNow([{ durability: 'quorum', entries, resolve: () => (appends += 1), reject: () => {} }]);
    }).then((timer) => ({ ...timer, appends }));
  }

  protected async regain(): Promise<void> {
    if (this.log.state === 'failed') this.log.reopen();
  }

  async close(): Promise<void> {
    this.#closing.abort();
    clearTimeout(this.#timer);
    clearTimeout(this.#restarting);
    clearTimeout(this.#roomTimer);
    for (const { call, last } of this.#waiting.end()) call.reject(this.#outcomeUnknown(last));
    this.#peers.stop();
    await this.#dispatcher.stop();
    await this.#coordination.close().catch(() => {});
    if (this.log.state !== 'failed') this.log.saveWatermark();
    this.log.close();
  }
}

function says(entry: MemberEntry, { node, address, copyAddress }: Omit<MemberEntry, 'nonce'>): boolean {
  return entry.node === node && entry.address === address && entry.copyAddress === copyAddress;
}

function instant(): Instant {
  return { monotonicMs: systemClock.monotonicMs(), wallMs: systemClock.nowMs() };
}

function joined(records: readonly ReadRecord[]): Uint8Array<ArrayBuffer> {
  const run = new Uint8Array(records.reduce((sum, { record }) => sum + record.bytes.length, 0));
  let at = 0;
  for (const { record } of records) {
    run.set(record.bytes, at);
    at += record.bytes.length;
  }
  return run;
}

/** A moment of this thread's clock by the one that all threads share. */
function everywhere({ monotonicMs, wallMs }: Instant): Instant {
  return { monotonicMs: sharedMs() - (systemClock.monotonicMs() - monotonicMs), wallMs };
}
