/**
 * The receiver of a restore. `open` begins a session on the source; `fetchAll` fetches every item of its plan, then the
 * tail, over several channels, and returns once all of it is verified and fsynced. It is called once: after a failure the
 * caller opens a new client, whose run goes on with what this one left at `pathOf`.
 */
import { NostosError, isNostosError } from '../../base/errors.ts';
import type { Channel } from '../../wire/channel.ts';
import { negotiateClient } from '../../wire/negotiate.ts';
import type { FetchOptions, FetchProgress, FetchReport, FetchTarget } from '../feed.ts';
import type { ItemName } from '../item-name.ts';
import type { ProviderInfo } from '../provider.ts';
import type { PlanItem, RestorePlan } from '../source.ts';
import type { CompressionMode } from './compression.ts';
import { fetchItem, type ArrivedItem, type FetchedItem } from './fetch-item.ts';
import { protocolError } from './frames.ts';
import { CONNECTIONS, STREAM_LIMITS, checkItemCount, checkRate, type StreamLimits } from './limits.ts';
import { VERSIONS, type Answer } from './messages.ts';
import { Peer, type PeerDeps } from './peer.ts';
import { Reach } from './reach.ts';
import { sleep, systemTimers, type Timers } from './timers.ts';

export interface RestoreClientOptions {
  /** A new channel to the service, its preamble sent. */
  readonly connect: (signal: AbortSignal) => Promise<Channel>;
  /** Items in flight, each over a channel of its own; 4 by default. */
  readonly connections?: number;
  /** What the source may send per second; it may have a lower limit of its own. */
  readonly rateBytesPerSecond?: number;
  /** `auto`, the default: when it pays. */
  readonly compression?: CompressionMode;
  readonly limits?: Partial<StreamLimits>;
  readonly timers?: Timers;
}

/** At once: each holds one of the four threads with which Node also writes. */
const FSYNCS_MAX = 2;

/** What the stream tells in any case. */
export type StreamReport = FetchReport & { readonly watermark: number };

/** Asks one member, over a channel of its own. */
export async function requestInfo(
  options: ConnectOptions,
  signal: AbortSignal = new AbortController().signal,
): Promise<ProviderInfo> {
  const peer = await connectPeer(options, signal);
  try {
    await peer.send({ kind: 'info' });
    return (await peer.expect('info', signal)).info;
  } finally {
    peer.channel.close();
  }
}

const peerDeps = (options: Omit<ConnectOptions, 'connect'>): PeerDeps => ({
  timers: options.timers ?? systemTimers,
  limits: { ...STREAM_LIMITS, ...options.limits },
});

type ConnectOptions = Pick<RestoreClientOptions, 'connect' | 'limits' | 'timers'>;

async function connectPeer(options: ConnectOptions, signal: AbortSignal): Promise<Peer> {
  const deps = peerDeps(options);
  const channel = await options.connect(signal);
  try {
    await negotiateClient(channel, VERSIONS, { timeoutMs: deps.limits.firstFrameTimeoutMs, signal });
    return new Peer(channel, deps);
  } catch (error) {
    channel.close();
    throw error;
  }
}

export class RestoreClient {
  readonly plan: RestorePlan;
  readonly #options: RestoreClientOptions;
  readonly #deps: PeerDeps;
  readonly #session: string;
  readonly #control: Control;
  readonly #over = new AbortController();
  readonly #peers = new Set<Peer>();
  /** Of channels that are closed. */
  #bytesOnWire = 0;
  #started = false;

  private constructor(options: RestoreClientOptions, begun: Begun) {
    this.#options = options;
    this.#deps = peerDeps(options);
    this.plan = begun.plan;
    this.#session = begun.session;
    this.#peers.add(begun.peer);
    this.#control = new Control(begun.peer, this.#deps, (error) => this.#over.abort(error));
  }

  static async open(options: RestoreClientOptions, signal?: AbortSignal): Promise<RestoreClient> {
    checkRate(options.rateBytesPerSecond);
    const open = signal ?? new AbortController().signal;
    const peer = await connectPeer(options, open);
    try {
      return new RestoreClient(options, await begin(peer, options, open));
    } catch (error) {
      peer.channel.close();
      throw error;
    }
  }

  /** All items of the plan, then the tail; each verified by its BLAKE3 and fsynced. */
  async fetchAll(target: FetchTarget, options: FetchOptions = {}): Promise<StreamReport> {
    if (this.#started) throw new NostosError('INVALID_ARGUMENT', 'fetchAll is called once; open a new client for more');
    this.#started = true;
    const signals = [this.#over.signal, ...(options.signal === undefined ? [] : [options.signal])];
    const failed = new AbortController();
    const signal = AbortSignal.any([...signals, failed.signal]);
    const run = new Run(this.plan, () => this.#wireBytes(), options.onProgress);
    const startedMs = this.#deps.timers.monotonicMs();
    try {
      signal.throwIfAborted();
      await this.#fetchSome(this.plan.items, { target, run, signal, fail: (error) => failed.abort(error) });
      const tail = await this.#control.tail(this.plan.kind, signal);
      run.tail(tail);
      await this.#fetchSome(tail, { target, run, signal, fail: (error) => failed.abort(error) });
      run.reach.check();
    } catch (error) {
      // What came first is the cause; the rest is what calling it off looks like.
      const cause: unknown = signal.aborted ? signal.reason : error;
      await this.close();
      throw cause;
    }
    return {
      items: run.items,
      bytesOnWire: this.#wireBytes(),
      bytesReused: run.bytesReused,
      elapsedMs: this.#deps.timers.monotonicMs() - startedMs,
      watermark: run.reach.watermark,
    };
  }

  /** Ends the session; what was fetched stays. May be called more than once. */
  async close(): Promise<void> {
    await this.#control.end();
    this.#over.abort(new NostosError('CLOSED', 'The client of this restore was closed'));
    for (const peer of this.#peers) this.#drop(peer);
  }

  async #fetchSome(items: readonly PlanItem[], work: Work): Promise<void> {
    // The largest first, so that no channel is left alone with one at the end.
    const queue = items.toSorted((a, b) => a.bytes - b.bytes);
    const connections = Math.min(this.#options.connections ?? CONNECTIONS, queue.length);
    const lanes = Array.from({ length: FSYNCS_MAX }, () => Promise.resolve());
    const workers = Array.from({ length: connections }, async (_, channel) => {
      let peer: Peer | undefined;
      let finishing: Promise<void> | undefined;
      try {
        for (let item = queue.pop(); item !== undefined; item = queue.pop()) {
          const arrived = await this.#fetchOne(item, peer, work);
          peer = arrived.peer;
          const before = finishing;
          // While the next one arrives; of each channel two at most.
          const lane = channel % lanes.length;
          finishing = lanes[lane]!.then(() => finish(item, arrived, work));
          lanes[lane] = finishing.catch(() => undefined);
          await before;
        }
      } catch (error) {
        work.fail(error as Error);
        throw error;
      } finally {
        if (peer !== undefined) this.#drop(peer);
        await finishing;
      }
    });
    const settled = await Promise.allSettled(workers);
    const rejected = settled.find((result) => result.status === 'rejected');
    if (rejected !== undefined) throw rejected.reason;
  }

  /** With the channel to go on with. What arrives damaged is fetched once more, without a base, over a new one. */
  async #fetchOne(item: PlanItem, open: Peer | undefined, { target, run, signal }: Work): Promise<Arrived> {
    const path = target.pathOf(item.name);
    const base = target.baseOf(item.name);
    for (let [peer, attempt] = [open, 1]; ; attempt += 1) {
      peer ??= await this.#attach(signal);
      const progress = run.started(item);
      const deps = { peer, timers: this.#deps.timers, limits: this.#deps.limits };
      try {
        const arrived = await fetchItem(
          deps,
          { name: item.name, path, base, useBase: attempt === 1 },
          { signal, onProgress: progress },
        );
        return { ...arrived, peer };
      } catch (error) {
        // The source is in the middle of sending it.
        this.#drop(peer);
        if (signal.aborted || attempt > 1 || !isNostosError(error, 'TRANSFER_DAMAGED')) throw error;
        progress(0);
        peer = undefined;
      }
    }
  }

  async #attach(signal: AbortSignal): Promise<Peer> {
    const peer = await connectPeer(this.#options, signal);
    this.#peers.add(peer);
    try {
      await peer.send({ kind: 'attach', session: this.#session });
      await peer.expect('attached', signal);
      return peer;
    } catch (error) {
      this.#drop(peer);
      throw error;
    }
  }

  #drop(peer: Peer): void {
    peer.channel.close();
    if (this.#peers.delete(peer)) this.#bytesOnWire += peer.bytesSent + peer.bytesReceived;
  }

  #wireBytes(): number {
    let bytes = this.#bytesOnWire;
    for (const peer of this.#peers) bytes += peer.bytesSent + peer.bytesReceived;
    return bytes;
  }
}

type Arrived = ArrivedItem & { readonly peer: Peer };

/** Its failure shows when it is awaited, and calls off the rest at once. */
function finish(item: PlanItem, arrived: ArrivedItem, { run, fail }: Work): Promise<void> {
  const finished = arrived.finish().then(() => run.finished(item, arrived.fetched, arrived.receivedBytes));
  finished.catch(fail);
  return finished;
}

interface Work {
  readonly target: FetchTarget;
  readonly run: Run;
  readonly signal: AbortSignal;
  readonly fail: (error: Error) => void;
}

interface Begun {
  readonly peer: Peer;
  readonly plan: RestorePlan;
  readonly session: string;
}

async function begin(peer: Peer, options: RestoreClientOptions, signal: AbortSignal): Promise<Begun> {
  await peer.send({
    kind: 'begin',
    rateBytesPerSecond: options.rateBytesPerSecond ?? null,
    compression: options.compression ?? 'auto',
  });
  const { session, plan } = await peer.expect('session', signal);
  const { itemCount, ...identity } = plan;
  const items = new ItemList(itemCount, plan.kind, { ...STREAM_LIMITS, ...options.limits });
  while (!items.isWhole) items.add(await peer.expect('items', signal));
  return { peer, session, plan: { ...identity, items: items.items } };
}

/** Items as they come, message by message: as many as announced, each once. */
class ItemList {
  readonly items: PlanItem[] = [];
  readonly #names = new Set<ItemName>();
  readonly #count: number;
  readonly #kind: RestorePlan['kind'];

  constructor(count: number, kind: RestorePlan['kind'], limits: StreamLimits) {
    checkItemCount(count, limits);
    this.#count = count;
    this.#kind = kind;
  }

  get isWhole(): boolean {
    return this.items.length === this.#count;
  }

  add({ items }: Extract<Answer, { kind: 'items' }>): void {
    if (items.length === 0 || this.items.length + items.length > this.#count)
      throw protocolError(`${this.items.length + items.length} items of ${this.#count} announced`);
    for (const [name, bytes] of items) {
      // In a data directory a file of any name could be one that Nostos, or SQLite, believes.
      if (name.startsWith('file/') !== (this.#kind === 'files'))
        throw protocolError(`the item ${name} of a source of ${this.#kind === 'files' ? 'files' : 'a node'}`);
      if (this.#names.has(name)) throw protocolError(`the item ${name} twice`);
      this.#names.add(name);
      this.items.push({ name, bytes });
    }
  }
}

/** How long a client that ends waits for the source to have let go. */
const END_TIMEOUT_MS = 2_000;

interface Asked {
  readonly sinceMs: number;
  readonly answered: (answer: Answer) => void;
  readonly failed: (error: Error) => void;
}

/** The control channel: says that we live, hears when the session fails, and asks for the tail. */
class Control {
  readonly #peer: Peer;
  readonly #deps: PeerDeps;
  readonly #over = new AbortController();
  readonly #reading: Promise<void>;
  readonly #queue: Answer[] = [];
  #ending = false;
  #asked: Asked | undefined;

  constructor(peer: Peer, deps: PeerDeps, onFailure: (error: Error) => void) {
    this.#peer = peer;
    this.#deps = deps;
    const failed = (error: unknown): void => {
      if (this.#over.signal.aborted) return;
      this.#over.abort(error);
      onFailure(error as Error);
      this.#asked?.failed(error as Error);
    };
    this.#reading = this.#read().catch(failed);
    this.#ping().catch(failed);
  }

  async tail(kind: RestorePlan['kind'], signal: AbortSignal): Promise<readonly PlanItem[]> {
    const answer = await this.#ask('tail', signal);
    if (answer.kind !== 'tail') throw protocolError(`"${answer.kind}" where "tail" was due`);
    const list = new ItemList(answer.itemCount, kind, this.#deps.limits);
    while (!list.isWhole) {
      const items = await this.#next(signal);
      if (items.kind !== 'items') throw protocolError(`"${items.kind}" where items were due`);
      list.add(items);
    }
    return list.items;
  }

  /** Tells the source that it may let go, and waits a moment for it to have done so. */
  async end(): Promise<void> {
    if (this.#over.signal.aborted) return;
    this.#ending = true;
    const over = new AbortController();
    try {
      const late = sleep(this.#deps.timers, END_TIMEOUT_MS, over.signal);
      late.catch(() => undefined);
      const ended = this.#peer.send({ kind: 'end' }).then(() => this.#reading);
      await Promise.race([ended, late]).catch(() => undefined);
    } finally {
      over.abort();
      this.#over.abort(new NostosError('CLOSED', 'The client of this restore was closed'));
    }
  }

  async #ask(kind: 'tail', signal: AbortSignal): Promise<Answer> {
    const answer = this.#next(signal);
    answer.catch(() => undefined);
    await this.#peer.send({ kind });
    return await answer;
  }

  #next(signal: AbortSignal): Promise<Answer> {
    const queued = this.#queue.shift();
    if (queued !== undefined) return Promise.resolve(queued);
    return new Promise((resolve, reject) => {
      const failed = (): void => reject((this.#over.signal.aborted ? this.#over.signal : signal).reason as Error);
      if (signal.aborted || this.#over.signal.aborted) return failed();
      signal.addEventListener('abort', failed, { once: true });
      this.#asked = {
        sinceMs: this.#deps.timers.monotonicMs(),
        failed: reject,
        answered: (answer) => {
          signal.removeEventListener('abort', failed);
          this.#asked = undefined;
          resolve(answer);
        },
      };
    });
  }

  async #read(): Promise<void> {
    for (;;) {
      const answer = await this.#peer.receiveMessage(this.#over.signal);
      if (answer.kind === 'ended' && this.#ending) return;
      // It answers a ping. Only who has asked for more waits for more.
      if (answer.kind === 'wait') {
        if (this.#asked !== undefined) this.#peer.checkProgress(this.#asked.sinceMs);
      } else if (this.#asked !== undefined) this.#asked.answered(answer);
      else if (this.#queue.length < 2) this.#queue.push(answer);
      else throw protocolError(`"${answer.kind}" that nobody asked for`);
    }
  }

  async #ping(): Promise<void> {
    for (;;) {
      await sleep(this.#deps.timers, this.#deps.limits.heartbeatMs, this.#over.signal);
      await this.#peer.send({ kind: 'ping' });
    }
  }
}

/** What one `fetchAll` has done so far. */
class Run {
  readonly items: PlanItem[] = [];
  readonly reach: Reach;
  bytesReused = 0;
  readonly #wireBytes: () => number;
  readonly #onProgress: ((progress: FetchProgress) => void) | undefined;
  #phase = 'items';
  #bytesDone = 0;
  #bytesWritten = 0;
  #bytesTotal: number;
  #itemsTotal: number;

  constructor(plan: RestorePlan, wireBytes: () => number, onProgress: FetchOptions['onProgress']) {
    const { items } = plan;
    this.reach = new Reach(plan);
    this.#wireBytes = wireBytes;
    this.#onProgress = onProgress;
    this.#bytesTotal = sum(items);
    this.#itemsTotal = items.length;
  }

  tail(items: readonly PlanItem[]): void {
    this.#phase = 'tail';
    this.#bytesTotal += sum(items);
    this.#itemsTotal += items.length;
    this.#report();
  }

  /** Returns what hears how far the item is. Its size may have changed since the plan. */
  started(item: PlanItem): (coveredTo: number, bytes?: number, writtenBytes?: number) => void {
    let [covered, planned] = [0, item.bytes];
    return (coveredTo, bytes = planned, writtenBytes = 0) => {
      this.#bytesWritten += writtenBytes;
      this.#bytesDone += coveredTo - covered;
      this.#bytesTotal += bytes - planned;
      [covered, planned] = [coveredTo, bytes];
      this.#report();
    };
  }

  finished(planned: PlanItem, { name, bytes, attributes }: FetchedItem, receivedBytes: number): void {
    this.reach.add({ name, attributes });
    // There may be many: what the plan says already takes no memory again.
    this.items.push(bytes === planned.bytes ? planned : { name, bytes });
    this.bytesReused += bytes - receivedBytes;
    this.#report();
  }

  #report(): void {
    this.#onProgress?.({
      phase: this.#phase,
      bytesDone: this.#bytesDone,
      bytesTotal: this.#bytesTotal,
      itemsDone: this.items.length,
      itemsTotal: this.#itemsTotal,
      bytesOnWire: this.#wireBytes(),
      bytesWritten: this.#bytesWritten,
    });
  }
}

const sum = (items: readonly PlanItem[]): number => items.reduce((total, { bytes }) => total + bytes, 0);
