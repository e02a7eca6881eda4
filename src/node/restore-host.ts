/**
 * What a node holds for those who copy it. This side runs in the node's own thread, with the tenants; the one that reads
 * files and sends them (`restore-source.ts`) asks it from the thread of the network.
 *
 * - The log is reserved from the first record that some file lacked when the session began. The reservation is renewed
 *   while the receiver takes bytes, and given up with the session: without progress for `reservationTimeoutMs`, or when
 *   the log has grown by `restoreHoldBytesMax` since.
 * - A tenant is held while it is sent: open, brought into its file, and not checkpointed (`TenantStore.hold`).
 * - What is given up is told through a flag in shared memory before anything may change (`hold-flag.ts`).
 */
import type { Lsn, TenantId } from '../base/brands.ts';
import type { Clock } from '../base/clock.ts';
import { NostosError, isNostosError } from '../base/errors.ts';
import type { Limits } from '../base/limits.ts';
import type { LogHold } from '../log/commit-log.ts';
import type { Catalog } from '../store/catalog.ts';
import type { OpenTenants } from '../store/open-tenants.ts';
import type { HeldFile, Holder, TenantStore } from '../store/tenant-store.ts';
import type { EngineClient } from './engine-client.ts';
import type { LogFiles } from './engine-protocol.ts';
import { HoldFlag } from './hold-flag.ts';
import type { NodeIdentity } from './node-file.ts';
import type { NodeStatus, ServedCopy } from './types.ts';

export interface CopyStart {
  readonly session: number;
  /** Of the session's `HoldFlag`. */
  readonly memory: SharedArrayBuffer;
  readonly identity: NodeIdentity;
  readonly term: number;
  readonly watermark: number;
  /** The first record that is reserved; everything before it is in every file. */
  readonly from: Lsn;
  /** Of the log that will be sent, as it is now. */
  readonly logBytes: number;
}

export interface HeldTenant {
  readonly hold: number;
  /** Of the `HoldFlag` of this hold. */
  readonly memory: SharedArrayBuffer;
  readonly descriptor: number;
  readonly bytes: number;
  readonly term: number;
  readonly lsn: number;
  readonly hash: string;
}

/** What the thread of the network asks; answers are plain data. */
export interface RestoreHost {
  begin(): Promise<CopyStart>;
  /** `dropped`: there is no such tenant any more. */
  hold(session: number, tenant: TenantId): Promise<HeldTenant | 'dropped'>;
  release(session: number, hold: number): Promise<void>;
  /** The log from the reserved record on, up to the present watermark. */
  logFiles(session: number): Promise<LogFiles>;
  end(session: number): Promise<void>;
  /** All of the log up to the present watermark, held until `closeLog`, or until `reservationTimeoutMs` have passed. */
  openLog(): Promise<LogFiles & { readonly log: number }>;
  closeLog(log: number): Promise<void>;
  /** For those who choose a provider. */
  info(): Promise<HostInfo>;
}

export interface HostInfo {
  readonly identity: NodeIdentity;
  readonly role: NodeStatus['role'];
  readonly term: number;
  readonly watermark: number;
  readonly firstLsn: number;
  readonly sessions: number;
}

export interface RestoreHostDeps {
  readonly engine: Pick<EngineClient, 'reserve' | 'reserveAll' | 'reserveForCopy' | 'logFiles' | 'status'>;
  readonly catalog: Pick<Catalog, 'byId'>;
  readonly tenants: Pick<OpenTenants, 'with'>;
  /** Everything up to here is in the files of all tenants. */
  readonly bound: () => Lsn;
  readonly role: () => NodeStatus['role'];
  readonly clock: Clock;
}

interface Hold {
  readonly tenant: TenantId;
  readonly flag: HoldFlag;
  readonly release: () => void;
  /** When the tenant may be closed again. */
  readonly ended: Promise<void>;
}

interface Session {
  readonly id: number;
  readonly flag: HoldFlag;
  readonly from: Lsn;
  readonly startedAtMs: number;
  /** Of the log from `from` on, when the session began. */
  readonly logBytes: number;
  readonly holds: Map<number, Hold>;
  log: LogHold;
  moves: number;
  movedAtMs: number;
  renewedAtMs: number;
}

const TICK_MAX_MS = 1_000;
/** A reader with an older snapshot is waited for so long before the next try. */
const RETRY_MS = 50;
/** Tenants that one session may hold at a time. */
const HOLDS_MAX = 64;

export class NodeRestoreHost implements RestoreHost {
  readonly #deps: RestoreHostDeps;
  readonly #identity: NodeIdentity;
  readonly #limits: Limits;
  readonly #sessions = new Map<number, Session>();
  readonly #logs = new Map<number, LogHold>();
  /** Also those that are only beginning. */
  #count = 0;
  #nextId = 0;
  #timer: NodeJS.Timeout | undefined;
  #ticking: Promise<void> | undefined;
  #closed = false;

  constructor(
    deps: RestoreHostDeps,
    { identity, limits }: { readonly identity: NodeIdentity; readonly limits: Limits },
  ) {
    this.#deps = deps;
    this.#identity = identity;
    this.#limits = limits;
  }

  async begin(): Promise<CopyStart> {
    const { restoreSessionsMax } = this.#limits;
    if (this.#closed) throw closing();
    if (this.#count >= restoreSessionsMax)
      throw new NostosError(
        'QUEUE_FULL',
        `this node serves ${this.#count} copies already, the limit restoreSessionsMax is ${restoreSessionsMax}; ask another one, or later`,
        { details: { sessions: this.#count, limit: restoreSessionsMax } },
      );
    this.#count += 1;
    let log: (LogHold & { readonly from: Lsn }) | undefined;
    try {
      log = await this.#deps.engine.reserveForCopy(this.#deps.bound());
      const { bytes, term, watermark } = await this.#deps.engine.logFiles(log.from);
      if (this.#closed) throw closing();
      const session = this.#add(log, bytes);
      return {
        session: session.id,
        memory: session.flag.memory,
        identity: this.#identity,
        term,
        watermark,
        from: log.from,
        logBytes: bytes,
      };
    } catch (error) {
      log?.release();
      this.#count -= 1;
      throw error;
    }
  }

  async hold(sessionId: number, tenant: TenantId): Promise<HeldTenant | 'dropped'> {
    const session = this.#session(sessionId);
    this.#moved(session);
    if (session.holds.size >= HOLDS_MAX)
      throw new NostosError('QUEUE_FULL', `a copy may have ${HOLDS_MAX} tenants open at a time; close one first`);
    const entry = this.#deps.catalog.byId(tenant);
    if (entry === undefined) return 'dropped';
    const flag = new HoldFlag();
    const held = Promise.withResolvers<HeldFile>();
    const released = Promise.withResolvers<void>();
    const id = (this.#nextId += 1);
    const whileHeld = async (store: TenantStore): Promise<void> => {
      const holder: Holder = {
        onLost: (error) => {
          flag.lower(error);
          released.resolve();
        },
      };
      try {
        held.resolve(await this.#holdFile(store, holder, () => this.#assertHeld(session, flag)));
        await released.promise;
      } finally {
        store.releaseHold(holder);
      }
    };
    const ended = this.#deps.tenants
      .with(entry, whileHeld, { keep: false })
      .catch((error: unknown) => held.reject(error))
      .finally(() => session.holds.delete(id));
    const release = (): void => {
      flag.lower(new NostosError('CLOSED', 'the copy of this tenant has ended'));
      released.resolve();
    };
    session.holds.set(id, { tenant, flag, release, ended });
    try {
      const { descriptor, bytes, applied } = await held.promise;
      const hash = Buffer.from(applied.hash).toString('hex');
      return { hold: id, memory: flag.memory, descriptor, bytes, term: applied.term, lsn: applied.lsn, hash };
    } catch (error) {
      release();
      session.flag.check(); // why the session ended says more
      if (this.#deps.catalog.byId(tenant) === undefined) return 'dropped';
      throw error;
    }
  }

  async release(session: number, hold: number): Promise<void> {
    const found = this.#sessions.get(session)?.holds.get(hold);
    found?.release();
    await found?.ended;
  }

  logFiles(sessionId: number): Promise<LogFiles> {
    const session = this.#session(sessionId);
    this.#moved(session);
    return this.#deps.engine.logFiles(session.from);
  }

  async end(id: number): Promise<void> {
    const session = this.#sessions.get(id);
    if (session !== undefined) await this.#give(session, new NostosError('CLOSED', 'the session has ended'));
  }

  async openLog(): Promise<LogFiles & { readonly log: number }> {
    if (this.#closed) throw closing();
    const { engine } = this.#deps;
    const hold = await engine.reserveAll();
    try {
      const files = await engine.logFiles(hold.from);
      const log = (this.#nextId += 1);
      this.#logs.set(log, hold);
      return { ...files, log };
    } catch (error) {
      hold.release();
      throw error;
    }
  }

  async closeLog(log: number): Promise<void> {
    this.#logs.get(log)?.release();
    this.#logs.delete(log);
  }

  async info(): Promise<HostInfo> {
    const { term, watermark, firstLsn } = await this.#deps.engine.status();
    return { identity: this.#identity, role: this.#deps.role(), term, watermark, firstLsn, sessions: this.#count };
  }

  /** The copies that are being served. */
  status(): readonly ServedCopy[] {
    return [...this.#sessions.values()].map(({ startedAtMs, flag, holds, from }) => ({
      startedAtMs,
      bytesSent: flag.progress,
      holding: [...holds.values()].map(({ tenant }) => tenant),
      logFrom: from,
    }));
  }

  /** Ends all sessions; from now on none begins. */
  async stop(): Promise<void> {
    this.#closed = true;
    await this.endAll(closing());
    await this.#ticking;
  }

  async endAll(reason: NostosError): Promise<void> {
    for (const log of this.#logs.keys()) await this.closeLog(log);
    await Promise.all([...this.#sessions.values()].map((session) => this.#give(session, reason)));
  }

  #add(log: LogHold & { readonly from: Lsn }, logBytes: number): Session {
    const nowMs = this.#deps.clock.monotonicMs();
    const session: Session = {
      id: (this.#nextId += 1),
      flag: new HoldFlag(),
      from: log.from,
      startedAtMs: this.#deps.clock.nowMs(),
      logBytes,
      holds: new Map(),
      log,
      moves: 0,
      movedAtMs: nowMs,
      renewedAtMs: nowMs,
    };
    this.#sessions.set(session.id, session);
    const tick = (): void => void (this.#ticking ??= this.#tick().finally(() => (this.#ticking = undefined)));
    const everyMs = Math.min(TICK_MAX_MS, Math.max(10, this.#limits.reservationTimeoutMs / 8));
    this.#timer ??= setInterval(tick, everyMs).unref();
    return session;
  }

  #session(id: number): Session {
    const session = this.#sessions.get(id);
    if (session === undefined) throw new NostosError('RESERVATION_EXPIRED', 'this copy was given up; start over');
    session.flag.check();
    return session;
  }

  #moved(session: Session): void {
    session.movedAtMs = this.#deps.clock.monotonicMs();
  }

  async #holdFile(store: TenantStore, holder: Holder, assertHeld: () => void): Promise<HeldFile> {
    for (;;) {
      assertHeld();
      const file = await store.hold(holder);
      if (file !== undefined) return file;
      await new Promise((resolve) => void setTimeout(resolve, RETRY_MS));
    }
  }

  #assertHeld(session: Session, flag: HoldFlag): void {
    session.flag.check();
    flag.check();
  }

  async #tick(): Promise<void> {
    for (const session of this.#sessions.values()) {
      const nowMs = this.#deps.clock.monotonicMs();
      const { moves } = session.flag;
      if (moves !== session.moves) session.movedAtMs = nowMs;
      session.moves = moves;
      const expired = await this.#expired(session, nowMs).catch((error: unknown) => asExpired(session, error));
      if (expired !== undefined) void this.#give(session, expired);
    }
  }

  /** Why a session is to be given up; undefined where it goes on, and then its reservation is renewed. */
  async #expired(session: Session, nowMs: number): Promise<NostosError | undefined> {
    const { engine } = this.#deps;
    const { reservationTimeoutMs: timeoutMs, restoreHoldBytesMax: limitBytes } = this.#limits;
    const { bytes, watermark } = await engine.logFiles(session.from);
    const heldBytes = bytes - session.logBytes;
    const details = {
      fromLsn: session.from,
      lsn: watermark,
      heldBytes,
      limitBytes,
      timeoutMs,
      bytesSent: session.flag.progress,
    };
    if (nowMs - session.movedAtMs > timeoutMs)
      return new NostosError(
        'RESERVATION_EXPIRED',
        `the receiver has taken nothing for ${timeoutMs} ms (reservationTimeoutMs), after ${session.flag.progress} bytes; the log from LSN ${session.from} to ${watermark} is held for it no longer. Start over: what was fetched counts`,
        { details },
      );
    if (heldBytes > limitBytes)
      return new NostosError(
        'RESERVATION_EXPIRED',
        `the log has grown by ${heldBytes} bytes since this copy began, the limit restoreHoldBytesMax is ${limitBytes}; LSN ${session.from} to ${watermark} are held for it no longer. Start over: what was fetched counts, or raise the limit`,
        { details },
      );
    if (nowMs - session.renewedAtMs < timeoutMs / 4) return undefined;
    const next = await engine.reserve(session.from);
    session.log.release();
    session.log = next;
    session.renewedAtMs = nowMs;
    if (!session.flag.isUp) next.release();
    return undefined;
  }

  async #give(session: Session, reason: NostosError): Promise<void> {
    session.flag.lower(reason);
    if (this.#sessions.delete(session.id)) this.#count -= 1;
    if (this.#sessions.size === 0) {
      clearInterval(this.#timer);
      this.#timer = undefined;
    }
    const holds = [...session.holds.values()];
    for (const { flag, release } of holds) {
      flag.lower(reason);
      release();
    }
    session.log.release();
    await Promise.all(holds.map(({ ended }) => ended));
  }
}

function asExpired(session: Session, error: unknown): NostosError {
  if (!isNostosError(error, 'LOG_PRUNED')) return error as NostosError;
  return new NostosError(
    'RESERVATION_EXPIRED',
    `the log from LSN ${session.from} on, which was held for this copy, is gone: ${error.message}. Start over: what was fetched counts`,
    { cause: error, details: { ...error.details, fromLsn: session.from } },
  );
}

function closing(): NostosError {
  return new NostosError('CLOSED', 'the node that serves this copy is closing; try another one, or again later');
}
