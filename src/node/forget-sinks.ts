/**
 * Brings what was forgotten to those who keep it as well, above all the ledgers of backups: each sink gets every entry of
 * this node's ledger, in order, at least once. Who forgets waits for all of them, up to `forgetTimeoutMs`; after that, and
 * after a restart, it is brought to them all the same.
 *
 * How far a sink is stands in `forget-sinks.json`. It counts for one ledger only: where that is another one (a restore), or
 * the file is lost, the sink gets everything again.
 */
import { join } from 'node:path';
import type { Disk } from '../base/disk.ts';
import { readIfExists, writeDurably } from '../base/durable-file.ts';
import { NostosError } from '../base/errors.ts';
import type { Limits } from '../base/limits.ts';
import { LEDGER_START, type ForgetLedger, type LedgerEntry, type LedgerPoint } from '../log/ledger.ts';

export interface ForgetSink {
  /** Stays the same over restarts. */
  readonly name: string;
  /** Resolves when they are there for good. They may come again. */
  put(entries: readonly LedgerEntry[], signal: AbortSignal): Promise<void>;
}

export interface ForgetSinkStatus {
  readonly name: string;
  /** It lacks something that was forgotten. */
  readonly pending: boolean;
  /** Why the last attempt failed. */
  readonly error?: string;
}

interface Feed {
  readonly sink: ForgetSink;
  readonly stopped: AbortController;
  at: LedgerPoint;
  error: Error | undefined;
  /** Ends a pause. */
  wake: () => void;
  running: Promise<void>;
}

export const FORGET_SINKS_FILE = 'forget-sinks.json';
/** Entries that a sink gets at once, unless one frame has more. */
const ENTRIES_AT_ONCE = 256;

export interface ForgetSinksDeps {
  readonly ledger: ForgetLedger;
  readonly disk: Disk;
  readonly dir: string;
}

export class ForgetSinks {
  readonly #deps: ForgetSinksDeps;
  readonly #limits: Pick<Limits, 'forgetTimeoutMs' | 'forgetRetryMs' | 'forgetRetryMaxMs'>;
  readonly #feeds = new Map<string, Feed>();
  readonly #points: Map<string, LedgerPoint>;
  readonly #waiting = new Set<() => void>();
  readonly #stopped = new AbortController();
  readonly #unsubscribe: () => void;

  constructor(deps: ForgetSinksDeps, limits: Limits) {
    this.#deps = deps;
    this.#limits = limits;
    this.#points = new Map(Object.entries(readPoints(deps)));
    this.#unsubscribe = deps.ledger.onAdded(() => {
      for (const { wake } of this.#feeds.values()) wake();
    });
  }

  /** From now on whoever forgets waits for it, too. Answers with what ends that. */
  add(sink: ForgetSink): () => Promise<void> {
    if (this.#feeds.has(sink.name))
      throw new NostosError('INVALID_ARGUMENT', `there is a sink ${JSON.stringify(sink.name)} of forgets already`);
    const known = this.#points.get(sink.name);
    const at = known !== undefined && this.#deps.ledger.isPoint(known) ? known : LEDGER_START;
    const feed: Feed = {
      sink,
      at,
      stopped: new AbortController(),
      error: undefined,
      wake: () => {},
      running: Promise.resolve(),
    };
    this.#feeds.set(sink.name, feed);
    feed.running = this.#run(feed);
    return async () => {
      this.#feeds.delete(sink.name);
      feed.stopped.abort();
      feed.wake();
      this.#tell();
      await feed.running;
    };
  }

  /** Resolves when every sink has what the ledger has now; rejects with `FORGET_PENDING` where that takes too long. */
  async delivered(): Promise<void> {
    const { offset } = this.#deps.ledger.end;
    const lacking = (): Feed[] => [...this.#feeds.values()].filter(({ at }) => at.offset < offset);
    if (lacking().length === 0) return;
    const late = new AbortController();
    const timer = setTimeout(() => {
      late.abort();
      this.#tell();
    }, this.#limits.forgetTimeoutMs);
    const over = AbortSignal.any([late.signal, this.#stopped.signal]);
    try {
      while (lacking().length > 0 && !over.aborted) await new Promise<void>((resolve) => this.#waiting.add(resolve));
    } finally {
      clearTimeout(timer);
    }
    const left = lacking();
    if (left.length > 0) throw pending(left);
  }

  status(): readonly ForgetSinkStatus[] {
    const { end } = this.#deps.ledger;
    return [...this.#feeds.values()].map(({ sink, at, error }) => ({
      name: sink.name,
      pending: at.offset < end.offset,
      ...(error === undefined ? {} : { error: error.message }),
    }));
  }

  async stop(): Promise<void> {
    this.#unsubscribe();
    this.#stopped.abort();
    this.#tell();
    const feeds = [...this.#feeds.values()];
    for (const { stopped, wake } of feeds) {
      stopped.abort();
      wake();
    }
    await Promise.all(feeds.map(({ running }) => running));
  }

  /** Until the sink is taken away; a failure is tried again, later each time. */
  async #run(feed: Feed): Promise<void> {
    const { forgetRetryMs, forgetRetryMaxMs } = this.#limits;
    let pauseMs = forgetRetryMs;
    while (!feed.stopped.signal.aborted) {
      try {
        await this.#bring(feed);
        feed.error = undefined;
        pauseMs = forgetRetryMs;
        await this.#pause(feed);
      } catch (error) {
        if (feed.stopped.signal.aborted) return;
        feed.error = error instanceof Error ? error : new Error(String(error));
        await this.#pause(feed, pauseMs);
        pauseMs = Math.min(2 * pauseMs, forgetRetryMaxMs);
      }
    }
  }

  async #bring(feed: Feed): Promise<void> {
    const { ledger } = this.#deps;
    while (feed.at.offset < ledger.end.offset) {
      feed.stopped.signal.throwIfAborted();
      const entries: LedgerEntry[] = [];
      let { at } = feed;
      for (const page of ledger.pages(feed.at)) {
        entries.push(...page.entries);
        at = page.next;
        if (entries.length >= ENTRIES_AT_ONCE) break;
      }
      await feed.sink.put(entries, feed.stopped.signal);
      feed.at = at;
      this.#tell();
      this.#points.set(feed.sink.name, at);
      this.#save();
    }
  }

  /** Until the ledger grows, or for so long at most. */
  #pause(feed: Feed, ms?: number): Promise<void> {
    if (feed.stopped.signal.aborted) return Promise.resolve();
    if (ms === undefined && feed.at.offset < this.#deps.ledger.end.offset) return Promise.resolve();
    return new Promise((resolve) => {
      const timer = ms === undefined ? undefined : setTimeout(resolve, ms).unref();
      feed.wake = () => {
        // Who fails is not asked again sooner because more comes.
        if (ms !== undefined && !feed.stopped.signal.aborted) return;
        clearTimeout(timer);
        resolve();
      };
    });
  }

  #tell(): void {
    for (const resolve of this.#waiting) resolve();
    this.#waiting.clear();
  }

  /** Lost, it only costs sending again. */
  #save(): void {
    const { disk, dir } = this.#deps;
    const text = JSON.stringify(Object.fromEntries(this.#points), null, 2);
    try {
      writeDurably(disk, join(dir, FORGET_SINKS_FILE), Buffer.from(`${text}\n`));
    } catch {
      // the next one writes it again
    }
  }
}

function readPoints({ disk, dir }: ForgetSinksDeps): Readonly<Record<string, LedgerPoint>> {
  try {
    const bytes = readIfExists(disk, join(dir, FORGET_SINKS_FILE));
    const points: unknown = bytes === undefined ? {} : JSON.parse(Buffer.from(bytes).toString('utf8'));
    return isPoints(points) ? points : {};
  } catch {
    return {}; // then everything is sent again
  }
}

/** By hand: every node reads it, and a library of schemas is memory of its process. */
function isPoints(value: unknown): value is Readonly<Record<string, LedgerPoint>> {
  const isPoint = (point: unknown): boolean => {
    const { offset, crc } = (point ?? {}) as Partial<Record<keyof LedgerPoint, unknown>>;
    return [offset, crc].every((number) => Number.isSafeInteger(number) && (number as number) >= 0);
  };
  return typeof value === 'object' && value !== null && Object.values(value).every(isPoint);
}

function pending(feeds: readonly Feed[]): NostosError {
  const sinks = feeds.map(({ sink, error }) => ({
    name: sink.name,
    ...(error === undefined ? {} : { error: error.message }),
  }));
  const names = sinks.map(({ name, error }) => (error === undefined ? name : `${name} (${error})`)).join(', ');
  return new NostosError(
    'FORGET_PENDING',
    `the forget is committed here and not yet in ${names}; that is tried until it is, also after a restart`,
    { details: { sinks } },
  );
}
