/**
 * The file of a tenant while it is open: its connections, what it holds, and up to where it holds that durably.
 *
 * `stale` says that the connections are not to be used any more, because the file may lack what the log has, or SQLite
 * could not go back: the next use opens it anew and catches up (`recover-file.ts`).
 */
import { statSync } from 'node:fs';
import { NO_LSN, type Lsn } from '../base/brands.ts';
import { NostosError } from '../base/errors.ts';
import type { Limits } from '../base/limits.ts';
import { Connection, type ConnectionRole } from './connection.ts';
import type { ExpectedFingerprint } from './expected-fingerprint.ts';
import { autoincrementTables } from './migration.ts';
import { schemaMayRollBack } from './schema-check.ts';
import type { SchemaShape } from './schema-shape.ts';
import { writeFingerprint, type AppliedPosition, type TenantIdentity } from './tenant-file.ts';

/** What the write path must know about a schema, worked out once. */
export interface SchemaTraits {
  /** Tables whose AUTOINCREMENT counters travel in the records. */
  readonly counters: readonly string[];
  readonly deferredKeys: boolean;
  /** A conflict action of the schema can roll back a whole group. */
  readonly mayRollBack: boolean;
}

/** What the file holds, as it was read when it was opened and has moved since. */
export interface FileContent {
  applied: AppliedPosition;
  schemaVersion: number;
  /** Those of all schema versions so far. */
  readonly shapes: Map<number, SchemaShape>;
  readonly expected: ExpectedFingerprint;
}

export class OpenFile {
  readonly path: string;
  readonly identity: TenantIdentity;
  readonly #limits: Limits;
  #writer: Connection | undefined;
  #reader: Connection | undefined;
  #content: FileContent | undefined;
  #traits: SchemaTraits | undefined;
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

  constructor(path: string, identity: TenantIdentity, limits: Limits) {
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
    return (this.#writer === undefined ? 0 : 3) + (this.#reader === undefined ? 0 : 2);
  }

  get writer(): Connection {
    if (this.#writer === undefined) throw this.closedError();
    return this.#writer;
  }

  get hasWriter(): boolean {
    return this.#writer !== undefined;
  }

  get reader(): Connection {
    if (this.closed) throw this.closedError();
    return (this.#reader ??= this.connect('reader'));
  }

  get traits(): SchemaTraits {
    return (this.#traits ??= {
      counters: autoincrementTables(this.shape),
      deferredKeys: [...this.shape.tables.values()].some((table) => table.hasDeferrableForeignKeys),
      mayRollBack: schemaMayRollBack(this.writer.database),
    });
  }

  connect(role: ConnectionRole): Connection {
    return new Connection(this.path, { role, statementCacheMax: this.#limits.statementCacheMax });
  }

  openWriter(): Connection {
    return (this.#writer ??= this.connect('writer'));
  }

  /** Closes the connections; what is known of the content stays. */
  release(): void {
    this.#reader?.close();
    this.#reader = undefined;
    this.#writer?.close();
    this.#writer = undefined;
  }

  /** The content was read anew. */
  hold(content: FileContent): void {
    this.#content = content;
    this.#traits = undefined;
  }

  /** A migration was committed. */
  moveSchema(version: number, shape: SchemaShape): void {
    this.content.schemaVersion = version;
    this.content.shapes.set(version, shape);
    this.#traits = undefined;
  }

  /** Undoes the open transaction, where there is one. */
  rollback(): void {
    if (this.#writer?.inTransaction !== true) return;
    try {
      this.#writer.internal('rollback').run();
    } catch {
      this.stale = true; // SQLite itself could not go back: open the file anew
    }
  }

  /** Stores the expected fingerprint of now, so that the log before it is not needed to know it. */
  noteFingerprint(): void {
    const { lsn } = this.applied;
    if (this.noted === lsn) return;
    writeFingerprint(this.writer, lsn, this.content.expected.serialize());
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
