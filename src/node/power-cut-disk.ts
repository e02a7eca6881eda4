/**
 * What a disk holds while a traced process writes, and what a power cut may leave of it.
 *
 * - What a completed fsync or fdatasync covers is kept: what had been written before it began.
 * - Every other write is dropped, kept, or torn at 512 bytes, whatever came before or after it.
 * - Entries of a directory that was not fsynced since are there up to some point in their order: file systems keep a
 *   journal of them.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import type { SeededRandom } from '../base/random.ts';
import type { TracedCall, TraceStep } from './power-cut-trace.ts';

const SECTOR_BYTES = 512;

/** How much of what is not synced is left: nothing, everything, or by chance. */
export type CutStyle = 'nothing' | 'everything' | 'mixed';

type Change =
  | { readonly kind: 'write'; readonly offset: number; bytes: Uint8Array; done: boolean }
  | { readonly kind: 'resize'; readonly size: number; readonly only: 'grow' | 'exact'; done: boolean };

class FileNode {
  readonly kind = 'file';
  #bytes = Buffer.alloc(0);
  #size = 0;
  /** As the process sees it. */
  liveSize = 0;
  pending: Change[] = [];

  settle(changes: ReadonlySet<Change>): void {
    for (const change of this.pending) if (changes.has(change)) this.#apply(change);
    this.pending = this.pending.filter((change) => !changes.has(change));
  }

  image(random: SeededRandom, style: CutStyle): Buffer {
    const copy = new FileNode();
    copy.#bytes = Buffer.from(this.#bytes.subarray(0, this.#size));
    copy.#size = this.#size;
    if (style !== 'nothing')
      for (const change of this.pending) {
        const fate = style === 'everything' ? 0 : random.below(3);
        if (fate === 0) copy.#apply(change);
        else if (fate === 1 && change.kind === 'write') copy.#applyTorn(change, random);
      }
    return copy.#bytes.subarray(0, copy.#size);
  }

  #apply(change: Change): void {
    if (change.kind === 'resize')
      this.#resize(change.only === 'grow' ? Math.max(this.#size, change.size) : change.size);
    else this.#write(change.offset, change.bytes);
  }

  #applyTorn(change: Change & { kind: 'write' }, random: SeededRandom): void {
    const { offset, bytes } = change;
    for (let at = 0; at < bytes.length;) {
      const end = Math.min(bytes.length, at + SECTOR_BYTES - ((offset + at) % SECTOR_BYTES));
      if (random.chance(0.5)) this.#write(offset + at, bytes.subarray(at, end));
      at = end;
    }
  }

  #write(offset: number, bytes: Uint8Array): void {
    if (offset + bytes.length > this.#size) this.#resize(offset + bytes.length);
    this.#bytes.set(bytes, offset);
  }

  #resize(size: number): void {
    if (size > this.#bytes.length) {
      const grown = Buffer.alloc(Math.max(size, this.#bytes.length * 2, 4096));
      grown.set(this.#bytes.subarray(0, this.#size));
      this.#bytes = grown;
    }
    if (size < this.#size) this.#bytes.fill(0, size, this.#size);
    this.#size = size;
  }
}

type DiskNode = FileNode | DirectoryNode;
type EntryChange = readonly { readonly name: string; readonly node: DiskNode | undefined }[];

class DirectoryNode {
  readonly kind = 'directory';
  readonly live = new Map<string, DiskNode>();
  #durable = new Map<string, DiskNode>();
  pending: EntryChange[] = [];

  /** Several names at once change together: a rename. */
  change(entries: EntryChange): void {
    for (const { name, node } of entries) set(this.live, name, node);
    this.pending.push(entries);
  }

  settle(changes: ReadonlySet<EntryChange>): void {
    for (const change of this.pending)
      if (changes.has(change)) for (const { name, node } of change) set(this.#durable, name, node);
    this.pending = this.pending.filter((change) => !changes.has(change));
  }

  image(random: SeededRandom, style: CutStyle): Map<string, DiskNode> {
    const entries = new Map(this.#durable);
    const { length } = this.pending;
    const kept = style === 'nothing' ? 0 : style === 'everything' ? length : random.below(length + 1);
    for (const change of this.pending.slice(0, kept)) for (const { name, node } of change) set(entries, name, node);
    return entries;
  }
}

function set(entries: Map<string, DiskNode>, name: string, node: DiskNode | undefined): void {
  if (node === undefined) entries.delete(name);
  else entries.set(name, node);
}

/** Calls that would change a file in a way that this model does not know. */
const UNKNOWN = new Set([
  'pwritev',
  'pwritev2',
  'writev',
  'copy_file_range',
  'sendfile',
  'splice',
  'symlink',
  'truncate',
]);

export class TracedDisk {
  readonly #root: string;
  readonly #tree = new DirectoryNode();
  /** File positions by descriptor, for writes that do not name one. */
  readonly #positions = new Map<number, { at: number; readonly append: boolean }>();
  readonly #open = new Map<TracedCall, (result: number) => void>();
  writes = 0;
  syncs = 0;

  /** `root` exists, empty, before the process starts. */
  constructor(root: string) {
    this.#root = root;
  }

  take({ at, call }: TraceStep): void {
    if (at === 'begin') {
      const end = this.#begin(call);
      if (end !== undefined) this.#open.set(call, end);
      return;
    }
    this.#open.get(call)?.(call.result);
    this.#open.delete(call);
  }

  /** Writes into the empty directory `target` what a power cut now may leave. */
  writeImage(target: string, random: SeededRandom, style: CutStyle, skip: (name: string) => boolean): void {
    const write = (directory: DirectoryNode, path: string): void => {
      mkdirSync(path, { recursive: true });
      for (const [name, node] of directory.image(random, style)) {
        if (skip(name)) continue;
        if (node.kind === 'directory') write(node, join(path, name));
        else writeFileSync(join(path, name), node.image(random, style));
      }
    };
    write(this.#tree, target);
  }

  /** What has begun; answers with what its end does. */
  #begin(call: TracedCall): ((result: number) => void) | undefined {
    const { name, args } = call;
    if (UNKNOWN.has(name) && args.some(({ path, bytes }) => this.#isInside(path ?? bytes?.toString())))
      throw new Error(`the traced process used ${name}, which the model of the disk does not know`);
    switch (name) {
      case 'openat':
      case 'open':
        return this.#beginOpen(call, name === 'openat' ? 1 : 0);
      case 'write':
      case 'pwrite64':
        return this.#beginWrite(call);
      case 'ftruncate':
        return this.#beginResize(args[0]!.path, Number(args[1]!.text), 'exact');
      case 'fallocate':
        return this.#beginResize(args[0]!.path, Number(args[2]!.text) + Number(args[3]!.text), 'grow');
      case 'fsync':
      case 'fdatasync':
        return this.#beginSync(args[0]!.path);
      case 'mkdir':
      case 'mkdirat':
        return this.#entry(pathOf(args.at(-2)!), () => new DirectoryNode());
      case 'unlink':
      case 'rmdir':
        return this.#entry(pathOf(args[0]!), () => undefined);
      case 'unlinkat':
        return this.#entry(pathOf(args[1]!), () => undefined);
      case 'rename':
        return this.#beginRename(pathOf(args[0]!), pathOf(args[1]!));
      case 'renameat':
      case 'renameat2':
        return this.#beginRename(pathOf(args[1]!), pathOf(args[3]!));
      case 'link':
        return this.#entry(pathOf(args[1]!), () => this.#find(pathOf(args[0]!)));
      case 'linkat':
        return this.#entry(pathOf(args[3]!), () => this.#find(pathOf(args[1]!)));
      default:
        return undefined;
    }
  }

  #beginOpen(call: TracedCall, at: number): ((result: number) => void) | undefined {
    const path = pathOf(call.args[at]!);
    const flags = call.args[at + 1]!.text;
    return (descriptor) => {
      if (descriptor < 0) return;
      this.#positions.set(descriptor, { at: 0, append: flags.includes('O_APPEND') });
      if (!this.#isInside(path)) return;
      if (this.#find(path) === undefined && flags.includes('O_CREAT')) this.#entry(path, () => new FileNode())?.(0);
      const node = this.#find(path);
      if (flags.includes('O_TRUNC') && node?.kind === 'file' && node.liveSize > 0)
        this.#beginResize(path, 0, 'exact')?.(0);
    };
  }

  #beginWrite(call: TracedCall): ((result: number) => void) | undefined {
    const node = this.#find(call.args[0]!.path);
    const bytes = call.args[1]!.bytes;
    if (node?.kind !== 'file' || bytes === undefined) return undefined;
    if (bytes.length !== Number(call.args[2]!.text))
      throw new Error('the trace does not have whole writes; raise strace -s');
    const descriptor = Number.parseInt(call.args[0]!.text, 10);
    const position = call.name === 'pwrite64' ? undefined : this.#positions.get(descriptor);
    const offset = position === undefined ? Number(call.args[3]!.text) : position.append ? node.liveSize : position.at;
    const change: Change = { kind: 'write', offset, bytes, done: false };
    node.pending.push(change);
    this.writes += 1;
    return (result) => {
      change.bytes = bytes.subarray(0, Math.max(0, result));
      change.done = true;
      if (position !== undefined) position.at = offset + change.bytes.length;
      node.liveSize = Math.max(node.liveSize, offset + change.bytes.length);
    };
  }

  #beginResize(path: string | undefined, size: number, only: 'grow' | 'exact'): ((result: number) => void) | undefined {
    const node = this.#find(path);
    if (node?.kind !== 'file') return undefined;
    const change: Change = { kind: 'resize', size, only, done: false };
    node.pending.push(change);
    return (result) => {
      change.done = true;
      if (result < 0) node.pending = node.pending.filter((each) => each !== change);
      else node.liveSize = only === 'grow' ? Math.max(node.liveSize, size) : size;
    };
  }

  #beginSync(path: string | undefined): ((result: number) => void) | undefined {
    const node = path === this.#root ? this.#tree : this.#find(path);
    if (node === undefined) return undefined;
    this.syncs += 1;
    if (node.kind === 'directory') {
      const covered = new Set(node.pending);
      return (result) => result === 0 && node.settle(covered);
    }
    const covered = new Set(node.pending.filter(({ done }) => done));
    return (result) => result === 0 && node.settle(covered);
  }

  #beginRename(from: string, to: string): ((result: number) => void) | undefined {
    const [source, target] = [this.#parent(from), this.#parent(to)];
    if (source === undefined || target === undefined) return undefined;
    return (result) => {
      if (result !== 0) return;
      const node = source.directory.live.get(source.name);
      const gone = { name: source.name, node: undefined };
      const come = { name: target.name, node };
      if (source.directory === target.directory) source.directory.change([gone, come]);
      else {
        target.directory.change([come]);
        source.directory.change([gone]);
      }
    };
  }

  #entry(path: string, node: () => DiskNode | undefined): ((result: number) => void) | undefined {
    const parent = this.#parent(path);
    if (parent === undefined) return undefined;
    return (result) => {
      if (result === 0) parent.directory.change([{ name: parent.name, node: node() }]);
    };
  }

  #isInside(path: string | undefined): path is string {
    return path?.startsWith(`${this.#root}/`) === true;
  }

  #find(path: string | undefined): DiskNode | undefined {
    if (!this.#isInside(path)) return undefined;
    const parent = this.#parent(path);
    return parent?.directory.live.get(parent.name);
  }

  #parent(path: string): { readonly directory: DirectoryNode; readonly name: string } | undefined {
    if (!this.#isInside(path)) return undefined;
    const names = relative(this.#root, path).split('/');
    let directory = this.#tree;
    for (const name of names.slice(0, -1)) {
      const next = directory.live.get(name);
      if (next?.kind !== 'directory') return undefined;
      directory = next;
    }
    return { directory, name: names.at(-1)! };
  }
}

function pathOf(argument: { readonly bytes: Buffer | undefined }): string {
  return argument.bytes?.toString() ?? '';
}
