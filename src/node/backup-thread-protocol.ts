/** What the node's own thread and the thread that makes backups say to each other. */
import type { SerializedError } from '../base/errors.ts';
import type { Limits } from '../base/limits.ts';
import type { KeepPolicy } from '../backup/repository/policy.ts';
import type { LedgerEntry } from '../log/ledger.ts';
import type { Archived } from './backup-archiver.ts';
import type { BackupReport, CreateBackupOptions } from './backup-create.ts';
import type { ArchiveHost } from './backup-host.ts';
import type { RestoreHost } from './restore-host.ts';
import type { Progress } from './types.ts';

export interface BackupThreadOptions {
  /** Of the node. */
  readonly dir: string;
  readonly url: string;
  /** Path of the keyring; without one nothing is encrypted. */
  readonly keys?: string | undefined;
  readonly limits: Limits;
}

export interface NewestSnapshot {
  readonly id: string;
  readonly createdAtMs: number;
  readonly lsn: number;
}

/** What can be asked of the thread. One run at a time; forgets are not kept waiting by it. */
export interface BackupCalls {
  create(options: CreateBackupOptions): Promise<BackupReport>;
  /** Brings the archive up to the watermark. */
  archive(input: null): Promise<Archived>;
  /** Of the cluster of this node. */
  newest(input: null): Promise<NewestSnapshot | null>;
  prune(keep: KeepPolicy): Promise<{ readonly removed: number; readonly bytesRemoved: number }>;
  forget(entries: readonly LedgerEntry[]): Promise<void>;
}

export type BackupMethod = keyof BackupCalls;
export type HostQuestion = keyof RestoreHost | keyof ArchiveHost;

export type FromBackupThread =
  | { readonly kind: 'ask'; readonly id: number; readonly method: HostQuestion; readonly input: readonly unknown[] }
  | { readonly kind: 'progress'; readonly id: number; readonly progress: Progress }
  | { readonly kind: 'warning'; readonly message: string }
  | { readonly kind: 'done'; readonly id: number; readonly output: unknown }
  | { readonly kind: 'failed'; readonly id: number; readonly error: SerializedError };

export type ToBackupThread =
  | { readonly kind: 'call'; readonly id: number; readonly method: BackupMethod; readonly input: unknown }
  | { readonly kind: 'cancel'; readonly id: number }
  | { readonly kind: 'answer'; readonly id: number; readonly output: unknown }
  | { readonly kind: 'refusal'; readonly id: number; readonly error: SerializedError }
  | { readonly kind: 'stop' };
