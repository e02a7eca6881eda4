/** Which snapshots a policy keeps. Pure. Hours, days and weeks are those of UTC; a week begins on Monday. */
import { NostosError } from '../../base/errors.ts';
import type { SnapshotId } from './manifest.ts';

export interface KeepPolicy {
  /** The newest ones. */
  readonly last?: number;
  /** The newest one of each of the last so many hours (days, weeks) that have any. */
  readonly hourly?: number;
  readonly daily?: number;
  readonly weekly?: number;
}

export interface DatedSnapshot {
  readonly id: SnapshotId;
  readonly createdAtMs: number;
}

export type KeepReason = 'newest' | 'pinned' | keyof KeepPolicy;

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
/** The epoch was a Thursday. */
const PERIODS = {
  hourly: (ms: number) => Math.floor(ms / HOUR_MS),
  daily: (ms: number) => Math.floor(ms / DAY_MS),
  weekly: (ms: number) => Math.floor((ms + 3 * DAY_MS) / (7 * DAY_MS)),
} as const;

/** What is kept, and why; the newest one always is. Whatever is not in the answer may go. */
export function choose(
  snapshots: readonly DatedSnapshot[],
  pinned: ReadonlySet<SnapshotId>,
  policy: KeepPolicy,
): ReadonlyMap<SnapshotId, readonly KeepReason[]> {
  for (const [name, count] of Object.entries(policy) as [string, number | undefined][])
    if (count !== undefined && !(Number.isSafeInteger(count) && count >= 0))
      throw new NostosError('INVALID_ARGUMENT', `keep ${name} must be a whole number from 0, got ${String(count)}`);
  if (!Object.values(policy).some((count) => count > 0))
    throw new NostosError('INVALID_ARGUMENT', 'A policy that keeps nothing is refused: say what to keep');
  const kept = new Map<SnapshotId, KeepReason[]>();
  const keep = (id: SnapshotId, reason: KeepReason): void => {
    const reasons = kept.get(id);
    if (reasons === undefined) kept.set(id, [reason]);
    else reasons.push(reason);
  };
  const newestFirst = snapshots.toSorted((a, b) => b.createdAtMs - a.createdAtMs || (a.id < b.id ? 1 : -1));
  for (const { id } of newestFirst.slice(0, 1)) keep(id, 'newest');
  for (const { id } of newestFirst.slice(0, policy.last ?? 0)) keep(id, 'last');
  for (const [name, periodOf] of Object.entries(PERIODS) as [keyof typeof PERIODS, (ms: number) => number][]) {
    const seen = new Set<number>();
    for (const { id, createdAtMs } of newestFirst) {
      const period = periodOf(createdAtMs);
      if (seen.has(period)) continue;
      if (seen.size >= (policy[name] ?? 0)) break;
      seen.add(period);
      keep(id, name);
    }
  }
  for (const { id } of newestFirst) if (pinned.has(id)) keep(id, 'pinned');
  return kept;
}
