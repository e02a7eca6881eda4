/**
 * What is looked at in a manifest before anything is read or changed: the reference's checks, and those that it promises and
 * does not do, each of which is done for who asks.
 */
import { ManifestValidationError } from './errors.ts';
import type { SnapshotManifest } from './manifest.ts';
import type { DestinationState, DistanceMetric, SchemaVersion, TenantId, WireVersion } from './types.ts';

/** All are off where they are absent. They come behind the reference's own, in this order. */
export interface RestoreChecks {
  /** The snapshot is of this tenant. */
  readonly tenantId?: TenantId;
  /** The manifest names itself as it was asked for. */
  readonly snapshotId?: true;
  /** Every item has a checksum, and it is 64 lowercase hex digits. */
  readonly checksums?: true;
  /** What the destination understands: the snapshot has no other table, and none in a newer version. */
  readonly schemaVersions?: Readonly<Record<string, SchemaVersion>>;
  /** What the destination computes vectors with; looked at where the snapshot has vectors of its model. */
  readonly vectors?: { readonly dim: number; readonly metric: DistanceMetric };
  /**
   * Content is installed as it is stored, so a snapshot that says it is encrypted is refused, unless the destination reads
   * this algorithm under one of these keys.
   */
  readonly encryption?: 'refused' | { readonly algorithms: readonly string[]; readonly dekIds: readonly string[] };
  /** No vector index has seen more of the log than the snapshot. */
  readonly sourceWatermarks?: true;
  /** No two vector indexes are of one model. */
  readonly duplicateModels?: true;
  /** Instead of the reference's rule of tombstones. */
  readonly resurrect?: ResurrectState;
}

/** What decides whether a restore could bring back rows that were forgotten. */
export interface ResurrectState {
  /** Of this tenant, at the destination or wherever it was forgotten: none; nobody knows; or the highest log index. */
  readonly tombstones: 'none' | 'unknown' | { readonly highest: bigint };
  /** Log indexes of another lineage do not compare. */
  readonly lineage: 'same' | 'other' | 'unknown';
  /** What was forgotten is applied again before anybody reads the restored tenant, from a ledger outside of it. */
  readonly replayed?: boolean;
}

export function checkDestination(
  manifest: SnapshotManifest,
  destination: DestinationState,
  checks: RestoreChecks,
): void {
  checkWireVersion(manifest, destination.wireVersion);
  if (checks.resurrect === undefined) checkTombstoneFloor(manifest, destination.tombstoneFloor ?? 0n);
  else checkResurrection(manifest, checks.resurrect);
  checkModel(manifest, destination.embeddingModel);
}

export function checkWireVersion({ wireVersion: snap }: SnapshotManifest, dest: WireVersion): void {
  if (dest.major !== snap.major)
    throw new ManifestValidationError(
      'WireVersionMismatch',
      `the snapshot speaks version ${snap.major}.${snap.minor}, the destination ${dest.major}.${dest.minor}; restore with a release of that major version`,
      { dest, snap },
    );
}

/**
 * The reference's rule. It refuses a cluster's own snapshot that keeps two tombstones, and lets a snapshot without any
 * bring back what was forgotten after it.
 */
export function checkTombstoneFloor({ forgetFloor }: SnapshotManifest, destTombstoneFloor: bigint): void {
  if (forgetFloor !== null && destTombstoneFloor > forgetFloor)
    throw new ManifestValidationError(
      'WouldResurrectDeletedData',
      `the destination has tombstones up to ${destTombstoneFloor}, the snapshot's lowest is ${forgetFloor}: what was forgotten might come back`,
      { destTombstoneFloor, snapForgetFloor: forgetFloor },
    );
}

function checkResurrection(manifest: SnapshotManifest, { tombstones, lineage, replayed }: ResurrectState): void {
  if (replayed === true || tombstones === 'none') return;
  const { oplogWatermark, forgetFloor: snapForgetFloor } = manifest;
  const refuse = (destTombstoneFloor: bigint | 'unknown', why: string): never => {
    throw new ManifestValidationError(
      'WouldResurrectDeletedData',
      `${why}: what was forgotten might come back; apply the ledger of what was forgotten to what is restored, and say so`,
      { destTombstoneFloor, snapForgetFloor },
    );
  };
  if (tombstones === 'unknown') return refuse('unknown', 'nobody knows what was forgotten since the snapshot');
  const { highest } = tombstones;
  if (lineage !== 'same') refuse(highest, `the destination has tombstones, and its log is not that of the snapshot`);
  if (highest > oplogWatermark)
    refuse(highest, `the destination has a tombstone at ${highest}, the snapshot ends at ${oplogWatermark}`);
}

export function checkModel({ hnswSnapshots }: SnapshotManifest, destModel: string): void {
  const [first] = hnswSnapshots;
  if (first === undefined || hnswSnapshots.some((entry) => entry.embeddingModel === destModel)) return;
  const snapModel = first.embeddingModel;
  throw new ManifestValidationError(
    'HnswModelMismatch',
    `the snapshot has vectors of ${JSON.stringify(snapModel)}, none of the destination's ${JSON.stringify(destModel)}`,
    { destModel, snapModel },
  );
}

/** What the reference promises. */
export function checkFurther(
  manifest: SnapshotManifest,
  { id, destination, checks }: { id: string; destination: DestinationState; checks: RestoreChecks },
): void {
  const { hnswSnapshots } = manifest;
  if (checks.tenantId !== undefined && manifest.tenantId !== checks.tenantId)
    throw new ManifestValidationError(
      'TenantMismatch',
      `the snapshot is of tenant ${manifest.tenantId}, not of ${checks.tenantId}`,
      { dest: checks.tenantId, snap: manifest.tenantId },
    );
  if (checks.snapshotId === true && manifest.snapshotId !== id)
    throw new ManifestValidationError(
      'SnapshotIdMismatch',
      `the manifest of ${JSON.stringify(id)} says that it is ${JSON.stringify(manifest.snapshotId)}`,
      { dest: id, snap: manifest.snapshotId },
    );
  if (checks.checksums === true) checkChecksums(manifest);
  if (checks.schemaVersions !== undefined) checkSchemaVersions(manifest, checks.schemaVersions);
  if (checks.vectors !== undefined) checkVectors(manifest, destination.embeddingModel, checks.vectors);
  if (checks.encryption !== undefined) checkEncryption(manifest, checks.encryption);
  if (checks.sourceWatermarks === true)
    for (const { embeddingModel, sourceLogWatermark } of hnswSnapshots)
      if (sourceLogWatermark > manifest.oplogWatermark)
        throw new ManifestValidationError(
          'SourceWatermarkAboveOplog',
          `the vectors of ${JSON.stringify(embeddingModel)} reach ${sourceLogWatermark}, above the snapshot's end at ${manifest.oplogWatermark}`,
          { watermark: manifest.oplogWatermark, snap: sourceLogWatermark, snapModel: embeddingModel },
        );
  if (checks.duplicateModels === true) {
    const models = hnswSnapshots.map((entry) => entry.embeddingModel);
    const twice = models.find((model, i) => models.indexOf(model) !== i);
    if (twice !== undefined)
      throw new ManifestValidationError(
        'DuplicateModel',
        `the snapshot has vectors of ${JSON.stringify(twice)} more than once`,
        { snapModel: twice },
      );
  }
}

function checkChecksums({ sqliteCheckpointKey, sqliteCheckpointChecksum, hnswSnapshots }: SnapshotManifest): void {
  const items = [
    { key: sqliteCheckpointKey, checksum: sqliteCheckpointChecksum },
    ...hnswSnapshots.map(({ contentKey, checksum }) => ({ key: contentKey, checksum })),
  ];
  for (const { key, checksum } of items) {
    if (checksum === null)
      throw new ManifestValidationError('ChecksumMissing', `the manifest has no checksum of ${JSON.stringify(key)}`, {
        key,
      });
    if (!/^[0-9a-f]{64}$/.test(checksum))
      throw new ManifestValidationError(
        'ChecksumMalformed',
        `the checksum of ${JSON.stringify(key)} is not 64 lowercase hex digits`,
        { key },
      );
  }
}

function checkSchemaVersions({ tableSchemaVersions }: SnapshotManifest, known: Readonly<Record<string, number>>): void {
  for (const [table, snap] of Object.entries(tableSchemaVersions)) {
    const dest = Object.hasOwn(known, table) ? (known[table] as number) : null;
    if (dest === null || snap > dest)
      throw new ManifestValidationError(
        'SchemaVersionMismatch',
        `the snapshot has ${JSON.stringify(table)} in version ${snap}, the destination ${dest === null ? 'has no such table' : `knows ${dest}`}; restore with a newer release`,
        { table, dest, snap },
      );
  }
}

function checkVectors(
  { hnswSnapshots }: SnapshotManifest,
  destModel: string,
  { dim, metric }: NonNullable<RestoreChecks['vectors']>,
): void {
  for (const { embeddingModel: snapModel, vectorDim, distanceMetric } of hnswSnapshots) {
    if (snapModel !== destModel) continue;
    if (vectorDim !== dim)
      throw new ManifestValidationError(
        'VectorDimMismatch',
        `the snapshot's vectors of ${JSON.stringify(snapModel)} have ${vectorDim} dimensions, the destination's ${dim}`,
        { dest: dim, snap: vectorDim, snapModel },
      );
    if (distanceMetric !== metric)
      throw new ManifestValidationError(
        'DistanceMetricMismatch',
        `the snapshot's vectors of ${JSON.stringify(snapModel)} are for ${distanceMetric}, the destination's for ${metric}`,
        { dest: metric, snap: distanceMetric, snapModel },
      );
  }
}

function checkEncryption({ encryption }: SnapshotManifest, known: NonNullable<RestoreChecks['encryption']>): void {
  if (encryption === null) return;
  const { algorithm, dekId } = encryption;
  if (known !== 'refused' && known.algorithms.includes(algorithm) && known.dekIds.includes(dekId)) return;
  throw new ManifestValidationError(
    'EncryptionUnsupported',
    `the snapshot is encrypted with ${JSON.stringify(algorithm)} under the key ${JSON.stringify(dekId)}, which the destination cannot read`,
    { algorithm, dekId },
  );
}
