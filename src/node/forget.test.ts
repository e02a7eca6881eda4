/** What was forgotten stays forgotten: over kill -9, pruned logs, dropped tenants, copies, replicas and rollbacks. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  appendFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { extname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { test, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import { toGeneration } from '../base/brands.ts';
import { systemDisk } from '../base/disk.ts';
import { isNostosError } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import { ForgetLedger, LEDGER_FILE, type LedgerEntry } from '../log/ledger.ts';
import { keyHash } from '../store/forget.ts';
import { makeGroup, until } from './group.fixture.ts';
import type { NostosNode } from './node.ts';
import { openNode } from './open-node.ts';
import { restoreNode } from './restore-node.ts';
import type { Node, NodeOptions, Tenant } from './types.ts';

const SCHEMA = [
  'create table users (id integer primary key, name text); create table noise (id integer primary key, bytes blob)',
];
const SMALL = {
  segmentBytesMax: 128 * 1024,
  recordBytesMax: 96 * 1024,
  logRetainBytes: 256 * 1024,
  checkpointBytes: 64 * 1024,
};

function temporary(t: TestContext): string {
  const dir = mkdtempSync(join(tmpdir(), 'nostos-forget-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

async function open(dir: string, options: Partial<NodeOptions> = {}): Promise<NostosNode> {
  return (await openNode({ dir, scrubIntervalMs: false, ...options })) as NostosNode;
}

async function newTenant(node: Node, name: string, users: number): Promise<Tenant> {
  const tenant = await node.tenants.create(name);
  await tenant.migrate(SCHEMA);
  await tenant.write((tx) =>
    tx.run(
      'with recursive n (id) as (select 1 union all select id + 1 from n where id < ?) insert into users select id, id from n',
      [users],
    ),
  );
  return tenant;
}

const forget = (tenant: Tenant, id: number): Promise<boolean> => tenant.write((tx) => tx.forget('users', { id }));
const idsOf = (tenant: Tenant): Promise<unknown[]> =>
  tenant.read((reader) => reader.all('select id from users order by id').map(({ id }) => id));
const entriesOf = (node: Node): LedgerEntry[] => [...(node as NostosNode).ledger.entries()];
const inLedger = (dir: string): LedgerEntry[] => [...ForgetLedger.open(systemDisk, join(dir, 'log')).entries()];

/** By tenant, which of these keys the ledger names. */
function forgottenIn(entries: readonly LedgerEntry[], uuid: string, ids: number): Set<number> {
  const own = entries.filter((entry) => entry.uuid === uuid);
  const hashes = new Set(own.flatMap(({ keys }) => keys.map(({ hash }) => Buffer.from(hash).toString('hex'))));
  const [first] = own;
  const found = new Set<number>();
  for (let id = 1; first !== undefined && id <= ids; id += 1)
    if (hashes.has(Buffer.from(keyHash(first.hashKey, 'users', [id])).toString('hex'))) found.add(id);
  return found;
}

test(
  'after kill -9 at any moment, file and ledger have the same forgets, and all that anybody was told of',
  { timeout: 240_000 },
  async (t) => {
    const dir = join(temporary(t), 'node');
    const users = 5_000;
    {
      await using node = await open(dir);
      for (const name of ['a', 'b']) await newTenant(node, name, users);
    }
    const random = seededRandom(11);
    const told = new Map<string, Set<number>>([
      ['a', new Set()],
      ['b', new Set()],
    ]);
    const seen = { killed: 0, untold: 0 };
    for (let round = 0; round < 4; round += 1) {
      const script = fileURLToPath(new URL(`./forget-child.fixture${extname(import.meta.url)}`, import.meta.url));
      const child = spawn(process.execPath, [script, dir, String(1 + round * 1_000)], {
        stdio: ['ignore', 'pipe', 'inherit'],
      });
      const lines = createInterface({ input: child.stdout });
      lines.on('line', (line) => {
        if (!line.endsWith('"ready"') && !line.endsWith(']')) return; // the kill cut it short
        const said = JSON.parse(line) as 'ready' | [string, number];
        if (said === 'ready') setTimeout(() => child.kill('SIGKILL'), 30 + random.below(400));
        else told.get(said[0])!.add(said[1]);
      });
      const drained = once(lines, 'close');
      const [, signal] = (await once(child, 'exit')) as [number | null, string | null];
      await drained;
      assert.equal(signal, 'SIGKILL');
      seen.killed += 1;
      await using node = await open(dir, { limits: SMALL });
      for (const name of ['a', 'b']) {
        const tenant = node.tenant(name);
        const there = new Set(await idsOf(tenant));
        const gone = Array.from({ length: users }, (_, i) => i + 1).filter((id) => !there.has(id));
        const forgotten = forgottenIn(entriesOf(node), (await node.tenants.get(name))!.uuid, users);
        assert.deepEqual(gone, [...forgotten], `round ${round}, tenant ${name}`);
        for (const id of told.get(name)!) assert.ok(forgotten.has(id), `${name} ${id} was acknowledged`);
        if (forgotten.size > told.get(name)!.size) seen.untold += 1;
      }
      assert.ok((await node.verify()).ok);
    }
    assert.ok(told.get('a')!.size > 20, `${told.get('a')!.size} forgets`);
    for (let n = 0; n < 20; n += 1) {
      await using node = await open(dir, { limits: SMALL });
      const { firstLsn } = (await node.status()).log;
      const entries = entriesOf(node);
      if (entries.every(({ position }) => position.lsn < firstLsn)) break;
      assert.ok(n < 19, 'the records of all forgets are gone from the log');
      for (const name of ['a', 'b'])
        for (let i = 0; i < 8; i += 1)
          await node.tenant(name).write((tx) => tx.run('insert into noise (bytes) values (randomblob(30000))'));
    }
    {
      await using node = await open(dir, { limits: SMALL });
      for (const name of ['a', 'b']) {
        const there = new Set(await idsOf(node.tenant(name)));
        const { uuid } = (await node.tenants.get(name))!;
        for (const id of forgottenIn(entriesOf(node), uuid, users)) assert.ok(!there.has(id));
        assert.equal(forgottenIn(entriesOf(node), uuid, users).size, users - there.size);
      }
    }
    t.diagnostic(JSON.stringify(seen));
  },
);

test('a dropped tenant leaves what it forgot, also where its file and the ledger never had it', async (t) => {
  const root = temporary(t);
  for (const how of ['dropped while open', 'dropped unopened', 'its drop found on opening'] as const) {
    const dir = join(root, how);
    let uuid: string;
    {
      await using node = await open(dir);
      const tenant = await newTenant(node, 'acme', 10);
      await newTenant(node, 'other', 1);
      uuid = (await node.tenants.get('acme'))!.uuid;
      if (how === 'dropped while open') {
        await forget(tenant, 3);
        await node.tenants.drop('acme');
      } else {
        // A ledger that cannot be written: the record is committed, and neither ledger nor file has it.
        mkdirSync(join(dir, 'log', LEDGER_FILE));
        await assert.rejects(
          forget(tenant, 3),
          (error) => isNostosError(error, 'FORGET_PENDING') || assert.fail(String(error)),
        );
        await assert.rejects(
          tenant.read(() => 0),
          'the file waits for the ledger',
        );
      }
      if (how === 'its drop found on opening')
        await assert.rejects(node.tenants.drop('acme'), 'the files wait as well');
    }
    if (how !== 'dropped while open') rmSync(join(dir, 'log', LEDGER_FILE), { recursive: true });
    {
      await using node = await open(dir);
      if (how === 'dropped unopened') await node.tenants.drop('acme');
      assert.equal(await node.tenants.get('acme'), undefined, how);
      const anew = await newTenant(node, 'acme', 3);
      assert.deepEqual(await idsOf(anew), [1, 2, 3]);
    }
    assert.deepEqual([...forgottenIn(inLedger(dir), uuid, 10)], [3], how);
    assert.equal(inLedger(dir).length, 1, how);
  }
});

test('a copy has the ledger of its source; one that has none yet is copied as before', async (t) => {
  const root = temporary(t);
  await using source = await open(join(root, 'source'), { listen: { port: 0 }, limits: SMALL });
  const tenant = await newTenant(source, 'acme', 50);
  await restoreNode({ dir: join(root, 'before'), from: [source.address!] });
  assert.equal(existsSync(join(root, 'before', 'log', LEDGER_FILE)), false);
  for (let id = 1; id <= 20; id += 1) {
    await forget(tenant, id);
    await tenant.write((tx) => tx.run('insert into noise (bytes) values (randomblob(30000))'));
  }
  const dir = join(root, 'copy');
  let more = 100;
  await restoreNode({
    dir,
    from: [source.address!],
    onProgress: () => void (more < 130 && forget(tenant, (more += 1)).catch(() => {})),
  });
  assert.ok(more > 100, 'it went on meanwhile');
  await using copy = await open(dir);
  const ids = await idsOf(copy.tenant('acme'));
  assert.deepEqual(
    ids,
    Array.from({ length: 30 }, (_, i) => i + 21),
  );
  const entries = entriesOf(copy);
  assert.ok(entries.length >= 20);
  assert.deepEqual(entries, entriesOf(source).slice(0, entries.length));
});

test('a restore keeps what only the directory that it replaces knew, also of a torn ledger, which stays as it was', async (t) => {
  const root = temporary(t);
  await using source = await open(join(root, 'source'), { listen: { port: 0 } });
  const tenant = await newTenant(source, 'acme', 5);
  await forget(tenant, 1);
  const dir = join(root, 'copy');
  await restoreNode({ dir, from: [source.address!] });
  const [shared] = inLedger(dir);
  // Of a generation that nobody else has any more.
  const lost = { ...shared!, position: { ...shared!.position, generation: toGeneration('0f'.repeat(16)) } };
  ForgetLedger.open(systemDisk, join(dir, 'log')).add([lost]);
  appendFileSync(join(dir, 'log', LEDGER_FILE), Buffer.alloc(50, 7));
  await forget(tenant, 2);
  await restoreNode({ dir, from: [source.address!] });
  const [, second] = entriesOf(source);
  assert.deepEqual(inLedger(dir), [shared, second, lost]);
  const aside = readdirSync(dir).find((name) => name.startsWith('set-aside'));
  const former = readFileSync(join(dir, aside!, 'log', LEDGER_FILE));
  assert.ok(former.subarray(-50).equals(Buffer.alloc(50, 7)), 'what is set aside is not changed');
  await using copy = await open(dir);
  assert.deepEqual(await idsOf(copy.tenant('acme')), [3, 4, 5]);
});

test(
  'all members of a group have one ledger, over takeover, rollback and copies; what was not committed is in none',
  { timeout: 240_000 },
  async (t) => {
    const group = await makeGroup(t, 3);
    const rows = (node: Node): Promise<unknown[]> =>
      node.tenant('acme').read((reader) => reader.all('select id from item order by id').map(({ id }) => id));
    {
      await using first = await group.open(0);
      await until('the first leads', () => first.role === 'primary');
      const others = [await group.open(1), await group.open(2)];
      for (const node of others) await first.group!.changeMembers({ add: (await node.status()).store, minInSync: 2 });
      for (let id = 1; id <= 6; id += 1)
        await first.tenant('acme').write((tx) => tx.run('insert into item values (?, ?)', [id, 'x']));
      await first.tenant('acme').write((tx) => tx.forget('item', { id: 1 }));
      for (const node of others) await until('the replica has it', () => entriesOf(node).length === 1);
      for (const node of others) await node.close();
      // Now nothing is committed any more.
      await first.tenant('acme').write((tx) => tx.run("insert into item values (50, 'lost')"), { durability: 'local' });
      const lost = first.tenant('acme').write((tx) => tx.forget('item', { id: 2 }), { durability: 'local' });
      lost.catch(() => {});
      assert.equal(entriesOf(first).length, 1);
      await first.close();
      await assert.rejects(lost);
    }
    assert.equal(inLedger(group.dirs[0]!).length, 1);
    await using second = await group.open(1);
    await using third = await group.open(2);
    await until('another one leads', () => second.role === 'primary' || third.role === 'primary');
    const primary = second.role === 'primary' ? second : third;
    await primary.tenant('acme').write((tx) => tx.forget('item', { id: 3 }));
    await using first = await group.open(0);
    const nodes = [first, second, third];
    for (const node of nodes) await until('all have it', async () => (await rows(node)).length === 5);
    for (const node of nodes) {
      assert.deepEqual(await rows(node), [0, 2, 4, 5, 6]);
      assert.deepEqual(entriesOf(node), entriesOf(primary));
    }
    assert.equal(entriesOf(first).length, 2);
    assert.deepEqual(
      entriesOf(first)[0]?.hashKey,
      entriesOf(first)[1]?.hashKey,
      'a new primary hashes under the same key',
    );
    assert.ok(
      readdirSync(join(group.dirs[0]!, 'rollback')).some((name) => name.includes('lsn')),
      'it was rolled back',
    );
  },
);

test('an import fills a tenant of which nothing was forgotten yet', async (t) => {
  const root = temporary(t);
  await using node = await open(join(root, 'node'));
  const tenant = await newTenant(node, 'acme', 3);
  const file = join(root, 'export.sqlite');
  await tenant.exportFile(file);
  await forget(tenant, 2);
  await assert.rejects(tenant.importFile(file), (error) => isNostosError(error, 'TENANT_EXISTS'));
  const uuid = (await node.tenants.get('acme'))!.uuid;
  await node.tenants.drop('acme');
  await node.tenant('acme').importFile(file);
  assert.notEqual((await node.tenants.get('acme'))!.uuid, uuid);
  assert.deepEqual(await idsOf(node.tenant('acme')), [1, 2, 3], 'another tenant, of which nothing was forgotten');
});

test('a ledger that is damaged is found by verify, and not opened', async (t) => {
  const dir = join(temporary(t), 'node');
  const path = join(dir, 'log', LEDGER_FILE);
  {
    await using node = await open(dir);
    const tenant = await newTenant(node, 'acme', 5);
    for (let id = 1; id <= 3; id += 1) await forget(tenant, id);
    assert.ok((await node.verify()).ok);
    const bytes = readFileSync(path);
    bytes[60]! ^= 1;
    writeFileSync(path, bytes);
    const { ok, problems } = await node.verify();
    assert.equal(ok, false);
    assert.deepEqual(
      problems.map(({ where }) => where),
      ['log/ledger'],
    );
  }
  await assert.rejects(open(dir), (error) => isNostosError(error, 'LOG_DAMAGED') || assert.fail(String(error)));
});

test('a directory that was set back to an older image has the ledger of its log again', async (t) => {
  const root = temporary(t);
  const dir = join(root, 'node');
  {
    await using node = await open(dir);
    await forget(await newTenant(node, 'acme', 9), 1);
  }
  cpSync(join(dir, 'log', LEDGER_FILE), join(root, 'older'));
  const file = join(dir, 'tenants', 'tenant_1', 'data.sqlite');
  cpSync(file, join(root, 'data.sqlite'));
  {
    await using node = await open(dir);
    await forget(node.tenant('acme'), 2);
  }
  cpSync(join(root, 'older'), join(dir, 'log', LEDGER_FILE));
  cpSync(join(root, 'data.sqlite'), file);
  assert.equal(inLedger(dir).length, 1);
  await using node = await open(dir);
  assert.deepEqual(await idsOf(node.tenant('acme')), [3, 4, 5, 6, 7, 8, 9]);
  assert.equal(entriesOf(node).length, 2);
});
