/** Restores on a real disk: what each mode makes, what it refuses, and what is left when it fails. */
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { acquireDirectoryLock } from '../../base/directory-lock.ts';
import { RestoreExecutorError } from './errors.ts';
import { RestoreExecutor, type RestoreExecutorOptions } from './executor.ts';
import { RESTORE_MARKER } from './marker.ts';
import { LocalFsBackend } from './local-fs-backend.ts';
import { RestoreOutcome } from './outcome.ts';
import { RestoreMode, type RestoreEvent } from './types.ts';
import {
  BLOBS,
  RESTORED,
  blake3,
  fillBackend,
  manifestOf,
  plainBackend,
  planOf,
  readTree,
  temporaryDirectory,
  writeTree,
  type Tree,
} from './snapshot.fixture.ts';

const OLD: Tree = {
  'control.db': 'control',
  'tenant_1/data.sqlite': 'of another one',
  'tenant_7/data.sqlite': 'old rows',
  'tenant_7/data.sqlite-wal': 'old wal',
  'tenant_7/data.sqlite-shm': 'old shm',
};
const OTHERS: Tree = { 'control.db': 'control', 'tenant_1/data.sqlite': 'of another one' };

interface Place {
  readonly backend: LocalFsBackend;
  readonly dir: string;
  readonly executor: RestoreExecutor;
}

async function placeWith(t: TestContext, tree: Tree | undefined, options: RestoreExecutorOptions = {}): Promise<Place> {
  const root = temporaryDirectory(t);
  const backend = await fillBackend(new LocalFsBackend(join(root, 'backups')));
  const dir = join(root, 'data');
  if (tree !== undefined) writeTree(dir, tree);
  return { backend, dir, executor: new RestoreExecutor(backend, dir, options) };
}

const refusedAs = (kind: RestoreExecutorError['kind']) => (error: unknown) =>
  error instanceof RestoreExecutorError && error.kind === kind;

const MODES: readonly [RestoreMode, before: Tree | undefined, after: Tree][] = [
  [RestoreMode.NewCluster, undefined, RESTORED],
  [RestoreMode.NewCluster, {}, RESTORED],
  [RestoreMode.SingleTenant, undefined, RESTORED],
  [RestoreMode.SingleTenant, OTHERS, { ...OTHERS, ...RESTORED }],
  [RestoreMode.SingleTenant, { ...OTHERS, 'tenant_7/': '' }, { ...OTHERS, ...RESTORED }],
  [RestoreMode.WipeAndRestore, OLD, RESTORED],
  [RestoreMode.WipeAndRestore, undefined, RESTORED],
];

for (const [mode, before, after] of MODES)
  test(`${mode} into ${JSON.stringify(before && Object.keys(before))}`, async (t) => {
    const { backend, dir, executor } = await placeWith(t, before);
    const outcome = await executor.execute(await planOf(backend), mode);
    assert.deepEqual(readTree(dir), after);
    assert.deepEqual(outcome.items, [
      [
        { kind: 'sqlite_checkpoint', contentKey: 'snap-1/sqlite.db', bytes: 100_000 },
        join(dir, 'tenant_7/data.sqlite'),
      ],
      [{ kind: 'hnsw:MiniLM', contentKey: 'snap-1/hnsw-MiniLM.bin', bytes: 7 }, join(dir, 'tenant_7/hnsw/MiniLM.bin')],
      [
        { kind: 'hnsw:../etc/passwd', contentKey: 'snap-1/hnsw-other.bin', bytes: 0 },
        join(dir, 'tenant_7/hnsw/.._etc_passwd.bin'),
      ],
    ]);
    assert.deepEqual(RestoreOutcome.fromJson(outcome.toJson()), outcome);
  });

test('the JSON of an outcome is the reference’s', () => {
  const outcome = new RestoreOutcome({
    tenantId: -9_223_372_036_854_775_808n,
    snapshotId: 's',
    mode: RestoreMode.SingleTenant,
    items: [[{ kind: 'hnsw:a"b', contentKey: 'k', bytes: 3 }, '/data/x.bin']],
  });
  assert.deepEqual(JSON.parse(outcome.toJson()), {
    tenant_id: -9_223_372_036_854_775_808,
    snapshot_id: 's',
    mode: 'single_tenant',
    items: [[{ kind: 'hnsw:a"b', content_key: 'k', bytes: 3 }, '/data/x.bin']],
  });
  assert.match(outcome.toJson(), /"tenant_id": -9223372036854775808,/);
});

test('a wipe that keeps what it replaces leaves it in .pre-restore, and the next one in that', async (t) => {
  const { backend, dir, executor } = await placeWith(t, OLD, { keepReplaced: true });
  const plan = await planOf(backend);
  await executor.execute(plan, RestoreMode.WipeAndRestore);
  const kept = Object.fromEntries(Object.entries(OLD).map(([path, text]) => [`.pre-restore/${path}`, text]));
  assert.deepEqual(readTree(dir), { ...RESTORED, ...kept });
  await executor.execute(plan, RestoreMode.WipeAndRestore);
  assert.equal(readFileSync(join(dir, '.pre-restore/.pre-restore/control.db'), 'utf8'), 'control');
});

interface Refusal {
  readonly mode: RestoreMode;
  readonly before: Tree;
  readonly kind: RestoreExecutorError['kind'];
  readonly fields?: (dir: string) => Partial<RestoreExecutorError>;
  readonly prepare?: (t: TestContext, place: Place) => unknown;
  readonly at?: (place: Place) => string;
  readonly options?: RestoreExecutorOptions;
}

const REFUSALS: Readonly<Record<string, Refusal>> = {
  'a new cluster where something is': {
    mode: RestoreMode.NewCluster,
    before: { 'x.txt': '' },
    kind: 'DataDirNotEmpty',
    fields: (path) => ({ path }),
  },
  'a tenant that is there': {
    mode: RestoreMode.SingleTenant,
    before: OLD,
    kind: 'TenantPathOccupied',
    fields: (dir) => ({ path: join(dir, 'tenant_7'), tenantId: 7n }),
  },
  'a tenant of which only a stale wal is there': {
    mode: RestoreMode.SingleTenant,
    before: { 'tenant_7/data.sqlite-wal': '' },
    kind: 'TenantPathOccupied',
  },
  'a tenant whose directory is a link': {
    mode: RestoreMode.SingleTenant,
    before: { 'elsewhere/': '' },
    prepare: (_, { dir }) => symlinkSync(join(dir, 'elsewhere'), join(dir, 'tenant_7')),
    kind: 'TenantPathOccupied',
  },
  ...Object.fromEntries(
    Object.values(RestoreMode).map((mode) => [
      `a marker of a run of the reference that died, ${mode}`,
      {
        mode,
        before: { [RESTORE_MARKER]: 'snap-0', 'tenant_7/data.sqlite': 'half' },
        kind: 'RestoreInProgress',
        fields: (dir) => ({ path: join(dir, RESTORE_MARKER) }),
      } satisfies Refusal,
    ]),
  ),
  'a directory that a node has open': {
    mode: RestoreMode.WipeAndRestore,
    before: OLD,
    prepare: async (t, { dir }) => {
      const lock = await acquireDirectoryLock({ dir, timeoutMs: 0, holder: { command: 'serve', version: '1' } });
      t.after(() => lock.release());
    },
    kind: 'DirectoryInUse',
  },
  'a data directory that is a link': {
    mode: RestoreMode.WipeAndRestore,
    before: OLD,
    prepare: (_, { dir }) => symlinkSync(dir, `${dir}-link`),
    at: ({ dir }) => `${dir}-link`,
    kind: 'DirectoryRefused',
  },
  'a data directory that is a file': {
    mode: RestoreMode.SingleTenant,
    before: OLD,
    at: ({ dir }) => join(dir, 'control.db'),
    kind: 'DirectoryRefused',
  },
  'the root of the file system': {
    mode: RestoreMode.WipeAndRestore,
    before: {},
    at: () => '/',
    kind: 'DirectoryRefused',
  },
  'the root, spelled differently': {
    mode: RestoreMode.NewCluster,
    before: {},
    at: ({ dir }) => `${dir}${'/..'.repeat(40)}`,
    kind: 'DirectoryRefused',
  },
  'the backups in the data directory': {
    mode: RestoreMode.SingleTenant,
    before: OLD,
    at: ({ dir }) => join(dir, '..'),
    kind: 'DirectoryRefused',
  },
  'the backups in the data directory, by way of a link': {
    mode: RestoreMode.SingleTenant,
    before: OLD,
    prepare: (_, { dir }) => {
      mkdirSync(`${dir}-links`);
      symlinkSync(join(dir, '../..'), `${dir}-links/up`);
    },
    at: ({ dir }) => join(`${dir}-links/up`, join(dir, '..').split('/').at(-1)!),
    kind: 'DirectoryRefused',
  },
  'a wipe of a directory among the backups': {
    mode: RestoreMode.WipeAndRestore,
    before: {},
    at: ({ backend }) => join(backend.root(), 'snap-1'),
    kind: 'DirectoryRefused',
  },
  'more than there is room for': {
    mode: RestoreMode.WipeAndRestore,
    before: OLD,
    options: { diskReserveBytes: Number.MAX_SAFE_INTEGER },
    kind: 'InsufficientSpace',
  },
};

for (const [name, refusal] of Object.entries(REFUSALS))
  test(`refused, and nothing is changed: ${name}`, async (t) => {
    const place = await placeWith(t, refusal.before);
    await refusal.prepare?.(t, place);
    const plan = await planOf(place.backend);
    const at = refusal.at?.(place) ?? place.dir;
    const before = readTree(place.dir);
    const backups = readTree(place.backend.root());
    const executor = new RestoreExecutor(place.backend, at, refusal.options);
    await assert.rejects(executor.execute(plan, refusal.mode), (error) => {
      assert.ok(error instanceof RestoreExecutorError, String(error));
      assert.equal(error.kind, refusal.kind, error.message);
      for (const [field, value] of Object.entries(refusal.fields?.(place.dir) ?? {}))
        assert.equal(error[field as keyof RestoreExecutorError], value);
      return true;
    });
    assert.deepEqual(readTree(place.dir), before);
    assert.deepEqual(readTree(place.backend.root()), backups);
  });

test('models that share a path get one each; one that has it by its own name keeps it', async (t) => {
  const { backend, dir, executor } = await placeWith(t, undefined);
  const [entry] = manifestOf().hnswSnapshots;
  const models = ['a_b', 'a/b', 'a\\b', 'ü', 'MiniLM'];
  const hnswSnapshots = models.map((model) => ({
    ...entry!,
    embeddingModel: model,
    contentKey: `m/${blake3(model)}`,
    checksum: blake3(model),
  }));
  for (const model of models) await backend.putContent(`m/${blake3(model)}`, Buffer.from(model));
  await backend.putManifest(manifestOf({ hnswSnapshots }));
  await executor.execute(await planOf(backend), RestoreMode.NewCluster);
  const { 'tenant_7/data.sqlite': _, ...vectors } = readTree(dir);
  assert.deepEqual(vectors, {
    'tenant_7/hnsw/a_b.bin': 'a_b',
    [`tenant_7/hnsw/a_b.${blake3('a/b').slice(0, 8)}.bin`]: 'a/b',
    [`tenant_7/hnsw/a_b.${blake3('a\\b').slice(0, 8)}.bin`]: 'a\\b',
    'tenant_7/hnsw/_.bin': 'ü',
    'tenant_7/hnsw/MiniLM.bin': 'MiniLM',
  });

  await backend.putManifest(manifestOf({ hnswSnapshots: [entry!, entry!] }));
  await assert.rejects(executor.execute(await planOf(backend), RestoreMode.WipeAndRestore), refusedAs('InvalidPlan'));
  assert.ok('tenant_7/hnsw/_.bin' in readTree(dir));
});

/** What happens to the blobs between the validation and the restore. */
const DAMAGE: Readonly<Record<string, [inner: string, damage: (backend: LocalFsBackend) => Promise<void>]>> = {
  'a blob is missing': ['ContentMissing', (backend) => backend.deleteContent('snap-1/hnsw-MiniLM.bin')],
  'two blobs are swapped': [
    'ChecksumMismatch',
    async (backend) => {
      await backend.putContent('snap-1/hnsw-MiniLM.bin', Buffer.from(BLOBS['snap-1/sqlite.db']!));
      await backend.putContent('snap-1/sqlite.db', Buffer.from('vectors'));
    },
  ],
  'a blob is cut': [
    'ChecksumMismatch',
    (backend) => backend.putContent('snap-1/hnsw-MiniLM.bin', Buffer.from('vector')),
  ],
  'a bit of a blob is flipped': [
    'ChecksumMismatch',
    async (backend) => {
      const bytes = Buffer.from(await backend.getContent('snap-1/sqlite.db'));
      bytes.writeUInt8(bytes.readUInt8(70_000) ^ 4, 70_000);
      await backend.putContent('snap-1/sqlite.db', bytes);
    },
  ],
};

for (const [name, [inner, damage]] of Object.entries(DAMAGE))
  for (const [mode, before] of [
    [RestoreMode.WipeAndRestore, OLD],
    [RestoreMode.SingleTenant, { ...OTHERS, 'tenant_7/': '' }],
    [RestoreMode.NewCluster, {}],
  ] as const)
    test(`${name}: ${mode} fails, and what was there is there`, async (t) => {
      const { backend, dir, executor } = await placeWith(t, before);
      const plan = await planOf(backend);
      await damage(backend);
      await assert.rejects(planOf(backend), (error) => (error as { kind?: string }).kind === inner);
      await assert.rejects(executor.execute(plan, mode), (error) => {
        assert.ok(refusedAs('Validator')(error));
        assert.equal(((error as Error).cause as { kind: string }).kind, inner);
        return true;
      });
      assert.deepEqual(readTree(dir), before);
      await fillBackend(backend);
      await executor.execute(plan, mode);
      assert.equal(readTree(dir)['tenant_7/data.sqlite'], BLOBS['snap-1/sqlite.db']);
    });

test('progress has totals; a callback that throws and a signal end the call, and nothing is changed', async (t) => {
  const { backend, dir, executor } = await placeWith(t, OLD);
  await backend.putContent('snap-1/sqlite.db', Buffer.alloc(3 * 1024 * 1024 + 5, 'x'));
  await backend.putManifest(manifestOf({ sqliteCheckpointChecksum: null }));
  const plan = await planOf(backend);
  const why = new Error('enough');
  const events: RestoreEvent[] = [];
  const controller = new AbortController();
  const onProgress = (event: RestoreEvent): void => {
    events.push(event);
    assert.equal(readFileSync(join(dir, RESTORE_MARKER), 'utf8'), 'snap-1');
    if (events.length === 3) setImmediate(() => controller.abort(why));
  };
  await assert.rejects(
    executor.execute(plan, RestoreMode.WipeAndRestore, { signal: controller.signal, onProgress }),
    (error) => error === why,
  );
  const at = {
    kind: 'reading',
    step: 'staging',
    contentKey: 'snap-1/sqlite.db',
    item: 1,
    items: 3,
    bytesTotal: 3_145_733,
  };
  assert.deepEqual(events.slice(0, 3), [
    { kind: 'unverified', contentKey: 'snap-1/sqlite.db' },
    { ...at, bytes: 1_048_576 },
    { ...at, bytes: 2_097_152 },
  ]);
  assert.deepEqual(readTree(dir), OLD);
  const throwing = (event: RestoreEvent): void => {
    if (event.kind === 'swapping') throw why;
  };
  await assert.rejects(
    executor.execute(plan, RestoreMode.WipeAndRestore, { onProgress: throwing }),
    (error) => error === why,
  );
  assert.deepEqual(readTree(dir), OLD);
  await assert.rejects(
    executor.execute(plan, RestoreMode.WipeAndRestore, { signal: AbortSignal.abort(why) }),
    (error) => error === why,
  );
  assert.deepEqual(readTree(dir), OLD);
});

test('two restores at once: the second is refused, and the first ends', async (t) => {
  const { backend, dir, executor } = await placeWith(t, OTHERS);
  const plan = await planOf(backend);
  let refused = 0;
  const outcome = await executor.execute(plan, RestoreMode.SingleTenant, {
    onProgress: (event) => {
      if (event.kind !== 'reading' || event.item !== 2) return;
      for (const [mode, other] of [
        [RestoreMode.SingleTenant, plan],
        [RestoreMode.SingleTenant, { ...plan, tenantId: 8n }],
        [RestoreMode.WipeAndRestore, plan],
      ] as const)
        void new RestoreExecutor(backend, dir).execute(other, mode).catch((error: unknown) => {
          if (refusedAs('RestoreInProgress')(error)) refused += 1;
        });
    },
  });
  assert.equal(outcome.items.length, 3);
  assert.equal(refused, 3);
  assert.deepEqual(readTree(dir), { ...OTHERS, ...RESTORED });
});

test('a backend of the reference, without streams or sizes, restores the same', async (t) => {
  const { backend, dir } = await placeWith(t, OLD);
  const plain = plainBackend(backend);
  await new RestoreExecutor(plain, dir).execute(await planOf(plain), RestoreMode.WipeAndRestore);
  assert.deepEqual(readTree(dir), RESTORED);
});

test('a plan that nobody could have made is refused', async (t) => {
  const { backend, dir, executor } = await placeWith(t, undefined);
  const plan = await planOf(backend);
  for (const [change, mode] of [
    [{ items: [] }, RestoreMode.NewCluster],
    [{ items: [plan.items[0]!, plan.items[0]!] }, RestoreMode.NewCluster],
    [{}, 'merge' as RestoreMode],
  ] as const)
    await assert.rejects(executor.execute({ ...plan, ...change }, mode), refusedAs('InvalidPlan'));
  await assert.rejects(executor.execute({ ...plan, tenantId: 1n << 63n }, RestoreMode.NewCluster), /a tenant id is/);
  assert.ok(!existsSync(dir));
});

test('a directory that was never restored has nothing to abandon', async (t) => {
  const { dir, executor } = await placeWith(t, undefined);
  assert.equal(await executor.abandon(), false);
  assert.ok(!existsSync(dir));
  writeTree(dir, { [RESTORE_MARKER]: 'snap-0' });
  await assert.rejects(executor.abandon(), refusedAs('RestoreInProgress'));
  writeFileSync(join(dir, 'x'), '');
  assert.ok(existsSync(join(dir, RESTORE_MARKER)));
});
