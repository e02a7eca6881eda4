/** Times and bounds of a group. */
import { NostosError } from '../base/errors.ts';
import { DEFAULT_LIMITS } from '../base/limits.ts';

const NAMES = [
  'leaseMs',
  'clockDriftMax',
  'renewIntervalMs',
  'coordinatorPollMs',
  'coordinatorRetryMs',
  'ackTimeoutMs',
  'streamHeartbeatMs',
  'streamTimeoutMs',
  'reopenMs',
  'streamWindowRecords',
  'streamBatchRecords',
  'streamsMax',
  'probeWaitMs',
  'termStartTimeoutMs',
  'commitStallMs',
  'candidateBackoffMs',
  'candidateBackoffMaxMs',
  'handoverTimeoutMs',
] as const;

export type GroupLimits = Readonly<Record<(typeof NAMES)[number], number>>;

export interface GroupOptions extends GroupLimits {
  /** For tests: the one rule that this machine breaks. */
  readonly broken?: BrokenRule;
}

/** Refuses times that do not fit each other: with them a group never changes its primary, or always. */
export function checkGroupLimits(limits: GroupLimits): GroupLimits {
  const { leaseMs, clockDriftMax } = limits;
  const rules: readonly (readonly [fits: boolean, why: string])[] = [
    [clockDriftMax >= 0 && clockDriftMax < 0.5, 'clockDriftMax is a share from 0 to 0.5'],
    [limits.renewIntervalMs * 2 <= leaseMs, 'renewIntervalMs is at most half of leaseMs'],
    [limits.coordinatorPollMs * 4 <= leaseMs, 'coordinatorPollMs is at most a quarter of leaseMs'],
    [limits.streamHeartbeatMs * 2 <= limits.streamTimeoutMs, 'streamHeartbeatMs is at most half of streamTimeoutMs'],
  ];
  for (const [fits, why] of rules)
    if (!fits) throw new NostosError('INVALID_ARGUMENT', why, { details: { ...limits } });
  return limits;
}

/** Rules whose breach loses data, as in the model that the design was checked with; a simulation must find each. */
export const BROKEN_RULES = [
  /** Acks count whatever term and stream they are of. */
  'ackNoTerm',
  /** A store that is not in sync takes over. */
  'anyTakes',
  /** A proposal is taken for confirmed when it is sent. */
  'assumeProposed',
  /** An open proposal requires nobody. */
  'confirmedOnly',
  /** A directory of the past is not looked for. */
  'diskOld',
  /** The primary counts its own records before its fsync. */
  'noSelfFsync',
  /** A lost disk comes back empty as the same store. */
  'noStoreId',
  /** A newcomer needs W only, not the term-start. */
  'noTermStart',
  /** Reading the same version again resolves an unanswered CAS. */
  'rereadResolves',
  /** After stepping down, writers are still answered by LSN. */
  'resolveByLsn',
  /** A restarted primary goes on in its term. */
  'resumeTerm',
  /** A new primary drops its own tail above W. */
  'takerTruncates',
  /** A follower drops its tail above W when it hears of a new term. */
  'truncToW',
  /** W counts up to the end of the log instead of what matched. */
  'wBeforeMatch',
] as const;
export type BrokenRule = (typeof BROKEN_RULES)[number];

export const DEFAULT_GROUP_LIMITS: GroupLimits = Object.fromEntries(
  NAMES.map((name) => [name, DEFAULT_LIMITS[name]]),
) as GroupLimits;
