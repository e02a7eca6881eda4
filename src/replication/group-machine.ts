/**
 * One opening of one store in its group: whom to follow, when to stand, when to lead, when to stop. It holds the
 * conversation with the coordinator, one request at a time; SPEC.md has the rules and the table of roles and events.
 *
 * What must hold: it leads only in a term that a record it has read gives to this very boot, and once per term; a CAS that
 * was sent stays open until a version above the one it expects is read.
 */
import { assert } from '../base/assert.ts';
import type { Lsn, Position, StoreId, Term } from '../base/brands.ts';
import type { CasResult, GroupRecord, Versioned } from '../coordination/coordinator.ts';
import { MEMBERS_MAX } from '../coordination/coordinator.ts';
import { Alarm } from './alarm.ts';
import type { Effect, GroupEvent, MemberChange, StepDownReason, StopReason } from './effects.ts';
import { FollowerMachine } from './follower-machine.ts';
import type { Instant } from './lease.ts';
import { Standstill, leaseHolds } from './lease.ts';
import type { ChannelId, Message, OpenMessage, RefusalReason } from './messages.ts';
import type { GroupOptions } from './options.ts';
import { PrimaryMachine } from './primary-machine.ts';
import type { SelfIdentity, StoreView } from './store-view.ts';
import { holdsDurably, positionAt } from './store-view.ts';

export type Role = 'follower' | 'candidate' | 'starting' | 'leading' | 'draining' | 'stepping-down' | 'stopped';

export interface GroupStatus {
  readonly role: Role;
  /** Of the newest record read. */
  readonly term: Term;
  readonly watermark: Lsn;
  /** What the follower is at. */
  readonly following: { readonly store: StoreId; readonly phase: string } | undefined;
  readonly inSync: boolean;
  readonly version: number;
  readonly stopped: StopReason | undefined;
  /** Of a primary: who streams from it. */
  readonly replicas: readonly ReplicaStatus[];
}

export interface ReplicaStatus {
  readonly store: StoreId;
  readonly phase: 'searching' | 'streaming';
  readonly acked: Lsn;
  readonly inSync: boolean;
}

interface Proposal {
  readonly purpose: 'reign' | 'takeover' | 'handover';
  readonly expectedVersion: number;
  readonly record: GroupRecord;
  readonly sent: Instant;
  /** What to do next about a CAS without an answer, and when. */
  next: 'read' | 'cas';
  retryAtMs: number;
}

interface Candidacy {
  readonly channels: Set<ChannelId>;
  readonly reached: Set<StoreId>;
  readonly sinceMs: number;
}

/** Changes of the members that wait, for a newcomer that has not caught up, say. */
const CHANGES_MAX = 16;
/** Pings are sent again after so many times `probeWaitMs`. */
const PROBE_WAITS = 4;

export class GroupMachine<P> {
  readonly #self: SelfIdentity;
  readonly #view: StoreView;
  readonly #options: GroupOptions;
  readonly #alarm = new Alarm();
  readonly #standstill: Standstill;
  readonly #follower: FollowerMachine<P>;
  #effects: Effect<P>[] = [];
  #now: Instant = { monotonicMs: 0, wallMs: 0 };
  #role: Exclude<Role, 'candidate'> = 'follower';
  #stopped: StopReason | undefined;
  #eligible = true;
  #newest: Versioned | undefined;
  #counter = 0;
  /** The one request to the coordinator that is under way. */
  #request: { readonly id: number; readonly kind: 'read' | 'cas' } | undefined;
  #proposal: Proposal | undefined;
  #nextReadMs = 0;
  /** After a request that failed, hints have to wait. */
  #quietUntilMs = 0;
  #hinted = true;
  #candidacy: Candidacy | undefined;
  #backoffUntilMs = 0;
  #backoffMs: number;
  // Of the present reign:
  #primary: PrimaryMachine<P> | undefined;
  #termLed = 0 as Term;
  #startedMs = 0;
  #renewAtMs = 0;
  #leaseSent: Instant | undefined;
  #handover: { readonly to: StoreId | undefined; readonly untilMs: number; drained: boolean } | undefined;

  /** `newest`: the newest record that this directory has ever seen. */
  constructor(self: SelfIdentity, view: StoreView, options: GroupOptions, newest: Versioned | undefined) {
    this.#self = self;
    this.#view = view;
    this.#options = options;
    this.#newest = newest;
    this.#backoffMs = options.candidateBackoffMs;
    this.#standstill = new Standstill(options);
    this.#follower = new FollowerMachine<P>({
      self,
      view,
      options,
      alarm: this.#alarm,
      emit: (effect) => this.#effects.push(effect),
      nextChannel: () => this.#nextChannel(),
      stop: (reason, details) => this.#stop(reason, details),
      hint: () => void (this.#hinted = true),
    });
  }

  get role(): Role {
    return this.#role === 'follower' && this.#candidacy !== undefined ? 'candidate' : this.#role;
  }

  get status(): GroupStatus {
    const { target, phase } = this.#follower;
    const following = target !== undefined && this.#role === 'follower';
    return {
      role: this.role,
      term: this.#newest?.record.term ?? (0 as Term),
      watermark: this.watermark,
      following: following ? { store: target.store, phase } : undefined,
      inSync: this.#newest?.record.inSync.includes(this.#self.store) ?? false,
      version: this.#newest?.version ?? 0,
      stopped: this.#stopped,
      replicas: [...(this.#primary?.streams ?? [])].map(({ store, phase, acked }) => ({
        store,
        phase,
        acked,
        inSync: this.#newest?.record.inSync.includes(store) ?? false,
      })),
    };
  }

  get watermark(): Lsn {
    return Math.max(this.#primary?.watermark ?? 0, this.#follower.watermark, this.#view.watermark) as Lsn;
  }

  /** When the next `tick` is due, by the monotonic clock. */
  get wakeAtMs(): number {
    return this.#alarm.wakeAtMs;
  }

  /** New writes and transactions may begin. */
  get acceptsWrites(): boolean {
    return this.#role === 'leading';
  }

  /** A read may be answered, or a `local` write acknowledged: asked after the snapshot was taken, or the fsync returned. */
  holdsLease(now: Instant): boolean {
    if ((this.#role !== 'leading' && this.#role !== 'draining') || this.#leaseSent === undefined) return false;
    return leaseHolds(this.#leaseSent, now, this.#options.leaseMs, this.#options.clockDriftMax);
  }

  /** Sending time of the CAS that the present lease counts from; undefined where there is none. */
  get leaseSent(): Instant | undefined {
    return this.#role === 'leading' || this.#role === 'draining' ? this.#leaseSent : undefined;
  }

  step(event: GroupEvent<P>, now: Instant): readonly Effect<P>[] {
    if (this.#stopped !== undefined && event.kind !== 'stepped-down') return [];
    this.#effects = [];
    this.#now = now;
    this.#alarm.begin(now.monotonicMs);
    this.#handle(event);
    if (this.#primary !== undefined) this.#reign(this.#primary);
    else if (this.#role === 'follower') this.#follow();
    if (this.#stopped === undefined) this.#coordinate();
    return this.#effects;
  }

  #handle(event: GroupEvent<P>): void {
    switch (event.kind) {
      case 'tick':
      case 'progress':
        return;
      case 'hint':
        this.#hinted = true;
        return;
      case 'read-answered':
        if (this.#isAwaited(event.request)) this.#accept(event.current);
        return;
      case 'cas-answered':
        if (this.#isAwaited(event.request)) this.#casAnswered(event.result);
        return;
      case 'request-failed':
        if (this.#isAwaited(event.request)) this.#requestFailed();
        return;
      case 'message':
        return this.#onMessage(event.channel, event.message);
      case 'channel-closed':
        this.#primary?.onClosed(event.channel);
        return this.#follower.onClosed(event.channel);
      case 'fed':
        return this.#primary?.onFed(event.channel, event.to);
      case 'append-failed':
        this.#eligible = false;
        return this.#follower.onAppendFailed();
      case 'rolled-back':
        this.#follower.onRolledBack(event.ok);
        // Meanwhile a takeover of its own may have succeeded.
        if (this.#newest !== undefined && this.#role === 'follower') this.#consider(this.#newest, undefined);
        return;
      case 'stepped-down':
        if (this.#role !== 'stepping-down') return;
        this.#role = this.#stopped === undefined ? 'follower' : 'stopped';
        if (this.#stopped === undefined && this.#newest !== undefined) this.#consider(this.#newest, undefined);
        return;
      case 'log-failed':
        return this.#stop('log-failed', {});
      case 'lost-records':
        return this.#stop('lost-records', {});
      case 'eligible':
        this.#eligible = event.eligible;
        return this.#follower.setEligible(event.eligible);
      case 'handover':
        if (this.#role !== 'leading') return;
        this.#role = 'draining';
        this.#handover = {
          to: event.to,
          untilMs: this.#now.monotonicMs + this.#options.handoverTimeoutMs,
          drained: false,
        };
        this.#emit({ kind: 'drain' });
        return;
      case 'drained':
        if (this.#handover !== undefined) this.#handover.drained = true;
        return;
      case 'change-members':
        return this.#changeMembers(event.change);
      default:
        event satisfies never;
    }
  }

  // ─── The coordinator ───

  #coordinate(): void {
    if (this.#request !== undefined) return;
    const proposal = this.#proposal;
    if (proposal !== undefined) {
      if (!this.#alarm.due(proposal.retryAtMs)) return;
      if (proposal.next === 'cas') return this.#sendCas(proposal);
    } else if (this.#primary !== undefined) {
      const next = this.#nextRecord(this.#primary);
      if (next !== undefined) return this.#propose(next.purpose, this.#primary.confirmed.version, next.record);
      if (!this.#hinted) return;
    } else if (!this.#hinted && !this.#alarm.due(this.#nextReadMs)) return;
    if (!this.#alarm.due(this.#quietUntilMs)) return;
    this.#hinted = false;
    this.#nextReadMs = this.#now.monotonicMs + this.#options.coordinatorPollMs;
    this.#request = { id: ++this.#counter, kind: 'read' };
    this.#emit({ kind: 'read', request: this.#request.id });
  }

  #propose(purpose: Proposal['purpose'], expectedVersion: number, record: GroupRecord): void {
    assert(record.inSync.length >= record.minInSync, 'no set below the minimum is proposed');
    this.#proposal = {
      purpose,
      expectedVersion,
      record,
      sent: this.#now,
      next: 'cas',
      retryAtMs: this.#now.monotonicMs,
    };
    if (this.#primary !== undefined) this.#primary.open = record;
    if (purpose === 'handover') this.#leaseSent = undefined;
    this.#sendCas(this.#proposal);
  }

  #sendCas({ expectedVersion, record }: Proposal): void {
    this.#request = { id: ++this.#counter, kind: 'cas' };
    this.#emit({ kind: 'cas', request: this.#request.id, expectedVersion, record });
  }

  #isAwaited(request: number): boolean {
    if (this.#request?.id !== request) return false;
    this.#request = undefined;
    return true;
  }

  #requestFailed(): void {
    this.#quietUntilMs = this.#now.monotonicMs + this.#options.coordinatorRetryMs;
    if (this.#proposal === undefined) return;
    // It is read first: what was lost is most often only the answer.
    this.#proposal.next = this.#proposal.next === 'read' ? 'cas' : 'read';
    this.#proposal.retryAtMs = this.#quietUntilMs;
  }

  #casAnswered(result: CasResult): void {
    const proposal = this.#proposal;
    if (!result.ok) return this.#accept(result.current);
    // Nobody waits for it any more: what it did is in the record, which is read next.
    if (proposal === undefined) return void (this.#hinted = true);
    this.#accept({ version: result.version, record: proposal.record });
  }

  /** Takes in what the coordinator holds. */
  #accept(current: Versioned | undefined): void {
    const seen = this.#newest;
    if (current === undefined ? seen !== undefined : seen !== undefined && isOlder(current, seen))
      return this.#stop('coordinator-regressed', {
        foundVersion: current?.version ?? 0,
        seenVersion: seen?.version ?? 0,
        seenTerm: seen?.record.term ?? 0,
      });
    if (current === undefined) return;
    this.#newest = current;
    this.#standstill.observe(current.record, this.#now.monotonicMs);
    const resolved = this.#resolve(current);
    if (this.#role !== 'stepping-down') this.#consider(current, resolved);
  }

  /** The proposal that succeeded, if this record shows that; an open one that cannot any more is dropped. */
  #resolve({ version, record }: Versioned): Proposal | undefined {
    const proposal = this.#proposal;
    if (proposal === undefined) return undefined;
    const won = record.nonce === proposal.record.nonce;
    if (!won && version <= proposal.expectedVersion && this.#options.broken !== 'rereadResolves') {
      proposal.next = 'cas';
      return undefined;
    }
    this.#proposal = undefined;
    if (this.#primary !== undefined) this.#primary.open = undefined;
    return won ? proposal : undefined;
  }

  /** What the record means for this node; `won`: it is our own proposal. */
  #consider(current: Versioned, won: Proposal | undefined): void {
    const { record } = current;
    if (record.generation !== this.#self.generation) return this.#stop('generation', { term: record.term });
    const primary = this.#primary;
    if (primary !== undefined) {
      if (record.term !== primary.term || !this.#isNamed(record)) {
        if (won?.purpose === 'handover') this.#callSuccessor(primary, record);
        return this.#stepDown(won?.purpose === 'handover' ? 'handed-over' : 'deposed');
      }
      primary.confirmed = current;
      if (won !== undefined) this.#leaseSent = won.sent;
      this.#settleChanges(primary);
      return;
    }
    if (this.#isNamed(record) && record.term > this.#termLed) {
      // In its term a primary only appends, so what is being dropped goes first.
      if (this.#follower.phase !== 'rolling-back') this.#begin(current, won);
      return;
    }
    const named = record.primary;
    const other = named !== null && named.store !== this.#self.store;
    this.#follower.follow(other ? { ...named, term: record.term } : undefined);
  }

  #isNamed({ primary }: GroupRecord): boolean {
    if (primary?.store !== this.#self.store) return false;
    return primary.boot === this.#self.boot || this.#options.broken === 'resumeTerm';
  }

  // ─── Standing ───

  #follow(): void {
    const newest = this.#newest;
    if (newest !== undefined && this.#hasLostRecords(newest.record))
      return this.#stop('lost-records', { lsn: newest.record.committed?.lsn ?? 0, durable: this.#view.durable });
    const stands = newest !== undefined && this.#mayStand(newest.record);
    if (!stands) this.#candidacy = undefined;
    else this.#stand(newest, newest.record);
    this.#follower.advance();
  }

  /** Who is in sync has acknowledged everything that is committed, so what is missing was lost with an older disk. */
  #hasLostRecords(record: GroupRecord): boolean {
    if (this.#options.broken === 'diskOld' || !record.inSync.includes(this.#self.store)) return false;
    return !holdsDurably(this.#view, record.committed);
  }

  #mayStand(record: GroupRecord): boolean {
    const { broken } = this.#options;
    if (!this.#eligible || this.#proposal !== undefined || this.#follower.phase === 'rolling-back') return false;
    if (!record.inSync.includes(this.#self.store) && broken !== 'anyTakes') return false;
    if (!holdsDurably(this.#view, record.committed) && broken !== 'anyTakes' && broken !== 'diskOld') return false;
    if (!this.#alarm.due(this.#backoffUntilMs)) return false;
    const leaseMayBeOut = record.primary !== null && !this.#isNamed(record) && record.members.length > 1;
    if (!leaseMayBeOut || this.#standstill.isOver) return true;
    // It is over when a reply says so.
    if (this.#alarm.due(this.#standstill.endsMs)) this.#hinted = true;
    return false;
  }

  #stand({ version }: Versioned, record: GroupRecord): void {
    const { probeWaitMs, broken } = this.#options;
    const { store, boot } = this.#self;
    this.#candidacy ??= this.#ping(record);
    const { reached, sinceMs } = this.#candidacy;
    const waited = this.#alarm.due(sinceMs + probeWaitMs);
    if (!record.inSync.every((member) => reached.has(member)) && !waited) return;
    if (reached.size < record.minInSync && !this.#mayLeadAlone()) {
      if (this.#alarm.due(sinceMs + probeWaitMs * PROBE_WAITS)) this.#candidacy = this.#ping(record);
      return;
    }
    // One request at a time; what a reading that is under way answers may change everything.
    if (this.#request !== undefined) return;
    const answering = record.inSync.filter((member) => reached.has(member));
    const kept = answering.length >= record.minInSync ? answering : record.inSync;
    const inSync = broken === 'anyTakes' && !kept.includes(store) ? [...kept, store] : kept;
    this.#candidacy = undefined;
    this.#propose('takeover', version, {
      ...record,
      term: (record.term + 1) as Term,
      primary: { store, boot },
      inSync,
      renewal: record.renewal + 1,
      nonce: this.#nextNonce(),
    });
  }

  /**
   * Nobody who reaches more has stood for long. Whoever leads then commits nothing either, but only a primary can admit the
   * newcomers that the members who are gone have become.
   */
  #mayLeadAlone(): boolean {
    return this.#alarm.due(this.#standstill.endsMs + this.#options.commitStallMs);
  }

  #ping(record: GroupRecord): Candidacy {
    const { generation, store } = this.#self;
    const channels = new Set<ChannelId>();
    for (const member of record.members) {
      if (member === store) continue;
      const channel = this.#nextChannel();
      channels.add(channel);
      this.#emit({
        kind: 'send',
        channel,
        to: member,
        message: { kind: 'ping', generation, term: record.term, store },
      });
    }
    return { channels, reached: new Set([store]), sinceMs: this.#now.monotonicMs };
  }

  // ─── Leading ───

  #begin(confirmed: Versioned, won: Proposal | undefined): void {
    const { record } = confirmed;
    const view = this.#view;
    this.#follower.follow(undefined);
    this.#candidacy = undefined;
    this.#role = 'starting';
    this.#termLed = record.term;
    this.#startedMs = this.#now.monotonicMs;
    this.#renewAtMs = this.#now.monotonicMs + this.#options.renewIntervalMs;
    this.#leaseSent = won?.purpose === 'takeover' ? won.sent : undefined;
    const committed = record.committed?.lsn ?? 0;
    const watermark = Math.max(this.watermark, holdsDurably(view, record.committed) ? committed : 0) as Lsn;
    const resumed = this.#options.broken === 'resumeTerm' && view.terms.at(view.end.lsn)?.term === record.term;
    const end = this.#options.broken === 'takerTruncates' ? watermark : view.end.lsn;
    const termStart = resumed ? view.terms.at(view.end.lsn)!.firstLsn : ((end + 1) as Lsn);
    const { term } = record;
    const [self, options, alarm] = [this.#self, this.#options, this.#alarm];
    const emit = (effect: Effect<P>): void => this.#emit(effect);
    this.#primary = new PrimaryMachine<P>(
      { self, view, options, alarm, emit },
      { term, confirmed, termStart, watermark },
    );
    if (watermark > this.#follower.watermark) this.#emit({ kind: 'watermark', lsn: watermark });
    if (end < view.end.lsn) this.#emit({ kind: 'rollback', to: view.pointAt(end), primary: record.primary!, term });
    if (!resumed) this.#emit({ kind: 'start-term', term, watermark });
  }

  #reign(primary: PrimaryMachine<P>): void {
    primary.advance();
    // While the coordinator is away nobody else can lead: whoever does goes on.
    const answers = !this.#standstill.isBlind(this.#now.monotonicMs);
    if (this.#role === 'starting') {
      if (primary.watermark >= primary.termStart && this.#view.applied >= primary.termStart) {
        this.#role = 'leading';
        this.#backoffMs = this.#options.candidateBackoffMs;
        this.#emit({ kind: 'lead', term: primary.term });
      } else if (!answers) this.#startedMs = this.#now.monotonicMs;
      else if (this.#alarm.due(this.#startedMs + this.#options.termStartTimeoutMs)) return this.#resign();
    }
    if (primary.isStalled(answers)) return this.#resign();
    const handover = this.#handover;
    if (handover === undefined || this.#proposal?.purpose === 'handover' || !this.#alarm.due(handover.untilMs)) return;
    this.#handover = undefined;
    this.#role = 'leading';
    this.#emit({ kind: 'resume' });
  }

  /** What is proposed next: a handover, another set, or a renewal when it is time. */
  #nextRecord(
    primary: PrimaryMachine<P>,
  ): { readonly purpose: 'reign' | 'handover'; readonly record: GroupRecord } | undefined {
    const { record } = primary.confirmed;
    const { watermark } = primary;
    const successor = this.#handover?.drained === true ? primary.successor(this.#handover.to) : undefined;
    const set = successor === undefined ? primary.nextSet() : undefined;
    if (successor === undefined && set === undefined && !this.#alarm.due(this.#renewAtMs)) return undefined;
    this.#renewAtMs = this.#now.monotonicMs + this.#options.renewIntervalMs;
    this.#alarm.due(this.#renewAtMs);
    const committed: Position | null = watermark === 0 ? null : positionAt(this.#view, watermark);
    const next = { ...record, renewal: record.renewal + 1, committed, nonce: this.#nextNonce() };
    if (successor === undefined) return { purpose: 'reign', record: { ...next, ...set } };
    const { store, boot } = successor;
    return { purpose: 'handover', record: { ...next, term: (record.term + 1) as Term, primary: { store, boot } } };
  }

  #callSuccessor(primary: PrimaryMachine<P>, { term, generation, primary: named }: GroupRecord): void {
    for (const { store, channel } of primary.streams)
      if (store === named?.store) this.#emit({ kind: 'send', channel, message: { kind: 'lead', generation, term } });
  }

  #resign(): void {
    this.#backoffUntilMs = this.#now.monotonicMs + this.#backoffMs;
    this.#backoffMs = Math.min(this.#backoffMs * 2, this.#options.candidateBackoffMaxMs);
    this.#stepDown('stalled');
  }

  #stepDown(reason: StepDownReason): void {
    const primary = this.#primary;
    if (primary === undefined) return;
    primary.closeAll();
    for (const change of primary.changes) this.#answerChange(change, false, 'the primary stepped down');
    this.#primary = undefined;
    this.#proposal = undefined;
    this.#handover = undefined;
    this.#leaseSent = undefined;
    this.#role = 'stepping-down';
    this.#hinted = true;
    this.#emit({ kind: 'step-down', term: primary.term, reason });
  }

  #stop(reason: StopReason, details: Readonly<Record<string, string | number>>): void {
    if (this.#stopped !== undefined) return;
    this.#stepDown(reason === 'log-failed' ? 'log-failed' : 'stopped');
    this.#stopped = reason;
    if (this.#role !== 'stepping-down') this.#role = 'stopped';
    this.#emit({ kind: 'stop', reason, details });
  }

  // ─── Members ───

  #changeMembers(change: MemberChange): void {
    const primary = this.#primary;
    const why = primary === undefined ? 'this node does not lead' : unfit(primary, change, this.#self.store);
    if (primary === undefined || why !== undefined) return this.#answerChange(change, false, why ?? '');
    primary.changes.push(change);
  }

  #settleChanges(primary: PrimaryMachine<P>): void {
    const { members, minInSync } = primary.confirmed.record;
    const isMade = ({ add, remove, minInSync: wanted = minInSync }: MemberChange): boolean =>
      (add === undefined || members.includes(add)) &&
      (remove === undefined || !members.includes(remove)) &&
      wanted === minInSync;
    for (const change of primary.changes) if (isMade(change)) this.#answerChange(change, true);
    primary.changes = primary.changes.filter((change) => !isMade(change));
  }

  #answerChange(change: MemberChange, ok: boolean, why?: string): void {
    this.#emit({ kind: 'members-changed', change, ok, ...(why === undefined ? {} : { why }) });
  }

  // ─── Messages ───

  #onMessage(channel: ChannelId, message: Message<P>): void {
    if (message.generation !== this.#self.generation) {
      if (message.kind === 'open') this.#refuse(channel, 'generation');
      return;
    }
    this.#meetTerm(message.term);
    switch (message.kind) {
      case 'open':
        return this.#onOpen(channel, message);
      case 'probe': {
        if (message.term !== this.#primary?.term) return;
        const refusal = this.#primary.onProbe(channel, message.point);
        if (refusal !== undefined) this.#refuse(channel, refusal);
        return;
      }
      case 'ack':
        this.#primary?.onAck(channel, message);
        return;
      case 'ping': {
        const { generation, store } = this.#self;
        const term = this.#newest?.record.term ?? (0 as Term);
        if (message.term < term) return;
        return this.#emit({ kind: 'send', channel, message: { kind: 'pong', generation, term, store } });
      }
      case 'pong':
        if (this.#candidacy?.channels.has(channel) === true && this.#newest?.record.members.includes(message.store))
          this.#candidacy.reached.add(message.store);
        return;
      case 'lead':
        this.#hinted = true;
        return;
      default:
        if (this.#primary === undefined) this.#follower.onMessage(channel, message);
    }
  }

  /** Another node has read a record with a higher term: nothing is decided on that, but the record is read. */
  #meetTerm(term: Term): void {
    if (term <= (this.#newest?.record.term ?? 0)) return;
    this.#hinted = true;
    this.#stepDown('higher-term');
  }

  #onOpen(channel: ChannelId, message: OpenMessage): void {
    const primary = this.#primary;
    if (primary === undefined) return this.#refuse(channel, 'not-primary');
    if (message.term !== primary.term) return this.#refuse(channel, 'term');
    const refusal = primary.onOpen(channel, message);
    if (refusal !== undefined) this.#refuse(channel, refusal);
  }

  #refuse(channel: ChannelId, reason: RefusalReason): void {
    const { generation } = this.#self;
    const term = this.#newest?.record.term ?? (0 as Term);
    this.#emit({ kind: 'send', channel, message: { kind: 'refused', generation, term, reason } });
    this.#emit({ kind: 'close', channel });
  }

  #nextChannel(): ChannelId {
    return `${this.#self.boot}-${++this.#counter}` as ChannelId;
  }

  /** Unique as the boot is, and as a counter is within it. */
  #nextNonce(): string {
    return this.#self.boot.slice(0, 20) + (++this.#counter).toString(16).padStart(12, '0');
  }

  #emit(effect: Effect<P>): void {
    this.#effects.push(effect);
  }
}

function isOlder(current: Versioned, seen: Versioned): boolean {
  if (current.version === seen.version) return current.record.nonce !== seen.record.nonce;
  return current.version < seen.version || current.record.term < seen.record.term;
}

function unfit<P>(primary: PrimaryMachine<P>, change: MemberChange, self: StoreId): string | undefined {
  const { add, remove } = change;
  const { members, minInSync } = primary.confirmed.record;
  const wanted = change.minInSync ?? minInSync;
  const count = members.length + (add === undefined ? 0 : 1) - (remove === undefined ? 0 : 1);
  if (primary.changes.length >= CHANGES_MAX) return 'too many changes are waiting';
  if (primary.changes.some((other) => other.add === add && other.remove === remove)) return 'it is under way';
  if (add !== undefined && members.includes(add)) return 'it is a member';
  if (remove !== undefined && !members.includes(remove)) return 'it is no member';
  if (remove === self) return 'it leads: hand over first';
  if (!Number.isSafeInteger(wanted) || wanted < 1) return 'minInSync is a whole number from 1';
  if (count < wanted) return `${count} members cannot keep ${wanted} in sync`;
  if (count > MEMBERS_MAX) return `a group has at most ${MEMBERS_MAX} members`;
  return undefined;
}
