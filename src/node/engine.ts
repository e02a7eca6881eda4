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
import { HASH_BYTES, NO_LSN, NO_TENANT, type Lsn, type Term } from '../base/brands.ts';
import { NostosError } from '../base/errors.ts';
import { randomHex128, systemRandom } from '../base/random.ts';
import type { Coordinator, GroupRecord } from '../coordination/coordinator.ts';
import type { Appended, Durability, LogEntry } from '../log/commit-log.ts';
import { RecordKind } from '../log/record.ts';
import type { RecoveryReport } from '../log/recovery.ts';
import { SEALED_FILE, sealedTable } from '../log/sealed.ts';
import { saveTable } from '../log/table-file.ts';
import type { EngineOptions, ProbeReport } from './engine-protocol.ts';
import { LogService, note, openLog, type LogServiceDeps, type OpenedLog } from './log-service.ts';
import { notPrimary } from './not-primary.ts';
import { monitorTimer } from './timer-monitor.ts';

export interface EngineDeps extends LogServiceDeps {
  readonly coordinator: Coordinator;
}

export interface AppendCall {
  readonly entries: readonly LogEntry[];
  /** Of a lone node both are the same moment. */
  readonly durability: Durability;
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

export class Engine extends LogService {
  readonly #deps: EngineDeps;
  #regaining: Promise<void> | undefined;

  private constructor(deps: EngineDeps, opened: OpenedLog) {
    super(opened);
    this.#deps = deps;
  }

  static async open(deps: EngineDeps, options: EngineOptions): Promise<Engine> {
    const { copy } = options;
    const committed = copy === undefined ? (await deps.coordinator.read())?.record.committed : undefined;
    const knownWatermark = committed?.generation === options.generation ? committed.lsn : (copy?.lsn ?? NO_LSN);
    const opened = openLog(deps, options, knownWatermark);
    const engine = new Engine(deps, opened);
    if (copy === undefined) await engine.#lead();
    else engine.#settleCopy(opened.report);
    return engine;
  }

  /** One group: everything that waits, one write, one fsync. */
  async append(calls: readonly AppendCall[]): Promise<void> {
    try {
      this.#assertNoCopy();
      if (this.appendNow(calls)) return;
      await this.regain();
      if (!this.appendNow(calls)) throw new NostosError('IO_FAILED', 'the disk failed again; nothing was written');
    } catch (error) {
      for (const call of calls) call.reject(error);
    }
  }

  /** False where that needs a new term first: then nothing has happened. */
  appendNow(calls: readonly AppendCall[]): boolean {
    let begun = false;
    try {
      return this.log.own(() => {
        if (this.log.state !== 'open') return false;
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
    const first = this.log.end.lsn + 1;
    let hashes: Uint8Array;
    try {
      const entries = calls.length === 1 ? calls[0]!.entries : calls.flatMap((call) => call.entries);
      hashes = this.log.append(entries).hashes;
    } catch (error) {
      // The log has cut what it had begun to write: nothing of this group was kept, unless that failed too.
      const refusal = this.log.state === 'failed' ? this.#outcomeUnknown(first as Lsn, error) : error;
      for (const call of calls) call.reject(refusal);
      return;
    }
    let held = this.log.end.lsn;
    let failure: unknown;
    try {
      this.log.sync();
    } catch (error) {
      failure = error;
      ({ held } = this.#readBack(first as Lsn, hashes));
    }
    if (failure === undefined) this.log.setWatermark(held);
    this.#answer(calls, first, hashes, held, failure);
  }

  /** The outcome of records that the caller's thread has appended, and whose write or sync failed. */
  async settle({ firstLsn, hashes, cause }: DirectFailure): Promise<Appended & { readonly watermark: Lsn }> {
    const last = (firstLsn + hashes.length / HASH_BYTES - 1) as Lsn;
    let found: ReadBack;
    try {
      found = this.log.own(() => this.#readBack(firstLsn, hashes));
    } catch (error) {
      throw this.#outcomeUnknown(last, error);
    }
    const { held, term } = found;
    if (last <= held) return { generation: this.options.generation, term, firstLsn, hashes, watermark: this.watermark };
    if (held >= 0 && firstLsn > held) throw cause;
    throw this.#outcomeUnknown(last, cause);
  }

  /** Finds out which records of a group the disk has after a write or an fsync failed. */
  #readBack(first: Lsn, hashes: Uint8Array): ReadBack {
    let held: number = first - 1;
    let { term } = this.log.end;
    try {
      if (this.log.state === 'failed') this.log.reopen();
      this.log.setWatermark(this.log.durable.lsn);
      for (const { record, hash } of this.records(first)) {
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
    const { term } = this.log.end;
    const { generation } = this.options;
    let first = firstLsn;
    for (const call of calls) {
      const count = call.entries.length;
      const last = first + count - 1;
      if (last <= held) {
        const start = (first - firstLsn) * 32;
        for (const [index, entry] of call.entries.entries())
          note(this.last, { kind: entry.kind, tenant: entry.tenant, lsn: (first + index) as Lsn });
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
    const position = { generation: this.options.generation, term: this.log.end.term, lsn };
    return new NostosError(
      'OUTCOME_UNKNOWN',
      `it is not known whether the write at LSN ${lsn} was kept; the disk failed`,
      { cause, details: { position } },
    );
  }

  async advance(durable: Lsn): Promise<void> {
    this.noteDurable(durable);
    if (this.options.copy === undefined) await this.#renew();
    this.prune();
  }

  probe(durationMs: number): Promise<ProbeReport> {
    let appends = 0;
    return monitorTimer(durationMs, () => {
      const ignore = {
        durability: 'quorum' as const,
        entries: [{ tenant: NO_TENANT, kind: RecordKind.noop, payload: new Uint8Array(100) }],
      };
      this.appendNow([{ ...ignore, resolve: () => (appends += 1), reject: () => {} }]);
    }).then((timer) => ({ ...timer, appends }));
  }

  async close(): Promise<void> {
    // The coordinator remembers W, so that the next open knows which records must be there.
    if (this.log.own(() => this.log.state) === 'open') await this.#renew().catch(() => {});
    this.log.lending = false;
    try {
      this.log.own(() => this.log.close());
    } finally {
      this.log.close(); // also where what another thread has appended could not be read
    }
  }

  /** Nothing above what was fetched can be there; what was left out of it is made again, so that opening reads less. */
  #settleCopy({ rebuilt }: RecoveryReport): void {
    this.log.own(() => {
      this.log.setWatermark(this.log.end.lsn);
      const { sealed } = this.log;
      if (!rebuilt.includes(SEALED_FILE) || sealed[0] === undefined) return;
      const path = join(this.options.dir, 'log', SEALED_FILE);
      saveTable(this.disk, path, sealedTable, { base: sealed[0].number, rows: [...sealed] });
    });
  }

  #assertNoCopy(): void {
    if (this.options.copy !== undefined) throw notPrimary();
  }

  /** Wins a term and begins it with a record of its own; from then on the whole tail is committed. */
  async #lead(): Promise<void> {
    // Nothing that a copy does can fail its log, so it never comes here to regain one.
    assert(this.options.copy === undefined, 'a copy starts no term');
    const { store, boot, generation } = this.options;
    const seen = await this.#deps.coordinator.read();
    const previous = this.log.end;
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
    this.log.lending = record.inSync.length === 1; // with replicas a record is not committed by our disk alone
    const payload = Buffer.from(
      JSON.stringify({
        primary: store,
        boot,
        previous: { term: previous.term, lsn: previous.lsn },
        watermark: this.log.watermark,
      }),
    );
    this.log.own(() => {
      this.log.startTerm(term, payload);
      this.log.sync();
      this.log.setWatermark(this.log.end.lsn);
    });
  }

  /** Finds out what the disk holds, if that is not known, and wins a new term. Whoever needs it meanwhile shares it. */
  protected regain(): Promise<void> {
    this.#regaining ??= this.#regainOnce().finally(() => (this.#regaining = undefined));
    return this.#regaining;
  }

  async #regainOnce(): Promise<void> {
    this.log.own(() => {
      if (this.log.state === 'failed') this.log.reopen();
    });
    await this.#lead();
  }

  async #renew(): Promise<void> {
    const seen = await this.#deps.coordinator.read();
    const { generation, boot } = this.options;
    if (seen === undefined || seen.record.primary?.boot !== boot || this.log.state !== 'open') return;
    const { term, lsn } = this.log.own(() => ({ term: this.log.end.term, lsn: this.log.watermark }));
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
