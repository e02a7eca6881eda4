/**
 * The states of a journalled run, and what to do with an unfinished one: pure, and total. The journal is written with the
 * new state before the next step is taken, so the state never says more than what is on the disk.
 */
import { unreachable } from '../../base/assert.ts';
import type { CommonPoint, NewPrimary, Plan, Point, PreservedFile } from '../types.ts';

export const RUN_STATES = ['planned', 'preserved', 'recovering', 'recovered', 'announced', 'rejoined'] as const;
export type RunState = (typeof RUN_STATES)[number];

export type Intent =
  | { readonly state: 'planned'; readonly plan: Plan }
  | { readonly state: Exclude<RunState, 'planned'>; readonly plan: Plan; readonly file: PreservedFile };

export type RunEvent =
  | { readonly kind: 'begin'; readonly plan: Plan }
  | { readonly kind: 'preserved'; readonly file: PreservedFile }
  | { readonly kind: 'recover' }
  | { readonly kind: 'recovered' }
  | { readonly kind: 'announced' }
  | { readonly kind: 'rejoined' };

/** Undefined where the event cannot come in this state: a defect of the caller. */
export function step(intent: Intent | undefined, event: RunEvent): Intent | undefined {
  switch (event.kind) {
    case 'begin':
      return intent === undefined || ['planned', 'preserved', 'rejoined'].includes(intent.state)
        ? { state: 'planned', plan: event.plan }
        : undefined;
    case 'preserved':
      return intent?.state === 'planned' ? { state: 'preserved', plan: intent.plan, file: event.file } : undefined;
    case 'recover':
      // Also from where the tail was gone: it is there again.
      return move(intent, ['preserved', 'recovering', 'recovered', 'announced'], 'recovering');
    case 'recovered':
      return move(intent, ['recovering'], 'recovered');
    case 'announced':
      return move(intent, ['recovered'], 'announced');
    case 'rejoined':
      return move(intent, ['announced'], 'rejoined');
    default:
      return unreachable(event);
  }
}

function move(
  intent: Intent | undefined,
  from: readonly RunState[],
  to: Exclude<RunState, 'planned'>,
): Intent | undefined {
  if (intent === undefined || intent.state === 'planned' || !from.includes(intent.state)) return undefined;
  return { ...intent, state: to };
}

export interface Found {
  readonly common: CommonPoint;
  readonly primary: NewPrimary;
  /** The last record as it is now. */
  readonly frontier: Point;
}

export type Resume =
  /** There is nothing to resume. */
  | 'begin'
  /** Nothing was dropped: the plan is given up, a new one is made. */
  | 'discard'
  | 'continue'
  /** What was dropped is there again: back to `recovering`, and decide again. */
  | 'recover-again'
  /** The log has gone on with a later primary: the tail was gone, and the process died before it could say so. */
  | 'followed'
  /** The earlier run is brought to its announcement, then a new one is planned. */
  | 'finish-first'
  /** Records were appended that are in no file. */
  | 'refuse';

export function resume(intent: Intent | undefined, { common, primary, frontier }: Found): Resume {
  if (intent === undefined || intent.state === 'rejoined') return 'begin';
  const { plan, state } = intent;
  const same = samePlace(plan.common, common) && primary.term >= plan.primary.term;
  const within = frontier.lsn <= plan.frontier.lsn && frontier.term <= plan.frontier.term;
  switch (state) {
    case 'planned':
      return same && within && frontier.lsn === plan.frontier.lsn && frontier.term === plan.frontier.term
        ? 'continue'
        : 'discard';
    case 'preserved':
      return same && within ? 'continue' : 'discard';
    case 'recovering':
      if (within) return same ? 'continue' : 'finish-first';
      return frontier.term >= plan.primary.term ? 'followed' : 'refuse';
    case 'recovered':
    case 'announced':
      if (frontier.lsn <= plan.common.lsn) return same ? 'continue' : 'finish-first';
      if (within) return 'recover-again';
      return frontier.term >= plan.primary.term ? 'finish-first' : 'refuse';
    default:
      return unreachable(state);
  }
}

function samePlace(a: CommonPoint, b: CommonPoint): boolean {
  return a.lsn === b.lsn && a.term === b.term && a.hash === b.hash;
}
