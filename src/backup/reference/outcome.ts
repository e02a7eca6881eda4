/** What a restore has done, and its JSON, which is the reference's. */
import * as v from 'valibot';
import { readInput, wholeNumber } from '../../base/input-schema.ts';
import { parseStrictJson } from '../../base/strict-json.ts';
import { NostosError } from '../../base/errors.ts';
import { toPrettyJson } from './pretty-json.ts';
import { TenantId, type RestoreMode, type RestorePlanItemKind } from './types.ts';

export interface RestorePlanItemDigest {
  /** `sqlite_checkpoint`, or `hnsw:` and the model as the manifest has it. */
  readonly kind: string;
  readonly contentKey: string;
  readonly bytes: number;
}

export function digestKind(kind: RestorePlanItemKind): string {
  return kind.kind === 'SqliteCheckpoint' ? 'sqlite_checkpoint' : `hnsw:${kind.embeddingModel}`;
}

const MODES = ['new_cluster', 'single_tenant', 'wipe_and_restore'] as const satisfies readonly RestoreMode[];
const Outcome = v.object({
  tenant_id: v.bigint(),
  snapshot_id: v.string(),
  mode: v.picklist(MODES),
  items: v.array(
    v.strictTuple([
      v.object({
        kind: v.string(),
        content_key: v.string(),
        bytes: v.pipe(v.bigint(), v.transform(Number), wholeNumber()),
      }),
      v.string(),
    ]),
  ),
});

export class RestoreOutcome {
  readonly tenantId: TenantId;
  readonly snapshotId: string;
  readonly mode: RestoreMode;
  /** In the order of the plan, each with the path that it has now. */
  readonly items: readonly (readonly [RestorePlanItemDigest, string])[];

  constructor(fields: Pick<RestoreOutcome, 'tenantId' | 'snapshotId' | 'mode' | 'items'>) {
    this.tenantId = fields.tenantId;
    this.snapshotId = fields.snapshotId;
    this.mode = fields.mode;
    this.items = fields.items;
  }

  static fromJson(json: string): RestoreOutcome {
    const read = readInput(Outcome, parseStrictJson(Buffer.from(json)));
    if (!read.ok) throw new NostosError('INVALID_ARGUMENT', `this is no outcome of a restore: ${read.problem}`);
    const { tenant_id, snapshot_id, mode, items } = read.value;
    return new RestoreOutcome({
      tenantId: TenantId(tenant_id),
      snapshotId: snapshot_id,
      mode,
      items: items.map(([{ kind, content_key: contentKey, bytes }, path]) => [{ kind, contentKey, bytes }, path]),
    });
  }

  toJson(): string {
    return toPrettyJson({
      tenant_id: this.tenantId,
      snapshot_id: this.snapshotId,
      mode: this.mode,
      items: this.items.map(([{ kind, contentKey, bytes }, path]) => [{ kind, content_key: contentKey, bytes }, path]),
    });
  }
}
