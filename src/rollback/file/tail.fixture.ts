/** Tails of a log as a deposed primary has them: whole records, chained, from a common point on. */
import { toGeneration, toLsn, toTenantId, toTerm, type Hash, type Hlc } from '../../base/brands.ts';
import { GroupEncoder, RecordKind, decodeRecord } from '../../log/record.ts';
import { encodeChangesetPayload } from '../../store/payload.ts';
import { ROLLBACK_LIMITS } from '../types.ts';
import type { FileHeader, TenantSchema } from './format.ts';
import type { FileWriterDeps, TailBatch, TailEntry } from './writer.ts';
import type { Disk } from '../../base/disk.ts';

export const GENERATION = toGeneration('0f'.repeat(16));
export const COMMON = { term: 3, lsn: 100, hash: 'ab'.repeat(32) };
export const DIR = '/node/rollback';

export interface MadeRecord {
  readonly kind?: RecordKind;
  readonly payload: Uint8Array;
  readonly tenant?: number;
  readonly term?: number;
  readonly acknowledged?: boolean;
}

/** Records from the common point on, in its term unless they say otherwise. */
export function* makeTail(
  records: Iterable<MadeRecord>,
  { common = COMMON, startMs = 1_700_000_000_000, stepMs = 1 } = {},
): Generator<TailEntry, void, undefined> {
  const encoder = new GroupEncoder();
  let [lsn, term, hash, ms] = [common.lsn, common.term, Buffer.from(common.hash, 'hex') as Uint8Array, startMs];
  for (const made of records) {
    lsn += 1;
    term = made.term ?? term;
    encoder.begin(made.payload.length + 200);
    const next: Hash = encoder.add(
      Buffer.from(GENERATION, 'hex'),
      {
        term: toTerm(term),
        lsn: toLsn(lsn),
        hlc: (BigInt(ms) << 16n) as Hlc,
        tenant: toTenantId(made.tenant ?? 1),
        kind: made.kind ?? RecordKind.changeset,
        watermark: toLsn(common.lsn),
        payload: made.payload,
      },
      hash,
    );
    const record = decodeRecord(Uint8Array.from(encoder.bytes(0, encoder.length)));
    if (typeof record === 'string') throw new Error(record);
    yield { record, hash: next, acknowledged: made.acknowledged ?? lsn % 2 === 1 };
    [hash, ms] = [next, ms + stepMs];
  }
}

export function* batched(entries: Iterable<TailEntry>, count = 3): Generator<TailBatch, void, undefined> {
  let batch: TailEntry[] = [];
  for (const entry of entries) {
    batch.push(entry);
    if (batch.length < count) continue;
    yield batch;
    batch = [];
  }
  if (batch.length > 0) yield batch;
}

export function changesetRecord(changeset: Uint8Array, schemaVersion = 1): Uint8Array {
  return encodeChangesetPayload({ schemaVersion, fingerprint: new Uint8Array(16), sequences: [], changeset });
}

/** Records with payloads that are no changesets of anything, of about so many bytes. */
export function plainRecords(count: number, payloadBytes = 40): MadeRecord[] {
  return Array.from({ length: count }, (_, i) => ({ payload: changesetRecord(Buffer.alloc(payloadBytes, i + 1)) }));
}

export function headerOf(count: number, changes: Partial<FileHeader> = {}): FileHeader {
  return {
    complete: true,
    node: '01'.repeat(16),
    cluster: '02'.repeat(16),
    generation: GENERATION,
    id: '03'.repeat(16),
    common: COMMON,
    oldTerm: COMMON.term,
    newTerm: 5,
    firstLsn: COMMON.lsn + 1,
    lastLsn: COMMON.lsn + count,
    createdAtMs: 1_700_000_100_000,
    ...changes,
  };
}

export function schemaOf(tenant: number, schemaVersion: number): TenantSchema {
  return {
    tenant,
    schemaVersion,
    uuid: '04'.repeat(16),
    name: `tenant-${tenant}`,
    tables: [{ name: 'notes', type: 'table', columns: ['id', 'body'], keyColumns: ['id'] }],
  };
}

export function writerDeps(disk: Disk, changes: Partial<FileWriterDeps> = {}): FileWriterDeps {
  return { disk, dir: DIR, schemaOf, limits: ROLLBACK_LIMITS, ...changes };
}
