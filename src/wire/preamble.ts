/** The first bytes of a connection: `u32 name_len | name`. There is no answer; a peer that does not like it closes. */
import { NostosError } from '../base/errors.ts';
import type { ByteQueue } from './byte-queue.ts';

export const SERVICE_NAME_BYTES_MAX = 256;

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** The bytes of a service name that may be registered or asked for. */
export function encodeServiceName(name: string): Uint8Array {
  const bytes = Buffer.from(name, 'utf8');
  if (bytes.length < 1 || bytes.length > SERVICE_NAME_BYTES_MAX || !name.isWellFormed())
    throw new NostosError(
      'INVALID_ARGUMENT',
      `the name of a service has 1 to ${SERVICE_NAME_BYTES_MAX} bytes of UTF-8, got ${bytes.length}: ${JSON.stringify(name).slice(0, 80)}`,
    );
  return bytes;
}

export function encodePreamble(name: string): Uint8Array {
  const bytes = encodeServiceName(name);
  const preamble = new Uint8Array(4 + bytes.length);
  new DataView(preamble.buffer).setUint32(0, bytes.length, true);
  preamble.set(bytes, 4);
  return preamble;
}

export class PreambleDecoder {
  #nameBytes: number | undefined;

  next(queue: ByteQueue): string | undefined {
    this.#nameBytes ??= queue.takeU32();
    if (this.#nameBytes === undefined) return undefined;
    if (this.#nameBytes < 1 || this.#nameBytes > SERVICE_NAME_BYTES_MAX)
      throw new NostosError(
        'PROTOCOL_ERROR',
        `a peer announced a service name of ${this.#nameBytes} bytes; 1 to ${SERVICE_NAME_BYTES_MAX} are allowed`,
      );
    const name = queue.take(this.#nameBytes);
    if (name === undefined) return undefined;
    try {
      return utf8.decode(name);
    } catch (error) {
      throw new NostosError('PROTOCOL_ERROR', 'a peer named a service in bytes that are not UTF-8', { cause: error });
    }
  }

  inside(queue: ByteQueue): boolean {
    return this.#nameBytes !== undefined || queue.bytes > 0;
  }
}
