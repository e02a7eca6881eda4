/** What a validation looks at, in its order: each case has what the checks behind it refuse as well. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import type { RestoreChecks } from './checks.ts';
import { type ManifestValidationError, RestoreValidatorError } from './errors.ts';
import { LocalFsBackend } from './local-fs-backend.ts';
import type { HnswSnapshotEntry, SnapshotManifestFields } from './manifest.ts';
import {
  BLOBS,
  DESTINATION,
  SNAPSHOT,
  blake3,
  fillBackend,
  manifestOf,
  temporaryDirectory,
} from './snapshot.fixture.ts';
import type { DestinationState, RestoreEvent } from './types.ts';
import { RestoreValidator } from './validator.ts';
import { verifyBlob } from './verify.ts';

const [vectors, other] = manifestOf().hnswSnapshots as [HnswSnapshotEntry, HnswSnapshotEntry];
const encryption = { algorithm: 'aes-256-gcm', dekId: 'dek-1', ivB64: 'AAAA' };

interface Case {
  readonly change?: Partial<SnapshotManifestFields>;
  readonly destination?: Partial<DestinationState>;
  readonly checks?: RestoreChecks;
  /** Absent: it passes. */
  readonly refused?: readonly [kind: string, fields?: object];
}

/** Everything that the reference refuses, each with the next one behind it. */
const wrong = {
  wireVersion: { major: 2, minor: 0 },
  forgetFloor: 10n,
  hnswSnapshots: [{ ...other, checksum: '0'.repeat(64) }],
  sqliteCheckpointChecksum: '0'.repeat(64),
};
const REFERENCE: Readonly<Record<string, Case>> = {
  'its own faults first': {
    change: { ...wrong, oplogFloor: 101n },
    destination: { tombstoneFloor: 11n },
    refused: ['Manifest:OplogRangeInverted'],
  },
  'another major version': {
    change: wrong,
    destination: { tombstoneFloor: 11n },
    refused: ['Manifest:WireVersionMismatch', { dest: { major: 1, minor: 0 }, snap: { major: 2, minor: 0 } }],
  },
  'another minor version': { change: { wireVersion: { major: 1, minor: 9 } } },
  'tombstones above the lowest': {
    change: { ...wrong, wireVersion: { major: 1, minor: 0 } },
    destination: { tombstoneFloor: 11n },
    refused: ['Manifest:WouldResurrectDeletedData', { destTombstoneFloor: 11n, snapForgetFloor: 10n }],
  },
  'tombstones up to the lowest': { change: { forgetFloor: 10n }, destination: { tombstoneFloor: 10n } },
  'no lowest tombstone': { destination: { tombstoneFloor: 1_000n } },
  'vectors of other models only': {
    change: { ...wrong, wireVersion: { major: 1, minor: 0 } },
    destination: { tombstoneFloor: 10n },
    refused: ['Manifest:HnswModelMismatch', { destModel: 'MiniLM', snapModel: '../etc/passwd' }],
  },
  'no vectors at all': { change: { hnswSnapshots: [] }, destination: { embeddingModel: 'any' } },
  'the checkpoint before the vectors': {
    change: { sqliteCheckpointChecksum: '0'.repeat(64), hnswSnapshots: [{ ...vectors, contentKey: 'gone' }] },
    refused: [
      'ChecksumMismatch',
      { key: 'snap-1/sqlite.db', expected: '0'.repeat(64), actual: blake3(BLOBS['snap-1/sqlite.db']!) },
    ],
  },
  'vectors in their order': {
    change: { hnswSnapshots: [vectors, { ...other, contentKey: 'gone' }, { ...vectors, contentKey: 'gone too' }] },
    refused: ['ContentMissing', { key: 'gone' }],
  },
  'a checksum in upper case': {
    change: { hnswSnapshots: [{ ...vectors, checksum: blake3('vectors').toUpperCase() }] },
    refused: ['ChecksumMismatch', { key: 'snap-1/hnsw-MiniLM.bin' }],
  },
  'no checksum': { change: { hnswSnapshots: [{ ...vectors, checksum: null }] } },
  'a key that climbs': { change: { sqliteCheckpointKey: 'a/../../x' }, refused: ['Backend:InvalidKey'] },
  'version 0': { change: { manifestVersion: 0 } },
  'another tenant, another id, two of one model, encrypted, ahead of the log': {
    change: { tenantId: 8n, encryption, hnswSnapshots: [vectors, { ...vectors, sourceLogWatermark: 101n }] },
  },
};

/** What it promises. The reference's own checks are before these. */
const CHECKS: Readonly<Record<string, Case>> = {
  'before them, the reference’s own': {
    change: { wireVersion: { major: 2, minor: 0 } },
    checks: { tenantId: 8n },
    refused: ['Manifest:WireVersionMismatch'],
  },
  'another tenant': { checks: { tenantId: 8n }, refused: ['Manifest:TenantMismatch', { dest: 8n, snap: 7n }] },
  'this tenant': { checks: { tenantId: 7n } },
  'another checksum is missing': {
    change: { hnswSnapshots: [{ ...vectors, checksum: null }] },
    checks: { checksums: true },
    refused: ['Manifest:ChecksumMissing', { key: 'snap-1/hnsw-MiniLM.bin' }],
  },
  'a checksum in upper case, by its name': {
    change: { sqliteCheckpointChecksum: blake3('x').toUpperCase() },
    checks: { checksums: true },
    refused: ['Manifest:ChecksumMalformed', { key: 'snap-1/sqlite.db' }],
  },
  'a table in a newer version': {
    checks: { schemaVersions: { memory_commit_log: 1, memory_tombstones: 0 } },
    refused: ['Manifest:SchemaVersionMismatch', { table: 'memory_tombstones', dest: 0, snap: 1 }],
  },
  'a table that nobody knows': {
    change: { tableSchemaVersions: { toString: 1 } },
    checks: { schemaVersions: {} },
    refused: ['Manifest:SchemaVersionMismatch', { table: 'toString', dest: null, snap: 1 }],
  },
  'tables in older versions': { checks: { schemaVersions: { memory_commit_log: 2, memory_tombstones: 1, more: 1 } } },
  'other dimensions': {
    checks: { vectors: { dim: 768, metric: 'cosine' } },
    refused: ['Manifest:VectorDimMismatch', { dest: 768, snap: 384, snapModel: 'MiniLM' }],
  },
  'another metric': {
    checks: { vectors: { dim: 384, metric: 'l2' } },
    refused: ['Manifest:DistanceMetricMismatch', { dest: 'l2', snap: 'cosine', snapModel: 'MiniLM' }],
  },
  'other dimensions of another model': {
    change: { hnswSnapshots: [vectors, { ...other, vectorDim: 3 }] },
    checks: { vectors: { dim: 384, metric: 'cosine' } },
  },
  encrypted: {
    change: { encryption },
    checks: { encryption: 'refused' },
    refused: ['Manifest:EncryptionUnsupported', { algorithm: 'aes-256-gcm', dekId: 'dek-1' }],
  },
  'encrypted under another key': {
    change: { encryption },
    checks: { encryption: { algorithms: ['aes-256-gcm'], dekIds: ['dek-2'] } },
    refused: ['Manifest:EncryptionUnsupported'],
  },
  'encrypted otherwise': {
    change: { encryption },
    checks: { encryption: { algorithms: ['chacha20-poly1305'], dekIds: ['dek-1'] } },
    refused: ['Manifest:EncryptionUnsupported'],
  },
  'encrypted as the destination has it': {
    change: { encryption },
    checks: { encryption: { algorithms: ['aes-256-gcm'], dekIds: ['dek-1'] } },
  },
  'vectors ahead of the log': {
    change: { hnswSnapshots: [vectors, { ...other, sourceLogWatermark: 101n }] },
    checks: { sourceWatermarks: true },
    refused: ['Manifest:SourceWatermarkAboveOplog', { watermark: 100n, snap: 101n, snapModel: '../etc/passwd' }],
  },
  'vectors up to the end of the log': {
    change: { hnswSnapshots: [{ ...vectors, sourceLogWatermark: 100n }] },
    checks: { sourceWatermarks: true },
  },
  'two of one model': {
    change: { hnswSnapshots: [vectors, other, vectors] },
    checks: { duplicateModels: true },
    refused: ['Manifest:DuplicateModel', { snapModel: 'MiniLM' }],
  },
  'a cluster’s own snapshot with two tombstones, which the reference refuses': {
    change: { forgetFloor: 10n },
    destination: { tombstoneFloor: 50n },
    checks: { resurrect: { tombstones: { highest: 50n }, lineage: 'same' } },
  },
  'a tombstone at the very end of the snapshot': {
    checks: { resurrect: { tombstones: { highest: 100n }, lineage: 'same' } },
  },
  'a tombstone after a snapshot that has none, which the reference lets pass': {
    destination: { tombstoneFloor: 101n },
    checks: { resurrect: { tombstones: { highest: 101n }, lineage: 'same' } },
    refused: ['Manifest:WouldResurrectDeletedData', { destTombstoneFloor: 101n, snapForgetFloor: null }],
  },
  'tombstones of another lineage': {
    checks: { resurrect: { tombstones: { highest: 5n }, lineage: 'other' } },
    refused: ['Manifest:WouldResurrectDeletedData', { destTombstoneFloor: 5n }],
  },
  'tombstones of who knows which lineage': {
    checks: { resurrect: { tombstones: { highest: 5n }, lineage: 'unknown' } },
    refused: ['Manifest:WouldResurrectDeletedData'],
  },
  'nobody knows what was forgotten': {
    checks: { resurrect: { tombstones: 'unknown', lineage: 'same' } },
    refused: ['Manifest:WouldResurrectDeletedData', { destTombstoneFloor: 'unknown' }],
  },
  'nobody knows, but it will be forgotten again': {
    checks: { resurrect: { tombstones: 'unknown', lineage: 'other', replayed: true } },
  },
  'nothing was ever forgotten': { checks: { resurrect: { tombstones: 'none', lineage: 'other' } } },
};

for (const [face, cases] of Object.entries({ 'the reference': REFERENCE, 'the checks': CHECKS }))
  for (const [name, { change, destination, checks, refused }] of Object.entries(cases))
    test(`${face}: ${name} ${refused === undefined ? 'passes' : 'is refused'}`, async (t) => {
      const backend = await fillBackend(new LocalFsBackend(temporaryDirectory(t)));
      const stored = manifestOf(change);
      // Also what no backend would take.
      backend.getManifest = async () => stored;
      const validator = new RestoreValidator(backend, checks === undefined ? {} : { checks });
      const run = validator.validate(SNAPSHOT, { ...DESTINATION, ...destination });
      if (refused === undefined) {
        const plan = await run;
        assert.equal(plan.manifest, stored);
        assert.deepEqual(
          plan.items.map((item) => item.contentKey),
          [stored.sqliteCheckpointKey, ...stored.hnswSnapshots.map((entry) => entry.contentKey)],
        );
        return;
      }
      const [kind, fields = {}] = refused;
      await assert.rejects(run, (error) => {
        assert.ok(error instanceof RestoreValidatorError, String(error));
        const inner = error.cause as { kind?: string } | undefined;
        const isWrapped = error.kind === 'Manifest' || error.kind === 'Backend';
        assert.equal(isWrapped ? `${error.kind}:${inner?.kind}` : error.kind, kind, error.message);
        const has = (isWrapped ? inner : error) as Record<string, unknown>;
        for (const [field, value] of Object.entries(fields)) assert.deepEqual(has[field], value, field);
        assert.doesNotThrow(() => JSON.stringify([error, inner]));
        return true;
      });
    });

test('a manifest under another name is refused where that is asked for', async (t) => {
  const backend = await fillBackend(new LocalFsBackend(temporaryDirectory(t)));
  const stored = manifestOf();
  backend.getManifest = async () => stored;
  assert.equal((await new RestoreValidator(backend).validate('snap-9', DESTINATION)).snapshotId, 'snap-9');
  await assert.rejects(
    new RestoreValidator(backend, { checks: { snapshotId: true } }).validate('snap-9', DESTINATION),
    (error) => ((error as Error).cause as ManifestValidationError).kind === 'SnapshotIdMismatch',
  );
});

test('errors of the backend come wrapped; a manifest that is not there is none', async (t) => {
  const backend = new LocalFsBackend(join(temporaryDirectory(t), 'empty'));
  const causes: [string, string, code: string][] = [
    ['nothing', 'ManifestNotFound', 'BACKUP_NOT_FOUND'],
    ['../x', 'InvalidKey', 'INVALID_ARGUMENT'],
    ['', 'InvalidKey', 'INVALID_ARGUMENT'],
    ['a\0b', 'Io', 'IO_FAILED'],
  ];
  for (const [id, kind, code] of causes)
    await assert.rejects(new RestoreValidator(backend).validate(id, DESTINATION), (error) => {
      assert.ok(error instanceof RestoreValidatorError && error.kind === 'Backend');
      assert.equal((error.cause as { kind: string }).kind, kind);
      assert.equal(error.code, code);
      return true;
    });
});

test('verifyBlob gives the bytes, with any checksum that is null', async (t) => {
  const backend = await fillBackend(new LocalFsBackend(temporaryDirectory(t)));
  const key = 'snap-1/hnsw-MiniLM.bin';
  for (const expected of [null, blake3('vectors')])
    assert.equal(Buffer.from(await verifyBlob(backend, key, expected)).toString(), 'vectors');
  await assert.rejects(verifyBlob(backend, key, blake3('x')), { kind: 'ChecksumMismatch', actual: blake3('vectors') });
  await assert.rejects(verifyBlob(backend, 'gone', null), { kind: 'ContentMissing', key: 'gone' });
});

test('a validation tells its progress, and is cancelled between two reads', async (t) => {
  const backend = await fillBackend(
    new LocalFsBackend(temporaryDirectory(t)),
    manifestOf({ sqliteCheckpointChecksum: null }),
  );
  await backend.putContent('snap-1/sqlite.db', new Uint8Array(5 * 1024 * 1024));
  const controller = new AbortController();
  const why = new Error('enough');
  const events: RestoreEvent[] = [];
  const onProgress = (event: RestoreEvent): void => {
    events.push(event);
    if (events.length === 4) setImmediate(() => controller.abort(why));
  };
  const run = new RestoreValidator(backend).validate(SNAPSHOT, DESTINATION, { signal: controller.signal, onProgress });
  await assert.rejects(run, (error) => error === why);
  assert.equal(events.length, 4);
  assert.deepEqual(events.at(-1), {
    kind: 'reading',
    step: 'validating',
    contentKey: 'snap-1/sqlite.db',
    item: 1,
    items: 3,
    bytes: 3 * 1024 * 1024,
    bytesTotal: 5 * 1024 * 1024,
  });
});
