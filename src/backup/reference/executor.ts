/**
 * Carries a plan out. Everything is staged in the data directory, beside what is there, and verified; then it is swapped in
 * by renames. A call that fails leaves what was there, one that is killed leaves the marker and a journal (`journal.ts`), and
 * the same call ends what it began. A restore holds the lock of the directory, which stays behind as the file `lock`.
 *
 * The disk is synchronous: an application that cannot wait for a sync runs this in a worker.
 */
import { dirname, join, resolve, sep } from 'node:path';
import { makeDurableDirectory } from '../../base/directory-tree.ts';
import { acquireDirectoryLock, type DirectoryLock } from '../../base/directory-lock.ts';
import { systemDisk, type Disk } from '../../base/disk.ts';
import { isNostosError } from '../../base/errors.ts';
import { realPathOf } from '../../base/real-path.ts';
import type { BackupBackend } from './backend.ts';
import { destinationsOf } from './destinations.ts';
import { RestoreExecutorError } from './errors.ts';
import { WORK, loadJournal, type Journal, type Run } from './journal.ts';
import { RESTORE_MARKER } from './marker.ts';
import { RestoreOutcome, digestKind } from './outcome.ts';
import { BACKUP_REFERENCE_LIMITS, RestoreMode, TenantId, type CallOptions, type RestorePlan } from './types.ts';
import { contentBytesOf, readItem, type ContentDigest } from './verify.ts';
import { WorkDirectory, entriesOf, findRun, inProgress } from './work-directory.ts';

export interface RestoreExecutorOptions {
  /** After `wipe_and_restore` what was there is in `.pre-restore`; otherwise it is removed. */
  readonly keepReplaced?: boolean;
  readonly restoreLockTimeoutMs?: number;
  readonly diskReserveBytes?: number;
}

export interface RestoreExecutorDeps {
  readonly disk: Disk;
  readonly lock: (dir: string, timeoutMs: number, signal?: AbortSignal) => Promise<Pick<DirectoryLock, 'release'>>;
}

const SYSTEM: RestoreExecutorDeps = {
  disk: systemDisk,
  lock: (dir, timeoutMs, signal) =>
    acquireDirectoryLock(
      { dir, timeoutMs, holder: { command: 'restore from backup', version: '' } },
      signal === undefined ? {} : { signal },
    ),
};

export class RestoreExecutor {
  readonly #backend: BackupBackend;
  readonly #dataDir: string;
  readonly #options: RestoreExecutorOptions;
  readonly #deps: RestoreExecutorDeps;

  constructor(
    backend: BackupBackend,
    dataDir: string,
    options: RestoreExecutorOptions = {},
    deps: Partial<RestoreExecutorDeps> = {},
  ) {
    this.#backend = backend;
    this.#dataDir = dataDir;
    this.#options = options;
    this.#deps = { ...SYSTEM, ...deps };
  }

  async execute(plan: RestorePlan, mode: RestoreMode, call: CallOptions = {}): Promise<RestoreOutcome> {
    try {
      const run = runOf(plan, mode);
      const staged = await this.#execute(plan, run, call);
      const items = plan.items.map(({ kind, contentKey }, i) => {
        const { bytes } = staged[i] as ContentDigest;
        const path = join(this.#dataDir, run.tenant, (run.items[i] as Run['items'][number]).path);
        return [{ kind: digestKind(kind), contentKey, bytes }, path] as const;
      });
      return new RestoreOutcome({ tenantId: plan.tenantId, snapshotId: plan.snapshotId, mode, items });
    } catch (error) {
      throw error === call.signal?.reason ? error : RestoreExecutorError.from(error);
    }
  }

  /**
   * Gives up a restore that was cut off: the directory is what it was before. False when there is none; refused when it is
   * in place already and only has to be finished.
   */
  async abandon(options: Pick<CallOptions, 'signal'> = {}): Promise<boolean> {
    const { disk } = this.#deps;
    const dir = resolve(this.#dataDir);
    try {
      if (!disk.exists(dir)) return false;
      const lock = await this.#lock(dir, options.signal);
      try {
        const journal = loadJournal(disk, dir);
        const marker = join(dir, RESTORE_MARKER);
        if (journal === undefined && disk.exists(marker)) throw inProgress(marker);
        if (journal === undefined) return false;
        const work = new WorkDirectory(disk, dir, journal);
        if (work.state === 'swapped' || (work.state === 'swapping' && !work.isWaiting))
          throw inProgress(marker, journal);
        if (work.state === 'swapping') work.undo();
        work.dispose();
        return true;
      } finally {
        lock.release();
      }
    } catch (error) {
      throw RestoreExecutorError.from(error);
    }
  }

  async #execute(plan: RestorePlan, run: Run, call: CallOptions): Promise<readonly ContentDigest[]> {
    const { disk } = this.#deps;
    const dir = resolve(this.#dataDir);
    call.signal?.throwIfAborted();
    this.#checkDirectory(dir, run);
    if (this.#lookAt(dir, run) === undefined) await this.#checkSpace(dir, plan);
    makeDurableDirectory(disk, dir);
    const lock = await this.#lock(dir, call.signal);
    try {
      const journal = this.#lookAt(dir, run);
      if (journal !== undefined) call.onProgress?.({ kind: 'resuming' });
      const work = new WorkDirectory(disk, dir, journal ?? { state: 'staging', run, staged: [], setAside: [] });
      if (work.state !== 'swapped') await this.#bringIn(work, { plan, isNew: journal === undefined }, call);
      const keepReplaced = this.#options.keepReplaced === true && run.mode === RestoreMode.WipeAndRestore;
      try {
        work.dispose({ keepReplaced });
      } catch (error) {
        throw unfinished(dir, 'it is in place, but not all that it needed is cleared away', error);
      }
      return work.staged;
    } finally {
      lock.release();
    }
  }

  async #bringIn(
    work: WorkDirectory,
    { plan, isNew }: { plan: RestorePlan; isNew: boolean },
    call: CallOptions,
  ): Promise<void> {
    try {
      if (isNew) work.begin();
      if (work.state === 'staging' || work.isWaiting) await work.recheck();
      if (work.state === 'staging') {
        while (work.staged.length < plan.items.length) await this.#stageNext(work, plan, call);
        call.signal?.throwIfAborted();
        call.onProgress?.({ kind: 'swapping' });
        work.commit();
      }
      work.swap();
    } catch (error) {
      if (work.giveUp()) throw error;
      throw unfinished(resolve(this.#dataDir), 'it could neither go on nor be undone', error);
    }
  }

  async #stageNext(work: WorkDirectory, { items }: RestorePlan, call: CallOptions): Promise<void> {
    const file = work.open();
    try {
      const write = (chunk: Uint8Array, offset: number): void => file.write(chunk, offset);
      const digest = await readItem(
        this.#backend,
        { items, number: work.staged.length, step: 'staging' },
        { ...call, write },
      );
      file.sync();
      work.add(digest);
    } finally {
      file.close();
    }
  }

  /** What the reference refuses, in its order; otherwise the journal of this run, where it was cut off. */
  #lookAt(dir: string, run: Run): Journal | undefined {
    const { disk } = this.#deps;
    const journal = findRun(disk, dir, run);
    if (journal !== undefined) return journal;
    if (run.mode === RestoreMode.NewCluster && entriesOf(disk, dir).length > 0)
      throw new RestoreExecutorError('DataDirNotEmpty', `${dir} is not empty, and a new cluster needs it so`, {
        path: dir,
      });
    const path = join(dir, run.tenant);
    if (run.mode !== RestoreMode.SingleTenant || !disk.exists(path)) return undefined;
    if (!disk.isDirectory(path) || disk.list(path).length > 0)
      throw new RestoreExecutorError(
        'TenantPathOccupied',
        `${path} is not an empty directory, and a tenant is restored only where it is not; move it away`,
        { tenantId: BigInt(run.tenant.slice('tenant_'.length)), path },
      );
    return undefined;
  }

  /** What the reference does not look at, and what costs more than the data directory. */
  #checkDirectory(dir: string, run: Run): void {
    const { disk } = this.#deps;
    const refuse = (why: string): never => {
      throw new RestoreExecutorError('DirectoryRefused', `nothing is restored into ${dir}: ${why}`, { path: dir });
    };
    if (dir === dirname(dir)) refuse('it is the root of a file system');
    if (disk.exists(dir) && !disk.isDirectory(dir)) refuse('it is a symbolic link, or no directory');
    const work = join(dir, WORK);
    if (disk.exists(work) && !disk.isDirectory(work)) refuse(`${WORK} in it is not a directory; move it away`);
    const root = this.#backend.root?.();
    if (root !== undefined) {
      const [backend, data] = [realPathOf(root), realPathOf(dir)];
      if (isWithin(backend, data)) refuse(`the backups themselves lie in it, in ${root}`);
      if (run.mode === RestoreMode.WipeAndRestore && isWithin(data, backend))
        refuse(`it lies among the backups in ${root}, and is to be wiped`);
    }
    if (run.mode !== RestoreMode.WipeAndRestore || !disk.exists(dir)) return;
    const [mounted] = disk.mountsIn(dir);
    if (mounted !== undefined) refuse(`${mounted} in it is a mount, which cannot be wiped; unmount it`);
  }

  async #checkSpace(dir: string, { items }: RestorePlan): Promise<void> {
    const { disk } = this.#deps;
    const { diskReserveBytes = BACKUP_REFERENCE_LIMITS.diskReserveBytes } = this.#options;
    let bytes = 0;
    for (const { contentKey } of items) bytes += (await contentBytesOf(this.#backend, contentKey)) ?? 0;
    let there = dir;
    while (!disk.exists(there)) there = dirname(there);
    const freeBytes = disk.freeBytes(there);
    if (bytes > freeBytes - diskReserveBytes)
      throw new RestoreExecutorError(
        'InsufficientSpace',
        `the snapshot has ${bytes} bytes, and ${freeBytes} are free in ${there}, of which ${diskReserveBytes} are kept; make room. Nothing was changed`,
        { path: dir, bytes, freeBytes },
      );
  }

  async #lock(dir: string, signal: AbortSignal | undefined): Promise<Pick<DirectoryLock, 'release'>> {
    const { disk, lock } = this.#deps;
    const { restoreLockTimeoutMs = BACKUP_REFERENCE_LIMITS.restoreLockTimeoutMs } = this.#options;
    try {
      return await lock(dir, restoreLockTimeoutMs, signal);
    } catch (error) {
      if (!isNostosError(error, 'DIRECTORY_LOCKED')) throw error;
      const marker = join(dir, RESTORE_MARKER);
      if (!disk.exists(marker)) throw new RestoreExecutorError('DirectoryInUse', error.message, { path: dir }, error);
      throw new RestoreExecutorError(
        'RestoreInProgress',
        `${marker} is there, and whoever restores is still at it: ${error.message}`,
        { path: marker },
        error,
      );
    }
  }
}

function runOf({ tenantId, snapshotId, items }: RestorePlan, mode: RestoreMode): Run {
  if (!Object.values(RestoreMode).includes(mode))
    throw new RestoreExecutorError('InvalidPlan', `there is no mode ${JSON.stringify(mode)}`);
  if (items.length === 0) throw new RestoreExecutorError('InvalidPlan', 'the plan has no items');
  const paths = destinationsOf(items);
  return {
    tenant: `tenant_${TenantId(tenantId)}`,
    snapshotId,
    mode,
    items: items.map(({ contentKey, expectedChecksum: checksum }, i) => ({
      contentKey,
      checksum,
      path: paths[i] as string,
    })),
  };
}

function isWithin(path: string, dir: string): boolean {
  return path === dir || path.startsWith(dir + sep);
}

function unfinished(dir: string, why: string, cause: unknown): RestoreExecutorError {
  const reason = cause instanceof Error ? cause.message : String(cause);
  return new RestoreExecutorError(
    'Unfinished',
    `the restore into ${dir} has not ended: ${why} (${reason}); nothing is lost, execute the same again`,
    { path: dir },
    cause,
  );
}
