/**
 * How a directory comes home before its node is opened: whoever opens it has its lock and calls this first, and again where
 * opening found the log damaged.
 *
 * What must hold:
 *
 * - **Files are set aside only for a copy that is there, whole and verified**, and never removed; the restore sees to both.
 * - **A copy is taken only while another store leads**, by the newest record. The primary is in sync, and so has every
 *   committed record: whatever of this directory goes, nothing committed goes with it. It holds also where this store is in
 *   sync and nobody has dropped it yet: it acknowledges nothing while it is closed, and with its new identity never will
 *   under the old one. Where the record names this store, another one has to take over first.
 * - Only what a member of the record's generation and of this directory's cluster serves is taken, and only where its last
 *   record is on the log of the primary (`rejoin-anchor.ts`).
 * - Every round is a counted attempt, told and kept in `rejoin.json`, with a pause behind it; they end with `REJOIN_FAILED`.
 *   A directory that can be opened as it is, is opened after one round in vain: what can be served is served, and the node
 *   goes on trying (`rejoin-driver.ts`).
 *
 * What is readable of the log above the own W, and not in the copy, goes into a rollback file: nobody else may have it.
 *
 * A crash at any point leaves either what was there before, or the marker of the restore, which the next opening finishes,
 * or a tail that is still to be preserved, which it does then; `rejoin.json` names its store until it is.
 */
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { NO_LSN, NO_TERM, toStoreId, type Lsn } from '../base/brands.ts';
import type { Clock } from '../base/clock.ts';
import { systemDisk } from '../base/disk.ts';
import { NostosError, isNostosError } from '../base/errors.ts';
import type { Limits } from '../base/limits.ts';
import { randomHex128, systemRandom } from '../base/random.ts';
import type { Coordination } from '../coordination/coordination.ts';
import type { Versioned } from '../coordination/coordinator.ts';
import { writeNewest } from '../coordination/newest-seen.ts';
import { openCoordinator } from '../coordination/open-coordinator.ts';
import { readMarker } from '../restore/local/marker.ts';
import { ownNode, type TlsIdentity } from '../wire/tls-identity.ts';
import { RESTORING, decideRejoin, type RejoinDecision, type RejoinFound } from './rejoin-decision.ts';
import type { RejoinFile } from './rejoin-file.ts';
import { askMembers, type MembersAsked } from './rejoin-members.ts';
import { factsOf, readRecord, unfinishedIn } from './rejoin-plan.ts';
import { describeRejoin, stepDone, stepFailed, takeUp, type RejoinProgress } from './rejoin-progress.ts';
import { loadNode } from './node-file.ts';
import { COORDINATOR_FILE, readStopped } from './stopped-directory.ts';

export interface HomeOptions {
  readonly dir: string;
  readonly coordinator: string;
  /** Of the group. */
  readonly name: string;
  readonly tls?: TlsIdentity | undefined;
  /** Besides the members that say where they can be copied. */
  readonly restoreFrom: readonly string[];
  readonly limits: Limits;
  readonly clock: Clock;
  readonly signal: AbortSignal;
  /** What is done, and what came of it, for people. */
  readonly onStep: (text: string) => void;
}

interface Looked {
  readonly facts: RejoinFound;
  readonly current: Versioned | undefined | 'away';
  /** The directory can be opened as it is. */
  readonly opens: boolean;
}

export async function comeHome(file: RejoinFile, options: HomeOptions): Promise<void> {
  const { limits, clock, signal } = options;
  await using coordination = await openCoordinator(options.coordinator);
  for (;;) {
    signal.throwIfAborted();
    await keepWhatIsLeft(file, options);
    const found = await look(coordination, file, options);
    if (found === undefined) return;
    const { decision, asked } = await decide(coordination, found, options);
    const { facts, opens } = found;
    const before = file.progress;
    const progress = takeUp(decision, { before, limits, nowMs: clock.nowMs() });
    if (RESTORING.has(progress.current)) {
      file.setProgress(progress);
      options.onStep(describeRejoin(progress));
      const failure = await restore(coordination, file, found, { ...options, asked }).catch(
        (error: unknown) => error as Error,
      );
      signal.throwIfAborted();
      if (failure === undefined) continue;
      failed(file, failure.message, options);
    } else if (opens) {
      file.setProgress(progress);
      return;
    } else if (progress.current !== 'operator' && progress.current !== 'stop' && progress.current !== 'refuse') {
      file.setProgress(progress);
      failed(file, decision.reason, options);
    } else {
      file.setProgress(progress);
      throw rejoinFailed(options.dir, progress);
    }
    if (opens && facts.restoreUnfinished === undefined && (await isAsBefore(options.dir))) return;
    const now = file.progress;
    if (now === undefined || now.current === 'operator') continue; // which ends it
    await sleep(backoffMs(now, limits), undefined, { signal }).catch(() => signal.throwIfAborted());
  }
}

/** What a round in vain has fetched is given up, or the directory would open for nobody; not once its files are exchanged. */
async function isAsBefore(dir: string): Promise<boolean> {
  const marker = readMarker(systemDisk, dir);
  if (marker?.phase === 'fetching') {
    const { abandonRestore } = await import('../restore/local/restore-directory.ts');
    await abandonRestore({ disk: systemDisk, lock: heldAlready }, { dir });
  }
  return marker === undefined || marker.phase === 'fetching';
}

/** Whoever opens the directory has its lock already. */
const heldAlready = async (): Promise<Disposable> => ({ [Symbol.dispose]: () => {} });

/** Undefined where there is nothing to be done before the node is opened. */
async function look(coordination: Coordination, file: RejoinFile, options: HomeOptions): Promise<Looked | undefined> {
  const { dir, name } = options;
  const marker = readMarker(systemDisk, dir);
  const current = await readRecord(coordination.group(name));
  const record = current === 'away' ? undefined : current?.record;
  if (!systemDisk.exists(join(dir, 'node.json'))) {
    if (marker === undefined && (record?.committed ?? null) === null) return undefined;
    return { facts: { ...nobody(current), ...unfinishedIn(dir) }, current, opens: false };
  }
  const { store, generation } = loadNode(dir, undefined);
  const finding = file.findingOf(store);
  const ended = record !== undefined && record.generation !== generation;
  if (marker === undefined && finding === undefined && !ended) return undefined;
  const found = readStopped(dir);
  const { report } = found;
  const opens = marker === undefined && report.damage === undefined;
  // It acknowledges while it is open, and nobody can do without that: the node leaves when it can.
  const needed = record !== undefined && record.inSync.includes(store) && record.inSync.length <= record.minInSync;
  if (opens && needed && finding?.stopped === undefined && !ended) return undefined;
  return { facts: factsOf(found, current, file), current, opens };
}

/** A directory without a node in it, or with an unfinished restore and nothing else. */
function nobody(current: Versioned | undefined | 'away'): RejoinFound {
  const record = current === 'away' ? undefined : current?.record;
  return {
    store: toStoreId(randomHex128(systemRandom)),
    generation: record?.generation ?? ('' as RejoinFound['generation']),
    log: { end: { term: NO_TERM, lsn: NO_LSN }, watermark: NO_LSN, anchor: NO_LSN },
    holds: ({ lsn }) => lsn === (0 as Lsn),
    coordinator: current === 'away' ? current : { current },
    seen: undefined,
    primary: (record?.primary ?? null) === null ? 'none' : 'other',
  };
}

/** Where the decision is to fetch a copy, the members are asked whether there is one; without one it is to wait. */
async function decide(
  coordination: Coordination,
  { facts, current }: Looked,
  { dir, name, tls, restoreFrom, limits, signal }: HomeOptions,
): Promise<{ readonly decision: RejoinDecision; readonly asked: MembersAsked | undefined }> {
  const decision = decideRejoin(facts);
  const record = current === 'away' ? undefined : current?.record;
  const restores = [decision.action, ...decision.next].some((action) => RESTORING.has(action));
  if (!restores || record === undefined) return { decision, asked: undefined };
  const self = systemDisk.exists(join(dir, 'node.json')) ? { self: loadNode(dir, undefined) } : {};
  const asker = { name, record, ...self, tls, restoreFrom, limits, signal };
  const asked = await askMembers(coordination, asker).catch((error: unknown): MembersAsked => {
    signal.throwIfAborted();
    if (!isNostosError(error) || error.retry !== 'safe') throw error;
    return { from: [], refused: [error.message], primaryLives: false };
  });
  const primary = asked.primaryLives ? facts.primary : 'none';
  const decided = decideRejoin({ ...facts, primary, providers: asked.from.length });
  const why = asked.refused.join('; ');
  if (asked.from.length > 0 || why === '') return { decision: decided, asked };
  return { decision: { ...decided, reason: `${decided.reason} (${why})` }, asked };
}

async function restore(
  coordination: Coordination,
  file: RejoinFile,
  { facts, current }: Looked,
  options: HomeOptions & { readonly asked: MembersAsked | undefined },
): Promise<void> {
  const { dir, name, tls, limits, clock, signal, asked, onStep } = options;
  const record = current === 'away' ? undefined : current?.record;
  const [{ restoreDeps, restoreFromProviders }, { DEFAULT_LIMITS }] = await Promise.all([
    import('./restore-run.ts'),
    import('../base/limits.ts'),
  ]);
  const [{ markedWatermark, storeIn }, { assertOnPrimary }] = await Promise.all([
    import('./rejoin-tail.ts'),
    import('./rejoin-anchor.ts'),
  ]);
  const own = storeIn(dir);
  // A restore that somebody else began, and that has moved nothing yet, sets this aside as well.
  const phase = readMarker(systemDisk, dir)?.phase ?? 'fetching';
  if (own !== undefined && phase === 'fetching') {
    if (file.tail !== undefined && file.tail.store !== own)
      throw new NostosError(
        'TAIL_PERSIST_FAILED',
        'the tail of the store before is not preserved yet, and comes first',
      );
    const above = Math.max(facts.log.watermark, markedWatermark(dir)) as Lsn;
    file.setTail({ store: own, above, term: record?.term ?? facts.log.end.term });
  }
  const verify: typeof restoreDeps.verify = async (staged, step) => {
    const verified = await restoreDeps.verify(staged, step);
    const newest = await assertOnPrimary(coordination, staged, { name, tls, limits, signal });
    // In place with the rest; without it a coordinator that is set back would not be seen.
    writeNewest(systemDisk, join(staged, COORDINATOR_FILE), newest);
    return verified;
  };
  const deps = { ...restoreDeps, verify, lock: heldAlready };
  const replace = record !== undefined && facts.generation !== record.generation;
  const report = await restoreFromProviders(
    async (marker) => ({ from: [...new Set([...(asked?.from ?? []), ...(marker?.sources ?? [])])], tls, replace }),
    {
      dir,
      node: tls === undefined ? undefined : ownNode(tls, clock.nowMs()),
      replace,
      reserveBytes: DEFAULT_LIMITS.restoreReserveBytes,
      signal,
    },
    deps,
  );
  // Not where a restore by hand was only finished here.
  const remembers = systemDisk.exists(join(dir, COORDINATOR_FILE));
  if (!remembers && current !== 'away' && current?.record.generation === report.identity.generation)
    writeNewest(systemDisk, join(dir, COORDINATOR_FILE), current);
  const { provider, setAside } = report;
  const from = provider === undefined ? 'what was fetched before' : provider.address;
  const done = `copied from ${from}; ${setAside === null ? 'there was nothing here before' : `what was here is in ${setAside}`}`;
  if (file.progress !== undefined) file.setProgress(stepDone(file.progress, done, { nowMs: clock.nowMs() }));
  onStep(done);
}

/** Before the node is opened again, also where the process that fetched the copy has died. */
async function keepWhatIsLeft(file: RejoinFile, options: HomeOptions): Promise<void> {
  const { tail } = file;
  if (tail === undefined || readMarker(systemDisk, options.dir) !== undefined) return;
  const { keepTail } = await import('./rejoin-tail.ts');
  try {
    const done = await keepTail(tail, options);
    if (done !== undefined) options.onStep(done);
    file.setTail(null);
  } catch (error) {
    options.signal.throwIfAborted();
    options.onStep(
      `the tail of the former store is not preserved yet, which is tried again: ${(error as Error).message}`,
    );
  }
}

function failed(file: RejoinFile, why: string, { limits, clock, onStep }: HomeOptions): void {
  const { progress } = file;
  if (progress === undefined) return;
  const next = stepFailed(progress, why, { limits, nowMs: clock.nowMs() });
  file.setProgress(next);
  onStep(`${progress.current} failed (${next.attemptsTotal} of ${limits.rejoinTotalAttemptsMax}): ${why}`);
}

export function backoffMs({ attemptsTotal }: RejoinProgress, limits: Limits): number {
  const { rejoinBackoffMs, rejoinBackoffMaxMs } = limits;
  return Math.min(rejoinBackoffMs * 2 ** Math.max(0, attemptsTotal - 1), rejoinBackoffMaxMs);
}

function rejoinFailed(dir: string, progress: RejoinProgress): NostosError {
  const { decision, attemptsTotal, history } = progress;
  const last = history.at(-1);
  return new NostosError(
    'REJOIN_FAILED',
    `${dir} did not come back to its group in ${attemptsTotal} attempts: ${last?.why ?? decision.reason}. ` +
      `${decision.advice ?? 'Nothing of it was given up.'} When that is seen to, nostos rejoin --again lets it try again`,
    { details: { dir, decision, attemptsTotal, history } },
  );
}
