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

/** Every limit of the reference face, with its default. Those of connections are in `base/limits.ts`. */
export const RESTORE_LIMITS = {
  /** Files that a source may announce. */
  filesMax: 100_000,
  /** Bytes of all files together that a source may announce; what is free on the disk bounds them besides. */
  bytesMax: Number.MAX_SAFE_INTEGER,
  /** What stays free on the disk. */
  diskReserveBytes: 16 * 1024 * 1024,
  /** The source must send at least `progressBytesMin`, or all that is left, each time it was waited for so long. */
  stallTimeoutMs: 120_000,
  progressBytesMin: 64 * 1024,
  /** Server: a client must have asked by then. */
  requestTimeoutMs: 30_000,
  /** Server: raw connections at a time. */
  sessionsMax: 8,
  /** Server: files that one raw session holds open. */
  openFilesMax: 256,
  /** Server: restores through the dispatcher at a time, each of which holds one frame in memory. */
  framesMax: 2,
  /** Server: a client must have taken the one frame by then. */
  frameTimeoutMs: 600_000,
  /** The whole restore through the dispatcher is one frame; the reference takes no larger one. */
  frameBytesMax: 64 * 1024 * 1024,
} as const;
