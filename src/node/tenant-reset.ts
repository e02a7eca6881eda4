/**
 * Replaces the content of a tenant by that of a file, through the log: followers, archives and feeds have the new content
 * before anything names it, and others are served all the while.
 *
 * The content is imported as records of a hidden tenant, which has the uuid of the one to be replaced: so the forget ledger,
 * keys of backups and fingerprints mean the same tenant. Its name begins with a control character, which no user's name
 * may; it is in no list. One committed record, `tenant-reset`, gives it the name, and drops the replaced one.
 *
 * - Writes are held from the last look into the ledger until the record is committed; what was acknowledged before is part
 *   of what is replaced, what comes later is written to the new content.
 * - What was forgotten does not come back: before the record, rows that the ledger names are deleted from the hidden tenant.
 * - A crash before the record leaves the tenant as it was, and a hidden one that the next primary drops; one after it leaves
 *   the new content, and files of the old one that the next opening removes.
 */
import type { Position, TenantUuid } from '../base/brands.ts';
import type { LongCallOptions } from './types.ts';

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
  /** Take rows whose foreign keys point nowhere, instead of refusing the file. */
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
