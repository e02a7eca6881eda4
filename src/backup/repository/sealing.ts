/**
 * zstd and AES-256-GCM over one piece of content, in this order. Compression runs in the thread pool; what does not get
 * smaller is left as it is. A nonce is random: a key may seal 2^32 pieces.
 */
import { createCipheriv, createDecipheriv } from 'node:crypto';
import { promisify } from 'node:util';
import { constants, zstdCompress, zstdDecompress } from 'node:zlib';
import type { Random } from '../../base/random.ts';
import type { BackupKey } from './keys.ts';
import { deriveKeys } from './keys.ts';

export const NONCE_BYTES = 12;
export const TAG_BYTES = 16;
export const NO_NONCE = new Uint8Array(NONCE_BYTES);

const CIPHER = 'aes-256-gcm';
/** Less than this saved is not worth the decompression. */
const COMPRESSED_SHARE_MAX = 0.97;
const SMALL_BYTES = 64;

const compressAsync = promisify(zstdCompress);
const decompressAsync = promisify(zstdDecompress);
const LEVEL = { [constants.ZSTD_c_compressionLevel]: 1 };

/** Undefined when it does not get smaller. */
export async function compress(plain: Uint8Array): Promise<Uint8Array | undefined> {
  if (plain.length < SMALL_BYTES) return undefined;
  const compressed = await compressAsync(plain, { params: LEVEL, chunkSize: plain.length + 1024 });
  if (compressed.length <= plain.length * COMPRESSED_SHARE_MAX) return compressed;
  releaseOutput(compressed);
  return undefined;
}

/** Undefined when the bytes are not zstd of exactly so many bytes. */
export async function decompress(bytes: Uint8Array, plainBytes: number): Promise<Uint8Array | undefined> {
  try {
    // One byte more than there should be, so that one buffer does and the end is seen at once.
    const options = { chunkSize: Math.max(64, plainBytes + 1), maxOutputLength: plainBytes + 1 };
    const plain = await decompressAsync(bytes, options);
    return plain.length === plainBytes ? plain : undefined;
  } catch {
    return undefined;
  }
}

export function newNonce(random: Random): Uint8Array {
  return random.bytes(NONCE_BYTES);
}

/** The parts of `bytes`, encrypted, and the tag. */
export function encrypt(
  key: BackupKey,
  nonce: Uint8Array,
  bound: readonly Uint8Array[],
  bytes: Uint8Array,
): readonly Uint8Array[] {
  const cipher = createCipheriv(CIPHER, deriveKeys(key).encryption, nonce, { authTagLength: TAG_BYTES });
  cipher.setAAD(Buffer.concat(bound));
  return [cipher.update(bytes), cipher.final(), cipher.getAuthTag()];
}

/** Undefined when anything of it is not what was encrypted. */
export function decrypt(
  key: BackupKey,
  nonce: Uint8Array,
  bound: readonly Uint8Array[],
  sealed: Uint8Array,
): Uint8Array | undefined {
  if (sealed.length < TAG_BYTES) return undefined;
  const decipher = createDecipheriv(CIPHER, deriveKeys(key).encryption, nonce, { authTagLength: TAG_BYTES });
  decipher.setAAD(Buffer.concat(bound));
  decipher.setAuthTag(sealed.subarray(sealed.length - TAG_BYTES));
  const plain = decipher.update(sealed.subarray(0, sealed.length - TAG_BYTES));
  try {
    decipher.final();
    return plain;
  } catch {
    return undefined;
  }
}

const POOLED_BYTES_MAX = 256 * 1024;

/** Gives back what zlib or a cipher has made, of whose buffer it is a view; small ones may share theirs with others. */
export function releaseOutput({ buffer }: Uint8Array): void {
  if (buffer.byteLength > POOLED_BYTES_MAX && buffer instanceof ArrayBuffer) buffer.transfer(0);
}
