/**
 * `nostos group recover` on stopped directories: the record of a group is replaced by one with which somebody can lead.
 * `group-recovery.ts` decides; this carries it out.
 *
 * Without a loss that is one compare-and-set. With one, the chosen store goes on in a new generation, and then group record,
 * log and `node.json` have to change together. A journal in its directory says so first, and the directory opens for nobody
 * before it is gone:
 *
 * | step | ended behind it |
 * |---|---|
 * | journal | nothing has changed; the same call goes on, or `abandonRecovery` gives it up |
 * | group record, by compare-and-set | nobody but this store can lead, and it opens for nobody; the same call goes on |
 * | log: the record that begins the generation | so does it from here on |
 * | `node.json`, `coordinator.json` | |
 * | the journal goes | done |
 *
 * The members stay, and the chosen store alone is in sync. The others are of a history that ended: what they hold above the
 * fork is no part of the group any more, no message of theirs is taken, and none can be in sync. They keep their places so
 * that each node which comes back, by a copy and so with a new store, takes that of its old one without an operator.
 */
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { NO_TERM, ZERO_HASH, toGeneration, toHash, type Generation, type StoreId, type Term } from '../base/brands.ts';
import { HybridClock, systemClock } from '../base/clock.ts';
import { systemDisk, type Disk } from '../base/disk.ts';
import { NostosError } from '../base/errors.ts';
import { DEFAULT_LIMITS } from '../base/limits.ts';
import { randomHex128, systemRandom } from '../base/random.ts';
import type { Coordinator, GroupRecord, Versioned } from '../coordination/coordinator.ts';
import { writeNewest } from '../coordination/newest-seen.ts';
import type { ChainPoint } from '../log/chain.ts';
import { beginGeneration } from '../log/generation.ts';
import { loadRecovery, removeRecovery, saveRecovery, type RecoveryJournal } from './group-recovery-journal.ts';
import {
  decideRecovery,
  newGenerationRecord,
  recoveredRecord,
  type PossibleLoss,
  type RecoveryDecision,
} from './group-recovery.ts';
import { highestApplied } from './highest-applied.ts';
import { loadNode, writeNode } from './node-file.ts';
import { RejoinFile } from './rejoin-file.ts';
import {
  COORDINATOR_FILE,
  readStopped,
  withLocked,
  withStopped,
  type StoppedDirectory,
  type StoreReport,
} from './stopped-directory.ts';

const LEASE_MS = DEFAULT_LIMITS.leaseMs * (1 + DEFAULT_LIMITS.clockDriftMax);

export interface RecoverOptions {
  /** They stay locked until the record is replaced. */
  readonly dirs: readonly string[];
  /** Of stores on other machines, which have to stay stopped too. */
  readonly reports?: readonly StoreReport[];
  readonly acceptLoss?: boolean;
  readonly dryRun?: boolean;
  /** So long the record has to stand still before anything is lost: a primary that lives renews it. Default: a lease. */
  readonly stillMs?: number;
  /** Asked before anything is lost; where it answers false nothing is changed. */
  readonly confirm?: (report: RecoveryReport) => Promise<boolean>;
}

/** What a recovery with a loss begins. */
export interface NewGeneration {
  /** Whose log goes on. */
  readonly store: StoreId;
  readonly generation: Generation;
  readonly parent: Generation;
  /** The last record of the parent: positions up to there stay good, those above it are lost. */
  readonly fork: Pick<ChainPoint, 'term' | 'lsn'>;
  /** Of the first record of the new generation; whoever leads next has a higher one. */
  readonly term: Term;
  readonly minInSync: number;
  readonly reason: string;
  readonly loss: PossibleLoss;
}

export interface RecoveryReport {
  /** Null where an earlier call had decided, and this one goes on with that. */
  readonly decision: RecoveryDecision | null;
  /** Where something may be lost, and that is accepted. */
  readonly begins: NewGeneration | null;
  /** Whether the record was replaced, and all that goes with it was done. */
  readonly done: boolean;
  /** Stores whose reports came from elsewhere: nobody but their owner keeps them stopped. */
  readonly notLocked: readonly StoreId[];
}

export async function recoverGroup(
  coordinator: Coordinator,
  options: RecoverOptions,
  disk: Disk = systemDisk,
): Promise<RecoveryReport> {
  const { dirs, reports = [], dryRun = false } = options;
  const notLocked = reports.map(({ store }) => store);
  return withLocked(dirs, async () => {
    const begun = dirs.filter((dir) => loadRecovery(disk, dir) !== undefined);
    if (begun.length === 0) return recover({ coordinator, disk }, dirs.map(readStopped), options);
    if (begun.length > 1) throw begunTwice(begun);
    const [dir] = begun as [string];
    const journal = loadRecovery(disk, dir)!;
    if (!dryRun) await carryOut({ coordinator, disk }, dir, journal);
    return { decision: null, begins: newGeneration(journal), done: !dryRun, notLocked };
  });
}

interface Deps {
  readonly coordinator: Coordinator;
  readonly disk: Disk;
}

async function recover(
  deps: Deps,
  found: readonly StoppedDirectory[],
  { reports = [], acceptLoss = false, dryRun = false, stillMs = LEASE_MS, confirm }: RecoverOptions,
): Promise<RecoveryReport> {
  const { coordinator, disk } = deps;
  const current = await coordinator.read();
  const all = [...found.map(({ report }) => report), ...reports];
  const decision = decideRecovery({ current, reports: all, acceptLoss });
  if (decision === undefined)
    throw new NostosError(
      'GROUP_UNRECOVERABLE',
      'neither the coordinator nor one of these directories knows of a group; nostos group init begins one',
    );
  const report = { decision, begins: null, done: false, notLocked: reports.map(({ store }) => store) };
  const [above, nonce] = [termsOf(all), randomHex128(systemRandom)];
  const replaces = current?.version ?? 0;
  if (decision.kind === 'accept-loss') {
    const chosen = found.find((one) => one.report.store === decision.store);
    if (chosen === undefined) throw elsewhere(decision.store);
    const journal = journalOf(decision, chosen.report, { above, nonce, replaces });
    const planned = { ...report, begins: newGeneration(journal) };
    if (!dryRun) await assertStill(coordinator, current, stillMs);
    if (dryRun || (confirm !== undefined && !(await confirm(planned)))) return planned;
    saveRecovery(disk, chosen.dir, journal);
    await carryOut(deps, chosen.dir, journal);
    return { ...planned, done: true };
  }
  if (dryRun || decision.kind !== 'lead-from') return report;
  const record = recoveredRecord(decision, { above, nonce });
  const result = await coordinator.compareAndSet(replaces, record);
  if (!result.ok) throw memberAlive();
  for (const { dir, report: own } of found)
    if (decision.usable.includes(own.store)) remember(disk, dir, { version: result.version, record });
  return { ...report, done: true };
}

async function assertStill(coordinator: Coordinator, before: Versioned | undefined, stillMs: number): Promise<void> {
  if (before === undefined || before.record.primary === null) return;
  await sleep(stillMs);
  if ((await coordinator.read())?.version !== before.version) throw memberAlive();
}

function journalOf(
  decision: Extract<RecoveryDecision, { kind: 'accept-loss' }>,
  { store, end, endHash }: StoreReport,
  { above, nonce, replaces }: { readonly above: readonly Term[]; readonly nonce: string; readonly replaces: number },
): RecoveryJournal {
  const generation = toGeneration(randomHex128(systemRandom));
  const fork = { ...end, hash: endHash === '' ? ZERO_HASH : toHash(Buffer.from(endHash, 'hex')) };
  const record = newGenerationRecord(decision, { above, nonce, generation });
  return { store, parent: end.generation, fork, replaces, record, reason: decision.reason, loss: decision.loss };
}

function newGeneration({ store, parent, fork, record, reason, loss }: RecoveryJournal): NewGeneration {
  const { generation, term, minInSync } = record;
  return { store, generation, parent, fork: { term: fork.term, lsn: fork.lsn }, term, minInSync, reason, loss };
}

async function carryOut({ coordinator, disk }: Deps, dir: string, journal: RecoveryJournal): Promise<void> {
  const { parent, fork, record } = journal;
  const { generation, term } = record;
  const made = await replaceRecord({ coordinator, disk }, dir, journal);
  beginGeneration(
    { disk, clock: new HybridClock(systemClock) },
    {
      dir: join(dir, 'log'),
      ...{ parent, generation, term, fork },
      knownWatermark: fork.lsn,
      highestApplied: () => highestApplied(dir),
    },
  );
  writeNode(dir, { ...loadNode(dir, undefined), generation }, disk);
  remember(disk, dir, made);
  // What it lacks is accepted.
  new RejoinFile(disk, dir).clear();
  removeRecovery(disk, dir);
}

/** An answer that got lost is found out by the id of the generation, which nobody else knows. */
async function replaceRecord({ coordinator, disk }: Deps, dir: string, journal: RecoveryJournal): Promise<Versioned> {
  const { record, replaces } = journal;
  const current = await coordinator.read();
  const done = ours(current, record);
  if (done !== undefined) return done;
  if ((current?.version ?? 0) !== replaces) throw replacedMeanwhile(dir);
  const result = await coordinator.compareAndSet(replaces, record);
  if (result.ok) return { version: result.version, record };
  const late = ours(result.current, record);
  if (late !== undefined) return late;
  // The coordinator has answered: nothing has changed, and nothing of this call can change it later.
  removeRecovery(disk, dir);
  throw memberAlive();
}

function ours(current: Versioned | undefined, { generation }: GroupRecord): Versioned | undefined {
  return current?.record.generation === generation ? current : undefined;
}

/** Gives up what `recoverGroup` has begun in this directory, as long as the group record was not replaced. */
export async function abandonRecovery(coordinator: Coordinator, dir: string): Promise<void> {
  await withLocked([dir], async () => {
    const journal = loadRecovery(systemDisk, dir);
    if (journal === undefined)
      throw new NostosError('INVALID_ARGUMENT', `there is no unfinished recovery in ${dir}; nothing was changed`);
    const { record } = journal;
    const current = await coordinator.read();
    if (ours(current, record) !== undefined)
      throw new NostosError(
        'RECOVERY_UNFINISHED',
        `the group is of generation ${record.generation} already, which this recovery has begun: it cannot be given up any more. The same command without --abandon finishes it`,
        { details: { dir, generation: record.generation } },
      );
    // A replacement whose answer got lost must not come to pass later: then the record would name a generation without a log.
    if ((current?.version ?? 0) === journal.replaces && current !== undefined)
      await coordinator.compareAndSet(current.version, { ...current.record, nonce: randomHex128(systemRandom) });
    removeRecovery(systemDisk, dir);
  });
}

/**
 * For a member elsewhere, after `recoverGroup` with a coordinator that was set back: it has seen more than the coordinator
 * holds now, and would stop. A recovered record has a term above all that was seen; one that was merely set back has not.
 */
export async function adoptRecovered(coordinator: Coordinator, dir: string): Promise<Versioned> {
  return withStopped([dir], async ([found]) => {
    const { seen, generation, store } = found!.report;
    const current = await coordinator.read();
    const follows = current !== undefined && current.record.term > (seen?.record.term ?? 0);
    if (follows && current.record.generation !== generation)
      throw new NostosError(
        'DIRECTORY_FOREIGN',
        `the group is of generation ${current.record.generation}, ${dir} of ${generation}: nostos restore --replace makes it a copy of a member, and sets aside what is there`,
        { details: { dir, found: generation, group: current.record.generation } },
      );
    if (!follows || !current.record.members.includes(store))
      throw new NostosError(
        'COORDINATOR_REGRESSED',
        `what the coordinator holds was not recovered for ${dir}: it needs a term above ${seen?.record.term ?? 0}, its generation, and its store among the members`,
        { details: { dir, seenTerm: seen?.record.term ?? 0, foundTerm: current?.record.term ?? 0 } },
      );
    remember(systemDisk, dir, current);
    return current;
  });
}

function termsOf(reports: readonly StoreReport[]): readonly Term[] {
  return reports.flatMap(({ end, seen }) => [end.term, seen?.record.term ?? NO_TERM]);
}

function remember(disk: Disk, dir: string, current: Versioned): void {
  writeNewest(disk, join(dir, COORDINATOR_FILE), current);
}

function memberAlive(): NostosError {
  return new NostosError(
    'COORDINATOR_CONFLICT',
    'the group record was replaced meanwhile: a member is alive. Nothing was changed; look at nostos group status',
  );
}

function replacedMeanwhile(dir: string): NostosError {
  return new NostosError(
    'COORDINATOR_CONFLICT',
    `the recovery that was begun in ${dir} was to replace another record than the coordinator holds: a member is alive, or this is not its coordinator. nostos group recover --abandon gives it up`,
    { details: { dir } },
  );
}

function elsewhere(store: StoreId): NostosError {
  return new NostosError(
    'INVALID_ARGUMENT',
    `store ${store} is the one to go on with, and only a report of it is here: a new generation begins on the machine that has its directory (--dir)`,
    { details: { store } },
  );
}

function begunTwice(dirs: readonly string[]): NostosError {
  return new NostosError(
    'INVALID_ARGUMENT',
    `a recovery was begun in ${dirs.join(' and in ')}: give up all but one (nostos group recover --abandon)`,
    { details: { dirs } },
  );
}
