/** The command line as a whole: its verbs, and how a wrong one is answered. */
import { Command, CommanderError } from 'commander';
import { EXIT_CODES, exitCodeOf } from './exit-codes.ts';
import type { Io } from './io.ts';
import { reportError } from './report-error.ts';
import { readVersion } from './version.ts';

const INTRODUCTION = `Replicated SQLite, embedded in your process. A node is a data directory that holds tenants, each
a SQLite database of its own; every change is a record in the node's log before it is answered.

New here? \`nostos tour\` shows it at work on real data, with nothing to set up.`;

const AFTER = `
A verb finds the node that runs on --dir and works through it; where none runs, it opens the directory itself.
Exit codes: ${Object.values(EXIT_CODES)
  .map(([code]) => code)
  .join(', ')}; docs/cli.md says what they mean.`;

/** In the order of the help. Each is loaded when it is needed: all of them take 9 MiB. */
const VERBS: Readonly<Record<string, () => Promise<(io: Io) => Command>>> = {
  tour: async () => (await import('./tour.ts')).tourVerb,
  serve: async () => (await import('./serve.ts')).serveVerb,
  status: async () => (await import('./status.ts')).statusVerb,
  tenant: async () => (await import('./tenant.ts')).tenantVerb,
  import: async () => (await import('./import.ts')).importVerb,
  export: async () => (await import('./export.ts')).exportVerb,
  sql: async () => (await import('./sql.ts')).sqlVerb,
  migrate: async () => (await import('./migrate.ts')).migrateVerb,
  log: async () => (await import('./log.ts')).logVerb,
  verify: async () => (await import('./verify.ts')).verifyVerb,
  backup: async () => (await import('./backup.ts')).backupVerb,
  restore: async () => (await import('./restore.ts')).restoreVerb,
  rejoin: async () => (await import('./rejoin.ts')).rejoinVerb,
  group: async () => (await import('./group.ts')).groupVerb,
  rollback: async () => (await import('./rollback.ts')).rollbackVerb,
  certs: async () => (await import('./certs.ts')).certsVerb,
};

/** With the verb that `args` begin with, or with all of them where that is none. */
export async function buildProgram(io: Io, args: readonly string[] = []): Promise<Command> {
  const program = new Command('nostos')
    .description(INTRODUCTION)
    .version(readVersion())
    .addHelpText('after', AFTER)
    .showHelpAfterError('(--help shows how it is used)');
  const wanted = Object.keys(VERBS).filter((name) => name === args[0]);
  for (const name of wanted.length > 0 ? wanted : Object.keys(VERBS)) program.addCommand((await VERBS[name]!())(io));
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
    const program = await buildProgram(io, args);
    await program.parseAsync(args, { from: 'user' });
    return EXIT_CODES.ok[0];
  } catch (error) {
    if (error instanceof CommanderError) return EXIT_CODES[error.exitCode === 0 ? 'ok' : 'usage'][0];
    // What was cancelled by Ctrl-C may have failed with an error of its own.
    const cause: unknown = io.signal.aborted ? io.signal.reason : error;
    await reportError(io, cause, { json: args.includes('--json') });
    return exitCodeOf(cause);
  }
}
