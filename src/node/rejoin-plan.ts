/** What a directory that no process has open would do to come back to its group: `nostos rejoin --plan`. */
import { acquireDirectoryLock } from '../base/directory-lock.ts';
import { systemDisk } from '../base/disk.ts';
import { isNostosError } from '../base/errors.ts';
import type { Coordinator, Versioned } from '../coordination/coordinator.ts';
import { readMarker } from '../restore/local/marker.ts';
import { decideRejoin, type RejoinDecision, type RejoinFound } from './rejoin-decision.ts';
import { RejoinFile } from './rejoin-file.ts';
import { begunAnew, type RejoinProgress } from './rejoin-progress.ts';
import { VERSION } from './runtime.ts';
import { holdsPosition, withStopped, type StoppedDirectory, type StoreReport } from './stopped-directory.ts';

export interface RejoinPlan {
  readonly decision: RejoinDecision;
  readonly directory: StoreReport;
  /** What the coordinator holds; null: no record. `away`: it did not answer. */
  readonly group: Versioned | null | 'away';
  /** What was tried until now; null: nothing. */
  readonly progress: RejoinProgress | null;
}

export async function planRejoin(coordinator: Coordinator, dir: string): Promise<RejoinPlan> {
  return withStopped([dir], async ([found]) => {
    const { report } = found!;
    const file = new RejoinFile(systemDisk, dir);
    const current = await readRecord(coordinator);
    const decision = decideRejoin(factsOf(found!, current, file));
    return { decision, directory: report, group: current ?? null, progress: file.progress ?? null };
  });
}

/** Attempts count from the start again: somebody has seen to what made them fail. */
export async function rejoinAnew(dir: string, nowMs: number): Promise<RejoinProgress | null> {
  const holder = { command: process.argv.slice(1).join(' '), version: VERSION };
  // There need not be a node in it: perhaps that is what could not be fetched.
  using _lock = await acquireDirectoryLock({ dir, timeoutMs: 0, holder });
  const file = new RejoinFile(systemDisk, dir);
  if (file.progress !== undefined) file.setProgress(begunAnew(file.progress, nowMs));
  return file.progress ?? null;
}

/** What a stopped directory shows, with what was found out about it before. Of the primary it only knows who is named. */
export function factsOf(
  { dir, report }: StoppedDirectory,
  current: Versioned | undefined | 'away',
  file: RejoinFile,
): RejoinFound {
  const seen = report.seen ?? undefined;
  const record = current === 'away' ? seen?.record : current?.record;
  const leader = record?.primary?.store;
  return {
    store: report.store,
    generation: report.generation,
    log: { end: report.end, watermark: report.watermark, anchor: report.anchor },
    holds: (position) => holdsPosition(report, position),
    coordinator: current === 'away' ? current : { current },
    seen,
    // Of this very store, it is a boot of the past. Whether another one lives shows when it is asked.
    primary: leader === undefined || leader === report.store ? 'none' : 'other',
    ...unfinishedIn(dir),
    ...(report.damage !== undefined && { damage: report.damage }),
    ...file.findingOf(report.store),
  };
}

/** What a restore that was cut off means to a decision. */
export function unfinishedIn(dir: string): Pick<RejoinFound, 'restoreUnfinished'> {
  const phase = readMarker(systemDisk, dir)?.phase;
  if (phase === undefined) return {};
  return { restoreUnfinished: phase === 'fetching' ? phase : 'swapping' };
}

export async function readRecord(coordinator: Coordinator): Promise<Versioned | undefined | 'away'> {
  try {
    return await coordinator.read();
  } catch (error) {
    if (isNostosError(error) && error.retry === 'safe') return 'away';
    throw error;
  }
}
