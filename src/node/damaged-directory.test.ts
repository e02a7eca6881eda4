/**
 * Data directories that are in use, foreign, newer, damaged or tampered with: each is refused by name and left as it
 * is, or named by verify; none is quietly built upon.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  closeSync,
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { after, before, test } from 'node:test';
import { RESTORE_MARKER } from '../backup/reference/marker.ts';
import { isNostosError, type ErrorCode } from '../base/errors.ts';
import { openNode } from './open-node.ts';
import { tenantPath } from './paths.ts';
import type { Node, NodeOptions } from './types.ts';

const SCHEMA = ['create table rows (id integer primary key, body text)'];
const LIMITS = { lockTimeoutMs: 50, segmentBytesMax: 128 * 1024, recordBytesMax: 100 * 1024, logRetainBytes: 0 };
/** With these the log keeps everything. */
const KEEP = { limits: { ...LIMITS, logRetainBytes: 2 ** 40 } };
const OPTIONS: Omit<NodeOptions, 'dir'> = { limits: LIMITS, scrubIntervalMs: false };

const root = mkdtempSync(join(tmpdir(), 'nostos-damage-'));
after(() => rmSync(root, { recursive: true, force: true }));
const made = { whole: join(root, 'whole'), pruned: join(root, 'pruned') };
let copies = 0;

/** Two closed nodes, each with two tenants of ten rows; the log of one still has all of it. */
before(async () => {
  for (const [dir, options] of [
    [made.whole, KEEP],
    [made.pruned, {}],
  ] as const) {
    const node = await openNode({ dir, ...OPTIONS, ...options });
    for (const name of ['one', 'two']) {
      const tenant = await node.tenants.create(name);
      await tenant.migrate(SCHEMA);
      for (let id = 1; id <= 10; id += 1)
        await tenant.write((tx) =>
          tx.run('insert into rows values (?, ?)', [id, `${name} ${id} ${'x'.repeat(20_000)}`]),
        );
    }
    await node.close();
  }
});

/** A copy of one of them, to be damaged. */
function directory({ pruned = false } = {}): string {
  const dir = join(root, `copy ${(copies += 1)}`);
  cpSync(pruned ? made.pruned : made.whole, dir, { recursive: true, filter: (path) => !path.endsWith('.sock') });
  return dir;
}

async function withNode<T>(
  dir: string,
  fn: (node: Node) => Promise<T>,
  options: Partial<NodeOptions> = {},
): Promise<T> {
  const node = await openNode({ dir, ...OPTIONS, ...options });
  try {
    return await fn(node);
  } finally {
    await node.close();
  }
}

async function refuses(dir: string, code: ErrorCode, options: Partial<NodeOptions> = {}): Promise<void> {
  const before = snapshot(dir);
  await failsWith(
    withNode(dir, async () => {}, options),
    code,
  );
  assert.deepEqual(snapshot(dir), before, 'nothing has changed');
}

async function failsWith(running: Promise<unknown>, code: ErrorCode): Promise<void> {
  await assert.rejects(running, (error) => isNostosError(error, code) || assert.fail(`${code}, not ${String(error)}`));
}

/** Every file but those that an attempt to open may touch. */
function snapshot(dir: string): Record<string, string> {
  const files: Record<string, string> = {};
  for (const entry of readdirSync(dir, { recursive: true, withFileTypes: true })) {
    const path = join(entry.parentPath, entry.name);
    if (entry.isFile() && !/^lock|-(wal|shm|journal)$/.test(entry.name)) files[path] = readFileSync(path, 'base64');
  }
  return files;
}

const count = (node: Node, name: string): Promise<number> =>
  node.tenant(name).read((reader) => reader.value<number>('select count(*) from rows') as number);

const segments = (dir: string): string[] =>
  readdirSync(join(dir, 'log'))
    .filter((name) => name.endsWith('.ndb'))
    .toSorted()
    .map((name) => join(dir, 'log', name));

function overwrite(path: string, offset: number, bytes: Uint8Array): void {
  const file = openSync(path, 'r+');
  writeSync(file, bytes, 0, bytes.length, offset);
  closeSync(file);
}

function outside(path: string, sql: string): void {
  using database = new DatabaseSync(path);
  database.function('nostos_live', () => 1);
  database.exec(sql);
  database.exec('pragma wal_checkpoint(truncate)');
}

test('a directory in use is refused, to this process and to another, naming the holder', async () => {
  const dir = directory();
  await withNode(dir, async () => {
    await failsWith(openNode({ dir, ...OPTIONS }), 'DIRECTORY_LOCKED');
    const script = `import { openNode } from ${JSON.stringify(new URL('./open-node.ts', import.meta.url).href)};
      await openNode({ dir: ${JSON.stringify(dir)}, limits: { lockTimeoutMs: 50 } }).then(
        () => process.exit(1),
        (error) => process.exit(error.code === 'DIRECTORY_LOCKED' && error.message.includes('process ${process.pid}') ? 42 : 2));`;
    const child = spawn(process.execPath, ['--input-type=module', '-e', script], { stdio: 'ignore' });
    assert.deepEqual(await once(child, 'exit'), [42, null]);
  });
  await withNode(dir, async (node) => assert.equal(await count(node, 'one'), 10));
});

test('a directory of another cluster is refused', async () => {
  const dir = directory();
  await refuses(dir, 'DIRECTORY_FOREIGN', { cluster: 'ab'.repeat(16) as never });
});

test('a node file that is lost, unreadable or of a newer format is refused', async () => {
  const dir = directory();
  const path = join(dir, 'node.json');
  const good = readFileSync(path, 'utf8');
  writeFileSync(path, good.replace(/"format": *1/, '"format": 2'));
  await refuses(dir, 'UNSUPPORTED_FORMAT');
  writeFileSync(path, '{');
  await refuses(dir, 'UNSUPPORTED_FORMAT');
  writeFileSync(path, good.replace(/"store": *"[0-9a-f]+"/, '"store": "no"'));
  await refuses(dir, 'UNSUPPORTED_FORMAT');
  rmSync(path);
  await refuses(dir, 'DIRECTORY_FOREIGN');
  writeFileSync(path, good);
  await withNode(dir, async (node) => assert.equal(await count(node, 'two'), 10));
});

test('a catalog of a newer format, or that is no catalog, is refused', async () => {
  const dir = directory();
  const path = join(dir, 'catalog.sqlite');
  outside(path, 'update catalog set format = 2');
  await failsWith(
    withNode(dir, async () => {}),
    'UNSUPPORTED_FORMAT',
  );
  writeFileSync(path, 'this is not a database, but it is long enough to look like one'.repeat(100));
  await failsWith(
    withNode(dir, async () => {}),
    'TENANT_DAMAGED',
  );
});

for (const pruned of [false, true])
  test(`a catalog that is lost comes back from ${pruned ? 'the files of the tenants' : 'the log'}`, async () => {
    const dir = directory({ pruned });
    await withNode(
      dir,
      async (node) => {
        await node.tenants.create('dropped');
        await node.tenants.drop('dropped');
        assert.equal((await node.status()).log.firstLsn > 1, pruned);
      },
      pruned ? {} : KEEP,
    );
    for (const suffix of ['', '-wal', '-shm']) rmSync(join(dir, `catalog.sqlite${suffix}`), { force: true });
    await withNode(
      dir,
      async (node) => {
        assert.deepEqual(
          (await node.tenants.list()).map(({ name }) => name),
          ['one', 'two'],
        );
        assert.equal(await count(node, 'two'), 10);
        const created = await node.tenants.create('three');
        await created.migrate(SCHEMA);
        const ids = (await node.tenants.list()).map(({ id }) => id);
        assert.equal(new Set(ids).size, 3);
        assert.ok((await node.verify()).ok);
      },
      pruned ? {} : KEEP,
    );
  });

test('a tenant file of a newer format is refused, and the other tenants are served', async () => {
  const dir = directory();
  outside(tenantPath(dir, 1 as never), 'update nostos_meta set format = 2');
  await withNode(dir, async (node) => {
    await failsWith(count(node, 'one'), 'UNSUPPORTED_FORMAT');
    await failsWith(
      node.tenant('one').write(() => 1),
      'UNSUPPORTED_FORMAT',
    );
    assert.equal(await count(node, 'two'), 10);
  });
});

test('a tenant file that is no database is refused by name, and verify names it', async () => {
  const dir = directory();
  overwrite(tenantPath(dir, 1 as never), 0, Buffer.alloc(4096, 0x5a));
  await withNode(dir, async (node) => {
    await failsWith(count(node, 'one'), 'TENANT_DAMAGED');
    const report = await node.verify();
    assert.equal(report.ok, false);
    assert.deepEqual(
      report.problems.map(({ where }) => where),
      ['tenant one'],
    );
    assert.equal(await count(node, 'two'), 10);
  });
});

test('a tenant file with a damaged page is found by verify', async () => {
  const dir = directory();
  const path = tenantPath(dir, 1 as never);
  const bytes = readFileSync(path);
  const at = bytes.indexOf('one 7 xxxx');
  assert.ok(at > 0);
  overwrite(path, at, Buffer.from('ONE'));
  await withNode(dir, async (node) => {
    const report = await node.verify();
    assert.deepEqual(
      report.tenants.map(({ name, fingerprint }) => [name, fingerprint]),
      [
        ['one', 'different'],
        ['two', 'equal'],
      ],
    );
  });
});

test('a lost tenant file is made again while the log holds all of it; otherwise it is refused, not served empty', async () => {
  const [whole, pruned] = [directory(), directory({ pruned: true })];
  for (const dir of [whole, pruned]) rmSync(join(dir, 'tenants', 'tenant_1'), { recursive: true });
  await withNode(
    whole,
    async (node) => {
      assert.equal(await count(node, 'one'), 10);
      assert.ok((await node.verify()).ok);
    },
    KEEP,
  );
  await withNode(pruned, async (node) => {
    assert.ok((await node.status()).log.firstLsn > 2, 'the log begins later');
    await failsWith(count(node, 'one'), 'TENANT_DAMAGED');
    await failsWith(
      node.tenant('one').write((tx) => tx.run("insert into rows values (11, 'x')")),
      'TENANT_DAMAGED',
    );
    assert.equal(await count(node, 'two'), 10);
  });
  truncateSync(tenantPath(pruned, 2 as never), 0);
  await withNode(pruned, async (node) => failsWith(count(node, 'two'), 'TENANT_DAMAGED'));
});

test('files and catalog that are lost together come back from the log, not empty', async () => {
  const dir = directory();
  await withNode(dir, async (node) => void (await node.tenants.create('never used')), KEEP);
  rmSync(join(dir, 'tenants'), { recursive: true });
  for (const suffix of ['', '-wal', '-shm']) rmSync(join(dir, `catalog.sqlite${suffix}`), { force: true });
  await withNode(
    dir,
    async (node) => {
      for (const name of ['one', 'two']) assert.equal(await count(node, name), 10);
      await node.tenant('never used').migrate(SCHEMA);
      assert.equal(await count(node, 'never used'), 0);
      assert.ok((await node.verify()).ok);
    },
    KEEP,
  );
});

test('a directory in which a restore of the reference is unfinished is refused until it has ended', async () => {
  const dir = directory();
  const marker = join(dir, RESTORE_MARKER);
  writeFileSync(marker, 'snap-1');
  await failsWith(openNode({ dir, ...OPTIONS }), 'RESTORE_UNFINISHED');
  assert.equal(readFileSync(marker, 'utf8'), 'snap-1');
  rmSync(marker);
  await withNode(dir, async (node) => assert.equal(await count(node, 'one'), 10));
});

test('files of two tenants that changed places are refused', async () => {
  const dir = directory();
  const [one, two, aside] = [tenantPath(dir, 1 as never), tenantPath(dir, 2 as never), join(dir, 'aside')];
  renameSync(one, aside);
  renameSync(two, one);
  renameSync(aside, two);
  await withNode(dir, async (node) => {
    await failsWith(count(node, 'one'), 'TENANT_DAMAGED');
    await failsWith(count(node, 'two'), 'TENANT_DAMAGED');
  });
});

test('a database of somebody else in the place of a tenant is refused and left alone', async () => {
  const dir = directory();
  const path = tenantPath(dir, 1 as never);
  rmSync(path);
  {
    using database = new DatabaseSync(path);
    database.exec('create table theirs (id integer primary key); insert into theirs values (1)');
  }
  await withNode(dir, async (node) => failsWith(count(node, 'one'), 'TENANT_DAMAGED'));
  using database = new DatabaseSync(path, { readOnly: true });
  assert.deepEqual(
    database
      .prepare('select name from sqlite_schema')
      .all()
      .map(({ name }) => name),
    ['theirs'],
  );
});

for (const [what, sql] of [
  ['changed', "update rows set body = 'tampered' where id = 3"],
  ['added', "insert into rows values (99, 'smuggled')"],
  ['deleted', 'delete from rows where id = 3'],
] as const)
  test(`rows that were ${what} behind our back are named by verify and by the scrub`, async () => {
    const dir = directory();
    outside(tenantPath(dir, 1 as never), sql);
    await withNode(
      dir,
      async (node) => {
        const report = await node.verify();
        assert.deepEqual(
          report.problems.map(({ where }) => where),
          ['tenant one'],
        );
        for (;;) {
          const { scrub } = await node.status();
          if (scrub.tenants >= 2) {
            assert.deepEqual(scrub.damaged, ['one']);
            return;
          }
          await new Promise((resolve) => setTimeout(resolve, 5));
        }
      },
      { scrubIntervalMs: 1 },
    );
  });

test('a log segment that is damaged is refused, named, and left as it is', async () => {
  const dir = directory();
  const [first] = segments(dir);
  assert.ok(segments(dir).length > 2);
  // Sealed segments are read when they are needed: here by verify, and by a feed.
  const good = readFileSync(first!);
  overwrite(first!, good.indexOf('one 2 xxxx'), Buffer.from('ONE'));
  await withNode(
    dir,
    async (node) => {
      const report = await node.verify();
      assert.equal(report.ok, false);
      assert.match(report.problems[0]!.where, /^log segment .*, offset \d+, LSN \d+$/);
      await failsWith(
        (async () => {
          for await (const _ of node.tenant('one').changes({ untilCaughtUp: true })) continue;
        })(),
        'LOG_DAMAGED',
      );
      assert.equal(await count(node, 'one'), 10, 'what is in the files is served');
    },
    KEEP,
  );
});

test('damage in the open segment, below what was committed, refuses to open and changes nothing', async () => {
  const dir = directory();
  const last = segments(dir).at(-1)!;
  const at = readFileSync(last).indexOf('two 10 xxxx');
  assert.ok(at > 0, 'the last rows are in the open segment');
  overwrite(last, at, Buffer.from('TWO'));
  await refuses(dir, 'LOG_DAMAGED');
});

for (const which of ['first', 'middle', 'last'] as const)
  test(`a log whose ${which} segment is missing is refused`, async () => {
    const dir = directory();
    const all = segments(dir);
    const gone = all[{ first: 0, middle: 1, last: all.length - 1 }[which]]!;
    rmSync(gone);
    await refuses(dir, 'LOG_DAMAGED');
  });

test('a log segment of a newer format is refused', async () => {
  const dir = directory();
  const last = segments(dir).at(-1)!;
  const header = readFileSync(last).subarray(0, 64);
  const offset = [...header.keys()].find((at) => header.readUInt16LE(at) === 1);
  assert.ok(offset !== undefined);
  const before = readFileSync(last);
  for (const at of [offset]) overwrite(last, at, Buffer.from([0xff]));
  await assert.rejects(
    withNode(dir, async () => {}),
    (error) => isNostosError(error, 'UNSUPPORTED_FORMAT') || isNostosError(error, 'LOG_DAMAGED'),
  );
  assert.equal(before.length, readFileSync(last).length);
});

test('a log that an older copy replaced is refused: by the record of the coordinator, the catalog, or each tenant', async () => {
  const dir = directory();
  const older = ['log', 'coordinator', 'coordinator.json'].filter((name) => existsSync(join(dir, name)));
  for (const name of older) cpSync(join(dir, name), join(dir, 'older', name), { recursive: true });
  await withNode(dir, async (node) => {
    for (let id = 11; id <= 14; id += 1)
      await node.tenant('one').write((tx) => tx.run('insert into rows values (?, ?)', [id, 'later']));
    await node.tenants.create('newer');
  });
  const goBack = (name: string): void => {
    rmSync(join(dir, name), { recursive: true, force: true });
    cpSync(join(dir, 'older', name), join(dir, name), { recursive: true });
  };
  goBack('log');
  await failsWith(
    withNode(dir, async () => {}),
    'LOG_DAMAGED',
  );
  for (const name of older) goBack(name);
  await failsWith(
    withNode(dir, async () => {}),
    'LOG_DAMAGED',
  );
  for (const suffix of ['', '-wal', '-shm']) rmSync(join(dir, `catalog.sqlite${suffix}`), { force: true });
  await withNode(dir, async (node) => {
    await assert.rejects(
      count(node, 'one'),
      (error) => isNostosError(error, 'LOG_DAMAGED') || isNostosError(error, 'POSITION_LOST'),
    );
    assert.equal(await count(node, 'two'), 10);
  });
});

test('a file where the directory should be, and options that make no sense, are refused', async () => {
  const dir = join(root, 'options');
  for (const bad of ['', 'nul\0', undefined, 5]) await failsWith(openNode({ dir: bad as string }), 'INVALID_ARGUMENT');
  await failsWith(openNode({ dir, limits: { nonsense: 1 } as never }), 'INVALID_ARGUMENT');
  await failsWith(openNode({ dir, limits: { openFilesMax: -1 } }), 'INVALID_ARGUMENT');
  await failsWith(openNode({ dir, limits: { segmentBytesMax: 10 } }), 'INVALID_ARGUMENT');
  await withNode(dir, async () => {}); // a refused opening holds nothing
  const file = join(dir, 'file');
  writeFileSync(file, '');
  await assert.rejects(openNode({ dir: file }), (error) => isNostosError(error));
  mkdirSync(join(dir, 'used'));
  copyFileSync(join(dir, 'node.json'), join(dir, 'used', 'node.json'));
  await withNode(join(dir, 'used'), async (node) => assert.equal(await node.tenants.count(), 0));
  assert.ok(existsSync(join(dir, 'used', 'log')));
});
