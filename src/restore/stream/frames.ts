/**
 * The binary frames of the streaming service; `SPEC.md` has them as a table. Little-endian. Whoever parses one knows
 * afterwards that its numbers are within the frame and within the limits; whether they fit the item is for the receiver.
 */
import { NostosError } from '../../base/errors.ts';
import { HASHED_BYTES, PATCH_BYTES_MAX } from './limits.ts';
import { PAGE_BYTES, PAGE_HASH_BYTES } from './pages.ts';

/** The first byte of a frame. */
export const FrameKind = { message: 0, hashes: 1, patch: 2 } as const;

const PATCH_HEADER_BYTES = 32;
const RUN_BYTES = 12;
const COMPRESSED = 1;
const HASHES_MAX = HASHED_BYTES / PAGE_BYTES;
export const PREFIX_HASH_BYTES = 16;

export interface Run {
  readonly offset: number;
  readonly length: number;
}

/** Pages of an item, in runs, and how far the item is right with them. */
export interface Patch {
  /** All up to here is in this frame, in earlier ones, or in the base. */
  readonly coveredTo: number;
  /** The first bytes of the BLAKE3 of the item from 0 to `coveredTo`. */
  readonly prefixHash: Uint8Array;
  readonly runs: readonly Run[];
  /** Length of `data` as it is in the item. */
  readonly dataBytes: number;
  /** The bytes of the runs one after another; with `compressed` a zstd frame of them. */
  readonly data: Uint8Array;
  readonly compressed: boolean;
}

export function protocolError(what: string, details: Readonly<Record<string, unknown>> = {}): NostosError {
  return new NostosError('PROTOCOL_ERROR', `The peer broke the protocol of a restore: ${what}`, { details });
}

/** The pieces of a frame: its header, and the data as it is. */
export function encodePatch(patch: Patch): readonly [Uint8Array, Uint8Array] {
  const header = Buffer.alloc(PATCH_HEADER_BYTES + patch.runs.length * RUN_BYTES);
  header.writeUInt8(FrameKind.patch, 0);
  header.writeUInt8(patch.compressed ? COMPRESSED : 0, 1);
  header.writeUInt16LE(patch.runs.length, 2);
  header.writeUInt32LE(patch.dataBytes, 4);
  header.writeBigUInt64LE(BigInt(patch.coveredTo), 8);
  header.set(patch.prefixHash.subarray(0, PREFIX_HASH_BYTES), 16);
  let at = PATCH_HEADER_BYTES;
  for (const { offset, length } of patch.runs) {
    at = header.writeBigUInt64LE(BigInt(offset), at);
    at = header.writeUInt32LE(length, at);
  }
  return [header, patch.data];
}

export function parsePatch(frame: Uint8Array): Patch {
  const bytes = Buffer.from(frame.buffer, frame.byteOffset, frame.length);
  if (bytes.length < PATCH_HEADER_BYTES) throw protocolError(`a data frame of ${bytes.length} bytes`);
  const [flags, count, dataBytes] = [bytes.readUInt8(1), bytes.readUInt16LE(2), bytes.readUInt32LE(4)];
  const dataAt = PATCH_HEADER_BYTES + count * RUN_BYTES;
  if (flags > COMPRESSED) throw protocolError(`a data frame with flags ${flags}`);
  if (dataBytes > PATCH_BYTES_MAX || dataAt > bytes.length)
    throw protocolError(
      `a data frame of ${count} runs and ${dataBytes} bytes, of which at most ${PATCH_BYTES_MAX} may be`,
    );
  const runs: Run[] = [];
  let sum = 0;
  let end = 0;
  for (let at = PATCH_HEADER_BYTES; at < dataAt; at += RUN_BYTES) {
    const run = { offset: size(bytes.readBigUInt64LE(at)), length: bytes.readUInt32LE(at + 8) };
    if (run.length === 0 || run.offset < end || run.offset % PAGE_BYTES !== 0)
      throw protocolError(`a run of ${run.length} bytes at ${run.offset}, after ${end}`);
    end = run.offset + run.length;
    sum += run.length;
    runs.push(run);
  }
  const coveredTo = size(bytes.readBigUInt64LE(8));
  if (end > coveredTo) throw protocolError(`a run that ends at ${end}, beyond ${coveredTo}`);
  const data = bytes.subarray(dataAt);
  const compressed = flags === COMPRESSED;
  if (sum !== dataBytes || (!compressed && data.length !== dataBytes))
    throw protocolError(`runs of ${sum} bytes, ${dataBytes} announced, ${data.length} there`);
  return { coveredTo, prefixHash: bytes.subarray(16, 16 + PREFIX_HASH_BYTES), runs, dataBytes, data, compressed };
}

/** A frame for the hashes of up to `HASHED_BYTES` of a base; `end` is where its hashes end. */
export function hashesFrame(): { readonly bytes: Buffer; readonly start: number } {
  const bytes = Buffer.allocUnsafeSlow(1 + HASHES_MAX * PAGE_HASH_BYTES);
  bytes.writeUInt8(FrameKind.hashes, 0);
  return { bytes, start: 1 };
}

/** The hashes in a frame, in the order of their pages. */
export function parseHashes(frame: Uint8Array): { readonly count: number; at(index: number): bigint } {
  const count = (frame.length - 1) / PAGE_HASH_BYTES;
  if (!Number.isInteger(count) || count < 1 || count > HASHES_MAX)
    throw protocolError(`a frame of hashes of ${frame.length} bytes`);
  const view = new DataView(frame.buffer, frame.byteOffset + 1, frame.length - 1);
  return { count, at: (index) => view.getBigUint64(index * PAGE_HASH_BYTES, true) };
}

function size(value: bigint): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw protocolError(`an offset of ${value}`);
  return Number(value);
}
