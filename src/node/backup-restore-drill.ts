/** Whether a backup comes back, tried: into a directory of its own, checked, opened, and removed again. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { restoreBackup, type RestoreBackupOptions, type RestoreBackupReport } from './backup-restore.ts';
import { openNode } from './open-node.ts';

export interface DrillOptions extends Omit<RestoreBackupOptions, 'dir' | 'mode' | 'discard'> {
  readonly from: string;
  /** Where the directory is made, with room for all of it; the one for temporary files where absent. */
  readonly scratch?: string;
}

export interface DrillReport extends Omit<
  RestoreBackupReport,
  'dir' | 'identity' | 'resumed' | 'setAside' | 'elapsedMs'
> {
  /** From the first request until everything is fetched, applied, checked and durable. */
  readonly restoreMs: number;
  /** Until the node that was restored is open and leads. */
  readonly openMs: number;
  /** Both: for so long a service would be away. */
  readonly recoveryMs: number;
}

export async function drillBackup(options: DrillOptions): Promise<DrillReport> {
  const { scratch = tmpdir(), ...restore } = options;
  const root = await mkdtemp(join(resolve(scratch), 'nostos-drill-'));
  try {
    const dir = join(root, 'data');
    const startedMs = performance.now();
    const {
      dir: _,
      identity: __,
      resumed: ___,
      setAside: ____,
      elapsedMs: _____,
      ...report
    } = await restoreBackup({
      ...restore,
      dir,
      mode: 'new_cluster',
    });
    const restoredMs = performance.now();
    const node = await openNode({ dir, scrubIntervalMs: false });
    const openedMs = performance.now();
    await node.close();
    return {
      ...report,
      restoreMs: Math.round(restoredMs - startedMs),
      openMs: Math.round(openedMs - restoredMs),
      recoveryMs: Math.round(openedMs - startedMs),
    };
  } finally {
    await rm(root, { recursive: true, force: true });
  }
}
