/** Where the items of a plan go: the reference's paths, and for models that share one there, a path each. */
import { hashBlake3 } from '../../base/blake3.ts';
import { RestoreExecutorError } from './errors.ts';
import type { RestorePlanItem } from './types.ts';

/** Relative to the tenant's directory, one for each item, all different. */
export function destinationsOf(items: readonly RestorePlanItem[]): string[] {
  const names = items.map(({ kind }) => (kind.kind === 'SqliteCheckpoint' ? undefined : safeName(kind.embeddingModel)));
  const paths = items.map(({ kind }, i) => {
    if (kind.kind === 'SqliteCheckpoint') return 'data.sqlite';
    const model = kind.embeddingModel;
    const safe = names[i] as string;
    const isShared = names.filter((name) => name === safe).length > 1 && model !== safe;
    return `hnsw/${isShared ? `${safe}.${shortHash(model)}` : safe}.bin`;
  });
  const twice = paths.find((path, i) => paths.indexOf(path) !== i);
  if (twice !== undefined)
    throw new RestoreExecutorError(
      'InvalidPlan',
      `two items of the plan would both become ${twice}, and one of them would be lost; nothing was changed`,
      { path: twice },
    );
  return paths;
}

function safeName(model: string): string {
  return model.replace(/[^A-Za-z0-9._-]/gu, '_');
}

function shortHash(text: string): string {
  return Buffer.from(hashBlake3(Buffer.from(text)).subarray(0, 4)).toString('hex');
}
