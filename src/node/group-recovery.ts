/**
 * `nostos group recover`: who may lead when the coordinator was set back or emptied, or no store in sync comes back. Pure.
 *
 * Every committed record is on all stores that were in sync at any time since, at least `minInSync` of the members. So any
 * members − minInSync + 1 stores have, between them, every one of them, and the log that ends with the greatest
 * (last term, LSN) has all: a primary keeps its whole tail, and who was in sync with a later one has what came before it.
 * That holds while those who answer stay stopped, since nothing more can be committed without one of them; and as long as
 * one of them has seen the last change of the members, since the newest record that was seen says who these are.
 *
 * With a coordinator that was not set back nobody has to choose: its in-sync set says who has everything, and so many
 * answers always include one of it. Where all of that set are lost, or too few answer, records may be only on the stores
 * that are missing. Going on without them is a new history, and so a new generation: a member that comes back must not
 * take its longer log for one that has merely been cut.
 */
import type { Generation, Lsn, Position, StoreId, Term } from '../base/brands.ts';
import type { GroupRecord, Versioned } from '../coordination/coordinator.ts';
import { isOlder } from '../coordination/newest-seen.ts';
import { holdsPosition, type StoreReport } from './stopped-directory.ts';

export interface UnusableAnswer {
  readonly store: StoreId;
  readonly why: string;
}

interface Answers {
  readonly usable: readonly StoreId[];
  readonly unusable: readonly UnusableAnswer[];
  /** Members of which nothing was given. */
  readonly missing: readonly StoreId[];
  /** How many usable ones are needed to be sure. */
  readonly needed: number;
  /** The newest record that is known, and whether the coordinator holds it no more. */
  readonly newest: Versioned;
  readonly regressed: boolean;
}

export interface PossibleLoss {
  /** The record after which records may be missing. */
  readonly after: { readonly term: Term; readonly lsn: Lsn };
  /** Known to be committed, and not there. */
  readonly known: { readonly from: Lsn; readonly to: Lsn } | null;
  /** Who may have committed records that nobody who answered has. */
  readonly onlyOn: readonly StoreId[];
  /** Up to here it was told to the coordinator that records are committed; what was committed later, nobody knows. */
  readonly committed: Position | null;
}

export type RecoveryDecision = Answers & Verdict;

type Verdict = { readonly reason: string } & (
  | { readonly kind: 'not-needed'; readonly start: readonly StoreId[] }
  | {
      readonly kind: 'lead-from';
      readonly store: StoreId;
      /** All whose logs end with the same record. */
      readonly inSync: readonly StoreId[];
      /** As many as are in sync where these are fewer than before: it is to be raised again when more have caught up. */
      readonly minInSync: number;
    }
  | { readonly kind: 'too-few'; readonly best: StoreId | null; readonly loss: PossibleLoss | null }
  | { readonly kind: 'accept-loss'; readonly store: StoreId; readonly loss: PossibleLoss }
  | { readonly kind: 'contradiction' }
);

export interface RecoveryQuestion {
  /** What the coordinator holds. */
  readonly current: Versioned | undefined;
  readonly reports: readonly StoreReport[];
  readonly acceptLoss?: boolean;
}

/** Undefined where neither the coordinator nor a store knows of a group. */
export function decideRecovery(question: RecoveryQuestion): RecoveryDecision | undefined {
  const { current, reports, acceptLoss = false } = question;
  const seen = reports.flatMap((report) => (report.seen === null ? [] : [report.seen]));
  const newest = [...seen, ...(current === undefined ? [] : [current])].toSorted(byAge).at(-1);
  if (newest === undefined) return undefined;
  const regressed = seen.some((one) => isOlder(current, one));
  const { members, inSync, minInSync, committed } = newest.record;
  const judged = reports.map((report) => ({ report, why: whyUnusable(report, newest.record) }));
  const usable = judged.filter(({ why }) => why === undefined).map(({ report }) => report);
  const stores = usable.map(({ store }) => store);
  const answers: Answers = {
    usable: stores,
    unusable: judged.flatMap(({ report: { store }, why }) => (why === undefined ? [] : [{ store, why }])),
    missing: members.filter((store) => reports.every((report) => report.store !== store)),
    needed: members.length - minInSync + 1,
    newest,
    regressed,
  };
  const contradiction = contradictionIn(usable);
  if (contradiction !== undefined) return { ...answers, kind: 'contradiction', reason: contradiction };
  const start = stores.filter((store) => inSync.includes(store));
  if (!regressed && start.length > 0)
    return {
      ...answers,
      kind: 'not-needed',
      start,
      reason: 'a store that is in sync is whole: when it is started it leads, and takes the others in again',
    };
  const best = usable.toSorted(byEnd).at(-1);
  if (best === undefined) return { ...answers, ...earlier(reports, newest.record, acceptLoss) };
  const holds = committed === null || holdsPosition(best, committed);
  if (usable.length >= answers.needed && holds) {
    const next = usable.filter((report) => byEnd(report, best) === 0).map(({ store }) => store);
    return {
      ...answers,
      kind: 'lead-from',
      store: best.store,
      inSync: next,
      minInSync: Math.min(minInSync, next.length),
      reason: `${usable.length} of ${members.length} stores are usable, and any ${answers.needed} have every committed record between them`,
    };
  }
  const loss = possibleLoss(best, newest.record, [...answers.missing, ...answers.unusable.map(({ store }) => store)]);
  const reason =
    usable.length >= answers.needed
      ? `none of the ${usable.length} usable stores has record ${committed?.lsn}, which was committed: disks have returned to older images`
      : `${usable.length} of ${members.length} stores are usable, and ${answers.needed} are needed to be sure of every committed record`;
  if (!acceptLoss) return { ...answers, kind: 'too-few', best: best.store, loss, reason };
  return { ...answers, kind: 'accept-loss', store: best.store, loss, reason };
}

/**
 * No store of the present generation is usable. One whose disk has returned to an older image can still be gone on with,
 * without what that lacks; or, as where the generation was begun by a recovery and its only store was lost before anybody
 * had joined, what is left of its parents, which gives up all of it.
 */
function earlier(reports: readonly StoreReport[], record: GroupRecord, acceptLoss: boolean): Verdict {
  const candidates = reports.filter(
    (report) => whyUnfit(report, { ...record, generation: report.generation }) === undefined,
  );
  const images = candidates.filter((report) => report.generation === record.generation);
  const best = (images.length > 0 ? images : candidates).toSorted(byEnd).at(-1);
  if (best === undefined) return { kind: 'too-few', best: null, loss: null, reason: 'no member has a usable store' };
  const { store, generation } = best;
  const loss = possibleLoss(
    best,
    record,
    record.members.filter((member) => member !== store),
  );
  const reason =
    generation === record.generation
      ? `only stores whose disks have returned to older images are left, and ${store} has most of what was there`
      : `no store of generation ${record.generation} is usable, and all of it is lost where the group goes on with one of ${generation}`;
  return acceptLoss ? { kind: 'accept-loss', store, loss, reason } : { kind: 'too-few', best: store, loss, reason };
}

function contradictionIn(usable: readonly StoreReport[]): string | undefined {
  for (const [i, report] of usable.entries())
    for (const other of usable.slice(i + 1)) {
      if (report.store === other.store) return `store ${other.store} is there twice: one of the two is a copy`;
      if (byEnd(report, other) === 0 && report.endHash !== other.endHash)
        return `record ${other.end.lsn} of term ${other.end.term} has two hashes: in ${report.store} and ${other.store}`;
    }
  return undefined;
}

/** The record by which the chosen store leads, in a term higher than any that a store has seen. */
export function recoveredRecord(
  { newest: { record }, inSync, minInSync }: Extract<RecoveryDecision, { kind: 'lead-from' }>,
  { above, nonce }: { readonly above: readonly Term[]; readonly nonce: string },
): GroupRecord {
  return {
    ...record,
    term: (Math.max(record.term, ...above) + 1) as Term,
    primary: null,
    inSync,
    minInSync,
    renewal: record.renewal + 1,
    nonce,
  };
}

/** The record of the generation that the chosen store begins, behind the end of its log; see `group-recover.ts`. */
export function newGenerationRecord(
  { newest: { record }, store, loss }: Extract<RecoveryDecision, { kind: 'accept-loss' }>,
  {
    above,
    nonce,
    generation,
  }: { readonly above: readonly Term[]; readonly nonce: string; readonly generation: Generation },
): GroupRecord {
  const term = (Math.max(record.term, ...above) + 1) as Term;
  return {
    ...record,
    generation,
    term,
    primary: null,
    inSync: [store],
    minInSync: 1,
    renewal: record.renewal + 1,
    committed: { generation, term, lsn: (loss.after.lsn + 1) as Lsn },
    nonce,
  };
}

/** Nobody can go on with it, whatever is accepted. */
function whyUnfit(report: StoreReport, { members, generation }: GroupRecord): string | undefined {
  if (!members.includes(report.store)) return 'it is no member: a store that was made anew has promised nothing';
  if (report.generation !== generation) return `it is of generation ${report.generation}`;
  if (report.restoreUnfinished) return 'a restore of it is unfinished';
  if (report.rollbackUnderWay === true)
    return 'a rollback of it has begun to drop records that its log still has; start the node once, which ends that';
  return report.damage;
}

function whyUnusable(report: StoreReport, record: GroupRecord): string | undefined {
  const { inSync, committed } = record;
  const unfit = whyUnfit(report, record);
  if (unfit !== undefined) return unfit;
  if (report.lostRecords === true)
    return 'it lacks records that it has acknowledged: its disk has returned to an older image';
  // Then it is not the store that it was: what it has lost may have been committed.
  if (inSync.includes(report.store) && committed !== null && !holdsPosition(report, committed))
    return `it was in sync and lacks record ${committed.lsn}, which was committed: its disk has returned to an older image`;
  return undefined;
}

function byAge(a: Versioned, b: Versioned): number {
  return a.record.term - b.record.term || a.version - b.version;
}

function byEnd(a: StoreReport, b: StoreReport): number {
  return a.end.term - b.end.term || a.end.lsn - b.end.lsn;
}

function possibleLoss(best: StoreReport, { committed }: GroupRecord, onlyOn: readonly StoreId[]): PossibleLoss {
  const { term, lsn } = best.end;
  const held = committed === null || holdsPosition(best, committed);
  const from = Math.min(lsn + 1, committed?.lsn ?? lsn + 1) as Lsn;
  return { after: { term, lsn }, known: held ? null : { from, to: committed.lsn }, onlyOn, committed };
}
