/** Limits that a caller gives are checked where they are given, not in the middle of a connection. */
import { NostosError } from '../base/errors.ts';

/** Lengths on the wire have 32 bits. */
export const FRAME_BYTES_GREATEST = 2 ** 32 - 1;

/** `Infinity` is for waits without an end. Undefined stands for the default. */
export function checkLimits<T extends object>(options: T): T {
  for (const [name, value] of Object.entries(options)) {
    if (value === undefined || !/(?:Ms|Max|Bytes)$/.test(name)) continue;
    const greatest = name === 'frameBytesMax' ? FRAME_BYTES_GREATEST : Infinity;
    if (typeof value !== 'number' || !(value >= 0 && value <= greatest))
      throw new NostosError(
        'INVALID_ARGUMENT',
        `${name} must be a number from 0 to ${greatest}, got ${JSON.stringify(value) ?? typeof value}`,
      );
  }
  return options;
}
