/** The words of the reference's network restore, in its names, and our options beside them. */

export const RESTORE_SERVICE_NAME = 'RESTORE';
/** Sent as a little-endian u32: `54 53 52 4E` on the wire. */
export const RESTORE_MAGIC = 0x4e525354;

export type RestoreState = 'NotStarted' | 'InProgress' | 'Completed' | 'Failed';
export const RestoreState = {
  NotStarted: 'NotStarted',
  InProgress: 'InProgress',
  Completed: 'Completed',
  Failed: 'Failed',
} as const satisfies Record<string, RestoreState>;

export interface NetworkRestoreConfig {
  /** A label for people; nothing is looked up by it. */
  readonly sourceNode: string;
  /** A DNS name, or an IPv4 or IPv6 address, with or without brackets. */
  readonly sourceHost: string;
  readonly sourcePort: number;
  /** Keep what is replaced as `<name>.bak`, then `.bak.1` and so on. Otherwise it is removed. */
  readonly retainLogFiles: boolean;
}

export interface RestoreProgress {
  readonly state: RestoreState;
  /** Bytes of files, without headers and checksums. Moves once per whole file. */
  readonly bytesTransferred: number;
  readonly filesTransferred: number;
  /** Milliseconds. */
  readonly elapsed: number;
}

/** `none`: for peers older than reference version 4.1.0, which end a file without its checksum. */
export type Trailer = 'crc32' | 'none';

/** `strict`: only what a log file is called, eight lowercase hex digits and `.ndb`. */
export type NameRule = 'reference' | 'strict';

/** A whole file, as it was received. */
export interface RestoredFile {
  readonly name: string;
  readonly bytes: number;
  /** Lowercase hex. */
  readonly blake3: string;
}

export type RestoreEvent =
  | { readonly kind: 'started'; readonly files: number }
  | { readonly kind: 'file-started'; readonly name: string; readonly bytes: number }
  | { readonly kind: 'bytes'; readonly name: string; readonly received: number; readonly bytes: number }
  | ({ readonly kind: 'file-received' } & RestoredFile)
  /** All files are here and verified; from now on the directory changes. */
  | { readonly kind: 'swapping'; readonly files: number };

export interface RestoreReport {
  readonly dir: string;
  readonly files: readonly RestoredFile[];
  /** Files that were there before, and their names now. */
  readonly setAside: readonly { readonly from: string; readonly to: string }[];
  /** `*.ndb` that the source does not have, and that are gone. */
  readonly removed: readonly string[];
  /** A run that was cut off while it replaced files was found, and its replacing finished first. */
  readonly finishedEarlierRun: boolean;
}
