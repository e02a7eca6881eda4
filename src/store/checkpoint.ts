/**
 * Moves the WAL of a tenant into its file. Runs in the maintenance thread, on a connection of its own: a checkpoint on
 * the writer would stall a write for as long as its syncs take.
 */
import { DatabaseSync } from 'node:sqlite';
import { systemDisk } from '../base/disk.ts';
import { fromSqlite } from './sqlite-errors.ts';

/** `passive` disturbs nobody; `restart` waits for readers, so that the WAL begins anew; `truncate` also empties it. */
export type CheckpointMode = 'passive' | 'restart' | 'truncate';

export interface CheckpointResult {
  /** Everything that was in the WAL when it began is in the file now, and synced. */
  readonly complete: boolean;
}

/** How long a checkpoint waits for readers: with a writer's queue held it must not be long. */
const BUSY_TIMEOUT_MS = { passive: 0, restart: 250, truncate: 2_000 } as const satisfies Record<CheckpointMode, number>;

export interface CheckpointRequest {
  readonly path: string;
  readonly mode: CheckpointMode;
  /** Directories to sync as well: SQLite does not see to it that the file of a database is found after a power cut. */
  readonly directories: readonly string[];
  /** Keep the connection open until `letGo`: whoever closes a WAL database last removes its WAL, which takes syncs. */
  readonly hold: boolean;
}

const held = new Map<string, DatabaseSync>();

export function checkpointFile({ path, mode, directories, hold }: CheckpointRequest): CheckpointResult {
  let database: DatabaseSync | undefined;
  try {
    database = new DatabaseSync(path, { timeout: BUSY_TIMEOUT_MS[mode] });
    database.exec('pragma synchronous = normal');
    const row = database.prepare(`pragma wal_checkpoint(${mode})`).get() as {
      busy: number;
      log: number;
      checkpointed: number;
    };
    const complete = row.busy === 0 && row.log === row.checkpointed;
    if (complete) for (const directory of directories) systemDisk.syncDirectory(directory);
    if (hold) {
      letGo(path);
      held.set(path, database);
      database = undefined;
    }
    return { complete };
  } catch (error) {
    throw fromSqlite(error);
  } finally {
    database?.close();
  }
}

/** Closes the connection that a checkpoint kept open. */
export function letGo(path: string): void {
  held.get(path)?.close();
  held.delete(path);
}
