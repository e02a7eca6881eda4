/**
 * The one error class of Nostos. `code` says what happened, `retry` what the caller may do next:
 *
 * - `never`: the same call fails again; change the input or the setup first.
 * - `safe`: nothing happened; the same call may be repeated as it is.
 * - `with-id`: it may have happened; repeat it only as `write(fn, { id })`, which answers with the first result.
 *
 * The list of codes is append-only: a code that was once published keeps its meaning.
 */
export type ErrorCode = keyof typeof ERROR_CODES;

export type Retry = 'never' | 'safe' | 'with-id';

/** Every code with what it means and how it may be retried. `docs/errors.md` is written from this table. */
export const ERROR_CODES = {
  INVALID_ARGUMENT: ['never', 'An argument is outside of what the call accepts.'],
  UNSUPPORTED_RUNTIME: ['never', 'This Node.js or its SQLite is too old, or lacks something that Nostos needs.'],
  UNSUPPORTED_FORMAT: ['never', 'The data was written by a newer Nostos, or is not of Nostos at all.'],
  DIRECTORY_LOCKED: ['safe', 'Another process has the data directory open.'],
  DIRECTORY_FOREIGN: ['never', 'The data directory belongs to another cluster or node.'],
  COORDINATOR_REGRESSED: ['never', 'The coordinator holds an older record than one that was seen before.'],
  COORDINATOR_CONFLICT: ['safe', 'Another writer replaced the record first.'],
  NOT_PRIMARY: ['safe', 'This node does not lead its group; details name who does.'],
  CLOSED: ['never', 'The node, tenant or transaction is closed.'],
  LOG_DAMAGED: ['never', 'A record of the log is damaged; details name segment, offset and LSN.'],
  LOG_PRUNED: ['never', 'The log no longer holds the asked range; details name the first LSN that it holds.'],
  POSITION_LOST: ['never', 'The position belongs to another history.'],
  RESERVATION_EXPIRED: ['safe', 'The reservation on the log made no progress in time and was given up.'],
  DISK_FULL: ['safe', 'No space is left; nothing of this call was kept.'],
  IO_FAILED: ['safe', 'The disk refused a read or a write; nothing of this call was kept.'],
  OUTCOME_UNKNOWN: ['with-id', 'It is not known whether the write was kept; details name its position.'],
  TENANT_NOT_FOUND: ['never', 'There is no tenant of this name.'],
  TENANT_EXISTS: ['never', 'There is a tenant of this name already.'],
  TENANT_BUSY: ['safe', 'The content of this tenant is being replaced; one call at a time does that.'],
  TENANT_RESET: [
    'never',
    'The content of a tenant was replaced: a change feed begins anew. Details have the position; read all rows at it or later.',
  ],
  TENANT_DAMAGED: ['never', 'The database file of a tenant is damaged or disagrees with the log.'],
  SCHEMA_REFUSED: [
    'never',
    'The schema has something that cannot be replicated; details name each object and its remedy.',
  ],
  MIGRATION_FAILED: ['never', 'A migration failed and was undone.'],
  SCHEMA_MISMATCH: ['never', 'The tenant has a schema version that these migrations do not lead to.'],
  SQL_FAILED: ['never', 'SQLite refused the statement; the transaction is undone.'],
  SQL_DENIED: ['never', 'The statement is not allowed here.'],
  CONSTRAINT_FAILED: ['never', 'A constraint of the schema is violated; the transaction is undone.'],
  INTEGER_OUT_OF_RANGE: ['never', 'An integer does not fit a JavaScript number; read with int64: "bigint".'],
  TRANSACTION_DOOMED: ['never', 'A statement failed earlier in this transaction, so it cannot go on.'],
  TRANSACTION_TOO_LARGE: ['never', 'The transaction changes more than the limit allows.'],
  TRANSACTION_TIMEOUT: ['safe', 'The transaction took longer than the limit allows and was undone.'],
  QUERY_TIMEOUT: ['safe', 'The query took longer than its limit and was ended.'],
  QUEUE_FULL: ['safe', 'Too many calls are waiting; try again later.'],
  CHANGESET_INVALID: ['never', 'The bytes are not a changeset.'],
  IMPORT_REFUSED: ['never', 'The file cannot be imported; details name each object and its remedy.'],
  IMPORT_UNFINISHED: [
    'never',
    'An import into this tenant runs or was cut off; wait for it, import again, or drop the tenant.',
  ],
  FILE_EXISTS: ['never', 'The target file exists already.'],
  UNAUTHORIZED: ['never', 'The request has no token, or one without the right that it needs.'],
  FRAME_TOO_LARGE: ['never', 'A message is larger than the limit allows.'],
  VERIFY_FAILED: ['never', 'A check of the data found damage; details name it.'],
  TERM_ENDED: ['safe', 'The term of this log has ended; nothing is appended before a higher one starts.'],
  CLOCK_DRIFT: ['safe', 'A clock is further from another one than the limit allows.'],
  COORDINATOR_DAMAGED: ['never', 'The record of the coordinator cannot be read; nothing is decided on it.'],
  INTERNAL: ['never', 'Nostos broke one of its own rules; please report it.'],
  CHANNEL_CLOSED: ['safe', 'The channel is closed, by this side or by its peer; connect again.'],
  NETWORK_FAILED: ['safe', 'A connection could not be made, or was lost in the middle of a message.'],
  NETWORK_TIMEOUT: ['safe', 'The peer did not answer, or did not take what was sent, in time.'],
  PROTOCOL_ERROR: ['never', 'A peer sent bytes that its protocol does not allow.'],
  VERSION_MISMATCH: [
    'never',
    'The peer speaks no version of the service that this side speaks; details name both ranges.',
  ],
  PEER_REFUSED: ['never', 'The certificate of a peer does not pass, or the peer refused ours; details say why.'],
  RESTORE_UNFINISHED: [
    'never',
    'A restore into this data directory was cut off; run it again to resume, or give it up with --abandon.',
  ],
  RESTORE_FAILED: [
    'safe',
    'What came from the source is not what it said, or cannot be sent; what was there is unchanged.',
  ],
  RESTORE_STATE: ['never', 'This restore cannot do that in the state that it is in; one instance is one attempt.'],
  RESTORE_TOO_LARGE: ['never', 'The source announces more files or bytes than is allowed; nothing was changed.'],
  TRANSFER_DAMAGED: [
    'safe',
    'Bytes of a file arrived otherwise than the source read them; details name item and range.',
  ],
  RECORD_REFUSED: ['never', 'A record from another node does not continue this log; details say why.'],
  NO_PROVIDER: ['safe', 'No member can serve a copy now; details name each one and why.'],
  WATERMARK_VIOLATION: ['never', 'The common point lies below what is known to be committed; nothing was dropped.'],
  TAIL_READ_FAILED: ['safe', 'A divergent tail could not be read whole and in order; nothing was dropped.'],
  TAIL_PERSIST_FAILED: ['safe', 'A divergent tail could not be preserved in a file; nothing was dropped.'],
  RECOVER_FAILED: ['safe', 'The common point could not be reached; all that is to be dropped is in the rollback file.'],
  ROLLBACK_REFUSED: ['never', 'This rollback must not be made; details say why, and nothing was dropped.'],
  ROLLBACK_TOO_LARGE: ['never', 'A divergent tail exceeds a limit; nothing was dropped.'],
  ROLLBACK_FILE_DAMAGED: ['never', 'The bytes are not a whole rollback file; details name the offset.'],
  COORDINATOR_UNAVAILABLE: [
    'safe',
    'The coordinator does not answer; whether a record was replaced is open, and the same call finds out.',
  ],
  HANDOVER_FAILED: [
    'safe',
    'No successor took over in time; details tell the term, and the message whether this node goes on leading. See that a replica is in sync.',
  ],
  COORDINATOR_UNSUITABLE: [
    'never',
    'The coordinator refuses, or cannot do what groups need; the message says what to change.',
  ],
  GROUP_EXISTS: ['never', 'The coordinator has a group of this name, or the directory belongs to one.'],
  GROUP_UNRECOVERABLE: [
    'never',
    'What was found of a group does not show which records were committed; details say what is missing.',
  ],
  RECOVERY_UNFINISHED: [
    'never',
    'A recovery of a group with a loss was cut off in this directory; nostos group recover finishes it, or gives it up.',
  ],
  REJOIN_FAILED: [
    'safe',
    'A node could not come back to its group by itself; details say what was tried, how often, and why it failed.',
  ],
  FORGET_PENDING: [
    'with-id',
    'What was forgotten is committed here and not yet in every ledger; that is tried until it is. Details name who lacks it.',
  ],
  BACKUP_NOT_FOUND: ['never', 'The backend has no backup repository, or the repository no snapshot, of this name.'],
  BACKUP_DAMAGED: ['never', 'Bytes of a backup are missing, or not those that were written; details name the object.'],
  BACKUP_KEY_MISSING: ['never', 'Content of a backup is encrypted with a key that is not there, or was destroyed.'],
  BACKUP_REFUSED: ['never', 'A backup does not fit where it shall be restored to; nothing was changed.'],
  BACKUP_LOCKED: ['safe', 'Another run works on the backup repository; details name it.'],
  BACKUP_LOCK_LOST: [
    'safe',
    'Others gave this run on a backup repository up, since it showed no life; it has no effect.',
  ],
  ARCHIVE_GAP: ['never', 'The archived log lacks records that are needed; details name the missing LSNs.'],
  BACKEND_UNAVAILABLE: ['safe', 'The storage of a backup does not answer; the same call finds out what was kept.'],
  BACKEND_UNSUITABLE: ['never', 'The storage of a backup refuses a request; the message says what to change.'],
} as const satisfies Record<string, readonly [Retry, string]>;

export interface NostosErrorOptions {
  readonly details?: Readonly<Record<string, unknown>>;
  readonly cause?: unknown;
}

export class NostosError extends Error {
  override readonly name = 'NostosError';
  readonly code: ErrorCode;
  readonly retry: Retry;
  readonly details: Readonly<Record<string, unknown>>;

  constructor(code: ErrorCode, message: string, options: NostosErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.retry = ERROR_CODES[code][0];
    this.details = options.details ?? {};
  }

  /** The shape in which an error crosses a thread, a socket or `--json`. */
  toJSON(): SerializedError {
    return { code: this.code, message: this.message, retry: this.retry, details: this.details };
  }
}

export interface SerializedError {
  readonly code: ErrorCode;
  readonly message: string;
  readonly retry: Retry;
  readonly details: Readonly<Record<string, unknown>>;
}

export function isNostosError(error: unknown, code?: ErrorCode): error is NostosError {
  return error instanceof NostosError && (code === undefined || error.code === code);
}

/** Rebuilds an error that came over a thread or a socket; anything unknown becomes `INTERNAL`. */
export function deserializeError(value: unknown): NostosError {
  const shape = (typeof value === 'object' && value !== null ? value : {}) as Partial<SerializedError>;
  const code = typeof shape.code === 'string' && shape.code in ERROR_CODES ? shape.code : 'INTERNAL';
  const message = typeof shape.message === 'string' ? shape.message : `unreadable error: ${String(value)}`;
  return new NostosError(code, message, { details: shape.details ?? {} });
}

/** The serializable form of anything that was thrown. */
export function serializeError(error: unknown): SerializedError {
  if (error instanceof NostosError) return error.toJSON();
  const message = error instanceof Error ? `${error.name}: ${error.message}` : String(error);
  return { code: 'INTERNAL', message, retry: 'never', details: {} };
}
