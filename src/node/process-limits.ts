/** What the operating system allows this process. */
import { readFileSync, readdirSync } from 'node:fs';

const ASSUMED_OPEN_FILES = 1_024;

/** How many files this process may have open. */
export function openFilesLimit(): number {
  try {
    const match = /^Max open files\s+(\d+|unlimited)/m.exec(readFileSync('/proc/self/limits', 'utf8'));
    if (match === null) return ASSUMED_OPEN_FILES;
    return match[1] === 'unlimited' ? Number.MAX_SAFE_INTEGER : Number(match[1]);
  } catch {
    return ASSUMED_OPEN_FILES; // not Linux: the usual default
  }
}

/** How many files this process has open; 0 where the system does not tell. */
export function countOpenFiles(): number {
  try {
    return readdirSync('/proc/self/fd').length;
  } catch {
    return 0;
  }
}
