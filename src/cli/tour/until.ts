import { setTimeout as sleep } from 'node:timers/promises';

const TIMEOUT_MS = 30_000;
const POLL_MS = 10;

/** Resolves with the first answer of `look` that is not undefined. `what` is awaited; it is named where it does not come. */
export async function until<T>(
  what: string,
  look: () => T | undefined | Promise<T | undefined>,
  signal: AbortSignal,
): Promise<T> {
  const lastMs = performance.now() + TIMEOUT_MS;
  for (;;) {
    const found = await look();
    if (found !== undefined) return found;
    if (performance.now() > lastMs) throw new Error(`within ${TIMEOUT_MS / 1_000} s this did not come: ${what}`);
    await sleep(POLL_MS, undefined, { signal });
  }
}
