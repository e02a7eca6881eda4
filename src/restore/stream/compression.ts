/**
 * Whether data frames are compressed. Each of them leaves as it is or as one zstd frame. With `auto`, a channel first
 * sends as it is, to learn the rate of the link; then a sample now and then says what compressing takes and saves.
 * A link that does not make us wait is faster than we are, and nothing is worth compressing for it.
 */
import { promisify } from 'node:util';
import { constants, zstdCompress, zstdDecompress } from 'node:zlib';
import type { Timers } from './timers.ts';

const compress = promisify(zstdCompress);
const decompress = promisify(zstdDecompress);

const LEVEL = { params: { [constants.ZSTD_c_compressionLevel]: 1 } };
/** Frames before the first sample; each one that says no doubles what comes before the next. */
const SAMPLE_FIRST = 4;
const SAMPLE_EVERY_MAX = 512;
const SAMPLE_BYTES = 64 * 1024;
/** No link that is faster than this is slower than compressing: not worth a sample. */
const COMPRESS_BYTES_PER_SECOND_MAX = 500e6;
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
  #pays: boolean;
  #untilSample = SAMPLE_FIRST;
  #sampleEvery = SAMPLE_FIRST;

  constructor(mode: CompressionMode, link: LinkMeter, timers: Timers) {
    this.#mode = mode;
    this.#link = link;
    this.#timers = timers;
    this.#pays = mode === 'on';
  }

  /** The compressed form where it is to be sent; undefined where the data is to be sent as it is. */
  async compress(data: Uint8Array): Promise<Uint8Array | undefined> {
    if (this.#mode === 'off' || data.length < COMPRESSED_BYTES_MIN) return undefined;
    if (this.#mode === 'auto' && (this.#untilSample -= 1) === 0) await this.#sample(data);
    if (!this.#pays) return undefined;
    const compressed = await compress(data, LEVEL);
    return compressed.length < 0.95 * data.length ? compressed : undefined;
  }

  async #sample(data: Uint8Array): Promise<void> {
    const linkBytesPerSecond = this.#link.bytesPerSecond;
    const wasPaying = this.#pays;
    this.#pays = false;
    if (linkBytesPerSecond < COMPRESS_BYTES_PER_SECOND_MAX) {
      const sample = data.subarray(0, SAMPLE_BYTES);
      const startedMs = this.#timers.monotonicMs();
      const { length } = await compress(sample, LEVEL);
      const elapsedMs = Math.max(0.01, this.#timers.monotonicMs() - startedMs);
      const compressBytesPerSecond = (sample.length / elapsedMs) * 1000;
      const ratio = length / sample.length;
      this.#pays = compressionPays({ linkBytesPerSecond, compressBytesPerSecond, ratio });
    }
    const same = this.#pays === wasPaying;
    this.#sampleEvery = same ? Math.min(SAMPLE_EVERY_MAX, 2 * this.#sampleEvery) : SAMPLE_FIRST;
    this.#untilSample = this.#sampleEvery;
  }
}

/** Throws where the result would be longer than announced, before it is. */
export async function decompressTo(data: Uint8Array, bytes: number): Promise<Uint8Array> {
  const result = await decompress(data, { maxOutputLength: bytes });
  if (result.length !== bytes) throw new RangeError(`${result.length} bytes instead of ${bytes}`);
  return result;
}
