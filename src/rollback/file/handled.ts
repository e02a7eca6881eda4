/**
 * What has been done with a rollback file, in a small file beside it (`….nrb.done`): the file itself is never written to
 * again. It decides only whether deleting asks back, so one that cannot be read says that nothing was done.
 */
import { dirname } from 'node:path';
import * as v from 'valibot';
import type { Disk } from '../../base/disk.ts';
import { readIfExists, writeDurably } from '../../base/durable-file.ts';
import { isNostosError } from '../../base/errors.ts';
import { readInput, wholeNumber } from '../../base/input-schema.ts';
import type { Journal } from '../run/journal.ts';
import { idOfName } from './file-name.ts';

const HANDLED_SUFFIX = '.done';

export interface Handled {
  /** When all of it was written into a file elsewhere. */
  readonly exportedAtMs?: number;
  /** When it was re-applied, and nothing of it was left out that nobody had written otherwise. */
  readonly reappliedAtMs?: number;
}

const schema = v.object({
  exportedAtMs: v.exactOptional(wholeNumber()),
  reappliedAtMs: v.exactOptional(wholeNumber()),
});

export function readHandled(disk: Disk, path: string): Handled {
  const bytes = readIfExists(disk, `${path}${HANDLED_SUFFIX}`);
  if (bytes === undefined) return {};
  try {
    const read = readInput(schema, JSON.parse(Buffer.from(bytes).toString()));
    return read.ok ? read.value : {};
  } catch {
    return {};
  }
}

/** Where the disk does not take it, what was done has worked all the same: deleting asks back then. */
export function noteHandled(disk: Disk, path: string, what: Handled): void {
  const text = `${JSON.stringify({ ...readHandled(disk, path), ...what })}\n`;
  try {
    writeDurably(disk, `${path}${HANDLED_SUFFIX}`, Buffer.from(text));
  } catch (error) {
    if (!isNostosError(error, 'IO_FAILED') && !isNostosError(error, 'DISK_FULL')) throw error;
  }
}

export interface Keeping {
  readonly why: string;
  /** What to do about it. */
  readonly advice: string;
}

/** Undefined where a file may be deleted. A rollback that has not ended relies on its file, whatever is said. */
export function keepsFile(
  name: string,
  { exportedAtMs, reappliedAtMs }: Handled,
  { journal, force }: { readonly journal: Journal; readonly force: boolean },
): Keeping | undefined {
  const { intent } = journal;
  const id = idOfName(name);
  if (intent !== undefined && intent.state !== 'rejoined' && intent.plan.id === id)
    return {
      why: `the rollback that made it is ${intent.state}, and goes on with it`,
      advice: 'It ends when the node runs and follows its primary; nostos rollback list shows how far it is.',
    };
  if (force || exportedAtMs !== undefined || reappliedAtMs !== undefined) return undefined;
  const short = id.slice(0, 8);
  return {
    why: 'it was neither exported nor re-applied whole, and nothing else has these records',
    advice: `nostos rollback export ${short} --out <file> keeps its rows elsewhere, nostos rollback reapply ${short} writes them again; --force removes it all the same.`,
  };
}

export function deleteFile(disk: Disk, path: string): void {
  disk.remove(path);
  // Behind the file: what is left alone by a crash says nothing about any other file.
  if (disk.exists(`${path}${HANDLED_SUFFIX}`)) disk.remove(`${path}${HANDLED_SUFFIX}`);
  disk.syncDirectory(dirname(path));
}
