/**
 * Moves the WAL of a tenant into its file. Runs in the maintenance thread, on a connection of its own: a checkpoint on
 * the writer would stall a write for as long as its syncs take.
 */
import { DatabaseSync } from 'node:sqlite';
import { fromSqlite } from './sqlite-errors.ts';

/** `passive` disturbs nobody; `restart` waits for readers, so that the WAL begins anew; `truncate` also empties it. */
export type CheckpointMode = 'passive' | 'restart' | 'truncate';

export interface CheckpointResult {
  /** Everything that was in the WAL when it began is in the file now, and synced. */
  readonly complete: boolean;
}

const BUSY_TIMEOUT_MS = 2_000;

export function checkpointFile(path: string, mode: CheckpointMode): CheckpointResult {
  try {
    using database = new DatabaseSync(path, { timeout: mode === 'passive' ? 0 : BUSY_TIMEOUT_MS });
    database.exec('pragma synchronous = normal');
    const row = database.prepare(`pragma wal_checkpoint(${mode})`).get() as {
      busy: number;
      log: number;
      checkpointed: number;
    };
    return { complete: row.busy === 0 && row.log === row.checkpointed };
  } catch (error) {
    throw fromSqlite(error);
  }
}
