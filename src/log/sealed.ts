/**
 * `log/sealed`: what is known of each sealed segment, so that opening a log reads none of them whole. It is written
 * when a segment is sealed and before the next one exists, so a row holds whenever there is a later segment; the row of
 * the last segment may be stale and is not believed. `base` is the number of the first segment that is kept: files
 * below it are leftovers of a pruning that a crash interrupted.
 */
import type { Generation, Hash, Hlc, Lsn, Term } from '../base/brands.ts';
import type { ChainPoint } from './chain.ts';
import { getUint64, putUint64 } from './record.ts';
import type { TableShape } from './table-file.ts';

export interface SealedSegment {
  readonly number: number;
  readonly sizeBytes: number;
  /** BLAKE3 of the whole file: the identity of the segment. */
  readonly digest: Hash;
  /** The record before its first one. */
  readonly anchor: ChainPoint;
  readonly last: ChainPoint;
  readonly lastHlc: Hlc;
}

export const SEALED_FILE = 'sealed';

const POINT_BYTES = 64;

export const sealedTable: TableShape<SealedSegment> = {
  magic: 'NOSTOSSE',
  rowBytes: 4 + 8 + 32 + 2 * POINT_BYTES + 8,
  encode(row, view, bytes) {
    view.setUint32(0, row.number, true);
    putUint64(view, 4, row.sizeBytes);
    bytes.set(row.digest, 12);
    encodePoint(row.anchor, view, bytes, 44);
    encodePoint(row.last, view, bytes, 44 + POINT_BYTES);
    view.setBigUint64(44 + 2 * POINT_BYTES, row.lastHlc, true);
  },
  decode: (view, bytes) => ({
    number: view.getUint32(0, true),
    sizeBytes: getUint64(view, 4, 'segment size'),
    digest: new Uint8Array(bytes.subarray(12, 44)) as Hash,
    anchor: decodePoint(view, bytes, 44),
    last: decodePoint(view, bytes, 44 + POINT_BYTES),
    lastHlc: view.getBigUint64(44 + 2 * POINT_BYTES, true) as Hlc,
  }),
};

export function encodePoint(point: ChainPoint, view: DataView, bytes: Uint8Array, at: number): void {
  bytes.set(Buffer.from(point.generation, 'hex'), at);
  putUint64(view, at + 16, point.term);
  putUint64(view, at + 24, point.lsn);
  bytes.set(point.hash, at + 32);
}

export function decodePoint(view: DataView, bytes: Uint8Array, at: number): ChainPoint {
  return {
    generation: Buffer.from(bytes.subarray(at, at + 16)).toString('hex') as Generation,
    term: getUint64(view, at + 16, 'term') as Term,
    lsn: getUint64(view, at + 24, 'LSN') as Lsn,
    hash: new Uint8Array(bytes.subarray(at + 32, at + 64)) as Hash,
  };
}
