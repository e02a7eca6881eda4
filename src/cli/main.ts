/** Entry of the `nostos` process: signals in, exit code out. `bin/nostos.js` calls it once the runtime is good enough. */
import { setFlagsFromString } from 'node:v8';
import { EXIT_CODES, Interrupted } from './exit-codes.ts';
import { processIo } from './io.ts';
import { runCli } from './program.ts';

const SIGNALS = ['SIGINT', 'SIGTERM'] as const;

/** The first signal cancels cleanly, the second one does not wait for that. */
function interruptSignal(): AbortSignal {
  const abort = new AbortController();
  for (const signal of SIGNALS)
    process.on(signal, () => {
      if (abort.signal.aborted) dieBy(signal);
      abort.abort(new Interrupted(signal));
    });
  return abort.signal;
}

/**
 * Ends as if the signal had not been caught: shells then know that it was a signal (130 or 143), and a thread that sits
 * in a long statement of SQLite, which nothing can interrupt, does not keep the process.
 */
function dieBy(signal: Interrupted['signal']): void {
  process.removeAllListeners(signal);
  process.kill(process.pid, signal);
}

export async function main(args: readonly string[]): Promise<void> {
  // The nursery stays at 1 MiB: a larger one costs 5 MiB and makes nothing here faster (`npm run bench -- --only writers-64`).
  setFlagsFromString('--semi-space-growth-factor=1');
  setFlagsFromString('--expose-gc'); // for the threads of this process: `base/collect.ts`
  // `nostos log | head`: nobody reads any more, and that is no failure.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    process.exit(error.code === 'EPIPE' ? EXIT_CODES.ok[0] : EXIT_CODES.io[0]);
  });
  const interrupt = interruptSignal();
  process.exitCode = await runCli(args, processIo(interrupt));
  const { reason } = interrupt as { reason: unknown };
  if (reason instanceof Interrupted && process.exitCode === reason.exitCode) dieBy(reason.signal);
}
