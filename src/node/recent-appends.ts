/**
 * The records that this node has appended last, for those who follow it: they need not be read back from the disk, nor wait
 * for it. A follower may have them before this node has synced them; nobody counts them as this node's until it has.
 */
import type { Lsn } from '../base/brands.ts';
import type { ChainPoint } from '../log/chain.ts';

/** Records behind `previous` up to `last`, back to back. */
export interface RecordRun {
  readonly previous: ChainPoint;
  readonly last: ChainPoint;
  readonly payload: Uint8Array;
}

const KEPT_BYTES_MAX = 4 * 1024 * 1024;

export class RecentAppends {
  #runs: RecordRun[] = [];
  #bytes = 0;

  /** `payload` is copied (`slice` of a Buffer would be none). A large one is not kept. */
  add({ previous, last, payload }: RecordRun): void {
    if (payload.length > KEPT_BYTES_MAX) return this.clear();
    this.#runs.push({ previous, last, payload: new Uint8Array(payload) });
    this.#bytes += payload.length;
    while (this.#bytes > KEPT_BYTES_MAX) this.#bytes -= this.#runs.shift()?.payload.length ?? 0;
  }

  /** At most `bytesMax`, but one append at least; undefined where that is not kept which begins with `from`. */
  from(from: Lsn, bytesMax: number): RecordRun | undefined {
    // Whoever keeps up asks for the last one.
    const start = this.#runs.findLastIndex(({ previous }) => previous.lsn === from - 1);
    const first = this.#runs[start];
    if (first === undefined) return undefined;
    const taken = [first];
    let bytes = first.payload.length;
    for (const run of this.#runs.slice(start + 1)) {
      bytes += run.payload.length;
      if (bytes > bytesMax) break;
      taken.push(run);
    }
    const { previous } = first;
    const { last } = taken.at(-1)!;
    return taken.length === 1 ? first : { previous, last, payload: Buffer.concat(taken.map(({ payload }) => payload)) };
  }

  clear(): void {
    this.#runs = [];
    this.#bytes = 0;
  }
}
