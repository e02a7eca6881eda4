/** The small log of format version 1 whose bytes are kept in `golden/v1`: what any version of Nostos must still open. */
import type { Generation, TenantId, Term } from '../base/brands.ts';
import { HybridClock } from '../base/clock.ts';
import type { Disk } from '../base/disk.ts';
import { Log } from './log.ts';
import { RecordKind } from './record.ts';

export const GOLDEN_GENERATION = '00112233445566778899aabbccddeeff' as Generation;
export const GOLDEN_OPTIONS = { segmentBytesMax: 700, recordBytesMax: 400, preallocateBytes: 128 };

/** One record of each kind, two terms, three segments. */
export function writeGoldenLog(disk: Disk, dir: string): Log {
  let nowMs = 1_700_000_000_000;
  const deps = { disk, clock: new HybridClock({ nowMs: () => nowMs, monotonicMs: () => 0 }) };
  const { log } = Log.open(deps, { dir, generation: GOLDEN_GENERATION, ...GOLDEN_OPTIONS });
  log.startTerm(1 as Term, Buffer.from('first'));
  log.sync();
  log.setWatermark(log.durable.lsn);
  const kinds = Object.values(RecordKind).filter((kind) => kind !== RecordKind.termStart);
  log.append(kinds.map((kind, i) => ({ tenant: i as TenantId, kind, payload: Buffer.alloc(i * 11, kind) })));
  log.sync();
  log.setWatermark(log.durable.lsn);
  nowMs += 1_000;
  log.startTerm(7 as Term, Buffer.from('second'));
  log.append([{ tenant: (2 ** 40) as TenantId, kind: RecordKind.changeset, payload: Buffer.from('far tenant') }]);
  log.sync();
  return log;
}
