/** What the log relies on in a disk, as tests: the real one and the faulty one without faults behave alike. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import type { TestContext } from 'node:test';
import type { Disk } from '../base/disk.ts';
import { readIfExists, writeDurably } from '../base/durable-file.ts';
import { isNostosError } from '../base/errors.ts';

export interface DiskUnderTest {
  readonly name: string;
  /** A disk, and a directory on it that does not exist yet. */
  fresh(t: TestContext): { disk: Disk; dir: string };
}

const absent = (error: unknown) => isNostosError(error, 'IO_FAILED') && error.details.errno === 'ENOENT';

const failed = (error: unknown) => isNostosError(error, 'IO_FAILED');

export function diskCompliance(subject: DiskUnderTest): void {
  const setup = (t: TestContext) => {
    const { disk, dir } = subject.fresh(t);
    disk.makeDirectory(dir);
    disk.makeDirectory(dir);
    return { disk, dir, path: join(dir, 'file') };
  };

  test(`${subject.name}: bytes read back where they were written, with zeros between`, (t) => {
    const { disk, path } = setup(t);
    const file = disk.open(path, 'create');
    file.write(Buffer.from('abc'), 5);
    file.write(Buffer.from('X'), 6);
    file.dataSync();
    file.sync();
    assert.equal(file.size(), 8);
    const target = Buffer.alloc(20, 1);
    assert.equal(file.read(target, 3), 5);
    assert.deepEqual(target.subarray(0, 5), Buffer.from('\0\0aXc'));
    assert.equal(file.read(target, 8), 0);
    file.truncate(6);
    assert.equal(file.size(), 6);
    file.truncate(10);
    assert.equal(file.read(target, 0), 10);
    assert.deepEqual(target.subarray(0, 10), Buffer.from('\0\0\0\0\0a\0\0\0\0'));
    file.close();
    file.close();
    assert.throws(
      () => file.read(target, 0),
      (error: unknown) => isNostosError(error, 'IO_FAILED'),
    );
    assert.equal(disk.size(path), 10);
  });

  test(`${subject.name}: modes open what is there, or make it anew`, (t) => {
    const { disk, path } = setup(t);
    assert.throws(() => disk.open(path, 'read'), absent);
    assert.throws(() => disk.open(path, 'write'), absent);
    assert.throws(() => disk.size(path), absent);
    const made = disk.open(path, 'create');
    made.write(Buffer.from('abc'), 0);
    made.close();
    const written = disk.open(path, 'write');
    assert.equal(written.size(), 3);
    written.close();
    const emptied = disk.open(path, 'create');
    assert.equal(emptied.size(), 0);
    emptied.close();
  });

  test(`${subject.name}: names are listed in order, renamed, linked and removed`, (t) => {
    const { disk, dir, path } = setup(t);
    const other = join(dir, 'another');
    writeDurably(disk, path, Buffer.from('one'));
    assert.deepEqual(disk.list(dir), ['file']);
    disk.link(path, other);
    assert.deepEqual(disk.list(dir), ['another', 'file']);
    assert.throws(
      () => disk.link(path, other),
      (error: unknown) => isNostosError(error, 'FILE_EXISTS'),
    );
    disk.remove(path);
    assert.throws(() => disk.remove(path), absent);
    assert.equal(disk.exists(path), false);
    assert.deepEqual(Buffer.from(readIfExists(disk, other)!), Buffer.from('one'));
    assert.equal(readIfExists(disk, path), undefined);
    disk.rename(other, path);
    assert.throws(() => disk.rename(other, path), absent);
    writeDurably(disk, path, Buffer.from('two'));
    assert.deepEqual(disk.list(dir), ['file']);
    disk.syncDirectory(dir);
    assert.throws(() => disk.list(join(dir, 'nowhere')), absent);
    assert.throws(() => disk.syncDirectory(join(dir, 'nowhere')), absent);
  });

  test(`${subject.name}: directories are told apart, renamed with all that is in them, and removed when empty`, (t) => {
    const { disk, dir, path } = setup(t);
    const [from, to] = [join(dir, 'from'), join(dir, 'elsewhere', 'to')];
    disk.makeDirectory(join(from, 'inner'));
    disk.makeDirectory(join(dir, 'elsewhere'));
    writeDurably(disk, join(from, 'inner', 'file'), Buffer.from('moved'));
    writeDurably(disk, path, Buffer.from('file'));
    assert.deepEqual(disk.list(from), ['inner']);
    assert.deepEqual(
      [from, path, join(dir, 'nowhere')].map((one) => disk.isDirectory(one)),
      [true, false, false],
    );
    disk.rename(from, to);
    assert.equal(disk.exists(from), false);
    assert.deepEqual(Buffer.from(readIfExists(disk, join(to, 'inner', 'file'))!), Buffer.from('moved'));
    assert.throws(() => disk.removeDirectory(to), failed);
    assert.throws(() => disk.rename(join(dir, 'elsewhere'), path), failed);
    disk.remove(join(to, 'inner', 'file'));
    disk.removeDirectory(join(to, 'inner'));
    disk.removeDirectory(to);
    assert.equal(disk.exists(to), false);
    assert.throws(() => disk.removeDirectory(to), absent);
    assert.ok(disk.freeBytes(dir) > 0);
    assert.throws(() => disk.freeBytes(join(dir, 'nowhere')), absent);
  });

  test(`${subject.name}: a file that lost its name is still read by who has it open`, (t) => {
    const { disk, path } = setup(t);
    writeDurably(disk, path, Buffer.from('kept'));
    const file = disk.open(path, 'read');
    disk.remove(path);
    const target = Buffer.alloc(4);
    assert.equal(file.read(target, 0), 4);
    assert.equal(target.toString(), 'kept');
    file.close();
  });
}
