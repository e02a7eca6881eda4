/**
 * The file of a tenant while it is open: its connections, what it holds, and up to where it holds that durably. What
 * changes it is one connection: of a primary the writer, of a replica the applier, which is never queried.
 *
 * `stale` says that the connections are not to be used any more, because the file may lack what the log has, or SQLite
 * could not go back: the next use opens it anew and catches up (`recover-file.ts`).
 */
import { statSync } from 'node:fs';
import { NO_LSN, type Lsn } from '../base/brands.ts';
import { NostosError } from '../base/errors.ts';
import type { Limits } from '../base/limits.ts';
import { Connection, type ConnectionRole } from './connection.ts';
import { autoincrementTables } from './migration.ts';
import type { SequenceValue } from './payload.ts';
import type { ForgetLedger } from '../log/ledger.ts';
import { Replay, type FileContent } from './replay.ts';
import { schemaMayRollBack } from './schema-check.ts';
import type { SchemaShape } from './schema-shape.ts';
import { readSequences, writeFingerprint, type AppliedPosition, type TenantIdentity } from './tenant-file.ts';

/** What the write path must know about a schema, worked out once. */
export interface SchemaTraits {
  /** Tables whose AUTOINCREMENT counters travel in the records. */
  readonly counters: readonly string[];
  readonly deferredKeys: boolean;
  /** A conflict action of the schema can roll back a whole group. */
  readonly mayRollBack: boolean;
}

export type TenantRole = 'primary' | 'replica';

interface OpenFileOptions {
  readonly limits: Limits;
  readonly role: TenantRole;
  readonly ledger: ForgetLedger;
}

const NO_TRAITS: SchemaTraits = { counters: [], deferredKeys: false, mayRollBack: false };

export class OpenFile {
  readonly path: string;
  readonly identity: TenantIdentity;
  readonly #limits: Limits;
  readonly #ledger: ForgetLedger;
  #main: Connection | undefined;
  #reader: Connection | undefined;
  #content: FileContent | undefined;
  #replay: Replay | undefined;
  #traits: SchemaTraits = NO_TRAITS;
  /** AUTOINCREMENT counters at the applied position, by table. */
  #counters = new Map<string, bigint>();
  role: TenantRole;
  /** The last `local` record of this reign: committed or not, the file must have it. */
  acknowledged: Lsn = NO_LSN;
  /** Everything of this tenant up to here is in the file, committed or `local`. */
  appliedTo: Lsn = NO_LSN;
  /** Everything up to here is in the file even after a power cut. */
  durable: Lsn = NO_LSN;
  /** LSN up to which the stored fingerprint counts. */
  noted: Lsn = NO_LSN;
  /** Known when it was opened: after `after` the log had nothing of this tenant up to `until`. */
  quiet: { readonly after: Lsn; readonly until: Lsn } = { after: NO_LSN, until: NO_LSN };
  /** Whether the directories down to the file have been synced, without which a power cut may take the file. */
  findable = false;
  stale = false;
  closed = false;

  constructor(path: string, identity: TenantIdentity, { limits, role, ledger }: OpenFileOptions) {
    this.role = role;
    this.#ledger = ledger;
    this.path = path;
    this.identity = identity;
    this.#limits = limits;
  }

  get content(): FileContent {
    if (this.#content === undefined) throw new NostosError('INTERNAL', `${this.path} was not read yet`);
    return this.#content;
  }

  get applied(): AppliedPosition {
    return this.content.applied;
  }

  get shape(): SchemaShape {
    const { shapes, schemaVersion } = this.content;
    return shapes.get(schemaVersion)!;
  }

  /** Connections to it, each with its WAL, and who maps the index of the WAL. */
  get openFiles(): number {
    return (this.#main === undefined ? 0 : 3) + (this.#reader === undefined ? 0 : 2);
  }

  /** What changes the file. */
  get main(): Connection {
    if (this.#main === undefined) throw this.closedError();
    return this.#main;
  }

  get isOpen(): boolean {
    return this.#main !== undefined;
  }

  get reader(): Connection {
    if (this.closed) throw this.closedError();
    return (this.#reader ??= this.connect('reader'));
  }

  /** Applies records of the log, on a replica. */
  get replay(): Replay {
    return (this.#replay ??= this.replayOn(this.main, this.content));
  }

  replayOn(connection: Connection, content: FileContent): Replay {
    return new Replay(connection, content, { ledger: this.#ledger, uuid: this.identity.uuid });
  }

  get traits(): SchemaTraits {
    return this.#traits;
  }

  get counters(): ReadonlyMap<string, bigint> {
    return this.#counters;
  }

  connect(role: ConnectionRole): Connection {
    return new Connection(this.path, { role, statementCacheMax: this.#limits.statementCacheMax });
  }

  openMain(): Connection {
    return (this.#main ??= this.connect(this.role === 'primary' ? 'writer' : 'applier'));
  }

  /** Closes the connections; what is known of the content stays. */
  release(): void {
    this.#reader?.close();
    this.#reader = undefined;
    this.#main?.close();
    this.#main = undefined;
    this.#replay = undefined;
  }

  /** The content was read anew. */
  hold(content: FileContent): void {
    this.#content = content;
    this.#replay = undefined;
    this.readTraits();
  }

  /** The role has changed: the connection that changes the file is of another kind now. */
  reopenMain(): void {
    this.stale = true; // unless all of it succeeds
    this.#main?.close();
    this.#main = undefined;
    this.#replay = undefined;
    this.openMain();
    this.readTraits();
    this.stale = false;
  }

  /** A record was committed; `counters` are those that it carried. */
  moved(applied: AppliedPosition, counters: readonly SequenceValue[]): void {
    this.content.applied = applied;
    if (applied.lsn > this.appliedTo) this.appliedTo = applied.lsn;
    for (const { table, value } of counters) this.#counters.set(table, value);
  }

  /** A migration was committed. */
  moveSchema(version: number, shape: SchemaShape): void {
    this.content.schemaVersion = version;
    this.content.shapes.set(version, shape);
    this.readTraits();
  }

  /** For a writer only: a replica writes nothing. */
  readTraits(): void {
    if (this.role !== 'primary') return;
    const { tables } = this.shape;
    const counters = autoincrementTables(this.shape);
    this.#traits = {
      counters,
      deferredKeys: [...tables.values()].some((table) => table.hasDeferrableForeignKeys),
      mayRollBack: schemaMayRollBack(this.main.database),
    };
    this.#counters = new Map(readSequences(this.main, counters).map(({ table, value }) => [table, value]));
  }

  /** Undoes the open transaction, where there is one. */
  rollback(): void {
    if (this.#main?.inTransaction !== true) return;
    try {
      this.#main.internal('rollback').run();
    } catch {
      this.stale = true; // SQLite itself could not go back: open the file anew
    }
  }

  /** Stores the expected fingerprint of now, so that the log before it is not needed to know it. */
  noteFingerprint(): void {
    const { lsn } = this.applied;
    if (this.noted === lsn) return;
    writeFingerprint(this.main, lsn, this.content.expected.serialize());
    this.noted = lsn;
  }

  heldDurably(lsn: Lsn): void {
    this.findable = true;
    if (lsn > this.durable) this.durable = lsn;
  }

  /** 0 where there is none. */
  bytes(): number {
    return sizeOf(this.path);
  }

  walBytes(): number {
    return sizeOf(`${this.path}-wal`);
  }

  closedError(): NostosError {
    return new NostosError('CLOSED', `tenant ${this.identity.name} is closed`);
  }
}

function sizeOf(path: string): number {
  return statSync(path, { throwIfNoEntry: false })?.size ?? 0;
}
