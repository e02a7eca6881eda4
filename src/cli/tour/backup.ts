/**
 * The part `backup`: a node is backed up; then a table is dropped by mistake, and a person asks to be forgotten. The node is
 * restored to the record before the mistake: the table is back, compared cell by cell with the file that was imported at
 * first, and the person stays forgotten, although the backup was made before that.
 */
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import type { Position } from '../../base/brands.ts';
import { isNostosError } from '../../base/errors.ts';
import { restoreBackup } from '../../node/backup-restore.ts';
import { openNode } from '../../node/open-node.ts';
import { runOperation, type OperationResult } from '../../node/operations.ts';
import type { Node, Tenant } from '../../node/types.ts';
import { callWithDisplay } from '../progress.ts';
import { bytes, count, duration } from '../render.ts';
import { compareFiles } from './compare.ts';
import { check, type Check, type PartResult, type TourContext } from './part.ts';

const TENANT = 'shop';
const PEOPLE_COUNT = 1_000;
const FORGOTTEN = 7;
/** One who comes after the first backup. */
const LATE = PEOPLE_COUNT + 1;

interface Stage {
  readonly context: TourContext;
  readonly dir: string;
  readonly to: string;
  /** A table of people, of whom one is forgotten; one that the source does not have. */
  readonly people: string;
  /** The table that is dropped. */
  readonly table: { readonly name: string; readonly rows: number };
}

const quote = (name: string): string => `"${name.replaceAll('"', '""')}"`;

function stageOf(context: TourContext): Stage {
  using db = new DatabaseSync(context.source.file, { readOnly: true });
  const taken = db.prepare('select 1 from sqlite_schema where lower(name) = ?');
  let people = 'tour_people';
  while (taken.get(people) !== undefined) people += '_';
  return {
    context,
    dir: join(context.dir, 'node'),
    to: join(context.dir, 'backup'),
    people,
    table: largestTable(db) ?? { name: people, rows: PEOPLE_COUNT },
  };
}

/** Of ordinary tables to which nothing else refers: it can be dropped without a thought. */
function largestTable(db: DatabaseSync): Stage['table'] | undefined {
  const names = db
    .prepare(
      `select t.name from pragma_table_list as t where t.schema = 'main' and t.type = 'table' and substr(t.name, 1, 7) <> 'sqlite_'
       and not exists (select 1 from pragma_table_list as o, pragma_foreign_key_list(o.name) as f
         where lower(f."table") = lower(t.name) and lower(o.name) <> lower(t.name))
       and not exists (select 1 from sqlite_schema as s
         where s.type in ('view', 'trigger') and lower(s.tbl_name) <> lower(t.name) and instr(lower(s.sql), lower(t.name)) > 0)`,
    )
    .all()
    .map(({ name }) => String(name));
  return names
    .map((name) => ({ name, rows: Number(db.prepare(`select count(*) as n from ${quote(name)}`).get()?.['n']) }))
    .toSorted((a, b) => b.rows - a.rows)[0];
}

async function backUp({ context, to }: Stage, node: Node): Promise<OperationResult<'backup.create'>> {
  const { signal } = context;
  return callWithDisplay(context.io, (onProgress) =>
    runOperation(node, { name: 'backup.create', input: { to } }, { signal, onProgress, emit: async () => {} }),
  );
}

async function migrate(tenant: Tenant, ...steps: readonly string[]): Promise<void> {
  const { schemaVersion } = await tenant.status();
  // Versions are counted from the first migration; those that are there are skipped.
  await tenant.migrate([...Array.from({ length: schemaVersion }, () => ''), ...steps]);
}

async function prepare({ context, people }: Stage, node: Node): Promise<Tenant> {
  const { io, source, signal } = context;
  const tenant = await node.tenants.create(TENANT);
  const report = await callWithDisplay(io, (onProgress) =>
    tenant.importFile(source.file, { addKey: true, keepViolations: true, onProgress, signal }),
  );
  await migrate(tenant, `create table ${people} (id integer primary key not null, name text not null)`);
  await tenant.write((tx) => {
    for (let id = 1; id <= PEOPLE_COUNT; id += 1) tx.run(`insert into ${people} values (?, ?)`, [id, `person ${id}`]);
  });
  await context.say(
    `A node holds ${count(report.rows)} rows of ${count(report.tables.length)} tables, and ${count(PEOPLE_COUNT)} people.`,
  );
  return tenant;
}

interface Mishap {
  /** Before the table was dropped. */
  readonly before: Position;
  /** After it. */
  readonly after: Position;
  readonly checks: readonly Check[];
}

async function goWrong(stage: Stage): Promise<Mishap> {
  const { context, dir, people, table } = stage;
  await using node = await openNode({ dir, scrubIntervalMs: false, signal: context.signal });
  const tenant = await prepare(stage, node);
  const first = await backUp(stage, node);
  await context.say(
    `Backed up in ${duration(first.elapsedMs)}: ${bytes(first.bytesRead)} as ${bytes(first.bytesStored)}.`,
  );
  await tenant.write((tx) => tx.run(`insert into ${people} values (?, 'late')`, [LATE]));
  const before = await tenant.position();
  await migrate(tenant, `drop table ${quote(table.name)}`);
  await context.say(`The table ${table.name} is dropped by mistake, with its ${count(table.rows)} rows.`);
  if (table.name !== people) {
    await tenant.write((tx) => tx.forget(people, { id: FORGOTTEN }));
    await context.say(`Person ${FORGOTTEN} asks to be forgotten.`);
  }
  const after = await tenant.position();
  const second = await backUp(stage, node);
  const share = (second.bytesStored / first.bytesStored) * 100;
  const checks = [
    check(
      'the next backup stores only what is new',
      second.bytesStored < first.bytesStored / 2,
      `${bytes(second.bytesStored)}, ${share.toFixed(1)} % of the first one`,
    ),
  ];
  return { before, after, checks };
}

async function goBack(stage: Stage, { before, after }: Mishap): Promise<Check[]> {
  const { context, dir, to, people, table } = stage;
  const { io, signal } = context;
  const report = await callWithDisplay(io, (onProgress) =>
    restoreBackup({ from: `file:${to}`, dir, mode: 'wipe_and_restore', toLsn: before.lsn, signal, onProgress }),
  );
  await context.say(
    `Restored to record ${count(before.lsn)}, just before the mistake, in ${duration(report.elapsedMs)}.`,
  );
  await using node = await openNode({ dir, scrubIntervalMs: false, signal });
  const tenant = node.tenant(TENANT);
  const exported = join(context.dir, 'exported.sqlite');
  await tenant.exportFile(exported, { overwrite: true, signal });
  const { rows, cells, differences } = compareFiles(context.source.file, exported);
  const ids = await tenant.read((tx) => tx.all<{ id: number }>(`select id from ${people}`).map(({ id }) => id));
  const verified = await callWithDisplay(io, (onProgress) => node.verify({ onProgress, signal }));
  const lost = await tenant.read(() => undefined, { min: after }).catch((error: unknown) => error);
  await tenant.read(() => undefined, { min: before });
  const isForgotten = table.name !== people;
  return [
    check(
      `the table ${table.name} is back, and all equals the file that was imported at first`,
      differences === 0,
      `${count(cells)} cells in ${count(rows)} rows, ${count(differences)} differ`,
    ),
    check('what was written after the backup and before the mistake is there', ids.includes(LATE), `person ${LATE}`),
    ...(isForgotten
      ? [
          check(
            'who was forgotten stays forgotten, although the backup has the row',
            !ids.includes(FORGOTTEN) && ids.length === PEOPLE_COUNT && report.backup?.forgottenRows === 1,
            `${count(report.backup?.forgottenRows ?? 0)} row left out, ${count(ids.length)} people are there`,
          ),
        ]
      : []),
    check(
      'a position from after the mistake is not taken for one of now',
      isNostosError(lost, 'POSITION_LOST'),
      isNostosError(lost) ? lost.code : 'it was taken',
    ),
    check('what was there is set aside, not lost', report.setAside !== null, `${report.setAside ?? 'nothing'}/`),
    check(
      'every checksum and every row verified, and the node leads',
      verified.ok && (await node.status()).role === 'primary',
      `${count(verified.tenants.reduce((sum, one) => sum + one.rows, 0))} rows`,
    ),
  ];
}

export async function backup(context: TourContext): Promise<PartResult> {
  const stage = stageOf(context);
  const mishap = await goWrong(stage);
  const checks = await goBack(stage, mishap);
  return { checks: [...mishap.checks, ...checks], dir: stage.dir };
}
