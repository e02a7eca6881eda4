/**
 * Fetches from several providers, one after the other: in each round the best one of those that are left. What one of them
 * brought stays when it fails, so the next one sends only what is missing. Bounds are in SPEC.md.
 */
import { NostosError, isNostosError } from '../base/errors.ts';
import type { FetchOptions, FetchReport, FetchTarget, RestoreFeed } from './feed.ts';
import { sameHistory, type SourceHistory } from './local/identity.ts';
import { historyOf } from './local/outlook.ts';
import {
  chooseProvider,
  type Candidate,
  type ChoiceRules,
  type Dropped,
  type Member,
  type ProviderInfo,
} from './provider.ts';
import type { RestorePlan } from './source.ts';
import { sleep, systemTimers, type Timers } from './stream/timers.ts';

/** One session with one provider; `RestoreClient` is one. */
export interface ProviderSession {
  readonly plan: RestorePlan;
  fetchAll(target: FetchTarget, options?: FetchOptions): Promise<FetchReport>;
  close(): Promise<void>;
}

export interface ProviderDeps {
  readonly ask: (member: Member, signal: AbortSignal) => Promise<ProviderInfo>;
  readonly open: (member: Member, signal: AbortSignal) => Promise<ProviderSession>;
  /** Asks the primary whether this plan is of the group's history; throws where it is not. Without it the source decides. */
  readonly checkAnchor?: (candidate: Candidate, signal: AbortSignal) => Promise<void>;
  readonly timers?: Timers;
}

export interface ProviderOptions extends Omit<ChoiceRules, 'history'> {
  readonly members: readonly Member[];
  /** Attempts with one provider, one after the other, none of which came further than the best one before. */
  readonly attemptsMax: number;
  /** Attempts with one provider in all, whatever they brought. */
  readonly sessionsMax: number;
  /** Of a run that is resumed, else that of the directory if it may not be given up. */
  readonly history?: SourceHistory | undefined;
  readonly onEvent?: ((event: ProviderEvent) => void) | undefined;
}

export type ProviderEvent =
  | { readonly kind: 'chosen'; readonly candidate: Candidate }
  | { readonly kind: 'dropped'; readonly dropped: Dropped }
  /** The connection is gone; the same provider is asked once more. */
  | { readonly kind: 'reconnecting'; readonly member: Member; readonly error: Error };

interface Current {
  readonly candidate: Candidate;
  readonly session: ProviderSession;
}

export class ProviderFeed implements RestoreFeed {
  readonly sources: readonly string[];
  readonly #deps: ProviderDeps;
  readonly #options: ProviderOptions;
  #left: readonly Member[];
  readonly #dropped: Dropped[] = [];
  #history: SourceHistory | undefined;
  #current: Current | undefined;
  #bytesBefore = 0;
  /** Bytes of the copy that were there when the best attempt ended. */
  #furthest = 0;

  private constructor(deps: ProviderDeps, options: ProviderOptions) {
    this.#deps = deps;
    this.#options = options;
    this.#history = options.history;
    this.#left = options.members;
    this.sources = options.members.map(({ address }) => address);
  }

  /** Resolves with a session open on the best provider. */
  static async open(deps: ProviderDeps, options: ProviderOptions, signal?: AbortSignal): Promise<ProviderFeed> {
    const feed = new ProviderFeed(deps, options);
    await feed.#choose(signal ?? new AbortController().signal);
    return feed;
  }

  /** Of the provider that is in use. */
  get plan(): RestorePlan {
    return this.#current!.session.plan;
  }

  get provider(): Candidate {
    return this.#current!.candidate;
  }

  async fetchAll(target: FetchTarget, options: FetchOptions = {}): Promise<FetchReport> {
    const signal = options.signal ?? new AbortController().signal;
    let [vain, sessions] = [0, 0];
    for (let member: Member | undefined; ;) {
      const { session, candidate } = this.#current ?? (await this.#choose(signal));
      if (candidate.member !== member) [member, vain, sessions] = [candidate.member, 0, 0];
      sessions += 1;
      const reached = { bytesOnWire: 0, bytesWritten: 0, bytesDone: 0 };
      try {
        const report = await session.fetchAll(target, {
          signal,
          onProgress: (progress) => {
            for (const what of REACHED) reached[what] = Math.max(reached[what], progress[what] ?? 0);
            options.onProgress?.({ ...progress, bytesOnWire: progress.bytesOnWire + this.#bytesBefore });
          },
        });
        return { ...report, bytesOnWire: report.bytesOnWire + this.#bytesBefore };
      } catch (error) {
        await this.#closeCurrent();
        signal.throwIfAborted();
        if (isOurs(error)) throw error;
        this.#bytesBefore += reached.bytesOnWire;
        vain = this.#cameFurther(reached) ? 0 : vain + 1;
        const giveUp = vain >= this.#options.attemptsMax || sessions >= this.#options.sessionsMax;
        if (giveUp || !(await this.#reconnect(candidate, error as Error, { vain, signal })))
          this.#drop({ member, why: (error as Error).message, error: error as Error });
      }
    }
  }

  /**
   * What is there already counts as done once its hashes are compared, and what is thrown away may be written again and
   * again: only what was written and was not there before is progress.
   */
  #cameFurther({ bytesWritten, bytesDone }: { readonly bytesWritten: number; readonly bytesDone: number }): boolean {
    const further = bytesWritten > 0 && bytesDone > this.#furthest;
    this.#furthest = Math.max(this.#furthest, bytesDone);
    return further;
  }

  async close(): Promise<void> {
    await this.#closeCurrent();
  }

  /** Rounds until a session is open; throws `NO_PROVIDER` when nobody is left. */
  async #choose(signal: AbortSignal): Promise<Current> {
    for (;;) {
      const left = this.#left;
      const asked = await Promise.all(
        left.map(async (member) => {
          const answer = await this.#deps.ask(member, signal).catch((error: unknown) => asError(error));
          return { member, answer };
        }),
      );
      signal.throwIfAborted();
      const { order, dropped } = chooseProvider(asked, { ...this.#options, history: this.#history });
      for (const one of dropped) this.#drop(one);
      const candidate = order[0];
      if (candidate === undefined) throw this.#nobody();
      const session = await this.#open(candidate, signal);
      if (session === undefined) continue;
      this.#current = { candidate, session };
      this.#options.onEvent?.({ kind: 'chosen', candidate });
      return this.#current;
    }
  }

  /** Undefined where the candidate turned out to be none; it is dropped then. */
  async #open(candidate: Candidate, signal: AbortSignal): Promise<ProviderSession | undefined> {
    const { member } = candidate;
    let session: ProviderSession | undefined;
    try {
      await this.#deps.checkAnchor?.(candidate, signal);
      session = await this.#deps.open(member, signal);
      const history = historyOf(session.plan);
      if (this.#history !== undefined && !sameHistory(this.#history, history))
        throw new NostosError('DIRECTORY_FOREIGN', 'it serves another history now than the one that was begun');
      this.#history = history;
      return session;
    } catch (error) {
      await session?.close();
      signal.throwIfAborted();
      this.#drop({ member, why: asError(error).message, error: asError(error) });
      return undefined;
    }
  }

  async #reconnect(
    candidate: Candidate,
    error: Error,
    { vain, signal }: { readonly vain: number; readonly signal: AbortSignal },
  ): Promise<boolean> {
    // Whoever answers `never` would answer so again.
    if (!isNostosError(error) || error.retry === 'never') return false;
    this.#options.onEvent?.({ kind: 'reconnecting', member: candidate.member, error });
    await sleep(this.#deps.timers ?? systemTimers, Math.min(BACKOFF_MS * 2 ** vain, BACKOFF_MAX_MS), signal);
    const session = await this.#open(candidate, signal);
    if (session !== undefined) this.#current = { candidate, session };
    return true;
  }

  async #closeCurrent(): Promise<void> {
    const current = this.#current;
    this.#current = undefined;
    await current?.session.close();
  }

  #drop(dropped: Dropped): void {
    if (!this.#left.includes(dropped.member)) return;
    this.#left = this.#left.filter((member) => member !== dropped.member);
    this.#dropped.push(dropped);
    this.#options.onEvent?.({ kind: 'dropped', dropped });
  }

  /** Of one provider its own error says all. */
  #nobody(): Error {
    const [first] = this.#dropped;
    if (this.#dropped.length === 1 && first?.error !== undefined) return first.error;
    const reasons = this.#dropped.map(({ member, why }) => ({ address: member.address, why }));
    return new NostosError(
      'NO_PROVIDER',
      `nobody can serve a copy: ${reasons.map(({ address, why }) => `${address}: ${why}`).join('; ')}`,
      { details: { members: reasons }, cause: this.#dropped.at(-1)?.error },
    );
  }
}

const REACHED = ['bytesOnWire', 'bytesWritten', 'bytesDone'] as const;
/** Before a provider is connected to again; twice as long after each attempt in vain. */
const BACKOFF_MS = 100;
const BACKOFF_MAX_MS = 5_000;

/** Our own disk failed, not the provider: what a peer reports of its disk carries no cause. */
function isOurs(error: unknown): boolean {
  return (
    !isNostosError(error) ||
    ((error.code === 'DISK_FULL' || error.code === 'IO_FAILED') && error.cause !== undefined) ||
    (error.code === 'DISK_FULL' && 'neededBytes' in error.details)
  );
}

function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}
