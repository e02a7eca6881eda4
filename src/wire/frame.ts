/**
 * A frame is a u32 little-endian length and so many bytes of payload; an empty one is allowed. The length is checked
 * before anything is allocated.
 */
import { NostosError } from '../base/errors.ts';
import type { ByteQueue } from './byte-queue.ts';

export const FRAME_HEADER_BYTES = 4;

export function encodeFrameHeader(payloadBytes: number): Uint8Array {
  const header = new Uint8Array(FRAME_HEADER_BYTES);
  new DataView(header.buffer).setUint32(0, payloadBytes, true);
  return header;
}

/** Cuts frames from a queue of bytes, however they were cut on the way. */
export class FrameDecoder {
  readonly #payloadBytesMax: number;
  #payloadBytes: number | undefined;

  constructor(payloadBytesMax: number) {
    this.#payloadBytesMax = payloadBytesMax;
  }

  /** True between the prefix of a frame and the end of its payload. */
  get insidePayload(): boolean {
    return this.#payloadBytes !== undefined;
  }

  /** The next payload, put `into` this memory where it fits in; undefined while it is not whole. */
  next(queue: ByteQueue, into?: Uint8Array): Uint8Array | undefined {
    if (this.#payloadBytes === undefined) {
      const payloadBytes = queue.takeU32();
      if (payloadBytes === undefined) return undefined;
      if (payloadBytes > this.#payloadBytesMax)
        throw new NostosError(
          'PROTOCOL_ERROR',
          `a peer announced a frame of ${payloadBytes} bytes, more than the ${this.#payloadBytesMax} allowed; the connection is given up`,
          { details: { payloadBytes, payloadBytesMax: this.#payloadBytesMax } },
        );
      this.#payloadBytes = payloadBytes;
    }
    const payload = queue.take(this.#payloadBytes, into);
    if (payload !== undefined) this.#payloadBytes = undefined;
    return payload;
  }
}
