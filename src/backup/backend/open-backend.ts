/** `file:` and `s3:` URLs, and plain paths, to backends. Nobody loads the SDK of S3 who does not use it. */
import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { NostosError } from '../../base/errors.ts';
import type { Limits } from '../../base/limits.ts';
import type { ObjectBackend } from './backend.ts';
import { LocalBackend } from './local.ts';

export interface OpenBackendOptions {
  readonly limits?: Partial<Limits>;
  /** Told once of what the storage cannot do. */
  readonly onWarning?: (message: string) => void;
}

export async function openBackend(url: string, options: OpenBackendOptions = {}): Promise<ObjectBackend> {
  if (url.startsWith('s3:')) {
    const { S3Backend } = await import('./s3.ts');
    return S3Backend.open(url, options);
  }
  return LocalBackend.open(directoryOf(url));
}

/** `file:///a`, `file:/a`, `file:a` (relative to here, percent signs as they are) or a plain path. */
export function directoryOf(url: string): string {
  if (url.startsWith('file://')) return readFileUrl(url);
  const path = url.startsWith('file:') ? url.slice('file:'.length) : url;
  if (path === '' || path.includes('\0') || /^[a-z0-9+]{2,}:/i.test(path))
    throw new NostosError(
      'INVALID_ARGUMENT',
      `${JSON.stringify(url)} names no storage for backups: give a directory, file:<directory> or s3://<bucket>/<prefix>`,
    );
  return resolve(path);
}

function readFileUrl(url: string): string {
  try {
    return fileURLToPath(url);
  } catch (error) {
    throw new NostosError('INVALID_ARGUMENT', `${JSON.stringify(url)} is no file URL: ${(error as Error).message}`, {
      cause: error,
    });
  }
}
