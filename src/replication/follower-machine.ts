/**
 * Following a primary: finds the common point, asks for the tail above it to be rolled back, and takes records and W.
 *
 * What must hold: records go only for the primary whom the newest record names, at the end of a search with that primary,
 * above the common point and never below W; W counts only up to what this stream has matched and the disk has.
 */
import type { BootId, Lsn, StoreId, Term } from '../base/brands.ts';
import { NO_LSN } from '../base/brands.ts';
import type { ChainPoint } from '../log/chain.ts';
import { samePoint } from '../log/chain.ts';
import type { Alarm } from './alarm.ts';
import { nextProposal } from './common-point.ts';
import type { Emit, StopReason } from './effects.ts';
import type { ChannelId, Message, PointMessage, RecordsMessage, RefusedMessage, WatermarkMessage } from './messages.ts';
import type { GroupOptions } from './options.ts';
import type { SelfIdentity, StoreView } from './store-view.ts';

export interface FollowTarget {
  readonly store: StoreId;
  readonly boot: BootId;
  readonly term: Term;
}

type Phase =
  | { readonly kind: 'waiting'; readonly untilMs: number }
  | { readonly kind: 'searching'; readonly proposal: ChainPoint; readonly sinceMs: number }
  | { readonly kind: 'streaming'; heardMs: number }
  | { readonly kind: 'rolling-back' };

export interface FollowerDeps<P> {
  readonly self: SelfIdentity;
  readonly view: StoreView;
  readonly options: GroupOptions;
  readonly alarm: Alarm;
  readonly emit: Emit<P>;
  readonly nextChannel: () => ChannelId;
  /** The machine ends. */
  readonly stop: (reason: StopReason, details: Readonly<Record<string, string | number>>) => void;
  /** The record may have changed. */
  readonly hint: () => void;
}

export class FollowerMachine<P> {
  readonly #deps: FollowerDeps<P>;
  #target: FollowTarget | undefined;
  #channel: ChannelId | undefined;
  #phase: Phase = { kind: 'waiting', untilMs: 0 };
  #reopenMs: number;
  #eligible = true;
  /** The log equals the primary's up to here, since the search of this channel ended. */
  #matched = NO_LSN;
  #acked = NO_LSN;
  /** W, where an effect that raises it was not performed yet. */
  #raised = NO_LSN;
  /** Highest W heard on this channel. */
  #heard = NO_LSN;

  constructor(deps: FollowerDeps<P>) {
    this.#deps = deps;
    this.#reopenMs = deps.options.reopenMs;
  }

  get target(): FollowTarget | undefined {
    return this.#target;
  }

  get phase(): Phase['kind'] {
    return this.#phase.kind;
  }

  get watermark(): Lsn {
    return Math.max(this.#raised, this.#deps.view.watermark) as Lsn;
  }

  /** Whom the newest record names; undefined where that is nobody else. */
  follow(target: FollowTarget | undefined): void {
    if (target?.term === this.#target?.term && target?.boot === this.#target?.boot) return;
    const higher = target !== undefined && target.term > (this.#target?.term ?? 0);
    this.#target = target;
    this.#reopenMs = this.#deps.options.reopenMs;
    if (this.#phase.kind === 'rolling-back') return;
    this.#leave(this.#deps.alarm.nowMs);
    if (this.#deps.options.broken === 'truncToW' && higher && this.#deps.view.end.lsn > this.watermark)
      this.#rollBack(this.#deps.view.pointAt(this.watermark));
  }

  setEligible(eligible: boolean): void {
    if (eligible === this.#eligible) return;
    this.#eligible = eligible;
    if (this.#phase.kind !== 'rolling-back') this.#leave(this.#deps.alarm.nowMs);
  }

  /** False for a message of another conversation. */
  onMessage(channel: ChannelId, message: Message<P>): boolean {
    if (channel !== this.#channel || this.#target === undefined) return false;
    if (message.kind === 'refused') this.#refused(message);
    if (message.term !== this.#target.term || message.generation !== this.#deps.self.generation) return true;
    if (message.kind === 'point') this.#answered(message);
    else if (message.kind === 'records') this.#received(message);
    else if (message.kind === 'watermark') this.#alive(message);
    return true;
  }

  onClosed(channel: ChannelId): void {
    if (channel === this.#channel) this.#reopen();
  }

  onAppendFailed(): void {
    this.setEligible(false);
  }

  onRolledBack(ok: boolean): void {
    if (this.#phase.kind !== 'rolling-back') return;
    if (ok) this.#leave(this.#deps.alarm.nowMs);
    else this.#reopen();
  }

  advance(): void {
    const { alarm, options, view } = this.#deps;
    if (this.#target === undefined) return;
    const phase = this.#phase;
    if (phase.kind === 'waiting' && alarm.due(phase.untilMs)) this.#open(this.#target);
    else if (phase.kind === 'searching' && alarm.due(phase.sinceMs + options.streamTimeoutMs)) this.#reopen();
    else if (phase.kind === 'streaming' && alarm.due(phase.heardMs + options.streamTimeoutMs)) this.#reopen();
    if (this.#phase.kind !== 'streaming') return;
    this.#raise();
    if (Math.min(this.#matched, view.durable) > this.#acked) this.#ack();
  }

  #open(target: FollowTarget): void {
    const { self, view, emit, alarm } = this.#deps;
    const { generation, store, boot } = self;
    this.#channel = this.#deps.nextChannel();
    [this.#matched, this.#acked, this.#heard] = [NO_LSN, NO_LSN, NO_LSN];
    const point = view.end;
    this.#phase = { kind: 'searching', proposal: point, sinceMs: alarm.nowMs };
    const { term } = target;
    emit({
      kind: 'send',
      channel: this.#channel,
      to: target.store,
      message: { kind: 'open', generation, term, store, boot, eligible: this.#eligible, point },
    });
    alarm.due(alarm.nowMs + this.#deps.options.streamTimeoutMs);
  }

  #refused({ term, reason }: RefusedMessage): void {
    const details = { primary: this.#target!.store, term };
    if (reason === 'superseded') return this.#deps.stop('superseded', details);
    if (reason === 'lost-acknowledged' && this.#deps.options.broken !== 'diskOld')
      return this.#deps.stop('lost-records', details);
    if (reason === 'term' || reason === 'not-primary') this.#deps.hint();
    this.#reopen();
  }

  #answered({ lsn, answer, watermark, term, generation }: PointMessage): void {
    const phase = this.#phase;
    if (phase.kind !== 'searching' || lsn !== phase.proposal.lsn) return;
    this.#hear(watermark);
    const { view, emit, alarm, stop } = this.#deps;
    if (answer.held === 'held') return this.#found(phase.proposal);
    const details = { primary: this.#target!.store, term, lsn, watermark: this.watermark };
    if (answer.held === 'diverged') return stop('diverged', details);
    if (answer.held === 'pruned') return stop('network-restore', details);
    const proposal = nextProposal(view, lsn, answer);
    if (proposal === undefined || proposal.lsn < this.watermark) return stop('below-watermark', details);
    this.#phase = { kind: 'searching', proposal, sinceMs: alarm.nowMs };
    emit({ kind: 'send', channel: this.#channel!, message: { kind: 'probe', generation, term, point: proposal } });
  }

  #found(point: ChainPoint): void {
    const { view, alarm, stop } = this.#deps;
    if (point.lsn < view.end.lsn) {
      if (point.lsn < this.watermark)
        return stop('below-watermark', { lsn: point.lsn, watermark: this.watermark, primary: this.#target!.store });
      return this.#rollBack(point);
    }
    this.#matched = point.lsn;
    this.#reopenMs = this.#deps.options.reopenMs;
    this.#phase = { kind: 'streaming', heardMs: alarm.nowMs };
    this.#ack();
  }

  #rollBack(to: ChainPoint): void {
    const { store, boot, term } = this.#target!;
    this.#leave(0);
    this.#phase = { kind: 'rolling-back' };
    this.#deps.emit({ kind: 'rollback', to, primary: { store, boot }, term });
  }

  #received({ previous, last, payload, watermark }: RecordsMessage<P>): void {
    if (this.#phase.kind !== 'streaming') return;
    this.#phase.heardMs = this.#deps.alarm.nowMs;
    const { view, emit, stop } = this.#deps;
    // The append before it has failed, and the news of that is still on its way.
    if (this.#matched > view.end.lsn) return this.#reopen();
    if (last.lsn <= this.#matched) {
      // A repetition, of records that this log has.
      if (last.lsn >= view.anchor.lsn && !samePoint(view.pointAt(last.lsn), last))
        return stop('diverged', { lsn: last.lsn, term: last.term, primary: this.#target!.store });
      return this.#ack();
    }
    if (previous.lsn !== view.end.lsn) return this.#reopen();
    if (!samePoint(previous, view.end))
      return stop('diverged', { lsn: previous.lsn, term: previous.term, primary: this.#target!.store });
    this.#matched = last.lsn;
    emit({ kind: 'append', payload, last });
    this.#hear(watermark);
  }

  #alive({ watermark, sent }: WatermarkMessage): void {
    if (this.#phase.kind !== 'streaming') return;
    this.#phase.heardMs = this.#deps.alarm.nowMs;
    if (sent > this.#matched) return this.#reopen();
    this.#hear(watermark);
    this.#ack();
  }

  #ack(): void {
    const { self, view, emit } = this.#deps;
    const { generation, store, boot } = self;
    this.#acked = Math.min(this.#matched, view.durable) as Lsn;
    const message = { kind: 'ack', generation, term: this.#target!.term, store, boot, lsn: this.#acked } as const;
    emit({ kind: 'send', channel: this.#channel!, message });
  }

  #hear(watermark: Lsn): void {
    this.#heard = Math.max(this.#heard, watermark) as Lsn;
    this.#raise();
  }

  #raise(): void {
    const { view, emit, options } = this.#deps;
    const matched = options.broken === 'wBeforeMatch' ? view.end.lsn : this.#matched;
    const lsn = Math.min(this.#heard, matched, view.durable) as Lsn;
    if (lsn <= this.watermark) return;
    this.#raised = lsn;
    emit({ kind: 'watermark', lsn });
  }

  #reopen(): void {
    const { alarm, options } = this.#deps;
    this.#leave(alarm.nowMs + this.#reopenMs);
    this.#reopenMs = Math.min(this.#reopenMs * 2, options.streamTimeoutMs);
  }

  #leave(untilMs: number): void {
    if (this.#channel !== undefined) this.#deps.emit({ kind: 'close', channel: this.#channel });
    this.#channel = undefined;
    this.#phase = { kind: 'waiting', untilMs };
    this.#deps.alarm.due(untilMs);
  }
}
