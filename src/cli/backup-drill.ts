import { resolve } from 'node:path';
import type { Command } from 'commander';
import { drillBackup } from '../node/backup-restore-drill.ts';
import { placeOption } from './backup-options.ts';
import type { Io } from './io.ts';
import { callWithDisplay } from './progress.ts';
import { duration, fields, style } from './render.ts';
import { describeBackup, sourceAt, targetOf } from './restore-backup.ts';
import { withTargetOptions, withoutOption, type TargetOptions } from './restore-backup-options.ts';
import { answer, plainVerb, type PlainOptions } from './verb.ts';

interface DrillVerbOptions extends PlainOptions, TargetOptions {
  readonly from: string;
  readonly scratch?: string;
}

/** `nostos backup drill`. */
export function drillVerb(io: Io): Command {
  const command = plainVerb('drill', {
    summary: 'Try whether a backup comes back, and how long that takes.',
    description:
      'Restores into a directory of its own, verifies everything, opens the node, and removes it all again. What it reports ' +
      'as recovery time is what a service would be away for on this machine.',
    examples: [
      ['nostos backup drill --from file:/backups/shop', 'the newest state'],
      ['nostos backup drill --from s3://backups/shop --keys keyring.json --scratch /mnt/big', 'where there is room'],
    ],
  })
    .addOption(placeOption('--from'))
    .addOption(withoutOption())
    .option('--scratch <directory>', 'where the directory is made; that for temporary files where absent');
  return withTargetOptions(command).action(async (options: DrillVerbOptions) => {
    const report = await callWithDisplay(io, (onProgress) =>
      drillBackup({
        ...targetOf(io, options),
        from: sourceAt(io, options.from),
        ...(options.scratch === undefined ? {} : { scratch: resolve(io.cwd, options.scratch) }),
        onProgress,
      }),
    );
    await answer(io, options, report, () => {
      const { restoreMs, openMs, recoveryMs } = report;
      const lines = [
        ...describeBackup(report),
        ['time', `${duration(restoreMs)} to restore and verify, ${duration(openMs)} to open`] as [string, unknown],
      ];
      return `${fields(io, lines)}\n\n${style(io, 'green', 'it comes back')}: recovery time ${duration(recoveryMs)}`;
    });
  });
}
