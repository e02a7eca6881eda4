/**
 * Assertions stay on in production. A broken one is a defect of Nostos itself, never damaged data or bad input, and
 * the only safe answer is to stop: `AssertionError` is not caught anywhere below the thread that owns the state.
 */
export class AssertionError extends Error {
  override readonly name = 'AssertionError';
}

export function assert(condition: unknown, message: string): asserts condition {
  if (!condition) throw new AssertionError(message);
}

export function unreachable(value: never): never {
  throw new AssertionError(`unreachable: ${String(value)}`);
}
