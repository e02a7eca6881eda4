/**
 * The streaming service of a source: `SPEC.md` has its messages. A control channel begins a session and keeps it; data
 * channels attach to it by its id and fetch items one after another. All that a session holds on the source ends with its
 * control channel, or when the receiver takes nothing for `reservationTimeoutMs`.
 */
import { NostosError, isNostosError, serializeError } from '../../base/errors.ts';
import { yieldToEventLoop } from '../../base/event-loop.ts';
import { randomHex128, systemRandom, type Random } from '../../base/random.ts';
import type { Channel, ServiceContext, ServiceHandler } from '../../wire/channel.ts';
import { negotiateServer } from '../../wire/negotiate.ts';
import type { ItemName } from '../item-name.ts';
import type { PlanItem, RestoreSource, SourceInfo, SourceSession } from '../source.ts';
import { BufferPool } from './buffer-pool.ts';
import { Compressor, LinkMeter, type CompressionMode } from './compression.ts';
import { FrameKind, protocolError } from './frames.ts';
import {
  ITEMS_PER_MESSAGE,
  MESSAGE_BYTES_MAX,
  PATCH_BYTES,
  PATCH_BYTES_MIN,
  RATE_BYTES_PER_SECOND_MIN,
  STREAM_LIMITS,
  checkItemCount,
  checkRate,
  type StreamLimits,
} from './limits.ts';
import { STREAM_SERVICE_NAME, VERSIONS, errorMessage, parseRequest, type Request } from './messages.ts';
import { Peer } from './peer.ts';
import { serveItem, type Outgoing } from './serve-item.ts';
import { beating, sleep, systemTimers, type Timers } from './timers.ts';
import { TokenBucket } from './token-bucket.ts';

const TIMER_MAX_MS = 2 ** 31 - 1;
/** A send that took longer has waited for the link. */
const IMMEDIATE_MS = 1;

export interface RestoreServiceOptions {
  readonly limits?: Partial<StreamLimits>;
  /** For all sessions together; a receiver may ask for less. */
  readonly rateBytesPerSecond?: number;
  /** What a receiver gets at most: `off` refuses to compress. */
  readonly compression?: CompressionMode;
  readonly timers?: Timers;
  readonly random?: Random;
}

const NO_INFO: SourceInfo = {
  role: null,
  cluster: null,
  generation: null,
  node: null,
  store: null,
  term: 0,
  watermark: 0,
  firstLsn: 0,
};

export class RestoreService implements ServiceHandler {
  readonly serviceName = STREAM_SERVICE_NAME;
  readonly requestBytesMax = MESSAGE_BYTES_MAX;
  readonly #source: RestoreSource;
  readonly #limits: StreamLimits;
  readonly #timers: Timers;
  readonly #random: Random;
  readonly #compression: CompressionMode;
  readonly #bucket: TokenBucket | undefined;
  readonly #buffers = new BufferPool();
  readonly #sessions = new Map<string, Session>();

  constructor(source: RestoreSource, options: RestoreServiceOptions = {}) {
    this.#source = source;
    this.#limits = { ...STREAM_LIMITS, ...options.limits };
    this.#timers = options.timers ?? systemTimers;
    this.#random = options.random ?? systemRandom;
    this.#compression = options.compression ?? 'auto';
    checkRate(options.rateBytesPerSecond);
    if (options.rateBytesPerSecond !== undefined)
      this.#bucket = new TokenBucket(options.rateBytesPerSecond, this.#timers);
  }

  /** Sessions being served. */
  get sessions(): number {
    return this.#sessions.size;
  }

  async handle(channel: Channel, { signal }: ServiceContext): Promise<void> {
    const peer = new Peer(channel, { timers: this.#timers, limits: this.#limits, buffers: this.#buffers });
    try {
      const { firstFrameTimeoutMs: timeoutMs } = this.#limits;
      await negotiateServer(channel, VERSIONS, { timeoutMs, signal });
      const first = parseRequest(await peer.receive(signal, { timeoutMs }));
      switch (first.kind) {
        case 'info':
          return await peer.send({ kind: 'info', info: await this.#info() });
        case 'begin':
          return await this.#control(peer, first, signal);
        case 'attach':
          return await this.#data(peer, first.session, signal);
        default:
          throw protocolError(`"${first.kind}" as the first message`);
      }
    } catch (error) {
      if (!peer.isLost) await peer.send(errorMessage(serializeError(error))).catch(() => undefined);
      throw error;
    }
  }

  async #info(): Promise<SourceInfo & { readonly sessions: number }> {
    return { ...NO_INFO, ...(await this.#source.info?.()), sessions: this.#sessions.size };
  }

  async #control(peer: Peer, begin: Extract<Request, { kind: 'begin' }>, signal: AbortSignal): Promise<void> {
    const { sessionsMax } = this.#limits;
    if (this.#sessions.size >= sessionsMax)
      throw new NostosError(
        'QUEUE_FULL',
        `${sessionsMax} restores are being served already; ask another node, or later`,
        {
          details: { sessions: this.#sessions.size, sessionsMax },
        },
      );
    const id = randomHex128(this.#random);
    const session = new Session(peer, {
      limits: this.#limits,
      timers: this.#timers,
      compression: begin.compression === 'auto' || this.#compression === 'off' ? this.#compression : begin.compression,
      buckets: [
        ...(this.#bucket === undefined ? [] : [this.#bucket]),
        ...(begin.rateBytesPerSecond === null
          ? []
          : [new TokenBucket(Math.max(begin.rateBytesPerSecond, RATE_BYTES_PER_SECOND_MIN), this.#timers)]),
      ],
    });
    // Counted from here on, so that many receivers at once do not pass the limit while their sources begin.
    this.#sessions.set(id, session);
    try {
      await session.run(this.#source, id, signal);
    } finally {
      this.#sessions.delete(id);
      await session.close();
    }
    await peer.send({ kind: 'ended' });
  }

  async #data(peer: Peer, id: string, signal: AbortSignal): Promise<void> {
    const session = this.#sessions.get(id);
    if (session === undefined || session.peerNode !== peer.channel.peerNode)
      throw new NostosError('RESERVATION_EXPIRED', 'This session of a restore has ended; run the restore again');
    await session.serve(peer, signal);
  }
}

interface SessionOptions {
  readonly limits: StreamLimits;
  readonly timers: Timers;
  readonly compression: CompressionMode;
  readonly buckets: readonly TokenBucket[];
}

/** One restore: its holds on the source, and the channels that serve it. */
class Session {
  readonly peerNode: string | undefined;
  readonly #control: Peer;
  readonly #options: SessionOptions;
  readonly #ended = new AbortController();
  readonly #link = new LinkMeter();
  readonly #serving = new Set<Promise<void>>();
  #beginning: Promise<SourceSession> | undefined;
  #source: SourceSession | undefined;
  /** Names that were offered: nothing else is opened. */
  readonly #offered = new Set<ItemName>();
  #openItems = 0;
  #progressAtMs: number;

  constructor(control: Peer, options: SessionOptions) {
    this.#control = control;
    this.peerNode = control.channel.peerNode;
    this.#options = options;
    this.#progressAtMs = options.timers.monotonicMs();
  }

  /** Until the receiver says that it is done, or is lost. */
  async run(source: RestoreSource, id: string, outer: AbortSignal): Promise<void> {
    const signal = AbortSignal.any([outer, this.#ended.signal]);
    const control = this.#control;
    this.#beginning = source.begin(signal);
    const begun = (this.#source = await this.#alive(control, this.#beginning));
    const { items, ...plan } = begun.plan;
    checkItemCount(items.length, this.#options.limits);
    await control.send({
      kind: 'session',
      session: id,
      plan: { ...plan, itemCount: items.length },
    });
    await this.#offer(items);
    this.#progressed(0);
    void this.#watch();
    for (;;) {
      const request = parseRequest(await control.receive(signal));
      switch (request.kind) {
        case 'ping':
          await control.send({ kind: 'wait' });
          break;
        case 'tail': {
          if (this.#openItems > 0) throw protocolError(`"tail" while ${this.#openItems} items are being sent`);
          const tail = await this.#alive(control, begun.tail());
          checkItemCount(tail.length, this.#options.limits);
          await control.send({ kind: 'tail', itemCount: tail.length });
          await this.#offer(tail);
          this.#progressed(0);
          break;
        }
        case 'end':
          return;
        default:
          throw protocolError(`"${request.kind}" on a control channel`);
      }
    }
  }

  /** One data channel, until it or the session ends. */
  async serve(peer: Peer, outer: AbortSignal): Promise<void> {
    const { sessionChannelsMax } = this.#options.limits;
    if (this.#serving.size >= sessionChannelsMax)
      throw protocolError(`more than ${sessionChannelsMax} channels for one restore`);
    const serving = this.#serve(peer, AbortSignal.any([outer, this.#ended.signal]));
    const settled = serving.catch(() => undefined);
    this.#serving.add(settled);
    this.#link.opened();
    try {
      await serving;
    } finally {
      this.#link.closed();
      peer.giveBuffersBack();
      this.#serving.delete(settled);
    }
  }

  /** Ends what is held, once nothing reads it any more. */
  async close(): Promise<void> {
    this.#ended.abort(new NostosError('CLOSED', 'The session of this restore has ended'));
    await Promise.all(this.#serving);
    // It may still begin after the receiver has gone.
    const begun = await this.#beginning?.catch(() => undefined);
    await begun?.close();
  }

  async #serve(peer: Peer, signal: AbortSignal): Promise<void> {
    await peer.send({ kind: 'attached' });
    const compressor = new Compressor(this.#options.compression, this.#link, this.#options.timers);
    let copied = 0;
    for (;;) {
      // A receiver may leave this channel idle while others work; the control channel says whether it lives.
      const frame = await peer.receive(signal, { timeoutMs: TIMER_MAX_MS });
      // Left over from an item that failed meanwhile.
      if (frame[0] === FrameKind.hashes) continue;
      const request = parseRequest(frame);
      if (request.kind === 'copying') {
        if (request.bytes <= copied) throw protocolError(`${request.bytes} bytes of a base copied, after ${copied}`);
        copied = request.bytes;
        this.#progressed(0);
        continue;
      }
      if (request.kind !== 'fetch') throw protocolError(`"${request.kind}" on a data channel`);
      copied = 0;
      try {
        const digest = await this.#item(peer, request, compressor, signal);
        await peer.send({ kind: 'done', digest });
      } catch (error) {
        if (peer.isLost || signal.aborted || isNostosError(error, 'PROTOCOL_ERROR')) throw error;
        await peer.send(errorMessage(serializeError(error)));
      }
    }
  }

  /** Its digest; the item is closed by then: a receiver that hears it may ask for the tail at once. */
  async #item(
    peer: Peer,
    request: Extract<Request, { kind: 'fetch' }>,
    compressor: Compressor,
    signal: AbortSignal,
  ): Promise<Uint8Array> {
    this.#openItems += 1;
    try {
      return await this.#sendItem(peer, request, compressor, signal);
    } finally {
      this.#openItems -= 1;
    }
  }

  async #sendItem(
    peer: Peer,
    { name, base }: Extract<Request, { kind: 'fetch' }>,
    compressor: Compressor,
    signal: AbortSignal,
  ): Promise<Uint8Array> {
    if (!this.#offered.has(name)) throw protocolError(`${name}, which was not offered`);
    const opening = this.#source!.open(name, signal);
    const file = await this.#alive(peer, opening).catch(async (error: unknown) => {
      // It may still be opened after the receiver has gone.
      await opening.then((late) => late.close()).catch(() => undefined);
      throw error;
    });
    try {
      this.#progressed(0);
      await peer.send({ kind: 'opened', bytes: file.bytes, attributes: file.attributes });
      let covered = 0;
      return await serveItem(file, base, {
        patchBytes: this.#patchBytes(),
        buffer: (turn) => peer.buffer(turn),
        nextHashes: async () => {
          const frame = await peer.receive(signal);
          if (frame[0] !== FrameKind.hashes) throw protocolError(`a frame of kind ${frame[0]} where hashes were due`);
          return frame;
        },
        send: async (patch) => {
          await this.#send(peer, patch, compressor, signal);
          this.#progressed(patch.coveredTo - covered);
          covered = patch.coveredTo;
        },
      });
    } finally {
      await file.close();
    }
  }

  async #send(peer: Peer, patch: Outgoing, compressor: Compressor, signal: AbortSignal): Promise<void> {
    const { timers } = this.#options;
    signal.throwIfAborted();
    const compressed = await compressor.compress(patch.data);
    const data = compressed ?? patch.data;
    const startedMs = timers.monotonicMs();
    const waitMs = Math.max(0, ...this.#options.buckets.map((bucket) => bucket.take(data.length)));
    if (waitMs > 0) await this.#alive(peer, sleep(timers, waitMs, signal));
    await peer.sendPatch({ ...patch, dataBytes: patch.data.length, data, compressed: compressed !== undefined });
    // What the channel took at once did not wait for the link.
    const elapsedMs = timers.monotonicMs() - startedMs;
    this.#link.sent(data.length, elapsedMs > IMMEDIATE_MS ? elapsedMs : 0);
    await yieldToEventLoop();
  }

  /** Under a rate limit frames are small, so that each leaves in a fraction of a second. */
  #patchBytes(): number {
    const rate = Math.min(Infinity, ...this.#options.buckets.map((bucket) => bucket.bytesPerSecond));
    const limited = Math.max(PATCH_BYTES_MIN, Math.floor(rate / 8 / PATCH_BYTES_MIN) * PATCH_BYTES_MIN);
    return Math.min(PATCH_BYTES, limited);
  }

  async #offer(items: readonly PlanItem[]): Promise<void> {
    for (let at = 0; at < items.length; at += ITEMS_PER_MESSAGE) {
      const part = items.slice(at, at + ITEMS_PER_MESSAGE);
      for (const { name } of part) this.#offered.add(name);
      await this.#control.send({ kind: 'items', items: part.map(({ name, bytes }) => [name, bytes]) });
    }
  }

  #alive<T>(peer: Peer, work: Promise<T>): Promise<T> {
    const { timers, limits } = this.#options;
    return beating(timers, work, limits.heartbeatMs, () => {
      // The source is busy with it, so the receiver is not late.
      this.#progressAtMs = timers.monotonicMs();
      return peer.send({ kind: 'wait' });
    });
  }

  /** Renews the holds; throws where they are gone. */
  #progressed(bytes: number): void {
    this.#progressAtMs = this.#options.timers.monotonicMs();
    this.#source!.progress(bytes);
  }

  /** Ends a session whose receiver is there and takes nothing. */
  async #watch(): Promise<void> {
    const { timers, limits } = this.#options;
    const { reservationTimeoutMs } = limits;
    try {
      for (;;) {
        const idleMs = timers.monotonicMs() - this.#progressAtMs;
        if (idleMs >= reservationTimeoutMs) break;
        await sleep(timers, reservationTimeoutMs - idleMs, this.#ended.signal);
      }
    } catch {
      return;
    }
    this.#ended.abort(
      new NostosError(
        'RESERVATION_EXPIRED',
        `Nothing was fetched for ${reservationTimeoutMs} ms, so the source gave up what it held; run the restore again, it goes on from here`,
        { details: { reservationTimeoutMs } },
      ),
    );
  }
}
