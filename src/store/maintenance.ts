/** Work on tenant files that takes long and therefore runs in a thread of its own. */
import type { Lsn } from '../base/brands.ts';
import type { CheckpointMode, CheckpointResult } from './checkpoint.ts';
import type { ImportPlan } from './import-plan.ts';

export interface ScrubRequest {
  readonly path: string;
  /** Also run SQLite's own integrity check. */
  readonly integrity: boolean;
}

export interface ScrubReport {
  /** The position at which the rows were read. */
  readonly lsn: Lsn;
  readonly rows: number;
  /** As it follows from the log, 32 hex digits. */
  readonly expected: string;
  /** As it follows from the rows. */
  readonly actual: string;
  /** What SQLite's integrity check found; empty when it found nothing. */
  readonly integrity: readonly string[];
}

export interface CopyRequest {
  readonly path: string;
  /** A new file; it is written under a temporary name, synced and renamed. */
  readonly target: string;
  readonly overwrite: boolean;
}

export interface CopyReport {
  readonly term: number;
  readonly lsn: number;
  readonly bytes: number;
}

export interface InspectRequest {
  /** Absolute path. */
  readonly file: string;
  readonly addKey: boolean;
  readonly keepViolations: boolean;
}

export interface InspectReport {
  readonly plan: ImportPlan;
  /** Rows of each table of the plan. */
  readonly counts: readonly (readonly [table: string, rows: number])[];
  /** Of the file as it was looked at. */
  readonly signature: string;
  /** By which SQLite can read it. */
  readonly uri: string;
}

export interface LongWork<P> {
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: P) => void;
}

export interface Maintenance {
  /** `directories` are synced too, when the checkpoint is complete. */
  checkpoint(path: string, mode: CheckpointMode, directories?: readonly string[]): Promise<CheckpointResult>;
  /**
   * Empties the WAL and stays connected while `close` closes the connections of this thread, so that the last one, which
   * has the work of removing the WAL, closes elsewhere.
   */
  checkpointAndClose(path: string, directories: readonly string[], close: () => void): Promise<CheckpointResult>;
  scrub(request: ScrubRequest, options?: LongWork<number>): Promise<ScrubReport>;
  /** A plain SQLite file without anything of Nostos in it. */
  exportPlain(request: CopyRequest, options?: LongWork<string>): Promise<CopyReport>;
  /** What an import of a file from elsewhere would do. */
  inspect(request: InspectRequest, options?: LongWork<string>): Promise<InspectReport>;
}
