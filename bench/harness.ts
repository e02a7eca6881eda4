/**
 * What every benchmark here shares. A figure is a ratio of two things measured in the same run, on the same work and in
 * the same directory: ours and a peer's. They take turns, round by round, and the median of the rounds' ratios counts, so
 * that a machine that becomes slower or faster meanwhile changes both alike.
 */
import { closeSync, fdatasyncSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';

/** Where a gate ends and where we would like to be. */
export interface Bound {
  readonly kind: 'atLeast' | 'atMost';
  /** Absent where there is only a goal. */
  readonly gate?: number;
  readonly goal?: number;
}

/** One side of a comparison, in words: `34,120 writes/s`. */
export interface Side {
  readonly value: number;
  readonly unit: string;
}

export interface Figure {
  readonly name: string;
  /** What `value` is: `writes/s, ours / plain`. */
  readonly what: string;
  readonly ours: Side;
  readonly peer: Side;
  /** What is held against the bound. */
  readonly value: number;
  readonly bound: Bound;
  /** Of `value`, round by round. */
  readonly rounds?: readonly number[];
  /** Whatever else was measured on the way. */
  readonly notes?: Readonly<Record<string, number | string>>;
}

export interface BenchContext {
  /** A directory of its own, removed afterwards. */
  readonly dir: string;
  /** Fewer rounds of less work: shows that everything runs, not how fast. */
  readonly quick: boolean;
  progress(message: string): void;
}

export interface Bench {
  readonly name: string;
  readonly what: string;
  run(context: BenchContext): Promise<Figure[]>;
}

export function holds({ value, bound }: Pick<Figure, 'value' | 'bound'>): boolean {
  if (bound.gate === undefined) return true;
  return bound.kind === 'atLeast' ? value >= bound.gate : value <= bound.gate;
}

export function percentile(values: readonly number[], share: number): number {
  const sorted = Float64Array.from(values).sort();
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? Number.NaN;
}

export function median(values: readonly number[]): number {
  const sorted = Float64Array.from(values).sort();
  const half = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[half]! : (sorted[half - 1]! + sorted[half]!) / 2;
}

export function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** Runs both sides in each round, and lets them take turns in going first. */
export async function interleave<A, B>(
  rounds: number,
  sides: { readonly ours: (round: number) => Promise<A> | A; readonly peer: (round: number) => Promise<B> | B },
): Promise<{ ours: A; peer: B }[]> {
  const results: { ours: A; peer: B }[] = [];
  for (let round = 0; round < rounds; round += 1) {
    if (round % 2 === 0) {
      const ours = await sides.ours(round);
      results.push({ ours, peer: await sides.peer(round) });
    } else {
      const peer = await sides.peer(round);
      results.push({ ours: await sides.ours(round), peer });
    }
  }
  return results;
}

export function temporaryDirectory(parent: string): { readonly path: string; [Symbol.dispose](): void } {
  const path = mkdtempSync(join(parent, 'nostos-bench-'));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}

/**
 * Milliseconds of each of `count` times "write 4 KiB into a file that has its size already, fdatasync": the least that
 * any durable write on this disk costs.
 */
export function measureFdatasync(dir: string, count: number): number[] {
  const path = join(dir, 'fdatasync.bin');
  const fd = openSync(path, 'w');
  const block = Buffer.alloc(4096, 1);
  const blocks = 1024;
  try {
    for (let at = 0; at < blocks; at += 1) writeSync(fd, block, 0, block.length, at * block.length);
    fdatasyncSync(fd);
    return Array.from({ length: count }, (_, index) => {
      const startedMs = performance.now();
      writeSync(fd, block, 0, block.length, (index % blocks) * block.length);
      fdatasyncSync(fd);
      return performance.now() - startedMs;
    });
  } finally {
    closeSync(fd);
    rmSync(path);
  }
}

export function formatNumber(value: number): string {
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : Math.abs(value) >= 1 ? 2 : 3;
  return value.toLocaleString('en-US', { minimumFractionDigits: digits, maximumFractionDigits: digits });
}
