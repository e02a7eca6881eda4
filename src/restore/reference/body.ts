/**
 * The restore body, which both protocols share. Integers are little-endian; crc32 is the one of zlib over the file.
 *
 *     u32 file_count
 *     file_count × { u16 name_len | name (UTF-8) | u64 size | size bytes | u32 crc32 }
 *
 * The parser takes the body in pieces of any size and hands out bytes of files as views of those pieces. It holds one
 * name at most, and no number that it received decides over memory: counts and sizes are checked against limits, and
 * against what the frame around the body can hold, before anything else is done with them.
 */
import { crc32 } from 'node:zlib';
import { NostosError } from '../../base/errors.ts';
import { NAME_BYTES_MAX, nameProblem } from './file-name.ts';
import type { NameRule, Trailer } from './types.ts';
import { RESTORE_MAGIC } from './types.ts';

export const COUNT_BYTES = 4;
const NAME_LENGTH_BYTES = 2;
const SIZE_BYTES = 8;
const CRC_BYTES = 4;

export interface BodyLimits {
  readonly filesMax: number;
  /** Of all files together. */
  readonly bytesMax: number;
}

export interface BodyOptions extends BodyLimits {
  readonly trailer: Trailer;
  readonly names: NameRule;
  /** How long the body is, where a frame says so. */
  readonly bodyBytes?: number;
}

export type BodyEvent =
  | { readonly kind: 'start'; readonly files: number }
  | { readonly kind: 'file'; readonly name: string; readonly bytes: number }
  /** A view of what was pushed. */
  | { readonly kind: 'data'; readonly bytes: Uint8Array }
  /** All bytes of the file came, and the checksum, if there is one, is theirs. */
  | { readonly kind: 'file-end' }
  | { readonly kind: 'end' };

type Field = 'count' | 'name-length' | 'name' | 'size' | 'data' | 'crc' | 'done';

export class BodyParser {
  readonly #options: BodyOptions;
  readonly #scratch = Buffer.alloc(Math.max(NAME_BYTES_MAX, SIZE_BYTES));
  readonly #names = new Set<string>();
  #field: Field = 'count';
  #wanted = COUNT_BYTES;
  #filled = 0;
  #consumed = 0;
  #count = 0;
  #name = '';
  #dataLeft = 0;
  #dataBytes = 0;
  #announcedBytes = 0n;
  #crc = 0;

  constructor(options: BodyOptions) {
    this.#options = options;
  }

  get done(): boolean {
    return this.#field === 'done';
  }

  /** Where in the body it is, for messages to people. */
  get place(): string {
    if (this.#field === 'count') return 'before the number of files';
    const number = this.#names.size + (this.#inFile ? 0 : 1);
    return this.#inFile ? `in file ${number} of ${this.#count}` : `before file ${number} of ${this.#count}`;
  }

  /** Bytes after the end are ignored, as the reference does. */
  *push(chunk: Uint8Array): Generator<BodyEvent, void, undefined> {
    let at = 0;
    while (at < chunk.length && this.#field !== 'done') {
      const part = chunk.subarray(at, at + (this.#field === 'data' ? this.#dataLeft : this.#wanted - this.#filled));
      at += part.length;
      this.#consumed += part.length;
      if (this.#field === 'data') {
        this.#dataLeft -= part.length;
        if (this.#options.trailer === 'crc32') this.#crc = crc32(part, this.#crc);
        yield { kind: 'data', bytes: part };
        if (this.#dataLeft === 0) yield* this.#dataEnd();
        continue;
      }
      this.#scratch.set(part, this.#filled);
      this.#filled += part.length;
      if (this.#filled === this.#wanted) yield* this.#fieldEnd();
    }
  }

  /** No more bytes will come: throws unless the body is whole. */
  finish(source: string): void {
    if (this.done) return;
    // A frame that came whole, and holds only a part, would come again like that.
    throw new NostosError(
      this.#consumed === this.#options.bodyBytes ? 'PROTOCOL_ERROR' : 'NETWORK_FAILED',
      `what ${source} sent ends ${this.place}, after ${this.#consumed} bytes; its own log says why. Nothing was changed, restore again`,
      { details: { place: this.place, bytes: this.#consumed } },
    );
  }

  get #inFile(): boolean {
    return this.#field === 'data' || this.#field === 'crc' || this.#field === 'size';
  }

  *#fieldEnd(): Generator<BodyEvent, void, undefined> {
    switch (this.#field) {
      case 'count':
        this.#count = this.#checkedCount(this.#scratch.readUInt32LE());
        yield { kind: 'start', files: this.#count };
        yield* this.#nextFile();
        return;
      case 'name-length':
        this.#expect('name', this.#checkedNameLength(this.#scratch.readUInt16LE()));
        return;
      case 'name':
        this.#name = this.#checkedName(this.#scratch.subarray(0, this.#filled));
        this.#names.add(this.#name);
        this.#expect('size', SIZE_BYTES);
        return;
      case 'size':
        this.#dataLeft = this.#dataBytes = this.#checkedSize(this.#scratch.readBigUInt64LE());
        this.#crc = 0;
        this.#expect('data', 0);
        yield { kind: 'file', name: this.#name, bytes: this.#dataBytes };
        if (this.#dataLeft === 0) yield* this.#dataEnd();
        return;
      case 'crc':
        this.#checkCrc(this.#scratch.readUInt32LE());
        yield { kind: 'file-end' };
        yield* this.#nextFile();
        return;
      default:
        return;
    }
  }

  *#dataEnd(): Generator<BodyEvent, void, undefined> {
    if (this.#options.trailer === 'crc32') {
      this.#expect('crc', CRC_BYTES);
      return;
    }
    yield { kind: 'file-end' };
    yield* this.#nextFile();
  }

  *#nextFile(): Generator<BodyEvent, void, undefined> {
    const ended = this.#names.size === this.#count;
    this.#expect(ended ? 'done' : 'name-length', NAME_LENGTH_BYTES);
    if (ended) yield { kind: 'end' };
  }

  #expect(field: Field, bytes: number): void {
    this.#field = field;
    this.#wanted = bytes;
    this.#filled = 0;
  }

  /** Bytes of one file besides its name and content. */
  get #fileOverhead(): number {
    return NAME_LENGTH_BYTES + SIZE_BYTES + (this.#options.trailer === 'crc32' ? CRC_BYTES : 0);
  }

  #checkedCount(count: number): number {
    const { filesMax, bodyBytes } = this.#options;
    if (count > filesMax) throw tooLarge(`the source announces ${count} files`, { files: count, filesMax });
    if (bodyBytes !== undefined && count * (this.#fileOverhead + 1) > bodyBytes - COUNT_BYTES)
      throw protocolError(`it announces ${count} files in a frame of ${bodyBytes} bytes, which cannot hold them`);
    return count;
  }

  #checkedNameLength(length: number): number {
    if (length === 0) throw unsafeName('', 'it is empty');
    if (length > NAME_BYTES_MAX)
      throw protocolError(`unsafe filename: its length is ${length} bytes, more than ${NAME_BYTES_MAX}`);
    return length;
  }

  #checkedName(bytes: Uint8Array): string {
    let name: string;
    try {
      name = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
    } catch {
      throw protocolError(`unsafe filename: ${Buffer.from(bytes).toString('hex')} (hex) is not UTF-8`);
    }
    const problem = nameProblem(name, this.#options.names);
    if (problem !== undefined) throw unsafeName(name, problem);
    if (this.#names.has(name)) throw unsafeName(name, 'the source sent it before');
    return name;
  }

  #checkedSize(bytes: bigint): number {
    const { bytesMax, bodyBytes, trailer } = this.#options;
    this.#announcedBytes += bytes;
    if (this.#announcedBytes > BigInt(bytesMax))
      throw tooLarge(
        `the source announces ${bytes} bytes for ${JSON.stringify(this.#name)}, ${this.#announcedBytes} in all`,
        { name: this.#name, bytes: `${bytes}`, allBytes: `${this.#announcedBytes}`, bytesMax },
      );
    const after = trailer === 'crc32' ? CRC_BYTES : 0;
    if (bodyBytes !== undefined && bytes > BigInt(bodyBytes - this.#consumed - after))
      throw protocolError(
        `it announces ${bytes} bytes for ${JSON.stringify(this.#name)}, more than its frame still holds`,
      );
    return Number(bytes);
  }

  #checkCrc(expected: number): void {
    if (expected === this.#crc) return;
    const [want, got] = [hex32(expected), hex32(this.#crc)];
    throw new NostosError(
      'RESTORE_FAILED',
      `the checksum of ${JSON.stringify(this.#name)} is wrong: expected ${want}, got ${got}; restore again, and if it stays so, look for what changes bytes on the way`,
      { details: { name: this.#name, expected: want, got } },
    );
  }
}

/** Bytes of a body with these files; the parser's overhead seen from the other side. */
export function bodyBytes(
  files: readonly { readonly name: string; readonly bytes: number }[],
  trailer: Trailer,
): number {
  const overhead = NAME_LENGTH_BYTES + SIZE_BYTES + (trailer === 'crc32' ? CRC_BYTES : 0);
  return files.reduce((sum, file) => sum + overhead + Buffer.byteLength(file.name) + file.bytes, COUNT_BYTES);
}

/** What a client asks with. */
export function encodeMagic(): Uint8Array {
  return encodeCount(RESTORE_MAGIC);
}

export function decodeU32(bytes: Uint8Array): number {
  return new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
}

export function encodeCount(files: number): Uint8Array {
  const bytes = Buffer.alloc(COUNT_BYTES);
  bytes.writeUInt32LE(files);
  return bytes;
}

export function encodeFileHeader(name: string, bytes: number): Uint8Array {
  const nameBytes = Buffer.from(name);
  const header = Buffer.alloc(NAME_LENGTH_BYTES + nameBytes.length + SIZE_BYTES);
  header.writeUInt16LE(nameBytes.length);
  nameBytes.copy(header, NAME_LENGTH_BYTES);
  header.writeBigUInt64LE(BigInt(bytes), NAME_LENGTH_BYTES + nameBytes.length);
  return header;
}

export function encodeCrc(crc: number): Uint8Array {
  const bytes = Buffer.alloc(CRC_BYTES);
  bytes.writeUInt32LE(crc);
  return bytes;
}

const hex32 = (value: number): string => value.toString(16).padStart(8, '0');

function protocolError(what: string): NostosError {
  return new NostosError('PROTOCOL_ERROR', `${what}; nothing was changed, restore from another source`);
}

function unsafeName(name: string, problem: string): NostosError {
  return protocolError(`unsafe filename: ${JSON.stringify(name)}: ${problem}`);
}

function tooLarge(what: string, details: Record<string, unknown>): NostosError {
  return new NostosError(
    'RESTORE_TOO_LARGE',
    `${what}, more than is allowed; nothing was changed. If that is what it has, make room or raise filesMax or bytesMax`,
    { details },
  );
}
