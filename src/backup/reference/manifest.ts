/**
 * `manifests/<snapshot_id>.json`: what a snapshot consists of. Read as the reference reads it: unknown fields are ignored,
 * an absent optional field is null, every number is in the range of its type. Written byte for byte as the reference writes it.
 */
import * as v from 'valibot';
import type { NostosError } from '../../base/errors.ts';
import { plainRecord, readInput } from '../../base/input-schema.ts';
import { parseStrictJson, type StrictJson } from '../../base/strict-json.ts';
import { checkModel, checkTombstoneFloor, checkWireVersion } from './checks.ts';
import { BackupBackendError, ManifestValidationError } from './errors.ts';
import { toPrettyJson } from './pretty-json.ts';
import {
  BACKUP_REFERENCE_LIMITS,
  type DistanceMetric,
  type SchemaVersion,
  type TenantId,
  type WireVersion,
} from './types.ts';

export type SnapshotManifestVersion = number;
export const SnapshotManifestVersion = { CURRENT: 1 } as const;

/** One vector index of a snapshot. */
export interface HnswSnapshotEntry {
  readonly embeddingModel: string;
  readonly vectorDim: number;
  readonly distanceMetric: DistanceMetric;
  readonly sourceLogWatermark: bigint;
  readonly contentKey: string;
  readonly checksum: string | null;
  readonly deletedCountPending: bigint;
}

/** Says that content is encrypted; nothing here decrypts it. */
export interface EncryptionMetadata {
  readonly algorithm: string;
  readonly dekId: string;
  readonly ivB64: string;
}

const whole = (least: bigint, most: bigint): v.GenericSchema<bigint> =>
  v.pipe(v.bigint(), v.minValue(least, `below ${least}`), v.maxValue(most, `above ${most}`));
const small = (bits: number): v.GenericSchema<bigint, number> =>
  v.pipe(whole(0n, (1n << BigInt(bits)) - 1n), v.transform(Number));
const u64 = whole(0n, (1n << 64n) - 1n);
const i64 = whole(-(1n << 63n), (1n << 63n) - 1n);
const optional = <T>(schema: v.GenericSchema<unknown, T>): v.GenericSchema<unknown, T | null> =>
  v.optional(v.nullable(schema), null);

const Manifest = v.object({
  manifest_version: small(32),
  tenant_id: i64,
  snapshot_id: v.string(),
  created_at_unix_micros: i64,
  wire_version: v.object({ major: small(8), minor: small(16) }),
  table_schema_versions: plainRecord(small(32)),
  oplog_watermark: u64,
  oplog_floor: u64,
  forget_floor: optional(u64),
  sqlite_checkpoint_key: v.string(),
  sqlite_checkpoint_checksum: optional(v.string()),
  hnsw_snapshots: v.array(
    v.object({
      embedding_model: v.string(),
      vector_dim: small(32),
      distance_metric: v.picklist(['cosine', 'l2', 'innerproduct']),
      source_log_watermark: u64,
      content_key: v.string(),
      checksum: optional(v.string()),
      deleted_count_pending: u64,
    }),
  ),
  encryption: optional(v.object({ algorithm: v.string(), dek_id: v.string(), iv_b64: v.string() })),
  label: optional(v.string()),
});

export type SnapshotManifestFields = Omit<SnapshotManifest, 'toJson' | 'validateInternal' | 'validateForRestore'>;

export class SnapshotManifest {
  readonly manifestVersion: SnapshotManifestVersion;
  readonly tenantId: TenantId;
  readonly snapshotId: string;
  readonly createdAtUnixMicros: bigint;
  readonly wireVersion: WireVersion;
  readonly tableSchemaVersions: Readonly<Record<string, SchemaVersion>>;
  /** The highest log index that the snapshot has, itself included. */
  readonly oplogWatermark: bigint;
  readonly oplogFloor: bigint;
  /** The lowest tombstone that the snapshot has to keep; null: none. */
  readonly forgetFloor: bigint | null;
  readonly sqliteCheckpointKey: string;
  readonly sqliteCheckpointChecksum: string | null;
  readonly hnswSnapshots: readonly HnswSnapshotEntry[];
  readonly encryption: EncryptionMetadata | null;
  /** Free text. */
  readonly label: string | null;

  constructor(fields: SnapshotManifestFields) {
    this.manifestVersion = fields.manifestVersion;
    this.tenantId = fields.tenantId;
    this.snapshotId = fields.snapshotId;
    this.createdAtUnixMicros = fields.createdAtUnixMicros;
    this.wireVersion = fields.wireVersion;
    this.tableSchemaVersions = fields.tableSchemaVersions;
    this.oplogWatermark = fields.oplogWatermark;
    this.oplogFloor = fields.oplogFloor;
    this.forgetFloor = fields.forgetFloor;
    this.sqliteCheckpointKey = fields.sqliteCheckpointKey;
    this.sqliteCheckpointChecksum = fields.sqliteCheckpointChecksum;
    this.hnswSnapshots = fields.hnswSnapshots;
    this.encryption = fields.encryption;
    this.label = fields.label;
  }

  /** Refuses with a `BackupBackendError` of kind `Serialization`. */
  static fromJson(json: string | Uint8Array): SnapshotManifest {
    const bytes = typeof json === 'string' ? Buffer.from(json) : json;
    let value: StrictJson;
    try {
      value = parseStrictJson(bytes, { jsonBytesMax: BACKUP_REFERENCE_LIMITS.manifestBytesMax });
    } catch (error) {
      throw serialization((error as NostosError).message);
    }
    const read = readInput(Manifest, value);
    if (!read.ok) throw serialization(`this is no manifest: ${read.problem}`);
    const m = read.value;
    return new SnapshotManifest({
      manifestVersion: m.manifest_version,
      tenantId: m.tenant_id,
      snapshotId: m.snapshot_id,
      createdAtUnixMicros: m.created_at_unix_micros,
      wireVersion: m.wire_version,
      tableSchemaVersions: m.table_schema_versions,
      oplogWatermark: m.oplog_watermark,
      oplogFloor: m.oplog_floor,
      forgetFloor: m.forget_floor,
      sqliteCheckpointKey: m.sqlite_checkpoint_key,
      sqliteCheckpointChecksum: m.sqlite_checkpoint_checksum,
      hnswSnapshots: m.hnsw_snapshots.map((entry) => ({
        embeddingModel: entry.embedding_model,
        vectorDim: entry.vector_dim,
        distanceMetric: entry.distance_metric,
        sourceLogWatermark: entry.source_log_watermark,
        contentKey: entry.content_key,
        checksum: entry.checksum,
        deletedCountPending: entry.deleted_count_pending,
      })),
      encryption: m.encryption && {
        algorithm: m.encryption.algorithm,
        dekId: m.encryption.dek_id,
        ivB64: m.encryption.iv_b64,
      },
      label: m.label,
    });
  }

  /** Two spaces deep, no newline at the end. What `fromJson` would not read is refused, with `Serialization`. */
  toJson(): string {
    const json = toPrettyJson({
      manifest_version: this.manifestVersion,
      tenant_id: this.tenantId,
      snapshot_id: this.snapshotId,
      created_at_unix_micros: this.createdAtUnixMicros,
      wire_version: { major: this.wireVersion.major, minor: this.wireVersion.minor },
      table_schema_versions: new Map(Object.entries(this.tableSchemaVersions).toSorted(byBytes)),
      oplog_watermark: this.oplogWatermark,
      oplog_floor: this.oplogFloor,
      forget_floor: this.forgetFloor,
      sqlite_checkpoint_key: this.sqliteCheckpointKey,
      sqlite_checkpoint_checksum: this.sqliteCheckpointChecksum,
      hnsw_snapshots: this.hnswSnapshots.map((entry) => ({
        embedding_model: entry.embeddingModel,
        vector_dim: entry.vectorDim,
        distance_metric: entry.distanceMetric,
        source_log_watermark: entry.sourceLogWatermark,
        content_key: entry.contentKey,
        checksum: entry.checksum,
        deleted_count_pending: entry.deletedCountPending,
      })),
      encryption: this.encryption && {
        algorithm: this.encryption.algorithm,
        dek_id: this.encryption.dekId,
        iv_b64: this.encryption.ivB64,
      },
      label: this.label,
    });
    SnapshotManifest.fromJson(json);
    return json;
  }

  /** In the reference's order; a version of 0 passes. */
  validateInternal(): void {
    const { oplogFloor: floor, oplogWatermark: watermark, forgetFloor, manifestVersion: got } = this;
    if (floor > watermark)
      throw new ManifestValidationError(
        'OplogRangeInverted',
        `the snapshot's log begins at ${floor}, above its end at ${watermark}`,
        { floor, watermark },
      );
    if (forgetFloor !== null && forgetFloor > watermark)
      throw new ManifestValidationError(
        'ForgetFloorAboveWatermark',
        `the lowest tombstone to keep is ${forgetFloor}, above the end of the snapshot's log at ${watermark}`,
        { forgetFloor, watermark },
      );
    const current = SnapshotManifestVersion.CURRENT;
    if (got > current)
      throw new ManifestValidationError(
        'ManifestVersionUnsupported',
        `the manifest has version ${got}, and ${current} is the newest that is understood; use a newer Nostos`,
        { got, current },
      );
    if (this.sqliteCheckpointKey === '')
      throw new ManifestValidationError('EmptySqliteCheckpointKey', 'the manifest names no SQLite checkpoint');
  }

  /**
   * In the reference's order, and by its rules: that of tombstones refuses a cluster's own snapshots and lets others bring
   * forgotten rows back. `checks.resurrect` of `RestoreValidator` is the one that is right.
   */
  validateForRestore(destWire: WireVersion, destTombstoneFloor: bigint, destModel: string): void {
    this.validateInternal();
    checkWireVersion(this, destWire);
    checkTombstoneFloor(this, destTombstoneFloor);
    checkModel(this, destModel);
  }
}

/** As a BTreeMap has its keys. */
function byBytes([a]: readonly [string, unknown], [b]: readonly [string, unknown]): number {
  return Buffer.compare(Buffer.from(a), Buffer.from(b));
}

function serialization(message: string): BackupBackendError {
  return new BackupBackendError('Serialization', message);
}
