/** What happens to a machine, and what it wants done. */
import type { BootId, Lsn, StoreId, Term } from '../base/brands.ts';
import type { CasResult, GroupRecord, Versioned } from '../coordination/coordinator.ts';
import type { ChainPoint } from '../log/chain.ts';
import type { ChannelId, Message } from './messages.ts';

/** A change of the members: a newcomer once it has caught up, perhaps in the place of another; or one that goes. */
export interface MemberChange {
  readonly add?: StoreId;
  readonly remove?: StoreId;
  readonly minInSync?: number;
}

export type GroupEvent<P> =
  /** `wakeAtMs` has come, or somebody thinks that the record has changed (`hint`). */
  | { readonly kind: 'tick' }
  | { readonly kind: 'hint' }
  | { readonly kind: 'read-answered'; readonly request: number; readonly current: Versioned | undefined }
  | { readonly kind: 'cas-answered'; readonly request: number; readonly result: CasResult }
  /** No answer: a CAS may or may not have been, or may yet be, performed. */
  | { readonly kind: 'request-failed'; readonly request: number }
  | { readonly kind: 'message'; readonly channel: ChannelId; readonly message: Message<P> }
  | { readonly kind: 'channel-closed'; readonly channel: ChannelId }
  /** Records of this channel up to there were handed to the network, and more may follow. */
  | { readonly kind: 'fed'; readonly channel: ChannelId; readonly to: Lsn }
  /** The store has moved: appended, fsynced or applied. */
  | { readonly kind: 'progress' }
  /** An `append` could not be performed (no room); nothing of it was kept. */
  | { readonly kind: 'append-failed' }
  | { readonly kind: 'rolled-back'; readonly ok: boolean }
  | { readonly kind: 'stepped-down' }
  /** A write or fsync failed: the term ends, and this machine with it. */
  | { readonly kind: 'log-failed' }
  /** Known of an earlier boot: the store lacks records that it has acknowledged. */
  | { readonly kind: 'lost-records' }
  /** Whether the store is whole and has room, and so may be in sync. */
  | { readonly kind: 'eligible'; readonly eligible: boolean }
  | { readonly kind: 'handover'; readonly to?: StoreId }
  /** Since `drain` no write is under way; the log has its last record. */
  | { readonly kind: 'drained' }
  | { readonly kind: 'change-members'; readonly change: MemberChange };

/** Why a machine has stopped for good; with the place of it in the rejoin decision. */
export type StopReason =
  /** The coordinator answered with an older record, or none. */
  | 'coordinator-regressed'
  /** The record is of another generation. */
  | 'generation'
  /** The common point with the primary is below own W. */
  | 'below-watermark'
  /** One (term, LSN) with two hashes. */
  | 'diverged'
  /** The primary has pruned what is needed next. */
  | 'network-restore'
  /** In sync, and `committed` is not there; or less is there than was acknowledged: the disk is not the one it was. */
  | 'lost-records'
  /** Another process has the same store open. */
  | 'superseded'
  /** A write or fsync failed: open the store again. */
  | 'log-failed'
  /**
   * Something threw where nothing may: a defect, or a record that cannot be read. No machine says this of itself; whoever
   * drives it ends it, and begins anew under another boot.
   */
  | 'failed';

export type StepDownReason = 'deposed' | 'higher-term' | 'stalled' | 'handed-over' | 'stopped' | 'log-failed';

export type Effect<P> =
  | { readonly kind: 'read'; readonly request: number }
  | {
      readonly kind: 'cas';
      readonly request: number;
      readonly expectedVersion: number;
      readonly record: GroupRecord;
    }
  /** With `to`: opens the channel to the node that has this store open. */
  | { readonly kind: 'send'; readonly channel: ChannelId; readonly to?: StoreId; readonly message: Message<P> }
  /** Send records of the own log as `records` messages, as many of these as fit, and say `fed`. */
  | {
      readonly kind: 'feed';
      readonly channel: ChannelId;
      readonly term: Term;
      readonly from: Lsn;
      readonly to: Lsn;
      readonly watermark: Lsn;
    }
  | { readonly kind: 'close'; readonly channel: ChannelId }
  /** Append the term-start, and fsync. */
  | { readonly kind: 'start-term'; readonly term: Term; readonly watermark: Lsn }
  /** Append what was received, and fsync. */
  | { readonly kind: 'append'; readonly payload: P; readonly last: ChainPoint }
  /** Everything up to there is committed: apply it, answer who waits, keep it. */
  | { readonly kind: 'watermark'; readonly lsn: Lsn }
  /** Keep what is above in a file, then drop it; answered by `rolled-back`. */
  | {
      readonly kind: 'rollback';
      readonly to: ChainPoint;
      readonly primary: { readonly store: StoreId; readonly boot: BootId };
      readonly term: Term;
    }
  /** Writes and reads may begin. */
  | { readonly kind: 'lead'; readonly term: Term }
  /** Begin no more writes; `drained` when the last one is in the log. */
  | { readonly kind: 'drain' }
  /** The handover was given up: writes go on. */
  | { readonly kind: 'resume' }
  /** Roll back open transactions, answer who waits with OUTCOME_UNKNOWN; answered by `stepped-down`. */
  | { readonly kind: 'step-down'; readonly term: Term; readonly reason: StepDownReason }
  | { readonly kind: 'members-changed'; readonly change: MemberChange; readonly ok: boolean; readonly why?: string }
  | {
      readonly kind: 'stop';
      readonly reason: StopReason;
      readonly details: Readonly<Record<string, string | number>>;
    };

export type Emit<P> = (effect: Effect<P>) => void;
