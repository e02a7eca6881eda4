/** Every limit of a node by name, with its default. Units come last in the names. */
export const DEFAULT_LIMITS = {
  /** How long `openNode` waits for another process to release the data directory. */
  lockTimeoutMs: 5_000,
  /** A log segment is sealed before the record that would pass this size. */
  segmentBytesMax: 64 * 1024 * 1024,
  /** Payload of one record, and so the changeset of one transaction. */
  recordBytesMax: 48 * 1024 * 1024,
  /** Bytes of pruneable log that are kept all the same, for change feeds and later recovery. */
  logRetainBytes: 256 * 1024 * 1024,
  /** A reservation on the log that makes no progress for this long is given up. */
  reservationTimeoutMs: 60_000,
  /** Open file descriptors that tenants may use; at most half of the process limit. */
  openFilesMax: 800,
  /** `transaction(async fn)` holds the writer of its tenant at most this long. */
  transactionTimeoutMs: 5_000,
  /** Writes waiting for one tenant; one more is refused. */
  tenantQueueMax: 10_000,
  /** Transactions that share one group commit of one tenant. */
  groupTransactionsMax: 1_024,
  /**
   * While the disk syncs faster than this, a group that has nobody to share its sync with is appended to the log in the
   * caller's thread, which it holds up for so long; 0: never.
   */
  directSyncMicros: 500,
  /** A checkpoint starts in the background when the WAL of a tenant reaches this size. */
  checkpointBytes: 8 * 1024 * 1024,
  /** The queue of a tenant is held for a full checkpoint when its WAL reaches this size. */
  checkpointHoldBytes: 16 * 1024 * 1024,
  /** A reader that keeps its snapshot longer than this is ended. */
  readerAgeMaxMs: 60_000,
  /** Reader processes for `tenant.query`. */
  readerProcessesMax: 2,
  /** Default time limit of `tenant.query`. */
  queryTimeoutMs: 30_000,
  /** Rows that one `tenant.query` may answer with. */
  queryRowsMax: 1_000_000,
  /** Prepared statements kept per connection. */
  statementCacheMax: 128,
  /** How long the result of `write(fn, { id })` is kept. */
  idempotencyKeepMs: 24 * 60 * 60 * 1000,
  /** A request body on the admin socket or the HTTP API. */
  requestBytesMax: 8 * 1024 * 1024,
  /** Connections on the admin socket. */
  adminConnectionsMax: 64,
  /** Payload of one frame between nodes. */
  frameBytesMax: 64 * 1024 * 1024,
  /** One frame from a peer to a service that does not say how much it takes. */
  serviceRequestBytesMax: 1024 * 1024,
  /** A connection reads ahead so much of what nobody has received yet; then the peer has to wait. */
  receiveBufferBytes: 1024 * 1024,
  /** Finding the address of a peer, connecting and the TLS handshake together. */
  connectTimeoutMs: 10_000,
  /** A peer that connects must have finished the TLS handshake by then, and so long after it named its service. */
  preambleTimeoutMs: 10_000,
  /** A peer that is waited for may send neither a frame nor 64 KiB of one for so long. */
  idleTimeoutMs: 300_000,
  /** A peer may leave the next 256 KiB that are sent to it untaken for so long. */
  writeTimeoutMs: 30_000,
  /** A handler whose peer has ended its side, and takes nothing either for so long, is aborted. */
  halfOpenTimeoutMs: 5_000,
  /** Connections of peers to one dispatcher. */
  peerConnectionsMax: 256,
  /** Connections to one dispatcher from one address. */
  connectionsPerAddressMax: 64,
  /** A dispatcher that stops waits so long for its handlers. */
  stopTimeoutMs: 5_000,
  /**
   * While a copy is served, the WAL of a tenant that is being sent, and the log, may each grow by so much before the copy
   * is given up.
   */
  restoreHoldBytesMax: 1024 * 1024 * 1024,
  /** Copies that a node serves at a time. */
  restoreSessionsMax: 8,
  /** What a restore leaves free on the disk, beyond the copy that it makes. */
  restoreReserveBytes: 64 * 1024 * 1024,
  /** A member whose log ends so many records before the best one's does not serve a restore. */
  providerLagRecordsMax: 50_000,
  /** A provider that fails is tried so often without coming further than before until another one is taken. */
  providerAttemptsMax: 3,
  /** Sessions with one provider in one run, however far each of them came. */
  providerSessionsMax: 100,
  /** A primary that was heard of so long ago may be replaced; its reads and `local` writes end before that. */
  leaseMs: 5_000,
  /** Bound on the error of clock rates, as a share. */
  clockDriftMax: 0.01,
  /** How often a primary renews its lease. */
  renewIntervalMs: 1_500,
  /** How often a replica reads the group record. */
  coordinatorPollMs: 500,
  /** A compare-and-set without an answer is looked into, and repeated, after this. */
  coordinatorRetryMs: 500,
  /** A member in sync that is behind for so long is dropped from the in-sync set. */
  ackTimeoutMs: 1_500,
  /** A quiet stream between members shows so often that it is alive. */
  streamHeartbeatMs: 500,
  /** A stream from which nothing is heard for so long is opened anew. */
  streamTimeoutMs: 2_500,
  /** How long a replica waits before it opens a stream again; doubled each time, up to `streamTimeoutMs`. */
  reopenMs: 10,
  /** Records that are sent to a replica before it acknowledges one. */
  streamWindowRecords: 20_000,
  /** Records that are sent to a replica at once. */
  streamBatchRecords: 2_000,
  /** Replicas, members or not yet, that one primary feeds. */
  streamsMax: 64,
  /** How long a candidate waits for the answers of the other members. */
  probeWaitMs: 200,
  /** A new primary that has not committed and applied everything by then resigns. */
  termStartTimeoutMs: 10_000,
  /** A primary that could commit nothing for so long, with records waiting, resigns. */
  commitStallMs: 10_000,
  /** How long a primary that resigned does not stand; doubled each time, up to `candidateBackoffMaxMs`. */
  candidateBackoffMs: 1_000,
  /** The longest such pause. */
  candidateBackoffMaxMs: 30_000,
  /** A handover that has not come so far by then is given up, and writes go on. */
  handoverTimeoutMs: 2_000,
  /** A way in which a node comes back to its group is tried so often until the next safe one is taken. */
  rejoinAttemptsMax: 3,
  /** So many attempts, in all ways together, without coming back, and a node waits for a person. */
  rejoinTotalAttemptsMax: 12,
  /** The pause after a way back that failed; doubled each time, up to `rejoinBackoffMaxMs`. */
  rejoinBackoffMs: 1_000,
  /** The longest such pause. */
  rejoinBackoffMaxMs: 60_000,
  /** Who forgets waits so long until every configured backup has that; then it is told that it is pending. */
  forgetTimeoutMs: 10_000,
  /** The pause after a backup did not take what was forgotten; doubled each time, up to `forgetRetryMaxMs`. */
  forgetRetryMs: 500,
  /** The longest such pause. */
  forgetRetryMaxMs: 60_000,
  /** How long a node that leaves its in-sync set in order to be copied anew waits until it is dropped. */
  rejoinLeaveTimeoutMs: 10_000,
  /** Chunks of a backup that are read, compressed, encrypted and stored at a time; memory is about 2 MiB for each. */
  backupConcurrency: 8,
  /** Records in one object of the archived log, before compression; a larger record has an object to itself. */
  archiveObjectBytesMax: 8 * 1024 * 1024,
  /** A node keeps so much log for an archive that does not take it; beyond that the archive gets a gap. */
  archiveHoldBytesMax: 1024 * 1024 * 1024,
  /** A backup goes on with the files of the one before while the log archived since is at most so much of them, in percent. */
  backupLogPercentMax: 25,
  /** Tenants that a backup reads at a time. */
  backupTenantsMax: 4,
  /** The pause after a scheduled backup, or the archive, failed; doubled each time, up to `backupRetryMaxMs`. */
  backupRetryMs: 5_000,
  /** The longest such pause. */
  backupRetryMaxMs: 10 * 60 * 1000,
  /** The manifest of a snapshot. */
  manifestBytesMax: 64 * 1024 * 1024,
  /** How often a run on a backup repository shows that it is alive. */
  backupHeartbeatMs: 20_000,
  /** A run on a backup repository that showed no life for so long is given up by others. */
  backupStaleMs: 10 * 60 * 1000,
  /** How long a run waits for another one that excludes it. */
  backupLockWaitMs: 60_000,
  /** What no snapshot needs is removed when it is older than this. */
  backupGraceMs: 60 * 60 * 1000,
  /** One request to the storage of a backup takes at most so long. */
  backendTimeoutMs: 30_000,
  /** Tries of a request to the storage of a backup, with growing pauses between them. */
  backendAttemptsMax: 6,
  /** Larger objects are sent to object storage in parts of this size. */
  backendPartBytes: 8 * 1024 * 1024,
} as const;

export type LimitName = keyof typeof DEFAULT_LIMITS;
export type Limits = Readonly<Record<LimitName, number>>;

export const LIMIT_NAMES = Object.keys(DEFAULT_LIMITS) as readonly LimitName[];
