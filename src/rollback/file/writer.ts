/**
 * Writes a rollback file: under a temporary name, fsynced, read back and checked whole, then linked under its final name,
 * which nothing can take twice, and the directory fsynced. A crash leaves a temporary file, which the next run removes, or
 * the whole one, which it uses. Tail and file are checked record by record in bounded memory; SPEC.md B2 to B4.
 */
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import { Blake3Hasher } from '@napi-rs/blake-hash';
import type { Hash } from '../../base/brands.ts';
import { hlcToMs } from '../../base/clock.ts';
import type { Disk, DiskFile } from '../../base/disk.ts';
import { NostosError, isNostosError } from '../../base/errors.ts';
import { yieldToEventLoop } from '../../base/event-loop.ts';
import { hashRecord, type LogRecord } from '../../log/record.ts';
import { TailCheck, tailUnreadable } from '../tail-check.ts';
import { reasonOf, tooLarge, type Plan, type PreservedFile, type RollbackLimits } from '../types.ts';
import { fileName, SET_ASIDE_SUFFIX, TEMPORARY_SUFFIX } from './file-name.ts';
import {
  FLAG_ACKNOWLEDGED,
  FLAG_MORE,
  FRAME_HEAD_BYTES,
  FrameKind,
  encodeFooter,
  encodeGap,
  encodeHeader,
  encodeRecordStart,
  encodeSchema,
  putFrameHead,
  schemaVersionOf,
  type FileHeader,
  type TailGap,
  type TenantSchema,
} from './format.ts';
import { verifyFile, type FileDescription } from './reader.ts';
import { SchemaWindow } from './schema-window.ts';
import { TailChain } from './tail-chain.ts';

const BUFFER_BYTES = 256 * 1024;
const TURN_BYTES = 4 * 1024 * 1024;

/** A record of the tail. */
export interface TailEntry {
  readonly record: LogRecord;
  readonly hash: Hash;
  /** Somebody had been told that it was kept. */
  readonly acknowledged: boolean;
}

/** What was read together; not used after the next batch is asked for. Gaps are of an incomplete tail. */
export type TailBatch = readonly (TailEntry | TailGap)[];
export type Tail = AsyncIterable<TailBatch> | Iterable<TailBatch>;

export interface FileWriterDeps {
  readonly disk: Disk;
  /** Made by its owner, who holds its lock. */
  readonly dir: string;
  /** Names of a tenant's tables at a schema version; undefined where they are not known, and rows are shown without. */
  readonly schemaOf: (tenant: number, schemaVersion: number) => TenantSchema | undefined;
  readonly limits: RollbackLimits;
}

export interface FileWriterOptions {
  readonly override?: boolean;
  readonly signal?: AbortSignal;
}

/** Who writes it, and of which history the common point is; ids of 32 hex digits. */
export type FileOwner = Pick<FileHeader, 'node' | 'cluster' | 'generation'>;

export function headerOfPlan({ id, common, frontier, primary, createdAtMs }: Plan, owner: FileOwner): FileHeader {
  return {
    ...owner,
    complete: true,
    id,
    common,
    oldTerm: frontier.term,
    newTerm: primary.term,
    firstLsn: common.lsn + 1,
    lastLsn: frontier.lsn,
    createdAtMs,
  };
}

/** `tail` is only asked for where the file is not there yet. */
export async function writeRollbackFile(
  deps: FileWriterDeps,
  header: FileHeader,
  tail: () => Tail,
  options: FileWriterOptions = {},
): Promise<PreservedFile> {
  try {
    return await preserve(deps, header, tail, options);
  } catch (error) {
    if (isNostosError(error, 'DISK_FULL') || isNostosError(error, 'IO_FAILED') || isNostosError(error, 'FILE_EXISTS'))
      throw new NostosError('TAIL_PERSIST_FAILED', `${error.message}; nothing was dropped`, {
        cause: error,
        details: { ...error.details, reason: error.message },
      });
    throw error;
  }
}

async function preserve(
  deps: FileWriterDeps,
  header: FileHeader,
  tail: () => Tail,
  options: FileWriterOptions,
): Promise<PreservedFile> {
  const { disk, dir } = deps;
  const path = join(dir, fileName(header));
  // Whoever made it may have died before its sync.
  disk.syncDirectory(dir);
  const known = disk.exists(path) ? await wholeOrSetAside(disk, path) : undefined;
  removeTemporaries(disk, dir);
  if (known !== undefined) return preserved(path, known);
  const temporary = `${path}.tmp`;
  const file = disk.open(temporary, 'create');
  try {
    await writeAll(deps, new FrameWriter(file), header, tail(), options);
    file.sync();
  } finally {
    file.close();
  }
  const description = await verifyFile(disk, temporary, options.signal);
  disk.link(temporary, path);
  disk.syncDirectory(dir);
  disk.remove(temporary);
  return preserved(path, description);
}

async function writeAll(
  deps: FileWriterDeps,
  out: FrameWriter,
  header: FileHeader,
  tail: Tail,
  options: FileWriterOptions,
): Promise<void> {
  out.raw(encodeHeader(header));
  const check = new ChainCheck(header);
  const limits = new LimitCheck(deps.limits, options.override === true);
  const schemas = new SchemaWindow();
  let [acknowledgedRecords, turnAt] = [0, TURN_BYTES];
  for await (const batch of readable(tail, options.signal)) {
    options.signal?.throwIfAborted();
    for (const item of batch) {
      if (!('record' in item)) {
        check.skip(item);
        out.frame(FrameKind.gap, item.more ? FLAG_MORE : 0, encodeGap(item));
        continue;
      }
      const { record, hash, acknowledged } = item;
      check.push(record, hash);
      limits.push(record);
      const { schema, unwritten } = schemaFor(deps, schemas, record);
      if (unwritten) out.frame(FrameKind.schema, 0, encodeSchema(unwritten));
      const start = encodeRecordStart(record, hash, schema?.name ?? '');
      out.frame(FrameKind.record, acknowledged ? FLAG_ACKNOWLEDGED : 0, start, record.bytes);
      acknowledgedRecords += acknowledged ? 1 : 0;
    }
    if (out.offset < turnAt) continue;
    turnAt = out.offset + TURN_BYTES;
    await yieldToEventLoop();
  }
  check.end();
  const { offset } = out;
  const { records, bytes: recordBytes } = limits;
  out.frame(
    FrameKind.footer,
    0,
    encodeFooter({ records, acknowledged: acknowledgedRecords, recordBytes, offset, digest: out.digest() }),
  );
  out.flush();
}

/** What the source throws is a tail that cannot be read. */
async function* readable(tail: Tail, signal: AbortSignal | undefined): AsyncGenerator<TailBatch, void, undefined> {
  try {
    yield* tail;
  } catch (error) {
    throw signal?.aborted === true ? signal.reason : tailUnreadable(reasonOf(error), error);
  }
}

/**
 * Order and bounds first, so that the message says what is wrong; then the hashes. Each one is named by the next record, and
 * the last one is computed here; those of all bytes when the file is read back.
 */
class ChainCheck {
  readonly #lastLsn: number;
  readonly #order: TailCheck | undefined;
  readonly #chain: TailChain;

  constructor(header: FileHeader) {
    const { complete, common, lastLsn, newTerm } = header;
    this.#lastLsn = lastLsn;
    const span = { common, frontier: { lsn: lastLsn }, primaryTerm: newTerm, dense: true };
    this.#order = complete ? new TailCheck(span) : undefined;
    this.#chain = new TailChain(header);
  }

  push(record: LogRecord, hash: Hash): void {
    this.#order?.push(record);
    const broken = this.#chain.record(record, hash);
    if (broken !== undefined) throw tailUnreadable(`LSN ${record.lsn}: ${broken}`);
    if (record.lsn === this.#lastLsn && Buffer.compare(hashRecord(record), hash) !== 0)
      throw tailUnreadable(`LSN ${record.lsn}: its bytes have another hash than was said`);
  }

  skip(gap: TailGap): void {
    const broken = this.#chain.gap(gap);
    if (broken !== undefined) throw tailUnreadable(broken);
  }

  end(): void {
    this.#order?.end();
    const broken = this.#chain.end();
    if (broken !== undefined) throw tailUnreadable(broken);
  }
}

class LimitCheck {
  readonly #limits: RollbackLimits;
  readonly #override: boolean;
  records = 0;
  bytes = 0;
  #firstMs: number | undefined;

  constructor(limits: RollbackLimits, override: boolean) {
    this.#limits = limits;
    this.#override = override;
  }

  push({ hlc, bytes }: LogRecord): void {
    const ms = hlcToMs(hlc);
    this.#firstMs ??= ms;
    this.records += 1;
    this.bytes += bytes.length;
    if (this.#override) return;
    const { tailRecordsMax, tailBytesMax, tailSpanMsMax } = this.#limits;
    const spanMs = ms - this.#firstMs;
    if (this.records > tailRecordsMax) throw tooLarge('records', 'tailRecordsMax', this.records, tailRecordsMax);
    if (this.bytes > tailBytesMax) throw tooLarge('bytes', 'tailBytesMax', this.bytes, tailBytesMax);
    if (spanMs > tailSpanMsMax) throw tooLarge('milliseconds of time', 'tailSpanMsMax', spanMs, tailSpanMsMax);
  }
}

/** The schema of a changeset; `unwritten` where a reader would not know it. */
function schemaFor(
  { schemaOf }: FileWriterDeps,
  schemas: SchemaWindow,
  record: LogRecord,
): { schema?: TenantSchema; unwritten?: TenantSchema } {
  const schemaVersion = schemaVersionOf(record);
  if (schemaVersion === undefined) return {};
  const known = schemas.get(record.tenant, schemaVersion);
  if (known !== undefined) return { schema: known };
  const schema = schemaOf(record.tenant, schemaVersion);
  if (schema === undefined) return {};
  schemas.add(schema);
  return { schema, unwritten: schema };
}

/** Frames into a file, through one buffer; larger ones go past it. */
class FrameWriter {
  readonly #file: DiskFile;
  readonly #hasher = new Blake3Hasher();
  readonly #buffer = Buffer.allocUnsafeSlow(BUFFER_BYTES);
  readonly #head = Buffer.alloc(FRAME_HEAD_BYTES);
  #filled = 0;
  #flushed = 0;

  constructor(file: DiskFile) {
    this.#file = file;
  }

  get offset(): number {
    return this.#flushed + this.#filled;
  }

  /** Of everything so far. */
  digest(): string {
    this.flush();
    return this.#hasher.digest();
  }

  frame(kind: FrameKind, flags: number, ...parts: readonly Uint8Array[]): void {
    const bodyBytes = parts.reduce((sum, { length }) => sum + length, 0);
    const bodyCrc = parts.reduce((crc, part) => crc32(part, crc), 0);
    putFrameHead(this.#head, 0, { kind, flags, bodyBytes, bodyCrc });
    this.raw(this.#head, ...parts);
  }

  raw(...parts: readonly Uint8Array[]): void {
    for (const part of parts) {
      if (this.#filled + part.length > BUFFER_BYTES) this.flush();
      if (part.length > BUFFER_BYTES) this.#write(part);
      else {
        this.#buffer.set(part, this.#filled);
        this.#filled += part.length;
      }
    }
  }

  flush(): void {
    if (this.#filled > 0) this.#write(this.#buffer.subarray(0, this.#filled));
    this.#filled = 0;
  }

  #write(bytes: Uint8Array): void {
    this.#hasher.update(bytes);
    this.#file.write(bytes, this.#flushed);
    this.#flushed += bytes.length;
  }
}

/** A name is taken for good only by a whole file: what a failing disk left under it goes aside, and is kept. */
async function wholeOrSetAside(disk: Disk, path: string): Promise<FileDescription | undefined> {
  try {
    return await verifyFile(disk, path);
  } catch (error) {
    if (!isNostosError(error, 'ROLLBACK_FILE_DAMAGED')) throw error;
    disk.link(path, `${path}${SET_ASIDE_SUFFIX}`);
    disk.remove(path);
    return undefined;
  }
}

function removeTemporaries(disk: Disk, dir: string): void {
  for (const name of disk.list(dir)) if (name.endsWith(TEMPORARY_SUFFIX)) disk.remove(join(dir, name));
}

function preserved(path: string, { footer }: FileDescription): PreservedFile {
  const { records, acknowledged, recordBytes, digest } = footer;
  return { path, records, acknowledged, bytes: recordBytes, digest };
}
