/** Waiting before a request is made again: longer each time, and not at the same moment as everybody else. */
import { setTimeout as sleep } from 'node:timers/promises';

const FIRST_MS = 100;
const LONGEST_MS = 10_000;

/** `tries`: how many have failed, from 1. */
export async function pauseBeforeRetry(tries: number, signal: AbortSignal | undefined): Promise<void> {
  const longest = Math.min(FIRST_MS * 2 ** (tries - 1), LONGEST_MS);
  try {
    await sleep(longest * (0.5 + Math.random() / 2), undefined, { signal });
  } catch (error) {
    signal?.throwIfAborted();
    throw error;
  }
}
