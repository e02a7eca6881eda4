/** Reads records as one chain and says where and why it stops. Whether that is an end, a tear or damage is not its say. */
import type { Hash, Lsn } from '../base/brands.ts';
import { NO_LSN } from '../base/brands.ts';
import type { ChainPoint } from './chain.ts';
import { brokenLink, pointOf } from './chain.ts';
import type { LogRecord } from './record.ts';
import { hashRecord } from './record.ts';
import type { SegmentCursor } from './segment-cursor.ts';

export interface ScanResult {
  /** The last record that checks out, or the point from which the scan started. */
  readonly last: ChainPoint;
  readonly lastRecord: LogRecord | undefined;
  /** Behind the last record that checks out. */
  readonly endOffset: number;
  /** Why the bytes at `endOffset` are no record of this chain; undefined at the end of the file or before a zero. */
  readonly fault: string | undefined;
  /** The highest W that the records name. */
  readonly watermark: Lsn;
  readonly records: number;
}

/** A record is valid during the call where the cursor reuses its buffer. */
export type OnRecord = (record: LogRecord, hash: Hash, offset: number, previous: ChainPoint) => void;

export function scanChain(cursor: SegmentCursor, from: ChainPoint, onRecord?: OnRecord): ScanResult {
  let last = from;
  let lastRecord: LogRecord | undefined;
  let watermark = NO_LSN;
  let records = 0;
  const result = (fault: string | undefined): ScanResult => {
    cursor.release();
    return { last, lastRecord, endOffset: cursor.offset, fault, watermark, records };
  };
  for (;;) {
    const offset = cursor.offset;
    cursor.forget();
    if (cursor.done) return result(undefined);
    const found = cursor.next();
    if (typeof found === 'string') return result(found === 'blank' ? undefined : FAULTS[found]);
    const broken = brokenLink(last, found);
    if (broken !== undefined) {
      cursor.back(found);
      return result(broken);
    }
    const hash = hashRecord(found);
    onRecord?.(found, hash, offset, last);
    last = pointOf(found, hash);
    lastRecord = found;
    watermark = found.watermark > watermark ? found.watermark : watermark;
    records += 1;
  }
}

const FAULTS = { short: 'the record is not whole', corrupt: 'its CRC does not hold' } as const;
