/** The life of one restore: state × call, complete. One instance is one attempt. */
import { NostosError } from '../../base/errors.ts';
import type { RestoreState } from './types.ts';

export type RestoreCall = 'start' | 'execute' | 'complete' | 'fail';

/** The next state, or why there is none. `execute` begins as `start` does. */
export const TRANSITIONS: Readonly<
  Record<RestoreCall, Readonly<Record<RestoreState, { readonly to: RestoreState } | { readonly refused: string }>>>
> = {
  start: {
    NotStarted: { to: 'InProgress' },
    InProgress: { refused: 'already in progress' },
    Completed: { refused: 'already completed' },
    Failed: { refused: 'already failed; create a new instance' },
  },
  execute: {
    NotStarted: { to: 'InProgress' },
    InProgress: { refused: 'wrong state: it is in progress' },
    Completed: { refused: 'wrong state: it has completed; create a new instance' },
    Failed: { refused: 'wrong state: it has failed; create a new instance' },
  },
  complete: {
    NotStarted: { refused: 'wrong state: it was not started' },
    InProgress: { to: 'Completed' },
    Completed: { refused: 'wrong state: it has completed' },
    Failed: { refused: 'wrong state: it has failed' },
  },
  fail: {
    NotStarted: { refused: 'wrong state: it was not started' },
    InProgress: { to: 'Failed' },
    Completed: { refused: 'wrong state: it has completed' },
    Failed: { refused: 'wrong state: it has failed' },
  },
};

export function nextState(state: RestoreState, call: RestoreCall): RestoreState {
  const transition = TRANSITIONS[call][state];
  if ('to' in transition) return transition.to;
  throw new NostosError('RESTORE_STATE', `cannot ${call} this restore: ${transition.refused}`, {
    details: { state, call },
  });
}
