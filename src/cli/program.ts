/** The command line as a whole: its verbs, and how a wrong one is answered. */
import { Command, CommanderError } from 'commander';
import { certsVerb } from './certs.ts';
import { EXIT_CODES, exitCodeOf } from './exit-codes.ts';
import { exportVerb } from './export.ts';
import { importVerb } from './import.ts';
import type { Io } from './io.ts';
import { logVerb } from './log.ts';
import { migrateVerb } from './migrate.ts';
import { reportError } from './report-error.ts';
import { restoreVerb } from './restore.ts';
import { serveVerb } from './serve.ts';
import { sqlVerb } from './sql.ts';
import { statusVerb } from './status.ts';
import { tenantVerb } from './tenant.ts';
import { tourVerb } from './tour.ts';
import { verifyVerb } from './verify.ts';
import { readVersion } from './version.ts';

const INTRODUCTION = `Replicated SQLite, embedded in your process. A node is a data directory that holds tenants, each
a SQLite database of its own; every change is a record in the node's log before it is answered.

New here? \`nostos tour\` shows it at work on real data, with nothing to set up.`;

const AFTER = `
A verb finds the node that runs on --dir and works through it; where none runs, it opens the directory itself.
Exit codes: ${Object.values(EXIT_CODES)
  .map(([code]) => code)
  .join(', ')}; docs/cli.md says what they mean.`;

export function buildProgram(io: Io): Command {
  const program = new Command('nostos')
    .description(INTRODUCTION)
    .version(readVersion())
    .addHelpText('after', AFTER)
    .showHelpAfterError('(--help shows how it is used)');
  for (const build of [
    tourVerb,
    serveVerb,
    statusVerb,
    tenantVerb,
    importVerb,
    exportVerb,
    sqlVerb,
    migrateVerb,
    logVerb,
    verifyVerb,
    restoreVerb,
    certsVerb,
  ])
    program.addCommand(build(io));
  for (const command of allCommands(program))
    command
      .exitOverride()
      .showHelpAfterError('(--help shows how it is used)')
      .configureOutput({
        writeOut: (text) => io.stdout.write(text),
        writeErr: (text) => io.stderr.write(text),
        getOutHelpWidth: () => Math.min(io.columns, 100),
        getErrHelpWidth: () => Math.min(io.columns, 100),
      });
  return program;
}

export function allCommands(command: Command): Command[] {
  return [command, ...command.commands.flatMap(allCommands)];
}

/** Runs one command line and resolves with its exit code; never rejects. */
export async function runCli(args: readonly string[], io: Io): Promise<number> {
  try {
    await buildProgram(io).parseAsync(args, { from: 'user' });
    return EXIT_CODES.ok[0];
  } catch (error) {
    if (error instanceof CommanderError) return EXIT_CODES[error.exitCode === 0 ? 'ok' : 'usage'][0];
    // What was cancelled by Ctrl-C may have failed with an error of its own.
    const cause: unknown = io.signal.aborted ? io.signal.reason : error;
    await reportError(io, cause, { json: args.includes('--json') });
    return exitCodeOf(cause);
  }
}
