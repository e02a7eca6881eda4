/**
 * Copies a tenant into a plain SQLite file: the tables of the user as they were at one position, nothing of Nostos. It is
 * written under a temporary name beside the target, synced, and renamed last, so the target is whole or not there.
 */
import { closeSync, existsSync, fsyncSync, linkSync, openSync, renameSync, rmSync, statSync } from 'node:fs';
import { DatabaseSync } from 'node:sqlite';
import { dirname, resolve } from 'node:path';
import { NostosError } from '../base/errors.ts';
import { Connection } from './connection.ts';
import type { CopyReport, CopyRequest } from './maintenance.ts';
import { OWN_TABLES } from './own-tables.ts';
import { quoteName } from './schema-catalog.ts';
import { fromSqlite } from './sqlite-errors.ts';
import { isGuarded, unguardTrigger } from './trigger-guard.ts';

/** `temporary` is a name beside the target, on the same disk. */
export interface CopyWork extends CopyRequest {
  readonly temporary: string;
}

export function exportPlain(request: CopyWork, onProgress: (phase: string) => void): CopyReport {
  const target = resolve(request.target);
  const { temporary } = request;
  checkTarget(target, request.overwrite);
  try {
    onProgress('copying the database');
    copyInto(request.path, temporary);
    onProgress('removing what belongs to Nostos');
    const position = makePlain(temporary);
    onProgress('syncing');
    sync(temporary);
    if (request.overwrite) renameSync(temporary, target);
    else publish(temporary, target);
    sync(dirname(target));
    return { ...position, bytes: statSync(target).size };
  } catch (error) {
    throw fromSystem(fromSqlite(error), target);
  } finally {
    removeTemporary(temporary);
  }
}

/** Unlike a rename, a link never replaces a file that somebody made meanwhile; some file systems have none. */
function publish(temporary: string, target: string): void {
  try {
    linkSync(temporary, target);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code !== 'EPERM' && code !== 'ENOTSUP' && code !== 'ENOSYS') throw error;
    renameSync(temporary, target);
  }
}

/** Also for a copy that was cut off. */
export function removeTemporary(temporary: string): void {
  for (const suffix of ['', '-journal', '-wal', '-shm']) rmSync(`${temporary}${suffix}`, { force: true });
}

function checkTarget(target: string, overwrite: boolean): void {
  if (existsSync(target) && !overwrite)
    throw new NostosError('FILE_EXISTS', `${target} exists already; choose another name, or overwrite it`);
  if (statSync(target, { throwIfNoEntry: false })?.isDirectory() === true)
    throw new NostosError('FILE_EXISTS', `${target} is a directory; name a file`);
  // SQLite would take them for its own and apply them to the copy.
  for (const beside of ['-wal', '-journal'])
    if (existsSync(`${target}${beside}`))
      throw new NostosError(
        'FILE_EXISTS',
        `${target}${beside} exists: a database of this name is in use or was not closed properly; choose another name`,
      );
  if (statSync(dirname(target), { throwIfNoEntry: false })?.isDirectory() !== true)
    throw new NostosError('IO_FAILED', `cannot write ${target}: there is no directory ${dirname(target)}`);
}

function copyInto(path: string, target: string): void {
  using connection = new Connection(path, { role: 'reader', statementCacheMax: 1 });
  connection.database.prepare('vacuum into ?').run(target);
}

function makePlain(path: string): { term: number; lsn: number } {
  using database = new DatabaseSync(path, { defensive: false, enableForeignKeyConstraints: false });
  // Freed pages are overwritten, so that nothing is left to be found. The file is synced as a whole afterwards.
  database.exec('pragma secure_delete = on; pragma synchronous = off; pragma journal_mode = off');
  const position = database.prepare('select term, lsn from nostos_meta').get() as { term: number; lsn: number };
  const triggers = database
    .prepare(`select name, sql from sqlite_schema where type = 'trigger' order by rowid`)
    .all() as { name: string; sql: string }[];
  database.exec('begin');
  if (triggers.some(({ sql }) => isGuarded(sql))) {
    // All of them, in their order: it decides which fires first.
    for (const { name } of triggers) database.exec(`drop trigger ${quoteName(name)}`);
    for (const { sql } of triggers) database.exec(isGuarded(sql) ? unguardTrigger(sql) : sql);
  }
  for (const table of OWN_TABLES) database.exec(`drop table if exists ${table}`);
  database.exec('commit');
  return position;
}

function sync(path: string): void {
  const descriptor = openSync(path, 'r');
  try {
    fsyncSync(descriptor);
  } finally {
    closeSync(descriptor);
  }
}

function fromSystem(error: unknown, target: string): unknown {
  const code = (error as { code?: unknown })?.code;
  if (code === 'EEXIST')
    return new NostosError('FILE_EXISTS', `${target} exists already; choose another name, or overwrite it`);
  if (code === 'ENOSPC' || code === 'EDQUOT' || code === 'DISK_FULL')
    return new NostosError('DISK_FULL', `no space is left for ${target}`, { cause: error });
  if (typeof code === 'string' && /^E[A-Z]+$/.test(code))
    return new NostosError('IO_FAILED', `cannot write ${target}: ${(error as Error).message}`, { cause: error });
  return error;
}
