import assert from 'node:assert/strict';
import { test } from 'node:test';
import { toHash } from '../../base/brands.ts';
import { seededRandom } from '../../base/random.ts';
import { RecordKind } from '../../log/record.ts';
import { FaultyDisk } from '../../testing/faulty-disk.ts';
import { ROLLBACK_LIMITS } from '../types.ts';
import { fileName } from './file-name.ts';
import { FILE_HEADER_BYTES, FRAME_HEAD_BYTES, FrameKind } from './format.ts';
import { listRollbackFiles } from './list.ts';
import { describeFile, readFileRecords, verifyFile } from './reader.ts';
import { COMMON, DIR, batched, headerOf, makeTail, plainRecords, writerDeps, type MadeRecord } from './tail.fixture.ts';
import { writeRollbackFile, type TailBatch, type TailEntry } from './writer.ts';

function newDisk(): FaultyDisk {
  const disk = new FaultyDisk();
  disk.makeDirectory(DIR);
  return disk;
}

test('a file gives back every record, byte for byte, with its flag, name and schema', async () => {
  const disk = newDisk();
  const made: MadeRecord[] = [
    ...plainRecords(3),
    { kind: RecordKind.termStart, payload: Buffer.from('start'), term: 4, tenant: 0 },
    // More tenants than a reader remembers schemas for, twice.
    ...[0, 1].flatMap(() => Array.from({ length: 100 }, (_, i) => ({ ...plainRecords(1)[0]!, tenant: 2 + i }))),
    { payload: plainRecords(1, 600_000)[0]!.payload },
  ];
  const header = headerOf(made.length, { oldTerm: 4 });
  const file = await writeRollbackFile(writerDeps(disk), header, () => batched(makeTail(made)));
  assert.equal(file.path, `${DIR}/term4-to-5-lsn-101-${100 + made.length}-${header.id}.nrb`);
  const written = [...makeTail(made)];
  let at = 0;
  for await (const { record, hash, acknowledged, tenantName, schema } of readFileRecords(disk, file.path)) {
    const entry = written[at++]!;
    assert.deepEqual(
      [Buffer.from(record.bytes), Buffer.from(hash), acknowledged],
      [Buffer.from(entry.record.bytes), Buffer.from(entry.hash), entry.acknowledged],
    );
    const isChangeset = record.kind === RecordKind.changeset;
    assert.equal(tenantName, isChangeset ? `tenant-${record.tenant}` : '');
    assert.deepEqual(schema?.tables[0]?.columns, isChangeset ? ['id', 'body'] : undefined);
  }
  assert.equal(at, made.length);
  // A reader keeps 64: that of tenant 1 is repeated, too.
  assert.equal(schemaFrames(disk.bytes(file.path)), 2 + 200);
  const { header: read, footer } = describeFile(disk, file.path);
  assert.deepEqual(read, header);
  assert.deepEqual(
    [footer.records, footer.acknowledged, footer.recordBytes, footer.digest],
    [file.records, file.acknowledged, file.bytes, file.digest],
  );
  assert.equal(file.acknowledged, written.filter((entry) => entry.acknowledged).length);
  assert.deepEqual(await verifyFile(disk, file.path), { ...describeFile(disk, file.path), gaps: [] });
  assert.deepEqual(disk.list(DIR), [fileName(header)]);
  assert.equal(disk.openFiles, 0);
});

function schemaFrames(bytes: Uint8Array): number {
  const view = Buffer.from(bytes);
  let count = 0;
  for (let at = FILE_HEADER_BYTES; at < view.length; at += FRAME_HEAD_BYTES + view.readUInt32LE(at + 4))
    count += view[at] === FrameKind.schema ? 1 : 0;
  return count;
}

const entries = (records: readonly MadeRecord[] = plainRecords(5)): TailEntry[] => [...makeTail(records)];
const without = (index: number): TailEntry[] => entries().filter((_, i) => i !== index);
const swapped = ([a, b, ...rest]: TailEntry[]): TailEntry[] => [b!, a!, ...rest];

const COMMON_HASH = toHash(Buffer.from(COMMON.hash, 'hex'));

const BAD: readonly (readonly [string, () => Iterable<TailEntry>, RegExp])[] = [
  ['is empty', () => [], /it is empty/],
  ['ends early', () => without(4), /ends at LSN 104/],
  ['begins late', () => without(0), /102 comes after 100/],
  ['has a gap', () => without(2), /104 comes after 102: some are missing/],
  ['is out of order', () => swapped(entries()), /102 comes after 100/],
  ['has a record twice', () => [...entries().slice(0, 2), ...entries().slice(1)], /102 comes after 102/],
  ['goes on', () => entries(plainRecords(6)), /106 is not within/],
  [
    'has a record of the new term',
    () => entries([...plainRecords(4), { kind: RecordKind.termStart, payload: Buffer.from('s'), term: 5 }]),
    /not below the new primary's 5/,
  ],
  [
    'has a term without its start',
    () => entries([...plainRecords(4), { ...plainRecords(1)[0]!, term: 4 }]),
    /without a term-start/,
  ],
  [
    'begins at another common point',
    () => makeTail(plainRecords(5), { common: { ...COMMON, hash: 'cd'.repeat(32) } }),
    /hash of the record before/,
  ],
  [
    'has a record from another history in its midst',
    () => [...entries().slice(0, 2), ...[...makeTail(plainRecords(5, 41))].slice(2)],
    /hash of the record before/,
  ],
  ['says other hashes', () => entries().map((entry) => ({ ...entry, hash: COMMON_HASH })), /102: .*hash of the record/],
  [
    'says another hash for its last record',
    () => entries().map((entry, i) => (i === 4 ? { ...entry, hash: COMMON_HASH } : entry)),
    /105: its bytes have another hash/,
  ],
  [
    'breaks off',
    function* () {
      yield entries()[0]!;
      throw new Error('the segment is gone');
    },
    /the segment is gone/,
  ],
];
for (const [name, tail, reason] of BAD)
  test(`a tail that ${name} leaves no file`, async () => {
    const disk = newDisk();
    await assert.rejects(
      writeRollbackFile(writerDeps(disk), headerOf(5), () => batched(tail())),
      (error: NodeJS.ErrnoException) => error.code === 'TAIL_READ_FAILED' && reason.test(error.message),
    );
    const listed = await listRollbackFiles(disk, DIR);
    assert.deepEqual(
      listed.map(({ state }) => state),
      ['unfinished'],
    );
    assert.equal(disk.openFiles, 0);
    await writeRollbackFile(writerDeps(disk), headerOf(5), () => batched(entries()));
    assert.deepEqual(disk.list(DIR), [fileName(headerOf(5))]);
  });

test('bytes that were changed behind their hash are found when the file is read back', async () => {
  const disk = newDisk();
  const tail = entries();
  tail[2]!.record.bytes.fill(0, 150, 151);
  await assert.rejects(
    writeRollbackFile(writerDeps(disk), headerOf(5), () => batched(tail)),
    { code: 'ROLLBACK_FILE_DAMAGED' },
  );
  assert.deepEqual(
    (await listRollbackFiles(disk, DIR)).map(({ state }) => state),
    ['unfinished'],
  );
});

test('a ceiling on records, bytes and time refuses before a file is there; override passes it', async () => {
  for (const limit of [{ tailRecordsMax: 4 }, { tailBytesMax: 800 }, { tailSpanMsMax: 3 }]) {
    const disk = newDisk();
    const deps = writerDeps(disk, { limits: { ...ROLLBACK_LIMITS, ...limit } });
    const [name] = Object.keys(limit);
    await assert.rejects(
      writeRollbackFile(deps, headerOf(5), () => batched(entries())),
      (error: NodeJS.ErrnoException & { details: { limit?: unknown } }) =>
        error.code === 'ROLLBACK_TOO_LARGE' && error.details.limit === name,
    );
    const { records } = await writeRollbackFile(deps, headerOf(5), () => batched(entries()), { override: true });
    assert.equal(records, 5);
  }
});

test('a whole file is used as it is: its tail is not asked for again', async () => {
  const disk = newDisk();
  const first = await writeRollbackFile(writerDeps(disk), headerOf(5), () => batched(entries()));
  const bytes = disk.bytes(first.path);
  const again = await writeRollbackFile(writerDeps(disk), headerOf(5), () => assert.fail('it was asked for'));
  assert.deepEqual(again, first);
  assert.deepEqual(disk.bytes(first.path), bytes);
});

test('once it is said to be there, no power cut takes it away; also where it was found after a failed sync', async () => {
  for (let seed = 0; seed < 20; seed++) {
    const disk = newDisk();
    disk.syncDirectory('/node');
    const { path } = await writeRollbackFile(writerDeps(disk), headerOf(5), () => batched(entries()));
    assert.equal((await verifyFile(disk.crash(seededRandom(seed)), path)).footer.records, 5);
  }
  const clean = newDisk();
  await writeRollbackFile(writerDeps(clean), headerOf(5), () => batched(entries()));
  const linked = clean.trace.findIndex(({ kind }) => kind === 'link');
  for (let seed = 0; seed < 20; seed++) {
    const disk = newDisk();
    disk.inject({ atStep: linked + 1, kind: 'EIO' });
    await assert.rejects(
      writeRollbackFile(writerDeps(disk), headerOf(5), () => batched(entries())),
      { code: 'TAIL_PERSIST_FAILED' },
    );
    assert.equal(disk.fired.length, 1);
    const { path } = await writeRollbackFile(writerDeps(disk), headerOf(5), () => assert.fail('it is there'));
    assert.equal((await verifyFile(disk.crash(seededRandom(seed)), path)).footer.records, 5);
  }
});

test('a damaged file under the name is set aside, kept, and written anew', async () => {
  const disk = newDisk();
  const { path } = await writeRollbackFile(writerDeps(disk), headerOf(5), () => batched(entries()));
  disk.flip(path, 400, 3);
  const damaged = disk.bytes(path);
  await writeRollbackFile(writerDeps(disk), headerOf(5), () => batched(entries()));
  assert.equal((await verifyFile(disk, path)).footer.records, 5);
  assert.deepEqual(disk.bytes(`${path}.damaged`), damaged);
  for (const verify of ['all', 'ends'] as const)
    assert.deepEqual(
      (await listRollbackFiles(disk, DIR, { verify })).map(({ state }) => state),
      ['whole', 'damaged'],
    );
});

test('cancelled, it leaves no file', async () => {
  const disk = newDisk();
  const controller = new AbortController();
  async function* tail(): AsyncGenerator<TailBatch> {
    for (const batch of batched(entries(), 1)) {
      if (batch.some((item) => 'record' in item && item.record.lsn === 103)) controller.abort(new Error('enough'));
      yield batch;
    }
  }
  await assert.rejects(writeRollbackFile(writerDeps(disk), headerOf(5), tail, { signal: controller.signal }), /enough/);
  assert.deepEqual(
    (await listRollbackFiles(disk, DIR)).map(({ state }) => state),
    ['unfinished'],
  );
});
