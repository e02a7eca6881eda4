/**
 * The directory that a restore fills. Everything that comes is staged in `.nostos-restore/` first, a name that no
 * received file can have, and verified there; then the directory is changed by a written plan.
 *
 * - Until `plan.json` is durable, the directory is as it was; what a crash leaves in `.nostos-restore/` is swept by the
 *   next run. From then on there is only forward: `finishSwap` does what is left of the plan, as often as it is cut off.
 * - Each part of the plan is seen to be done or not from the names alone. A staged file is renamed into place only when
 *   the old file of its name has been set aside *durably*, so that no order in which names reach the disk loses one.
 * - Before a plan of an earlier run is carried out, every file of it is found, staged or in place, with its digest. A
 *   plan whose files are gone is refused and changes nothing.
 *
 * The disk is synchronous: an application that cannot wait for a sync runs its restore in a worker.
 */
import { Blake3Hasher } from '@napi-rs/blake-hash';
import { dirname, join } from 'node:path';
import * as v from 'valibot';
import type { Disk, DiskFile } from '../../base/disk.ts';
import { readIfExists, writeDurably } from '../../base/durable-file.ts';
import { NostosError } from '../../base/errors.ts';
import { readInput, wholeNumber } from '../../base/input-schema.ts';
import { NAME_BYTES_MAX, isLogFileName, nameProblem } from './file-name.ts';
import type { RestoredFile } from './types.ts';

export const STAGING = '.nostos-restore';
export const PLAN = 'plan.json';
const READ_BYTES = 256 * 1024;

const fileName = v.pipe(
  v.string(),
  v.check((name) => nameProblem(name, 'reference') === undefined, 'no file may have this name'),
);
const Plan = v.strictObject({
  format: v.literal(1),
  files: v.array(
    v.strictObject({
      name: fileName,
      staged: v.pipe(v.string(), v.regex(/^\d+\.tmp$/)),
      bytes: wholeNumber(),
      blake3: v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/)),
    }),
  ),
  setAside: v.array(v.strictObject({ from: fileName, to: fileName })),
  remove: v.array(fileName),
});
type Plan = v.InferOutput<typeof Plan>;

export interface SwapReport {
  readonly files: readonly RestoredFile[];
  readonly setAside: readonly { readonly from: string; readonly to: string }[];
  readonly removed: readonly string[];
}

/** Files on their way in: written, hashed and synced one after another, then swapped in together. */
export class StagedRestore {
  readonly #disk: Disk;
  readonly #dir: string;
  readonly #staging: string;
  readonly #diskReserveBytes: number;
  #committed = false;
  readonly #files: (RestoredFile & { readonly staged: string })[] = [];
  #open: { file: DiskFile; name: string; staged: string; written: number; hash: Blake3Hasher } | undefined;

  /** Sweeps what a crashed run has left. The directory is there and locked, and `finishSwap` was called. */
  static begin(disk: Disk, { dir, diskReserveBytes }: { dir: string; diskReserveBytes: number }): StagedRestore {
    const staging = join(dir, STAGING);
    if (disk.exists(join(staging, PLAN)))
      throw new NostosError('RESTORE_UNFINISHED', `${dir} has the plan of an earlier restore: finish that first`);
    disk.makeDirectory(staging);
    if (!disk.isDirectory(staging))
      throw new NostosError('FILE_EXISTS', `${staging} is not a directory; move it away, a restore needs the name`);
    sweep(disk, staging);
    return new StagedRestore(disk, dir, diskReserveBytes);
  }

  private constructor(disk: Disk, dir: string, diskReserveBytes: number) {
    this.#disk = disk;
    this.#dir = dir;
    this.#staging = join(dir, STAGING);
    this.#diskReserveBytes = diskReserveBytes;
  }

  get files(): readonly RestoredFile[] {
    return this.#files;
  }

  start(name: string, bytes: number): void {
    const freeBytes = this.#disk.freeBytes(this.#staging);
    if (bytes > freeBytes - this.#diskReserveBytes)
      throw new NostosError(
        'DISK_FULL',
        `the source announces ${bytes} bytes for ${JSON.stringify(name)}, and ${freeBytes} are free in ${this.#dir}, of which ${this.#diskReserveBytes} are kept; make room. Nothing was changed`,
        { details: { name, bytes, freeBytes, diskReserveBytes: this.#diskReserveBytes } },
      );
    if (this.#disk.isDirectory(join(this.#dir, name)))
      throw new NostosError(
        'FILE_EXISTS',
        `${join(this.#dir, name)} is a directory, and the source sends a file of that name; move it away. Nothing was changed`,
      );
    const staged = `${this.#files.length}.tmp`;
    const file = this.#disk.open(join(this.#staging, staged), 'create');
    this.#open = { file, name, staged, written: 0, hash: new Blake3Hasher() };
  }

  write(bytes: Uint8Array): void {
    const open = this.#open!;
    open.file.write(bytes, open.written);
    open.hash.update(bytes);
    open.written += bytes.length;
  }

  /** The file is whole and its checksum was right. */
  end(): RestoredFile {
    const { file, name, staged, written, hash } = this.#open!;
    file.sync();
    file.close();
    this.#open = undefined;
    const restored = { name, bytes: written, blake3: hash.digest('hex') };
    this.#files.push({ ...restored, staged });
    return restored;
  }

  /** Puts everything in place. When this throws, either nothing has changed or the plan is there to be finished. */
  swap(retain: boolean): SwapReport {
    this.#disk.syncDirectory(this.#staging);
    this.#disk.syncDirectory(this.#dir);
    const plan = this.#plan(retain);
    writeDurably(this.#disk, join(this.#staging, PLAN), Buffer.from(JSON.stringify(plan)));
    this.#committed = true;
    return carryOut(this.#disk, this.#dir, plan);
  }

  /** Gives up: removes what was staged. For a run that has failed, whose own error counts: throws nothing. */
  abandon(): void {
    if (this.#committed) return;
    try {
      this.#open?.file.close();
      this.#open = undefined;
      removeStaging(this.#disk, this.#dir);
    } catch {
      // The next run sweeps it.
    }
  }

  #plan(retain: boolean): Plan {
    // A name that is not UTF-8 is listed as another one, which is not there.
    const present = this.#disk.list(this.#dir).filter((name) => this.#disk.exists(join(this.#dir, name)));
    const incoming = new Set(this.#files.map((file) => file.name));
    const leftovers = present.filter(
      (name) =>
        isLogFileName(name) &&
        !incoming.has(name) &&
        nameProblem(name, 'reference') === undefined &&
        !this.#disk.isDirectory(join(this.#dir, name)),
    );
    const replaced = present.filter((name) => incoming.has(name));
    // The youngest first, so that what a cut leaves of the old log has no hole.
    const plan = { format: 1 as const, files: this.#files, remove: retain ? [] : leftovers.toReversed() };
    if (!retain) return { ...plan, setAside: [] };
    const taken = new Set([...present, ...incoming]);
    const setAside = [...leftovers, ...replaced].toReversed().map((from) => {
      const to = freeName(from, taken);
      taken.add(to);
      return { from, to };
    });
    return { ...plan, setAside };
  }
}

/** Ends what an earlier run has begun; undefined when there is nothing. The lock of the directory is held. */
export function finishSwap(disk: Disk, dir: string): SwapReport | undefined {
  const path = join(dir, STAGING, PLAN);
  const bytes = readIfExists(disk, path);
  if (bytes === undefined) return undefined;
  const plan = parsePlan(path, bytes);
  // What is read back here may still wait in memory for its sync.
  disk.syncDirectory(dirname(path));
  for (const file of plan.files) checkPresent(disk, dir, path, file);
  return carryOut(disk, dir, plan);
}

function carryOut(disk: Disk, dir: string, plan: Plan): SwapReport {
  try {
    swapByPlan(disk, dir, plan);
  } catch (cause) {
    throw new NostosError(
      'RESTORE_UNFINISHED',
      `the restore was cut off while it put files in place in ${dir}: ${(cause as Error).message}. All of them are there and verified; restore again, or call finishRestore, and it goes on`,
      { cause, details: { dir } },
    );
  }
  return {
    files: plan.files.map(({ name, bytes, blake3 }) => ({ name, bytes, blake3 })),
    setAside: plan.setAside,
    removed: plan.remove,
  };
}

function swapByPlan(disk: Disk, dir: string, plan: Plan): void {
  const staged = new Set(disk.list(join(dir, STAGING)));
  const present = new Set(disk.list(dir));
  const waiting = plan.files.filter((file) => staged.has(file.staged));
  const arrived = new Set(plan.files.filter((file) => !staged.has(file.staged)).map((file) => file.name));
  for (const { from, to } of plan.setAside)
    if (!arrived.has(from) && present.has(from) && !present.has(to)) disk.rename(join(dir, from), join(dir, to));
  disk.syncDirectory(dir);
  for (const file of waiting) disk.rename(join(dir, STAGING, file.staged), join(dir, file.name));
  for (const name of plan.remove) if (present.has(name)) disk.remove(join(dir, name));
  disk.syncDirectory(dir);
  removeStaging(disk, dir);
}

function removeStaging(disk: Disk, dir: string): void {
  const staging = join(dir, STAGING);
  sweep(disk, staging);
  try {
    disk.removeDirectory(staging);
    disk.syncDirectory(dir);
  } catch {
    // Without a plan in it, it means nothing; the next run uses it again.
  }
}

/** The plan goes first, and durably: a plan without its files would stop the next run. Files without a plan mean nothing. */
function sweep(disk: Disk, staging: string): void {
  if (disk.exists(join(staging, PLAN))) disk.remove(join(staging, PLAN));
  disk.syncDirectory(staging);
  for (const name of disk.list(staging)) disk.remove(join(staging, name));
}

function parsePlan(path: string, bytes: Uint8Array): Plan {
  try {
    const plan = readInput(Plan, JSON.parse(Buffer.from(bytes).toString('utf8')));
    if (plan.ok) return plan.value;
    throw new Error(plan.problem);
  } catch (cause) {
    throw new NostosError(
      'UNSUPPORTED_FORMAT',
      `${path} is the plan of a restore that was cut off, and it cannot be read; use the version that wrote it, or remove it and restore again`,
      { cause, details: { path } },
    );
  }
}

function checkPresent(disk: Disk, dir: string, planPath: string, file: Plan['files'][number]): void {
  const places = [join(dir, STAGING, file.staged), join(dir, file.name)];
  const there = places.find((place) => disk.exists(place));
  if (there !== undefined && digestOf(disk, there) === file.blake3) return;
  throw new NostosError(
    'RESTORE_UNFINISHED',
    `${planPath} says how to finish a restore that was cut off, but ${JSON.stringify(file.name)} of it is gone or changed; nothing was done. Put it back, or remove ${planPath} and restore again`,
    { details: { dir, planPath, name: file.name } },
  );
}

function digestOf(disk: Disk, path: string): string {
  const file = disk.open(path, 'read');
  try {
    const hash = new Blake3Hasher();
    const buffer = new Uint8Array(READ_BYTES);
    for (let at = 0, count = 0; (count = file.read(buffer, at)) > 0; at += count)
      hash.update(buffer.subarray(0, count));
    return hash.digest('hex');
  } finally {
    file.close();
  }
}

/** `<name>.bak`, or the first of `<name>.bak.1`, `<name>.bak.2` … that nobody has. */
function freeName(name: string, taken: ReadonlySet<string>): string {
  let free = `${name}.bak`;
  for (let number = 1; taken.has(free); number++) free = `${name}.bak.${number}`;
  if (Buffer.byteLength(free) > NAME_BYTES_MAX)
    throw new NostosError(
      'FILE_EXISTS',
      `${JSON.stringify(name)} cannot be set aside: ${JSON.stringify(free)} is longer than ${NAME_BYTES_MAX} bytes; move it away yourself. Nothing was changed`,
    );
  return free;
}
