/**
 * One reign: the streams to replicas, what they acknowledge, what is committed, and which in-sync set would be right.
 *
 * What must hold: a record is committed when this store and every required one have fsynced it and the confirmed set has
 * `minInSync`. Required are the confirmed set and that of the proposal that is open, since either may be what the next
 * taker finds. No clock decides that; clocks only say who is dropped, and when.
 */
import type { BootId, Lsn, StoreId, Term } from '../base/brands.ts';
import { NO_LSN } from '../base/brands.ts';
import type { GroupRecord, Versioned } from '../coordination/coordinator.ts';
import type { Alarm } from './alarm.ts';
import { answerPoint } from './common-point.ts';
import type { Emit, MemberChange } from './effects.ts';
import type { AckMessage, ChannelId, OpenMessage, ProbeMessage, RefusalReason } from './messages.ts';
import type { GroupOptions } from './options.ts';
import type { SelfIdentity, StoreView } from './store-view.ts';

/** Boots of one store that are remembered, so that one which was replaced is known when it comes back. */
const BOOTS_KEPT = 16;

interface Stream {
  readonly channel: ChannelId;
  readonly store: StoreId;
  readonly boot: BootId;
  phase: 'searching' | 'streaming';
  /** The first record that was not sent yet. */
  next: Lsn;
  acked: Lsn;
  /** A batch is with the driver. */
  busy: boolean;
  heardMs: number;
  saidMs: number;
  saidWatermark: Lsn;
}

/** Where the log stood at some moment; who has not come so far in time is behind. */
interface Mark {
  readonly lsn: Lsn;
  readonly atMs: number;
}

export interface PrimaryDeps<P> {
  readonly self: SelfIdentity;
  readonly view: StoreView;
  readonly options: GroupOptions;
  readonly alarm: Alarm;
  readonly emit: Emit<P>;
}

export interface Reign {
  readonly term: Term;
  readonly confirmed: Versioned;
  readonly termStart: Lsn;
  readonly watermark: Lsn;
}

export interface Successor {
  readonly store: StoreId;
  readonly boot: BootId;
  readonly channel: ChannelId;
}

export type NextSet = Pick<GroupRecord, 'members' | 'inSync' | 'minInSync'>;

export class PrimaryMachine<P> {
  readonly #deps: PrimaryDeps<P>;
  readonly term: Term;
  readonly termStart: Lsn;
  confirmed: Versioned;
  /** The record of a CAS that was sent and not resolved. */
  open: GroupRecord | undefined;
  /** Changes of the members that were asked for and not made yet. */
  changes: MemberChange[] = [];
  #watermark: Lsn;
  readonly #streams = new Map<ChannelId, Stream>();
  /** What each store acknowledged in this reign, and has as far as we know. */
  readonly #acked = new Map<StoreId, Lsn>();
  /** What each store ever acknowledged in this reign: one that comes back with less lost it. */
  readonly #everAcked = new Map<StoreId, Lsn>();
  readonly #boots = new Map<StoreId, Set<BootId>>();
  readonly #ineligible = new Set<StoreId>();
  readonly #marks = new Map<StoreId, Mark>();
  #ownMark: Mark | undefined;

  constructor(deps: PrimaryDeps<P>, { term, confirmed, termStart, watermark }: Reign) {
    this.#deps = deps;
    this.term = term;
    this.confirmed = confirmed;
    this.termStart = termStart;
    this.#watermark = watermark;
  }

  get watermark(): Lsn {
    return this.#watermark;
  }

  get streams(): Iterable<Readonly<Stream>> {
    return this.#streams.values();
  }

  onOpen(channel: ChannelId, { store, boot, eligible, point }: OpenMessage): RefusalReason | undefined {
    const boots = this.#boots.get(store) ?? new Set();
    // The last one that was added is the living one.
    if (boots.has(boot) && [...boots].at(-1) !== boot) return 'superseded';
    if (this.#streams.size >= this.#deps.options.streamsMax) return 'full';
    for (const old of boots) if (boots.size >= BOOTS_KEPT) boots.delete(old);
    this.#boots.set(store, boots.add(boot));
    for (const stream of this.#streams.values()) if (stream.store === store) this.close(stream.channel);
    if (!eligible) {
      this.#ineligible.add(store);
      return 'ineligible';
    }
    this.#ineligible.delete(store);
    const { nowMs } = this.#deps.alarm;
    this.#streams.set(channel, {
      channel,
      store,
      boot,
      phase: 'searching',
      next: NO_LSN,
      acked: NO_LSN,
      busy: false,
      heardMs: nowMs,
      saidMs: nowMs,
      saidWatermark: NO_LSN,
    });
    return this.onProbe(channel, point);
  }

  onProbe(channel: ChannelId, point: ProbeMessage['point']): RefusalReason | undefined {
    const stream = this.#streams.get(channel);
    if (stream?.phase !== 'searching') return undefined;
    const { view, emit, alarm, self, options } = this.#deps;
    const answer = answerPoint(view, point);
    stream.heardMs = alarm.nowMs;
    if (
      answer.held === 'held' &&
      point.lsn < (this.#everAcked.get(stream.store) ?? 0) &&
      options.broken !== 'diskOld'
    ) {
      // It answered for records that it no longer has: what it said does not count any more.
      this.#acked.delete(stream.store);
      this.#streams.delete(channel);
      return 'lost-acknowledged';
    }
    if (answer.held === 'held') {
      stream.phase = 'streaming';
      stream.next = (point.lsn + 1) as Lsn;
      stream.acked = NO_LSN;
    }
    const { generation } = self;
    const message = { kind: 'point', generation, term: this.term, lsn: point.lsn, answer } as const;
    emit({ kind: 'send', channel, message: { ...message, watermark: this.#watermark } });
    return undefined;
  }

  onAck(channel: ChannelId, { store, boot, term, lsn }: AckMessage): void {
    const { view, options, alarm } = this.#deps;
    const anyTerm = options.broken === 'ackNoTerm';
    const stream = this.#streams.get(channel);
    const known = stream !== undefined && stream.store === store && stream.boot === boot && term === this.term;
    if ((!known && !anyTerm) || lsn > view.end.lsn) return;
    for (const acks of [this.#acked, this.#everAcked]) acks.set(store, Math.max(acks.get(store) ?? 0, lsn) as Lsn);
    if (stream === undefined) return;
    stream.acked = Math.max(stream.acked, lsn) as Lsn;
    stream.heardMs = alarm.nowMs;
  }

  onFed(channel: ChannelId, to: Lsn): void {
    const stream = this.#streams.get(channel);
    if (stream?.busy !== true) return;
    stream.busy = false;
    stream.next = Math.max(stream.next, to + 1) as Lsn;
    [stream.saidMs, stream.saidWatermark] = [this.#deps.alarm.nowMs, this.#watermark];
  }

  close(channel: ChannelId): void {
    if (this.#streams.delete(channel)) this.#deps.emit({ kind: 'close', channel });
  }

  onClosed(channel: ChannelId): void {
    this.#streams.delete(channel);
  }

  closeAll(): void {
    for (const channel of this.#streams.keys()) this.close(channel);
  }

  advance(): void {
    this.#commit();
    for (const stream of this.#streams.values()) this.#feed(stream);
  }

  /** Whose acks a commit needs. */
  required(): ReadonlySet<StoreId> {
    const { broken } = this.#deps.options;
    const open = broken === 'confirmedOnly' ? undefined : this.open;
    if (broken === 'assumeProposed' && open !== undefined) return new Set(open.inSync);
    return new Set([...this.confirmed.record.inSync, ...(open?.inSync ?? [])]);
  }

  #commit(): void {
    const { view, self, options, emit } = this.#deps;
    const { inSync, minInSync } = this.confirmed.record;
    if (inSync.length < minInSync) return;
    let lsn = options.broken === 'noSelfFsync' ? view.end.lsn : view.durable;
    for (const store of this.required())
      if (store !== self.store) lsn = Math.min(lsn, this.#acked.get(store) ?? 0) as Lsn;
    if (lsn <= this.#watermark) return;
    this.#watermark = lsn;
    emit({ kind: 'watermark', lsn });
  }

  #feed(stream: Stream): void {
    const { view, options, alarm, emit, self } = this.#deps;
    if (alarm.due(stream.heardMs + options.streamTimeoutMs)) return this.close(stream.channel);
    if (stream.phase !== 'streaming' || stream.busy) return;
    const { channel, next } = stream;
    const watermark = this.#watermark;
    if (next <= view.end.lsn && next - Math.max(stream.acked, 1) <= options.streamWindowRecords) {
      const to = Math.min(view.end.lsn, next + options.streamBatchRecords - 1) as Lsn;
      stream.busy = true;
      emit({ kind: 'feed', channel, term: this.term, from: next, to, watermark });
    } else if (watermark > stream.saidWatermark || alarm.due(stream.saidMs + options.streamHeartbeatMs)) {
      [stream.saidMs, stream.saidWatermark] = [alarm.nowMs, watermark];
      alarm.due(alarm.nowMs + options.streamHeartbeatMs);
      const { generation } = self;
      const sent = (next - 1) as Lsn;
      emit({
        kind: 'send',
        channel,
        message: { kind: 'watermark', generation, term: this.term, watermark, sent },
      });
    }
  }

  /** The set that should be proposed; undefined where the confirmed one is right. Only asked when nothing is open. */
  nextSet(): NextSet | undefined {
    const { self } = this.#deps;
    const { inSync, members } = this.confirmed.record;
    let next: NextSet = this.confirmed.record;
    for (const change of this.changes)
      if (next === this.confirmed.record) next = changed(next, change, (store) => this.#hasCaughtUp(store)) ?? next;
    const behind = new Set(
      next.inSync.filter((store) => store !== self.store && (this.#isBehind(store) || this.#ineligible.has(store))),
    );
    const newcomers = next.members.filter((store) => !next.inSync.includes(store) && this.#hasCaughtUp(store));
    const set = [...next.inSync.filter((store) => !behind.has(store)), ...newcomers];
    // Below the minimum nobody is dropped, however late.
    for (const store of behind) if (set.length < next.minInSync) set.push(store);
    for (const store of this.#marks.keys()) if (!inSync.includes(store)) this.#marks.delete(store);
    const same = set.length === inSync.length && set.every((store) => inSync.includes(store));
    if (same && next.members === members) return undefined;
    return { members: next.members, inSync: set, minInSync: next.minInSync };
  }

  #hasCaughtUp(store: StoreId): boolean {
    const { options } = this.#deps;
    const acked = this.#acked.get(store) ?? 0;
    const streaming = this.#streamOf(store) !== undefined && !this.#ineligible.has(store);
    return (
      streaming &&
      acked >= (options.broken === 'noTermStart' ? this.#watermark : Math.max(this.#watermark, this.termStart))
    );
  }

  #isBehind(store: StoreId): boolean {
    const { alarm, view, options } = this.#deps;
    const acked = this.#acked.get(store) ?? 0;
    const mark = this.#marks.get(store);
    if (mark === undefined || acked >= mark.lsn) {
      this.#marks.delete(store);
      if (acked >= view.end.lsn) return false;
      this.#marks.set(store, { lsn: view.end.lsn, atMs: alarm.nowMs });
    }
    return alarm.due(this.#marks.get(store)!.atMs + options.ackTimeoutMs);
  }

  /** Whether there are records, and nothing was committed for too long while the set could have been changed. */
  isStalled(setCanChange: boolean): boolean {
    const { alarm, view, options } = this.#deps;
    if (!setCanChange || this.#ownMark === undefined || this.#watermark >= this.#ownMark.lsn)
      this.#ownMark = view.end.lsn > this.#watermark ? { lsn: view.end.lsn, atMs: alarm.nowMs } : undefined;
    return this.#ownMark !== undefined && alarm.due(this.#ownMark.atMs + options.commitStallMs);
  }

  /** Somebody in sync whose log is equal, while all of it is committed. */
  successor(wanted: StoreId | undefined): Successor | undefined {
    const { self, view } = this.#deps;
    const end = view.end.lsn;
    if (this.#watermark < end) return undefined;
    for (const store of this.confirmed.record.inSync) {
      if (store === self.store || (wanted !== undefined && store !== wanted) || this.#ineligible.has(store)) continue;
      const stream = this.#streamOf(store);
      if (stream !== undefined && stream.acked === end) return stream;
    }
    return undefined;
  }

  #streamOf(store: StoreId): Stream | undefined {
    for (const stream of this.#streams.values())
      if (stream.store === store && stream.phase === 'streaming') return stream;
    return undefined;
  }
}

/** The set after a change of members, one at a time; undefined as long as that cannot be proposed. */
function changed(
  { members, inSync, minInSync }: NextSet,
  change: MemberChange,
  hasCaughtUp: (store: StoreId) => boolean,
): NextSet | undefined {
  const { add, remove } = change;
  if (add !== undefined && !hasCaughtUp(add)) return undefined;
  const with_ = (stores: readonly StoreId[]): StoreId[] => [
    ...stores.filter((store) => store !== remove && store !== add),
    ...(add === undefined ? [] : [add]),
  ];
  const next = { members: with_(members), inSync: with_(inSync), minInSync: change.minInSync ?? minInSync };
  return next.inSync.length < next.minInSync ? undefined : next;
}
