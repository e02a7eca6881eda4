/** One channel of a restore: messages and frames both ways, counted, and given up where the other side stalls. */
import { NostosError } from '../../base/errors.ts';
import type { Channel } from '../../wire/channel.ts';
import { BufferPool } from './buffer-pool.ts';
import { encodePatch, protocolError, type Patch } from './frames.ts';
import type { StreamLimits } from './limits.ts';
import { encodeMessage, errorOf, parseAnswer, type Answer, type AnswerOf, type Message } from './messages.ts';
import type { Timers } from './timers.ts';

/** What a frame costs on the wire beside its payload. */
const FRAME_PREFIX_BYTES = 4;

/** One that arrives, one that is looked at, one that leaves. */
const BUFFERS = 3;

export interface PeerDeps {
  readonly timers: Timers;
  readonly limits: StreamLimits;
  readonly buffers?: BufferPool;
}

export class Peer {
  readonly channel: Channel;
  readonly #deps: PeerDeps;
  bytesSent = 0;
  bytesReceived = 0;
  readonly #pool: BufferPool;
  readonly #buffers: Buffer[] = [];
  #sendFailed = false;
  /** Set once the channel is of no more use: nothing that is sent would arrive. */
  isLost = false;

  constructor(channel: Channel, deps: PeerDeps) {
    this.channel = channel;
    this.#deps = deps;
    this.#pool = deps.buffers ?? new BufferPool();
  }

  /** Buffers that take turns: one is filled while the one before it leaves, to the network or to the disk. */
  buffer(turn: number): Buffer {
    return (this.#buffers[turn % BUFFERS] ??= this.#pool.take());
  }

  /** Once nothing uses them any more. What could not be sent may still be leaving: those are for the collector. */
  giveBuffersBack(): void {
    const buffers = this.#buffers.splice(0).filter((buffer) => buffer !== undefined);
    if (!this.#sendFailed) this.#pool.give(buffers);
  }

  send(message: Message): Promise<void> {
    return this.sendFrame(...encodeMessage(message));
  }

  async sendPatch(patch: Patch): Promise<void> {
    await this.sendFrame(...encodePatch(patch));
  }

  async sendFrame(...pieces: readonly Uint8Array[]): Promise<void> {
    this.bytesSent += pieces.reduce((sum, piece) => sum + piece.length, FRAME_PREFIX_BYTES);
    const timeoutMs = this.#deps.limits.stallTimeoutMs;
    const { promise: stalled, reject } = Promise.withResolvers<never>();
    const callOff = this.#deps.timers.after(timeoutMs, () => reject(this.#stalled('took nothing', timeoutMs)));
    try {
      await Promise.race([this.channel.send(...pieces), stalled]);
    } catch (error) {
      this.isLost = this.#sendFailed = true;
      throw error;
    } finally {
      callOff();
    }
  }

  /** The next frame, in `into` where it fits; an error once the peer has sent nothing for `timeoutMs`. */
  async receive(
    signal: AbortSignal,
    { timeoutMs = this.#deps.limits.stallTimeoutMs, into }: { timeoutMs?: number; into?: Uint8Array } = {},
  ): Promise<Uint8Array> {
    try {
      const frame = await this.channel.receive(timeoutMs, { signal, into });
      if (frame === null) throw this.#stalled('sent nothing', timeoutMs);
      this.bytesReceived += frame.length + FRAME_PREFIX_BYTES;
      return frame;
    } catch (error) {
      // A receive that was called off leaves the channel as it is.
      if (!signal.aborted) this.isLost = true;
      throw error;
    }
  }

  /** The next message, a sign of life included; an error that the peer reports is thrown. */
  async receiveMessage(signal: AbortSignal): Promise<Answer> {
    const answer = parseAnswer(await this.receive(signal));
    if (answer.kind === 'error') throw errorOf(answer);
    return answer;
  }

  /** The next message that is more than a sign of life. */
  async receiveAnswer(signal: AbortSignal): Promise<Answer> {
    const sinceMs = this.#deps.timers.monotonicMs();
    for (;;) {
      const answer = await this.receiveMessage(signal);
      if (answer.kind !== 'wait') return answer;
      this.checkProgress(sinceMs);
    }
  }

  /** The same, where only one kind will do. */
  async expect<Kind extends Answer['kind']>(kind: Kind, signal: AbortSignal): Promise<AnswerOf<Kind>> {
    const answer = await this.receiveAnswer(signal);
    if (answer.kind !== kind) throw protocolError(`"${answer.kind}" where "${kind}" was due`);
    return answer as AnswerOf<Kind>;
  }

  /** Throws where signs of life are all that came since then, for too long. */
  checkProgress(sinceMs: number, where = ''): void {
    const { progressTimeoutMs } = this.#deps.limits;
    if (this.#deps.timers.monotonicMs() - sinceMs > progressTimeoutMs)
      throw this.#stalled(`made no progress${where}`, progressTimeoutMs);
  }

  #stalled(how: string, timeoutMs: number): NostosError {
    this.isLost = true;
    this.channel.close();
    return new NostosError(
      'NETWORK_TIMEOUT',
      `${this.channel.peer} ${how} for ${timeoutMs} ms; the connection is given up, and a further run goes on from here`,
      { details: { peer: this.channel.peer, timeoutMs } },
    );
  }
}
