/**
 * Reads back what a repository holds and says what is wrong: every manifest, every list, and every chunk and record, or a
 * sample of them. What is read is decrypted and decompressed, and compared with its hash; the files of the newest snapshot
 * are also hashed whole. A problem is reported and does not end the run; failing storage does.
 */
import { isNostosError } from '../../base/errors.ts';
import type { ErrorCode } from '../../base/errors.ts';
import { seededRandom } from '../../base/random.ts';
import { releaseBuffer } from '../../base/release.ts';
import { sameBytes } from '../../log/chain.ts';
import type { ArchiveContent } from './archive-format.ts';
import { rangesOf } from './archive-ranges.ts';
import type { Snapshot, SnapshotId, SnapshotItem } from './manifest.ts';
import { ObjectIdSet } from './object-id-set.ts';
import type { ObjectId } from './object-format.ts';
import type { Repository } from './repository.ts';
import { Window } from './window.ts';

export interface VerifyOptions {
  /** Which share of chunks and archived objects is read, chosen by the seed; 1: all. */
  readonly share?: number;
  readonly seed?: number;
  readonly signal?: AbortSignal;
  readonly onProgress?: (report: VerifyReport) => void;
}

export interface VerifyProblem {
  readonly code: ErrorCode;
  readonly message: string;
  /** Of a snapshot that cannot be restored because of it. */
  readonly snapshot?: SnapshotId;
  /** What of it: `catalog`, the name of a tenant, `archive` or `manifest`. */
  readonly what: string;
}

export interface VerifyReport {
  readonly snapshots: number;
  readonly chunks: number;
  readonly archiveObjects: number;
  /** Plain bytes that were compared with their hash. */
  readonly bytes: number;
  readonly problems: readonly VerifyProblem[];
}

/** Problems beyond that are counted by nobody: the first ones are enough to act upon. */
const PROBLEMS_MAX = 1_000;
const REPORTED = new Set<ErrorCode>(['BACKUP_DAMAGED', 'BACKUP_KEY_MISSING', 'UNSUPPORTED_FORMAT', 'ARCHIVE_GAP']);
const NOWHERE = { write: () => Promise.resolve() };

export async function verify(repository: Repository, options: VerifyOptions = {}): Promise<VerifyReport> {
  const lock = await repository.hold(options);
  try {
    return await new Verification(repository, options).run();
  } finally {
    await lock.release();
  }
}

class Verification {
  readonly #repository: Repository;
  readonly #options: VerifyOptions;
  readonly #isChosen: () => boolean;
  readonly #verified = new ObjectIdSet();
  readonly #problems: VerifyProblem[] = [];
  readonly #counts = { snapshots: 0, chunks: 0, archiveObjects: 0, bytes: 0 };

  constructor(repository: Repository, options: VerifyOptions) {
    this.#repository = repository;
    this.#options = options;
    const { share = 1, seed = 1 } = options;
    const random = seededRandom(seed);
    this.#isChosen = () => share >= 1 || random.chance(share);
  }

  async run(): Promise<VerifyReport> {
    const ids: SnapshotId[] = [];
    for await (const id of this.#repository.snapshotIds(this.#options)) ids.push(id);
    let isNewest = true;
    for (const id of ids.toReversed()) {
      const snapshot = await this.#try({ snapshot: id, what: 'manifest' }, () =>
        this.#repository.findSnapshot(id, this.#options),
      );
      if (snapshot === undefined) continue;
      this.#counts.snapshots += 1;
      await this.#verifySnapshot(snapshot, isNewest);
      isNewest = false;
    }
    await this.#verifyArchive();
    return this.#report();
  }

  async #verifySnapshot(snapshot: Snapshot, isNewest: boolean): Promise<void> {
    const { signal, share = 1 } = this.#options;
    for (const item of snapshot.items) {
      const where = { snapshot: snapshot.id, what: item.kind === 'catalog' ? 'catalog' : item.name };
      await this.#try(where, async () => {
        if (isNewest && share >= 1) await this.#readWhole(item);
        else await this.#readChunks(item, where);
      });
    }
    for (const range of rangesOf(snapshot.terms, snapshot.archive))
      await this.#try({ snapshot: snapshot.id, what: 'archive' }, () =>
        this.#repository.archive.checkCovered(range, { signal }),
      );
  }

  async #readWhole(item: SnapshotItem): Promise<void> {
    const { signal } = this.#options;
    const onBytes = (count: number): void => this.#count(count);
    await this.#repository.readFile(item, NOWHERE, { signal, onBytes });
    for (const id of await this.#repository.content.chunksOf(item, { signal })) this.#verified.add(id);
  }

  async #readChunks(item: SnapshotItem, where: Omit<VerifyProblem, 'code' | 'message'>): Promise<void> {
    const { content, deps } = this.#repository;
    const { signal } = this.#options;
    const window = new Window(deps.limits.backupConcurrency);
    const readOne = (id: ObjectId): Promise<void> =>
      this.#try(where, async () => {
        const plain = await content.get(id, { signal });
        this.#verified.add(id);
        this.#count(plain.length);
        releaseBuffer(plain);
      });
    for (const id of await content.chunksOf(item, { signal }))
      if (!this.#verified.has(id) && this.#isChosen()) await window.run(() => readOne(id));
    await window.settled();
  }

  /** Each object for itself, and that it goes on from what is known of the one that reached furthest before it. */
  async #verifyArchive(): Promise<void> {
    const { archive } = this.#repository;
    for (const generation of await archive.generations(this.#options)) {
      let before: ArchiveContent | undefined;
      for (const name of await archive.objects(generation, this.#options)) {
        if (!this.#isChosen()) continue;
        const content = await this.#try({ what: 'archive' }, () => archive.read(name, this.#options));
        if (content === undefined) continue;
        this.#counts.archiveObjects += 1;
        for (const { record } of content.records) this.#counts.bytes += record?.bytes.length ?? 0;
        if (before !== undefined && !agrees(before, content))
          this.#add({ what: 'archive' }, 'BACKUP_DAMAGED', `${name.key} does not agree with the object before it`);
        if (before === undefined || content.last.lsn > before.last.lsn) before = content;
        this.#options.onProgress?.(this.#report());
      }
    }
  }

  #count(bytes: number): void {
    this.#counts.chunks += 1;
    this.#counts.bytes += bytes;
    this.#options.onProgress?.(this.#report());
  }

  async #try<T>(where: Omit<VerifyProblem, 'code' | 'message'>, run: () => Promise<T>): Promise<T | undefined> {
    this.#options.signal?.throwIfAborted();
    try {
      return await run();
    } catch (error) {
      if (!isNostosError(error) || !REPORTED.has(error.code)) throw error;
      this.#add(where, error.code, error.message);
      return undefined;
    }
  }

  #add(where: Omit<VerifyProblem, 'code' | 'message'>, code: ErrorCode, message: string): void {
    if (this.#problems.length < PROBLEMS_MAX) this.#problems.push({ ...where, code, message });
  }

  #report(): VerifyReport {
    return { ...this.#counts, problems: this.#problems };
  }
}

/** Of two objects in the order of their first records; those that do not touch agree. */
function agrees(before: ArchiveContent, content: ArchiveContent): boolean {
  const known = content.from - 1 - before.from;
  const link = before.records[known];
  if (known >= 0 && link !== undefined) return sameBytes(link.hash, content.records[0]!.header.previousHash);
  const other = before.records[content.from - before.from];
  return other === undefined || sameBytes(other.hash, content.records[0]!.hash);
}
