/** What the writes of the tour have left in a database, and what they must have left: plain SQLite says the latter. */
import { DatabaseSync, backup } from 'node:sqlite';
import type { Tenant } from '../../node/types.ts';
import type { TourContext } from './part.ts';
import { LINES_PER_WRITE, amountOf, bodyOf, runWrite, schemaOf, type Workload } from './workload.ts';

export interface Found {
  readonly ids: ReadonlySet<number>;
  /** Rows that do not hold what was written. */
  readonly wrong: number;
  /** Transactions of which only a part is there. */
  readonly halves: number;
}

export interface WriteRow {
  readonly id: number;
  readonly body: string;
}

export interface LineRow {
  readonly write_id: number;
  readonly line: number;
  readonly amount: number;
}

/** The workload for a source: with a prefix for which it has no table. */
export function workloadOf({ file, kind }: TourContext['source']): Workload {
  using db = new DatabaseSync(file, { readOnly: true });
  const taken = db.prepare('select 1 from sqlite_schema where lower(name) in (?, ?)');
  let prefix = 'tour';
  while (taken.get(`${prefix}_writes`, `${prefix}_lines`) !== undefined) prefix += '_';
  return { kind, prefix };
}

export async function addTables(tenant: Tenant, workload: Workload): Promise<void> {
  const { schemaVersion } = await tenant.status();
  // Versions are counted from the first migration; those that the import brought are skipped.
  const before = Array.from({ length: schemaVersion }, () => '');
  await tenant.migrate([...before, schemaOf(workload)]);
}

export async function findWrites(tenant: Tenant, { prefix }: Workload): Promise<Found> {
  return judge(
    await tenant.query<WriteRow>(`select id, body from ${prefix}_writes`),
    await tenant.query<LineRow>(`select write_id, line, amount from ${prefix}_lines`),
  );
}

/** Of rows of the two tables, wherever they come from. */
export function judge(writes: readonly WriteRow[], lines: readonly LineRow[]): Found {
  const linesOf = Map.groupBy(lines, (line) => line.write_id);
  const ids = new Set(writes.map(({ id }) => id));
  const wrong =
    writes.filter(({ id, body }) => body !== bodyOf(id)).length +
    lines.filter(({ write_id: id, line, amount }) => amount !== amountOf(id, line)).length;
  const halves =
    writes.filter(({ id }) => linesOf.get(id)?.length !== LINES_PER_WRITE).length +
    [...linesOf.keys()].filter((id) => !ids.has(id)).length;
  return { ids, wrong, halves };
}

/** Makes `file`: what plain SQLite makes of the source and these writes. */
export async function makeExpected(
  source: TourContext['source'],
  file: string,
  writes: { readonly workload: Workload; readonly ids: Iterable<number> },
): Promise<void> {
  {
    using from = new DatabaseSync(source.file, { readOnly: true });
    await backup(from, file);
  }
  using db = new DatabaseSync(file, { enableForeignKeyConstraints: false });
  db.exec('pragma journal_mode = off; pragma synchronous = off');
  db.exec(schemaOf(writes.workload));
  db.exec('begin');
  const run = (sql: string, parameters: (string | number)[]): unknown => db.prepare(sql).run(...parameters);
  for (const id of [...writes.ids].toSorted((a, b) => a - b)) runWrite({ run }, writes.workload, id);
  db.exec('commit');
}
