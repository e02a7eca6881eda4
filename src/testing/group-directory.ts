/** `rollback/` of a simulated node: the journal, the files and the outbox, and how a power cut leaves them. */
import type { SeededRandom } from '../base/random.ts';
import { EMPTY_JOURNAL, type Journal } from '../rollback/run/journal.ts';
import type { RollbackNotice } from '../rollback/types.ts';
import type { SimRecord } from './group-store.ts';

export interface SimFile {
  readonly records: readonly { readonly record: SimRecord; readonly acknowledged: boolean }[];
  readonly state: 'temporary' | 'whole';
  readonly synced: boolean;
}

export class SimDirectory {
  journal: Journal = EMPTY_JOURNAL;
  /** What the journal was before its last replacement, whose rename may not be durable: its writer died in between. */
  #before: Journal | undefined;
  /** By the id of the plan. */
  readonly files = new Map<string, SimFile>();
  readonly outbox = new Map<string, RollbackNotice>();
  /** For those who look: how often each record was dropped, and by which plans anything was. */
  readonly drops = new Map<number, number>();
  readonly dropped = new Set<string>();

  /** Whoever replaces the journal dies before that is known to be durable. */
  replaceJournalHalfway(journal: Journal): void {
    [this.#before, this.journal] = [this.journal, journal];
  }

  replaceJournal(journal: Journal): void {
    [this.#before, this.journal] = [undefined, journal];
  }

  losePower(random: SeededRandom): void {
    if (this.#before !== undefined && random.chance(0.5)) this.journal = this.#before;
    this.#before = undefined;
    for (const [id, file] of this.files) if (!file.synced || file.state === 'temporary') this.files.delete(id);
  }

  copy(): SimDirectory {
    const copy = new SimDirectory();
    copy.journal = this.journal;
    for (const [id, file] of this.files) copy.files.set(id, file);
    for (const [key, notice] of this.outbox) copy.outbox.set(key, notice);
    for (const [id, count] of this.drops) copy.drops.set(id, count);
    for (const id of this.dropped) copy.dropped.add(id);
    return copy;
  }
}
