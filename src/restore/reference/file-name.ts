/**
 * What a received file may be called. A name becomes the last part of a path, so what could lead elsewhere is no name.
 */
import type { NameRule } from './types.ts';

/** What file systems take. The wire allows 65,535. */
export const NAME_BYTES_MAX = 255;
const LOG_FILE = /^[0-9a-f]{8}\.ndb$/;
/** `base/directory-lock.ts` holds these while a restore runs. */
const LOCK_FILES = /^lock(?:-journal|-wal|-shm)?$/i;

/** Why a file may not be called so; undefined when it may. */
export function nameProblem(name: string, rule: NameRule): string | undefined {
  if (name === '') return 'it is empty';
  if (name.startsWith('.')) return 'it begins with a dot';
  if (/[/\\]/.test(name)) return 'it has a separator';
  if (name.includes('\0')) return 'it has a NUL';
  if (Buffer.byteLength(name) > NAME_BYTES_MAX) return `it is longer than ${NAME_BYTES_MAX} bytes`;
  if (LOCK_FILES.test(name)) return 'the lock of the directory is called so';
  if (rule === 'strict' && !LOG_FILE.test(name)) return 'it is not eight lowercase hex digits and .ndb';
  return undefined;
}

/** Extension exactly `ndb`, as the reference's server has it: something, a dot, `ndb`. */
export function isLogFileName(name: string): boolean {
  return name.length > 4 && name.endsWith('.ndb');
}
