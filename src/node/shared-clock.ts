/** Monotonic milliseconds that are the same in all threads of this process; `performance.now` of each begins with it. */
export function sharedMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}
