/**
 * Backups that a node makes by itself: the archive every few seconds, a snapshot now and then, and what policies let go is
 * removed after it. What fails is tried again, later each time, and shows in `status` and in the metrics; it never ends.
 *
 * Several members of a group may do it with one place: whoever finds a snapshot that is young enough makes none. Each of
 * them archives, so that nothing depends on one. What is forgotten here is brought there before a forget resolves.
 */
import { resolve, sep } from 'node:path';
import { lstatSync, realpathSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
import type { Clock } from '../base/clock.ts';
import { NostosError } from '../base/errors.ts';
import type { Limits } from '../base/limits.ts';
import type { Random } from '../base/random.ts';
import { directoryOf } from '../backup/backend/open-backend.ts';
import type { BackupReport, CreateBackupOptions } from './backup-create.ts';
import type { BackupThread } from './backup-thread-client.ts';
import type { ForgetSinks } from './forget-sinks.ts';
import type { BackupOptions, BackupStatus, LongCallOptions } from './types.ts';

export interface BackupScheduleDeps {
  readonly thread: BackupThread;
  readonly forgets: ForgetSinks;
  readonly watermark: () => number;
  readonly clock: Clock;
  readonly random: Random;
}

const SNAPSHOT_EVERY_MS = 60 * 60 * 1_000;
const ARCHIVE_EVERY_MS = 10_000;
/** A snapshot counts as due when so much of the time has passed: members with jitter must not wait for each other. */
const DUE_SHARE = 0.9;

export class BackupSchedule {
  readonly #deps: BackupScheduleDeps;
  readonly #options: BackupOptions;
  readonly #limits: Limits;
  readonly #stopping = new AbortController();
  #loops: Promise<unknown> = Promise.resolve();
  #removeSink: (() => Promise<void>) | undefined;
  #last: BackupStatus['last'] = null;
  #nextAtMs: number | null = null;
  #archivedLsn: number | null = null;
  #archivedAtMs: number | null = null;
  #running: BackupStatus['running'] = null;
  #failures = 0;
  #error: BackupStatus['error'] = null;

  constructor(deps: BackupScheduleDeps, options: BackupOptions, limits: Limits) {
    this.#deps = deps;
    this.#options = options;
    this.#limits = limits;
  }

  start(): void {
    const { thread, forgets } = this.#deps;
    this.#removeSink = forgets.add({
      name: `backup ${urlForPeople(this.#options.to)}`,
      put: (entries, signal) => thread.call('forget', entries, { signal }),
    });
    const { everyMs = SNAPSHOT_EVERY_MS, archiveEveryMs = ARCHIVE_EVERY_MS } = this.#options;
    this.#loops = Promise.all([
      this.#loop(archiveEveryMs, () => this.#archive()),
      this.#loop(everyMs, () => this.#snapshotIfDue(everyMs)),
    ]);
  }

  async stop(): Promise<void> {
    this.#stopping.abort(new NostosError('CLOSED', 'the node is closing'));
    await this.#removeSink?.();
    await this.#deps.thread.stop();
    await this.#loops;
  }

  /** One more, now. */
  async create(options: CreateBackupOptions, call: LongCallOptions = {}): Promise<BackupReport> {
    const report = await this.#deps.thread.call('create', options, call);
    this.#note(report);
    return report;
  }

  /** Whether a backup to there is one of these. */
  covers(url: string, keys: string | undefined): boolean {
    const { to, keys: own } = this.#options;
    const pathOf = (path: string | undefined): string => (path === undefined ? '' : resolve(path));
    return backupUrl(to) === url && pathOf(own) === pathOf(keys);
  }

  status(): BackupStatus {
    const watermark = this.#deps.watermark();
    return {
      to: urlForPeople(this.#options.to),
      running: this.#running,
      last: this.#last,
      nextAtMs: this.#nextAtMs,
      archivedLsn: this.#archivedLsn,
      archivedAtMs: this.#archivedAtMs,
      lagRecords: Math.max(0, watermark - (this.#archivedLsn ?? 0)),
      failures: this.#failures,
      error: this.#error,
    };
  }

  async #loop(everyMs: number, run: () => Promise<number>): Promise<void> {
    const { backupRetryMs, backupRetryMaxMs } = this.#limits;
    let retryMs = backupRetryMs;
    const { signal } = this.#stopping;
    while (!signal.aborted) {
      let pauseMs: number;
      try {
        pauseMs = await run();
        retryMs = backupRetryMs;
      } catch (error) {
        if (signal.aborted) return;
        this.#failures += 1;
        this.#error = { atMs: this.#deps.clock.nowMs(), message: (error as Error).message };
        pauseMs = Math.min(retryMs, everyMs);
        retryMs = Math.min(2 * retryMs, backupRetryMaxMs);
      }
      await this.#pause(pauseMs);
    }
  }

  async #archive(): Promise<number> {
    const { archiveEveryMs = ARCHIVE_EVERY_MS } = this.#options;
    if (this.#archivedLsn === null || this.#deps.watermark() > this.#archivedLsn) {
      const { through } = await this.#deps.thread.call('archive', null, { signal: this.#stopping.signal });
      this.#archivedLsn = through;
    }
    this.#archivedAtMs = this.#deps.clock.nowMs();
    return archiveEveryMs;
  }

  async #snapshotIfDue(everyMs: number): Promise<number> {
    const { thread, clock } = this.#deps;
    const { signal } = this.#stopping;
    const newest = await thread.call('newest', null, { signal });
    if (newest !== null)
      this.#last = { snapshot: newest.id, atMs: newest.createdAtMs, lsn: newest.lsn, bytesStored: null };
    const dueAtMs = newest === null ? 0 : newest.createdAtMs + everyMs * DUE_SHARE;
    if (clock.nowMs() < dueAtMs) return this.#next(Math.min(everyMs, dueAtMs - clock.nowMs()));
    this.#running = 'snapshot';
    try {
      await this.create({}, { signal });
      const { keep } = this.#options;
      if (keep !== undefined) {
        this.#running = 'prune';
        await thread.call('prune', keep, { signal });
      }
    } finally {
      this.#running = null;
    }
    return this.#next(everyMs);
  }

  /** Half a tenth sooner or later, so that many nodes do not come at one time. */
  #next(ms: number): number {
    const pauseMs = ms * (0.95 + this.#deps.random.bytes(1)[0]! / 2_560);
    this.#nextAtMs = this.#deps.clock.nowMs() + pauseMs;
    return pauseMs;
  }

  #note({ snapshot, position, bytesStored }: BackupReport): void {
    if (snapshot === null || position === null) return;
    this.#last = { snapshot, atMs: this.#deps.clock.nowMs(), lsn: position.lsn, bytesStored };
    this.#archivedLsn = Math.max(this.#archivedLsn ?? 0, position.lsn);
    this.#error = null;
  }

  #pause(ms: number): Promise<void> {
    const { signal } = this.#stopping;
    return new Promise((resolve) => {
      const done = (): void => {
        clearTimeout(timer);
        signal.removeEventListener('abort', done);
        resolve();
      };
      const timer = setTimeout(done, ms).unref();
      signal.addEventListener('abort', done, { once: true });
      if (signal.aborted) done();
    });
  }
}

/** As the thread takes it: directories absolute, whoever's directory this process is in. */
export function backupUrl(to: string): string {
  return to.startsWith('s3:') ? to : pathToFileURL(directoryOf(to)).href;
}

/** Without what may be secret. */
export function urlForPeople(to: string): string {
  const url = backupUrl(to);
  return url.startsWith('s3:') ? url.replace(/\/\/[^/@]*@/, '//').replace(/[?#].*$/, '') : url;
}

/** A backup that lies in the directory is lost with it, and would be restored over. */
export function assertOutside(to: string, dir: string): void {
  if (to.startsWith('s3:')) return;
  const target = directoryOf(to);
  const inside = (path: string, of: string): boolean => path === of || path.startsWith(of + sep);
  if (!inside(realPath(target), realPath(resolve(dir)))) return;
  throw new NostosError(
    'INVALID_ARGUMENT',
    `${target} lies in the data directory ${dir}; a backup there is lost with it`,
    {
      details: { path: target, dir },
    },
  );
}

/** Of what is there of it. */
function realPath(path: string): string {
  if (lstatSync(path, { throwIfNoEntry: false }) !== undefined) return realpathSync(path);
  const parent = resolve(path, '..');
  return parent === path ? path : resolve(realPath(parent), path.slice(parent.length + (parent.endsWith(sep) ? 0 : 1)));
}
