/** Amazon S3, and what speaks like it, as an `ObjectStore`. The SDK is loaded when the first request is made. */
import type * as S3 from '@aws-sdk/client-s3';
import { NostosError } from '../base/errors.ts';
import type { ObjectPut, ObjectStore, StoredObject } from './object-store.ts';

export interface S3Options {
  readonly bucket: string;
  /** URL of a store other than Amazon's. */
  readonly endpoint?: string;
  readonly region?: string;
  /** The bucket in the path and not in the host name; what most stores other than Amazon's want. */
  readonly pathStyle?: boolean;
  /** One request takes at most so long. */
  readonly timeoutMs?: number;
}

export const S3_TIMEOUT_MS = 5_000;
const READ_TRIES_MAX = 3;
const OBJECT_BYTES_MAX = 1024 * 1024;

type Sdk = typeof S3;
type Send<T> = (client: S3.S3Client, sdk: Sdk, options: { abortSignal: AbortSignal }) => Promise<T>;

export class S3ObjectStore implements ObjectStore {
  readonly name: string;
  readonly #options: S3Options;
  #loaded: Promise<{ sdk: Sdk; client: S3.S3Client }> | undefined;
  #closed = false;

  constructor(options: S3Options) {
    this.#options = options;
    this.name = `s3://${options.bucket}`;
  }

  async get(key: string): Promise<StoredObject | undefined> {
    return this.#read(async (client, sdk, options) => {
      try {
        const command = new sdk.GetObjectCommand({ Bucket: this.#options.bucket, Key: key });
        const { Body, ETag, ContentLength } = await client.send(command, options);
        if (Body === undefined || ETag === undefined) throw new Error('an object came without content or ETag');
        if (ContentLength !== undefined && ContentLength > OBJECT_BYTES_MAX)
          throw new Error(`an object of ${ContentLength} bytes is no record`);
        return { bytes: await Body.transformToByteArray(), etag: ETag };
      } catch (error) {
        if (isAnswer(error, 404) && error.name !== 'NoSuchBucket') return undefined;
        throw error;
      }
    });
  }

  async putIf(key: string, bytes: Uint8Array, etag: string | undefined): Promise<ObjectPut> {
    return this.#send(async (client, sdk, options) => {
      const condition = etag === undefined ? { IfNoneMatch: '*' } : { IfMatch: etag };
      const command = new sdk.PutObjectCommand({
        Bucket: this.#options.bucket,
        Key: key,
        Body: bytes,
        CacheControl: 'no-store',
        ...condition,
      });
      try {
        const { ETag } = await client.send(command, options);
        if (ETag === undefined) throw new Error('a write was answered without ETag');
        return { written: true, etag: ETag };
      } catch (error) {
        // The condition does not hold; another write was under way; there is nothing to match.
        const refused = isAnswer(error, 412) || isAnswer(error, 409) || isAnswer(error, 404);
        if (refused && error.name !== 'NoSuchBucket') return { written: false };
        throw error;
      }
    });
  }

  async list(prefix: string, after: string | undefined, limit: number): Promise<string[]> {
    return this.#read(async (client, sdk, options) => {
      const command = new sdk.ListObjectsV2Command({
        Bucket: this.#options.bucket,
        Prefix: prefix,
        MaxKeys: limit,
        ...(after !== undefined && { StartAfter: after }),
      });
      const { Contents = [] } = await client.send(command, options);
      return Contents.map(({ Key }) => Key).filter((name) => name !== undefined);
    });
  }

  async remove(key: string): Promise<void> {
    await this.#send((client, sdk, options) =>
      client.send(new sdk.DeleteObjectCommand({ Bucket: this.#options.bucket, Key: key }), options),
    );
  }

  async close(): Promise<void> {
    this.#closed = true;
    const loaded = await this.#loaded?.catch(() => undefined);
    loaded?.client.destroy();
  }

  /** A read may be repeated; a write may not: refused the second time, it could have been carried out the first time. */
  async #read<T>(send: Send<T>): Promise<T> {
    for (let tries = 1; ; tries++) {
      try {
        return await this.#send(send);
      } catch (error) {
        const again = error instanceof NostosError && error.code === 'COORDINATOR_UNAVAILABLE';
        if (!again || tries >= READ_TRIES_MAX) throw error;
      }
    }
  }

  async #send<T>(send: Send<T>): Promise<T> {
    if (this.#closed) throw new NostosError('CLOSED', `The connection to ${this.name} is closed`);
    this.#loaded ??= this.#load();
    const { sdk, client } = await this.#loaded;
    try {
      return await send(client, sdk, { abortSignal: AbortSignal.timeout(this.#options.timeoutMs ?? S3_TIMEOUT_MS) });
    } catch (error) {
      throw this.#failure(error);
    }
  }

  async #load(): Promise<{ sdk: Sdk; client: S3.S3Client }> {
    const sdk = await import('@aws-sdk/client-s3');
    const { endpoint, region, pathStyle = endpoint !== undefined } = this.#options;
    const config: S3.S3ClientConfig = {
      forcePathStyle: pathStyle,
      // The SDK would send a write again whose answer was lost.
      maxAttempts: 1,
      requestChecksumCalculation: 'WHEN_REQUIRED',
      responseChecksumValidation: 'WHEN_REQUIRED',
      ...(endpoint !== undefined && { endpoint }),
      ...(region !== undefined && { region }),
    };
    return { sdk, client: new sdk.S3Client(config) };
  }

  #failure(cause: unknown): NostosError {
    const reason = cause instanceof Error ? `${cause.name}: ${cause.message}` : String(cause);
    const status = statusOf(cause);
    const details = { store: this.name, reason, status };
    const isFinal =
      status !== undefined && ((status >= 400 && status < 500 && status !== 408 && status !== 429) || status === 501);
    if (isFinal || isMissingSetting(cause))
      return new NostosError(
        'COORDINATOR_UNSUITABLE',
        `${this.name} refused a request (${reason}). Check bucket, region and credentials, and that the store knows conditional writes`,
        { details, cause },
      );
    return new NostosError('COORDINATOR_UNAVAILABLE', `${this.name} does not answer: ${reason}`, { details, cause });
  }
}

function statusOf(error: unknown): number | undefined {
  const metadata = (error as { $metadata?: { httpStatusCode?: unknown } } | null)?.$metadata;
  return typeof metadata?.httpStatusCode === 'number' ? metadata.httpStatusCode : undefined;
}

function isAnswer(error: unknown, status: number): error is Error {
  return error instanceof Error && statusOf(error) === status;
}

/** Of the SDK, before it sends anything. */
function isMissingSetting(error: unknown): boolean {
  return (
    error instanceof Error && (error.name === 'CredentialsProviderError' || /region is missing/i.test(error.message))
  );
}
