import { resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Command } from 'commander';
import { systemDisk } from '../base/disk.ts';
import { RejoinFile } from '../node/rejoin-file.ts';
import { describeRejoin, type RejoinProgress } from '../node/rejoin-progress.ts';
import type { NodeStatus } from '../node/types.ts';
import { print, type Io } from './io.ts';
import { bytes, count, duration, fields, style } from './render.ts';
import { answer, verb, withNode, type VerbOptions } from './verb.ts';

function describe(io: Io, status: NodeStatus, via: 'running' | 'opened'): string {
  const { log, tenants, writes, scrub, rollbackFiles, recovery } = { ...status, recovery: status.log.recovery };
  const upMs = Date.now() - status.startedAtMs;
  const running: readonly (readonly [string, unknown])[] = [
    ['running', `process ${status.pid}, for ${duration(upMs)}`],
    ['writes', `${count(writes.committed)} committed, ${count(writes.failed)} failed since it was opened`],
    [
      'other nodes',
      status.address === null
        ? 'none are served'
        : `${status.address}; ${count(status.serving.length)} copying this one` +
          status.serving.map((copy) => `, ${bytes(copy.bytesSent)} sent`).join('') +
          Object.entries(status.refusedPeers)
            .map(([reason, times]) => `; ${count(times)} refused: ${reason}`)
            .join(''),
    ],
    ...(status.backup === undefined ? [] : [['backups', describeBackup(io, status.backup)] as const]),
    ['process', `${bytes(status.residentBytes)} resident, ${count(status.openFiles)} open files`],
  ];
  return fields(io, [
    ['directory', status.dir],
    ['node', `${status.node}, ${status.role}, Nostos ${status.version}`],
    ...(status.copy === undefined || status.group !== undefined
      ? []
      : ([['copy', describeCopy(status.copy)]] as const)),
    ...(status.group === undefined ? [] : describeGroup(status.group)),
    ...(via === 'running' ? running : ([['running', 'no; opened for this look']] as const)),
    ['log', `records ${count(log.firstLsn)} to ${count(log.lastLsn)}, ${bytes(log.bytes)} in ${log.segments} segments`],
    ['committed', `up to record ${count(log.watermark)}, term ${log.term}, generation ${log.generation}`],
    [
      'last opening',
      `${count(recovery.recordsScanned)} records read in ${duration(recovery.elapsedMs)}` +
        (recovery.tornBytes > 0 ? `, ${bytes(recovery.tornBytes)} of an unfinished write cut` : ''),
    ],
    ...(rollbackFiles.count === 0
      ? []
      : ([
          ['rollback files', `${count(rollbackFiles.count)}, ${bytes(rollbackFiles.bytes)}: nostos rollback list`],
        ] as const)),
    ['tenants', `${count(tenants.total)}, ${count(tenants.open)} open`],
    [
      'damaged',
      scrub.damaged.length === 0
        ? scrub.tenants === 0
          ? 'none known; the background check has not run yet'
          : `none (${count(scrub.rows)} rows checked in the background)`
        : style(io, 'red', `${scrub.damaged.join(', ')}: run nostos verify`),
    ],
  ]);
}

function describeBackup(io: Io, { to, last, lagRecords, error }: NonNullable<NodeStatus['backup']>): string {
  const newest = last === null ? 'no snapshot yet' : `newest ${duration(Date.now() - last.atMs)} ago`;
  const failed = error === null ? '' : `; ${style(io, 'red', error.message)}`;
  return `to ${to}, ${newest}, archive ${count(lagRecords)} records behind${failed}`;
}

function describeCopy({ source, reaches }: NonNullable<NodeStatus['copy']>): string {
  const from = source === null ? 'another node' : `store ${source}`;
  return `of ${from}${reaches === null ? '' : ` up to record ${count(reaches.lsn)}`}; it appends nothing`;
}

/** Members as this node sees them; the last events, the newest last. */
function describeGroup(group: NonNullable<NodeStatus['group']>): readonly (readonly [string, unknown])[] {
  const { record, replicas, stopped, events, rejoin, progress, peerErrors } = group;
  const lead = record?.primary?.store;
  const members = (record?.members ?? []).map((store) => {
    const replica = replicas.find((one) => one.store === store);
    const lag = replica === undefined ? '' : `, ${count(Math.max(0, group.lastLsn - replica.acked))} records behind`;
    const place = store === lead ? 'primary' : record?.inSync.includes(store) === true ? 'in sync' : 'behind';
    return `${store} ${place}${lag}`;
  });
  const following = group.following === undefined ? '' : `, ${group.following.phase} from ${group.following.store}`;
  return [
    ['group', `${group.name}, ${group.role}${following}, term ${group.term}, members at ${group.address}`],
    [
      'rejoin',
      `${progress === null ? `${rejoin.action}: ${rejoin.reason}` : describeRejoin(progress)}${rejoin.advice === undefined ? '' : `. ${rejoin.advice}`}`,
    ],
    ...(progress === null ? [] : describeTried(progress)),
    ...(stopped === null ? [] : ([['stopped', `${stopped.reason} ${JSON.stringify(stopped.details)}`]] as const)),
    ...(peerErrors.count === 0
      ? []
      : ([['peer errors', `${count(peerErrors.count)}, the last one: ${peerErrors.last ?? ''}`]] as const)),
    ...members.map((member, at) => [at === 0 ? 'members' : '', member] as const),
    ...events
      .slice(-EVENTS_SHOWN)
      .map(({ atMs, text }, at) => [at === 0 ? 'last events' : '', `${new Date(atMs).toISOString()} ${text}`] as const),
  ];
}

/** The last steps, the newest last; nothing where nothing was ever tried. */
export function describeTried({
  attemptsTotal,
  attemptsEver,
  history,
}: RejoinProgress): readonly (readonly [string, unknown])[] {
  if (history.length === 0) return [];
  const since = attemptsTotal === 0 ? 'none since it came back' : `${count(attemptsTotal)} since it was last in place`;
  return [
    ['attempts', `${count(attemptsEver)} in all, ${since}`],
    ...history
      .slice(-EVENTS_SHOWN)
      .map(
        ({ atMs, action, row, outcome, why }, at) =>
          [at === 0 ? 'tried' : '', `${new Date(atMs).toISOString()} ${action} (${row}) ${outcome}: ${why}`] as const,
      ),
  ];
}

const EVENTS_SHOWN = 5;
const WATCH_MS = 1_000;
const CLEAR = '\u001B[H\u001B[J';

interface StatusOptions extends VerbOptions {
  readonly watch?: true;
}

export function statusVerb(io: Io): Command {
  return verb('status', {
    summary: 'Show what a node is and how it does.',
    examples: [
      ['nostos status', 'of the node in ./nostos-data, running or not'],
      ['nostos status --dir /var/lib/app --json', 'for a program'],
      ['nostos status --watch', 'again each second, until Ctrl-C'],
    ],
  })
    .option('--watch', 'again each second; with --json a line each')
    .action(async (options: StatusOptions) => {
      do
        await withNode(io, options, async (node) => {
          const status = await node.call('status', {});
          if (options.watch === true && io.stdoutIsTty && options.json !== true) await print(io.stdout, CLEAR);
          await answer(io, options, status, () => describe(io, status, node.via));
        }).catch(async (error: unknown) => {
          await tellWayHome(io, resolve(io.cwd, options.dir));
          throw error;
        });
      while (options.watch === true && (await pause(io.signal)));
    });
}

/** A directory that cannot be opened now may be on its way home: in another process, which has its lock, or given up. */
async function tellWayHome(io: Io, dir: string): Promise<void> {
  const { progress } = new RejoinFile(systemDisk, dir);
  if (progress === undefined) return;
  await print(io.stderr, `${fields(io, [['rejoin', describeRejoin(progress)], ...describeTried(progress)])}\n`);
}

/** False where the user has seen enough. */
function pause(signal: AbortSignal): Promise<boolean> {
  return sleep(WATCH_MS, true, { signal }).catch(() => false);
}
