/**
 * The part `crash`: a process is killed with SIGKILL while 64 callers write, several times over, and what it had
 * acknowledged must be there afterwards. What is expected is computed by plain SQLite from the source file and the
 * numbers of the writes, so that no code of Nostos judges itself.
 */
import { join } from 'node:path';
import { openNode } from '../../node/open-node.ts';
import type { Node, Tenant } from '../../node/types.ts';
import { callWithDisplay } from '../progress.ts';
import { count, duration } from '../render.ts';
import { compareFiles } from './compare.ts';
import { check, type Check, type PartResult, type TourContext } from './part.ts';
import { runVictim, type VictimBook } from './victim.ts';
import { runWrite, type Workload } from './workload.ts';
import { addTables, findWrites, makeExpected, workloadOf, type Found } from './written.ts';

const TENANT = 'tour';
/** When each kill comes: after so many acknowledged writes, and at another point of the way to the disk each time. */
const KILLS = [
  { killAfter: 1_500, killDelayMs: 1 },
  { killAfter: 700, killDelayMs: 3 },
  { killAfter: 2_300, killDelayMs: 6 },
] as const;

async function prepare(context: TourContext, workload: Workload): Promise<number> {
  await using node = await openNode({ dir: context.dir, scrubIntervalMs: false, signal: context.signal });
  const tenant = node.tenant(TENANT);
  const report = await callWithDisplay(context.io, (onProgress) =>
    tenant.importFile(context.source.file, { addKey: true, keepViolations: true, onProgress, signal: context.signal }),
  );
  await addTables(tenant, workload);
  await context.say(
    `Imported ${count(report.rows)} rows in ${count(report.tables.length)} tables in ${duration(report.elapsedMs)}.`,
  );
  return report.rows;
}

/** Kills one process after the other; each one opens what the one before it left. */
async function killAll(context: TourContext, workload: Workload): Promise<VictimBook[]> {
  const books: VictimBook[] = [];
  let first = 1;
  for (const kill of KILLS) {
    const { dir, signal } = context;
    const book = await runVictim({ dir, tenant: TENANT, workload, first, ...kill, signal });
    books.push(book);
    first = Math.max(...book.asked) + 1;
    await context.say(
      `Kill ${books.length} (SIGKILL): ${count(book.acknowledged.size)} writes were acknowledged, ` +
        `${count(book.asked.size - book.acknowledged.size)} were under way.`,
    );
  }
  return books;
}

function checkBooks(books: readonly VictimBook[], found: Found): Check[] {
  const acknowledged = books.flatMap((book) => [...book.acknowledged]);
  const missing = acknowledged.filter((id) => !found.ids.has(id)).length;
  const asked = new Set(books.flatMap((book) => [...book.asked]));
  const invented = [...found.ids].filter((id) => !asked.has(id)).length;
  const kept = found.ids.size - (acknowledged.length - missing);
  const underWay = asked.size - acknowledged.length;
  return [
    check(
      'every acknowledged write is there',
      missing === 0,
      `${count(acknowledged.length)} acknowledged, ${missing} missing`,
    ),
    check(
      'each holds what was written, to the letter',
      found.wrong === 0,
      `${count(found.ids.size)} read, ${found.wrong} wrong`,
    ),
    check('no transaction is there by half', found.halves === 0, `${found.halves} halves`),
    check(
      'nothing is there that nobody wrote',
      invented === 0,
      `${invented} unknown; of ${count(underWay)} under way at the kills ${count(kept)} were kept`,
    ),
  ];
}

async function checkNode(context: TourContext, node: Node): Promise<Check[]> {
  const report = await callWithDisplay(context.io, (onProgress) => node.verify({ onProgress, signal: context.signal }));
  const rows = report.tenants.reduce((sum, tenant) => sum + tenant.rows, 0);
  const about = (where: string): string =>
    report.problems.map((problem) => `${problem.where}: ${problem.what}`).join('; ') || where;
  return [
    check(
      'the log is whole: every checksum, every link of its hash chain',
      report.ok,
      about(`${count(report.log.records)} records`),
    ),
    check(
      'the database file is sound',
      report.tenants.every((tenant) => tenant.integrity === 'ok'),
      `${count(rows)} rows, SQLite’s integrity check`,
    ),
    check(
      'its rows are the ones that the log leads to',
      report.tenants.every((tenant) => tenant.fingerprint === 'equal'),
      'fingerprint of all cells',
    ),
  ];
}

async function checkExport(context: TourContext, workload: Workload, tenant: Tenant, found: Found): Promise<Check> {
  const exported = join(context.dir, 'exported.sqlite');
  await tenant.exportFile(exported, { overwrite: true, signal: context.signal });
  const expected = join(context.dir, 'expected.sqlite');
  await makeExpected(context.source, expected, { workload, ids: found.ids });
  const { tables, rows, cells, differences } = compareFiles(expected, exported);
  const where = tables.filter((one) => one.differences > 0).map((one) => one.table);
  return check(
    'exported, it equals what plain SQLite makes of the same source and writes',
    differences === 0,
    differences === 0
      ? `${count(cells)} cells in ${count(rows)} rows of ${tables.length} tables`
      : `${count(differences)} rows differ, in ${where.join(', ')}`,
  );
}

export async function crash(context: TourContext): Promise<PartResult> {
  const workload = workloadOf(context.source);
  const imported = await prepare(context, workload);
  const books = await killAll(context, workload);

  const startedMs = performance.now();
  await using node = await openNode({ dir: context.dir, scrubIntervalMs: false, signal: context.signal });
  const tenant = node.tenant(TENANT);
  const found = await findWrites(tenant, workload);
  const { recovery } = (await node.status()).log;
  await context.say(
    `Opened again and read in ${duration(performance.now() - startedMs)}: ${count(recovery.recordsScanned)} records of the ` +
      `log looked through, ${count(recovery.tornBytes)} bytes of an unfinished one cut.`,
  );
  const checks = [
    ...checkBooks(books, found),
    ...(await checkNode(context, node)),
    await checkExport(context, workload, tenant, found),
  ];
  const next = Math.max(...books.flatMap((book) => [...book.asked])) + 1;
  await tenant.write((tx) => runWrite(tx, workload, next));
  const written = await tenant.read((reader) => reader.value(`select count(*) from ${workload.prefix}_writes`));
  checks.push(check('it goes on writing', written === found.ids.size + 1, `write ${count(next)} is in`));
  checks.unshift(check('a real database was imported', imported > 0, `${count(imported)} rows`));
  return { checks, dir: context.dir };
}
