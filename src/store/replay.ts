/**
 * Brings a tenant file up to the log: applies every record above the applied position, and adds the records between
 * the position of the stored fingerprint and the applied one to the expected fingerprint.
 *
 * - Runs on an applier connection; the tenant's writer and readers are closed meanwhile.
 * - Each batch is one SQLite transaction that also moves the applied position, so a crash at any step leaves a prefix
 *   and the next replay goes on from there.
 * - `applyChangeset` answers true for tables that are missing or narrower, and most flipped bits apply. So what the
 *   batch really changed is captured and must lead to the fingerprint that the record carries.
 * - What a record forgets is in the ledger before its batch is committed; these records are committed ones, since what
 *   forgets is never `local`.
 * - A batch of several records may conflict with itself where each alone does not, more often where it is joined by
 *   table; then it is joined in order, and then its records go one by one.
 */
import { constants } from 'node:sqlite';
import { toHash, type Lsn, type TenantUuid } from '../base/brands.ts';
import { NostosError, isNostosError } from '../base/errors.ts';
import { releaseBuffer } from '../base/release.ts';
import type { CommitLog, CommittedRecord, PageRequest } from '../log/commit-log.ts';
import { readCommitted } from '../log/commit-log.ts';
import type { ForgetLedger } from '../log/ledger.ts';
import { RecordKind } from '../log/record.ts';
import { concatByTable, concatChangesets } from './changeset.ts';
import type { Connection } from './connection.ts';
import type { ExpectedFingerprint } from './expected-fingerprint.ts';
import { advanceFingerprint, applySchemaCounters, replaySteps, shapeAfter } from './migration.ts';
import { decodeChangesetPayload, decodeSchemaPayload, ledgerEntryOf, type ChangesetPayload } from './payload.ts';
import { parseShape, serializeShape, type SchemaShape } from './schema-shape.ts';
import { fromSqlite } from './sqlite-errors.ts';
import {
  raiseSequences,
  writeApplied,
  writeFingerprint,
  writeSchemaVersion,
  type AppliedPosition,
} from './tenant-file.ts';

const BATCH_RECORDS_MAX = 4096;
const BATCH_BYTES_MAX = 1024 * 1024;

interface PendingRecord {
  readonly record: CommittedRecord;
  readonly payload: ChangesetPayload;
}

/** What a file holds; moves with each batch. */
export interface FileContent {
  applied: AppliedPosition;
  schemaVersion: number;
  /** Those of all schema versions so far. */
  readonly shapes: Map<number, SchemaShape>;
  readonly expected: ExpectedFingerprint;
}

/** Where the forgets of a tenant go. */
export interface ForgetTo {
  readonly ledger: ForgetLedger;
  readonly uuid: TenantUuid;
}

export class Replay {
  readonly #connection: Connection;
  readonly #state: FileContent;
  readonly #forgetTo: ForgetTo;
  #batch: PendingRecord[] = [];
  #batchBytes = 0;
  /** Changes that were applied since somebody asked. */
  #appliedBytes = 0;

  constructor(connection: Connection, state: FileContent, forgetTo: ForgetTo) {
    this.#connection = connection;
    this.#state = state;
    this.#forgetTo = forgetTo;
  }

  async run(log: CommitLog, range: Pick<PageRequest, 'from' | 'to' | 'tenant' | 'uncommitted'>): Promise<void> {
    this.#forget();
    for await (const page of readCommitted(log, range)) for (const record of page) this.#take(record);
    this.#flush();
  }

  /** Records of this tenant, in order and without a gap to what the file holds; those that it holds are left out. */
  apply(records: readonly CommittedRecord[]): void {
    this.#forget();
    for (const record of records) if (record.lsn > this.#state.applied.lsn) this.#take(record);
    this.#flush();
  }

  /** How much was applied since the last call. */
  takeAppliedBytes(): number {
    const bytes = this.#appliedBytes;
    this.#appliedBytes = 0;
    return bytes;
  }

  /** What a call that failed has left. */
  #forget(): void {
    this.#batch = [];
    this.#batchBytes = 0;
  }

  #take(record: CommittedRecord): void {
    const { applied } = this.#state;
    if (record.lsn === applied.lsn && this.#batch.length === 0) checkChain(record, applied);
    switch (record.kind) {
      case RecordKind.changeset: {
        const payload = decodeChangesetPayload(record.payload);
        if (record.lsn <= applied.lsn) {
          this.#state.expected.apply(payload.changeset, this.#shape(payload.schemaVersion));
          return;
        }
        this.#batch.push({ record, payload });
        this.#batchBytes += payload.changeset.length;
        this.#appliedBytes += payload.changeset.length;
        if (this.#batch.length >= BATCH_RECORDS_MAX || this.#batchBytes >= BATCH_BYTES_MAX) this.#flush();
        return;
      }
      case RecordKind.schema:
        this.#flush();
        this.#appliedBytes += record.payload.length;
        if (record.lsn > applied.lsn) this.#applySchema(record);
        return;
      case RecordKind.tenantCreate:
      case RecordKind.tenantDrop:
      case RecordKind.tenantReset:
      case RecordKind.noop:
        return;
      default:
        throw new NostosError(
          'UNSUPPORTED_FORMAT',
          `record ${record.lsn} of kind ${record.kind} cannot be applied to a tenant`,
        );
    }
  }

  #flush(): void {
    const batch = this.#batch;
    this.#forget();
    if (batch.length === 0) return;
    if (this.#apply(batch, concatByTable)) return;
    if (batch.length > 1 && this.#apply(batch, concatChangesets)) return;
    for (const one of batch) if (!this.#apply([one], concatChangesets)) throw this.#diverged(one.record);
  }

  /** One batch in one SQLite transaction; false, with nothing changed, where rows and changes do not fit. */
  #apply(batch: readonly PendingRecord[], join: (changesets: readonly Uint8Array[]) => Uint8Array): boolean {
    const { database } = this.#connection;
    const { expected } = this.#state;
    const last = batch[batch.length - 1]!;
    const forgets = batch.flatMap(({ record }) => ledgerEntryOf(record, this.#forgetTo.uuid) ?? []);
    const before = expected.snapshot();
    try {
      this.#forgetTo.ledger.add(forgets);
      if (forgets.length > 0) database.exec('pragma secure_delete = on');
      this.#connection.internal('begin immediate').run();
      const captured = this.#applyCaptured(join(batch.map(({ payload }) => payload.changeset)));
      if (captured === undefined) {
        database.exec('rollback');
        return false;
      }
      expected.apply(captured, this.#shape(last.payload.schemaVersion));
      releaseBuffer(captured);
      if (!Buffer.from(expected.total()).equals(last.payload.fingerprint)) {
        database.exec('rollback');
        expected.restore(before);
        return false;
      }
      for (const { payload } of batch)
        if (payload.sequences.length > 0) raiseSequences(this.#connection, payload.sequences);
      this.#moveTo(last.record, last.payload.fingerprint, this.#state.schemaVersion);
      this.#connection.internal('commit').run();
      releaseBuffer(before);
      return true;
    } catch (error) {
      if (database.isTransaction) database.exec('rollback');
      expected.restore(before);
      throw fromSqlite(error);
    } finally {
      if (forgets.length > 0) database.exec('pragma secure_delete = off');
    }
  }

  #applyCaptured(changeset: Uint8Array): Uint8Array | undefined {
    const { database } = this.#connection;
    const session = database.createSession();
    try {
      const applied = database.applyChangeset(changeset, { onConflict: () => constants.SQLITE_CHANGESET_ABORT });
      return applied ? session.changeset() : undefined;
    } finally {
      session.close();
    }
  }

  #applySchema(record: CommittedRecord): void {
    const payload = decodeSchemaPayload(record.payload);
    const { database } = this.#connection;
    const { expected } = this.#state;
    const before = expected.snapshot();
    try {
      this.#connection.internal('begin immediate').run();
      replaySteps(this.#connection, payload.steps);
      applySchemaCounters(this.#connection, payload);
      const shape = shapeAfter(this.#connection, payload.steps, this.#shape(this.#state.schemaVersion));
      advanceFingerprint(this.#connection, payload.steps, shape, expected);
      if (!Buffer.from(expected.total()).equals(payload.fingerprint)) throw this.#diverged(record);
      writeSchemaVersion(this.#connection, payload.schemaVersion, serializeShape(shape));
      writeFingerprint(this.#connection, record.lsn, expected.serialize());
      this.#moveTo(record, payload.fingerprint, payload.schemaVersion);
      this.#connection.internal('commit').run();
      this.#state.shapes.set(payload.schemaVersion, shape);
    } catch (error) {
      if (database.isTransaction) database.exec('rollback');
      expected.restore(before);
      throw isNostosError(error) ? error : fromSqlite(error);
    }
  }

  #moveTo(record: CommittedRecord, fingerprint: Uint8Array, schemaVersion: number): void {
    const applied = {
      term: record.term,
      lsn: record.lsn,
      hash: record.hash,
      fingerprint: Uint8Array.from(fingerprint),
    };
    writeApplied(this.#connection, applied);
    this.#state.applied = { ...applied, hash: toHash(Uint8Array.from(record.hash)) };
    this.#state.schemaVersion = schemaVersion;
  }

  #shape(version: number): SchemaShape {
    const shape = this.#state.shapes.get(version);
    if (shape === undefined)
      throw new NostosError(
        'TENANT_DAMAGED',
        `${this.#connection.path} does not know schema version ${version}, which the log uses`,
      );
    return shape;
  }

  #diverged(record: CommittedRecord): NostosError {
    return new NostosError(
      'TENANT_DAMAGED',
      `${this.#connection.path}: record ${record.lsn} does not fit its rows, so they differ from what the log says; restore this tenant`,
      { details: { lsn: record.lsn, path: this.#connection.path } },
    );
  }
}

/** The position that a tenant file says it has must lie on the chain of this log. */
export function checkChain(
  inLog: { readonly term: number; readonly lsn: Lsn; readonly hash: Uint8Array },
  applied: { readonly term: number; readonly lsn: Lsn; readonly hash: Uint8Array },
): void {
  if (inLog.term === applied.term && Buffer.from(inLog.hash).equals(applied.hash)) return;
  throw new NostosError(
    'POSITION_LOST',
    `the tenant was at record ${applied.lsn} of term ${applied.term} of another history than this log`,
    { details: { lsn: applied.lsn, term: applied.term } },
  );
}

export function shapesFrom(serialized: ReadonlyMap<number, string>): Map<number, SchemaShape> {
  return new Map([...serialized].map(([version, text]) => [version, parseShape(text)]));
}
