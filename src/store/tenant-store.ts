/**
 * One open tenant: its file, its writer, and the queue of what wants to write.
 *
 * Writing: run a group in an open SQLite transaction, append its records, and COMMIT only when the log says that they
 * are committed; then answer the callers. So the file never holds what the log may lose. A crash before the append
 * leaves neither; one after it leaves the record, which the next open applies.
 *
 * A group of `local` writes alone is committed to the file, and answered, once this node has synced it. Then the file holds
 * what the group may yet drop, and `undoTo` takes back. Records of a tenant are appended one group after another, so
 * a file holds all of its records up to its position, and what a `quorum` write left uncommitted is never visible.
 *
 * Of a replica it applies committed records (`applyUpTo`) and writes nothing.
 *
 * What a record forgets goes into the ledger before the file has it, so that the file never holds for good what the ledger
 * lacks; and who forgot it is answered once the backups have it as well.
 *
 * If COMMIT fails on committed records, or SQLite rolled the group back after they were captured, the writes have
 * succeeded all the same: the file is closed and catches up from the log (`recover-file.ts`).
 *
 * The parts: `write-queue.ts` who has the writer, `open-file.ts` connections and positions, `wal-keeper.ts` checkpoints,
 * `file-hold.ts` copies.
 */
import { NO_LSN, NO_TENANT, type Lsn } from '../base/brands.ts';
import type { Clock } from '../base/clock.ts';
import { NostosError, isNostosError } from '../base/errors.ts';
import type { Limits } from '../base/limits.ts';
import { releaseBuffer } from '../base/release.ts';
import { untilCommitted, type Appended, type CommitLog, type Durability, type LogEntry } from '../log/commit-log.ts';
import type { CommittedRecord } from '../log/commit-log.ts';
import type { ForgetLedger, LedgerEntry } from '../log/ledger.ts';
import { RecordKind } from '../log/record.ts';
import { stripTables, touchedTables } from './changeset.ts';
import type { Connection } from './connection.ts';
import type { ExpectedFingerprint } from './expected-fingerprint.ts';
import { FileHold, type HeldFile, type Holder } from './file-hold.ts';
import type { ForgetContext } from './forget.ts';
import { capturedBytes, runGroup, type Captured, type Job, type Outcome } from './group.ts';
import type { Maintenance } from './maintenance.ts';
import { OpenFile, type TenantRole } from './open-file.ts';
import { isUnreplicated } from './own-tables.ts';
import { NO_COUNTER, encodeChangesetPayload, type Forgets, type SequenceValue } from './payload.ts';
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
import { undoFile, type UndoTarget } from './undo.ts';
import { WalKeeper } from './wal-keeper.ts';
import { WriteQueue } from './write-queue.ts';

export type { HeldFile, Holder, TenantRole, UndoTarget };

export interface TenantDeps {
  readonly log: CommitLog;
  readonly clock: Clock;
  readonly maintenance: Maintenance;
  readonly ledger: ForgetLedger;
  /** Resolves when every configured backup has what the ledger has. */
  readonly forgotten?: () => Promise<void>;
  /** Called when the queue has run empty. */
  readonly onIdle?: () => void;
  /** COMMIT has failed on committed records: they are replayed from the log. */
  readonly onCommitFailed?: (error: unknown) => void;
  /** Why a replica writes nothing: names who leads. */
  readonly notPrimary?: () => NostosError;
  /**
   * On a replica, where one reader gives all tenants their records: it has given them everything up to there. So those that
   * had none need not be told.
   */
  readonly givenTo?: () => Lsn;
  /** In a group: whether nobody else can have led, and written, up to now. */
  readonly holdsLease?: () => boolean;
}

export interface TenantOptions extends RecoverOptions {
  readonly identity: TenantIdentity;
  readonly path: string;
  readonly limits: Limits;
  /** `primary` where it is absent. */
  readonly role?: TenantRole;
}

interface WriteJob extends Job {
  readonly durability: Durability;
  readonly signal: AbortSignal | undefined;
  readonly onSettled: QueuedWriteOptions['onSettled'];
  resolve(result: unknown): void;
  reject(error: unknown): void;
}

export interface QueuedWriteOptions {
  readonly int64: Int64Mode;
  /**
   * `quorum` where it is absent. `local` is answered once this node, which must lead, has synced it: the group may yet
   * drop it, into a rollback file. A group of both waits for the quorum.
   */
  readonly durability?: Durability;
  readonly signal?: AbortSignal | undefined;
  /** Called once the transaction has ended, with how. */
  readonly onSettled?: ((outcome: 'committed' | 'failed') => void) | undefined;
}

/** All committed records of a tenant from above `after` up to where they are to be applied. */
export interface GivenRecords {
  readonly after: Lsn;
  readonly records: readonly CommittedRecord[];
}

interface Finish {
  readonly state: 'intact' | 'spoilt';
  readonly counters?: readonly SequenceValue[];
  readonly forgets?: readonly LedgerEntry[];
  readonly extra?: (connection: Connection) => void;
}

interface EntryOptions {
  readonly state: 'intact' | 'spoilt';
  readonly durability: Durability;
  readonly counters: SequenceValue[];
  readonly forgets: Forgets | undefined;
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
  /** The last one that was committed here. */
  #forgotten: LedgerEntry | undefined;
  #closing: Promise<void> | undefined;
  /** Aborted when this node no longer leads. */
  #reign = new AbortController();
  /** The furthest that anybody wants applied. */
  #wanted: Lsn = NO_LSN;

  private constructor(deps: TenantDeps, options: TenantOptions) {
    const { identity, path, limits, role = 'primary' } = options;
    this.#deps = deps;
    this.#options = options;
    this.identity = identity;
    this.path = path;
    this.#file = new OpenFile(path, identity, { limits, role, ledger: deps.ledger });
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

  get role(): TenantRole {
    return this.#file.role;
  }

  /** Everything of this tenant up to here is in the file, committed or `local`. */
  get appliedTo(): Lsn {
    const { appliedTo, role, stale } = this.#file;
    const givenTo = role === 'replica' && !stale ? this.#deps.givenTo?.() : undefined;
    return Math.max(appliedTo, givenTo ?? NO_LSN) as Lsn;
  }

  /** Where the file lacks something that the log has, the position up to which it lacks nothing. */
  get lag(): Lsn | undefined {
    const { durable, applied, stale, role } = this.#file;
    if (durable < applied.lsn || stale || this.#appending) return durable;
    return role === 'replica' && this.appliedTo < this.#deps.log.watermark ? this.appliedTo : undefined;
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

  write<T>(run: Job['run'], { int64, durability = 'quorum', signal, onSettled }: QueuedWriteOptions): Promise<T> {
    if (this.role !== 'primary') return Promise.reject(this.#notPrimary());
    return new Promise<T>((resolve, reject) => {
      this.#queue.write({ int64, durability, signal, onSettled, run, resolve, reject });
    });
  }

  /** For transactions that forget. */
  get forgetting(): ForgetContext {
    const { ledger } = this.#deps;
    return { shape: this.shape, hashKey: () => ledger.hashKeyOf(this.identity.uuid) };
  }

  /** Resolves when what was forgotten is wherever it must be, once it is committed. */
  async forgotten(): Promise<void> {
    const { ledger, forgotten } = this.#deps;
    if (this.#forgotten !== undefined && !ledger.has(this.#forgotten)) {
      const { position } = this.#forgotten;
      throw new NostosError(
        'FORGET_PENDING',
        `the forget is committed as record ${position.lsn}, but the ledger of this node could not be written; that comes before tenant ${this.identity.name} is used again`,
        { details: { position } },
      );
    }
    await forgotten?.();
  }

  /** Aborted, with `NOT_PRIMARY`, when this node no longer leads: open transactions end. */
  get reign(): AbortSignal {
    return this.#reign.signal;
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
    this.#assertPrimary();
    return this.#file.main;
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
   * Ends an open SQLite transaction whose session captured `records`: appends them and commits. Throws with the transaction
   * undone when they were not kept. Either way their changesets are empty afterwards. What forgets is never `local`.
   */
  async commit(
    records: readonly Captured[],
    { state = 'intact', durability: asked = 'quorum' }: { state?: 'intact' | 'spoilt'; durability?: Durability } = {},
  ): Promise<Appended | undefined> {
    const entries: LogEntry[] = [];
    const counters: SequenceValue[] = [];
    const forgets = new Map<number, Forgets>();
    const changesets = records.map(({ changeset }) => changeset);
    const durability = records.some(({ forgotten }) => forgotten.length > 0) ? 'quorum' : asked;
    try {
      for (const captured of records) {
        const forgetting = this.#forgets(captured, forgets.size);
        if (forgetting !== undefined) forgets.set(entries.length, forgetting);
        entries.push(...this.#entry(captured.changeset, { state, durability, counters, forgets: forgetting }));
      }
    } catch (error) {
      this.rollback();
      this.#file.stale = true; // the expected fingerprint has moved already
      throw error;
    }
    if (entries.length === 0) {
      await this.#endEmpty(durability);
      return undefined;
    }
    const fingerprint = this.expected.total();
    const bytes = entries.reduce((sum, entry) => sum + entry.payload.length, 0);
    const undo = (): void => this.expected.revert(changesets, this.shape);
    const appended = await this.append(entries, undo, durability).finally(() => {
      for (const { payload } of entries) releaseBuffer(payload);
      for (const changeset of changesets) releaseBuffer(changeset);
    });
    const last = (appended.firstLsn + entries.length - 1) as Lsn;
    if (durability === 'local') this.#file.acknowledged = last;
    const applied = { term: appended.term, lsn: last, hash: lastHash(appended.hashes), fingerprint };
    const { generation, term, firstLsn } = appended;
    const ledgered = [...forgets].map(([index, forgetting]) => ({
      ...forgetting,
      uuid: this.identity.uuid,
      position: { generation, term, lsn: (firstLsn + index) as Lsn },
    }));
    this.#finishCommit(applied, { state, counters, forgets: ledgered });
    this.#wal.changed(bytes);
    return appended;
  }

  /** Appends records of this tenant; if they were not kept, undoes the open transaction and calls `undo`. */
  async append(entries: readonly LogEntry[], undo: () => void, durability: Durability = 'quorum'): Promise<Appended> {
    this.#appending = true;
    try {
      this.#assertPrimary(); // no longer, where a transaction took long
      // Here, since the log would refuse all records that come in the same group, those of others too.
      for (const { payload } of entries) assertFits(payload.length, this.#options.limits.recordBytesMax);
      return await this.#deps.log.append(entries, { durability });
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
    this.#finishCommit(applied, {
      state: 'intact',
      extra: (connection) => {
        writeSchemaVersion(connection, schemaVersion, serializeShape(shape));
        writeFingerprint(connection, applied.lsn, this.expected.serialize());
      },
    });
    if (this.#file.stale) return;
    this.#file.noted = applied.lsn;
    this.#file.moveSchema(schemaVersion, shape);
  }

  /** Throws, with the open transaction undone, when it does not fit a record. */
  assertFits(captured: Captured): void {
    try {
      assertFits(capturedBytes(captured), this.#options.limits.recordBytesMax - RECORD_RESERVE_BYTES);
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
   * where a reader that began earlier is in the way, or a `local` write that the group does not have yet: try again.
   */
  async hold(holder: Holder): Promise<HeldFile | undefined> {
    // Most of the WAL is moved beside the writers, so that they are held up for the rest only.
    await this.exclusive(async () => {
      if (!this.#hold.active && !this.#wal.isWhole) this.#wal.checkpointAside();
    });
    await this.#wal.settled();
    // What is not committed leaves no node.
    return this.exclusive(async () =>
      this.applied.lsn > this.#deps.log.watermark ? undefined : this.#hold.add(holder),
    );
  }

  releaseHold(holder: Holder): void {
    this.#hold.remove(holder);
  }

  /**
   * On a replica: brings everything of this tenant up to `lsn`, which is committed, into the file. Who has read the records
   * for all tenants at once gives them. Answers with `appliedTo`.
   *
   * Readers go on beside it; each sees the rows of one position. Calls that wait while one works are done with it.
   */
  async applyUpTo(lsn: Lsn, given?: GivenRecords): Promise<Lsn> {
    if (given === undefined && lsn > this.#wanted) this.#wanted = lsn;
    await this.exclusive(async () => {
      if (this.role === 'replica' && lsn > this.appliedTo) await this.#apply(lsn, given);
    });
    return this.appliedTo;
  }

  async #apply(lsn: Lsn, given?: GivenRecords): Promise<void> {
    const file = this.#file;
    const { log } = this.#deps;
    const { appliedTo } = this;
    const isNext = given !== undefined && given.after <= appliedTo;
    const to = isNext ? lsn : (Math.min(Math.max(lsn, this.#wanted), log.watermark) as Lsn);
    try {
      if (isNext) file.replay.apply(given.records);
      else await file.replay.run(log, { from: (appliedTo + 1) as Lsn, to, tenant: this.identity.id });
    } catch (error) {
      file.stale = true; // what it lacks now is read again by whoever comes next
      if (given !== undefined) throw error;
      this.#deps.onCommitFailed?.(error);
      return this.#recover();
    }
    if (to > file.appliedTo) file.appliedTo = to;
    this.#wal.changed(file.replay.takeAppliedBytes());
  }

  /**
   * This node no longer leads: from now on writes and open transactions get `NOT_PRIMARY`. What was appended and waits for
   * the group is answered by the log. Resolves when nothing of the reign is under way any more.
   */
  async becomeReplica(): Promise<void> {
    if (this.role === 'replica') return;
    this.#file.role = 'replica';
    this.#reign.abort(this.#notPrimary());
    await this.#queue.exclusive(async () => {
      this.#file.rollback();
      this.#file.acknowledged = NO_LSN;
      if (!this.#file.stale) this.#file.reopenMain();
    });
  }

  /** This node leads, and its term-start is committed: applies what is, and then takes writes. */
  async becomePrimary(): Promise<void> {
    await this.exclusive(async () => {
      if (this.role === 'primary') return;
      const { watermark } = this.#deps.log;
      if (watermark > this.appliedTo) await this.#apply(watermark);
      this.#file.role = 'primary';
      this.#reign = new AbortController();
      this.#file.reopenMain();
    });
  }

  /**
   * On a replica: takes back what the file holds above `target`, before the log is cut there, and makes that durable. Ends
   * copies that are being made of it. Answers with the number of records that were undone; a call that failed or was cut
   * off is made again. `log` is where the records are, if the caller has read those of many tenants at once.
   */
  undoTo(target: UndoTarget, log: Pick<CommitLog, 'readPage'> = this.#deps.log): Promise<number> {
    return this.exclusive(async () => {
      if (this.role === 'primary')
        throw new NostosError('INVALID_ARGUMENT', `tenant ${this.identity.name} is undone on a replica only`);
      if (this.applied.lsn < target.lsn) return 0;
      const { name } = this.identity;
      this.#hold.end(new NostosError('POSITION_LOST', `tenant ${name} was rolled back while it was copied`));
      const undone = await undoFile(this.#file, log, target);
      await this.#wal.settled();
      if (!this.#wal.isWhole && !(await this.#wal.checkpointEmptied()))
        throw new NostosError(
          'RECOVER_FAILED',
          `tenant ${name} is rolled back to LSN ${target.lsn}, but a reader with an older snapshot keeps that from its file; try again`,
          { details: { tenant: name, lsn: target.lsn } },
        );
      return undone;
    });
  }

  #notPrimary(): NostosError {
    return (
      this.#deps.notPrimary?.() ??
      new NostosError('NOT_PRIMARY', 'this node does not lead its group; write to the one that does')
    );
  }

  #assertPrimary(): void {
    if (this.role !== 'primary') throw this.#notPrimary();
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
      this.#assertPrimary();
      await this.recovered();
      const { mayRollBack, deferredKeys } = this.#file.traits;
      const result = runGroup(this.writer, jobs, mayRollBack ? 'separate' : 'shared', {
        changesetBytesMax: this.#options.limits.recordBytesMax - RECORD_RESERVE_BYTES,
        changesMax: GROUP_CHANGES_MAX,
        deferredKeys,
        forgetting: this.forgetting,
      });
      ({ outcomes, left } = result);
      const durability = outcomes.every(({ job }) => job.durability === 'local') ? 'local' : 'quorum';
      await this.commit(result.records, { state: result.state, durability });
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
      if (outcome.kind === 'failed') outcome.job.reject(outcome.error);
      else outcome.job.resolve(outcome.forgets ? this.forgotten().then(() => outcome.result) : outcome.result);
      outcome.job.onSettled?.(outcome.kind === 'done' ? 'committed' : 'failed');
    }
    return left;
  }

  #forgets({ forgotten }: Captured, earlier: number): Forgets | undefined {
    if (forgotten.length === 0) return undefined;
    const { ledger, clock } = this.#deps;
    const { uuid } = this.identity;
    const atMs = ledger.timeFor(uuid, clock.nowMs()) + earlier; // each later than the one before
    return { hashKey: ledger.hashKeyOf(uuid), atMs, keys: forgotten };
  }

  #entry(captured: Uint8Array, { state, durability, counters, forgets }: EntryOptions): LogEntry[] {
    const changeset = stripTables(captured, isUnreplicated);
    if (changeset.length === 0 && forgets === undefined) return [];
    this.expected.apply(changeset, this.shape);
    const local = durability === 'local';
    const sequences = state === 'spoilt' ? [] : this.#sequences(changeset, counters);
    const payload = encodeChangesetPayload({
      schemaVersion: this.schemaVersion,
      fingerprint: this.expected.total(),
      sequences,
      changeset,
      local,
      ...(forgets === undefined ? {} : { forgets }),
    });
    counters.push(...sequences);
    if (changeset !== captured) releaseBuffer(changeset);
    return [{ tenant: this.identity.id, kind: RecordKind.changeset, payload }];
  }

  /**
   * Counters of the tables that a changeset touches. SQLite has rolled those of a spoilt group back; there the inserted
   * rows themselves will raise them.
   */
  #sequences(changeset: Uint8Array, earlier: readonly SequenceValue[]): SequenceValue[] {
    const { traits, counters } = this.#file;
    if (traits.counters.length === 0) return [];
    const touched = touchedTables(changeset).filter((table) => traits.counters.includes(table));
    return readSequences(this.#file.main, touched).map(({ table, value }) => {
      const before = earlier.findLast((sequence) => sequence.table === table)?.value ?? counters.get(table);
      return { table, value, before: before ?? NO_COUNTER };
    });
  }

  /** A transaction without a record may have read what the group does not have yet. */
  async #endEmpty(durability: Durability): Promise<void> {
    const { main, applied } = this.#file;
    if (main.inTransaction) main.internal('commit').run();
    const { log } = this.#deps;
    if (durability === 'local') return;
    if (applied.lsn <= log.watermark) return this.#proveLead();
    try {
      await untilCommitted(log, applied.lsn, this.#reign.signal);
    } catch (cause) {
      const { term, lsn } = applied;
      throw new NostosError(
        'OUTCOME_UNKNOWN',
        `the transaction has read record ${lsn}, and it is not known whether that was kept`,
        { cause, details: { position: { term, lsn } } },
      );
    }
    await this.#proveLead();
  }

  /**
   * What was read and not written may miss what another primary has written since. Without a lease, a record of our own
   * that is committed shows that there was none: so writes depend on no clock, also where they write nothing.
   */
  async #proveLead(): Promise<void> {
    if (this.#deps.holdsLease?.() !== false) return;
    const proof = { tenant: NO_TENANT, kind: RecordKind.noop, payload: new Uint8Array() };
    await this.#deps.log.append([proof], { durability: 'quorum' });
  }

  #finishCommit(applied: AppliedPosition, { state, counters = [], forgets = [], extra }: Finish): void {
    const file = this.#file;
    try {
      this.#forgotten = forgets.at(-1) ?? this.#forgotten;
      this.#deps.ledger.add(forgets);
      if (state === 'spoilt') {
        file.stale = true;
      } else {
        // Without its transaction this would commit by itself: a position without the rows.
        if (!file.main.inTransaction) throw new NostosError('INTERNAL', 'SQLite has lost the transaction');
        writeApplied(file.main, applied);
        extra?.(file.main);
        file.main.internal('commit').run();
        file.moved(applied, counters);
      }
    } catch (error) {
      this.rollback();
      file.stale = true;
      this.#deps.onCommitFailed?.(error);
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
