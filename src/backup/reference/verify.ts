/** Blobs are what their checksum says, or nobody gets them. */
import { Blake3Hasher } from '@napi-rs/blake-hash';
import type { BackupBackend } from './backend.ts';
import { BackupBackendError, RestoreValidatorError } from './errors.ts';
import type { CallOptions, RestorePlanItem } from './types.ts';

export interface ContentDigest {
  readonly bytes: number;
  /** BLAKE3, lowercase hex. */
  readonly blake3: string;
}

export interface ReadOptions {
  readonly signal?: AbortSignal | undefined;
  /** Gets every chunk, verified only when the call resolves; valid for the time of the call. */
  readonly write?: (chunk: Uint8Array, offset: number) => void;
  /** How many bytes have come so far. */
  readonly onBytes?: (bytes: number) => void;
}

/**
 * The reference's, with the whole blob in memory. Checksums are compared as text, so that one in upper case fits nothing;
 * null fits everything.
 */
export async function verifyBlob(backend: BackupBackend, key: string, expected: string | null): Promise<Uint8Array> {
  try {
    const bytes = await backend.getContent(key);
    checkDigest(key, expected, new Blake3Hasher().update(bytes).digest('hex'));
    return bytes;
  } catch (error) {
    throw asValidatorError(error);
  }
}

/** The same in bounded memory, where the backend can. */
export async function verifyContent(
  backend: BackupBackend,
  { contentKey: key, expectedChecksum }: Pick<RestorePlanItem, 'contentKey' | 'expectedChecksum'>,
  { signal, write, onBytes }: ReadOptions = {},
): Promise<ContentDigest> {
  const hash = new Blake3Hasher();
  let bytes = 0;
  try {
    for await (const chunk of contentOf(backend, key, signal)) {
      signal?.throwIfAborted();
      hash.update(chunk);
      write?.(chunk, bytes);
      bytes += chunk.length;
      onBytes?.(bytes);
    }
    const blake3 = hash.digest('hex');
    checkDigest(key, expectedChecksum, blake3);
    return { bytes, blake3 };
  } catch (error) {
    throw asValidatorError(error);
  }
}

/** One item of a plan, verified, with progress. */
export async function readItem(
  backend: BackupBackend,
  { items, number, step }: { items: readonly RestorePlanItem[]; number: number; step: 'validating' | 'staging' },
  { signal, onProgress, write }: CallOptions & Pick<ReadOptions, 'write'>,
): Promise<ContentDigest> {
  const item = items[number] as RestorePlanItem;
  const { contentKey } = item;
  if (item.expectedChecksum === null) onProgress?.({ kind: 'unverified', contentKey });
  const bytesTotal = await contentBytesOf(backend, contentKey);
  const onBytes = (bytes: number): void =>
    onProgress?.({ kind: 'reading', step, contentKey, item: number + 1, items: items.length, bytes, bytesTotal });
  return verifyContent(backend, item, { signal, onBytes, ...(write === undefined ? {} : { write }) });
}

/** Undefined where the backend cannot tell. */
export async function contentBytesOf(backend: BackupBackend, key: string): Promise<number | undefined> {
  try {
    return await backend.contentBytes?.(key);
  } catch (error) {
    throw asValidatorError(error);
  }
}

async function* contentOf(
  backend: BackupBackend,
  key: string,
  signal: AbortSignal | undefined,
): AsyncIterable<Uint8Array> {
  if (backend.readContent === undefined) yield await backend.getContent(key);
  else yield* backend.readContent(key, signal === undefined ? {} : { signal });
}

function checkDigest(key: string, expected: string | null, actual: string): void {
  if (expected === null || expected === actual) return;
  throw new RestoreValidatorError(
    'ChecksumMismatch',
    `the content under ${JSON.stringify(key)} has the BLAKE3 ${actual}, and ${JSON.stringify(expected.slice(0, 100))} is expected`,
    { key, expected, actual },
  );
}

function asValidatorError(error: unknown): unknown {
  if (!(error instanceof BackupBackendError) || error.kind !== 'ContentNotFound')
    return RestoreValidatorError.from(error);
  return new RestoreValidatorError(
    'ContentMissing',
    error.message,
    error.key === undefined ? {} : { key: error.key },
    error,
  );
}
