/**
 * Reads a rollback file from its first byte to its last, a chunk at a time, and believes nothing that does not check out:
 * the CRC of each frame, each record's own CRC, its place in the chain of hashes, and at the end counts and digest.
 */
import { crc32 } from 'node:zlib';
import { Blake3Hasher } from '@napi-rs/blake-hash';
import type { Hash } from '../../base/brands.ts';
import type { Disk, DiskFile } from '../../base/disk.ts';
import { yieldToEventLoop } from '../../base/event-loop.ts';
import { RecordDecoder, hashRecord, type LogRecord } from '../../log/record.ts';
import {
  FILE_HEADER_BYTES,
  FLAG_ACKNOWLEDGED,
  FOOTER_BODY_BYTES,
  FRAME_HEAD_BYTES,
  FrameKind,
  damaged,
  decodeFooter,
  decodeGap,
  decodeHeader,
  decodeRecordFrame,
  decodeSchema,
  getFrameHead,
  schemaVersionOf,
  type FileFooter,
  type FileHeader,
  type TailGap,
  type TenantSchema,
} from './format.ts';
import { SchemaWindow } from './schema-window.ts';
import { TailChain } from './tail-chain.ts';

const CHUNK_BYTES = 256 * 1024;
const TURN_BYTES = 4 * 1024 * 1024;
const GAPS_LISTED_MAX = 1_000;
const EMPTY = Buffer.alloc(0);

/** A record with what is needed to show it; valid until the next one is asked for. */
export interface FileRecord {
  readonly record: LogRecord;
  readonly hash: Hash;
  readonly acknowledged: boolean;
  /** Empty where it belongs to no tenant, or the name is not known. */
  readonly tenantName: string;
  /** Of the schema version of a changeset, where the file has it. */
  readonly schema?: TenantSchema;
}

export interface FileDescription {
  readonly header: FileHeader;
  readonly footer: FileFooter;
  /** Records of its range that it does not have; 0 of a complete file. */
  readonly missing: number;
  /** The first `GAPS_LISTED_MAX` of them; absent where only the ends of the file were looked at. */
  readonly gaps?: readonly TailGap[];
  readonly fileBytes: number;
}

/** Header and footer only: a second's look at a file of any size. `verifyFile` reads all of it. */
export function describeFile(disk: Disk, path: string): FileDescription {
  const file = disk.open(path, 'read');
  try {
    const fileBytes = file.size();
    const header = decodeHeader(path, readAt(file, 0, FILE_HEADER_BYTES));
    const at = fileBytes - FRAME_HEAD_BYTES - FOOTER_BODY_BYTES;
    if (at < FILE_HEADER_BYTES) throw damaged(path, fileBytes, 'it has no footer');
    const bytes = readAt(file, at, FRAME_HEAD_BYTES + FOOTER_BODY_BYTES);
    const head = getFrameHead(path, bytes, 0, at);
    const body = bytes.subarray(FRAME_HEAD_BYTES);
    if (head.kind !== FrameKind.footer || crc32(body) !== head.bodyCrc) throw damaged(path, at, 'it has no footer');
    const footer = decodeFooter(path, body, at);
    checkFooter(path, header, footer, at);
    return { header, footer, missing: missingOf(header, footer), fileBytes };
  } finally {
    file.close();
  }
}

/** Reads and checks all of it. */
export async function verifyFile(disk: Disk, path: string, signal?: AbortSignal): Promise<FileDescription> {
  const file = disk.open(path, 'read');
  try {
    const walk = new FileWalk(path, file);
    for (;;) {
      const next = walk.next();
      if (next.kind === 'end') return next.description;
      if (walk.turnIsOver()) await yieldToEventLoop();
      signal?.throwIfAborted();
    }
  } finally {
    file.close();
  }
}

export type FileItem = FileRecord | TailGap;

/** All records in order. It ends well only if the whole file has held. */
export async function* readFileRecords(
  disk: Disk,
  path: string,
  signal?: AbortSignal,
): AsyncGenerator<FileRecord, void, undefined> {
  for await (const item of readFileItems(disk, path, signal)) if ('record' in item) yield item;
}

/** All records in order, and the gaps between those of an incomplete tail. */
export async function* readFileItems(
  disk: Disk,
  path: string,
  signal?: AbortSignal,
): AsyncGenerator<FileItem, void, undefined> {
  const file = disk.open(path, 'read');
  try {
    const walk = new FileWalk(path, file);
    for (;;) {
      signal?.throwIfAborted();
      const next = walk.next();
      if (next.kind === 'end') return;
      yield next.item;
      if (walk.turnIsOver()) await yieldToEventLoop();
    }
  } finally {
    file.close();
  }
}

type Found =
  | { readonly kind: 'item'; readonly item: FileItem }
  | { readonly kind: 'end'; readonly description: FileDescription };

class FileWalk {
  readonly #path: string;
  readonly #file: DiskFile;
  readonly #fileBytes: number;
  readonly #header: FileHeader;
  readonly #hasher = new Blake3Hasher();
  readonly #schemas = new SchemaWindow();
  readonly #decoder = new RecordDecoder();
  #buffer: Buffer = EMPTY;
  /** What of the file the buffer holds. */
  #chunkStart = 0;
  #chunkBytes = 0;
  readonly #chain: TailChain;
  readonly #gaps: TailGap[] = [];
  #records = 0;
  #acknowledged = 0;
  #recordBytes = 0;
  /** The next byte, and the first one that the digest does not have. */
  #offset = 0;
  #hashed = 0;
  #turnEnds = TURN_BYTES;

  constructor(path: string, file: DiskFile) {
    this.#path = path;
    this.#file = file;
    this.#fileBytes = file.size();
    const bytes = this.#take(Math.min(FILE_HEADER_BYTES, this.#fileBytes));
    this.#header = decodeHeader(path, bytes);
    this.#chain = new TailChain(this.#header);
  }

  /** Every few megabytes somebody else has to have a turn. */
  turnIsOver(): boolean {
    if (this.#offset < this.#turnEnds) return false;
    this.#turnEnds = this.#offset + TURN_BYTES;
    return true;
  }

  next(): Found {
    for (;;) {
      const at = this.#offset;
      const head = getFrameHead(this.#path, this.#take(FRAME_HEAD_BYTES), 0, at);
      // The footer stays out of the digest, and is in the same buffer as its head or behind it.
      if (head.kind === FrameKind.footer) this.#hashUpTo(at);
      const body = this.#take(head.bodyBytes);
      if (crc32(body) !== head.bodyCrc) throw this.#damaged(at, 'the CRC of a frame does not hold');
      if (head.kind === FrameKind.footer) return this.#end(body, at);
      if (head.kind === FrameKind.schema) this.#schemas.add(decodeSchema(this.#path, body, at));
      else if (head.kind === FrameKind.gap) return { kind: 'item', item: this.#gap(body, at, head.flags) };
      else return { kind: 'item', item: this.#record(body, at, (head.flags & FLAG_ACKNOWLEDGED) !== 0) };
    }
  }

  #record(body: Buffer, at: number, acknowledged: boolean): FileRecord {
    const frame = decodeRecordFrame(this.#path, body, at);
    const record = this.#decode(frame.bytes, at);
    const hash = hashRecord(record);
    if (
      record.lsn !== frame.lsn ||
      record.term !== frame.term ||
      record.tenant !== frame.tenant ||
      record.kind !== frame.kind ||
      record.hlc !== frame.hlc ||
      Buffer.compare(hash, frame.hash) !== 0
    )
      throw this.#damaged(at, `the record of LSN ${frame.lsn} is another one than it says`);
    const broken = this.#chain.record(record, hash);
    if (broken !== undefined) throw this.#damaged(at, broken);
    this.#records += 1;
    this.#acknowledged += acknowledged ? 1 : 0;
    this.#recordBytes += record.bytes.length;
    const version = schemaVersionOf(record);
    const schema = version === undefined ? undefined : this.#schemas.get(record.tenant, version);
    const found = { record, hash, acknowledged, tenantName: frame.tenantName };
    return schema === undefined ? found : { ...found, schema };
  }

  #gap(body: Buffer, at: number, flags: number): TailGap {
    const gap = decodeGap(this.#path, body, at, flags);
    const broken = this.#chain.gap(gap);
    if (broken !== undefined) throw this.#damaged(at, broken);
    if (this.#gaps.length < GAPS_LISTED_MAX) this.#gaps.push(gap);
    return gap;
  }

  #decode(bytes: Buffer, at: number): LogRecord {
    const record = this.#decoder.decode(
      bytes,
      new DataView(bytes.buffer, bytes.byteOffset, bytes.length),
      0,
      bytes.length,
    );
    if (typeof record === 'string') throw this.#damaged(at, `a record is ${record}`);
    if (record.bytes.length !== bytes.length) throw this.#damaged(at, 'bytes follow a record');
    return record;
  }

  #end(body: Buffer, at: number): Found {
    const footer = decodeFooter(this.#path, body, at);
    checkFooter(this.#path, this.#header, footer, at);
    if (this.#offset !== this.#fileBytes) throw this.#damaged(this.#offset, 'bytes follow the footer');
    const broken = this.#chain.end();
    if (broken !== undefined) throw this.#damaged(at, broken);
    const { records, acknowledged, recordBytes, digest } = footer;
    if (records !== this.#records || acknowledged !== this.#acknowledged || recordBytes !== this.#recordBytes)
      throw this.#damaged(at, 'its footer counts other records');
    if (this.#hasher.digest() !== digest) throw this.#damaged(at, 'its digest does not hold');
    const missing = missingOf(this.#header, footer);
    const description = { header: this.#header, footer, missing, gaps: this.#gaps, fileBytes: this.#fileBytes };
    return { kind: 'end', description };
  }

  /** The next bytes, valid until the next call: all of a file passes through one buffer. */
  #take(count: number): Buffer {
    const at = this.#offset;
    if (at + count > this.#fileBytes) throw this.#damaged(at, `it ends ${at + count - this.#fileBytes} bytes early`);
    if (at + count > this.#chunkStart + this.#chunkBytes) {
      this.#hashUpTo(at);
      if (count > this.#buffer.length) this.#buffer = Buffer.allocUnsafeSlow(Math.max(CHUNK_BYTES, count));
      this.#chunkBytes = this.#file.read(this.#buffer.subarray(0, this.#fileBytes - at), at);
      this.#chunkStart = at;
      if (this.#chunkBytes < count) throw this.#damaged(at + this.#chunkBytes, 'it ends while it is being read');
    }
    this.#offset = at + count;
    const from = at - this.#chunkStart;
    return this.#buffer.subarray(from, from + count);
  }

  /** What the buffer still has of it. */
  #hashUpTo(end: number): void {
    const from = this.#hashed - this.#chunkStart;
    if (end > this.#hashed) this.#hasher.update(this.#buffer.subarray(from, end - this.#chunkStart));
    this.#hashed = end;
  }

  #damaged(at: number, why: string): Error {
    return damaged(this.#path, at, why);
  }
}

function missingOf({ firstLsn, lastLsn }: FileHeader, { records }: FileFooter): number {
  return lastLsn - firstLsn + 1 - records;
}

function checkFooter(path: string, header: FileHeader, footer: FileFooter, at: number): void {
  if (footer.offset !== at) throw damaged(path, at, `its footer says that it lies at ${footer.offset}`);
  const missing = missingOf(header, footer);
  if (missing < 0 || (header.complete && missing > 0)) throw damaged(path, at, `it has ${footer.records} records`);
}

function readAt(file: DiskFile, offset: number, bytes: number): Buffer {
  const target = Buffer.allocUnsafeSlow(bytes);
  return target.subarray(0, file.read(target, offset));
}
