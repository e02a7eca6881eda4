/**
 * Runs the transactions of one group inside one SQLite transaction of a tenant and captures what they changed.
 *
 * Two ways, chosen per group (ADR 0002 has the measurements):
 *
 * - shared: one session spans the group, so one record carries the changes of all its transactions. A session of its
 *   own costs each transaction about 20 us, four times what the transaction itself does.
 * - separate: each transaction has its own session and its own record. Used where SQLite may roll the whole group
 *   back in the midst of one transaction (a conflict action ROLLBACK in the schema), and to run a group again that was
 *   spoilt in the shared way by a full disk: then the transactions that had succeeded run once more.
 *
 * Either way each transaction stands under its own savepoint, and one that fails is undone alone; one that is alone in
 * its group needs none, since then everything is undone.
 *
 * After the call the SQLite transaction is open and holds exactly the transactions of `records` (`intact`), or SQLite
 * has rolled it back (`spoilt`); then the records, if any, are still what the log must get: their rows come back from
 * there.
 */
import { NostosError } from '../base/errors.ts';
import type { ForgottenKey } from '../log/ledger.ts';
import type { Connection } from './connection.ts';
import type { ForgetContext } from './forget.ts';
import { fromSqlite, sqliteCode } from './sqlite-errors.ts';
import type { Int64Mode } from './values.ts';
import { WriterTransaction, isThenable } from './writer-transaction.ts';

export interface Job {
  readonly int64: Int64Mode;
  run(tx: WriterTransaction, connection: Connection): unknown;
}

/** What becomes one record. */
export interface Captured {
  readonly changeset: Uint8Array;
  readonly forgotten: readonly ForgottenKey[];
}

export type Outcome<J extends Job> =
  | { readonly kind: 'done'; readonly job: J; readonly result: unknown; readonly forgets: boolean }
  | { readonly kind: 'failed'; readonly job: J; readonly error: unknown };

export interface GroupResult<J extends Job> {
  readonly state: 'intact' | 'spoilt';
  /** One per job that ran, in order. */
  readonly outcomes: Outcome<J>[];
  readonly records: Captured[];
  /** Jobs that did not run; they go into the next group. */
  readonly left: J[];
}

export interface GroupOptions {
  readonly changesetBytesMax: number;
  /** A group ends after so many changed rows, so that no group grows far beyond one transaction. */
  readonly changesMax: number;
  /** Whether the schema has keys that SQLite checks only at COMMIT. */
  readonly deferredKeys: boolean;
  readonly forgetting: ForgetContext;
}

const EMPTY = new Uint8Array(0);
const NOTHING: readonly ForgottenKey[] = [];
const SAVEPOINT = 'savepoint nostos_tx';
const RELEASE = 'release nostos_tx';
const ROLLBACK_TO = 'rollback to nostos_tx';

/** SQLite codes that say the storage failed rather than the transaction. */
const STORAGE_CODES = new Set([7 /* NOMEM */, 10 /* IOERR */, 13 /* FULL */]);

export function runGroup<J extends Job>(
  connection: Connection,
  jobs: readonly J[],
  mode: 'shared' | 'separate',
  options: GroupOptions,
): GroupResult<J> {
  begin(connection);
  if (mode === 'separate') return runSeparate(connection, jobs, options);
  const shared = runShared(connection, jobs, options);
  if (shared !== 'again') return shared;
  if (connection.inTransaction) connection.internal('rollback').run();
  begin(connection);
  return runSeparate(connection, jobs, options);
}

export function begin(connection: Connection): void {
  try {
    connection.internal('begin immediate').run();
  } catch (error) {
    throw fromSqlite(error);
  }
}

function runShared<J extends Job>(
  connection: Connection,
  jobs: readonly J[],
  options: GroupOptions,
): GroupResult<J> | 'again' {
  const outcomes: Outcome<J>[] = [];
  const session = connection.database.createSession();
  try {
    let changes = 0;
    const forgotten: ForgottenKey[] = [];
    for (const job of jobs) {
      const tx = new WriterTransaction(connection, job.int64, options.forgetting);
      const outcome = runJob(connection, job, tx, { ...options, alone: jobs.length === 1 });
      if (!connection.inTransaction) return jobs.length === 1 ? spoilt([outcome], [], []) : 'again';
      outcomes.push(outcome);
      if (outcome.kind === 'done' && outcome.forgets) for (const key of tx.forgotten) forgotten.push(key);
      changes += tx.changes;
      if (changes > options.changesMax) break;
    }
    const captured = { changeset: session.changeset(), forgotten };
    const bytes = capturedBytes(captured);
    if (bytes > options.changesetBytesMax) {
      if (outcomes.length > 1) return 'again';
      connection.internal('rollback').run();
      begin(connection);
      const job = (outcomes[0] as Outcome<J>).job;
      return intact([{ kind: 'failed', job, error: tooLarge(bytes, options) }], [], jobs.slice(1));
    }
    return intact(outcomes, bytes === 0 ? [] : [captured], jobs.slice(outcomes.length));
  } catch (error) {
    // The session itself could not be read: the storage failed. One by one shows which transaction it was.
    if (jobs.length > 1 && STORAGE_CODES.has(sqliteCode(error) ?? 0)) return 'again';
    throw fromSqlite(error);
  } finally {
    session.close();
  }
}

function runSeparate<J extends Job>(connection: Connection, jobs: readonly J[], options: GroupOptions): GroupResult<J> {
  const outcomes: Outcome<J>[] = [];
  const records: Captured[] = [];
  let total = 0;
  for (const [index, job] of jobs.entries()) {
    const session = connection.database.createSession();
    let captured: Captured = { changeset: EMPTY, forgotten: NOTHING };
    let outcome: Outcome<J>;
    try {
      const tx = new WriterTransaction(connection, job.int64, options.forgetting);
      outcome = runJob(connection, job, tx, { ...options, alone: false }, () => {
        captured = { changeset: session.changeset(), forgotten: tx.forgotten };
        const bytes = capturedBytes(captured);
        if (bytes > options.changesetBytesMax) throw tooLarge(bytes, options);
      });
    } finally {
      session.close();
    }
    outcomes.push(outcome);
    const bytes = capturedBytes(captured);
    if (outcome.kind === 'done' && bytes > 0) records.push(captured);
    if (!connection.inTransaction) return spoilt(outcomes, records, jobs.slice(index + 1));
    total += bytes;
    if (total > options.changesetBytesMax) return intact(outcomes, records, jobs.slice(index + 1));
  }
  return intact(outcomes, records, []);
}

/** Runs one transaction under its savepoint. Never throws; the caller looks whether SQLite still has a transaction. */
function runJob<J extends Job>(
  connection: Connection,
  job: J,
  tx: WriterTransaction,
  { deferredKeys, alone }: { readonly deferredKeys: boolean; readonly alone: boolean },
  capture?: () => void,
): Outcome<J> {
  let result: unknown;
  try {
    if (!alone) connection.internal(SAVEPOINT).run();
    result = job.run(tx, connection);
    if (isThenable(result)) {
      Promise.resolve(result).catch(() => {}); // it is reported here
      throw new NostosError(
        'INVALID_ARGUMENT',
        'the callback of write() must be synchronous, it returned a promise; use transaction() for asynchronous work',
      );
    }
    tx.finish();
    if (deferredKeys) probeDeferredKeys(connection);
    capture?.();
    if (!alone) connection.internal(RELEASE).run();
    return { kind: 'done', job, result, forgets: tx.forgotten.length > 0 };
  } catch (error) {
    tx.abandon();
    undo(connection, alone);
    return { kind: 'failed', job, error: fromSqlite(error) };
  }
}

/**
 * RELEASE of a nested savepoint does not check deferred foreign keys; the COMMIT of the whole group would, after the
 * log has been synced. An empty changeset makes SQLite say now whether violations are outstanding.
 */
export function probeDeferredKeys(connection: Connection): void {
  try {
    connection.database.applyChangeset(EMPTY);
  } catch (error) {
    if (sqliteCode(error) !== 19) throw error;
    throw new NostosError('CONSTRAINT_FAILED', 'FOREIGN KEY constraint failed: a deferred key is violated at commit', {
      cause: error,
    });
  }
}

function undo(connection: Connection, alone: boolean): void {
  if (!connection.inTransaction) return;
  if (alone) return void connection.internal('rollback').run();
  try {
    connection.internal(ROLLBACK_TO).run();
    connection.internal(RELEASE).run();
  } catch {
    // The savepoint is gone or cannot be undone: nothing of this group may be kept.
    if (connection.inTransaction) connection.internal('rollback').run();
  }
}

/** What it takes in a record. */
export function capturedBytes({ changeset, forgotten }: Captured): number {
  return forgotten.reduce((sum, { table, hash }) => sum + 2 + 3 * table.length + hash.length, changeset.length);
}

function intact<J extends Job>(outcomes: Outcome<J>[], records: Captured[], left: readonly J[]): GroupResult<J> {
  return { state: 'intact', outcomes, records, left: [...left] };
}

function spoilt<J extends Job>(outcomes: Outcome<J>[], records: Captured[], left: readonly J[]): GroupResult<J> {
  return { state: 'spoilt', outcomes, records, left: [...left] };
}

function tooLarge(bytes: number, options: GroupOptions): NostosError {
  return new NostosError(
    'TRANSACTION_TOO_LARGE',
    `the transaction changes ${bytes} bytes, the limit is ${options.changesetBytesMax}; split it into smaller ones`,
    { details: { bytes, limit: options.changesetBytesMax } },
  );
}
