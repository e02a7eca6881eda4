/** `nostos backup`: makes backups of a node, and looks after those that there are, for which no node is needed. */
import { resolve } from 'node:path';
import { Command } from 'commander';
import { systemClock, hlcToMs } from '../base/clock.ts';
import { NostosError } from '../base/errors.ts';
import { KeyringFile } from '../backup/repository/keyring-file.ts';
import type { SnapshotId } from '../backup/repository/manifest.ts';
import { totalBytes } from '../backup/repository/manifest.ts';
import type { KeepPolicy } from '../backup/repository/policy.ts';
import { prune, type PruneReport } from '../backup/repository/prune.ts';
import type { Repository } from '../backup/repository/repository.ts';
import { timeline, type Timeline } from '../backup/repository/timeline.ts';
import { verify, type VerifyReport } from '../backup/repository/verify.ts';
import { toTenantUuid, type TenantUuid } from '../base/brands.ts';
import type { BackupStatus } from '../node/types.ts';
import {
  absoluteUrl,
  keepPolicy,
  keysOption,
  keysPath,
  placeOption,
  timeSpan,
  withRepository,
  type RepositoryOptions,
} from './backup-options.ts';
import { drillVerb } from './backup-drill.ts';
import { forkVerb } from './backup-fork.ts';
import { EXIT_CODES, ExitError } from './exit-codes.ts';
import { print, type Io } from './io.ts';
import { callWithDisplay } from './progress.ts';
import { bytes, count, duration, fields, style, table } from './render.ts';
import { timeText } from './rollback-text.ts';
import { answer, callWithProgress, plainVerb, verb, wholeNumber, withNode } from './verb.ts';
import type { PlainOptions, VerbOptions } from './verb.ts';

type PlaceOptions = PlainOptions & RepositoryOptions;

function collect(value: string, before: readonly string[] | undefined): readonly string[] {
  return [...(before ?? []), value];
}

interface CreateOptions extends VerbOptions {
  readonly to: string;
  readonly keys?: string;
  readonly tenant?: readonly string[];
  readonly label?: string;
  readonly full?: true;
  readonly dryRun?: true;
}

async function create(io: Io, options: CreateOptions): Promise<void> {
  const { to, keys, tenant: tenants, label, full = false, dryRun = false } = options;
  const input = {
    to: absoluteUrl(io, to),
    ...keysPath(io, keys),
    ...(tenants === undefined ? {} : { tenants: [...tenants] }),
    ...(label === undefined ? {} : { label }),
    full,
    dryRun,
  };
  const report = await withNode(io, options, (node) => callWithProgress(io, node, { name: 'backup.create', input }));
  for (const warning of report.warnings) await print(io.stderr, `warning: ${warning}\n`);
  await answer(io, options, report, () => {
    const { snapshot, position, tenants: files, archive, why } = report;
    const rows: (readonly [string, unknown])[] = [
      [
        'files',
        `${count(files.read)} read (${bytes(report.bytesRead)}), ${count(files.reused)} as in the snapshot before`,
      ],
    ];
    if (why !== null) rows.push(['read because', why]);
    if (snapshot === null) return `${style(io, 'bold', 'dry run: nothing was stored')}\n${fields(io, rows)}`;
    rows.unshift(['position', `term ${position!.term}, LSN ${count(position!.lsn)}, ${timeText(report.timeMs!)}`]);
    rows.push(['log', `${count(archive.records)} records archived`], ['stored', bytes(report.bytesStored)]);
    for (const { from, to: last } of archive.gaps) rows.push(['gap', `LSN ${from}-${last} cannot be restored to`]);
    if (files.dropped > 0) rows.push(['dropped', `${count(files.dropped)} tenants meanwhile`]);
    return `${style(io, 'green', snapshot)} in ${duration(report.elapsedMs)}\n${fields(io, rows)}`;
  });
}

function createVerb(io: Io): Command {
  return verb('create', {
    summary: 'Back up a node, or some of its tenants, at one position.',
    description:
      'Works while the node runs, through it, and on a directory that nobody has open. Only what is committed is stored. ' +
      'Files of the snapshot before are gone on with where the archived log since is small; otherwise they are read again ' +
      'and only what differs is stored. With --keys each tenant is encrypted with a key of its own (AES-256-GCM): keep a ' +
      'copy of that file elsewhere, without it the backups are noise.',
    examples: [
      ['nostos backup create --to /backups/shop', 'all tenants; the directory is made where there is none'],
      ['nostos backup create --to s3://backups/shop?region=eu-central-1 --keys shop.keys', 'encrypted, in a bucket'],
      ['nostos backup create --to /backups/acme --tenant acme --label before-the-move', 'one tenant'],
      ['nostos backup create --to /backups/shop --dry-run --json', 'what would be read'],
    ],
  })
    .addOption(placeOption('--to'))
    .addOption(keysOption())
    .option('--tenant <name>', 'only this tenant; may be repeated', collect)
    .option('--label <text>', 'kept with the snapshot')
    .option('--full', 'read every file again, whatever the snapshot before has')
    .option('--dry-run', 'say what would be read, and store nothing')
    .action((options: CreateOptions) => create(io, options));
}

/** Plain JSON: times in milliseconds. */
function listed({ snapshots, spans, gaps }: Timeline) {
  return {
    snapshots: snapshots.map(({ snapshot, reach, lastTime }) => ({
      id: snapshot.id,
      createdAtMs: snapshot.createdAtMs,
      node: snapshot.node,
      generation: snapshot.position.generation,
      term: snapshot.position.term,
      lsn: snapshot.position.lsn,
      timeMs: hlcToMs(snapshot.time),
      whole: snapshot.items.some(({ kind }) => kind === 'catalog'),
      tenants: snapshot.items.flatMap((item) => (item.kind === 'tenant' ? [item.name] : [])),
      bytes: totalBytes(snapshot),
      encrypted: snapshot.items.some(({ key }) => key !== undefined),
      label: snapshot.label ?? null,
      restorable: { from: reach.from, to: reach.to, untilMs: hlcToMs(lastTime) },
    })),
    archive: spans.map(({ generation, from, to, firstTime, lastTime }) => ({
      generation,
      from,
      to,
      firstTimeMs: hlcToMs(firstTime),
      lastTimeMs: hlcToMs(lastTime),
    })),
    gaps,
  };
}

async function list(io: Io, options: PlaceOptions): Promise<void> {
  const found = await withRepository(io, options, (repository) => timeline(repository, { signal: io.signal }));
  const result = listed(found);
  await answer(io, options, result, () => {
    if (result.snapshots.length === 0) return 'no snapshots; nostos backup create makes one';
    const rows = table(io, result.snapshots, [
      { title: 'SNAPSHOT', value: ({ id }) => id },
      { title: 'MADE', value: ({ createdAtMs }) => timeText(createdAtMs) },
      { title: 'LSN', value: ({ lsn }) => count(lsn), align: 'right' },
      {
        title: 'TENANTS',
        value: ({ tenants, whole }) => `${count(tenants.length)}${whole ? '' : ' only'}`,
        align: 'right',
      },
      { title: 'SIZE', value: (one) => bytes(one.bytes), align: 'right' },
      { title: 'KEYS', value: ({ encrypted }) => (encrypted ? 'yes' : 'no') },
      { title: 'RESTORES TO', value: ({ restorable: r }) => `LSN ${r.from}-${r.to}, until ${timeText(r.untilMs)}` },
      { title: 'LABEL', value: ({ label }) => label ?? '' },
    ]);
    const gaps = result.gaps.map(
      ({ generation, from, to }) => `gap: LSN ${from}-${to} of generation ${generation} are not archived`,
    );
    return [rows, ...gaps.map((text) => style(io, 'yellow', text))].join('\n');
  });
}

function listVerb(io: Io): Command {
  return plainVerb('list', {
    summary: 'Show the snapshots of a place, and what can be restored from them.',
    description: 'Needs no node, and no keys.',
    examples: [
      ['nostos backup list --from /backups/shop', 'snapshots, the positions and times that each leads to, and gaps'],
      ['nostos backup list --from s3://backups/shop --json', 'for a program'],
    ],
  })
    .addOption(placeOption('--from'))
    .action((options: PlaceOptions) => list(io, options));
}

interface VerifyVerbOptions extends PlaceOptions {
  readonly sample: number;
  readonly seed: number;
}

async function verifyBackups(io: Io, options: VerifyVerbOptions): Promise<void> {
  if (options.sample < 1 || options.sample > 100)
    throw new ExitError('usage', `--sample takes a percentage from 1 to 100, got ${options.sample}`);
  const report = await withRepository(io, options, (repository) =>
    callWithDisplay(io, (onProgress) =>
      verify(repository, {
        share: options.sample / 100,
        seed: options.seed,
        signal: io.signal,
        onProgress: (now) => onProgress({ phase: 'verifying', done: now.bytes, unit: 'bytes' }),
      }),
    ),
  );
  await answer(io, options, report, () => verifiedText(io, report));
  if (report.problems.length > 0)
    throw new ExitError(
      'failed',
      `${count(report.problems.length)} problems`,
      'Make a new backup; keep this one for what is whole.',
    );
}

function verifiedText(io: Io, { problems, ...report }: VerifyReport): string {
  const lines = problems.map(
    ({ what, snapshot, message }) =>
      `${style(io, 'red', what)}${snapshot === undefined ? '' : ` of ${snapshot}`}: ${message}`,
  );
  const verdict = problems.length === 0 ? style(io, 'green', 'everything that was read is as it was written') : '';
  const read = `${count(report.snapshots)} snapshots, ${count(report.chunks)} chunks, ${count(report.archiveObjects)} objects of the log, ${bytes(report.bytes)}`;
  return [read, ...lines, verdict].filter((line) => line !== '').join('\n');
}

function verifyVerb(io: Io): Command {
  return plainVerb('verify', {
    summary: 'Read backups back, decrypt them, and compare everything with its hash.',
    description: `Exit code ${EXIT_CODES.failed[0]} where something is missing or damaged. It runs beside backups; a prune waits for it.`,
    examples: [
      ['nostos backup verify --from /backups/shop --keys shop.keys', 'everything'],
      ['nostos backup verify --from s3://backups/shop --sample 5 --seed 42', 'five percent of it, chosen by 42'],
    ],
  })
    .addOption(placeOption('--from'))
    .addOption(keysOption())
    .option('--sample <percent>', 'read only so much of chunks and log', wholeNumber('--sample'), 100)
    .option('--seed <number>', 'which ones; another one each day reads all in time', wholeNumber('--seed'), 1)
    .action((options: VerifyVerbOptions) => verifyBackups(io, options));
}

interface PruneVerbOptions extends PlaceOptions {
  readonly keep: KeepPolicy;
  readonly dryRun?: true;
}

async function pruneBackups(io: Io, options: PruneVerbOptions): Promise<void> {
  const { keep, dryRun = false } = options;
  const report = await withRepository(io, options, (repository) =>
    callWithDisplay(io, (onProgress) =>
      prune(repository, {
        keep,
        dryRun,
        signal: io.signal,
        onProgress: (now) => onProgress({ phase: 'removing', done: now.bytesRemoved, unit: 'bytes' }),
      }),
    ),
  );
  await answer(io, options, { ...report, dryRun }, () => prunedText(io, report, dryRun));
}

function prunedText(io: Io, report: PruneReport, dryRun: boolean): string {
  const kept = report.kept.map(({ id, reasons }) => `kept     ${id}  ${style(io, 'dim', reasons.join(', '))}`);
  const removed = report.removed.map((id) => `${dryRun ? 'would go' : 'removed '} ${style(io, 'yellow', id)}`);
  const grace = report.objectsInGrace > 0 ? `; ${count(report.objectsInGrace)} more once they are old enough` : '';
  const sum = `${count(report.objectsRemoved)} objects and ${count(report.archiveObjectsRemoved)} of the log, ${bytes(report.bytesRemoved)}${grace}`;
  return [...kept, ...removed, sum].join('\n');
}

function pruneVerb(io: Io): Command {
  return plainVerb('prune', {
    summary: 'Remove snapshots that a policy does not keep, and what only they need.',
    description:
      'The newest snapshot and pinned ones are always kept. Hours, days and weeks are those of UTC. Nobody else works on ' +
      'the place meanwhile: it waits for backups that run, and they wait for it.',
    examples: [
      ['nostos backup prune --from /backups/shop --keep last=3,daily=7,weekly=4 --dry-run', 'what would go'],
      ['nostos backup prune --from /backups/shop --keep last=3,daily=7,weekly=4', 'remove it'],
    ],
  })
    .addOption(placeOption('--from'))
    .requiredOption('--keep <policy>', 'counts of last, hourly, daily, weekly', keepPolicy('--keep'))
    .option('--dry-run', 'say what would go, and remove nothing')
    .action((options: PruneVerbOptions) => pruneBackups(io, options));
}

async function pin(io: Io, wanted: string, options: PlaceOptions & { readonly remove?: true }): Promise<void> {
  const id = await withRepository(io, options, async (repository) => {
    const found = await findSnapshot(repository, wanted);
    await (options.remove ? repository.unpin(found) : repository.pin(found));
    return found;
  });
  const pinned = options.remove !== true;
  await answer(io, options, { snapshot: id, pinned }, () => `${id} ${pinned ? 'is kept' : 'is left to the policy'}`);
}

async function findSnapshot(repository: Repository, wanted: string): Promise<SnapshotId> {
  const found: SnapshotId[] = [];
  for await (const id of repository.snapshotIds()) if (id.startsWith(wanted)) found.push(id);
  const [only, ...others] = found;
  if (only === undefined)
    throw new ExitError('notFound', `there is no snapshot ${wanted}`, 'nostos backup list shows those that there are.');
  if (others.length > 0)
    throw new ExitError('usage', `${wanted} is the beginning of ${count(found.length)} ids`, 'Give more of it.');
  return only;
}

function pinVerb(io: Io): Command {
  return plainVerb('pin', {
    summary: 'Keep a snapshot whatever policies say.',
    examples: [
      ['nostos backup pin 01994c --from /backups/shop', 'by the beginning of its id'],
      ['nostos backup pin 01994c --from /backups/shop --remove', 'leave it to the policy again'],
    ],
  })
    .argument('<snapshot>', 'id, or the beginning of one')
    .addOption(placeOption('--from'))
    .option('--remove', 'no longer')
    .action((id: string, options: PlaceOptions & { readonly remove?: true }) => pin(io, id, options));
}

interface ScheduleOptions extends VerbOptions {
  readonly check?: true;
  readonly maxAge: number;
}

async function schedule(io: Io, options: ScheduleOptions): Promise<void> {
  const backup = await withNode(io, options, async (node) => {
    if (node.via === 'opened')
      throw new ExitError(
        'notFound',
        `no node runs on ${options.dir}`,
        'nostos serve --backup-to <url> makes backups.',
      );
    return (await node.call('status', {})).backup ?? null;
  });
  const problem = scheduleProblem(backup, options.maxAge);
  await answer(io, options, { backup, problem }, () => (backup === null ? 'none' : scheduleText(io, backup)));
  if (options.check && problem !== null)
    throw new ExitError('failed', problem, 'nostos status and the warnings of the storage say more.');
}

function scheduleProblem(backup: BackupStatus | null, maxAgeMs: number): string | null {
  if (backup === null) return 'the node makes no backups by itself: nostos serve --backup-to';
  const ageMs = backup.last === null ? Infinity : systemClock.nowMs() - backup.last.atMs;
  const error = backup.error === null ? '' : ` (${backup.error.message})`;
  if (backup.last === null) return `there is no snapshot yet${error}`;
  return ageMs > maxAgeMs ? `the newest snapshot is ${duration(ageMs)} old${error}` : null;
}

function scheduleText(io: Io, backup: BackupStatus): string {
  const { last, nextAtMs, error } = backup;
  return fields(io, [
    ['to', backup.to],
    ['now', backup.running ?? 'nothing'],
    ['newest', last === null ? 'none yet' : `${last.snapshot}, ${timeText(last.atMs)}, LSN ${count(last.lsn)}`],
    ['next', nextAtMs === null ? 'not known yet' : timeText(nextAtMs)],
    ['archive', `${count(backup.lagRecords)} records behind`],
    ['failures', count(backup.failures)],
    ...(error === null ? [] : [['last failure', `${timeText(error.atMs)}: ${error.message}`] as const]),
  ]);
}

function scheduleVerb(io: Io): Command {
  return verb('schedule', {
    summary: 'Show, or check, the backups that a running node makes by itself.',
    description: `nostos serve --backup-to sets them up. With --check the exit code is ${EXIT_CODES.failed[0]} where the newest snapshot is too old.`,
    examples: [
      ['nostos serve --backup-to s3://backups/shop --backup-every 1h --backup-keep last=24,daily=14', 'make them'],
      ['nostos backup schedule', 'what it does, and when it does it next'],
      ['nostos backup schedule --check --max-age 3h', 'for monitoring'],
    ],
  })
    .option('--check', 'fail where something is wrong')
    .option('--max-age <span>', 'of the newest snapshot', timeSpan('--max-age'), 2 * 3_600_000)
    .action((options: ScheduleOptions) => schedule(io, options));
}

interface KeysOptions extends VerbOptions {
  readonly keys: string;
  readonly tenant?: string;
  readonly uuid?: string;
  readonly yes?: true;
}

/** By name from the node, or as it is given: a dropped tenant has no name. */
async function ownerOf(io: Io, options: KeysOptions): Promise<TenantUuid> {
  if (options.uuid !== undefined) return toTenantUuid(options.uuid);
  const { tenant } = options;
  if (tenant === undefined)
    throw new ExitError('usage', 'it is not said whose key', 'Give --tenant <name> or --uuid <id>.');
  return (await withNode(io, options, (node) => node.call('tenant.status', { tenant }))).uuid;
}

async function listKeys(io: Io, options: KeysOptions): Promise<void> {
  const ring = KeyringFile.open(resolve(io.cwd, options.keys));
  const keys = ring.list();
  await answer(io, options, keys, () =>
    keys.length === 0
      ? 'no keys'
      : table(io, keys, [
          { title: 'KEY', value: ({ id }) => id },
          { title: 'TENANT', value: ({ owner }) => (/^0+$/.test(owner) ? 'what belongs to none' : owner) },
          { title: 'STATE', value: ({ state }) => state },
        ]),
  );
}

async function rotateKey(io: Io, options: KeysOptions): Promise<void> {
  const owner = await ownerOf(io, options);
  const { id } = await KeyringFile.open(resolve(io.cwd, options.keys)).rotate(owner);
  await answer(
    io,
    options,
    { owner, key: id },
    () => `${id} encrypts what comes next; the former keys open what they sealed`,
  );
}

async function destroyKeys(io: Io, options: KeysOptions): Promise<void> {
  const owner = await ownerOf(io, options);
  if (options.yes !== true)
    throw new NostosError(
      'INVALID_ARGUMENT',
      `destroying the keys of ${options.tenant ?? owner} makes everything of it in all backups unreadable for good; say --yes, and remove copies of the keyring yourself`,
    );
  const destroyed = await KeyringFile.open(resolve(io.cwd, options.keys)).destroy(owner);
  await answer(io, options, { owner, destroyed }, () => `${count(destroyed)} keys destroyed`);
}

function keysVerb(io: Io): Command {
  const one = (command: Command): Command =>
    command
      .option('--tenant <name>', 'whose key, by the node of --dir')
      .option('--uuid <id>', 'the same by uuid, as for a tenant that was dropped');
  const required = (command: Command): Command => {
    command.addOption(keysOption().makeOptionMandatory());
    return command;
  };
  return new Command('keys')
    .summary('Look after the keys that backups are encrypted with.')
    .addCommand(
      required(
        verb('list', {
          summary: 'Show whose keys a keyring has, never the keys.',
          examples: [['nostos backup keys list --keys shop.keys', 'ids, tenants, and which are in use']],
        }),
      ).action((options: KeysOptions) => listKeys(io, options)),
    )
    .addCommand(
      one(
        required(
          verb('rotate', {
            summary: 'Give a tenant a new key for what comes next.',
            description: 'The next snapshot stores all of the tenant anew.',
            examples: [['nostos backup keys rotate --keys shop.keys --tenant acme', 'older snapshots stay readable']],
          }),
        ),
      ).action((options: KeysOptions) => rotateKey(io, options)),
    )
    .addCommand(
      one(
        required(
          verb('destroy', {
            summary: 'Make everything of a tenant in all backups unreadable, for good.',
            description: 'Copies of the keyring, and processes that have read it, still have the keys: see to them.',
            examples: [['nostos backup keys destroy --keys shop.keys --tenant acme --yes', 'there is no way back']],
          }).option('--yes', 'it is meant'),
        ),
      ).action((options: KeysOptions) => destroyKeys(io, options)),
    );
}

export function backupVerb(io: Io): Command {
  return new Command('backup')
    .summary('Make backups, and look after them.')
    .description(
      'Snapshots of all tenants at one position, and the log between them, in a directory or in object storage.',
    )
    .addCommand(createVerb(io))
    .addCommand(listVerb(io))
    .addCommand(verifyVerb(io))
    .addCommand(pruneVerb(io))
    .addCommand(pinVerb(io))
    .addCommand(scheduleVerb(io))
    .addCommand(drillVerb(io))
    .addCommand(forkVerb(io))
    .addCommand(keysVerb(io));
}
