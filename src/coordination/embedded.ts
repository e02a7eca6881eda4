/**
 * The coordinator of the nodes of one machine: a directory on its disk. Version v is the file `group.<v>.json`. It is
 * written whole under a name of its own and fsynced, then linked to its name: link(2) is atomic and refuses a name that
 * is taken, so of two writers from one version one wins, and there is no lock that a stopped one could keep.
 *
 * What must hold: a version's content never changes, and the highest version is never removed. Old ones are removed, so
 * a writer that was stopped for long may link a version that is long past. It sees that by a higher one that does not
 * name it as its parent, takes its own away again, and has lost. Where too many versions went by to tell, the call
 * throws and its outcome stays open, as the interface allows. A crash leaves a file under the writer's own name, which
 * goes when its version is old, or a version that is whole.
 */
import { dirname, join } from 'node:path';
import { crc32 } from 'node:zlib';
import type { Disk } from '../base/disk.ts';
import { systemDisk } from '../base/disk.ts';
import { readIfExists } from '../base/durable-file.ts';
import { NostosError, isNostosError } from '../base/errors.ts';
import type { Random } from '../base/random.ts';
import { randomHex128, systemRandom } from '../base/random.ts';
import type { CasResult, Coordinator, GroupRecord, Versioned } from './coordinator.ts';
import { coordinatorDamaged, encodeGroupRecord, parseGroupRecord } from './coordinator.ts';

export interface EmbeddedCoordinatorOptions {
  readonly dir: string;
  /** How often a watch looks. */
  readonly pollMs?: number;
}

export interface EmbeddedCoordinatorDeps {
  readonly disk?: Disk;
  readonly random?: Random;
}

interface VersionFile {
  readonly version: number;
  /** The nonce of the record that this one replaced. */
  readonly parent: string | null;
  readonly record: GroupRecord;
}

const FORMAT_VERSION = 1;
const KEPT_VERSIONS = 64;
const READ_TRIES_MAX = 100;
const POLL_MS = 200;
const OWN_NAME = /^write\.([1-9][0-9]{0,15})\.[0-9a-f]{32}\.tmp$/;
const VERSION_NAME = /^group\.([1-9][0-9]{0,15})\.json$/;

export class EmbeddedCoordinator implements Coordinator {
  readonly #disk: Disk;
  readonly #random: Random;
  readonly #dir: string;
  readonly #pollMs: number;

  constructor({ dir, pollMs = POLL_MS }: EmbeddedCoordinatorOptions, deps: EmbeddedCoordinatorDeps = {}) {
    this.#disk = deps.disk ?? systemDisk;
    this.#random = deps.random ?? systemRandom;
    this.#dir = dir;
    this.#pollMs = pollMs;
  }

  async read(): Promise<Versioned | undefined> {
    return this.#read();
  }

  async compareAndSet(expectedVersion: number, record: GroupRecord): Promise<CasResult> {
    parseGroupRecord(JSON.parse(encodeGroupRecord(record)), 'the record to write');
    this.#disk.makeDirectory(this.#dir);
    if (expectedVersion === 0) this.#disk.syncDirectory(dirname(this.#dir));
    const current = this.#read();
    if ((current?.version ?? 0) !== expectedVersion) return this.#lost(record, current);
    const version = expectedVersion + 1;
    const written: VersionFile = { version, parent: current?.record.nonce ?? null, record };
    if (!this.#publish(written) || !this.#stands(written)) return this.#lost(record, this.#read());
    this.#disk.syncDirectory(this.#dir);
    this.#removeOld(version);
    return { ok: true, version };
  }

  /** Whether the version that was just linked became part of the history; there may be later ones already. */
  #stands({ version, record }: VersionFile): boolean {
    if (this.#newest() === version) return true;
    const next = this.#bytesOf(version + 1);
    if (next === undefined)
      throw new NostosError(
        'OUTCOME_UNKNOWN',
        `Version ${version} of the group record was written, and many later ones since; read the record to see what holds`,
        { details: { version } },
      );
    if (parseVersionFile(next, version + 1, this.#path(version + 1)).parent === record.nonce) return true;
    this.#removeQuietly(this.#path(version));
    return false;
  }

  watch(listener: (current: Versioned) => void, { signal }: { signal: AbortSignal }): void {
    let seen = 0;
    const look = (): void => {
      try {
        const current = this.#read();
        if (current === undefined || current.version <= seen) return;
        seen = current.version;
        listener(current);
      } catch {
        // A watch only hints; who acts on it reads first, and meets the error there.
      }
    };
    if (signal.aborted) return;
    const timer = setInterval(look, this.#pollMs);
    timer.unref();
    signal.addEventListener('abort', () => clearInterval(timer), { once: true });
    queueMicrotask(() => !signal.aborted && look());
  }

  #read(): Versioned | undefined {
    for (let tries = 0; ; tries++) {
      const version = this.#newest();
      if (version === 0) return undefined;
      const bytes = this.#bytesOf(version);
      // It may be removed between the two steps, once many newer ones are there.
      if (bytes !== undefined) {
        const { record } = parseVersionFile(bytes, version, this.#path(version));
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
  #publish(written: VersionFile): boolean {
    const own = join(this.#dir, `write.${written.version}.${randomHex128(this.#random)}.tmp`);
    try {
      const file = this.#disk.open(own, 'create');
      try {
        file.write(encodeVersionFile(written), 0);
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
  #lost(record: GroupRecord, current: Versioned | undefined): CasResult {
    if (current !== undefined && current.record.nonce === record.nonce) {
      this.#disk.syncDirectory(this.#dir);
      return { ok: true, version: current.version };
    }
    return { ok: false, current };
  }

  #removeOld(version: number): void {
    for (const name of this.#disk.list(this.#dir)) {
      const digits = (VERSION_NAME.exec(name) ?? OWN_NAME.exec(name))?.[1];
      if (digits !== undefined && Number(digits) <= version - KEPT_VERSIONS) this.#removeQuietly(join(this.#dir, name));
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
    return join(this.#dir, `group.${version}.json`);
  }
}

function isAbsent(error: unknown): boolean {
  return isNostosError(error, 'IO_FAILED') && error.details.errno === 'ENOENT';
}

function encodeVersionFile({ version, parent, record }: VersionFile): Uint8Array {
  const text = encodeGroupRecord(record);
  const head = { format: FORMAT_VERSION, version, parent, crc32: crc32(text) };
  return Buffer.from(`${JSON.stringify(head)}\n${text}\n`);
}

function parseVersionFile(bytes: Uint8Array, version: number, source: string): VersionFile {
  let head: { format?: unknown; version?: unknown; parent?: unknown; crc32?: unknown };
  let value: unknown;
  try {
    const lines = new TextDecoder('utf-8', { fatal: true }).decode(bytes).split('\n');
    head = Object(JSON.parse(lines[0] ?? ''));
    if (typeof head.format === 'number' && head.format > FORMAT_VERSION) throw newerFormat(source, head.format);
    if (lines.length !== 3 || lines[2] !== '') throw new Error('it is not two lines');
    if (head.format !== FORMAT_VERSION || head.version !== version) throw new Error(`its head is of another version`);
    if (head.crc32 !== crc32(lines[1] as string)) throw new Error('its CRC does not hold');
    if (head.parent !== null && typeof head.parent !== 'string') throw new Error('its parent is no nonce');
    value = JSON.parse(lines[1] as string);
  } catch (cause) {
    if (isNostosError(cause)) throw cause;
    throw coordinatorDamaged(source, cause);
  }
  return { version, parent: head.parent, record: parseGroupRecord(value, source) };
}

function newerFormat(source: string, format: number): NostosError {
  return new NostosError(
    'UNSUPPORTED_FORMAT',
    `The group record in ${source} has format ${format}; this Nostos knows ${FORMAT_VERSION}. Use a newer one`,
    { details: { source, format } },
  );
}

/** How another process opens the same record; see `testing/coordinator-compliance.ts`. */
export function openCoordinator(args: unknown): EmbeddedCoordinator {
  return new EmbeddedCoordinator(args as EmbeddedCoordinatorOptions);
}
