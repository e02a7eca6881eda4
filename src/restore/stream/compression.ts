/**
 * Whether data frames are compressed. Each of them leaves as it is or as one zstd frame. With `auto`, a channel first
 * sends as it is, to learn the rate of the link; then a sample of each few frames says what compressing takes and saves.
 * A link that does not make us wait is faster than we are, and nothing is worth compressing for it.
 */
import { promisify } from 'node:util';
import { constants, zstdCompress, zstdDecompress } from 'node:zlib';
import type { Timers } from './timers.ts';

const compress = promisify(zstdCompress);
const decompress = promisify(zstdDecompress);

const LEVEL = { params: { [constants.ZSTD_c_compressionLevel]: 1 } };
/** Frames between two samples, and before the first one. */
const SAMPLE_EVERY = 16;
const SAMPLE_FIRST = 4;
/** Below this a frame is all header. */
const COMPRESSED_BYTES_MIN = 4096;

export type CompressionMode = 'auto' | 'on' | 'off';

export interface CompressionSample {
  readonly linkBytesPerSecond: number;
  readonly compressBytesPerSecond: number;
  /** Compressed size / size. */
  readonly ratio: number;
}

/** Compressing and sending less must take less time than sending all, by more than the noise of the measurement. */
export function compressionPays({ linkBytesPerSecond, compressBytesPerSecond, ratio }: CompressionSample): boolean {
  return 1 / compressBytesPerSecond + ratio / linkBytesPerSecond < 0.9 / linkBytesPerSecond;
}

/** What one session knows about its link; its channels share it. */
export class LinkMeter {
  #bytes = 0;
  #waitedMs = 0;
  #channels = 0;

  opened(): void {
    this.#channels += 1;
  }

  closed(): void {
    this.#channels -= 1;
  }

  sent(bytes: number, waitedMs: number): void {
    this.#bytes += bytes;
    this.#waitedMs += waitedMs;
    // The past fades, since links change.
    if (this.#bytes < 64 * 1024 * 1024) return;
    this.#bytes /= 2;
    this.#waitedMs /= 2;
  }

  /** Bytes per second that the link takes while all channels wait for it. */
  get bytesPerSecond(): number {
    return (this.#bytes / (this.#waitedMs / Math.max(1, this.#channels))) * 1000;
  }
}

/** Decides for one channel, frame by frame. */
export class Compressor {
  readonly #mode: CompressionMode;
  readonly #link: LinkMeter;
  readonly #timers: Timers;
  #frames = 0;
  #pays = false;

  constructor(mode: CompressionMode, link: LinkMeter, timers: Timers) {
    this.#mode = mode;
    this.#link = link;
    this.#timers = timers;
  }

  /** The compressed form where it is to be sent; undefined where the data is to be sent as it is. */
  async compress(data: Uint8Array): Promise<Uint8Array | undefined> {
    if (this.#mode === 'off' || data.length < COMPRESSED_BYTES_MIN) return undefined;
    this.#frames += 1;
    const sampling = this.#mode === 'auto' && this.#frames % SAMPLE_EVERY === SAMPLE_FIRST;
    if (this.#mode === 'auto' && !sampling && !this.#pays) return undefined;
    const linkBytesPerSecond = this.#link.bytesPerSecond;
    const sample = sampling && !this.#pays ? data.subarray(0, data.length >> 2) : data;
    const startedMs = this.#timers.monotonicMs();
    const compressed = await compress(sample, LEVEL);
    const elapsedMs = Math.max(0.01, this.#timers.monotonicMs() - startedMs);
    const ratio = compressed.length / sample.length;
    if (this.#mode === 'auto') {
      const compressBytesPerSecond = (sample.length / elapsedMs) * 1000;
      this.#pays = compressionPays({ linkBytesPerSecond, compressBytesPerSecond, ratio });
    }
    return sample === data && ratio < 0.95 ? compressed : undefined;
  }
}

/** Throws where the result would be longer than announced, before it is. */
export async function decompressTo(data: Uint8Array, bytes: number): Promise<Uint8Array> {
  const result = await decompress(data, { maxOutputLength: bytes });
  if (result.length !== bytes) throw new RangeError(`${result.length} bytes instead of ${bytes}`);
  return result;
}
