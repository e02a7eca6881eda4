/** Why a copy refuses what would append to its log. */
import { NostosError } from '../base/errors.ts';
import type { CopyOrigin } from './node-file.ts';

export function notPrimary(copy?: CopyOrigin): NostosError {
  const source = copy?.source ?? null;
  const from = source === null ? 'another node' : `store ${source}`;
  return new NostosError(
    'NOT_PRIMARY',
    `this node is a copy of ${from}, made by a restore: it can be read, and appends nothing. Write to the node that it was copied from; restore again to bring this one up to date`,
    { details: { role: 'copy', primary: source, term: copy?.reaches?.term ?? null } },
  );
}
