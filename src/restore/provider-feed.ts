/**
 * Fetches from several providers, one after the other: in each round the best one of those that are left. What one of them
 * brought stays when it fails, so the next one sends only what is missing. Bounds are in SPEC.md.
 */
import { NostosError, isNostosError } from '../base/errors.ts';
import type { FetchOptions, FetchProgress, FetchReport, FetchTarget, RestoreFeed } from './feed.ts';
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
}

export interface ProviderOptions extends Omit<ChoiceRules, 'history'> {
  readonly members: readonly Member[];
  readonly attemptsMax: number;
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
    for (let attempts = 1; ;) {
      const { session, candidate } = this.#current ?? (await this.#choose(signal));
      let last: FetchProgress | undefined;
      try {
        const report = await session.fetchAll(target, {
          signal,
          onProgress: (progress) => {
            last = progress;
            options.onProgress?.({ ...progress, bytesOnWire: progress.bytesOnWire + this.#bytesBefore });
          },
        });
        return { ...report, bytesOnWire: report.bytesOnWire + this.#bytesBefore };
      } catch (error) {
        await this.#closeCurrent();
        signal.throwIfAborted();
        if (isOurs(error)) throw error;
        this.#bytesBefore += last?.bytesOnWire ?? 0;
        // What is there already counts as done at once, so only what came over the wire is progress.
        attempts = (last?.bytesOnWire ?? 0) > PROGRESS_BYTES ? 1 : attempts + 1;
        if (attempts > this.#options.attemptsMax || !(await this.#reconnect(candidate, error as Error, signal))) {
          this.#drop({ member: candidate.member, why: (error as Error).message, error: error as Error });
          attempts = 1;
        }
      }
    }
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

  async #reconnect(candidate: Candidate, error: Error, signal: AbortSignal): Promise<boolean> {
    // Whoever answers `never` would answer so again.
    if (!isNostosError(error) || error.retry === 'never') return false;
    this.#options.onEvent?.({ kind: 'reconnecting', member: candidate.member, error });
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

/** A session that ends at once costs about so much on the wire without bringing anything. */
const PROGRESS_BYTES = 64 * 1024;

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
