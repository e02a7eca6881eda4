/**
 * `.backup-restore/journal.json` in the data directory: which restore runs there, and how far it is. Written durably before
 * the first byte that it speaks of.
 *
 * | state | the directory | the same call | `abandon` |
 * |---|---|---|---|
 * | `staging` | is as it was; items come into `.backup-restore/new` | keeps the items that are whole, fetches the rest | clears up |
 * | `swapping` | old entries go to `.backup-restore/old`, then the tenant comes in, by one rename | goes on, however far it is | undoes it, until the tenant is in |
 * | `swapped` | is the new one | clears up | refuses |
 *
 * How far a swap is, the names tell. The reference's marker is there from before the first item until the end of clearing up.
 */
import { join } from 'node:path';
import * as v from 'valibot';
import type { Disk } from '../../base/disk.ts';
import { readIfExists, writeDurably } from '../../base/durable-file.ts';
import { readInput, wholeNumber } from '../../base/input-schema.ts';
import { RestoreExecutorError } from './errors.ts';

/** What a restore needs besides, until it ends. */
export const WORK = '.backup-restore';
export const JOURNAL = 'journal.json';

const hex = v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/));
const Journal = v.strictObject({
  format: v.literal(1),
  state: v.picklist(['staging', 'swapping', 'swapped']),
  /** What makes two calls the same. */
  run: v.strictObject({
    tenant: v.pipe(v.string(), v.regex(/^tenant_-?\d{1,19}$/)),
    snapshotId: v.string(),
    mode: v.picklist(['new_cluster', 'single_tenant', 'wipe_and_restore']),
    items: v.array(
      v.strictObject({
        contentKey: v.string(),
        checksum: v.nullable(v.string()),
        path: v.pipe(v.string(), v.regex(/^(?:hnsw\/)?[A-Za-z0-9._-]+$/)),
      }),
    ),
  }),
  /** Of the first items, as many as are whole and synced. */
  staged: v.array(v.strictObject({ bytes: wholeNumber(), blake3: hex })),
  /** Entries of the data directory that make room. */
  setAside: v.array(v.pipe(v.string(), v.regex(/^(?!\.{1,2}$)[^/\0]+$/))),
});

export type Journal = Omit<v.InferOutput<typeof Journal>, 'format'>;
export type Run = Journal['run'];

export function saveJournal(disk: Disk, dir: string, journal: Journal): void {
  const text = `${JSON.stringify({ format: 1, ...journal }, null, 2)}\n`;
  writeDurably(disk, join(dir, WORK, JOURNAL), Buffer.from(text));
}

export function loadJournal(disk: Disk, dir: string): Journal | undefined {
  const path = join(dir, WORK, JOURNAL);
  const bytes = readIfExists(disk, path);
  if (bytes === undefined) return undefined;
  let problem: string;
  try {
    const read = readInput(Journal, JSON.parse(Buffer.from(bytes).toString()));
    if (read.ok) return read.value;
    problem = read.problem;
  } catch (error) {
    problem = (error as Error).message;
  }
  throw new RestoreExecutorError(
    'RestoreInProgress',
    `${path} is of a restore that was cut off, and it cannot be read (${problem}); go on with the release that wrote it`,
    { path },
  );
}
