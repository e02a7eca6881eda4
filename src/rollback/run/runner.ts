/**
 * A rollback from beginning to end, resumed wherever the last attempt stopped. The journal has each state before the step
 * that relies on it; nothing is dropped before it says `recovering`, which it says only with a whole file. SPEC.md has the
 * table, and what a crash leaves.
 */
import { assert } from '../../base/assert.ts';
import type { Clock } from '../../base/clock.ts';
import { NostosError, isNostosError } from '../../base/errors.ts';
import type { Random } from '../../base/random.ts';
import { randomHex128 } from '../../base/random.ts';
import { hashBlake3 } from '../../base/blake3.ts';
import { decide, isReplaced, type Decision } from '../plan.ts';
import {
  reasonOf,
  type CommonPoint,
  type NewPrimary,
  type Plan,
  type Point,
  type PreservedFile,
  type RollbackLimits,
  type RollbackNotice,
} from '../types.ts';
import type { Journal, JournalStore } from './journal.ts';
import { resume, step, type Intent, type Resume, type RunEvent } from './machine.ts';
import { deliver, type Delivery, type NoticeSink, type Outbox } from './outbox.ts';

/** The node once its writes have stopped. */
export interface Frozen {
  /** The last record of its log; everything up to there is durable. */
  readonly frontier: Point;
  /** Its own durable W, never that of the new primary. */
  readonly watermark: number;
  /** Of its history; the watermark of another one says nothing. */
  readonly generation: string;
  /** Whose log it is, where the host knows: a restore puts another one in its place. */
  readonly store?: string;
}

/** The node that is rolled back. Each call may be repeated, also by another process after a crash. */
export interface RollbackHost {
  /** The same as `freeze`, as it is now and without stopping anything: for a plan that is only shown. */
  look(): Promise<Frozen>;
  /** Stops writes, adopts the term durably, flushes. A term below an adopted one is refused. */
  freeze(term: number): Promise<Frozen>;
  /** All of (common, frontier] in a file that is whole, read back and durable when this resolves. */
  preserve(plan: Plan, options: { readonly override: boolean; readonly signal?: AbortSignal }): Promise<PreservedFile>;
  /** State and log end with the common point, durably, when this resolves. */
  recover(plan: Plan): Promise<void>;
  /** Follows this primary from that record on. */
  rejoin(primary: NewPrimary, from: CommonPoint): Promise<void>;
}

export interface RollbackRequest {
  readonly common: CommonPoint;
  readonly primary: NewPrimary;
  /** The node's own address, which cannot be the primary's. */
  readonly selfAddress?: string;
}

export interface RunOptions {
  /** Goes on although a limit is exceeded. */
  readonly override?: boolean;
  /** Heard until the first record is dropped. */
  readonly signal?: AbortSignal;
}

export interface RollbackResult {
  /** `rejoined`: there was nothing to drop. */
  readonly kind: 'rolled-back' | 'rejoined';
  readonly plan?: Plan;
  readonly file?: PreservedFile;
  /** False: what was to be dropped is dropped, but the primary could not be followed; the next run repeats just that. */
  readonly rejoined: boolean;
  readonly rejoinError?: unknown;
  /** Whether the operator was told; the notice waits otherwise. */
  readonly announced: boolean;
  /** Rollbacks of this node so far. */
  readonly counter: number;
  /** An unfinished one for an earlier request that this call brought to its end. */
  readonly finishedEarlier?: Plan;
}

export interface RunnerDeps {
  readonly host: RollbackHost;
  readonly journal: JournalStore;
  readonly outbox: Outbox;
  readonly sink: NoticeSink;
  readonly clock: Clock;
  readonly random: Random;
  readonly limits: RollbackLimits;
}

export interface PlanReport {
  readonly decision: Decision;
  /** An earlier run that is not at its end, and what becomes of it. */
  readonly unfinished?: { readonly intent: Intent; readonly resume: Resume };
}

export class RollbackRunner {
  readonly #deps: RunnerDeps;
  #running = false;

  constructor(deps: RunnerDeps) {
    this.#deps = deps;
  }

  /** Counter and last run as they are on the disk: for status. */
  journal(): Journal {
    return this.#deps.journal.load();
  }

  /** What `run` would do, without doing anything. */
  async plan(request: RollbackRequest, options: RunOptions = {}): Promise<PlanReport> {
    const frozen = await this.#deps.host.look();
    const { intent } = this.journal();
    const decision = this.#decide(request, frozen, options);
    if (intent === undefined || intent.state === 'rejoined') return { decision };
    return { decision, unfinished: { intent, resume: resume(intent, { ...request, frontier: frozen.frontier }) } };
  }

  async run(request: RollbackRequest, options: RunOptions = {}): Promise<RollbackResult> {
    if (this.#running) throw new NostosError('ROLLBACK_REFUSED', 'a rollback of this node is running; wait for it');
    this.#running = true;
    try {
      return await this.#run(request, options);
    } finally {
      this.#running = false;
    }
  }

  /** Offers each notice that waits to the sink, once. */
  deliver(): Promise<Delivery> {
    return deliver(this.#deps.outbox, this.#deps.sink);
  }

  async #run(request: RollbackRequest, options: RunOptions): Promise<RollbackResult> {
    const { host } = this.#deps;
    options.signal?.throwIfAborted();
    const earlier = this.journal().intent;
    // What is refused now stops nothing; what is unfinished is frozen already.
    if (earlier === undefined || earlier.state === 'rejoined') await this.#check(request, await host.look(), options);
    const frozen = await host.freeze(request.primary.term);
    options.signal?.throwIfAborted();
    const resumed = await this.#goOn(request, frozen, options);
    if (resumed === undefined) return this.#begin(request, frozen, options);
    if (resumed.kind === 'result') return resumed.result;
    const result = await this.#begin(request, await host.freeze(request.primary.term), options);
    return { ...result, finishedEarlier: resumed.plan };
  }

  /**
   * For a node that starts, before it follows or stands: a run that has begun to drop is ended here, although nobody asks
   * for it again, so that what its file has is what is gone, and it is told of. One that dropped nothing waits for `run`.
   */
  async settle(): Promise<void> {
    const { intent } = this.journal();
    if (isUnderWay(intent)) {
      const { common, primary, frontier: last } = intent.plan;
      const now = await this.#deps.host.look();
      const { frontier, watermark } = now;
      const isGone = frontier.lsn === common.lsn;
      // What its file has is gone with the store.
      const followed = isReplaced(intent.plan, now) || (frontier.lsn > common.lsn && frontier.term >= primary.term);
      const within = frontier.lsn <= last.lsn && frontier.term <= last.term && watermark <= common.lsn;
      if (isGone || followed || within) {
        let from: Intent = intent;
        if (followed && intent.state === 'recovering') from = this.#advance({ kind: 'recovered' });
        else if (!followed && !isGone && intent.state !== 'recovering') from = this.#advance({ kind: 'recover' });
        await this.#untilAnnounced(from, {});
        this.#advance({ kind: 'rejoined' });
      }
    }
    await this.deliver();
  }

  #decide(request: RollbackRequest, frozen: Frozen, options: RunOptions): Decision {
    const { watermark: seen } = this.journal();
    return decide(request, frozen, { limits: this.#deps.limits, override: options.override === true, seen });
  }

  /** The decision, unless it is a refusal: that is told and thrown. */
  async #check(request: RollbackRequest, frozen: Frozen, options: RunOptions): Promise<Decision> {
    const decision = this.#decide(request, frozen, options);
    if (decision.kind === 'refuse') throw await this.#refused(decision.error, request, frozen);
    return decision;
  }

  async #refused(error: NostosError, { common, primary }: RollbackRequest, frozen: Frozen): Promise<NostosError> {
    const { frontier, watermark } = frozen;
    const what = { common, frontier, watermark, primary, code: error.code };
    await this.#tell({ kind: 'refused', key: `refused-${digestOf(what)}`, ...what, reason: error.message });
    return error;
  }

  /** The unfinished run, if there is one; undefined where a new one is to be planned. */
  async #goOn(
    request: RollbackRequest,
    frozen: Frozen,
    options: RunOptions,
  ): Promise<{ kind: 'result'; result: RollbackResult } | { kind: 'earlier'; plan: Plan } | undefined> {
    const { intent } = this.journal();
    const how = resume(intent, { ...request, frontier: frozen.frontier });
    if (intent === undefined || how === 'begin' || how === 'discard') return undefined;
    switch (how) {
      case 'continue':
        if (intent.state === 'planned' || intent.state === 'preserved') await this.#check(request, frozen, options);
        return { kind: 'result', result: await this.#finish(intent, request, options) };
      case 'recover-again':
        this.#advance({ kind: 'recover' });
        return this.#goOn(request, frozen, options);
      case 'followed':
        this.#advance({ kind: 'recovered' });
        return this.#goOn(request, frozen, options);
      case 'finish-first':
        await this.#untilAnnounced(intent, options);
        await this.deliver();
        this.#advance({ kind: 'rejoined' });
        return { kind: 'earlier', plan: intent.plan };
      case 'refuse':
        throw await this.#refused(appended(intent.plan, frozen.frontier), request, frozen);
      default:
        return how satisfies never;
    }
  }

  async #begin(request: RollbackRequest, frozen: Frozen, options: RunOptions): Promise<RollbackResult> {
    const { clock, random } = this.#deps;
    const decision = await this.#check(request, frozen, options);
    this.#noteWatermark(frozen);
    if (decision.kind !== 'roll-back') return this.#rejoin(request, request.common, { kind: 'rejoined' });
    const plan: Plan = {
      id: randomHex128(random),
      createdAtMs: clock.nowMs(),
      common: request.common,
      frontier: frozen.frontier,
      watermark: frozen.watermark,
      primary: request.primary,
      ...(frozen.store === undefined ? {} : { store: frozen.store }),
    };
    return this.#finish(this.#advance({ kind: 'begin', plan }), request, options);
  }

  async #finish(from: Intent, request: RollbackRequest, options: RunOptions): Promise<RollbackResult> {
    const intent = await this.#untilAnnounced(from, options);
    assert(intent.state !== 'planned', 'what is announced has a file');
    const { plan, file } = intent;
    const result = await this.#rejoin(request, plan.common, { kind: 'rolled-back', plan, file });
    if (result.rejoined) this.#advance({ kind: 'rejoined' });
    return result;
  }

  /** Each remaining step, once. */
  async #untilAnnounced(from: Intent, { override = false, signal }: RunOptions): Promise<Intent> {
    const { host, outbox } = this.#deps;
    const { plan } = from;
    let intent = from;
    if (intent.state === 'planned') {
      const options = signal === undefined ? { override } : { override, signal };
      const file = await this.#attempt('preserve', plan, () => host.preserve(plan, options));
      intent = this.#advance({ kind: 'preserved', file });
    }
    if (intent.state === 'preserved') {
      signal?.throwIfAborted();
      intent = this.#advance({ kind: 'recover' });
    }
    if (intent.state === 'recovering') {
      await this.#attempt('recover', plan, () => host.recover(plan));
      intent = this.#advance({ kind: 'recovered' });
    }
    if (intent.state === 'recovered') {
      outbox.put({ kind: 'rolled-back', key: plan.id, plan, file: intent.file });
      intent = this.#advance({ kind: 'announced' });
    }
    return intent;
  }

  async #rejoin(
    { primary }: RollbackRequest,
    from: CommonPoint,
    what: { readonly kind: RollbackResult['kind']; readonly plan?: Plan; readonly file?: PreservedFile },
  ): Promise<RollbackResult> {
    const { host, outbox } = this.#deps;
    await this.deliver();
    const announced = what.plan === undefined || !outbox.keys().includes(what.plan.id);
    const result = { ...what, announced, counter: this.journal().counter };
    const rejoin = (): Promise<void> => host.rejoin(primary, from);
    try {
      await (what.plan === undefined ? rejoin() : this.#attempt('rejoin', what.plan, rejoin));
      return { ...result, rejoined: true };
    } catch (error) {
      return { ...result, rejoined: false, rejoinError: error };
    }
  }

  /** A failure is counted in the journal and told; the step can be tried again. */
  async #attempt<T>(name: 'preserve' | 'recover' | 'rejoin', plan: Plan, run: () => Promise<T>): Promise<T> {
    try {
      return await run();
    } catch (error) {
      const { journal } = this.#deps;
      const code = isNostosError(error) ? error.code : 'INTERNAL';
      const reason = reasonOf(error);
      quietly(() => {
        const now = journal.load();
        journal.save({ ...now, attempts: now.attempts + 1, lastError: `${name}: ${reason}` });
      });
      await this.#tell({ kind: 'failed', key: `${plan.id}-${name}`, plan, step: name, code, reason });
      throw error;
    }
  }

  /** Beside an error that its caller gets in any case. */
  async #tell(notice: RollbackNotice): Promise<void> {
    const { outbox, sink } = this.#deps;
    quietly(() => outbox.put(notice));
    await deliver(outbox, sink, [notice.key]);
  }

  #noteWatermark(frozen: Frozen): void {
    const { generation, watermark: lsn, store } = frozen;
    const now = this.journal();
    const { watermark } = now;
    if (watermark.generation === generation && watermark.lsn >= lsn && !isReplaced(watermark, frozen)) return;
    this.#deps.journal.save({ ...now, watermark: { generation, lsn, ...(store === undefined ? {} : { store }) } });
  }

  #advance(event: RunEvent): Intent {
    const { counter, watermark, intent: from } = this.journal();
    const intent = step(from, event);
    assert(intent !== undefined, `a rollback that is ${from?.state ?? 'not begun'} got the event ${event.kind}`);
    const drops = event.kind === 'recover' && from?.state === 'preserved';
    this.#deps.journal.save({ counter: drops ? counter + 1 : counter, watermark, intent, attempts: 0 });
    return intent;
  }
}

/** The disk that fails here has just failed, or will say so at the next step. */
function quietly(run: () => void): void {
  try {
    run();
  } catch {
    // The caller throws what matters.
  }
}

function appended(plan: Plan, frontier: Point): NostosError {
  return new NostosError(
    'ROLLBACK_REFUSED',
    `records up to (term ${frontier.term}, LSN ${frontier.lsn}) were appended after rollback ${plan.id} had preserved the tail up to LSN ${plan.frontier.lsn}; nothing more was dropped. Set the directory aside and restore this node from a peer`,
    { details: { id: plan.id, frontier, preserved: plan.frontier } },
  );
}

function digestOf(value: object): string {
  return Buffer.from(hashBlake3(Buffer.from(JSON.stringify(value)))).toString('hex', 0, 16);
}

/** It has begun to drop, and is not known to have ended: whoever stood now might keep what its file has as dropped. */
export function isUnderWay(intent: Intent | undefined): intent is Intent {
  return intent !== undefined && ['recovering', 'recovered', 'announced'].includes(intent.state);
}
