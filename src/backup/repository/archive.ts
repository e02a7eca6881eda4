/**
 * The archived log: objects of committed records, per generation. Several nodes may have archived the same records, so
 * objects overlap; a reader picks any chain of them that covers what it wants, and an object that is damaged costs
 * nothing where another one has its records. Equal hashes at one LSN prove an equal history, so each object has to begin
 * with a record that names the hash of the one before it: what does not agree is refused, what is missing is named.
 */
import type { Generation, Hlc, Lsn, TenantId, TenantUuid } from '../../base/brands.ts';
import { assert } from '../../base/assert.ts';
import { isNostosError, NostosError } from '../../base/errors.ts';
import type { Random } from '../../base/random.ts';
import { releaseBuffer } from '../../base/release.ts';
import type { ChainPoint } from '../../log/chain.ts';
import { brokenLink, pointOf, sameBytes } from '../../log/chain.ts';
import type { ReadRecord } from '../../log/reader.ts';
import type { ObjectBackend } from '../backend/backend.ts';
import { absent } from '../backend/backend.ts';
import type { ArchiveContent, ArchivedRecord, ArchiveName, ArchivePrelude } from './archive-format.ts';
import {
  ARCHIVE_PRELUDE_BYTES,
  archivePrefix,
  damaged,
  decodeArchive,
  decodePrelude,
  encodeArchive,
  parseArchiveKey,
} from './archive-format.ts';
import type { KeyProvider } from './keys.ts';
import { NO_TENANT_UUID } from './keys.ts';
import type { RepositoryId } from './manifest.ts';

export interface LsnRange {
  readonly from: Lsn;
  readonly to: Lsn;
}

export interface ArchiveRange extends LsnRange {
  readonly generation: Generation;
}

export interface ReadArchiveOptions {
  /** The record before the first one, where it is known: the first record has to continue it. */
  readonly after?: ChainPoint | undefined;
  /** Sealed payloads of other tenants are not read: their records come without. */
  readonly tenants?: ReadonlySet<TenantId> | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface WriteArchiveOptions {
  /** Whose key seals the payloads of this tenant; undefined where nobody knows: that of the repository. */
  readonly uuidOf: (tenant: TenantId) => TenantUuid | undefined;
  /** Each object that is durable now; everything up to `through` is archived. */
  readonly onArchived?: (object: { readonly through: ChainPoint; readonly bytes: number }) => void;
  readonly signal?: AbortSignal;
}

export interface ArchiveDeps {
  readonly backend: ObjectBackend;
  readonly repository: RepositoryId;
  readonly keys: KeyProvider;
  readonly random: Random;
  readonly objectBytesMax: number;
}

export class Archive {
  readonly #deps: ArchiveDeps;

  constructor(deps: ArchiveDeps) {
    this.#deps = deps;
  }

  /**
   * Archives consecutive committed records, in pages as the log gives them (which must not be `passing`). Resolves with
   * the last one, undefined when there was none; after a failure, what `onArchived` told of is archived.
   */
  async write(
    pages: Iterable<readonly ReadRecord[]> | AsyncIterable<readonly ReadRecord[]>,
    { uuidOf, onArchived, signal }: WriteArchiveOptions,
  ): Promise<ChainPoint | undefined> {
    const { objectBytesMax } = this.#deps;
    let held: ReadRecord[] = [];
    let bytes = 0;
    let through: ChainPoint | undefined;
    const put = async (): Promise<void> => {
      if (held.length === 0) return;
      const last = held.at(-1)!;
      const stored = await this.#put(held, uuidOf, signal);
      through = pointOf(last.record, last.hash);
      onArchived?.({ through, bytes: stored });
      [held, bytes] = [[], 0];
    };
    for await (const page of pages) {
      for (const entry of page) {
        signal?.throwIfAborted();
        const before = held.at(-1);
        if (before !== undefined) {
          const broken = brokenLink(pointOf(before.record, before.hash), entry.record);
          assert(broken === undefined, `records to archive are no chain: ${broken}`);
          const isOther = before.record.generation !== entry.record.generation;
          if (isOther || bytes + entry.record.bytes.length > objectBytesMax) await put();
        }
        held.push(entry);
        bytes += entry.record.bytes.length;
      }
    }
    await put();
    return through;
  }

  /** The objects of a generation, in the order of their first record. */
  async objects(generation: Generation, { signal }: { signal?: AbortSignal | undefined } = {}): Promise<ArchiveName[]> {
    const names: ArchiveName[] = [];
    for await (const { key } of this.#deps.backend.list(archivePrefix(generation), { signal })) {
      const name = parseArchiveKey(key);
      if (name !== undefined) names.push(name);
    }
    return names;
  }

  async generations({ signal }: { signal?: AbortSignal } = {}): Promise<Generation[]> {
    const found = new Set<Generation>();
    for (let after = ''; ;) {
      const next = await first(this.#deps.backend.list('archive/', { after, signal }));
      const generation = next?.key.split('/')[1];
      if (generation === undefined) return [...found];
      if (/^[0-9a-f]{32}$/.test(generation)) found.add(generation as Generation);
      // Behind everything that begins with this generation.
      after = `archive/${generation}/~`;
    }
  }

  /** Throws `ARCHIVE_GAP` where records are missing; whether the objects are whole shows when they are read. */
  async checkCovered(range: ArchiveRange, options: ReadArchiveOptions = {}): Promise<void> {
    const missing = missingFrom(range, await this.objects(range.generation, options));
    if (missing.length > 0) throw gap(range, missing);
  }

  /** The records of a range, a page per object, each checked and each the successor of the one before. */
  async *records(
    range: ArchiveRange,
    options: ReadArchiveOptions = {},
  ): AsyncGenerator<readonly ArchivedRecord[], void, void> {
    if (range.from > range.to) return;
    const { signal, tenants } = options;
    const names = await this.objects(range.generation, { signal });
    const missing = missingFrom(range, names);
    if (missing.length > 0) throw gap(range, missing);
    let previous = options.after;
    for (let next = range.from; next <= range.to;) {
      signal?.throwIfAborted();
      const content = await this.#readOneOf(candidates(names, next), { previous, next, tenants, signal });
      const page = content.records.slice(next - content.from, Math.min(range.to, content.last.lsn) + 1 - content.from);
      const last = page.at(-1)!;
      previous = pointOf(last.header, last.hash);
      next = (last.header.lsn + 1) as Lsn;
      yield page;
    }
  }

  /** The last record at or before a time; undefined when the first archived one is later, or there is none. */
  async lastBefore(
    generation: Generation,
    time: Hlc,
    { signal }: { signal?: AbortSignal } = {},
  ): Promise<ChainPoint | undefined> {
    // Times rise along a generation, so those of the objects do, in the order of their first records.
    const names = await this.objects(generation, { signal });
    let [low, high] = [0, names.length];
    while (low < high) {
      const middle = Math.floor((low + high) / 2);
      if ((await this.prelude(names[middle]!, { signal })).firstHlc <= time) low = middle + 1;
      else high = middle;
    }
    const name = names[low - 1];
    if (name === undefined) return undefined;
    // Another object may begin earlier and reach further.
    const furthest = names.slice(0, low).reduce((best, other) => (other.to > best.to ? other : best), name);
    const { records } = await this.#read(furthest, { signal });
    const found = records.findLast(({ header }) => header.hlc <= time)!;
    return pointOf(found.header, found.hash);
  }

  async prelude(name: ArchiveName, { signal }: { signal?: AbortSignal | undefined } = {}): Promise<ArchivePrelude> {
    const range = { start: 0, end: ARCHIVE_PRELUDE_BYTES };
    const bytes = await this.#deps.backend.get(name.key, { range, signal });
    if (bytes === undefined) throw absent(this.#deps.backend, name.key);
    return decodePrelude(bytes, name);
  }

  /** Reads and checks one object. */
  async read(name: ArchiveName, options: { readonly signal?: AbortSignal } = {}): Promise<ArchiveContent> {
    return this.#read(name, options);
  }

  async #put(
    records: readonly ReadRecord[],
    uuidOf: WriteArchiveOptions['uuidOf'],
    signal: AbortSignal | undefined,
  ): Promise<number> {
    const { backend, repository, keys, random } = this.#deps;
    const keyOf = (tenant: TenantId) => keys.keyFor(uuidOf(tenant) ?? NO_TENANT_UUID);
    const { key, bytes } = await encodeArchive(records, { repository, keyOf, random });
    // The name holds a digest of the bytes: whoever has it already has the same.
    await backend.put(key, bytes, { ifAbsent: true, signal });
    const { length } = bytes;
    releaseBuffer(bytes);
    return length;
  }

  /** The first of them that is whole and continues the record before; the first failure when none does. */
  async #readOneOf(
    names: readonly ArchiveName[],
    { previous, next, tenants, signal }: ReadArchiveOptions & { previous: ChainPoint | undefined; next: Lsn },
  ): Promise<ArchiveContent> {
    let failure: unknown;
    for (const name of names) {
      try {
        const content = await this.#read(name, { tenants, signal });
        const broken = previous && brokenChain(previous, content, next);
        if (broken === undefined) return content;
        throw damaged(name, `the record ${next} does not continue what other objects hold before it: ${broken}`);
      } catch (error) {
        if (!isNostosError(error, 'BACKUP_DAMAGED')) throw error;
        failure ??= error;
      }
    }
    throw failure;
  }

  async #read(
    name: ArchiveName,
    { tenants, signal }: { tenants?: ReadonlySet<TenantId> | undefined; signal?: AbortSignal | undefined },
  ): Promise<ArchiveContent> {
    const { backend, repository, keys } = this.#deps;
    const bytes = await backend.get(name.key, { signal });
    if (bytes === undefined) throw absent(backend, name.key);
    return decodeArchive(bytes, name, { repository, keyById: (id) => keys.keyById(id), tenants });
  }
}

/** Of the objects that hold this record, those that reach furthest first. */
function candidates(names: readonly ArchiveName[], lsn: Lsn): readonly ArchiveName[] {
  return names.filter(({ from, to }) => from <= lsn && lsn <= to).toSorted((a, b) => b.to - a.to);
}

function brokenChain(previous: ChainPoint, content: ArchiveContent, next: Lsn): string | undefined {
  const { header, record } = content.records[next - content.from]!;
  if (record !== undefined) return brokenLink(previous, record);
  if (header.lsn !== previous.lsn + 1) return `LSN ${header.lsn} follows ${previous.lsn}`;
  return sameBytes(header.previousHash, previous.hash)
    ? undefined
    : 'it does not name the hash of the record before it';
}

/** What none of the objects holds; they come in the order of their first records. */
export function missingFrom({ from, to }: LsnRange, names: readonly ArchiveName[]): LsnRange[] {
  const missing: LsnRange[] = [];
  let next: number = from;
  for (const name of names) {
    if (next > to) break;
    if (name.from > next) missing.push({ from: next as Lsn, to: Math.min(name.from - 1, to) as Lsn });
    next = Math.max(next, name.to + 1);
  }
  if (next <= to) missing.push({ from: next as Lsn, to });
  return missing;
}

function gap({ generation, from, to }: ArchiveRange, missing: readonly LsnRange[]): NostosError {
  const shown = missing.slice(0, 5).map((part) => (part.from === part.to ? `${part.from}` : `${part.from}-${part.to}`));
  const more = missing.length > 5 ? ` and ${missing.length - 5} more ranges` : '';
  return new NostosError(
    'ARCHIVE_GAP',
    `The archived log of the generation ${generation} lacks LSN ${shown.join(', ')}${more} of ${from}-${to}; restore to a position before the gap, or to a snapshot behind it`,
    { details: { generation, from, to, missing: missing.slice(0, 100) } },
  );
}

async function first<T>(source: AsyncIterable<T>): Promise<T | undefined> {
  for await (const value of source) return value;
  return undefined;
}
