/**
 * Payloads of the records that change tenants. Little-endian; the first byte is the payload's own version.
 *
 * changeset: u8 version=1 | u8 0 | u32 schema version | 16 bytes fingerprint after | u16 count of sequences,
 *            each u16 length, UTF-8 table name, i64 value | the changeset of SQLite's session extension.
 *            Of a `local` write: u8 version=2, and after each value i64 the value before, -1 where there was none.
 *            With forgets: u8 version=3, and before the changeset u64 time in ms | 32 bytes hash key | u32 count of keys,
 *            each u16 length, UTF-8 table name, 16 bytes hash (`forget.ts`).
 * schema:    u8 version=1, then a MessagePack map (see SchemaPayload).
 * tenant-create: u8 version=1, then a MessagePack map {name, uuid}. tenant-drop: u8 version=1.
 * tenant-reset: u8 version=1, then a MessagePack map {name, uuid, tenant}: the id of what takes the place.
 */
import { decode, encode } from '@msgpack/msgpack';
import { toTenantId, toTenantUuid, type TenantId, type TenantUuid } from '../base/brands.ts';
import { NostosError } from '../base/errors.ts';
import { HASH_KEY_BYTES, decodeKeys, encodeKeys, type LedgerEntry } from '../log/ledger.ts';
import type { CommittedRecord } from '../log/commit-log.ts';
import { RecordKind, getUint64, putUint64 } from '../log/record.ts';

const PAYLOAD_VERSION = 1;
const LOCAL_VERSION = 2;
const FORGETS_VERSION = 3;
const FINGERPRINT_BYTES = 16;
const FIXED_BYTES = 1 + 1 + 4 + FINGERPRINT_BYTES + 2;
const FORGETS_FIXED_BYTES = 8 + HASH_KEY_BYTES + 4;

/** The counter of an AUTOINCREMENT table, which changesets do not carry. */
export interface SequenceValue {
  readonly table: string;
  readonly value: bigint;
  /** Of a `local` write, which may have to be undone: the counter before it, -1 where there was none. */
  readonly before?: bigint;
}

/** Instead of a counter, where the table has none yet. */
export const NO_COUNTER = -1n;

export interface ChangesetPayload {
  readonly schemaVersion: number;
  /** The tenant's expected fingerprint once this record is applied. */
  readonly fingerprint: Uint8Array;
  readonly sequences: readonly SequenceValue[];
  readonly changeset: Uint8Array;
  /** It is acknowledged and visible on its primary before the group has it, and may be undone there. */
  readonly local?: boolean;
  /** Such a write is never `local`. */
  readonly forgets?: Forgets;
}

/** What a record forgets, its rows deleted or never there. */
export type Forgets = Pick<LedgerEntry, 'atMs' | 'hashKey' | 'keys'>;

export function encodeChangesetPayload(payload: ChangesetPayload): Uint8Array {
  const local = payload.local === true;
  const valueBytes = local ? 16 : 8;
  const names = payload.sequences.map((sequence) => Buffer.from(sequence.table, 'utf8'));
  const sequenceBytes = names.reduce((sum, name) => sum + 2 + name.length + valueBytes, 0);
  const forgets = payload.forgets === undefined ? NOTHING : encodeForgets(payload.forgets);
  const bytes = Buffer.allocUnsafeSlow(FIXED_BYTES + sequenceBytes + forgets.length + payload.changeset.length);
  bytes[0] = local ? LOCAL_VERSION : forgets.length > 0 ? FORGETS_VERSION : PAYLOAD_VERSION;
  bytes[1] = 0;
  bytes.writeUInt32LE(payload.schemaVersion, 2);
  bytes.set(payload.fingerprint, 6);
  bytes.writeUInt16LE(names.length, 22);
  let offset = FIXED_BYTES;
  for (const [index, name] of names.entries()) {
    const { value, before = NO_COUNTER } = payload.sequences[index] as SequenceValue;
    const valueAt = offset + 2 + name.length;
    bytes.writeUInt16LE(name.length, offset);
    bytes.set(name, offset + 2);
    bytes.writeBigInt64LE(value, valueAt);
    if (local) bytes.writeBigInt64LE(before, valueAt + 8);
    offset = valueAt + valueBytes;
  }
  bytes.set(forgets, offset);
  bytes.set(payload.changeset, offset + forgets.length);
  return bytes;
}

const NOTHING = new Uint8Array(0);

function encodeForgets({ atMs, hashKey, keys }: Forgets): Uint8Array {
  const fixed = Buffer.alloc(FORGETS_FIXED_BYTES);
  putUint64(new DataView(fixed.buffer, fixed.byteOffset, fixed.length), 0, atMs);
  fixed.set(hashKey, 8);
  fixed.writeUInt32LE(keys.length, FORGETS_FIXED_BYTES - 4);
  return Buffer.concat([fixed, encodeKeys(keys)]);
}

function decodeForgets(view: Buffer, at: number): { readonly forgets: Forgets; readonly end: number } {
  const keysAt = at + FORGETS_FIXED_BYTES;
  if (keysAt > view.length) throw invalid('what it forgets is cut short');
  const atMs = getUint64(new DataView(view.buffer, view.byteOffset, view.length), at, 'time');
  const hashKey = Uint8Array.from(view.subarray(at + 8, at + 8 + HASH_KEY_BYTES));
  const { keys, end } = decodeKeys(view, { at: keysAt, count: view.readUInt32LE(keysAt - 4) });
  return { forgets: { atMs, hashKey, keys }, end };
}

/** Of the payload of a changeset, whatever else is in it: `ChangesetPayload.local`. */
export function isLocalChangeset(bytes: Uint8Array): boolean {
  return bytes[0] === LOCAL_VERSION;
}

/** What a record of this tenant forgets, as the ledger has it; undefined where it forgets nothing. */
export function ledgerEntryOf(record: CommittedRecord, uuid: TenantUuid): LedgerEntry | undefined {
  if (record.kind !== RecordKind.changeset || record.payload[0] !== FORGETS_VERSION) return undefined;
  const { generation, term, lsn } = record;
  const { forgets } = decodeChangesetPayload(record.payload);
  return forgets === undefined ? undefined : { ...forgets, uuid, position: { generation, term, lsn } };
}

/** The changeset is a view into `bytes`. */
export function decodeChangesetPayload(bytes: Uint8Array): ChangesetPayload {
  const local = isLocalChangeset(bytes);
  const forgetful = bytes[0] === FORGETS_VERSION;
  if (!(local || forgetful) || bytes.length < FIXED_BYTES) checkVersion(bytes, FIXED_BYTES);
  const valueBytes = local ? 16 : 8;
  const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  const count = view.readUInt16LE(22);
  const sequences: SequenceValue[] = [];
  let offset = FIXED_BYTES;
  for (let index = 0; index < count; index += 1) {
    if (offset + 2 > view.length) throw invalid('a sequence is cut short');
    const end = offset + 2 + view.readUInt16LE(offset);
    if (end + valueBytes > view.length) throw invalid('a sequence is cut short');
    const sequence = { table: view.toString('utf8', offset + 2, end), value: view.readBigInt64LE(end) };
    sequences.push(local ? { ...sequence, before: view.readBigInt64LE(end + 8) } : sequence);
    offset = end + valueBytes;
  }
  const fixed = { schemaVersion: view.readUInt32LE(2), fingerprint: view.subarray(6, 22), sequences, local };
  if (!forgetful) return { ...fixed, changeset: view.subarray(offset) };
  const { forgets, end } = decodeForgets(view, offset);
  return { ...fixed, changeset: view.subarray(end), forgets };
}

/** A step of a migration: DDL is replayed as SQL, row changes as the changeset that they made. */
export type SchemaStep = { readonly sql: string } | { readonly changeset: Uint8Array };

export interface SchemaPayload {
  readonly schemaVersion: number;
  readonly steps: readonly SchemaStep[];
  readonly userVersion: number;
  readonly sequences: readonly SequenceValue[];
  readonly fingerprint: Uint8Array;
}

export function encodeSchemaPayload(payload: SchemaPayload): Uint8Array {
  const sequences = payload.sequences.map(({ table, value }) => [table, value]);
  return withVersion(encode({ ...payload, sequences }, { useBigInt64: true }));
}

export function decodeSchemaPayload(bytes: Uint8Array): SchemaPayload {
  const value = decodeMap(bytes);
  const { schemaVersion, userVersion, fingerprint } = value;
  if (!Array.isArray(value['steps']) || !Array.isArray(value['sequences'])) throw invalid('no steps');
  const steps = value['steps'].map((step: unknown): SchemaStep => {
    const { sql, changeset } = (step ?? {}) as { sql?: unknown; changeset?: unknown };
    if (typeof sql === 'string') return { sql };
    if (changeset instanceof Uint8Array) return { changeset };
    throw invalid('a step is neither SQL nor a changeset');
  });
  const sequences = value['sequences'].map((pair: unknown): SequenceValue => {
    const [table, number] = Array.isArray(pair) ? (pair as unknown[]) : [];
    if (typeof table !== 'string' || (typeof number !== 'bigint' && typeof number !== 'number'))
      throw invalid('a sequence has no table or value');
    return { table, value: BigInt(number) };
  });
  if (!isCount(schemaVersion) || !Number.isInteger(userVersion)) throw invalid('a version is missing');
  if (!(fingerprint instanceof Uint8Array) || fingerprint.length !== FINGERPRINT_BYTES)
    throw invalid('the fingerprint is missing');
  return { schemaVersion, steps, userVersion: userVersion as number, sequences, fingerprint };
}

export interface TenantCreatePayload {
  readonly name: string;
  readonly uuid: TenantUuid;
}

export function encodeTenantCreate(payload: TenantCreatePayload): Uint8Array {
  return withVersion(encode(payload));
}

export function decodeTenantCreate(bytes: Uint8Array): TenantCreatePayload {
  const { name, uuid } = decodeMap(bytes);
  if (typeof name !== 'string') throw invalid('the name is missing');
  return { name, uuid: toTenantUuid(uuid) };
}

export function encodeTenantDrop(): Uint8Array {
  return Uint8Array.of(PAYLOAD_VERSION);
}

/** Of a record of the tenant that goes: which one has its name from here on. */
export interface TenantResetPayload extends TenantCreatePayload {
  readonly tenant: TenantId;
}

export function encodeTenantReset({ name, uuid, tenant }: TenantResetPayload): Uint8Array {
  return withVersion(encode({ name, uuid, tenant }));
}

export function decodeTenantReset(bytes: Uint8Array): TenantResetPayload {
  const { tenant } = decodeMap(bytes);
  if (!isCount(tenant)) throw invalid('the id of the new content is missing');
  return { ...decodeTenantCreate(bytes), tenant: toTenantId(tenant) };
}

function withVersion(body: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(body.length + 1);
  bytes[0] = PAYLOAD_VERSION;
  bytes.set(body, 1);
  return bytes;
}

function decodeMap(bytes: Uint8Array): Record<string, unknown> {
  checkVersion(bytes, 1);
  let value: unknown;
  try {
    value = decode(bytes.subarray(1), { useBigInt64: true });
  } catch (error) {
    throw new NostosError('LOG_DAMAGED', 'a record payload is not MessagePack', { cause: error });
  }
  if (typeof value !== 'object' || value === null) throw invalid('it is not a map');
  const map = value as Record<string, unknown>;
  // With 64-bit integers on, MessagePack gives small integers as numbers and large ones as bigint.
  for (const [key, item] of Object.entries(map)) if (typeof item === 'bigint') map[key] = Number(item);
  return map;
}

function checkVersion(bytes: Uint8Array, bytesMin: number): void {
  if (bytes.length < bytesMin) throw invalid(`it has ${bytes.length} bytes`);
  if (bytes[0] !== PAYLOAD_VERSION)
    throw new NostosError('UNSUPPORTED_FORMAT', `record payload version ${bytes[0]} is newer than this Nostos knows`);
}

function isCount(value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0;
}

function invalid(why: string): NostosError {
  return new NostosError('LOG_DAMAGED', `a record payload cannot be read: ${why}`);
}
