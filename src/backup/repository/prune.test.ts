import assert from 'node:assert/strict';
import { readdir, readFile, rm, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Lsn } from '../../base/brands.ts';
import { isNostosError } from '../../base/errors.ts';
import { pointOf } from '../../log/chain.ts';
import type { Clock } from '../../base/clock.ts';
import { GENERATION, makeChain } from './chain.fixture.ts';
import { KeyringFile } from './keyring-file.ts';
import type { SnapshotId } from './manifest.ts';
import { objectKey } from './object-format.ts';
import { choose } from './policy.ts';
import { prune } from './prune.ts';
import {
  fileBytes,
  newRepository,
  ORIGIN,
  SEAL,
  sourceOf,
  temporaryDirectory,
  tenantFile,
  uuidOf,
} from './repository.fixture.ts';
import type { Repository } from './repository.ts';
import { openRepository } from './repository.ts';
import { snapshotFor, timeline } from './timeline.ts';
import { verify } from './verify.ts';

const HOUR_MS = 3_600_000;
const NO_GRACE = { backupGraceMs: -1 };
const CHAIN = makeChain({ count: 400 });
const pointAt = (lsn: number) => pointOf(CHAIN[lsn - 1]!.record, CHAIN[lsn - 1]!.hash);

/** Snapshots of two tenants, of which one never changes, at LSN 100, 200, …, each with a start 50 records before. */
async function makeSnapshots(repository: Repository, count: number): Promise<void> {
  for (let index = 1; index <= count; index++) {
    const through = pointAt(index * 100);
    await repository.archive.write([CHAIN.slice((index - 1) * 100, index * 100)], { uuidOf });
    await using writer = await repository.createSnapshot(ORIGIN);
    await writer.addFile(tenantFile(1, pointAt(index * 100 - 50)), sourceOf(fileBytes(3_000_000, index)));
    await writer.addFile(tenantFile(2, pointAt(1)), sourceOf(fileBytes(100_000)));
    const archive = { after: pointAt(index * 100 - 50), through };
    await writer.commit({ ...SEAL, position: through, time: CHAIN[index * 100 - 1]!.record.hlc, archive });
  }
}

async function filesIn(dir: string): Promise<string[]> {
  const found = await readdir(dir, { recursive: true, withFileTypes: true });
  return found.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
}

test('prune keeps what the policy names, everything that it needs, and nothing else', async (t) => {
  const { repository, dir } = await newRepository(t, { limits: NO_GRACE });
  await makeSnapshots(repository, 4);
  const before = await filesIn(dir);
  const dry = await prune(repository, { keep: { last: 2 }, dryRun: true });
  assert.deepEqual(await filesIn(dir), before);
  const report = await prune(repository, { keep: { last: 2 } });
  assert.deepEqual({ ...dry, kept: report.kept }, report);
  assert.equal(report.removed.length, 2);
  // Per removed snapshot three chunks and a list; the file that never changes is needed.
  assert.equal(report.objectsRemoved, 8);
  assert.equal(report.archiveObjectsRemoved, 2);
  assert.equal((await filesIn(join(dir, 'objects'))).length, 2 * 4 + 1);
  assert.deepEqual(await readdir(join(dir, 'locks')), []);
  const { problems, snapshots } = await verify(repository);
  assert.deepEqual([problems, snapshots], [[], 2]);
});

test('a pinned snapshot stays with the records behind it; what is young stays a while', async (t) => {
  const { repository } = await newRepository(t, { limits: NO_GRACE });
  await makeSnapshots(repository, 4);
  const [first] = await Array.fromAsync(repository.snapshotIds());
  await repository.pin(first!);
  const report = await prune(repository, { keep: { last: 1 } });
  assert.deepEqual(
    report.kept.map(({ reasons }) => reasons),
    [['pinned'], ['newest', 'last']],
  );
  assert.equal(report.archiveObjectsRemoved, 0);
  await repository.unpin(first!);
  const again = await prune(repository, { keep: { last: 1 } });
  assert.deepEqual([again.removed, again.archiveObjectsRemoved], [[first], 3]);

  const young = await newRepository(t);
  await makeSnapshots(young.repository, 2);
  const gentle = await prune(young.repository, { keep: { last: 1 } });
  assert.deepEqual([gentle.removed.length, gentle.objectsRemoved, gentle.objectsInGrace], [1, 0, 5]);
});

test('a manifest that cannot be read stops prune before anything is removed', async (t) => {
  const { repository, dir } = await newRepository(t, { limits: NO_GRACE });
  await makeSnapshots(repository, 3);
  const [first] = await Array.fromAsync(repository.snapshotIds());
  const path = join(dir, `manifests/${first}.json`);
  await writeFile(path, (await readFile(path)).subarray(0, 500));
  const before = await filesIn(dir);
  await assert.rejects(prune(repository, { keep: { last: 1 } }), (error: unknown) =>
    isNostosError(error, 'BACKUP_DAMAGED'),
  );
  assert.deepEqual(await filesIn(dir), before);
  await assert.rejects(prune(repository, { keep: {} }), /keeps nothing/);
});

test('verify names each problem with its snapshot, and a sample is chosen by its seed', async (t) => {
  const keys = KeyringFile.open(join(await temporaryDirectory(t), 'keys.json'));
  const { repository, dir } = await newRepository(t, { keys });
  await makeSnapshots(repository, 3);
  const [first, second, third] = await Array.fromAsync(repository.snapshots());
  const whole = await verify(repository);
  assert.deepEqual([whole.problems, whole.snapshots, whole.archiveObjects], [[], 3, 3]);
  assert.ok(whole.bytes > 9_100_000);
  const sample = await verify(repository, { share: 0.3, seed: 5 });
  assert.ok(sample.chunks > 0 && sample.chunks < whole.chunks);
  assert.deepEqual(await verify(repository, { share: 0.3, seed: 5 }), sample);

  const [chunk] = await repository.content.chunksOf(first!.items[0]!);
  const path = join(dir, objectKey(chunk!));
  await writeFile(path, (await readFile(path)).with(5_000, 0));
  await rm(join(dir, objectKey(second!.items[0]!.root)));
  const [name] = await repository.archive.objects(GENERATION);
  await rm(join(dir, name!.key));
  await keys.destroy(uuidOf(2));
  const { problems } = await verify(repository);
  const found = problems.map(({ snapshot, what, code }) => `${snapshot} ${what} ${code}`);
  assert.deepEqual(found.toSorted(), [
    `${first!.id} archive ARCHIVE_GAP`,
    `${first!.id} t1 BACKUP_DAMAGED`,
    `${first!.id} t2 BACKUP_KEY_MISSING`,
    `${second!.id} t1 BACKUP_DAMAGED`,
    `${second!.id} t2 BACKUP_KEY_MISSING`,
    `${third!.id} t2 BACKUP_KEY_MISSING`,
  ]);
});

test('the timeline says what can be reached, and from which snapshot', async (t) => {
  const { repository, dir } = await newRepository(t);
  await makeSnapshots(repository, 3);
  await repository.archive.write([CHAIN.slice(300, 350)], { uuidOf });
  await repository.archive.write([CHAIN.slice(360)], { uuidOf });
  const line = await timeline(repository);
  assert.deepEqual(line.gaps, [{ generation: GENERATION, from: 351, to: 360 }]);
  assert.deepEqual(
    line.spans.map(({ from, to }) => [from, to]),
    [
      [1, 350],
      [361, 400],
    ],
  );
  assert.equal(line.spans[1]!.firstTime, CHAIN[360]!.record.hlc);
  assert.equal(line.spans[0]!.lastTime, CHAIN[349]!.record.hlc);
  assert.deepEqual(
    line.snapshots.map(({ reach }) => [reach.from, reach.to]),
    [
      [50, 350],
      [150, 350],
      [250, 350],
    ],
  );
  const from = (lsn: number) => {
    const snapshot = snapshotFor(line, { generation: GENERATION, lsn: lsn as Lsn });
    return line.snapshots.findIndex((one) => one.snapshot === snapshot);
  };
  assert.deepEqual([49, 50, 149, 150, 249, 250, 350, 351, 400].map(from), [-1, 0, 0, 1, 1, 2, 2, -1, -1]);
  await rm(join(dir, 'archive'), { recursive: true });
  assert.deepEqual((await timeline(repository)).spans, []);
});

test('policies keep the newest of each of the last hours, days and weeks that have any', () => {
  const idOf = (index: number) => String(index).padStart(4, '0') as SnapshotId;
  // Every 40 minutes for four weeks, from a Monday at midnight.
  const monday = Date.UTC(2026, 0, 5);
  const all = Array.from({ length: 28 * 36 }, (_, index) => ({
    id: idOf(index),
    createdAtMs: monday + (index * (HOUR_MS * 2)) / 3,
  }));
  const kept = (policy: Parameters<typeof choose>[2]) => [...choose(all, new Set(), policy).keys()].map(Number);
  assert.deepEqual(kept({ last: 3 }), [1007, 1006, 1005]);
  assert.deepEqual(kept({ hourly: 3 }), [1007, 1006, 1004]);
  assert.deepEqual(kept({ daily: 3 }), [1007, 1007 - 36, 1007 - 72]);
  assert.deepEqual(kept({ weekly: 9 }), [1007, 1007 - 252, 1007 - 504, 1007 - 756]);
  assert.deepEqual(choose(all, new Set([idOf(0)]), { last: 1 }).get(idOf(0)), ['pinned']);
  assert.deepEqual(choose([], new Set(), { last: 1 }).size, 0);
});

test('creators and prune exclude each other; a creator that is given up never has a snapshot', async (t) => {
  let nowMs = 0;
  const clock: Clock = { nowMs: () => Date.now(), monotonicMs: () => nowMs };
  const limits = { ...NO_GRACE, backupLockWaitMs: 0 };
  const { repository, dir } = await newRepository(t, { limits });
  const isLocked = (error: unknown): boolean => isNostosError(error, 'BACKUP_LOCKED');
  {
    await using writer = await repository.createSnapshot(ORIGIN);
    await using other = await repository.createSnapshot(ORIGIN);
    await assert.rejects(prune(repository, { keep: { last: 1 } }), isLocked);
    assert.notEqual(writer.id, other.id);
  }
  const reader = await repository.hold();
  await assert.rejects(prune(repository, { keep: { last: 1 } }), isLocked);
  await reader.release();

  const warnings: string[] = [];
  const pruner = await openRepository(dir, { limits, onWarning: (message) => void warnings.push(message) });
  const stopped = await repository.createSnapshot(ORIGIN);
  await stopped.addFile(tenantFile(1), sourceOf(fileBytes(1_000)));
  await utimes(join(dir, `locks/${stopped.id}.json`), 0, 0);
  const report = await prune(pruner, { keep: { last: 1 } });
  assert.equal(report.objectsRemoved, 1);
  assert.match(warnings.join(), /given up/);
  await assert.rejects(stopped.commit(SEAL), (error: unknown) => isNostosError(error, 'BACKUP_LOCK_LOST'));
  assert.deepEqual(await Array.fromAsync(repository.snapshots()), []);
  await repository.createSnapshot(ORIGIN).then((writer) => writer.close());

  const slow = await openRepository(dir, { limits, clock });
  const late = await slow.createSnapshot(ORIGIN);
  nowMs = 6 * 60_000;
  await assert.rejects(late.commit(SEAL), (error: unknown) => isNostosError(error, 'BACKUP_LOCK_LOST'));
  await assert.rejects(late.addFile(tenantFile(2), sourceOf(fileBytes(0))), (error: unknown) =>
    isNostosError(error, 'BACKUP_LOCK_LOST'),
  );
});
