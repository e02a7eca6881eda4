/** The words of rollback. LSNs and terms are plain numbers here: safe integers, checked where they come in. */
import { NostosError } from '../base/errors.ts';

/** A record by (term, LSN), which names it for ever. */
export interface Point {
  readonly term: number;
  readonly lsn: number;
}

/** The last record that both logs have. */
export interface CommonPoint extends Point {
  /** Of the record, 64 hex digits; empty where the caller compares LSNs only. */
  readonly hash: string;
}

export interface NewPrimary {
  readonly address: string;
  readonly term: number;
}

/** What was decided once, and stays through all attempts of one rollback. */
export interface Plan {
  /** 32 hex digits. */
  readonly id: string;
  readonly createdAtMs: number;
  /** Everything above it is dropped. */
  readonly common: CommonPoint;
  /** The last record that is dropped. */
  readonly frontier: Point;
  /** Whose tail it is; absent where the host does not say. */
  readonly store?: string;
  /** The node's own durable W when it was planned. */
  readonly watermark: number;
  readonly primary: NewPrimary;
}

/** A rollback file that is whole and durable. */
export interface PreservedFile {
  readonly path: string;
  readonly records: number;
  /** How many of them somebody had been told were kept. */
  readonly acknowledged: number;
  /** Bytes of the records. */
  readonly bytes: number;
  /** BLAKE3 of the file up to its footer, 64 hex digits; empty where somebody else wrote the file. */
  readonly digest: string;
}

/** What operators are told. `key` is the same in every repetition. */
export type RollbackNotice =
  | { readonly kind: 'rolled-back'; readonly key: string; readonly plan: Plan; readonly file: PreservedFile }
  | {
      readonly kind: 'refused';
      readonly key: string;
      readonly common: CommonPoint;
      readonly frontier: Point;
      readonly watermark: number;
      readonly primary: NewPrimary;
      readonly code: string;
      readonly reason: string;
    }
  | {
      readonly kind: 'failed';
      readonly key: string;
      readonly plan: Plan;
      readonly step: 'preserve' | 'recover' | 'rejoin';
      readonly code: string;
      readonly reason: string;
    };

/** Ceilings of one rollback. `override` passes them. */
export const ROLLBACK_LIMITS = {
  /** Records of a tail. */
  tailRecordsMax: 1_000_000,
  /** Their bytes. */
  tailBytesMax: 4 * 1024 * 1024 * 1024,
  /** From the time of the first record of a tail to that of the last. */
  tailSpanMsMax: 24 * 60 * 60 * 1000,
  /** Tenants that are undone at the same time. */
  tenantsAtOnceMax: 8,
  /** Refusals and failures that wait to be told. */
  outboxEventsMax: 100,
  /** Rows that a dry run of a re-apply may touch. */
  dryRunRowsMax: 200_000,
  /** Conflicts that a report lists; the others are counted. */
  conflictsListedMax: 1_000,
} as const;

export type RollbackLimits = Readonly<Record<keyof typeof ROLLBACK_LIMITS, number>>;

export function tooLarge(what: string, limit: keyof RollbackLimits, value: number, max: number): NostosError {
  return new NostosError(
    'ROLLBACK_TOO_LARGE',
    `the divergent tail has ${value} ${what}, ${limit} allows ${max}; nothing was dropped. Roll back with override, or restore this node from a peer`,
    { details: { limit, value, max } },
  );
}

/** What went wrong, in one line. */
export function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
