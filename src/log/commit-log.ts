/**
 * What the layers above see of the log, whichever thread runs it. What passes here is committed: `append` resolves once its
 * records can never be lost, and `readPage` shows nothing above the watermark. Both have one exception, which never leaves
 * this node: `local` appends, and pages of `uncommitted` records.
 */
import type { Generation, Hash, Hlc, Lsn, TenantId, Term } from '../base/brands.ts';
import type { RecordKind } from './record.ts';
import type { LogEntry } from './writer.ts';

export type { LogEntry };

/** When an append is answered: once the group can never lose it, or once this node has it and leads. */
export type Durability = 'quorum' | 'local';

export interface Appended {
  readonly generation: Generation;
  readonly term: Term;
  readonly firstLsn: Lsn;
  /** The hash of each appended record, 32 bytes each. */
  readonly hashes: Uint8Array;
}

/** A committed record as the layers above need it. */
export interface CommittedRecord {
  readonly generation: Generation;
  readonly term: Term;
  readonly lsn: Lsn;
  readonly hlc: Hlc;
  readonly tenant: TenantId;
  readonly kind: RecordKind;
  readonly watermark: Lsn;
  readonly hash: Hash;
  readonly payload: Uint8Array;
}

export interface PageRequest {
  /** The first LSN wanted. */
  readonly from: Lsn;
  /** The last LSN wanted; the watermark where absent. */
  readonly to?: Lsn;
  readonly tenant?: TenantId;
  readonly kinds?: readonly RecordKind[];
  /**
   * Also what is durable here and not committed, up to `to`: for the files of this node, which may hold `local` writes.
   * Where it is absent nothing above the watermark is shown.
   */
  readonly uncommitted?: boolean;
  readonly bytesMax: number;
}

export interface LogPage {
  readonly records: readonly CommittedRecord[];
  /** Where the next page begins; above `end` when there is nothing more. */
  readonly next: Lsn;
  /** The watermark (with `uncommitted`, what is durable), or `to` where that is lower. */
  readonly end: Lsn;
  /** Gives the memory of the records back, which nobody uses any more; absent where it is shared. */
  release?(): void;
}

export interface TenantLocation {
  /** LSN of the tenant's last record among those that some file may still lack; 0 where there is none. */
  readonly last: Lsn;
  /** The files of all tenants have everything up to here durably. */
  readonly durable: Lsn;
  /** The record at the asked LSN, committed or not; undefined where the log does not hold it any more, or not yet. */
  readonly at?: { readonly term: Term; readonly lsn: Lsn; readonly hash: Hash };
}

/** Holds the log from some record on against pruning, for a reader that may take long. */
export interface LogHold {
  /** Everything below `lsn` is no longer needed. Without progress for `reservationTimeoutMs` the hold is given up. */
  progress(lsn: Lsn): void;
  release(): void;
}

export interface CommitLog {
  /**
   * `durability` is `quorum` where it is absent; for a lone node both are the same moment.
   *
   * Rejects with DISK_FULL or IO_FAILED when nothing was kept, NOT_PRIMARY when this node does not lead, OUTCOME_UNKNOWN
   * {position} when it is not known whether something was kept: also for all that wait when this node steps down. Once it
   * has settled the payloads are the caller's again, who may give their memory back.
   */
  append(entries: readonly LogEntry[], options?: { readonly durability: Durability }): Promise<Appended>;
  readPage(request: PageRequest): Promise<LogPage>;
  /** What a tenant that says it is at `lsn` must know to catch up; `NO_TENANT` asks for the catalog. */
  locate(tenant: TenantId, lsn: Lsn): Promise<TenantLocation>;
  /** Rejects with LOG_PRUNED where the log no longer holds the record. */
  reserve(from: Lsn): Promise<LogHold>;
  /** The highest committed LSN that this thread has heard of. */
  readonly watermark: Lsn;
  /** Calls back whenever `watermark` has risen; returns what ends that. */
  onWatermark(listener: () => void): () => void;
}

/** Resolves when everything up to `lsn` is committed; rejects with the signal's reason. */
export function untilCommitted(log: CommitLog, lsn: Lsn, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const end = (settle: () => void): void => {
      stop();
      signal?.removeEventListener('abort', abort);
      settle();
    };
    const abort = (): void => end(() => reject(signal?.reason));
    const look = (): void => {
      if (log.watermark >= lsn) end(resolve);
    };
    const stop = log.onWatermark(look);
    signal?.addEventListener('abort', abort, { once: true });
    if (signal?.aborted === true) abort();
    else look();
  });
}

/**
 * All committed records of a range, page by page, the next page fetched while one is used. The range is held against
 * pruning as long as its reader makes progress.
 */
export async function* readCommitted(
  log: CommitLog,
  request: Omit<PageRequest, 'bytesMax'> & { readonly bytesMax?: number; readonly signal?: AbortSignal },
): AsyncGenerator<readonly CommittedRecord[]> {
  const { signal, ...range } = request;
  const bytesMax = request.bytesMax ?? PAGE_BYTES;
  const fetch = (from: Lsn): Promise<LogPage> => {
    const page = log.readPage({ ...range, from, bytesMax });
    page.catch(() => {}); // awaited one step later
    return page;
  };
  if (request.from > (request.to ?? log.watermark)) return;
  const hold = await log.reserve(request.from);
  try {
    let pending = fetch(request.from);
    for (;;) {
      signal?.throwIfAborted();
      const page = await pending;
      const last = page.next > page.end;
      if (!last) pending = fetch(page.next);
      if (page.records.length > 0) yield page.records;
      if (last) return;
      hold.progress(page.next);
    }
  } finally {
    hold.release();
  }
}

const PAGE_BYTES = 4 * 1024 * 1024;
