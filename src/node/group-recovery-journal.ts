/**
 * `recovery.json`: what a recovery with a loss has decided, in the directory that goes on, from before its first change until
 * after its last one. While it is there the directory opens for nobody: its log and the group record may be of different
 * generations. The same command goes on with it, to the same end.
 */
import { join } from 'node:path';
import * as v from 'valibot';
import { toGeneration, toHash, toLsn, toStoreId, toTerm, type Generation, type StoreId } from '../base/brands.ts';
import type { Disk } from '../base/disk.ts';
import { readIfExists, writeDurably } from '../base/durable-file.ts';
import { NostosError } from '../base/errors.ts';
import { branded, readInput, wholeNumber } from '../base/input-schema.ts';
import { encodeGroupRecord, parseGroupRecord, type GroupRecord } from '../coordination/coordinator.ts';
import type { ChainPoint } from '../log/chain.ts';
import type { PossibleLoss } from './group-recovery.ts';
import { RECOVERY_FILE } from './paths.ts';

const FORMAT = 1;

export interface RecoveryJournal {
  readonly store: StoreId;
  /** The generation that ends. */
  readonly parent: Generation;
  /** The last record of its log. */
  readonly fork: ChainPoint;
  /** Of the group record that is replaced; 0 where there is none. */
  readonly replaces: number;
  /** What it is replaced by, with the new generation and its first term. */
  readonly record: GroupRecord;
  readonly reason: string;
  readonly loss: PossibleLoss;
}

const generation = branded(toGeneration);
const [lsn, term, store] = [branded(toLsn), branded(toTerm), branded(toStoreId)];
const hash = v.pipe(
  v.string(),
  v.regex(/^[0-9a-f]{64}$/, 'expected 64 hex digits'),
  v.transform((text) => toHash(Buffer.from(text, 'hex'))),
);
const schema = v.strictObject({
  format: v.literal(FORMAT),
  store,
  parent: generation,
  fork: v.strictObject({ generation, term, lsn, hash }),
  replaces: wholeNumber(),
  record: branded((value) => parseGroupRecord(value, RECOVERY_FILE)),
  reason: v.string(),
  loss: v.strictObject({
    after: v.strictObject({ term, lsn }),
    known: v.nullable(v.strictObject({ from: lsn, to: lsn })),
    onlyOn: v.array(store),
    committed: v.nullable(v.strictObject({ generation, term, lsn })),
  }),
});

export function saveRecovery(disk: Disk, dir: string, journal: RecoveryJournal): void {
  const { fork, record, ...rest } = journal;
  const fields = { format: FORMAT, ...rest, fork: { ...fork, hash: Buffer.from(fork.hash).toString('hex') } };
  const text = JSON.stringify({ ...fields, record: JSON.parse(encodeGroupRecord(record)) as unknown }, null, 2);
  writeDurably(disk, join(dir, RECOVERY_FILE), Buffer.from(`${text}\n`));
}

export function loadRecovery(disk: Disk, dir: string): RecoveryJournal | undefined {
  const path = join(dir, RECOVERY_FILE);
  const bytes = readIfExists(disk, path);
  if (bytes === undefined) return undefined;
  let fields: unknown;
  try {
    fields = JSON.parse(Buffer.from(bytes).toString());
  } catch (error) {
    throw unreadable(path, 'it is not JSON', error);
  }
  const read = readInput(schema, fields);
  if (!read.ok) throw unreadable(path, read.problem);
  const { format: _, ...journal } = read.value;
  return journal;
}

export function removeRecovery(disk: Disk, dir: string): void {
  disk.remove(join(dir, RECOVERY_FILE));
  disk.syncDirectory(dir);
}

export function assertNoRecovery(disk: Disk, dir: string): void {
  if (!disk.exists(join(dir, RECOVERY_FILE))) return;
  throw new NostosError(
    'RECOVERY_UNFINISHED',
    `a recovery of the group from ${dir} was cut off; nostos group recover --dir ${dir} --coordinator <url> finishes it, and with --abandon gives it up as long as the group record has not been replaced`,
    { details: { dir } },
  );
}

function unreadable(path: string, why: string, cause?: unknown): NostosError {
  return new NostosError(
    'UNSUPPORTED_FORMAT',
    `${path} cannot be read: ${why}; it says how far a recovery of the group has come, and without it nobody can tell`,
    { ...(cause === undefined ? {} : { cause }), details: { path } },
  );
}
