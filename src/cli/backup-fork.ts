import { resolve } from 'node:path';
import { Option, type Command } from 'commander';
import { forkTenant } from '../node/backup-restore-tenant.ts';
import { placeOption } from './backup-options.ts';
import type { Io } from './io.ts';
import { callWithDisplay } from './progress.ts';
import { replaceBy, sourceAt, targetOf } from './restore-backup.ts';
import { withTargetOptions, type TargetOptions } from './restore-backup-options.ts';
import { verb, type VerbOptions } from './verb.ts';

interface ForkVerbOptions extends VerbOptions, TargetOptions {
  readonly from: string;
  readonly tenant: string;
  readonly as: string;
}

/** `nostos backup fork`. */
export function forkVerb(io: Io): Command {
  const command = verb('fork', {
    summary: 'Bring a tenant of a backup into a node under a new name.',
    description:
      'The fork is a tenant of its own, beside the one that it comes from, which nobody touches. What was forgotten of that ' +
      'one since is not in it. The node on --dir may run.',
    examples: [
      [
        'nostos backup fork --from file:/backups/shop --tenant acme --as acme-may --to-time 2026-05-01T10:00:00Z',
        'as it was',
      ],
    ],
  })
    .addOption(placeOption('--from'))
    .addOption(new Option('--tenant <name>', 'of the backup').makeOptionMandatory())
    .requiredOption('--as <name>', 'a name that is free');
  return withTargetOptions(command).action(async (options: ForkVerbOptions) => {
    const { tenant, as, from } = options;
    await replaceBy({ io, options, dir: resolve(io.cwd, options.dir) }, (into) =>
      callWithDisplay(io, (onProgress) =>
        forkTenant(into, { ...targetOf(io, options), from: sourceAt(io, from), tenant, as, onProgress }),
      ),
    );
  });
}
