/**
 * `log/ledger`: which keys of which tenants were forgotten, for good. It outlives the records, which are pruned, and the
 * tenants, which are dropped; whatever brings rows back asks it first (`store/forget-filter.ts`).
 *
 * - Only what is committed gets there, and before the file of its tenant holds it: so what a file holds for good, the
 *   ledger has, also once the record is gone. Each tenant's records are applied in order, so within one generation the
 *   ledger has all of a tenant's forgets up to its last one there; what comes again is left out by that.
 * - It is appended to and never changed. Each append is one frame, synced before `add` returns. A frame names the CRC of the
 *   one before it, so that none can be missing. A crash tears the last frame only; that is cut off on opening, since nobody
 *   was told of it. One that does not check out although whole ones follow is damage.
 * - After a write or sync that failed nothing is known of what follows the last good frame: the next append writes the
 *   file anew, beside the old one.
 *
 * Little-endian. Header: 8 bytes `NOSTOSFL` | u16 version=1 | u16 0 | u32 CRC32 of these 12. Frame: u32 bytes of its body |
 * u32 CRC32 of the frame before it (of the first one: of the header) | u32 CRC32 of the body | u32 CRC32 of these 12 | body.
 * A body is entries: 16 bytes tenant uuid | 16 generation | u64 term | u64 LSN | u64 time in ms | 32 bytes hash key |
 * u32 count | each u16 length, UTF-8 table, 16 bytes hash.
 */
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import type { Generation, Lsn, Position, TenantUuid, Term } from '../base/brands.ts';
import type { Disk, DiskFile } from '../base/disk.ts';
import { writeDurably } from '../base/durable-file.ts';
import { NostosError, isNostosError } from '../base/errors.ts';
import { systemRandom, type Random } from '../base/random.ts';
import { getUint64, putUint64 } from './record.ts';

export const LEDGER_FILE = 'ledger';
export const HASH_KEY_BYTES = 32;
export const KEY_HASH_BYTES = 16;

const MAGIC = 'NOSTOSFL';
const FORMAT_VERSION = 1;
const HEADER_BYTES = 16;
const FRAME_HEAD_BYTES = 16;
const ENTRY_FIXED_BYTES = 16 + 16 + 8 + 8 + 8 + HASH_KEY_BYTES + 4;
const COPY_BYTES = 1024 * 1024;
const SCAN_BYTES = 64 * 1024;

export interface ForgottenKey {
  readonly table: string;
  /** Of table and key, under the hash key of its tenant; 16 bytes. */
  readonly hash: Uint8Array;
}

/** What one record forgot. */
export interface LedgerEntry {
  readonly uuid: TenantUuid;
  /** Of the record. */
  readonly position: Position;
  /** When; of one tenant and along one history it only rises. */
  readonly atMs: number;
  /** Random, one per tenant, so that hashes of different tenants tell nothing of each other. */
  readonly hashKey: Uint8Array;
  readonly keys: readonly ForgottenKey[];
}

/** Between two frames. Of another ledger, or of one that was cut here, it is not valid. */
export interface LedgerPoint {
  readonly offset: number;
  readonly crc: number;
}

export interface LedgerPage {
  readonly entries: readonly LedgerEntry[];
  readonly next: LedgerPoint;
}

interface KnownTenant {
  readonly hashKey: Uint8Array;
  latestMs: number;
  /** LSN of the last forget in each generation. */
  readonly last: Map<Generation, Lsn>;
}

export class ForgetLedger {
  readonly #disk: Disk;
  readonly #dir: string;
  readonly #random: Random;
  readonly #tenants = new Map<TenantUuid, KnownTenant>();
  readonly #listeners = new Set<() => void>();
  #end: LedgerPoint = LEDGER_START;
  #exists = false;
  /** What lies behind `#end` in the file is not known. */
  #suspect = false;

  private constructor(disk: Disk, dir: string, random: Random) {
    this.#disk = disk;
    this.#dir = dir;
    this.#random = random;
  }

  /** In the directory of a log, which must be there. The file is made with the first entry. */
  static open(disk: Disk, dir: string, random: Random = systemRandom): ForgetLedger {
    const ledger = new ForgetLedger(disk, dir, random);
    ledger.#load();
    return ledger;
  }

  get end(): LedgerPoint {
    return this.#end;
  }

  /** The one under which keys of this tenant are hashed; a new one where none was forgotten yet. */
  hashKeyOf(uuid: TenantUuid): Uint8Array {
    return this.#tenant(uuid, undefined).hashKey;
  }

  /** The time to be given to the next forget of this tenant. */
  timeFor(uuid: TenantUuid, nowMs: number): number {
    return Math.max(nowMs, (this.#tenants.get(uuid)?.latestMs ?? 0) + 1);
  }

  has({ uuid, position }: Pick<LedgerEntry, 'uuid' | 'position'>): boolean {
    return position.lsn <= (this.#tenants.get(uuid)?.last.get(position.generation) ?? 0);
  }

  /** Durable when it returns; those that are there already are left out. All entries of a position come in one call. */
  add(entries: readonly LedgerEntry[]): void {
    const missing = entries.filter((entry) => !this.has(entry));
    if (missing.length === 0) return;
    const frame = encodeFrame(missing, this.#end.crc);
    if (this.#suspect) this.#rewrite(frame);
    else this.#append(frame);
    this.#end = { offset: this.#end.offset + frame.length, crc: frame.readUInt32LE(8) };
    for (const entry of missing) this.#note(entry);
    for (const listener of this.#listeners) listener();
  }

  /** Calls back after entries were added; returns what ends that. */
  onAdded(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Whether reading may go on there. */
  isPoint({ offset, crc }: LedgerPoint): boolean {
    const isAt = (point: LedgerPoint): boolean => point.offset === offset && point.crc === crc;
    if (isAt(LEDGER_START) || isAt(this.#end)) return true;
    for (const { next } of this.pages()) if (next.offset >= offset) return isAt(next);
    return false;
  }

  /** All entries from there on, a frame at a time. */
  *pages(from: LedgerPoint = LEDGER_START): Generator<LedgerPage, void, undefined> {
    const end = this.#end.offset;
    if (from.offset >= end) return;
    const file = this.#disk.open(this.#path, 'read');
    try {
      for (let at = from; at.offset < end;) {
        const page = readPage(file, at, end);
        if (page === undefined) throw damaged(this.#path, at.offset);
        at = page.next;
        yield page;
      }
    } finally {
      file.close();
    }
  }

  *entries(): Generator<LedgerEntry, void, undefined> {
    for (const page of this.pages()) yield* page.entries;
  }

  get #path(): string {
    return join(this.#dir, LEDGER_FILE);
  }

  #load(): void {
    this.#exists = this.#disk.exists(this.#path);
    if (!this.#exists) return;
    const file = this.#disk.open(this.#path, 'write');
    try {
      checkHeader(file);
      const size = file.size();
      let at = LEDGER_START;
      for (let page = readPage(file, at, size); page !== undefined; page = readPage(file, at, size)) {
        for (const entry of page.entries) this.#note(entry);
        at = page.next;
      }
      this.#end = at;
      if (at.offset === size) return;
      if (isFollowed(file, at.offset, size)) throw damaged(this.#path, at.offset);
      file.truncate(at.offset);
      file.sync();
    } finally {
      file.close();
    }
  }

  #append(frame: Uint8Array): void {
    if (!this.#exists) writeDurably(this.#disk, this.#path, HEADER);
    this.#exists = true;
    this.#suspect = true; // unless all of it succeeds
    const file = this.#disk.open(this.#path, 'write');
    try {
      file.write(frame, this.#end.offset);
      file.sync();
    } finally {
      file.close();
    }
    this.#suspect = false;
  }

  #rewrite(frame: Uint8Array): void {
    const temporary = `${this.#path}.tmp`;
    const to = this.#disk.open(temporary, 'create');
    try {
      this.#copyTo(to);
      to.write(frame, this.#end.offset);
      to.sync();
    } finally {
      to.close();
    }
    this.#disk.rename(temporary, this.#path);
    this.#disk.syncDirectory(this.#dir);
    this.#suspect = false;
  }

  #copyTo(to: DiskFile): void {
    const from = this.#disk.open(this.#path, 'read');
    try {
      for (let at = 0; at < this.#end.offset;) {
        const bytes = new Uint8Array(Math.min(COPY_BYTES, this.#end.offset - at));
        if (from.read(bytes, at) < bytes.length) throw damaged(this.#path, at);
        to.write(bytes, at);
        at += bytes.length;
      }
    } finally {
      from.close();
    }
  }

  #note({ uuid, position, atMs, hashKey }: LedgerEntry): void {
    const tenant = this.#tenant(uuid, hashKey);
    const last = tenant.last.get(position.generation) ?? 0;
    if (position.lsn > last) tenant.last.set(position.generation, position.lsn);
    if (atMs > tenant.latestMs) tenant.latestMs = atMs;
  }

  #tenant(uuid: TenantUuid, hashKey: Uint8Array | undefined): KnownTenant {
    let tenant = this.#tenants.get(uuid);
    // One that was only minted gives way to the one that the log has.
    if (tenant === undefined || (hashKey !== undefined && tenant.last.size === 0)) {
      tenant = { hashKey: hashKey ?? this.#random.bytes(HASH_KEY_BYTES), latestMs: 0, last: new Map() };
      this.#tenants.set(uuid, tenant);
    }
    return tenant;
  }
}

const HEADER = encodeHeader();

/** Before the first frame. */
export const LEDGER_START: LedgerPoint = { offset: HEADER_BYTES, crc: HEADER.readUInt32LE(12) };

function encodeHeader(): Buffer {
  const bytes = Buffer.alloc(HEADER_BYTES);
  bytes.write(MAGIC, 0, 'latin1');
  bytes.writeUInt16LE(FORMAT_VERSION, 8);
  bytes.writeUInt32LE(crc32(bytes.subarray(0, 12)), 12);
  return bytes;
}

/** What can be read of the ledger of a directory that is given up, up to what does not check out. Changes nothing. */
export function* readableEntries(disk: Disk, dir: string): Generator<LedgerEntry, void, undefined> {
  const path = join(dir, LEDGER_FILE);
  if (!disk.exists(path)) return;
  const file = disk.open(path, 'read');
  try {
    checkHeader(file);
    const size = file.size();
    for (let page = readPage(file, LEDGER_START, size); page !== undefined; page = readPage(file, page.next, size))
      yield* page.entries;
  } catch (error) {
    if (!isNostosError(error)) throw error;
  } finally {
    file.close();
  }
}

/** It is put there whole, so what does not check out was not left by a crash. */
function checkHeader(file: DiskFile): void {
  const header = Buffer.alloc(HEADER_BYTES);
  if (file.read(header, 0) === HEADER_BYTES && header.equals(HEADER)) return;
  const isOurs = header.toString('latin1', 0, 8) === MAGIC && crc32(header.subarray(0, 12)) === header.readUInt32LE(12);
  if (!isOurs) throw damaged(file.path, 0);
  const version = header.readUInt16LE(8);
  throw new NostosError(
    'UNSUPPORTED_FORMAT',
    `${file.path} has format version ${version}; this Nostos knows version ${FORMAT_VERSION}`,
    { details: { path: file.path, version } },
  );
}

function encodeFrame(entries: readonly LedgerEntry[], previousCrc: number): Buffer {
  const body = Buffer.concat(entries.map(encodeLedgerEntry));
  const head = Buffer.alloc(FRAME_HEAD_BYTES);
  head.writeUInt32LE(body.length, 0);
  head.writeUInt32LE(previousCrc, 4);
  head.writeUInt32LE(crc32(body), 8);
  head.writeUInt32LE(crc32(head.subarray(0, 12)), 12);
  return Buffer.concat([head, body]);
}

interface Frame {
  readonly previousCrc: number;
  readonly crc: number;
  readonly body: Buffer;
}

/** Undefined where none that is whole begins. */
function readFrame(file: DiskFile, offset: number, end: number): Frame | undefined {
  const head = Buffer.alloc(FRAME_HEAD_BYTES);
  if (offset + FRAME_HEAD_BYTES > end || file.read(head, offset) < FRAME_HEAD_BYTES) return undefined;
  if (crc32(head.subarray(0, 12)) !== head.readUInt32LE(12)) return undefined;
  const bodyBytes = head.readUInt32LE(0);
  if (bodyBytes < ENTRY_FIXED_BYTES || offset + FRAME_HEAD_BYTES + bodyBytes > end) return undefined;
  const body = Buffer.alloc(bodyBytes);
  if (file.read(body, offset + FRAME_HEAD_BYTES) < bodyBytes) return undefined;
  const crc = head.readUInt32LE(8);
  return crc32(body) === crc ? { previousCrc: head.readUInt32LE(4), crc, body } : undefined;
}

function readPage(file: DiskFile, { offset, crc }: LedgerPoint, end: number): LedgerPage | undefined {
  const frame = readFrame(file, offset, end);
  if (frame === undefined || frame.previousCrc !== crc) return undefined;
  const next = { offset: offset + FRAME_HEAD_BYTES + frame.body.length, crc: frame.crc };
  return { entries: decodeLedgerEntries(frame.body), next };
}

/** Whether a whole frame lies anywhere from there on: then what is there was whole once as well, since each is synced first. */
function isFollowed(file: DiskFile, from: number, end: number): boolean {
  for (let at = from; at + FRAME_HEAD_BYTES <= end; at += SCAN_BYTES) {
    const window = Buffer.alloc(Math.min(SCAN_BYTES + FRAME_HEAD_BYTES - 1, end - at));
    file.read(window, at);
    for (let i = 0; i + FRAME_HEAD_BYTES <= window.length; i += 1) {
      const bodyBytes = window.readUInt32LE(i);
      const mayBe = bodyBytes >= ENTRY_FIXED_BYTES && at + i + FRAME_HEAD_BYTES + bodyBytes <= end;
      if (mayBe && readFrame(file, at + i, end) !== undefined) return true;
    }
  }
  return false;
}

export function encodeLedgerEntry({ uuid, position, atMs, hashKey, keys }: LedgerEntry): Uint8Array {
  const fixed = Buffer.alloc(ENTRY_FIXED_BYTES);
  const view = new DataView(fixed.buffer, fixed.byteOffset, fixed.length);
  fixed.write(uuid, 0, 'hex');
  fixed.write(position.generation, 16, 'hex');
  putUint64(view, 32, position.term);
  putUint64(view, 40, position.lsn);
  putUint64(view, 48, atMs);
  fixed.set(hashKey, 56);
  fixed.writeUInt32LE(keys.length, ENTRY_FIXED_BYTES - 4);
  return Buffer.concat([fixed, encodeKeys(keys)]);
}

/** Of a frame whose CRC is right; throws `LOG_DAMAGED` all the same for what is none. */
export function decodeLedgerEntries(bytes: Uint8Array): LedgerEntry[] {
  const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  const numbers = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const entries: LedgerEntry[] = [];
  for (let at = 0; at < view.length;) {
    if (at + ENTRY_FIXED_BYTES > view.length) throw invalid();
    const count = view.readUInt32LE(at + ENTRY_FIXED_BYTES - 4);
    const { keys, end } = decodeKeys(view, { at: at + ENTRY_FIXED_BYTES, count });
    entries.push({
      uuid: view.toString('hex', at, at + 16) as TenantUuid,
      position: {
        generation: view.toString('hex', at + 16, at + 32) as Generation,
        term: getUint64(numbers, at + 32, 'term') as Term,
        lsn: getUint64(numbers, at + 40, 'LSN') as Lsn,
      },
      atMs: getUint64(numbers, at + 48, 'time'),
      hashKey: Uint8Array.from(view.subarray(at + 56, at + 56 + HASH_KEY_BYTES)),
      keys,
    });
    at = end;
  }
  return entries;
}

export function encodeKeys(keys: readonly ForgottenKey[]): Uint8Array {
  return Buffer.concat(
    keys.flatMap(({ table, hash }) => {
      const name = Buffer.from(table, 'utf8');
      const length = Buffer.alloc(2);
      length.writeUInt16LE(name.length);
      return [length, name, hash];
    }),
  );
}

export function decodeKeys(
  view: Buffer,
  { at: start, count }: { readonly at: number; readonly count: number },
): { readonly keys: readonly ForgottenKey[]; readonly end: number } {
  const keys: ForgottenKey[] = [];
  let at = start;
  for (let index = 0; index < count; index += 1) {
    if (at + 2 > view.length) throw invalid();
    const nameEnd = at + 2 + view.readUInt16LE(at);
    if (nameEnd + KEY_HASH_BYTES > view.length) throw invalid();
    const table = view.toString('utf8', at + 2, nameEnd);
    at = nameEnd + KEY_HASH_BYTES;
    keys.push({ table, hash: Uint8Array.from(view.subarray(nameEnd, at)) });
  }
  return { keys, end: at };
}

function invalid(): NostosError {
  return new NostosError('LOG_DAMAGED', 'a list of forgotten keys is cut short');
}

function damaged(path: string, offset: number): NostosError {
  return new NostosError(
    'LOG_DAMAGED',
    `${path} is damaged at offset ${offset}: it no longer says what was forgotten; restore this node from another member or a backup`,
    { details: { path, offset } },
  );
}
