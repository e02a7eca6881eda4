/**
 * The least that any replay could do: the changesets of a log, in memory, applied one behind the other in batches as large as
 * those of `src/store/replay.ts`. The peer of whatever replays.
 */
import { constants, type DatabaseSync } from 'node:sqlite';
import type { Lsn } from '../src/base/brands.ts';
import type { Log } from '../src/log/log.ts';
import { RecordKind } from '../src/log/record.ts';
import { concatChangesets } from '../src/store/changeset.ts';
import { decodeChangesetPayload } from '../src/store/payload.ts';

const BATCH = { records: 4096, bytes: 1024 * 1024 };

export function changesetsFrom(log: Log, from: Lsn): Uint8Array[] {
  const changesets: Uint8Array[] = [];
  for (const { records } of log.read({ from }))
    for (const { record } of records)
      if (record.kind === RecordKind.changeset)
        changesets.push(Uint8Array.from(decodeChangesetPayload(record.payload).changeset));
  return changesets;
}

export function applyInBatches(database: DatabaseSync, changesets: readonly Uint8Array[]): void {
  database.exec('pragma journal_mode = wal; pragma synchronous = normal; pragma wal_autocheckpoint = 0');
  for (let from = 0, to = 0; from < changesets.length; from = to) {
    for (let bytes = 0; to < changesets.length && to - from < BATCH.records && bytes < BATCH.bytes; to += 1)
      bytes += changesets[to]!.length;
    database.exec('begin');
    const batch = concatChangesets(changesets.slice(from, to));
    if (!database.applyChangeset(batch, { onConflict: () => constants.SQLITE_CHANGESET_ABORT }))
      throw new Error('the changesets do not apply');
    database.exec('commit');
  }
}
