import { setFlagsFromString } from 'node:v8';
import { resolve } from 'node:path';
import type { Command } from 'commander';
import { systemDisk } from '../base/disk.ts';
import { NostosError } from '../base/errors.ts';
import { DEFAULT_LIMITS } from '../base/limits.ts';
import { nodeFileCodec } from '../node/node-file.ts';
import type { Progress } from '../node/types.ts';
import { readMarker, type Marker } from '../restore/local/marker.ts';
import {
  assertReplaceable,
  assertSpace,
  historyOf,
  lookAhead,
  ownIdentity,
  type Amount,
  type RestoreOutlook,
} from '../restore/local/outlook.ts';
import { abandonRestore, type LocalProgress } from '../restore/local/restore-directory.ts';
import { decide } from '../restore/local/decision.ts';
import { REFERENCE_PREFIX } from '../restore/reference-feed.ts';
import type { RestorePlan } from '../restore/source.ts';
import { parseAddress } from '../wire/address.ts';
import { readTlsIdentity } from '../wire/tls-files.ts';
import { restoreNode } from '../node/restore-node.ts';
import { isBackupSource } from '../node/backup-restore-source.ts';
import { EXIT_CODES, ExitError } from './exit-codes.ts';
import { print, type Io } from './io.ts';
import { callWithDisplay } from './progress.ts';
import { bytes, count, duration, fields, style } from './render.ts';
import {
  openProviders,
  restoreDeps,
  type Providers,
  type RestoreRunEvent,
  type RunReport,
} from '../node/restore-run.ts';
import { answer, byteRate, verb, wholeNumber, type VerbOptions } from './verb.ts';
import {
  isFromBackup,
  withModeOption,
  withTargetOptions,
  withoutOption,
  type BackupRestoreOptions,
} from './restore-backup-options.ts';

interface RestoreVerbOptions extends VerbOptions, BackupRestoreOptions {
  readonly abandon?: true;
  readonly replace?: true;
  readonly rate?: number;
  readonly connections?: number;
  readonly tlsDir?: string;
}

interface Run {
  readonly io: Io;
  readonly options: RestoreVerbOptions;
  readonly dir: string;
}

function checkSource(from: string): string {
  if (isBackupSource(from)) return from;
  parseAddress(from.startsWith(REFERENCE_PREFIX) ? from.slice(REFERENCE_PREFIX.length) : from);
  return from;
}

/** Those that were given, else those of the run that is resumed. */
function sourcesOf({ options, dir }: Run, marker: Marker | undefined): readonly string[] {
  const from = options.from ?? marker?.sources;
  if (from !== undefined) return from;
  throw new ExitError(
    'usage',
    `it is not said where ${dir} is to be restored from`,
    'Name a node that runs: --from host:port. Several --from are asked who serves best.',
  );
}

async function providersOf(run: Run, marker: Marker | undefined): Promise<Providers> {
  const { io, options } = run;
  const tls = options.tlsDir === undefined ? undefined : await readTlsIdentity(resolve(io.cwd, options.tlsDir));
  return { from: sourcesOf(run, marker), tls, replace: options.replace, onEvent: tellEvents(run) };
}

/** On stderr, as it happens; a program has it in the answer. */
function tellEvents({ io, options }: Run): (event: RestoreRunEvent) => void {
  return (event) => {
    if (!options.json) io.stderr.write(`${style(io, 'dim', describeEvent(event))}\n`);
  };
}

function describeEvent(event: RestoreRunEvent): string {
  if (event.kind === 'dropped') return `not from ${event.dropped.member.address}: ${event.dropped.why}`;
  if (event.kind === 'reconnecting') return `connecting to ${event.member.address} again: ${event.error.message}`;
  if (event.kind === 'reference') return `copying the log of ${describeSource(event.used)}`;
  const { member, info, bestWatermark } = event.candidate;
  return `copying from ${describeSource({ ...info, address: member.address, bestWatermark })}`;
}

function describeSource(used: NonNullable<RunReport['provider']>): string {
  if ('service' in used)
    return `${used.address}, service ${used.service}, which does not say whose log it is: ${
      used.minted ? `a new cluster id was minted, ${used.cluster}` : `taken as that of cluster ${used.cluster}`
    }`;
  const { address, role, watermark, bestWatermark } = used;
  const behind = bestWatermark > watermark ? `, ${count(bestWatermark - watermark)} behind the best one` : '';
  return `${address} (${role ?? 'no role'}), at record ${count(watermark)}${behind}`;
}

const PHASES: Readonly<Record<string, string>> = { items: 'fetching tenants', tail: 'fetching the log' };
const RATE_SPAN_MS = 5_000;

/** Adds how fast it is and how long it will take, from the last seconds. */
function withRate(show: (progress: Progress) => void): (progress: LocalProgress) => void {
  let samples: { readonly atMs: number; readonly done: number }[] = [];
  return ({ phase, done, total, unit }) => {
    const name = PHASES[phase] ?? phase;
    if (unit !== 'bytes' || total === undefined || PHASES[phase] === undefined)
      return show({ phase: name, done, unit, ...(total === undefined ? {} : { total }) });
    const atMs = performance.now();
    samples = [...samples.filter((sample) => atMs - sample.atMs < RATE_SPAN_MS && sample.done <= done), { atMs, done }];
    const first = samples[0]!;
    const perMs = (done - first.done) / (atMs - first.atMs);
    const speed = perMs > 0 ? `, ${bytes(perMs * 1000)}/s, ${duration((total - done) / perMs)} left` : '';
    show({ phase: `${name}${speed}`, done, total, unit });
  };
}

function amount({ files, bytes: size }: Amount): string {
  return `${bytes(size)} in ${count(files)} files`;
}

function describePlan(run: Run, plan: RestorePlan, outlook: RestoreOutlook): string {
  const { io, dir, options } = run;
  const { setAside, space } = outlook;
  const aside =
    setAside.names.length === 0
      ? 'nothing: there is no data'
      : `${setAside.names.join(', ')} → ${setAside.as}/${options.discard ? ', removed at the end' : ''}`;
  return fields(io, [
    ['directory', dir],
    ['source', `cluster ${plan.cluster}, generation ${plan.generation}, up to record ${count(plan.watermark)}`],
    ['whole copy', `${amount(outlook.total)} and the log`],
    ['fetched already', `${amount(outlook.staged)}; what changed since is fetched again`],
    ['reused', `${amount(outlook.reusable)}; only pages that differ are fetched`],
    ['to fetch', `${amount(outlook.missing)}, and what differs`],
    ['set aside', aside],
    [
      'room',
      `${bytes(space.neededBytes)} needed and ${bytes(space.reserveBytes)} kept free, of ${bytes(space.freeBytes)}`,
    ],
  ]);
}

async function dryRun(run: Run): Promise<void> {
  const { io, options, dir } = run;
  const marker = readMarker(systemDisk, dir);
  if (marker !== undefined && decide(marker, { kind: 'go-on' }) === 'finish') {
    const result = { dryRun: true, dir, state: marker.phase };
    const text = 'everything is fetched and verified; the same command without --dry-run finishes the swap';
    return answer(io, options, result, () => text);
  }
  const providers = await providersOf(run, marker);
  const feed = await openProviders(dir, providers, { marker, signal: io.signal });
  try {
    const { plan } = feed;
    const history = historyOf(plan);
    const outlook = lookAhead(systemDisk, { dir, plan, reserveBytes: DEFAULT_LIMITS.restoreReserveBytes });
    const { items, ...source } = plan;
    const result = { dryRun: true, dir, state: marker?.phase ?? 'as-it-was', source, ...outlook };
    await answer(io, options, { ...result, items: items.length }, () => describePlan(run, plan, outlook));
    decide(marker, { kind: 'source', history });
    const own = ownIdentity(systemDisk, dir, nodeFileCodec);
    assertReplaceable(own, { dir, plan, replace: options.replace === true });
    assertSpace(dir, outlook);
  } finally {
    await feed.close();
  }
}

function describeReport(io: Io, report: RunReport): string {
  const { fetched, verified, setAside, identity, provider } = report;
  const lines: [string, unknown][] = [
    ['directory', report.dir],
    ['node', `${identity.node}, a copy: it reads, and starts no term`],
  ];
  if (provider !== undefined) lines.push(['source', describeSource(provider)]);
  if (fetched !== undefined)
    lines.push([
      'fetched',
      `${amount(fetched)}; ${bytes(fetched.bytesOnWire)} over the wire, ${bytes(fetched.bytesReused)} were there, in ${duration(fetched.elapsedMs)}`,
    ]);
  if (verified !== undefined)
    lines.push([
      'verified',
      `${count(verified.records)} records up to ${count(verified.lsn)}, ${count(verified.rows)} rows of ${count(verified.tenants)} tenants`,
    ]);
  lines.push([
    'set aside',
    setAside === null ? 'nothing' : `${setAside}/ holds what was there; remove it when you like`,
  ]);
  return `${fields(io, lines)}\n\n${style(io, 'green', 'restored and verified')} in ${duration(report.elapsedMs)}`;
}

async function restore(run: Run): Promise<void> {
  const { io, options, dir } = run;
  setFlagsFromString('--optimize-for-size'); // this process waits for network and disk, not for the collector
  const found = readMarker(systemDisk, dir);
  if (decide(found, { kind: 'go-on' }) === 'ask') sourcesOf(run, found);
  if (found !== undefined && !options.json)
    io.stderr.write(`${style(io, 'dim', `going on with the restore begun ${found.startedAt}`)}\n`);
  const tls = options.tlsDir === undefined ? {} : { tls: await readTlsIdentity(resolve(io.cwd, options.tlsDir)) };
  const report = await callWithDisplay(io, (show) =>
    restoreNode({
      dir,
      replace: options.replace === true,
      discard: options.discard === true,
      signal: io.signal,
      onProgress: withRate(show),
      onEvent: tellEvents(run),
      ...tls,
      ...(options.from === undefined ? {} : { from: options.from }),
      ...(options.rate === undefined ? {} : { rateBytesPerSecond: options.rate }),
      ...(options.connections === undefined ? {} : { connections: options.connections }),
    }),
  ).catch(async (error: unknown) => {
    await tellHowToGoOn(run);
    throw error;
  });
  await answer(io, options, report, () => describeReport(io, report));
}

/** What is lost by a failure or Ctrl-C: nothing. */
async function tellHowToGoOn({ io, options, dir }: Run): Promise<void> {
  const marker = readMarker(systemDisk, dir);
  if (marker === undefined || options.json) return;
  const text =
    marker.phase === 'fetching'
      ? 'Not finished. What was fetched is kept, and what was there before is untouched: the same command goes on, --abandon gives up.'
      : 'Not finished. Everything is fetched and verified: the same command finishes the swap.';
  await print(io.stderr, `${text}\n`);
}

async function abandon({ io, options, dir }: Run): Promise<void> {
  for (const other of ['dryRun', 'discard', 'replace'] as const)
    if (options[other])
      throw new NostosError('INVALID_ARGUMENT', '--abandon only gives up an unfinished restore; say it alone');
  const report = await abandonRestore(restoreDeps, { dir, signal: io.signal });
  await answer(io, options, report, () => `given up: ${dir} is as it was before the restore began`);
}

export function restoreVerb(io: Io): Command {
  const command = verb('restore', {
    summary: 'Bring the state of a node here from another one, or from a backup.',
    description:
      'From a node that runs (nostos serve --listen): copies its tenants and log into --dir, verifies everything, and only then ' +
      'puts it in place. What was there before is kept in set-aside.<n>/. The directory then is a copy: it can be read and ' +
      'copied, and starts no term.\n\n' +
      'From a backup (file:<directory>, s3://<bucket>/<prefix>): brings a node back to a snapshot, a position or a time, as far ' +
      'as the archived log leads where none is named. It goes on in a new generation: positions behind that moment answer ' +
      'POSITION_LOST. What was forgotten since stays forgotten.\n\n' +
      'What is cut off, by Ctrl-C, kill -9 or a power cut, goes on when the same command is run again, and what is there ' +
      'already is not sent again: of equal files nothing but hashes, of others the pages that differ. Until all is fetched ' +
      'and verified the former state is untouched and --abandon returns to it; meanwhile nobody else can open the directory.\n\n' +
      'A source that has only the service RESTORE of the reference will do if its log goes back to the first record: ' +
      `--from ${REFERENCE_PREFIX}host:port. That service does not say whose log it is: a directory without an identity gets a ` +
      'new cluster id.\n\n' +
      `Exit code ${EXIT_CODES.ok[0]}: restored and verified; ${EXIT_CODES.failed[0]}: refused or damaged, see the message; ` +
      `${EXIT_CODES.usage[0]}: wrong command line; ${EXIT_CODES.io[0]}: no room, or the disk failed; ` +
      `${EXIT_CODES.retry[0]}: no source could be reached or went on, run it again; ${EXIT_CODES.interrupted[0]}: Ctrl-C.`,
    examples: [
      ['nostos restore --from 10.0.0.2:4041 --dir ./data --dry-run', 'see what would be fetched, reused and set aside'],
      ['nostos restore --from 10.0.0.2:4041 --dir ./data', 'do it, or go on with it'],
      [
        'nostos restore --from db1:4041 --from db2:4041 --tls-dir ./tls',
        'the better of two, the other one if it fails',
      ],
      ['nostos restore --from file:/backups/shop --dir ./data', 'a node that is lost, from its backup'],
      [
        'nostos restore --from s3://backups/shop --mode wipe_and_restore --to-time 2026-05-01T10:00:00Z',
        'back to a moment; what is there now is set aside',
      ],
      [
        'nostos restore --from file:/backups/shop --mode single_tenant --tenant acme --to-lsn 4711',
        'one tenant, into a node that runs',
      ],
      ['nostos restore --dir ./data', 'go on with a restore that was cut off, from where it began'],
      ['nostos restore --dir ./data --abandon', 'give it up; what was there before is back in use'],
    ],
  });
  return withTargetOptions(withModeOption(command))
    .addOption(withoutOption())
    .option(
      '--from <source>',
      'host:port of a node to copy from, several: the best one of one cluster; or a backup, file:… or s3:…',
      (from: string, all: string[] | undefined) => [...(all ?? []), checkSource(from)],
    )
    .option('--dry-run', 'print the plan and change nothing')
    .option('--abandon', 'give up a restore that was cut off')
    .option('--replace', 'take the state of another cluster or generation than that of the directory')
    .option('--discard', 'remove the former state at the end instead of keeping it in set-aside.<n>/')
    .option('--rate <bytes>', 'at most so much per second; K, M and G are allowed', byteRate('--rate'))
    .option('--connections <count>', 'files in flight at a time', wholeNumber('--connections'))
    .option('--tls-dir <path>', 'certificates of this node, as nostos certs makes them')
    .action(async (options: RestoreVerbOptions) => {
      const run: Run = { io, options, dir: resolve(io.cwd, options.dir) };
      if (options.connections !== undefined && (options.connections < 1 || options.connections > 16))
        throw new ExitError('usage', `--connections takes 1 to 16, got ${options.connections}`);
      if (options.abandon) return abandon(run);
      const marker = readMarker(systemDisk, run.dir);
      if (isFromBackup(options, marker)) {
        const { restoreFromBackup } = await import('./restore-backup.ts');
        return restoreFromBackup({ ...run, marker }).catch(async (error: unknown) => {
          await tellHowToGoOn(run);
          throw error;
        });
      }
      return options.dryRun ? dryRun(run) : restore(run);
    });
}
