/** `nostos restore --from file:…|s3:…`: what of that verb concerns backups. */
import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import { formatPosition, parsePosition } from '../base/brands.ts';
import { systemDisk } from '../base/disk.ts';
import { isNostosError } from '../base/errors.ts';
import { DEFAULT_LIMITS } from '../base/limits.ts';
import { KeyringFile } from '../backup/repository/keyring-file.ts';
import type { KeyProvider } from '../backup/repository/keys.ts';
import {
  openBackupFeed,
  restoreBackup,
  type RestoreBackupOptions,
  type RestoreBackupReport,
} from '../node/backup-restore.ts';
import { parseBackupSource } from '../node/backup-restore-source.ts';
import { restoreTenant, type RestoreTenantReport, type TenantReplacer } from '../node/backup-restore-tenant.ts';
import type { Marker } from '../restore/local/marker.ts';
import { assertSpace, lookAhead } from '../restore/local/outlook.ts';
import { ownedByNode } from '../restore/local/swap.ts';
import { absoluteUrl } from './backup-options.ts';
import type { BackupRestoreOptions, TargetOptions } from './restore-backup-options.ts';
import { ExitError } from './exit-codes.ts';
import type { Io } from './io.ts';
import { callWithDisplay } from './progress.ts';
import { bytes, count, duration, fields, style } from './render.ts';
import { answer, callWithProgress, withNode, type PlainOptions } from './verb.ts';

/** What the library takes, from what was typed. */
export function targetOf(io: Io, options: TargetOptions): Omit<RestoreBackupOptions, 'dir' | 'mode' | 'from'> {
  const { snapshot, toLsn, toTime: toTimeMs, without } = options;
  return {
    ...(snapshot === undefined ? {} : { snapshot }),
    ...(toLsn === undefined ? {} : { toLsn }),
    ...(toTimeMs === undefined ? {} : { toTimeMs }),
    ...(without === undefined ? {} : { without }),
    ...(options.keys === undefined ? {} : { keys: keyring(resolve(io.cwd, options.keys)) }),
    signal: io.signal,
  };
}

function keyring(path: string): KeyProvider {
  if (existsSync(path)) return KeyringFile.open(path);
  throw new ExitError('notFound', `there is no keyring ${path}`);
}

/** A path means the same whichever directory the command is run again from. */
export function sourceAt(io: Io, from: string): string {
  const { url } = parseBackupSource(from);
  return `${absoluteUrl(io, url)}${from.slice(url.length)}`;
}

interface Run {
  readonly io: Io;
  readonly options: BackupRestoreOptions;
  readonly dir: string;
  readonly marker: Marker | undefined;
}

function optionsOf({ io, options, dir, marker }: Run): RestoreBackupOptions {
  const [from] = options.from ?? [];
  const isEmpty = !systemDisk.isDirectory(dir) || !systemDisk.list(dir).some(ownedByNode);
  const mode = options.mode ?? (isEmpty || marker !== undefined ? 'new_cluster' : undefined);
  if (mode === undefined || mode === 'single_tenant')
    throw new ExitError(
      'usage',
      `${dir} has a node in it`,
      'Say --mode wipe_and_restore to set that aside and restore in its place, or give another --dir.',
    );
  return {
    dir,
    // Who goes on with a run that was cut off has decided that before.
    mode: marker === undefined ? mode : 'wipe_and_restore',
    discard: options.discard === true,
    ...(from === undefined ? {} : { from: sourceAt(io, from) }),
    ...targetOf(io, options),
    onWarning: (message) => void io.stderr.write(`${style(io, 'dim', message)}\n`),
  };
}

export async function restoreFromBackup(run: Run): Promise<void> {
  const { io, options } = run;
  if (options.mode === 'single_tenant' || options.tenant !== undefined) return restoreOne(run);
  const wanted = optionsOf(run);
  if (options.dryRun) return dryRun(run, wanted);
  const report = await callWithDisplay(io, (onProgress) => restoreBackup({ ...wanted, onProgress }));
  await answer(io, options, report, () => describeReport(io, report));
}

async function dryRun({ io, options, dir, marker }: Run, wanted: RestoreBackupOptions): Promise<void> {
  const { feed, to } = await openBackupFeed(wanted, marker, { signal: io.signal });
  try {
    const { plan } = feed;
    const outlook = lookAhead(systemDisk, { dir, plan, reserveBytes: DEFAULT_LIMITS.restoreReserveBytes });
    const { snapshot, point, time } = to;
    const timeMs = Number(time >> 16n);
    const result = { dryRun: true, dir, state: marker?.phase ?? 'as-it-was', snapshot: snapshot.id, to: point, timeMs };
    const lines: [string, unknown][] = [
      ['directory', dir],
      ['snapshot', `${snapshot.id}, at record ${count(snapshot.position.lsn)}`],
      ['to', `record ${count(point.lsn)} of ${new Date(timeMs).toISOString()}, then a new generation`],
      ['files', `${bytes(outlook.total.bytes)} in ${count(outlook.total.files)} files`],
      [
        'set aside',
        outlook.setAside.names.length === 0
          ? 'nothing'
          : `${outlook.setAside.names.join(', ')} → ${outlook.setAside.as}/`,
      ],
      ['room', `${bytes(outlook.space.neededBytes)} needed, of ${bytes(outlook.space.freeBytes)}`],
    ];
    await answer(io, options, { ...result, ...outlook }, () => fields(io, lines));
    assertSpace(dir, outlook);
  } finally {
    await feed.close();
  }
}

async function restoreOne({ io, options, dir }: Run): Promise<void> {
  const { tenant, from = [], mode = 'single_tenant', without, dryRun: dry, discard } = options;
  if (mode !== 'single_tenant' || tenant === undefined || from[0] === undefined)
    throw new ExitError('usage', '--mode single_tenant goes with --tenant <name> and --from <backup>');
  const other = [without && '--without', dry && '--dry-run', discard && '--discard'].find((one) => one);
  if (other !== undefined) throw new ExitError('usage', `${other} is for whole nodes`);
  await replaceBy({ io, options, dir }, (into) =>
    callWithDisplay(io, (onProgress) =>
      restoreTenant(into, { ...targetOf(io, options), from: sourceAt(io, from[0]!), tenant, onProgress }),
    ),
  );
}

/** Works through the node on `dir`, which may run in another process; the file is made in this one. */
export async function replaceBy(
  { io, options, dir }: { readonly io: Io; readonly options: PlainOptions; readonly dir: string },
  work: (into: TenantReplacer) => Promise<RestoreTenantReport>,
): Promise<void> {
  const report = await withNode(io, { ...options, dir }, (node) =>
    work({
      has: (tenant) =>
        node.call('tenant.status', { tenant }).then(
          () => true,
          (error: unknown) => {
            if (isNostosError(error, 'TENANT_NOT_FOUND')) return false;
            throw error;
          },
        ),
      replace: async (tenant, file, { at, uuid } = {}) => {
        const input = {
          tenant,
          file,
          ...(at === undefined ? {} : { at: formatPosition(at) }),
          ...(uuid === undefined ? {} : { uuid }),
        };
        const done = await callWithProgress(io, node, { name: 'tenant.replace', input });
        return { ...done, position: parsePosition(done.position) };
      },
    }),
  );
  await answer(io, options, report, () => {
    const lines: [string, unknown][] = [
      ['tenant', report.tenant],
      ['snapshot', report.snapshot],
      ['to', `record ${count(report.at.lsn)} of ${new Date(report.timeMs).toISOString()}`],
      ['rows', count(report.rows)],
      ['forgotten', `${count(report.forgotten)} rows were forgotten since, and stay so`],
      ['since', `${formatPosition(report.position)}; change feeds begin anew there`],
    ];
    return `${fields(io, lines)}\n\n${style(io, 'green', 'in place')} in ${duration(report.elapsedMs)}`;
  });
}

export function describeBackup({
  backup,
  fetched,
  verified,
}: Pick<RestoreBackupReport, 'backup' | 'fetched' | 'verified'>): [string, unknown][] {
  const lines: [string, unknown][] = [];
  if (backup !== undefined) {
    lines.push(
      ['snapshot', backup.snapshot],
      [
        'to',
        `record ${count(backup.parent.lsn)} of ${new Date(backup.timeMs).toISOString()}; ${count(backup.records)} archived records were read`,
      ],
      ['forgotten', `${count(backup.forgottenRows)} rows of the backup were forgotten since, and stay so`],
    );
    if (backup.leftOut.length > 0) lines.push(['left out', backup.leftOut.join(', ')]);
  }
  if (fetched !== undefined)
    lines.push([
      'fetched',
      `${bytes(fetched.bytesOnWire)}, ${bytes(fetched.bytesReused)} were there, in ${duration(fetched.elapsedMs)}`,
    ]);
  if (verified !== undefined)
    lines.push(['verified', `${count(verified.rows)} rows of ${count(verified.tenants)} tenants`]);
  return lines;
}

function describeReport(io: Io, report: RestoreBackupReport): string {
  const { setAside, identity } = report;
  const lines: [string, unknown][] = [
    ['directory', report.dir],
    ['node', `${identity.node}, in the new generation ${identity.generation}`],
    ...describeBackup(report),
    ['set aside', setAside === null ? 'nothing' : `${setAside}/ holds what was there; remove it when you like`],
  ];
  return `${fields(io, lines)}\n\n${style(io, 'green', 'restored and verified')} in ${duration(report.elapsedMs)}`;
}
