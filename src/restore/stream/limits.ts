import { NostosError } from '../../base/errors.ts';

/** Limits of the streaming service, each an option of both sides. Units come last in the names. */
export const STREAM_LIMITS = {
  /** A side that sends nothing, or takes nothing, for this long has stalled. */
  stallTimeoutMs: 30_000,
  /** A source may send signs of life only, while it opens an item or waits for its rate limit, for this long. */
  progressTimeoutMs: 10 * 60_000,
  /** How often a side that is busy says that it lives. */
  heartbeatMs: 1_000,
  /** The first frame of a channel must be there by then. */
  firstFrameTimeoutMs: 10_000,
  /** A session whose receiver takes nothing for this long gives up its holds. */
  reservationTimeoutMs: 60_000,
  /** Sessions that a source serves at once. */
  sessionsMax: 4,
  /** Data channels of one session. */
  sessionChannelsMax: 16,
  /**
   * Items that a plan or a tail may have. Both sides have them in memory, and what an item leaves behind waits for the
   * collector: at 20,000 a process that does nothing else was seen below 128 MiB (127 the receiver, 121 the source).
   */
  planItemsMax: 20_000,
} as const;

export type StreamLimits = Readonly<Record<keyof typeof STREAM_LIMITS, number>>;

/** Before the source offers them, and before the receiver takes the first of them. */
export function checkItemCount(items: number, { planItemsMax }: Pick<StreamLimits, 'planItemsMax'>): void {
  if (items <= planItemsMax) return;
  throw new NostosError(
    'RESTORE_TOO_LARGE',
    `A restore of ${items} files, of which planItemsMax = ${planItemsMax} fit into 128 MiB of memory on both sides; close the node and copy its directory by other means`,
    { details: { items, planItemsMax } },
  );
}

/** Bytes of files in one data frame under a rate limit, at least. */
export const PATCH_BYTES_MIN = 64 * 1024;
/** Below it the channels of one restore would be so slow in turn that each looks as if it had stalled. */
export const RATE_BYTES_PER_SECOND_MIN = 16 * 1024;

export function checkRate(bytesPerSecond: number | undefined): void {
  if (bytesPerSecond === undefined) return;
  if (Number.isFinite(bytesPerSecond) && bytesPerSecond >= RATE_BYTES_PER_SECOND_MIN) return;
  throw new NostosError(
    'INVALID_ARGUMENT',
    `a rate limit is at least ${RATE_BYTES_PER_SECOND_MIN} bytes per second, got ${bytesPerSecond}`,
    { details: { bytesPerSecond, least: RATE_BYTES_PER_SECOND_MIN } },
  );
}

/** Bytes of the base that the hashes of one frame cover, and the most that a source reads without a word. */
export const HASHED_BYTES = 4 * 1024 * 1024;
/** Bytes of files in one data frame; fewer under a rate limit. */
export const PATCH_BYTES = 256 * 1024;
/** Bytes of files in one data frame that a receiver accepts. */
export const PATCH_BYTES_MAX = 1024 * 1024;
/** A MessagePack message of either side. */
export const MESSAGE_BYTES_MAX = 128 * 1024;
/** Items in one message of a plan: so many of the longest names fit. */
export const ITEMS_PER_MESSAGE = 500;
/** Data channels of a restore, where the caller does not say. */
export const CONNECTIONS = 4;

/** `receiveBufferBytes` of the receiver's connections: data frames have memory of their own, so less is read ahead. */
export const RECEIVE_BUFFER_BYTES = 128 * 1024;
