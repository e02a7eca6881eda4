/** The content of a tenant is replaced through the log, on one node: what it keeps, refuses, and survives. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { cpSync, existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { test, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import { formatPosition, type Position } from '../base/brands.ts';
import { isNostosError, type ErrorCode } from '../base/errors.ts';
import { mountRefusal, mountSmall } from '../testing/small-disk.fixture.ts';
import { openNode } from './open-node.ts';
import { runOperation } from './operations.ts';
import { tenantPath } from './paths.ts';
import { restoreNode } from './restore-node.ts';
import type { Change, Node, NodeOptions, Progress, Tenant } from './types.ts';

const SCHEMA = ['create table item (id integer primary key, body text)', 'create index item_body on item (body)'];

function temporary(t: TestContext): string {
  const dir = mkdtempSync(join(tmpdir(), 'nostos-reset-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

const open = (dir: string, options: Partial<NodeOptions> = {}): Promise<Node> =>
  openNode({ dir, scrubIntervalMs: false, ...options });

/** With rows 1 to `rows`. */
async function fill(node: Node, name: string, rows: number, body: string): Promise<Tenant> {
  const tenant = await node.tenants.create(name);
  await tenant.migrate(SCHEMA);
  await tenant.write((tx) =>
    tx.run(
      `with recursive n (id) as (select 1 union all select id + 1 from n where id < ?) insert into item select id, ? from n`,
      [rows, body],
    ),
  );
  return tenant;
}

const idsOf = (tenant: Tenant): Promise<unknown[]> =>
  tenant.read((reader) => reader.all('select id from item order by id').map(({ id }) => id));
const bodiesOf = (tenant: Tenant): Promise<unknown[]> =>
  tenant.read((reader) => reader.all('select distinct body from item order by body').map(({ body }) => body));
const insert = (tenant: Tenant, body: string, id?: string): Promise<unknown> =>
  tenant.write(
    (tx) => tx.run('insert into item (body) values (?)', [body]).lastInsertRowid,
    id === undefined ? {} : { id },
  );
const refuses = (code: ErrorCode) => (error: unknown) => isNostosError(error, code) || assert.fail(String(error));

/** The file of a tenant with the rows of now, as a restore makes one. */
async function tenantFile(node: Node, name: string, target: string): Promise<string> {
  const { id } = (await node.tenants.get(name))!;
  await node.tenant(name).status();
  const path = tenantPath(node.dir, id);
  const source = new DatabaseSync(path, { readOnly: true });
  source.prepare('vacuum into ?').run(target);
  source.close();
  return target;
}

/** A node with tenants `acme` and `other`, and files of `acme` as it was before its last write. */
async function prepare(t: TestContext, rows = 20): Promise<{ root: string; dir: string; plain: string; own: string }> {
  const root = temporary(t);
  const dir = join(root, 'node');
  await using node = await open(dir);
  const acme = await fill(node, 'acme', rows, 'before');
  await insert(await fill(node, 'other', 5, 'other'), 'last');
  await insert(acme, 'answered', 'once');
  const plain = join(root, 'plain.sqlite');
  await acme.exportFile(plain);
  const own = await tenantFile(node, 'acme', join(root, 'own.sqlite'));
  await acme.write((tx) => tx.run("update item set body = 'after'"));
  return { root, dir, plain, own };
}

test('the rows, the schema version and the answers of a tenant file take the place; of a plain one the rows', async (t) => {
  const { dir, plain, own } = await prepare(t);
  await using node = await open(dir, { migrations: SCHEMA });
  const acme = node.tenant('acme');
  const uuid = (await node.tenants.get('acme'))!.uuid;
  assert.equal(await insert(acme, 'x', 'once'), 21);
  const report = await node.tenants.replace('acme', own);
  assert.deepEqual([report.rows, report.forgotten], [21, 0]);
  assert.deepEqual(await bodiesOf(acme), ['answered', 'before']);
  assert.equal(await insert(acme, 'a retry', 'once'), 21, 'the answer that it had then');
  assert.equal(await insert(acme, 'new', 'twice'), 22);
  const now = (await node.tenants.get('acme'))!;
  assert.deepEqual([now.uuid, now.schemaVersion], [uuid, 2]);
  await node.tenants.replace('acme', plain, { schemaVersion: 2 });
  assert.equal(await insert(acme, 'answered anew', 'once'), 22, 'a plain file has no answers');
  assert.deepEqual(await bodiesOf(acme), ['answered', 'answered anew', 'before']);
  assert.deepEqual(
    (await node.tenants.list()).map(({ name }) => name),
    ['acme', 'other'],
  );
  assert.equal(await node.tenants.count(), 2);
  assert.deepEqual(readdirSync(join(dir, 'tenants')).length, 2, 'no files of before');
  assert.deepEqual((await node.verify()).problems, []);
});

test('a log without files or catalog leads to the same content', async (t) => {
  const { dir, own } = await prepare(t);
  let old: Position;
  {
    await using node = await open(dir);
    old = await node.tenant('acme').position();
    await node.tenants.replace('acme', own);
    await insert(node.tenant('acme'), 'on the new content');
  }
  for (const lost of ['tenants', 'catalog.sqlite']) {
    const copy = `${dir}-without-${lost}`;
    cpSync(dir, copy, { recursive: true });
    for (const name of readdirSync(copy)) if (name.startsWith(lost)) rmSync(join(copy, name), { recursive: true });
    await using node = await open(copy);
    assert.deepEqual(await bodiesOf(node.tenant('acme')), ['answered', 'before', 'on the new content'], lost);
    assert.equal(await node.tenants.count(), 2);
    assert.deepEqual((await node.verify()).problems, []);
    await assert.rejects(node.tenant('acme').changes({ from: old }).next(), refuses('TENANT_RESET'));
  }
});

test('a catalog that is lost comes back from the files where the log no longer reaches', async (t) => {
  const { dir, own } = await prepare(t);
  const limits = {
    segmentBytesMax: 128 * 1024,
    recordBytesMax: 96 * 1024,
    logRetainBytes: 256 * 1024,
    checkpointBytes: 64 * 1024,
  };
  {
    await using node = await open(dir, { limits });
    await node.tenants.replace('acme', own);
    const noise = await fill(node, 'noise', 1, 'x');
    for (let round = 0; (await node.status()).log.firstLsn === 1; round += 1) {
      assert.ok(round < 400, 'the log is pruned');
      await insert(noise, 'n'.repeat(20_000));
      if (round % 40 === 39) {
        await node.close();
        break;
      }
    }
  }
  for (let round = 0; ; round += 1) {
    await using node = await open(dir, { limits });
    if ((await node.status()).log.firstLsn > 100) break;
    assert.ok(round < 20, 'the log is pruned');
    for (let each = 0; each < 40; each += 1) await insert(node.tenant('noise'), 'n'.repeat(20_000));
  }
  for (const name of readdirSync(dir)) if (name.startsWith('catalog.sqlite')) rmSync(join(dir, name));
  await using node = await open(dir, { limits });
  assert.deepEqual(
    (await node.tenants.list()).map(({ name }) => name),
    ['acme', 'noise', 'other'],
  );
  assert.deepEqual(await bodiesOf(node.tenant('acme')), ['answered', 'before']);
});

test('others are served all the while, and those who write meanwhile write to the new content', async (t) => {
  const { dir, plain } = await prepare(t, 3_000);
  await using node = await open(dir);
  const [acme, other] = [node.tenant('acme'), node.tenant('other')];
  const phases = new Set<string>();
  const written: Promise<unknown>[] = [];
  let served = 0;
  let stop = false;
  const run = async (tenant: Tenant): Promise<void> => {
    for (let each = 0; !stop; each += 1) {
      await insert(tenant, 'meanwhile');
      await tenant.read((reader) => reader.value('select count(*) from item'));
      served += 1;
    }
  };
  const running = [run(other), run(acme), run(acme)];
  const atTheEnd: Promise<unknown>[] = [];
  const report = await node.tenants.replace('acme', plain, {
    onProgress: ({ phase }) => {
      phases.add(phase);
      if (phase === 'replacing the content')
        // Queued, and about to be held.
        setImmediate(() => {
          for (let each = 0; each < 20; each += 1) atTheEnd.push(insert(acme, 'held'));
          atTheEnd.push(acme.transaction(async (tx) => tx.run("insert into item (body) values ('held')")));
          atTheEnd.push(acme.query('select count(*) from item'));
        });
    },
  });
  const after = insert(acme, 'later');
  stop = true;
  await Promise.all([...running, ...written, ...atTheEnd, after]);
  assert.equal(atTheEnd.length, 22);
  assert.ok(served > 10, `others were served ${served} times`);
  assert.ok(phases.has('copying rows of item') && phases.has('replacing the content'));
  assert.equal(report.rows, 3_001);
  const held = await acme.read((reader) => reader.value<number>("select count(*) from item where body = 'held'"));
  assert.equal(held, 21);
  assert.deepEqual((await node.verify()).problems, []);
});

test('a handle that wrote and read before goes on; feeds end, and begin anew', async (t) => {
  const { dir, plain } = await prepare(t);
  await using node = await open(dir);
  const acme = node.tenant('acme');
  const before = await acme.position();
  const feed = acme.changes({ from: 'now' });
  const ended = feed.next();
  ended.catch(() => {});
  const report = await node.tenants.replace('acme', plain);
  const isReset = (error: unknown): true => {
    assert.ok(isNostosError(error, 'TENANT_RESET'), String(error));
    assert.deepEqual(error.details['position'], report.position);
    return true;
  };
  await assert.rejects(ended, isReset);
  await assert.rejects(acme.changes({ from: before }).next(), isReset);
  assert.equal(await acme.read(() => 'reached', { min: before }), 'reached');
  const position = await acme.position();
  assert.deepEqual(position, report.position, 'what was read there is the new content');
  await insert(acme, 'seen');
  for (const from of [position, undefined]) {
    const changes: Change[] = [];
    for await (const change of acme.changes({ ...(from === undefined ? {} : { from }), untilCaughtUp: true }))
      changes.push(change);
    assert.deepEqual(
      changes.flatMap(({ rows }) => rows.map((row) => row.new?.['body'])),
      ['seen'],
    );
  }
  const exported = await acme.exportFile(`${plain}.again`);
  assert.ok(exported.position.lsn > report.position.lsn);
});

test('what was forgotten stays so: before the file was made, after it, and while it is taken in', async (t) => {
  const root = temporary(t);
  await using node = await open(join(root, 'node'));
  const acme = await fill(node, 'acme', 10, 'x');
  const plain = join(root, 'plain.sqlite');
  const own = join(root, 'own.sqlite');
  await acme.write((tx) => tx.forget('item', { id: 1 }));
  await acme.write((tx) => tx.run("insert into item values (1, 'a new one')"));
  const at = await acme.position();
  await acme.exportFile(plain);
  await tenantFile(node, 'acme', own);
  await acme.write((tx) => tx.forget('item', { id: 2 }));
  const forgetting: Promise<unknown>[] = [];
  const once = (phase: string, id: number): ((progress: Progress) => void) => {
    let done = false;
    return (progress) => {
      if (progress.phase !== phase || done) return;
      done = true;
      forgetting.push(acme.write((tx) => tx.forget('item', { id })));
    };
  };
  const first = await node.tenants.replace('acme', own, { at, onProgress: once('creating triggers', 3) });
  assert.equal(first.forgotten, 2);
  assert.deepEqual(await idsOf(acme), [1, 4, 5, 6, 7, 8, 9, 10], 'the row that came after the forget is there');
  const second = await node.tenants.replace('acme', plain, { onProgress: once('replacing the content', 4) });
  assert.equal(forgetting.length, 2);
  await Promise.all(forgetting);
  assert.equal(second.forgotten, 4);
  assert.deepEqual(await idsOf(acme), [5, 6, 7, 8, 9, 10], 'without a position everything that was forgotten counts');
  await node.tenants.drop('acme');
  const { uuid } = await node.tenants.create('again').then(async () => (await node.tenants.get('again'))!);
  assert.notEqual(uuid, undefined);
  assert.deepEqual((await node.verify()).problems, []);
});

test('a forgotten row goes as its user would delete it, or without what keeps it', async (t) => {
  const root = temporary(t);
  await using node = await open(join(root, 'node'));
  const acme = await node.tenants.create('acme');
  await acme.migrate([
    `create table person (id text primary key not null, name text);
     create table letter (id integer primary key, person text references person (id) on delete cascade);
     create table bill (id integer primary key, person text references person (id));
     create table gone (id integer primary key, person text);
     create trigger person_gone after delete on person begin insert into gone (person) values (old.id); end`,
  ]);
  await acme.write((tx) => {
    for (const id of ['a', 'b', 'c']) {
      tx.run('insert into person values (?, ?)', [id, id]);
      tx.run('insert into letter (person) values (?)', [id]);
    }
    tx.run("insert into bill (person) values ('b')");
  });
  const own = await tenantFile(node, 'acme', join(root, 'own.sqlite'));
  await acme.write((tx) => {
    tx.run('delete from bill');
    tx.forget('person', { id: 'a' });
    tx.forget('person', { id: 'b' });
  });
  const { forgotten } = await node.tenants.replace('acme', own);
  assert.equal(forgotten, 2);
  const rows = (table: string): Promise<unknown[]> =>
    acme.read((reader) => reader.all(`select person from ${table} order by id`).map(({ person }) => person));
  assert.deepEqual(await acme.read((reader) => reader.all('select id from person').map(({ id }) => id)), ['c']);
  assert.deepEqual(await rows('letter'), ['b', 'c'], 'a cascade of the one, none of the one that a bill kept');
  assert.deepEqual(await rows('gone'), ['a']);
  assert.deepEqual(await rows('bill'), ['b']);
  assert.deepEqual((await node.verify()).problems, []);
});

test('a dropped tenant comes back as the same', async (t) => {
  const { dir, own } = await prepare(t);
  await using node = await open(dir);
  const { uuid, id } = (await node.tenants.get('acme'))!;
  await node.tenant('acme').write((tx) => tx.forget('item', { id: 7 }));
  await node.tenants.drop('acme');
  await assert.rejects(node.tenants.replace('acme', own), refuses('TENANT_NOT_FOUND'));
  const { forgotten } = await node.tenants.replace('acme', own, { uuid });
  const now = (await node.tenants.get('acme'))!;
  assert.deepEqual([now.uuid, forgotten], [uuid, 1]);
  assert.notEqual(now.id, id);
  assert.equal((await idsOf(node.tenant('acme'))).length, 20);
});

/** Each leaves the tenant as it was; answers with the error, and whether what was to go wrong did. */
const REFUSALS: readonly {
  readonly name: string;
  readonly code: ErrorCode | 'AbortError';
  run(node: Node, files: { plain: string; own: string; root: string }): Promise<unknown>;
}[] = [
  {
    name: 'a file that is none of SQLite',
    code: 'IMPORT_REFUSED',
    run: (node, { root }) => node.tenants.replace('acme', join(root, 'absent.sqlite')),
  },
  {
    name: 'a schema that cannot be replicated',
    code: 'IMPORT_REFUSED',
    run: (node, { root }) => {
      const file = join(root, 'keyless.sqlite');
      const db = new DatabaseSync(file);
      db.exec('create table t (a)');
      db.close();
      return node.tenants.replace('acme', file);
    },
  },
  {
    name: 'the same twice at once',
    code: 'TENANT_BUSY',
    run: async (node, { plain, own }) => {
      const stop = new AbortController();
      const first = node.tenants.replace('acme', plain, { signal: stop.signal });
      const second = node.tenants.replace('acme', own).finally(() => stop.abort());
      await assert.rejects(first, { name: 'AbortError' });
      await second;
    },
  },
  ...['copying rows of item', 'creating triggers', 'replacing the content'].map((at) => ({
    name: `given up at: ${at}`,
    code: 'AbortError' as const,
    run: (node: Node, { plain }: { plain: string }) => {
      const stop = new AbortController();
      return node.tenants.replace('acme', plain, {
        signal: stop.signal,
        onProgress: ({ phase }) => phase === at && stop.abort(),
      });
    },
  })),
  {
    name: 'no tenant of this name',
    code: 'TENANT_NOT_FOUND',
    run: (node, { plain }) => node.tenants.replace('nobody', plain),
  },
  {
    name: 'a name that no user can give',
    code: 'INVALID_ARGUMENT',
    run: (node, { plain }) => node.tenants.replace('\u00011', plain),
  },
  {
    name: 'schema version 0',
    code: 'INVALID_ARGUMENT',
    run: (node, { plain }) => node.tenants.replace('acme', plain, { schemaVersion: 0 }),
  },
];

for (const { name, code, run } of REFUSALS)
  test(`refused, with the tenant as it was: ${name}`, async (t) => {
    const { dir, root, plain, own } = await prepare(t);
    await using node = await open(dir);
    await assert.rejects(run(node, { plain, own, root }), (error) => {
      const found =
        error instanceof Error && 'code' in error && code !== 'AbortError' ? error.code : (error as Error).name;
      assert.equal(found, code, String(error));
      return true;
    });
    assert.deepEqual(await bodiesOf(node.tenant('acme')), ['after']);
    assert.deepEqual(readdirSync(join(dir, 'tenants')).toSorted(), ['tenant_1', 'tenant_2'], 'nothing is left');
    await node.tenants.replace('acme', own);
    assert.deepEqual(await bodiesOf(node.tenant('acme')), ['answered', 'before'], 'it can be done afterwards');
    assert.deepEqual((await node.verify()).problems, []);
  });

test('dropped meanwhile: the tenant is gone, and what was to replace it', async (t) => {
  const { dir, plain } = await prepare(t);
  await using node = await open(dir);
  let dropping: Promise<void> | undefined;
  const replacing = node.tenants.replace('acme', plain, {
    onProgress: ({ phase }) => {
      if (phase === 'creating triggers') dropping = node.tenants.drop('acme');
    },
  });
  await assert.rejects(replacing, refuses('TENANT_NOT_FOUND'));
  await dropping;
  assert.deepEqual(readdirSync(join(dir, 'tenants')), ['tenant_2']);
});

/** Where a process is killed, and whether the record was committed by then. */
const KILLS: readonly (readonly [step: string, outcome: 'as it was' | 'replaced'])[] = [
  ['checking the file', 'as it was'],
  ['half of the rows are copied', 'as it was'],
  ['creating triggers', 'as it was'],
  ['replacing the content', 'as it was'],
  ['the record is committed', 'replaced'],
  ['the old files are gone', 'replaced'],
];

for (const [step, outcome] of KILLS)
  test(`kill -9 at: ${step}; then the tenant is ${outcome}`, { timeout: 120_000 }, async (t) => {
    const { dir, own } = await prepare(t, 3_000);
    const script = fileURLToPath(new URL('tenant-reset-child.fixture.ts', import.meta.url));
    const child = spawn(process.execPath, [script, dir, own, step], { stdio: 'inherit' });
    const [, signal] = (await once(child, 'exit')) as [number | null, string | null];
    assert.equal(signal, 'SIGKILL', 'it was killed there');
    await using node = await open(dir);
    const acme = node.tenant('acme');
    assert.deepEqual(await bodiesOf(acme), outcome === 'replaced' ? ['answered', 'before'] : ['after']);
    const isClean = (): boolean => readdirSync(join(dir, 'tenants')).length === 2;
    for (let waits = 0; !isClean(); waits += 1) {
      assert.ok(waits < 500, `left: ${readdirSync(join(dir, 'tenants')).join(', ')}`);
      await new Promise((resolve) => void setTimeout(resolve, 10));
    }
    assert.equal(existsSync(tenantPath(dir, (await node.tenants.get('acme'))!.id)), true);
    await insert(acme, 'later');
    assert.deepEqual((await node.verify()).problems, []);
    await node.tenants.replace('acme', own);
    assert.deepEqual(await bodiesOf(acme), ['answered', 'before']);
  });

test('a full disk: the tenant is as it was, and others go on', { skip: mountRefusal() ?? false }, async (t) => {
  const root = temporary(t);
  using disk = mountSmall(24 * 1024 * 1024);
  const big = join(root, 'big.sqlite');
  {
    const db = new DatabaseSync(big);
    db.exec('create table item (id integer primary key, body text)');
    db.prepare(
      'with recursive n (i) as (values (1) union all select i + 1 from n where i < 4000) insert into item select i, hex(randomblob(5000)) from n',
    ).run();
    db.close();
  }
  const limits = { segmentBytesMax: 2 * 1024 * 1024, recordBytesMax: 1024 * 1024, logRetainBytes: 2 * 1024 * 1024 };
  await using node = await open(join(disk.dir, 'node'), { limits });
  const acme = await fill(node, 'acme', 10, 'before');
  await assert.rejects(node.tenants.replace('acme', big), refuses('DISK_FULL'));
  assert.deepEqual(await bodiesOf(acme), ['before']);
  for (let tries = 0; ; tries += 1) {
    const done = await insert(acme, 'after').then(
      () => true,
      (error: unknown) => refuses('DISK_FULL')(error) && false,
    );
    if (done) break;
    assert.ok(tries < 100, 'there is room again');
    await new Promise((resolve) => void setTimeout(resolve, 100));
  }
  assert.deepEqual(await bodiesOf(acme), ['after', 'before']);
});

test('a node that is copied while a tenant is replaced, and after, has the same', { timeout: 60_000 }, async (t) => {
  const { root, dir, own } = await prepare(t, 3_000);
  await using node = await open(dir, { listen: { port: 0 } });
  const copies: Promise<unknown>[] = [];
  const copy = (name: string): Promise<unknown> => restoreNode({ dir: join(root, name), from: [node.address!] });
  await node.tenants.replace('acme', own, {
    onProgress: ({ phase }) => {
      if (phase === 'creating triggers') copies.push(copy('meanwhile'));
    },
  });
  await Promise.all(copies);
  await copy('after');
  const { fingerprint } = await node.tenant('acme').status();
  {
    await using after = await open(join(root, 'after'));
    assert.equal((await after.tenant('acme').status()).fingerprint, fingerprint);
    assert.deepEqual((await after.verify()).problems, []);
  }
  assert.equal(copies.length, 1);
  await using meanwhile = await open(join(root, 'meanwhile'));
  const bodies = await bodiesOf(meanwhile.tenant('acme'));
  assert.ok(
    [['after'], ['answered', 'before']].some((one) => one.join() === bodies.join()),
    String(bodies),
  );
  assert.deepEqual((await meanwhile.verify()).problems, []);
});

test('from outside, by name', async (t) => {
  const { dir, own } = await prepare(t);
  await using node = await open(dir);
  const context = { signal: new AbortController().signal, onProgress: () => {}, emit: async () => {} };
  const input = { tenant: 'acme', file: own, at: formatPosition(await node.tenant('acme').position()) };
  const report = await runOperation(node, { name: 'tenant.replace', input }, context);
  assert.equal(report.rows, 21);
  assert.match(report.position, /^[0-9a-f]{32}/);
});
