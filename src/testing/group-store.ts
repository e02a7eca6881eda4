/** The log of a simulated node: what is in it, what of that is on disk, and how a crash leaves it. */
import type { Generation, Hash, Lsn, StoreId, Term } from '../base/brands.ts';
import { NO_LSN } from '../base/brands.ts';
import { assert } from '../base/assert.ts';
import type { SeededRandom } from '../base/random.ts';
import type { Versioned } from '../coordination/coordinator.ts';
import type { ChainPoint } from '../log/chain.ts';
import { genesis, sameBytes } from '../log/chain.ts';
import { TermTable } from '../log/terms.ts';
import type { StoreView } from '../replication/store-view.ts';

export const GENERATION = '00000000000000000000000000000001' as Generation;

export interface SimRecord extends ChainPoint {
  readonly id: number;
  readonly kind: 'start' | 'quorum' | 'local';
  /** The primary's W when it wrote this. */
  readonly watermark: Lsn;
  readonly previousHash: Hash;
}

export class SimStore implements StoreView {
  store: StoreId;
  durable = NO_LSN;
  watermark = NO_LSN;
  applied = NO_LSN;
  anchor: ChainPoint = genesis(GENERATION);
  terms = new TermTable([]);
  /** The newest group record seen, as `coordinator.json` has it. */
  newest: Versioned | undefined;
  /** W as it was last written down. */
  keptWatermark = NO_LSN;
  #records: SimRecord[] = [];

  constructor(store: StoreId) {
    this.store = store;
  }

  get end(): ChainPoint {
    return this.#records.at(-1) ?? this.anchor;
  }

  record(lsn: number): SimRecord | undefined {
    return this.#records[lsn - this.anchor.lsn - 1];
  }

  above(lsn: number): readonly SimRecord[] {
    return this.#records.slice(Math.max(0, lsn - this.anchor.lsn));
  }

  slice(from: number, to: number): readonly SimRecord[] {
    return this.#records.slice(from - this.anchor.lsn - 1, to - this.anchor.lsn);
  }

  pointAt(lsn: Lsn): ChainPoint {
    const point = lsn === this.anchor.lsn ? this.anchor : this.record(lsn);
    assert(point !== undefined, `LSN ${lsn} is not in the log`);
    return point;
  }

  /** A record of one's own, at the end. */
  make(term: Term, id: number, kind: SimRecord['kind'], watermark: Lsn): SimRecord {
    const { lsn, hash } = this.end;
    const next = (lsn + 1) as Lsn;
    const fields = { generation: GENERATION, term, lsn: next, id, kind, watermark, previousHash: hash };
    return { ...fields, hash: hashOf(hash, term, next, id) };
  }

  append(record: SimRecord): void {
    const { end } = this;
    assert(record.lsn === end.lsn + 1 && sameBytes(record.previousHash, end.hash), 'a record follows the one before');
    assert(
      record.term === end.term || (record.term > end.term && record.kind === 'start'),
      'a term begins with a start',
    );
    this.#records.push(record);
    if (record.kind !== 'start') return;
    const added = this.terms.add({ term: record.term, generation: GENERATION, firstLsn: record.lsn, previous: end });
    assert(added, 'the term table takes the term');
  }

  cut(lsn: number): void {
    this.#records.length = Math.max(0, lsn - this.anchor.lsn);
    this.terms.cut(lsn as Lsn);
    this.durable = Math.min(this.durable, lsn) as Lsn;
    this.applied = Math.min(this.applied, lsn) as Lsn;
  }

  prune(lsn: number): void {
    const upTo = Math.min(lsn, this.watermark, this.durable);
    if (upTo <= this.anchor.lsn) return;
    const anchor = this.pointAt(upTo as Lsn);
    this.#records = this.#records.slice(upTo - this.anchor.lsn);
    this.anchor = anchor;
  }

  /** What a power cut leaves: the fsynced records, and perhaps some after them. Answers with those that are gone. */
  crash(
    random: SeededRandom,
    keep = this.durable + random.below(this.end.lsn - this.durable + 1),
  ): readonly SimRecord[] {
    const lost = this.above(keep);
    this.cut(keep);
    this.durable = this.end.lsn;
    this.watermark = Math.max(this.keptWatermark, this.#records.at(-1)?.watermark ?? 0, this.anchor.lsn) as Lsn;
    this.applied = this.watermark;
    return lost;
  }

  image(): SimStore {
    const copy = new SimStore(this.store);
    copy.#records = this.#records.slice();
    copy.terms = new TermTable(this.terms.entries);
    const { durable, watermark, applied, anchor, newest, keptWatermark } = this;
    Object.assign(copy, { durable, watermark, applied, anchor, newest, keptWatermark });
    copy.cut(durable);
    copy.watermark = Math.min(watermark, durable) as Lsn;
    copy.keptWatermark = copy.applied = copy.watermark;
    return copy;
  }
}

function hashOf(previous: Hash, term: number, lsn: number, id: number): Hash {
  const bytes = Buffer.alloc(32);
  let [a, b] = [0x9e3779b9, 0x85ebca6b];
  for (const word of [Buffer.from(previous.buffer, previous.byteOffset).readUInt32LE(0), term, lsn, id]) {
    a = Math.imul(a ^ word, 0x01000193) ^ (b >>> 13);
    b = Math.imul(b + word, 0x5bd1e995) ^ (a >>> 15);
  }
  bytes.writeUInt32LE(a >>> 0, 0);
  bytes.writeUInt32LE(b >>> 0, 4);
  return bytes as Uint8Array as Hash;
}
