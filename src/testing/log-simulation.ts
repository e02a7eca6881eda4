/**
 * The log under a disk that loses power, fills up and fails, for as many seeds as one likes. Each seed writes groups of
 * random sizes, by the log's owner, by a borrower of its tail and by a primary whom it follows, rolls, prunes, cuts and
 * reads, meets one fault after another at a random step, recovers, and goes on. A seed that finds something wrong throws,
 * and does so again when it is run again.
 *
 * After each recovery it is checked that every record that was synced is there byte for byte, that the rest was really
 * appended, that W is not below what was ever durable of it, that the segments are what `layoutSegments` makes of the
 * records, and that nothing was left open.
 */
import { assert } from '../base/assert.ts';
import type { Generation, Hlc, Lsn, TenantId, Term } from '../base/brands.ts';
import { NO_TENANT } from '../base/brands.ts';
import { HybridClock } from '../base/clock.ts';
import type { ErrorCode } from '../base/errors.ts';
import { isNostosError } from '../base/errors.ts';
import type { SeededRandom } from '../base/random.ts';
import { seededRandom } from '../base/random.ts';
import type { InjectedFault } from './faulty-disk.ts';
import { FaultyDisk, PowerCut } from './faulty-disk.ts';
import { VirtualClock } from './virtual-clock.ts';
import { DirectAppendFailed, DirectAppender } from '../log/direct-append.ts';
import { layoutSegments } from '../log/layout.ts';
import { Log } from '../log/log.ts';
import { GroupEncoder, RecordKind } from '../log/record.ts';
import { segmentName } from '../log/segment-header.ts';
import { SharedTail } from '../log/shared-tail.ts';
import { verifyLog } from '../log/verify.ts';
import type { Appended, LogEntry } from '../log/writer.ts';

/** How often each thing happened; a run in which something never did has not shown much. */
export interface LogSimulation {
  seeds: number;
  actions: number;
  powerCuts: number;
  diskFull: number;
  failedWrites: number;
  failedSyncs: number;
  reopened: number;
  tornTails: number;
  phantoms: number;
  rolls: number;
  prunes: number;
  /** Groups that a borrower of the tail appended, that it left to the owner, and whose write or sync failed. */
  directAppends: number;
  directRefused: number;
  directFailed: number;
  /** Runs of records from a primary that were taken, and that were refused since a bit of them had flipped. */
  replicatedRuns: number;
  refusedRuns: number;
  /** Cuts that were completed, and those that a fault interrupted; times that W was said to be durable. */
  cuts: number;
  interruptedCuts: number;
  savedWatermarks: number;
  recordsChecked: number;
}

export interface SimulateOptions {
  readonly seeds: Iterable<number>;
  /** Faults per seed. */
  readonly rounds?: number;
  readonly signal?: AbortSignal;
  readonly onProgress?: (simulation: Readonly<LogSimulation>) => void;
}

const ROUNDS = 6;
const DIR = '/log';
const GENERATION = 'feedfacefeedfacefeedfacefeedface' as Generation;

export async function simulateLog({
  seeds,
  rounds = ROUNDS,
  signal,
  onProgress,
}: SimulateOptions): Promise<LogSimulation> {
  const totals: LogSimulation = {
    seeds: 0,
    actions: 0,
    powerCuts: 0,
    diskFull: 0,
    failedWrites: 0,
    failedSyncs: 0,
    reopened: 0,
    tornTails: 0,
    phantoms: 0,
    rolls: 0,
    prunes: 0,
    directAppends: 0,
    directRefused: 0,
    directFailed: 0,
    replicatedRuns: 0,
    refusedRuns: 0,
    cuts: 0,
    interruptedCuts: 0,
    savedWatermarks: 0,
    recordsChecked: 0,
  };
  for (const seed of seeds) {
    signal?.throwIfAborted();
    try {
      await new LogSimulator(seed, totals).run(rounds);
    } catch (error) {
      throw new Error(`seed ${seed}: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
    }
    totals.seeds += 1;
    onProgress?.(totals);
  }
  return totals;
}

class LogSimulator {
  readonly #random: SeededRandom;
  readonly #totals: LogSimulation;
  readonly #clock = new VirtualClock();
  readonly #segmentBytesMax: number;
  #disk = new FaultyDisk();
  #borrower: { readonly appender: DirectAppender; readonly tail: SharedTail } | undefined;
  #term = 0;
  /** LSN → bytes, of everything that may be in the log now: synced records, and those written since. */
  #written = new Map<number, Buffer>();
  #synced = 0;
  /** The highest W that was said to be durable. */
  #durableWatermark = 0;
  /** The term of the primary whose records were taken last; another one begins with a term-start. */
  #following: number | undefined;
  /** Every payload that was ever given to an append, also to one that failed: only these may come back. */
  readonly #attempted = new Set<string>();

  constructor(seed: number, totals: LogSimulation) {
    this.#random = seededRandom(seed);
    this.#totals = totals;
    this.#segmentBytesMax = 1024 + this.#random.below(8192);
  }

  async run(rounds: number): Promise<void> {
    for (let round = 0; round < rounds; round++) {
      let log: Log | undefined;
      try {
        log = this.#open(true);
        this.#check(log);
        this.#remember(0);
        this.#injectAfter(this.#random.below(60));
        this.#work(log, 10 + this.#random.below(20));
        this.#disk.inject(undefined);
      } catch (error) {
        if (!(error instanceof PowerCut) && !isDiskError(error)) throw error;
      }
      this.#disk.inject(undefined);
      // Whoever meets the power cut is gone; a process that lives lets go of its files.
      if (this.#random.chance(0.3) && log !== undefined) this.#closeIfPowered(log);
      this.#disk = this.#disk.crash(this.#random);
      this.#totals.powerCuts += 1;
    }
    const log = this.#open(false);
    this.#check(log);
    this.#close(log);
    assert(this.#disk.openFiles === 0, `${this.#disk.openFiles} files were left open`);
    const verified = await verifyLog({ disk: this.#disk, dir: DIR });
    assert(verified.ok, `verify found ${JSON.stringify(verified.damages)}`);
  }

  #open(faulty: boolean): Log {
    // A fault may strike while recovering, too.
    if (faulty && this.#random.chance(0.3)) this.#injectAfter(this.#random.below(12));
    const tail = new SharedTail();
    const { log, report } = Log.open(
      { disk: this.#disk, clock: new HybridClock(this.#clock), tail },
      {
        dir: DIR,
        generation: GENERATION,
        segmentBytesMax: this.#segmentBytesMax,
        recordBytesMax: 700,
        preallocateBytes: 512 * (1 + this.#random.below(8)),
        knownWatermark: (this.#random.chance(0.5) ? this.#synced : 0) as Lsn,
      },
    );
    this.#disk.inject(undefined);
    log.lending = true;
    if (report.tornBytes > 0) this.#totals.tornTails += 1;
    const appender = new DirectAppender(
      { disk: this.#disk, clock: new HybridClock(this.#clock), tail },
      { dir: DIR, generation: GENERATION, bytesMax: 2_000 },
    );
    this.#borrower = { appender, tail };
    return log;
  }

  #close(log: Log): void {
    this.#borrower?.appender.close();
    log.close();
  }

  #closeIfPowered(log: Log): void {
    try {
      this.#close(log);
    } catch (error) {
      if (!(error instanceof PowerCut)) throw error;
    }
  }

  #injectAfter(steps: number): void {
    const kind = (['power', 'ENOSPC', 'EIO'] as const)[this.#random.below(3)] as InjectedFault['kind'];
    this.#disk.inject({ atStep: this.#disk.trace.length + steps, kind, repeat: this.#random.below(3) });
  }

  #work(log: Log, actions: number): void {
    for (let i = 0; i < actions; i++) {
      this.#totals.actions += 1;
      this.#clock.advance(this.#random.below(3));
      try {
        // A few of them before the owner looks again: it takes them in together.
        if (this.#random.chance(0.3)) this.#appendDirectly(log);
        else log.own(() => this.#act(log));
      } catch (error) {
        if (!isDiskError(error)) throw error;
        this.#count(error);
        this.#afterFailure(log);
      }
    }
  }

  /** What is synced when this returns may not be lost, whether its owner has looked since or not. */
  #appendDirectly(log: Log): void {
    const { appender, tail } = this.#borrower!;
    const entries = this.#entries();
    for (const entry of entries) this.#attempted.add(asKey(entry));
    const before = tail.lsn;
    try {
      const appended = appender.append(entries);
      if (appended === undefined) {
        this.#totals.directRefused += 1;
        return;
      }
      assert(appended.firstLsn === before + 1, `LSN ${appended.firstLsn} after ${before}`);
      this.#totals.directAppends += 1;
      this.#remember(before);
      this.#synced = before + entries.length;
      if (this.#random.chance(0.3)) log.own(() => this.#assertReads(log));
    } catch (error) {
      if (!(error instanceof DirectAppendFailed)) throw error;
      if (error.cause instanceof PowerCut) throw error.cause;
      this.#totals.directFailed += 1;
      const state = log.own(() => log.state);
      assert(state === 'failed', `after a direct append failed the log is ${state}`);
    }
  }

  #act(log: Log): void {
    if (log.state === 'failed') {
      log.reopen();
      this.#totals.reopened += 1;
      this.#check(log);
    } else if (log.state === 'term-ended' && this.#random.chance(0.6)) {
      if (this.#random.chance(0.25)) this.#cut(log);
      else this.#replicate(log);
    } else if (log.state === 'term-ended') {
      this.#term += 1;
      this.#following = undefined;
      const payload = Buffer.from(`term ${this.#term}`);
      const entries = [{ tenant: NO_TENANT, kind: RecordKind.termStart, payload }];
      this.#append(log, entries, () => log.startTerm(this.#term as Term, payload));
    } else if (this.#random.chance(0.35)) {
      log.sync();
      this.#synced = log.durable.lsn;
      if (this.#random.chance(0.7)) log.setWatermark(log.durable.lsn);
      if (this.#random.chance(0.1)) {
        this.#durableWatermark = log.saveWatermark();
        this.#totals.savedWatermarks += 1;
      }
    } else if (this.#random.chance(0.1)) this.#prune(log);
    else if (this.#random.chance(0.15)) log.endTerm();
    else {
      const entries = this.#entries();
      this.#append(log, entries, () => log.append(entries));
    }
  }

  #append(log: Log, entries: readonly LogEntry[], run: () => Appended): void {
    const segments = log.sealed.length;
    const before = log.end.lsn;
    for (const entry of entries) this.#attempted.add(asKey(entry));
    const appended = run();
    assert(appended.firstLsn === before + 1, `LSN ${appended.firstLsn} after ${before}`);
    assert(appended.positions.length === entries.length, 'a record for each entry');
    this.#totals.rolls += log.sealed.length - segments;
    this.#remember(before);
  }

  /** Takes records as a follower does; of a run in which a bit has flipped, none. */
  #replicate(log: Log): void {
    const run = this.#run(log);
    const before = log.end.lsn;
    const segments = log.sealed.length;
    if (this.#random.chance(0.15)) {
      const flipped = Buffer.from(run);
      const at = this.#random.below(run.length);
      flipped[at] = flipped[at]! ^ (1 << this.#random.below(8));
      assertRefused('RECORD_REFUSED', () => log.appendReplicated(flipped));
      assert(log.end.lsn === before && log.state === 'term-ended', 'a refused run changes nothing');
      this.#totals.refusedRuns += 1;
    }
    log.appendReplicated(run);
    this.#totals.replicatedRuns += 1;
    this.#totals.rolls += log.sealed.length - segments;
    this.#remember(before);
    if (this.#random.chance(0.5)) {
      log.sync();
      this.#synced = log.durable.lsn;
    }
  }

  #run(log: Log): Buffer {
    const encoder = new GroupEncoder();
    encoder.begin(64 * 1024);
    const entries = this.#entries();
    if (this.#following !== log.end.term || this.#random.chance(0.2)) {
      this.#term += 1;
      entries.unshift({ tenant: NO_TENANT, kind: RecordKind.termStart, payload: Buffer.from(`term ${this.#term}`) });
    }
    let { hash, lsn } = log.end;
    // A primary knows what its log names, and what it was told.
    const named = [...this.#written.values()].map((bytes) => Number(bytes.readBigUInt64LE(56)));
    let watermark = Math.max(log.watermark, ...named) as Lsn;
    for (const entry of entries) {
      this.#attempted.add(asKey(entry));
      if (this.#random.chance(0.2)) watermark = (watermark + this.#random.below(lsn - watermark + 1)) as Lsn;
      lsn = (lsn + 1) as Lsn;
      const fields = { ...entry, term: this.#term as Term, lsn, hlc: BigInt(lsn) as Hlc, watermark };
      hash = encoder.add(Buffer.from(GENERATION, 'hex'), fields, hash);
    }
    this.#following = this.#term;
    return Buffer.from(encoder.bytes(0, encoder.length));
  }

  #cut(log: Log): void {
    log.sync();
    this.#synced = log.durable.lsn;
    const { watermark, end, firstLsn } = log;
    if (watermark >= firstLsn) assertRefused('WATERMARK_VIOLATION', () => log.cutTo((watermark - 1) as Lsn));
    const lsn = (watermark + this.#random.below(end.lsn - watermark + 1)) as Lsn;
    // From here on what is above may be gone or not, until the call has returned.
    this.#synced = lsn;
    this.#following = undefined;
    const steps = this.#disk.trace.length;
    try {
      log.cutTo(lsn);
    } catch (error) {
      if (this.#disk.trace.length > steps + 1) this.#totals.interruptedCuts += 1;
      throw error;
    }
    for (const held of this.#written.keys()) if (held > lsn) this.#written.delete(held);
    assert(log.end.lsn === lsn && log.durable.lsn === lsn, `cut to ${lsn}, the log ends at ${log.end.lsn}`);
    if (lsn < end.lsn) {
      this.#durableWatermark = watermark;
      this.#totals.cuts += 1;
    }
    this.#check(log);
  }

  /** The last records, by their owner: all that anybody synced. */
  #assertReads(log: Log): void {
    assert(log.durable.lsn === this.#synced, `durable is ${log.durable.lsn}, synced ${this.#synced}`);
    const from = Math.max(log.firstLsn, this.#synced - 20) as Lsn;
    let next: number = from;
    for (const batch of log.read({ from }))
      for (const { record } of batch.records) {
        assert(this.#written.get(next)?.equals(Buffer.from(record.bytes)) === true, `LSN ${next} is another record`);
        next += 1;
      }
    assert(next === this.#synced + 1, `read up to ${next - 1}, synced ${this.#synced}`);
  }

  /** Takes in what the segments hold above `after`, as it reads back. */
  #remember(after: number): void {
    for (const [lsn, bytes] of recordsOnDisk(this.#disk)) if (lsn > after) this.#written.set(lsn, bytes);
  }

  #prune(log: Log): void {
    const bound = this.#random.below(log.durable.lsn + 1) as Lsn;
    const report = log.prune({
      durableApplied: bound,
      watermark: log.watermark,
      retainBytes: this.#random.below(4096),
    });
    this.#totals.prunes += report.segments > 0 ? 1 : 0;
    assert(
      report.segments === 0 || report.firstLsn <= Math.min(bound, log.watermark) + 1,
      'pruning stays below its bounds',
    );
  }

  /** Of an append that was cut, nothing is left; one that left the log `failed` is judged when it is reopened. */
  #afterFailure(log: Log): void {
    if (log.state === 'failed') return;
    for (const lsn of this.#written.keys()) if (lsn > log.end.lsn) this.#written.delete(lsn);
  }

  #count(error: unknown): void {
    if (isNostosError(error, 'DISK_FULL')) this.#totals.diskFull += 1;
    else if (isNostosError(error) && error.details.operation === 'sync') this.#totals.failedSyncs += 1;
    else this.#totals.failedWrites += 1;
  }

  #entries(): LogEntry[] {
    return Array.from({ length: 1 + this.#random.below(6) }, () => ({
      tenant: (1 + this.#random.below(3)) as TenantId,
      kind: RecordKind.changeset,
      payload: this.#random.bytes(this.#random.below(this.#random.chance(0.1) ? 700 : 200)),
    }));
  }

  /** The log after it was opened: all that was synced, in order, and nothing that nobody wrote. */
  #check(log: Log): void {
    assert(log.end.lsn >= this.#synced, `the log ends at ${log.end.lsn}, but ${this.#synced} was synced`);
    assert(log.watermark >= this.#durableWatermark, `W is ${log.watermark}, durable was ${this.#durableWatermark}`);
    const records: Uint8Array[] = [];
    const held = new Map<number, Buffer>();
    for (const batch of log.read({ from: log.firstLsn, bytesMax: 2048 }))
      for (const { record } of batch.records) {
        const bytes = Buffer.from(record.bytes);
        assert(record.watermark <= log.watermark, `W is ${log.watermark}, LSN ${record.lsn} names ${record.watermark}`);
        records.push(bytes);
        held.set(record.lsn, bytes);
        const known = this.#written.get(record.lsn);
        if (record.lsn <= this.#synced) assert(known?.equals(bytes) === true, `LSN ${record.lsn} is another record`);
        else {
          assert(this.#attempted.has(asKey(record)), `LSN ${record.lsn} was never appended`);
          this.#totals.phantoms += 1;
        }
      }
    assert(held.size === log.end.lsn - log.firstLsn + 1, 'every record is read');
    this.#totals.recordsChecked += held.size;
    this.#checkSegments(log, records);
    this.#written = held;
    this.#synced = log.end.lsn;
    this.#term = Math.max(this.#term, log.end.term);
  }

  #checkSegments(log: Log, records: readonly Uint8Array[]): void {
    const number = log.sealed[0]?.number ?? log.openSegment;
    const start = { number, anchor: log.anchor, segmentBytesMax: this.#segmentBytesMax };
    const expected = layoutSegments(start, records);
    const open = segmentName(log.openSegment);
    for (const [name, bytes] of expected) {
      const actual = Buffer.from(this.#disk.bytes(`${DIR}/${name}`));
      if (name !== open) assert(actual.equals(bytes), `${name} is not what its records make`);
      else {
        assert(actual.subarray(0, bytes.length).equals(bytes), `${name} does not begin with its records`);
        assert(
          actual.subarray(bytes.length).every((byte) => byte === 0),
          `${name} does not end in zeros`,
        );
      }
    }
  }
}

/** Records as the files have them, found without the code under test's bookkeeping. */
function recordsOnDisk(disk: FaultyDisk): Map<number, Buffer> {
  const records = new Map<number, Buffer>();
  for (const name of disk.list(DIR)) {
    if (!name.endsWith('.ndb')) continue;
    const bytes = Buffer.from(disk.bytes(`${DIR}/${name}`));
    for (let at = 84; at + 100 <= bytes.length && bytes.readUInt16LE(at) === 1;) {
      const end = at + 100 + bytes.readUInt32LE(at + 52);
      if (end > bytes.length) break;
      records.set(Number(bytes.readBigUInt64LE(at + 26)), bytes.subarray(at, end));
      at = end;
    }
  }
  return records;
}

function asKey({ tenant, kind, payload }: Pick<LogEntry, 'tenant' | 'kind' | 'payload'>): string {
  return `${tenant} ${kind} ${Buffer.from(payload).toString('latin1')}`;
}

function assertRefused(code: ErrorCode, run: () => void): void {
  try {
    run();
  } catch (error) {
    if (isNostosError(error, code)) return;
    throw error;
  }
  assert(false, `${code} was expected`);
}

function isDiskError(error: unknown): boolean {
  return isNostosError(error, 'DISK_FULL') || isNostosError(error, 'IO_FAILED');
}
