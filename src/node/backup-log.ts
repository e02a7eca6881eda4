/**
 * Reads committed records from the segment files of a node that goes on meanwhile, in another thread than the log's. Which
 * files, and up to which byte each holds committed records, the node says (`LogFiles`); until then they do not change, as
 * long as they are held. Each record is checked by its CRC and its place in the chain.
 */
import { join } from 'node:path';
import { NO_LSN, type Generation, type Hlc, type Lsn } from '../base/brands.ts';
import { systemDisk, type Disk } from '../base/disk.ts';
import type { NostosError } from '../base/errors.ts';
import { brokenLink, genesis, pointOf, samePoint, type ChainPoint } from '../log/chain.ts';
import { logDamaged } from '../log/damage.ts';
import type { ReadRecord } from '../log/reader.ts';
import { RecordKind, hashRecord, type LogRecord } from '../log/record.ts';
import { SegmentCursor } from '../log/segment-cursor.ts';
import { SEGMENT_HEADER_BYTES, decodeSegmentHeader } from '../log/segment-header.ts';
import { loadTable } from '../log/table-file.ts';
import { TERMS_FILE, termTable, type TermEntry } from '../log/terms.ts';
import type { LogFiles } from './engine-protocol.ts';

const PAGE_BYTES = 1024 * 1024;

interface Place {
  readonly segment: string;
  readonly offset: number;
  readonly point: ChainPoint;
}

/** What a span of the log says, besides its records. */
export interface LogFacts {
  /** The record before the span. */
  readonly before: ChainPoint;
  /** The record before the first one that somebody lacks; the end where nobody does. */
  readonly complete: ChainPoint;
  /** The last one, and its time. */
  readonly end: ChainPoint;
  readonly time: Hlc;
  /** The term table up to the end. */
  readonly terms: readonly TermEntry[];
  /** Those that were asked for and lie in the span. */
  readonly points: ReadonlyMap<Lsn, ChainPoint>;
}

export interface FactsRequest {
  readonly from: Lsn;
  /** Of an empty log. */
  readonly generation: Generation;
  readonly wanted: ReadonlySet<Lsn>;
  /** Whether what was stored lacks this record, which is at or behind `from`. */
  readonly isLacking: (record: LogRecord) => boolean;
}

export class BackupLog {
  readonly #dir: string;
  readonly #disk: Disk;
  /** Where the last page ended: the next one usually begins there. */
  #place: Place | undefined;

  constructor(dir: string, disk: Disk = systemDisk) {
    this.#dir = join(dir, 'log');
    this.#disk = disk;
  }

  /** Pages of records that stay valid, from `from` up to the watermark or `to`. `files` begins with the segment of `from`. */
  *pages(
    files: LogFiles,
    { from, to = files.watermark }: { from: Lsn; to?: Lsn },
  ): Generator<ReadRecord[], void, void> {
    if (from > to) return;
    let page: ReadRecord[] = [];
    let bytes = 0;
    for (const entry of this.#records(files, from - 1, to)) {
      if (entry.record.lsn < from) continue;
      page.push(entry);
      bytes += entry.record.bytes.length;
      if (bytes < PAGE_BYTES) continue;
      yield page;
      [page, bytes] = [[], 0];
    }
    if (page.length > 0) yield page;
  }

  /**
   * Walks from the beginning of the segment of `from` to the watermark. The table on disk has the terms before that, since
   * it is written before a segment is sealed, and the walk finds the others.
   */
  facts(files: LogFiles, { from, generation, wanted, isLacking }: FactsRequest): LogFacts {
    this.#place = undefined;
    const points = new Map<Lsn, ChainPoint>();
    const found: TermEntry[] = [];
    const table = loadTable(this.#disk, join(this.#dir, TERMS_FILE), termTable)?.rows ?? [];
    let [before, end, time] = [genesis(generation), genesis(generation), 0n as Hlc];
    let first = Infinity;
    let complete: ChainPoint | undefined;
    for (const { record, hash, previous } of this.#records(files, NO_LSN, files.watermark)) {
      first = Math.min(first, record.lsn);
      if (record.kind === RecordKind.termStart)
        found.push({ term: record.term, generation: record.generation, firstLsn: record.lsn, previous });
      if (record.lsn === from) before = previous;
      if (record.lsn >= from && complete === undefined && isLacking(record)) complete = previous;
      end = pointOf(record, hash);
      time = record.hlc;
      if (wanted.has(record.lsn)) points.set(record.lsn, end);
    }
    const terms = [...table.filter(({ firstLsn }) => firstLsn < first), ...found];
    return { before, complete: complete ?? end, end, time, terms, points };
  }

  *#records(
    files: LogFiles,
    before: number,
    to: Lsn,
  ): Generator<ReadRecord & { readonly previous: ChainPoint }, void, void> {
    const known = this.#place?.point.lsn === before ? this.#place : undefined;
    const start = known === undefined ? 0 : files.segments.findIndex(({ name }) => name === known.segment);
    let previous = start > 0 || (known !== undefined && start === 0) ? known?.point : undefined;
    for (const [index, { name, bytes }] of files.segments.entries()) {
      if (index < start) continue;
      const isKnown = known !== undefined && name === known.segment;
      const file = this.#disk.open(join(this.#dir, name), 'read');
      try {
        const header = Buffer.alloc(SEGMENT_HEADER_BYTES);
        file.read(header, 0);
        const anchor = decodeSegmentHeader(header)?.anchor;
        const damage = (offset: number, reason: string): NostosError =>
          logDamaged({ segment: name, offset, lsn: ((previous?.lsn ?? 0) + 1) as Lsn, reason });
        if (anchor === undefined) throw damage(0, 'its header does not check out');
        if (!isKnown && previous !== undefined && !samePoint(previous, anchor))
          throw damage(0, 'its anchor is not the record before it');
        previous = isKnown ? known.point : anchor;
        const cursor = new SegmentCursor(file, isKnown ? known.offset : SEGMENT_HEADER_BYTES, bytes);
        while (!cursor.done && previous.lsn < to) {
          const record = cursor.next();
          if (typeof record === 'string') throw damage(cursor.offset, `the record is ${record}`);
          const broken = brokenLink(previous, record);
          if (broken !== undefined) throw damage(cursor.offset - record.bytes.length, broken);
          const hash = hashRecord(record);
          const entry = { record, hash, previous };
          previous = pointOf(record, hash);
          this.#place = { segment: name, offset: cursor.offset, point: previous };
          yield entry;
        }
        cursor.release();
      } finally {
        file.close();
      }
      if (previous.lsn >= to) return;
    }
  }
}
