/** What rollback files are called: terms, range and id, so that a directory listing tells them apart. */
import type { FileHeader } from './format.ts';

const FILE_SUFFIX = '.nrb';
export const TEMPORARY_SUFFIX = '.nrb.tmp';

/** What did not check out when its run was resumed. */
export const SET_ASIDE_SUFFIX = '.damaged';

const NAME = /^term\d+-to-\d+-lsn-\d+-\d+-[0-9a-f]{32}\.nrb(?:\.damaged)?$/;

export function fileName({ oldTerm, newTerm, firstLsn, lastLsn, id }: FileHeader): string {
  return `term${oldTerm}-to-${newTerm}-lsn-${firstLsn}-${lastLsn}-${id}${FILE_SUFFIX}`;
}

export function isFileName(name: string): boolean {
  return NAME.test(name);
}

/** The id of the rollback; empty for other names. */
export function idOfName(name: string): string {
  return /-([0-9a-f]{32})\.nrb/.exec(name)?.[1] ?? '';
}
