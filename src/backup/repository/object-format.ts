/**
 * One object in bytes; `docs/backup-format.md` is the picture.
 *
 *      0  magic "NDBO"      8  flags: 1 zstd, 2 encrypted    16  key id (16), zero without one
 *      4  version u16      12  bytes of the plain content     32  nonce (12), zero without a key
 *      6  zero (2)                                            44  content; encrypted: and the tag (16)
 *
 * An object is named by its content: BLAKE3 of the plain bytes or, with a key, HMAC-SHA256 of that under a key derived
 * from it, so that equal content shows only within one key. So whoever reads an object knows whether it is the right one.
 */
import { createHmac } from 'node:crypto';
import { hashBlake3 } from '../../base/blake3.ts';
import type { Brand, Hash } from '../../base/brands.ts';
import { NostosError } from '../../base/errors.ts';
import type { Random } from '../../base/random.ts';
import type { BackupKey, KeyId } from './keys.ts';
import { deriveKeys } from './keys.ts';
import { compress, decompress, decrypt, encrypt, newNonce, NO_NONCE, NONCE_BYTES, releaseOutput } from './sealing.ts';

/** 64 lowercase hex digits. */
export type ObjectId = Brand<string, 'ObjectId'>;

export const OBJECT_HEADER_BYTES = 44;
export const OBJECT_FORMAT_VERSION = 1;
/** Content of one object: a chunk of a file, or a list of chunks. */
export const OBJECT_BYTES_MAX = 16 * 1024 * 1024;

const MAGIC = 'NDBO';
const FLAG_ZSTD = 1;
const FLAG_ENCRYPTED = 2;
const NO_KEY_ID = new Uint8Array(16);
const AT = { version: 4, flags: 8, bytes: 12, keyId: 16, nonce: 32 } as const;

export function objectKey(id: ObjectId): string {
  return `objects/${id.slice(0, 2)}/${id}`;
}

/** The id under which the content of this hash is stored. */
export function objectId(hash: Hash, key: BackupKey | undefined): ObjectId {
  if (key === undefined) return Buffer.from(hash.buffer, hash.byteOffset, hash.length).toString('hex') as ObjectId;
  return createHmac('sha256', deriveKeys(key).naming).update(hash).digest('hex') as ObjectId;
}

export interface ObjectContext {
  /** 32 hex digits: an object of one repository does not pass in another one. */
  readonly repository: string;
  readonly id: ObjectId;
}

export async function encodeObject(
  plain: Uint8Array,
  key: BackupKey | undefined,
  { repository, id, random }: ObjectContext & { readonly random: Random },
): Promise<Uint8Array> {
  const compressed = await compress(plain);
  const content = compressed ?? plain;
  const header = Buffer.alloc(OBJECT_HEADER_BYTES);
  const nonce = key === undefined ? NO_NONCE : newNonce(random);
  header.write(MAGIC, 0, 'latin1');
  header.writeUInt16LE(OBJECT_FORMAT_VERSION, AT.version);
  header.writeUInt32LE((compressed === undefined ? 0 : FLAG_ZSTD) | (key === undefined ? 0 : FLAG_ENCRYPTED), AT.flags);
  header.writeUInt32LE(plain.length, AT.bytes);
  header.set(key === undefined ? NO_KEY_ID : Buffer.from(key.id, 'hex'), AT.keyId);
  header.set(nonce, AT.nonce);
  const parts = key === undefined ? [content] : encrypt(key, nonce, boundTo(header, repository, id), content);
  const bytes = Buffer.concat([header, ...parts]);
  if (compressed !== undefined) releaseOutput(compressed);
  return bytes;
}

/** The plain content of an object, which is checked to be what the id says. */
export async function decodeObject(
  bytes: Uint8Array,
  keyById: (id: KeyId) => Promise<BackupKey | undefined>,
  { repository, id }: ObjectContext,
): Promise<Uint8Array> {
  const header = Buffer.from(bytes.buffer, bytes.byteOffset, Math.min(bytes.length, OBJECT_HEADER_BYTES));
  if (header.length < OBJECT_HEADER_BYTES || header.toString('latin1', 0, 4) !== MAGIC)
    throw damaged(id, 'it does not begin like an object');
  const version = header.readUInt16LE(AT.version);
  if (version !== OBJECT_FORMAT_VERSION)
    throw new NostosError(
      'UNSUPPORTED_FORMAT',
      `The object ${id} has format version ${version}; this Nostos knows version ${OBJECT_FORMAT_VERSION}. Use a newer Nostos`,
      { details: { object: id, version } },
    );
  const flags = header.readUInt32LE(AT.flags);
  const plainBytes = header.readUInt32LE(AT.bytes);
  if (flags > (FLAG_ZSTD | FLAG_ENCRYPTED) || header.readUInt16LE(6) !== 0)
    throw damaged(id, 'its header has bits that nobody sets');
  if (plainBytes > OBJECT_BYTES_MAX) throw damaged(id, `it claims ${plainBytes} bytes, more than any object has`);
  const stored = bytes.subarray(OBJECT_HEADER_BYTES);
  let key: BackupKey | undefined;
  let content: Uint8Array | undefined = stored;
  if ((flags & FLAG_ENCRYPTED) !== 0) {
    const keyId = header.toString('hex', AT.keyId, AT.keyId + 16) as KeyId;
    key = await keyById(keyId);
    if (key === undefined) throw keyMissing(id, keyId);
    content = decrypt(key, header.subarray(AT.nonce, AT.nonce + NONCE_BYTES), boundTo(header, repository, id), stored);
    if (content === undefined) throw damaged(id, `it does not decrypt with the key ${keyId}`);
  } else if (header.subarray(AT.keyId).some((byte) => byte !== 0)) {
    throw damaged(id, 'it names a key and is not encrypted');
  }
  const plain = (flags & FLAG_ZSTD) === 0 ? content : await decompress(content, plainBytes);
  if (plain?.length !== plainBytes) throw damaged(id, 'it does not decompress to what it claims');
  if (objectId(hashBlake3(plain), key) !== id) throw damaged(id, 'its content is not what its id says');
  return plain;
}

/** What an encrypted object cannot be moved away from: its header, its repository, its id. */
function boundTo(header: Uint8Array, repository: string, id: ObjectId): Uint8Array[] {
  return [header, Buffer.from(repository, 'hex'), Buffer.from(id, 'hex')];
}

function damaged(id: ObjectId, problem: string): NostosError {
  return new NostosError('BACKUP_DAMAGED', `The object ${id} of the backup is damaged: ${problem}`, {
    details: { key: objectKey(id), object: id, problem },
  });
}

export function keyMissing(what: string, keyId: KeyId): NostosError {
  return new NostosError(
    'BACKUP_KEY_MISSING',
    `${what} of the backup is encrypted with the key ${keyId}, which is not in the keyring: give the keyring that has it. A destroyed key brings nothing back`,
    { details: { object: what, key: keyId } },
  );
}
