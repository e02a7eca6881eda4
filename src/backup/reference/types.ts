/** The words of the reference's backup, in its names. What it has as a 64-bit integer is a bigint here. */
import { NostosError } from '../../base/errors.ts';
import type { SnapshotManifest } from './manifest.ts';

const I64_END = 1n << 63n;
const U32_MAX = 0xffff_ffff;

/** The primary key of a tenant: any signed 64-bit integer. */
export type TenantId = bigint;
export function TenantId(id: bigint | number): TenantId {
  const value = typeof id === 'bigint' || Number.isSafeInteger(id) ? BigInt(id) : I64_END;
  if (value < -I64_END || value >= I64_END) throw outside('a tenant id', id, '-2^63 to 2^63-1');
  return value;
}

/** Unsigned, 32 bit. */
export type SchemaVersion = number;
export function SchemaVersion(version: number): SchemaVersion {
  if (!Number.isInteger(version) || version < 0 || version > U32_MAX)
    throw outside('a schema version', version, '0 to 2^32-1');
  return version;
}

/** Of one major version, any two minor ones understand each other. */
export interface WireVersion {
  readonly major: number;
  readonly minor: number;
}

/** As the JSON has it; a column of SQLite has `inner_product`. */
export type DistanceMetric = 'cosine' | 'l2' | 'innerproduct';
export const DistanceMetric = { Cosine: 'cosine', L2: 'l2', InnerProduct: 'innerproduct' } as const satisfies Record<
  string,
  DistanceMetric
>;

/** Where a snapshot shall go, as far as the checks need to know it. */
export interface DestinationState {
  readonly wireVersion: WireVersion;
  /** The highest log index of a tombstone that is applied there for this tenant; none counts as 0. */
  readonly tombstoneFloor: bigint | null;
  readonly embeddingModel: string;
}

export type RestorePlanItemKind =
  | { readonly kind: 'SqliteCheckpoint' }
  | { readonly kind: 'HnswSnapshot'; readonly embeddingModel: string };
export const RestorePlanItemKind = {
  SqliteCheckpoint: { kind: 'SqliteCheckpoint' } as RestorePlanItemKind,
  HnswSnapshot: (embeddingModel: string): RestorePlanItemKind => ({ kind: 'HnswSnapshot', embeddingModel }),
} as const;

export interface RestorePlanItem {
  readonly kind: RestorePlanItemKind;
  readonly contentKey: string;
  /** BLAKE3 in lowercase hex; null: nobody knows. */
  readonly expectedChecksum: string | null;
}

/** What `RestoreValidator.validate` has found good. SQLite comes first, then the vectors as the manifest has them. */
export interface RestorePlan {
  readonly tenantId: TenantId;
  /** As it was asked for. */
  readonly snapshotId: string;
  readonly manifest: SnapshotManifest;
  readonly items: readonly RestorePlanItem[];
  readonly destination: DestinationState;
}

export type RestoreMode = 'new_cluster' | 'single_tenant' | 'wipe_and_restore';
export const RestoreMode = {
  /** Into a directory that is not there, or is empty. */
  NewCluster: 'new_cluster',
  /** Beside other tenants, where there is nothing of this one. */
  SingleTenant: 'single_tenant',
  /** Everything that is there goes, other tenants included. */
  WipeAndRestore: 'wipe_and_restore',
} as const satisfies Record<string, RestoreMode>;

/** What long calls tell. A callback that throws ends the call. */
export type RestoreEvent =
  | {
      readonly kind: 'reading';
      readonly step: 'validating' | 'staging';
      readonly contentKey: string;
      /** Which of all items it is, from 1. */
      readonly item: number;
      readonly items: number;
      /** Of this item, so far; `bytesTotal` where the backend can tell. */
      readonly bytes: number;
      readonly bytesTotal: number | undefined;
    }
  /** The manifest has no checksum of this item: whatever the backend gives is taken. */
  | { readonly kind: 'unverified'; readonly contentKey: string }
  /** A run that was cut off is taken up. */
  | { readonly kind: 'resuming' }
  /** Everything is here and verified; from now on the directory changes, and nothing is cancelled. */
  | { readonly kind: 'swapping' };

export interface CallOptions {
  readonly signal?: AbortSignal;
  readonly onProgress?: (event: RestoreEvent) => void;
}

/** Every limit of the reference face, with its default. */
export const BACKUP_REFERENCE_LIMITS = {
  /** A manifest; real ones have a few KiB. */
  manifestBytesMax: 16 * 1024 * 1024,
  /** What one read of a blob brings into memory. */
  readBytes: 1024 * 1024,
  /** What a restore leaves free on the disk. */
  diskReserveBytes: 16 * 1024 * 1024,
  /** How long a restore waits for another process to release the data directory. */
  restoreLockTimeoutMs: 0,
} as const;

function outside(what: string, value: bigint | number, range: string): NostosError {
  return new NostosError('INVALID_ARGUMENT', `${what} is a whole number from ${range}, got ${String(value)}`);
}
