/**
 * One open tenant: its file, its writer, and the queue of what wants to write.
 *
 * Writing: run a group in an open SQLite transaction, append its records, and COMMIT only when the log says that they
 * are committed; then answer the callers. So the file never holds what the log may lose. A crash before the append
 * leaves neither; one after it leaves the record, which the next open applies.
 *
 * If COMMIT fails on committed records, or SQLite rolled the group back after they were captured, the writes have
 * succeeded all the same: the file is closed and catches up from the log (`#recover`).
 *
 * Everything that writes goes through one queue, so that at any time one group, asynchronous transaction, migration or
 * import has the writer.
 *
 * While the file is held (`hold`), for somebody who copies it, nothing is moved from the WAL into it.
 */
import { closeSync, fstatSync, openSync, statSync } from 'node:fs';
import { dirname } from 'node:path';
import { NO_LSN, type Lsn } from '../base/brands.ts';
import type { Clock } from '../base/clock.ts';
import { diskError } from '../base/disk.ts';
import { NostosError, isNostosError } from '../base/errors.ts';
import type { Limits } from '../base/limits.ts';
import { releaseBuffer } from '../base/release.ts';
import type { Appended, CommitLog, LogEntry, TenantLocation } from '../log/commit-log.ts';
import { RecordKind } from '../log/record.ts';
import { stripTables, touchedTables } from './changeset.ts';
import { Connection } from './connection.ts';
import { createTenantFile } from './create-tenant-file.ts';
import { ExpectedFingerprint } from './expected-fingerprint.ts';
import { runGroup, type Job, type Outcome } from './group.ts';
import type { Maintenance } from './maintenance.ts';
import { autoincrementTables } from './migration.ts';
import { isUnreplicated } from './own-tables.ts';
import { encodeChangesetPayload } from './payload.ts';
import { Replay, checkChain, shapesFrom } from './replay.ts';
import { schemaMayRollBack } from './schema-check.ts';
import { serializeShape, type SchemaShape } from './schema-shape.ts';
import { fromSqlite } from './sqlite-errors.ts';
import {
  lastHash,
  readFingerprint,
  readSequences,
  readShapes,
  readTenantMeta,
  writeApplied,
  writeFingerprint,
  writeSchemaVersion,
  type AppliedPosition,
  type TenantIdentity,
} from './tenant-file.ts';
import type { Int64Mode } from './values.ts';

export interface TenantDeps {
  readonly log: CommitLog;
  readonly clock: Clock;
  readonly maintenance: Maintenance;
  /** Called when the queue has run empty. */
  readonly onIdle?: () => void;
}

export interface TenantOptions {
  readonly identity: TenantIdentity;
  readonly path: string;
  readonly limits: Limits;
  /** LSN of the tenant's first record. */
  readonly createdAt: Lsn;
  /** Whether the tenant has been open before: then it has a file, or that is lost. */
  readonly opened: boolean;
  /** The file held everything up to here when it was last closed. */
  readonly held: Lsn;
}

interface WriteJob extends Job {
  readonly kind: 'write';
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

/** The file of a tenant while it stands still: all of it at one position. */
export interface HeldFile {
  /** To read from; it belongs to the store, which closes it. */
  readonly descriptor: number;
  readonly bytes: number;
  readonly applied: AppliedPosition;
}

export interface Holder {
  /** The hold is over: from now on the file changes. Called at once, or never once it was released. */
  onLost(error: NostosError): void;
}

interface Held {
  readonly file: HeldFile;
  readonly holders: Set<Holder>;
  /** A connection more: without it, closing the writer to recover would move the WAL into the file. */
  readonly guard: Connection;
}

interface ExclusiveJob {
  readonly kind: 'exclusive';
  run(): Promise<void>;
  reject(error: unknown): void;
}

/** What the write path must know about a schema, worked out once. */
interface SchemaTraits {
  /** Tables whose AUTOINCREMENT counters travel in the records. */
  readonly counters: readonly string[];
  readonly deferredKeys: boolean;
  /** A conflict action of the schema can roll back a whole group. */
  readonly mayRollBack: boolean;
}

const NO_TRAITS: SchemaTraits = { counters: [], deferredKeys: false, mayRollBack: false };

function readTraits(shape: SchemaShape, writer: Connection): SchemaTraits {
  return {
    counters: autoincrementTables(shape),
    deferredKeys: [...shape.tables.values()].some((table) => table.hasDeferrableForeignKeys),
    mayRollBack: schemaMayRollBack(writer.database),
  };
}

const WAL_STATE = 'pragma wal_checkpoint(noop)';
/** A page with its header. */
const WAL_FRAME_BYTES = 4_096 + 24;
/** The WAL is looked at after so many bytes of changes. */
const WAL_CHECK_BYTES = 128 * 1024;
/** Room in a record for what stands beside the changeset. */
const RECORD_RESERVE_BYTES = 64 * 1024;
/** A group ends after so many changed rows. */
const GROUP_CHANGES_MAX = 20_000;

export class TenantStore {
  readonly identity: TenantIdentity;
  readonly path: string;
  readonly #deps: TenantDeps;
  readonly #options: TenantOptions;
  #writer: Connection | undefined;
  #reader: Connection | undefined;
  #applied!: AppliedPosition;
  /** Everything up to here is in the file even after a power cut. */
  #durable: Lsn = NO_LSN;
  /** LSN up to which the stored fingerprint counts. */
  #noted: Lsn = NO_LSN;
  #quiet = { after: NO_LSN, until: NO_LSN };
  #schemaVersion = 0;
  #shapes = new Map<number, SchemaShape>();
  #expected!: ExpectedFingerprint;
  #traits: SchemaTraits = NO_TRAITS;
  #needsReplay = false;
  #appending = false;
  #queue: (WriteJob | ExclusiveJob)[] = [];
  #draining = false;
  #closed = false;
  #changedBytes = 0;
  #checkpointing: Promise<unknown> | undefined;
  /** Size of the WAL at which the queue is held for a checkpoint. */
  #holdAtBytes: number;
  /** Size that it had when it was allowed to grow further than the limit; smaller, it has begun anew. */
  #extendedAtBytes = 0;
  /** Whether the directories down to the file have been synced, without which a power cut may take the file. */
  #findable = false;
  #held: Held | undefined;
  /** For `HeldFile`: closing any descriptor of a file drops all locks that SQLite has on it, so it waits for the last one. */
  #descriptor: number | undefined;

  private constructor(deps: TenantDeps, options: TenantOptions) {
    this.#deps = deps;
    this.#options = options;
    this.#holdAtBytes = options.limits.checkpointHoldBytes;
    this.identity = options.identity;
    this.path = options.path;
  }

  /** Opens the file, creating it where there is none, and brings it up to the log. */
  static async open(deps: TenantDeps, options: TenantOptions): Promise<TenantStore> {
    const store = new TenantStore(deps, options);
    try {
      await store.#recover();
    } catch (error) {
      store.#release();
      throw error;
    }
    return store;
  }

  get applied(): AppliedPosition {
    return this.#applied;
  }

  get durable(): Lsn {
    return this.#durable;
  }

  /** Where the file lacks something that the log has, the position up to which it lacks nothing. */
  get lag(): Lsn | undefined {
    return this.#durable < this.#applied.lsn || this.#needsReplay || this.#appending ? this.#durable : undefined;
  }

  /** Whether a power cut leaves the file where it is, as it was when it was last said to hold everything. */
  get findable(): boolean {
    return this.#findable;
  }

  /** Known when it was opened: after `after` the log had nothing of this tenant up to `until`. */
  get quiet(): { readonly after: Lsn; readonly until: Lsn } {
    return this.#quiet;
  }

  get schemaVersion(): number {
    return this.#schemaVersion;
  }

  get shape(): SchemaShape {
    return this.#shapes.get(this.#schemaVersion)!;
  }

  /** Those of all schema versions so far. */
  shapes(): ReadonlyMap<number, SchemaShape> {
    return new Map(this.#shapes);
  }

  get expected(): ExpectedFingerprint {
    return this.#expected;
  }

  get idle(): boolean {
    return !this.#draining && this.#queue.length === 0;
  }

  /** Open files that this tenant accounts for. */
  get openFiles(): number {
    const held = (this.#descriptor === undefined ? 0 : 1) + (this.#held === undefined ? 0 : 2);
    return (this.#writer === undefined ? 0 : 3) + (this.#reader === undefined ? 0 : 2) + held;
  }

  write<T>(run: Job['run'], { int64, signal, onSettled }: QueuedWriteOptions): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      this.#enqueue({ kind: 'write', int64, signal, onSettled, run, resolve, reject });
    });
  }

  /** Runs `fn` while nothing else writes to this tenant. Work of a user counts against the length of the queue. */
  exclusive<T>(fn: () => Promise<T>, options: { readonly ofUser?: boolean } = {}): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      const run = async (): Promise<void> => {
        try {
          await this.recovered();
          resolve(await fn());
        } catch (error) {
          reject(error);
        }
      };
      this.#enqueue({ kind: 'exclusive', run, reject }, options.ofUser ?? false);
    });
  }

  /** For callers inside `exclusive`, between two commits: after the first one the file may have to catch up. */
  async recovered(): Promise<void> {
    if (this.#needsReplay) await this.#recover();
  }

  /** Resolves when the file has everything that was acknowledged. */
  async ready(): Promise<void> {
    while (this.#needsReplay) await this.exclusive(async () => {});
  }

  /** The writer's connection, for callers inside `exclusive`. */
  get writer(): Connection {
    if (this.#writer === undefined) throw this.#closedError();
    return this.#writer;
  }

  /** A connection that sees what is committed; to be used at once, since later it may be closed. */
  async reader(): Promise<Connection> {
    await this.ready();
    return this.#openReader();
  }

  /** Runs `fn` on a connection that sees what is committed. */
  async read<T>(fn: (connection: Connection) => T): Promise<T> {
    await this.ready();
    return fn(this.#openReader());
  }

  #openReader(): Connection {
    if (this.#closed) throw this.#closedError();
    return (this.#reader ??= this.#connect('reader'));
  }

  #closedError(): NostosError {
    return new NostosError('CLOSED', `tenant ${this.identity.name} is closed`);
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
      this.#needsReplay = true; // the expected fingerprint has moved already
      throw error;
    }
    if (entries.length === 0) {
      this.#endEmpty();
      return undefined;
    }
    const fingerprint = this.#expected.total();
    const bytes = entries.reduce((sum, entry) => sum + entry.payload.length, 0);
    const appended = await this.append(entries, () => this.#expected.revert(changesets, this.shape)).finally(() => {
      for (const { payload } of entries) releaseBuffer(payload);
      for (const changeset of changesets) releaseBuffer(changeset);
    });
    const last = (appended.firstLsn + entries.length - 1) as Lsn;
    this.#finishCommit({ term: appended.term, lsn: last, hash: lastHash(appended.hashes), fingerprint }, state);
    this.#changedBytes += bytes;
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
      if (isNostosError(error, 'OUTCOME_UNKNOWN')) this.#needsReplay = true;
      throw error;
    }
  }

  /** COMMIT of a migration: like `commit`, with the schema that it led to. */
  finishSchema(applied: AppliedPosition, schemaVersion: number, shape: SchemaShape): void {
    this.#finishCommit(applied, 'intact', () => {
      writeSchemaVersion(this.writer, schemaVersion, serializeShape(shape));
      writeFingerprint(this.writer, applied.lsn, this.#expected.serialize());
    });
    if (this.#needsReplay) return;
    this.#noted = applied.lsn;
    this.#schemaVersion = schemaVersion;
    this.#shapes.set(schemaVersion, shape);
    this.#traits = readTraits(this.shape, this.writer);
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
    if (this.#changedBytes >= WAL_CHECK_BYTES) await this.#relieveWal();
  }

  /** The connections are not to be used any more: the next use opens new ones. */
  invalidate(): void {
    this.#needsReplay = true;
  }

  rollback(): void {
    const writer = this.#writer;
    if (writer?.inTransaction !== true) return;
    try {
      writer.internal('rollback').run();
    } catch {
      this.#needsReplay = true; // SQLite itself could not go back: open the file anew
    }
  }

  /** Writes everything into the file and closes it. What fails here costs a replay at the next open; `lag` tells. */
  close(): Promise<void> {
    if (this.#closed) return Promise.resolve();
    return new Promise((resolve) => {
      const run = async (): Promise<void> => {
        this.#closed = true;
        this.#endHold(
          new NostosError('TENANT_NOT_FOUND', `tenant ${this.identity.name} was dropped while it was copied`),
        );
        try {
          await this.#checkpointing;
          await this.recovered();
          await this.#checkpointAndClose();
        } catch {
          // see above
        }
        for (const job of this.#queue.splice(0)) job.reject(this.#closedError());
        try {
          this.#release();
          this.#expected.release();
          if (this.#descriptor !== undefined) closeSync(this.#descriptor);
        } finally {
          resolve();
        }
      };
      this.#enqueue({ kind: 'exclusive', run, reject: () => resolve() }, false);
    });
  }

  /** Brings the file itself up to date, so that the log need not be kept for it. */
  async checkpoint(): Promise<void> {
    await this.exclusive(async () => {
      await this.#checkpointing;
      if (this.#durable < this.#applied.lsn) await this.#checkpoint('passive');
    });
  }

  /**
   * Brings everything into the file and keeps it as it is until `releaseHold`, while writers go on in the WAL. False
   * where a reader that began earlier is in the way: try again.
   */
  async hold(holder: Holder): Promise<HeldFile | undefined> {
    // Most of the WAL is moved beside the writers, so that they are held up for the rest only.
    await this.exclusive(async () => {
      if (this.#held === undefined && !this.#isWhole) this.#checkpointAside();
    });
    await this.#checkpointing;
    return this.exclusive(async () => {
      await this.#checkpointing;
      const held = (this.#held ??= await this.#startHold());
      held?.holders.add(holder);
      return held?.file;
    });
  }

  releaseHold(holder: Holder): void {
    if (this.#held?.holders.delete(holder) === true && this.#held.holders.size === 0) this.#endHold();
  }

  async #startHold(): Promise<Held | undefined> {
    if (!this.#isWhole && !(await this.#checkpoint('passive'))) return undefined;
    const guard = this.#connect('reader');
    try {
      readTenantMeta(guard);
      this.#descriptor ??= openSync(this.path, 'r');
      const file = { descriptor: this.#descriptor, bytes: fstatSync(this.#descriptor).size, applied: this.#applied };
      return { file, holders: new Set(), guard };
    } catch (error) {
      guard.close();
      throw diskError('open', this.path, error);
    }
  }

  /** Whether the file itself has everything. A cold tenant was closed like that: nothing has to be moved for its copy. */
  get #isWhole(): boolean {
    const { log, checkpointed } = this.writer.internal(WAL_STATE).get() as { log: bigint; checkpointed: bigint };
    return log === checkpointed && this.#noted === this.#applied.lsn;
  }

  #endHold(reason?: NostosError): void {
    const held = this.#held;
    if (held === undefined) return;
    if (reason !== undefined) for (const holder of held.holders) holder.onLost(reason);
    this.#held = undefined;
    held.guard.close();
    if (this.#closed || this.#writer === undefined) return;
    // What has gathered meanwhile is moved in the background, which takes its time, before writers are held up for it.
    this.#extendedAtBytes = walContentBytes(this.#writer);
    const roomBytes = Math.max(this.#options.limits.checkpointHoldBytes, this.#extendedAtBytes / 2);
    this.#holdAtBytes = this.#extendedAtBytes + roomBytes;
    this.exclusive(() => this.#relieveWal()).catch(() => {}); // tried again with the next writes
  }

  #enqueue(job: WriteJob | ExclusiveJob, ofUser = true): void {
    if (this.#closed) return job.reject(this.#closedError());
    if (ofUser && this.#queue.length >= this.#options.limits.tenantQueueMax)
      return job.reject(
        new NostosError('QUEUE_FULL', `${this.#queue.length} writes wait for tenant ${this.identity.name} already`),
      );
    this.#queue.push(job);
    if (this.#draining) return;
    this.#draining = true;
    // Those who write in the same turn share a group.
    queueMicrotask(() => void this.#drain());
  }

  async #drain(): Promise<void> {
    while (this.#queue.length > 0) {
      const head = this.#queue[0]!;
      if (head.kind === 'exclusive') {
        this.#queue.shift();
        await head.run();
      } else {
        await this.#writeGroup(this.#takeGroup());
      }
      if (this.#changedBytes >= WAL_CHECK_BYTES) await this.#relieveWal().catch(() => {}); // tried again soon
    }
    this.#draining = false;
    this.#deps.onIdle?.();
  }

  #takeGroup(): WriteJob[] {
    const max = this.#options.limits.groupTransactionsMax;
    let count = 0;
    while (count < this.#queue.length && count < max && this.#queue[count]!.kind === 'write') count += 1;
    return this.#queue.splice(0, count) as WriteJob[];
  }

  async #writeGroup(all: WriteJob[]): Promise<void> {
    const jobs: WriteJob[] = [];
    for (const job of all) {
      if (job.signal?.aborted === true) job.reject(job.signal.reason);
      else jobs.push(job);
    }
    if (jobs.length === 0) return;
    let outcomes: Outcome<WriteJob>[] = [];
    try {
      if (this.#needsReplay) await this.#recover();
      const result = runGroup(this.writer, jobs, this.#traits.mayRollBack ? 'separate' : 'shared', {
        changesetBytesMax: this.#options.limits.recordBytesMax - RECORD_RESERVE_BYTES,
        changesMax: GROUP_CHANGES_MAX,
        deferredKeys: this.#traits.deferredKeys,
      });
      outcomes = result.outcomes;
      if (result.left.length > 0) this.#queue.unshift(...result.left);
      await this.commit(result.records, result.state);
      if (this.#needsReplay) await this.#recover().catch(() => {}); // tried again by whoever comes next
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
  }

  #entry(captured: Uint8Array, state: 'intact' | 'spoilt'): LogEntry[] {
    const changeset = stripTables(captured, isUnreplicated);
    if (changeset.length === 0) return [];
    this.#expected.apply(changeset, this.shape);
    // SQLite has rolled the counters of a spoilt group back; there the inserted rows themselves will raise them.
    const counters = state === 'spoilt' ? [] : this.#traits.counters;
    const touched = counters.length === 0 ? [] : touchedTables(changeset).filter((table) => counters.includes(table));
    const payload = encodeChangesetPayload({
      schemaVersion: this.#schemaVersion,
      fingerprint: this.#expected.total(),
      sequences: touched.length === 0 ? [] : readSequences(this.writer, touched),
      changeset,
    });
    if (changeset !== captured) releaseBuffer(changeset);
    return [{ tenant: this.identity.id, kind: RecordKind.changeset, payload }];
  }

  #endEmpty(): void {
    const writer = this.#writer;
    if (writer?.inTransaction === true) writer.internal('commit').run();
  }

  #finishCommit(applied: AppliedPosition, state: 'intact' | 'spoilt', extra?: () => void): void {
    try {
      if (state === 'spoilt') {
        this.#needsReplay = true;
      } else {
        // Without its transaction this would commit by itself: a position without the rows.
        if (!this.writer.inTransaction) throw new NostosError('INTERNAL', 'SQLite has lost the transaction');
        writeApplied(this.writer, applied);
        extra?.();
        this.writer.internal('commit').run();
        this.#applied = applied;
      }
    } catch {
      this.rollback();
      this.#needsReplay = true;
    }
    this.#appending = false;
  }

  /** Keeps the WAL small: in the background first, and with the queue held when that was not enough. */
  async #relieveWal(): Promise<void> {
    this.#changedBytes = 0;
    const { checkpointBytes, checkpointHoldBytes } = this.#options.limits;
    const bytes = walContentBytes(this.writer);
    if (this.#held !== undefined) {
      const { restoreHoldBytesMax } = this.#options.limits;
      if (bytes > restoreHoldBytesMax) this.#endHold(this.#heldTooMuch(bytes, restoreHoldBytesMax));
      return;
    }
    if (bytes < this.#extendedAtBytes) [this.#extendedAtBytes, this.#holdAtBytes] = [0, checkpointHoldBytes];
    if (bytes >= this.#holdAtBytes) {
      await this.#checkpointing;
      const complete = await this.#checkpoint('restart').catch(() => false);
      // A reader with an old snapshot is in the way: its writers are not made to wait for it again before the WAL has
      // grown by as much once more. How long it may be is bounded by the age of readers.
      this.#extendedAtBytes = complete ? 0 : bytes;
      this.#holdAtBytes = this.#extendedAtBytes + checkpointHoldBytes;
    } else if (bytes >= checkpointBytes) this.#checkpointAside();
  }

  #heldTooMuch(heldBytes: number, limitBytes: number): NostosError {
    const { name } = this.identity;
    const heldFrom = this.#held?.file.applied.lsn;
    return new NostosError(
      'RESERVATION_EXPIRED',
      `the copy of tenant ${name} as of LSN ${heldFrom} was given up: its writers have gone on for ${heldBytes} bytes meanwhile, the limit restoreHoldBytesMax is ${limitBytes}; fetch it again, or raise the limit`,
      { details: { tenant: name, heldBytes, limitBytes, heldFrom, lsn: this.#applied.lsn } },
    );
  }

  /** For callers between two transactions; beside it writers go on. */
  #checkpointAside(): void {
    this.#checkpointing ??= this.#checkpoint('passive')
      .catch(() => false)
      .finally(() => (this.#checkpointing = undefined));
  }

  walBytes(): number {
    return statSync(`${this.path}-wal`, { throwIfNoEntry: false })?.size ?? 0;
  }

  /** True when everything that the WAL held is in the file. */
  async #checkpoint(mode: 'passive' | 'restart'): Promise<boolean> {
    if (this.#needsReplay || this.#writer === undefined || this.#held !== undefined) return false;
    const { lsn } = this.#applied;
    this.#noteFingerprint();
    const { complete } = await this.#deps.maintenance.checkpoint(this.path, mode, this.#unfound());
    if (complete) this.#heldDurably(lsn);
    return complete;
  }

  async #checkpointAndClose(): Promise<void> {
    if (this.#needsReplay || this.#writer === undefined) return;
    const { lsn } = this.#applied;
    this.#noteFingerprint();
    // Nothing is to be moved or synced, so nothing takes long.
    if (this.#durable >= lsn && this.#findable && this.walBytes() === 0) return this.#release();
    const close = (): void => this.#release();
    const { complete } = await this.#deps.maintenance.checkpointAndClose(this.path, this.#unfound(), close);
    if (complete) this.#heldDurably(lsn);
  }

  #noteFingerprint(): void {
    const { lsn } = this.#applied;
    if (this.#noted === lsn) return;
    writeFingerprint(this.writer, lsn, this.#expected.serialize());
    this.#noted = lsn;
  }

  /** Directories that a power cut may yet forget this file in. */
  #unfound(): readonly string[] {
    return this.#findable ? [] : above(this.path);
  }

  #heldDurably(lsn: Lsn): void {
    this.#findable = true;
    if (lsn > this.#durable) this.#durable = lsn;
  }

  #connect(role: 'writer' | 'reader' | 'applier'): Connection {
    return new Connection(this.path, { role, statementCacheMax: this.#options.limits.statementCacheMax });
  }

  #release(): void {
    this.#reader?.close();
    this.#reader = undefined;
    this.#writer?.close();
    this.#writer = undefined;
  }

  /** (Re)opens the file and applies what the log has and the file has not. */
  async #recover(): Promise<void> {
    this.#release();
    try {
      const made = await this.#makeFile();
      const wholeFile = this.walBytes() === 0;
      this.#writer = this.#connect('writer');
      await this.#catchUp(this.#writer, { wholeFile, made });
      this.#traits = readTraits(this.shape, this.writer);
      this.#needsReplay = false;
    } catch (error) {
      this.#release();
      this.#needsReplay = true;
      throw fromSqlite(error);
    }
  }

  /** Where there is no file, or an empty one, makes a new one; true if it did. */
  async #makeFile(): Promise<boolean> {
    if ((statSync(this.path, { throwIfNoEntry: false })?.size ?? 0) > 0) return false;
    if (this.#options.opened) await this.#assertRebuildable();
    await createTenantFile(this.path, this.#options.identity);
    return true;
  }

  /** `wholeFile`: there was no WAL, so that everything in the file is there durably. */
  async #catchUp(opened: Connection, { wholeFile, made }: { wholeFile: boolean; made: boolean }): Promise<void> {
    const { log } = this.#deps;
    const { identity, createdAt } = this.#options;
    const meta = readTenantMeta(opened);
    if (meta === undefined)
      throw new NostosError(
        'TENANT_DAMAGED',
        `${this.path} is not the file of a tenant; restore this tenant from a backup or a peer`,
      );
    if (meta.identity.uuid !== identity.uuid)
      throw new NostosError(
        'TENANT_DAMAGED',
        `${this.path} belongs to tenant ${meta.identity.name} (${meta.identity.uuid})`,
      );
    const noted = readFingerprint(opened);
    const expected = ExpectedFingerprint.parse(identity.uuid, noted?.buckets);
    if (noted !== undefined) releaseBuffer(noted.buckets);
    const state = { applied: meta, shapes: shapesFrom(readShapes(opened)), expected };
    this.#noted = noted?.lsn ?? NO_LSN;
    // When it was closed like that, everything was synced, the directories too.
    this.#findable ||= !made && meta.lsn > NO_LSN && this.#options.held === meta.lsn;
    const until = log.watermark;
    const location = await log.locate(identity.id, meta.lsn);
    if (location.at !== undefined) checkChain(location.at, meta);
    else if (meta.lsn > log.watermark) throw this.#aheadOfLog(meta.lsn);
    this.#durable = Math.max(this.#durable, durablyHeld(meta.lsn, this.#noted, location, wholeFile)) as Lsn;
    // A file that holds less than it did is an older copy; what it lacks is below what the log counts as done.
    const older = !made && meta.lsn < this.#options.held;
    const rebuild = older || (made && this.#options.opened);
    // Up to `location.durable` the file lacks nothing, and the log below may be gone.
    const from = Math.max(this.#noted + 1, rebuild ? createdAt : Math.max(createdAt, location.durable + 1)) as Lsn;
    const to = rebuild ? log.watermark : location.last;
    if (to >= from) {
      this.#release();
      using applier = this.#connect('applier');
      await new Replay(applier, state).run(log, from, to, { tenant: identity.id }).catch((error: unknown) => {
        throw older && isNostosError(error, 'LOG_PRUNED') ? this.#olderFile(meta.lsn, error) : error;
      });
    }
    this.#writer ??= this.#connect('writer');
    this.#applied = state.applied;
    this.#quiet = { after: state.applied.lsn, until };
    this.#schemaVersion = state.applied.schemaVersion;
    this.#shapes = state.shapes;
    this.#expected = expected;
    if (!Buffer.from(expected.total()).equals(state.applied.fingerprint))
      throw new NostosError(
        'TENANT_DAMAGED',
        `${this.path}: its stored fingerprint does not lead to the one of record ${state.applied.lsn}`,
      );
  }

  /** The file is lost: it may be made again from the log as long as that holds all of the tenant. */
  async #assertRebuildable(): Promise<void> {
    const { identity, createdAt } = this.#options;
    const { at } = await this.#deps.log.locate(identity.id, createdAt);
    if (at !== undefined) return;
    throw new NostosError(
      'TENANT_DAMAGED',
      `${this.path} is missing or empty, and the log no longer holds all of tenant ${identity.name}, which began at record ${createdAt}; restore this tenant from a backup or a peer`,
      { details: { path: this.path, createdAt } },
    );
  }

  #olderFile(lsn: Lsn, cause: unknown): NostosError {
    const { held } = this.#options;
    return new NostosError(
      'TENANT_DAMAGED',
      `${this.path} is an older copy: it holds record ${lsn} and held ${held}, and the log no longer has what lies between; restore this tenant from a backup or a peer`,
      { cause, details: { lsn, held, path: this.path } },
    );
  }

  #aheadOfLog(lsn: Lsn): NostosError {
    return new NostosError(
      'LOG_DAMAGED',
      `tenant ${this.identity.name} holds record ${lsn}, the log ends at ${this.#deps.log.watermark}: the log has lost acknowledged records`,
      { details: { lsn, watermark: this.#deps.log.watermark } },
    );
  }
}

/** The directories whose entries lead to a tenant's file, up to the data directory. */
function above(path: string): string[] {
  const own = dirname(path);
  return [own, dirname(own), dirname(dirname(own))];
}

/** The position that a file holds even after a power cut, as far as can be told on opening. */
function durablyHeld(applied: Lsn, noted: Lsn, location: TenantLocation, wholeFile: boolean): Lsn {
  if (location.last === NO_LSN) return applied; // nobody waits for anything of this tenant
  return wholeFile ? noted : (Math.min(noted, location.durable) as Lsn);
}

/** What is in the WAL since it began anew; its file keeps the size that it once had. */
function walContentBytes(writer: Connection): number {
  const row = writer.internal(WAL_STATE).get() as { log: bigint };
  return Number(row.log) * WAL_FRAME_BYTES;
}

function assertFits(bytes: number, limit: number): void {
  if (bytes <= limit) return;
  throw new NostosError(
    'TRANSACTION_TOO_LARGE',
    `the transaction changes ${bytes} bytes, the limit is ${limit}; split it into smaller ones`,
    { details: { bytes, limit } },
  );
}
