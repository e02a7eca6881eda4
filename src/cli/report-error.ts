/** How the CLI says that something failed: what, by which code, and what to do next. */
import { isNostosError, serializeError, type ErrorCode } from '../base/errors.ts';
import { stringifyJson } from '../node/json-values.ts';
import { EXIT_CODES, ExitError, Interrupted } from './exit-codes.ts';
import { print, type Io } from './io.ts';
import { style } from './render.ts';

/** What to do next, where the message cannot know it. */
const NEXT_STEPS: Partial<Record<ErrorCode, string>> = {
  DIRECTORY_LOCKED:
    'Another process has it open without an admin socket; end that process, or try again when it is done.',
  TENANT_NOT_FOUND: 'nostos tenant list shows those that exist; nostos tenant create makes one.',
  TENANT_EXISTS: 'Choose another name, or say --if-not-exists.',
  FILE_EXISTS: 'Choose another file, or say --overwrite.',
  SQL_DENIED: 'Tables are made and changed by nostos migrate; transactions and attached files are the node’s own.',
  QUEUE_FULL: 'The node is busy; try again in a moment.',
  QUERY_TIMEOUT: 'Narrow the query, or give it an index.',
  DISK_FULL: 'Make room on the disk; the node goes on by itself.',
  LOG_DAMAGED: 'nostos verify lists all damage with what to do.',
  TENANT_DAMAGED: 'nostos verify lists all damage with what to do.',
  OUTCOME_UNKNOWN: 'Look whether it was kept before you repeat it; writes with --id may be repeated at once.',
  ROLLBACK_FILE_DAMAGED: 'What stands before the damage can be shown and exported; look for another copy of the file.',
  UNSUPPORTED_FORMAT: 'Use the version of Nostos that wrote it, or a newer one.',
  INTERNAL: 'Please report this with what you did.',
};

function nextStep(error: unknown): string | undefined {
  if (error instanceof ExitError) return error.next;
  return isNostosError(error) ? NEXT_STEPS[error.code] : undefined;
}

/** On stderr, so that stdout holds answers only. */
export async function reportError(io: Io, error: unknown, { json }: { readonly json: boolean }): Promise<void> {
  if (error instanceof Interrupted) return;
  const next = nextStep(error);
  if (json) {
    const known =
      error instanceof ExitError
        ? { code: 'CLI', message: error.message, retry: 'never', details: { exit: EXIT_CODES[error.exit][0] } }
        : serializeError(error);
    await print(io.stderr, `${stringifyJson({ error: { ...known, ...(next === undefined ? {} : { next }) } }, 2)}\n`);
    return;
  }
  const code = isNostosError(error) ? style(io, 'dim', ` [${error.code}]`) : '';
  const text = error instanceof Error ? error.message : String(error);
  const stack =
    !isNostosError(error) && !(error instanceof ExitError) && error instanceof Error ? `\n${error.stack}` : '';
  await print(io.stderr, `${style(io, 'red', 'error:')} ${text}${code}${stack}\n`);
  if (next !== undefined) await print(io.stderr, `  → ${next}\n`);
}
