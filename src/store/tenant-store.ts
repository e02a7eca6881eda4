/**
 * One open tenant: its file, its writer, and the queue of what wants to write.
 *
 * Writing: run a group in an open SQLite transaction, append its records, and COMMIT only when the log says that they
 * are committed; then answer the callers. So the file never holds what the log may lose. A crash before the append
 * leaves neither; one after it leaves the record, which the next open applies.
 *
 * If COMMIT fails on committed records, or SQLite rolled the group back after they were captured, the writes have
 * succeeded all the same: the file is closed and catches up from the log (`recover-file.ts`).
 *
 * The parts: `write-queue.ts` who has the writer, `open-file.ts` connections and positions, `wal-keeper.ts` checkpoints,
 * `file-hold.ts` copies.
 */
import type { Lsn } from '../base/brands.ts';
import type { Clock } from '../base/clock.ts';
import { NostosError, isNostosError } from '../base/errors.ts';
import type { Limits } from '../base/limits.ts';
import { releaseBuffer } from '../base/release.ts';
import type { Appended, CommitLog, LogEntry } from '../log/commit-log.ts';
import { RecordKind } from '../log/record.ts';
import { stripTables, touchedTables } from './changeset.ts';
import type { Connection } from './connection.ts';
import type { ExpectedFingerprint } from './expected-fingerprint.ts';
import { FileHold, type HeldFile, type Holder } from './file-hold.ts';
import { runGroup, type Job, type Outcome } from './group.ts';
import type { Maintenance } from './maintenance.ts';
import { OpenFile } from './open-file.ts';
import { isUnreplicated } from './own-tables.ts';
import { encodeChangesetPayload } from './payload.ts';
import { recoverFile, type RecoverOptions } from './recover-file.ts';
import { serializeShape, type SchemaShape } from './schema-shape.ts';
import {
  lastHash,
  readSequences,
  writeApplied,
  writeFingerprint,
  writeSchemaVersion,
  type AppliedPosition,
  type TenantIdentity,
} from './tenant-file.ts';
import type { Int64Mode } from './values.ts';
import { WalKeeper } from './wal-keeper.ts';
import { WriteQueue } from './write-queue.ts';

export type { HeldFile, Holder };

export interface TenantDeps {
  readonly log: CommitLog;
  readonly clock: Clock;
  readonly maintenance: Maintenance;
  /** Called when the queue has run empty. */
  readonly onIdle?: () => void;
}

export interface TenantOptions extends RecoverOptions {
  readonly identity: TenantIdentity;
  readonly path: string;
  readonly limits: Limits;
}

interface WriteJob extends Job {
  readonly signal: AbortSignal | undefined;
  readonly onSettled: QueuedWriteOptions['onSettled'];
  resolve(result: unknown): void;
  reject(error: unknown): void;
}

export interface QueuedWriteOptions {
  readonly int64: Int64Mode;
  readonly signal?: AbortSignal | undefined;
  /** Called once the transaction has ended, with how. */
  readonly onSettled?: ((outcome: 'committed' | 'failed') => void) | undefined;
}

/** Room in a record for what stands beside the changeset. */
const RECORD_RESERVE_BYTES = 64 * 1024;
/** A group ends after so many changed rows. */
const GROUP_CHANGES_MAX = 20_000;

export class TenantStore {
  readonly identity: TenantIdentity;
  readonly path: string;
  readonly #deps: TenantDeps;
  readonly #options: TenantOptions;
  readonly #file: OpenFile;
  readonly #queue: WriteQueue<WriteJob>;
  readonly #wal: WalKeeper;
  readonly #hold: FileHold;
  #appending = false;
  #closing: Promise<void> | undefined;

  private constructor(deps: TenantDeps, options: TenantOptions) {
    const { identity, path, limits } = options;
    this.#deps = deps;
    this.#options = options;
    this.identity = identity;
    this.path = path;
    this.#file = new OpenFile(path, identity, limits);
    this.#wal = new WalKeeper(this.#file, deps, limits);
    this.#hold = new FileHold({ file: this.#file, wal: this.#wal, onEnded: () => this.#relieveSoon() }, limits);
    this.#queue = new WriteQueue(
      {
        tenant: identity.name,
        runGroup: (jobs) => this.#writeGroup(jobs),
        between: () => this.#wal.relieveIfDue().catch(() => {}), // tried again soon
        idle: () => deps.onIdle?.(),
      },
      { jobsMax: limits.tenantQueueMax, groupMax: limits.groupTransactionsMax },
    );
  }

  /** Opens the file, creating it where there is none, and brings it up to the log. */
  static async open(deps: TenantDeps, options: TenantOptions): Promise<TenantStore> {
    const store = new TenantStore(deps, options);
    await store.#recover();
    return store;
  }

  get applied(): AppliedPosition {
    return this.#file.applied;
  }

  get durable(): Lsn {
    return this.#file.durable;
  }

  /** Where the file lacks something that the log has, the position up to which it lacks nothing. */
  get lag(): Lsn | undefined {
    const { durable, applied, stale } = this.#file;
    return durable < applied.lsn || stale || this.#appending ? durable : undefined;
  }

  /** Whether a power cut leaves the file where it is, as it was when it was last said to hold everything. */
  get findable(): boolean {
    return this.#file.findable;
  }

  /** Known when it was opened: after `after` the log had nothing of this tenant up to `until`. */
  get quiet(): { readonly after: Lsn; readonly until: Lsn } {
    return this.#file.quiet;
  }

  get schemaVersion(): number {
    return this.#file.content.schemaVersion;
  }

  get shape(): SchemaShape {
    return this.#file.shape;
  }

  /** Those of all schema versions so far. */
  shapes(): ReadonlyMap<number, SchemaShape> {
    return new Map(this.#file.content.shapes);
  }

  get expected(): ExpectedFingerprint {
    return this.#file.content.expected;
  }

  get idle(): boolean {
    return this.#queue.idle;
  }

  /** Open files that this tenant accounts for. */
  get openFiles(): number {
    return this.#file.openFiles + this.#hold.openFiles;
  }

  write<T>(run: Job['run'], { int64, signal, onSettled }: QueuedWriteOptions): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      this.#queue.write({ int64, signal, onSettled, run, resolve, reject });
    });
  }

  /** Runs `fn` while nothing else writes to this tenant. Work of a user counts against the length of the queue. */
  exclusive<T>(fn: () => Promise<T>, options: { readonly ofUser?: boolean } = {}): Promise<T> {
    return this.#queue.exclusive(async () => {
      await this.recovered();
      return fn();
    }, options);
  }

  /** For callers inside `exclusive`, between two commits: after the first one the file may have to catch up. */
  async recovered(): Promise<void> {
    if (this.#file.stale) await this.#recover();
  }

  /** Resolves when the file has everything that was acknowledged. */
  async ready(): Promise<void> {
    while (this.#file.stale) await this.exclusive(async () => {});
  }

  /** The writer's connection, for callers inside `exclusive`. */
  get writer(): Connection {
    return this.#file.writer;
  }

  /** A connection that sees what is committed; to be used at once, since later it may be closed. */
  async reader(): Promise<Connection> {
    await this.ready();
    return this.#file.reader;
  }

  /** Runs `fn` on a connection that sees what is committed. */
  async read<T>(fn: (connection: Connection) => T): Promise<T> {
    return fn(await this.reader());
  }

  /**
   * Ends an open SQLite transaction whose session captured `changesets`, one record each: appends them and commits.
   * Throws with the transaction undone when they were not kept. Either way they are empty afterwards.
   */
  async commit(
    changesets: readonly Uint8Array[],
    state: 'intact' | 'spoilt' = 'intact',
  ): Promise<Appended | undefined> {
    let entries: LogEntry[];
    try {
      entries = changesets.flatMap((changeset) => this.#entry(changeset, state));
    } catch (error) {
      this.rollback();
      this.#file.stale = true; // the expected fingerprint has moved already
      throw error;
    }
    if (entries.length === 0) {
      this.#endEmpty();
      return undefined;
    }
    const fingerprint = this.expected.total();
    const bytes = entries.reduce((sum, entry) => sum + entry.payload.length, 0);
    const appended = await this.append(entries, () => this.expected.revert(changesets, this.shape)).finally(() => {
      for (const { payload } of entries) releaseBuffer(payload);
      for (const changeset of changesets) releaseBuffer(changeset);
    });
    const last = (appended.firstLsn + entries.length - 1) as Lsn;
    this.#finishCommit({ term: appended.term, lsn: last, hash: lastHash(appended.hashes), fingerprint }, state);
    this.#wal.changed(bytes);
    return appended;
  }

  /** Appends records of this tenant; if they were not kept, undoes the open transaction and calls `undo`. */
  async append(entries: readonly LogEntry[], undo: () => void): Promise<Appended> {
    this.#appending = true;
    try {
      // Here, since the log would refuse all records that come in the same group, those of others too.
      for (const { payload } of entries) assertFits(payload.length, this.#options.limits.recordBytesMax);
      return await this.#deps.log.append(entries);
    } catch (error) {
      this.#appending = false;
      undo();
      this.rollback();
      if (isNostosError(error, 'OUTCOME_UNKNOWN')) this.#file.stale = true;
      throw error;
    }
  }

  /** COMMIT of a migration: like `commit`, with the schema that it led to. */
  finishSchema(applied: AppliedPosition, schemaVersion: number, shape: SchemaShape): void {
    this.#finishCommit(applied, 'intact', () => {
      writeSchemaVersion(this.writer, schemaVersion, serializeShape(shape));
      writeFingerprint(this.writer, applied.lsn, this.expected.serialize());
    });
    if (this.#file.stale) return;
    this.#file.noted = applied.lsn;
    this.#file.moveSchema(schemaVersion, shape);
  }

  /** Throws, with the open transaction undone, when a changeset does not fit a record. */
  assertFits(changeset: Uint8Array): void {
    try {
      assertFits(changeset.length, this.#options.limits.recordBytesMax - RECORD_RESERVE_BYTES);
    } catch (error) {
      this.rollback();
      throw error;
    }
  }

  /** Keeps the WAL small in between, for callers inside `exclusive`. */
  async relieve(): Promise<void> {
    await this.#wal.relieveIfDue();
  }

  /** The connections are not to be used any more: the next use opens new ones. */
  invalidate(): void {
    this.#file.stale = true;
  }

  rollback(): void {
    this.#file.rollback();
  }

  walBytes(): number {
    return this.#file.walBytes();
  }

  /** Writes everything into the file and closes it. What fails here costs a replay at the next open; `lag` tells. */
  close(): Promise<void> {
    return (this.#closing ??= this.#queue.exclusive(() => this.#close()));
  }

  async #close(): Promise<void> {
    const file = this.#file;
    file.closed = true;
    this.#queue.close(file.closedError());
    this.#hold.end(new NostosError('TENANT_NOT_FOUND', `tenant ${this.identity.name} was dropped while it was copied`));
    try {
      await this.#wal.settled();
      await this.recovered();
      await this.#wal.checkpointAndClose();
    } catch {
      // `lag` says what is missing
    }
    try {
      file.release();
      this.expected.release();
      this.#hold.closeDescriptor();
    } catch {
      // Nothing is owed to them any more.
    }
  }

  /** Brings the file itself up to date, so that the log need not be kept for it. */
  async checkpoint(): Promise<void> {
    await this.exclusive(async () => {
      await this.#wal.settled();
      if (this.durable < this.applied.lsn) await this.#wal.checkpoint();
    });
  }

  /**
   * Brings everything into the file and keeps it as it is until `releaseHold`, while writers go on in the WAL. Undefined
   * where a reader that began earlier is in the way: try again.
   */
  async hold(holder: Holder): Promise<HeldFile | undefined> {
    // Most of the WAL is moved beside the writers, so that they are held up for the rest only.
    await this.exclusive(async () => {
      if (!this.#hold.active && !this.#wal.isWhole) this.#wal.checkpointAside();
    });
    await this.#wal.settled();
    return this.exclusive(() => this.#hold.add(holder));
  }

  releaseHold(holder: Holder): void {
    this.#hold.remove(holder);
  }

  #relieveSoon(): void {
    if (this.#file.closed) return;
    this.exclusive(() => this.#wal.relieve()).catch(() => {}); // tried again with the next writes
  }

  async #writeGroup(all: readonly WriteJob[]): Promise<readonly WriteJob[]> {
    const jobs: WriteJob[] = [];
    for (const job of all) {
      if (job.signal?.aborted === true) job.reject(job.signal.reason);
      else jobs.push(job);
    }
    if (jobs.length === 0) return [];
    let outcomes: Outcome<WriteJob>[] = [];
    let left: readonly WriteJob[] = [];
    try {
      await this.recovered();
      const { mayRollBack, deferredKeys } = this.#file.traits;
      const result = runGroup(this.writer, jobs, mayRollBack ? 'separate' : 'shared', {
        changesetBytesMax: this.#options.limits.recordBytesMax - RECORD_RESERVE_BYTES,
        changesMax: GROUP_CHANGES_MAX,
        deferredKeys,
      });
      ({ outcomes, left } = result);
      await this.commit(result.records, result.state);
      if (this.#file.stale) await this.#recover().catch(() => {}); // tried again by whoever comes next
    } catch (error) {
      this.rollback();
      if (outcomes.length === 0) outcomes = jobs.map((job) => ({ kind: 'failed', job, error }));
      // A failed one may have read what an earlier one wrote, so even its answer waited for the log.
      outcomes = outcomes.map((outcome) =>
        outcome.kind === 'failed' ? outcome : { ...outcome, kind: 'failed', error },
      );
    }
    for (const outcome of outcomes) {
      if (outcome.kind === 'done') outcome.job.resolve(outcome.result);
      else outcome.job.reject(outcome.error);
      outcome.job.onSettled?.(outcome.kind === 'done' ? 'committed' : 'failed');
    }
    return left;
  }

  #entry(captured: Uint8Array, state: 'intact' | 'spoilt'): LogEntry[] {
    const changeset = stripTables(captured, isUnreplicated);
    if (changeset.length === 0) return [];
    this.expected.apply(changeset, this.shape);
    // SQLite has rolled the counters of a spoilt group back; there the inserted rows themselves will raise them.
    const counters = state === 'spoilt' ? [] : this.#file.traits.counters;
    const touched = counters.length === 0 ? [] : touchedTables(changeset).filter((table) => counters.includes(table));
    const payload = encodeChangesetPayload({
      schemaVersion: this.schemaVersion,
      fingerprint: this.expected.total(),
      sequences: touched.length === 0 ? [] : readSequences(this.writer, touched),
      changeset,
    });
    if (changeset !== captured) releaseBuffer(changeset);
    return [{ tenant: this.identity.id, kind: RecordKind.changeset, payload }];
  }

  #endEmpty(): void {
    if (this.#file.hasWriter && this.writer.inTransaction) this.writer.internal('commit').run();
  }

  #finishCommit(applied: AppliedPosition, state: 'intact' | 'spoilt', extra?: () => void): void {
    try {
      if (state === 'spoilt') {
        this.#file.stale = true;
      } else {
        // Without its transaction this would commit by itself: a position without the rows.
        if (!this.writer.inTransaction) throw new NostosError('INTERNAL', 'SQLite has lost the transaction');
        writeApplied(this.writer, applied);
        extra?.();
        this.writer.internal('commit').run();
        this.#file.content.applied = applied;
      }
    } catch {
      this.rollback();
      this.#file.stale = true;
    }
    this.#appending = false;
  }

  #recover(): Promise<void> {
    return recoverFile(this.#file, this.#deps.log, this.#options);
  }
}

function assertFits(bytes: number, limit: number): void {
  if (bytes <= limit) return;
  throw new NostosError(
    'TRANSACTION_TOO_LARGE',
    `the transaction changes ${bytes} bytes, the limit is ${limit}; split it into smaller ones`,
    { details: { bytes, limit } },
  );
}
