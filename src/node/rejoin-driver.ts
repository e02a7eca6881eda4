/**
 * The way back to the group of a node that runs: keeps count of what the engine decides, and leaves where the files have to
 * be set aside. What the engine does by itself (stream, roll back, open the log again) is only counted here; the copy is
 * fetched when the directory is opened the next time (`rejoin-home.ts`), which whoever has opened the node does when
 * `left` is aborted.
 *
 * What must hold when a node leaves:
 *
 * - A member can serve a copy, and another store leads; a damaged primary hands over first. Otherwise it stays: a damaged
 *   copy that serves is better than none.
 * - A member that acknowledges asks to be dropped, and stays as long as nobody can do without it: a damaged copy whose acks
 *   are good is better than a group that stands still. One whose machine has stopped acknowledges nothing, so it waits
 *   bounded, and goes.
 * - What was found, and each attempt, is in `rejoin.json` before it counts: who is killed in between goes on there.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Clock } from '../base/clock.ts';
import { NostosError } from '../base/errors.ts';
import type { Limits } from '../base/limits.ts';
import type { Coordination } from '../coordination/coordination.ts';
import { openCoordinator } from '../coordination/open-coordinator.ts';
import type { TlsIdentity } from '../wire/tls-identity.ts';
import type { EngineClient } from './engine-client.ts';
import type { GroupNotice, GroupReport } from './engine-protocol.ts';
import type { NodeIdentity } from './node-file.ts';
import { RESTORING } from './rejoin-decision.ts';
import { LASTING_STOPS, type Finding, type RejoinFile } from './rejoin-file.ts';
import { backoffMs } from './rejoin-home.ts';
import { askMembers } from './rejoin-members.ts';
import { arrived, describeRejoin, stepDone, stepFailed, takeUp, type RejoinProgress } from './rejoin-progress.ts';

export type RejoinNotice = Extract<GroupNotice, { kind: 'rejoin' }>;

export interface RejoinDriverDeps {
  readonly engine: Pick<EngineClient, 'inGroup'>;
  readonly file: RejoinFile;
  readonly clock: Clock;
  /** Resolves when another one leads. */
  readonly handover: () => Promise<void>;
  readonly note: (kind: 'rejoin' | 'left', text: string) => void;
}

export interface RejoinDriverOptions {
  readonly coordinator: string;
  readonly group: string;
  readonly tls?: TlsIdentity | undefined;
  readonly restoreFrom: readonly string[];
  readonly identity: Pick<NodeIdentity, 'store' | 'cluster'>;
  readonly limits: Limits;
}

const POLL_MS = 50;
/** They are where a node belongs, or wait: nothing is told, or kept, of them unless something was tried before. */
const LEADS: ReadonlySet<string> = new Set(['starting', 'leading', 'draining']);

export class RejoinDriver {
  readonly #deps: RejoinDriverDeps;
  readonly #options: RejoinDriverOptions;
  readonly #closing = new AbortController();
  readonly #left = new AbortController();
  #progress: RejoinProgress | undefined;
  #leaving: Promise<void> | undefined;
  #told = '';

  constructor(deps: RejoinDriverDeps, options: RejoinDriverOptions) {
    this.#deps = deps;
    this.#options = options;
    this.#progress = deps.file.progress;
  }

  /** Tells the engine what an earlier process has found out about this store. */
  start(): void {
    // Why a machine stopped, the next one finds out by itself, if it is so still; or it is told when it is made.
    const { stopped: _, ...wrong } = this.#finding ?? {};
    this.#tellEngine(wrong);
  }

  async stop(): Promise<void> {
    this.#closing.abort(new NostosError('CLOSED', 'the node is closed'));
    await this.#leaving;
  }

  get progress(): RejoinProgress | undefined {
    return this.#progress;
  }

  /** Aborted when the node is to be closed and opened again, which fetches a copy; the reason says why. */
  get left(): AbortSignal {
    return this.#left.signal;
  }

  /** The engine has decided; `home`: the node streams or leads, and nothing is wrong with it. */
  decided({ decision, home, stopped }: RejoinNotice): void {
    const { limits } = this.#options;
    const before = this.#progress;
    const nowMs = this.#deps.clock.nowMs();
    this.#progress = takeUp(decision, { before, limits, nowMs });
    const lasting = LASTING_STOPS.find((reason) => reason === stopped);
    // That an older disk is there nobody finds out again once the primary that knew is gone.
    if (lasting === 'lost-records' || (lasting !== undefined && RESTORING.has(decision.action)))
      this.#keep({ stopped: lasting });
    const finding = this.#finding;
    // The engine may not have heard of it yet.
    const isWhole = finding?.damage === undefined && finding?.differs === undefined;
    if (home && isWhole && finding !== undefined) this.#deps.file.clear();
    if (home && isWhole && this.#progress.attemptsTotal > 0) this.#set(arrived(this.#progress, nowMs));
    else if (this.#isTrying) this.#set(this.#progress);
    if (this.#isTrying || decision.action === 'rollback') this.#tell();
    this.#act();
  }

  /** Something of the store cannot be trusted. */
  found(finding: Finding): void {
    const known = this.#finding;
    if (known?.damage !== undefined || (known?.differs !== undefined && finding.differs !== undefined)) return;
    this.#keep(finding);
    this.#tellEngine(finding);
  }

  /** What the engine or the node's thread tried by itself did not work. */
  failed(why: string): void {
    const before = this.#progress;
    if (before === undefined || this.#left.signal.aborted) return;
    const now = stepFailed(before, why, { limits: this.#options.limits, nowMs: this.#deps.clock.nowMs() });
    this.#set(now);
    this.#deps.note('rejoin', `${before.current} failed: ${why}; ${describeRejoin(now)}`);
    // The files look well, so the next opening has to be told.
    if (before.current === 'rollback' && RESTORING.has(now.current))
      this.found({ damage: `the tail of the log, which could not be rolled back (${why}),` });
    this.#act();
  }

  get #isTrying(): boolean {
    return (
      this.#progress !== undefined && (RESTORING.has(this.#progress.current) || this.#progress.current === 'operator')
    );
  }

  get #finding(): Finding | undefined {
    return this.#deps.file.findingOf(this.#options.identity.store);
  }

  #set(progress: RejoinProgress): void {
    this.#progress = progress;
    this.#deps.file.setProgress(progress);
  }

  #keep(finding: Finding): void {
    this.#deps.file.add(this.#options.identity.store, finding);
  }

  #tellEngine(finding: Finding): void {
    this.#deps.engine.inGroup('found', finding).catch(() => {}); // it is closing
  }

  #tell(): void {
    const text = this.#progress === undefined ? '' : describeRejoin(this.#progress);
    if (text !== this.#told) this.#deps.note('rejoin', text);
    this.#told = text;
  }

  #act(): void {
    if (this.#progress === undefined || !RESTORING.has(this.#progress.current)) return;
    this.#leaving ??= this.#leaveUntilDone().finally(() => (this.#leaving = undefined));
  }

  async #leaveUntilDone(): Promise<void> {
    const { signal } = this.#closing;
    while (!signal.aborted && !this.#left.signal.aborted) {
      const progress = this.#progress;
      if (progress === undefined || !RESTORING.has(progress.current)) return;
      try {
        const how = await this.#leave();
        // Without its place in the set, what is decided is another thing by now.
        const { current: action } = progress;
        this.#set(stepDone(this.#progress ?? progress, how, { nowMs: this.#deps.clock.nowMs(), action }));
        this.#deps.note('left', `${how}; it is to be closed and opened again, which fetches a copy`);
        this.#left.abort(new NostosError('REJOIN_FAILED', `this node has left its group: ${describeRejoin(progress)}`));
      } catch (error) {
        if (signal.aborted) return;
        this.failed((error as Error).message);
        await sleep(backoffMs(this.#progress ?? progress, this.#options.limits), undefined, { signal }).catch(() => {});
      }
    }
  }

  /** What was done, in words; or it throws, and the node is where it was. */
  async #leave(): Promise<string> {
    const { coordinator, group: name, tls, restoreFrom, identity, limits } = this.#options;
    const { signal } = this.#closing;
    await using coordination = await openCoordinator(coordinator);
    const { record, role, stopped } = await this.#report();
    const current = stopped === null ? record : ((await coordination.group(name).read())?.record ?? record);
    if (current === null) throw new NostosError('NO_PROVIDER', 'there is no record of the group');
    const asker = { name, record: current, self: identity, tls, restoreFrom, limits, signal };
    const { from, refused, primaryLives } = await askMembers(coordination, asker);
    if (from.length === 0)
      throw new NostosError('NO_PROVIDER', `no member can serve a copy now: ${refused.join('; ') || 'there is none'}`);
    const leads = LEADS.has(role);
    if (leads) await this.#deps.handover();
    else if (!primaryLives) throw new NostosError('NO_PROVIDER', 'a copy is fetched only while another member leads');
    const dropped = stopped === null ? await this.#beDropped() : await this.#isDropped(coordination, name);
    const said = [leads ? 'handed over' : '', dropped ? 'dropped from the in-sync set' : 'not dropped in time'];
    return said.filter((word) => word !== '').join(', ');
  }

  /** Asks for it, unless the group needs this store; a set below its minimum is never proposed. */
  async #beDropped(): Promise<true> {
    const { engine } = this.#deps;
    const { store } = this.#options.identity;
    const untilMs = performance.now() + this.#options.limits.rejoinLeaveTimeoutMs;
    const inSync = async (): Promise<boolean> => (await this.#report()).record?.inSync.includes(store) === true;
    const needed = async (): Promise<boolean> => {
      const { record } = await this.#report();
      return record !== null && record.inSync.includes(store) && record.inSync.length <= record.minInSync;
    };
    while (await needed()) {
      if (performance.now() > untilMs)
        throw new NostosError(
          'NO_PROVIDER',
          'the group cannot do without this store: no other one can take its place in sync',
        );
      await sleep(POLL_MS, undefined, { signal: this.#closing.signal });
    }
    await engine.inGroup('setEligible', { eligible: false });
    while (await inSync()) {
      if (performance.now() > untilMs) {
        await engine.inGroup('setEligible', { eligible: true });
        throw new NostosError('NO_PROVIDER', 'the primary did not drop this store in time');
      }
      await sleep(POLL_MS, undefined, { signal: this.#closing.signal });
    }
    return true;
  }

  /** A machine that stopped reads no record any more. */
  async #isDropped(coordination: Coordination, name: string): Promise<boolean> {
    const { identity, limits } = this.#options;
    const untilMs = performance.now() + limits.rejoinLeaveTimeoutMs;
    for (;;) {
      const record = (await coordination.group(name).read())?.record;
      if (record?.inSync.includes(identity.store) !== true) return true;
      if (record.primary === null || record.primary.store === identity.store)
        throw new NostosError('NO_PROVIDER', 'no other member leads yet');
      // Whom the set needs, and who does not stream, nobody can drop.
      if (record.inSync.length <= record.minInSync || performance.now() > untilMs) return false;
      await sleep(limits.coordinatorPollMs, undefined, { signal: this.#closing.signal });
    }
  }

  #report(): Promise<GroupReport> {
    return this.#deps.engine.inGroup('groupReport', undefined);
  }
}
