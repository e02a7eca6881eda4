/** Whether a snapshot is whole and fits where it shall go, before anything there is touched. */
import type { BackupBackend } from './backend.ts';
import { checkDestination, checkFurther, type RestoreChecks } from './checks.ts';
import { RestoreValidatorError } from './errors.ts';
import type { SnapshotManifest } from './manifest.ts';
import {
  RestorePlanItemKind,
  type CallOptions,
  type DestinationState,
  type RestorePlan,
  type RestorePlanItem,
} from './types.ts';
import { readItem } from './verify.ts';

export class RestoreValidator {
  readonly #backend: BackupBackend;
  readonly #checks: RestoreChecks;

  /** Without `checks` what the reference looks at, and nothing else. */
  constructor(backend: BackupBackend, { checks = {} }: { readonly checks?: RestoreChecks } = {}) {
    this.#backend = backend;
    this.#checks = checks;
  }

  /** The manifest, then the destination, then every byte of every blob; the first thing that is wrong is thrown. */
  async validate(id: string, destination: DestinationState, options: CallOptions = {}): Promise<RestorePlan> {
    options.signal?.throwIfAborted();
    const manifest = await this.#manifest(id, destination);
    const plan = { tenantId: manifest.tenantId, snapshotId: id, manifest, items: itemsOf(manifest), destination };
    for (const number of plan.items.keys())
      await readItem(this.#backend, { items: plan.items, number, step: 'validating' }, options);
    return plan;
  }

  async #manifest(id: string, destination: DestinationState): Promise<SnapshotManifest> {
    try {
      const manifest = await this.#backend.getManifest(id);
      manifest.validateInternal();
      checkDestination(manifest, destination, this.#checks);
      checkFurther(manifest, { id, destination, checks: this.#checks });
      return manifest;
    } catch (error) {
      throw RestoreValidatorError.from(error);
    }
  }
}

function itemsOf(manifest: SnapshotManifest): RestorePlanItem[] {
  const { sqliteCheckpointKey: contentKey, sqliteCheckpointChecksum: expectedChecksum } = manifest;
  const vectors = manifest.hnswSnapshots.map((entry) => ({
    kind: RestorePlanItemKind.HnswSnapshot(entry.embeddingModel),
    contentKey: entry.contentKey,
    expectedChecksum: entry.checksum,
  }));
  return [{ kind: RestorePlanItemKind.SqliteCheckpoint, contentKey, expectedChecksum }, ...vectors];
}
