/**
 * The conversations of the machines over the network: each is a connection of its own, opened by whoever names it, to the
 * node that has a certain store open. A connection begins with one frame that says which conversation it is, of which
 * cluster, and whom it wants; who is somebody else closes it, and so does either side when it is over.
 */
import { decode, encode } from '@msgpack/msgpack';
import * as v from 'valibot';
import type { ClusterId, StoreId } from '../base/brands.ts';
import { NostosError, isNostosError } from '../base/errors.ts';
import { readInput } from '../base/input-schema.ts';
import type { Channel, ServiceContext, ServiceHandler } from '../wire/channel.ts';
import { encodeFrame, parseFrame, type WireMessage } from './codec.ts';
import type { ChannelId } from './messages.ts';

export const GROUP_SERVICE_NAME = 'nostos.group/1';
const HELLO_BYTES_MAX = 1_024;
const HELLO_TIMEOUT_MS = 10_000;
/** The machines give a silent peer up long before; this only bounds one receive. */
const RECEIVE_MS = 60_000;
/** Small frames that wait to be taken by the network; a peer that leaves more than these is given up. */
const FRAMES_WAITING_MAX = 10_000;

export interface PeersDeps {
  /** Connects to the node that has this store open, where it is known where that is. */
  readonly connect: (to: StoreId, signal: AbortSignal) => Promise<Channel>;
  /** What this throws is a defect of this node, not the peer's: it is not caught here. */
  readonly onMessage: (channel: ChannelId, message: WireMessage) => void;
  /** `wrong`: what the peer sent is no message of this protocol, so it was hung up on. */
  readonly onClosed: (channel: ChannelId, wrong?: NostosError) => void;
}

export interface PeersSelf {
  readonly cluster: ClusterId;
  readonly store: StoreId;
  /** The largest frame that a peer may send. */
  readonly frameBytesMax: number;
}

interface Conversation {
  /** Resolves once it may be sent on; rejects where nobody is there. */
  readonly connected: Promise<Channel>;
  /** Once it is, so that a frame leaves at once. */
  channel: Channel | undefined;
  readonly abort: AbortController;
  waiting: number;
}

const hello = v.strictObject({
  cluster: v.pipe(v.string(), v.regex(/^[0-9a-f]{32}$/)),
  to: v.pipe(v.string(), v.regex(/^[0-9a-f]{32}$/)),
  channel: v.pipe(
    v.string(),
    v.regex(/^[0-9a-zA-Z:._/-]{1,128}$/),
    v.transform((name) => name as ChannelId),
  ),
});
const DECODE_LIMITS = { maxStrLength: 128, maxBinLength: 0, maxArrayLength: 0, maxMapLength: 3, maxExtLength: 0 };

export class Peers implements ServiceHandler {
  readonly serviceName = GROUP_SERVICE_NAME;
  readonly requestBytesMax: number;
  readonly #deps: PeersDeps;
  readonly #self: PeersSelf;
  readonly #conversations = new Map<ChannelId, Conversation>();
  #closed = false;

  constructor(deps: PeersDeps, self: PeersSelf) {
    this.#deps = deps;
    this.#self = self;
    this.requestBytesMax = self.frameBytesMax;
  }

  /** Opens a conversation. That nobody is there is told by `onClosed`. */
  open(channel: ChannelId, to: StoreId): void {
    if (this.#closed || this.#conversations.has(channel)) return;
    const abort = new AbortController();
    const connected = this.#connect(channel, to, abort.signal);
    const conversation: Conversation = { connected, channel: undefined, abort, waiting: 0 };
    this.#conversations.set(channel, conversation);
    void connected.then(
      (opened) => this.#listen(channel, conversation, opened),
      () => this.#ended(channel, conversation),
    );
  }

  /**
   * Resolves once the network has taken it, to which it is given within this call where that can be; also where the
   * conversation is over, which `onClosed` tells.
   */
  async send(channel: ChannelId, message: WireMessage): Promise<void> {
    const conversation = this.#conversations.get(channel);
    if (conversation === undefined) return;
    if (conversation.waiting >= FRAMES_WAITING_MAX) return this.#drop(channel, conversation);
    conversation.waiting += 1;
    try {
      const channel = conversation.channel ?? (await conversation.connected);
      await channel.send(...encodeFrame(message));
    } catch {
      this.#drop(channel, conversation);
    } finally {
      conversation.waiting -= 1;
    }
  }

  /** Ends a conversation without a word to the machine, which asked for it. What was sent still leaves. */
  close(channel: ChannelId): void {
    const conversation = this.#conversations.get(channel);
    if (conversation === undefined) return;
    this.#conversations.delete(channel);
    this.#hangUp(conversation);
  }

  /** Ends every conversation without a word: the machine that had them is no more. */
  closeAll(): void {
    for (const channel of this.#conversations.keys()) this.close(channel);
  }

  /** Ends everything; nothing is told any more. */
  stop(): void {
    this.#closed = true;
    this.closeAll();
  }

  /** Of the dispatcher: somebody has connected. */
  async handle(channel: Channel, { signal }: ServiceContext): Promise<void> {
    const first = await channel.receive(HELLO_TIMEOUT_MS, { signal });
    if (first === null || this.#closed) return;
    const name = this.#parseHello(first);
    if (name === undefined || this.#conversations.has(name)) return;
    const abort = new AbortController();
    const conversation: Conversation = { connected: Promise.resolve(channel), channel, abort, waiting: 0 };
    this.#conversations.set(name, conversation);
    await this.#listen(name, conversation, channel);
  }

  async #connect(channel: ChannelId, to: StoreId, signal: AbortSignal): Promise<Channel> {
    const connected = await this.#deps.connect(to, signal);
    try {
      await connected.send(encode({ cluster: this.#self.cluster, to, channel }));
      return connected;
    } catch (error) {
      connected.close();
      throw error;
    }
  }

  /** Undefined where it is meant for another store, which was open here before. */
  #parseHello(frame: Uint8Array): ChannelId | undefined {
    let value: unknown;
    try {
      value = frame.length > HELLO_BYTES_MAX ? undefined : decode(frame, DECODE_LIMITS);
    } catch {
      // It is told below.
    }
    const read = readInput(hello, value);
    if (!read.ok) throw new NostosError('PROTOCOL_ERROR', `A peer began with a frame that is wrong: ${read.problem}`);
    const { cluster, to, channel } = read.value;
    if (cluster !== this.#self.cluster)
      throw new NostosError(
        'PEER_REFUSED',
        `a peer is refused: it belongs to cluster ${cluster}, not ${this.#self.cluster}`,
        { details: { reason: 'OTHER_CLUSTER', cluster } },
      );
    return to === this.#self.store ? channel : undefined;
  }

  async #listen(name: ChannelId, conversation: Conversation, channel: Channel): Promise<void> {
    // Frames that waited for the connection go on right behind this, before anybody sends the next one.
    conversation.channel = channel;
    for (;;) {
      const next = await nextMessage(channel, conversation.abort.signal);
      if (next.kind === 'message') this.#deps.onMessage(name, next.message);
      else return this.#drop(name, conversation, next.wrong);
    }
  }

  #drop(name: ChannelId, conversation: Conversation, wrong?: NostosError): void {
    this.#hangUp(conversation);
    this.#ended(name, conversation, wrong);
  }

  #ended(name: ChannelId, conversation: Conversation, wrong?: NostosError): void {
    if (this.#conversations.get(name) !== conversation) return;
    this.#conversations.delete(name);
    if (!this.#closed) this.#deps.onClosed(name, wrong);
  }

  #hangUp({ connected, abort }: Conversation): void {
    abort.abort(new NostosError('CHANNEL_CLOSED', 'the conversation is over'));
    void connected.then(
      (channel) => channel.close(),
      () => undefined,
    );
  }
}

type Next =
  | { readonly kind: 'message'; readonly message: WireMessage }
  | { readonly kind: 'over'; readonly wrong?: NostosError };

/** However the conversation has ended, the machine is told, and opens another one where it needs one. */
async function nextMessage(channel: Channel, signal: AbortSignal): Promise<Next> {
  try {
    let frame: Uint8Array | null = null;
    while (frame === null && !signal.aborted) frame = await channel.receive(RECEIVE_MS, { signal });
    if (frame !== null && !signal.aborted) return { kind: 'message', message: parseFrame(frame) };
  } catch (error) {
    if (isNostosError(error, 'PROTOCOL_ERROR')) return { kind: 'over', wrong: error };
  }
  return { kind: 'over' };
}
