/**
 * The node's own thread as a member of a group: it brings tenants into the role that the engine announces, and says when
 * they are there.
 *
 * | notice | does | then |
 * |---|---|---|
 * | `watermark` | on a replica, tenants are given what is committed | |
 * | `lead` | gives tenants the rest, opens them to writers | writes begin |
 * | `step-down` | transactions end, tenants follow | `steppedDown` |
 * | `rollback` | keeps the tail in a file, and drops it | `rolledBack` |
 *
 * Notices are worked off one after another; a role that was overtaken by the next one is not announced.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Lsn, StoreId, TenantId } from '../base/brands.ts';
import { NostosError, isNostosError } from '../base/errors.ts';
import type { Limits } from '../base/limits.ts';
import type { CommitLog, CommittedRecord } from '../log/commit-log.ts';
import type { MemberChange } from '../replication/effects.ts';
import { leaseHolds, type Instant } from '../replication/lease.ts';
import type { Catalog } from '../store/catalog.ts';
import type { OpenTenants } from '../store/open-tenants.ts';
import { TenantApplier } from '../store/tenant-applier.ts';
import type { TenantRole } from '../store/tenant-store.ts';
import type { EngineClient } from './engine-client.ts';
import type { GroupNotice, GroupReport } from './engine-protocol.ts';
import type { GroupRollback } from './group-rollback.ts';
import type { RejoinDriver } from './rejoin-driver.ts';
import type { RejoinProgress } from './rejoin-progress.ts';
import { sharedMs } from './shared-clock.ts';

export type RollbackNotice = Extract<GroupNotice, { kind: 'rollback' }>;
export type RoleNotice = Extract<GroupNotice, { kind: 'role' }>;

type Rejoin = Pick<RejoinDriver, 'start' | 'stop' | 'left' | 'progress' | 'found' | 'decided' | 'failed'>;

export interface GroupMemberDeps {
  readonly engine: CommitLog & Pick<EngineClient, 'opened' | 'onNotice' | 'inGroup'>;
  readonly catalog: Pick<Catalog, 'byId'>;
  readonly tenants: Pick<OpenTenants, 'with' | 'each'>;
  readonly limits: Pick<Limits, 'leaseMs' | 'clockDriftMax' | 'renewIntervalMs'>;
  /** Takes up a tenant-create, -drop or -reset of the primary. */
  readonly applyCatalog: (record: CommittedRecord) => Promise<void>;
  /** Called when a reign has begun, and tenants take writes. */
  readonly onLead?: () => void;
  /** Preserves the tail and drops it. */
  readonly rollback: Pick<GroupRollback, 'run' | 'finish' | 'isUnderWay'>;
  readonly rejoin: (member: GroupMember) => Rejoin;
}

/** What is told to those who listen. */
export type GroupEventKind =
  | 'role'
  | 'stopped'
  | 'failed'
  | 'tenant-failed'
  | 'rolled-back'
  | 'rollback-failed'
  /** What is tried to come back to the group, and what came of it. */
  | 'rejoin'
  /** The node is to be closed and opened again: see `left`. */
  | 'left';

export interface GroupLogEntry {
  readonly atMs: number;
  readonly kind: GroupEventKind;
  readonly text: string;
}

const EVENTS_KEPT = 100;
const WAIT_STEP_MS = 5;
const RETRY_MS = 500;

export class GroupMember {
  readonly #deps: GroupMemberDeps;
  readonly #listeners = new Set<(entry: GroupLogEntry) => void>();
  readonly #events: GroupLogEntry[] = [];
  readonly #closing = new AbortController();
  #role: TenantRole = 'replica';
  /** Since the applier began: then that is behind its tenants. */
  #hasLed = false;
  #said: RoleNotice | undefined;
  #applier: TenantApplier;
  #applying: { readonly abort: AbortController; readonly done: Promise<unknown> } | undefined;
  #working: Promise<void> = Promise.resolve();
  #reigns = 0;
  readonly #rejoin: Rejoin;

  constructor(deps: GroupMemberDeps) {
    this.#deps = deps;
    // Tenants that the last process left behind are brought up where they are opened.
    this.#applier = this.#newApplier(deps.engine.opened.watermark);
    this.#rejoin = deps.rejoin(this);
  }

  start(): void {
    this.#working = this.#endLastRollback();
    this.#deps.engine.onNotice = (notice) => this.#hear(notice);
    this.#rejoin.start();
  }

  /** The engine waits for this where the last process had begun to drop records: it must not keep the rest of them. */
  async #endLastRollback(): Promise<void> {
    for (let told = ''; !this.#closing.signal.aborted;) {
      try {
        await this.#deps.rollback.finish();
        await this.#deps.engine.inGroup('settled', undefined);
        return this.#follow();
      } catch (error) {
        const reason = reasonOf(error);
        if (reason !== told) this.note('failed', `the last rollback could not be ended, tried again: ${reason}`);
        told = reason;
        await sleep(RETRY_MS, undefined, { signal: this.#closing.signal }).catch(() => {}); // closing
      }
    }
  }

  async stop(): Promise<void> {
    this.#closing.abort();
    await this.#rejoin.stop();
    await this.#rest();
    await this.#working;
  }

  /** What tenants are opened for. */
  get role(): TenantRole {
    return this.#role;
  }

  get events(): readonly GroupLogEntry[] {
    return this.#events;
  }

  get left(): AbortSignal {
    return this.#rejoin.left;
  }

  get rejoin(): RejoinProgress | undefined {
    return this.#rejoin.progress;
  }

  /** A file of a tenant cannot be read, or its rows are not what the log leads to. */
  foundDamaged(tenant: string, why: 'damage' | 'differs'): void {
    this.#rejoin.found(why === 'damage' ? { damage: `tenant ${tenant}` } : { differs: `tenant ${tenant}` });
  }

  /** A tenant did not take committed records, which it is given again. */
  foundBehind(tenant: string, error: unknown): void {
    this.note('tenant-failed', `tenant ${tenant} did not take what is committed, it is replayed: ${reasonOf(error)}`);
  }

  foundLogDamaged(what: string): void {
    this.#rejoin.found({ damage: what });
  }

  /** Up to there all open tenants of a replica were given what is committed. */
  get givenTo(): Lsn {
    return this.#applier.givenTo;
  }

  /** Up to there no tenant lacks anything that is committed. */
  get lowest(): Lsn {
    return this.#role === 'primary' ? this.#deps.engine.watermark : this.#applier.lowest;
  }

  onEvent(listener: (entry: GroupLogEntry) => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  notPrimary(): NostosError {
    const { primary = null, primaryAddress: address = null, term = null } = this.#said ?? {};
    return new NostosError(
      'NOT_PRIMARY',
      primary === null
        ? 'this node does not lead its group, and knows of nobody who does; try again'
        : `this node does not lead its group; store ${primary} does${address === null ? '' : `, at ${address}`}: write there`,
      { details: { role: 'replica', primary, address, term } },
    );
  }

  report(): Promise<GroupReport> {
    return this.#deps.engine.inGroup('groupReport', undefined);
  }

  /** Resolves once the change is in the group record, which an addition is when the newcomer has caught up. */
  async changeMembers(change: MemberChange): Promise<void> {
    await this.#deps.engine.inGroup('changeMembers', change);
  }

  /** Resolves when another one leads, or rejects when it was given up. */
  async handover(to?: StoreId): Promise<void> {
    const { term } = await this.report();
    const asked = this.#drains + 1;
    await this.#deps.engine.inGroup('handover', to === undefined ? {} : { to });
    for (;;) {
      const report = await this.report();
      if (report.role !== 'leading' && report.role !== 'draining') {
        const leader = report.record?.primary ?? null;
        if (leader !== null && leader.boot !== report.boot) return;
        throw new NostosError('HANDOVER_FAILED', 'this node does not lead any more, and nobody has taken over yet', {
          details: { term },
        });
      }
      if (report.role === 'leading' && asked <= this.#undrained)
        throw new NostosError('HANDOVER_FAILED', 'no successor took over in time; this node goes on leading', {
          details: { term },
        });
      await new Promise((resolve) => void setTimeout(resolve, WAIT_STEP_MS));
    }
  }

  /**
   * Whether nobody else can lead at this moment; asked after the snapshot of a read was taken. None from the wish to hand
   * over on: the successor may be quick.
   */
  holdsLease(): boolean {
    if (this.#lease === undefined || this.#drains > this.#undrained) return false;
    const now = { monotonicMs: sharedMs(), wallMs: Date.now() };
    return leaseHolds(this.#lease, now, this.#deps.limits.leaseMs, this.#deps.limits.clockDriftMax);
  }

  /** Of the reign that is: changes with each one that begins or ends. */
  get reign(): number {
    return this.#reigns;
  }

  /** Waits for the lease as long as a renewal may take: a reign that has just begun has none yet. */
  async leased(reign: number): Promise<boolean> {
    const untilMs = sharedMs() + this.#deps.limits.renewIntervalMs;
    for (;;) {
      if (reign !== this.#reigns) return false; // another one may have led between the snapshot and now
      if (this.holdsLease()) return true;
      if (this.#role !== 'primary' || sharedMs() > untilMs) return false;
      await new Promise((resolve) => void setTimeout(resolve, WAIT_STEP_MS));
    }
  }

  #drains = 0;
  #undrained = 0;
  #lease: Instant | undefined;

  #hear(notice: GroupNotice): void {
    switch (notice.kind) {
      case 'watermark':
        return;
      case 'role':
        return this.#changed(notice);
      case 'drain':
        this.#drains += 1;
        return;
      case 'resume':
        this.#undrained = this.#drains;
        return;
      case 'lease':
        this.#lease = notice.sent ?? undefined;
        return;
      case 'stopped':
        return this.note('stopped', `${notice.reason} ${JSON.stringify(notice.details)}`);
      case 'rejoin':
        return this.#rejoin.decided(notice);
      case 'damaged':
        return this.foundLogDamaged(notice.what);
      case 'reopen-failed':
        return this.#rejoin.failed(notice.why);
      case 'lead':
      case 'step-down':
      case 'rollback':
        this.#undrained = this.#drains;
        if (notice.kind === 'step-down') this.#lease = undefined;
        this.#reigns += 1;
        return this.#inTurn(this.#reigns, notice);
      default:
        return notice satisfies never;
    }
  }

  #changed(notice: RoleNotice): void {
    const before = this.#said;
    this.#said = notice;
    if (before?.role === notice.role && before.term === notice.term && before.primary === notice.primary) return;
    const whom = notice.primary === null ? '' : `, following ${notice.primary}`;
    this.note('role', `${notice.role} in term ${notice.term}${whom}`);
  }

  #inTurn(turn: number, notice: GroupNotice): void {
    const before = this.#working;
    this.#working = this.#work(before, turn, notice);
  }

  async #work(before: Promise<void>, turn: number, notice: GroupNotice): Promise<void> {
    await before;
    // The engine waits for the answer, or leads already: until the next notice comes there is no other way on.
    let told = '';
    do {
      if (this.#closing.signal.aborted) return;
      try {
        if (notice.kind === 'lead') return await this.#lead(turn);
        if (notice.kind === 'step-down') return await this.#stepDown();
        if (notice.kind === 'rollback') return await this.#rollBack(notice);
        return;
      } catch (error) {
        if (reasonOf(error) !== told) this.note('failed', `${notice.kind}, tried again: ${reasonOf(error)}`);
        told = reasonOf(error);
        await sleep(RETRY_MS, undefined, { signal: this.#closing.signal }).catch(() => {}); // closing
      }
    } while (turn === this.#reigns);
  }

  async #lead(turn: number): Promise<void> {
    await this.#rest();
    await this.#applier.catchUp(this.#closing.signal);
    if (turn !== this.#reigns) return this.#follow(); // deposed meanwhile
    this.#role = 'primary';
    this.#hasLed = true;
    await this.#deps.tenants.each((store) => store.becomePrimary());
    this.#deps.onLead?.();
  }

  async #stepDown(): Promise<void> {
    await this.#rest();
    const { watermark } = this.#deps.engine;
    this.#role = 'replica';
    await this.#deps.tenants.each((store) => store.becomeReplica());
    // Of what this node has appended itself tenants now have all that is committed. Where it never led they may yet lack some.
    if (this.#hasLed) this.#applier = this.#newApplier(watermark);
    this.#hasLed = false;
    await this.#deps.engine.inGroup('steppedDown', undefined);
    this.#follow();
  }

  async #rollBack(notice: RollbackNotice): Promise<void> {
    await this.#rest();
    // Also where it was stopped halfway: its journal says how it goes on.
    const ok = await this.#deps.rollback.run(notice).then(
      () => true,
      (error: unknown) => {
        this.#rejoin.failed(reasonOf(error)); // it is tried again, or something else is
        if (this.#deps.rollback.isUnderWay) throw error; // then nothing else comes before its end
        return false;
      },
    );
    await this.#deps.engine.inGroup('rolledBack', { ok });
    this.#follow();
  }

  #newApplier(from: Lsn): TenantApplier {
    const { engine, tenants, catalog, applyCatalog } = this.#deps;
    return new TenantApplier(
      {
        log: engine,
        tenants,
        catalog: { byId: (id) => catalog.byId(id), apply: applyCatalog },
        onFailed: (id: TenantId, error) => {
          this.foundBehind(catalog.byId(id)?.name ?? `${id}`, error);
          if (isNostosError(error, 'TENANT_DAMAGED')) this.foundDamaged(`${id} (${error.message})`, 'damage');
        },
      },
      from,
    );
  }

  /** Gives tenants what becomes committed, until somebody ends it. */
  #follow(): void {
    if (this.#applying !== undefined || this.#closing.signal.aborted) return;
    const abort = new AbortController();
    const done = this.#applier.run(abort.signal).catch((error: unknown) => {
      if (!abort.signal.aborted) this.note('failed', `applying: ${reasonOf(error)}`);
    });
    this.#applying = { abort, done };
  }

  async #rest(): Promise<void> {
    const applying = this.#applying;
    this.#applying = undefined;
    applying?.abort.abort(new NostosError('CLOSED', 'this node no longer only follows'));
    await applying?.done;
  }

  /** Keeps and tells what has happened. */
  note(kind: GroupEventKind, text: string): void {
    const entry = { atMs: Date.now(), kind, text };
    const last = this.#events.findLastIndex((event) => event.kind === kind);
    // What is tried again and again is told once, and kept as of the last time.
    const again = kind === 'tenant-failed' && this.#events[last]?.text === text;
    if (again) this.#events.splice(last, 1);
    this.#events.push(entry);
    if (this.#events.length > EVENTS_KEPT) this.#events.shift();
    if (!again) for (const listener of this.#listeners) listener(entry);
  }
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
