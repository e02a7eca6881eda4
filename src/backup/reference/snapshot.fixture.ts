/** A snapshot with two models in a backend, and the directories that it is restored into. */
import { lstatSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import type { TestContext } from 'node:test';
import { hashBlake3 } from '../../base/blake3.ts';
import type { BackupBackend } from './backend.ts';
import { SnapshotManifest, type SnapshotManifestFields } from './manifest.ts';
import type { DestinationState, RestorePlan } from './types.ts';
import { RestoreValidator } from './validator.ts';

/** Path to content. */
export type Tree = Readonly<Record<string, string>>;

export const SNAPSHOT = 'snap-1';
export const DESTINATION: DestinationState = {
  wireVersion: { major: 1, minor: 0 },
  tombstoneFloor: null,
  embeddingModel: 'MiniLM',
};
export const BLOBS: Tree = {
  'snap-1/sqlite.db': 'rows '.repeat(20_000),
  'snap-1/hnsw-MiniLM.bin': 'vectors',
  'snap-1/hnsw-other.bin': '',
};
/** What any restore of it makes of `tenant_7`. */
export const RESTORED: Tree = {
  'tenant_7/data.sqlite': BLOBS['snap-1/sqlite.db']!,
  'tenant_7/hnsw/MiniLM.bin': 'vectors',
  'tenant_7/hnsw/.._etc_passwd.bin': '',
};

export const blake3 = (text: string): string => Buffer.from(hashBlake3(Buffer.from(text))).toString('hex');

export function manifestOf(change: Partial<SnapshotManifestFields> = {}): SnapshotManifest {
  const entry = {
    embeddingModel: 'MiniLM',
    vectorDim: 384,
    distanceMetric: 'cosine',
    sourceLogWatermark: 90n,
    contentKey: 'snap-1/hnsw-MiniLM.bin',
    checksum: blake3('vectors'),
    deletedCountPending: 0n,
  } as const;
  return new SnapshotManifest({
    manifestVersion: 1,
    tenantId: 7n,
    snapshotId: SNAPSHOT,
    createdAtUnixMicros: 1_700_000_000_000_000n,
    wireVersion: { major: 1, minor: 0 },
    tableSchemaVersions: { memory_commit_log: 1, memory_tombstones: 1 },
    oplogWatermark: 100n,
    oplogFloor: 1n,
    forgetFloor: null,
    sqliteCheckpointKey: 'snap-1/sqlite.db',
    sqliteCheckpointChecksum: blake3(BLOBS['snap-1/sqlite.db']!),
    hnswSnapshots: [
      entry,
      { ...entry, embeddingModel: '../etc/passwd', contentKey: 'snap-1/hnsw-other.bin', checksum: blake3('') },
    ],
    encryption: null,
    label: null,
    ...change,
  });
}

export async function fillBackend<B extends BackupBackend>(backend: B, manifest = manifestOf()): Promise<B> {
  for (const [key, text] of Object.entries(BLOBS)) await backend.putContent(key, Buffer.from(text));
  await backend.putManifest(manifest);
  return backend;
}

/** What the reference's interface has, and nothing more. */
export function plainBackend(backend: BackupBackend): BackupBackend {
  return {
    name: () => 'plain',
    putManifest: (manifest) => backend.putManifest(manifest),
    getManifest: (id) => backend.getManifest(id),
    listManifests: () => backend.listManifests(),
    deleteManifest: (id) => backend.deleteManifest(id),
    putContent: (key, bytes) => backend.putContent(key, bytes),
    getContent: (key) => backend.getContent(key),
    deleteContent: (key) => backend.deleteContent(key),
  };
}

export function planOf(backend: BackupBackend, destination = DESTINATION): Promise<RestorePlan> {
  return new RestoreValidator(backend).validate(SNAPSHOT, destination);
}

/** Goes with the test. */
export function temporaryDirectory(t: TestContext): string {
  const dir = mkdtempSync(join(tmpdir(), 'nostos-backup-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

export function writeTree(dir: string, tree: Tree): void {
  mkdirSync(dir, { recursive: true });
  for (const [path, text] of Object.entries(tree)) {
    const isDirectory = path.endsWith('/');
    mkdirSync(isDirectory ? join(dir, path) : dirname(join(dir, path)), { recursive: true });
    if (!isDirectory) writeFileSync(join(dir, path), text);
  }
}

/** Every file below, the lock that a restore leaves aside; empty directories end in a slash. */
export function readTree(dir: string): Tree {
  const tree: Record<string, string> = {};
  const walk = (within: string): void => {
    const names = readdirSync(join(dir, within)).filter((name) => within !== '' || name !== 'lock');
    if (names.length === 0 && within !== '') tree[`${within}/`] = '';
    for (const name of names) {
      const path = join(within, name);
      const stats = lstatSync(join(dir, path));
      if (stats.isDirectory()) walk(path);
      else tree[path] = stats.isSymbolicLink() ? '(link)' : readFileSync(join(dir, path), 'utf8');
    }
  };
  walk('');
  return tree;
}
