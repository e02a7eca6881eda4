/** Time as the transfer needs it; tests pass a faster one. */
export interface Timers {
  monotonicMs(): number;
  /** Calls `run` once after so long; the answer calls it off. */
  after(ms: number, run: () => void): () => void;
}

/** Node takes a longer time for none at all. */
const TIMER_MAX_MS = 2 ** 31 - 1;

export const systemTimers: Timers = {
  monotonicMs: () => performance.now(),
  after: (ms, run) => {
    const timer = setTimeout(run, Math.min(ms, TIMER_MAX_MS));
    return () => clearTimeout(timer);
  },
};

/** Rejects with the signal's reason when that comes first. */
export function sleep(timers: Timers, ms: number, signal: AbortSignal): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  if (signal.aborted) reject(signal.reason as Error);
  const aborted = (): void => {
    callOff();
    reject(signal.reason as Error);
  };
  const callOff = timers.after(ms, () => {
    signal.removeEventListener('abort', aborted);
    resolve();
  });
  if (signal.aborted) callOff();
  else signal.addEventListener('abort', aborted, { once: true });
  return promise;
}

/** Settles like `work`; calls `beat` every `everyMs` until then. A beat that fails ends the wait, not the work. */
export async function beating<T>(
  timers: Timers,
  work: Promise<T>,
  everyMs: number,
  beat: () => Promise<void>,
): Promise<T> {
  const { promise: failed, reject } = Promise.withResolvers<never>();
  let callOff: () => void;
  let over = false;
  const again = (): void => {
    callOff = timers.after(everyMs, () => {
      beat().then(() => over || again(), reject);
    });
  };
  again();
  try {
    return await Promise.race([work, failed]);
  } finally {
    over = true;
    callOff!();
    work.catch(() => undefined);
  }
}
