/**
 * Keeps what can still be read of a log that is given up: its records above a position go into a rollback file before the
 * log is set aside for good. A damaged log is not rolled back in place (`rollback-host.ts` refuses that): its node keeps
 * the readable records by this, and takes a copy from its group.
 *
 *     await preserveTail({ dir: '…/set-aside.3', into: '…/rollback', above: common.lsn, term: primary.term })
 *
 * - `dir` is a data directory of which nobody changes the log meanwhile: a stopped one, one set aside, or a frozen one. Of
 *   its own files nothing is changed; the names of tables are read from its tenants where these can be opened.
 * - The file is complete where every record above the position was readable, up to the last one that anything knows of.
 *   Otherwise it says which ones are missing, and why. Where no record is readable there is no file.
 * - It is whole, read back and durable when this resolves, and until then under a temporary name. After a crash, or done
 *   again, the same call finds the file that is there.
 * - The log is read twice, a chunk at a time: the file begins with where it ends.
 */
import { join } from 'node:path';
import { hashBlake3 } from '../base/blake3.ts';
import { NO_LSN, type Generation, type Lsn, type TenantId } from '../base/brands.ts';
import { systemClock } from '../base/clock.ts';
import { systemDisk, type Disk } from '../base/disk.ts';
import { NostosError, isNostosError } from '../base/errors.ts';
import { yieldToEventLoop } from '../base/event-loop.ts';
import { ReadableLog } from '../log/readable.ts';
import { RecordKind, type LogRecord } from '../log/record.ts';
import { fileName, idOfName, isFileName } from '../rollback/file/file-name.ts';
import type { FileHeader, TailGap } from '../rollback/file/format.ts';
import { verifyFile } from '../rollback/file/reader.ts';
import { writeRollbackFile, type FileWriterDeps, type TailBatch } from '../rollback/file/writer.ts';
import { openRollbackDirectory } from '../rollback/run/directory.ts';
import { ROLLBACK_LIMITS, type PreservedFile, type RollbackLimits } from '../rollback/types.ts';
import { isLocalChangeset } from '../store/payload.ts';
import { loadNode, type NodeIdentity } from './node-file.ts';
import { tenantPath } from './paths.ts';
import { SchemaMemory, tenantInFile } from './tail-schemas.ts';
import type { LongCallOptions } from './types.ts';

const GAPS_LISTED_MAX = 1_000;

export interface PreserveTailOptions extends LongCallOptions {
  /** The data directory whose log is given up. */
  readonly dir: string;
  /** Records above it are preserved: the common point with the primary, or the own W where that is not known. */
  readonly above: Lsn;
  /** Of the group now; where it is below the last record's, that one's is written. */
  readonly term: number;
  /** The directory of rollback files, made where it is not there; by default `rollback/` of `dir`. */
  readonly into?: string;
  /** Who the directory is, where its `node.json` is lost. */
  readonly identity?: Pick<NodeIdentity, 'node' | 'store' | 'cluster' | 'generation'>;
  /** A record that is known to have been there: what is missing up to it is named as missing. */
  readonly reaches?: Lsn;
  /** Records up to here were committed, in a history that has ended since: whoever wrote them had been answered. */
  readonly committed?: Lsn;
  readonly limits?: RollbackLimits;
  /** Goes on although a limit is exceeded. */
  readonly override?: boolean;
  readonly disk?: Disk;
}

export interface PreservedTail {
  /** Undefined where no record above the position is readable. */
  readonly file: PreservedFile | undefined;
  /** Whether every record above the position is in the file, as far as anything tells; true also where there was none. */
  readonly complete: boolean;
  /** Records that are known to be missing. */
  readonly missing: number;
  /** The first thousand of them. */
  readonly gaps: readonly TailGap[];
}

export async function preserveTail(options: PreserveTailOptions): Promise<PreservedTail> {
  const { dir, into = join(dir, 'rollback'), disk = systemDisk, limits = ROLLBACK_LIMITS, override, signal } = options;
  const identity = options.identity ?? identityOf(disk, dir);
  const survey = await surveyOf(disk, identity.generation, options);
  const { missing, gaps, records, complete } = survey;
  if (records === 0) return { file: undefined, complete, missing, gaps };
  openRollbackDirectory(disk, into);
  const header = headerOf(identity, survey, options);
  const found = await fileOf(disk, into, header, signal);
  const file =
    found ??
    (await writeRollbackFile(
      { disk, dir: into, limits, schemaOf: schemasIn(dir) },
      header,
      () => tailOf(disk, identity.generation, options, survey),
      { override: override === true, ...(signal === undefined ? {} : { signal }) },
    ));
  return { file, complete, missing, gaps };
}

/** A record of a tail counts as acknowledged where it is a `local` changeset: its primary answers that by itself. */
export function isAcknowledged({ kind, payload }: LogRecord): boolean {
  return kind === RecordKind.changeset && isLocalChangeset(payload);
}

function identityOf(disk: Disk, dir: string): NodeIdentity {
  // Loading one that is not there would make it.
  if (disk.exists(join(dir, 'node.json'))) return loadNode(dir, undefined);
  throw new NostosError('INVALID_ARGUMENT', `${dir} has no node.json, so it is not known whose log it has`, {
    details: { dir },
  });
}

interface Survey {
  readonly generation: Generation;
  /** The record at the position, as far as the log has it. */
  readonly common: FileHeader['common'];
  readonly records: number;
  readonly lastLsn: number;
  readonly lastTerm: number;
  readonly missing: number;
  readonly gaps: readonly TailGap[];
  readonly complete: boolean;
}

/** What there is, before any of it is written. */
async function surveyOf(disk: Disk, generation: Generation, options: PreserveTailOptions): Promise<Survey> {
  const { above } = options;
  const log = readableLog(disk, generation, options);
  const gaps: TailGap[] = [];
  let [records, lastLsn, lastTerm, missing, complete] = [0, above as number, 0, 0, true];
  for (const part of log.parts()) {
    options.signal?.throwIfAborted();
    if (part.kind === 'gap') {
      const { from, to } = part.gap;
      if (gaps.length < GAPS_LISTED_MAX) gaps.push(part.gap);
      missing += to - from + 1;
      lastLsn = to;
      complete = false;
    } else {
      const last = part.records.at(-1)?.record;
      records += part.records.length;
      lastLsn = last?.lsn ?? lastLsn;
      lastTerm = last?.term ?? lastTerm;
    }
    await yieldToEventLoop();
  }
  const { start } = log;
  const hash = start === undefined ? '00'.repeat(32) : Buffer.from(start.hash).toString('hex');
  const common = { term: start?.term ?? 0, lsn: above, hash };
  return { generation: start?.generation ?? generation, common, records, lastLsn, lastTerm, missing, gaps, complete };
}

/** Without the record at the position, nothing says that the first one follows it. */
function headerOf(
  { node, store, cluster }: Pick<NodeIdentity, 'node' | 'store' | 'cluster'>,
  { generation, common, lastLsn, lastTerm, complete }: Survey,
  { above, term }: PreserveTailOptions,
): FileHeader {
  const known = common.lsn === NO_LSN || common.term > 0;
  return {
    ...{ node, cluster, generation, common },
    complete: complete && known && lastTerm < term,
    id: Buffer.from(hashBlake3(Buffer.from(`${store} above ${above}`))).toString('hex', 0, 16),
    oldTerm: lastTerm,
    newTerm: Math.max(term, lastTerm),
    firstLsn: above + 1,
    lastLsn,
    createdAtMs: systemClock.nowMs(),
  };
}

/** What an earlier call has written under another name, since the group was in another term. The writer finds its own. */
async function fileOf(
  disk: Disk,
  into: string,
  header: FileHeader,
  signal: AbortSignal | undefined,
): Promise<PreservedFile | undefined> {
  for (const name of disk.list(into)) {
    if (!isFileName(name) || idOfName(name) !== header.id || name === fileName(header)) continue;
    const path = join(into, name);
    try {
      const { footer } = await verifyFile(disk, path, signal);
      disk.syncDirectory(into); // whoever made it may have died before
      const { records, acknowledged, recordBytes, digest } = footer;
      return { path, records, acknowledged, bytes: recordBytes, digest };
    } catch (error) {
      if (!isNostosError(error, 'ROLLBACK_FILE_DAMAGED')) throw error;
    }
  }
  return undefined;
}

async function* tailOf(
  disk: Disk,
  generation: Generation,
  options: PreserveTailOptions,
  { records: total }: Survey,
): AsyncGenerator<TailBatch, void, undefined> {
  let done = 0;
  for (const part of readableLog(disk, generation, options).parts()) {
    if (part.kind === 'gap') yield [part.gap];
    else {
      const { committed = NO_LSN } = options;
      yield part.records.map(({ record, hash }) => ({
        record,
        hash,
        acknowledged: record.lsn <= committed || isAcknowledged(record),
      }));
      done += part.records.length;
      options.onProgress?.({ phase: 'preserving what is readable of the log', done, total, unit: 'records' });
    }
  }
}

function readableLog(
  disk: Disk,
  generation: Generation,
  { dir, above, reaches }: Pick<PreserveTailOptions, 'dir' | 'above' | 'reaches'>,
): ReadableLog {
  return new ReadableLog(disk, {
    ...{ dir: join(dir, 'log'), above, generation },
    ...(reaches === undefined ? {} : { reaches }),
  });
}

/** What the files of a directory that nobody has open say. */
function schemasIn(dir: string): FileWriterDeps['schemaOf'] {
  const memory = new SchemaMemory();
  return (id, version) => {
    const tenant = id as TenantId;
    memory.put(tenant, memory.has(tenant) ? memory.get(tenant) : tenantInFile(tenantPath(dir, tenant)));
    return memory.find(tenant, version);
  };
}
