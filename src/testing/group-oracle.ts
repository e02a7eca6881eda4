/**
 * What must hold of a group, whatever happens to it: DESIGN section 13, as far as it concerns replication. It sees every
 * record, commit, answer and loss, and throws at the first that must not be.
 */
import type { Lsn, StoreId, Term } from '../base/brands.ts';
import type { SimRecord, SimStore } from './group-store.ts';

/** A promise of the design that does not hold. */
export class Violation extends Error {
  override readonly name = 'Violation';
}

export class GroupOracle {
  /** The id of each record by term and LSN: there is never another one. */
  readonly #ids = new Map<string, number>();
  /** The id of each committed record, from LSN 1. */
  readonly committed: number[] = [];
  /** The term of the primary that committed it first. */
  readonly #committedIn: Term[] = [];
  /** `local` writes that were acknowledged, and by which store. */
  readonly #localAnswered = new Map<number, { readonly record: SimRecord; readonly by: StoreId }>();
  readonly #preserved = new Set<number>();
  readonly #lostWithDisk = new Set<number>();
  /** The highest LSN of a quorum write that was answered. */
  answeredLsn = 0;
  rolledBackLocal = 0;

  appended(record: SimRecord): void {
    const key = `${record.term}/${record.lsn}`;
    const known = this.#ids.get(key);
    if (known !== undefined && known !== record.id)
      throw new Violation(`G1: (term, LSN) ${key} names the records ${known} and ${record.id}`);
    this.#ids.set(key, record.id);
  }

  /** A primary that was stopped may begin its term after a later one has committed more: that is not its to have. */
  reignBegins(name: string, store: SimStore, term: Term): void {
    for (let lsn = store.anchor.lsn + 1; lsn <= this.committed.length && this.#committedIn[lsn - 1]! < term; lsn++)
      if (store.record(lsn)?.id !== this.committed[lsn - 1])
        throw new Violation(`G3: ${name} begins a reign without the committed record at LSN ${lsn}`);
  }

  /** The primary of a term commits up to there. */
  commit(name: string, store: SimStore, term: Term, to: Lsn): void {
    for (let lsn = store.watermark + 1; lsn <= to; lsn++) {
      const id = store.record(lsn)?.id;
      if (id === undefined) throw new Violation(`G2: ${name} commits LSN ${lsn}, which it does not hold`);
      const known = this.committed[lsn - 1];
      if (known !== undefined && known !== id)
        throw new Violation(`G2: ${name} commits record ${id} at LSN ${lsn}, where record ${known} was committed`);
      if (lsn > this.committed.length + 1) throw new Violation(`G2: ${name} commits LSN ${lsn} before the ones below`);
      this.committed[lsn - 1] = id;
      if (known === undefined) this.#committedIn[lsn - 1] = term;
    }
  }

  /** A store believes that everything up to there is committed. */
  believes(name: string, store: SimStore, to: Lsn): void {
    for (let lsn = Math.max(store.watermark, store.anchor.lsn) + 1; lsn <= to; lsn++)
      if (this.committed[lsn - 1] === undefined || this.committed[lsn - 1] !== store.record(lsn)?.id)
        throw new Violation(`G5: ${name} takes LSN ${lsn} for committed, and it is not`);
  }

  /** Records above `to` are about to go, after they were written to a file. */
  drops(name: string, store: SimStore, to: number, inSync: boolean): void {
    for (const record of store.above(to)) {
      const committed = this.committed[record.lsn - 1] === record.id;
      if (record.lsn <= store.watermark) throw new Violation(`G4: ${name} drops LSN ${record.lsn}, below its own W`);
      if (committed && inSync) throw new Violation(`G4: ${name}, in sync, drops the committed LSN ${record.lsn}`);
      this.#preserved.add(record.id);
    }
  }

  /** A directory is set aside whole: what it held can be read there. */
  setAside(store: SimStore): void {
    for (const record of store.above(0)) this.#preserved.add(record.id);
  }

  /** What was on a disk is gone, but for what an older image of it still has. */
  diskLost(store: SimStore, image?: SimStore): void {
    for (const { id, lsn } of store.above(0)) if (image?.record(lsn)?.id !== id) this.#lostWithDisk.add(id);
  }

  /** A power cut took what was not fsynced: nobody may have been told of it. */
  torn(name: string, store: StoreId, lost: Iterable<SimRecord>): void {
    for (const { id, lsn } of lost)
      if (this.#localAnswered.get(id)?.by === store && !this.#lostWithDisk.has(id))
        throw new Violation(`G6: ${name} loses the acknowledged local LSN ${lsn}`);
  }

  answered(name: string, by: StoreId, record: SimRecord): void {
    if (record.kind === 'local') return void this.#localAnswered.set(record.id, { record, by });
    if (this.committed[record.lsn - 1] !== record.id)
      throw new Violation(`G6: ${name} acknowledges LSN ${record.lsn} of term ${record.term}, which is not committed`);
    this.answeredLsn = Math.max(this.answeredLsn, record.lsn);
  }

  /** A leased read that saw everything up to `seen` and is answered now; `before`: `answeredLsn` when it began. */
  read(name: string, seen: number, before: number): void {
    if (seen < before)
      throw new Violation(`G7: a leased read on ${name} saw LSN ${seen}; ${before} was answered before`);
  }

  /** At the end, when all logs are equal. */
  settle(): void {
    for (const { record } of this.#localAnswered.values()) {
      if (this.committed[record.lsn - 1] === record.id || this.#lostWithDisk.has(record.id)) continue;
      if (!this.#preserved.has(record.id))
        throw new Violation(
          `G6: the acknowledged local write ${record.id} (LSN ${record.lsn}) is lost without a trace`,
        );
      this.rolledBackLocal += 1;
    }
  }
}
