/**
 * The writes of the tour. What a write does follows from its number alone, and the writes commute: whoever knows the
 * numbers that are there can say what the database must hold, to the last cell.
 */
import { LIBRARY } from '../sample.ts';

/** What both a Nostos transaction and a plain SQLite connection offer. */
export interface Target {
  run(sql: string, parameters: (string | number)[]): unknown;
}

export interface Workload {
  readonly kind: 'sample' | 'own';
  /** Begins the names of the tables that the tour adds, so that they are free in the visitor's database. */
  readonly prefix: string;
}

export const LINES_PER_WRITE = 3;

export function schemaOf({ prefix }: Workload): string {
  return `
    create table ${prefix}_writes (id integer primary key not null, body text not null);
    create table ${prefix}_lines (
      write_id integer not null references ${prefix}_writes (id),
      line integer not null,
      amount integer not null,
      primary key (write_id, line)
    );`;
}

/** Spreads neighbouring numbers; the same number always goes to the same place. */
function scatter(id: number, below: number): number {
  return (Math.imul(id, 0x9e3779b1) >>> 0) % below;
}

export function bodyOf(id: number): string {
  return `write ${id} ${scatter(id, 2 ** 31)
    .toString(36)
    .repeat(12)}`.slice(0, 100);
}

export function amountOf(id: number, line: number): number {
  return scatter(id + line, 100_000);
}

/** One transaction: a row, its lines, and in the library a loan that a trigger counts on its copy. */
export function runWrite(target: Target, { kind, prefix }: Workload, id: number): void {
  target.run(`insert into ${prefix}_writes (id, body) values (?, ?)`, [id, bodyOf(id)]);
  for (let line = 1; line <= LINES_PER_WRITE; line++)
    target.run(`insert into ${prefix}_lines (write_id, line, amount) values (?, ?, ?)`, [id, line, amountOf(id, line)]);
  if (kind === 'sample')
    target.run('insert into loans (id, copy_id, member_id, lent_on) values (?, ?, ?, ?)', [
      LIBRARY.firstNewLoan + id,
      1 + scatter(id, LIBRARY.copies),
      1 + scatter(id, LIBRARY.members),
      '2026-01-01',
    ]);
}
