/**
 * Collects garbage where that is quick. What looks at thousands of tenants one after another leaves connections and statements
 * of SQLite behind, whose memory the collector of V8 does not see, and it lets small heaps grow to three times what they
 * hold: a process that is to stay small would not.
 */
import { getHeapStatistics, setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

/** Collecting a larger heap would hold its thread up for too long; whose heap is large has no need of this either. */
const HEAP_BYTES_MAX = 48 * 1024 * 1024;
/** Less is not worth the few milliseconds, where somebody may wait for them. */
const GROWN_BYTES_MIN = 3 * 1024 * 1024;
/** Of threads for which nobody waits. */
export const GROWN_BYTES_BACKGROUND = 1024 * 1024;

/** Of the time of a thread that makes garbage without end, a fifth goes into this at most. */
const PAUSE_FACTOR = 4;

let collect: (() => void) | undefined;
let keptBytes = 0;
let notBeforeMs = -Infinity;

/** Collects what this thread has left since the last time, if that is much and the heap is small; true where it did. */
export function collectIfGrown(grownBytesMin = GROWN_BYTES_MIN): boolean {
  const startedMs = performance.now();
  if (startedMs < notBeforeMs) return false;
  const { used_heap_size: usedBytes, malloced_memory: nativeBytes } = getHeapStatistics();
  const bytes = usedBytes + nativeBytes;
  if (bytes > HEAP_BYTES_MAX || bytes < keptBytes + grownBytesMin) return false;
  collect ??= exposed();
  collect();
  keptBytes = getHeapStatistics().used_heap_size;
  const endedMs = performance.now();
  notBeforeMs = endedMs + PAUSE_FACTOR * (endedMs - startedMs);
  return true;
}

/** The function that V8 gives to contexts made while the flag is set; so threads that start from now on have it. */
function exposed(): () => void {
  const { gc } = globalThis;
  if (gc !== undefined) return () => gc();
  setFlagsFromString('--expose-gc');
  return runInNewContext('gc') as () => void;
}
