/**
 * A watch by reading: at every hint of a change and now and then without one, so that a hint that is lost costs a moment
 * and not the change. What it tells is what a read answered, never what a hint said: a hint may be late.
 */
import type { Versioned } from './coordinator.ts';

export interface WatchSource<R> {
  read(): Promise<Versioned<R> | undefined>;
  readonly pollMs: number;
  /** Calls `changed` when the record may be another one. */
  hints?(changed: () => void, options: { signal: AbortSignal }): void;
}

export function watchByReading<R>(
  source: WatchSource<R>,
  listener: (current: Versioned<R>) => void,
  { signal }: { signal: AbortSignal },
): void {
  if (signal.aborted) return;
  let seen = 0;
  let looking = false;
  let changed = false;
  const look = async (): Promise<void> => {
    changed = true;
    if (looking) return;
    looking = true;
    while (changed && !signal.aborted) {
      changed = false;
      // Who acts on a watch reads first, and meets the error there.
      const current = await source.read().catch(() => undefined);
      if (current === undefined || current.version <= seen || signal.aborted) continue;
      seen = current.version;
      listener(current);
    }
    looking = false;
  };
  const timer = setInterval(() => void look(), source.pollMs);
  timer.unref();
  signal.addEventListener('abort', () => clearInterval(timer), { once: true });
  source.hints?.(() => void look(), { signal });
  void look();
}
