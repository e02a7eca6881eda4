/**
 * `log/terms`: which term began where, for good. A position is checked against it long after its segment was pruned.
 * It is written before the segment that holds a term-start is sealed; later term-starts are found in the open segment,
 * which every opening reads. So the table on disk, up to where the open segment begins, plus that segment is always the
 * whole truth; what the table says beyond may be of a record that was lost before it was synced.
 */
import type { Generation, Lsn, Position, Term } from '../base/brands.ts';
import type { ChainPoint } from './chain.ts';
import { samePoint } from './chain.ts';
import { decodePoint, encodePoint } from './sealed.ts';
import type { TableShape } from './table-file.ts';
import { getUint64, putUint64 } from './record.ts';

export interface TermEntry {
  readonly term: Term;
  readonly generation: Generation;
  /** The term-start record. */
  readonly firstLsn: Lsn;
  /** The record before it. */
  readonly previous: ChainPoint;
}

/** Where a generation begins in this log: its first record, which is a term-start, or the first one of all. */
export interface GenerationEntry {
  readonly generation: Generation;
  readonly firstLsn: Lsn;
}

export const TERMS_FILE = 'terms';

export const termTable: TableShape<TermEntry> = {
  magic: 'NOSTOSTT',
  rowBytes: 8 + 16 + 8 + 64,
  encode(row, view, bytes) {
    putUint64(view, 0, row.term);
    bytes.set(Buffer.from(row.generation, 'hex'), 8);
    putUint64(view, 24, row.firstLsn);
    encodePoint(row.previous, view, bytes, 32);
  },
  decode: (view, bytes) => ({
    term: getUint64(view, 0, 'term') as Term,
    generation: Buffer.from(bytes.subarray(8, 24)).toString('hex') as Generation,
    firstLsn: getUint64(view, 24, 'LSN') as Lsn,
    previous: decodePoint(view, bytes, 32),
  }),
};

export class TermTable {
  #entries: TermEntry[];
  #generations: readonly GenerationEntry[] | undefined;
  /** Whether it has entries that are not on disk yet. */
  dirty: boolean;

  constructor(entries: readonly TermEntry[], dirty = false) {
    this.#entries = [...entries];
    this.dirty = dirty;
  }

  get entries(): readonly TermEntry[] {
    return this.#entries;
  }

  /** False when the table holds something else for this term: one of the two is damaged. */
  add(entry: TermEntry): boolean {
    const held = this.#entries.find((other) => other.term === entry.term);
    if (held !== undefined) return sameEntry(held, entry);
    const last = this.#entries.at(-1);
    if (last !== undefined && (entry.term <= last.term || entry.firstLsn <= last.firstLsn)) return false;
    if (last !== undefined && entry.previous.generation !== last.generation) return false;
    if (entry.generation !== entry.previous.generation && this.#knows(entry.generation)) return false;
    this.#entries.push(entry);
    this.#changed();
    return true;
  }

  /** The lineage, oldest first: each generation goes on where the one before it ends here. None comes twice. */
  get generations(): readonly GenerationEntry[] {
    this.#generations ??= lineage(this.#entries);
    return this.#generations;
  }

  /** That of a record which this history has. */
  generationOf(lsn: Lsn): GenerationEntry | undefined {
    return this.generations.findLast(({ firstLsn }) => firstLsn <= lsn);
  }

  #knows(generation: Generation): boolean {
    return this.generations.some((one) => one.generation === generation);
  }

  #changed(): void {
    this.#generations = undefined;
    this.dirty = true;
  }

  /** Forgets the terms that began above this LSN. */
  cut(lsn: Lsn): void {
    const kept = this.#entries.filter((entry) => entry.firstLsn <= lsn);
    if (kept.length === this.#entries.length) return;
    this.#entries = kept;
    this.#changed();
  }

  /** The term in which this LSN was written; undefined before the first known term. */
  at(lsn: Lsn): TermEntry | undefined {
    return this.#entries.findLast((entry) => entry.firstLsn <= lsn);
  }

  /** Whether the position lies on this history, given where it ends. */
  contains(position: Position, end: Lsn): boolean {
    if (position.lsn === 0) return position.term === 0;
    if (position.lsn > end) return false;
    const entry = this.at(position.lsn);
    return entry !== undefined && entry.term === position.term && entry.generation === position.generation;
  }
}

function lineage(entries: readonly TermEntry[]): GenerationEntry[] {
  const [first] = entries;
  if (first === undefined) return [];
  // The first one is that of what came before the first term that is known, if anything did.
  const found: GenerationEntry[] = [{ generation: first.previous.generation, firstLsn: 1 as Lsn }];
  for (const { generation, firstLsn, previous } of entries)
    if (generation !== previous.generation) found.push({ generation, firstLsn });
  return found;
}

export function sameEntry(a: TermEntry, b: TermEntry): boolean {
  return a.generation === b.generation && a.firstLsn === b.firstLsn && samePoint(a.previous, b.previous);
}
