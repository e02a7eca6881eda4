/** Whether a rollback is made at all: pure, and total. */
import { NostosError } from '../base/errors.ts';
import { tooLarge, type CommonPoint, type NewPrimary, type Point, type RollbackLimits } from './types.ts';

export interface PlanRequest {
  readonly common: CommonPoint;
  readonly primary: NewPrimary;
  readonly selfAddress?: string;
}

export interface PlanState {
  readonly frontier: Point;
  readonly watermark: number;
  readonly generation: string;
  readonly store?: string;
}

export interface PlanRules {
  readonly limits: RollbackLimits;
  readonly override: boolean;
  /** The highest own watermark that an earlier run has seen. */
  readonly seen: { readonly generation: string; readonly lsn: number; readonly store?: string };
}

export type Decision =
  | { readonly kind: 'refuse'; readonly error: NostosError; readonly frontier: Point; readonly watermark: number }
  /** There is no tail. */
  | { readonly kind: 'rejoin' }
  | { readonly kind: 'roll-back'; readonly target: CommonPoint; readonly tailLsns: number };

/**
 * The guard is the node's own watermark, and it comes before the question whether there is a tail: a common point below
 * it means that something is wrong even then. The new primary's watermark may well be above ours; it says nothing about
 * what we hold.
 */
export function decide(request: PlanRequest, state: PlanState, rules: PlanRules): Decision {
  const { common, primary } = request;
  const { frontier, watermark } = state;
  const error = refusal(request, state, rules);
  if (error !== undefined) return { kind: 'refuse', error, frontier, watermark };
  if (frontier.lsn <= common.lsn) return { kind: 'rejoin' };
  const tailLsns = frontier.lsn - common.lsn;
  const { tailRecordsMax } = rules.limits;
  if (!rules.override && tailLsns > tailRecordsMax)
    return {
      kind: 'refuse',
      error: tooLarge('records', 'tailRecordsMax', tailLsns, tailRecordsMax),
      frontier,
      watermark,
    };
  // A term of 0 is not known.
  if (frontier.term > 0 && frontier.term >= primary.term)
    return {
      kind: 'refuse',
      error: refused(
        `the log ends in term ${frontier.term}, and the primary ${primary.address} is of term ${primary.term}, which is not above it`,
        { frontier, primary },
      ),
      frontier,
      watermark,
    };
  return { kind: 'roll-back', target: common, tailLsns };
}

/** A copy has taken the place of the store. What it holds is another question, and so is its W. */
export function isReplaced(then: { readonly store?: string }, now: { readonly store?: string }): boolean {
  return then.store !== undefined && now.store !== undefined && then.store !== now.store;
}

function refusal(
  { common, primary, selfAddress }: PlanRequest,
  state: PlanState,
  { seen }: PlanRules,
): NostosError | undefined {
  const { watermark, generation } = state;
  const sameLog = seen.generation === generation && !isReplaced(seen, state);
  if (selfAddress === primary.address)
    return refused(`the new primary's address ${primary.address} is this node's own`, { primary });
  if (sameLog && watermark < seen.lsn)
    return refused(`this node's own watermark fell from ${seen.lsn} to ${watermark}; restore the node from a peer`, {
      watermark,
      seen: seen.lsn,
    });
  if (common.lsn < watermark)
    return new NostosError(
      'WATERMARK_VIOLATION',
      `the common point with ${primary.address} is LSN ${common.lsn}, below this node's own watermark ${watermark}: what is committed is never dropped. Find out which of the two has the wrong history`,
      { details: { commonPoint: common.lsn, commitWatermark: watermark } },
    );
  return undefined;
}

function refused(why: string, details: Readonly<Record<string, unknown>>): NostosError {
  return new NostosError('ROLLBACK_REFUSED', `${why}; nothing was dropped`, { details });
}
