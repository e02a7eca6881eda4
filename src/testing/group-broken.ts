/**
 * Rules of what stands on the log whose breach loses data, as switches of the simulated node: tenants, rollback and
 * forced recovery. Those of replication are in its machines (`replication/options.ts`).
 */
import type { BrokenRule } from '../replication/options.ts';
import { BROKEN_RULES } from '../replication/options.ts';

export const BROKEN_STEPS = [
  /** The flag of a dropped record says whether W covered it, not whether its writer was answered. */
  'acknowledgedByW',
  /** A tenant takes a quorum write once it is fsynced here. */
  'commitAtSync',
  /** Who wrote what SQLite then could not COMMIT is told that the write failed. */
  'commitFailureTold',
  /** A rollback cuts the log before the tenants are where it is cut to. */
  'cutBeforeTenants',
  /** A rollback goes on while its file may still be lost with the power. */
  'fileNotSynced',
  /** What was done of a rollback is told at once, and not written down first. */
  'noOutbox',
  /** A restarted rollback knows nothing of its plan, and makes a new one of what is left. */
  'planRecomputed',
  /** Forced recovery goes on in the generation that lost records. */
  'recoverKeepsGeneration',
  /** A tenant that is opened takes all that the log has, committed or not. */
  'replayToEnd',
  /** A node that has begun to drop its tail goes on before it has ended that. */
  'standsHalfway',
  /** Tenants are undone, but the log is cut before that is durable. */
  'undoNotDurable',
] as const;
export type BrokenStep = (typeof BROKEN_STEPS)[number];
export type Broken = BrokenRule | BrokenStep;

export function isBrokenRule(broken: Broken | undefined): broken is BrokenRule {
  return (BROKEN_RULES as readonly (string | undefined)[]).includes(broken);
}
