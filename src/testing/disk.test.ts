import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { systemDisk } from '../base/disk.ts';
import { readIfExists, writeDurably } from '../base/durable-file.ts';
import { isNostosError } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import { diskCompliance } from './disk-compliance.ts';
import { FaultyDisk, PowerCut } from './faulty-disk.ts';

diskCompliance({
  name: 'system disk',
  fresh(t) {
    const dir = mkdtempSync(join(tmpdir(), 'nostos-disk-'));
    t.after(() => rmSync(dir, { recursive: true, force: true }));
    return { disk: systemDisk, dir: join(dir, 'a', 'b') };
  },
});

diskCompliance({ name: 'faulty disk', fresh: () => ({ disk: new FaultyDisk(), dir: '/a/b' }) });

const seeds = Array.from({ length: 200 }, (_, seed) => seed);

function withFile() {
  const disk = new FaultyDisk();
  disk.makeDirectory('/d');
  writeDurably(disk, '/d/file', Buffer.alloc(2048, 'a'));
  return { disk, file: disk.open('/d/file', 'write') };
}

test('a power cut keeps what was synced and any part of the rest, sector by sector', () => {
  const seen = { whole: 0, nothing: 0, torn: 0 };
  for (const seed of seeds) {
    const { disk, file } = withFile();
    file.write(Buffer.alloc(1024, 'b'), 0);
    file.sync();
    file.write(Buffer.alloc(1024, 'c'), 512);
    const after = Buffer.from(disk.crash(seededRandom(seed)).bytes('/d/file'));
    assert.equal(after.toString('latin1', 0, 512), 'b'.repeat(512));
    assert.equal(after.toString('latin1', 1536), 'a'.repeat(512));
    const middle = [after.toString('latin1', 512, 1024), after.toString('latin1', 1024, 1536)];
    assert.ok(['b', 'c'].some((letter) => middle[0] === letter.repeat(512)));
    assert.ok(['a', 'c'].some((letter) => middle[1] === letter.repeat(512)));
    const written = middle.filter((part) => part.startsWith('c')).length;
    seen[written === 2 ? 'whole' : written === 0 ? 'nothing' : 'torn'] += 1;
  }
  assert.ok(seen.whole > 10 && seen.nothing > 10 && seen.torn > 10, JSON.stringify(seen));
});

test('names that were not synced come and go; a durable write is the old content or the new', () => {
  const seen = new Set<string>();
  for (const seed of seeds) {
    const { disk } = withFile();
    disk.inject({ atStep: disk.trace.length + 3, kind: 'power' });
    assert.throws(() => writeDurably(disk, '/d/file', Buffer.from('new')), PowerCut);
    assert.throws(() => disk.exists('/d'), PowerCut);
    const after = disk.crash(seededRandom(seed));
    seen.add(Buffer.from(readIfExists(after, '/d/file')!).toString('latin1', 0, 3));
  }
  assert.deepEqual([...seen].sort(), ['aaa']);
  for (const seed of seeds) {
    const { disk } = withFile();
    disk.inject({ atStep: disk.trace.length + 4, kind: 'power' });
    assert.throws(() => writeDurably(disk, '/d/file', Buffer.from('new')), PowerCut);
    seen.add(Buffer.from(readIfExists(disk.crash(seededRandom(seed)), '/d/file')!).toString('latin1', 0, 3));
  }
  assert.deepEqual([...seen].sort(), ['aaa', 'new']);
});

test('a directory that was renamed, and one whose parent was not synced, are there whole or not at all', () => {
  const seen = new Set<string>();
  for (const seed of seeds) {
    const disk = new FaultyDisk({ directories: 'synced' });
    disk.makeDirectory('/d');
    disk.syncDirectory('/');
    disk.makeDirectory('/d/old');
    disk.syncDirectory('/d');
    writeDurably(disk, '/d/old/file', Buffer.from('kept'));
    disk.rename('/d/old', '/d/new');
    disk.makeDirectory('/d/fresh');
    const after = disk.crash(seededRandom(seed));
    const [old, renamed] = ['/d/old', '/d/new'].map((dir) => after.exists(`${dir}/file`));
    assert.notEqual(old, renamed);
    seen.add(`${renamed ? 'renamed' : 'not'} ${after.exists('/d/fresh') ? 'made' : 'not'}`);
  }
  assert.deepEqual([...seen].sort(), ['not made', 'not not', 'renamed made', 'renamed not']);
});

test('after a failed sync the bytes read back, the next sync succeeds, and they are not on the disk', () => {
  const { disk, file } = withFile();
  file.write(Buffer.from('lost'), 0);
  disk.inject({ atStep: disk.trace.length, kind: 'EIO' });
  assert.throws(
    () => file.sync(),
    (error: unknown) => isNostosError(error, 'IO_FAILED'),
  );
  assert.deepEqual(
    disk.fired.map((step) => step.kind),
    ['sync'],
  );
  file.sync();
  assert.equal(Buffer.from(disk.bytes('/d/file')).toString('latin1', 0, 4), 'lost');
  assert.equal(Buffer.from(disk.crash(seededRandom(1)).bytes('/d/file')).toString('latin1', 0, 4), 'aaaa');
});

test('a full disk refuses a write and may have taken a part of it', () => {
  const { disk, file } = withFile();
  disk.inject({ atStep: disk.trace.length, kind: 'ENOSPC', repeat: 1 });
  for (let i = 0; i < 2; i++)
    assert.throws(
      () => file.write(Buffer.alloc(100, 'x'), 0),
      (error: unknown) => isNostosError(error, 'DISK_FULL'),
    );
  file.write(Buffer.from('ok'), 0);
  assert.equal(Buffer.from(disk.bytes('/d/file')).toString('latin1', 0, 51), `ok${'x'.repeat(48)}a`);
});
