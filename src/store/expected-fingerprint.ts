/** The fingerprint that a tenant must have according to the log, moved along with every change. */
import type { DatabaseSync } from 'node:sqlite';
import type { TenantUuid } from '../base/brands.ts';
import { releaseBuffer } from '../base/release.ts';
import { invertAll, stripTables } from './changeset.ts';
import { Fingerprint } from './fingerprint/fingerprint.ts';
import { fingerprintRows } from './fingerprint/fingerprint-rows.ts';
import { Fingerprinter } from './fingerprint/fingerprinter.ts';
import { isUnreplicated } from './own-tables.ts';
import type { SchemaShape } from './schema-shape.ts';

/** Copies of a tenant share its uuid and so their fingerprints can be compared. */
export function fingerprintKey(uuid: TenantUuid): Uint8Array {
  return Uint8Array.from(Buffer.from(uuid, 'hex'));
}

export class ExpectedFingerprint {
  readonly #fingerprinter: Fingerprinter;
  #fingerprint: Fingerprint;

  private constructor(uuid: TenantUuid, fingerprint: Fingerprint) {
    this.#fingerprinter = new Fingerprinter(fingerprintKey(uuid));
    this.#fingerprint = fingerprint;
  }

  /** From stored buckets; without any it is that of an empty tenant. */
  static parse(uuid: TenantUuid, buckets?: Uint8Array): ExpectedFingerprint {
    return new ExpectedFingerprint(uuid, buckets === undefined ? new Fingerprint() : Fingerprint.parse(buckets));
  }

  /** 16 bytes over all buckets. */
  total(): Uint8Array {
    return this.#fingerprint.total();
  }

  apply(changeset: Uint8Array, shape: SchemaShape): void {
    this.#fingerprinter.delta(changeset, shape.columnNames, this.#fingerprint);
  }

  /** Takes back what `apply` added for these changesets. */
  revert(changesets: readonly Uint8Array[], shape: SchemaShape): void {
    this.apply(invertAll(changesets.map((changeset) => stripTables(changeset, isUnreplicated))), shape);
  }

  recompute(database: DatabaseSync, shape: SchemaShape): void {
    this.#fingerprint = fingerprintRows(database, this.#fingerprinter, { tables: [...shape.tables.keys()] });
  }

  serialize(): Uint8Array {
    return this.#fingerprint.serialize();
  }

  /** It is used no more. */
  release(): void {
    const { buffer } = this.#fingerprint.buckets;
    if (buffer instanceof ArrayBuffer && !buffer.detached) releaseBuffer(new Uint8Array(buffer));
  }

  snapshot(): Uint8Array {
    return this.#fingerprint.serialize();
  }

  restore(snapshot: Uint8Array): void {
    this.#fingerprint = Fingerprint.parse(snapshot);
  }
}
