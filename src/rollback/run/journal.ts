/**
 * `rollback/journal.json`: the rollback counter, the highest own watermark seen, and the last run. It is replaced whole and
 * durably. After a crash between its rename and the sync of the directory the old or the new one may be there: what was
 * read may go back by one state, so a step that is taken without writing the journal first (recover, rejoin) is one that
 * the state before leads to as well.
 */
import { join } from 'node:path';
import * as v from 'valibot';
import type { Disk } from '../../base/disk.ts';
import { readIfExists, writeDurably } from '../../base/durable-file.ts';
import { NostosError } from '../../base/errors.ts';
import { readInput, wholeNumber } from '../../base/input-schema.ts';
import type { Intent } from './machine.ts';

export const JOURNAL_FILE = 'journal.json';
const JOURNAL_FORMAT = 1;

export interface Journal {
  /** Rollbacks of this node that dropped anything. */
  readonly counter: number;
  /** The highest own W that a run has seen, and in which generation and store: it never falls there. */
  readonly watermark: { readonly generation: string; readonly lsn: number; readonly store?: string };
  readonly intent?: Intent;
  /** Of the present intent's current state: how often it was tried, and how it failed last. */
  readonly attempts: number;
  readonly lastError?: string;
}

export const EMPTY_JOURNAL: Journal = { counter: 0, watermark: { generation: '', lsn: 0 }, attempts: 0 };

export interface JournalStore {
  load(): Journal;
  save(journal: Journal): void;
}

/** Lasts as long as its owner. */
export class MemoryJournal implements JournalStore {
  #journal = EMPTY_JOURNAL;

  load(): Journal {
    return this.#journal;
  }

  save(journal: Journal): void {
    this.#journal = journal;
  }
}

/** `dir` is made by its owner. */
export class FileJournal implements JournalStore {
  readonly #disk: Disk;
  readonly #dir: string;

  constructor(disk: Disk, dir: string) {
    this.#disk = disk;
    this.#dir = dir;
  }

  load(): Journal {
    const path = join(this.#dir, JOURNAL_FILE);
    const bytes = readIfExists(this.#disk, path);
    return bytes === undefined ? EMPTY_JOURNAL : parseJournal(path, bytes);
  }

  save(journal: Journal): void {
    const text = `${JSON.stringify({ format: JOURNAL_FORMAT, ...journal }, null, 2)}\n`;
    writeDurably(this.#disk, join(this.#dir, JOURNAL_FILE), Buffer.from(text));
  }
}

const hex = (digits: number): v.GenericSchema<string> =>
  v.pipe(v.string(), v.regex(new RegExp(`^(?:[0-9a-f]{${digits}})?$`), `expected ${digits} hex digits`));

const point = { term: wholeNumber(), lsn: wholeNumber() };
const plan = v.object({
  id: hex(32),
  createdAtMs: wholeNumber(),
  common: v.object({ ...point, hash: hex(64) }),
  frontier: v.object(point),
  store: v.exactOptional(hex(32)),
  watermark: wholeNumber(),
  primary: v.object({ address: v.string(), term: wholeNumber() }),
});
const file = v.object({
  path: v.string(),
  records: wholeNumber(),
  acknowledged: wholeNumber(),
  bytes: wholeNumber(),
  digest: hex(64),
});
const schema = v.object({
  counter: wholeNumber(),
  watermark: v.object({ generation: hex(32), lsn: wholeNumber(), store: v.exactOptional(hex(32)) }),
  attempts: wholeNumber(),
  lastError: v.exactOptional(v.string()),
  intent: v.exactOptional(
    v.variant('state', [
      v.object({ state: v.literal('planned'), plan }),
      v.object({ state: v.picklist(['preserved', 'recovering', 'recovered', 'announced', 'rejoined']), plan, file }),
    ]),
  ),
});

export function parseJournal(path: string, bytes: Uint8Array): Journal {
  let fields: unknown;
  try {
    fields = JSON.parse(Buffer.from(bytes).toString());
  } catch (error) {
    throw unreadable(path, 'it is not JSON', error);
  }
  const format = (fields as { format?: unknown } | null)?.format;
  if (format !== JOURNAL_FORMAT) throw unreadable(path, `its format is ${String(format)}, not ${JOURNAL_FORMAT}`);
  const read = readInput(schema, fields);
  if (!read.ok) throw unreadable(path, read.problem);
  return read.value;
}

function unreadable(path: string, why: string, cause?: unknown): NostosError {
  return new NostosError(
    'UNSUPPORTED_FORMAT',
    `${path} cannot be read: ${why}; put a readable one back. Without it a rollback that was begun cannot be told from one that was not`,
    { ...(cause === undefined ? {} : { cause }), details: { path } },
  );
}
