/**
 * What the local side of a restore asks of whoever brings the bytes: the streaming client, a choice of several providers,
 * or the reference's service.
 */
import type { ItemName } from './item-name.ts';
import type { RestorePlan } from './source.ts';

/** Where items go, and what may already be there of them. */
export interface FetchTarget {
  /** The file to make; its directory is there. */
  pathOf(name: ItemName): string;
  /** A file whose pages may be taken instead of fetching them; may be `pathOf(name)` itself. */
  baseOf(name: ItemName): string | undefined;
}

export interface FetchedItem {
  readonly name: ItemName;
  readonly bytes: number;
}

export interface FetchProgress {
  readonly phase: string;
  readonly bytesDone: number;
  readonly bytesTotal: number;
  readonly itemsDone: number;
  readonly itemsTotal: number;
  readonly bytesOnWire: number;
  /** Bytes of items that were received, verified and written in this session; what a base had is not in it. */
  readonly bytesWritten?: number;
}

export interface FetchReport {
  /** Everything that makes up the copy; what else lies in the target is not part of it. */
  readonly items: readonly FetchedItem[];
  readonly bytesOnWire: number;
  readonly bytesReused: number;
  readonly elapsedMs: number;
  /** W that the copy must reach: all that the source said of it. 0 of plain files; absent where a service does not say. */
  readonly watermark?: number;
}

export interface FetchOptions {
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: FetchProgress) => void;
}

export interface RestoreFeed {
  /** Addresses, as the marker keeps them for a later attempt. */
  readonly sources: readonly string[];
  readonly plan: RestorePlan;
  /** When it resolves every item is whole, verified and fsynced under its path. */
  fetchAll(target: FetchTarget, options?: FetchOptions): Promise<FetchReport>;
  close(): Promise<void>;
}
