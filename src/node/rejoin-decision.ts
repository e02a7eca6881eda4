/**
 * The rejoin decision (DESIGN section 6): how the state of a node comes back to its group, given what it finds. Pure, and
 * the same on start, on reconnect, after damage, and in `nostos rejoin --plan`, which only prints it.
 *
 * What must hold: nothing is given up that is not preserved first; nothing above all other copies is given up at all while
 * it may be the only one, so a store in sync is dropped from the set by its primary before its files are set aside; and
 * what needs a primary waits for one.
 *
 * Where several rows of the table hold, the first of this order decides:
 *
 * 1. the coordinator is set back: nothing that is read there may be acted on
 * 2. another process has the store open: one of the two is a copy, and only a person knows which
 * 3. an unfinished restore: nobody opens the directory meanwhile; one in sync is replaced only while another one leads
 * 4. a failed write: only opening the store again shows what the disk has, and that needs nobody
 * 5. the coordinator is away: roles stay, and who has stopped stays so; damage too waits, since nobody can be dropped
 *    meanwhile
 * 6. there is no group
 * 7. another generation: everything here is of a history that ended, damage and forks with it
 * 8. committed records contradict each other: no path may hide that, a restore least
 * 9. damage, or an image older than what was acknowledged
 * 10. an empty log, or one that ends before what others still hold
 * 11. no primary
 * 12. the common point: rollback, or stream
 * 13. while serving: what belongs elsewhere, then what differs
 */
import type { Generation, Lsn, Position, StoreId, Term } from '../base/brands.ts';
import type { NostosError } from '../base/errors.ts';
import type { GroupRecord, Versioned } from '../coordination/coordinator.ts';
import { isOlder } from '../coordination/newest-seen.ts';
import type { StopReason } from '../replication/effects.ts';

export interface RejoinFound {
  readonly store: StoreId;
  readonly generation: Generation;
  readonly log: {
    readonly end: { readonly term: Term; readonly lsn: Lsn };
    /** W as the store knows it for good. */
    readonly watermark: Lsn;
    /** The record before the first one held. */
    readonly anchor: Lsn;
  };
  /** Whether `committed` of the record is a record of the log here. */
  readonly holds: (position: Position) => boolean;
  /** `away`: it did not answer; then the newest record seen is what is known. */
  readonly coordinator: { readonly current: Versioned | undefined } | 'away';
  /** The newest record seen before, as kept in `coordinator.json`. */
  readonly seen: Versioned | undefined;
  /** Who leads now. A record that names a boot of the past, or a primary whose lease is out, is `none`. */
  readonly primary: 'none' | 'self' | 'other';
  /** The last search for the common point found it here; absent: none has ended so. */
  readonly commonPoint?: Lsn;
  /** Why the machine of the group stopped. */
  readonly stopped?: StopReason;
  /** What of the log or of a tenant cannot be trusted, in words. */
  readonly damage?: string;
  /** `swapping`: what it fetched is being put in place, and nothing but its end is whole. */
  readonly restoreUnfinished?: 'fetching' | 'swapping';
  /** Whether there is room to append. Default true. */
  readonly hasRoom?: boolean;
  /** Members that can serve a copy; absent: not asked yet. */
  readonly providers?: number;
  readonly hasBackup?: boolean;
  /** While serving: where a fingerprint or Merkle root differs. */
  readonly differs?: string;
  /** While serving: an actor or tenant that the directory places in another group. */
  readonly elsewhere?: string;
}

/** What a node can do. All but the last three are done by the node itself. */
export const REJOIN_ACTIONS = [
  'stand',
  'lead',
  'wait',
  'go-on',
  'stream',
  'rollback',
  'reopen',
  'network-restore',
  /** Hand over where it leads, be dropped from the in-sync set, a new store, the files set aside, and network restore. */
  'leave-and-restore',
  /** The directory whole set aside, and network restore. */
  'set-aside-and-restore',
  'anti-entropy',
  'live-migration',
  'refuse',
  'stop',
  /** Nothing more is tried: a person decides. */
  'operator',
] as const;
export type RejoinAction = (typeof REJOIN_ACTIONS)[number];

export const NOT_BUILT: ReadonlySet<RejoinAction> = new Set(['anti-entropy', 'live-migration']);
/** The files go, and a copy comes. */
export const RESTORING: ReadonlySet<RejoinAction> = new Set([
  'network-restore',
  'leave-and-restore',
  'set-aside-and-restore',
]);

export const REJOIN_ROWS = [
  'coordinator-regressed',
  'superseded',
  'restore-unfinished',
  'coordinator-away',
  'no-group',
  'other-generation',
  'contradiction',
  'log-failed',
  'damage',
  'too-old',
  'no-primary',
  'leads',
  'divergent-tail',
  'prefix',
  'search',
  'elsewhere',
  'differs',
] as const;
export type RejoinRow = (typeof REJOIN_ROWS)[number];

export interface RejoinDecision {
  readonly row: RejoinRow;
  readonly action: RejoinAction;
  /** For people. */
  readonly reason: string;
  readonly keeps: string;
  readonly drops: string;
  /** What is tried where the action fails, or is not built yet, in this order. */
  readonly next: readonly RejoinAction[];
  /** What a person can do about it; absent where there is nothing to do. */
  readonly advice?: string;
}

const ALL = 'everything';
const NOTHING = 'nothing';
const SET_ASIDE = 'the whole directory, set aside beside what is fetched';
const FETCHED_ANEW =
  'nothing that another member has; what only the set-aside files have is no part of the group any more';

export function decideRejoin(found: RejoinFound): RejoinDecision {
  return broken(found) ?? grouped(found, recordOf(found)!);
}

function recordOf({ coordinator, seen }: RejoinFound): GroupRecord | undefined {
  return (coordinator === 'away' ? seen : coordinator.current)?.record;
}

/** Rows 1 to 6: nothing can be decided on the record, or there is none. */
function broken(found: RejoinFound): RejoinDecision | undefined {
  const { coordinator, seen, stopped, primary } = found;
  const away = coordinator === 'away';
  if (stopped === 'coordinator-regressed' || (!away && seen !== undefined && isOlder(coordinator.current, seen)))
    return person('coordinator-regressed', 'stop', {
      reason: `the coordinator holds ${describe(away ? undefined : coordinator.current)}, but ${describe(seen)} was seen before`,
      advice:
        'Bring the newest state of the coordinator back, or give this node the coordinator of its group. Where that state is lost for good, nostos group recover.' +
        (away || (coordinator.current?.record.generation ?? found.generation) === found.generation
          ? ''
          : ' Where it was recovered with a loss, which begins another generation, nostos restore --replace makes this a copy of a member.'),
    });
  if (stopped === 'superseded')
    return person('superseded', 'stop', {
      reason: 'another process has opened this store: one of the two directories is a copy of the other',
      advice: 'End one of the two; a copied directory becomes a member of its own by nostos restore into an empty one.',
    });
  const leadsElsewhere = !away && primary === 'other';
  const isNeeded = recordOf(found)?.inSync.includes(found.store) === true;
  if (found.restoreUnfinished === 'fetching' && isNeeded && !leadsElsewhere)
    return decision('restore-unfinished', 'wait', {
      reason:
        'a restore of this directory was cut off, and what is here is in sync: until another member leads, nobody else may have all of it',
      next: ['operator'],
      advice: 'nostos restore --abandon gives the restore up, and the node goes on with what is here.',
    });
  if (found.restoreUnfinished !== undefined)
    return decision('restore-unfinished', 'network-restore', {
      reason: 'a restore of this directory was cut off; it goes on where it stopped',
      keeps: SET_ASIDE,
      drops: NOTHING,
      next: ['operator'],
      advice: 'nostos restore finishes it by hand, or gives it up with --abandon.',
    });
  if (stopped === 'log-failed')
    return decision('log-failed', 'reopen', {
      reason: 'a write or fsync of the log failed: the store is opened again, and what the disk really has is read',
      next: ['wait', 'operator'],
    });
  if (stopped === 'failed')
    return decision('log-failed', 'reopen', {
      reason: 'the engine met an error that it does not expect: it goes on under a new boot, from what the disk has',
      next: ['wait', 'operator'],
    });
  if (away && stopped !== undefined)
    return decision('coordinator-away', 'wait', {
      reason: `this node has stopped (${stopped}), and the coordinator does not answer: what is done about it shows when it does`,
      next: ['operator'],
    });
  if (away) {
    const damaged =
      found.damage === undefined ? '' : `; ${found.damage} is damaged, and waits too: nobody can be dropped now`;
    return decision('coordinator-away', 'go-on', {
      reason: `the coordinator does not answer: this node stays ${primary === 'self' ? 'primary' : 'what it is'}, and no role changes${damaged}`,
      next: ['wait'],
    });
  }
  if (coordinator.current === undefined)
    return decision('no-group', 'wait', {
      reason: 'the coordinator has no record of this group',
      advice: 'nostos group init makes one, on the node whose data it begins with.',
    });
  return undefined;
}

function grouped(found: RejoinFound, record: GroupRecord): RejoinDecision {
  return dishonoured(found, record) ?? wanting(found, record) ?? whole(found, record);
}

/** Rows 7 to 9: what is here must not be gone on with as it is. */
function dishonoured(found: RejoinFound, record: GroupRecord): RejoinDecision | undefined {
  const { stopped, log, store } = found;
  const inSync = record.inSync.includes(store);
  if (record.generation !== found.generation)
    return restoring(found, 'other-generation', {
      action: 'set-aside-and-restore',
      reason: `the group is of generation ${record.generation}, this directory of ${found.generation}: its history has ended`,
    });
  if (stopped === 'generation')
    return decision('other-generation', 'wait', {
      reason: 'the machine met another generation, but the record is of this one: it is read again',
      next: ['operator'],
    });
  if (stopped === 'below-watermark' || stopped === 'diverged' || (found.commonPoint ?? log.watermark) < log.watermark)
    return person('contradiction', 'refuse', {
      reason:
        stopped === 'diverged'
          ? 'one (term, LSN) has two hashes, here and at the primary: one of the two histories is not what was written'
          : `the common point with the primary lies below ${log.watermark}, up to where this node knows its records to be committed`,
      advice:
        'Keep this directory as it is, and compare it with the primary (nostos log, nostos verify) before anything is restored.',
    });
  const older = stopped === 'lost-records' || (inSync && record.committed !== null && !found.holds(record.committed));
  if (found.damage === undefined && !older) return undefined;
  const what =
    found.damage ?? 'the log, which lacks records that this store has acknowledged: an older image of the disk,';
  const reason = `${what} is damaged`;
  if (found.primary === 'none' && inSync)
    return decision('damage', 'wait', {
      reason: `${reason}; this store is in sync, and there is no primary to drop it: until then nothing of it is given up`,
      next: ['operator'],
      advice: 'Where no primary comes, nostos group recover decides on what the members still have.',
    });
  return restoring(found, 'damage', {
    action: inSync || found.primary === 'self' ? 'leave-and-restore' : 'network-restore',
    reason: found.primary === 'self' ? `${reason}; this node leads, and hands over first` : reason,
  });
}

/** Row 10. */
function wanting(found: RejoinFound, record: GroupRecord): RejoinDecision | undefined {
  const { log, stopped, primary, store } = found;
  const inSync = record.inSync.includes(store);
  if (stopped === 'network-restore')
    return restoring(found, 'too-old', {
      action: inSync ? 'leave-and-restore' : 'network-restore',
      reason: `the primary no longer holds what comes after record ${log.end.lsn}`,
    });
  const empty = log.end.lsn === 0 && (record.committed?.lsn ?? 0) > 0;
  if (!empty || primary === 'self' || inSync) return undefined;
  return restoring(found, 'too-old', { action: 'network-restore', reason: 'there is no record here yet' });
}

/** Rows 11 to 13: what is here is good, as far as it goes. */
function whole(found: RejoinFound, record: GroupRecord): RejoinDecision {
  const { log, primary, commonPoint, store, hasRoom = true } = found;
  const inSync = record.inSync.includes(store);
  if (primary === 'none') {
    if (inSync && hasRoom)
      return decision('no-primary', 'stand', {
        reason: 'there is no primary, and this store is in sync and whole',
        next: ['wait'],
      });
    const why = inSync ? 'has no room' : record.members.includes(store) ? 'is not in sync' : 'is no member';
    return decision('no-primary', 'wait', {
      reason: `there is no primary, and this store ${why}, so it does not stand`,
    });
  }
  const serving = belonging(found);
  if (serving !== undefined) return serving;
  if (primary === 'self') return decision('leads', 'lead', { reason: `this node leads, in term ${record.term}` });
  if (commonPoint === undefined) {
    const above = log.end.lsn - log.watermark;
    return decision('search', 'stream', {
      reason:
        'there is a primary; how far the two logs agree shows when the stream opens' +
        (above === 0
          ? ''
          : `, and what it does not have of the ${above} records above ${log.watermark} is rolled back then`),
      next: ['wait', 'operator'],
    });
  }
  if (commonPoint < log.end.lsn)
    return decision('divergent-tail', 'rollback', {
      reason: `records ${commonPoint + 1} to ${log.end.lsn} are not the primary's, and none of them is known to be committed`,
      keeps: `records up to ${commonPoint}, and the ${log.end.lsn - commonPoint} dropped ones in a rollback file`,
      drops: `records ${commonPoint + 1} to ${log.end.lsn}`,
      next: [inSync ? 'leave-and-restore' : 'set-aside-and-restore', 'operator'],
      advice: 'nostos rollback list shows the file afterwards, nostos rollback reapply writes its rows anew.',
    });
  return decision('prefix', 'stream', {
    reason: `the log is the primary's up to its end at record ${log.end.lsn}`,
    next: [inSync ? 'leave-and-restore' : 'network-restore', 'operator'],
  });
}

/** Row 13. */
function belonging({ elsewhere, differs, primary }: RejoinFound): RejoinDecision | undefined {
  if (elsewhere !== undefined)
    return decision('elsewhere', 'live-migration', {
      reason: `${elsewhere} belongs to another group`,
      next: ['go-on', 'operator'],
      advice: 'Live migration is not built yet: it is not run here, and stays where its data is.',
    });
  if (differs === undefined) return undefined;
  return decision('differs', 'anti-entropy', {
    reason: `${differs} is not what the log leads to`,
    next: ['leave-and-restore', 'operator'],
    advice: `Anti-entropy is not built yet: ${primary === 'self' ? 'this node hands over, and' : 'this node'} is copied anew instead.`,
  });
}

interface Restoring {
  readonly action: 'network-restore' | 'leave-and-restore' | 'set-aside-and-restore';
  readonly reason: string;
}

/** A copy is fetched from a member, and its anchor is checked with the primary; without either nothing is set aside. */
function restoring(found: RejoinFound, row: RejoinRow, { action, reason }: Restoring): RejoinDecision {
  if (found.providers === 0)
    return decision(row, 'wait', {
      reason: `${reason}; no member can serve a copy now`,
      next: ['operator'],
      ...(found.hasBackup === true && {
        advice: 'There is a backup; restoring from it starts a new generation, so that is for a person to say.',
      }),
    });
  if (found.primary === 'none')
    return decision(row, 'wait', {
      reason: `${reason}; a copy is fetched once there is a primary`,
      next: ['operator'],
    });
  return decision(row, action, { reason, keeps: SET_ASIDE, drops: FETCHED_ANEW, next: ['operator'] });
}

function person(
  row: RejoinRow,
  action: 'stop' | 'refuse',
  { reason, advice }: { readonly reason: string; readonly advice: string },
): RejoinDecision {
  return decision(row, action, { reason, advice });
}

type Said = Pick<RejoinDecision, 'reason'> & Partial<Omit<RejoinDecision, 'row' | 'action' | 'reason'>>;

function decision(row: RejoinRow, action: RejoinAction, said: Said): RejoinDecision {
  return { row, action, keeps: ALL, drops: NOTHING, next: [], ...said };
}

function describe(current: Versioned | undefined): string {
  if (current === undefined) return 'no record';
  return `version ${current.version} of term ${current.record.term}`;
}

/** What of a log is damaged, as far as the error says it, in the words of a decision. */
export function damageOf({ details, message }: NostosError): string {
  const { segment, offset, lsn, reason } = details;
  if (typeof segment !== 'string') return `the log (${message})`;
  return `the log (${segment} at byte ${String(offset)}, from LSN ${String(lsn)} on: ${String(reason)})`;
}
