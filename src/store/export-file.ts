/**
 * Copies a tenant into a plain SQLite file: the tables of the user as they were at one position, nothing of Nostos. It is
 * written under a temporary name, synced, and renamed last, so the target is whole or not there.
 */
import { closeSync, existsSync, fsyncSync, openSync, renameSync, rmSync, statSync } from 'node:fs';
import { DatabaseSync } from 'node:sqlite';
import { dirname, resolve } from 'node:path';
import { NostosError } from '../base/errors.ts';
import { Connection } from './connection.ts';
import type { CopyReport, CopyRequest } from './maintenance.ts';
import { OWN_TABLES } from './own-tables.ts';
import { isGuarded, unguardTrigger } from './trigger-guard.ts';
import { fromSqlite } from './sqlite-errors.ts';

export function exportPlain(request: CopyRequest, onProgress: (phase: string) => void): CopyReport {
  const target = resolve(request.target);
  if (existsSync(target) && !request.overwrite)
    throw new NostosError('FILE_EXISTS', `${target} exists already; choose another name, or overwrite it`);
  const temporary = `${target}.nostos-export`;
  try {
    rmSync(temporary, { force: true });
    onProgress('copying the database');
    copyInto(request.path, temporary);
    onProgress('removing what belongs to Nostos');
    const position = makePlain(temporary);
    onProgress('syncing');
    sync(temporary);
    renameSync(temporary, target);
    sync(dirname(target));
    return { ...position, bytes: statSync(target).size };
  } catch (error) {
    rmSync(temporary, { force: true });
    rmSync(`${temporary}-journal`, { force: true });
    throw fromSystem(fromSqlite(error), target);
  }
}

function copyInto(path: string, target: string): void {
  using connection = new Connection(path, { role: 'reader', statementCacheMax: 1 });
  connection.database.prepare('vacuum into ?').run(target);
}

function makePlain(path: string): { term: number; lsn: number } {
  using database = new DatabaseSync(path, { defensive: false, enableForeignKeyConstraints: false });
  database.exec('pragma secure_delete = on; pragma synchronous = off'); // synced as a whole afterwards
  const position = database.prepare('select term, lsn from nostos_meta').get() as { term: number; lsn: number };
  const triggers = database.prepare(`select name, sql from sqlite_schema where type = 'trigger' order by rowid`).all();
  database.exec('begin');
  // All of them, in their order: it decides which fires first.
  for (const { name } of triggers) database.exec(`drop trigger ${quote(name as string)}`);
  for (const { sql } of triggers)
    database.exec(isGuarded(sql as string) ? unguardTrigger(sql as string) : (sql as string));
  for (const table of OWN_TABLES) database.exec(`drop table if exists ${table}`);
  database.exec('commit');
  return position;
}

function quote(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
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
  if (code === 'ENOSPC' || code === 'EDQUOT')
    return new NostosError('DISK_FULL', `no space is left for ${target}`, { cause: error });
  if (typeof code === 'string' && /^E[A-Z]+$/.test(code))
    return new NostosError('IO_FAILED', `cannot write ${target}: ${(error as Error).message}`, { cause: error });
  return error;
}
