/**
 * One record of the log in bytes; `docs/format.md` is the picture. The hash of a record covers its whole bytes, among
 * them the hash of the record before it, so an equal hash at one LSN proves an equal history up to there.
 *
 * Little-endian, 64-bit numbers that are safe integers. Whatever does not check out is a `RecordFault`, since only the
 * caller knows whether it stands in a torn tail or in damage; what checks out and is not known here is from the future.
 */
import { crc32 } from 'node:zlib';
import { hashBlake3 } from '../base/blake3.ts';
import type { Generation, Hash, Hlc, Lsn, TenantId, Term } from '../base/brands.ts';
import { HASH_BYTES } from '../base/brands.ts';
import { NostosError } from '../base/errors.ts';

export const RECORD_FORMAT_VERSION = 1;
export const RECORD_HEADER_BYTES = 100;

/** Numbers in files: append only. */
export const RecordKind = {
  termStart: 1,
  changeset: 2,
  schema: 3,
  tenantCreate: 4,
  tenantDrop: 5,
  tenantReset: 6,
  actorEvent: 7,
  actorSnapshot: 8,
  noop: 9,
} as const;
export type RecordKind = (typeof RecordKind)[keyof typeof RecordKind];

/** What changes which tenants there are, and their names. */
export const CATALOG_KINDS: readonly RecordKind[] = [
  RecordKind.tenantCreate,
  RecordKind.tenantDrop,
  RecordKind.tenantReset,
];

const KIND_LAST = RecordKind.noop;

const AT = {
  version: 0,
  generation: 2,
  term: 18,
  lsn: 26,
  hlc: 34,
  tenant: 42,
  kind: 50,
  length: 52,
  watermark: 56,
  crc: 64,
  previousHash: 68,
} as const;

export interface RecordHeader {
  readonly generation: Generation;
  readonly term: Term;
  readonly lsn: Lsn;
  readonly hlc: Hlc;
  readonly tenant: TenantId;
  readonly kind: RecordKind;
  /** The primary's W when it wrote this record: everything up to there is committed. */
  readonly watermark: Lsn;
  readonly previousHash: Hash;
}

/** Bytes and payload are views of the buffer that was decoded: copy what has to outlive it. */
export interface LogRecord extends RecordHeader {
  readonly payload: Uint8Array;
  readonly bytes: Uint8Array;
}

export type RecordFault =
  /** Zeros: nothing was ever written here. */
  | 'blank'
  /** The bytes end before the record does. */
  | 'short'
  /** The CRC does not hold. */
  | 'corrupt';

export interface RecordFields {
  readonly term: Term;
  readonly lsn: Lsn;
  readonly hlc: Hlc;
  readonly tenant: TenantId;
  readonly kind: RecordKind;
  readonly watermark: Lsn;
  readonly payload: Uint8Array;
}

/** Encodes the records of one group back to back into one buffer, each chained to the one before. */
export class GroupEncoder {
  #buffer = Buffer.allocUnsafeSlow(64 * 1024);
  #view = new DataView(this.#buffer.buffer);
  #length = 0;

  /** Starts a group of at most so many bytes; the bytes of the group before are gone. */
  begin(bytesMax: number): void {
    this.#length = 0;
    if (bytesMax <= this.#buffer.length && this.#buffer.length <= Math.max(KEEP_BYTES_MAX, bytesMax)) return;
    this.#buffer = Buffer.allocUnsafeSlow(Math.max(64 * 1024, bytesMax));
    this.#view = new DataView(this.#buffer.buffer);
  }

  get length(): number {
    return this.#length;
  }

  /** Writes the record and answers with its hash. */
  add(generation: Uint8Array, record: RecordFields, previousHash: Uint8Array): Hash {
    const [buffer, view, at] = [this.#buffer, this.#view, this.#length];
    const { payload } = record;
    const end = at + RECORD_HEADER_BYTES + payload.length;
    view.setUint16(at + AT.version, RECORD_FORMAT_VERSION, true);
    buffer.set(generation, at + AT.generation);
    putUint64(view, at + AT.term, record.term);
    putUint64(view, at + AT.lsn, record.lsn);
    view.setBigUint64(at + AT.hlc, record.hlc, true);
    putUint64(view, at + AT.tenant, record.tenant);
    view.setUint16(at + AT.kind, record.kind, true);
    view.setUint32(at + AT.length, payload.length, true);
    putUint64(view, at + AT.watermark, record.watermark);
    buffer.set(previousHash, at + AT.previousHash);
    buffer.set(payload, at + RECORD_HEADER_BYTES);
    const bytes = buffer.subarray(at, end);
    view.setUint32(at + AT.crc, recordCrc(bytes), true);
    this.#length = end;
    return hashBlake3(bytes);
  }

  /** The group's bytes from there on; valid until the next `begin`. */
  bytes(from: number, to: number): Uint8Array {
    return this.#buffer.subarray(from, to);
  }
}

/** A buffer that one huge record made is not kept for ever. */
const KEEP_BYTES_MAX = 4 * 1024 * 1024;

/** Decodes records out of a buffer; keeps the last generation, so that its text is made once per run of records. */
export class RecordDecoder {
  #generationBytes = Buffer.alloc(16);
  #generation = '00000000000000000000000000000000' as Generation;

  decode(buffer: Buffer, view: DataView, at: number, end: number): LogRecord | RecordFault {
    if (end - at < 2) return at === end || buffer[at] === 0 ? 'blank' : 'short';
    const version = view.getUint16(at + AT.version, true);
    if (version === 0) return 'blank';
    if (end - at < RECORD_HEADER_BYTES) return 'short';
    const payloadBytes = view.getUint32(at + AT.length, true);
    const recordEnd = at + RECORD_HEADER_BYTES + payloadBytes;
    if (recordEnd > end) return 'short';
    const bytes = buffer.subarray(at, recordEnd);
    if (recordCrc(bytes) !== view.getUint32(at + AT.crc, true)) return 'corrupt';
    return this.#fields(buffer, view, at, bytes);
  }

  /** The header alone, where the payload is elsewhere or gone; the CRC, which covers both, is not checked. */
  header(buffer: Buffer, view: DataView, at: number): RecordHeader {
    return this.#fields(buffer, view, at, buffer.subarray(at, at + RECORD_HEADER_BYTES));
  }

  #fields(buffer: Buffer, view: DataView, at: number, bytes: Buffer): LogRecord {
    const version = view.getUint16(at + AT.version, true);
    const kind = view.getUint16(at + AT.kind, true);
    if (version > RECORD_FORMAT_VERSION || kind < 1 || kind > KIND_LAST)
      throw new NostosError(
        'UNSUPPORTED_FORMAT',
        `The log has a record of format version ${version} and kind ${kind}; this Nostos knows version ${RECORD_FORMAT_VERSION} and kinds up to ${KIND_LAST}. Open it with a newer Nostos`,
        { details: { version, kind } },
      );
    return {
      generation: this.#generationAt(buffer, at + AT.generation),
      term: getUint64(view, at + AT.term, 'term') as Term,
      lsn: getUint64(view, at + AT.lsn, 'LSN') as Lsn,
      hlc: view.getBigUint64(at + AT.hlc, true) as Hlc,
      tenant: getUint64(view, at + AT.tenant, 'tenant id') as TenantId,
      kind: kind as RecordKind,
      watermark: getUint64(view, at + AT.watermark, 'watermark') as Lsn,
      previousHash: bytes.subarray(AT.previousHash, AT.previousHash + HASH_BYTES) as Uint8Array as Hash,
      payload: bytes.subarray(RECORD_HEADER_BYTES),
      bytes,
    };
  }

  #generationAt(buffer: Buffer, at: number): Generation {
    if (this.#generationBytes.compare(buffer, at, at + 16) !== 0) {
      buffer.copy(this.#generationBytes, 0, at, at + 16);
      this.#generation = this.#generationBytes.toString('hex') as Generation;
    }
    return this.#generation;
  }
}

/** Decodes exactly one record, as it stands at the start of `bytes`. */
export function decodeRecord(bytes: Uint8Array): LogRecord | RecordFault {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  return new RecordDecoder().decode(buffer, view, 0, bytes.length);
}

export function hashRecord(record: LogRecord): Hash {
  return hashBlake3(record.bytes);
}

/** How long the record at `at` says it is; at least its header has to be there. */
export function recordBytesAt(view: DataView, at: number): number {
  return RECORD_HEADER_BYTES + view.getUint32(at + AT.length, true);
}

/** The bytes with which every record of this generation begins. */
export function recordPrefix(generation: Generation): Buffer {
  const prefix = Buffer.alloc(18);
  prefix.writeUInt16LE(RECORD_FORMAT_VERSION, 0);
  prefix.write(generation, 2, 'hex');
  return prefix;
}

function recordCrc(bytes: Buffer): number {
  return crc32(bytes.subarray(AT.previousHash), crc32(bytes.subarray(0, AT.crc)));
}

export function putUint64(view: DataView, at: number, value: number): void {
  view.setUint32(at, value >>> 0, true);
  view.setUint32(at + 4, (value / 2 ** 32) >>> 0, true);
}

/** A number of 64 bits that has to be a safe integer. */
export function getUint64(view: DataView, at: number, what: string): number {
  const high = view.getUint32(at + 4, true);
  if (high > 0x1f_ffff)
    throw new NostosError('UNSUPPORTED_FORMAT', `A ${what} in the log is beyond 2^53-1; Nostos never writes one`, {
      details: { what },
    });
  return high * 2 ** 32 + view.getUint32(at, true);
}
