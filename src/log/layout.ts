/**
 * Which segments a run of records makes, worked out anew from the records alone: what the writer, and one day the
 * follower, must have on disk byte for byte. The simulator and the golden files compare with it.
 */
import type { ChainPoint } from './chain.ts';
import { pointOf } from './chain.ts';
import { decodeRecord, hashRecord } from './record.ts';
import { encodeSegmentHeader, segmentName } from './segment-header.ts';

export interface LayoutStart {
  readonly number: number;
  readonly anchor: ChainPoint;
  readonly segmentBytesMax: number;
}

/** File name → its bytes; the last one without what may be preallocated behind it. */
export function layoutSegments(start: LayoutStart, records: readonly Uint8Array[]): Map<string, Buffer> {
  const files = new Map<string, Buffer>();
  let { number, anchor } = start;
  let parts: Uint8Array[] = [encodeSegmentHeader({ number, anchor })];
  let size = (parts[0] as Uint8Array).length;
  let last = anchor;
  for (const bytes of records) {
    if (size + bytes.length > start.segmentBytesMax) {
      files.set(segmentName(number), Buffer.concat(parts));
      number += 1;
      anchor = last;
      parts = [encodeSegmentHeader({ number, anchor })];
      size = (parts[0] as Uint8Array).length;
    }
    parts.push(bytes);
    size += bytes.length;
    const record = decodeRecord(bytes);
    if (typeof record === 'string') throw new TypeError(`not a record: ${record}`);
    last = pointOf(record, hashRecord(record));
  }
  return files.set(segmentName(number), Buffer.concat(parts));
}
