/**
 * `rejoin.json`: what was found out about the store of this directory that its files do not show by themselves, and how far
 * the way back to the group is. Replaced whole and durably, so that restarts go on counting, and what a process found
 * before it ended is acted on by the next one. A restore leaves it where it is.
 *
 * A finding is of one store: with a new store it is of the past. A file that cannot be read counts as none: what it said
 * of damage is found again, and only attempts are counted anew.
 */
import { join } from 'node:path';
import * as v from 'valibot';
import { toLsn, toStoreId, toTerm, type Lsn, type StoreId, type Term } from '../base/brands.ts';
import type { Disk } from '../base/disk.ts';
import { readIfExists, writeDurably } from '../base/durable-file.ts';
import { readInput, wholeNumber } from '../base/input-schema.ts';
import { REJOIN_ACTIONS, REJOIN_ROWS, type RejoinFound } from './rejoin-decision.ts';
import type { RejoinProgress } from './rejoin-progress.ts';

export const REJOIN_FILE = 'rejoin.json';

/** Why the machine stopped, where that cannot be seen in the directory and stays true. */
export const LASTING_STOPS = ['network-restore', 'lost-records'] as const;

export interface Finding extends Pick<RejoinFound, 'damage' | 'differs'> {
  readonly stopped?: (typeof LASTING_STOPS)[number];
}

/** A store whose files are being set aside: what can be read of its log above that is to be preserved. */
export interface Tail {
  readonly store: StoreId;
  readonly above: Lsn;
  readonly term: Term;
}

export interface RejoinState {
  readonly finding: (Finding & { readonly store: StoreId }) | null;
  readonly tail: Tail | null;
  readonly progress: RejoinProgress | null;
}

const TEXT_CHARS_MAX = 4_000;
const text = v.pipe(v.string(), v.maxLength(TEXT_CHARS_MAX));
const action = v.picklist(REJOIN_ACTIONS);
const row = v.picklist(REJOIN_ROWS);
const store = v.pipe(
  v.string(),
  v.regex(/^[0-9a-f]{32}$/),
  v.transform((id) => toStoreId(id)),
);
const schema = v.strictObject({
  finding: v.nullable(
    v.strictObject({
      store,
      damage: v.optional(text),
      differs: v.optional(text),
      stopped: v.optional(v.picklist(LASTING_STOPS)),
    }),
  ),
  tail: v.nullable(
    v.strictObject({
      store,
      above: v.pipe(
        wholeNumber(),
        v.transform((lsn) => toLsn(lsn)),
      ),
      term: v.pipe(
        wholeNumber(),
        v.transform((term) => toTerm(term)),
      ),
    }),
  ),
  progress: v.nullable(
    v.strictObject({
      decision: v.strictObject({
        row,
        action,
        reason: text,
        keeps: text,
        drops: text,
        next: v.array(action),
        advice: v.optional(text),
      }),
      current: action,
      attempt: wholeNumber(1),
      attemptsTotal: wholeNumber(),
      attemptsEver: wholeNumber(),
      history: v.array(
        v.strictObject({
          action,
          row,
          outcome: v.picklist(['failed', 'not-built', 'done']),
          why: text,
          atMs: wholeNumber(),
        }),
      ),
      sinceMs: wholeNumber(),
    }),
  ),
});

const NONE: RejoinState = { finding: null, tail: null, progress: null };

export class RejoinFile {
  readonly #disk: Disk;
  readonly #path: string;
  #state: RejoinState;

  constructor(disk: Disk, dir: string) {
    this.#disk = disk;
    this.#path = join(dir, REJOIN_FILE);
    this.#state = load(disk, this.#path);
  }

  get progress(): RejoinProgress | undefined {
    return this.#state.progress ?? undefined;
  }

  /** What is known of this store. */
  findingOf(of: StoreId): Finding | undefined {
    const { finding } = this.#state;
    if (finding?.store !== of) return undefined;
    const { store: _, ...known } = finding;
    return known;
  }

  /** What was found first stays: the rest follows from it, most often. */
  add(of: StoreId, finding: Finding): void {
    this.#save({ ...this.#state, finding: { store: of, ...finding, ...this.findingOf(of) } });
  }

  /** It is not so any more. */
  clear(): void {
    this.#save({ ...this.#state, finding: null });
  }

  get tail(): Tail | undefined {
    return this.#state.tail ?? undefined;
  }

  setTail(tail: Tail | null): void {
    this.#save({ ...this.#state, tail });
  }

  setProgress(progress: RejoinProgress): void {
    this.#save({ ...this.#state, progress });
  }

  #save(state: RejoinState): void {
    this.#state = state;
    const bounded = JSON.stringify(state, (_key, value: unknown) =>
      typeof value === 'string' ? value.slice(0, TEXT_CHARS_MAX) : value,
    );
    writeDurably(this.#disk, this.#path, Buffer.from(`${bounded}\n`));
  }
}

function load(disk: Disk, path: string): RejoinState {
  const bytes = readIfExists(disk, path);
  if (bytes === undefined) return NONE;
  try {
    const read = readInput(schema, JSON.parse(Buffer.from(bytes).toString()));
    return read.ok ? (read.value as RejoinState) : NONE;
  } catch {
    return NONE;
  }
}
