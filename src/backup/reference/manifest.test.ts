/** The manifest byte for byte, and what is not taken for one. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { BackupBackendError, ManifestValidationError } from './errors.ts';
import { SnapshotManifest, type SnapshotManifestFields } from './manifest.ts';
import { DistanceMetric } from './types.ts';
import { manifestOf } from './snapshot.fixture.ts';

const FULL = new SnapshotManifest({
  manifestVersion: 1,
  tenantId: -9_223_372_036_854_775_808n,
  snapshotId: '0190f3c1-7b5a-7c3e-8a55-000000000001',
  createdAtUnixMicros: 9_223_372_036_854_775_807n,
  wireVersion: { major: 255, minor: 65_535 },
  tableSchemaVersions: { zeta: 4_294_967_295, '10': 2, '9': 1, Alpha: 0, é: 3 },
  oplogWatermark: 18_446_744_073_709_551_615n,
  oplogFloor: 9_007_199_254_740_993n,
  forgetFloor: 0n,
  sqliteCheckpointKey: 'tenants/1/snap-abc/sqlite.db',
  sqliteCheckpointChecksum: 'AF1349B9',
  hnswSnapshots: [
    {
      embeddingModel: '../"m"\\\u0001\t\u007fü/😀',
      vectorDim: 384,
      distanceMetric: DistanceMetric.InnerProduct,
      sourceLogWatermark: 18_446_744_073_709_551_614n,
      contentKey: 'tenants/1/snap-abc/hnsw-MiniLM.bin',
      checksum: null,
      deletedCountPending: 3n,
    },
  ],
  encryption: { algorithm: 'aes-256-gcm', dekId: 'dek-1', ivB64: 'AAAA' },
  label: 'before\nthe move',
});
const GOLDEN = `{
  "manifest_version": 1,
  "tenant_id": -9223372036854775808,
  "snapshot_id": "0190f3c1-7b5a-7c3e-8a55-000000000001",
  "created_at_unix_micros": 9223372036854775807,
  "wire_version": {
    "major": 255,
    "minor": 65535
  },
  "table_schema_versions": {
    "10": 2,
    "9": 1,
    "Alpha": 0,
    "zeta": 4294967295,
    "é": 3
  },
  "oplog_watermark": 18446744073709551615,
  "oplog_floor": 9007199254740993,
  "forget_floor": 0,
  "sqlite_checkpoint_key": "tenants/1/snap-abc/sqlite.db",
  "sqlite_checkpoint_checksum": "AF1349B9",
  "hnsw_snapshots": [
    {
      "embedding_model": "../\\"m\\"\\\\\\u0001\\t\u007fü/😀",
      "vector_dim": 384,
      "distance_metric": "innerproduct",
      "source_log_watermark": 18446744073709551614,
      "content_key": "tenants/1/snap-abc/hnsw-MiniLM.bin",
      "checksum": null,
      "deleted_count_pending": 3
    }
  ],
  "encryption": {
    "algorithm": "aes-256-gcm",
    "dek_id": "dek-1",
    "iv_b64": "AAAA"
  },
  "label": "before\\nthe move"
}`;
const EMPTY = `{
  "manifest_version": 1,
  "tenant_id": 7,
  "snapshot_id": "snap-1",
  "created_at_unix_micros": 1700000000000000,
  "wire_version": {
    "major": 1,
    "minor": 0
  },
  "table_schema_versions": {},
  "oplog_watermark": 100,
  "oplog_floor": 1,
  "forget_floor": null,
  "sqlite_checkpoint_key": "k",
  "sqlite_checkpoint_checksum": null,
  "hnsw_snapshots": [],
  "encryption": null,
  "label": null
}`;
const empty = manifestOf({
  tableSchemaVersions: {},
  hnswSnapshots: [],
  sqliteCheckpointKey: 'k',
  sqliteCheckpointChecksum: null,
});

test('the JSON is the reference’s byte for byte, and reads back without loss', () => {
  for (const [manifest, json] of [
    [FULL, GOLDEN],
    [empty, EMPTY],
  ] as const) {
    assert.equal(manifest.toJson(), json);
    assert.deepEqual(SnapshotManifest.fromJson(json), manifest);
  }
});

test('an absent optional field is null; unknown fields are ignored, wherever they are', () => {
  const sparse = EMPTY.replace(/ {2}"(?:forget_floor|sqlite_checkpoint_checksum|encryption)": null,\n/g, '')
    .replace(/,\n {2}"label": null/, '')
    .replace('"minor": 0', '"minor": 0, "patch": 1.5e9')
    .replace('{', '{"self_checksum": {"a": [null, 1e300]},');
  assert.ok(!sparse.includes('label') && !sparse.includes('encryption'));
  assert.deepEqual(SnapshotManifest.fromJson(sparse), empty);
});

const set = (name: string, value: string): string =>
  EMPTY.replace(new RegExp(`("${name}": )[^\\n{[]*?(,?\\n)`), `$1${value}$2`);
const entryWith = (name: string, value: string): string =>
  GOLDEN.replace(new RegExp(`("${name}": )[^\\n]*?(,?\\n)`), `$1${value}$2`);
const BAD: Readonly<Record<string, [json: string | Uint8Array, why: RegExp]>> = {
  'cut off': [GOLDEN.slice(0, -30), /refused/],
  empty: ['', /refused/],
  'an array': ['[]', /this is no manifest/],
  'a key twice': [EMPTY.replace('"label": null', '"label": null, "tenant_id": 7'), /"tenant_id" stands twice/],
  'a table twice': [EMPTY.replace('versions": {}', 'versions": {"a": 1, "a": 1}'), /"a" stands twice/],
  'more than its limit': [`${EMPTY}${' '.repeat(16 * 1024 * 1024)}`, /bytes, more than 16777216/],
  'version 2^32': [set('manifest_version', '4294967296'), /manifest_version/],
  'version -1': [set('manifest_version', '-1'), /manifest_version/],
  'version 1.0': [set('manifest_version', '1.0'), /manifest_version/],
  'version "1"': [set('manifest_version', '"1"'), /manifest_version/],
  'tenant 2^63': [set('tenant_id', '9223372036854775808'), /tenant_id/],
  'tenant below -2^63': [set('tenant_id', '-9223372036854775809'), /tenant_id/],
  'tenant null': [set('tenant_id', 'null'), /tenant_id/],
  'watermark 2^64': [set('oplog_watermark', '18446744073709551616'), /oplog_watermark/],
  'floor -1': [set('oplog_floor', '-1'), /oplog_floor/],
  'floor -0': [set('oplog_floor', '-0'), /oplog_floor/],
  'floor 1e2': [set('oplog_floor', '1e2'), /oplog_floor/],
  'forget floor 2^64': [set('forget_floor', '18446744073709551616'), /forget_floor/],
  'major 256': [set('major', '256'), /wire_version.major/],
  'minor 65536': [set('minor', '65536'), /wire_version.minor/],
  'a schema version of 2^32': [EMPTY.replace('versions": {}', 'versions": {"a": 4294967296}'), /table_schema_versions/],
  'schema versions in a list': [EMPTY.replace('versions": {}', 'versions": []'), /table_schema_versions/],
  'a metric as SQLite has it': [entryWith('distance_metric', '"inner_product"'), /distance_metric/],
  'a dimension of 2^32': [entryWith('vector_dim', '4294967296'), /vector_dim/],
  'no checkpoint key': [EMPTY.replace(/ {2}"sqlite_checkpoint_key": "k",\n/, ''), /sqlite_checkpoint_key/],
  'no vectors': [EMPTY.replace(/ {2}"hnsw_snapshots": \[\],\n/, ''), /hnsw_snapshots/],
  'half an encryption': [EMPTY.replace('"encryption": null', '"encryption": {"algorithm": "x"}'), /encryption/],
  'half a surrogate pair': [set('label', String.raw`"\ud800"`), /no Unicode/],
  'not UTF-8': [Buffer.concat([Buffer.from(EMPTY.slice(0, -8)), Buffer.from([0x22, 0xff, 0x22, 0x7d])]), /refused/],
};

for (const [name, [json, why]] of Object.entries(BAD))
  test(`refused: ${name}`, () => {
    assert.throws(
      () => SnapshotManifest.fromJson(json),
      (error) => error instanceof BackupBackendError && error.kind === 'Serialization' && why.test(error.message),
    );
  });

test('what could not be read back is not written', () => {
  for (const change of [
    { tenantId: 1n << 63n },
    { oplogWatermark: -1n },
    { manifestVersion: 1.5 },
    { wireVersion: { major: 256, minor: 0 } },
    { label: '\ud800' },
    { tableSchemaVersions: { a: NaN } },
  ] satisfies Partial<SnapshotManifestFields>[])
    assert.throws(
      () => manifestOf(change).toJson(),
      (error) => error instanceof BackupBackendError && error.kind === 'Serialization',
    );
});

test('any manifest reads back as it was written', () => {
  const unicode = fc.string({ unit: 'grapheme' });
  const u64 = fc.bigInt({ min: 0n, max: (1n << 64n) - 1n });
  const entry = fc.record(
    {
      embeddingModel: unicode,
      vectorDim: fc.nat(0xffff_ffff),
      distanceMetric: fc.constantFrom(...Object.values(DistanceMetric)),
      sourceLogWatermark: u64,
      contentKey: unicode,
      checksum: fc.option(unicode),
      deletedCountPending: u64,
    },
    { noNullPrototype: true },
  );
  const changes = fc.record({
    tenantId: fc.bigInt({ min: -(1n << 63n), max: (1n << 63n) - 1n }),
    tableSchemaVersions: fc.dictionary(
      unicode.filter((key) => key !== '__proto__'),
      fc.nat(0xffff_ffff),
      { noNullPrototype: true },
    ),
    oplogWatermark: u64,
    forgetFloor: fc.option(u64),
    hnswSnapshots: fc.array(entry, { maxLength: 3 }),
    label: fc.option(unicode),
  });
  fc.assert(
    fc.property(changes, (change) => {
      const manifest = manifestOf(change);
      const json = manifest.toJson();
      assert.deepEqual(SnapshotManifest.fromJson(json), manifest);
      assert.equal(SnapshotManifest.fromJson(json).toJson(), json);
    }),
  );
});

test('bytes of a manifest that were changed make another manifest or a typed refusal, nothing else', () => {
  let read = 0;
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.nat(GOLDEN.length - 1), fc.nat(255)), { minLength: 1, maxLength: 3 }),
      (changes) => {
        const bytes = Buffer.from(GOLDEN);
        for (const [at, value] of changes) bytes[at] = value;
        try {
          SnapshotManifest.fromJson(bytes).toJson();
          read += 1;
        } catch (error) {
          assert.ok(error instanceof BackupBackendError && error.kind === 'Serialization', String(error));
        }
      },
    ),
    { numRuns: 2000 },
  );
  assert.ok(read > 50, `${read} were read`);
});

/** In the order of the checks: each has what the ones behind it refuse as well. */
const bad = { oplogFloor: 101n, forgetFloor: 102n, manifestVersion: 2, sqliteCheckpointKey: '' } as const;
const INTERNAL: readonly [Partial<SnapshotManifestFields>, kind: string, fields: object][] = [
  [bad, 'OplogRangeInverted', { floor: 101n, watermark: 100n }],
  [{ ...bad, oplogFloor: 100n }, 'ForgetFloorAboveWatermark', { forgetFloor: 102n, watermark: 100n }],
  [{ ...bad, oplogFloor: 1n, forgetFloor: 100n }, 'ManifestVersionUnsupported', { got: 2, current: 1 }],
  [{ manifestVersion: 0xffff_ffff }, 'ManifestVersionUnsupported', { got: 0xffff_ffff, current: 1 }],
  [{ sqliteCheckpointKey: '' }, 'EmptySqliteCheckpointKey', {}],
];

test('a manifest is checked in the reference’s order, with its names and fields; version 0 passes', () => {
  for (const [change, kind, fields] of INTERNAL)
    for (const check of [
      (manifest: SnapshotManifest) => manifest.validateInternal(),
      (manifest: SnapshotManifest) => manifest.validateForRestore({ major: 9, minor: 9 }, 1_000n, 'other'),
    ])
      assert.throws(
        () => check(manifestOf(change)),
        (error) => {
          assert.ok(error instanceof ManifestValidationError);
          assert.equal(error.kind, kind);
          for (const [name, value] of Object.entries(fields)) assert.equal(error[name as keyof typeof error], value);
          assert.doesNotThrow(() => JSON.stringify(error));
          return true;
        },
      );
  manifestOf({ manifestVersion: 0, oplogFloor: 100n, forgetFloor: 100n }).validateInternal();
});
