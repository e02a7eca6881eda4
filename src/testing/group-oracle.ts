/**
 * What must hold of a group, whatever happens to it: DESIGN section 13, as far as it concerns replication, tenants and
 * rollback. It sees every record, commit, answer and loss, and throws at the first that must not be. `replication/SPEC.md`
 * says what the numbers mean.
 */
import { assert } from '../base/assert.ts';
import type { Generation, Lsn, Position, StoreId, Term } from '../base/brands.ts';
import { samePoint } from '../log/chain.ts';
import { outlookOf } from '../replication/store-view.ts';
import type { SimRecord, SimStore } from './group-store.ts';
import { GENERATION } from './group-store.ts';
import { TENANTS, tenantOf, type SimTenant } from './group-tenants.ts';
import { Violation } from './group-violation.ts';

/** One history. Another generation begins with what forced recovery has kept. */
class Lineage {
  /** From LSN 1. */
  readonly committed: SimRecord[] = [];
  /** The term of the primary that committed each first. */
  readonly committedIn: Term[] = [];
  /** By tenant, the highest LSN of a quorum write that was answered. */
  readonly answered: number[] = Array.from({ length: TENANTS }, () => 0);

  has({ lsn, id }: SimRecord): boolean {
    return this.committed[lsn - 1]?.id === id;
  }
}

export class GroupOracle {
  /** The id of each record by term and LSN: there is never another one. */
  readonly #ids = new Map<string, number>();
  readonly #lineages = new Map<Generation, Lineage>([[GENERATION, new Lineage()]]);
  #latest: Generation = GENERATION;
  /** `local` writes that were acknowledged, and by which store. */
  readonly #localAnswered = new Map<number, { readonly record: SimRecord; readonly by: StoreId }>();
  readonly #answered: SimRecord[] = [];
  /** Their writers were told that nothing was written. */
  readonly #refused: SimRecord[] = [];
  readonly #setAside = new Set<number>();
  readonly #lostWithDisk = new Set<number>();
  rolledBackLocal = 0;

  /** Of the present generation. */
  get committed(): readonly SimRecord[] {
    return this.#of(this.#latest).committed;
  }

  #of(generation: Generation): Lineage {
    const lineage = this.#lineages.get(generation);
    assert(lineage !== undefined, 'each generation is known');
    return lineage;
  }

  appended(record: SimRecord): void {
    const key = `${record.generation}/${record.term}/${record.lsn}`;
    const known = this.#ids.get(key);
    if (known !== undefined && known !== record.id)
      throw new Violation(`G1: (term, LSN) ${record.term}/${record.lsn} names the records ${known} and ${record.id}`);
    this.#ids.set(key, record.id);
  }

  /** A primary that was stopped may begin its term after a later one has committed more: that is not its to have. */
  reignBegins(name: string, store: SimStore, term: Term): void {
    const { committed, committedIn } = this.#of(store.generation);
    for (let lsn = store.anchor.lsn + 1; lsn <= committed.length && committedIn[lsn - 1]! < term; lsn++)
      if (store.record(lsn)?.id !== committed[lsn - 1]!.id)
        throw new Violation(`G3: ${name} begins a reign without the committed record at LSN ${lsn}`);
  }

  /** The primary of a term commits up to there. */
  commit(name: string, store: SimStore, term: Term, to: Lsn): void {
    const { committed, committedIn } = this.#of(store.generation);
    for (let lsn = store.watermark + 1; lsn <= to; lsn++) {
      const record = store.record(lsn);
      if (record === undefined) throw new Violation(`G2: ${name} commits LSN ${lsn}, which it does not hold`);
      const known = committed[lsn - 1]?.id;
      if (known !== undefined && known !== record.id)
        throw new Violation(
          `G2: ${name} commits record ${record.id} at LSN ${lsn}, where record ${known} was committed`,
        );
      if (lsn > committed.length + 1) throw new Violation(`G2: ${name} commits LSN ${lsn} before the ones below`);
      committed[lsn - 1] = record;
      if (known === undefined) committedIn[lsn - 1] = term;
    }
  }

  /** A store believes that everything up to there is committed. */
  believes(name: string, store: SimStore, to: Lsn): void {
    const lineage = this.#of(store.generation);
    for (let lsn = Math.max(store.watermark, store.anchor.lsn) + 1; lsn <= to; lsn++) {
      const record = store.record(lsn);
      if (record === undefined || !lineage.has(record))
        throw new Violation(`G5: ${name} takes LSN ${lsn} for committed, and it is not`);
    }
  }

  /** An operator goes on with one store: what it has is the history from now on, committed or not. */
  forked(store: SimStore, from: Generation): void {
    const before = this.#of(from);
    const lineage = new Lineage();
    for (let lsn = 1; lsn <= store.end.lsn; lsn++) {
      const record = lsn <= store.anchor.lsn ? before.committed[lsn - 1] : store.record(lsn);
      assert(record !== undefined, 'what a store has forgotten was committed');
      lineage.committed.push(record);
      lineage.committedIn.push(
        before.committed[lsn - 1]?.id === record.id ? before.committedIn[lsn - 1]! : store.end.term,
      );
    }
    this.#lineages.set(store.generation, lineage);
    this.#latest = store.generation;
  }

  // ─── Tenants ───

  /** A record is put into a tenant; `own`: a `local` one of the primary that wrote it. */
  applies(name: string, { generation }: SimStore, record: SimRecord, own: boolean): void {
    if (!own && !this.#of(generation).has(record))
      throw new Violation(`G5: a tenant of ${name} is given LSN ${record.lsn}, which is not committed`);
  }

  tenantsOpen(name: string, store: SimStore): void {
    for (const { position } of store.tenants.all) {
      if (position.lsn < store.anchor.lsn) continue;
      if (position.lsn > store.end.lsn || !samePoint(store.pointAt(position.lsn), position))
        throw new Violation(`G10: a tenant of ${name} is at LSN ${position.lsn}, which its log does not have`);
    }
  }

  // ─── Losses ───

  /** Records above `to` are about to go; those of a rollback are in its file. */
  drops(name: string, store: SimStore, to: number, inSync: boolean, plan?: string): void {
    const { directory } = store;
    const file = plan === undefined ? undefined : directory.files.get(plan);
    const kept = new Set(file?.state === 'whole' ? file.records.map(({ record }) => record.id) : []);
    for (const record of store.above(to)) {
      const { lsn, id } = record;
      if (lsn <= store.watermark) throw new Violation(`G4: ${name} drops LSN ${lsn}, below its own W`);
      if (inSync && this.#of(store.generation).has(record))
        throw new Violation(`G4: ${name}, in sync, drops the committed LSN ${lsn}`);
      if (plan === undefined) continue;
      if (!kept.has(id))
        throw new Violation(`G11: ${name} drops LSN ${lsn}, which is not in the file of this rollback`);
      directory.drops.set(id, (directory.drops.get(id) ?? 0) + 1);
      directory.dropped.add(plan);
    }
  }

  /** A directory is set aside whole: what it held can be read there. */
  setAside(store: SimStore): void {
    for (const { id } of everythingIn(store)) this.#setAside.add(id);
  }

  /** What was on a disk is gone, but for what an older image of it still has. */
  diskLost(store: SimStore, image?: SimStore): void {
    const left = new Set([...(image === undefined ? [] : everythingIn(image))].map(({ id }) => id));
    for (const { id } of everythingIn(store)) if (!left.has(id)) this.#lostWithDisk.add(id);
  }

  /** A power cut took what was not fsynced: nobody may have been told of it. */
  torn(name: string, store: StoreId, lost: Iterable<SimRecord>): void {
    for (const { id, lsn } of lost)
      if (this.#localAnswered.get(id)?.by === store && !this.#lostWithDisk.has(id))
        throw new Violation(`G6: ${name} loses the acknowledged local LSN ${lsn}`);
  }

  // ─── Answers ───

  answered(name: string, by: StoreId, record: SimRecord): void {
    const { kind, generation, lsn, term, id } = record;
    this.#answered.push(record);
    if (kind === 'local') return void this.#localAnswered.set(id, { record, by });
    const lineage = this.#of(generation);
    if (!lineage.has(record))
      throw new Violation(`G6: ${name} acknowledges LSN ${lsn} of term ${term}, which is not committed`);
    const tenant = tenantOf(record);
    if (tenant !== undefined) lineage.answered[tenant] = Math.max(lineage.answered[tenant]!, lsn);
  }

  /** A writer is told that nothing was written. */
  refused(record: SimRecord): void {
    this.#refused.push(record);
  }

  /** What a read of this tenant that begins now has to see. */
  answeredIn({ generation }: SimStore, tenant: number): number {
    return this.#of(generation).answered[tenant]!;
  }

  /** A leased read that saw everything up to `seen` and is answered now; `before`: `answeredIn` when it began. */
  read(name: string, seen: number, before: number): void {
    if (seen < before)
      throw new Violation(`G7: a leased read on ${name} saw LSN ${seen}; ${before} was answered before`);
  }

  // ─── At the end, when all logs are equal ───

  settle(stores: readonly SimStore[], told: ReadonlySet<string>): void {
    const lineage = this.#of(this.#latest);
    for (const record of this.#refused)
      if (lineage.has(record))
        throw new Violation(`G6: a write that failed, as its writer was told, is at LSN ${record.lsn}`);
    for (const { record, by } of this.#localAnswered.values()) {
      if (this.#lostWithDisk.has(record.id) || this.#setAside.has(record.id)) continue;
      // Once it is committed only an operator can have lost it.
      if ([...this.#lineages.values()].some((each) => each.has(record))) continue;
      if (!stores.some((store) => store.store === by && isPreserved(store, record)))
        throw new Violation(
          `G6: the acknowledged local write ${record.id} (LSN ${record.lsn}) is lost without a trace`,
        );
      this.rolledBackLocal += 1;
    }
    for (const store of stores) {
      for (const [index, tenant] of store.tenants.all.entries()) this.#checkRows(tenant, index);
      checkFiles(store);
      for (const plan of store.directory.dropped)
        if (!told.has(plan)) throw new Violation(`G12: nobody was told of the rollback ${plan}`);
      this.#checkPositions(store);
    }
  }

  #checkRows(tenant: SimTenant, index: number): void {
    const { committed } = this.#of(this.#latest);
    let at = committed.length;
    for (const { id, lsn } of tenant.records()) {
      while (at > 0 && tenantOf(committed[at - 1]!) !== index) at -= 1;
      if (committed[at - 1]?.id !== id)
        throw new Violation(`G5: a tenant has record ${id} of LSN ${lsn} where it should have that of LSN ${at}`);
      at -= 1;
    }
    while (at > 0 && tenantOf(committed[at - 1]!) !== index) at -= 1;
    if (at > 0) throw new Violation(`G5: a tenant lacks what was committed at LSN ${at}`);
  }

  /** Whoever was given the position of a write learns what became of it. */
  #checkPositions(store: SimStore): void {
    const lineage = this.#of(this.#latest);
    for (const record of this.#answered) {
      const { generation, term, lsn }: Position = record;
      const { kind } = outlookOf(store, { generation, term, lsn });
      if (kind !== (lineage.has(record) ? 'reached' : 'lost'))
        throw new Violation(`G13: position (${generation}, ${term}, ${lsn}) is said to be ${kind}`);
    }
  }
}

function* everythingIn(store: SimStore): Generator<SimRecord> {
  yield* store.above(0);
  for (const { records } of store.directory.files.values()) for (const { record } of records) yield record;
}

/** Somebody had been told that it is kept, and the file says so. */
function isPreserved({ directory }: SimStore, { id }: SimRecord): boolean {
  for (const plan of directory.dropped) {
    const entry = directory.files.get(plan)?.records.find(({ record }) => record.id === id);
    if (entry !== undefined && !entry.acknowledged)
      throw new Violation(`G11: record ${id} was acknowledged, and its rollback file does not say so`);
    if (entry !== undefined) return true;
  }
  return false;
}

/** As often as a record was dropped, it is in a file of a rollback that dropped something. */
function checkFiles({ directory: { files, dropped, drops } }: SimStore): void {
  const found = new Map<number, number>();
  for (const plan of dropped)
    for (const { record } of files.get(plan)?.records ?? []) found.set(record.id, (found.get(record.id) ?? 0) + 1);
  for (const id of new Set([...found.keys(), ...drops.keys()]))
    if (found.get(id) !== drops.get(id))
      throw new Violation(`G11: record ${id}, dropped ${drops.get(id) ?? 0} times, is in ${found.get(id) ?? 0} files`);
}
