/**
 * Records and gaps as they follow one another in a file: dense from its first LSN to its last, records as one chain of
 * hashes as far as they stand side by side, terms that never fall. Both who writes a file and who reads one ask here.
 */
import type { Hash, Lsn } from '../../base/brands.ts';
import { brokenLink, pointOf, type ChainPoint } from '../../log/chain.ts';
import type { LogRecord } from '../../log/record.ts';
import { chainStart, type FileHeader, type TailGap } from './format.ts';

export class TailChain {
  readonly #header: FileHeader;
  #next: number;
  #term = 0;
  #previous: ChainPoint | undefined;

  constructor(header: FileHeader) {
    this.#header = header;
    this.#next = header.firstLsn;
    this.#previous = chainStart(header);
  }

  /** Why it cannot come next; undefined where it does. */
  record(record: LogRecord, hash: Hash): string | undefined {
    const { complete, lastLsn, newTerm } = this.#header;
    const { lsn, term } = record;
    const broken = this.#previous === undefined ? this.#misfit(record) : brokenLink(this.#previous, record);
    if (broken !== undefined) return broken;
    if (lsn > lastLsn || term > newTerm || (complete && term === newTerm))
      return `(term ${term}, LSN ${lsn}) is beyond what its header says`;
    this.#previous = pointOf(record, hash);
    this.#term = term;
    this.#next = lsn + 1;
    return undefined;
  }

  gap({ from, to }: TailGap): string | undefined {
    if (this.#header.complete) return 'a complete tail has no gaps';
    if (from !== this.#next || to < from || to > this.#header.lastLsn) return `it has a gap from LSN ${from} to ${to}`;
    this.#previous = undefined;
    this.#next = to + 1;
    return undefined;
  }

  end(): string | undefined {
    const { lastLsn, oldTerm } = this.#header;
    if (this.#next === lastLsn + 1 && this.#term === oldTerm) return undefined;
    return `its records end with (term ${this.#term}, LSN ${this.#next - 1})`;
  }

  #misfit({ lsn, term }: { readonly lsn: Lsn; readonly term: number }): string | undefined {
    if (lsn !== this.#next) return `LSN ${lsn} stands where ${this.#next} should`;
    return term < this.#term ? `term ${term} follows ${this.#term}` : undefined;
  }
}
