/** The public shapes of a node and its tenants. */
import type { MemberChange } from '../replication/effects.ts';
import type { Durability } from '../log/commit-log.ts';
import type { BackupReport } from './backup-create.ts';
import type { GroupReport } from './engine-protocol.ts';
import type { GroupLogEntry } from './group-member.ts';
import type { RejoinProgress } from './rejoin-progress.ts';
import type {
  BootId,
  ClusterId,
  Generation,
  Lsn,
  NodeId,
  Position,
  StoreId,
  TenantId,
  TenantUuid,
  Term,
} from '../base/brands.ts';
import type { LimitName } from '../base/limits.ts';
import type { Int64Mode, Row, RunResult, SqlInput, SqlParameters, SqlStatement, SqlValue } from '../store/values.ts';

/** Reads inside one snapshot. All calls are synchronous. */
export interface Reader {
  /** The first row, or undefined. */
  get<R = Row>(statement: string | SqlStatement, parameters?: SqlParameters): R | undefined;
  all<R = Row>(statement: string | SqlStatement, parameters?: SqlParameters): R[];
  iterate<R = Row>(statement: string | SqlStatement, parameters?: SqlParameters): IterableIterator<R>;
  /** The first column of the first row, or undefined. */
  value<V extends SqlValue = SqlValue>(statement: string | SqlStatement, parameters?: SqlParameters): V | undefined;
}

/** One transaction. A statement that fails dooms it, unless it ran inside `savepoint`. */
export interface Transaction extends Reader {
  run(statement: string | SqlStatement, parameters?: SqlParameters): RunResult;
  /**
   * Deletes the row with this primary key for good, and says so in the record, so that no restore, import, rewind or
   * re-apply brings it back; rows inserted later are new data. A row that is not there is forgotten all the same: backups
   * may have it. Answers whether it was there.
   *
   * The write is `quorum`, and resolves when it is committed and every configured backup knows of it; after
   * `forgetTimeoutMs` it fails with `FORGET_PENDING`, committed, and that goes on in the background. Rows that foreign
   * keys delete with it are deleted as usual: forget them by name. The bytes themselves are gone once the log segments,
   * snapshots and rollback files that hold them are pruned, or their key is destroyed (docs/forget.md).
   *
   * @example await tenant.write((tx) => tx.forget('users', { id: 7 }))
   */
  forget(table: string, key: Readonly<Record<string, SqlInput>>): boolean;
  /** Runs `fn`; if it throws, what it changed is undone and the error goes on to the caller, who may catch it. */
  savepoint<T>(fn: () => T): T;
}

/** One step of a schema: SQL (one or more statements), or a function that changes rows. */
export type Migration = string | ((tx: Transaction) => void);

export interface WriteOptions {
  /**
   * `quorum`, the default: answered once the group can never lose it. `local`: once this node, which leads, has synced it;
   * the group may yet drop it, into a rollback file. Of a node without a group both are the same.
   */
  readonly durability?: Durability;
  /** Makes the write idempotent: a second one with the same id answers with the result of the first. */
  readonly id?: string;
  readonly int64?: Int64Mode;
  readonly signal?: AbortSignal;
}

export interface TransactionOptions extends WriteOptions {
  /** At most and by default the limit `transactionTimeoutMs`. */
  readonly timeoutMs?: number;
}

export interface ReadOptions {
  readonly int64?: Int64Mode;
  /**
   * Reads what contains this position, on any node: waits until it is here, and fails with `POSITION_LOST` where it never
   * will be, since the group has dropped it.
   */
  readonly min?: Position;
  /** How long to wait for `min`; by default the limit `queryTimeoutMs`. */
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal;
  /** On a primary: also without its lease, when another one may have written since. A replica always reads like that. */
  readonly stale?: boolean;
}

export interface QueryOptions extends ReadOptions {
  /** By default the limit `queryTimeoutMs`, at most `readerAgeMaxMs`. */
  readonly timeoutMs?: number;
}

export interface Progress {
  /** What is being done, in the user's words: `copying rows of Track`. */
  readonly phase: string;
  readonly done: number;
  /** Absent where it is not known beforehand. */
  readonly total?: number;
  readonly unit: 'bytes' | 'rows' | 'records' | 'tenants' | 'steps';
}

export interface LongCallOptions {
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: Progress) => void;
}

export interface RowChange {
  readonly table: string;
  readonly op: 'insert' | 'update' | 'delete';
  /** The columns of the primary key. */
  readonly key: Row;
  /** Before: all columns of a deleted row, the changed ones of an updated row. */
  readonly old?: Row;
  /** After: all columns of an inserted row, the changed ones of an updated row. */
  readonly new?: Row;
}

/** The committed changes of one record. Start again after `position`. */
export interface Change {
  readonly position: Position;
  readonly timeMs: number;
  readonly kind: 'changeset' | 'schema';
  readonly schemaVersion: number;
  readonly rows: readonly RowChange[];
}

export interface ChangesOptions {
  /** Yields what comes after this position; by default from the first record that the log still holds. `now`: only what is yet to come. */
  readonly from?: Position | 'now';
  /** End when all that is committed has been yielded, instead of waiting for more. */
  readonly untilCaughtUp?: boolean;
  readonly int64?: Int64Mode;
  readonly signal?: AbortSignal;
}

export interface MigrateReport {
  readonly tenant: string;
  readonly from: number;
  readonly to: number;
}

export interface TenantInfo {
  readonly name: string;
  readonly id: TenantId;
  readonly uuid: TenantUuid;
  readonly schemaVersion: number;
  readonly createdAt: Lsn;
}

export interface TenantStatus extends TenantInfo {
  readonly applied: { readonly term: Term; readonly lsn: Lsn };
  /** Everything up to here is in the database file even after a power cut. */
  readonly durableApplied: Lsn;
  readonly fileBytes: number;
  readonly walBytes: number;
  /** Digest of all cells as it follows from the log, 32 hex digits. */
  readonly fingerprint: string;
  readonly tables: readonly { readonly name: string; readonly rows: number }[];
}

export interface ImportOptions extends LongCallOptions {
  /** Give tables that have no usable key a new INTEGER PRIMARY KEY column instead of refusing them. */
  readonly addKey?: boolean;
  /** Import rows whose foreign keys point nowhere instead of refusing the file. */
  readonly keepViolations?: boolean;
  /** Check and report only. */
  readonly dryRun?: boolean;
}

export interface ImportReport {
  readonly tenant: string;
  readonly tables: readonly { readonly name: string; readonly rows: number; readonly addedKey?: string }[];
  readonly rows: number;
  readonly elapsedMs: number;
  readonly dryRun: boolean;
}

export interface ExportOptions extends LongCallOptions {
  readonly overwrite?: boolean;
}

export interface ExportReport {
  readonly tenant: string;
  readonly file: string;
  readonly bytes: number;
  readonly position: Position;
}

export interface Tenant {
  readonly name: string;
  /**
   * Runs `fn` in one transaction, in this thread; resolves with its result once that is durable. `fn` must be synchronous,
   * and may be called once more if the storage fails under the group of writes that it is in: change nothing but `tx`.
   */
  write<T>(fn: (tx: Transaction) => T, options?: WriteOptions): Promise<T>;
  /** The same for an asynchronous `fn`; other writes of this tenant wait meanwhile. */
  transaction<T>(fn: (tx: Transaction) => Promise<T>, options?: TransactionOptions): Promise<T>;
  /** Runs `fn` on a snapshot of what is committed, in this thread: for short work. */
  read<T>(fn: (reader: Reader) => T, options?: ReadOptions): Promise<T>;
  /** What this node has of the tenant, for `min` of a later read elsewhere: it contains every write answered before. */
  position(): Promise<Position>;
  /** Runs one statement in a reader process, which is killed when time is up or the signal says so: for long work. */
  query<R = Row>(statement: string | SqlStatement, parameters?: SqlParameters, options?: QueryOptions): Promise<R[]>;
  /** Brings the schema to `migrations.length`; those already applied are skipped. */
  migrate(migrations: readonly Migration[], options?: LongCallOptions): Promise<MigrateReport>;
  changes(options?: ChangesOptions): AsyncIterableIterator<Change>;
  importFile(file: string, options?: ImportOptions): Promise<ImportReport>;
  exportFile(file: string, options?: ExportOptions): Promise<ExportReport>;
  status(): Promise<TenantStatus>;
}

export interface ReplaceOptions extends LongCallOptions {
  /**
   * The state that the file holds, where it is one of this node's history, or of one that it comes from: what was forgotten
   * up to there the file has forgotten itself. Without it everything that was ever forgotten of this tenant counts.
   */
  readonly at?: Position;
  /** The schema version of a plain file. Default 1, as with an import; the file of a tenant says it itself. */
  readonly schemaVersion?: number;
  /** Where there is no tenant of this name, one is made, with this uuid: a dropped one comes back as the same. */
  readonly uuid?: TenantUuid;
  /** Take rows whose foreign keys point nowhere, instead of refusing a plain file. */
  readonly keepViolations?: boolean;
}

export interface ReplaceReport {
  readonly tenant: string;
  readonly rows: number;
  /** Rows of the file that were left out, since they were forgotten. */
  readonly forgotten: number;
  /** From here on the tenant has the new content; a change feed begins anew after it. */
  readonly position: Position;
  readonly elapsedMs: number;
}

export interface Tenants {
  create(name: string, options?: { readonly ifNotExists?: boolean }): Promise<Tenant>;
  get(name: string): Promise<TenantInfo | undefined>;
  /** In order of name, after `after`, at most `limit` (default 1,000). */
  list(options?: { readonly after?: string; readonly limit?: number }): Promise<readonly TenantInfo[]>;
  count(): Promise<number>;
  drop(name: string): Promise<void>;
  /**
   * Replaces the content of a tenant by that of a file: a plain SQLite file, or that of a tenant (of a restore, say), which
   * nobody writes to meanwhile. Followers and backups have it before it counts, others are served all the while.
   *
   * Writes that were acknowledged before are part of what is replaced; those that wait meanwhile, for as long as one record
   * takes, go to the new content. Handles go on with it; change feeds end with `TENANT_RESET`. Ids of idempotent writes are
   * those of the file. What was forgotten stays so. One that fails, or is cut off, leaves the tenant as it was.
   *
   * @example await node.tenants.replace('acme', '/restored/acme.sqlite')
   */
  replace(name: string, file: string, options?: ReplaceOptions): Promise<ReplaceReport>;
}

export interface RecordSummary {
  readonly position: Position;
  readonly timeMs: number;
  readonly kind: string;
  readonly tenant: TenantId;
  readonly payloadBytes: number;
  readonly watermark: Lsn;
  readonly hash: string;
}

export interface LogStatus {
  readonly generation: Generation;
  readonly term: Term;
  readonly firstLsn: Lsn;
  readonly lastLsn: Lsn;
  readonly watermark: Lsn;
  readonly segments: number;
  readonly bytes: number;
  readonly recovery: RecoverySummary;
}

export interface RecoverySummary {
  readonly recordsScanned: number;
  /** Bytes of a torn tail that were cut on open; they belonged to no acknowledged write. */
  readonly tornBytes: number;
  readonly elapsedMs: number;
}

/** A copy of this node that another one is fetching. */
export interface ServedCopy {
  readonly startedAtMs: number;
  /** What the receiver has taken. */
  readonly bytesSent: number;
  /** Tenants whose files are being sent; until they are, nothing is moved into them. */
  readonly holding: readonly TenantId[];
  /** The log is kept from this record on. */
  readonly logFrom: Lsn;
}

/** Of the backups that a node makes by itself. */
export interface BackupStatus {
  /** Without credentials. */
  readonly to: string;
  readonly running: 'snapshot' | 'prune' | null;
  /** The newest snapshot of the cluster there; how much it took is known of those made since this node was opened. */
  readonly last: {
    readonly snapshot: string;
    readonly atMs: number;
    readonly lsn: number;
    readonly bytesStored: number | null;
  } | null;
  readonly nextAtMs: number | null;
  /** Everything up to here is archived, as far as the log had it. */
  readonly archivedLsn: number | null;
  readonly archivedAtMs: number | null;
  readonly lagRecords: number;
  /** Since the node was opened. */
  readonly failures: number;
  /** The last failure since the last snapshot that was made. */
  readonly error: { readonly atMs: number; readonly message: string } | null;
}

export interface NodeStatus {
  readonly dir: string;
  readonly node: NodeId;
  readonly cluster: ClusterId;
  readonly store: StoreId;
  readonly boot: BootId;
  /** `copy`: made by a restore; it can be read, and appends nothing. */
  readonly role: 'primary' | 'replica' | 'copy';
  /** Of a node in a group. */
  readonly group?: GroupReport & {
    readonly events: readonly GroupLogEntry[];
    /** How far the way back to the group is; null before anything was decided. */
    readonly progress: RejoinProgress | null;
  };
  /** Of a copy: the store that was copied, where that is known, and up to where. */
  readonly copy?: {
    readonly source: StoreId | null;
    readonly reaches: { readonly term: Term; readonly lsn: Lsn } | null;
  };
  readonly version: string;
  readonly pid: number;
  readonly startedAtMs: number;
  readonly log: LogStatus;
  readonly tenants: { readonly total: number; readonly open: number };
  readonly writes: { readonly committed: number; readonly failed: number };
  readonly scrub: { readonly tenants: number; readonly rows: number; readonly damaged: readonly string[] };
  /** Where other nodes are served. */
  readonly address: string | null;
  readonly serving: readonly ServedCopy[];
  /** Of a node with `backup`. */
  readonly backup?: BackupStatus;
  /** Connections that were not let in, reached no service or failed in it, by reason, since the node was opened. */
  readonly refusedPeers: Readonly<Record<string, number>>;
  /** What rollbacks have kept: `nostos rollback list` shows it. */
  readonly rollbackFiles: { readonly count: number; readonly bytes: number };
  readonly openFiles: number;
  readonly residentBytes: number;
}

export interface VerifyProblem {
  readonly where: string;
  readonly what: string;
  readonly remedy: string;
}

export interface VerifyReport {
  readonly ok: boolean;
  readonly log: { readonly segments: number; readonly records: number; readonly bytes: number };
  readonly tenants: readonly {
    readonly name: string;
    readonly rows: number;
    readonly integrity: 'ok' | 'damaged';
    readonly fingerprint: 'equal' | 'different';
  }[];
  readonly problems: readonly VerifyProblem[];
  readonly elapsedMs: number;
}

/** What a node does in its group. */
export interface NodeGroup {
  report(): Promise<GroupReport>;
  /** Resolves once the change is in the group record, which an addition is when the newcomer has caught up. */
  changeMembers(change: MemberChange): Promise<void>;
  /** Hands the lead to `to`, or to whoever is furthest; resolves when this node no longer leads. */
  handover(to?: StoreId): Promise<void>;
  /**
   * Aborted when this node has left its group since its files have to be replaced: it reads on, and comes home by a copy
   * when it is closed and opened again. `nostos serve` does that by itself.
   */
  readonly left: AbortSignal;
  /** How far the way back to the group is; undefined before anything was decided. */
  readonly rejoin: RejoinProgress | undefined;
  readonly events: readonly GroupLogEntry[];
  onEvent(listener: (entry: GroupLogEntry) => void): () => void;
}

export interface Node extends AsyncDisposable {
  readonly dir: string;
  /** `primary` takes writes; a `replica` of a group, and a `copy`, only reads. */
  readonly role: 'primary' | 'replica' | 'copy';
  /** Absent without a group. */
  readonly group: NodeGroup | undefined;
  /** `host:port` where other nodes are served; undefined without `listen`. */
  readonly address: string | undefined;
  readonly tenants: Tenants;
  /** A handle; whether the tenant exists is seen at its first use. */
  tenant(name: string): Tenant;
  /** Migrates every tenant with the `migrations` of `openNode` (or those given). One that fails does not stop the others; run it again to go on. */
  migrateAll(options?: LongCallOptions & { readonly migrations?: readonly Migration[] }): Promise<{
    readonly migrated: readonly MigrateReport[];
    readonly failed: readonly { readonly tenant: string; readonly error: Error }[];
  }>;
  /**
   * Makes one backup of what is committed, while writers go on; `backup` of `openNode` makes them by itself. Restored by
   * `nostos restore --from`.
   *
   * @example await node.backup({ to: 's3://backups/shop?region=eu-central-1', keys: 'shop.keys' })
   */
  backup(options: BackupNodeOptions): Promise<BackupReport & { readonly warnings: readonly string[] }>;
  status(): Promise<NodeStatus>;
  verify(options?: LongCallOptions & { readonly tenant?: string }): Promise<VerifyReport>;
  /** Summaries of records, oldest first. */
  log(options?: {
    readonly from?: Lsn;
    readonly to?: Lsn;
    readonly tenant?: string;
    readonly signal?: AbortSignal;
  }): AsyncIterableIterator<RecordSummary>;
  close(): Promise<void>;
}

export interface ListenAddress {
  /** Default 127.0.0.1; any address but loopback needs `tls`. */
  readonly host?: string;
  /** 0: any free one; `node.address` says which. */
  readonly port: number;
  readonly tls?: {
    /** PEM; `nostos certs` makes them. */
    readonly ca: string;
    readonly cert: string;
    readonly key: string;
    /** Ids of the nodes that may connect; by default all whose certificate names the cluster of this node. */
    readonly allowNodes?: readonly string[];
  };
  /**
   * What all copies together may take per second; a receiver may ask for less. Default: no limit. The service RESTORE of
   * the reference, which sends the log only, is not limited.
   */
  readonly rateBytesPerSecond?: number;
}

/** The group of a node: its replicas, under a coordinator. */
export interface GroupOptions {
  /** URL of the coordinator: `embedded:/path`, `etcd://host:port,…`, `s3://bucket/…` (`src/coordination/README.md`). */
  readonly coordinator: string;
  /** Default `main`. */
  readonly name?: string;
  /** Where the other members connect. */
  readonly listen: ListenAddress;
  /** `host:port` under which they reach it, where that is not what is bound. */
  readonly advertise?: string;
  /** Of writes that do not say. Default `quorum`. */
  readonly durability?: Durability;
  /** `host:port` of nodes that can be copied where no member says so itself; members with `listen` do. */
  readonly restoreFrom?: readonly string[];
  /** What is done to come back to the group before the node is open, and what came of it: for people. */
  readonly onRejoin?: (text: string) => void;
}

/** Backups that a node makes by itself (`nostos backup` makes single ones). */
export interface BackupOptions {
  /** `file:/path` or `s3://bucket/prefix?endpoint=…&region=…`; credentials by the usual `AWS_*` variables. */
  readonly to: string;
  /** Path of a keyring, made where there is none; without it backups are not encrypted. */
  readonly keys?: string;
  /** Between snapshots. Default an hour. */
  readonly everyMs?: number;
  /** How often what was committed is archived: what a lost machine costs at most. Default ten seconds. */
  readonly archiveEveryMs?: number;
  /** After each snapshot those that this does not keep are removed. By default nothing is. */
  readonly keep?: {
    readonly last?: number;
    readonly hourly?: number;
    readonly daily?: number;
    readonly weekly?: number;
  };
}

export interface BackupNodeOptions extends LongCallOptions, Pick<BackupOptions, 'to' | 'keys'> {
  /** Names; by default all, and only then it can be restored as a node. */
  readonly tenants?: readonly string[];
  /** Kept with the snapshot. */
  readonly label?: string;
  /** Reads every file, whatever the snapshot before has. */
  readonly full?: boolean;
  /** Only says what would be read. */
  readonly dryRun?: boolean;
}

export interface NodeOptions {
  readonly dir: string;
  /** Replicate with other nodes. The group record must exist (`nostos group init`). */
  readonly group?: GroupOptions;
  /** Applied to each tenant when it is first used. */
  readonly migrations?: readonly Migration[];
  readonly limits?: Partial<Record<LimitName, number>>;
  /** How INTEGERs are read where a call does not say. Default `number`. */
  readonly int64?: Int64Mode;
  /** Refuse to open a directory of another cluster. */
  readonly cluster?: ClusterId;
  /**
   * Serve other nodes here: they may copy this one (`nostos restore --from`). A member of a group does so by default, beside
   * the address of its group and with the same TLS, at any free port; `false` turns it off.
   */
  readonly listen?: ListenAddress | false;
  readonly backup?: BackupOptions;
  /** Recompute fingerprints from rows in the background. Default every hour; `false` turns it off. */
  readonly scrubIntervalMs?: number | false;
  readonly signal?: AbortSignal;
}

export type { BackupReport, SqlInput };
