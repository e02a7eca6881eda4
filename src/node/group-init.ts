/**
 * `nostos group init` and `recover` on stopped directories. A group record is made here and nowhere else.
 *
 * Making one: the directory's own coordinator goes first, to `coordinator.before-group`; from then on the directory opens
 * for nobody as a lone node, which would begin a term that the group does not know of. Then the record is written, and the
 * directory told. Ended in between, the same call goes on; refused by the coordinator, the directory is as it was.
 */
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { NO_TERM, type Position, type StoreId, type Term } from '../base/brands.ts';
import { systemDisk } from '../base/disk.ts';
import { NostosError } from '../base/errors.ts';
import { randomHex128, systemRandom } from '../base/random.ts';
import type { Coordinator, GroupRecord, Versioned } from '../coordination/coordinator.ts';
import { writeNewest } from '../coordination/newest-seen.ts';
import { decideRecovery, recoveredRecord, type RecoveryDecision } from './group-recovery.ts';
import { COORDINATOR_FILE, withStopped, type StoppedDirectory, type StoreReport } from './stopped-directory.ts';

const LONE = 'coordinator';
const BEFORE_GROUP = 'coordinator.before-group';

export async function initGroup(coordinator: Coordinator, dir: string): Promise<Versioned> {
  return withStopped([dir], async ([found]) => {
    const first = firstRecord(found!);
    const before = await coordinator.read();
    if (before !== undefined && !isOurs(before, first)) throw groupExists(before);
    setLoneAside(dir);
    const result: { ok: boolean; current?: Versioned | undefined } =
      before === undefined ? await coordinator.compareAndSet(0, first) : { ok: true };
    const made = before ?? (result.ok ? { version: 1, record: first } : result.current);
    if (made === undefined || !isOurs(made, first)) {
      takeLoneBack(dir);
      throw groupExists(made);
    }
    remember(dir, made);
    // With it goes the sign that the directory may begin a group.
    rmSync(join(dir, BEFORE_GROUP), { recursive: true, force: true });
    return made;
  });
}

function firstRecord({ dir, report }: StoppedDirectory): GroupRecord {
  const { store, generation, end, watermark, terms, seen } = report;
  const refuse = (why: string): NostosError =>
    new NostosError('INVALID_ARGUMENT', `no group can begin with ${dir}: ${why}`, { details: { dir, store } });
  if (report.damage !== undefined) throw refuse(report.damage);
  if (report.restoreUnfinished) throw refuse('a restore of it is unfinished; finish it first (nostos restore)');
  if (report.copy) throw refuse('it is a copy of another node; begin with that one, and let this one join');
  const alone = seen === null || (seen.record.members.length === 1 && seen.record.members[0] === store);
  const isLone = systemDisk.exists(join(dir, LONE)) || systemDisk.exists(join(dir, BEFORE_GROUP));
  if (!alone || (seen !== null && !isLone))
    throw new NostosError(
      'GROUP_EXISTS',
      `${dir} belongs to a group already; its newest record has term ${seen.record.term}`,
      {
        details: { dir, members: seen.record.members },
      },
    );
  const entry = terms.findLast(({ firstLsn }) => firstLsn <= watermark);
  const committed: Position | null =
    entry === undefined ? null : { generation: entry.generation, term: entry.term, lsn: watermark };
  return {
    generation,
    term: Math.max(end.term, seen?.record.term ?? 0) as Term,
    primary: null,
    members: [store],
    inSync: [store],
    minInSync: 1,
    renewal: 0,
    committed,
    nonce: randomHex128(systemRandom),
  };
}

/** What an earlier call has made for this directory, and nobody has acted on. */
function isOurs({ version, record }: Versioned, first: GroupRecord): boolean {
  return version === 1 && JSON.stringify({ ...record, nonce: '' }) === JSON.stringify({ ...first, nonce: '' });
}

function setLoneAside(dir: string): void {
  if (!systemDisk.exists(join(dir, LONE))) return;
  systemDisk.rename(join(dir, LONE), join(dir, BEFORE_GROUP));
  systemDisk.syncDirectory(dir);
}

function takeLoneBack(dir: string): void {
  if (!systemDisk.exists(join(dir, BEFORE_GROUP))) return;
  systemDisk.rename(join(dir, BEFORE_GROUP), join(dir, LONE));
  systemDisk.syncDirectory(dir);
}

function groupExists(current: Versioned | undefined): NostosError {
  const members = current?.record.members ?? [];
  return new NostosError(
    'GROUP_EXISTS',
    `the coordinator has a group of this name, with ${members.length} members; nostos group status shows it. Nothing was changed`,
    { details: { version: current?.version ?? 0, members } },
  );
}

export interface RecoverOptions {
  /** They stay locked until the record is replaced. */
  readonly dirs: readonly string[];
  /** Of stores on other machines, which have to stay stopped too. */
  readonly reports?: readonly StoreReport[];
  readonly acceptLoss?: boolean;
  readonly dryRun?: boolean;
}

export interface RecoveryReport {
  readonly decision: RecoveryDecision;
  /** Whether the record was replaced. */
  readonly done: boolean;
  /** Stores whose reports came from elsewhere: nobody but their owner keeps them stopped. */
  readonly notLocked: readonly StoreId[];
}

export async function recoverGroup(coordinator: Coordinator, options: RecoverOptions): Promise<RecoveryReport> {
  const { dirs, reports = [], acceptLoss = false, dryRun = false } = options;
  return withStopped(dirs, async (found) => {
    const current = await coordinator.read();
    const all = [...found.map(({ report }) => report), ...reports];
    const decision = decideRecovery({ current, reports: all, acceptLoss });
    if (decision === undefined)
      throw new NostosError(
        'GROUP_UNRECOVERABLE',
        'neither the coordinator nor one of these directories knows of a group; nostos group init begins one',
      );
    const notLocked = reports.map(({ store }) => store);
    if (dryRun || decision.kind !== 'lead-from') return { decision, done: false, notLocked };
    const above = all.flatMap(({ end, seen }) => [end.term, seen?.record.term ?? NO_TERM]);
    const record = recoveredRecord(decision, { above, nonce: randomHex128(systemRandom) });
    const result = await coordinator.compareAndSet(current?.version ?? 0, record);
    if (!result.ok)
      throw new NostosError(
        'COORDINATOR_CONFLICT',
        'the group record was replaced meanwhile: a member is alive. Nothing was changed; look at nostos group status',
      );
    for (const { dir, report } of found)
      if (decision.usable.includes(report.store)) remember(dir, { version: result.version, record });
    return { decision, done: true, notLocked };
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
    if (!follows || current.record.generation !== generation || !current.record.members.includes(store))
      throw new NostosError(
        'COORDINATOR_REGRESSED',
        `what the coordinator holds was not recovered for ${dir}: it needs a term above ${seen?.record.term ?? 0}, its generation, and its store among the members`,
        { details: { dir, seenTerm: seen?.record.term ?? 0, foundTerm: current?.record.term ?? 0 } },
      );
    remember(dir, current);
    return current;
  });
}

function remember(dir: string, current: Versioned): void {
  writeNewest(systemDisk, join(dir, COORDINATOR_FILE), current);
}
