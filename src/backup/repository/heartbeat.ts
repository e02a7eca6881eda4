/** Time that passes, for who waits for another run or shows that it is alive. */
import { setTimeout as sleep } from 'node:timers/promises';

export interface Timers {
  /** Rejects with the signal's reason. */
  pause(ms: number, signal?: AbortSignal): Promise<void>;
  /** Calls again and again, each time after the one before has ended, until it is stopped. */
  repeat(everyMs: number, call: () => Promise<void>): { stop(): Promise<void> };
}

export const systemTimers: Timers = {
  async pause(ms, signal) {
    signal?.throwIfAborted();
    try {
      await sleep(ms, undefined, { signal });
    } catch (error) {
      signal?.throwIfAborted();
      throw error;
    }
  },
  repeat(everyMs, call) {
    let running = Promise.resolve();
    let isStopped = false;
    const timer = setInterval(() => {
      if (isBusy || isStopped) return;
      isBusy = true;
      running = call().finally(() => {
        isBusy = false;
      });
    }, everyMs);
    let isBusy = false;
    timer.unref();
    return {
      async stop() {
        isStopped = true;
        clearInterval(timer);
        await running;
      },
    };
  },
};
