/**
 * The first bytes of a segment. The anchor ties it to the record before its first one, so a foreign or misplaced file
 * shows without reading it; nothing in it belongs to one node, so that segments are equal throughout a group.
 */
import { crc32 } from 'node:zlib';
import type { Generation, Hash, Lsn, Term } from '../base/brands.ts';
import { HASH_BYTES } from '../base/brands.ts';
import { NostosError } from '../base/errors.ts';
import type { ChainPoint } from './chain.ts';
import { getUint64, putUint64 } from './record.ts';

export const SEGMENT_FORMAT_VERSION = 1;
export const SEGMENT_HEADER_BYTES = 84;
const MAGIC = Buffer.from('NOSTOSLG', 'latin1');

export interface SegmentHeader {
  readonly number: number;
  readonly anchor: ChainPoint;
}

/** `%08x.ndb`; segments count from 1. */
export function segmentName(number: number): string {
  return `${number.toString(16).padStart(8, '0')}.ndb`;
}

export function segmentNumber(name: string): number | undefined {
  const match = /^([0-9a-f]{8})\.ndb$/.exec(name);
  return match === null ? undefined : Number.parseInt(match[1] as string, 16);
}

export function encodeSegmentHeader({ number, anchor }: SegmentHeader): Buffer {
  const bytes = Buffer.alloc(SEGMENT_HEADER_BYTES);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  MAGIC.copy(bytes, 0);
  view.setUint16(8, SEGMENT_FORMAT_VERSION, true);
  view.setUint32(12, number, true);
  bytes.write(anchor.generation, 16, 'hex');
  putUint64(view, 32, anchor.term);
  putUint64(view, 40, anchor.lsn);
  bytes.set(anchor.hash, 48);
  view.setUint32(80, crc32(bytes.subarray(0, 80)), true);
  return bytes;
}

/** Undefined where the bytes are not a header: torn, blank, damaged or of something else. */
export function decodeSegmentHeader(source: Uint8Array): SegmentHeader | undefined {
  if (source.length < SEGMENT_HEADER_BYTES) return undefined;
  const bytes = Buffer.from(source.subarray(0, SEGMENT_HEADER_BYTES));
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (bytes.compare(MAGIC, 0, 8, 0, 8) !== 0 || view.getUint32(80, true) !== crc32(bytes.subarray(0, 80)))
    return undefined;
  const version = view.getUint16(8, true);
  if (version !== SEGMENT_FORMAT_VERSION)
    throw new NostosError(
      'UNSUPPORTED_FORMAT',
      `The log has a segment of format version ${version}; this Nostos knows version ${SEGMENT_FORMAT_VERSION}. Open it with a newer Nostos`,
      { details: { version } },
    );
  return {
    number: view.getUint32(12, true),
    anchor: {
      generation: bytes.toString('hex', 16, 32) as Generation,
      term: getUint64(view, 32, 'term') as Term,
      lsn: getUint64(view, 40, 'LSN') as Lsn,
      hash: new Uint8Array(bytes.subarray(48, 48 + HASH_BYTES)) as Hash,
    },
  };
}
