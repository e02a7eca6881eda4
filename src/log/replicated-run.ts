/**
 * Records as they come from a primary: checked whole before any of them is written. They go on exactly where this log
 * ends: LSN, term, hash, generation. What does not is refused, never repaired.
 */
import type { Generation } from '../base/brands.ts';
import { NostosError } from '../base/errors.ts';
import type { ChainPoint } from './chain.ts';
import { brokenLink, pointOf } from './chain.ts';
import type { LogRecord } from './record.ts';
import { RECORD_HEADER_BYTES, RecordDecoder, hashRecord } from './record.ts';

export interface ReplicatedRecord {
  readonly record: LogRecord;
  readonly point: ChainPoint;
}

/** The records of `run`, which stand back to back in it; they are views of it. */
export function checkRun(run: Uint8Array, end: ChainPoint, recordBytesMax: number): ReplicatedRecord[] {
  const buffer = Buffer.from(run.buffer, run.byteOffset, run.length);
  const view = new DataView(run.buffer, run.byteOffset, run.length);
  const decoder = new RecordDecoder();
  const records: ReplicatedRecord[] = [];
  let last = end;
  for (let at = 0; at < run.length;) {
    const record = decoder.decode(buffer, view, at, run.length);
    if (typeof record === 'string') throw refused(last, `its bytes are ${record}`);
    const broken = brokenLink(last, record) ?? foreign(record, end.generation);
    if (broken !== undefined) throw refused(last, broken);
    if (record.payload.length > recordBytesMax)
      throw refused(last, `it has ${record.payload.length} bytes, recordBytesMax is ${recordBytesMax}`);
    last = pointOf(record, hashRecord(record));
    records.push({ record, point: last });
    at += RECORD_HEADER_BYTES + record.payload.length;
  }
  return records;
}

/** A generation begins with a copy of its state, never in the midst of a stream. */
function foreign({ generation }: LogRecord, own: Generation): string | undefined {
  return generation === own ? undefined : `generation ${generation} follows ${own}`;
}

function refused({ generation, term, lsn }: ChainPoint, reason: string): NostosError {
  return new NostosError(
    'RECORD_REFUSED',
    `A record from the primary does not go on where this log ends, at LSN ${lsn} of term ${term}: ${reason}; nothing of the message was kept`,
    { details: { end: { generation, term, lsn }, reason } },
  );
}
