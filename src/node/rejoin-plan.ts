/** What a directory that no process has open would do to come back to its group: `nostos rejoin --plan`. */
import { isNostosError } from '../base/errors.ts';
import type { Coordinator, Versioned } from '../coordination/coordinator.ts';
import { decideRejoin, type RejoinDecision, type RejoinFound } from './rejoin-decision.ts';
import { holdsPosition, withStopped, type StoreReport } from './stopped-directory.ts';

export interface RejoinPlan {
  readonly decision: RejoinDecision;
  readonly directory: StoreReport;
  /** What the coordinator holds; null: no record. `away`: it did not answer. */
  readonly group: Versioned | null | 'away';
}

export async function planRejoin(coordinator: Coordinator, dir: string): Promise<RejoinPlan> {
  return withStopped([dir], async ([found]) => {
    const { report } = found!;
    const seen = report.seen ?? undefined;
    const current = await readRecord(coordinator);
    const record = current === 'away' ? seen?.record : current?.record;
    const leader = record?.primary?.store;
    const facts: RejoinFound = {
      store: report.store,
      generation: report.generation,
      log: { end: report.end, watermark: report.watermark, anchor: report.anchor },
      holds: (position) => holdsPosition(report, position),
      coordinator: current === 'away' ? current : { current },
      seen,
      // Of this very store, it is a boot of the past. Whether another one lives shows when it is asked.
      primary: leader === undefined || leader === report.store ? 'none' : 'other',
      restoreUnfinished: report.restoreUnfinished,
      ...(report.damage !== undefined && { damage: report.damage }),
    };
    return { decision: decideRejoin(facts), directory: report, group: current ?? null };
  });
}

async function readRecord(coordinator: Coordinator): Promise<Versioned | undefined | 'away'> {
  try {
    return await coordinator.read();
  } catch (error) {
    if (isNostosError(error) && error.retry === 'safe') return 'away';
    throw error;
  }
}
