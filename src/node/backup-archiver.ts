/**
 * Brings the committed log of a node into the archive of a repository: whatever of a span the archive lacks and the log still
 * has. Nothing above the watermark is ever read, so nothing that may yet be dropped gets there, whoever leads meanwhile.
 *
 * The log is held from what is not archived yet on, also between the runs.
 */
import { DatabaseSync } from 'node:sqlite';
import { join } from 'node:path';
import type { Lsn, TenantId, TenantUuid } from '../base/brands.ts';
import { NO_TENANT, toTenantUuid } from '../base/brands.ts';
import { GROWN_BYTES_BACKGROUND, collectIfGrown } from '../base/collect.ts';
import { NostosError, isNostosError } from '../base/errors.ts';
import type { ArchiveRange, LsnRange } from '../backup/repository/archive.ts';
import { missingFrom } from '../backup/repository/archive.ts';
import { archivePrefix, parseArchiveKey } from '../backup/repository/archive-format.ts';
import type { Repository } from '../backup/repository/repository.ts';
import { brokenLink, sameBytes, type ChainPoint } from '../log/chain.ts';
import type { ReadRecord } from '../log/reader.ts';
import { RecordKind } from '../log/record.ts';
import { decodeTenantCreate } from '../store/payload.ts';
import type { ArchiveHost, ArchiveLog } from './backup-host.ts';
import type { BackupLog } from './backup-log.ts';

export interface ArchiverDeps {
  readonly host: ArchiveHost;
  readonly repository: Repository;
  readonly log: BackupLog;
  /** Of the node. */
  readonly dir: string;
}

export interface ArchiveOptions {
  readonly signal?: AbortSignal | undefined;
  readonly onArchived?: ((sent: { readonly records: number; readonly bytes: number }) => void) | undefined;
}

export interface Archived {
  /** Everything from the first record that was asked for up to here is archived, but the gaps. */
  readonly through: Lsn;
  readonly records: number;
  /** Of the objects that were written. */
  readonly bytes: number;
  /** Records that neither the archive nor the log has. */
  readonly gaps: readonly LsnRange[];
}

/** Tries to find where the log begins; it may be pruned further between two looks. */
const PRUNED_TRIES_MAX = 10;

export class Archiver {
  readonly #deps: ArchiverDeps;
  readonly #uuids = new Map<TenantId, TenantUuid>();
  /** The last record that was sent: what follows it needs no look at what others have archived. */
  #sent: ChainPoint | undefined;
  /** Everything from `from` on is archived, but the gaps, and what follows `through` is held. */
  #known: { readonly from: Lsn; readonly through: Lsn; readonly log: number; readonly gaps: LsnRange[] } | undefined;

  constructor(deps: ArchiverDeps) {
    this.#deps = deps;
  }

  /** Archives from this record on; without one from where the archive of this history ends, or all that the log has. */
  async catchUp(from?: Lsn, options: ArchiveOptions = {}): Promise<Archived> {
    for (let tries = 1; ; tries += 1)
      try {
        return await this.#catchUp(from, options);
      } catch (error) {
        const hadLog = this.#known !== undefined;
        await this.close(); // what is archived is looked up anew
        if (tries > 1 || !hadLog || !isNostosError(error, 'RESERVATION_EXPIRED')) throw error;
      }
  }

  /** Lets go of the log. */
  async close(): Promise<void> {
    const known = this.#known;
    this.#known = undefined;
    if (known !== undefined) await this.#deps.host.closeArchive(known.log).catch(() => {}); // it may have expired
  }

  /** About how many bytes of the archive hold records above `after`: of an object that begins before, its share. */
  async storedBytes(after: Lsn, { signal }: ArchiveOptions): Promise<number> {
    const { repository, host } = this.#deps;
    let bytes = 0;
    for (const { generation } of await host.generations())
      for await (const entry of repository.deps.backend.list(archivePrefix(generation), { signal })) {
        const name = parseArchiveKey(entry.key);
        if (name === undefined || name.to <= after) continue;
        bytes += entry.bytes * Math.min(1, (name.to - after) / (name.to - name.from + 1));
      }
    return bytes;
  }

  async #catchUp(asked: Lsn | undefined, options: ArchiveOptions): Promise<Archived> {
    const { host } = this.#deps;
    const known = this.#known;
    if (known !== undefined && (asked === undefined || known.from <= asked)) {
      const files = await host.archiveFiles(known.log);
      const range = { from: (known.through + 1) as Lsn, to: files.watermark };
      const sent = await this.#send({ ...files, log: known.log }, range, options);
      this.#known = { ...known, through: files.watermark };
      const gaps = known.gaps.filter(({ to }) => asked === undefined || to >= asked);
      return { ...sent, through: files.watermark, gaps };
    }
    await this.close();
    const from = asked ?? (await this.#end(options));
    const { open, first } = await this.#open(from);
    try {
      const gaps: LsnRange[] = [];
      let [records, bytes] = [0, 0];
      for (const range of await this.#missing(from, open.watermark, options)) {
        // Where nothing was archived or asked for, what was pruned is no gap.
        if (range.from < first && (asked !== undefined || from > 1))
          gaps.push({ from: range.from, to: Math.min(first - 1, range.to) as Lsn });
        if (range.to < first) continue;
        const next = Math.max(range.from, first) as Lsn;
        await host.archived(open.log, next);
        const files = await host.archiveFiles(open.log);
        const sent = await this.#send({ ...files, log: open.log }, { from: next, to: range.to }, options);
        records += sent.records;
        bytes += sent.bytes;
      }
      await host.archived(open.log, (open.watermark + 1) as Lsn);
      this.#known = { from, through: open.watermark, log: open.log, gaps };
      return { through: open.watermark, records, bytes, gaps };
    } catch (error) {
      await host.closeArchive(open.log).catch(() => {}); // the first error says more
      throw error;
    }
  }

  /** Holds the log from this record on, or from its first one where that is later. */
  async #open(from: Lsn): Promise<{ readonly open: ArchiveLog; readonly first: Lsn }> {
    let first = from;
    for (let tries = 1; ; tries += 1)
      try {
        return { open: await this.#deps.host.openArchive(first), first };
      } catch (error) {
        const found = isNostosError(error, 'LOG_PRUNED') ? error.details['firstLsn'] : undefined;
        if (typeof found !== 'number' || tries === PRUNED_TRIES_MAX) throw error;
        first = found as Lsn;
      }
  }

  /** Behind the last record of this history that is archived; the first one where none is. */
  async #end(options: ArchiveOptions): Promise<Lsn> {
    let last = 0;
    for (const range of await this.#lineage(1 as Lsn, Number.MAX_SAFE_INTEGER as Lsn))
      for (const { from, to } of await this.#deps.repository.archive.objects(range.generation, options))
        if (from <= range.to) last = Math.max(last, Math.min(to, range.to));
    return (last + 1) as Lsn;
  }

  async #missing(from: Lsn, to: Lsn, options: ArchiveOptions): Promise<LsnRange[]> {
    const { archive } = this.#deps.repository;
    const missing: LsnRange[] = [];
    for (const range of await this.#lineage(from, to))
      missing.push(...missingFrom(range, await archive.objects(range.generation, options)));
    return missing;
  }

  /** The span in pieces of one generation each. */
  async #lineage(from: Lsn, to: Lsn): Promise<ArchiveRange[]> {
    const generations = await this.#deps.host.generations();
    return generations
      .map(({ generation, firstLsn }, index) => ({
        generation,
        from: Math.max(from, index === 0 ? 1 : firstLsn) as Lsn,
        to: Math.min(to, (generations[index + 1]?.firstLsn ?? Infinity) - 1) as Lsn,
      }))
      .filter((range) => range.from <= range.to);
  }

  async #send(
    files: ArchiveLog,
    { from, to }: LsnRange,
    { signal, onArchived }: ArchiveOptions,
  ): Promise<{ readonly records: number; readonly bytes: number }> {
    if (from > to) return { records: 0, bytes: 0 };
    const { host, repository } = this.#deps;
    let [sent, bytes] = [from - 1, 0];
    await repository.archive.write(this.#checked(this.#deps.log.pages(files, { from, to }), signal), {
      uuidOf: (tenant) => this.#uuidOf(tenant),
      onArchived: (object) => {
        this.#sent = object.through;
        const records = object.through.lsn - sent;
        sent = object.through.lsn;
        bytes += object.bytes;
        onArchived?.({ records, bytes: object.bytes });
        void host.archived(files.log, (sent + 1) as Lsn).catch(() => {}); // one that has expired shows at the next look
        collectIfGrown(GROWN_BYTES_BACKGROUND);
      },
      ...(signal === undefined ? {} : { signal }),
    });
    return { records: to - from + 1, bytes };
  }

  /** What somebody else has archived right before must be the same history. */
  async *#checked(
    pages: Iterable<readonly ReadRecord[]>,
    signal: AbortSignal | undefined,
  ): AsyncGenerator<readonly ReadRecord[], void, void> {
    const { archive, url } = this.#deps.repository;
    let isFirst = true;
    for (const page of pages) {
      const { record } = page[0]!;
      if (isFirst && !(this.#sent !== undefined && brokenLink(this.#sent, record) === undefined))
        for (const name of await archive.objects(record.generation, { signal })) {
          if (name.to !== record.lsn - 1) continue;
          const { last } = await archive.prelude(name, { signal });
          if (!sameBytes(last.hash, record.previousHash))
            throw new NostosError(
              'BACKUP_DAMAGED',
              `${name.key} of ${url} ends with another record ${name.to} than the log of this node has; it is of another history, or damaged. Verify the backup, or use another place`,
              { details: { key: name.key, problem: 'of another history', lsn: name.to } },
            );
        }
      isFirst = false;
      for (const { record: one } of page)
        if (one.kind === RecordKind.tenantCreate) this.#uuids.set(one.tenant, decodeTenantCreate(one.payload).uuid);
      yield page;
    }
  }

  /** Also of tenants that were dropped while somebody here looked. */
  #uuidOf(tenant: TenantId): TenantUuid | undefined {
    if (tenant === NO_TENANT) return undefined;
    const known = this.#uuids.get(tenant);
    if (known !== undefined) return known;
    using catalog = new DatabaseSync(join(this.#deps.dir, 'catalog.sqlite'), { readOnly: true, timeout: 5_000 });
    for (const row of catalog.prepare('select id, uuid from tenants').iterate())
      this.#uuids.set(row['id'] as TenantId, toTenantUuid(row['uuid']));
    return this.#uuids.get(tenant);
  }
}
