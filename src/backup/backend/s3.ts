/**
 * Amazon S3, and what speaks like it, as the storage of backups. The SDK is loaded when the first request is made, and
 * takes credentials as it always does (`AWS_*`, files, roles).
 *
 * A request that fails for a passing reason is made again. A conditional write whose answer was lost may be refused the
 * second time because of itself: each write carries an id of its own, by which it is recognised. Stores that ignore
 * conditions are found out by a probe before the first conditional write; there a look beforehand has to do.
 */
import { randomUUID } from 'node:crypto';
import type * as S3 from '@aws-sdk/client-s3';
import { NostosError } from '../../base/errors.ts';
import { DEFAULT_LIMITS } from '../../base/limits.ts';
import type { Limits } from '../../base/limits.ts';
import type { CallOptions, GetOptions, ListOptions, ObjectBackend, ObjectEntry, PutOptions } from './backend.ts';
import { checkKey, checkPrefix } from './backend.ts';
import type { OpenBackendOptions } from './open-backend.ts';
import { pauseBeforeRetry } from './pause.ts';

interface S3Place {
  readonly bucket: string;
  /** Empty, or ending with "/". */
  readonly prefix: string;
  readonly endpoint: string | undefined;
  readonly region: string | undefined;
}

type Sdk = typeof S3;
type Send<T> = (client: S3.S3Client, sdk: Sdk, options: { abortSignal: AbortSignal }, tries: number) => Promise<T>;

/** What a store does with a conditional write. */
type Conditions = 'honoured' | 'ignored' | 'refused';

const LIST_KEYS = 1_000;
const WRITE_ID = 'nostos-write';

export class S3Backend implements ObjectBackend {
  readonly url: string;
  readonly #place: S3Place;
  readonly #limits: Limits;
  readonly #onWarning: (message: string) => void;
  #loaded: Promise<{ sdk: Sdk; client: S3.S3Client }> | undefined;
  #probe: Promise<Conditions> | undefined;
  #conditions: Conditions | undefined;
  #closed = false;

  constructor(place: S3Place, { limits, onWarning = () => undefined }: OpenBackendOptions = {}) {
    this.#place = place;
    this.#limits = { ...DEFAULT_LIMITS, ...limits };
    this.#onWarning = onWarning;
    const host = place.endpoint === undefined ? '' : ` at ${new URL(place.endpoint).host}`;
    this.url = `s3://${place.bucket}/${place.prefix}${host}`;
  }

  /** `s3://bucket/prefix?endpoint=https://…&region=…`. Nothing is asked of the store yet. */
  static open(url: string, options: OpenBackendOptions = {}): S3Backend {
    return new S3Backend(parseS3Url(url), options);
  }

  get honoursConditions(): boolean | undefined {
    return this.#conditions === undefined ? undefined : this.#conditions === 'honoured';
  }

  async put(key: string, bytes: Uint8Array, options: PutOptions = {}): Promise<'created' | 'exists'> {
    checkKey(key);
    const { backendPartBytes } = this.#limits;
    if (bytes.length > backendPartBytes)
      return this.putStream(key, partsOf(bytes, backendPartBytes), bytes.length, options);
    const condition = await this.#condition(key, options);
    if (condition === 'exists') return 'exists';
    return this.#create(key, options, (writeId) => async (client, sdk, sendOptions) => {
      const command = new sdk.PutObjectCommand({
        ...this.#at(key),
        Body: bytes,
        Metadata: { [WRITE_ID]: writeId },
        ...condition,
      });
      await client.send(command, sendOptions);
    });
  }

  async putStream(
    key: string,
    source: AsyncIterable<Uint8Array>,
    bytes: number,
    options: PutOptions = {},
  ): Promise<'created' | 'exists'> {
    checkKey(key);
    const parts = regroup(source, this.#limits.backendPartBytes);
    if (bytes <= this.#limits.backendPartBytes) {
      const first = await parts.next();
      const whole = first.done === true ? new Uint8Array() : first.value;
      if ((await parts.next()).done !== true || whole.length !== bytes) throw wrongLength(key, bytes);
      return this.put(key, whole, options);
    }
    const { signal } = options;
    const condition = await this.#condition(key, options);
    if (condition === 'exists') return 'exists';
    const at = this.#at(key);
    const begun = randomUUID();
    const upload = await this.#send(signal, async (client, sdk, sendOptions) => {
      const command = new sdk.CreateMultipartUploadCommand({ ...at, Metadata: { [WRITE_ID]: begun } });
      const { UploadId } = await client.send(command, sendOptions);
      if (UploadId === undefined) throw new Error('an upload was begun without an id');
      return { ...at, UploadId };
    });
    try {
      const sent: S3.CompletedPart[] = [];
      let total = 0;
      for await (const part of parts) {
        total += part.length;
        const PartNumber = sent.length + 1;
        const { ETag } = await this.#send(signal, (client, sdk, sendOptions) =>
          client.send(new sdk.UploadPartCommand({ ...upload, PartNumber, Body: part }), sendOptions),
        );
        sent.push({ PartNumber, ETag });
      }
      if (total !== bytes) throw wrongLength(key, bytes);
      const put = await this.#create(
        key,
        options,
        () => async (client, sdk, sendOptions) => {
          const MultipartUpload = { Parts: sent };
          await client.send(
            new sdk.CompleteMultipartUploadCommand({ ...upload, MultipartUpload, ...condition }),
            sendOptions,
          );
        },
        begun,
      );
      if (put === 'exists') await this.#abandon(upload);
      return put;
    } catch (error) {
      await this.#abandon(upload);
      throw error;
    }
  }

  async get(key: string, { range, signal }: GetOptions = {}): Promise<Uint8Array | undefined> {
    checkKey(key);
    if (range !== undefined && range.end <= range.start)
      return (await this.head(key, { signal })) === undefined ? undefined : new Uint8Array();
    return this.#send(signal, async (client, sdk, sendOptions) => {
      try {
        const command = new sdk.GetObjectCommand({
          ...this.#at(key),
          ...(range !== undefined && { Range: `bytes=${range.start}-${range.end - 1}` }),
        });
        const { Body, ContentLength } = await client.send(command, sendOptions);
        if (Body === undefined) throw new Error('an object came without content');
        const bytes = await Body.transformToByteArray();
        if (ContentLength !== undefined && bytes.length !== ContentLength)
          throw new Error(`of ${ContentLength} bytes ${bytes.length} came`);
        if (range !== undefined && bytes.length > range.end - range.start)
          throw new Error(`a range was asked for, and ${bytes.length} bytes came`);
        return bytes;
      } catch (error) {
        if (isAbsent(error)) return undefined;
        if (statusOf(error) === 416) return new Uint8Array();
        throw error;
      }
    });
  }

  async *stream(key: string, { signal }: CallOptions = {}): AsyncGenerator<Uint8Array, void, void> {
    const size = this.#limits.backendPartBytes;
    const entry = await this.head(key, { signal });
    if (entry === undefined)
      throw new NostosError('BACKUP_DAMAGED', `${this.url} has no object ${key}`, { details: { key } });
    for (let start = 0; start < entry.bytes;) {
      const bytes = await this.get(key, { range: { start, end: Math.min(start + size, entry.bytes) }, signal });
      if (bytes === undefined || bytes.length === 0)
        throw new NostosError('BACKUP_DAMAGED', `${key} of ${this.url} ended early`, { details: { key } });
      start += bytes.length;
      yield bytes;
    }
  }

  async head(key: string, { signal }: CallOptions = {}): Promise<ObjectEntry | undefined> {
    const found = await this.#head(key, signal);
    return found === undefined
      ? undefined
      : { key, bytes: found.ContentLength ?? 0, modifiedMs: found.LastModified?.getTime() ?? 0 };
  }

  async *list(prefix: string, { after, signal }: ListOptions = {}): AsyncGenerator<ObjectEntry, void, void> {
    checkPrefix(prefix);
    const { bucket, prefix: root } = this.#place;
    for (let last = after === undefined ? undefined : root + after; ;) {
      const page = await this.#send(signal, (client, sdk, sendOptions) =>
        client.send(
          new sdk.ListObjectsV2Command({
            Bucket: bucket,
            Prefix: root + prefix,
            MaxKeys: LIST_KEYS,
            ...(last !== undefined && { StartAfter: last }),
          }),
          sendOptions,
        ),
      );
      const contents = page.Contents ?? [];
      for (const { Key, Size = 0, LastModified } of contents) {
        if (Key === undefined) continue;
        last = Key;
        yield { key: Key.slice(root.length), bytes: Size, modifiedMs: LastModified?.getTime() ?? 0 };
      }
      if (page.IsTruncated !== true && contents.length < LIST_KEYS) return;
    }
  }

  async delete(key: string, { signal }: CallOptions = {}): Promise<void> {
    checkKey(key);
    await this.#send(signal, (client, sdk, sendOptions) =>
      client.send(new sdk.DeleteObjectCommand(this.#at(key)), sendOptions),
    );
  }

  async close(): Promise<void> {
    this.#closed = true;
    const loaded = await this.#loaded?.catch(() => undefined);
    loaded?.client.destroy();
  }

  /** What makes a write conditional; where the store ignores that, a look at what is there. */
  async #condition(
    key: string,
    { ifAbsent = false, signal }: PutOptions,
  ): Promise<{ readonly IfNoneMatch?: string } | 'exists'> {
    if (!ifAbsent) return {};
    this.#probe ??= this.#probeConditions(signal);
    try {
      this.#conditions = await this.#probe;
    } catch (error) {
      this.#probe = undefined;
      throw error;
    }
    const condition = this.#conditions === 'refused' ? {} : { IfNoneMatch: '*' };
    if (this.#conditions === 'honoured') return condition;
    return (await this.#head(key, signal)) === undefined ? condition : 'exists';
  }

  async #probeConditions(signal: AbortSignal | undefined): Promise<Conditions> {
    const key = `probes/${randomUUID()}`;
    let conditions: Conditions;
    try {
      // The second one finds the first one, or itself after a lost answer: either way it has to be refused.
      await this.#putProbe(key, signal);
      conditions = (await this.#putProbe(key, signal)) ? 'ignored' : 'honoured';
    } catch (error) {
      if (!(error instanceof NostosError) || error.details.status !== 501) throw error;
      conditions = 'refused';
    }
    await this.delete(key, { signal });
    if (conditions !== 'honoured')
      this.#onWarning(
        `${this.url} knows no conditional writes: two processes that make backups there at once are not kept apart. Let only one do so, and prune`,
      );
    return conditions;
  }

  /** False when it was refused. */
  async #putProbe(key: string, signal: AbortSignal | undefined): Promise<boolean> {
    return this.#send(signal, async (client, sdk, sendOptions) => {
      const command = new sdk.PutObjectCommand({ ...this.#at(key), Body: new Uint8Array([1]), IfNoneMatch: '*' });
      try {
        await client.send(command, sendOptions);
        return true;
      } catch (error) {
        if (statusOf(error) === 412) return false;
        throw error;
      }
    });
  }

  /** A write that may have a condition, whose own success counts as such however often it was sent. */
  async #create(
    key: string,
    { signal, ifAbsent = false }: PutOptions,
    write: (writeId: string) => Send<void>,
    writeId: string = randomUUID(),
  ): Promise<'created' | 'exists'> {
    const send = write(writeId);
    return this.#send(signal, async (client, sdk, sendOptions, tries) => {
      try {
        await send(client, sdk, sendOptions, tries);
        return 'created';
      } catch (error) {
        const isRefused = statusOf(error) === 412;
        // The upload is gone because it was completed, by us, and the answer lost.
        const isGone = tries > 1 && nameOf(error) === 'NoSuchUpload';
        if (!(isRefused && ifAbsent) && !isGone) throw error;
        if (tries === 1) return 'exists';
        const present = await this.#head(key, signal);
        if (present?.Metadata?.[WRITE_ID] === writeId) return 'created';
        if (present !== undefined && ifAbsent) return 'exists';
        throw error;
      }
    });
  }

  async #head(key: string, signal: AbortSignal | undefined): Promise<S3.HeadObjectCommandOutput | undefined> {
    checkKey(key);
    return this.#send(signal, async (client, sdk, sendOptions) => {
      try {
        return await client.send(new sdk.HeadObjectCommand(this.#at(key)), sendOptions);
      } catch (error) {
        // An answer to HEAD has no body, so it does not say whether key or bucket is missing.
        if (statusOf(error) === 404) return undefined;
        throw error;
      }
    });
  }

  /** What it leaves behind otherwise costs money until somebody notices. */
  async #abandon(upload: { Bucket: string; Key: string; UploadId: string }): Promise<void> {
    try {
      await this.#send(undefined, (client, sdk, sendOptions) =>
        client.send(new sdk.AbortMultipartUploadCommand(upload), sendOptions),
      );
    } catch (error) {
      this.#onWarning(`An unfinished upload of ${upload.Key} to ${this.url} stays behind: ${reasonOf(error)}`);
    }
  }

  #at(key: string): { Bucket: string; Key: string } {
    return { Bucket: this.#place.bucket, Key: this.#place.prefix + key };
  }

  async #send<T>(signal: AbortSignal | undefined, send: Send<T>): Promise<T> {
    for (let tries = 1; ; tries++) {
      signal?.throwIfAborted();
      if (this.#closed) throw new NostosError('CLOSED', `The connection to ${this.url} is closed`);
      this.#loaded ??= this.#load();
      const { sdk, client } = await this.#loaded;
      const timeout = AbortSignal.timeout(this.#limits.backendTimeoutMs);
      const abortSignal = signal === undefined ? timeout : AbortSignal.any([signal, timeout]);
      try {
        return await send(client, sdk, { abortSignal }, tries);
      } catch (error) {
        signal?.throwIfAborted();
        const failure = this.#failure(error, timeout.aborted);
        if (failure.code !== 'BACKEND_UNAVAILABLE' || tries >= this.#limits.backendAttemptsMax) throw failure;
      }
      await pauseBeforeRetry(tries, signal);
    }
  }

  async #load(): Promise<{ sdk: Sdk; client: S3.S3Client }> {
    const sdk = await import('@aws-sdk/client-s3');
    const { endpoint, region } = this.#place;
    const config: S3.S3ClientConfig = {
      forcePathStyle: endpoint !== undefined,
      maxAttempts: 1,
      requestChecksumCalculation: 'WHEN_REQUIRED',
      responseChecksumValidation: 'WHEN_REQUIRED',
      ...(endpoint !== undefined && { endpoint }),
      ...(region !== undefined && { region }),
    };
    return { sdk, client: new sdk.S3Client(config) };
  }

  #failure(cause: unknown, isLate: boolean): NostosError {
    if (cause instanceof NostosError) return cause;
    const status = statusOf(cause);
    const reason = isLate ? `no answer within ${this.#limits.backendTimeoutMs} ms` : reasonOf(cause);
    const details = { url: this.url, reason, status };
    if (!isLate && isFinal(cause, status))
      return new NostosError(
        'BACKEND_UNSUITABLE',
        `${this.url} refused a request (${reason}). Check bucket, region, endpoint and credentials`,
        { details, cause },
      );
    return new NostosError('BACKEND_UNAVAILABLE', `${this.url} does not answer: ${reason}`, { details, cause });
  }
}

/** Answers that are of the 4xx kind and pass all the same. */
const PASSING = new Set(['RequestTimeout', 'IncompleteBody', 'SlowDown', 'TooManyRequests', 'OperationAborted']);
const PASSING_STATUS = new Set([408, 409, 425, 429]);

function isFinal(error: unknown, status: number | undefined): boolean {
  if (PASSING.has(nameOf(error) ?? '')) return false;
  if (status !== undefined)
    return (status >= 400 && status < 500 && !PASSING_STATUS.has(status)) || status === 501 || status === 301;
  // Of the SDK, before it sends anything.
  return nameOf(error) === 'CredentialsProviderError' || /region is missing/i.test(reasonOf(error));
}

function isAbsent(error: unknown): boolean {
  return statusOf(error) === 404 && nameOf(error) !== 'NoSuchBucket';
}

function statusOf(error: unknown): number | undefined {
  const metadata = (error as { $metadata?: { httpStatusCode?: unknown } } | null)?.$metadata;
  return typeof metadata?.httpStatusCode === 'number' ? metadata.httpStatusCode : undefined;
}

function nameOf(error: unknown): string | undefined {
  return error instanceof Error ? error.name : undefined;
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? `${error.name}: ${error.message}` : String(error);
}

function wrongLength(key: string, bytes: number): NostosError {
  return new NostosError('INVALID_ARGUMENT', `The source for ${key} did not give ${bytes} bytes`, { details: { key } });
}

async function* partsOf(bytes: Uint8Array, partBytes: number): AsyncGenerator<Uint8Array, void, void> {
  for (let at = 0; at < bytes.length; at += partBytes) yield bytes.subarray(at, at + partBytes);
}

/** The same bytes in pieces of one size, but for the last. */
async function* regroup(source: AsyncIterable<Uint8Array>, size: number): AsyncGenerator<Uint8Array, void, void> {
  let held: Uint8Array[] = [];
  let bytes = 0;
  for await (let piece of source) {
    while (bytes + piece.length >= size) {
      const end = size - bytes;
      const first = piece.subarray(0, end);
      yield held.length === 0 ? first : Buffer.concat([...held, first]);
      [held, bytes, piece] = [[], 0, piece.subarray(end)];
    }
    // The source may use its memory again.
    if (piece.length > 0) held.push(piece.slice());
    bytes += piece.length;
  }
  if (bytes > 0) yield Buffer.concat(held);
}

export function parseS3Url(text: string): S3Place {
  const refuse = (why: string): NostosError =>
    new NostosError(
      'INVALID_ARGUMENT',
      `this s3: URL is refused: ${why}; it reads s3://<bucket>/<prefix>?endpoint=…&region=…`,
    );
  if (!URL.canParse(text)) throw refuse('it cannot be parsed');
  const url = new URL(text);
  if (url.username !== '' || url.password !== '')
    throw refuse('credentials do not belong in it, set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY');
  if (!/^[a-z0-9][a-z0-9._-]{1,62}$/.test(url.hostname)) throw refuse('its bucket is none');
  for (const name of url.searchParams.keys())
    if (name !== 'endpoint' && name !== 'region') throw refuse(`it has an unknown setting ${JSON.stringify(name)}`);
  const endpoint = url.searchParams.get('endpoint') ?? undefined;
  if (endpoint !== undefined && !(URL.canParse(endpoint) && /^https?:$/.test(new URL(endpoint).protocol)))
    throw refuse('its endpoint is no http or https URL');
  const path = decodeURIComponent(url.pathname).replace(/^\/+|\/+$/g, '');
  if (path !== '') checkKey(path);
  const prefix = path === '' ? '' : `${path}/`;
  return { bucket: url.hostname, prefix, endpoint, region: url.searchParams.get('region') ?? undefined };
}
