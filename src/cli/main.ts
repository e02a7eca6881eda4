/** Entry of the `nostos` process: signals in, exit code out. `bin/nostos.js` calls it once the runtime is good enough. */
import { EXIT_CODES, Interrupted } from './exit-codes.ts';
import { processIo } from './io.ts';
import { runCli } from './program.ts';

/** The first signal cancels cleanly, the second one does not wait for that. */
function interruptSignal(): AbortSignal {
  const abort = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM'] as const)
    process.on(signal, () => {
      const reason = new Interrupted(signal);
      if (abort.signal.aborted) process.exit(reason.exitCode);
      abort.abort(reason);
    });
  return abort.signal;
}

export async function main(args: readonly string[]): Promise<void> {
  // `nostos log | head`: nobody reads any more, and that is no failure.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    process.exit(error.code === 'EPIPE' ? EXIT_CODES.ok[0] : EXIT_CODES.io[0]);
  });
  process.exitCode = await runCli(args, processIo(interruptSignal()));
}
