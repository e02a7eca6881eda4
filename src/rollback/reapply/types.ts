/** What re-applying a rollback file needs of the node that takes it, and what it reports. */
import type { ChangeOp } from '../../store/changeset.ts';
import type { KeyValue } from '../../store/forget.ts';
import type { SqlInput, SqlValue } from '../../store/values.ts';
import type { TableNames } from '../file/format.ts';
import type { Values } from '../rows.ts';
import type { CommonPoint } from '../types.ts';

/**
 * What becomes of a transaction with rows that have changed since. `skip`: it is left out. `theirs`: these rows stay as
 * they are, its others are written. `ours`: these rows become what the tail made of them.
 */
export type Policy = (typeof POLICIES)[number];
export const POLICIES = ['skip', 'theirs', 'ours'] as const;

export interface RowReader {
  /** The first row by column name, or undefined. INTEGERs are bigint. */
  get(statement: string, parameters: readonly SqlInput[]): Readonly<Record<string, SqlValue>> | undefined;
  /** Whether a write with this id has been answered. */
  known(id: string): boolean;
}

export interface RowWriter extends RowReader {
  run(statement: string, parameters: readonly SqlInput[]): void;
  /** Runs `fn`; if it throws, what it changed is undone and the error goes on to the caller. */
  savepoint<T>(fn: () => T): T;
  /** Answers later writes with this id with the result whose bytes these are, as they stood in `nostos_results`. */
  remember(id: string, result: Uint8Array): void;
}

/** The values of a key, in the order of the key. */
export type IsForgotten = (table: string, key: readonly KeyValue[]) => boolean;

export interface ReapplyTenant {
  /** 32 hex digits. */
  readonly uuid: string;
  readonly tables: readonly TableNames[];
  /** Tells which rows were forgotten, but for what the history up to this record forgot before they could be written. */
  forgottenSince(common: Pick<CommonPoint, 'lsn'>): Promise<IsForgotten>;
  read<T>(fn: (reader: RowReader) => T): Promise<T>;
  /**
   * One committed transaction; where `fn` throws, nothing is kept and the error goes on. Where a write with this id was
   * answered before, `fn` is not called.
   */
  write(id: string, fn: (writer: RowWriter) => void): Promise<void>;
}

export interface ReapplyTarget {
  /** Undefined where there is none of this name. */
  tenant(name: string): Promise<ReapplyTenant | undefined>;
}

export type ConflictKind = 'exists' | 'changed' | 'missing' | 'schema';

export interface Conflict {
  readonly lsn: number;
  readonly tenant: string;
  readonly table: string;
  readonly op: ChangeOp;
  readonly kind: ConflictKind;
  readonly key: Values;
  readonly old?: Values;
  readonly new?: Values;
  /** The row as it is now, where there is one. */
  readonly present?: Values;
  /** `skipped` with its whole transaction, `kept` as it is, or `overwritten`. */
  readonly resolution: 'skipped' | 'kept' | 'overwritten';
}

/** A record, or a transaction, of which nothing was written, and why. */
export interface LeftOut {
  readonly lsn: number;
  readonly tenant: string;
  readonly kind:
    /** A client has tried it again; `missingRows` of its rows are not there. */
    | 'retried'
    /** A constraint of the schema is violated, or the node takes no transaction as large. */
    | 'refused'
    /** It had a conflict. */
    | 'conflict'
    /** Its rows were forgotten for good. */
    | 'forgotten'
    /** There is no tenant of this name, or another one that has it now. */
    | 'tenant'
    /** No changeset: a schema change, a tenant that was created or dropped, … */
    | 'record'
    /** It could not be read when the file was made, up to `to`. */
    | 'missing'
    /** The file does not have the names of its columns, or its payload cannot be read. */
    | 'unreadable';
  readonly why: string;
  readonly to?: number;
  readonly missingRows?: number;
}

export interface ReapplyReport {
  readonly rollbackId: string;
  readonly policy: Policy;
  /** Nothing was written; what constraints would refuse is not known. */
  readonly dryRun: boolean;
  readonly records: number;
  readonly transactions: {
    /** Written, with at least one row. */
    readonly applied: number;
    /** All there already. */
    readonly present: number;
    /** By an earlier run over this file. */
    readonly repeated: number;
    readonly leftOut: number;
  };
  readonly rows: {
    readonly applied: number;
    /** Already as the tail left them. */
    readonly present: number;
    readonly conflicts: number;
    /** Left to triggers and foreign keys. */
    readonly indirect: number;
    /** Of shadow tables. */
    readonly derived: number;
    /** Left out, since they were forgotten for good. */
    readonly forgotten: number;
  };
  readonly conflicts: readonly Conflict[];
  readonly leftOut: readonly LeftOut[];
  /** Conflicts and records beyond `conflictsListedMax`, counted only. */
  readonly unlisted: number;
}
