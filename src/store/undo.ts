/**
 * Brings the file of a tenant back to an earlier record, to which the log is about to be cut: undoes what it holds above
 * that, newest first, in one SQLite transaction that moves the applied position as well. So after any crash the file is
 * at one of the two positions, and the call is made again.
 *
 * - Only `local` changesets can be there: everything else that a file holds is committed, and no rollback gives that up.
 *   This is checked for all of them before anything changes.
 * - What the transaction really changed is captured, and must be what the inverse says.
 * - Answers of idempotent writes go with their writes, since they are rows. AUTOINCREMENT counters go back to what they
 *   were, which `local` records carry for this; a replica that never had the records has the same.
 *
 * It costs what the records above the position cost. Memory is one page of them.
 */
import { constants } from 'node:sqlite';
import type { Lsn } from '../base/brands.ts';
import { NostosError } from '../base/errors.ts';
import { releaseBuffer } from '../base/release.ts';
import type { ChainPoint } from '../log/chain.ts';
import type { CommitLog, CommittedRecord, LogPage } from '../log/commit-log.ts';
import { RecordKind } from '../log/record.ts';
import { concatByTable, invertEach } from './changeset.ts';
import type { OpenFile } from './open-file.ts';
import { decodeChangesetPayload, type ChangesetPayload } from './payload.ts';
import { checkChain } from './replay.ts';
import { fromSqlite } from './sqlite-errors.ts';
import { restoreSequences, writeApplied, writeFingerprint } from './tenant-file.ts';

/** A page is there several times while it is undone: read, inverted, joined by table, captured by two of SQLite's. */
const PAGE_BYTES = 1024 * 1024;

/** Of the record that stays the last one, of whichever tenant. */
export type UndoTarget = Pick<ChainPoint, 'term' | 'lsn' | 'hash'>;

type PageSource = Pick<CommitLog, 'readPage'>;

interface Range {
  readonly from: Lsn;
  readonly to: Lsn;
}

interface Page extends Range {
  readonly count: number;
  /** Where it need not be read again. */
  kept: LogPage | undefined;
}

/** Answers with the number of records that were undone. The caller has the file to itself, and makes it durable. */
export async function undoFile(file: OpenFile, log: PageSource, target: UndoTarget): Promise<number> {
  const { applied } = file;
  if (applied.lsn < target.lsn) return 0;
  if (applied.lsn === target.lsn) {
    checkChain(target, applied);
    return 0;
  }
  const pages = await findPages(file, log, target.lsn);
  const { main, content } = file;
  const before = content.expected.snapshot();
  const counters = new Map<string, bigint>();
  try {
    main.internal('begin immediate').run();
    for (const page of pages.toReversed()) {
      const read = page.kept ?? (await readPage(file, log, page));
      page.kept = undefined;
      if (read.records.length !== page.count) throw changedMeanwhile(file, page);
      const payloads = read.records.map(({ payload }) => decodeChangesetPayload(payload));
      undoPage(file, payloads);
      for (const { sequences } of payloads.toReversed())
        for (const { table, before: value } of sequences) if (value !== undefined) counters.set(table, value);
      read.release?.();
    }
    restoreSequences(main, counters);
    const { term, lsn, hash } = target;
    const position = { term, lsn, hash, fingerprint: content.expected.total() };
    writeApplied(main, position);
    writeFingerprint(main, lsn, content.expected.serialize());
    main.internal('commit').run();
    content.applied = position;
    file.noted = lsn;
    file.durable = Math.min(file.durable, lsn) as Lsn;
    file.appliedTo = lsn;
    return pages.reduce((sum, { count }) => sum + count, 0);
  } catch (error) {
    file.rollback();
    content.expected.restore(before);
    throw fromSqlite(error);
  } finally {
    releaseBuffer(before);
  }
}

/** The records above `lsn` that the file holds, each checked; those of the last page are kept. */
async function findPages(file: OpenFile, log: PageSource, lsn: Lsn): Promise<Page[]> {
  const { applied } = file;
  const pages: Page[] = [];
  for (let from = (lsn + 1) as Lsn; from <= applied.lsn;) {
    const page = await readPage(file, log, { from, to: applied.lsn });
    const { records, next } = page;
    for (const record of records) {
      checkUndoable(file, record);
      if (record.lsn === applied.lsn) checkChain(record, applied);
    }
    const to = Math.min(next - 1, applied.lsn) as Lsn;
    if (records.length > 0) {
      const last = pages.at(-1);
      last?.kept?.release?.();
      if (last !== undefined) last.kept = undefined;
      pages.push({ from, to, count: records.length, kept: page });
    }
    from = next;
  }
  return pages;
}

async function readPage(file: OpenFile, log: PageSource, { from, to }: Range): Promise<LogPage> {
  const page = await log.readPage({
    ...{ from, to, tenant: file.identity.id, uncommitted: true },
    bytesMax: PAGE_BYTES,
  });
  if (page.next <= from)
    throw new NostosError('LOG_DAMAGED', `the log has no record ${from}, which ${file.path} holds`, {
      details: { lsn: from, path: file.path },
    });
  return page;
}

function changedMeanwhile({ path }: OpenFile, { from, to }: Range): NostosError {
  return new NostosError('POSITION_LOST', `the log changed between LSN ${from} and ${to} while ${path} was undone`, {
    details: { path, from, to },
  });
}

function checkUndoable({ path, content }: OpenFile, record: CommittedRecord): void {
  const { lsn, kind } = record;
  const payload = kind === RecordKind.changeset ? decodeChangesetPayload(record.payload) : undefined;
  if (payload?.local === true && payload.schemaVersion === content.schemaVersion) return;
  const what = payload === undefined ? `of kind ${kind}` : payload.local === true ? 'of another schema' : 'of quorum';
  throw new NostosError(
    'ROLLBACK_REFUSED',
    `${path} holds record ${lsn}, which is ${what}: it is committed, and a rollback below it would lose it`,
    { details: { lsn, kind, path } },
  );
}

/** One page of records, which are given in the order in which they happened. */
function undoPage(file: OpenFile, payloads: readonly ChangesetPayload[]): void {
  const { content, shape, path } = file;
  const { database } = file.main;
  const { expected } = content;
  const { bytes, inverses } = invertEach(payloads.map(({ changeset }) => changeset));
  const joined = concatByTable(inverses);
  const before = expected.snapshot();
  for (const inverse of inverses) expected.apply(inverse, shape);
  const due = Buffer.from(expected.total());
  expected.restore(before);
  releaseBuffer(before);
  const session = database.createSession();
  try {
    const apply = (changeset: Uint8Array): boolean =>
      database.applyChangeset(changeset, { onConflict: () => constants.SQLITE_CHANGESET_ABORT });
    // Joined they may conflict with each other where one by one they do not.
    const fits = apply(joined) || inverses.every(apply);
    const captured = session.changeset();
    expected.apply(captured, shape);
    releaseBuffer(captured);
    if (!fits || !due.equals(expected.total()))
      throw new NostosError(
        'TENANT_DAMAGED',
        `${path}: its rows differ from what the log says, so they cannot be brought back along it; restore this tenant`,
        { details: { path } },
      );
  } finally {
    session.close();
    releaseBuffer(joined);
    releaseBuffer(bytes);
  }
}
