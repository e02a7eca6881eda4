/**
 * A data directory while a restore runs in it, under its lock. Until the journal says `swapping`, nothing but the marker and
 * `.backup-restore` is new there. Old entries are set aside durably before the new tenant gets its name, so whatever order
 * names reach the disk in, the old state or the new one can be put together again. The journal table says what comes next.
 */
import { Blake3Hasher } from '@napi-rs/blake-hash';
import { dirname, join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { filesBelow, removeTree } from '../../base/directory-tree.ts';
import type { Disk, DiskFile } from '../../base/disk.ts';
import { NostosError } from '../../base/errors.ts';
import { yieldToEventLoop } from '../../base/event-loop.ts';
import { RestoreExecutorError } from './errors.ts';
import { WORK, loadJournal, saveJournal, type Journal, type Run } from './journal.ts';
import { RESTORE_MARKER } from './marker.ts';
import { BACKUP_REFERENCE_LIMITS } from './types.ts';
import type { ContentDigest } from './verify.ts';

/** Where a wipe that keeps what it replaces leaves it. */
export const PRE_RESTORE = '.pre-restore';
const LOCK_FILES = /^lock(?:-journal)?$/;

/** What is in a directory, apart from what restores themselves need there. */
export function entriesOf(disk: Disk, dir: string): string[] {
  if (!disk.exists(dir)) return [];
  return disk.list(dir).filter((name) => name !== WORK && name !== RESTORE_MARKER && !LOCK_FILES.test(name));
}

/**
 * The journal of the run that was cut off, when it is this one; undefined when the directory is free for it, as far as other
 * restores are concerned.
 */
export function findRun(disk: Disk, dir: string, run: Run): Journal | undefined {
  const marker = join(dir, RESTORE_MARKER);
  const isMarked = disk.exists(marker);
  const journal = loadJournal(disk, dir);
  // Without a marker `staging` was not begun, or was given up, and `swapped` is at its end.
  if (journal !== undefined && isDeepStrictEqual(journal.run, run) && (isMarked || journal.state !== 'staging'))
    return journal;
  if (isMarked || journal?.state === 'swapping') throw inProgress(marker, journal);
  return undefined;
}

export function inProgress(path: string, journal?: Journal): RestoreExecutorError {
  const whose =
    journal === undefined
      ? 'one that left no journal, so it cannot be taken up: see what it did, and remove the marker'
      : `of snapshot ${JSON.stringify(journal.run.snapshotId)} into ${journal.run.tenant}, ${journal.run.mode}: execute the same again to finish it, or call abandon()`;
  return new RestoreExecutorError(
    'RestoreInProgress',
    `${path} is there: a restore has begun and not ended, ${whose}`,
    {
      path,
    },
  );
}

export class WorkDirectory {
  readonly #disk: Disk;
  readonly #dir: string;
  #journal: Journal;

  constructor(disk: Disk, dir: string, journal: Journal) {
    this.#disk = disk;
    this.#dir = dir;
    this.#journal = journal;
  }

  /** The journal, and then the marker: a marker without one would be of a run that nobody can take up. */
  begin(): void {
    const disk = this.#disk;
    removeTree(disk, this.#work);
    disk.makeDirectory(this.#work);
    this.#save({});
    disk.syncDirectory(this.#dir);
    const marker = disk.open(join(this.#dir, RESTORE_MARKER), 'create');
    try {
      marker.write(Buffer.from(this.#journal.run.snapshotId), 0);
      marker.sync();
    } finally {
      marker.close();
    }
    disk.syncDirectory(this.#dir);
  }

  get state(): Journal['state'] {
    return this.#journal.state;
  }

  get staged(): readonly ContentDigest[] {
    return this.#journal.staged;
  }

  /** The new tenant does not have its name yet. */
  get isWaiting(): boolean {
    return this.#disk.exists(this.#newTenant);
  }

  /** The file that the next item is written to. */
  open(): DiskFile {
    const path = this.#pathOf(this.staged.length);
    this.#disk.makeDirectory(dirname(path));
    return this.#disk.open(path, 'create');
  }

  /** That item is whole and synced. */
  add(item: ContentDigest): void {
    this.#save({ staged: [...this.#journal.staged, item] });
  }

  /** Staged files of a run that was cut off: from the first that is not what was staged, they are fetched again. */
  async recheck(): Promise<void> {
    const { staged } = this.#journal;
    const isWhole = async ({ bytes, blake3 }: ContentDigest, item: number): Promise<boolean> => {
      const path = this.#pathOf(item);
      if (!this.#disk.exists(path) || this.#disk.size(path) !== bytes) return false;
      return (await digestOf(this.#disk, path)) === blake3;
    };
    let whole = 0;
    while (whole < staged.length && (await isWhole(staged[whole] as ContentDigest, whole))) whole += 1;
    if (whole === staged.length) return;
    if (this.state === 'swapping') this.undo();
    this.#save({ staged: staged.slice(0, whole) });
  }

  /** Everything is staged. From here on the next run goes forward too. */
  commit(): void {
    const { run } = this.#journal;
    const directories = new Set(['.', ...[...filesBelow(this.#disk, this.#newTenant)].map(dirname)]);
    for (const path of [...directories].toSorted().toReversed()) this.#disk.syncDirectory(join(this.#newTenant, path));
    this.#disk.syncDirectory(dirname(this.#newTenant));
    // What comes into this one is kept only if its own name was on the disk before.
    this.#disk.makeDirectory(join(this.#work, 'old'));
    this.#disk.syncDirectory(this.#work);
    const names = entriesOf(this.#disk, this.#dir);
    const setAside = run.mode === 'wipe_and_restore' ? names : names.filter((name) => name === run.tenant);
    this.#save({ state: 'swapping', setAside });
  }

  swap(): void {
    const disk = this.#disk;
    const { run, setAside } = this.#journal;
    if (this.isWaiting) {
      const [there, old] = [new Set(disk.list(this.#dir)), join(this.#work, 'old')];
      for (const name of setAside) if (there.has(name)) this.#move(name, this.#dir, old);
      disk.syncDirectory(old);
      disk.syncDirectory(this.#dir);
      disk.rename(this.#newTenant, join(this.#dir, run.tenant));
    }
    disk.syncDirectory(this.#dir);
    disk.syncDirectory(dirname(this.#newTenant));
    this.#save({ state: 'swapped' });
  }

  /** Back to `staging`, with everything in the directory as it was. Only while the new tenant is waiting. */
  undo(): void {
    const disk = this.#disk;
    const old = join(this.#work, 'old');
    // A rename and its way back must not reach the disk the other way round.
    disk.syncDirectory(old);
    for (const name of disk.list(old)) this.#move(name, old, this.#dir);
    disk.syncDirectory(this.#dir);
    disk.syncDirectory(old);
    this.#save({ state: 'staging', setAside: [] });
  }

  /** For a run that has failed, whose own error counts: whether the directory is as it was before. Throws nothing. */
  giveUp(): boolean {
    try {
      // When the journal could not be written, it is what the disk has that counts.
      const found = loadJournal(this.#disk, this.#dir);
      if (found !== undefined && found.state !== 'staging') {
        if (!this.isWaiting) return false;
        this.undo();
      }
      this.dispose();
      return true;
    } catch {
      return this.state === 'staging';
    }
  }

  /** The end, of a restore that is done or given up. The journal goes last: until then the same call ends here again. */
  dispose({ keepReplaced = false } = {}): void {
    const disk = this.#disk;
    const [marker, old] = [join(this.#dir, RESTORE_MARKER), join(this.#work, 'old')];
    removeTree(disk, join(this.#work, 'new'));
    if (keepReplaced && disk.exists(old) && disk.list(old).length > 0) disk.rename(old, join(this.#dir, PRE_RESTORE));
    removeTree(disk, old);
    if (disk.exists(marker)) disk.remove(marker);
    disk.syncDirectory(this.#dir);
    removeTree(disk, this.#work);
    disk.syncDirectory(this.#dir);
  }

  get #work(): string {
    return join(this.#dir, WORK);
  }

  get #newTenant(): string {
    return join(this.#work, 'new', this.#journal.run.tenant);
  }

  #pathOf(item: number): string {
    const { path } = this.#journal.run.items[item] as Run['items'][number];
    return join(this.#newTenant, path);
  }

  /** The lock keeps other restores and nodes away, and nobody else. */
  #move(name: string, from: string, to: string): void {
    const path = join(to, name);
    if (this.#disk.exists(path))
      throw new NostosError('FILE_EXISTS', `${path} was made by somebody while a restore was under way; move it away`, {
        details: { path },
      });
    this.#disk.rename(join(from, name), path);
  }

  #save(change: Partial<Journal>): void {
    this.#journal = { ...this.#journal, ...change };
    saveJournal(this.#disk, this.#dir, this.#journal);
  }
}

async function digestOf(disk: Disk, path: string): Promise<string> {
  const file = disk.open(path, 'read');
  try {
    const hash = new Blake3Hasher();
    const buffer = new Uint8Array(BACKUP_REFERENCE_LIMITS.readBytes);
    for (let at = 0, count = 0; (count = file.read(buffer, at)) > 0; at += count) {
      hash.update(buffer.subarray(0, count));
      await yieldToEventLoop();
    }
    return hash.digest('hex');
  } finally {
    file.close();
  }
}
