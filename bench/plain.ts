/** The peer: `node:sqlite` as everyone has it, in WAL mode. */
import { DatabaseSync } from 'node:sqlite';

export const ROW_BYTES = 100;
export const ROWS_SCHEMA = 'create table item (id integer primary key not null, body text)';
export const INSERT_ROW = 'insert into item (body) values (?)';
export const BODY = 'x'.repeat(ROW_BYTES);

export function openPlain(path: string, synchronous: 'full' | 'normal'): DatabaseSync {
  const database = new DatabaseSync(path);
  database.exec(`pragma journal_mode = wal; pragma synchronous = ${synchronous}`);
  return database;
}
