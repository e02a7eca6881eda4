/** Lets timers, sockets and abort signals have their turn in the middle of long synchronous work. */
export function yieldToEventLoop(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
