/**
 * The bytes of a rollback file; `docs/rollback-files.md` is the picture. A header, then frames, the last one the footer.
 * Little-endian. The head of a frame has a CRC of its own, so no damaged length is believed; nothing else is, either.
 */
import { crc32 } from 'node:zlib';
import * as v from 'valibot';
import { HASH_BYTES, toGeneration, toHash, toLsn, toTerm } from '../../base/brands.ts';
import { NostosError } from '../../base/errors.ts';
import { readInput } from '../../base/input-schema.ts';
import type { ChainPoint } from '../../log/chain.ts';
import { RecordKind, type LogRecord } from '../../log/record.ts';
import { decodeChangesetPayload } from '../../store/payload.ts';
import type { CommonPoint } from '../types.ts';

export const FILE_MAGIC = 'NOSTOSRB';
/** Version 2 has gaps: it is of a tail of which not every record could be read. Whole tails are written as version 1. */
const VERSION_WHOLE = 1;
const VERSION_WITH_GAPS = 2;
export const FILE_HEADER_BYTES = 168;
export const FRAME_HEAD_BYTES = 16;
/** No record is larger; a file that says so is damaged. */
export const FRAME_BYTES_MAX = 512 * 1024 * 1024;
export const FOOTER_BODY_BYTES = 64;
const RECORD_FIXED_BYTES = 68;
const SCHEMA_FIXED_BYTES = 30;
const GAP_FIXED_BYTES = 16;

/** Numbers in files: append only. */
export const FrameKind = { record: 1, schema: 2, footer: 3, gap: 4 } as const;
export type FrameKind = (typeof FrameKind)[keyof typeof FrameKind];

export const FLAG_ACKNOWLEDGED = 1;
export const FLAG_MORE = 2;
const FLAGS: Readonly<Record<FrameKind, number>> = {
  [FrameKind.record]: FLAG_ACKNOWLEDGED,
  [FrameKind.schema]: 0,
  [FrameKind.footer]: 0,
  [FrameKind.gap]: FLAG_MORE,
};

/** Ids are 32 hex digits. */
export interface FileHeader {
  /** Every record from the first LSN to the last is there; otherwise the file says which ones are not, and why. */
  readonly complete: boolean;
  readonly node: string;
  readonly cluster: string;
  /** Of the common point. */
  readonly generation: string;
  /** Of the rollback. */
  readonly id: string;
  /** Term and hash are zeros where an incomplete file does not know them. */
  readonly common: CommonPoint;
  /** Of the last record. */
  readonly oldTerm: number;
  /** Of the primary that the node follows instead; of an incomplete file that of the group, which may be the same. */
  readonly newTerm: number;
  readonly firstLsn: number;
  readonly lastLsn: number;
  readonly createdAtMs: number;
}

export interface FileFooter {
  readonly records: number;
  /** Records that somebody had been told were kept. */
  readonly acknowledged: number;
  /** Bytes of the records. */
  readonly recordBytes: number;
  /** Where the footer begins. */
  readonly offset: number;
  /** BLAKE3 of everything before the footer, 64 hex digits. */
  readonly digest: string;
}

/** Columns of a table in the order of changesets. */
export interface TableNames {
  readonly name: string;
  /** `shadow`: of a virtual table, and derived where triggers keep it. */
  readonly type: 'table' | 'shadow';
  readonly columns: readonly string[];
  readonly keyColumns: readonly string[];
}

export interface TenantSchema {
  readonly tenant: number;
  readonly schemaVersion: number;
  readonly uuid: string;
  readonly name: string;
  readonly tables: readonly TableNames[];
}

/** Records that could not be read. */
export interface TailGap {
  readonly from: number;
  readonly to: number;
  /** It is not known how many records followed. */
  readonly more: boolean;
  readonly reason: string;
}

export interface RecordFrame {
  readonly term: number;
  readonly lsn: number;
  readonly hash: Uint8Array;
  readonly hlc: bigint;
  readonly tenant: number;
  readonly kind: number;
  /** Empty where the record belongs to none, or it is not known. */
  readonly tenantName: string;
  /** The record as it stood in the log. */
  readonly bytes: Buffer;
}

export interface FrameHead {
  readonly kind: FrameKind;
  readonly flags: number;
  readonly bodyBytes: number;
  readonly bodyCrc: number;
}

export function encodeHeader(header: FileHeader): Uint8Array {
  const bytes = Buffer.alloc(FILE_HEADER_BYTES);
  bytes.write(FILE_MAGIC, 0, 'latin1');
  bytes.writeUInt16LE(header.complete ? VERSION_WHOLE : VERSION_WITH_GAPS, 8);
  [header.node, header.cluster, header.generation, header.id].forEach((id, i) => bytes.write(id, 12 + 16 * i, 'hex'));
  const { common, oldTerm, newTerm, firstLsn, lastLsn, createdAtMs } = header;
  putNumber(bytes, 76, common.term);
  putNumber(bytes, 84, common.lsn);
  bytes.write(common.hash, 92, 'hex');
  [oldTerm, newTerm, firstLsn, lastLsn, createdAtMs].forEach((value, i) => putNumber(bytes, 124 + 8 * i, value));
  bytes.writeUInt32LE(crc32(bytes.subarray(0, -4)), FILE_HEADER_BYTES - 4);
  return bytes;
}

export function decodeHeader(path: string, source: Uint8Array): FileHeader {
  const bytes = asBuffer(source);
  if (bytes.length < FILE_HEADER_BYTES) throw damaged(path, bytes.length, 'it ends within its header');
  if (bytes.toString('latin1', 0, 8) !== FILE_MAGIC) throw damaged(path, 0, 'it does not begin as a rollback file');
  if (crc32(bytes.subarray(0, FILE_HEADER_BYTES - 4)) !== bytes.readUInt32LE(FILE_HEADER_BYTES - 4))
    throw damaged(path, 0, 'the CRC of its header does not hold');
  const version = bytes.readUInt16LE(8);
  if (version !== VERSION_WHOLE && version !== VERSION_WITH_GAPS)
    throw new NostosError(
      'UNSUPPORTED_FORMAT',
      `${path} is a rollback file of version ${version}, this Nostos knows up to ${VERSION_WITH_GAPS}; read it with a newer one`,
      { details: { path, version } },
    );
  const id = (at: number): string => bytes.toString('hex', at, at + 16);
  const number = (at: number): number => getNumber(path, bytes, at, at);
  const header: FileHeader = {
    complete: version === VERSION_WHOLE,
    node: id(12),
    cluster: id(28),
    generation: id(44),
    id: id(60),
    common: { term: number(76), lsn: number(84), hash: bytes.toString('hex', 92, 92 + HASH_BYTES) },
    oldTerm: number(124),
    newTerm: number(132),
    firstLsn: number(140),
    lastLsn: number(148),
    createdAtMs: number(156),
  };
  const { complete, common, oldTerm, newTerm, firstLsn, lastLsn } = header;
  const termsRise = complete ? oldTerm < newTerm : oldTerm <= newTerm;
  if (firstLsn !== common.lsn + 1 || lastLsn < firstLsn || !termsRise)
    throw damaged(path, 76, 'its header contradicts itself');
  return header;
}

/** Writes the head of a frame at `at`. `bodyCrc` is over its body. */
export function putFrameHead(target: Buffer, at: number, head: FrameHead): void {
  target.writeUInt8(head.kind, at);
  target.writeUInt8(head.flags, at + 1);
  target.writeUInt16LE(0, at + 2);
  target.writeUInt32LE(head.bodyBytes, at + 4);
  target.writeUInt32LE(head.bodyCrc, at + 8);
  target.writeUInt32LE(crc32(target.subarray(at, at + 12)), at + 12);
}

export function getFrameHead(path: string, bytes: Buffer, at: number, offset: number): FrameHead {
  if (crc32(bytes.subarray(at, at + 12)) !== bytes.readUInt32LE(at + 12))
    throw damaged(path, offset, 'the CRC of a frame head does not hold');
  const kind = bytes.readUInt8(at);
  const flags = bytes.readUInt8(at + 1);
  const bodyBytes = bytes.readUInt32LE(at + 4);
  if (!isFrameKind(kind)) throw damaged(path, offset, `it has a frame of the unknown kind ${kind}`);
  if ((flags & ~FLAGS[kind]) !== 0 || bytes.readUInt16LE(at + 2) !== 0)
    throw damaged(path, offset, 'a frame head has bits that mean nothing');
  if (bodyBytes > FRAME_BYTES_MAX) throw damaged(path, offset, `it has a frame of ${bodyBytes} bytes`);
  return { kind, flags, bodyBytes, bodyCrc: bytes.readUInt32LE(at + 8) };
}

function isFrameKind(kind: number): kind is FrameKind {
  return kind in FLAGS;
}

/** The body without the bytes of the record, which follow it. */
export function encodeRecordStart(record: LogRecord, hash: Uint8Array, tenantName: string): Uint8Array {
  const name = Buffer.from(tenantName);
  const bytes = Buffer.allocUnsafe(RECORD_FIXED_BYTES + name.length);
  putNumber(bytes, 0, record.term);
  putNumber(bytes, 8, record.lsn);
  bytes.set(hash, 16);
  bytes.writeBigUInt64LE(record.hlc, 48);
  putNumber(bytes, 56, record.tenant);
  bytes.writeUInt16LE(record.kind, 64);
  bytes.writeUInt16LE(name.length, 66);
  name.copy(bytes, RECORD_FIXED_BYTES);
  return bytes;
}

/** A view into `body`, which lies at `offset` of the file. */
export function decodeRecordFrame(path: string, body: Buffer, offset: number): RecordFrame {
  if (body.length < RECORD_FIXED_BYTES) throw damaged(path, offset, `a record has ${body.length} bytes`);
  const nameEnd = RECORD_FIXED_BYTES + body.readUInt16LE(66);
  if (nameEnd > body.length) throw damaged(path, offset, 'the name of a tenant is cut short');
  return {
    term: getNumber(path, body, 0, offset),
    lsn: getNumber(path, body, 8, offset),
    hash: body.subarray(16, 16 + HASH_BYTES),
    hlc: body.readBigUInt64LE(48),
    tenant: getNumber(path, body, 56, offset),
    kind: body.readUInt16LE(64),
    tenantName: body.toString('utf8', RECORD_FIXED_BYTES, nameEnd),
    bytes: body.subarray(nameEnd),
  };
}

export function encodeSchema(schema: TenantSchema): Uint8Array {
  const name = Buffer.from(schema.name);
  const tables = schema.tables.map(({ name, type, columns, keyColumns }) => ({ name, type, columns, keyColumns }));
  const fixed = Buffer.alloc(SCHEMA_FIXED_BYTES);
  putNumber(fixed, 0, schema.tenant);
  fixed.writeUInt32LE(schema.schemaVersion, 8);
  fixed.write(schema.uuid, 12, 'hex');
  fixed.writeUInt16LE(name.length, 28);
  return Buffer.concat([fixed, name, Buffer.from(JSON.stringify(tables))]);
}

const texts = v.array(v.string());
const tableNames = v.array(
  v.object({ name: v.string(), type: v.picklist(['table', 'shadow']), columns: texts, keyColumns: texts }),
);

export function decodeSchema(path: string, body: Buffer, offset: number): TenantSchema {
  if (body.length < SCHEMA_FIXED_BYTES) throw damaged(path, offset, `a schema has ${body.length} bytes`);
  const nameEnd = SCHEMA_FIXED_BYTES + body.readUInt16LE(28);
  if (nameEnd > body.length) throw damaged(path, offset, 'the name of a tenant is cut short');
  let tables: unknown;
  try {
    tables = JSON.parse(body.toString('utf8', nameEnd));
  } catch {
    throw damaged(path, offset, 'a schema is not JSON');
  }
  const read = readInput(tableNames, tables);
  if (!read.ok) throw damaged(path, offset, `a schema cannot be read: ${read.problem}`);
  return {
    tenant: getNumber(path, body, 0, offset),
    schemaVersion: body.readUInt32LE(8),
    uuid: body.toString('hex', 12, 28),
    name: body.toString('utf8', SCHEMA_FIXED_BYTES, nameEnd),
    tables: read.value,
  };
}

export function encodeGap({ from, to, reason }: TailGap): Uint8Array {
  const text = Buffer.from(reason);
  const bytes = Buffer.alloc(GAP_FIXED_BYTES + text.length);
  putNumber(bytes, 0, from);
  putNumber(bytes, 8, to);
  text.copy(bytes, GAP_FIXED_BYTES);
  return bytes;
}

export function decodeGap(path: string, body: Buffer, offset: number, flags: number): TailGap {
  if (body.length < GAP_FIXED_BYTES) throw damaged(path, offset, `a gap has ${body.length} bytes`);
  const number = (at: number): number => getNumber(path, body, at, offset);
  const reason = body.toString('utf8', GAP_FIXED_BYTES);
  return { from: number(0), to: number(8), more: (flags & FLAG_MORE) !== 0, reason };
}

export function encodeFooter(footer: FileFooter): Uint8Array {
  const bytes = Buffer.alloc(FOOTER_BODY_BYTES);
  const { records, acknowledged, recordBytes, offset } = footer;
  [records, acknowledged, recordBytes, offset].forEach((value, i) => putNumber(bytes, 8 * i, value));
  bytes.write(footer.digest, 32, 'hex');
  return bytes;
}

export function decodeFooter(path: string, body: Buffer, offset: number): FileFooter {
  if (body.length !== FOOTER_BODY_BYTES) throw damaged(path, offset, `the footer has ${body.length} bytes`);
  const number = (at: number): number => getNumber(path, body, at, offset);
  return {
    records: number(0),
    acknowledged: number(8),
    recordBytes: number(16),
    offset: number(24),
    digest: body.toString('hex', 32, 64),
  };
}

/** Where the chain of hashes of a tail begins; undefined where an incomplete file does not know it. */
export function chainStart({ complete, generation, common }: FileHeader): ChainPoint | undefined {
  if (!complete && common.lsn > 0 && common.term === 0) return undefined;
  return {
    generation: toGeneration(generation),
    term: toTerm(common.term),
    lsn: toLsn(common.lsn),
    hash: toHash(Buffer.from(common.hash, 'hex')),
  };
}

/** Of a changeset; undefined for other records, and where a newer Nostos wrote the payload. */
export function schemaVersionOf(record: LogRecord): number | undefined {
  if (record.kind !== RecordKind.changeset) return undefined;
  try {
    return decodeChangesetPayload(record.payload).schemaVersion;
  } catch (error) {
    if (error instanceof NostosError) return undefined;
    throw error;
  }
}

export function damaged(path: string, offset: number, why: string): NostosError {
  return new NostosError('ROLLBACK_FILE_DAMAGED', `${path} is damaged at byte ${offset}: ${why}`, {
    details: { path, offset, reason: why },
  });
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
}

function putNumber(bytes: Buffer, at: number, value: number): void {
  bytes.writeBigUInt64LE(BigInt(value), at);
}

function getNumber(path: string, bytes: Buffer, at: number, offset: number): number {
  const value = Number(bytes.readBigUInt64LE(at));
  if (!Number.isSafeInteger(value)) throw damaged(path, offset, `it has the number ${value}, beyond 2^53-1`);
  return value;
}
