import assert from 'node:assert/strict';
import { test } from 'node:test';
import { crc32 } from 'node:zlib';
import { hashBlake3 } from '../../base/blake3.ts';
import { isNostosError } from '../../base/errors.ts';
import { seededRandom } from '../../base/random.ts';
import { FaultyDisk } from '../../testing/faulty-disk.ts';
import { listRollbackFiles } from './list.ts';
import { describeFile, readFileRecords, verifyFile } from './reader.ts';
import type { TailGap } from './format.ts';
import { COMMON, DIR, batched, headerOf, makeTail, plainRecords, writerDeps } from './tail.fixture.ts';
import { writeRollbackFile } from './writer.ts';

async function makeFile(): Promise<{ disk: FaultyDisk; path: string; bytes: Uint8Array }> {
  const disk = new FaultyDisk();
  disk.makeDirectory(DIR);
  const { path } = await writeRollbackFile(writerDeps(disk), headerOf(4), () => batched(makeTail(plainRecords(4))));
  return { disk, path, bytes: disk.bytes(path) };
}

/** Of the tail above without the second record, and without the fourth, behind which more was lost. */
async function makeFileWithGaps(): Promise<{ disk: FaultyDisk; path: string; bytes: Uint8Array }> {
  const disk = new FaultyDisk();
  disk.makeDirectory(DIR);
  const entries = [...makeTail(plainRecords(4))];
  const gap = (lsn: number, more: boolean): TailGap => ({ from: lsn, to: lsn, more, reason: 'its CRC does not hold' });
  const items = [entries[0]!, gap(102, false), entries[2]!, gap(104, true)];
  const header = headerOf(4, { complete: false, newTerm: COMMON.term });
  const { path } = await writeRollbackFile(writerDeps(disk), header, () => [items]);
  return { disk, path, bytes: disk.bytes(path) };
}

/** Where it was found, which must lie within the file. */
async function offsetOfDamage(disk: FaultyDisk, path: string, size: number): Promise<number> {
  const error = await verifyFile(disk, path).then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  assert.ok(isNostosError(error, 'ROLLBACK_FILE_DAMAGED'), String(error));
  const offset = error.details['offset'] as number;
  assert.ok(offset >= 0 && offset <= size, `${offset} of ${size}`);
  assert.equal(disk.openFiles, 0);
  return offset;
}

for (const [what, make] of [
  ['a file', makeFile],
  ['a file with gaps', makeFileWithGaps],
] as const)
  test(`each bit of ${what} matters: any one flipped is found, at its frame`, async () => {
    const { disk, path, bytes } = await make();
    for (let at = 0; at < bytes.length; at++) {
      const [copy, bit] = [disk.clone(), at % 8];
      copy.flip(path, at, bit);
      const found = await offsetOfDamage(copy, path, bytes.length);
      assert.ok(found <= at, `flipped at ${at}, found at ${found}`);
    }
  });

test('a file of which records are missing says which, and is none of a whole tail', async () => {
  const { disk, path, bytes } = await makeFileWithGaps();
  const { header, footer, missing, gaps } = await verifyFile(disk, path);
  assert.deepEqual([header.complete, footer.records, missing, describeFile(disk, path).missing], [false, 2, 2, 2]);
  assert.deepEqual(
    gaps?.map(({ from, to, more }) => [from, to, more]),
    [
      [102, 102, false],
      [104, 104, true],
    ],
  );
  const whole = Buffer.from(bytes);
  whole.writeUInt16LE(1, 8);
  whole.writeUInt32LE(crc32(whole.subarray(0, 164)), 164);
  disk.overwrite(path, () => whole);
  await offsetOfDamage(disk, path, whole.length);
});

test('cut at any byte it is not whole, and the records before the cut are still read', async () => {
  const { disk, path, bytes } = await makeFile();
  const seen = new Set<number>();
  for (let size = 0; size < bytes.length; size++) {
    const copy = disk.clone();
    copy.overwrite(path, (all) => all.subarray(0, size));
    await offsetOfDamage(copy, path, size);
    assert.throws(() => describeFile(copy, path), { code: 'ROLLBACK_FILE_DAMAGED' });
    let read = 0;
    await assert.rejects(async () => {
      for await (const { record } of readFileRecords(copy, path)) read = record.lsn - 100;
    });
    seen.add(read);
  }
  assert.deepEqual([...seen], [0, 1, 2, 3, 4]);
});

/** Whole frames, each right by itself. */
const FORGERIES: readonly (readonly [string, (bytes: Buffer, frames: Buffer[]) => Buffer])[] = [
  ['a frame left out', (_, frames) => Buffer.concat(frames.toSpliced(3, 1))],
  ['a frame twice', (_, frames) => Buffer.concat(frames.toSpliced(3, 0, frames[3]!))],
  ['two frames swapped', (_, [a, b, c, d, ...rest]) => Buffer.concat([a!, b!, d!, c!, ...rest])],
  ['the schema left out', (_, frames) => Buffer.concat(frames.toSpliced(1, 1))],
  ['something behind the footer', (bytes) => Buffer.concat([bytes, Buffer.alloc(1)])],
  ['a second footer', (bytes, frames) => Buffer.concat([bytes, frames.at(-1)!])],
  ['zeros in place of its end', (bytes) => bytes.fill(0, bytes.length - 300)],
  ['nothing', () => Buffer.alloc(0)],
  ['another file', () => Buffer.from('SQLite format 3\0'.repeat(40))],
];
for (const [name, forge] of FORGERIES)
  test(`a file with ${name} is damaged`, async () => {
    const { disk, path, bytes } = await makeFile();
    const whole = Buffer.from(bytes);
    const frames = [whole.subarray(0, 168)];
    for (let at = 168; at < whole.length; at += frames.at(-1)!.length)
      frames.push(whole.subarray(at, at + 16 + whole.readUInt32LE(at + 4)));
    assert.equal(frames.length, 7);
    disk.overwrite(path, () => forge(Buffer.from(whole), frames));
    await offsetOfDamage(disk, path, disk.size(path));
    const [listed] = await listRollbackFiles(disk, DIR);
    assert.equal(listed?.state, 'damaged');
  });

test('random bytes never do anything but fail as damage, whatever they are put into', async () => {
  const { disk, path, bytes } = await makeFile();
  const random = seededRandom(7);
  let damaged = 0;
  for (let round = 0; round < 3_000; round++) {
    const copy = Buffer.from(bytes);
    const at = random.below(copy.length);
    const noise = random.bytes(1 + random.below(64));
    copy.set(noise.subarray(0, copy.length - at), at);
    if (copy.equals(bytes)) continue;
    disk.overwrite(path, () => copy);
    const error = await verifyFile(disk, path).catch((thrown: unknown) => thrown);
    assert.ok(isNostosError(error, 'ROLLBACK_FILE_DAMAGED'), `round ${round}: ${String(error)}`);
    damaged += 1;
  }
  assert.ok(damaged > 2_900);
});

test('bodies of frames with noise in them and the right CRCs are damage, too', async () => {
  const { disk, path, bytes } = await makeFile();
  const random = seededRandom(11);
  const frames: number[] = [];
  for (let at = 168; at < bytes.length; at += 16 + Buffer.from(bytes).readUInt32LE(at + 4)) frames.push(at);
  for (let round = 0; round < 3_000; round++) {
    const copy = Buffer.from(bytes);
    const at = frames[random.below(frames.length)]!;
    const body = copy.subarray(at + 16, at + 16 + copy.readUInt32LE(at + 4));
    body.set(random.bytes(1 + random.below(4)), random.below(Math.min(110, body.length - 4)));
    if (copy.equals(bytes)) continue;
    copy.writeUInt32LE(crc32(body), at + 8);
    copy.writeUInt32LE(crc32(copy.subarray(at, at + 12)), at + 12);
    disk.overwrite(path, () => copy);
    const error = await verifyFile(disk, path).catch((thrown: unknown) => thrown);
    assert.ok(isNostosError(error, 'ROLLBACK_FILE_DAMAGED'), `round ${round}: ${String(error)}`);
  }
});

test('golden bytes: what is written here is read for good', async () => {
  const { bytes } = await makeFile();
  assert.equal(Buffer.from(bytes).toString('hex', 0, 28), `4e4f53544f53524201000000${'01'.repeat(16)}`);
  assert.equal(
    Buffer.from(hashBlake3(bytes)).toString('hex'),
    '5c65667cb71c719916510e55de8aa2e6f712b61e3608bf81f5650f06caae01a3',
  );
  const { bytes: withGaps } = await makeFileWithGaps();
  assert.equal(
    Buffer.from(hashBlake3(withGaps)).toString('hex'),
    '3e15f348b7b5f3142ad0dcf859b4ce17f41b8ebae1e2d891f662b382475033de',
  );
});

test('a version from the future is named', async () => {
  const { disk, path, bytes } = await makeFile();
  const copy = Buffer.from(bytes);
  copy.writeUInt16LE(3, 8);
  copy.writeUInt32LE(crc32(copy.subarray(0, 164)), 164);
  disk.overwrite(path, () => copy);
  await assert.rejects(verifyFile(disk, path), { code: 'UNSUPPORTED_FORMAT' });
});
