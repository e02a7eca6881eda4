/**
 * One object of the archived log in bytes: committed records without a gap, of one generation;
 * `docs/backup-format.md` is the picture. It holds the headers of all records in one block, and the payloads in others:
 * one per tenant that has a key, sealed with it, and one for everybody else. Where a key was destroyed the payloads are
 * gone and the chain still verifies: the hash of a record stands in the next header, that of the last one in the prelude.
 *
 * Its name holds the range and the beginning of the BLAKE3 of its bytes. Records come back byte for byte.
 */
import { hashBlake3 } from '../../base/blake3.ts';
import type { Brand, Generation, Hash, Hlc, Lsn, TenantId, Term } from '../../base/brands.ts';
import { HASH_BYTES } from '../../base/brands.ts';
import { NostosError } from '../../base/errors.ts';
import type { Random } from '../../base/random.ts';
import { sameBytes } from '../../log/chain.ts';
import type { ChainPoint } from '../../log/chain.ts';
import type { ReadRecord } from '../../log/reader.ts';
import type { LogRecord, RecordHeader } from '../../log/record.ts';
import {
  getUint64,
  hashRecord,
  putUint64,
  RECORD_HEADER_BYTES,
  RecordDecoder,
  recordBytesAt,
} from '../../log/record.ts';
import type { BackupKey, KeyId } from './keys.ts';
import type { RepositoryId } from './manifest.ts';
import { compress, decompress, decrypt, encrypt, newNonce, NO_NONCE, NONCE_BYTES, releaseOutput } from './sealing.ts';

export const ARCHIVE_FORMAT_VERSION = 1;
export const ARCHIVE_PRELUDE_BYTES = 128;
/** What one object may claim: a record may be as large as the log takes, in an object of its own. */
export const ARCHIVE_BLOCK_BYTES_MAX = 256 * 1024 * 1024;

const MAGIC = 'NDBA';
const DIRECTORY_ROW_BYTES = 48;
const FLAG_ZSTD = 1;
const FLAG_ENCRYPTED = 2;
const SHARED = -1;
const AT = {
  version: 4,
  generation: 8,
  repository: 24,
  from: 40,
  to: 48,
  firstHlc: 56,
  lastHlc: 64,
  lastTerm: 72,
  lastHash: 80,
  blocks: 112,
  headerFlags: 116,
  headerStored: 120,
  zero: 124,
} as const;

/** `archive/<generation>/<from>-<to>-<16 hex digits>.nda`. */
export type ArchiveKey = Brand<string, 'ArchiveKey'>;

export interface ArchiveName {
  readonly key: ArchiveKey;
  readonly generation: Generation;
  readonly from: Lsn;
  readonly to: Lsn;
  readonly digest: string;
}

export interface ArchivePrelude {
  readonly repository: RepositoryId;
  readonly generation: Generation;
  readonly from: Lsn;
  readonly firstHlc: Hlc;
  readonly lastHlc: Hlc;
  /** The last record. */
  readonly last: ChainPoint;
}

export interface ArchivedRecord {
  readonly header: RecordHeader;
  readonly hash: Hash;
  /** Undefined where the key of the tenant is not there, or was destroyed. */
  readonly record: LogRecord | undefined;
}

export interface ArchiveContent extends ArchivePrelude {
  readonly records: readonly ArchivedRecord[];
}

const NAME = /^archive\/([0-9a-f]{32})\/(\d{16})-(\d{16})-([0-9a-f]{16})\.nda$/;

/** Undefined for what is not named like an object of the archive. */
export function parseArchiveKey(key: string): ArchiveName | undefined {
  const match = NAME.exec(key);
  if (match === null) return undefined;
  const [from, to] = [Number(match[2]), Number(match[3])];
  if (from < 1 || to < from || !Number.isSafeInteger(to)) return undefined;
  return {
    key: key as ArchiveKey,
    generation: match[1] as Generation,
    from: from as Lsn,
    to: to as Lsn,
    digest: match[4]!,
  };
}

export function archivePrefix(generation: Generation): string {
  return `archive/${generation}/`;
}

export interface EncodeArchiveOptions {
  readonly repository: RepositoryId;
  readonly keyOf: (tenant: TenantId) => Promise<BackupKey | undefined>;
  readonly random: Random;
}

/** Of consecutive records of one generation, at least one. */
export async function encodeArchive(
  records: readonly ReadRecord[],
  { repository, keyOf, random }: EncodeArchiveOptions,
): Promise<{ readonly key: ArchiveKey; readonly bytes: Uint8Array }> {
  const [first, last] = [records[0]!, records.at(-1)!];
  const headers = Buffer.allocUnsafe(records.length * RECORD_HEADER_BYTES);
  for (const [index, { record }] of records.entries())
    headers.set(record.bytes.subarray(0, RECORD_HEADER_BYTES), index * RECORD_HEADER_BYTES);
  const compressed = await compress(headers);

  const prelude = Buffer.alloc(ARCHIVE_PRELUDE_BYTES);
  const view = viewOf(prelude);
  const payloads = await payloadsByBlock(records, keyOf);
  prelude.write(MAGIC, 0, 'latin1');
  prelude.writeUInt16LE(ARCHIVE_FORMAT_VERSION, AT.version);
  prelude.write(first.record.generation, AT.generation, 'hex');
  prelude.write(repository, AT.repository, 'hex');
  putUint64(view, AT.from, first.record.lsn);
  putUint64(view, AT.to, last.record.lsn);
  view.setBigUint64(AT.firstHlc, first.record.hlc, true);
  view.setBigUint64(AT.lastHlc, last.record.hlc, true);
  putUint64(view, AT.lastTerm, last.record.term);
  prelude.set(last.hash, AT.lastHash);
  prelude.writeUInt32LE(payloads.size, AT.blocks);
  prelude.writeUInt32LE(compressed === undefined ? 0 : FLAG_ZSTD, AT.headerFlags);
  prelude.writeUInt32LE((compressed ?? headers).length, AT.headerStored);

  const directory = Buffer.alloc(payloads.size * DIRECTORY_ROW_BYTES);
  const bodies: Uint8Array[] = [];
  for (const [index, [tenant, { key, parts }]] of [...payloads].entries()) {
    const row = directory.subarray(index * DIRECTORY_ROW_BYTES, (index + 1) * DIRECTORY_ROW_BYTES);
    const plain = Buffer.concat(parts);
    const small = await compress(plain);
    const nonce = key === undefined ? NO_NONCE : newNonce(random);
    if (tenant === SHARED) row.fill(0xff, 0, 8);
    else putUint64(viewOf(row), 0, tenant);
    if (key !== undefined) row.write(key.id, 8, 'hex');
    row.set(nonce, 24);
    row.writeUInt32LE((small === undefined ? 0 : FLAG_ZSTD) | (key === undefined ? 0 : FLAG_ENCRYPTED), 36);
    row.writeUInt32LE(plain.length, 40);
    const body =
      key === undefined ? [small ?? plain] : encrypt(key, nonce, [prelude, row.subarray(0, 44)], small ?? plain);
    let stored = 0;
    for (const part of body) stored += part.length;
    row.writeUInt32LE(stored, 44);
    bodies.push(...body);
  }
  const bytes = Buffer.concat([prelude, compressed ?? headers, directory, ...bodies]);
  const range = `${digits(first.record.lsn)}-${digits(last.record.lsn)}`;
  const key = `${archivePrefix(first.record.generation)}${range}-${digestOf(bytes)}.nda` as ArchiveKey;
  if (compressed !== undefined) releaseOutput(compressed);
  return { key, bytes };
}

/** From the first bytes of an object, which nothing has checked yet but their shape. */
export function decodePrelude(bytes: Uint8Array, name: ArchiveName): ArchivePrelude {
  const prelude = Buffer.from(bytes.buffer, bytes.byteOffset, Math.min(bytes.length, ARCHIVE_PRELUDE_BYTES));
  if (prelude.length < ARCHIVE_PRELUDE_BYTES || prelude.toString('latin1', 0, 4) !== MAGIC)
    throw damaged(name, 'it does not begin like one');
  const version = prelude.readUInt16LE(AT.version);
  if (version !== ARCHIVE_FORMAT_VERSION)
    throw new NostosError(
      'UNSUPPORTED_FORMAT',
      `${name.key} has format version ${version}; this Nostos knows version ${ARCHIVE_FORMAT_VERSION}. Use a newer Nostos`,
      { details: { key: name.key, version } },
    );
  const view = viewOf(prelude);
  const generation = prelude.toString('hex', AT.generation, AT.generation + 16) as Generation;
  const from = getUint64(view, AT.from, 'LSN') as Lsn;
  const to = getUint64(view, AT.to, 'LSN') as Lsn;
  if (generation !== name.generation || from !== name.from || to !== name.to)
    throw damaged(name, 'it holds other records than its name says');
  return {
    repository: prelude.toString('hex', AT.repository, AT.repository + 16) as RepositoryId,
    generation,
    from,
    firstHlc: view.getBigUint64(AT.firstHlc, true) as Hlc,
    lastHlc: view.getBigUint64(AT.lastHlc, true) as Hlc,
    last: {
      generation,
      term: getUint64(view, AT.lastTerm, 'term') as Term,
      lsn: to,
      hash: new Uint8Array(prelude.subarray(AT.lastHash, AT.lastHash + HASH_BYTES)) as Hash,
    },
  };
}

export interface DecodeArchiveOptions {
  readonly repository: RepositoryId;
  readonly keyById: (id: KeyId) => Promise<BackupKey | undefined>;
  /** Payloads of other tenants are left out, as if their keys were gone; only sealed ones can be. */
  readonly tenants?: ReadonlySet<TenantId> | undefined;
}

/** Every record whose payload is there is checked by its CRC and hash, and every hash against the next header. */
export async function decodeArchive(
  bytes: Uint8Array,
  name: ArchiveName,
  { repository, keyById, tenants }: DecodeArchiveOptions,
): Promise<ArchiveContent> {
  const prelude = decodePrelude(bytes, name);
  if (digestOf(bytes) !== name.digest) throw damaged(name, 'its bytes are not those that were written');
  if (prelude.repository !== repository) throw damaged(name, `it belongs to the repository ${prelude.repository}`);
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  const count = name.to - name.from + 1;
  const headerStored = buffer.readUInt32LE(AT.headerStored);
  const headerFlags = buffer.readUInt32LE(AT.headerFlags);
  const blocks = buffer.readUInt32LE(AT.blocks);
  const directoryAt = ARCHIVE_PRELUDE_BYTES + headerStored;
  const bodiesAt = directoryAt + blocks * DIRECTORY_ROW_BYTES;
  const isPossible =
    headerFlags <= FLAG_ZSTD &&
    buffer.readUInt16LE(6) === 0 &&
    buffer.readUInt32LE(AT.zero) === 0 &&
    bodiesAt <= buffer.length;
  if (!isPossible || count * RECORD_HEADER_BYTES > ARCHIVE_BLOCK_BYTES_MAX)
    throw damaged(name, 'its prelude claims what cannot be');
  const storedHeaders = buffer.subarray(ARCHIVE_PRELUDE_BYTES, directoryAt);
  const headers = headerFlags === 0 ? storedHeaders : await decompress(storedHeaders, count * RECORD_HEADER_BYTES);
  if (headers?.length !== count * RECORD_HEADER_BYTES) throw damaged(name, 'its headers are not as many as it claims');

  const opened = new Map<number, { readonly plain: Uint8Array | undefined; at: number; bytes: number }>();
  let at = bodiesAt;
  for (let index = 0; index < blocks; index++) {
    const start = directoryAt + index * DIRECTORY_ROW_BYTES;
    const row = buffer.subarray(start, start + DIRECTORY_ROW_BYTES);
    const stored = row.readUInt32LE(44);
    if (at + stored > buffer.length) throw damaged(name, 'a block ends behind its end');
    const tenant = row.readBigUInt64LE(0) === 2n ** 64n - 1n ? SHARED : getUint64(viewOf(row), 0, 'tenant id');
    if (opened.has(tenant)) throw damaged(name, `it has two blocks of the tenant ${tenant}`);
    const isWanted = tenant === SHARED || tenants === undefined || tenants.has(tenant as TenantId);
    const body = buffer.subarray(at, at + stored);
    const plain = isWanted
      ? await openBlock(row, body, buffer.subarray(0, ARCHIVE_PRELUDE_BYTES), keyById, name)
      : undefined;
    opened.set(tenant, { plain, at: 0, bytes: row.readUInt32LE(40) });
    at += stored;
  }
  if (at !== buffer.length) throw damaged(name, 'there is something behind its last block');

  const decoder = new RecordDecoder();
  const from = Buffer.from(headers.buffer, headers.byteOffset, headers.length);
  const view = viewOf(from);
  const records: ArchivedRecord[] = [];
  for (let index = 0; index < count; index++) {
    const offset = index * RECORD_HEADER_BYTES;
    const header = decoder.header(from, view, offset);
    if (header.lsn !== name.from + index || header.generation !== name.generation)
      throw damaged(name, `its header ${index} is of another record`);
    const block = opened.get(opened.has(header.tenant) ? header.tenant : SHARED);
    const payloadBytes = recordBytesAt(view, offset) - RECORD_HEADER_BYTES;
    if (block === undefined || block.at + payloadBytes > block.bytes)
      throw damaged(name, `it has no payload for the record ${header.lsn}`);
    const payload = block.plain?.subarray(block.at, block.at + payloadBytes);
    block.at += payloadBytes;
    const next =
      index + 1 < count
        ? from.subarray(offset + 2 * RECORD_HEADER_BYTES - HASH_BYTES, offset + 2 * RECORD_HEADER_BYTES)
        : prelude.last.hash;
    if (payload === undefined) {
      records.push({ header, hash: next as Uint8Array as Hash, record: undefined });
      continue;
    }
    const whole = Buffer.concat([from.subarray(offset, offset + RECORD_HEADER_BYTES), payload]);
    const record = decoder.decode(whole, viewOf(whole), 0, whole.length);
    if (typeof record === 'string') throw damaged(name, `the record ${header.lsn} is ${record}`);
    const hash = hashRecord(record);
    if (!sameBytes(hash, next))
      throw damaged(name, `the record ${header.lsn} has another hash than what follows names`);
    records.push({ header: record, hash, record });
  }
  for (const [tenant, block] of opened)
    if (block.at !== block.bytes) throw damaged(name, `the block of the tenant ${tenant} has more than its records`);
  const last = records.at(-1)!.header;
  if (last.term !== prelude.last.term || last.hlc !== prelude.lastHlc || records[0]!.header.hlc !== prelude.firstHlc)
    throw damaged(name, 'its prelude does not fit its records');
  return { ...prelude, records };
}

interface Payloads {
  readonly key: BackupKey | undefined;
  readonly parts: Uint8Array[];
}

/** In the order in which the blocks stand: the shared one first where there is one. */
async function payloadsByBlock(
  records: readonly ReadRecord[],
  keyOf: EncodeArchiveOptions['keyOf'],
): Promise<Map<number, Payloads>> {
  const blockOf = new Map<TenantId, Payloads>();
  const shared: Payloads = { key: undefined, parts: [] };
  const sealed = new Map<number, Payloads>();
  for (const { record } of records) {
    let block = blockOf.get(record.tenant);
    if (block === undefined) {
      const key = await keyOf(record.tenant);
      block = key === undefined ? shared : { key, parts: [] };
      blockOf.set(record.tenant, block);
      if (key !== undefined) sealed.set(record.tenant, block);
    }
    block.parts.push(record.payload);
  }
  return shared.parts.length === 0 ? sealed : new Map([[SHARED, shared], ...sealed]);
}

/** Undefined where the key is missing. */
async function openBlock(
  row: Buffer,
  body: Uint8Array,
  prelude: Uint8Array,
  keyById: DecodeArchiveOptions['keyById'],
  name: ArchiveName,
): Promise<Uint8Array | undefined> {
  const flags = row.readUInt32LE(36);
  const plainBytes = row.readUInt32LE(40);
  if (flags > (FLAG_ZSTD | FLAG_ENCRYPTED) || plainBytes > ARCHIVE_BLOCK_BYTES_MAX)
    throw damaged(name, 'a block claims what cannot be');
  if ((flags & FLAG_ENCRYPTED) === 0 && row.subarray(8, 36).some((byte) => byte !== 0))
    throw damaged(name, 'a block names a key and is not encrypted');
  let content: Uint8Array | undefined = body;
  if ((flags & FLAG_ENCRYPTED) !== 0) {
    const key = await keyById(row.toString('hex', 8, 24) as KeyId);
    if (key === undefined) return undefined;
    content = decrypt(key, row.subarray(24, 24 + NONCE_BYTES), [prelude, row.subarray(0, 44)], body);
    if (content === undefined) throw damaged(name, 'a block does not decrypt with its key');
  }
  const plain = (flags & FLAG_ZSTD) === 0 ? content : await decompress(content, plainBytes);
  if (plain?.length !== plainBytes) throw damaged(name, 'a block does not decompress to what it claims');
  return plain;
}

function digestOf(bytes: Uint8Array): string {
  return Buffer.from(hashBlake3(bytes)).toString('hex', 0, 8);
}

function digits(lsn: Lsn): string {
  return lsn.toString().padStart(16, '0');
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}

export function damaged({ key }: Pick<ArchiveName, 'key'>, problem: string): NostosError {
  return new NostosError('BACKUP_DAMAGED', `${key} of the archived log is damaged: ${problem}`, {
    details: { key, problem },
  });
}
