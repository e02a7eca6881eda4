/** What backups rely on in their storage, as tests: a directory, S3 and the fake of the simulations behave alike. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { TestContext } from 'node:test';
import { isNostosError } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import { releaseBuffer } from '../base/release.ts';
import type { ObjectBackend } from '../backup/backend/backend.ts';

export interface BackendUnderTest {
  readonly name: string;
  /** Empty, and closed with the test. A second one on the same storage is another process. */
  fresh(t: TestContext): Promise<{ readonly backend: ObjectBackend; readonly second: ObjectBackend }>;
  /** Why it cannot be tested here. */
  readonly skip?: string | undefined;
  /** Of a store that ignores conditions nothing is asked that needs them. */
  readonly ignoresConditions?: boolean;
  /** A size that takes more than one part, or request. */
  readonly largeBytes?: number;
}

const BAD_KEYS = [
  '',
  '/',
  'a/',
  '/a',
  'a//b',
  '.',
  '..',
  '../x',
  'a/../b',
  'a/./b',
  'a\\b',
  'a b',
  'a\0b',
  'ä',
  '.tmp-x',
  'a/.x',
];

export function backendCompliance(subject: BackendUnderTest): void {
  const { name, largeBytes = 3_000_000 } = subject;
  const check = (what: string, run: (t: TestContext) => Promise<void>): void => {
    test(`${name}: ${what}`, { skip: subject.skip ?? false }, run);
  };
  const bytesOf = (length: number, seed = 1): Uint8Array => seededRandom(seed).bytes(length);
  const keysOf = async (backend: ObjectBackend, prefix: string, after?: string): Promise<string[]> =>
    (await Array.fromAsync(backend.list(prefix, after === undefined ? {} : { after }))).map(({ key }) => key);

  check('what was put is there for others, whole, in part and by its size', async (t) => {
    const { backend, second } = await subject.fresh(t);
    for (const length of [0, 1, 70_000]) {
      const bytes = bytesOf(length);
      assert.equal(await backend.put(`a/b/${length}`, bytes), 'created');
      const found = await second.get(`a/b/${length}`);
      assert.ok(found !== undefined && Buffer.compare(found, bytes) === 0, `${length} bytes`);
      const entry = await second.head(`a/b/${length}`);
      assert.equal(entry?.bytes, length);
      assert.ok(Math.abs(entry.modifiedMs - Date.now()) < 60_000, `written at ${entry.modifiedMs}`);
    }
    const range = (start: number, end: number) => second.get('a/b/70000', { range: { start, end } });
    assert.deepEqual(new Uint8Array((await range(10, 20))!), bytesOf(70_000).slice(10, 20));
    assert.deepEqual(new Uint8Array((await range(69_990, 80_000))!), bytesOf(70_000).slice(69_990));
    assert.equal((await range(70_000, 70_010))!.length, 0);
    assert.equal((await range(5, 5))!.length, 0);
  });

  check('what is absent is undefined, and may be deleted', async (t) => {
    const { backend } = await subject.fresh(t);
    await backend.put('a/b', bytesOf(3));
    for (const key of ['x', 'a', 'a/c', 'a/b/c', 'x/y/z']) {
      assert.equal(await backend.get(key), undefined, key);
      assert.equal(await backend.get(key, { range: { start: 0, end: 1 } }), undefined, key);
      assert.equal(await backend.head(key), undefined, key);
      await backend.delete(key);
    }
    await assert.rejects(Array.fromAsync(backend.stream('x')));
    await backend.delete('a/b');
    await backend.delete('a/b');
    assert.equal(await backend.get('a/b'), undefined);
  });

  check('the bytes belong to the caller again once put resolves, and those of get from the start', async (t) => {
    const { backend } = await subject.fresh(t);
    const bytes = new Uint8Array(bytesOf(100_000));
    await backend.put('a', bytes);
    bytes.fill(0);
    releaseBuffer(bytes);
    const first = await backend.get('a');
    first!.fill(0);
    assert.ok(Buffer.from(bytesOf(100_000)).equals((await backend.get('a'))!));
  });

  check('put replaces, unless told otherwise', async (t) => {
    const { backend, second } = await subject.fresh(t);
    assert.equal(await backend.put('a', bytesOf(10, 1), { ifAbsent: true }), 'created');
    assert.equal(await second.put('a', bytesOf(10, 2), { ifAbsent: true }), 'exists');
    assert.ok(Buffer.from(bytesOf(10, 1)).equals((await backend.get('a'))!));
    assert.equal(await second.put('a', bytesOf(10, 3)), 'created');
    assert.ok(Buffer.from(bytesOf(10, 3)).equals((await backend.get('a'))!));
  });

  if (subject.ignoresConditions !== true)
    check('of many who put one key if it is absent, one succeeds', async (t) => {
      const { backend, second } = await subject.fresh(t);
      for (let round = 0; round < 5; round++) {
        const puts = Array.from({ length: 8 }, (_, index) =>
          (index % 2 === 0 ? backend : second).put(`race/${round}`, bytesOf(1_000, index), { ifAbsent: true }),
        );
        const results = await Promise.all(puts);
        assert.deepEqual(
          results.filter((result) => result === 'created'),
          ['created'],
        );
        const winner = bytesOf(1_000, results.indexOf('created'));
        assert.ok(Buffer.from(winner).equals((await backend.get(`race/${round}`))!));
      }
      assert.equal(backend.honoursConditions, true);
    });

  check('lists come in byte order, from any prefix, behind any key', async (t) => {
    const { backend, second } = await subject.fresh(t);
    const keys = ['a', 'a-b', 'a.b', 'a/b', 'a/b.c', 'a/b/c', 'a0', 'ab/c', 'b/1', 'b/10', 'b/2'].toSorted();
    for (const key of keys.toReversed()) if (!['a', 'a/b'].includes(key)) await backend.put(key, bytesOf(1));
    const there = keys.filter((key) => !['a', 'a/b'].includes(key));
    assert.deepEqual(await keysOf(second, ''), there);
    for (const prefix of ['a', 'a/', 'a/b', 'b/1', 'ab', 'zz', 'b/'])
      assert.deepEqual(
        await keysOf(second, prefix),
        there.filter((key) => key.startsWith(prefix)),
        prefix,
      );
    for (const after of ['a', 'a-b', 'a/b.c', 'a/b/c', 'b/1', 'b/', 'b/2', 'a/~'])
      assert.deepEqual(
        await keysOf(second, '', after),
        there.filter((key) => key > after),
        `after ${after}`,
      );
    assert.deepEqual(await keysOf(second, 'b/', 'b/1'), ['b/10', 'b/2']);
  });

  check('a list may be left, and what is deleted while it runs does not break it', async (t) => {
    const { backend } = await subject.fresh(t);
    for (let index = 10; index < 40; index++) await backend.put(`l/${index}`, bytesOf(1));
    const seen: string[] = [];
    for await (const { key } of backend.list('l/')) {
      seen.push(key);
      await backend.delete('l/39');
      if (key === 'l/30') break;
    }
    assert.deepEqual(
      seen,
      Array.from({ length: 21 }, (_, index) => `l/${index + 10}`),
    );
  });

  check('large objects go and come as streams', async (t) => {
    const { backend, second } = await subject.fresh(t);
    const bytes = bytesOf(largeBytes);
    async function* pieces(length = bytes.length): AsyncGenerator<Uint8Array> {
      for (let at = 0; at < length; at += 77_777) yield bytes.slice(at, Math.min(at + 77_777, length));
    }
    assert.equal(await backend.putStream('big', pieces(), bytes.length, { ifAbsent: true }), 'created');
    assert.equal(await second.putStream('big', pieces(), bytes.length, { ifAbsent: true }), 'exists');
    assert.ok(Buffer.concat(await Array.fromAsync(second.stream('big'))).equals(bytes));
    assert.equal(await second.put('big2', bytes), 'created');
    assert.ok(Buffer.from((await backend.get('big2'))!).equals(bytes));
    for (const given of [bytes.length - 1, 5])
      await assert.rejects(backend.putStream('short', pieces(given), bytes.length), (error: unknown) =>
        isNostosError(error, 'INVALID_ARGUMENT'),
      );
    await assert.rejects(
      backend.putStream(
        'broken',
        (async function* () {
          yield bytes.slice(0, 1_000);
          await Promise.resolve();
          throw new Error('the source broke');
        })(),
        bytes.length,
      ),
      /the source broke/,
    );
    assert.deepEqual(await keysOf(second, ''), ['big', 'big2']);
  });

  check('keys that climb, hide or need quoting are refused', async (t) => {
    const { backend } = await subject.fresh(t);
    const isRefused = (error: unknown): boolean => isNostosError(error, 'INVALID_ARGUMENT');
    for (const key of [...BAD_KEYS, 'x'.repeat(513)]) {
      await assert.rejects(backend.put(key, bytesOf(1)), isRefused, JSON.stringify(key));
      await assert.rejects(backend.get(key), isRefused, JSON.stringify(key));
      await assert.rejects(backend.head(key), isRefused, JSON.stringify(key));
      await assert.rejects(backend.delete(key), isRefused, JSON.stringify(key));
    }
    assert.deepEqual(await keysOf(backend, ''), []);
  });

  check('a call that was cancelled rejects with the reason', async (t) => {
    const { backend } = await subject.fresh(t);
    const reason = new Error('enough');
    const signal = AbortSignal.abort(reason);
    const isReason = (error: unknown): boolean => error === reason;
    await assert.rejects(backend.put('a', bytesOf(1), { signal }), isReason);
    await assert.rejects(backend.get('a', { signal }), isReason);
    await assert.rejects(backend.delete('a', { signal }), isReason);
    await assert.rejects(Array.fromAsync(backend.list('', { signal })), isReason);
    assert.equal(await backend.get('a'), undefined);
  });
}
