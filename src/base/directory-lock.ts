/**
 * One process, and in it one owner, per data directory. The file `lock` is an SQLite database: its one row names the
 * holder, and the holder keeps a RESERVED lock on it (an open BEGIN IMMEDIATE), under which others can still read the
 * row. The kernel drops the lock with the process, so a holder that crashed leaves a row but holds nothing.
 *
 * The file must be opened through SQLite only: closing any other descriptor of it in this process would drop the lock.
 * A crash while the row is written leaves a journal that the next opening rolls back.
 */
import { hostname } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import type { Clock } from './clock.ts';
import { systemClock } from './clock.ts';
import { NostosError } from './errors.ts';
import { randomHex128, systemRandom } from './random.ts';

export interface LockHolder {
  readonly pid: number;
  readonly host: string;
  /** When it took the lock, ISO 8601. */
  readonly since: string;
  readonly command: string;
  readonly version: string;
}

export interface DirectoryLockOptions {
  readonly dir: string;
  /** How long to wait for another holder to let go. */
  readonly timeoutMs: number;
  readonly holder: { readonly command: string; readonly version: string };
}

export interface DirectoryLock {
  readonly holder: LockHolder;
  /** May be called more than once. */
  release(): void;
  [Symbol.dispose](): void;
}

const LOCK_FILE = 'lock';
const POLL_MS = 50;
const SCHEMA = `CREATE TABLE IF NOT EXISTS holder(
  one INTEGER PRIMARY KEY CHECK (one = 1), pid INTEGER, host TEXT, since TEXT, command TEXT, version TEXT, token TEXT)`;

export async function acquireDirectoryLock(
  options: DirectoryLockOptions,
  { signal, clock = systemClock }: { signal?: AbortSignal; clock?: Clock } = {},
): Promise<DirectoryLock> {
  const path = join(options.dir, LOCK_FILE);
  const deadlineMs = clock.monotonicMs() + options.timeoutMs;
  for (;;) {
    signal?.throwIfAborted();
    const lock = tryLock(path, options, clock);
    if (lock !== undefined) return lock;
    if (clock.monotonicMs() >= deadlineMs) throw lockedError(options, readHolder(path));
    await pause(Math.min(POLL_MS, Math.max(1, deadlineMs - clock.monotonicMs())), signal);
  }
}

/** Who holds the directory, or held it last; undefined when nobody ever did. */
export function readDirectoryHolder(dir: string): LockHolder | undefined {
  return readHolder(join(dir, LOCK_FILE));
}

function tryLock(path: string, options: DirectoryLockOptions, clock: Clock): DirectoryLock | undefined {
  const holder: LockHolder = {
    pid: process.pid,
    host: hostname(),
    since: new Date(clock.nowMs()).toISOString(),
    ...options.holder,
  };
  const token = randomHex128(systemRandom);
  const db = openLockFile(path, false);
  try {
    db.exec('BEGIN EXCLUSIVE');
    db.exec(SCHEMA);
    db.prepare('INSERT OR REPLACE INTO holder VALUES (1, ?, ?, ?, ?, ?, ?)').run(
      holder.pid,
      holder.host,
      holder.since,
      holder.command,
      holder.version,
      token,
    );
    db.exec('COMMIT');
    db.exec('BEGIN IMMEDIATE');
    // Between the two another one may have written its name: then the row is not of who holds the lock. Try again.
    if (db.prepare('SELECT token FROM holder').get()?.token !== token) {
      db.close();
      return undefined;
    }
  } catch (error) {
    db.close();
    if (isBusy(error)) return undefined;
    throw lockFileError(path, error);
  }
  const release = (): void => {
    if (db.isOpen) db.close();
  };
  return { holder, release, [Symbol.dispose]: release };
}

function readHolder(path: string): LockHolder | undefined {
  try {
    const db = openLockFile(path, true);
    try {
      const row = db.prepare('SELECT pid, host, since, command, version FROM holder').get();
      return row === undefined ? undefined : ({ ...row } as unknown as LockHolder);
    } finally {
      db.close();
    }
  } catch {
    // It names nobody, or somebody is just writing their name: the caller goes on without.
    return undefined;
  }
}

function openLockFile(path: string, readOnly: boolean): DatabaseSync {
  try {
    const db = new DatabaseSync(path, { readOnly, timeout: 0 });
    if (!readOnly) db.exec('PRAGMA journal_mode=DELETE');
    return db;
  } catch (error) {
    if (isBusy(error)) return new DatabaseSync(path, { readOnly, timeout: 0 });
    throw lockFileError(path, error);
  }
}

function isBusy(error: unknown): boolean {
  const code = (error as { errcode?: unknown } | undefined)?.errcode;
  return typeof code === 'number' && ((code & 0xff) === 5 || (code & 0xff) === 6);
}

function lockFileError(path: string, cause: unknown): NostosError {
  const reason = cause instanceof Error ? cause.message : String(cause);
  const code = (cause as { errcode?: unknown } | undefined)?.errcode;
  if (typeof code === 'number' && (code & 0xff) === 13)
    return new NostosError('DISK_FULL', `Cannot lock with ${path}: no space is left; free some`, {
      details: { path },
      cause,
    });
  return new NostosError('IO_FAILED', `Cannot lock with ${path}: ${reason}; see that the directory can be written`, {
    details: { path },
    cause,
  });
}

function lockedError({ dir, timeoutMs }: DirectoryLockOptions, holder: LockHolder | undefined): NostosError {
  const who =
    holder === undefined
      ? 'another process'
      : `process ${holder.pid} on ${holder.host} (${holder.command}, since ${holder.since})`;
  return new NostosError(
    'DIRECTORY_LOCKED',
    `${dir} is in use by ${who} and was not released within ${timeoutMs} ms; stop that process, or use another directory`,
    { details: { dir, timeoutMs, holder } },
  );
}

function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      signal?.removeEventListener('abort', onAbort);
      resolve();
    }, ms);
    const onAbort = (): void => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    signal?.addEventListener('abort', onAbort, { once: true });
  });
}
