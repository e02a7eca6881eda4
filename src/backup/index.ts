/** Published as `nostos/backup`: the reference's backups, read, checked, written and restored. */
export type { BackupBackend, ContentRange } from './reference/backend.ts';
export type { ResurrectState, RestoreChecks } from './reference/checks.ts';
export {
  BackupBackendError,
  ManifestValidationError,
  RestoreExecutorError,
  RestoreValidatorError,
} from './reference/errors.ts';
export type {
  BackupBackendErrorKind,
  ManifestValidationErrorKind,
  RestoreExecutorErrorKind,
  RestoreValidatorErrorKind,
} from './reference/errors.ts';
export { RestoreExecutor } from './reference/executor.ts';
export type { RestoreExecutorOptions } from './reference/executor.ts';
export { RESTORE_MARKER } from './reference/marker.ts';
export { LocalFsBackend } from './reference/local-fs-backend.ts';
export { SnapshotManifest, SnapshotManifestVersion } from './reference/manifest.ts';
export type { EncryptionMetadata, HnswSnapshotEntry, SnapshotManifestFields } from './reference/manifest.ts';
export { RestoreOutcome } from './reference/outcome.ts';
export type { RestorePlanItemDigest } from './reference/outcome.ts';
export {
  BACKUP_REFERENCE_LIMITS,
  DistanceMetric,
  RestoreMode,
  RestorePlanItemKind,
  SchemaVersion,
  TenantId,
} from './reference/types.ts';
export type {
  CallOptions,
  DestinationState,
  RestoreEvent,
  RestorePlan,
  RestorePlanItem,
  WireVersion,
} from './reference/types.ts';
export { RestoreValidator } from './reference/validator.ts';
export { verifyBlob, verifyContent } from './reference/verify.ts';
export type { ContentDigest } from './reference/verify.ts';
