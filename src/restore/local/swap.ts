/**
 * The change from what was in a directory to what was fetched, as pure planning: which names are exchanged, and what to
 * do next given what is there. Whole entries of the directory are renamed, so a swap has a handful of steps however many
 * tenants there are, and what the source does not have goes with what is set aside.
 *
 * Of an entry there are at most three: the old one (in the directory, then set aside), and the new one (staged, then in
 * the directory). Where they are says how far the swap is; a journal of steps would only repeat it.
 */
import { NostosError } from '../../base/errors.ts';

/**
 * What belongs to the store at the top of a data directory, and goes with it. Everything else there is somebody else's and
 * stays; so does `rollback/`: what a node had to drop is its own, whichever store it has now.
 */
const OWNED =
  /^(?:node\.json|log|tenants|catalog\.sqlite(?:-wal|-shm|-journal)?|coordinator|coordinator\.json|recovery\.json|serving|sync)$/;
const SET_ASIDE = /^set-aside\.([1-9][0-9]{0,8})$/;
const SET_ASIDE_MAX = 999_999_999;

export function ownedByNode(name: string): boolean {
  return OWNED.test(name);
}

export function isSetAsideName(name: string): boolean {
  return SET_ASIDE.test(name);
}

export interface SwapEntry {
  readonly name: string;
  /** The directory had one when the swap was planned. */
  readonly old: boolean;
  /** The staged directory has one. */
  readonly staged: boolean;
}

export interface Swap {
  /** Where old entries go: `set-aside.<n>`. */
  readonly setAside: string;
  readonly entries: readonly SwapEntry[];
}

export function planSwap({
  here,
  staged,
}: {
  readonly here: readonly string[];
  readonly staged: readonly string[];
}): Swap {
  const names = [...new Set([...here, ...staged])].filter(ownedByNode).toSorted();
  const last = here.reduce((most, name) => Math.max(most, Number(SET_ASIDE.exec(name)?.[1] ?? 0)), 0);
  if (last >= SET_ASIDE_MAX)
    throw new NostosError(
      'FILE_EXISTS',
      `set-aside.${last} is there, and no higher number is left for what this restore sets aside; move it away. Nothing was changed`,
      { details: { name: `set-aside.${last}`, limit: SET_ASIDE_MAX } },
    );
  return {
    setAside: `set-aside.${last + 1}`,
    entries: names.map((name) => ({ name, old: here.includes(name), staged: staged.includes(name) })),
  };
}

export interface SwapSeen {
  readonly here: ReadonlySet<string>;
  readonly staged: ReadonlySet<string>;
  readonly aside: ReadonlySet<string>;
}

export type SwapStep =
  | { readonly kind: 'set-aside'; readonly names: readonly string[] }
  | { readonly kind: 'move-in'; readonly names: readonly string[] }
  | { readonly kind: 'done' };

/** What to do next. All old entries are out of the way, durably, before the first new one comes in. */
export function nextSwapStep(swap: Swap, seen: SwapSeen): SwapStep {
  const out: string[] = [];
  const into: string[] = [];
  for (const entry of swap.entries) {
    const where = whereIs(entry, seen);
    if (where === 'untouched') out.push(entry.name);
    else if (where === 'set-aside' && entry.staged) into.push(entry.name);
  }
  if (out.length > 0) return { kind: 'set-aside', names: out };
  if (into.length > 0) return { kind: 'move-in', names: into };
  return { kind: 'done' };
}

/** Entries to rename back, from where they were set aside. Once anything new is in the directory there is no way back. */
export function planWayBack(swap: Swap, seen: SwapSeen): readonly string[] {
  const places = swap.entries.map((entry) => ({ entry, where: whereIs(entry, seen) }));
  const movedIn = places.filter(({ where }) => where === 'moved-in').map(({ entry }) => entry.name);
  if (movedIn.length > 0)
    throw new NostosError(
      'RESTORE_UNFINISHED',
      `this restore cannot be given up any more: ${movedIn.join(', ')} of the new state is in place. Run nostos restore once more to finish it; it needs no source`,
      { details: { movedIn } },
    );
  return places.filter(({ entry, where }) => entry.old && where === 'set-aside').map(({ entry }) => entry.name);
}

/** `set-aside`: the old one is out of the way (or there was none), the new one is not in yet (or there is none). */
function whereIs({ name, old, staged }: SwapEntry, seen: SwapSeen): 'untouched' | 'set-aside' | 'moved-in' {
  const found = `${+seen.here.has(name)}${+seen.staged.has(name)}${+seen.aside.has(name)}`;
  const expected = {
    untouched: old ? `1${+staged}0` : '',
    'set-aside': `0${+staged}${+old}`,
    'moved-in': staged ? `10${+old}` : '',
  };
  if (found === expected.untouched) return 'untouched';
  if (found === expected['set-aside']) return 'set-aside';
  if (found === expected['moved-in']) return 'moved-in';
  throw new NostosError(
    'RESTORE_UNFINISHED',
    `the swap of ${name} cannot go on: somebody else moved it. It must be in two of: the directory (old, then new), ` +
      'restore/ (new), set-aside.<n>/ (old); put it back, or restore into an empty directory',
    {
      details: {
        name,
        old,
        staged,
        here: seen.here.has(name),
        inRestore: seen.staged.has(name),
        aside: seen.aside.has(name),
      },
    },
  );
}
