/** Where snapshots lie: manifests by id, content by keys of the writer's choice. */
import type { SnapshotManifest } from './manifest.ts';

export interface ContentRange {
  /** The first byte; 0 by default. */
  readonly offset?: number;
  /** To the end by default. */
  readonly length?: number;
  readonly signal?: AbortSignal;
}

/** Failures are `BackupBackendError`s. Deletes succeed where there is nothing. */
export interface BackupBackend {
  name(): string;
  putManifest(manifest: SnapshotManifest): Promise<void>;
  getManifest(id: string): Promise<SnapshotManifest>;
  /** Ids in ascending order of their bytes. */
  listManifests(): Promise<string[]>;
  /** Its content stays. */
  deleteManifest(id: string): Promise<void>;
  /** Replaces what the key had. */
  putContent(key: string, bytes: Uint8Array): Promise<void>;
  getContent(key: string): Promise<Uint8Array>;
  deleteContent(key: string): Promise<void>;

  /** Beyond the reference. Where these are absent, a blob is held in memory whole, and free space is not looked at first. */
  contentBytes?(key: string): Promise<number>;
  /** A chunk is valid until the next is asked for. Gives the event loop its turn in between. */
  readContent?(key: string, range?: ContentRange): AsyncIterable<Uint8Array>;
  /** The directory of this machine that it all lies in: nothing is restored over it. */
  root?(): string;
}
