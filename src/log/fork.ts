/**
 * What the first record of a new generation says: the record that it goes on from, which is the end of its parent. So the
 * lineage stands in the log itself, under the hash chain, and a term-start of another generation that was not written for
 * this very end fits nowhere.
 */
import { HASH_BYTES } from '../base/brands.ts';
import type { ChainPoint } from './chain.ts';
import { decodePoint, encodePoint } from './sealed.ts';

const MAGIC = Buffer.from('NOSTOSGS', 'latin1');
const FORK_BYTES = MAGIC.length + 16 + 8 + 8 + HASH_BYTES;

export function encodeFork(fork: ChainPoint): Uint8Array {
  const bytes = Buffer.alloc(FORK_BYTES);
  MAGIC.copy(bytes);
  encodePoint(fork, new DataView(bytes.buffer, bytes.byteOffset, bytes.length), bytes, MAGIC.length);
  return bytes;
}

/** Undefined where the payload is not that of a record that begins a generation. */
export function decodeFork(payload: Uint8Array): ChainPoint | undefined {
  if (payload.length !== FORK_BYTES || MAGIC.compare(payload, 0, MAGIC.length) !== 0) return undefined;
  const view = new DataView(payload.buffer, payload.byteOffset, payload.length);
  return decodePoint(view, payload, MAGIC.length);
}
