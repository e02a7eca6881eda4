/**
 * `nostos group init` on a stopped directory. A group record is begun here and nowhere else.
 *
 * Making one: the directory's own coordinator goes first, to `coordinator.before-group`; from then on the directory opens
 * for nobody as a lone node, which would begin a term that the group does not know of. Then the record is written, and the
 * directory told. Ended in between, the same call goes on; refused by the coordinator, the directory is as it was.
 */
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Position, Term } from '../base/brands.ts';
import { systemDisk } from '../base/disk.ts';
import { NostosError } from '../base/errors.ts';
import { randomHex128, systemRandom } from '../base/random.ts';
import type { Coordinator, GroupRecord, Versioned } from '../coordination/coordinator.ts';
import { writeNewest } from '../coordination/newest-seen.ts';
import { COORDINATOR_FILE, withStopped, type StoppedDirectory } from './stopped-directory.ts';

const LONE = 'coordinator';
const BEFORE_GROUP = 'coordinator.before-group';

export async function initGroup(coordinator: Coordinator, dir: string): Promise<Versioned> {
  return withStopped([dir], async ([found]) => {
    const first = firstRecord(found!);
    const before = await coordinator.read();
    if (before !== undefined && !isOurs(before, first)) throw groupExists(before);
    setLoneAside(dir);
    const result: { ok: boolean; current?: Versioned | undefined } =
      before === undefined ? await coordinator.compareAndSet(0, first) : { ok: true };
    const made = before ?? (result.ok ? { version: 1, record: first } : result.current);
    if (made === undefined || !isOurs(made, first)) {
      takeLoneBack(dir);
      throw groupExists(made);
    }
    remember(dir, made);
    // With it goes the sign that the directory may begin a group.
    rmSync(join(dir, BEFORE_GROUP), { recursive: true, force: true });
    return made;
  });
}

function firstRecord({ dir, report }: StoppedDirectory): GroupRecord {
  const { store, generation, end, watermark, terms, seen } = report;
  const refuse = (why: string): NostosError =>
    new NostosError('INVALID_ARGUMENT', `no group can begin with ${dir}: ${why}`, { details: { dir, store } });
  if (report.damage !== undefined) throw refuse(report.damage);
  if (report.restoreUnfinished) throw refuse('a restore of it is unfinished; finish it first (nostos restore)');
  if (report.copy) throw refuse('it is a copy of another node; begin with that one, and let this one join');
  const alone = seen === null || (seen.record.members.length === 1 && seen.record.members[0] === store);
  const isLone = systemDisk.exists(join(dir, LONE)) || systemDisk.exists(join(dir, BEFORE_GROUP));
  if (!alone || (seen !== null && !isLone))
    throw new NostosError(
      'GROUP_EXISTS',
      `${dir} belongs to a group already; its newest record has term ${seen.record.term}`,
      {
        details: { dir, members: seen.record.members },
      },
    );
  const entry = terms.findLast(({ firstLsn }) => firstLsn <= watermark);
  const committed: Position | null =
    entry === undefined ? null : { generation: entry.generation, term: entry.term, lsn: watermark };
  return {
    generation,
    term: Math.max(end.term, seen?.record.term ?? 0) as Term,
    primary: null,
    members: [store],
    inSync: [store],
    minInSync: 1,
    renewal: 0,
    committed,
    nonce: randomHex128(systemRandom),
  };
}

/** What an earlier call has made for this directory, and nobody has acted on. */
function isOurs({ version, record }: Versioned, first: GroupRecord): boolean {
  return version === 1 && JSON.stringify({ ...record, nonce: '' }) === JSON.stringify({ ...first, nonce: '' });
}

function setLoneAside(dir: string): void {
  if (!systemDisk.exists(join(dir, LONE))) return;
  systemDisk.rename(join(dir, LONE), join(dir, BEFORE_GROUP));
  systemDisk.syncDirectory(dir);
}

function takeLoneBack(dir: string): void {
  if (!systemDisk.exists(join(dir, BEFORE_GROUP))) return;
  systemDisk.rename(join(dir, BEFORE_GROUP), join(dir, LONE));
  systemDisk.syncDirectory(dir);
}

function groupExists(current: Versioned | undefined): NostosError {
  const members = current?.record.members ?? [];
  return new NostosError(
    'GROUP_EXISTS',
    `the coordinator has a group of this name, with ${members.length} members; nostos group status shows it. Nothing was changed`,
    { details: { version: current?.version ?? 0, members } },
  );
}

function remember(dir: string, current: Versioned): void {
  writeNewest(systemDisk, join(dir, COORDINATOR_FILE), current);
}
