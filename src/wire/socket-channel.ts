/**
 * Frames over a connection. How a connection ends shows where it ended: `CHANNEL_CLOSED` between two frames (a peer that
 * closed, or ended, with a reset or without), `NETWORK_FAILED` inside one, `PROTOCOL_ERROR` for a length beyond the limit.
 */
import { NostosError } from '../base/errors.ts';
import { DEFAULT_LIMITS } from '../base/limits.ts';
import type { ByteStream, Parser } from './byte-stream.ts';
import type { Channel, ReceiveOptions } from './channel.ts';
import { encodeFrameHeader, FRAME_HEADER_BYTES, FrameDecoder } from './frame.ts';

/** Frames up to this size are copied together, so that they leave in one piece. */
const COPY_BELOW_BYTES = 4096;

export interface SocketChannelOptions {
  readonly frameBytesMax?: number | undefined;
  /** Of the peer's frames, where they may not be as large. */
  readonly receiveBytesMax?: number | undefined;
}

export class SocketChannel implements Channel {
  readonly #stream: ByteStream;
  readonly #frameBytesMax: number;
  readonly #decoder: FrameDecoder;

  constructor(stream: ByteStream, options: SocketChannelOptions = {}) {
    this.#stream = stream;
    this.#frameBytesMax = options.frameBytesMax ?? DEFAULT_LIMITS.frameBytesMax;
    this.#decoder = new FrameDecoder(Math.min(options.receiveBytesMax ?? Infinity, this.#frameBytesMax));
  }

  get peer(): string {
    return this.#stream.peer;
  }

  get peerNode(): string | undefined {
    return this.#stream.peerNode;
  }

  get isOpen(): boolean {
    return this.#stream.isOpen;
  }

  async send(...pieces: readonly Uint8Array[]): Promise<void> {
    const bytes = pieces.reduce((sum, piece) => sum + piece.length, 0);
    if (bytes > this.#frameBytesMax)
      throw new NostosError(
        'FRAME_TOO_LARGE',
        `a frame of ${bytes} bytes is more than the ${this.#frameBytesMax} allowed; send it in parts, or raise frameBytesMax on both sides`,
        { details: { bytes, frameBytesMax: this.#frameBytesMax } },
      );
    const header = encodeFrameHeader(bytes);
    await this.#stream.write(bytes < COPY_BELOW_BYTES ? [join(header, pieces, bytes)] : [header, ...pieces]);
  }

  async receive(timeoutMs: number, options: ReceiveOptions = {}): Promise<Uint8Array | null> {
    if (!(timeoutMs >= 0))
      throw new NostosError('INVALID_ARGUMENT', `a timeout is a number of milliseconds, got ${timeoutMs}`);
    const { signal, into } = options;
    const decoder = this.#decoder;
    const frames: Parser<Uint8Array> = {
      next: (queue) => decoder.next(queue, into),
      inside: () => decoder.insidePayload,
      pause: (queue) => queue.own(),
    };
    return this.#stream.read(frames, { timeoutMs, signal });
  }

  close(): void {
    this.#stream.close();
  }
}

function join(header: Uint8Array, pieces: readonly Uint8Array[], bytes: number): Uint8Array {
  const frame = new Uint8Array(FRAME_HEADER_BYTES + bytes);
  frame.set(header);
  let offset = FRAME_HEADER_BYTES;
  for (const piece of pieces) {
    frame.set(piece, offset);
    offset += piece.length;
  }
  return frame;
}
