import { readFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { createInterface } from 'node:readline/promises';
import { Command } from 'commander';
import { toStoreId, type StoreId } from '../base/brands.ts';
import type { Coordination } from '../coordination/coordination.ts';
import type { Coordinator, Versioned } from '../coordination/coordinator.ts';
import type { ListOptions } from '../coordination/directory.ts';
import type { MemberEntry } from '../coordination/member.ts';
import { isServed } from '../node/admin-socket.ts';
import { initGroup } from '../node/group-init.ts';
import {
  abandonRecovery,
  adoptRecovered,
  recoverGroup,
  type NewGeneration,
  type RecoveryReport,
} from '../node/group-recover.ts';
import type { PossibleLoss, RecoveryDecision } from '../node/group-recovery.ts';
import type { OperationInput } from '../node/operations.ts';
import { parseStoreReport, type StoreReport } from '../node/stopped-directory.ts';
import { ExitError } from './exit-codes.ts';
import { readMinInSync, withGroupOptions, withGroupRecord } from './group-options.ts';
import { print, type Io } from './io.ts';
import { count, fields, style, table } from './render.ts';
import { answer, plainVerb, verb, withNode, type PlainOptions, type VerbOptions } from './verb.ts';

const PLACE = ['coordinator', 'group'] as const;
const REPORT_BYTES_MAX = 64 * 1024 * 1024;
const MEMBER_PAGES_MAX = 100;

interface Member {
  readonly store: StoreId;
  readonly node: string | null;
  readonly address: string | null;
  readonly inSync: boolean;
  readonly primary: boolean;
}

interface Status extends Versioned {
  readonly group: string;
  readonly members: readonly Member[];
}

async function readStatus(coordination: Coordination, group: string): Promise<Status> {
  const current = await coordination.group(group).read();
  if (current === undefined)
    throw new ExitError(
      'notFound',
      `the coordinator has no group ${group}`,
      'nostos group init makes one, on the node whose data it begins with.',
    );
  const { inSync, primary } = current.record;
  const members = current.record.members.map(async (store): Promise<Member> => {
    const entry: Versioned<MemberEntry> | undefined = await coordination.member(store).read();
    const { node = null, address = null } = entry?.record ?? {};
    return { store, node, address, inSync: inSync.includes(store), primary: primary?.store === store };
  });
  return { group, ...current, members: await Promise.all(members) };
}

function describeStatus(io: Io, { group, version, record, members }: Status): string {
  const { committed, minInSync, inSync } = record;
  const lone = members.length === 2 && minInSync === 2 ? '; writes stop when either member does' : '';
  const about = fields(io, [
    ['group', `${group}, generation ${record.generation}`],
    ['record', `version ${version}, term ${record.term}, renewed ${count(record.renewal)} times`],
    [
      'committed',
      committed === null ? 'nothing yet' : `up to record ${count(committed.lsn)} of term ${committed.term}`,
    ],
    ['in sync', `${inSync.length} of ${members.length}; each write is on ${minInSync} at least${lone}`],
  ]);
  const list = table(io, members, [
    { title: 'store', value: (one) => one.store },
    { title: 'role', value: (one) => (one.primary ? 'primary' : 'replica') },
    { title: 'in sync', value: (one) => (one.inSync ? 'yes' : style(io, 'yellow', 'no')) },
    { title: 'address', value: (one) => one.address ?? '-' },
    { title: 'node', value: (one) => one.node ?? '-' },
  ]);
  return `${about}\n\n${list}`;
}

function statusVerb(io: Io): Command {
  const command = plainVerb('status', {
    summary: 'Show the record of a group, and where its members are.',
    description: 'Asks the coordinator only; whether a member lives, its own nostos status says.',
    examples: [['nostos group status --coordinator embedded:/srv/coordinator', 'who leads, who is in sync']],
  });
  return withGroupOptions(command, PLACE).action(async (options: PlainOptions) => {
    const status = await withGroupRecord(io, command, ({ coordination, name }) => readStatus(coordination, name));
    await answer(io, options, status, () => describeStatus(io, status));
  });
}

async function stoppedDir(io: Io, dir: string): Promise<string> {
  const path = resolve(io.cwd, dir);
  if (await isServed(path)) throw new ExitError('retry', `a process has ${path} open`, 'End it first.');
  return path;
}

function initVerb(io: Io): Command {
  const command = verb('init', {
    summary: 'Begin a group with the data of one stopped node.',
    description:
      'Writes the first record of the group: this store is its only member, in its own generation, and leads when the node ' +
      'is started with the same coordinator. From then on the directory does not open without it. Refused where the ' +
      'coordinator has a group of this name. The others join empty: they copy the first one, then nostos group add.',
    examples: [['nostos group init --dir ./data --coordinator embedded:/srv/coordinator', 'then start it']],
  });
  return withGroupOptions(command, PLACE).action(async (options: VerbOptions) => {
    const dir = await stoppedDir(io, options.dir);
    const status = await withGroupRecord(io, command, async ({ coordination, name }) => {
      await coordination.check();
      await initGroup(coordination.group(name), dir);
      return readStatus(coordination, name);
    });
    await answer(io, options, status, () => describeStatus(io, status));
  });
}

/** A store by its id, or by the address that its node has told the coordinator. */
async function storeOf(io: Io, command: Command, member: string): Promise<StoreId> {
  if (/^[0-9a-f]{32}$/.test(member)) return toStoreId(member);
  return withGroupRecord(io, command, async ({ coordination }) => {
    const found: string[] = [];
    let page: ListOptions = {};
    for (let pages = 0; pages < MEMBER_PAGES_MAX; pages++) {
      const { entries, next } = await coordination.members(page);
      found.push(...entries.filter(({ record }) => record.address === member).map(({ id }) => id));
      if (next === undefined) break;
      page = { after: next };
    }
    if (found.length === 1) return toStoreId(found[0]);
    throw new ExitError(
      'notFound',
      found.length === 0
        ? `no node has told the coordinator that it is reached at ${member}`
        : `${found.length} stores were reached at ${member}: ${found.join(', ')}`,
      'Give the id of the store; nostos status on that node shows it.',
    );
  });
}

/** Through the node that runs on the directory: opened here, it would be a node without its group. */
async function change(io: Io, options: VerbOptions, input: OperationInput<'group.change'>): Promise<void> {
  await assertRunning(io, options);
  const result = await withNode(io, options, (node) => node.call('group.change', input));
  await answer(io, options, result, () =>
    fields(io, [
      ['members', result.members?.join(', ') ?? 'not known'],
      ['in sync', result.inSync?.join(', ') ?? 'not known'],
      ['each write', `on ${result.minInSync} at least`],
    ]),
  );
}

async function assertRunning(io: Io, options: VerbOptions): Promise<void> {
  const dir = resolve(io.cwd, options.dir);
  if (!(await isServed(dir)))
    throw new ExitError('retry', `no node runs on ${dir}`, 'Give the directory of the primary, and start it first.');
}

const CHANGED = 'Asked of the primary: --dir is its directory. ';

async function minInSyncOf(io: Io, command: Command): Promise<{ minInSync?: number }> {
  const minInSync = await readMinInSync(io, command);
  return minInSync === undefined ? {} : { minInSync };
}

function addVerb(io: Io): Command {
  const command = verb('add', {
    summary: 'Make a store that has caught up a member.',
    description: `${CHANGED}The store has to stream already. Without --min-in-sync a majority stays a majority; of two members that is both, so that writes stop when either does.`,
    examples: [
      ['nostos group add 0f…32 hex digits…9c --dir ./data', 'by the id of the store'],
      ['nostos group add 10.0.0.8:4041 --dir ./data --coordinator etcds://…', 'by its address'],
    ],
  }).argument('<member>', 'id of the store, or host:port where it is reached');
  return withGroupOptions(command, [...PLACE, 'minInSync']).action(async (member: string, options: VerbOptions) =>
    change(io, options, { add: await storeOf(io, command, member), ...(await minInSyncOf(io, command)) }),
  );
}

function removeVerb(io: Io): Command {
  const command = verb('remove', {
    summary: 'Remove a member.',
    description: `${CHANGED}The in-sync set does not fall below the least: lower that with --min-in-sync, or hand over first where it is the primary itself.`,
    examples: [['nostos group remove 0f…32 hex digits…9c --dir ./data', 'a machine that does not come back']],
  }).argument('<member>', 'id of the store, or host:port where it was reached');
  return withGroupOptions(command, [...PLACE, 'minInSync']).action(async (member: string, options: VerbOptions) =>
    change(io, options, { remove: await storeOf(io, command, member), ...(await minInSyncOf(io, command)) }),
  );
}

function handoverVerb(io: Io): Command {
  const command = verb('handover', {
    summary: 'Hand the lead to another member, with no write lost.',
    description: `${CHANGED}Writes wait while it is under way; where it takes too long it is given up, and they go on.`,
    examples: [['nostos group handover --dir ./data', 'to whoever is furthest']],
  }).option('--to <member>', 'id of the store, or host:port');
  return withGroupOptions(command, PLACE).action(async (options: VerbOptions & { readonly to?: string }) => {
    await assertRunning(io, options);
    const to = options.to === undefined ? {} : { to: await storeOf(io, command, options.to) };
    const result = await withNode(io, options, (node) => node.call('group.handover', to));
    await answer(io, options, result, () => 'this node no longer leads');
  });
}

interface RecoverOptions extends PlainOptions {
  readonly dir: readonly string[];
  readonly report: readonly string[];
  readonly acceptLoss?: true;
  readonly dryRun?: true;
  readonly adopt?: true;
  readonly abandon?: true;
  readonly yes?: true;
}

async function readReport(io: Io, name: string): Promise<StoreReport> {
  const path = resolve(io.cwd, name);
  let value: unknown;
  try {
    const text = await readFile(path);
    if (text.length > REPORT_BYTES_MAX) throw new Error(`it has more than ${REPORT_BYTES_MAX} bytes`);
    value = JSON.parse(text.toString());
  } catch (error) {
    throw new ExitError('usage', `${path} cannot be read: ${(error as Error).message}`);
  }
  const { directory } = Object(value) as { directory?: unknown };
  return parseStoreReport(directory, path);
}

function describeLoss({ after, known, onlyOn, committed }: PossibleLoss): readonly (readonly [string, unknown])[] {
  return [
    ['goes on after', `record ${count(after.lsn)} of term ${after.term}`],
    [
      'lost for sure',
      known === null
        ? 'nothing that is known of'
        : `records ${count(known.from)} to ${count(known.to)}, which were committed`,
    ],
    [
      'may be lost',
      `what was committed above ${count(Math.max(committed?.lsn ?? 0, after.lsn))} and is only on ${onlyOn.join(', ') || 'nobody'}`,
    ],
  ];
}

function describeDecision(io: Io, decision: RecoveryDecision, done: boolean): readonly (readonly [string, unknown])[] {
  const { kind, reason, usable, unusable, missing, needed, regressed } = decision;
  const rows: (readonly [string, unknown])[] = [
    ['decision', style(io, kind === 'lead-from' || kind === 'not-needed' ? 'green' : 'yellow', kind)],
    ['because', reason],
    ['coordinator', regressed ? 'was set back: a store has seen more than it holds' : 'holds the newest record'],
    ['usable', `${usable.length}, ${needed} are needed: ${usable.join(', ') || 'none'}`],
    ...unusable.map(({ store, why }) => ['not usable', `${store}: ${why}`] as const),
    ['not given', missing.join(', ') || 'none'],
  ];
  if (kind === 'not-needed') rows.push(['start', decision.start.join(', ')]);
  if (kind === 'lead-from')
    rows.push(
      ['leads from', decision.store],
      [
        'in sync',
        `${decision.inSync.join(', ')}; each write is on ${decision.minInSync} at least, until that is raised`,
      ],
      ['record', done ? 'replaced: start the nodes' : 'left as it is (--dry-run)'],
    );
  if (kind === 'too-few' && decision.loss !== null)
    rows.push(...describeLoss(decision.loss), [
      'you may',
      'bring more stores, or go on without them: --accept-loss, which begins a new generation',
    ]);
  return rows;
}

function describeBeginning(begins: NewGeneration, done: boolean): readonly (readonly [string, unknown])[] {
  const { store, generation, parent, fork, term, minInSync, loss } = begins;
  return [
    ['goes on with', store],
    ...describeLoss(loss),
    [
      'generation',
      `${generation}, from record ${count(fork.lsn)} of term ${fork.term} of ${parent} on, in term ${term}; positions above that are lost`,
    ],
    ['each write', `is on ${minInSync} store at least, until that is raised (--min-in-sync)`],
    [
      'the others',
      'come back as copies: a member started with what it has sets it aside, or nostos restore --replace does; what only it had stays there',
    ],
    ['record', done ? 'replaced: start the node' : 'left as it is'],
  ];
}

function describeRecovery(io: Io, { decision, begins, done, notLocked }: RecoveryReport): string {
  const rows =
    decision === null
      ? [['decision', 'made before; it is carried out'] as const]
      : describeDecision(io, decision, done);
  const begun = begins === null ? [] : describeBeginning(begins, done);
  const stopped =
    notLocked.length === 0 ? [] : [['keep stopped', `${notLocked.join(', ')} until the others lead`] as const];
  return fields(io, [...rows, ...begun, ...stopped]);
}

const ACCEPT = 'accept loss';

/** Where somebody sits who has just read what may be lost; a script has said it with the flag. */
async function confirmLoss(io: Io, report: RecoveryReport): Promise<boolean> {
  await print(io.stderr, `${describeRecovery(io, report)}\n`);
  const prompt = createInterface({ input: io.stdin, output: io.stderr });
  try {
    const typed = await prompt.question(`This cannot be undone. Type "${ACCEPT}" to go on: `, { signal: io.signal });
    if (typed.trim() !== ACCEPT) throw new ExitError('usage', `that is not "${ACCEPT}"; nothing was changed`);
    return true;
  } finally {
    prompt.close();
  }
}

function recoverVerb(io: Io): Command {
  const command = plainVerb('recover', {
    summary: 'Choose who leads when the coordinator lost its newest state, or no store in sync comes back.',
    description:
      'Reads stopped directories (--dir), and reports of others (--report, made by nostos rejoin --plan --json there). ' +
      'Members − minInSync + 1 stores have every committed record between them: then the one with the greatest last term ' +
      'and LSN is put in sync, with one change of the group record, and leads once it is started. A member elsewhere then ' +
      'adopts that record (--adopt). All have to stay stopped meanwhile. With fewer stores, --accept-loss goes on with the ' +
      'furthest one in a new generation, and says what may be lost; on a terminal it asks. Whatever the others have is of a ' +
      'history that ended, so they come back as copies, each in its old place. Cut off at any step, the same command goes ' +
      'on; until then the directory opens for nobody.',
    examples: [
      ['nostos group recover --dir ./a --dir ./b --coordinator embedded:/srv/coordinator', 'of three, one is gone'],
      ['nostos group recover --dir ./a --report b.json --coordinator etcds://… --dry-run', 'only look'],
      ['nostos group recover --adopt --dir ./b --coordinator etcds://…', 'afterwards, on the machine of b'],
      ['nostos group recover --dir ./a --accept-loss --coordinator etcds://…', 'two of three are gone for good'],
    ],
  })
    .option('--dir <path>', 'data directory of a stopped member; may be repeated', collect, [])
    .option('--report <file>', 'report of a stopped member elsewhere; may be repeated', collect, [])
    .option('--accept-loss', 'go on with what is there, in a new generation')
    .option('--yes', 'do not ask')
    .option('--dry-run', 'show the same, and change nothing')
    .option('--adopt', 'let these members go on with the record that was recovered')
    .option('--abandon', 'give up a recovery with a loss that was cut off before the group record was replaced');
  return withGroupOptions(command, PLACE).action(async (options: RecoverOptions) => {
    if (options.dir.length === 0)
      throw new ExitError('usage', 'it is not said which stores are there', 'Give their directories: --dir <path>');
    const dirs = await Promise.all(options.dir.map((dir) => stoppedDir(io, dir)));
    if (options.adopt === true) return withRecord(io, { command, options, dirs }, adoptRecovered);
    if (options.abandon === true) return withRecord(io, { command, options, dirs }, abandonRecovery);
    const reports = await Promise.all(options.report.map((name) => readReport(io, name)));
    const { acceptLoss = false, dryRun = false } = options;
    const confirm =
      io.stdinIsTty && options.yes !== true ? { confirm: (report: RecoveryReport) => confirmLoss(io, report) } : {};
    const result = await withGroupRecord(io, command, ({ coordination, name }) =>
      recoverGroup(coordination.group(name), { dirs, reports, acceptLoss, dryRun, ...confirm }),
    );
    await answer(io, options, result, () => describeRecovery(io, result));
    const kind = result.decision?.kind;
    if (kind === 'too-few' || kind === 'contradiction')
      throw new ExitError(
        'failed',
        'these stores do not show what was committed; nothing was changed',
        'Bring more of them.',
      );
  });
}

interface WithRecord {
  readonly command: Command;
  readonly options: PlainOptions;
  readonly dirs: readonly string[];
}

/** Does something with each of the directories and the record of the group, which is shown then. */
async function withRecord(
  io: Io,
  { command, options, dirs }: WithRecord,
  act: (group: Coordinator, dir: string) => Promise<unknown>,
): Promise<void> {
  const status = await withGroupRecord(io, command, async ({ coordination, name }) => {
    for (const dir of dirs) await act(coordination.group(name), dir);
    return readStatus(coordination, name);
  });
  await answer(io, options, status, () => describeStatus(io, status));
}

function collect(value: string, before: readonly string[]): string[] {
  return [...before, value];
}

export function groupVerb(io: Io): Command {
  return new Command('group')
    .summary('Begin a group, change its members, hand over, recover.')
    .description('A group is the nodes that replicate one log, under one coordinator: one leads, the others follow.')
    .addCommand(initVerb(io))
    .addCommand(addVerb(io))
    .addCommand(removeVerb(io))
    .addCommand(handoverVerb(io))
    .addCommand(recoverVerb(io))
    .addCommand(statusVerb(io));
}
