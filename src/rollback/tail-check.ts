/**
 * Whether what was read is the tail that was asked for: ascending LSNs within (common point, frontier], the last one the
 * frontier's, terms that never fall and stay below the new primary's. One record at a time, in constant memory.
 */
import { NostosError } from '../base/errors.ts';
import type { Point } from './types.ts';

export interface TailSpan {
  readonly common: { readonly lsn: number };
  readonly frontier: { readonly lsn: number };
  readonly primaryTerm: number;
  /** Every LSN has a record; otherwise some may be missing. */
  readonly dense: boolean;
}

export class TailCheck {
  readonly #span: TailSpan;
  #last: Point;
  #records = 0;

  constructor(span: TailSpan) {
    this.#span = span;
    this.#last = { term: 0, lsn: span.common.lsn };
  }

  push({ term, lsn }: Point): void {
    const { common, frontier, primaryTerm, dense } = this.#span;
    const last = this.#last;
    if (!Number.isSafeInteger(lsn) || !Number.isSafeInteger(term))
      throw tailUnreadable(`it has a record (term ${term}, LSN ${lsn}) whose numbers are no safe integers`);
    if (lsn <= common.lsn || lsn > frontier.lsn)
      throw tailUnreadable(`LSN ${lsn} is not within (${common.lsn}, ${frontier.lsn}]`);
    if (lsn <= last.lsn) throw tailUnreadable(`LSN ${lsn} comes after ${last.lsn}`);
    if (dense && lsn !== last.lsn + 1) throw tailUnreadable(`LSN ${lsn} comes after ${last.lsn}: some are missing`);
    if (term < last.term) throw tailUnreadable(`term ${term} at LSN ${lsn} comes after term ${last.term}`);
    if (term >= primaryTerm)
      throw tailUnreadable(`LSN ${lsn} is of term ${term}, which is not below the new primary's ${primaryTerm}`);
    this.#last = { term, lsn };
    this.#records += 1;
  }

  /** Nothing more comes. */
  end(): void {
    const { common, frontier } = this.#span;
    if (this.#last.lsn === frontier.lsn) return;
    const where = this.#records === 0 ? 'it is empty' : `it ends at LSN ${this.#last.lsn}`;
    throw tailUnreadable(`${where}, the tail is (${common.lsn}, ${frontier.lsn}]`);
  }
}

export function tailUnreadable(why: string, cause?: unknown): NostosError {
  return new NostosError('TAIL_READ_FAILED', `the divergent tail cannot be read: ${why}; nothing was dropped`, {
    ...(cause === undefined ? {} : { cause }),
    details: { reason: why },
  });
}
