/**
 * A directory with its parents. `mkdir` of Node.js with `recursive` never ends where the system answers ENOENT although
 * the parent is there, as under /proc: it makes the parent and tries again for ever.
 */
import { mkdirSync, statSync } from 'node:fs';
import { dirname } from 'node:path';
import { NostosError } from './errors.ts';

/** `mode` is for those that are made. */
export function makeDirectories(path: string, mode = 0o777): void {
  const missing: string[] = [];
  try {
    let at = path;
    while (statSync(at, { throwIfNoEntry: false }) === undefined && dirname(at) !== at) {
      missing.push(at);
      at = dirname(at);
    }
    for (const dir of missing.toReversed()) makeOne(dir, mode);
    if (!statSync(path).isDirectory()) throw new Error('there is something that is not a directory');
  } catch (error) {
    throw new NostosError('IO_FAILED', `cannot make the directory ${path}: ${(error as Error).message}`, {
      cause: error,
      details: { dir: path },
    });
  }
}

/** Another process may have made it meanwhile. */
function makeOne(dir: string, mode: number): void {
  try {
    mkdirSync(dir, { mode });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
  }
}
