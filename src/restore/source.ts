/**
 * What the streaming service serves: a consistent set of files, item by item. `directory-source.ts` is a plain directory;
 * a node's own source (`node/restore-source.ts`) is its tenants, its catalog and its log.
 */
import type { ItemName } from './item-name.ts';

/** Who the source is and how much there is. Goes over the wire as MessagePack. */
export interface RestorePlan {
  /** `node`: a data directory of Nostos. `files`: a directory of files, without identity. */
  readonly kind: 'node' | 'files';
  readonly cluster: string | null;
  readonly generation: string | null;
  readonly store: string | null;
  readonly node: string | null;
  readonly term: number;
  /** W of the source when it made the plan. */
  readonly watermark: number;
  readonly items: readonly PlanItem[];
  /** Of what `tail` will name, as it is now: for estimates. */
  readonly tailBytes?: number;
}

export interface PlanItem {
  readonly name: ItemName;
  /** As it is now; what `open` says counts. */
  readonly bytes: number;
}

/** An item while it is held as it is. */
export interface SourceFile {
  readonly bytes: number;
  /** The position of a tenant's copy, and whatever else the receiver is to know. */
  readonly attributes: Readonly<Record<string, string | number>>;
  /** Fills `target` from `offset` on; throws where the file has become shorter. */
  read(target: Uint8Array, offset: number): void;
  close(): Promise<void>;
}

export interface SourceSession {
  readonly plan: RestorePlan;
  open(name: ItemName, signal: AbortSignal): Promise<SourceFile>;
  /** The items that go last, since they must reach as far as all others: the log. Called once all others are closed. */
  tail(): Promise<readonly PlanItem[]>;
  /** The receiver has taken bytes: holds are renewed. Throws `RESERVATION_EXPIRED` where they are gone. */
  progress(bytes: number): void;
  /** Ends all holds; may be called more than once. */
  close(): Promise<void>;
}

/** What a member is asked before one is chosen as provider; costs the source next to nothing. */
export interface SourceInfo {
  /** `primary`, `replica`, or whatever else it calls itself. */
  readonly role: string | null;
  readonly cluster: string | null;
  readonly generation: string | null;
  readonly node: string | null;
  readonly store: string | null;
  readonly term: number;
  readonly watermark: number;
  /** Of its log; 0 where it has none. */
  readonly firstLsn: number;
}

export interface RestoreSource {
  begin(signal: AbortSignal): Promise<SourceSession>;
  /** Without it a source says nothing of itself before a session begins. */
  info?(): Promise<SourceInfo>;
}
