/**
 * The reference's coordinator, on the journalled runner: its order of calls, outcomes and errors, without its defects.
 * `SPEC.md` has the table of differences.
 */
import type { Clock } from '../../base/clock.ts';
import { systemClock } from '../../base/clock.ts';
import type { Disk } from '../../base/disk.ts';
import { systemDisk } from '../../base/disk.ts';
import { NostosError, isNostosError } from '../../base/errors.ts';
import type { Random } from '../../base/random.ts';
import { systemRandom } from '../../base/random.ts';
import { openRollbackDirectory } from '../run/directory.ts';
import { MemoryJournal, type JournalStore } from '../run/journal.ts';
import { resume } from '../run/machine.ts';
import { MemoryOutbox, deliver, type Delivery, type NoticeSink, type Outbox } from '../run/outbox.ts';
import { RollbackRunner, type Frozen, type RollbackHost, type RollbackResult } from '../run/runner.ts';
import { TailCheck, tailUnreadable } from '../tail-check.ts';
import { ROLLBACK_LIMITS, reasonOf, type Plan, type PreservedFile, type RollbackNotice } from '../types.ts';
import {
  DivergentTail,
  NodeRole,
  RollbackError,
  RollbackOutcome,
  checkRequest,
  RollbackPlan,
  type RollbackEvent,
  type RollbackRequest,
  type RollbackTransport,
  type TailRecord,
} from './types.ts';

export interface RollbackCoordinatorOptions {
  /** A directory for journal and outbox, of one node: then a run resumes after a crash, too. */
  readonly journal?: { readonly dir: string; readonly disk?: Disk };
  /** `dense`: every LSN of the span has a record. */
  readonly tail?: 'sparse' | 'dense';
  /** The new term must be above it. */
  readonly localTerm?: number;
  /** The new primary's address cannot be it. */
  readonly selfAddr?: string;
  /** Tails that span more LSNs are refused. */
  readonly tailLsnsMax?: number;
  /** Refusals and failures, which the transport's event has no form for. */
  readonly onNotice?: NoticeSink;
  readonly clock?: Clock;
  readonly random?: Random;
}

interface Memory {
  readonly journal: JournalStore;
  readonly outbox: Outbox;
}

/**
 * @example
 * const outcome = await new RollbackCoordinator().run(
 *   { localFrontier: 230, commonPoint: 200, commitWatermark: 180, newPrimaryAddr: 'b:7000', newTerm: 8 },
 *   transport,
 * );
 */
export class RollbackCoordinator {
  readonly #options: RollbackCoordinatorOptions;
  /** A coordinator may serve several nodes: what is unfinished belongs to a node's transport. */
  readonly #memories = new WeakMap<RollbackTransport, Memory>();

  constructor(options: RollbackCoordinatorOptions = {}) {
    this.#options = options;
  }

  static run(request: RollbackRequest, transport: RollbackTransport): Promise<RollbackOutcome> {
    return new RollbackCoordinator().run(request, transport);
  }

  /** Rejects with a `RollbackError`, after which nothing was dropped that is not in the file. */
  async run(request: RollbackRequest, transport: RollbackTransport): Promise<RollbackOutcome> {
    checkRequest(request);
    const memory = this.#memoryOf(transport);
    this.#check(request, memory);
    const { clock = systemClock, random = systemRandom, selfAddr, tailLsnsMax = Infinity } = this.#options;
    const runner = new RollbackRunner({
      ...memory,
      host: new TransportHost(request, transport, memory.journal, this.#options.tail === 'dense'),
      sink: this.#sink(transport),
      clock,
      random,
      limits: { ...ROLLBACK_LIMITS, tailRecordsMax: tailLsnsMax },
    });
    const { commonPoint: lsn, commonPointTerm: term = 0, newPrimaryAddr: address, newTerm } = request;
    try {
      const result = await runner.run({
        common: { lsn, term, hash: '' },
        primary: { address, term: newTerm },
        ...(selfAddr === undefined ? {} : { selfAddress: selfAddr }),
      });
      return outcomeOf(request, result);
    } catch (error) {
      throw RollbackError.from(error);
    }
  }

  /** Offers the events that were not taken once more. */
  deliverEvents(transport: RollbackTransport): Promise<Delivery> {
    return deliver(this.#memoryOf(transport).outbox, this.#sink(transport));
  }

  #memoryOf(transport: RollbackTransport): Memory {
    const { journal } = this.#options;
    const known = this.#memories.get(transport);
    if (known !== undefined) return known;
    const memory =
      journal === undefined
        ? { journal: new MemoryJournal(), outbox: new MemoryOutbox() }
        : openRollbackDirectory(journal.disk ?? systemDisk, journal.dir);
    this.#memories.set(transport, memory);
    return memory;
  }

  #check(request: RollbackRequest, { journal }: Memory): void {
    const { localTerm } = this.#options;
    const { intent } = journal.load();
    // What is unfinished is gone on with first, and has adopted the term already.
    if (intent !== undefined && intent.state !== 'rejoined') RollbackPlan.compute(request);
    else if (localTerm !== undefined && request.newTerm <= localTerm)
      throw new RollbackError(
        'InvalidRequest',
        `the new term ${request.newTerm} is not above the local one, ${localTerm}`,
      );
  }

  #sink(transport: RollbackTransport): NoticeSink {
    return async (notice) => {
      if (notice.kind === 'rolled-back') await transport.emitRollbackEvent(eventOf(notice));
      await this.#options.onNotice?.(notice);
    };
  }
}

class TransportHost implements RollbackHost {
  readonly #request: RollbackRequest;
  readonly #transport: RollbackTransport;
  readonly #journal: JournalStore;
  readonly #dense: boolean;

  constructor(request: RollbackRequest, transport: RollbackTransport, journal: JournalStore, dense: boolean) {
    this.#request = request;
    this.#transport = transport;
    this.#journal = journal;
    this.#dense = dense;
  }

  look(): Promise<Frozen> {
    return Promise.resolve(this.#frozenAt(this.#request.localFrontier));
  }

  async freeze(term: number): Promise<Frozen> {
    const { freeze } = this.#transport;
    if (freeze === undefined) return this.#frozenAt(this.#frontier());
    const lsn = await freeze.call(this.#transport, term);
    if (!Number.isSafeInteger(lsn) || lsn < 0)
      throw new RollbackError('InvalidRequest', `freeze answered with ${String(lsn)}, which is no LSN`);
    return this.#frozenAt(lsn);
  }

  async preserve(plan: Plan): Promise<PreservedFile> {
    const { common, frontier, primary } = plan;
    const check = new TailCheck({ common, frontier, primaryTerm: primary.term, dense: this.#dense });
    let read: Awaited<ReturnType<RollbackTransport['readDivergentTail']>>;
    try {
      read = await this.#transport.readDivergentTail(common.lsn, frontier.lsn);
    } catch (error) {
      throw tailUnreadable(reasonOf(error), error);
    }
    const tail = new CheckedTail(read, check);
    const records = Array.isArray(read) ? tail.all(read) : tail;
    let path: string;
    try {
      path = await this.#transport.persistRollbackFile(
        new DivergentTail({ commonPointLsn: common.lsn, toLsn: frontier.lsn, records }),
      );
    } catch (error) {
      throw tail.failure ?? persistFailed(reasonOf(error), error);
    }
    if (tail.failure !== undefined) throw tail.failure;
    if (!tail.ended) throw persistFailed('not all of the tail was read', undefined);
    if (typeof path !== 'string' || path === '') throw persistFailed('no file was named', undefined);
    return { path, records: tail.records, acknowledged: 0, bytes: tail.bytes, digest: '' };
  }

  async recover({ common }: Plan): Promise<void> {
    try {
      await this.#transport.recoverToLsn(common.lsn);
    } catch (error) {
      const reason = reasonOf(error);
      throw new NostosError(
        'RECOVER_FAILED',
        `recovering to LSN ${common.lsn} failed: ${reason}; the tail is in its file`,
        { cause: error, details: { targetLsn: common.lsn, reason } },
      );
    }
  }

  async rejoin(): Promise<void> {
    const { newPrimaryAddr, newTerm, commonPoint: lsn, commonPointTerm: term } = this.#request;
    await this.#transport.rejoinAsReplica(newPrimaryAddr, newTerm, { term, lsn });
  }

  #frozenAt(lsn: number): Frozen {
    return { frontier: { term: 0, lsn }, watermark: this.#request.commitWatermark, generation: '' };
  }

  /** A request that is given again may still name the frontier from before the tail was dropped. */
  #frontier(): number {
    const { localFrontier, commonPoint: lsn, commonPointTerm: term = 0, newPrimaryAddr, newTerm } = this.#request;
    const { intent } = this.#journal.load();
    const dropped = intent?.state === 'recovered' || intent?.state === 'announced';
    const how = resume(intent, {
      common: { lsn, term, hash: '' },
      primary: { address: newPrimaryAddr, term: newTerm },
      frontier: { term: 0, lsn: localFrontier },
    });
    return dropped && how === 'recover-again' ? intent.plan.common.lsn : localFrontier;
  }
}

/** What was read, checked while it is handed on. */
class CheckedTail implements AsyncIterable<TailRecord> {
  readonly #read: readonly TailRecord[] | AsyncIterable<TailRecord>;
  readonly #check: TailCheck;
  records = 0;
  bytes = 0;
  ended = false;
  failure: NostosError | undefined;

  constructor(read: readonly TailRecord[] | AsyncIterable<TailRecord>, check: TailCheck) {
    this.#read = read;
    this.#check = check;
  }

  /** An array is checked whole before anybody gets it. */
  all(records: readonly TailRecord[]): readonly TailRecord[] {
    for (const record of records) this.#take(record);
    this.#end();
    return records;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<TailRecord, void, undefined> {
    if (this.records > 0 || this.ended) throw (this.failure = tailUnreadable('it was read twice'));
    try {
      for await (const record of this.#read) {
        this.#take(record);
        yield record;
      }
    } catch (error) {
      this.failure ??= isNostosError(error, 'TAIL_READ_FAILED') ? error : tailUnreadable(reasonOf(error), error);
      throw this.failure;
    }
    this.#end();
  }

  #take(record: TailRecord): void {
    this.#check.push(record);
    this.records += 1;
    this.bytes += record.payload.length;
  }

  #end(): void {
    try {
      this.#check.end();
    } catch (error) {
      throw (this.failure = error as NostosError);
    }
    this.ended = true;
  }
}

function persistFailed(reason: string, cause: unknown): NostosError {
  return new NostosError(
    'TAIL_PERSIST_FAILED',
    `the rollback file could not be written: ${reason}; nothing was dropped`,
    {
      ...(cause === undefined ? {} : { cause }),
      details: { reason },
    },
  );
}

function eventOf({ plan, file }: Extract<RollbackNotice, { kind: 'rolled-back' }>): RollbackEvent {
  return {
    commonPointLsn: plan.common.lsn,
    tailToLsn: plan.frontier.lsn,
    tailLsns: plan.frontier.lsn - plan.common.lsn,
    commitWatermark: plan.watermark,
    rollbackFile: file.path,
    newPrimaryAddr: plan.primary.address,
    newTerm: plan.primary.term,
  };
}

function outcomeOf({ newPrimaryAddr, newTerm, commonPoint }: RollbackRequest, result: RollbackResult): RollbackOutcome {
  const { plan, file, rejoined, rejoinError, announced } = result;
  return new RollbackOutcome({
    recoveredToLsn: commonPoint,
    tailLsns: plan === undefined ? 0 : plan.frontier.lsn - plan.common.lsn,
    rollbackFile: file?.path,
    eventFired: plan !== undefined && announced,
    role: NodeRole.Replica(newPrimaryAddr, newTerm),
    rejoined,
    rejoinError,
  });
}
