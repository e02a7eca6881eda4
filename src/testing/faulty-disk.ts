/**
 * A disk in memory with a page cache in front of it, which loses power, fills up and fails on command.
 *
 * - What was written reads back at once, and is on the disk only after a sync that returned. A power cut keeps any part
 *   of the rest: nothing, everything, a prefix, some writes, or some sectors of 512 bytes.
 * - Names (creations, renames, removals, links) are durable after `syncDirectory` only, and vanish one by one. Those of
 *   directories too with `{ directories: 'synced' }`; otherwise making one is durable at once.
 * - A failed sync marks what was dirty as clean, as Linux does: it still reads back, and no later sync writes it.
 * - Every step that changes something is counted and traced, so that a test can put a fault at each of them.
 */
import { posix } from 'node:path';
import type { Disk, DiskFile, OpenMode } from '../base/disk.ts';
import { diskError } from '../base/disk.ts';
import type { SeededRandom } from '../base/random.ts';

const SECTOR_BYTES = 512;

export type StepKind =
  | 'create'
  | 'write'
  | 'truncate'
  | 'sync'
  | 'sync-directory'
  | 'rename'
  | 'remove'
  | 'link'
  | 'make-directory'
  | 'remove-directory';

export interface Step {
  readonly number: number;
  readonly kind: StepKind;
  readonly path: string;
}

export interface InjectedFault {
  /** The step at which it strikes, as the trace of a run without faults counts them. */
  readonly atStep: number;
  /** `power`: this step may happen in part, and everything after it fails until `crash`. */
  readonly kind: 'power' | 'ENOSPC' | 'EIO';
  /** How many further steps that can fail in this way do fail; 0 by default. */
  readonly repeat?: number;
}

/** Thrown by everything after a power cut; not a `NostosError`, since no program survives to see it. */
export class PowerCut extends Error {
  override readonly name = 'PowerCut';
}

type Pending =
  | { readonly kind: 'write'; readonly offset: number; readonly bytes: Uint8Array }
  | { readonly kind: 'truncate'; readonly size: number };

class Inode {
  cached = new Uint8Array(0);
  durable = new Uint8Array(0);
  pending: Pending[] = [];

  sync(): void {
    for (const op of this.pending) this.durable = applyTo(this.durable, op);
    this.pending = [];
  }
}

class Directory {
  cached = new Map<string, Entry>();
  durable = new Map<string, Entry>();
}

type Entry = Inode | Directory;

/** A change of names; several that belong together, as in a rename, happen together. Durable once `dir` is synced. */
interface NameChange {
  readonly dir: Directory;
  readonly set: readonly (readonly [dir: Directory, name: string, entry: Entry | undefined])[];
}

export interface FaultyDiskOptions {
  /** `synced`: a directory that was made is there after a power cut only if its parent was synced since. */
  readonly directories?: 'durable' | 'synced';
}

const CAN_FAIL: Readonly<Record<'ENOSPC' | 'EIO', readonly StepKind[]>> = {
  ENOSPC: ['create', 'write', 'rename', 'link', 'make-directory'],
  EIO: ['create', 'write', 'truncate', 'sync', 'sync-directory', 'rename', 'remove', 'link', 'remove-directory'],
};

export class FaultyDisk implements Disk {
  /** What `freeBytes` answers. */
  free = Number.MAX_SAFE_INTEGER;
  /** Paths where something is mounted: they cannot be renamed. */
  mounts: readonly string[] = [];
  readonly #options: FaultyDiskOptions;
  #root = new Directory();
  #changes: NameChange[] = [];
  #trace: Step[] = [];
  #fault: InjectedFault | undefined;
  #repeats = 0;
  #off = false;
  #fired: Step[] = [];
  #readsLeft = Infinity;
  #openFiles = 0;

  constructor(options: FaultyDiskOptions = {}) {
    this.#options = options;
  }

  /** The steps so far; those that failed included. */
  get trace(): readonly Step[] {
    return this.#trace;
  }

  /** Where injected faults struck. */
  get fired(): readonly Step[] {
    return this.#fired;
  }

  /** Files that were opened and not closed. */
  get openFiles(): number {
    return this.#openFiles;
  }

  /** After so many reads that succeed, one fails. */
  failRead(after: number): void {
    this.#readsLeft = after;
  }

  get readFailed(): boolean {
    return this.#readsLeft < 0;
  }

  #reading(path: string): void {
    if (this.#readsLeft < 0) return;
    this.#readsLeft -= 1;
    if (this.#readsLeft < 0) throw this.#errno('read', path, 'EIO');
  }

  inject(fault: InjectedFault | undefined): void {
    this.#fault = fault;
    this.#repeats = fault?.repeat ?? 0;
  }

  open(path: string, mode: OpenMode): DiskFile {
    this.#powered();
    const known = this.#find(path);
    if (known instanceof Directory) throw this.#errno('open', path, 'EISDIR');
    let inode = known;
    if (mode === 'create') {
      const [dir, name] = this.#parent('open', path);
      this.#step('create', path);
      if (inode !== undefined) truncateTo(inode, 0);
      else this.#change({ dir, set: [[dir, name, (inode = new Inode())]] });
    } else if (inode === undefined) throw this.#errno('open', path, 'ENOENT');
    this.#openFiles += 1;
    return new FaultyFile(path, inode, {
      reading: () => this.#reading(path),
      powered: () => this.#powered(),
      step: (kind, partly) => this.#step(kind, path, partly),
      closed: () => (this.#openFiles -= 1),
      errno: (operation, code) => this.#errno(operation, path, code),
    });
  }

  list(dir: string): string[] {
    this.#powered();
    return [...this.#directory('list', dir).cached.keys()].sort();
  }

  exists(path: string): boolean {
    this.#powered();
    return this.#find(path) !== undefined;
  }

  isDirectory(path: string): boolean {
    this.#powered();
    return this.#find(path) instanceof Directory;
  }

  size(path: string): number {
    this.#powered();
    return this.#inode('stat', path).cached.length;
  }

  freeBytes(path: string): number {
    this.#powered();
    this.#directory('stat', path);
    return this.free;
  }

  mountsIn(dir: string): string[] {
    this.#powered();
    const above = `${posix.join(dir)}/`;
    return this.mounts.filter((path) => path.startsWith(above)).map((path) => partsOf(path.slice(above.length))[0]!);
  }

  rename(from: string, to: string): void {
    this.#powered();
    if (this.mounts.includes(from)) throw this.#errno('rename', from, 'EBUSY');
    const entry = this.#find(from);
    if (entry === undefined) throw this.#errno('rename', from, 'ENOENT');
    const [oldDir, oldName] = this.#parent('rename', from);
    const [dir, name] = this.#parent('rename', to);
    const taken = dir.cached.get(name);
    if (taken !== undefined && (entry instanceof Directory || taken instanceof Directory))
      throw this.#errno('rename', from, 'ENOTEMPTY');
    this.#step('rename', from);
    this.#change({
      dir,
      set: [
        [oldDir, oldName, undefined],
        [dir, name, entry],
      ],
    });
  }

  remove(path: string): void {
    this.#inode('remove', path);
    this.#step('remove', path);
    this.#forget('remove', path);
  }

  removeDirectory(path: string): void {
    this.#powered();
    if (this.#directory('remove', path).cached.size > 0) throw this.#errno('remove', path, 'ENOTEMPTY');
    this.#step('remove-directory', path);
    this.#forget('remove', path);
  }

  makeDirectory(path: string): void {
    this.#powered();
    if (this.#find(path) instanceof Directory) return;
    this.#step('make-directory', path);
    let dir = this.#root;
    for (const name of partsOf(path)) {
      let next = dir.cached.get(name);
      if (next instanceof Inode) throw this.#errno('create the directory', path, 'ENOTDIR');
      if (next === undefined) {
        const change: NameChange = { dir, set: [[dir, name, (next = new Directory())]] };
        this.#change(change);
        if (this.#options.directories !== 'synced') this.#settle((one) => one === change);
      }
      dir = next;
    }
  }

  syncDirectory(path: string): void {
    this.#powered();
    const dir = this.#directory('sync', path);
    this.#step('sync-directory', path);
    this.#settle((change) => change.dir === dir);
  }

  link(from: string, to: string): void {
    const inode = this.#inode('link', from);
    if (this.#find(to) !== undefined) throw this.#errno('link', to, 'EEXIST');
    const [dir, name] = this.#parent('link', to);
    this.#step('link', to);
    this.#change({ dir, set: [[dir, name, inode]] });
  }

  /** The content of a file as it reads now. */
  bytes(path: string): Uint8Array {
    return this.#inode('read', path).cached.slice();
  }

  /** Damage that no sync undoes: on the disk and in the cache. */
  overwrite(path: string, change: (bytes: Uint8Array) => Uint8Array): void {
    const inode = this.#inode('write', path);
    inode.sync();
    inode.durable = Uint8Array.from(change(inode.durable.slice()));
    inode.cached = inode.durable.slice();
  }

  flip(path: string, offset: number, bit: number): void {
    this.overwrite(path, (bytes) => {
      bytes[offset] = (bytes[offset] as number) ^ (1 << bit);
      return bytes;
    });
  }

  /** A copy as it is now, cache and all, without faults. */
  clone(): FaultyDisk {
    const copy = new FaultyDisk(this.#options);
    copy.free = this.free;
    copy.mounts = this.mounts;
    const twins = new Map<Entry, Entry>();
    const twin = <E extends Entry>(entry: E): E => {
      const known = twins.get(entry);
      if (known !== undefined) return known as E;
      const made = entry instanceof Inode ? new Inode() : new Directory();
      twins.set(entry, made);
      if (entry instanceof Inode && made instanceof Inode) {
        made.cached = entry.cached.slice();
        made.durable = entry.durable.slice();
        made.pending = [...entry.pending];
      } else if (entry instanceof Directory && made instanceof Directory) {
        for (const [name, child] of entry.cached) made.cached.set(name, twin(child));
        for (const [name, child] of entry.durable) made.durable.set(name, twin(child));
      }
      return made as E;
    };
    copy.#root = twin(this.#root);
    copy.#changes = this.#changes.map(({ dir, set }) => ({
      dir: twin(dir),
      set: set.map(([into, name, entry]) => [twin(into), name, entry && twin(entry)] as const),
    }));
    return copy;
  }

  /** What is on the disk after the power went and came back: everything synced, and some of the rest. */
  crash(random: SeededRandom): FaultyDisk {
    const after = this.clone();
    for (const change of survivors(after.#changes, random)) applyNames('durable', change);
    after.#changes = [];
    const seen = new Set<Entry>();
    const settle = (entry: Entry): void => {
      if (seen.has(entry)) return;
      seen.add(entry);
      if (entry instanceof Directory) {
        entry.cached = new Map(entry.durable);
        for (const child of entry.durable.values()) settle(child);
        return;
      }
      entry.durable = survivingContent(entry, random);
      entry.cached = entry.durable.slice();
      entry.pending = [];
    };
    settle(after.#root);
    return after;
  }

  #find(path: string): Entry | undefined {
    let entry: Entry | undefined = this.#root;
    for (const name of partsOf(path)) entry = entry instanceof Directory ? entry.cached.get(name) : undefined;
    return entry;
  }

  #inode(operation: string, path: string): Inode {
    this.#powered();
    const entry = this.#find(path);
    if (entry instanceof Inode) return entry;
    throw this.#errno(operation, path, entry === undefined ? 'ENOENT' : 'EISDIR');
  }

  #directory(operation: string, path: string): Directory {
    const entry = this.#find(path);
    if (entry instanceof Directory) return entry;
    throw this.#errno(operation, path, entry === undefined ? 'ENOENT' : 'ENOTDIR');
  }

  #parent(operation: string, path: string): [dir: Directory, name: string] {
    return [this.#directory(operation, posix.dirname(path)), posix.basename(path)];
  }

  #forget(operation: string, path: string): void {
    const [dir, name] = this.#parent(operation, path);
    this.#change({ dir, set: [[dir, name, undefined]] });
  }

  #change(change: NameChange): void {
    applyNames('cached', change);
    this.#changes.push(change);
  }

  #settle(which: (change: NameChange) => boolean): void {
    for (const change of this.#changes) if (which(change)) applyNames('durable', change);
    this.#changes = this.#changes.filter((change) => !which(change));
  }

  #powered(): void {
    if (this.#off) throw new PowerCut('the power is off');
  }

  /** Counts a step and lets a fault strike; `partly` does what the step has done by then. */
  #step(kind: StepKind, path: string, partly?: (fault: InjectedFault) => void): void {
    this.#powered();
    const step = { number: this.#trace.length, kind, path };
    this.#trace.push(step);
    const fault = this.#fault;
    if (fault === undefined || step.number < fault.atStep) return;
    if (fault.kind !== 'power' && !CAN_FAIL[fault.kind].includes(kind)) return;
    this.#fired.push(step);
    partly?.(fault);
    if (fault.kind === 'power') {
      this.#off = true;
      throw new PowerCut(`the power went at step ${step.number}, ${kind} ${path}`);
    }
    if (this.#repeats === 0) this.#fault = undefined;
    else this.#repeats -= 1;
    throw this.#errno(kind.startsWith('sync') ? 'sync' : kind, path, fault.kind);
  }

  #errno(operation: string, path: string, code: string): Error {
    return diskError(operation, path, Object.assign(new Error(code), { code }));
  }
}

interface FileHost {
  /** Throws where reads are to fail now. */
  reading(): void;
  powered(): void;
  step(kind: StepKind, partly?: (fault: InjectedFault) => void): void;
  closed(): void;
  errno(operation: string, code: string): Error;
}

class FaultyFile implements DiskFile {
  readonly path: string;
  readonly #inode: Inode;
  readonly #host: FileHost;
  #closed = false;

  constructor(path: string, inode: Inode, host: FileHost) {
    this.path = path;
    this.#inode = inode;
    this.#host = host;
  }

  read(target: Uint8Array, offsetInFile: number): number {
    this.#ready('read');
    this.#host.reading();
    const part = this.#inode.cached.subarray(offsetInFile, offsetInFile + target.length);
    target.set(part);
    return part.length;
  }

  write(bytes: Uint8Array, offsetInFile: number): void {
    this.#ready('write');
    const put = (part: Uint8Array): void => {
      const op: Pending = { kind: 'write', offset: offsetInFile, bytes: new Uint8Array(part) };
      this.#inode.cached = applyTo(this.#inode.cached, op);
      this.#inode.pending.push(op);
    };
    this.#host.step('write', (fault) => put(fault.kind === 'power' ? bytes : bytes.subarray(0, bytes.length >>> 1)));
    put(bytes);
  }

  dataSync(): void {
    this.sync();
  }

  sync(): void {
    this.#ready('sync');
    this.#host.step('sync', (fault) => {
      if (fault.kind !== 'power') this.#inode.pending = [];
    });
    this.#inode.sync();
  }

  truncate(sizeBytes: number): void {
    this.#ready('truncate');
    this.#host.step('truncate');
    truncateTo(this.#inode, sizeBytes);
  }

  size(): number {
    this.#ready('stat');
    return this.#inode.cached.length;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#host.closed();
  }

  #ready(operation: string): void {
    this.#host.powered();
    if (this.#closed) throw this.#host.errno(operation, 'EBADF');
  }
}

function truncateTo(inode: Inode, size: number): void {
  const op: Pending = { kind: 'truncate', size };
  inode.cached = applyTo(inode.cached, op);
  inode.pending.push(op);
}

function applyTo(content: Uint8Array<ArrayBuffer>, op: Pending): Uint8Array<ArrayBuffer> {
  if (op.kind === 'truncate') return resized(content, op.size);
  const end = op.offset + op.bytes.length;
  const target = end > content.length ? resized(content, end) : content;
  target.set(op.bytes, op.offset);
  return target;
}

function resized(content: Uint8Array, size: number): Uint8Array<ArrayBuffer> {
  const target = new Uint8Array(size);
  target.set(content.subarray(0, size));
  return target;
}

function applyNames(side: 'cached' | 'durable', { set }: NameChange): void {
  for (const [dir, name, entry] of set) {
    if (entry === undefined) dir[side].delete(name);
    else dir[side].set(name, entry);
  }
}

/** Relative paths lie in the root, too. */
function partsOf(path: string): string[] {
  return posix
    .normalize(path)
    .split('/')
    .filter((part) => part !== '' && part !== '.');
}

/** Nothing, everything, a prefix, or any of them. */
function survivors<T>(all: readonly T[], random: SeededRandom): readonly T[] {
  const way = random.below(4);
  if (way === 0) return [];
  if (way === 1) return all;
  if (way === 2) return all.slice(0, random.below(all.length + 1));
  return all.filter(() => random.chance(0.5));
}

function survivingContent(inode: Inode, random: SeededRandom): Uint8Array<ArrayBuffer> {
  const bySector = random.chance(0.5);
  const pieces = bySector ? inode.pending.flatMap(intoSectors) : inode.pending;
  let content = inode.durable.slice();
  for (const op of survivors(pieces, random)) content = applyTo(content, op);
  return content;
}

function intoSectors(op: Pending): Pending[] {
  if (op.kind === 'truncate') return [op];
  const pieces: Pending[] = [];
  for (let at = 0; at < op.bytes.length;) {
    const offset = op.offset + at;
    const length = Math.min(op.bytes.length - at, SECTOR_BYTES - (offset % SECTOR_BYTES));
    pieces.push({ kind: 'write', offset, bytes: op.bytes.subarray(at, at + length) });
    at += length;
  }
  return pieces;
}
