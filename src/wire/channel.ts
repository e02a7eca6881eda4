/**
 * A channel carries whole frames between two processes, in order. `socket-channel.ts` runs it over TCP and TLS; tests may
 * run it over anything that passes `testing/channel-compliance.ts`.
 */
export interface ReceiveOptions {
  readonly signal?: AbortSignal | undefined;
  /**
   * Memory that the frame is put into where it fits in: for who receives much and copies it on at once. Left alone again
   * when the call ends without a frame.
   */
  readonly into?: Uint8Array | undefined;
}

export interface Channel {
  /** Where the peer is, as `host:port`, for messages to people. */
  readonly peer: string;
  /** The node that the peer's certificate names; undefined without TLS. */
  readonly peerNode: string | undefined;
  readonly isOpen: boolean;
  /**
   * Sends one frame, whose payload is these pieces one after another. Resolves once the system has taken it: the pieces,
   * which must not change before, may be used again, and a sender that waits for it holds a bounded amount in memory.
   * Frames leave in the order of the calls.
   */
  send(...pieces: readonly Uint8Array[]): Promise<void>;
  /**
   * The next frame, which is the caller's to keep; null when it was not there in time. What has arrived of it by then is
   * not lost: the next call goes on with it, also after a cancelled one. One call at a time.
   */
  receive(timeoutMs: number, options?: ReceiveOptions): Promise<Uint8Array | null>;
  /** May be called more than once. What was sent still leaves; frames that were not received are gone. */
  close(): void;
}

export interface ServiceContext {
  /**
   * Aborted when the dispatcher stops, or the channel is lost: closed, failed, or ended by its peer, all read, and
   * nothing taken by it for `halfOpenTimeoutMs`: it may have ended its own side only.
   */
  readonly signal: AbortSignal;
}

/** What a dispatcher hands its channels to, by the name in their preamble. The channel is closed when it settles. */
export interface ServiceHandler {
  readonly serviceName: string;
  /**
   * The largest frame that a peer may send to this service; `serviceRequestBytesMax` of the dispatcher without it. A
   * stranger makes the server hold so much for each connection that he opens, so ask for what the protocol needs.
   */
  readonly requestBytesMax?: number | undefined;
  handle(channel: Channel, context: ServiceContext): Promise<void>;
}
