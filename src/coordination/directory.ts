/**
 * Which group holds what: one entry of `{group, epoch}` for each tenant or actor that may move between groups. An entry
 * is replaced by compare-and-set with a higher epoch, so that of all ways out of a move one is taken, and each side sees
 * by the epoch which one. Entries are never removed: an epoch that had been used would come again.
 */
import { NostosError } from '../base/errors.ts';
import type { RecordKind, Register, Versioned } from './coordinator.ts';
import { checkGroupName, coordinatorDamaged, count, nonce, object } from './coordinator.ts';

export interface DirectoryEntry {
  readonly group: string;
  /** From 1; each replacement has a higher one. */
  readonly epoch: number;
  /** New with every write, so that a writer recognises its own entry when the answer got lost. */
  readonly nonce: string;
}

export interface Listed<R> extends Versioned<R> {
  readonly id: string;
}

export interface ListOptions {
  /** Only ids that begin so. */
  readonly prefix?: string;
  /** Only ids behind this one: the `next` of the page before. */
  readonly after?: string | undefined;
  /** From 1 to `DIRECTORY_PAGE_MAX`. */
  readonly limit?: number;
}

export interface Page<R> {
  /** In the order of their ids' bytes. */
  readonly entries: readonly Listed<R>[];
  /** Where the next page begins; undefined at the end. */
  readonly next: string | undefined;
}

/** Records of one kind by id. */
export interface Collection<R extends { readonly nonce: string }> {
  entry(id: string): Register<R>;
  /** One page; each entry of it was current at some moment of the call, not all of them at the same one. */
  list(options?: ListOptions): Promise<Page<R>>;
}

export type Directory = Collection<DirectoryEntry>;

export const DIRECTORY_PAGE_MAX = 1_000;
const ID = /^[a-z0-9][a-z0-9._:/-]{0,127}$/;
const FIELDS = ['group', 'epoch', 'nonce'];

export const DIRECTORY_ENTRY: RecordKind<DirectoryEntry> = {
  name: 'entry',
  encode: (entry) => JSON.stringify(entry, FIELDS),
  parse(value, source) {
    try {
      const fields = object(value, 'the entry', FIELDS);
      if (typeof fields.group !== 'string') throw new Error('group is no name');
      const entry = {
        group: checkGroupName(fields.group),
        epoch: count(fields.epoch, 'epoch'),
        nonce: nonce(fields.nonce),
      };
      if (entry.epoch < 1) throw new Error('epoch is below 1');
      return entry;
    } catch (cause) {
      throw coordinatorDamaged(source, cause);
    }
  },
  checkSuccessor(next, current) {
    if (next.epoch <= current.epoch)
      throw new NostosError(
        'INVALID_ARGUMENT',
        `An entry of epoch ${current.epoch} is replaced by one of a higher epoch, got ${next.epoch}`,
      );
  },
};

/** Lowercase, so that ids are as different as their names on any disk, and sorted alike everywhere. */
export function checkDirectoryId(id: string): string {
  if (ID.test(id)) return id;
  throw new NostosError(
    'INVALID_ARGUMENT',
    `An id in the directory is 1 to 128 of a-z 0-9 . _ : / - and begins with a letter or digit, got ${JSON.stringify(id).slice(0, 200)}`,
  );
}

export function checkListOptions({ prefix = '', after, limit = DIRECTORY_PAGE_MAX }: ListOptions): {
  prefix: string;
  after: string | undefined;
  limit: number;
} {
  if (prefix !== '') checkDirectoryId(prefix);
  if (after !== undefined) checkDirectoryId(after);
  if (!Number.isInteger(limit) || limit < 1 || limit > DIRECTORY_PAGE_MAX)
    throw new NostosError('INVALID_ARGUMENT', `A page has 1 to ${DIRECTORY_PAGE_MAX} entries, got ${limit}`);
  return { prefix, after, limit };
}
