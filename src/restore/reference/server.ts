/**
 * Serves the log files of a directory in both protocols: over raw TCP by itself (`start`), and as the service RESTORE of
 * a dispatcher (`handle`). It needs no Nostos store: whatever `*.ndb` lies there is sent as it is.
 *
 * What is announced is sent, or the connection is cut: a client never takes one file's bytes for another's. The peer
 * learns nothing but that the connection ended, as the protocols have it; this side's error goes to `onError` or, in
 * `handle`, to the dispatcher.
 */
import { crc32 } from 'node:zlib';
import { NostosError, isNostosError } from '../../base/errors.ts';
import { startTimer, type ByteStream } from '../../wire/byte-stream.ts';
import type { Channel, ServiceContext, ServiceHandler } from '../../wire/channel.ts';
import type { ServerTls } from '../../wire/listener.ts';
import { Listener, tell } from '../../wire/listener.ts';
import { COUNT_BYTES, bodyBytes, decodeU32, encodeCount, encodeCrc, encodeFileHeader } from './body.ts';
import type { ServedFile, ServedLog } from './served-files.ts';
import { ServedFiles, listLogFiles, readWholeFile } from './served-files.ts';
import type { Trailer } from './types.ts';
import { RESTORE_LIMITS, RESTORE_MAGIC, RESTORE_SERVICE_NAME } from './types.ts';

const CHUNK_BYTES = 256 * 1024;

/** Limits have their defaults in `RESTORE_LIMITS` and, for connections, in `base/limits.ts`. */
export interface NetworkRestoreServerOptions {
  /** `crc32` by default. */
  readonly trailer?: Trailer;
  /** For `start`. Without it, it binds to loopback only. */
  readonly tls?: ServerTls;
  readonly requestTimeoutMs?: number;
  readonly writeTimeoutMs?: number;
  readonly sessionsMax?: number;
  readonly openFilesMax?: number;
  readonly framesMax?: number;
  readonly frameTimeoutMs?: number;
  readonly frameBytesMax?: number;
  /** Of a log that is written to: how much of it may be sent. Without it all that lies in the directory is. */
  readonly openLog?: () => Promise<ServedLog>;
  /** What a raw session ended with, a client that asked wrongly included. */
  readonly onError?: (error: unknown, where: { readonly peer: string }) => void;
}

export class NetworkRestoreServer implements ServiceHandler, AsyncDisposable {
  readonly serviceName = RESTORE_SERVICE_NAME;
  /** A request is four bytes; a later version of the reference may add to them. */
  readonly requestBytesMax = 4096;
  readonly #dir: string;
  readonly #options: NetworkRestoreServerOptions;
  readonly #limits: Readonly<Record<keyof typeof RESTORE_LIMITS, number>>;
  readonly #sessions = new Set<Promise<void>>();
  #listener: Listener | undefined;
  #stopped = new AbortController();
  #frames = 0;

  constructor(envHome: string, options: NetworkRestoreServerOptions = {}) {
    this.#dir = envHome;
    this.#options = options;
    const given = Object.entries(options).filter(([name, value]) => name in RESTORE_LIMITS && value !== undefined);
    this.#limits = { ...RESTORE_LIMITS, ...Object.fromEntries(given) };
  }

  /** Serves raw TCP; resolves with the bound `host:port`. */
  async start(addr: string): Promise<string> {
    if (this.#listener !== undefined)
      throw new NostosError('RESTORE_STATE', `the restore server listens on ${this.#listener.address} already`);
    const { tls, writeTimeoutMs, onError } = this.#options;
    const listener = new Listener(
      addr,
      {
        tls,
        writeTimeoutMs,
        peerConnectionsMax: this.#limits.sessionsMax,
        connectionsPerAddressMax: this.#limits.sessionsMax,
        halfOpen: true,
        onRefused: (error) => onError?.(error, { peer: String(error.details['peer']) }),
      },
      (stream) => this.#accept(stream),
    );
    this.#listener = listener;
    this.#stopped = new AbortController();
    try {
      return await listener.start();
    } catch (error) {
      this.#listener = undefined;
      throw error;
    }
  }

  /** Frees the port and ends the sessions. May be called more than once. */
  async stop(): Promise<void> {
    this.#stopped.abort(new NostosError('CLOSED', 'the restore server was stopped'));
    this.#listener?.destroy();
    await Promise.all(this.#sessions);
    this.#listener = undefined;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }

  isRunning(): boolean {
    return this.#listener?.isListening === true;
  }

  /** One restore through a dispatcher. Everything must fit into one frame, which is seen before anything is sent. */
  async handle(channel: Channel, { signal }: ServiceContext): Promise<void> {
    const { requestTimeoutMs, framesMax, frameTimeoutMs } = this.#limits;
    const request = await channel.receive(requestTimeoutMs, { signal });
    if (request === null) throw late(channel.peer, requestTimeoutMs);
    if (request.length < COUNT_BYTES || decodeU32(request) !== RESTORE_MAGIC) throw badMagic(channel.peer, request);
    if (this.#frames >= framesMax)
      throw new NostosError(
        'QUEUE_FULL',
        `${channel.peer} is refused: ${framesMax} restores through the dispatcher run, the limit of framesMax`,
      );
    this.#frames += 1;
    try {
      const body = await this.#wholeBody(signal);
      await within(frameTimeoutMs, channel, channel.send(...body));
    } finally {
      this.#frames -= 1;
    }
  }

  async #wholeBody(signal: AbortSignal): Promise<Uint8Array[]> {
    const { trailer = 'crc32' } = this.#options;
    const { frameBytesMax } = this.#limits;
    await using log = await this.#options.openLog?.();
    const listed = await listLogFiles(this.#dir, log?.sizeOf);
    const neededBytes = bodyBytes(listed, trailer);
    if (neededBytes > frameBytesMax)
      throw new NostosError(
        'FRAME_TOO_LARGE',
        `the ${listed.length} files of ${this.#dir} need ${neededBytes} bytes, and a restore through the dispatcher is one frame of at most ${frameBytesMax}; let the client use raw TCP or the streaming service`,
        { details: { files: listed.length, neededBytes, frameBytesMax } },
      );
    const pieces: Uint8Array[] = [];
    let [files, leftBytes] = [0, frameBytesMax - COUNT_BYTES];
    for (const { name } of listed) {
      signal.throwIfAborted();
      const bytes = await readWholeFile(this.#dir, name, { bytesMax: leftBytes, upTo: log?.sizeOf(name) });
      if (bytes === undefined) continue;
      pieces.push(encodeFileHeader(name, bytes.length), bytes);
      if (trailer === 'crc32') pieces.push(encodeCrc(crc32(bytes)));
      leftBytes -= bodyBytes([{ name, bytes: bytes.length }], trailer) - COUNT_BYTES;
      files += 1;
    }
    return [encodeCount(files), ...pieces];
  }

  #accept(stream: ByteStream): void {
    const session = this.#session(stream).finally(() => this.#sessions.delete(session));
    this.#sessions.add(session);
  }

  async #session(stream: ByteStream): Promise<void> {
    const { requestTimeoutMs, openFilesMax } = this.#limits;
    const { signal } = this.#stopped;
    try {
      const request = await stream.readExactly(COUNT_BYTES, { timeoutMs: requestTimeoutMs, signal });
      if (request === null) throw late(stream.peer, requestTimeoutMs);
      if (decodeU32(request) !== RESTORE_MAGIC) throw badMagic(stream.peer, request);
      await using log = await this.#options.openLog?.();
      await using files = await ServedFiles.open(this.#dir, openFilesMax, log?.sizeOf);
      await stream.write([encodeCount(files.count)]);
      for (let file = await files.next(); file !== undefined; file = await files.next())
        await this.#sendFile(stream, file);
      stream.close();
    } catch (error) {
      // At once: what was promised will not come, and an orderly end could be taken for one.
      stream.fail(
        isNostosError(error) ? error : new NostosError('INTERNAL', 'a restore session failed', { cause: error }),
      );
      if (!signal.aborted) tell(() => this.#options.onError?.(error, { peer: stream.peer }));
    }
  }

  /** One chunk is read while the one before it is on its way. */
  async #sendFile(stream: ByteStream, file: ServedFile): Promise<void> {
    const { trailer = 'crc32' } = this.#options;
    const buffers = [0, 1].map(() => new Uint8Array(Math.min(CHUNK_BYTES, file.bytes)));
    let sent = stream.write([encodeFileHeader(file.name, file.bytes)]);
    let crc = 0;
    for (let at = 0, turn = 0; at < file.bytes; at += CHUNK_BYTES, turn = 1 - turn) {
      const chunk = buffers[turn]!.subarray(0, file.bytes - at);
      await Promise.all([file.read(chunk, at), sent]);
      this.#stopped.signal.throwIfAborted();
      if (trailer === 'crc32') crc = crc32(chunk, crc);
      sent = stream.write([chunk]);
    }
    await sent;
    if (trailer === 'crc32') await stream.write([encodeCrc(crc)]);
  }
}

/** A client that takes its frame in drips would keep others from theirs for hours: it is cut off, which it sees. */
async function within(timeoutMs: number, channel: Channel, sending: Promise<void>): Promise<void> {
  const { promise, reject } = Promise.withResolvers<never>();
  const error = new NostosError(
    'NETWORK_TIMEOUT',
    `${channel.peer} did not take its frame within ${timeoutMs} ms; it is cut off, so that others are served`,
  );
  const timer = startTimer(timeoutMs, () => reject(error));
  try {
    await Promise.race([sending, promise]);
  } finally {
    clearTimeout(timer);
    sending.catch(() => {}); // it fails when the channel closes
  }
}

function late(peer: string, timeoutMs: number): NostosError {
  return new NostosError('NETWORK_TIMEOUT', `${peer} connected for a restore and did not ask within ${timeoutMs} ms`);
}

function badMagic(peer: string, request: Uint8Array): NostosError {
  return new NostosError(
    'PROTOCOL_ERROR',
    `${peer} asked for a restore with ${Buffer.from(request.subarray(0, 16)).toString('hex') || 'nothing'} (hex), not with the magic`,
  );
}
