/** The reference's data types under its names: numbers are safe integers, checked where a request comes in. */
import { NostosError, type ErrorCode } from '../../base/errors.ts';

/** One record of a tail. Its payload is kept byte for byte. */
export class TailRecord {
  readonly lsn: number;
  /** The one that it was written under. */
  readonly term: number;
  readonly payload: Uint8Array;

  constructor(lsn: number, term: number, payload: Uint8Array | string | readonly number[]) {
    this.lsn = lsn;
    this.term = term;
    this.payload = typeof payload === 'string' ? Buffer.from(payload) : Uint8Array.from(payload);
  }
}

/** Records in the order of their LSNs, perhaps with gaps: the span `(commonPointLsn, toLsn]` says what is dropped. */
export class DivergentTail {
  readonly commonPointLsn: number;
  readonly toLsn: number;
  /** Once, where it is an async iterable. */
  readonly records: readonly TailRecord[] | AsyncIterable<TailRecord>;

  constructor(fields: Pick<DivergentTail, 'commonPointLsn' | 'toLsn' | 'records'>) {
    this.commonPointLsn = fields.commonPointLsn;
    this.toLsn = fields.toLsn;
    this.records = fields.records;
  }

  spanLsns(): number {
    return Math.max(0, this.toLsn - this.commonPointLsn);
  }
}

export interface RollbackRequest {
  /** The highest local LSN. */
  readonly localFrontier: number;
  /** LSN of the last record that both logs have. */
  readonly commonPoint: number;
  /** Its term, which `rejoinAsReplica` then gets. */
  readonly commonPointTerm?: number;
  /** The highest LSN that this node knows to be committed; never the new primary's. */
  readonly commitWatermark: number;
  readonly newPrimaryAddr: string;
  readonly newTerm: number;
}

export class RollbackPlan {
  readonly recoverToLsn: number;
  readonly localFrontier: number;
  readonly commitWatermark: number;
  readonly tailLsns: number;

  constructor(fields: Pick<RollbackPlan, 'recoverToLsn' | 'localFrontier' | 'commitWatermark' | 'tailLsns'>) {
    this.recoverToLsn = fields.recoverToLsn;
    this.localFrontier = fields.localFrontier;
    this.commitWatermark = fields.commitWatermark;
    this.tailLsns = fields.tailLsns;
  }

  /** Does nothing else. A common point below the watermark throws `WatermarkViolation`. */
  static compute(request: RollbackRequest): RollbackPlan {
    checkRequest(request);
    const { localFrontier, commonPoint, commitWatermark } = request;
    if (commonPoint < commitWatermark) throw watermarkViolation(commonPoint, commitWatermark);
    const tailLsns = Math.max(0, localFrontier - commonPoint);
    return new RollbackPlan({ recoverToLsn: commonPoint, localFrontier, commitWatermark, tailLsns });
  }

  hasDivergentTail(): boolean {
    return this.localFrontier > this.recoverToLsn;
  }
}

export interface RollbackEvent {
  readonly commonPointLsn: number;
  readonly tailToLsn: number;
  readonly tailLsns: number;
  readonly commitWatermark: number;
  readonly rollbackFile: string;
  readonly newPrimaryAddr: string;
  readonly newTerm: number;
}

export type NodeRole =
  | { readonly kind: 'Primary'; readonly term: number }
  | { readonly kind: 'Replica'; readonly primaryAddr: string; readonly term: number };
export const NodeRole = {
  Primary: (term: number): NodeRole => ({ kind: 'Primary', term }),
  Replica: (primaryAddr: string, term: number): NodeRole => ({ kind: 'Replica', primaryAddr, term }),
} as const;

export class RollbackOutcome {
  readonly recoveredToLsn: number;
  readonly tailLsns: number;
  readonly rollbackFile: string | undefined;
  /** Whether the event was taken; otherwise it waits for `deliverEvents`. */
  readonly eventFired: boolean;
  readonly role: NodeRole;
  /** False: rolled back, but not following; the next run repeats just that. */
  readonly rejoined: boolean;
  readonly rejoinError: unknown;

  constructor(
    fields: Pick<
      RollbackOutcome,
      'recoveredToLsn' | 'tailLsns' | 'rollbackFile' | 'eventFired' | 'role' | 'rejoined' | 'rejoinError'
    >,
  ) {
    this.recoveredToLsn = fields.recoveredToLsn;
    this.tailLsns = fields.tailLsns;
    this.rollbackFile = fields.rollbackFile;
    this.eventFired = fields.eventFired;
    this.role = fields.role;
    this.rejoined = fields.rejoined;
    this.rejoinError = fields.rejoinError;
  }

  rolledBackTail(): boolean {
    return this.tailLsns > 0;
  }
}

type Awaitable<T> = T | Promise<T>;

export interface RollbackTransport {
  /** The records above the first and up to the second LSN. */
  readDivergentTail(
    fromExclusive: number,
    toInclusive: number,
  ): Awaitable<readonly TailRecord[] | AsyncIterable<TailRecord>>;
  /** Where the tail now lies, durably. An async tail is read to its end. */
  persistRollbackFile(tail: DivergentTail): Awaitable<string>;
  /** Durable when it resolves; may be called again. */
  recoverToLsn(lsn: number): Awaitable<void>;
  /** May come more than once. */
  emitRollbackEvent(event: RollbackEvent): Awaitable<void>;
  /** `from` is the record after which to follow. */
  rejoinAsReplica(
    primaryAddr: string,
    term: number,
    from: { readonly term: number | undefined; readonly lsn: number },
  ): Awaitable<void>;
  /** Stops writes, adopts the term, flushes, and says the frontier, which then counts instead of the request's. */
  freeze?(newTerm: number): Awaitable<number>;
}

export type RollbackErrorKind =
  | 'WatermarkViolation'
  | 'TailReadFailed'
  | 'TailPersistFailed'
  | 'RecoverFailed'
  /** An LSN or term is no safe integer, the term is not above the local one, the address is the node's own. */
  | 'InvalidRequest'
  | 'TooLarge'
  /** Records were appended while a rollback was unfinished. */
  | 'Refused';

const CODES = {
  WatermarkViolation: 'WATERMARK_VIOLATION',
  TailReadFailed: 'TAIL_READ_FAILED',
  TailPersistFailed: 'TAIL_PERSIST_FAILED',
  RecoverFailed: 'RECOVER_FAILED',
  InvalidRequest: 'INVALID_ARGUMENT',
  TooLarge: 'ROLLBACK_TOO_LARGE',
  Refused: 'ROLLBACK_REFUSED',
} as const satisfies Record<RollbackErrorKind, ErrorCode>;

interface RollbackErrorFields {
  readonly commonPoint?: number;
  readonly commitWatermark?: number;
  readonly targetLsn?: number;
  readonly reason?: string;
}

/** A `NostosError` with the reference's kinds and fields. */
export class RollbackError extends NostosError {
  readonly kind: RollbackErrorKind;
  /** Of `WatermarkViolation`. */
  readonly commonPoint: number | undefined;
  readonly commitWatermark: number | undefined;
  /** Of `RecoverFailed`. */
  readonly targetLsn: number | undefined;
  readonly reason: string | undefined;

  constructor(kind: RollbackErrorKind, message: string, fields: RollbackErrorFields = {}, cause?: unknown) {
    super(CODES[kind], message, { details: { ...fields }, ...(cause === undefined ? {} : { cause }) });
    this.kind = kind;
    this.commonPoint = fields.commonPoint;
    this.commitWatermark = fields.commitWatermark;
    this.targetLsn = fields.targetLsn;
    this.reason = fields.reason;
  }

  /** The reference's kind of an error of ours; what it has no kind for comes back as it is. */
  static from(error: unknown): unknown {
    if (!(error instanceof NostosError) || error instanceof RollbackError) return error;
    const kind = (Object.keys(CODES) as RollbackErrorKind[]).find((one) => CODES[one] === error.code);
    return kind === undefined ? error : new RollbackError(kind, error.message, error.details, error.cause);
  }
}

export function watermarkViolation(commonPoint: number, commitWatermark: number): RollbackError {
  return new RollbackError(
    'WatermarkViolation',
    `the common point ${commonPoint} is below the commit watermark ${commitWatermark}; nothing was dropped`,
    { commonPoint, commitWatermark },
  );
}

export function checkRequest(request: RollbackRequest): void {
  const { localFrontier, commonPoint, commitWatermark, newTerm, commonPointTerm = 0, newPrimaryAddr } = request;
  const numbers = { localFrontier, commonPoint, commitWatermark, newTerm, commonPointTerm };
  for (const [name, value] of Object.entries(numbers))
    if (!Number.isSafeInteger(value) || value < 0)
      throw new RollbackError(
        'InvalidRequest',
        `${name} must be a whole number from 0 to 2^53-1, got ${String(value)}`,
      );
  if (typeof newPrimaryAddr !== 'string' || newPrimaryAddr === '')
    throw new RollbackError('InvalidRequest', 'newPrimaryAddr must name the new primary');
}
