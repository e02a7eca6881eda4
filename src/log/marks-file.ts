/**
 * `log/marks`: two things that a store knows of its log and that the records in it do not say.
 *
 * - W. Records name the W of whoever wrote them, so most of the time the log says it anyway; here it stands where no
 *   record does yet, and before records that do are cut. What a store has once known durably it knows for good.
 * - The record above which records were received in bulk. Who is in sync has synced what a record names as committed
 *   before that record comes. Who catches up has not: of what it was writing a power cut may take the first part and
 *   leave the last, which names it. That is a tear; anywhere else it is damage.
 */
import { join } from 'node:path';
import type { Generation, Lsn, Position, Term } from '../base/brands.ts';
import type { Disk } from '../base/disk.ts';
import { getUint64, putUint64 } from './record.ts';
import type { TableShape } from './table-file.ts';
import { loadTable, saveTable } from './table-file.ts';

export const MARKS_FILE = 'marks';

export interface Marks {
  readonly watermark: Position;
  /** Undefined where nothing was received in bulk since the last sync that covers it. */
  readonly bulkFrom: Position | undefined;
}

const marksTable: TableShape<Position> = {
  magic: 'NOSTOSMK',
  rowBytes: 16 + 8 + 8,
  encode(row, view, bytes) {
    bytes.set(Buffer.from(row.generation, 'hex'), 0);
    putUint64(view, 16, row.term);
    putUint64(view, 24, row.lsn);
  },
  decode: (view, bytes) => ({
    generation: Buffer.from(bytes.subarray(0, 16)).toString('hex') as Generation,
    term: getUint64(view, 16, 'term') as Term,
    lsn: getUint64(view, 24, 'LSN') as Lsn,
  }),
};

/** Undefined where there are none, or where they do not check out: then records alone tell. */
export function loadMarks(disk: Disk, dir: string): Marks | undefined {
  const [watermark, bulkFrom] = loadTable(disk, join(dir, MARKS_FILE), marksTable)?.rows ?? [];
  return watermark === undefined ? undefined : { watermark, bulkFrom };
}

export function saveMarks(disk: Disk, dir: string, { watermark, bulkFrom }: Marks): void {
  const rows = bulkFrom === undefined ? [watermark] : [watermark, bulkFrom];
  saveTable(disk, join(dir, MARKS_FILE), marksTable, { base: 0, rows });
}
