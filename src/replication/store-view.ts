/** What the machines see of their own store: where its log ends, what of it is safe, and which terms it has. */
import type { BootId, Generation, Lsn, Position, StoreId, Term } from '../base/brands.ts';
import { NO_LSN, NO_TERM } from '../base/brands.ts';
import type { ChainPoint } from '../log/chain.ts';
import { genesis } from '../log/chain.ts';
import type { TermTable } from '../log/terms.ts';

export interface SelfIdentity {
  readonly generation: Generation;
  readonly store: StoreId;
  readonly boot: BootId;
}

export interface StoreView {
  /** The last record that was appended, fsynced or not. */
  readonly end: ChainPoint;
  /** Records up to here are fsynced. */
  readonly durable: Lsn;
  /** W as this store knows it. */
  readonly watermark: Lsn;
  /** Tenants have what is committed up to here. */
  readonly applied: Lsn;
  /** The record before the first one that is still held. */
  readonly anchor: ChainPoint;
  readonly terms: TermTable;
  /** A record from the anchor to the end. */
  pointAt(lsn: Lsn): ChainPoint;
  /** Whether it and what follows can be read, as far as is known: a log may be damaged behind its end. Absent: yes. */
  readable?(lsn: Lsn): boolean;
}

/** The position of an LSN of this log, for good: the term table is never pruned. */
export function positionAt(view: Pick<StoreView, 'terms' | 'end'>, lsn: Lsn): Position {
  const entry = view.terms.at(lsn);
  if (entry !== undefined) return { generation: entry.generation, term: entry.term, lsn };
  return { generation: view.end.generation, term: NO_TERM, lsn: NO_LSN };
}

/** Whether the position is on disk here. */
export function holdsDurably(view: StoreView, position: Position | null): boolean {
  return position === null || position.lsn === 0 || view.terms.contains(position, view.durable);
}

/** The last record of the last term that is not above `term`; before the first one where there is none. */
export function endOfTerm(
  view: Pick<StoreView, 'terms' | 'end'>,
  term: Term,
): { readonly term: Term; readonly lsn: Lsn } {
  const { entries } = view.terms;
  const index = entries.findLastIndex((entry) => entry.term <= term);
  const entry = entries[index];
  if (entry === undefined) return { term: NO_TERM, lsn: NO_LSN };
  const next = entries[index + 1];
  return { term: entry.term, lsn: next === undefined ? view.end.lsn : ((next.firstLsn - 1) as Lsn) };
}

export function beginning(view: StoreView): ChainPoint {
  return genesis(view.end.generation);
}

/** What a store can say of a position that somebody was given. */
export type PositionOutlook =
  /** It is committed here, on this very history. */
  | { readonly kind: 'reached' }
  /** It may yet come. */
  | { readonly kind: 'ahead' }
  /** It never will: the histories part after `fork`. */
  | { readonly kind: 'lost'; readonly fork: Position };

export function outlookOf(view: Pick<StoreView, 'terms' | 'end' | 'watermark'>, position: Position): PositionOutlook {
  const { generation, term, lsn } = position;
  const { watermark, terms } = view;
  if (lsn <= watermark && terms.contains(position, watermark)) return { kind: 'reached' };
  const current = terms.at(watermark);
  if (current === undefined)
    return lsn > watermark ? { kind: 'ahead' } : { kind: 'lost', fork: positionAt(view, NO_LSN) };
  const index = terms.generations.findIndex((one) => one.generation === generation);
  if (index < 0)
    // One with a higher term may have begun since, elsewhere: what is its, nobody here can call lost.
    return term > current.term ? { kind: 'ahead' } : { kind: 'lost', fork: positionAt(view, NO_LSN) };
  // Records of a term end before the next one begins, so what is committed in a later term ends all earlier ones.
  if (lsn > watermark && generation === current.generation && term >= current.term) return { kind: 'ahead' };
  const next = terms.generations[index + 1]?.firstLsn ?? Infinity;
  const { lsn: end } = endOfTerm(view, term);
  return { kind: 'lost', fork: positionAt(view, Math.min(end, next - 1, lsn, watermark) as Lsn) };
}
