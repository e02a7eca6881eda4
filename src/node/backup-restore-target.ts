/**
 * To where a restore from a backup goes: from which snapshot, and to which record. What was asked is resolved once per run
 * against what the repository has; the answer stands in the marker, as the fragment of the source, so that a run that is
 * resumed goes to the same place whatever was archived since.
 */
import { toLsn, type Generation, type Hlc, type Lsn } from '../base/brands.ts';
import { hlcToMs } from '../base/clock.ts';
import { NostosError } from '../base/errors.ts';
import { rangesOf } from '../backup/repository/archive-ranges.ts';
import { missingFrom, type LsnRange } from '../backup/repository/archive.ts';
import type { Snapshot } from '../backup/repository/manifest.ts';
import type { Repository } from '../backup/repository/repository.ts';
import { archiveStart, snapshotFor, timeline, type Timeline } from '../backup/repository/timeline.ts';
import { pointOf, type ChainPoint } from '../log/chain.ts';
import { TermTable } from '../log/terms.ts';

/** Nothing: as far as the newest snapshot and the archived log behind it lead. */
export interface RestoreTarget {
  readonly snapshot?: string | undefined;
  readonly toLsn?: number | undefined;
  /** The last record at or before it; milliseconds since the epoch. */
  readonly toTimeMs?: number | undefined;
}

export interface RestorePoint {
  readonly snapshot: Snapshot;
  /** The last record that the restored state has. */
  readonly point: ChainPoint;
  readonly time: Hlc;
}

interface CallOptions {
  readonly signal?: AbortSignal | undefined;
}

export interface ResolveOptions extends CallOptions {
  /** Snapshots that are of use; the others are as if they were not there. */
  readonly accepts?: (snapshot: Snapshot) => boolean;
}

export async function resolveTarget(
  repository: Repository,
  target: RestoreTarget,
  { accepts = () => true, ...options }: ResolveOptions = {},
): Promise<RestorePoint> {
  if (target.toLsn !== undefined && target.toTimeMs !== undefined)
    throw new NostosError('INVALID_ARGUMENT', 'a restore goes to a position or to a time, not to both');
  const all = await timeline(repository, asSignal(options));
  // One that is asked for by name is refused for what it is, not as missing.
  const line = {
    ...all,
    snapshots: all.snapshots.filter(({ snapshot }) => snapshot.id === target.snapshot || accepts(snapshot)),
  };
  const newest = newestOf(repository, line, target.snapshot);
  const place = await placeOf(repository, { ...target, line, newest }, options);
  const candidates = candidatesFor(line, place, target.snapshot);
  if (candidates.length === 0 && target.snapshot !== undefined) throw notBy(newest, { line, place });
  let lacking: LsnRange[] = [];
  for (const snapshot of candidates.toReversed()) {
    const missing = await missingFor(repository, { snapshot, place }, options);
    if (missing.length === 0) return at(repository, { snapshot, place }, options);
    if (lacking.length === 0) lacking = missing;
  }
  throw await unreachable(repository, { line, place, newest, lacking }, options);
}

async function at(
  repository: Repository,
  { snapshot, place }: { readonly snapshot: Snapshot; readonly place: Place },
  options: CallOptions,
): Promise<RestorePoint> {
  const { position, time } = snapshot;
  if (position.lsn === place.lsn && position.generation === place.generation)
    return { snapshot, point: position, time };
  return { snapshot, ...(await recordAt(repository, place, options)) };
}

/** Oldest first. */
function candidatesFor(line: Timeline, place: Place, id: string | undefined): Snapshot[] {
  return line.snapshots
    .filter(({ snapshot }) => id === undefined || snapshot.id === id)
    .filter(({ snapshot, reach }) => {
      const leads = generationAt(snapshot, place.lsn) === place.generation;
      return leads && reach.from <= place.lsn && place.lsn <= reach.to;
    })
    .map(({ snapshot }) => snapshot);
}

/** What the archive lacks of the records that lead from the files of the snapshot to there. */
async function missingFor(
  { archive }: Repository,
  { snapshot, place }: { readonly snapshot: Snapshot; readonly place: Place },
  options: CallOptions,
): Promise<LsnRange[]> {
  const missing: LsnRange[] = [];
  for (const range of rangesOf(snapshot.terms, {
    after: archiveStart(snapshot),
    through: { ...snapshot.position, ...place },
  }))
    missing.push(...missingFrom(range, await archive.objects(range.generation, asSignal(options))));
  return missing;
}

interface Place {
  readonly generation: Generation;
  readonly lsn: Lsn;
}

function newestOf({ url }: Repository, { snapshots }: Timeline, id: string | undefined): Snapshot {
  const found = snapshots.findLast(({ snapshot }) => id === undefined || snapshot.id === id)?.snapshot;
  if (found !== undefined) return found;
  const what = id === undefined ? 'no snapshot' : `no snapshot ${id}`;
  throw new NostosError('BACKUP_NOT_FOUND', `${url} has ${what}; nostos backup list shows what is there`, {
    details: { url, ...(id === undefined ? {} : { snapshot: id }) },
  });
}

async function placeOf(
  repository: Repository,
  {
    line,
    newest,
    snapshot,
    toLsn: lsn,
    toTimeMs,
  }: RestoreTarget & { readonly line: Timeline; readonly newest: Snapshot },
  options: CallOptions,
): Promise<Place> {
  if (toTimeMs !== undefined) return placeBefore(repository, { line, newest, timeMs: toTimeMs }, options);
  if (lsn !== undefined) return { generation: generationAt(newest, toLsn(lsn)), lsn: toLsn(lsn) };
  const { generation } = newest.position;
  if (snapshot !== undefined) return { generation, lsn: newest.position.lsn };
  return { generation, lsn: reachOf(line, newest).to };
}

/** On the history of the snapshot; what comes behind it is of its own generation. */
function generationAt({ terms, position }: Snapshot, lsn: Lsn): Generation {
  if (lsn > position.lsn) return position.generation;
  return new TermTable(terms).generationOf(lsn)?.generation ?? position.generation;
}

function reachOf({ snapshots }: Timeline, { id }: Snapshot): { readonly from: Lsn; readonly to: Lsn } {
  return snapshots.find(({ snapshot }) => snapshot.id === id)!.reach;
}

/** The last record at or before a time, on the history of the newest snapshot. */
async function placeBefore(
  repository: Repository,
  { line, newest, timeMs }: { readonly line: Timeline; readonly newest: Snapshot; readonly timeMs: number },
  options: CallOptions,
): Promise<Place> {
  const time = ((BigInt(timeMs) << 16n) | 0xffffn) as Hlc;
  const lineage = new TermTable(newest.terms).generations;
  const { generation: last } = newest.position;
  const known = knownUntil(line, last);
  if (timeMs > known)
    throw new NostosError(
      'ARCHIVE_GAP',
      `${repository.url} knows nothing of ${asTime(timeMs)}: it ends at ${asTime(known)}. Restore without a time to go to the last record that it has`,
      { details: { timeMs, knownUntilMs: known } },
    );
  const generations = lineage.length === 0 ? [{ generation: last, firstLsn: 1 as Lsn }] : lineage;
  let above: Lsn | undefined;
  for (const { generation, firstLsn } of generations.toReversed()) {
    const archived = await repository.archive.lastBefore(generation, time, asSignal(options));
    const held = line.snapshots.findLast(
      ({ snapshot }) => snapshot.position.generation === generation && snapshot.time <= time,
    );
    const lsn = Math.max(archived?.lsn ?? 0, held?.snapshot.position.lsn ?? 0);
    // What its generation did above the fork is another history.
    if (lsn >= firstLsn) return { generation, lsn: Math.min(lsn, (above ?? Infinity) - 1) as Lsn };
    above = firstLsn;
  }
  throw new NostosError(
    'BACKUP_NOT_FOUND',
    `${repository.url} has nothing of ${asTime(timeMs)} or before; its first snapshot is of ${asTime(hlcToMs(line.snapshots[0]!.snapshot.time))}`,
    { details: { timeMs } },
  );
}

/** Up to then whatever was committed is here: a snapshot that was begun later does not lie before what it is the end of. */
function knownUntil({ snapshots, spans }: Timeline, generation: Generation): number {
  const times = [
    ...spans.filter((span) => span.generation === generation).map(({ lastTime }) => hlcToMs(lastTime)),
    ...snapshots
      .filter(({ snapshot }) => snapshot.position.generation === generation)
      .flatMap(({ snapshot }) => [hlcToMs(snapshot.time), snapshot.createdAtMs]),
  ];
  return Math.max(...times);
}

async function recordAt(
  repository: Repository,
  { generation, lsn }: Place,
  options: CallOptions,
): Promise<{ readonly point: ChainPoint; readonly time: Hlc }> {
  const range = { generation, from: lsn, to: lsn };
  for await (const page of repository.archive.records(range, { ...options, tenants: new Set() }))
    for (const { header, hash } of page) return { point: pointOf(header, hash), time: header.hlc };
  throw new NostosError('ARCHIVE_GAP', `The archived log of the generation ${generation} lacks LSN ${lsn}`, {
    details: { generation, missing: [{ from: lsn, to: lsn }] },
  });
}

/** The snapshot that was asked for does not lead there, whatever others do. */
function notBy(snapshot: Snapshot, { line, place }: { readonly line: Timeline; readonly place: Place }): NostosError {
  const { from, to } = reachOf(line, snapshot);
  const { generation } = snapshot.position;
  const other = snapshotFor(line, place);
  const instead = other === undefined ? '' : `; the snapshot ${other.id} leads there`;
  return new NostosError(
    place.lsn > to ? 'ARCHIVE_GAP' : 'BACKUP_NOT_FOUND',
    `The snapshot ${snapshot.id} leads to LSN ${from}-${to} of the generation ${generation}, not to LSN ${place.lsn} of ${place.generation}${instead}`,
    { details: { snapshot: snapshot.id, lsn: place.lsn, from, to } },
  );
}

async function unreachable(
  { archive, url }: Repository,
  {
    line,
    place,
    newest,
    lacking,
  }: {
    readonly line: Timeline;
    readonly place: Place;
    readonly newest: Snapshot;
    readonly lacking: readonly LsnRange[];
  },
  options: CallOptions,
): Promise<NostosError> {
  const { generation, lsn } = place;
  const own = line.snapshots.filter(({ snapshot }) => snapshot.position.generation === generation);
  const before = own.findLast(({ reach }) => reach.from <= lsn);
  const after = own.find(({ reach }) => reach.from > lsn);
  if (before === undefined) {
    const instead =
      after === undefined
        ? `the newest one leads to LSN ${reachOf(line, newest).to} of the generation ${newest.position.generation}`
        : `the first position of this generation that can be restored is LSN ${after.reach.from}`;
    return new NostosError(
      'BACKUP_NOT_FOUND',
      `No snapshot of ${url} leads to LSN ${lsn} of the generation ${generation}; ${instead}`,
      { details: { generation, lsn, from: after?.reach.from ?? null } },
    );
  }
  const { from } = before.reach;
  const names = await archive.objects(generation, asSignal(options));
  const missing = lacking.length > 0 ? lacking : missingFrom({ from: (before.reach.to + 1) as Lsn, to: lsn }, names);
  const to = Math.min(before.reach.to, missing[0]!.from - 1);
  const behind =
    after === undefined ? '' : `, or to LSN ${after.reach.from}-${after.reach.to} by the snapshot ${after.snapshot.id}`;
  const shown = missing.slice(0, 5).map((part) => (part.from === part.to ? `${part.from}` : `${part.from}-${part.to}`));
  return new NostosError(
    'ARCHIVE_GAP',
    `LSN ${lsn} cannot be reached: the archived log of the generation ${generation} lacks LSN ${shown.join(', ')}. ` +
      (to < from
        ? `Without them the snapshot ${before.snapshot.id} leads nowhere`
        : `The snapshot ${before.snapshot.id} leads to LSN ${from}-${to}`) +
      behind,
    { details: { generation, lsn, missing: missing.slice(0, 100), from, to } },
  );
}

const asSignal = ({ signal }: CallOptions): { signal?: AbortSignal } => (signal === undefined ? {} : { signal });
const asTime = (ms: number): string => new Date(ms).toISOString();
