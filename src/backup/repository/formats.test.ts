/** Formats: golden bytes, strict readers, keys. */
import assert from 'node:assert/strict';
import { chmod, mkdir, readFile, stat, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import fc from 'fast-check';
import { hashBlake3 } from '../../base/blake3.ts';
import type { Hlc, Lsn } from '../../base/brands.ts';
import { isNostosError, NostosError } from '../../base/errors.ts';
import { seededRandom } from '../../base/random.ts';
import { decodeArchive, parseArchiveKey } from './archive-format.ts';
import { makeChain } from './chain.fixture.ts';
import { KeyringFile } from './keyring-file.ts';
import type { BackupKey, KeyId } from './keys.ts';
import type { RepositoryId, Snapshot, SnapshotId } from './manifest.ts';
import { decodeManifest, encodeManifest } from './manifest.ts';
import type { ObjectId } from './object-format.ts';
import { decodeObject, encodeObject, objectId } from './object-format.ts';
import { fileBytes, ORIGIN, POINT, temporaryDirectory, tenantFile, uuidOf } from './repository.fixture.ts';

const REPOSITORY = 'ab'.repeat(16) as RepositoryId;
const KEY: BackupKey = { id: '17'.repeat(16) as KeyId, secret: new Uint8Array(32).fill(9) };
const keyById = (id: KeyId) => Promise.resolve(id === KEY.id ? KEY : undefined);
const ID = '018f0000-0000-7000-8000-000000000001' as SnapshotId;
const NEXT = { ...POINT, lsn: (POINT.lsn + 5) as Lsn };
const content = { bytes: 5, hash: hashBlake3(fileBytes(5)), root: '01'.repeat(32) as ObjectId, key: undefined };
const SNAPSHOT: Snapshot = {
  id: ID,
  repository: REPOSITORY,
  createdAtMs: 1_700_000_000_000,
  ...ORIGIN,
  position: NEXT,
  time: 0xfedc_ba98_7654_3210n as Hlc,
  terms: [
    { generation: POINT.generation, term: POINT.term, firstLsn: POINT.lsn, previous: { ...POINT, lsn: 0 as Lsn } },
  ],
  items: [
    { kind: 'catalog', ...content, applied: POINT },
    { ...tenantFile(1), ...content, key: KEY.id },
    { ...tenantFile(2), ...content, name: 'größe "zwei"' },
  ],
  archive: { after: POINT, through: NEXT },
  label: undefined,
};
const MANIFEST_BYTES = Buffer.from(encodeManifest(SNAPSHOT));
const decode = (bytes: Uint8Array) => decodeManifest(bytes, ID, 1_000_000);

/** Made once by this code: what was written then must be read for ever. */
interface Golden {
  readonly small: string;
  readonly smallSealed: string;
  readonly compressed: string;
  readonly archiveKey: string;
  readonly archive: string;
  readonly manifest: string;
}

test('the formats are these bytes', async () => {
  const golden = JSON.parse(await readFile(new URL('golden.json', import.meta.url), 'utf8')) as Golden;
  const hex = (text: string) => Buffer.from(text, 'hex');
  const small = Buffer.from('too small to be compressed');
  const random = { bytes: (count: number) => new Uint8Array(count).fill(5) };
  for (const [key, bytes] of [
    [undefined, golden.small],
    [KEY, golden.smallSealed],
  ] as const) {
    const context = { repository: REPOSITORY, id: objectId(hashBlake3(small), key) };
    assert.equal(Buffer.from(await encodeObject(small, key, { ...context, random })).toString('hex'), bytes);
    assert.ok(Buffer.from(await decodeObject(hex(bytes), keyById, context)).equals(small));
  }
  // Another version of zstd may compress otherwise, so these are only read.
  const zeros = new Uint8Array(200);
  const context = { repository: REPOSITORY, id: objectId(hashBlake3(zeros), undefined) };
  assert.ok(hex(golden.compressed).length < 100);
  assert.ok(Buffer.from(await decodeObject(hex(golden.compressed), keyById, context)).equals(zeros));
  const name = parseArchiveKey(golden.archiveKey)!;
  const { records } = await decodeArchive(hex(golden.archive), name, { repository: REPOSITORY, keyById });
  const chain = makeChain({ count: 5 });
  assert.equal(records.length, 5);
  for (const [index, { record }] of chain.entries())
    assert.ok(Buffer.compare(record.bytes, records[index]!.record!.bytes) === 0);
  assert.equal(golden.manifest, MANIFEST_BYTES.toString());
});

test('objects come back, plain or sealed, compressible or not; no key, another key and another place do not', async () => {
  const random = seededRandom(3);
  for (const plain of [
    new Uint8Array(),
    Buffer.from('abc'),
    fileBytes(100_000),
    random.bytes(70_000),
    new Uint8Array(1_000_000),
  ])
    for (const key of [undefined, KEY]) {
      const id = objectId(hashBlake3(plain), key);
      const context = { repository: REPOSITORY, id };
      const bytes = await encodeObject(plain, key, { ...context, random });
      assert.ok(Buffer.from(await decodeObject(bytes, keyById, context)).equals(plain));
      const again = await encodeObject(plain, key, { ...context, random });
      assert.equal(Buffer.from(bytes).equals(again), key === undefined, 'a nonce is used once');
      if (key === undefined) continue;
      const isDamaged = (error: unknown): boolean => isNostosError(error, 'BACKUP_DAMAGED');
      await assert.rejects(decodeObject(bytes, keyById, { ...context, repository: 'cd'.repeat(16) }), isDamaged);
      await assert.rejects(decodeObject(bytes, keyById, { ...context, id: 'ef'.repeat(32) as ObjectId }), isDamaged);
      const other = () => Promise.resolve({ ...KEY, secret: new Uint8Array(32) });
      await assert.rejects(decodeObject(bytes, other, context), isDamaged);
      await assert.rejects(
        decodeObject(bytes, () => Promise.resolve(undefined), context),
        (error: unknown) => isNostosError(error, 'BACKUP_KEY_MISSING'),
      );
    }
});

test('an object with any bytes changed, cut or added is refused with a typed error, or still the same content', async () => {
  const plain = fileBytes(3_000);
  for (const key of [undefined, KEY]) {
    const id = objectId(hashBlake3(plain), key);
    const context = { repository: REPOSITORY, id };
    const bytes = await encodeObject(plain, key, { ...context, random: seededRandom(4) });
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(fc.nat(bytes.length - 1), fc.integer({ min: 1, max: 255 })), { maxLength: 3 }),
        fc.integer({ min: -50, max: 50 }),
        async (flips, growth) => {
          const given = Buffer.concat([bytes, Buffer.alloc(50)]).subarray(0, bytes.length + growth);
          for (const [at, bits] of flips) if (at < given.length) given[at]! ^= bits;
          try {
            assert.ok(Buffer.from(await decodeObject(given, keyById, context)).equals(plain));
          } catch (error) {
            if (!(error instanceof NostosError)) throw error;
          }
        },
      ),
      { numRuns: 200 },
    );
  }
});

test('a manifest comes back field by field', () => {
  assert.deepEqual(decode(MANIFEST_BYTES), SNAPSHOT);
  const labelled = { ...SNAPSHOT, archive: undefined, label: 'before the update' };
  assert.deepEqual(decode(encodeManifest(labelled)), labelled);
});

/** Each with what the refusal has to name. */
const text = MANIFEST_BYTES.toString();
const upper = (key: string): string =>
  text.replace(new RegExp(`("${key}": ")([0-9a-f]+)"`), (_, start, hex: string) => `${start}${hex.toUpperCase()}"`);
const without = (key: string): string => text.replace(new RegExp(`\\n "${key}": [^\\n]*`), '');
const BAD_MANIFESTS: Record<string, [manifest: string | Uint8Array, problem: RegExp]> = {
  nothing: ['', /JSON is refused/],
  'its first half': [MANIFEST_BYTES.subarray(0, MANIFEST_BYTES.length / 2), /JSON is refused/],
  'the last byte missing': [MANIFEST_BYTES.subarray(0, -1), /canonical form/],
  'too many bytes': [' '.repeat(1_000_001), /more than 1000000/],
  'a key twice': [text.replace(' "store"', ' "store": "x",\n "store"'), /"store" stands twice/],
  'a field too many': [text.replace(' "store"', ' "extra": 1,\n "store"'), /extra/],
  'a field too few': [without('store'), /store: it is missing/],
  'a hash in upper case': [upper('blake3'), /blake3: expected lowercase hex/],
  'a generation in upper case': [upper('generation'), /generation: expected lowercase hex/],
  'a size that is negative': [text.replace('"bytes": 5', '"bytes": -5'), /bytes/],
  'a size beyond 2^53': [text.replace('"bytes": 5', '"bytes": 9007199254740993'), /bytes/],
  'a size with a point': [text.replace('"bytes": 5', '"bytes": 5.0'), /bytes/],
  'a size as text': [text.replace('"bytes": 5', '"bytes": "5"'), /bytes/],
  'a path as an id': [text.replaceAll('01'.repeat(32), '../../../../etc/passwd'), /content: expected lowercase hex/],
  'other white space': [text.replace('\n "store"', '\n  "store"'), /canonical form from byte/],
  'another order': [text.replace(/( "repository": [^\n]*\n)( "created_at_ms": [^\n]*\n)/, '$2$1'), /canonical form/],
  'changed content': [text.replace('"schema_version": 3', '"schema_version": 4'), /self_hash/],
  'another total': [text.replace('"total_bytes": 15', '"total_bytes": 16'), /canonical form/],
  'the manifest of another snapshot': [text.replace('000000000001"', '000000000002"'), /snapshot_id/],
  'two tenants of one name': [
    Buffer.from(encodeManifest({ ...SNAPSHOT, items: [tenant('a', 1), tenant('a', 2)] })),
    /one name/,
  ],
  'a file above the position': [
    encodeManifest({ ...SNAPSHOT, position: POINT, archive: undefined, items: [{ ...tenant('a', 1), applied: NEXT }] }),
    /above the position/,
  ],
  'an archive that ends elsewhere': [
    encodeManifest({ ...SNAPSHOT, position: { ...NEXT, lsn: 9 as Lsn } }),
    /end at the position/,
  ],
};
function tenant(name: string, id: number) {
  return { ...tenantFile(id), ...content, name } as const;
}

for (const [what, [manifest, problem]] of Object.entries(BAD_MANIFESTS))
  test(`a manifest is refused by name: ${what}`, () => {
    const bytes = Buffer.from(manifest);
    assert.ok(!bytes.equals(MANIFEST_BYTES), 'the test changed something');
    assert.throws(
      () => decode(bytes),
      (error: unknown) => isNostosError(error, 'BACKUP_DAMAGED') && problem.test(error.message),
    );
  });

test('manifests of other versions are named as such; bytes at random are refused and nothing else', () => {
  for (const version of ['0', '1', '3', '4294967296'])
    assert.throws(
      () => decode(Buffer.from(text.replace('"manifest_version": 2', `"manifest_version": ${version}`))),
      (error: unknown) => isNostosError(error, 'UNSUPPORTED_FORMAT') && error.message.includes(version),
    );
  const flip = fc.tuple(fc.nat(MANIFEST_BYTES.length - 1), fc.integer({ min: 1, max: 255 }));
  fc.assert(
    fc.property(fc.array(flip, { minLength: 1, maxLength: 4 }), (flips) => {
      const bytes = Buffer.from(MANIFEST_BYTES);
      for (const [at, bits] of flips) bytes[at]! ^= bits;
      if (bytes.equals(MANIFEST_BYTES)) return;
      assert.throws(
        () => decode(bytes),
        (error: unknown) => isNostosError(error, 'BACKUP_DAMAGED') || isNostosError(error, 'UNSUPPORTED_FORMAT'),
      );
    }),
    { numRuns: 500 },
  );
});

test('a keyring makes a key per tenant, keeps it, replaces it, and destroys all of them', async (t) => {
  const dir = await temporaryDirectory(t);
  const path = join(dir, 'keys.json');
  const [ring, other] = [KeyringFile.open(path), KeyringFile.open(path)];
  const keys = await Promise.all([ring, other, ring, other].map((one) => one.keyFor(uuidOf(1))));
  assert.equal(new Set(keys.map(({ id }) => id)).size, 1, 'two processes agree on a key');
  assert.equal((await stat(path)).mode & 0o777, 0o600);
  const second = await other.keyFor(uuidOf(2));
  assert.deepEqual(await ring.keyById(second.id), second);
  const rotated = await ring.rotate(uuidOf(1));
  assert.notEqual(rotated.id, keys[0]!.id);
  const again = KeyringFile.open(path);
  assert.equal((await again.keyFor(uuidOf(1))).id, rotated.id);
  assert.deepEqual(await again.keyById(keys[0]!.id), keys[0]);
  assert.equal(await again.destroy(uuidOf(1)), 2);
  assert.equal(await again.keyById(rotated.id), undefined);
  assert.ok(again.isDestroyed(rotated.id) && !again.isDestroyed(second.id));
  assert.ok(!(await readFile(path, 'utf8')).includes(Buffer.from(rotated.secret).toString('hex')));
});

test('a keyring that others may read, or that is no keyring, is refused', async (t) => {
  const dir = await temporaryDirectory(t);
  const path = join(dir, 'keys.json');
  await KeyringFile.open(path).keyFor(uuidOf(1));
  const whole = await readFile(path);
  const isRefused = (error: unknown): boolean => isNostosError(error, 'BACKUP_KEY_MISSING');
  await chmod(path, 0o640);
  assert.throws(() => KeyringFile.open(path), isRefused);
  await chmod(path, 0o600);
  for (const bytes of ['', '{}', whole.subarray(0, 90), whole.toString().replace('"secret": "', '"secret": "F')]) {
    await writeFile(path, bytes);
    assert.throws(() => KeyringFile.open(path), isRefused, bytes.toString());
  }
  await symlink(path, join(dir, 'link'));
  await mkdir(join(dir, 'directory'));
  for (const name of ['link', 'directory']) assert.throws(() => KeyringFile.open(join(dir, name)), isRefused);
});
