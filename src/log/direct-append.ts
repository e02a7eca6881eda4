/**
 * Appends from a thread that does not own the log: takes the lent tail, writes and syncs one group there, and moves the
 * tail on. Worth it for whoever has nobody to share an fsync with: to wake the owner's thread and be woken costs a lone
 * writer as much as its fsync on a fast disk.
 *
 * Only the plain case is done here. Whatever needs more than a write and a sync (a new segment, more preallocated room,
 * a term that has ended) is refused with `undefined`, and nothing has happened; the owner does it.
 */
import { join } from 'node:path';
import type { Generation, Hash, Lsn, Term } from '../base/brands.ts';
import { HASH_BYTES } from '../base/brands.ts';
import type { HybridClock } from '../base/clock.ts';
import type { Disk, DiskFile } from '../base/disk.ts';
import { GroupEncoder, RECORD_HEADER_BYTES, RecordKind } from './record.ts';
import { segmentName } from './segment-header.ts';
import type { LentTail, SharedTail } from './shared-tail.ts';
import type { LogEntry } from './writer.ts';

export interface DirectAppended {
  readonly term: Term;
  readonly firstLsn: Lsn;
  readonly hashes: Uint8Array;
}

/** The records may be on disk or not: their owner finds out (`Log.own`, then reading from `firstLsn`). */
export class DirectAppendFailed extends Error {
  override readonly name = 'DirectAppendFailed';
  readonly firstLsn: Lsn;
  readonly hashes: Uint8Array;

  constructor(firstLsn: Lsn, hashes: Uint8Array, cause: unknown) {
    super('a direct append failed', { cause });
    this.firstLsn = firstLsn;
    this.hashes = hashes;
  }
}

export interface DirectAppenderOptions {
  readonly dir: string;
  readonly generation: Generation;
  /** A larger group is refused, so that its thread is not held up for long. */
  readonly bytesMax: number;
}

export class DirectAppender {
  readonly #disk: Disk;
  readonly #clock: HybridClock;
  readonly #options: DirectAppenderOptions;
  readonly #generationBytes: Buffer;
  readonly #tail: SharedTail;
  readonly #encoder = new GroupEncoder();
  #file: { readonly segment: number; readonly file: DiskFile } | undefined;

  constructor(deps: { disk: Disk; clock: HybridClock; tail: SharedTail }, options: DirectAppenderOptions) {
    this.#disk = deps.disk;
    this.#clock = deps.clock;
    this.#tail = deps.tail;
    this.#options = options;
    this.#generationBytes = Buffer.from(options.generation, 'hex');
  }

  /** The answer when the records are durable and W covers them. */
  append(entries: readonly LogEntry[]): DirectAppended | undefined {
    const bytes = groupBytes(entries);
    if (bytes > this.#options.bytesMax || entries.some(({ kind }) => kind === RecordKind.termStart)) return undefined;
    if (!this.#tail.tryAcquire()) return undefined;
    try {
      return this.#append(entries, bytes);
    } finally {
      this.#tail.release();
    }
  }

  /** Lets go of the file: a segment that was pruned takes no room then. */
  close(): void {
    const held = this.#file?.file;
    this.#file = undefined;
    try {
      held?.close();
    } catch {
      // Nothing is owed to it: each append was synced.
    }
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #append(entries: readonly LogEntry[], bytes: number): DirectAppended | undefined {
    if (this.#tail.status !== 'lent') return undefined;
    const tail = this.#tail.read();
    if (tail.endOffset + bytes > tail.limitOffset) return undefined;
    const file = this.#fileOf(tail.segment);
    if (file === undefined) return undefined;
    const { hashes, hlc } = this.#encode(entries, tail, bytes);
    const firstLsn = (tail.lsn + 1) as Lsn;
    try {
      file.write(this.#encoder.bytes(0, bytes), tail.endOffset);
      const startedMs = this.#clock.clock.monotonicMs();
      file.dataSync();
      this.#tail.observeSync(this.#clock.clock.monotonicMs() - startedMs);
    } catch (error) {
      this.#tail.fail();
      throw new DirectAppendFailed(firstLsn, hashes, error);
    }
    const lsn = (tail.lsn + entries.length) as Lsn;
    const hash = hashes.subarray(hashes.length - HASH_BYTES) as Hash;
    this.#tail.move({ term: tail.term, lsn, hash, hlc, watermark: lsn, endOffset: tail.endOffset + bytes });
    return { term: tail.term, firstLsn, hashes };
  }

  #encode(entries: readonly LogEntry[], tail: LentTail, bytes: number): { hashes: Uint8Array; hlc: LentTail['hlc'] } {
    const { term, watermark } = tail;
    const hashes = new Uint8Array(entries.length * HASH_BYTES);
    let { hash, hlc } = tail;
    this.#clock.resume(hlc);
    this.#encoder.begin(bytes);
    for (const [index, { tenant, kind, payload }] of entries.entries()) {
      hlc = this.#clock.next();
      const lsn = (tail.lsn + 1 + index) as Lsn;
      hash = this.#encoder.add(this.#generationBytes, { term, lsn, hlc, tenant, kind, watermark, payload }, hash);
      hashes.set(hash, index * HASH_BYTES);
    }
    return { hashes, hlc };
  }

  #fileOf(segment: number): DiskFile | undefined {
    if (this.#file?.segment === segment) return this.#file.file;
    this.close();
    try {
      const file = this.#disk.open(join(this.#options.dir, segmentName(segment)), 'write');
      this.#file = { segment, file };
      return file;
    } catch {
      return undefined; // its owner has it open, and goes on with it
    }
  }
}

function groupBytes(entries: readonly LogEntry[]): number {
  let bytes = entries.length * RECORD_HEADER_BYTES;
  for (const { payload } of entries) bytes += payload.length;
  return bytes;
}
