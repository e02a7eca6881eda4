/** What a process that ran `nostos` ends with. `docs/cli.md` is written from this table. */
import { isNostosError, type ErrorCode } from '../base/errors.ts';

export const EXIT_CODES = {
  ok: [0, 'Done; `verify` and `tour` found everything as it must be.'],
  failed: [1, 'Failed, or `verify` or `tour` found something wrong.'],
  usage: [2, 'The command line or an argument is wrong; nothing was done.'],
  data: [65, 'The given SQL, schema or file is refused; nothing of it was kept.'],
  notFound: [66, 'There is no such tenant, file or data directory.'],
  runtime: [69, 'This Node.js or its SQLite cannot run Nostos.'],
  internal: [70, 'Nostos broke one of its own rules; please report it.'],
  io: [74, 'The disk is full, or refused a read or a write.'],
  retry: [75, 'Busy or late; nothing was kept, and the same command may be repeated.'],
  unknown: [76, 'It is not known whether the change was kept; look before you repeat it.'],
  denied: [77, 'Not allowed: no token, or one without the right.'],
  interrupted: [130, 'Ended by Ctrl-C (SIGINT); 143 by SIGTERM.'],
} as const satisfies Record<string, readonly [number, string]>;

export type ExitName = keyof typeof EXIT_CODES;

const BY_CODE: Partial<Record<ErrorCode, ExitName>> = {
  INVALID_ARGUMENT: 'usage',
  UNSUPPORTED_RUNTIME: 'runtime',
  TENANT_NOT_FOUND: 'notFound',
  BACKUP_NOT_FOUND: 'notFound',
  SCHEMA_REFUSED: 'data',
  MIGRATION_FAILED: 'data',
  SCHEMA_MISMATCH: 'data',
  SQL_FAILED: 'data',
  SQL_DENIED: 'data',
  CONSTRAINT_FAILED: 'data',
  IMPORT_REFUSED: 'data',
  DISK_FULL: 'io',
  IO_FAILED: 'io',
  UNAUTHORIZED: 'denied',
  INTERNAL: 'internal',
};

/** Ends the process with this code after its message; for what is not an error of the node. */
export class ExitError extends Error {
  override readonly name = 'ExitError';
  readonly exit: ExitName;
  readonly next: string | undefined;

  constructor(exit: ExitName, message: string, next?: string) {
    super(message);
    this.exit = exit;
    this.next = next;
  }
}

/** The reason of the signal that Ctrl-C aborts. */
export class Interrupted extends Error {
  override readonly name = 'Interrupted';
  readonly signal: 'SIGINT' | 'SIGTERM';
  readonly exitCode: number;

  constructor(signal: 'SIGINT' | 'SIGTERM') {
    super(`ended by ${signal}`);
    this.signal = signal;
    this.exitCode = signal === 'SIGINT' ? EXIT_CODES.interrupted[0] : 143;
  }
}

export function exitCodeOf(error: unknown): number {
  if (error instanceof Interrupted) return error.exitCode;
  if (error instanceof ExitError) return EXIT_CODES[error.exit][0];
  if (!isNostosError(error)) return EXIT_CODES.internal[0];
  const name = BY_CODE[error.code] ?? ({ safe: 'retry', 'with-id': 'unknown', never: 'failed' } as const)[error.retry];
  return EXIT_CODES[name][0];
}
