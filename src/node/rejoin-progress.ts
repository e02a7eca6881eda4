/**
 * How far the way back to the group is: which step is tried, how often, and what came of those before. Pure; whoever takes
 * the steps says what came of them, and does what `current` says next. It ends: a step is tried `rejoinAttemptsMax` times,
 * then the next safe one, and the last of them as often as is left; after `rejoinTotalAttemptsMax` in all ways together
 * nothing more is tried, until the node has come back (`arrived`) or somebody says so (`begunAnew`). All of it is plain
 * data, kept in `rejoin.json` (`rejoin-file.ts`), for status, the status page and metrics.
 */
import type { RejoinAction, RejoinDecision, RejoinRow } from './rejoin-decision.ts';
import { NOT_BUILT } from './rejoin-decision.ts';

export interface RejoinLimits {
  readonly rejoinAttemptsMax: number;
  readonly rejoinTotalAttemptsMax: number;
}

export interface RejoinStep {
  readonly action: RejoinAction;
  /** What it was done about. */
  readonly row: RejoinRow;
  readonly outcome: 'failed' | 'not-built' | 'done';
  readonly why: string;
  readonly atMs: number;
}

export interface RejoinProgress {
  readonly decision: RejoinDecision;
  /** What is to be done now; `operator`: nothing more, a person decides. */
  readonly current: RejoinAction;
  /** Of `current`, from 1. */
  readonly attempt: number;
  /** Of all actions since the node was last where it belongs. */
  readonly attemptsTotal: number;
  /** Of all actions, those that succeeded too, since there is this directory. */
  readonly attemptsEver: number;
  /** The last ones, oldest first. */
  readonly history: readonly RejoinStep[];
  readonly sinceMs: number;
}

const HISTORY_MAX = 32;
/** They wait, or are where a node belongs: being told the same again is no attempt. */
const RESTING: ReadonlySet<RejoinAction> = new Set(['wait', 'go-on', 'lead', 'stand', 'stop', 'refuse', 'operator']);

interface Past {
  readonly before?: RejoinProgress | undefined;
  readonly limits: RejoinLimits;
  readonly nowMs: number;
}

/** Takes up a decision; the same one as before goes on counting where it was, and so does what was tried in vain. */
export function takeUp(decision: RejoinDecision, { before, limits, nowMs }: Past): RejoinProgress {
  const attemptsTotal = before?.attemptsTotal ?? 0;
  const { history = [], attemptsEver = 0 } = before ?? {};
  const fresh = {
    decision,
    current: decision.action,
    attempt: 1,
    attemptsTotal,
    attemptsEver,
    history,
    sinceMs: nowMs,
  };
  const isSame = before?.decision.row === decision.row && before.decision.action === decision.action;
  if (before !== undefined && isSame)
    return RESTING.has(before.current) ? { ...before, decision } : settle({ ...before, decision }, limits, nowMs);
  if (RESTING.has(decision.action)) return fresh;
  return settle(fresh, limits, nowMs);
}

export function stepFailed(
  progress: RejoinProgress,
  why: string,
  { limits, nowMs }: { readonly limits: RejoinLimits; readonly nowMs: number },
): RejoinProgress {
  const { current, attempt, attemptsTotal, attemptsEver } = progress;
  if (current === 'operator') return progress;
  const failed = {
    ...progress,
    attemptsTotal: attemptsTotal + 1,
    attemptsEver: attemptsEver + 1,
    history: noted(progress, { action: current, row: progress.decision.row, outcome: 'failed', why, atMs: nowMs }),
  };
  const next = after(progress);
  // A person is no safer way, only the end of them.
  if (attempt < limits.rejoinAttemptsMax || next === 'operator')
    return settle({ ...failed, attempt: attempt + 1 }, limits, nowMs);
  return settle({ ...failed, current: next, attempt: 1 }, limits, nowMs);
}

/** It was done; whether the node has come back with it shows later, and until then it is an attempt like others. */
export function stepDone(
  progress: RejoinProgress,
  why: string,
  { nowMs, action = progress.current }: { readonly nowMs: number; readonly action?: RejoinAction },
): RejoinProgress {
  const step: RejoinStep = { action, row: progress.decision.row, outcome: 'done', why, atMs: nowMs };
  const { attemptsTotal, attemptsEver } = progress;
  return {
    ...progress,
    attemptsTotal: attemptsTotal + 1,
    attemptsEver: attemptsEver + 1,
    history: noted(progress, step),
  };
}

/** A person says that it is worth trying again. */
export function begunAnew(progress: RejoinProgress, nowMs: number): RejoinProgress {
  return { ...arrived(progress, nowMs), current: progress.decision.action };
}

/** The node streams or leads: what it took to get there counts no longer. */
export function arrived(progress: RejoinProgress, nowMs: number): RejoinProgress {
  return { ...progress, attempt: 1, attemptsTotal: 0, sinceMs: nowMs };
}

/** Passes over what is not built, and says so; ends where too much was tried. */
function settle(progress: RejoinProgress, limits: RejoinLimits, nowMs: number): RejoinProgress {
  if (progress.attemptsTotal >= limits.rejoinTotalAttemptsMax) return { ...progress, current: 'operator', attempt: 1 };
  if (!NOT_BUILT.has(progress.current)) return progress;
  const why = `${progress.current} is not built yet`;
  const { current: action, decision } = progress;
  const history = noted(progress, { action, row: decision.row, outcome: 'not-built', why, atMs: nowMs });
  return settle({ ...progress, history, current: after(progress), attempt: 1 }, limits, nowMs);
}

function after({ decision: { action, next }, current }: RejoinProgress): RejoinAction {
  const ways = [action, ...next];
  return ways[ways.indexOf(current) + 1] ?? 'operator';
}

function noted({ history }: RejoinProgress, step: RejoinStep): readonly RejoinStep[] {
  return [...history, step].slice(-HISTORY_MAX);
}

/** One line for people: what is done now, why, and what comes if it fails. */
export function describeRejoin({ decision, current, attempt, history }: RejoinProgress): string {
  const last = history.at(-1);
  const instead = current === decision.action || last === undefined ? '' : `; instead of ${last.action}: ${last.why}`;
  const again = attempt > 1 ? ` (attempt ${attempt})` : '';
  return `${current}${again}: ${decision.reason}${instead}`;
}
