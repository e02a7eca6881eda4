/** The plain layout on a disk: names, keys, and that nothing is ever there in part. */
import assert from 'node:assert/strict';
import { mkdirSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { seededRandom, systemRandom } from '../../base/random.ts';
import { FaultyDisk } from '../../testing/faulty-disk.ts';
import { BackupBackendError, type BackupBackendErrorKind } from './errors.ts';
import { LocalFsBackend } from './local-fs-backend.ts';
import { blake3, manifestOf, readTree, temporaryDirectory } from './snapshot.fixture.ts';

const failsAs =
  (kind: BackupBackendErrorKind, fields: Partial<BackupBackendError> = {}) =>
  (error: unknown) => {
    assert.ok(error instanceof BackupBackendError, String(error));
    assert.equal(error.kind, kind, error.message);
    for (const [name, value] of Object.entries(fields)) assert.equal(error[name as keyof BackupBackendError], value);
    return true;
  };
const backendOf = (t: TestContext): LocalFsBackend => new LocalFsBackend(join(temporaryDirectory(t), 'made/for/it'));

test('manifests and content lie where the reference has them, and nothing else does', async (t) => {
  const backend = backendOf(t);
  assert.equal(backend.name(), 'local_fs');
  await backend.putManifest(manifestOf());
  await backend.putContent('tenants/1/snap-abc/sqlite.db', Buffer.from('rows'));
  await backend.putContent('a//b', Buffer.from('b'));
  await Promise.all(['x.db', 'x.bin', 'x.tmp'].map((key) => backend.putContent(key, Buffer.from(key))));
  assert.deepEqual(readTree(backend.root()), {
    'manifests/snap-1.json': manifestOf().toJson(),
    'tenants/1/snap-abc/sqlite.db': 'rows',
    'a/b': 'b',
    'x.db': 'x.db',
    'x.bin': 'x.bin',
    'x.tmp': 'x.tmp',
  });
  assert.deepEqual(await backend.getManifest('snap-1'), manifestOf());
  await backend.putContent('x.db', Buffer.from('again'));
  assert.equal(Buffer.from(await backend.getContent('x.db')).toString(), 'again');
  for (let times = 0; times < 2; times++) {
    await backend.deleteManifest('snap-1');
    await backend.deleteContent('tenants/1/snap-abc/sqlite.db');
  }
  assert.deepEqual(await backend.listManifests(), []);
  await assert.rejects(backend.getManifest('snap-1'), failsAs('ManifestNotFound', { key: 'snap-1' }));
  await assert.rejects(
    backend.getContent('tenants/1/snap-abc/sqlite.db'),
    failsAs('ContentNotFound', { key: 'tenants/1/snap-abc/sqlite.db' }),
  );
});

test('what the reference has written is read; every entry that ends in .json is listed, by bytes', async (t) => {
  const backend = backendOf(t);
  const dir = join(backend.root(), 'manifests');
  for (const name of ['b.json', 'a.json', '\u{1f600}.json', '\uff5e.json', 'x.json.tmp', 'c.txt', '.json'])
    writeFileSync(join(dir, name), JSON.stringify({ ...JSON.parse(manifestOf().toJson()), snapshot_id: 'otherwise' }));
  mkdirSync(join(dir, 'directory.json'));
  assert.deepEqual(await backend.listManifests(), ['', 'a', 'b', 'directory', '\uff5e', '\u{1f600}']);
  assert.equal((await backend.getManifest('a')).snapshotId, 'otherwise');
  await assert.rejects(backend.getManifest('directory'), failsAs('Io'));
  writeFileSync(join(dir, 'a.json'), Buffer.from([0x22, 0xff, 0x22]));
  await assert.rejects(backend.getManifest('a'), failsAs('Other'));
  writeFileSync(join(dir, 'a.json'), manifestOf().toJson().slice(0, -1));
  await assert.rejects(backend.getManifest('a'), failsAs('Serialization'));
  writeFileSync(join(dir, 'a.json'), Buffer.alloc(16 * 1024 * 1024 + 1, ' '));
  await assert.rejects(backend.getManifest('a'), failsAs('Serialization'));
  rmSync(dir, { recursive: true });
  assert.deepEqual(await backend.listManifests(), []);
});

const KEYS: readonly [key: string, reason: RegExp | undefined][] = [
  ['', /empty key/],
  ['..', /\. or \.\./],
  ['a/../b', /\. or \.\./],
  ['./a', /\. or \.\./],
  ['a/.', /\. or \.\./],
  ['a\\b', /backslash/],
  ['/etc/passwd', /slash/],
  ['..a/b..c/...', undefined],
  ['C:x', undefined],
  ['.hidden', undefined],
];
const IDS: readonly [id: string, reason: RegExp | undefined][] = [
  ['', /empty id/],
  ['..', /two dots/],
  ['a..b', /two dots/],
  ['a/b', /separator/],
  ['a\\b', /separator/],
  ['.', undefined],
  ['a.b', undefined],
];

test('keys and ids that lead elsewhere are refused by name, by every call', async (t) => {
  const backend = backendOf(t);
  const bytes = Buffer.from('x');
  const calls = (key: string) => [
    () => backend.putContent(key, bytes),
    () => backend.getContent(key),
    () => backend.contentBytes(key),
    async () => {
      for await (const _ of backend.readContent(key)) break;
    },
    () => backend.deleteContent(key),
  ];
  const manifestCalls = (id: string) => [
    () => backend.putManifest(manifestOf({ snapshotId: id })),
    () => backend.getManifest(id),
    () => backend.deleteManifest(id),
  ];
  for (const [table, callsOf] of [
    [KEYS, calls],
    [IDS, manifestCalls],
  ] as const)
    for (const [key, reason] of table)
      for (const call of callsOf(key)) {
        if (reason === undefined) await call();
        else
          await assert.rejects(call(), (error) => {
            failsAs('InvalidKey', { key })(error);
            return reason.test((error as BackupBackendError).reason ?? '');
          });
      }
});

test('failures of the disk are Io', async (t) => {
  const backend = backendOf(t);
  await backend.putContent('file', Buffer.from('x'));
  for (const key of ['a\0b', 'file/below', 'x'.repeat(300)]) {
    await assert.rejects(backend.putContent(key, Buffer.from('x')), failsAs('Io'));
    await assert.rejects(backend.getContent(key), failsAs('Io'));
  }
  await assert.rejects(backend.putContent('manifests', Buffer.from('x')), failsAs('Io'));
  assert.deepEqual(readdirSync(backend.root()).toSorted(), ['file', 'manifests']);
  assert.throws(() => new LocalFsBackend(join(backend.root(), 'file')), failsAs('Io'));
});

test('a manifest that contradicts itself, or an id that is none, is not written', async (t) => {
  const backend = backendOf(t);
  await assert.rejects(
    backend.putManifest(manifestOf({ oplogFloor: 101n, snapshotId: '' })),
    failsAs('ManifestValidation'),
  );
  await assert.rejects(backend.putManifest(manifestOf({ tenantId: 1n << 64n })), failsAs('Serialization'));
  assert.deepEqual(await backend.listManifests(), []);
});

test('a blob is read in ranges, a chunk at a time; a link is followed, as the reference does', async (t) => {
  const backend = backendOf(t);
  const content = Buffer.from(systemRandom.bytes(3 * 1024 * 1024 + 7));
  await backend.putContent('k', content);
  symlinkSync('k', join(backend.root(), 'link'));
  const read = async (key: string, range?: { offset?: number; length?: number }): Promise<[Buffer, number]> => {
    const chunks: Buffer[] = [];
    for await (const chunk of backend.readContent(key, range)) chunks.push(Buffer.from(chunk));
    return [Buffer.concat(chunks), Math.max(0, ...chunks.map((chunk) => chunk.length))];
  };
  for (const [offset, length] of [
    [0, undefined],
    [0, 0],
    [5, 1],
    [1024 * 1024 - 1, 2 * 1024 * 1024],
    [content.length - 1, 100],
    [content.length + 100, 100],
  ] as const) {
    const [bytes, chunkMax] = await read('link', { offset, ...(length === undefined ? {} : { length }) });
    assert.ok(bytes.equals(content.subarray(offset, length === undefined ? undefined : offset + length)), `${offset}`);
    assert.ok(chunkMax <= 1024 * 1024);
  }
  assert.equal(await backend.contentBytes('k'), content.length);
  await assert.rejects(read('gone'), failsAs('ContentNotFound', { key: 'gone' }));
});

test('power cut, full disk and bad disk at every step of writing: the old content or the new one, and a put that returned stays', async () => {
  const puts: readonly [
    name: string,
    put: (backend: LocalFsBackend, version: number) => Promise<void>,
    path: string,
  ][] = [
    ['content', (backend, version) => backend.putContent('t/1/k', Buffer.from(`v${version}`.repeat(900))), 't/1/k'],
    [
      'manifest',
      (backend, version) => backend.putManifest(manifestOf({ label: `v${version}` })),
      'manifests/snap-1.json',
    ],
  ];
  for (const [name, put, path] of puts) {
    const begin = async (): Promise<[FaultyDisk, LocalFsBackend]> => {
      const disk = new FaultyDisk({ directories: 'synced' });
      const backend = new LocalFsBackend('/backups', { disk });
      await put(backend, 1);
      return [disk, backend];
    };
    const digest = (disk: FaultyDisk): string => blake3(Buffer.from(disk.bytes(`/backups/${path}`)).toString());
    const [clean, backend] = await begin();
    const old = digest(clean.crash(seededRandom(1)));
    const from = clean.trace.length;
    await put(backend, 2);
    const now = digest(clean.crash(seededRandom(1)));
    assert.notEqual(old, now);
    const seen = new Set<string>();
    let fired = 0;
    for (const { number, kind: step } of clean.trace.slice(from))
      for (const kind of ['power', 'ENOSPC', 'EIO'] as const) {
        const [disk, again] = await begin();
        disk.inject({ atStep: number, kind });
        const where = `${name}: ${kind} at ${number}, ${step}`;
        await put(again, 2).catch(() => {});
        fired += disk.fired.length;
        assert.equal(disk.openFiles, 0, where);
        if (kind !== 'power')
          assert.deepEqual(
            disk.list('/backups/t/1'.slice(0, name === 'content' ? 12 : 8)).filter((entry) => entry.endsWith('.tmp')),
            [],
            where,
          );
        for (let seed = 0; seed < 8; seed++) {
          const found = digest(disk.crash(seededRandom(seed)));
          assert.ok(found === old || found === now, where);
          seen.add(found);
        }
      }
    assert.equal(seen.size, 2);
    assert.ok(fired > 10, `${fired} fired`);
  }
});
