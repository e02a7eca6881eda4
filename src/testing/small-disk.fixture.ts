/** A file system of a few megabytes that really fills up: a tmpfs, where mounting one is permitted. */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export interface SmallDisk extends Disposable {
  readonly dir: string;
  remount(mode: 'ro' | 'rw'): void;
  grow(bytes: number): void;
  /** Takes all room that is left, in a file that the caller may remove. */
  fill(name?: string): string;
}

let refusal: { readonly why: string | undefined } | undefined;

/** Why no small disk can be made here; undefined where it can. */
export function mountRefusal(): string | undefined {
  refusal ??= { why: attempt() };
  return refusal.why;
}

function attempt(): string | undefined {
  try {
    removeAbandoned();
    mountSmall(64 * 1024)[Symbol.dispose]();
    return undefined;
  } catch (error) {
    return (error as Error).message;
  }
}

/** Those of processes that were killed. */
function removeAbandoned(): void {
  const mounts = readFileSync('/proc/mounts', 'utf8');
  for (const [, pid, dir = ''] of mounts.matchAll(/^nostos-(\d+) (\S+) tmpfs /gm)) {
    if (existsSync(`/proc/${pid}`)) continue;
    spawnSync('umount', ['-l', dir]);
    rmSync(dir, { recursive: true, force: true });
  }
}

/** In a new directory, or in the one given. */
export function mountSmall(bytes: number, at?: string): SmallDisk {
  const dir = at ?? mkdtempSync(join(tmpdir(), 'nostos-disk-'));
  const run = (command: string, ...args: string[]): void => {
    const { status, stderr, error } = spawnSync(command, args, { encoding: 'utf8' });
    if (status !== 0) throw new Error(`${command} is not possible here: ${error?.message ?? stderr.trim()}`);
  };
  const remove = (): void => {
    if (at === undefined) rmSync(dir, { recursive: true, force: true });
  };
  try {
    run('mount', '-t', 'tmpfs', '-o', `size=${bytes}`, `nostos-${process.pid}`, dir);
  } catch (error) {
    remove();
    throw error;
  }
  return {
    dir,
    remount: (mode) => run('mount', '-o', `remount,${mode}`, dir),
    grow: (size) => run('mount', '-o', `remount,size=${size}`, dir),
    fill(name = 'filler') {
      const path = join(dir, name);
      for (let size = 1024 * 1024; size >= 512; size /= 2)
        for (;;) {
          try {
            writeFileSync(path, new Uint8Array(size), { flag: 'a' });
          } catch (error) {
            if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error;
            break;
          }
        }
      return path;
    },
    [Symbol.dispose]() {
      run('umount', '-l', dir);
      remove();
    },
  };
}
