/**
 * Preserves what nobody else may have of a store whose files were set aside: the records above its W that the copy, which
 * came in its place, does not hold either. An equal hash at one LSN proves an equal prefix, so the highest LSN at which
 * both logs agree is where that begins. Of a generation that has ended, what was committed above the fork is preserved
 * too: the group has gone on without it. It may be done again, and is where the disk was at fault; where the log is, that is
 * said, and the files that were set aside have what there is.
 */
import { join } from 'node:path';
import type { Generation, Lsn, StoreId } from '../base/brands.ts';
import { systemDisk } from '../base/disk.ts';
import { isNostosError, type ErrorCode } from '../base/errors.ts';
import { yieldToEventLoop } from '../base/event-loop.ts';
import { loadMarks } from '../log/marks-file.ts';
import { ReadableLog } from '../log/readable.ts';
import { isSetAsideName } from '../restore/local/swap.ts';
import { loadNode } from './node-file.ts';
import { preserveTail } from './preserve-tail.ts';
import type { Tail } from './rejoin-file.ts';
import { commonEnd, readStopped } from './stopped-directory.ts';

const DISK_FAULTS: ReadonlySet<string> = new Set([
  'DISK_FULL',
  'IO_FAILED',
  'TAIL_PERSIST_FAILED',
] satisfies ErrorCode[]);

/** What was done, in words; undefined where there was nothing to preserve. It throws where it is to be tried again. */
export async function keepTail(
  { store, above: watermark, term }: Tail,
  { dir, signal }: { readonly dir: string; readonly signal: AbortSignal },
): Promise<string | undefined> {
  const name = systemDisk
    .list(dir)
    .filter(isSetAsideName)
    .find((one) => isOf(store, join(dir, one)));
  if (name === undefined) return undefined;
  const aside = join(dir, name);
  try {
    const from = Math.min(watermark, forkOf(aside, dir)) as Lsn;
    const above = await agreedUpTo(aside, dir, from);
    const committed = from < watermark ? { committed: watermark } : {};
    const into = join(dir, 'rollback');
    // However large: the log is given up already.
    const { file, missing } = await preserveTail({
      dir: aside,
      into,
      above,
      term,
      signal,
      override: true,
      ...committed,
    });
    if (file === undefined) return undefined;
    const lost = missing === 0 ? '' : `; ${missing} could not be read`;
    return `${file.records} records above LSN ${above}, which the copy does not hold, are kept in ${file.path}${lost}`;
  } catch (error) {
    signal.throwIfAborted();
    if (isNostosError(error) && DISK_FAULTS.has(error.code)) throw error;
    return `the records above LSN ${watermark} were not preserved: ${(error as Error).message}; ${name} has them`;
  }
}

/** A log that is damaged says nothing of its W; its marks may. */
export function markedWatermark(dir: string): number {
  return loadMarks(systemDisk, join(dir, 'log'))?.watermark.lsn ?? 0;
}

export function storeIn(dir: string): StoreId | undefined {
  return systemDisk.exists(join(dir, 'node.json')) ? loadNode(dir, undefined).store : undefined;
}

/** What somebody has set aside may be anything. */
function isOf(store: StoreId, dir: string): boolean {
  try {
    return storeIn(dir) === store;
  } catch {
    return false;
  }
}

/** Where a generation has begun without this store, what it knows to be committed above the fork is lost to the group. */
function forkOf(aside: string, copy: string): number {
  const { generation } = loadNode(aside, undefined);
  if (generation === loadNode(copy, undefined).generation) return Infinity;
  const [old, copied] = [readStopped(aside).report, readStopped(copy).report];
  if (copied.damage !== undefined) return Infinity;
  if (old.damage === undefined) return commonEnd(old, copied);
  // What the old log says of its terms is not to be trusted; the copy knows where the generation ended for its group.
  const ended = copied.terms.findLastIndex((entry) => entry.generation === generation);
  const next = ended < 0 ? undefined : copied.terms[ended + 1];
  return next === undefined ? Infinity : next.firstLsn - 1;
}

async function agreedUpTo(aside: string, copy: string, above: Lsn): Promise<Lsn> {
  const { generation } = loadNode(aside, undefined);
  const others = hashes(copy, above, generation);
  let other = (await others.next()).value;
  let agreed = above;
  for await (const { lsn, hash } of hashes(aside, above, generation)) {
    while (other !== undefined && other.lsn < lsn) other = (await others.next()).value;
    if (other === undefined) break;
    if (other.lsn === lsn && Buffer.from(other.hash).equals(hash)) agreed = lsn;
  }
  return agreed;
}

async function* hashes(
  dir: string,
  above: Lsn,
  generation: Generation,
): AsyncGenerator<{ readonly lsn: Lsn; readonly hash: Uint8Array }, undefined> {
  for (const part of new ReadableLog(systemDisk, { dir: join(dir, 'log'), above, generation }).parts()) {
    if (part.kind === 'records') for (const { record, hash } of part.records) yield { lsn: record.lsn, hash };
    await yieldToEventLoop();
  }
  return undefined;
}
