/** Which positions and times a repository can bring back, and what is missing between them. */
import type { Generation, Hlc, Lsn } from '../../base/brands.ts';
import type { ChainPoint } from '../../log/chain.ts';
import type { LsnRange } from './archive.ts';
import { missingFrom } from './archive.ts';
import type { ArchiveName } from './archive-format.ts';
import type { Snapshot } from './manifest.ts';
import type { Repository } from './repository.ts';

/** From here on a restore of the snapshot needs records. */
export function archiveStart({ archive, position }: Snapshot): ChainPoint {
  return archive?.after ?? position;
}

/** The earliest position to which the snapshot can be brought: no file of it is above. */
export function earliestPosition({ items, archive, position }: Snapshot): Lsn {
  if (archive === undefined) return position.lsn;
  return Math.max(archive.after.lsn, ...items.map(({ applied }) => applied.lsn)) as Lsn;
}

export interface TimelineSnapshot {
  readonly snapshot: Snapshot;
  /** Positions of the snapshot's generation that it can be brought to, without a gap, by what is archived. */
  readonly reach: LsnRange;
  /** Of the last record that can be reached: that of the snapshot, or of one archived since. */
  readonly lastTime: Hlc;
}

export interface ArchivedSpan extends LsnRange {
  readonly generation: Generation;
  readonly firstTime: Hlc;
  readonly lastTime: Hlc;
}

export interface Timeline {
  /** Oldest first. */
  readonly snapshots: readonly TimelineSnapshot[];
  /** What is archived, without gaps. */
  readonly spans: readonly ArchivedSpan[];
  /** Between the spans of one generation. */
  readonly gaps: readonly (LsnRange & { readonly generation: Generation })[];
}

export async function timeline(
  repository: Repository,
  options: { readonly signal?: AbortSignal } = {},
): Promise<Timeline> {
  const spans: ArchivedSpan[] = [];
  const gaps: (LsnRange & { readonly generation: Generation })[] = [];
  for (const generation of await repository.archive.generations(options)) {
    const names = await repository.archive.objects(generation, options);
    const [first] = names;
    if (first === undefined) continue;
    const to = names.reduce((most, name) => Math.max(most, name.to), 0) as Lsn;
    const missing = missingFrom({ from: first.from, to }, names);
    gaps.push(...missing.map((range) => ({ generation, ...range })));
    for (const range of between({ from: first.from, to }, missing)) {
      const firstTime = (await repository.archive.prelude(at(names, range.from), options)).firstHlc;
      const { lastHlc } = await repository.archive.prelude(at(names, range.to), options);
      spans.push({ generation, ...range, firstTime, lastTime: lastHlc });
    }
  }
  const snapshots: TimelineSnapshot[] = [];
  for await (const snapshot of repository.snapshots(options)) {
    const { generation, lsn } = snapshot.position;
    const span = spans.find((one) => one.generation === generation && one.from <= lsn + 1 && lsn <= one.to);
    const reach = { from: earliestPosition(snapshot), to: span?.to ?? lsn };
    snapshots.push({ snapshot, reach, lastTime: span?.lastTime ?? snapshot.time });
  }
  return { snapshots, spans, gaps };
}

/** The newest snapshot from which a position can be reached; undefined when there is none. */
export function snapshotFor({ snapshots }: Timeline, target: { readonly generation: Generation; readonly lsn: Lsn }) {
  return snapshots.findLast(
    ({ snapshot, reach }) =>
      snapshot.position.generation === target.generation && reach.from <= target.lsn && target.lsn <= reach.to,
  )?.snapshot;
}

/** An object that begins or ends there. */
function at(names: readonly ArchiveName[], lsn: Lsn): ArchiveName {
  return names.find(({ from }) => from === lsn) ?? names.find(({ to }) => to === lsn)!;
}

function between({ from, to }: LsnRange, missing: readonly LsnRange[]): LsnRange[] {
  const starts = [from, ...missing.map((gap) => (gap.to + 1) as Lsn)];
  const ends = [...missing.map((gap) => (gap.from - 1) as Lsn), to];
  return starts.map((start, index) => ({ from: start, to: ends[index]! }));
}
