/** Memory and disks as they are: large blobs, a disk that is really full, a database that is really opened. */
import assert from 'node:assert/strict';
import { closeSync, ftruncateSync, mkdirSync, openSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { mountRefusal, mountSmall } from '../../testing/small-disk.fixture.ts';
import { RestoreExecutorError } from './errors.ts';
import { RestoreExecutor } from './executor.ts';
import { LocalFsBackend } from './local-fs-backend.ts';
import {
  blake3,
  fillBackend,
  manifestOf,
  plainBackend,
  planOf,
  readTree,
  temporaryDirectory,
  writeTree,
} from './snapshot.fixture.ts';
import { RestoreMode } from './types.ts';

test('the memory of a validation and a restore does not grow with the blob', async (t) => {
  const BYTES = 384 * 1024 * 1024;
  const root = temporaryDirectory(t);
  const backend = await fillBackend(
    new LocalFsBackend(join(root, 'backups')),
    manifestOf({ sqliteCheckpointKey: 'large', sqliteCheckpointChecksum: null }),
  );
  const file = openSync(join(backend.root(), 'large'), 'w');
  ftruncateSync(file, BYTES);
  closeSync(file);
  const before = process.memoryUsage.rss();
  let most = 0;
  const onProgress = (): void => {
    most = Math.max(most, process.memoryUsage.rss());
  };
  const dir = join(root, 'data');
  const outcome = await new RestoreExecutor(backend, dir).execute(await planOf(backend), RestoreMode.NewCluster, {
    onProgress,
  });
  assert.equal(outcome.items[0]?.[0].bytes, BYTES);
  assert.equal(statSync(join(dir, 'tenant_7/data.sqlite')).size, BYTES);
  assert.ok(most - before < 64 * 1024 * 1024, `${most - before} bytes more`);
});

test('a disk that fills up in the middle: the old state is there, and when there is room it is restored', async (t) => {
  const refusal = mountRefusal();
  if (refusal !== undefined) return t.skip(refusal);
  using disk = mountSmall(1024 * 1024);
  const dir = join(disk.dir, 'data');
  writeTree(dir, { 'tenant_7/data.sqlite': 'old rows' });
  const content = 'x'.repeat(2 * 1024 * 1024);
  const backend = new LocalFsBackend(temporaryDirectory(t));
  await fillBackend(backend, manifestOf({ sqliteCheckpointChecksum: blake3(content), hnswSnapshots: [] }));
  await backend.putContent('snap-1/sqlite.db', Buffer.from(content));
  const plan = await planOf(backend);
  const executor = new RestoreExecutor(backend, dir, { diskReserveBytes: 0 });
  const fails = (one: RestoreExecutor, kind: string): Promise<void> =>
    assert.rejects(one.execute(plan, RestoreMode.WipeAndRestore), (error) => {
      assert.ok(
        error instanceof RestoreExecutorError && error.kind === kind && error.code === 'DISK_FULL',
        String(error),
      );
      return true;
    });
  await fails(executor, 'InsufficientSpace');
  // One that cannot tell sizes finds out on the way.
  await fails(new RestoreExecutor(plainBackend(backend), dir, { diskReserveBytes: 0 }), 'Io');
  assert.deepEqual(readTree(dir), { 'tenant_7/data.sqlite': 'old rows' });
  disk.grow(8 * 1024 * 1024);
  await executor.execute(plan, RestoreMode.WipeAndRestore);
  assert.equal(readFileSync(join(dir, 'tenant_7/data.sqlite')).length, content.length);
});

test('a database is opened as it was saved, whatever WAL the old one left', async (t) => {
  const root = temporaryDirectory(t);
  const dir = join(root, 'data');
  const make = (path: string, text: string): void => {
    const db = new DatabaseSync(path);
    db.exec('PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, text TEXT) STRICT');
    db.prepare('INSERT INTO t VALUES (1, ?)').run(text);
    db.close();
  };
  make(join(root, 'saved.db'), 'saved');
  const saved = readFileSync(join(root, 'saved.db'));
  const backend = await fillBackend(
    new LocalFsBackend(join(root, 'backups')),
    manifestOf({ sqliteCheckpointChecksum: null, hnswSnapshots: [] }),
  );
  await backend.putContent('snap-1/sqlite.db', saved);
  mkdirSync(join(dir, 'tenant_7'), { recursive: true });
  const path = join(dir, 'tenant_7/data.sqlite');
  make(path, 'old');
  // A process that died leaves its WAL.
  const holder = new DatabaseSync(path);
  holder.exec("UPDATE t SET text = 'newer'");
  assert.ok(statSync(`${path}-wal`).size > 0);
  await new RestoreExecutor(backend, dir).execute(await planOf(backend), RestoreMode.WipeAndRestore);
  holder.close();
  const db = new DatabaseSync(path);
  assert.equal(db.prepare('SELECT text FROM t').get()?.['text'], 'saved');
  assert.equal(db.prepare('PRAGMA integrity_check').get()?.['integrity_check'], 'ok');
  db.close();
});
