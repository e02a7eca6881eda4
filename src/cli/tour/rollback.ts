/**
 * The part `rollback`: of three processes the one that leads is cut off, acknowledges writes that nobody else sees, and is
 * killed with SIGKILL under that load. Another one takes over; the old one comes back, keeps what it alone had in a file,
 * and follows; the file becomes new writes. What every node must hold at the end is computed by plain SQLite from the
 * source file and the numbers of the writes.
 */
import { join } from 'node:path';
import { systemDisk } from '../../base/disk.ts';
import { listRollbackFiles, type ListedFile } from '../../rollback/file/list.ts';
import { showFile, type ShownRow } from '../../rollback/show.ts';
import { bytes, count, cut, duration } from '../render.ts';
import { compareFiles } from './compare.ts';
import { LEASE_MS, TourGroup } from './group.ts';
import type { LoadBook, Member } from './member.ts';
import type { MemberState } from './member-process.ts';
import { check, type Check, type PartResult, type TourContext } from './part.ts';
import { until } from './until.ts';
import type { Workload } from './workload.ts';
import { judge, makeExpected, workloadOf, type LineRow, type WriteRow } from './written.ts';

/** Acknowledged writes before the network is cut, and then by the node that is cut off. */
const WRITES_TOGETHER = 500;
const WRITES_ALONE = 100;
const BODY_COLUMNS = 40;

type WholeFile = Extract<ListedFile, { state: 'whole' }>;

interface Stage {
  readonly context: TourContext;
  readonly workload: Workload;
  readonly group: TourGroup;
  /** The node that leads at first. */
  readonly old: Member;
}

export async function rollback(context: TourContext): Promise<PartResult> {
  const workload = workloadOf(context.source);
  await using group = await TourGroup.start(context, workload);
  const stage: Stage = { context, workload, group, old: group.members[0] };

  const together = await writeTogether(stage);
  const cutOff = await writeAlone(stage, nextAfter(together));
  const { primary, since, checks: taken } = await takeOver(stage, together, cutOff);
  const { file, checks: back } = await comeBack(stage, primary);
  const { kept, checks: shown } = await readBack(stage, file, cutOff.alone);
  const reapplied = await reapply(stage, primary, kept);
  await primary.ask('rest', undefined);
  await context.say(`Meanwhile ${primary.name} acknowledged ${count(since.acknowledged.size)} writes.`);
  const equal = await checkNodes(stage);
  const content = await checkContent(stage, new Set([...together.acknowledged, ...since.acknowledged, ...kept.ids]));
  return { checks: [...taken, ...back, ...shown, ...reapplied, ...equal, ...content] };
}

/** How many of these are not there. */
function missing(ids: ReadonlySet<number>, there: ReadonlySet<number>): number {
  return [...ids].filter((id) => !there.has(id)).length;
}

function nextAfter({ asked }: LoadBook): number {
  return Math.max(...asked) + 1;
}

async function acknowledged(stage: Stage, book: LoadBook, least: number): Promise<void> {
  await until(
    `${least} acknowledged writes`,
    () => {
      if (book.failed !== undefined) throw book.failed;
      return book.acknowledged.size >= least || undefined;
    },
    stage.context.signal,
  );
}

async function writeTogether(stage: Stage): Promise<LoadBook> {
  const { old, workload, context } = stage;
  const book = old.load({ workload, first: 1, durability: 'quorum' });
  await acknowledged(stage, book, WRITES_TOGETHER);
  await old.ask('rest', undefined);
  await context.say(
    `${old.name} leads: ${count(book.acknowledged.size)} writes acknowledged, each on the disks of two nodes at least.`,
  );
  return book;
}

interface Alone {
  readonly alone: LoadBook;
  readonly killedAtMs: number;
}

async function writeAlone(stage: Stage, first: number): Promise<Alone> {
  const { group, old, workload, context } = stage;
  group.network('cut');
  const book = old.load({ workload, first, durability: 'local' });
  await acknowledged(stage, book, WRITES_ALONE);
  const killedAtMs = performance.now();
  await old.kill();
  group.network('whole');
  const heard = count(book.acknowledged.size);
  await context.say(
    `The network is cut. ${old.name} acknowledged ${heard} \`local\` writes that nobody else saw, and is killed (SIGKILL).`,
  );
  return { alone: book, killedAtMs };
}

interface Takeover {
  readonly primary: Member;
  /** The load on the new primary, which goes on. */
  readonly since: LoadBook;
  readonly checks: Check[];
}

async function takeOver(stage: Stage, together: LoadBook, { alone, killedAtMs }: Alone): Promise<Takeover> {
  const { group, workload, context } = stage;
  const others = group.members.slice(1);
  const primary = await until(
    'another node leads',
    async () => {
      for (const member of others) if ((await stateOf(member)).role === 'primary') return member;
      return undefined;
    },
    context.signal,
  );
  const since = primary.load({ workload, first: nextAfter(alone), durability: 'quorum' });
  await acknowledged(stage, since, 1);
  const elapsed = duration(performance.now() - killedAtMs);
  await context.say(`${primary.name} leads: the first write is acknowledged ${elapsed} after the kill.`);
  const there = new Set(await primary.ask('ids', workload));
  const elsewhere = new Set([
    ...there,
    ...(await Promise.all(others.map((member) => member.ask('ids', workload)))).flat(),
  ]);
  const lost = missing(together.acknowledged, there);
  const seen = [...alone.asked].filter((id) => elsewhere.has(id)).length;
  const checks = [
    check(
      'another node takes over, and writes go on',
      true,
      `${elapsed} after the kill, with a lease of ${duration(LEASE_MS)}`,
    ),
    check(
      'what the group had acknowledged is there',
      lost === 0,
      `${count(together.acknowledged.size)} acknowledged, ${lost} missing`,
    ),
    check(
      'what only the old primary had acknowledged is nowhere else',
      seen === 0 && alone.acknowledged.size >= WRITES_ALONE,
      `${seen} of ${count(alone.acknowledged.size)}`,
    ),
  ];
  return { primary, since, checks };
}

async function stateOf(member: Member): Promise<MemberState> {
  return member.ask('state', undefined);
}

/** It is opened again by a new process; what it does then it decides itself. */
async function comeBack(stage: Stage, primary: Member): Promise<{ file: WholeFile; checks: Check[] }> {
  const { old, context } = stage;
  const startedMs = performance.now();
  await old.start();
  const { applied } = await stateOf(primary);
  const { role } = await until(
    `${old.name} has rolled back and follows`,
    async () => {
      const state = await stateOf(old);
      const wrong = state.events.find(({ kind }) => kind === 'stopped' || kind === 'rollback-failed');
      if (wrong !== undefined) throw new Error(`${old.name}: ${wrong.text}`);
      return state.events.some(({ kind }) => kind === 'rolled-back') && state.applied >= applied ? state : undefined;
    },
    context.signal,
  );
  await context.say(`${old.name} is started again; ${duration(performance.now() - startedMs)} later it follows.`);
  const listed = await listRollbackFiles(systemDisk, join(old.dir, 'rollback'), { signal: context.signal });
  const [file] = listed;
  if (file?.state !== 'whole' || listed.length > 1)
    throw new Error(
      `one whole rollback file was expected: ${listed.map(({ name, state }) => `${name} is ${state}`).join(', ')}`,
    );
  const { footer, fileBytes, name } = file;
  await context.say(
    `What it alone had is in ${name}: ${count(footer.records)} records, ${count(footer.acknowledged)} of them acknowledged.`,
  );
  const checks = [
    check('the old primary comes back as a replica, and follows', role === 'replica', `role ${role}`),
    check(
      'what it drops is in a file, whole by its digest',
      true,
      `${bytes(fileBytes)}, BLAKE3 ${footer.digest.slice(0, 16)}`,
    ),
  ];
  return { file, checks };
}

interface Kept {
  readonly file: WholeFile;
  /** Numbers of the writes in it; the first one is shown to the visitor. */
  readonly ids: ReadonlySet<number>;
}

/** The file, row by row, against what was asked of the node that wrote it. */
async function readBack(stage: Stage, file: WholeFile, alone: LoadBook): Promise<{ kept: Kept; checks: Check[] }> {
  const { context, workload } = stage;
  const rows: ShownRow[] = [];
  for await (const shown of showFile(systemDisk, file.path, { signal: context.signal }))
    if (shown.kind === 'row') rows.push(shown);
  const insertsOf = (table: string): ShownRow[] => rows.filter((row) => row.op === 'insert' && row.table === table);
  const writes = insertsOf(`${workload.prefix}_writes`);
  const { ids, wrong, halves } = judge(
    writes.map((row) => row.new as unknown as WriteRow),
    insertsOf(`${workload.prefix}_lines`).map((row) => row.new as unknown as LineRow),
  );
  const [first] = writes;
  if (first !== undefined)
    await context.say(`In it, at LSN ${count(first.lsn)}: insert into ${first.table} ${rowText(first.new ?? {})}`);
  const flagged = new Set(writes.filter((row) => row.acknowledged).map((row) => Number(row.key['id'])));
  const lost = missing(alone.acknowledged, flagged);
  const unknown = missing(ids, alone.asked);
  const ok = ids.size > 0 && lost + unknown + wrong + halves === 0;
  const figure = `${count(ids.size)} writes in ${count(rows.length)} rows; ${lost} missing, ${unknown} unknown, ${wrong} wrong`;
  return {
    kept: { file, ids },
    checks: [check('the file holds each of them, to the letter, as acknowledged', ok, figure)],
  };
}

function rowText(row: Readonly<Record<string, unknown>>): string {
  const text = Object.entries(row).map(([name, value]) => `${name} = ${String(value)}`);
  return cut(text.join(', '), BODY_COLUMNS);
}

/** Under the load of the new primary, and read where the rows had been dropped. */
async function reapply(stage: Stage, primary: Member, { file, ids }: Kept): Promise<Check[]> {
  const { context, old, workload } = stage;
  const dropped = missing(ids, new Set(await old.ask('ids', workload)));
  const report = await primary.ask('reapply', { file: file.path });
  const again = await primary.ask('reapply', { file: file.path });
  const { transactions, rows, conflicts } = report;
  await context.say(
    `Re-applied by ${primary.name}: ${count(rows.applied)} rows in ${count(transactions.applied)} transactions, ` +
      `${count(rows.indirect)} left to triggers.`,
  );
  await until(
    `the re-applied writes reach ${old.name}`,
    async () => missing(ids, new Set(await old.ask('ids', workload))) === 0 || undefined,
    context.signal,
  );
  const [id = 0] = ids;
  await context.say(`Read again on ${old.name}: ${rowText((await old.ask('row', { workload, id })) ?? {})}`);
  return [
    check(
      're-applied, each of them is read again on the node that had dropped it',
      dropped === ids.size,
      `${count(dropped)} dropped, ${count(ids.size)} there again`,
    ),
    check(
      'nothing stood in its way, and a second run writes nothing',
      conflicts.length + transactions.leftOut === 0 && again.transactions.repeated === transactions.applied,
      `${conflicts.length} conflicts, ${transactions.leftOut} left out; ${count(again.transactions.repeated)} known the second time`,
    ),
  ];
}

/** All three have the same, and each of them is sound in itself. */
async function checkNodes({ context, group: { members } }: Stage): Promise<Check[]> {
  const states = await until(
    'the three are at one position',
    async () => {
      const all = await Promise.all(members.map(stateOf));
      return new Set(all.map(({ applied }) => applied)).size === 1 ? all : undefined;
    },
    context.signal,
  );
  const fingerprints = new Set(states.map(({ fingerprint }) => fingerprint));
  const reports = await Promise.all(members.map((member) => member.ask('verify', undefined)));
  const problems = reports.flatMap((report) => report.problems.map(({ where, what }) => `${where}: ${what}`));
  const records = reports.map(({ log }) => count(log.records)).join(', ');
  return [
    check(
      'all cells of the three nodes are equal',
      fingerprints.size === 1,
      [...fingerprints].map((fingerprint) => fingerprint.slice(0, 16)).join(', '),
    ),
    check(
      'on each: every checksum, every link of the hash chain, every row against the log',
      reports.every(({ ok }) => ok),
      problems.join('; ') || `${records} records`,
    ),
  ];
}

/** What was acknowledged by whomever, and not a write more. */
async function checkContent({ context, workload, group }: Stage, ids: ReadonlySet<number>): Promise<Check[]> {
  const expected = join(context.dir, 'expected.sqlite');
  await makeExpected(context.source, expected, { workload, ids });
  const compared = [];
  for (const [i, member] of group.members.entries()) {
    const exported = join(context.dir, `exported-${i + 1}.sqlite`);
    await member.ask('exportTo', exported);
    compared.push(compareFiles(expected, exported));
  }
  const differences = compared.reduce((sum, one) => sum + one.differences, 0);
  const [{ cells, rows } = { cells: 0, rows: 0 }] = compared;
  return [
    check(
      'exported, each equals what plain SQLite makes of source and acknowledged writes',
      differences === 0 && rows > 0,
      `${count(cells)} cells in ${count(rows)} rows, ${count(differences)} differ`,
    ),
  ];
}
