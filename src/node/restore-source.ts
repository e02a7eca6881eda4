/**
 * A node as the source of a copy: its catalog, the file of each tenant, and the log behind them. Reading runs in the thread
 * of the network; what is read is held by the node's own thread (`restore-host.ts`).
 *
 * The cut: everything up to the reserved record is in every file, whenever it was copied, and each file is at one position
 * X, so the log from that record on brings all of them to its end. The log is listed last and reaches the watermark of
 * then, so every X is at or below its end. The catalog is copied first: what it says that files hold, they hold.
 *
 * The ledger comes with the log, after the files: what these hold for good, it has. Of what comes to it later the copy may
 * get a part, which is cut off where it is torn; the log brings it again.
 *
 * A crash leaves a copy of the catalog in `serving/`, which the next opening removes.
 */
import { closeSync, fstatSync, mkdirSync, openSync, readSync, readdirSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { toTenantId, type Lsn, type TenantId } from '../base/brands.ts';
import { diskError } from '../base/disk.ts';
import { GROWN_BYTES_BACKGROUND, collectIfGrown } from '../base/collect.ts';
import { NostosError } from '../base/errors.ts';
import { LEDGER_FILE } from '../log/ledger.ts';
import { TERMS_FILE } from '../log/terms.ts';
import { parseItemName, type ItemName } from '../restore/item-name.ts';
import type { PlanItem, RestorePlan, RestoreSource, SourceFile, SourceInfo, SourceSession } from '../restore/source.ts';
import { fromSqlite } from '../store/sqlite-errors.ts';
import { HoldFlag } from './hold-flag.ts';
import { tenantPath } from './paths.ts';
import type { CopyStart, RestoreHost } from './restore-host.ts';

/** Where a node keeps what it has made for those who copy it. */
export const SERVING_DIR = 'serving';

/** Of the log, sent as they are when their turn comes. */
const WHOLE_FILES: readonly string[] = [TERMS_FILE, LEDGER_FILE];
const TENANT_ITEM = /^tenant\/(\d+)$/;
const TENANT_DIR = /^tenant_(\d+)$/;

export class NodeRestoreSource implements RestoreSource {
  readonly #host: RestoreHost;
  readonly #dir: string;

  constructor(host: RestoreHost, dir: string) {
    this.#host = host;
    this.#dir = dir;
  }

  async begin(signal: AbortSignal): Promise<NodeSourceSession> {
    signal.throwIfAborted();
    const start = await this.#host.begin();
    try {
      signal.throwIfAborted();
      return new NodeSourceSession(this.#host, this.#dir, start);
    } catch (error) {
      await this.#host.end(start.session);
      throw error;
    }
  }

  async info(): Promise<SourceInfo> {
    const { identity, role, term, watermark, firstLsn } = await this.#host.info();
    const { cluster, generation, node, store } = identity;
    return { role, cluster, generation, node, store, term, watermark, firstLsn };
  }
}

export class NodeSourceSession implements SourceSession {
  readonly plan: RestorePlan;
  /** The reserved record: everything before it is in every file. */
  readonly from: Lsn;
  /** The copy of the catalog, for as long as the session lasts. */
  readonly catalog: string;
  readonly #host: RestoreHost;
  readonly #dir: string;
  readonly #session: number;
  readonly #flag: HoldFlag;
  readonly #tenants = new Set<ItemName>();
  readonly #log = new Map<ItemName, number>();
  readonly #open = new Set<SourceFile>();
  #watermark: number;
  #closing: Promise<void> | undefined;

  constructor(host: RestoreHost, dir: string, start: CopyStart) {
    const { session, memory, identity, term, watermark, logBytes, from } = start;
    const { node, store, cluster, generation } = identity;
    this.#host = host;
    this.#dir = dir;
    this.#session = session;
    this.#flag = new HoldFlag(memory);
    this.#watermark = watermark;
    this.from = from;
    this.catalog = join(dir, SERVING_DIR, `catalog-${session}.sqlite`);
    try {
      const items = [this.#copyCatalog(), ...this.#listTenants()];
      this.plan = { kind: 'node', cluster, generation, store, node, term, watermark, items, tailBytes: logBytes };
    } catch (error) {
      rmSync(this.catalog, { force: true });
      throw error;
    }
  }

  async open(name: ItemName, signal: AbortSignal): Promise<SourceFile> {
    signal.throwIfAborted();
    if (this.#closing !== undefined) throw new NostosError('CLOSED', 'the session has ended');
    this.#flag.check();
    const file = await this.#openItem(name, signal);
    this.#open.add(file);
    return file;
  }

  async tail(): Promise<readonly PlanItem[]> {
    const { segments, watermark } = await this.#host.logFiles(this.#session);
    this.#watermark = watermark;
    for (const { name, bytes } of segments) this.#log.set(parseItemName(`log/${name}`), bytes);
    // After the segments: what they say of later ones does no harm, what they lacked of these would.
    for (const table of WHOLE_FILES) {
      const found = statSync(join(this.#dir, 'log', table), { throwIfNoEntry: false });
      if (found !== undefined) this.#log.set(parseItemName(`log/${table}`), found.size);
    }
    return [...this.#log].map(([name, bytes]) => ({ name, bytes }));
  }

  progress(bytes: number): void {
    this.#flag.addProgress(bytes);
    this.#flag.check();
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    for (const file of this.#open) await file.close().catch(() => {}); // its hold ends with the session
    rmSync(this.catalog, { force: true });
    await this.#host.end(this.#session);
  }

  async #openItem(name: ItemName, signal: AbortSignal): Promise<SourceFile> {
    if (name === 'catalog') return this.#fileAt(this.catalog, undefined);
    if (this.#tenants.has(name)) return this.#openTenant(name, toTenantId(Number(TENANT_ITEM.exec(name)![1])), signal);
    const bytes = this.#log.get(name);
    if (bytes === undefined)
      throw new NostosError(
        'INVALID_ARGUMENT',
        `${name} is not part of this copy; ask for what its plan and tail name`,
      );
    const isWhole = WHOLE_FILES.includes(name.slice(4));
    return this.#fileAt(join(this.#dir, 'log', name.slice(4)), isWhole ? undefined : bytes, {
      watermark: this.#watermark,
    });
  }

  /** A file that nobody changes up to there; all of it where no size is given. */
  #fileAt(path: string, bytes: number | undefined, attributes: SourceFile['attributes'] = {}): SourceFile {
    const descriptor = opened(path);
    const flags = [this.#flag];
    return this.#file({ path, descriptor, bytes: bytes ?? fstatSync(descriptor).size, attributes, flags }, async () =>
      closeSync(descriptor),
    );
  }

  async #openTenant(name: ItemName, id: TenantId, signal: AbortSignal): Promise<SourceFile> {
    const asked = this.#host.hold(this.#session, id);
    const held = await abortable(asked, signal, (late) => {
      if (late !== 'dropped') void this.#host.release(this.#session, late.hold).catch(() => {}); // it ends with the session
    });
    // The log that goes with the copy says that it is dropped; the empty file goes then.
    if (held === 'dropped')
      return this.#file({ path: name, descriptor: -1, bytes: 0, attributes: { dropped: 1 }, flags: [] });
    const { hold, memory, descriptor, bytes, term, lsn, hash } = held;
    const flags = [this.#flag, new HoldFlag(memory)];
    const path = tenantPath(this.#dir, id);
    // Its descriptor is the node's: closing one here would drop the locks that SQLite has on the file.
    return this.#file({ path, descriptor, bytes, attributes: { term, lsn, hash }, flags }, () =>
      this.#host.release(this.#session, hold),
    );
  }

  #file(
    { path, descriptor, bytes, attributes, flags }: OpenedFile,
    release: () => Promise<void> = async () => {},
  ): SourceFile {
    let closed: Promise<void> | undefined;
    const file: SourceFile = {
      bytes,
      attributes,
      read: (target, offset) => {
        if (closed !== undefined) throw new NostosError('CLOSED', `${path} is closed`);
        const error = attempt(() => fill(descriptor, target, offset, path));
        // What was read counts only if it was still held afterwards.
        for (const flag of flags) flag.check();
        if (error !== undefined) throw error.reason;
      },
      close: () => {
        this.#open.delete(file);
        closed ??= release().then(() => void collectIfGrown(GROWN_BYTES_BACKGROUND));
        return closed;
      },
    };
    return file;
  }

  #copyCatalog(): PlanItem {
    mkdirSync(join(this.#dir, SERVING_DIR), { recursive: true });
    rmSync(this.catalog, { force: true });
    try {
      using database = new DatabaseSync(join(this.#dir, 'catalog.sqlite'), { readOnly: true, timeout: 5_000 });
      database.prepare('vacuum into ?').run(this.catalog);
    } catch (error) {
      throw fromSqlite(error);
    }
    return { name: parseItemName('catalog'), bytes: statSync(this.catalog).size };
  }

  /** The tenants of the copied catalog that have a file. The others have no record yet that the copied log lacks. */
  *#listTenants(): Iterable<PlanItem> {
    const ids = this.#filesThere();
    using database = new DatabaseSync(this.catalog, { readOnly: true });
    for (const row of database.prepare('select id from tenants order by id').iterate()) {
      const id = row['id'] as number;
      if (!ids.has(id)) continue;
      const bytes = statSync(tenantPath(this.#dir, toTenantId(id)), { throwIfNoEntry: false })?.size ?? 0;
      if (bytes === 0) continue;
      const name = parseItemName(`tenant/${id}`);
      this.#tenants.add(name);
      yield { name, bytes };
    }
  }

  #filesThere(): Set<number> {
    try {
      return new Set(readdirSync(join(this.#dir, 'tenants')).map((name) => Number(TENANT_DIR.exec(name)?.[1])));
    } catch {
      return new Set(); // no tenant was ever open
    }
  }
}

interface OpenedFile {
  readonly path: string;
  readonly descriptor: number;
  readonly bytes: number;
  readonly attributes: SourceFile['attributes'];
  readonly flags: readonly HoldFlag[];
}

function opened(path: string): number {
  try {
    return openSync(path, 'r');
  } catch (error) {
    throw diskError('open', path, error);
  }
}

function fill(descriptor: number, target: Uint8Array, offset: number, path: string): void {
  for (let done = 0; done < target.length;) {
    const count = readSync(descriptor, target, done, target.length - done, offset + done);
    if (count === 0)
      throw new NostosError('IO_FAILED', `${path} ends at ${offset + done}, before what was asked of it; start over`, {
        details: { path, offset: offset + done },
      });
    done += count;
  }
}

function attempt(run: () => void): { readonly reason: unknown } | undefined {
  try {
    run();
    return undefined;
  } catch (error) {
    return { reason: error instanceof NostosError ? error : diskError('read', 'a file that is copied', error) };
  }
}

/** Rejects when the signal says so; what comes after that is handed to `onLate`. */
function abortable<T>(asked: Promise<T>, signal: AbortSignal, onLate: (value: T) => void): Promise<T> {
  return new Promise<T>((resolve, reject) => {
    const abort = (): void => {
      reject(signal.reason);
      asked.then(onLate, () => {});
    };
    signal.addEventListener('abort', abort, { once: true });
    asked.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort));
    if (signal.aborted) abort();
  });
}
