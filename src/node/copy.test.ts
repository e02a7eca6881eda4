/**
 * What a restore leaves: a node that can be read and appends nothing, and a directory that opens for nobody while a
 * restore of it is unfinished. Damage to what was fetched is found before anybody relies on it.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { cpSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { toClusterId, toGeneration, toNodeId, toStoreId } from '../base/brands.ts';
import { systemDisk } from '../base/disk.ts';
import { isNostosError, type ErrorCode } from '../base/errors.ts';
import { MARKER_FILE, writeMarker } from '../restore/local/marker.ts';
import { fetchCopy } from './fetch-copy.fixture.ts';
import type { NostosNode } from './node.ts';
import { loadNode, writeNode } from './node-file.ts';
import { openNode } from './open-node.ts';
import { NodeRestoreSource } from './restore-source.ts';
import { verifyStaged } from './staged-copy.ts';
import type { Migration, Node, NodeOptions } from './types.ts';

const SCHEMA: Migration[] = ['create table rows (id integer primary key, body text)'];
const LIMITS = { segmentBytesMax: 128 * 1024, recordBytesMax: 100 * 1024, logRetainBytes: 2 ** 40, lockTimeoutMs: 50 };

const root = mkdtempSync(join(tmpdir(), 'nostos-copy-'));
let directories = 0;
const newDir = (): string => join(root, `dir ${(directories += 1)}`);
after(() => rmSync(root, { recursive: true, force: true }));

async function open(dir: string, options: Partial<NodeOptions> = {}): Promise<NostosNode> {
  return (await openNode({ dir, scrubIntervalMs: false, limits: LIMITS, ...options })) as NostosNode;
}

async function failsWith(running: Promise<unknown>, code: ErrorCode): Promise<void> {
  await assert.rejects(running, (error) => isNostosError(error, code) || assert.fail(`${code}, not ${String(error)}`));
}

const made = { source: newDir(), fetched: newDir(), verified: newDir(), otherHistory: newDir() };
const copyOf = (dir: string): string => {
  const copy = newDir();
  cpSync(dir, copy, { recursive: true, filter: (path) => !path.endsWith('.sock') });
  return copy;
};

const fingerprints = async (node: Node): Promise<unknown> =>
  Promise.all((await node.tenants.list()).map(async ({ name }) => (await node.tenant(name).status()).fingerprint));

/** A node whose log was pruned once, a copy of it as it was fetched, and one that was verified too. */
before(async () => {
  for (const dir of [made.source, made.otherHistory]) {
    const node = await open(dir, { limits: { ...LIMITS, logRetainBytes: 0 } });
    for (const name of ['one', 'two', 'three']) {
      const tenant = await node.tenants.create(name);
      await tenant.migrate(SCHEMA);
      for (let n = 0; n < 10; n += 1)
        await tenant.write((tx) => tx.run('insert into rows (body) values (?)', [name + 'x'.repeat(20_000)]));
    }
    await node.close();
  }
  await using node = await open(made.source);
  const write = (name: string): Promise<unknown> =>
    node.tenant(name).write((tx) => tx.run('insert into rows (body) values (?)', ['y'.repeat(30_000)]));
  // Of each some before its file is copied and some after, in several segments; the last of all before.
  const round = async (): Promise<void> => {
    for (let n = 0; n < 6; n += 1) for (const name of ['one', 'two', 'three']) await write(name);
  };
  await fetchCopy(new NodeRestoreSource(node.restoreHost, node.dir), made.fetched, {
    onOpened: async (name) => (name.startsWith('tenant/') ? round() : undefined),
  });
  cpSync(made.fetched, made.verified, { recursive: true });
  await verifyStaged(made.verified, { limits: LIMITS });
});

const REFUSED: Readonly<Record<string, (copy: Node) => Promise<unknown>>> = {
  write: (copy) => copy.tenant('one').write((tx) => tx.run("insert into rows (body) values ('no')")),
  'write with an id': (copy) => copy.tenant('one').write(() => 1, { id: 'an-id' }),
  transaction: (copy) => copy.tenant('one').transaction(async () => 1),
  migrate: (copy) => copy.tenant('one').migrate([...SCHEMA, 'create table more (id integer primary key)']),
  migrateAll: (copy) => copy.migrateAll({ migrations: SCHEMA }),
  'tenants.create': (copy) => copy.tenants.create('new'),
  'tenants.drop': (copy) => copy.tenants.drop('one'),
  importFile: (copy) => copy.tenant('new').importFile(join(root, 'none.sqlite')),
};

for (const [what, act] of Object.entries(REFUSED))
  test(`a copy refuses ${what}, says why, and stays as it is`, async () => {
    await using copy = await open(made.verified, {
      migrations: [...SCHEMA, 'create table later (id integer primary key)'],
    });
    const { log } = await copy.status();
    await assert.rejects(act(copy), (error) => {
      assert.ok(isNostosError(error, 'NOT_PRIMARY'), String(error));
      assert.match(error.message, /copy of store [0-9a-f]{32}.*Write to the node that it was copied from/s);
      assert.equal(error.details['role'], 'copy');
      return true;
    });
    const after = (await copy.status()).log;
    assert.deepEqual([after.lastLsn, after.term], [log.lastLsn, log.term]);
  });

test('a copy is read, queried, followed, exported, verified, and says what it is', async () => {
  await using source = await open(made.source);
  await using copy = await open(made.verified);
  const status = await copy.status();
  const { store } = await source.status();
  assert.equal(status.role, 'copy');
  assert.equal(status.copy?.source, store);
  assert.equal(status.copy?.reaches?.lsn, status.log.watermark);
  assert.notEqual(status.store, store);
  const tenant = copy.tenant('one');
  const count = await tenant.read((reader) => reader.value<number>('select count(*) from rows'));
  assert.equal(count, 10 + 18);
  assert.deepEqual({ ...(await tenant.query('select count(*) as n from rows'))[0] }, { n: count });
  let changes = 0;
  for await (const change of tenant.changes({ untilCaughtUp: true })) changes += change.rows.length;
  assert.ok(changes > 0 && changes < count, 'the log of a copy begins in the middle of history');
  const report = await tenant.exportFile(join(root, 'export.sqlite'));
  assert.equal(report.position.lsn, (await tenant.status()).applied.lsn);
  assert.ok((await copy.verify()).ok);
  assert.equal((await copy.tenants.create('one', { ifNotExists: true })).name, 'one');
});

test('a copy opens again and again, also after it was killed, and stays the same', async () => {
  const dir = copyOf(made.verified);
  await using source = await open(made.source);
  const expected = await fingerprints(source);
  const child = fileURLToPath(new URL('./copy-child.fixture.ts', import.meta.url));
  for (let round = 0; round < 3; round += 1) {
    const running = spawn(process.execPath, [child, dir], { stdio: ['ignore', 'pipe', 'inherit'] });
    const exited = once(running, 'exit');
    const [first] = (await once(running.stdout, 'data')) as [Buffer];
    assert.equal(first.toString(), 'open\n');
    running.kill('SIGKILL');
    await exited;
    await using copy = await open(dir);
    assert.deepEqual(await fingerprints(copy), expected);
    assert.ok((await copy.verify()).ok);
  }
});

test('a copy of a copy is whole', async () => {
  await using copy = await open(made.verified);
  const dir = newDir();
  const { store, log } = await copy.status();
  await fetchCopy(new NodeRestoreSource(copy.restoreHost, copy.dir), dir);
  assert.equal((await verifyStaged(dir, { limits: LIMITS })).lsn, log.watermark);
  await using second = await open(dir);
  assert.equal((await second.status()).copy?.source, store);
  assert.deepEqual(await fingerprints(second), await fingerprints(copy));
});

const segments = (dir: string): string[] => readdirSync(join(dir, 'log')).filter((name) => name.endsWith('.ndb'));
const tenantFile = (dir: string, id: number): string => join(dir, 'tenants', `tenant_${id}`, 'data.sqlite');
const flip = (path: string, share: number): void => {
  const bytes = readFileSync(path);
  const at = Math.floor(bytes.length * share);
  bytes[at] = bytes[at]! ^ 1;
  writeFileSync(path, bytes);
};

/** What may be wrong with what was fetched, and how verifying names it. */
const DAMAGES: readonly { readonly what: string; readonly damage: (dir: string) => void; readonly code: ErrorCode }[] =
  [
    ...['first', 'middle', 'last'].map((which, index) => ({
      what: `a byte of the ${which} segment is another one`,
      damage: (dir: string) => {
        const names = segments(dir);
        flip(join(dir, 'log', names[Math.floor(((names.length - 1) * index) / 2)]!), 0.5);
      },
      code: 'LOG_DAMAGED' as const,
    })),
    {
      what: 'the log begins too late',
      damage: (dir) => {
        for (const name of segments(dir).slice(0, 2)) rmSync(join(dir, 'log', name));
      },
      code: 'VERIFY_FAILED',
    },
    {
      what: 'a segment in the middle is missing',
      damage: (dir) => rmSync(join(dir, 'log', segments(dir)[3]!)),
      code: 'LOG_DAMAGED',
    },
    {
      what: 'the log ends below what a tenant holds, of a source that does not say how far it reaches',
      damage: (dir) => {
        const { copy, ...identity } = loadNode(dir, undefined);
        writeNode(dir, { ...identity, copy: { source: copy!.source, reaches: null } });
        for (const name of segments(dir).slice(2)) rmSync(join(dir, 'log', name));
      },
      code: 'VERIFY_FAILED',
    },
    { what: 'the term table is missing', damage: (dir) => rmSync(join(dir, 'log', 'terms')), code: 'LOG_DAMAGED' },
    {
      what: 'a byte of a tenant is another one',
      damage: (dir) => flip(tenantFile(dir, 2), 0.7),
      code: 'VERIFY_FAILED',
    },
    {
      what: 'a row was changed',
      damage: (dir) => {
        using database = new DatabaseSync(tenantFile(dir, 2));
        database.exec("update rows set body = 'forged' where id = 3");
      },
      code: 'VERIFY_FAILED',
    },
    { what: 'a tenant is missing', damage: (dir) => rmSync(tenantFile(dir, 2)), code: 'VERIFY_FAILED' },
    {
      what: 'a tenant is of another node',
      damage: (dir) => cpSync(tenantFile(made.otherHistory, 2), tenantFile(dir, 2)),
      code: 'VERIFY_FAILED',
    },
    {
      what: 'the catalog is no database',
      damage: (dir) => flip(join(dir, 'catalog.sqlite'), 0),
      code: 'TENANT_DAMAGED',
    },
  ];

for (const { what, damage, code } of DAMAGES)
  test(`verifying what was fetched finds that ${what}`, async () => {
    const dir = copyOf(made.fetched);
    await verifyStaged(copyOf(made.fetched), { limits: LIMITS });
    damage(dir);
    await failsWith(verifyStaged(dir, { limits: LIMITS }), code);
  });

/** Records that no tenant's file holds, acknowledged by the source, are missing from what it sends. */
const SHORT_TAILS: Readonly<Record<string, (dir: string) => void>> = {
  'the last record is damaged': (dir) => {
    const path = join(dir, 'log', segments(dir).at(-1)!);
    const bytes = readFileSync(path);
    const end = bytes.findLastIndex((byte) => byte !== 0);
    bytes[end - 1_000] = bytes[end - 1_000]! ^ 1;
    writeFileSync(path, bytes);
  },
  'the last segment is left out': (dir) => rmSync(join(dir, 'log', segments(dir).at(-1)!)),
};

for (const [what, damage] of Object.entries(SHORT_TAILS))
  test(`a copy does not check out where it ends below W of its source: ${what}`, async () => {
    await using node = await open(copyOf(made.source));
    const dir = newDir();
    await fetchCopy(new NodeRestoreSource(node.restoreHost, node.dir), dir, {
      onTail: async () => {
        for (let n = 0; n < 6; n += 1)
          await node.tenant('one').write((tx) => tx.run('insert into rows (body) values (?)', ['z'.repeat(30_000)]));
      },
    });
    assert.equal((await verifyStaged(copyOf(dir), { limits: LIMITS })).lsn, (await node.status()).log.watermark);
    damage(dir);
    await failsWith(verifyStaged(dir, { limits: LIMITS }), 'LOG_DAMAGED');
  });

test('a copy whose log lost its end after it was verified does not open', async () => {
  const dir = copyOf(made.verified);
  rmSync(join(dir, 'log', segments(dir).at(-1)!));
  await failsWith(open(dir), 'LOG_DAMAGED');
});

test('verifying stops when it is told to, and can be repeated', async () => {
  const dir = copyOf(made.fetched);
  const abort = new AbortController();
  await assert.rejects(
    verifyStaged(dir, { limits: LIMITS, signal: abort.signal, onProgress: () => abort.abort(new Error('enough')) }),
    /enough/,
  );
  assert.ok(abort.signal.aborted);
  assert.equal((await verifyStaged(dir, { limits: LIMITS })).tenants, 3);
});

const MARKER = {
  run: '1'.repeat(32),
  startedAt: '2026-01-01T00:00:00.000Z',
  sources: ['10.0.0.1:4041'],
  history: { cluster: toClusterId('2'.repeat(32)), generation: toGeneration('3'.repeat(32)) },
  identity: {
    node: toNodeId('4'.repeat(32)),
    store: toStoreId('5'.repeat(32)),
    cluster: toClusterId('2'.repeat(32)),
    generation: toGeneration('3'.repeat(32)),
  },
};

test('a directory with an unfinished restore opens for nobody, and says how to go on and how to give up', async () => {
  for (const dir of [copyOf(made.source), newDir()]) {
    systemDisk.makeDirectory(dir);
    const files = readdirSync(dir);
    writeMarker(systemDisk, dir, { ...MARKER, phase: 'fetching' });
    await assert.rejects(open(dir), (error) => {
      assert.ok(isNostosError(error, 'RESTORE_UNFINISHED'), String(error));
      assert.match(error.message, /nostos restore .*--from 10\.0\.0\.1:4041/);
      assert.match(error.message, /--abandon/);
      return true;
    });
    assert.deepEqual(
      readdirSync(dir).filter((name) => name !== 'lock'),
      [...files, MARKER_FILE].filter((name) => name !== 'lock').toSorted(),
      'nothing was made in it',
    );
    writeFileSync(join(dir, MARKER_FILE), 'torn');
    await failsWith(open(dir), 'UNSUPPORTED_FORMAT');
    rmSync(join(dir, MARKER_FILE));
    await (await open(dir)).close();
  }
});
