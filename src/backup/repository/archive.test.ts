import assert from 'node:assert/strict';
import { readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import fc from 'fast-check';
import { hashBlake3 } from '../../base/blake3.ts';
import type { Generation, Hlc, Lsn, TenantId } from '../../base/brands.ts';
import { isNostosError, NostosError } from '../../base/errors.ts';
import { seededRandom } from '../../base/random.ts';
import { pointOf } from '../../log/chain.ts';
import type { ReadRecord } from '../../log/reader.ts';
import type { Archive } from './archive.ts';
import { missingFrom } from './archive.ts';
import type { ArchiveName } from './archive-format.ts';
import { decodeArchive, encodeArchive, parseArchiveKey } from './archive-format.ts';
import { GENERATION, makeChain } from './chain.fixture.ts';
import { KeyringFile } from './keyring-file.ts';
import type { KeyId } from './keys.ts';
import type { RepositoryId } from './manifest.ts';
import { newRepository, temporaryDirectory, uuidOf } from './repository.fixture.ts';

const lsn = (value: number): Lsn => value as Lsn;
const range = (from: number, to: number) => ({ generation: GENERATION, from: lsn(from), to: lsn(to) });
const write = (archive: Archive, records: readonly ReadRecord[]) => archive.write([records], { uuidOf });
const bytesOf = (records: readonly { readonly record: { readonly bytes: Uint8Array } | undefined }[]) =>
  Buffer.concat(records.map(({ record }) => record!.bytes));

async function readAll(archive: Archive, from: number, to: number, options?: Parameters<Archive['records']>[1]) {
  return (await Array.fromAsync(archive.records(range(from, to), options))).flat();
}

test('any range of archived records comes back byte for byte, in objects of bounded size', async (t) => {
  const { repository } = await newRepository(t, { limits: { archiveObjectBytesMax: 20_000 } });
  const { archive } = repository;
  const chain = makeChain({ count: 1_000 });
  const through = await archive.write([chain.slice(0, 300), chain.slice(300)], { uuidOf });
  assert.deepEqual(through, pointOf(chain[999]!.record, chain[999]!.hash));
  assert.ok((await archive.objects(GENERATION)).length > 5);
  for (const [from, to] of [
    [1, 1_000],
    [1, 1],
    [1_000, 1_000],
    [137, 803],
  ] as const) {
    const found = await readAll(archive, from, to);
    assert.ok(bytesOf(found).equals(bytesOf(chain.slice(from - 1, to))), `${from}-${to}`);
    assert.deepEqual(found.at(-1)!.hash, chain[to - 1]!.hash);
  }
  assert.deepEqual(await archive.generations(), [GENERATION]);
});

test('objects of two archivers overlap: any chain of them serves, also around a damaged one', async (t) => {
  const { repository, dir } = await newRepository(t);
  const { archive } = repository;
  const chain = makeChain({ count: 300 });
  await write(archive, chain.slice(0, 120));
  await write(archive, chain.slice(90, 220));
  await write(archive, chain.slice(100, 150));
  await write(archive, chain.slice(145, 300));
  assert.ok(bytesOf(await readAll(archive, 1, 300)).equals(bytesOf(chain)));

  const second = (await archive.objects(GENERATION)).find(({ from }) => from === 91)!;
  const path = join(dir, second.key);
  const whole = await readFile(path);
  await writeFile(path, whole.with(whole.length - 3, whole[whole.length - 3]! ^ 4));
  assert.ok(bytesOf(await readAll(archive, 1, 300)).equals(bytesOf(chain)), 'around the damage');
  await rm(path);
  await rm(join(dir, (await archive.objects(GENERATION)).find(({ from }) => from === 101)!.key));
  await assert.rejects(readAll(archive, 1, 300), (error: unknown) => {
    assert.ok(isNostosError(error, 'ARCHIVE_GAP'));
    assert.deepEqual(error.details.missing, [{ from: 121, to: 145 }]);
    return true;
  });
});

test('records of another history are refused although they fill the range', async (t) => {
  const { repository } = await newRepository(t);
  const { archive } = repository;
  const chain = makeChain({ count: 200 });
  const other = makeChain({ count: 200, seed: 2 });
  await write(archive, chain.slice(0, 100));
  await write(archive, other.slice(100));
  await assert.rejects(readAll(archive, 1, 200), /does not continue/);
  await assert.rejects(
    readAll(archive, 101, 200, { after: pointOf(chain[99]!.record, chain[99]!.hash) }),
    (error: unknown) => isNostosError(error, 'BACKUP_DAMAGED'),
  );
});

test('a time leads to the last record at or before it', async (t) => {
  const { repository } = await newRepository(t, { limits: { archiveObjectBytesMax: 3_000 } });
  const chain = makeChain({ count: 200, startMs: 50_000 });
  await write(repository.archive, chain);
  await write(repository.archive, chain.slice(20, 60));
  const at = async (ms: number) => (await repository.archive.lastBefore(GENERATION, (BigInt(ms) << 16n) as Hlc))?.lsn;
  assert.equal(await at(49_999), undefined);
  assert.equal(await at(1e12), 200);
  for (let index = 0; index < 200; index += 13) {
    assert.equal(await at(50_000 + index * 1_000), index + 1);
    assert.equal(await at(50_000 + index * 1_000 + 999), index + 1);
  }
  assert.equal(await repository.archive.lastBefore('b'.repeat(32) as Generation, 0n as Hlc), undefined);
});

test('a destroyed key takes the records of its tenant along, and the chain of the others still verifies', async (t) => {
  const keys = KeyringFile.open(join(await temporaryDirectory(t), 'keys.json'));
  const { repository, dir } = await newRepository(t, { keys });
  const chain = makeChain({ count: 100 });
  await write(repository.archive, chain);
  assert.ok(bytesOf(await readAll(repository.archive, 1, 100)).equals(bytesOf(chain)));

  assert.equal(await keys.destroy(uuidOf(2)), 1);
  const found = await readAll(repository.archive, 1, 100);
  for (const [index, { header, hash, record }] of found.entries()) {
    assert.equal(record === undefined, header.tenant === 2, `record ${header.lsn}`);
    assert.ok(Buffer.from(hash).equals(chain[index]!.hash));
  }
  const only = await readAll(repository.archive, 1, 100, { tenants: new Set([1 as TenantId]) });
  assert.deepEqual(
    [...new Set(only.filter(({ record }) => record !== undefined).map(({ header }) => header.tenant as number))],
    [1],
  );
  assert.ok((await readdir(join(dir, 'archive', GENERATION))).length === 1);
});

test('a renamed object, one of another repository and every flipped byte are refused, each as damage', async (t) => {
  const keys = KeyringFile.open(join(await temporaryDirectory(t), 'keys.json'));
  const random = seededRandom(7);
  const repository = 'aa'.repeat(16) as RepositoryId;
  const keyOf = async (tenant: TenantId) => (tenant === 2 ? keys.keyFor(uuidOf(2)) : undefined);
  const { key, bytes } = await encodeArchive(makeChain({ count: 12 }), { repository, keyOf, random });
  const name = parseArchiveKey(key)!;
  const options = { repository, keyById: (id: KeyId) => keys.keyById(id) };
  assert.equal((await decodeArchive(bytes, name, options)).records.length, 12);
  const isRefusal = (error: unknown): boolean =>
    error instanceof NostosError && (error.code === 'BACKUP_DAMAGED' || error.code === 'UNSUPPORTED_FORMAT');
  const other = { ...options, repository: 'bb'.repeat(16) as RepositoryId };
  await assert.rejects(decodeArchive(bytes, name, other), isRefusal);
  for (let at = 0; at < bytes.length; at += 3)
    await assert.rejects(decodeArchive(Uint8Array.from(bytes).with(at, bytes[at]! ^ 0x10), name, options), isRefusal);
});

test('arbitrary bytes with the right digest are still refused, as damage and nothing else', async () => {
  const repository = 'aa'.repeat(16) as RepositoryId;
  const keyOf = () => Promise.resolve(undefined);
  const chain = makeChain({ count: 12 });
  const original = bytesOf(chain);
  const made = await encodeArchive(chain, { repository, keyOf, random: seededRandom(1) });
  const name = parseArchiveKey(made.key)!;
  const renamed = (bytes: Uint8Array): ArchiveName => ({
    ...name,
    digest: Buffer.from(hashBlake3(bytes)).toString('hex', 0, 8),
  });
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(fc.nat(made.bytes.length - 1), fc.integer({ min: 1, max: 255 })), {
        minLength: 1,
        maxLength: 4,
      }),
      fc.nat(made.bytes.length),
      fc.boolean(),
      async (flips, length, isCut) => {
        const bytes = Uint8Array.from(made.bytes);
        for (const [at, bits] of flips) bytes[at]! ^= bits;
        const given = isCut ? bytes.subarray(0, length) : bytes;
        if (Buffer.compare(given, made.bytes) === 0) return;
        try {
          const { records } = await decodeArchive(given, renamed(given), {
            repository,
            keyById: () => Promise.resolve(undefined),
          });
          // zstd leaves some bits to the writer.
          assert.ok(bytesOf(records).equals(original), `accepted other records from ${JSON.stringify(flips)}`);
        } catch (error) {
          if (!(error instanceof NostosError)) throw error;
        }
      },
    ),
    { numRuns: 500 },
  );
});

test('what is missing is what no object holds (property)', () => {
  const objects = fc.array(fc.tuple(fc.integer({ min: 1, max: 60 }), fc.integer({ min: 0, max: 9 })), {
    maxLength: 12,
  });
  fc.assert(
    fc.property(objects, fc.integer({ min: 1, max: 60 }), fc.nat(20), (spans, from, more) => {
      const names = spans
        .map(([start, length]) => ({ from: lsn(start), to: lsn(start + length) }) as ArchiveName)
        .toSorted((a, b) => a.from - b.from);
      const held = new Set(
        names.flatMap((name) => Array.from({ length: name.to - name.from + 1 }, (_, i) => name.from + i)),
      );
      const wanted = Array.from({ length: more + 1 }, (_, index) => from + index);
      const missing = missingFrom({ from: lsn(from), to: lsn(from + more) }, names).flatMap((gap) =>
        Array.from({ length: gap.to - gap.from + 1 }, (_, index) => gap.from + index),
      );
      assert.deepEqual(
        missing,
        wanted.filter((at) => !held.has(at)),
      );
    }),
  );
});

test('an object that was renamed to other records is refused', async (t) => {
  const { repository, dir } = await newRepository(t);
  await write(repository.archive, makeChain({ count: 10 }));
  const [name] = await repository.archive.objects(GENERATION);
  const wrong = name!.key.replace(/0000000000000001-0000000000000010/, '0000000000000001-0000000000000011');
  await rename(join(dir, name!.key), join(dir, wrong));
  await assert.rejects(readAll(repository.archive, 1, 11), /other records than its name says/);
});
