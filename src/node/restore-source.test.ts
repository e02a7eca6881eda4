/**
 * A copy of a node that goes on meanwhile. Each case makes something happen while the copy is taken, and asserts that it
 * did; after each the harness asserts that the copy checks out and has what the source had, tenant by tenant.
 */
import assert from 'node:assert/strict';
import { cpSync, mkdtempSync, rmSync, truncateSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { after, before, test } from 'node:test';
import { toTenantId } from '../base/brands.ts';
import { isNostosError, type ErrorCode, type NostosError } from '../base/errors.ts';
import type { ItemName } from '../restore/item-name.ts';
import type { SourceFile, SourceSession } from '../restore/source.ts';
import { fetchCopy, type FetchHooks } from './fetch-copy.fixture.ts';
import type { NostosNode } from './node.ts';
import { openNode } from './open-node.ts';
import { tenantPath } from './paths.ts';
import { NodeRestoreSource, SERVING_DIR } from './restore-source.ts';
import { verifyStaged } from './staged-copy.ts';
import type { Migration, Node, NodeOptions, Tenant } from './types.ts';

const SCHEMA: Migration[] = ['create table rows (id integer primary key, body text)'];
/** The log rolls and is pruned, and tenants are checkpointed, as often as can be. */
const LIMITS = {
  segmentBytesMax: 128 * 1024,
  recordBytesMax: 100 * 1024,
  logRetainBytes: 0,
  checkpointBytes: 64 * 1024,
  checkpointHoldBytes: 128 * 1024,
  lockTimeoutMs: 50,
};
const NAMES = ['a', 'b', 'c', 'd', 'e', 'f'];

const root = mkdtempSync(join(tmpdir(), 'nostos-source-'));
let directories = 0;
const newDir = (): string => join(root, `dir ${(directories += 1)}`);
after(() => rmSync(root, { recursive: true, force: true }));

type Limits = NonNullable<NodeOptions['limits']>;

async function open(dir: string, limits: Limits = {}): Promise<NostosNode> {
  return (await openNode({ dir, scrubIntervalMs: false, limits: { ...LIMITS, ...limits } })) as NostosNode;
}

const add = (tenant: Tenant, bytes = 4_000): Promise<unknown> =>
  tenant.write((tx) => tx.run('insert into rows (body) values (?)', ['x'.repeat(bytes)]));

const made = newDir();

/** A node whose log was pruned, so that most tenants were last written before it begins. */
before(async () => {
  const node = await open(made);
  for (const name of NAMES) {
    const tenant = await node.tenants.create(name);
    await tenant.migrate(SCHEMA);
    for (let n = 0; n < 20; n += 1) await add(tenant, 10_000);
  }
  await node.tenants.create('unused');
  await node.close();
});

async function makeSource(limits: Limits = {}): Promise<NostosNode> {
  const dir = newDir();
  cpSync(made, dir, { recursive: true, filter: (path) => !path.endsWith('.sock') });
  return open(dir, limits);
}

const sourceOf = (node: NostosNode): NodeRestoreSource => new NodeRestoreSource(node.restoreHost, node.dir);

async function contentOf(node: Node): Promise<Record<string, unknown>> {
  const content: Record<string, unknown> = {};
  for (const { name, uuid } of await node.tenants.list()) {
    const { applied, fingerprint, tables, schemaVersion } = await node.tenant(name).status();
    content[name] = { uuid, applied, fingerprint, tables, schemaVersion };
  }
  return content;
}

/** Writes to these tenants, round and round, until it is stopped. */
function writeMeanwhile(node: Node, names: readonly string[]): () => Promise<number> {
  let stopped = false;
  let count = 0;
  const run = async (): Promise<void> => {
    while (!stopped) {
      for (const name of names) await add(node.tenant(name));
      count += names.length;
      await new Promise((resolve) => void setTimeout(resolve, 1));
    }
  };
  const running = run();
  return async () => {
    stopped = true;
    await running;
    return count;
  };
}

interface Meanwhile {
  readonly node: NostosNode;
  readonly tenant: (item: ItemName) => string | undefined;
}

interface Case {
  readonly what: string;
  readonly limits?: Limits;
  readonly busy?: readonly string[];
  /** What happens; `fired` says whether it did. */
  hooks(meanwhile: Meanwhile): FetchHooks & { readonly fired: () => boolean };
}

/** Runs `act` once, when the tenant of that name is opened for sending. */
function whenOpened(
  { tenant }: Meanwhile,
  name: string,
  act: (file: SourceFile) => unknown,
): FetchHooks & { readonly fired: () => boolean } {
  let fired = false;
  return {
    fired: () => fired,
    onOpened: async (item, file) => {
      if (fired || tenant(item) !== name) return;
      await act(file);
      fired = true;
    },
  };
}

const CASES: readonly Case[] = [
  {
    what: 'all tenants are written to, and would be checkpointed many times over',
    busy: NAMES,
    hooks: () => ({ fired: () => true, onPiece: () => new Promise((resolve) => void setTimeout(resolve, 2)) }),
  },
  {
    what: 'few files may be open, and others want them',
    limits: { openFilesMax: 10 },
    busy: NAMES,
    hooks: () => ({ fired: () => true, onPiece: () => new Promise((resolve) => void setTimeout(resolve, 2)) }),
  },
  {
    what: 'a tenant is created and filled',
    hooks: (meanwhile) =>
      whenOpened(meanwhile, 'b', async () => {
        const late = await meanwhile.node.tenants.create('late');
        await late.migrate(SCHEMA);
        for (let n = 0; n < 20; n += 1) await add(late);
      }),
  },
  {
    what: 'a tenant that had no file is used for the first time',
    hooks: (meanwhile) =>
      whenOpened(meanwhile, 'b', async () => {
        const unused = meanwhile.node.tenant('unused');
        await unused.migrate(SCHEMA);
        await add(unused);
      }),
  },
  {
    what: 'a tenant is migrated while it is sent',
    busy: ['a'],
    hooks: (meanwhile) =>
      whenOpened(meanwhile, 'c', async () => {
        const tenant = meanwhile.node.tenant('c');
        await tenant.migrate([...SCHEMA, 'alter table rows add column more text; create index bodies on rows (body)']);
        await tenant.write((tx) => tx.run("update rows set more = 'new' where id < 5"));
      }),
  },
  {
    what: 'a file is imported',
    hooks: (meanwhile) =>
      whenOpened(meanwhile, 'b', async () => {
        const file = join(root, `import ${(directories += 1)}.sqlite`);
        const database = new DatabaseSync(file);
        database.exec('create table things (id integer primary key, name text)');
        for (let id = 0; id < 500; id += 1) database.prepare('insert into things values (?, ?)').run(id, `thing ${id}`);
        database.close();
        await meanwhile.node.tenant('imported').importFile(file);
      }),
  },
  {
    what: 'a tenant is dropped before its turn, and another one gets its name',
    busy: ['a', 'b'],
    hooks: (meanwhile) =>
      whenOpened(meanwhile, 'b', async () => {
        await meanwhile.node.tenants.drop('e');
        const again = await meanwhile.node.tenants.create('e');
        await again.migrate(SCHEMA);
        await add(again);
      }),
  },
  {
    what: 'a reader with an old snapshot is in the way for a while',
    hooks: ({ node }) => {
      let fired = false;
      return {
        fired: () => fired,
        onBegun: async () => {
          const { id } = (await node.tenants.get('d'))!;
          await add(node.tenant('d'));
          const reader = new DatabaseSync(tenantPath(node.dir, id), { readOnly: true });
          reader.exec('begin; select count(*) from rows');
          await add(node.tenant('d'));
          setTimeout(() => {
            reader.close();
            fired = true;
          }, 300);
        },
      };
    },
  },
];

for (const { what, limits, busy = [], hooks } of CASES)
  test(`a copy is whole although ${what}`, async () => {
    await using node = await makeSource(limits);
    assert.ok((await node.status()).log.firstLsn > 100, 'some tenants were last written before the log begins');
    const stop = writeMeanwhile(node, busy);
    const names = new Map((await node.tenants.list()).map(({ id, name }) => [`tenant/${id}`, name]));
    const { fired, ...rest } = hooks({ node, tenant: (item) => names.get(item) });
    const dir = newDir();
    let expected: Record<string, unknown> = {};
    let written = 0;
    await fetchCopy(sourceOf(node), dir, {
      ...rest,
      onTail: async () => {
        written = await stop();
        expected = await contentOf(node);
      },
    });
    assert.ok(fired(), 'it happened');
    assert.ok(written > 0 || busy.length === 0, 'there were writes');
    assert.deepEqual((await node.status()).serving, []);

    const verified = await verifyStaged(dir, { limits: LIMITS });
    assert.equal(verified.tenants, Object.keys(expected).length);
    await using copy = await open(dir);
    assert.deepEqual(await contentOf(copy), expected);
    for (const name of busy) await add(node.tenant(name)); // the source goes on
  });

test('writes that go on beyond the copy are not in it, and those answered before its tail are', async () => {
  await using node = await makeSource();
  const stop = writeMeanwhile(node, NAMES);
  const dir = newDir();
  let floor = 0;
  await fetchCopy(sourceOf(node), dir, {
    onTail: async () => {
      floor = (await node.status()).log.watermark;
    },
  });
  await stop();
  const { lsn } = await verifyStaged(dir, { limits: LIMITS });
  const { watermark } = (await node.status()).log;
  assert.ok(lsn >= floor && lsn <= watermark, `${floor} <= ${lsn} <= ${watermark}`);
});

test('a tenant that is dropped while it is sent ends its hold, and then counts as dropped', async () => {
  await using node = await makeSource();
  const { id } = (await node.tenants.get('c'))!;
  const signal = new AbortController().signal;
  const session = await sourceOf(node).begin(signal);
  const item = session.plan.items.find(({ name }) => name === `tenant/${id}`)!;
  const file = await session.open(item.name, signal);
  const piece = new Uint8Array(4096);
  file.read(piece, 0);
  await node.tenants.drop('c');
  assert.throws(() => file.read(piece, 0), code('TENANT_NOT_FOUND'));
  const again = await session.open(item.name, signal);
  assert.deepEqual([again.bytes, again.attributes], [0, { dropped: 1 }]);
  await session.close();
});

const code =
  (wanted: ErrorCode) =>
  (error: unknown): boolean =>
    isNostosError(error, wanted) || assert.fail(`${wanted}, not ${String(error)}`);

interface Held {
  readonly node: NostosNode;
  readonly session: SourceSession;
  /** Tenant `c`. */
  readonly file: SourceFile;
}

/** What ends a hold, and what the receiver is told. */
const ENDS: readonly {
  readonly what: string;
  readonly limits?: Limits;
  readonly act: (held: Held) => Promise<unknown>;
  readonly code: ErrorCode;
  /** Details that have to be there, as numbers. */
  readonly numbers: readonly string[];
  /** Only the item is lost; the session goes on. */
  readonly sessionLives?: boolean;
}[] = [
  {
    what: 'the receiver takes nothing for too long',
    limits: { reservationTimeoutMs: 200 },
    act: async ({ node }) => {
      while ((await node.status()).serving.length > 0) await new Promise((resolve) => void setTimeout(resolve, 20));
    },
    code: 'RESERVATION_EXPIRED',
    numbers: ['fromLsn', 'lsn', 'timeoutMs', 'heldBytes', 'bytesSent'],
  },
  {
    what: 'the tenant is written to for more than the limit',
    limits: { restoreHoldBytesMax: 1024 * 1024 },
    act: async ({ node }) => {
      // Each takes more of the WAL than of the log, which has the same limit.
      for (let n = 0; n < 200; n += 1) await add(node.tenant('c'), 3_000);
    },
    code: 'RESERVATION_EXPIRED',
    numbers: ['heldBytes', 'limitBytes', 'heldFrom', 'lsn'],
    sessionLives: true,
  },
  {
    what: 'the log grows by more than the limit',
    limits: { restoreHoldBytesMax: 1024 * 1024, reservationTimeoutMs: 2_000 },
    act: async ({ node, session }) => {
      for (let n = 0; (await node.status()).serving.length > 0 && n < 600; n += 1) {
        await add(node.tenant('a'), 30_000);
        if ((await node.status()).serving.length > 0) session.progress(0); // the receiver is not slow
        await new Promise((resolve) => void setTimeout(resolve, 5));
      }
    },
    code: 'RESERVATION_EXPIRED',
    numbers: ['fromLsn', 'lsn', 'heldBytes', 'limitBytes'],
  },
  { what: 'the node closes', act: ({ node }) => node.close(), code: 'CLOSED', numbers: [] },
];

for (const { what, limits, act, code: wanted, numbers, sessionLives = false } of ENDS)
  test(`a hold ends when ${what}, and the receiver is told`, async () => {
    await using node = await makeSource(limits);
    const signal = new AbortController().signal;
    const session = await sourceOf(node).begin(signal);
    const { id } = (await node.tenants.get('c'))!;
    const { name } = session.plan.items.find((item) => item.name === `tenant/${id}`)!;
    const file = await session.open(name, signal);
    const piece = new Uint8Array(4096);
    file.read(piece, 0);
    assert.deepEqual((await node.status()).serving[0]?.holding, [id]);

    await act({ node, session, file });
    let error: NostosError | undefined;
    try {
      file.read(piece, 0);
    } catch (thrown) {
      error = thrown as NostosError;
    }
    assert.equal(error?.code, wanted, String(error));
    for (const detail of numbers) assert.equal(typeof error.details[detail], 'number', detail);
    if (numbers.includes('limitBytes'))
      assert.ok(
        (error.details['heldBytes'] as number) > (error.details['limitBytes'] as number),
        'it says by how much',
      );
    if (sessionLives) {
      session.progress(1);
      await (await session.open(name, signal)).close(); // at a later position
    } else {
      assert.throws(() => session.progress(1), code(wanted));
      await assert.rejects(session.open(name, signal), code(wanted));
      await assert.rejects(session.tail());
    }
    await session.close();
    await session.close();
    if (wanted === 'CLOSED') return;
    assert.deepEqual((await node.status()).serving, []);
    await add(node.tenant('c'));
    assert.ok((await node.verify()).ok);
  });

test('a node serves so many copies and no more, and a session that ends makes room', async () => {
  await using node = await makeSource({ restoreSessionsMax: 2 });
  const signal = new AbortController().signal;
  const source = sourceOf(node);
  const sessions = [await source.begin(signal), await source.begin(signal)];
  await assert.rejects(source.begin(signal), code('QUEUE_FULL'));
  await sessions[0]!.close();
  await (await source.begin(signal)).close();
  await sessions[1]!.close();
  assert.deepEqual((await node.status()).serving, []);
});

test('two copies at a time share a hold, and both are whole', async () => {
  await using node = await makeSource();
  const dirs = [newDir(), newDir()];
  const stop = writeMeanwhile(node, NAMES);
  await Promise.all(
    dirs.map((dir) =>
      fetchCopy(sourceOf(node), dir, { onPiece: () => new Promise((resolve) => setImmediate(resolve)) }),
    ),
  );
  await stop();
  for (const dir of dirs) assert.equal((await verifyStaged(dir, { limits: LIMITS })).tenants, NAMES.length + 1);
});

test('what is not in the plan is not opened, and an aborted session holds nothing', async () => {
  await using node = await makeSource();
  const source = sourceOf(node);
  const abort = new AbortController();
  const session = await source.begin(abort.signal);
  for (const name of ['tenant/999', 'log/00000001.ndb', 'log/terms', 'file/node.json'])
    await assert.rejects(session.open(name as ItemName, abort.signal), code('INVALID_ARGUMENT'));
  abort.abort(new Error('enough'));
  await assert.rejects(session.open(session.plan.items[1]!.name, abort.signal), /enough/);
  await assert.rejects(source.begin(abort.signal), /enough/);
  await session.close();
  assert.deepEqual((await node.status()).serving, []);
});

/** Files of the source that somebody changed behind its back: the receiver gets an error, and never other bytes. */
const TAMPERED: readonly {
  readonly what: string;
  /** Of the plan and the tail, which item is fetched. */
  readonly item: (names: readonly ItemName[]) => ItemName;
  readonly when: 'listed' | 'opened';
  readonly act: (node: NostosNode, item: ItemName) => void;
  readonly code: ErrorCode;
}[] = [
  {
    what: 'a segment is gone',
    item: firstSegment,
    when: 'listed',
    act: (node, item) => rmSync(join(node.dir, item)),
    code: 'IO_FAILED',
  },
  {
    what: 'a segment becomes shorter',
    item: firstSegment,
    when: 'opened',
    act: (node, item) => truncateSync(join(node.dir, item), 1_000),
    code: 'IO_FAILED',
  },
  {
    what: 'the copied catalog is gone',
    item: () => 'catalog' as ItemName,
    when: 'listed',
    act: (node) => rmSync(join(node.dir, SERVING_DIR), { recursive: true }),
    code: 'IO_FAILED',
  },
  {
    what: 'the file of a tenant that is not open is gone, and the log does not reach back',
    item: tenantItem,
    when: 'listed',
    act: (node, item) => rmSync(fileOf(node, item)),
    code: 'TENANT_DAMAGED',
  },
  {
    what: 'the file of a tenant is damaged',
    item: tenantItem,
    when: 'listed',
    act: (node, item) => truncateSync(fileOf(node, item), 5_000),
    code: 'TENANT_DAMAGED',
  },
  {
    what: 'the file of a tenant becomes shorter while it is sent',
    item: tenantItem,
    when: 'opened',
    act: (node, item) => truncateSync(fileOf(node, item), 8_192),
    code: 'IO_FAILED',
  },
];

function firstSegment(names: readonly ItemName[]): ItemName {
  return names.find((name) => name.endsWith('.ndb'))!;
}

function tenantItem(names: readonly ItemName[]): ItemName {
  return names.find((name) => name.startsWith('tenant/'))!;
}

function fileOf(node: NostosNode, item: ItemName): string {
  return tenantPath(node.dir, toTenantId(Number(item.slice('tenant/'.length))));
}

for (const { what, item, when, act, code: wanted } of TAMPERED)
  test(`a copy fails with ${wanted} where ${what}`, async () => {
    const node = await makeSource();
    const signal = new AbortController().signal;
    const session = await sourceOf(node).begin(signal);
    const all = [...session.plan.items, ...(await session.tail())];
    const name = item(all.map((one) => one.name));
    const { bytes } = all.find((one) => one.name === name)!;
    const fetch = async (): Promise<void> => {
      if (when === 'listed') act(node, name);
      const file = await session.open(name, signal);
      if (when === 'opened') act(node, name);
      file.read(new Uint8Array(bytes), 0);
    };
    await assert.rejects(fetch(), code(wanted));
    session.progress(0); // the session lives
    await session.close();
    await node.close();
  });
