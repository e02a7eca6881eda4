/**
 * The reference's errors: one class for each of its error types, `kind` and fields with its names. Each is a `NostosError`
 * besides, whose `details` have the same fields (64-bit integers as text). A cause keeps its code.
 */
import { NostosError, type ErrorCode } from '../../base/errors.ts';
import type { WireVersion } from './types.ts';

type Fields = Readonly<Record<string, unknown>>;
/** Those that a class declares itself. */
type FieldsOf<E extends { readonly kind: string }> = Partial<Omit<E, keyof NostosError | 'kind'>>;

function options(fields: Fields, cause?: unknown): { details: Fields; cause?: unknown } {
  const asText = (value: unknown): unknown => (typeof value === 'bigint' ? value.toString() : value);
  const details = Object.fromEntries(Object.entries(fields).map(([name, value]) => [name, asText(value)]));
  return cause === undefined ? { details } : { details, cause };
}

function codeOf(cause: unknown, otherwise: ErrorCode): ErrorCode {
  return cause instanceof NostosError ? cause.code : otherwise;
}

const MANIFEST_CODES = {
  OplogRangeInverted: 'BACKUP_DAMAGED',
  ForgetFloorAboveWatermark: 'BACKUP_DAMAGED',
  ManifestVersionUnsupported: 'UNSUPPORTED_FORMAT',
  EmptySqliteCheckpointKey: 'BACKUP_DAMAGED',
  WireVersionMismatch: 'BACKUP_REFUSED',
  WouldResurrectDeletedData: 'BACKUP_REFUSED',
  HnswModelMismatch: 'BACKUP_REFUSED',
  // Of the checks that the reference promises and does not do.
  TenantMismatch: 'BACKUP_REFUSED',
  SnapshotIdMismatch: 'BACKUP_DAMAGED',
  ChecksumMissing: 'BACKUP_REFUSED',
  ChecksumMalformed: 'BACKUP_DAMAGED',
  SchemaVersionMismatch: 'BACKUP_REFUSED',
  VectorDimMismatch: 'BACKUP_REFUSED',
  DistanceMetricMismatch: 'BACKUP_REFUSED',
  EncryptionUnsupported: 'BACKUP_REFUSED',
  SourceWatermarkAboveOplog: 'BACKUP_DAMAGED',
  DuplicateModel: 'BACKUP_DAMAGED',
} as const satisfies Record<string, ErrorCode>;

export type ManifestValidationErrorKind = keyof typeof MANIFEST_CODES;

export class ManifestValidationError extends NostosError {
  readonly kind: ManifestValidationErrorKind;
  declare readonly floor?: bigint;
  declare readonly watermark?: bigint;
  declare readonly forgetFloor?: bigint;
  declare readonly got?: number;
  declare readonly current?: number;
  declare readonly dest?: WireVersion | string | bigint | number | null;
  declare readonly snap?: WireVersion | string | bigint | number;
  declare readonly destTombstoneFloor?: bigint | 'unknown';
  declare readonly snapForgetFloor?: bigint | null;
  declare readonly destModel?: string;
  declare readonly snapModel?: string;
  declare readonly table?: string;
  declare readonly key?: string;
  declare readonly algorithm?: string;
  declare readonly dekId?: string;

  constructor(kind: ManifestValidationErrorKind, message: string, fields: FieldsOf<ManifestValidationError> = {}) {
    super(MANIFEST_CODES[kind], message, options({ kind, ...fields }));
    this.kind = kind;
    Object.assign(this, fields);
  }
}

const BACKEND_CODES = {
  Io: 'IO_FAILED',
  /** The JSON of a manifest. */
  Serialization: 'BACKUP_DAMAGED',
  ManifestValidation: 'BACKUP_DAMAGED',
  ManifestNotFound: 'BACKUP_NOT_FOUND',
  ContentNotFound: 'BACKUP_NOT_FOUND',
  InvalidKey: 'INVALID_ARGUMENT',
  /** A manifest that is not UTF-8. */
  Other: 'BACKUP_DAMAGED',
} as const satisfies Record<string, ErrorCode>;

export type BackupBackendErrorKind = keyof typeof BACKEND_CODES;

export class BackupBackendError extends NostosError {
  readonly kind: BackupBackendErrorKind;
  declare readonly key?: string;
  declare readonly reason?: string;

  constructor(
    kind: BackupBackendErrorKind,
    message: string,
    fields: FieldsOf<BackupBackendError> = {},
    cause?: unknown,
  ) {
    super(codeOf(cause, BACKEND_CODES[kind]), message, options({ kind, ...fields }, cause));
    this.kind = kind;
    Object.assign(this, fields);
  }
}

const VALIDATOR_CODES = {
  Backend: 'IO_FAILED',
  Manifest: 'BACKUP_REFUSED',
  ChecksumMismatch: 'BACKUP_DAMAGED',
  ContentMissing: 'BACKUP_DAMAGED',
} as const satisfies Record<string, ErrorCode>;

export type RestoreValidatorErrorKind = keyof typeof VALIDATOR_CODES;

/** `Backend` and `Manifest` have the error of that kind as `cause`. */
export class RestoreValidatorError extends NostosError {
  readonly kind: RestoreValidatorErrorKind;
  declare readonly key?: string;
  declare readonly expected?: string;
  declare readonly actual?: string;

  constructor(
    kind: RestoreValidatorErrorKind,
    message: string,
    fields: FieldsOf<RestoreValidatorError> = {},
    cause?: unknown,
  ) {
    const code = kind === 'ContentMissing' ? VALIDATOR_CODES[kind] : codeOf(cause, VALIDATOR_CODES[kind]);
    super(code, message, options({ kind, ...fields }, cause));
    this.kind = kind;
    Object.assign(this, fields);
  }

  /** The errors of backends and manifests are wrapped; others come back as they are. */
  static from(error: unknown): unknown {
    if (error instanceof BackupBackendError) return new RestoreValidatorError('Backend', error.message, {}, error);
    if (error instanceof ManifestValidationError)
      return new RestoreValidatorError('Manifest', error.message, {}, error);
    return error;
  }
}

const EXECUTOR_CODES = {
  Validator: 'BACKUP_DAMAGED',
  Io: 'IO_FAILED',
  TenantPathOccupied: 'FILE_EXISTS',
  DataDirNotEmpty: 'FILE_EXISTS',
  RestoreInProgress: 'RESTORE_UNFINISHED',
  // What the reference does not look at.
  DirectoryInUse: 'DIRECTORY_LOCKED',
  DirectoryRefused: 'INVALID_ARGUMENT',
  InvalidPlan: 'INVALID_ARGUMENT',
  InsufficientSpace: 'DISK_FULL',
  /** Nothing is lost: the same call goes on where this one could not. */
  Unfinished: 'RESTORE_UNFINISHED',
} as const satisfies Record<string, ErrorCode>;

export type RestoreExecutorErrorKind = keyof typeof EXECUTOR_CODES;

/** `Validator` and `Io` have their error as `cause`. */
export class RestoreExecutorError extends NostosError {
  readonly kind: RestoreExecutorErrorKind;
  declare readonly tenantId?: bigint;
  declare readonly path?: string;
  declare readonly bytes?: number;
  declare readonly freeBytes?: number;

  constructor(
    kind: RestoreExecutorErrorKind,
    message: string,
    fields: FieldsOf<RestoreExecutorError> = {},
    cause?: unknown,
  ) {
    const inherits = kind === 'Validator' || kind === 'Io';
    const code = inherits ? codeOf(cause, EXECUTOR_CODES[kind]) : EXECUTOR_CODES[kind];
    super(code, message, options({ kind, ...fields }, cause));
    this.kind = kind;
    Object.assign(this, fields);
  }

  /** Cancellation, the caller's own errors and defects come back as they are. */
  static from(error: unknown): unknown {
    if (!(error instanceof NostosError) || error instanceof RestoreExecutorError) return error;
    const wrapped = RestoreValidatorError.from(error);
    if (wrapped instanceof RestoreValidatorError)
      return new RestoreExecutorError('Validator', wrapped.message, {}, wrapped);
    return new RestoreExecutorError('Io', error.message, {}, error);
  }
}
