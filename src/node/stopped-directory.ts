/**
 * What a directory holds that no process has open: who it is, where its log ends, and the newest group record that it has
 * seen. For `nostos rejoin --plan` and `nostos group`, which decide by it. Read under the lock of the directory; nothing
 * but the lock is changed.
 */
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import * as v from 'valibot';
import {
  NO_LSN,
  NO_TERM,
  toClusterId,
  toGeneration,
  toLsn,
  toNodeId,
  toStoreId,
  toTerm,
  type ClusterId,
  type Generation,
  type Lsn,
  type NodeId,
  type Position,
  type StoreId,
  type Term,
} from '../base/brands.ts';
import { acquireDirectoryLock, type DirectoryLock } from '../base/directory-lock.ts';
import { systemDisk } from '../base/disk.ts';
import { NostosError, isNostosError } from '../base/errors.ts';
import { branded, readInput, wholeNumber } from '../base/input-schema.ts';
import { DEFAULT_LIMITS } from '../base/limits.ts';
import { parseGroupRecord, type Versioned } from '../coordination/coordinator.ts';
import { NewestSeen } from '../coordination/newest-seen.ts';
import { inspectLog, type Findings } from '../log/recovery.ts';
import { readMarker } from '../restore/local/marker.ts';
import { FileJournal } from '../rollback/run/journal.ts';
import { isUnderWay } from '../rollback/run/runner.ts';
import { assertNoRecovery } from './group-recovery-journal.ts';
import { highestApplied } from './highest-applied.ts';
import { loadNode, type NodeIdentity } from './node-file.ts';
import { RejoinFile } from './rejoin-file.ts';
import { VERSION } from './runtime.ts';

export const COORDINATOR_FILE = 'coordinator.json';

/** Plain JSON: what one machine says of its store, to be judged on another one. */
export interface StoreReport {
  readonly node: NodeId;
  readonly store: StoreId;
  readonly cluster: ClusterId;
  readonly generation: Generation;
  readonly end: { readonly generation: Generation; readonly term: Term; readonly lsn: Lsn };
  /** Of the record at the end, hex. */
  readonly endHash: string;
  readonly watermark: Lsn;
  readonly anchor: Lsn;
  /** Which term began where, oldest first. */
  readonly terms: readonly { readonly generation: Generation; readonly term: Term; readonly firstLsn: Lsn }[];
  /** What cannot be trusted; then the log is not what the fields above say, which are those of an empty one. */
  readonly damage?: string;
  readonly restoreUnfinished: boolean;
  /** A rollback has begun to drop records that the log still has; the node ends it when it is started. */
  readonly rollbackUnderWay?: true;
  /** It was found to lack records that it had acknowledged. */
  readonly lostRecords?: true;
  /** Made by a restore; so are most members of a group, once they have joined. */
  readonly copy: boolean;
  /** The newest group record that it has seen. */
  readonly seen: Versioned | null;
}

export interface StoppedDirectory {
  readonly dir: string;
  readonly report: StoreReport;
}

/** Calls `use` with what the directories hold; meanwhile nobody opens one of them. */
export async function withStopped<T>(
  dirs: readonly string[],
  use: (found: readonly StoppedDirectory[]) => Promise<T>,
): Promise<T> {
  return withLocked(dirs, () => use(dirs.map(readStopped)));
}

export async function withLocked<T>(dirs: readonly string[], use: () => Promise<T>): Promise<T> {
  const locks: DirectoryLock[] = [];
  try {
    for (const dir of dirs) {
      if (!systemDisk.exists(join(dir, 'node.json')))
        throw new NostosError('INVALID_ARGUMENT', `there is no data directory of Nostos at ${dir}`, {
          details: { dir },
        });
      const holder = { command: process.argv.slice(1).join(' '), version: VERSION };
      locks.push(await acquireDirectoryLock({ dir, timeoutMs: 0, holder }));
    }
    return await use();
  } finally {
    for (const lock of locks.toReversed()) lock.release();
  }
}

/** The lock is the business of whoever calls. */
export function readStopped(dir: string): StoppedDirectory {
  assertNoRecovery(systemDisk, dir);
  const identity = loadNode(dir, undefined);
  const { node, store, cluster, generation, copy } = identity;
  const { newest } = new NewestSeen(systemDisk, join(dir, COORDINATOR_FILE));
  const marker = readMarker(systemDisk, dir);
  const about = {
    node,
    store,
    cluster,
    generation,
    restoreUnfinished: marker !== undefined,
    copy: copy !== undefined,
    seen: newest ?? null,
  };
  const rolling = isUnderWay(new FileJournal(systemDisk, join(dir, 'rollback')).load().intent);
  const rollback = rolling ? { rollbackUnderWay: true as const } : {};
  const lost = new RejoinFile(systemDisk, dir).findingOf(store)?.stopped === 'lost-records';
  const lostRecords = lost ? { lostRecords: true as const } : {};
  return { dir, report: { ...about, ...rollback, ...lostRecords, ...readLog(dir, identity, newest) } };
}

type LogReport = Pick<StoreReport, 'end' | 'endHash' | 'watermark' | 'anchor' | 'terms' | 'damage'>;

function readLog(dir: string, { generation, store, copy }: NodeIdentity, newest: Versioned | undefined): LogReport {
  // Who was in sync had all of this on its disk.
  const known = newest?.record.inSync.includes(store) === true ? newest.record.committed : null;
  const none = {
    end: { generation, term: NO_TERM, lsn: NO_LSN },
    endHash: '',
    watermark: NO_LSN,
    anchor: NO_LSN,
    terms: [],
  };
  let found: Findings | undefined;
  try {
    found = inspectLog(systemDisk, {
      dir: join(dir, 'log'),
      generation,
      segmentBytesMax: DEFAULT_LIMITS.segmentBytesMax,
      preallocateBytes: 0,
      knownWatermark: Math.max(known?.generation === generation ? known.lsn : 0, copy?.reaches?.lsn ?? 0) as Lsn,
      highestApplied: () => highestApplied(dir),
    });
  } catch (error) {
    if (!isNostosError(error, 'LOG_DAMAGED') && !isNostosError(error, 'DIRECTORY_FOREIGN')) throw error;
    return { ...none, damage: error.message };
  }
  if (found === undefined) return none;
  const { end, watermark, terms, sealed, last } = found;
  return {
    end: { generation: end.generation, term: end.term, lsn: end.lsn },
    endHash: Buffer.from(end.hash).toString('hex'),
    watermark,
    anchor: (sealed[0]?.anchor ?? last.header.anchor).lsn,
    terms: terms.entries.map((entry) => ({ generation: entry.generation, term: entry.term, firstLsn: entry.firstLsn })),
  };
}

/** The last record that two logs share, as their term tables say: a term that both have is the same in both. */
export function commonEnd(a: StoreReport, b: StoreReport): Lsn {
  const shared = a.terms.findLast((one) => b.terms.some((other) => isDeepStrictEqual(one, other)));
  if (shared === undefined) return NO_LSN;
  const lastOf = ({ terms, end }: StoreReport): number =>
    (terms.find(({ firstLsn }) => firstLsn > shared.firstLsn)?.firstLsn ?? end.lsn + 1) - 1;
  return Math.min(lastOf(a), lastOf(b)) as Lsn;
}

/** Whether the log that is reported has this record. */
export function holdsPosition({ end, terms }: StoreReport, position: Position): boolean {
  if (position.lsn === 0) return true;
  const entry = terms.findLast(({ firstLsn }) => firstLsn <= position.lsn);
  return position.lsn <= end.lsn && entry?.term === position.term && entry.generation === position.generation;
}

const TERMS_MAX = 1_000_000;
const generation = branded(toGeneration);
const reportSchema = v.strictObject({
  node: branded(toNodeId),
  store: branded(toStoreId),
  cluster: branded(toClusterId),
  generation,
  end: v.strictObject({ generation, term: branded(toTerm), lsn: branded(toLsn) }),
  endHash: v.pipe(v.string(), v.regex(/^(?:[0-9a-f]{64})?$/, 'expected 64 hex digits')),
  watermark: branded(toLsn),
  anchor: branded(toLsn),
  terms: v.pipe(
    v.array(v.strictObject({ generation, term: branded(toTerm), firstLsn: branded(toLsn) })),
    v.maxLength(TERMS_MAX),
  ),
  damage: v.optional(v.string()),
  restoreUnfinished: v.boolean(),
  rollbackUnderWay: v.optional(v.literal(true)),
  lostRecords: v.optional(v.literal(true)),
  copy: v.boolean(),
  seen: v.nullable(
    v.strictObject({ version: wholeNumber(1), record: branded((value) => parseGroupRecord(value, 'the report')) }),
  ),
});

/** A report that was written on another machine (`nostos rejoin --plan --json`). */
export function parseStoreReport(value: unknown, source: string): StoreReport {
  const read = readInput(reportSchema, value);
  if (!read.ok) throw new NostosError('INVALID_ARGUMENT', `${source} is no report of a store: ${read.problem}`);
  const { damage, rollbackUnderWay, lostRecords, ...rest } = read.value;
  return {
    ...rest,
    ...(damage === undefined ? {} : { damage }),
    ...(rollbackUnderWay === undefined ? {} : { rollbackUnderWay }),
    ...(lostRecords === undefined ? {} : { lostRecords }),
  };
}
