/**
 * The bytes of one connection, TCP or TLS: what channels, preambles and the raw protocol of the reference stand on.
 *
 * - Reading: at most `receiveBufferBytes` are read ahead of the reader, then the peer waits. A read that times out or is
 *   cancelled has taken nothing; the next one goes on with all that came.
 * - Writing: in order, in batches of at most 256 KiB, each of which the peer must take within `writeTimeoutMs`.
 * - Closing: what was written still leaves, and what still comes is thrown away for a moment, since closing a socket
 *   with unread bytes would destroy what the peer has not read yet.
 */
import type { Socket } from 'node:net';
import { NostosError } from '../base/errors.ts';
import { DEFAULT_LIMITS } from '../base/limits.ts';
import { formatAddress, plainIp } from './address.ts';
import { ByteQueue } from './byte-queue.ts';

const READ_BYTES = 128 * 1024;
const WRITE_BATCH_BYTES = 256 * 1024;
/** So many bytes of a frame are a sign of life; fewer are a drip. */
const PROGRESS_BYTES = 64 * 1024;
const LINGER_MS = 1_000;
const TIMER_MAX_MS = 2 ** 31 - 1;

export interface ByteStreamOptions {
  readonly peerNode?: string | undefined;
  readonly receiveBufferBytes?: number | undefined;
  readonly writeTimeoutMs?: number | undefined;
  /** Fails a read when the peer that it waits for sends neither a message nor 64 KiB of one for so long. */
  readonly idleTimeoutMs?: number | undefined;
  /** A peer that has ended its side of a half-open socket, and takes nothing for so long, is lost. */
  readonly halfOpenTimeoutMs?: number | undefined;
}

export interface ReadOptions {
  readonly timeoutMs: number;
  readonly signal?: AbortSignal | undefined;
}

/** Takes one message from the queue, or leaves it; `inside` says whether a part of one was taken. */
export interface Parser<T> {
  next(queue: ByteQueue): T | undefined;
  inside(queue: ByteQueue): boolean;
  /** Called when a read ends without a message. */
  pause?(queue: ByteQueue): void;
}

/**
 * Reads of a socket that was made with it go through one buffer. Otherwise each read allocates 64 KiB, and a fast peer
 * has us hold tens of megabytes of garbage. Sockets that a server accepts cannot have one.
 */
export class Intake {
  readonly #early: Uint8Array[] = [];
  #deliver = (chunk: Uint8Array): void => void this.#early.push(chunk.slice());
  readonly onread = {
    buffer: new Uint8Array(READ_BYTES),
    callback: (bytes: number, buffer: Uint8Array): boolean => {
      this.#deliver(buffer.subarray(0, bytes));
      return true;
    },
  };

  attach(deliver: (chunk: Uint8Array) => void): void {
    this.#deliver = deliver;
    for (const chunk of this.#early.splice(0)) deliver(chunk);
  }
}

interface Outgoing {
  readonly bytes: Uint8Array;
  readonly sent: (() => void) | undefined;
  readonly failed: ((error: Error) => void) | undefined;
}

interface Waiter {
  /** Tries to parse what is there; true when the wait is over. */
  attempt(): void;
  fail(error: unknown): void;
  alive(): void;
}

export class ByteStream {
  /** Where the peer is, as `host:port`. */
  readonly peer: string;
  readonly peerNode: string | undefined;
  readonly #socket: Socket;
  readonly #receiveBufferBytes: number;
  #readAheadBytes: number;
  readonly #writeTimeoutMs: number;
  readonly #idleTimeoutMs: number;
  readonly #halfOpenTimeoutMs: number;
  readonly #lost = new AbortController();
  readonly #gone = Promise.withResolvers<void>();
  readonly #queue = new ByteQueue();
  #waiter: Waiter | undefined;
  /** How long the peer has been waited for without a sign of life, over several reads. */
  #quietMs = 0;
  #unseenBytes = 0;
  #heard = false;
  #ended = false;
  /** What came does not follow the protocol, so nothing after it can be understood. */
  #broken = false;
  #failure: NostosError | undefined;
  #closed = false;
  #outgoing: Outgoing[] = [];
  #writing = false;
  #writeTimer: NodeJS.Timeout | undefined;
  #halfOpenTimer: NodeJS.Timeout | undefined;

  /** Of a connected socket, from which nothing was read yet; with the intake that it was made with, if any. */
  constructor(socket: Socket, options: ByteStreamOptions = {}, intake?: Intake) {
    this.#socket = socket;
    this.peer = formatAddress({ host: plainIp(socket.remoteAddress ?? 'unknown'), port: socket.remotePort ?? 0 });
    this.peerNode = options.peerNode;
    this.#receiveBufferBytes = options.receiveBufferBytes ?? DEFAULT_LIMITS.receiveBufferBytes;
    this.#readAheadBytes = this.#receiveBufferBytes;
    this.#writeTimeoutMs = options.writeTimeoutMs ?? DEFAULT_LIMITS.writeTimeoutMs;
    this.#idleTimeoutMs = options.idleTimeoutMs ?? Infinity;
    this.#halfOpenTimeoutMs = options.halfOpenTimeoutMs ?? DEFAULT_LIMITS.halfOpenTimeoutMs;
    socket.setNoDelay(true);
    socket.setKeepAlive(true, 30_000);
    if (intake === undefined) socket.on('data', (chunk: Buffer) => this.#arrived(chunk));
    else intake.attach((chunk) => this.#arrived(chunk));
    socket.on('end', () => this.#end());
    socket.on('error', (error) => this.fail(connectionError(error, this.peer)));
    socket.on('close', () => {
      this.#gone.resolve();
      // After an end in good order, what was received can still be read.
      if (!this.#ended) this.fail(this.#closedByPeer());
    });
    if (socket.readableEnded) this.#end();
    if (socket.destroyed) this.fail(this.#closedByPeer());
  }

  /** Nobody has closed it, neither side, and it did not fail. */
  get isOpen(): boolean {
    return !this.#closed && !this.#ended && this.#failure === undefined;
  }

  /**
   * Aborted once there is no peer to work for: closed, failed, or the peer has ended and all it sent was read. Where it
   * may have ended its own side only, that is once it takes nothing either.
   */
  get lost(): AbortSignal {
    return this.#lost.signal;
  }

  /** Resolves when the socket is gone. */
  get gone(): Promise<void> {
    return this.#gone.promise;
  }

  /** For a peer of whom no more than this is wanted: it is read ahead at most so far, and never past `receiveBufferBytes`. */
  limitReadAhead(bytes: number): void {
    this.#readAheadBytes = Math.max(1, Math.min(bytes, this.#receiveBufferBytes));
  }

  /** The next message as `parser` cuts it; null when it was not whole in time. One read at a time. */
  async read<T>(parser: Parser<T>, { timeoutMs, signal }: ReadOptions): Promise<T | null> {
    signal?.throwIfAborted();
    if (this.#closed) throw this.#closedByUs();
    if (this.#waiter !== undefined)
      throw new NostosError('INVALID_ARGUMENT', `${this.peer}: a channel is received from by one caller at a time`);
    const ready = this.#parse(parser);
    if (ready !== undefined) return ready;
    const end = this.#endOf(parser);
    if (end !== undefined) throw end;
    return this.#wait(parser, timeoutMs, signal);
  }

  /** The next `count` bytes; null when they were not all there in time. */
  async readExactly(count: number, options: ReadOptions): Promise<Uint8Array | null> {
    return this.read({ next: (queue) => queue.take(count), inside: (queue) => queue.bytes > 0 }, options);
  }

  /** Writes the pieces in order; resolves when the system has taken them, so that their memory may be used again. */
  async write(pieces: readonly Uint8Array[]): Promise<void> {
    if (this.#closed) throw this.#closedByUs();
    if (this.#failure !== undefined) throw this.#failure;
    // Without half-open sockets ours has ended with the peer's.
    if (this.#socket.writableEnded) throw this.#closedByPeer();
    const parts = pieces.filter((piece) => piece.length > 0);
    if (parts.length === 0) return;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const last = parts.length - 1;
    for (const [index, bytes] of parts.entries())
      this.#outgoing.push({
        bytes,
        sent: index === last ? resolve : undefined,
        failed: index === last ? reject : undefined,
      });
    this.#pump();
    await promise;
  }

  /** May be called more than once. What was written still leaves, what was not read is gone. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#queue.clear();
    this.#waiter?.fail(this.#closedByUs());
    clearTimeout(this.#halfOpenTimer);
    this.#lost.abort(this.#closedByUs());
    // A peer that waits for us to read would not take what is still to leave.
    this.#socket.resume();
    this.#pump();
  }

  /** Ends it at once, with this as what readers and writers get. */
  fail(error: NostosError): void {
    this.#socket.destroy();
    this.#over(error);
  }

  #over(error: NostosError): void {
    this.#failure ??= error;
    clearTimeout(this.#writeTimer);
    clearTimeout(this.#halfOpenTimer);
    this.#lost.abort(this.#failure);
    this.#waiter?.attempt();
    for (const { failed } of this.#outgoing.splice(0)) failed?.(this.#failure);
  }

  #arrived(chunk: Uint8Array): void {
    if (this.#closed || this.#broken) return;
    this.#heard = true;
    this.#queue.push(chunk);
    this.#unseenBytes += chunk.length;
    if (this.#unseenBytes >= PROGRESS_BYTES) this.#alive();
    this.#waiter?.attempt();
    const held = this.#waiter === undefined ? this.#queue.bytes : this.#queue.readAhead;
    if (held >= this.#readAheadBytes) this.#socket.pause();
  }

  #end(): void {
    this.#ended = true;
    if (this.#waiter !== undefined) this.#waiter.attempt();
    else this.#drained();
  }

  /** The peer has ended, and what it sent may all be read. */
  #drained(): void {
    if (!this.#ended || this.#queue.bytes > 0 || this.#halfOpenTimer !== undefined) return;
    const abort = (): void => this.#lost.abort(this.#closedByPeer());
    if (!this.#socket.allowHalfOpen) abort();
    else if (!this.#lost.signal.aborted) this.#halfOpenTimer = startTimer(this.#halfOpenTimeoutMs, abort)?.unref();
  }

  #parse<T>(parser: Parser<T>): T | undefined {
    if (this.#broken) return undefined;
    let message: T | undefined;
    try {
      message = parser.next(this.#queue);
    } catch (error) {
      this.#broken = true;
      this.#queue.clear();
      this.#over(error as NostosError);
      this.#linger();
      throw error;
    }
    if (message !== undefined) this.#quietMs = this.#unseenBytes = 0;
    this.#drained();
    if (this.#socket.isPaused() && this.#queue.readAhead < this.#readAheadBytes / 2) this.#socket.resume();
    return message;
  }

  /** Why nothing more comes, where that is so. */
  #endOf<T>(parser: Parser<T>): NostosError | undefined {
    if (!this.#ended && this.#failure === undefined) return undefined;
    if (parser.inside(this.#queue) && (this.#failure === undefined || this.#failure.code === 'CHANNEL_CLOSED'))
      return new NostosError('NETWORK_FAILED', `${this.peer} closed the connection in the middle of a message`, {
        cause: this.#failure,
      });
    return this.#failure ?? this.#closedByPeer();
  }

  #wait<T>(parser: Parser<T>, timeoutMs: number, signal: AbortSignal | undefined): Promise<T | null> {
    const { promise, resolve, reject } = Promise.withResolvers<T | null>();
    let sinceMs = performance.now();
    let idle: NodeJS.Timeout | undefined;
    const over = (): void => {
      this.#waiter = undefined;
      clearTimeout(deadline);
      clearTimeout(idle);
      signal?.removeEventListener('abort', cancelled);
    };
    const fail = (error: unknown): void => {
      over();
      // oxlint-disable-next-line typescript/prefer-promise-reject-errors -- the reason of a signal is the caller's
      reject(error);
    };
    const giveUp = (): void => {
      this.#quietMs += performance.now() - sinceMs;
      parser.pause?.(this.#queue);
      over();
    };
    const cancelled = (): void => {
      giveUp();
      fail(signal!.reason);
    };
    const deadline = startTimer(timeoutMs, () => {
      giveUp();
      resolve(null);
    });
    const watchIdle = (): void => {
      clearTimeout(idle);
      sinceMs = performance.now();
      idle = startTimer(this.#idleTimeoutMs - this.#quietMs, () =>
        this.fail(
          new NostosError(
            'NETWORK_TIMEOUT',
            `${this.peer} sent nothing for ${this.#idleTimeoutMs} ms; the connection is given up`,
          ),
        ),
      );
    };
    const attempt = (): void => {
      try {
        const message = this.#parse(parser);
        const end = message === undefined ? this.#endOf(parser) : undefined;
        if (message !== undefined) over();
        if (message !== undefined) resolve(message);
        else if (end !== undefined) fail(end);
      } catch (error) {
        fail(error);
      }
    };
    watchIdle();
    signal?.addEventListener('abort', cancelled, { once: true });
    this.#waiter = { attempt, fail, alive: watchIdle };
    return promise;
  }

  /** The peer has done something: it is waited for anew. */
  #alive(): void {
    this.#quietMs = this.#unseenBytes = 0;
    this.#waiter?.alive();
  }

  #pump(): void {
    if (this.#writing || this.#failure !== undefined) return;
    const batch: Outgoing[] = [];
    let bytes = 0;
    while (bytes < WRITE_BATCH_BYTES && this.#outgoing.length > 0) {
      const next = this.#outgoing[0]!;
      const room = WRITE_BATCH_BYTES - bytes;
      if (next.bytes.length > room) {
        batch.push({ bytes: next.bytes.subarray(0, room), sent: undefined, failed: undefined });
        this.#outgoing[0] = { ...next, bytes: next.bytes.subarray(room) };
      } else batch.push(this.#outgoing.shift()!);
      bytes += batch.at(-1)!.bytes.length;
    }
    if (batch.length > 0) this.#write(batch);
    else if (this.#closed) this.#linger();
  }

  #write(batch: readonly Outgoing[]): void {
    this.#writing = true;
    this.#watchWrite();
    this.#socket.cork();
    for (const { bytes } of batch.slice(0, -1)) this.#socket.write(bytes);
    this.#socket.write(batch.at(-1)!.bytes, (error) => {
      this.#writing = false;
      if (error) {
        this.fail(connectionError(error, this.peer));
        for (const { failed } of batch) failed?.(this.#failure!);
        return;
      }
      this.#alive();
      this.#halfOpenTimer?.refresh();
      for (const { sent } of batch) sent?.();
      this.#pump();
    });
    this.#socket.uncork();
  }

  #watchWrite(): void {
    if (this.#writeTimer !== undefined) {
      this.#writeTimer.refresh();
      return;
    }
    this.#writeTimer = startTimer(this.#writeTimeoutMs, () => {
      this.#writeTimer = undefined;
      if (!this.#writing) return;
      this.fail(
        new NostosError(
          'NETWORK_TIMEOUT',
          `${this.peer} did not take what was sent for ${this.#writeTimeoutMs} ms; the connection is given up`,
        ),
      );
    });
    this.#writeTimer?.unref();
  }

  #linger(): void {
    clearTimeout(this.#writeTimer);
    if (this.#socket.destroyed) return;
    this.#socket.resume().end();
    const timer = setTimeout(() => this.#socket.destroy(), LINGER_MS);
    this.#socket.once('close', () => clearTimeout(timer));
  }

  #closedByUs(): NostosError {
    return new NostosError('CHANNEL_CLOSED', `the channel to ${this.peer} was closed on this side; connect again`);
  }

  #closedByPeer(): NostosError {
    const why = this.#heard ? '' : ' and sent nothing; it may not have this service, or not let this side in';
    return new NostosError('CHANNEL_CLOSED', `${this.peer} closed the connection${why}`);
  }
}

/** Undefined where the wait has no end. */
export function startTimer(ms: number, fire: () => void): NodeJS.Timeout | undefined {
  return ms === Infinity ? undefined : setTimeout(fire, Math.min(Math.max(ms, 0), TIMER_MAX_MS));
}

/** What an error of a socket means to us. */
export function connectionError(error: Error, peer: string): NostosError {
  const code = (error as NodeJS.ErrnoException).code ?? '';
  if (error instanceof NostosError) return error;
  if (code === 'ECONNRESET' || code === 'EPIPE' || code.startsWith('ERR_STREAM_'))
    return new NostosError('CHANNEL_CLOSED', `${peer} closed the connection`, { cause: error });
  if (/^ERR_(?:SSL|TLS)_/.test(code)) {
    const { reason = error.message } = error as { reason?: string };
    return new NostosError('PEER_REFUSED', `${peer} and this side do not agree on TLS: ${reason}`, {
      cause: error,
      details: { peer, reason: code },
    });
  }
  // Where a name has several addresses, each of them failed.
  const each = error instanceof AggregateError ? error.errors.map((one: Error) => one.message) : [error.message];
  const next =
    code === 'ECONNREFUSED'
      ? '; nobody listens there: start the node with nostos serve --listen, or check the address'
      : '';
  return new NostosError(
    code === 'ETIMEDOUT' ? 'NETWORK_TIMEOUT' : 'NETWORK_FAILED',
    `${peer}: ${each.join('; ')}${next}`,
    {
      cause: error,
    },
  );
}
