/** What `nostos/backup` has of the reference, by its names, used the way its README says. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import * as face from '../index.ts';
import type { BackupBackend, DestinationState, EncryptionMetadata, HnswSnapshotEntry } from '../index.ts';
import type { RestorePlan, RestorePlanItem, RestorePlanItemDigest, WireVersion } from '../index.ts';
import { temporaryDirectory } from './snapshot.fixture.ts';

test('a snapshot is written, listed, validated and restored with nothing but what is published', async (t) => {
  const root = temporaryDirectory(t);
  const backend: BackupBackend = new face.LocalFsBackend(join(root, 'backups'));
  const wireVersion: WireVersion = { major: 1, minor: 0 };
  const entry: HnswSnapshotEntry = {
    embeddingModel: 'MiniLM',
    vectorDim: 3,
    distanceMetric: face.DistanceMetric.InnerProduct,
    sourceLogWatermark: 0n,
    contentKey: 'snap/hnsw.bin',
    checksum: null,
    deletedCountPending: 0n,
  };
  const encryption: EncryptionMetadata = { algorithm: 'aes-256-gcm', dekId: 'k', ivB64: '' };
  const manifest = new face.SnapshotManifest({
    manifestVersion: face.SnapshotManifestVersion.CURRENT,
    tenantId: face.TenantId(1),
    snapshotId: 'snap',
    createdAtUnixMicros: 0n,
    wireVersion,
    tableSchemaVersions: { durable_jobs: face.SchemaVersion(1) },
    oplogWatermark: 0n,
    oplogFloor: 0n,
    forgetFloor: null,
    sqliteCheckpointKey: 'snap/sqlite.db',
    sqliteCheckpointChecksum: null,
    hnswSnapshots: [entry],
    encryption,
    label: null,
  });
  await backend.putContent('snap/sqlite.db', Buffer.from('rows'));
  await backend.putContent('snap/hnsw.bin', Buffer.from('vectors'));
  await backend.putManifest(manifest);
  assert.deepEqual(await backend.listManifests(), ['snap']);

  const destination: DestinationState = { wireVersion, tombstoneFloor: null, embeddingModel: 'MiniLM' };
  const plan: RestorePlan = await new face.RestoreValidator(backend).validate('snap', destination);
  const items: readonly RestorePlanItem[] = plan.items;
  assert.deepEqual(
    items.map((item) => item.kind),
    [face.RestorePlanItemKind.SqliteCheckpoint, face.RestorePlanItemKind.HnswSnapshot('MiniLM')],
  );
  const executor = new face.RestoreExecutor(backend, join(root, 'data'));
  const outcome = await executor.execute(plan, face.RestoreMode.NewCluster);
  assert.ok(outcome instanceof face.RestoreOutcome);
  const digests: RestorePlanItemDigest[] = outcome.items.map(([digest]) => digest);
  assert.deepEqual(
    digests.map(({ kind, bytes }) => [kind, bytes]),
    [
      ['sqlite_checkpoint', 4],
      ['hnsw:MiniLM', 7],
    ],
  );
  await assert.rejects(executor.execute(plan, face.RestoreMode.NewCluster), face.RestoreExecutorError);
  await assert.rejects(face.verifyBlob(backend, 'gone', null), face.RestoreValidatorError);
  await assert.rejects(backend.getManifest('gone'), face.BackupBackendError);
  assert.throws(() => manifest.validateForRestore(wireVersion, 0n, 'other'), face.ManifestValidationError);
  assert.equal(face.RESTORE_MARKER, '.restore-in-progress');
});

test('ids and versions are in the range of their types', () => {
  assert.equal(face.TenantId(-5), -5n);
  assert.equal(face.TenantId(-(1n << 63n)), -(1n << 63n));
  for (const id of [1n << 63n, -(1n << 63n) - 1n, 1.5, NaN, 2 ** 53])
    assert.throws(() => face.TenantId(id), /tenant id/);
  assert.equal(face.SchemaVersion(2 ** 32 - 1), 4_294_967_295);
  for (const version of [-1, 2 ** 32, 0.5, NaN]) assert.throws(() => face.SchemaVersion(version), /schema version/);
});
