/** What makes record after record one history: each is the next LSN, of the right term, and names the hash before it. */
import type { Generation, Hash, Position } from '../base/brands.ts';
import { NO_LSN, NO_TERM, ZERO_HASH } from '../base/brands.ts';
import { decodeFork } from './fork.ts';
import type { LogRecord, RecordHeader } from './record.ts';
import { RecordKind } from './record.ts';

/** A record by position and hash; as an anchor, the record before the first one that is held. */
export interface ChainPoint extends Position {
  readonly hash: Hash;
}

/** Stands before the first record of a new history. */
export function genesis(generation: Generation): ChainPoint {
  return { generation, term: NO_TERM, lsn: NO_LSN, hash: ZERO_HASH };
}

export function samePoint(a: ChainPoint, b: ChainPoint): boolean {
  return a.lsn === b.lsn && a.term === b.term && a.generation === b.generation && sameBytes(a.hash, b.hash);
}

/** Why `record` cannot follow `previous`; undefined when it does. */
export function brokenLink(previous: ChainPoint, record: LogRecord): string | undefined {
  if (record.lsn !== previous.lsn + 1) return `LSN ${record.lsn} follows ${previous.lsn}`;
  if (!sameBytes(record.previousHash, previous.hash)) return 'it does not name the hash of the record before it';
  if (record.watermark >= record.lsn) return `its watermark ${record.watermark} is not below its own LSN`;
  if (record.kind === RecordKind.termStart)
    return record.term > previous.term
      ? brokenGeneration(previous, record)
      : `term ${record.term} starts after term ${previous.term}`;
  if (record.term !== previous.term) return `term ${record.term} follows ${previous.term} without a term-start`;
  if (record.generation !== previous.generation)
    return `generation ${record.generation} follows ${previous.generation} without a term-start`;
  return undefined;
}

/** A generation begins where its first record says: behind the very record that is there. */
function brokenGeneration(previous: ChainPoint, { generation, payload }: LogRecord): string | undefined {
  if (generation === previous.generation) return undefined;
  const fork = decodeFork(payload);
  if (fork !== undefined && samePoint(fork, previous)) return undefined;
  return `generation ${generation} follows ${previous.generation} without naming where it goes on from it`;
}

export function pointOf(record: RecordHeader, hash: Hash): ChainPoint {
  return { generation: record.generation, term: record.term, lsn: record.lsn, hash };
}

export function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}
