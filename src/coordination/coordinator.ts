/**
 * What groups ask of a coordinator: records that are read and replaced by compare-and-set, one of each group and one of
 * each thing that the directory places. No leases, locks or recipes; who leads, and since when, is all in the record, and
 * what may be done with it is DESIGN section 5.
 *
 * Every adapter passes `testing/coordinator-compliance.ts`: reads are linearizable, of two writers from one version one
 * wins, and a writer that stops in the middle blocks nobody.
 */
import type { Position, StoreId, BootId, Generation, Term } from '../base/brands.ts';
import { toBootId, toGeneration, toLsn, toStoreId, toTerm } from '../base/brands.ts';
import { NostosError } from '../base/errors.ts';

export interface GroupRecord {
  readonly generation: Generation;
  readonly term: Term;
  /** Who leads, by store and the opening of it; null before the first term. */
  readonly primary: { readonly store: StoreId; readonly boot: BootId } | null;
  readonly members: readonly StoreId[];
  readonly inSync: readonly StoreId[];
  readonly minInSync: number;
  /** Rises with every renewal; a (term, renewal) that stands still is how others see that the primary is gone. */
  readonly renewal: number;
  readonly committed: Position | null;
  /** New with every write, so that a writer recognises its own record when the answer got lost. */
  readonly nonce: string;
}

export interface Versioned<R = GroupRecord> {
  /** From 1; every replacement adds one. */
  readonly version: number;
  readonly record: R;
}

export type CasResult<R = GroupRecord> =
  | { readonly ok: true; readonly version: number }
  | { readonly ok: false; readonly current: Versioned<R> | undefined };

/** One record that is replaced by compare-and-set. */
export interface Register<R extends { readonly nonce: string }> {
  /** The current record; undefined when none was ever written. */
  read(): Promise<Versioned<R> | undefined>;
  /**
   * Replaces the record if its version is `expectedVersion`; 0 stands for no record. When it throws, it is open whether
   * the record was replaced, until a later version is read; the same call with the same record may be repeated.
   */
  compareAndSet(expectedVersion: number, record: R): Promise<CasResult<R>>;
  /**
   * Calls with the present record and then with newer ones; versions rise, and some may be left out. It is a hint that
   * comes soon, not a promise that it comes: what is silent may also be away.
   */
  watch(listener: (current: Versioned<R>) => void, options: { signal: AbortSignal }): void;
}

export type Coordinator = Register<GroupRecord>;

/** What a record is in bytes, and what may follow what. */
export interface RecordKind<R extends { readonly nonce: string }> {
  readonly name: 'group' | 'entry' | 'member';
  encode(record: R): string;
  /** Takes exactly what `encode` makes; anything else is damage, on which nothing may be decided. */
  parse(value: unknown, source: string): R;
  /** Throws when no record like this one may take the place of the current one. */
  checkSuccessor?(next: R, current: R): void;
}

export const MEMBERS_MAX = 64;
const FIELDS = 'generation term primary members inSync minInSync renewal committed nonce'.split(' ');

export function encodeGroupRecord(record: GroupRecord): string {
  return JSON.stringify(record, FIELDS.concat('store', 'boot', 'lsn'));
}

export function parseGroupRecord(value: unknown, source: string): GroupRecord {
  try {
    const fields = object(value, 'the record', FIELDS);
    const members = stores(fields.members, 'members');
    const inSync = stores(fields.inSync, 'inSync');
    const record: GroupRecord = {
      generation: toGeneration(fields.generation),
      term: toTerm(fields.term),
      primary: fields.primary === null ? null : primary(fields.primary),
      members,
      inSync,
      minInSync: count(fields.minInSync, 'minInSync'),
      renewal: count(fields.renewal, 'renewal'),
      committed: fields.committed === null ? null : position(fields.committed),
      nonce: nonce(fields.nonce),
    };
    if (inSync.some((store) => !members.includes(store))) throw new Error('inSync names a store that is no member');
    return record;
  } catch (cause) {
    throw coordinatorDamaged(source, cause);
  }
}

export const GROUP_RECORD: RecordKind<GroupRecord> = {
  name: 'group',
  encode: encodeGroupRecord,
  parse: parseGroupRecord,
};

export const DEFAULT_GROUP = 'main';

export function checkGroupName(name: string): string {
  if (/^[a-z0-9][a-z0-9-]{0,62}$/.test(name)) return name;
  throw new NostosError(
    'INVALID_ARGUMENT',
    `The name of a group is 1 to 63 lowercase letters, digits and dashes, got ${JSON.stringify(name).slice(0, 100)}`,
  );
}

export function coordinatorDamaged(source: string, cause: unknown): NostosError {
  const reason = cause instanceof Error ? cause.message : String(cause);
  return new NostosError('COORDINATOR_DAMAGED', `The record in ${source} cannot be read: ${reason}`, {
    details: { source, reason },
    cause,
  });
}

export function object(value: unknown, what: string, keys: readonly string[]): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw new Error(`${what} is not an object`);
  const unknownKey = Object.keys(value).find((key) => !keys.includes(key));
  if (unknownKey !== undefined) throw new Error(`${what} has an unknown field ${JSON.stringify(unknownKey)}`);
  return value as Record<string, unknown>;
}

function stores(value: unknown, what: string): StoreId[] {
  if (!Array.isArray(value) || value.length > MEMBERS_MAX)
    throw new Error(`${what} is not a list of at most ${MEMBERS_MAX}`);
  const ids = value.map(toStoreId);
  if (new Set(ids).size !== ids.length) throw new Error(`${what} names a store twice`);
  return ids;
}

function primary(value: unknown): { store: StoreId; boot: BootId } {
  const fields = object(value, 'primary', ['store', 'boot']);
  return { store: toStoreId(fields.store), boot: toBootId(fields.boot) };
}

function position(value: unknown): Position {
  const fields = object(value, 'committed', ['generation', 'term', 'lsn']);
  return { generation: toGeneration(fields.generation), term: toTerm(fields.term), lsn: toLsn(fields.lsn) };
}

export function count(value: unknown, what: string): number {
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 0)
    throw new Error(`${what} is not a whole number: ${String(value)}`);
  return value;
}

export function nonce(value: unknown): string {
  if (typeof value !== 'string' || !/^[0-9a-f]{32}$/.test(value)) throw new Error('nonce is not 32 hex digits');
  return value;
}
