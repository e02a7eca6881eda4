/**
 * The coordinator of the nodes of one machine: directories on its disk, one for each record. Version v of the record of a
 * group is the file `group.<v>.json`, that of a directory entry `entry.<v>.json`, that of a member `member.<v>.json`. It is
 * written whole under a name of its own and fsynced, then linked to its name: link(2) is atomic and refuses a name that is
 * taken, so of two writers from one version one wins, and there is no lock that a stopped one could keep.
 *
 * What must hold: a version's content never changes, and the highest version is never removed. Old ones are removed, so
 * a writer that was stopped for long may link a version that is long past. It sees that by a higher one that does not
 * name it as its parent, takes its own away again, and has lost. Where too many versions went by to tell, the call
 * throws and its outcome stays open, as the interface allows. A crash leaves a file under the writer's own name, which
 * goes when its version is old, or a version that is whole.
 */
import { dirname, join } from 'node:path';
import { toStoreId } from '../base/brands.ts';
import type { Disk } from '../base/disk.ts';
import { systemDisk } from '../base/disk.ts';
import { readIfExists } from '../base/durable-file.ts';
import { NostosError, isNostosError } from '../base/errors.ts';
import type { Random } from '../base/random.ts';
import { randomHex128, systemRandom } from '../base/random.ts';
import type { Coordination } from './coordination.ts';
import type { CasResult, Coordinator, GroupRecord, RecordKind, Register, Versioned } from './coordinator.ts';
import { checkGroupName, coordinatorDamaged, DEFAULT_GROUP, GROUP_RECORD } from './coordinator.ts';
import type { Collection, ListOptions, Page } from './directory.ts';
import { checkDirectoryId, checkListOptions, DIRECTORY_ENTRY } from './directory.ts';
import type { Envelope } from './envelope.ts';
import { encodeEnvelope, parseEnvelope } from './envelope.ts';
import { MEMBER_ENTRY } from './member.ts';
import { watchByReading } from './watch.ts';

export interface EmbeddedCoordinatorOptions {
  readonly dir: string;
  /** How often a watch looks. */
  readonly pollMs?: number;
}

export interface EmbeddedCoordinatorDeps {
  readonly disk?: Disk;
  readonly random?: Random;
}

/** So many versions a writer may be late and still be told for sure that it has lost. */
const KEPT_VERSIONS = { group: 64, entry: 8, member: 8 } as const;
const READ_TRIES_MAX = 100;
export const EMBEDDED_POLL_MS = 200;
const OWN_NAME = /^write\.([1-9][0-9]{0,15})\.[0-9a-f]{32}\.tmp$/;
const VERSION_NAME = /^(?:group|entry|member)\.([1-9][0-9]{0,15})\.json$/;

class EmbeddedRegister<R extends { readonly nonce: string }> implements Register<R> {
  readonly #kind: RecordKind<R>;
  readonly #disk: Disk;
  readonly #random: Random;
  readonly #dir: string;
  readonly #pollMs: number;

  constructor(
    kind: RecordKind<R>,
    { dir, pollMs = EMBEDDED_POLL_MS }: EmbeddedCoordinatorOptions,
    deps: EmbeddedCoordinatorDeps = {},
  ) {
    this.#kind = kind;
    this.#disk = deps.disk ?? systemDisk;
    this.#random = deps.random ?? systemRandom;
    this.#dir = dir;
    this.#pollMs = pollMs;
  }

  async read(): Promise<Versioned<R> | undefined> {
    return this.#read();
  }

  async compareAndSet(expectedVersion: number, record: R): Promise<CasResult<R>> {
    this.#kind.parse(JSON.parse(this.#kind.encode(record)), 'the record to write');
    this.#disk.makeDirectory(this.#dir);
    if (expectedVersion === 0) this.#disk.syncDirectory(dirname(this.#dir));
    const current = this.#read();
    if ((current?.version ?? 0) !== expectedVersion) return this.#lost(record, current);
    if (current !== undefined) this.#kind.checkSuccessor?.(record, current.record);
    const version = expectedVersion + 1;
    const written: Envelope<R> = { version, parent: current?.record.nonce ?? null, record };
    if (!this.#publish(written) || !this.#stands(written)) return this.#lost(record, this.#read());
    this.#disk.syncDirectory(this.#dir);
    this.#removeOld(version);
    return { ok: true, version };
  }

  /** Whether the version that was just linked became part of the history; there may be later ones already. */
  #stands({ version, record }: Envelope<R>): boolean {
    if (this.#newest() === version) return true;
    const next = this.#bytesOf(version + 1);
    if (next === undefined)
      throw new NostosError(
        'OUTCOME_UNKNOWN',
        `Version ${version} of a record was written, and many later ones since; read the record to see what holds`,
        { details: { version } },
      );
    if (this.#parse(next, version + 1).parent === record.nonce) return true;
    this.#removeQuietly(this.#path(version));
    return false;
  }

  watch(listener: (current: Versioned<R>) => void, options: { signal: AbortSignal }): void {
    watchByReading({ read: () => this.read(), pollMs: this.#pollMs }, listener, options);
  }

  #read(): Versioned<R> | undefined {
    for (let tries = 0; ; tries++) {
      const version = this.#newest();
      if (version === 0) return undefined;
      const bytes = this.#bytesOf(version);
      // It may be removed between the two steps, once many newer ones are there.
      if (bytes !== undefined) {
        const { record } = this.#parse(bytes, version);
        return { version, record };
      }
      if (tries >= READ_TRIES_MAX) throw coordinatorDamaged(this.#path(version), new Error('it comes and goes'));
    }
  }

  #newest(): number {
    return this.#versions().reduce((highest, version) => Math.max(highest, version), 0);
  }

  #versions(): number[] {
    if (!this.#disk.exists(this.#dir)) return [];
    return this.#disk
      .list(this.#dir)
      .map((name) => VERSION_NAME.exec(name)?.[1])
      .filter((digits) => digits !== undefined)
      .map(Number);
  }

  #bytesOf(version: number): Uint8Array | undefined {
    try {
      return readIfExists(this.#disk, this.#path(version));
    } catch (error) {
      if (isAbsent(error)) return undefined;
      throw error;
    }
  }

  /** False when the version is taken, or so old that the file to link was cleared away. */
  #publish(written: Envelope<R>): boolean {
    const own = join(this.#dir, `write.${written.version}.${randomHex128(this.#random)}.tmp`);
    try {
      const file = this.#disk.open(own, 'create');
      try {
        file.write(encodeEnvelope(this.#kind, written), 0);
        file.sync();
      } finally {
        file.close();
      }
      this.#disk.link(own, this.#path(written.version));
    } catch (error) {
      if (isNostosError(error, 'FILE_EXISTS') || isAbsent(error)) return false;
      throw error;
    } finally {
      this.#removeQuietly(own);
    }
    return true;
  }

  /** A refused writer that finds its own record there has won: only the answer was lost. */
  #lost(record: R, current: Versioned<R> | undefined): CasResult<R> {
    if (current !== undefined && current.record.nonce === record.nonce) {
      this.#disk.syncDirectory(this.#dir);
      return { ok: true, version: current.version };
    }
    return { ok: false, current };
  }

  #removeOld(version: number): void {
    for (const name of this.#disk.list(this.#dir)) {
      const digits = (VERSION_NAME.exec(name) ?? OWN_NAME.exec(name))?.[1];
      if (digits !== undefined && Number(digits) <= version - KEPT_VERSIONS[this.#kind.name])
        this.#removeQuietly(join(this.#dir, name));
    }
  }

  #removeQuietly(path: string): void {
    try {
      this.#disk.remove(path);
    } catch {
      // Another writer was faster, or it stays until the next one clears up.
    }
  }

  #path(version: number): string {
    return join(this.#dir, `${this.#kind.name}.${version}.json`);
  }

  #parse(bytes: Uint8Array, version: number): Envelope<R> {
    const envelope = parseEnvelope(this.#kind, bytes, this.#path(version));
    if (envelope.version !== version)
      throw coordinatorDamaged(this.#path(version), new Error('its head is of another version'));
    return envelope;
  }
}

function isAbsent(error: unknown): boolean {
  return isNostosError(error, 'IO_FAILED') && error.details.errno === 'ENOENT';
}

/** The record of one group, in a directory of its own. */
export class EmbeddedCoordinator extends EmbeddedRegister<GroupRecord> {
  constructor(options: EmbeddedCoordinatorOptions, deps: EmbeddedCoordinatorDeps = {}) {
    super(GROUP_RECORD, options, deps);
  }
}

class EmbeddedCollection<R extends { readonly nonce: string }> implements Collection<R> {
  readonly #kind: RecordKind<R>;
  readonly #options: EmbeddedCoordinatorOptions;
  readonly #deps: EmbeddedCoordinatorDeps;

  constructor(kind: RecordKind<R>, options: EmbeddedCoordinatorOptions, deps: EmbeddedCoordinatorDeps) {
    this.#kind = kind;
    this.#options = options;
    this.#deps = deps;
  }

  entry(id: string): Register<R> {
    const dir = join(this.#options.dir, dirnameOfId(checkDirectoryId(id)));
    return new EmbeddedRegister(this.#kind, { ...this.#options, dir }, this.#deps);
  }

  async list(options: ListOptions = {}): Promise<Page<R>> {
    const { prefix, after = '', limit } = checkListOptions(options);
    const disk = this.#deps.disk ?? systemDisk;
    const ids = disk.exists(this.#options.dir) ? disk.list(this.#options.dir).map(idOfDirname) : [];
    const wanted = ids.filter((id) => id.startsWith(prefix) && id > after).toSorted(byBytes);
    const entries = [];
    for (const id of wanted) {
      // A writer that was killed before its first version leaves an empty directory.
      const current = await this.entry(id).read();
      if (current !== undefined) entries.push({ id, ...current });
      if (entries.length === limit) return { entries, next: id === wanted.at(-1) ? undefined : id };
    }
    return { entries, next: undefined };
  }
}

/** One character for one: `/` and `:` cannot be in the names of files everywhere. */
function dirnameOfId(id: string): string {
  return id.replaceAll('/', '+').replaceAll(':', '=');
}

function idOfDirname(name: string): string {
  return name.replaceAll('+', '/').replaceAll('=', ':');
}

function byBytes(a: string, b: string): number {
  return a < b ? -1 : Number(a > b);
}

/** All groups of the nodes of one machine, their members and their directory, in one directory of its disk. */
export function embeddedCoordination(
  { dir, pollMs = EMBEDDED_POLL_MS }: EmbeddedCoordinatorOptions,
  deps: EmbeddedCoordinatorDeps = {},
): Coordination {
  const close = async (): Promise<void> => {};
  const members = new EmbeddedCollection(MEMBER_ENTRY, { dir: join(dir, 'members'), pollMs }, deps);
  return {
    group: (name = DEFAULT_GROUP): Coordinator =>
      new EmbeddedCoordinator({ dir: join(dir, 'groups', checkGroupName(name)), pollMs }, deps),
    directory: new EmbeddedCollection(DIRECTORY_ENTRY, { dir: join(dir, 'directory'), pollMs }, deps),
    member: (store) => members.entry(toStoreId(store)),
    members: (options) => members.list(options),
    check: async () => {},
    close,
    [Symbol.asyncDispose]: close,
  };
}
