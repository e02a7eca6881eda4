/** A chain of records as a log would hold them, for who archives them. */
import type { Generation, Hlc, Lsn, TenantId, Term } from '../../base/brands.ts';
import { NO_TENANT } from '../../base/brands.ts';
import { seededRandom } from '../../base/random.ts';
import type { ChainPoint } from '../../log/chain.ts';
import { genesis } from '../../log/chain.ts';
import type { ReadRecord } from '../../log/reader.ts';
import { decodeRecord, GroupEncoder, RecordKind } from '../../log/record.ts';

export const GENERATION = 'a1'.repeat(16) as Generation;

export interface ChainOptions {
  readonly count: number;
  readonly seed?: number;
  readonly generation?: Generation;
  readonly previous?: ChainPoint;
  readonly tenants?: number;
  readonly payloadBytesMax?: number;
  /** Milliseconds of the first record; each next one is a second later. */
  readonly startMs?: number;
}

/** The first record starts term 1; the others are changesets of tenants in turn. */
export function makeChain(options: ChainOptions): ReadRecord[] {
  const { count, seed = 1, generation = GENERATION, tenants = 3, payloadBytesMax = 200, startMs = 1_000_000 } = options;
  const random = seededRandom(seed);
  const encoder = new GroupEncoder();
  let { lsn, term, hash } = options.previous ?? genesis(generation);
  const records: ReadRecord[] = [];
  for (let index = 0; index < count; index++) {
    const isStart = lsn === 0;
    const payload = random.bytes(isStart ? 0 : random.below(payloadBytesMax + 1));
    if (random.chance(0.7)) payload.fill(7);
    encoder.begin(payload.length + 1_000);
    const watermark = lsn;
    lsn = (lsn + 1) as Lsn;
    if (isStart) term = 1 as Term;
    const fields = {
      term,
      lsn,
      hlc: (BigInt(startMs + index * 1_000) << 16n) as Hlc,
      tenant: isStart ? NO_TENANT : ((1 + (index % tenants)) as TenantId),
      kind: isStart ? RecordKind.termStart : RecordKind.changeset,
      watermark,
      payload,
    };
    hash = encoder.add(Buffer.from(generation, 'hex'), fields, hash);
    const record = decodeRecord(Buffer.from(encoder.bytes(0, encoder.length)));
    if (typeof record === 'string') throw new Error(`the fixture made a ${record} record`);
    records.push({ record, hash });
  }
  return records;
}
