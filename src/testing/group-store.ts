/** The data directory of a simulated node: its log, its tenants and its rollbacks, and how a crash leaves them. */
import type { Generation, Hash, Lsn, StoreId, Term } from '../base/brands.ts';
import { NO_LSN } from '../base/brands.ts';
import { assert } from '../base/assert.ts';
import type { SeededRandom } from '../base/random.ts';
import type { Versioned } from '../coordination/coordinator.ts';
import type { ChainPoint } from '../log/chain.ts';
import { genesis, sameBytes } from '../log/chain.ts';
import { TermTable } from '../log/terms.ts';
import type { StoreView } from '../replication/store-view.ts';
import { SimDirectory } from './group-directory.ts';
import { SimTenants } from './group-tenants.ts';

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
  anchor: ChainPoint;
  /** In which it writes. */
  generation: Generation;
  terms = new TermTable([]);
  /** The newest group record seen, as `coordinator.json` has it. */
  newest: Versioned | undefined;
  /** W as it was last written down. */
  keptWatermark = NO_LSN;
  tenants: SimTenants;
  directory = new SimDirectory();
  #records: SimRecord[] = [];

  constructor(store: StoreId, generation: Generation = GENERATION) {
    this.store = store;
    this.generation = generation;
    this.anchor = genesis(generation);
    this.tenants = SimTenants.empty(this.anchor);
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
    const fields = { generation: this.generation, term, lsn: next, id, kind, watermark, previousHash: hash };
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
    const added = this.terms.add({
      term: record.term,
      generation: record.generation,
      firstLsn: record.lsn,
      previous: end,
    });
    assert(added, 'the term table takes the term');
  }

  cut(lsn: number): void {
    this.#records.length = Math.max(0, lsn - this.anchor.lsn);
    this.terms.cut(lsn as Lsn);
    this.durable = Math.min(this.durable, lsn) as Lsn;
    this.applied = Math.min(this.applied, lsn) as Lsn;
  }

  /** Forced recovery: what is here is the history, and goes on in another generation. */
  beginGeneration(generation: Generation, term: Term, id: number): SimRecord {
    this.generation = generation;
    const record = this.make(term, id, 'start', this.end.lsn);
    this.append(record);
    this.durable = this.watermark = this.keptWatermark = record.lsn;
    return record;
  }

  prune(lsn: number): void {
    const upTo = Math.min(lsn, this.watermark, this.durable);
    if (upTo <= this.anchor.lsn) return;
    const anchor = this.pointAt(upTo as Lsn);
    this.#records = this.#records.slice(upTo - this.anchor.lsn);
    this.anchor = anchor;
  }

  /**
   * What a power cut leaves: the fsynced records and perhaps some after them, and of the tenants what SQLite keeps. Answers
   * with the records that are gone.
   */
  crash(
    random: SeededRandom,
    keep = this.durable + random.below(this.end.lsn - this.durable + 1),
  ): readonly SimRecord[] {
    const lost = this.above(keep);
    this.cut(keep);
    this.durable = this.end.lsn;
    this.watermark = Math.max(this.keptWatermark, this.#records.at(-1)?.watermark ?? 0, this.anchor.lsn) as Lsn;
    for (const tenant of this.tenants.all) tenant.loseTransactions(random);
    this.applied = this.tenants.durable;
    this.directory.losePower(random);
    return lost;
  }

  /** What another node is restored to: what is committed here. */
  committedCopy(store: StoreId): SimStore {
    const copy = this.image();
    copy.store = store;
    copy.cut(copy.watermark);
    copy.tenants = this.tenants.copyUpTo(copy.end);
    copy.applied = copy.tenants.durable;
    copy.directory = new SimDirectory();
    return copy;
  }

  image(): SimStore {
    const copy = new SimStore(this.store, this.generation);
    copy.#records = this.#records.slice();
    copy.terms = new TermTable(this.terms.entries);
    const { durable, watermark, applied, anchor, newest, keptWatermark } = this;
    Object.assign(copy, { durable, watermark, applied, anchor, newest, keptWatermark });
    copy.cut(durable);
    copy.watermark = copy.keptWatermark = Math.min(watermark, durable) as Lsn;
    copy.tenants = this.tenants.copy();
    copy.applied = copy.tenants.durable;
    copy.directory = this.directory.copy();
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
