/**
 * The engine: owner of the log and of the node's place in its group. It runs in a thread that user code cannot stall
 * (`engine-thread.ts`) and is driven by requests.
 *
 * What must hold: an append is answered only when its records are on disk and the watermark covers them. A failed
 * append or fsync ends the term; the next append begins a new one, which the coordinator grants. After a failed fsync
 * the log is read back from disk first, and the callers get what was really found:
 *
 * | state      | append                                   | log refuses (no space)     | fsync fails                    |
 * |------------|------------------------------------------|----------------------------|--------------------------------|
 * | leading    | write, fsync, raise W, answer            | refuse all, to term-ended  | reopen, answer by what is there |
 * | term-ended | win a new term, then as leading          | refuse all                 | refuse all, to failed           |
 * | failed     | reopen, win a new term, then as leading  | refuse all                 | refuse all, stay failed         |
 *
 * There is one attempt per group of appends, never a loop: whoever writes next tries again.
 *
 * A copy (made by a restore) asks no coordinator, starts no term and refuses every append. Its log was fetched up to a
 * watermark of its source, so all of it is committed.
 *
 * Whoever has nobody to share an fsync with may append from the caller's thread (ADR 0004). So everything here that asks
 * or changes the log does it in `log.own`; a direct append whose write or sync failed comes to `settle`, which reads
 * back what the disk has, as after an fsync of our own.
 */
import { join } from 'node:path';
import { assert } from '../base/assert.ts';
import { HASH_BYTES, NO_LSN, NO_TENANT, type Lsn, type TenantId, type Term } from '../base/brands.ts';
import { HybridClock, systemClock, type Clock } from '../base/clock.ts';
import { systemDisk, type Disk } from '../base/disk.ts';
import { readIfExists, writeDurably } from '../base/durable-file.ts';
import { NostosError } from '../base/errors.ts';
import { randomHex128, systemRandom } from '../base/random.ts';
import type { Coordinator, GroupRecord } from '../coordination/coordinator.ts';
import type { Appended, LogEntry, PageRequest, TenantLocation } from '../log/commit-log.ts';
import { Log } from '../log/log.ts';
import { RecordKind, type LogRecord } from '../log/record.ts';
import type { ReadRecord } from '../log/reader.ts';
import type { RecoveryReport } from '../log/recovery.ts';
import type { Reservation } from '../log/retention.ts';
import { SEALED_FILE, sealedTable } from '../log/sealed.ts';
import { segmentName } from '../log/segment-header.ts';
import type { SharedTail } from '../log/shared-tail.ts';
import { saveTable } from '../log/table-file.ts';
import type { EngineOpened, EngineOptions, LogFiles, PackedPage, ProbeReport } from './engine-protocol.ts';
import { notPrimary } from './not-primary.ts';
import { monitorTimer } from './timer-monitor.ts';
import type { LogStatus } from './types.ts';

export interface EngineDeps {
  readonly coordinator: Coordinator;
  readonly disk?: Disk;
  readonly clock?: Clock;
  /** For appends of the caller's own thread. */
  readonly tail?: SharedTail;
  /** The highest position that any tenant file has; asked only when the log ends in a torn record. */
  readonly highestApplied: () => Lsn;
}

export interface AppendCall {
  readonly entries: readonly LogEntry[];
  resolve(appended: Appended): void;
  reject(error: unknown): void;
}

/** A direct append whose outcome its thread does not know. */
export interface DirectFailure {
  readonly firstLsn: Lsn;
  readonly hashes: Uint8Array;
  readonly cause: unknown;
}

/** The last LSN of a group that is on disk, or `UNKNOWN`, and the term in which that record was written. */
interface ReadBack {
  readonly held: Lsn;
  readonly term: Term;
}

const UNKNOWN = -1;

interface EngineParts {
  readonly deps: EngineDeps;
  readonly options: EngineOptions;
  readonly disk: Disk;
  readonly log: Log;
  readonly last: Map<TenantId, Lsn>;
}

const DURABLE_FILE = 'durable';
const CATALOG_KINDS: ReadonlySet<number> = new Set([RecordKind.tenantCreate, RecordKind.tenantDrop]);

export class Engine {
  readonly #deps: EngineDeps;
  readonly #options: EngineOptions;
  readonly #disk: Disk;
  readonly #log: Log;
  readonly #recovery: LogStatus['recovery'];
  /** Per tenant the last LSN above `#durable`; under `NO_TENANT` that of the catalog. */
  readonly #last: Map<TenantId, Lsn>;
  readonly #holds = new Map<number, Reservation>();
  #nextHold = 0;
  #durable: Lsn;
  #regaining: Promise<void> | undefined;

  private constructor({ deps, options, disk, log, last }: EngineParts, recovery: LogStatus['recovery'], durable: Lsn) {
    this.#deps = deps;
    this.#options = options;
    this.#disk = disk;
    this.#log = log;
    this.#last = last;
    this.#recovery = recovery;
    this.#durable = durable;
  }

  static async open(deps: EngineDeps, options: EngineOptions): Promise<Engine> {
    const disk = deps.disk ?? systemDisk;
    const clock = deps.clock ?? systemClock;
    const startedMs = clock.monotonicMs();
    const dir = join(options.dir, 'log');
    const durable = readDurable(disk, dir);
    const { copy } = options;
    const committed = copy === undefined ? (await deps.coordinator.read())?.record.committed : undefined;
    const last = new Map<TenantId, Lsn>();
    let held = (): Lsn => durable;
    const { log, report } = Log.open(
      { disk, clock: new HybridClock(clock), ...(deps.tail === undefined ? {} : { tail: deps.tail }) },
      {
        dir,
        generation: options.generation,
        segmentBytesMax: options.limits.segmentBytesMax,
        recordBytesMax: options.limits.recordBytesMax,
        knownWatermark: committed?.generation === options.generation ? committed.lsn : (copy?.lsn ?? NO_LSN),
        highestApplied: deps.highestApplied,
        scanFrom: (durable + 1) as Lsn,
        // Also on reopening: of a call whose outcome is not known some records may be there.
        onRecord: (record) => {
          if (record.lsn > held()) note(last, record);
        },
      },
    );
    const engine = new Engine(
      { deps, options, disk, log, last },
      summary(report, clock.monotonicMs() - startedMs),
      // A log is cut below only what all files hold; one that was copied brings no file that says so.
      Math.max(durable, log.firstLsn - 1) as Lsn,
    );
    held = () => engine.#durable;
    if (copy === undefined) await engine.#lead();
    else engine.#settleCopy(report);
    return engine;
  }

  get opened(): EngineOpened {
    return {
      watermark: this.#log.watermark,
      term: this.#log.end.term,
      dirty: [...this.#last.keys()].filter((tenant) => tenant !== NO_TENANT),
      durable: this.#durable,
    };
  }

  get watermark(): Lsn {
    return this.#log.watermark;
  }

  /** One group: everything that waits, one write, one fsync. */
  async append(calls: readonly AppendCall[]): Promise<void> {
    try {
      this.#assertNoCopy();
      if (this.appendNow(calls)) return;
      await this.#regain();
      if (!this.appendNow(calls)) throw new NostosError('IO_FAILED', 'the disk failed again; nothing was written');
    } catch (error) {
      for (const call of calls) call.reject(error);
    }
  }

  /** False where that needs a new term first: then nothing has happened. */
  appendNow(calls: readonly AppendCall[]): boolean {
    let begun = false;
    try {
      return this.#log.own(() => {
        if (this.#log.state !== 'open') return false;
        begun = true;
        this.#append(calls);
        return true;
      });
    } catch (error) {
      if (begun) throw error; // never a second time
      return false; // what another thread has appended cannot be read: reopening says why
    }
  }

  #append(calls: readonly AppendCall[]): void {
    const first = this.#log.end.lsn + 1;
    let hashes: Uint8Array;
    try {
      const entries = calls.length === 1 ? calls[0]!.entries : calls.flatMap((call) => call.entries);
      hashes = this.#log.append(entries).hashes;
    } catch (error) {
      // The log has cut what it had begun to write: nothing of this group was kept, unless that failed too.
      const refusal = this.#log.state === 'failed' ? this.#outcomeUnknown(first as Lsn, error) : error;
      for (const call of calls) call.reject(refusal);
      return;
    }
    let held = this.#log.end.lsn;
    let failure: unknown;
    try {
      this.#log.sync();
    } catch (error) {
      failure = error;
      ({ held } = this.#readBack(first as Lsn, hashes));
    }
    if (failure === undefined) this.#log.setWatermark(held);
    this.#answer(calls, first, hashes, held, failure);
  }

  /** The outcome of records that the caller's thread has appended, and whose write or sync failed. */
  async settle({ firstLsn, hashes, cause }: DirectFailure): Promise<Appended & { readonly watermark: Lsn }> {
    const last = (firstLsn + hashes.length / HASH_BYTES - 1) as Lsn;
    let found: ReadBack;
    try {
      found = this.#log.own(() => this.#readBack(firstLsn, hashes));
    } catch (error) {
      throw this.#outcomeUnknown(last, error);
    }
    const { held, term } = found;
    if (last <= held)
      return { generation: this.#options.generation, term, firstLsn, hashes, watermark: this.watermark };
    if (held >= 0 && firstLsn > held) throw cause;
    throw this.#outcomeUnknown(last, cause);
  }

  /** Finds out which records of a group the disk has after a write or an fsync failed. */
  #readBack(first: Lsn, hashes: Uint8Array): ReadBack {
    let held: number = first - 1;
    let { term } = this.#log.end;
    try {
      if (this.#log.state === 'failed') this.#log.reopen();
      this.#log.setWatermark(this.#log.durable.lsn);
      for (const { record, hash } of this.#records(first)) {
        const at = (record.lsn - first) * HASH_BYTES;
        if (!Buffer.from(hash).equals(hashes.subarray(at, at + HASH_BYTES))) break;
        held = record.lsn;
        ({ term } = record);
      }
    } catch {
      held = UNKNOWN;
    }
    return { held: held as Lsn, term };
  }

  #answer(calls: readonly AppendCall[], firstLsn: number, hashes: Uint8Array, held: Lsn, failure: unknown): void {
    const { term } = this.#log.end;
    const { generation } = this.#options;
    let first = firstLsn;
    for (const call of calls) {
      const count = call.entries.length;
      const last = first + count - 1;
      if (last <= held) {
        const start = (first - firstLsn) * 32;
        for (const [index, entry] of call.entries.entries())
          note(this.#last, { kind: entry.kind, tenant: entry.tenant, lsn: (first + index) as Lsn });
        call.resolve({ generation, term, firstLsn: first as Lsn, hashes: hashes.slice(start, start + count * 32) });
      } else if (held >= 0 && first > held) {
        call.reject(failure);
      } else {
        call.reject(this.#outcomeUnknown(last as Lsn, failure));
      }
      first = last + 1;
    }
  }

  #outcomeUnknown(lsn: Lsn, cause: unknown): NostosError {
    const position = { generation: this.#options.generation, term: this.#log.end.term, lsn };
    return new NostosError(
      'OUTCOME_UNKNOWN',
      `it is not known whether the write at LSN ${lsn} was kept; the disk failed`,
      { cause, details: { position } },
    );
  }

  async locate(tenant: TenantId, lsn: Lsn): Promise<TenantLocation> {
    // Whoever catches up now must not miss a record that turns up later.
    return this.#onKnown(() => {
      const found = { last: this.#last.get(tenant) ?? NO_LSN, durable: this.#durable };
      if (lsn < this.#log.firstLsn || lsn > this.#log.durable.lsn) return found;
      for (const { record, hash } of this.#records(lsn, lsn)) return { ...found, at: { term: record.term, lsn, hash } };
      return found;
    });
  }

  reserve(from: Lsn): number {
    const hold = (this.#nextHold += 1);
    const { reservationTimeoutMs } = this.#options.limits;
    return this.#log.own(() => {
      // What is above the end is held by nobody yet, and cannot be pruned either.
      const held = Math.min(from, this.#log.end.lsn + 1) as Lsn;
      this.#holds.set(hold, this.#log.reserve(held, { timeoutMs: reservationTimeoutMs }));
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
    const watermark = this.#log.own(() => this.#log.watermark);
    const from = Math.min(Math.max(bound, this.#durable) + 1, Math.max(watermark, 1)) as Lsn;
    return { hold: this.reserve(from), from };
  }

  reserveAll(): { hold: number; from: Lsn } {
    const from = this.#log.own(() => this.#log.firstLsn);
    return { hold: this.reserve(from), from };
  }

  logFiles(from: Lsn): LogFiles {
    return this.#log.own(() => {
      const { watermark, sealed, end } = this.#log;
      if (from < this.#log.firstLsn)
        throw new NostosError('LOG_PRUNED', `the log begins at LSN ${this.#log.firstLsn}, ${from} is asked`, {
          details: { firstLsn: this.#log.firstLsn, from },
        });
      const files = sealed
        .filter(({ last }) => last.lsn >= from)
        .map(({ number, sizeBytes, anchor }) => ({ name: segmentName(number), bytes: sizeBytes, after: anchor.lsn }));
      files.push({
        name: segmentName(this.#log.openSegment),
        bytes: this.#log.sizeBytes - sealed.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0),
        after: sealed.at(-1)?.last.lsn ?? this.#log.anchor.lsn,
      });
      const segments = files.filter(({ after }) => after < watermark);
      const last = segments.at(-1);
      // Above W nothing leaves the node.
      if (last !== undefined && end.lsn > watermark) {
        const next = this.#log.locate((watermark + 1) as Lsn);
        if (next.segment === last.name) last.bytes = next.offset;
      }
      const bytes = segments.reduce((sum, file) => sum + file.bytes, 0);
      return { segments: segments.map(({ name, bytes }) => ({ name, bytes })), bytes, term: end.term, watermark };
    });
  }

  async readPage(request: PageRequest): Promise<PackedPage> {
    return this.#onKnown(() => this.#readPage(request));
  }

  #readPage(request: PageRequest): PackedPage {
    const known = request.uncommitted === true ? this.#log.durable.lsn : this.#log.watermark;
    const end = Math.min(request.to ?? Infinity, known) as Lsn;
    const { generation } = this.#options;
    if (request.from > end) return pack(generation, [], request.from, end);
    const kinds = request.kinds === undefined ? undefined : new Set<number>(request.kinds);
    for (const batch of this.#log.read({
      from: request.from,
      to: end,
      ...(request.tenant === undefined ? {} : { tenant: request.tenant }),
      bytesMax: request.bytesMax,
      passing: true,
    })) {
      const records =
        kinds === undefined ? batch.records : batch.records.filter(({ record }) => kinds.has(record.kind));
      return pack(generation, records, (batch.through + 1) as Lsn, end);
    }
    return pack(generation, [], (end + 1) as Lsn, end);
  }

  async advance(durable: Lsn): Promise<void> {
    if (durable > this.#durable) {
      writeDurably(
        this.#disk,
        join(this.#options.dir, 'log', DURABLE_FILE),
        Buffer.from(JSON.stringify({ lsn: durable })),
      );
      this.#durable = durable;
      for (const [tenant, last] of this.#last) if (last <= durable) this.#last.delete(tenant);
    }
    if (this.#options.copy === undefined) await this.#renew();
    const { logRetainBytes: retainBytes } = this.#options.limits;
    this.#log.own(() =>
      this.#log.prune({ durableApplied: this.#durable, watermark: this.#log.watermark, retainBytes }),
    );
  }

  status(): LogStatus {
    return this.#log.own(() => ({
      generation: this.#options.generation,
      term: this.#log.end.term,
      firstLsn: this.#log.firstLsn,
      lastLsn: this.#log.end.lsn,
      watermark: this.#log.watermark,
      segments: this.#log.sealed.length + 1,
      bytes: this.#log.sizeBytes,
      recovery: this.#recovery,
    }));
  }

  probe(durationMs: number): Promise<ProbeReport> {
    let appends = 0;
    return monitorTimer(durationMs, () => {
      const ignore = { entries: [{ tenant: NO_TENANT, kind: RecordKind.noop, payload: new Uint8Array(100) }] };
      this.appendNow([{ ...ignore, resolve: () => (appends += 1), reject: () => {} }]);
    }).then((timer) => ({ ...timer, appends }));
  }

  async close(): Promise<void> {
    // The coordinator remembers W, so that the next open knows which records must be there.
    if (this.#log.own(() => this.#log.state) === 'open') await this.#renew().catch(() => {});
    this.#log.lending = false;
    try {
      this.#log.own(() => this.#log.close());
    } finally {
      this.#log.close(); // also where what another thread has appended could not be read
    }
  }

  /** Nothing above what was fetched can be there; what was left out of it is made again, so that opening reads less. */
  #settleCopy({ rebuilt }: RecoveryReport): void {
    this.#log.own(() => {
      this.#log.setWatermark(this.#log.end.lsn);
      const { sealed } = this.#log;
      if (!rebuilt.includes(SEALED_FILE) || sealed[0] === undefined) return;
      const path = join(this.#options.dir, 'log', SEALED_FILE);
      saveTable(this.#disk, path, sealedTable, { base: sealed[0].number, rows: [...sealed] });
    });
  }

  #assertNoCopy(): void {
    if (this.#options.copy !== undefined) throw notPrimary();
  }

  /** Runs `fn` on a log of which it is known what the disk has: beyond the last sync it is not, once one failed. */
  async #onKnown<T>(fn: () => T): Promise<T> {
    const found = this.#log.own(() => (this.#log.state === 'failed' ? undefined : { value: fn() }));
    if (found !== undefined) return found.value;
    await this.#regain();
    return this.#log.own(fn);
  }

  *#records(from: Lsn, to?: Lsn): Generator<ReadRecord> {
    // One record is not worth a buffer for many.
    const range = to === undefined ? { from } : { from, to, bytesMax: 1 };
    for (const batch of this.#log.read({ ...range, passing: true })) yield* batch.records;
  }

  /** Wins a term and begins it with a record of its own; from then on the whole tail is committed. */
  async #lead(): Promise<void> {
    // Nothing that a copy does can fail its log, so it never comes here to regain one.
    assert(this.#options.copy === undefined, 'a copy starts no term');
    const { store, boot, generation } = this.#options;
    const seen = await this.#deps.coordinator.read();
    const previous = this.#log.end;
    const base = seen?.record;
    const term = (Math.max(base?.term ?? 0, previous.term) + 1) as Term;
    const record: GroupRecord = {
      generation,
      term,
      primary: { store, boot },
      members: [store],
      inSync: [store],
      minInSync: 1,
      renewal: (base?.renewal ?? 0) + 1,
      committed: base?.committed ?? null,
      nonce: randomHex128(systemRandom),
    };
    await this.#replace(seen?.version ?? 0, record);
    this.#log.lending = record.inSync.length === 1; // with replicas a record is not committed by our disk alone
    const payload = Buffer.from(
      JSON.stringify({
        primary: store,
        boot,
        previous: { term: previous.term, lsn: previous.lsn },
        watermark: this.#log.watermark,
      }),
    );
    this.#log.own(() => {
      this.#log.startTerm(term, payload);
      this.#log.sync();
      this.#log.setWatermark(this.#log.end.lsn);
    });
  }

  /** Finds out what the disk holds, if that is not known, and wins a new term. Whoever needs it meanwhile shares it. */
  #regain(): Promise<void> {
    this.#regaining ??= this.#regainOnce().finally(() => (this.#regaining = undefined));
    return this.#regaining;
  }

  async #regainOnce(): Promise<void> {
    this.#log.own(() => {
      if (this.#log.state === 'failed') this.#log.reopen();
    });
    await this.#lead();
  }

  async #renew(): Promise<void> {
    const seen = await this.#deps.coordinator.read();
    const { generation, boot } = this.#options;
    if (seen === undefined || seen.record.primary?.boot !== boot || this.#log.state !== 'open') return;
    const { term, lsn } = this.#log.own(() => ({ term: this.#log.end.term, lsn: this.#log.watermark }));
    const committed = { generation, term, lsn };
    if (seen.record.committed?.lsn === committed.lsn) return;
    await this.#replace(seen.version, {
      ...seen.record,
      renewal: seen.record.renewal + 1,
      committed,
      nonce: randomHex128(systemRandom),
    });
  }

  async #replace(version: number, record: GroupRecord): Promise<void> {
    const answer = await this.#deps.coordinator.compareAndSet(version, record);
    if (!answer.ok)
      throw new NostosError('COORDINATOR_CONFLICT', 'another process replaced the group record of this node');
  }
}

function note(last: Map<TenantId, Lsn>, { kind, tenant, lsn }: Pick<LogRecord, 'kind' | 'tenant' | 'lsn'>): void {
  if (tenant !== NO_TENANT) last.set(tenant, lsn);
  if (CATALOG_KINDS.has(kind)) last.set(NO_TENANT, lsn);
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
