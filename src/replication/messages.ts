/**
 * What the nodes of a group say to each other about its log; SPEC.md says who sends what, when. `P` is what records travel
 * as: bytes for a driver, and whoever decodes them has derived `previous` and `last` from them.
 */
import type { BootId, Brand, Generation, Lsn, StoreId, Term } from '../base/brands.ts';
import type { ChainPoint } from '../log/chain.ts';

/** A conversation between two nodes, named by the side that opened it: its boot and a counter. */
export type ChannelId = Brand<string, 'ChannelId'>;

export interface OpenMessage {
  readonly kind: 'open';
  readonly generation: Generation;
  /** Of the record that named the primary. */
  readonly term: Term;
  readonly store: StoreId;
  readonly boot: BootId;
  /** False: it has no room or is damaged, and asks to be dropped. */
  readonly eligible: boolean;
  /** The end of its log, as the first proposal for the common point. */
  readonly point: ChainPoint;
}

export interface ProbeMessage {
  readonly kind: 'probe';
  readonly generation: Generation;
  readonly term: Term;
  readonly point: ChainPoint;
}

/** What a log knows about a point of another one. */
export type PointAnswer =
  | { readonly held: 'held' }
  /** Another record with this term and LSN. */
  | { readonly held: 'diverged' }
  /** Too far back to tell, or what follows cannot be read: it comes by a copy. */
  | { readonly held: 'pruned' }
  /** Not held. The last own term that is not above the asked one, and where it ends; 0 and 0 where there is none. */
  | { readonly held: 'below'; readonly term: Term; readonly lsn: Lsn };

export interface PointMessage {
  readonly kind: 'point';
  readonly generation: Generation;
  readonly term: Term;
  /** The LSN that was asked about. */
  readonly lsn: Lsn;
  readonly answer: PointAnswer;
  readonly watermark: Lsn;
}

export type RefusalReason =
  /** The primary leads in another term. */
  | 'term'
  | 'not-primary'
  | 'generation'
  /** Another boot of this store came after this one: one of the two is a copy. */
  | 'superseded'
  /** The store has less than it acknowledged in this term. */
  | 'lost-acknowledged'
  /** The wish to be dropped was heard. */
  | 'ineligible'
  /** Too many streams. */
  | 'full';

export interface RefusedMessage {
  readonly kind: 'refused';
  readonly generation: Generation;
  readonly term: Term;
  readonly reason: RefusalReason;
}

export interface RecordsMessage<P> {
  readonly kind: 'records';
  readonly generation: Generation;
  readonly term: Term;
  readonly watermark: Lsn;
  /** The record before the first one. */
  readonly previous: ChainPoint;
  readonly last: ChainPoint;
  readonly payload: P;
}

export interface WatermarkMessage {
  readonly kind: 'watermark';
  readonly generation: Generation;
  readonly term: Term;
  readonly watermark: Lsn;
  /** Records up to here were sent before this. */
  readonly sent: Lsn;
}

export interface AckMessage {
  readonly kind: 'ack';
  readonly generation: Generation;
  readonly term: Term;
  readonly store: StoreId;
  readonly boot: BootId;
  readonly lsn: Lsn;
}

export interface PingMessage {
  readonly kind: 'ping' | 'pong';
  readonly generation: Generation;
  readonly term: Term;
  readonly store: StoreId;
}

/** The record names the receiver, which may wait for its next reading otherwise. */
export interface LeadMessage {
  readonly kind: 'lead';
  readonly generation: Generation;
  readonly term: Term;
}

export type Message<P> =
  | OpenMessage
  | ProbeMessage
  | PointMessage
  | RefusedMessage
  | RecordsMessage<P>
  | WatermarkMessage
  | AckMessage
  | PingMessage
  | LeadMessage;
