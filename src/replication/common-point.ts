/**
 * The search for the last record that two logs share: one round trip per term in which they differ, then one hash. Terms
 * begin with a record of their own, and (term, LSN) names one record for ever, so two logs that have a term agree on it
 * from its term-start to where the shorter one leaves it.
 */
import type { Lsn } from '../base/brands.ts';
import { NO_LSN } from '../base/brands.ts';
import type { ChainPoint } from '../log/chain.ts';
import { samePoint } from '../log/chain.ts';
import type { PointAnswer } from './messages.ts';
import type { StoreView } from './store-view.ts';
import { beginning, endOfTerm } from './store-view.ts';

/** The primary's side. */
export function answerPoint(view: StoreView, point: ChainPoint): PointAnswer {
  const own = point.lsn === 0 ? 0 : view.terms.at(point.lsn)?.term;
  if (point.lsn > view.end.lsn || own !== point.term) {
    const { term, lsn } = endOfTerm(view, point.term);
    return { held: 'below', term, lsn };
  }
  // An empty store that was made in a later generation: this log begins in an earlier one, so it takes a copy.
  const begunElsewhere = point.lsn === 0 && point.generation !== view.anchor.generation;
  if (point.lsn < view.anchor.lsn || begunElsewhere) return { held: 'pruned' };
  if (view.readable?.(point.lsn) === false) return { held: 'pruned' };
  return { held: samePoint(view.pointAt(point.lsn), point) ? 'held' : 'diverged' };
}

/**
 * The follower's side: what to propose after `below`. Undefined where that lies before the first record that this log
 * still holds, and so below its W.
 */
export function nextProposal(
  view: StoreView,
  asked: Lsn,
  { term, lsn }: Extract<PointAnswer, { held: 'below' }>,
): ChainPoint | undefined {
  const own = endOfTerm(view, term);
  const at = Math.min(own.lsn, own.term === term ? lsn : own.lsn, Math.max(asked - 1, NO_LSN)) as Lsn;
  if (at < view.anchor.lsn) return undefined;
  return at === NO_LSN ? beginning(view) : view.pointAt(at);
}
