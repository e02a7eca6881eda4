/** Buffers for data frames, used again: what the collector has not found yet would count as memory of a restore. */
import { PATCH_BYTES } from './limits.ts';

/** A data frame as large as a source of ours makes them; a larger one gets memory of its own. */
const BUFFER_BYTES = PATCH_BYTES + 16 * 1024;
/** Kept while nobody uses them: those of one restore. */
const KEPT_MAX = 16;

export class BufferPool {
  readonly #free: Buffer[] = [];

  take(): Buffer {
    return this.#free.pop() ?? Buffer.allocUnsafeSlow(BUFFER_BYTES);
  }

  give(buffers: readonly Buffer[]): void {
    this.#free.push(...buffers.slice(0, KEPT_MAX - this.#free.length));
  }
}
