/** What `nostos restore` is told of backups. Apart from the work, which not every restore loads. */
import { Option, type Command } from 'commander';
import type { RestoreBackupOptions } from '../node/backup-restore.ts';
import { isBackupSource } from '../node/backup-restore-source.ts';
import type { Marker } from '../restore/local/marker.ts';
import { ExitError } from './exit-codes.ts';
import { wholeNumber, type PlainOptions } from './verb.ts';

export interface TargetOptions {
  readonly snapshot?: string;
  readonly toLsn?: number;
  readonly toTime?: number;
  readonly keys?: string;
  readonly without?: readonly string[];
}

export interface BackupRestoreOptions extends PlainOptions, TargetOptions {
  readonly from?: readonly string[];
  readonly mode?: RestoreBackupOptions['mode'] | 'single_tenant';
  readonly tenant?: string;
  readonly discard?: true;
  readonly dryRun?: true;
}

/** Options that say how far, and with which keys. */
export function withTargetOptions(command: Command): Command {
  return command
    .option('--snapshot <id>', 'of a backup: this snapshot, else the one that leads where it is asked to')
    .option('--to-lsn <lsn>', 'of a backup: up to this record', wholeNumber('--to-lsn'))
    .option('--to-time <time>', 'of a backup: up to this time, like 2026-05-01T10:00:00Z', toTime)
    .addOption(new Option('--keys <file>', 'keyring of the backup').env('NOSTOS_BACKUP_KEYS'));
}

export function withoutOption(): Option {
  return new Option('--without <tenant>', 'of a backup: leave this tenant out; may be repeated').argParser(
    (name: string, all: readonly string[] | undefined) => [...(all ?? []), name],
  );
}

export function withModeOption(command: Command): Command {
  return command
    .addOption(
      new Option(
        '--mode <mode>',
        'of a backup: new_cluster into an empty directory (default there), wipe_and_restore sets aside what is there, ' +
          'single_tenant replaces one tenant of the node on --dir, which may run',
      ).choices(['new_cluster', 'wipe_and_restore', 'single_tenant']),
    )
    .option('--tenant <name>', 'of a backup: this tenant alone');
}

function toTime(text: string): number {
  const ms = Date.parse(text);
  // Without a zone it would be another moment on every machine.
  if (Number.isNaN(ms) || !/(?:Z|[+-]\d\d:?\d\d)$/i.test(text))
    throw new ExitError(
      'usage',
      `--to-time takes a time with its zone, like 2026-05-01T10:00:00Z, got ${JSON.stringify(text)}`,
    );
  return ms;
}

/** Whether it is a backup that is restored from, by what was typed, or by the run that is resumed. */
export function isFromBackup(options: BackupRestoreOptions, marker: Marker | undefined): boolean {
  const sources = options.from ?? marker?.sources ?? [];
  const backups = sources.filter(isBackupSource);
  if (backups.length > 0 && sources.length > 1)
    throw new ExitError('usage', `${backups[0]} goes with no other source`, 'Name one backup, or nodes that run.');
  if (backups.length > 0) return true;
  const named = (['snapshot', 'toLsn', 'toTime', 'mode', 'tenant', 'without'] as const).find(
    (name) => options[name] !== undefined,
  );
  if (named === undefined) return false;
  const flag = named.replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
  throw new ExitError(
    'usage',
    `--${flag} is for backups`,
    'Name one: --from file:<directory> or --from s3://<bucket>/<prefix>.',
  );
}
