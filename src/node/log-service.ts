/**
 * The log as an engine serves it to the rest of its node, whoever appends to it: what it holds, what of it is reserved,
 * and what may go. Everything here that asks or changes the log does it in `log.own` (`engine.ts` says why).
 */
import { join } from 'node:path';
import { NO_LSN, NO_TENANT, type Generation, type Lsn, type Position, type TenantId } from '../base/brands.ts';
import { HybridClock, systemClock, type Clock } from '../base/clock.ts';
import { systemDisk, type Disk } from '../base/disk.ts';
import { readIfExists, writeDurably } from '../base/durable-file.ts';
import { NostosError } from '../base/errors.ts';
import type { PageRequest, TenantLocation } from '../log/commit-log.ts';
import { Log } from '../log/log.ts';
import { CATALOG_KINDS, type LogRecord } from '../log/record.ts';
import type { ReadRecord } from '../log/reader.ts';
import type { RecoveryReport } from '../log/recovery.ts';
import type { Reservation } from '../log/retention.ts';
import { segmentName } from '../log/segment-header.ts';
import type { SharedTail } from '../log/shared-tail.ts';
import { outlookOf, type PositionOutlook } from '../replication/store-view.ts';
import type { EngineOpened, EngineOptions, LogFiles, PackedPage } from './engine-protocol.ts';
import type { LogStatus } from './types.ts';

export interface LogServiceDeps {
  readonly disk?: Disk;
  readonly clock?: Clock;
  /** For appends of the caller's own thread. */
  readonly tail?: SharedTail;
  /** The highest position that any tenant file has; asked only when the log ends in a torn record. */
  readonly highestApplied: () => Lsn;
}

export interface OpenedLog {
  readonly options: EngineOptions;
  readonly disk: Disk;
  readonly log: Log;
  /** Per tenant the last LSN above what is durable in all files; under `NO_TENANT` that of the catalog. */
  readonly last: Map<TenantId, Lsn>;
  readonly report: RecoveryReport;
  readonly recovery: LogStatus['recovery'];
  /** Moves with what is durable in all files. */
  readonly held: { durable: Lsn };
}

const DURABLE_FILE = 'durable';

export function openLog(deps: LogServiceDeps, options: EngineOptions, knownWatermark: Lsn): OpenedLog {
  const { disk = systemDisk, clock = systemClock } = deps;
  const startedMs = clock.monotonicMs();
  const dir = join(options.dir, 'log');
  const held = { durable: readDurable(disk, dir) };
  const last = new Map<TenantId, Lsn>();
  const { log, report } = Log.open(
    { disk, clock: new HybridClock(clock), ...(deps.tail === undefined ? {} : { tail: deps.tail }) },
    {
      dir,
      generation: options.generation,
      segmentBytesMax: options.limits.segmentBytesMax,
      recordBytesMax: options.limits.recordBytesMax,
      knownWatermark,
      highestApplied: deps.highestApplied,
      scanFrom: (held.durable + 1) as Lsn,
      // Also on reopening: of a call whose outcome is not known some records may be there.
      onRecord: (record) => {
        if (record.lsn > held.durable) note(last, record);
      },
    },
  );
  // A log is cut below only what all files hold; one that was copied brings no file that says so.
  held.durable = Math.max(held.durable, log.firstLsn - 1) as Lsn;
  return { options, disk, log, last, report, recovery: summary(report, clock.monotonicMs() - startedMs), held };
}

export abstract class LogService {
  protected readonly options: EngineOptions;
  protected readonly disk: Disk;
  protected readonly log: Log;
  /** Per tenant the last LSN above what is durable in all files; under `NO_TENANT` that of the catalog. */
  protected readonly last: Map<TenantId, Lsn>;
  readonly #recovery: LogStatus['recovery'];
  readonly #held: OpenedLog['held'];
  readonly #holds = new Map<number, Reservation>();
  #nextHold = 0;

  protected constructor({ options, disk, log, last, recovery, held }: OpenedLog) {
    this.options = options;
    this.disk = disk;
    this.log = log;
    this.last = last;
    this.#recovery = recovery;
    this.#held = held;
  }

  /** Finds out what the disk has after a failed sync. */
  protected abstract regain(): Promise<void>;

  get opened(): EngineOpened {
    return {
      watermark: this.log.watermark,
      term: this.log.end.term,
      dirty: [...this.last.keys()].filter((tenant) => tenant !== NO_TENANT),
      generations: this.log.history.generations,
      durable: this.durable,
    };
  }

  get watermark(): Lsn {
    return this.log.watermark;
  }

  /** Whether appends wait for other nodes, who are heard in the event loop. */
  get awaitsPeers(): boolean {
    return false;
  }

  /** Runs `fn` on a log of which it is known what the disk has: beyond the last sync it is not, once one failed. */
  protected async onKnown<T>(fn: () => T): Promise<T> {
    const found = this.log.own(() => (this.log.state === 'failed' ? undefined : { value: fn() }));
    if (found !== undefined) return found.value;
    await this.regain();
    return this.log.own(fn);
  }

  async locate(tenant: TenantId, lsn: Lsn): Promise<TenantLocation> {
    // Whoever catches up now must not miss a record that turns up later.
    return this.onKnown(() => {
      const found = { last: this.last.get(tenant) ?? NO_LSN, durable: this.durable };
      if (lsn < this.log.firstLsn || lsn > this.log.durable.lsn) return found;
      for (const { record, hash } of this.records(lsn, lsn)) return { ...found, at: { term: record.term, lsn, hash } };
      return found;
    });
  }

  /** Whether a position that somebody was given is committed here, may yet be, or never will. */
  outlook(position: Position): PositionOutlook {
    return this.log.own(() => {
      const { history: terms, end, watermark } = this.log;
      return outlookOf({ terms, end, watermark }, position);
    });
  }

  reserve(from: Lsn): number {
    const hold = (this.#nextHold += 1);
    const { reservationTimeoutMs } = this.options.limits;
    return this.log.own(() => {
      // What is above the end is held by nobody yet, and cannot be pruned either.
      const held = Math.min(from, this.log.end.lsn + 1) as Lsn;
      this.#holds.set(hold, this.log.reserve(held, { timeoutMs: reservationTimeoutMs }));
      return hold;
    });
  }

  /** A hold that has expired stays so: its reader meets LOG_PRUNED if what it still needs is gone. */
  progress(hold: number, lsn: Lsn): void {
    const held = this.#holds.get(hold);
    if (held !== undefined && !held.expired) held.progress(lsn);
  }

  release(hold: number): void {
    this.#holds.get(hold)?.release();
    this.#holds.delete(hold);
  }

  reserveForCopy(bound: Lsn): { hold: number; from: Lsn } {
    // What was once said to be durable everywhere stays so; `bound` may name less of tenants that are being written.
    const watermark = this.log.own(() => this.log.watermark);
    const from = Math.min(Math.max(bound, this.durable) + 1, Math.max(watermark, 1)) as Lsn;
    return { hold: this.reserve(from), from };
  }

  reserveAll(): { hold: number; from: Lsn } {
    const from = this.log.own(() => this.log.firstLsn);
    return { hold: this.reserve(from), from };
  }

  logFiles(from: Lsn): LogFiles {
    return this.log.own(() => {
      const { watermark, sealed, end } = this.log;
      if (from < this.log.firstLsn)
        throw new NostosError('LOG_PRUNED', `the log begins at LSN ${this.log.firstLsn}, ${from} is asked`, {
          details: { firstLsn: this.log.firstLsn, from },
        });
      const files = sealed
        .filter(({ last }) => last.lsn >= from)
        .map(({ number, sizeBytes, anchor }) => ({ name: segmentName(number), bytes: sizeBytes, after: anchor.lsn }));
      files.push({
        name: segmentName(this.log.openSegment),
        bytes: this.log.sizeBytes - sealed.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0),
        after: sealed.at(-1)?.last.lsn ?? this.log.anchor.lsn,
      });
      const segments = files.filter(({ after }) => after < watermark);
      const last = segments.at(-1);
      // Above W nothing leaves the node.
      if (last !== undefined && end.lsn > watermark) {
        const next = this.log.locate((watermark + 1) as Lsn);
        if (next.segment === last.name) last.bytes = next.offset;
      }
      const bytes = segments.reduce((sum, file) => sum + file.bytes, 0);
      return { segments: segments.map(({ name, bytes }) => ({ name, bytes })), bytes, term: end.term, watermark };
    });
  }

  async readPage(request: PageRequest): Promise<PackedPage> {
    return this.onKnown(() => this.#readPage(request));
  }

  #readPage(request: PageRequest): PackedPage {
    const known = request.uncommitted === true ? this.log.durable.lsn : this.log.watermark;
    const end = Math.min(request.to ?? Infinity, known) as Lsn;
    if (request.from > end) return pack(this.options.generation, [], request.from, end);
    // A page is of one generation.
    const { generation, lastLsn } = generationOf(this.log, request.from);
    const to = Math.min(end, lastLsn) as Lsn;
    const kinds = request.kinds === undefined ? undefined : new Set<number>(request.kinds);
    for (const batch of this.log.read({
      from: request.from,
      to,
      ...(request.tenant === undefined ? {} : { tenant: request.tenant }),
      bytesMax: request.bytesMax,
      passing: true,
    })) {
      const records =
        kinds === undefined ? batch.records : batch.records.filter(({ record }) => kinds.has(record.kind));
      return pack(generation, records, (batch.through + 1) as Lsn, end);
    }
    return pack(generation, [], (to + 1) as Lsn, end);
  }

  status(): LogStatus {
    return this.log.own(() => ({
      generation: this.options.generation,
      term: this.log.end.term,
      firstLsn: this.log.firstLsn,
      lastLsn: this.log.end.lsn,
      watermark: this.log.watermark,
      segments: this.log.sealed.length + 1,
      bytes: this.log.sizeBytes,
      recovery: this.#recovery,
    }));
  }

  protected *records(from: Lsn, to?: Lsn): Generator<ReadRecord> {
    // One record is not worth a buffer for many.
    const range = to === undefined ? { from } : { from, to, bytesMax: 1 };
    for (const batch of this.log.read({ ...range, passing: true })) yield* batch.records;
  }

  /** Everything up to there is in the files of all tenants, durably. */
  protected noteDurable(durable: Lsn): void {
    if (durable <= this.durable) return;
    const path = join(this.options.dir, 'log', DURABLE_FILE);
    writeDurably(this.disk, path, Buffer.from(JSON.stringify({ lsn: durable })));
    this.#held.durable = durable;
    for (const [tenant, last] of this.last) if (last <= durable) this.last.delete(tenant);
  }

  protected get durable(): Lsn {
    return this.#held.durable;
  }

  protected prune(): void {
    const { logRetainBytes: retainBytes } = this.options.limits;
    this.log.own(() => this.log.prune({ durableApplied: this.durable, watermark: this.log.watermark, retainBytes }));
  }
}

/** The generation in which a record was written, and its last record here. */
function generationOf({ history, end }: Log, lsn: Lsn): { readonly generation: Generation; readonly lastLsn: number } {
  const { generations } = history;
  const index = generations.findLastIndex(({ firstLsn }) => firstLsn <= lsn);
  const { generation } = generations[index] ?? end;
  return { generation, lastLsn: (generations[index + 1]?.firstLsn ?? Infinity) - 1 };
}

export function note(
  last: Map<TenantId, Lsn>,
  { kind, tenant, lsn }: Pick<LogRecord, 'kind' | 'tenant' | 'lsn'>,
): void {
  if (tenant !== NO_TENANT) last.set(tenant, lsn);
  if (CATALOG_KINDS.includes(kind)) last.set(NO_TENANT, lsn);
}

function summary(report: RecoveryReport, elapsedMs: number): LogStatus['recovery'] {
  return { recordsScanned: report.recordsScanned, tornBytes: report.tornBytes, elapsedMs };
}

function readDurable(disk: Disk, dir: string): Lsn {
  const bytes = readIfExists(disk, join(dir, DURABLE_FILE));
  if (bytes === undefined) return NO_LSN;
  try {
    const { lsn } = JSON.parse(Buffer.from(bytes).toString()) as { lsn: unknown };
    return typeof lsn === 'number' && Number.isSafeInteger(lsn) && lsn >= 0 ? (lsn as Lsn) : NO_LSN;
  } catch {
    return NO_LSN; // it only saves reading: without it everything that is held is looked at
  }
}

function pack(generation: PackedPage['generation'], records: readonly ReadRecord[], next: Lsn, end: Lsn): PackedPage {
  const count = records.length;
  const bytes = records.reduce((sum, { record }) => sum + record.payload.length, 0);
  const page: PackedPage = {
    generation,
    count,
    term: new Float64Array(count),
    lsn: new Float64Array(count),
    hlc: new BigUint64Array(count),
    tenant: new Float64Array(count),
    kind: new Uint16Array(count),
    watermark: new Float64Array(count),
    ends: new Float64Array(count),
    hashes: new Uint8Array(count * 32),
    payloads: new Uint8Array(bytes),
    next,
    end,
  };
  let offset = 0;
  for (const [index, { record, hash }] of records.entries()) {
    page.payloads.set(record.payload, offset);
    offset += record.payload.length;
    page.term[index] = record.term;
    page.lsn[index] = record.lsn;
    page.hlc[index] = record.hlc;
    page.tenant[index] = record.tenant;
    page.kind[index] = record.kind;
    page.watermark[index] = record.watermark;
    page.ends[index] = offset;
    page.hashes.set(hash, index * 32);
  }
  return page;
}
