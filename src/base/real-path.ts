import { realpathSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';

/** Where an absolute path leads, links resolved as far as it exists: two spellings of one place become the same. */
export function realPathOf(path: string): string {
  try {
    return realpathSync(path);
  } catch {
    const parent = dirname(path);
    return parent === path ? path : join(realPathOf(parent), basename(path));
  }
}
