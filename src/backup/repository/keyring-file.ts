/**
 * Keys in a file: JSON, mode 0600, replaced whole and synced before a key is used, so that nothing is ever encrypted with
 * a key that a crash forgets. The file is as precious as the backups: without it they are noise. Keep a copy elsewhere.
 *
 * A tenant gets a key at first use; `rotate` gives it a new one for what comes next, and older ones still open what they
 * sealed. `destroy` removes all keys of a tenant, and notes their ids. Bytes of old versions of the file may stay on the
 * disk until it uses them again; that, copies of the file, and other processes that have read it are beyond us.
 *
 * One process writes the file at a time: it is opened exclusively for that by a lock file with a bounded wait.
 */
import { chmodSync, closeSync, constants, lstatSync, openSync, readFileSync, rmSync } from 'node:fs';
import { dirname } from 'node:path';
import * as v from 'valibot';
import type { TenantUuid } from '../../base/brands.ts';
import { diskError, systemDisk } from '../../base/disk.ts';
import { NostosError } from '../../base/errors.ts';
import { readInput } from '../../base/input-schema.ts';
import type { Random } from '../../base/random.ts';
import { randomHex128, systemRandom } from '../../base/random.ts';
import { parseStrictJson } from '../../base/strict-json.ts';
import type { BackupKey, KeyId, KeyProvider } from './keys.ts';
import { systemTimers } from './heartbeat.ts';

const hex = (digits: number) =>
  v.pipe(v.string(), v.regex(new RegExp(`^[0-9a-f]{${digits}}$`), 'expected lowercase hex'));
const schema = v.strictObject({
  keyring: v.literal(1n),
  keys: v.array(v.strictObject({ id: hex(32), owner: hex(32), secret: hex(64) })),
  /** Ids of keys that are gone for good. */
  destroyed: v.array(hex(32)),
});

interface Keyring {
  /** In the order in which they were made: the last one of an owner is the one in use. */
  readonly keys: readonly { readonly id: string; readonly owner: string; readonly secret: string }[];
  readonly destroyed: readonly string[];
}

const FILE_BYTES_MAX = 64 * 1024 * 1024;
const LOCK_TRIES_MAX = 100;
const LOCK_WAIT_MS = 50;
const NOTHING: Keyring = { keys: [], destroyed: [] };

export class KeyringFile implements KeyProvider {
  readonly path: string;
  readonly #random: Random;
  #ring: Keyring;
  #seen: string;
  #byId = new Map<string, BackupKey>();
  #current = new Map<string, BackupKey>();
  #writing: Promise<unknown> = Promise.resolve();

  private constructor(path: string, random: Random) {
    this.path = path;
    this.#random = random;
    this.#seen = versionOf(path);
    this.#ring = readRing(path);
    this.#index();
  }

  /** A file that is not there is made with the first key. */
  static open(path: string, { random = systemRandom }: { readonly random?: Random } = {}): KeyringFile {
    return new KeyringFile(path, random);
  }

  /** Takes what another process has changed: a key that is gone must seal nothing more. */
  refresh(): void {
    this.#reload();
  }

  async keyFor(owner: TenantUuid): Promise<BackupKey> {
    const known = this.#current.get(owner);
    return known ?? this.#mint(owner, (ring) => ring.keys.some((key) => key.owner === owner));
  }

  /** Another process may have added it since this one read the file. */
  keyById(id: KeyId): Promise<BackupKey | undefined> {
    if (!this.#byId.has(id) && this.#seen !== versionOf(this.path)) this.#reload();
    return Promise.resolve(this.#byId.get(id));
  }

  /** From here on the tenant's content is encrypted with a new key; all of it is stored anew by the next snapshot. */
  async rotate(owner: TenantUuid): Promise<BackupKey> {
    return this.#mint(owner, () => false);
  }

  /** What these keys sealed cannot be read any more, by anybody. Resolves with how many there were. */
  async destroy(owner: TenantUuid): Promise<number> {
    return this.#change((ring) => {
      const gone = ring.keys.filter((key) => key.owner === owner).map(({ id }) => id);
      if (gone.length === 0) return { result: 0 };
      const keys = ring.keys.filter((key) => key.owner !== owner);
      return { ring: { keys, destroyed: [...ring.destroyed, ...gone] }, result: gone.length };
    });
  }

  /** Ids and whose they are, oldest first; of those that were destroyed nobody knows whose they were. */
  list(): { readonly id: string; readonly owner: string; readonly state: 'in use' | 'former' | 'destroyed' }[] {
    const { keys, destroyed } = this.#ring;
    const inUse = new Set([...this.#current.values()].map(({ id }) => id as string));
    return [
      ...keys.map(({ id, owner }) => ({ id, owner, state: inUse.has(id) ? ('in use' as const) : ('former' as const) })),
      ...destroyed.map((id) => ({ id, owner: '', state: 'destroyed' as const })),
    ];
  }

  isDestroyed(id: KeyId): boolean {
    return this.#ring.destroyed.includes(id);
  }

  async #mint(owner: TenantUuid, isMade: (ring: Keyring) => boolean): Promise<BackupKey> {
    await this.#change((ring) => {
      if (isMade(ring)) return { result: undefined };
      const secret = Buffer.from(this.#random.bytes(32)).toString('hex');
      const key = { id: randomHex128(this.#random), owner, secret };
      return { ring: { ...ring, keys: [...ring.keys, key] }, result: undefined };
    });
    return this.#current.get(owner)!;
  }

  /** One change at a time, upon what the file says then. */
  async #change<T>(make: (ring: Keyring) => { readonly ring?: Keyring; readonly result: T }): Promise<T> {
    const done = this.#writing.then(async () => {
      const unlock = await lockFile(`${this.path}.lock`);
      try {
        const { ring, result } = make(readRing(this.path));
        if (ring !== undefined) writeRing(this.path, ring);
        this.#reload();
        return result;
      } finally {
        unlock();
      }
    });
    this.#writing = done.catch(() => undefined);
    return done;
  }

  #reload(): void {
    this.#seen = versionOf(this.path);
    this.#ring = readRing(this.path);
    this.#index();
  }

  #index(): void {
    const known = this.#byId;
    this.#byId = new Map();
    this.#current = new Map();
    for (const { id, owner, secret } of this.#ring.keys) {
      const key = known.get(id) ?? { id: id as KeyId, secret: new Uint8Array(Buffer.from(secret, 'hex')) };
      this.#byId.set(id, key);
      this.#current.set(owner, key);
    }
  }
}

/** Each version is a file of its own. */
function versionOf(path: string): string {
  const stats = lstatSync(path, { throwIfNoEntry: false });
  return stats === undefined ? '' : `${stats.ino} ${stats.mtimeMs} ${stats.size}`;
}

function readRing(path: string): Keyring {
  const stats = lstatSync(path, { throwIfNoEntry: false });
  if (stats === undefined) return NOTHING;
  if (!stats.isFile()) throw refused(path, 'it is no plain file');
  if ((stats.mode & 0o077) !== 0) throw refused(path, 'others may read it; chmod 600 it, and see who did');
  let json: unknown;
  try {
    json = parseStrictJson(readFileSync(path), { jsonBytesMax: FILE_BYTES_MAX });
  } catch (cause) {
    throw refused(path, 'it is no keyring as it was written', cause);
  }
  const read = readInput(schema, json);
  if (!read.ok) throw refused(path, read.problem);
  const { keys, destroyed } = read.value;
  if (new Set(keys.map(({ id }) => id)).size < keys.length) throw refused(path, 'two keys have one id');
  return { keys, destroyed };
}

function writeRing(path: string, { keys, destroyed }: Keyring): void {
  const temporary = `${path}.tmp`;
  rmSync(temporary, { force: true });
  const { O_WRONLY, O_CREAT, O_EXCL, O_NOFOLLOW } = constants;
  closeSync(openSync(temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600));
  chmodSync(temporary, 0o600);
  const file = systemDisk.open(temporary, 'write');
  try {
    file.write(Buffer.from(`${JSON.stringify({ keyring: 1, keys, destroyed }, undefined, 1)}\n`), 0);
    file.sync();
  } finally {
    file.close();
  }
  systemDisk.rename(temporary, path);
  systemDisk.syncDirectory(dirname(path));
}

/** A lock that a crash left is taken after the wait: a change takes milliseconds. */
async function lockFile(path: string): Promise<() => void> {
  for (let tries = 1; ; tries++) {
    try {
      closeSync(openSync(path, 'wx', 0o600));
      return () => rmSync(path, { force: true });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw diskError('create', path, error);
      if (tries === LOCK_TRIES_MAX) rmSync(path, { force: true });
      else await systemTimers.pause(LOCK_WAIT_MS);
    }
  }
}

function refused(path: string, problem: string, cause?: unknown): NostosError {
  return new NostosError('BACKUP_KEY_MISSING', `The keyring ${path} is refused: ${problem}`, {
    details: { path, problem },
    cause,
  });
}
