/**
 * The two protocols from the client's side, up to the point where everything is staged. Both send the same body; in the
 * dispatcher's it is one frame, which is parsed while it arrives: neither holds more than a chunk in memory.
 */
import type { Clock } from '../../base/clock.ts';
import { NostosError, isNostosError } from '../../base/errors.ts';
import { yieldToEventLoop } from '../../base/event-loop.ts';
import type { ByteStream, Parser } from '../../wire/byte-stream.ts';
import { FRAME_HEADER_BYTES, encodeFrameHeader } from '../../wire/frame.ts';
import { encodePreamble } from '../../wire/preamble.ts';
import type { BodyEvent, BodyOptions } from './body.ts';
import { BodyParser, COUNT_BYTES, decodeU32, encodeMagic } from './body.ts';
import type { StagedRestore } from './local-directory.ts';
import type { RestoreEvent } from './types.ts';
import { RESTORE_SERVICE_NAME } from './types.ts';

const CHUNK_BYTES = 256 * 1024;

export type Protocol = 'raw' | 'dispatcher';

export interface FetchOptions extends Omit<BodyOptions, 'bodyBytes'> {
  readonly frameBytesMax: number;
  readonly stallTimeoutMs: number;
  readonly progressBytesMin: number;
  readonly signal: AbortSignal;
  readonly onEvent: (event: RestoreEvent) => void;
}

export interface FetchDeps {
  readonly stream: ByteStream;
  readonly staged: StagedRestore;
  readonly clock: Clock;
}

export async function fetchFiles(deps: FetchDeps, protocol: Protocol, options: FetchOptions): Promise<void> {
  const { stream } = deps;
  if (protocol === 'raw') {
    await stream.write([encodeMagic()]);
    const before = options.onEvent;
    let answered = false;
    const onEvent = (event: RestoreEvent): void => {
      answered = true;
      before(event);
    };
    return receiveBody(deps, { ...options, onEvent }, undefined).catch((error: unknown) => {
      throw answered || !isNostosError(error, 'NETWORK_FAILED') ? error : noRawAnswer(stream.peer, error);
    });
  }
  await stream.write([encodePreamble(RESTORE_SERVICE_NAME), encodeFrameHeader(COUNT_BYTES), encodeMagic()]);
  return receiveBody(deps, options, await receiveFrameHeader(stream, options));
}

async function receiveFrameHeader(stream: ByteStream, options: FetchOptions): Promise<number> {
  const { stallTimeoutMs: timeoutMs, frameBytesMax, signal } = options;
  const header = await stream.readExactly(FRAME_HEADER_BYTES, { timeoutMs, signal }).catch((error: unknown) => {
    throw isNostosError(error, 'CHANNEL_CLOSED') ? closedWithoutAnswer(stream.peer, error) : error;
  });
  if (header === null)
    throw new NostosError('NETWORK_TIMEOUT', `empty restore payload: ${stream.peer} sent nothing in ${timeoutMs} ms`);
  const bytes = decodeU32(header);
  if (bytes >= COUNT_BYTES && bytes <= frameBytesMax) return bytes;
  const [problem, limit] = bytes < COUNT_BYTES ? ['too small', COUNT_BYTES] : ['too large', frameBytesMax];
  throw new NostosError(
    'PROTOCOL_ERROR',
    `frame payload ${problem}: ${stream.peer} announced ${bytes} bytes, the limit is ${limit}; nothing was changed`,
    { details: { bytes, limit } },
  );
}

async function receiveBody(deps: FetchDeps, options: FetchOptions, frameBytes: number | undefined): Promise<void> {
  const { stream, staged } = deps;
  const { trailer, names, filesMax, bytesMax, signal } = options;
  const frame = frameBytes === undefined ? {} : { bodyBytes: frameBytes };
  const parser = new BodyParser({ trailer, names, filesMax, bytesMax, ...frame });
  const receiver = new PatientReceiver(deps, options);
  let left = frameBytes ?? Infinity;
  const stage = stager(staged, options.onEvent);
  while (!parser.done) {
    const chunk = left === 0 ? undefined : await receiver.next();
    if (chunk === undefined) return parser.finish(stream.peer);
    for (const event of parser.push(chunk.subarray(0, left))) {
      stage(event);
      // Each whole file was synced: timers and signals have their turn in between.
      if (event.kind === 'file-end') await yieldToEventLoop();
      signal.throwIfAborted();
    }
    left -= Math.min(left, chunk.length);
  }
}

function stager(staged: StagedRestore, onEvent: (event: RestoreEvent) => void): (event: BodyEvent) => void {
  let current = { name: '', bytes: 0 };
  let received = 0;
  return (event) => {
    switch (event.kind) {
      case 'start':
        return onEvent({ kind: 'started', files: event.files });
      case 'file':
        current = { name: event.name, bytes: event.bytes };
        received = 0;
        staged.start(event.name, event.bytes);
        return onEvent({ ...current, kind: 'file-started' });
      case 'data':
        staged.write(event.bytes);
        received += event.bytes.length;
        return onEvent({ ...current, kind: 'bytes', received });
      case 'file-end':
        return onEvent({ kind: 'file-received', ...staged.end() });
      case 'end':
        return undefined;
      default:
        return event satisfies never;
    }
  };
}

/** Chunks as they come, each in the memory of the one before, as long as enough of them come. Only time that was spent waiting counts: our disk may be slow. */
class PatientReceiver {
  readonly #stream: ByteStream;
  readonly #clock: Clock;
  readonly #options: FetchOptions;
  readonly #chunks: Parser<Uint8Array>;
  #waitedMs = 0;
  #bytes = 0;

  constructor({ stream, clock }: FetchDeps, options: FetchOptions) {
    this.#stream = stream;
    this.#clock = clock;
    this.#options = options;
    const buffer = new Uint8Array(CHUNK_BYTES);
    this.#chunks = {
      next: (queue) => (queue.bytes === 0 ? undefined : queue.take(Math.min(queue.bytes, CHUNK_BYTES), buffer)),
      inside: () => false,
    };
  }

  /** Undefined when the source has ended the connection. */
  async next(): Promise<Uint8Array | undefined> {
    const { stallTimeoutMs, progressBytesMin, signal } = this.#options;
    const startedMs = this.#clock.monotonicMs();
    const timeoutMs = Math.max(0, stallTimeoutMs - this.#waitedMs);
    const chunk = await this.#stream.read(this.#chunks, { timeoutMs, signal }).catch((error: unknown) => {
      if (isNostosError(error, 'CHANNEL_CLOSED')) return undefined;
      throw error;
    });
    this.#waitedMs += this.#clock.monotonicMs() - startedMs;
    if (chunk === null)
      throw new NostosError(
        'NETWORK_TIMEOUT',
        `${this.#stream.peer} sent ${this.#bytes} bytes in ${stallTimeoutMs} ms, at least ${progressBytesMin} were expected; restore from another source, or raise stallTimeoutMs`,
        { details: { bytes: this.#bytes, stallTimeoutMs, progressBytesMin } },
      );
    this.#bytes += chunk?.length ?? 0;
    if (this.#bytes >= progressBytesMin) this.#bytes = this.#waitedMs = 0;
    return chunk;
  }
}

function noRawAnswer(peer: string, cause: NostosError): NostosError {
  return new NostosError(
    'NETWORK_FAILED',
    `${cause.message}. Where ${peer} is a dispatcher, as that of nostos serve --listen, use executeViaDispatcher()`,
    { cause, details: cause.details },
  );
}

function closedWithoutAnswer(peer: string, cause: unknown): NostosError {
  return new NostosError(
    'NETWORK_FAILED',
    `${peer} closed the connection without an answer: it has no service ${RESTORE_SERVICE_NAME}, refuses this client, serves too many, or its files do not fit into one frame; its own log says which`,
    { cause },
  );
}
