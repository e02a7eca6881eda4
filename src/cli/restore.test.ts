import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { isNostosError } from '../base/errors.ts';
import { openNode } from '../node/open-node.ts';
import type { Node } from '../node/types.ts';
import { createNodeCertificate } from '../wire/certificates.ts';
import { readTlsIdentity } from '../wire/tls-files.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { ENTRY, inProcess, temporaryDirectory, type Ended } from './nostos-process.fixture.ts';

const TENANTS = ['acme', 'globex'];
const MiB = 2 ** 20;

/** A node with a few megabytes that no compression makes small, served on loopback. */
async function source(t: TestContext, cwd: string, options: { readonly small?: boolean } = {}): Promise<Node> {
  const node = await openNode({
    dir: join(cwd, `source-${Math.random().toString(36).slice(2)}`),
    listen: { host: '127.0.0.1', port: 0 },
    scrubIntervalMs: false,
  });
  t.after(() => node.close());
  for (const name of TENANTS) {
    const tenant = await node.tenants.create(name);
    await tenant.migrate(['create table note (id integer primary key not null, body blob)']);
    for (let i = 0; i < 4; i++)
      await tenant.write((tx) =>
        tx.run(`with recursive n(i) as (select 1 union all select i + 1 from n where i < ${options.small ? 1 : 50})
          insert into note (body) select randomblob(10000) from n`),
      );
  }
  return node;
}

async function restore(cwd: string, ...args: readonly string[]): Promise<Ended> {
  return inProcess(cwd, ['restore', '--dir', 'copy', ...args]);
}

interface Report {
  readonly resumed: string;
  readonly setAside: string | null;
  readonly identity: { readonly store: string; readonly node: string };
  readonly fetched: { readonly bytes: number; readonly bytesOnWire: number; readonly bytesReused: number };
}

async function restored(cwd: string, ...args: readonly string[]): Promise<Report> {
  const ended = await restore(cwd, ...args, '--json');
  assert.equal(ended.code, EXIT_CODES.ok[0], ended.stderr);
  return JSON.parse(ended.stdout) as Report;
}

async function fingerprints(node: Node): Promise<Record<string, string>> {
  const all: Record<string, string> = {};
  for (const { name } of await node.tenants.list()) all[name] = (await node.tenant(name).status()).fingerprint;
  return all;
}

async function assertCopyOf(cwd: string, node: Node): Promise<void> {
  const copy = await openNode({ dir: join(cwd, 'copy'), scrubIntervalMs: false });
  try {
    assert.equal((await copy.status()).role, 'copy');
    assert.deepEqual(await fingerprints(copy), await fingerprints(node));
    await assert.rejects(
      copy.tenant('acme').write((tx) => tx.run('delete from note')),
      (error: unknown) => isNostosError(error, 'NOT_PRIMARY'),
    );
  } finally {
    await copy.close();
  }
}

/** Starts a slow restore and ends it with `signal` once about `share` of it is staged. */
async function cutOff(
  cwd: string,
  node: Node,
  { signal, rate = '2M' }: { readonly signal: 'SIGKILL' | 'SIGINT'; readonly rate?: string },
): Promise<Ended & { readonly signal: string | null }> {
  const child = spawn(process.execPath, [ENTRY, 'restore', '--dir', 'copy', '--from', node.address!, '--rate', rate], {
    cwd,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const output = Promise.all([text(child.stdout), text(child.stderr)]);
  const exited = once(child, 'exit') as Promise<[number | null, string | null]>;
  const staged = join(cwd, 'copy', 'restore', 'tenants');
  while (!existsSync(staged) && child.exitCode === null) await sleep(20);
  await sleep(1_000);
  child.kill(signal);
  const [code, by] = await exited;
  const [stdout, stderr] = await output;
  return { code, signal: by, stdout, stderr };
}

test('a terminal shows a bar, how far it is, how fast, and how long it will take', async (t) => {
  const cwd = await temporaryDirectory(t);
  const node = await source(t, cwd);
  const args = ['restore', '--dir', 'copy', '--from', node.address!, '--rate', '4M'];
  const { code, stderr } = await inProcess(cwd, args, true);
  assert.equal(code, EXIT_CODES.ok[0], stderr);
  const drawn = stderr.split('\r\u001B[2K');
  const shown = drawn.flatMap((line) => {
    const found = /^(█*)░* fetching tenants, [\d.]+ [KM]iB\/s, \d\S* m?s left: (\d+) % of \d/.exec(line);
    return found === null ? [] : [{ cells: found[1]!.length, percent: Number(found[2]) }];
  });
  assert.ok(shown.length > 3, stderr);
  for (const { cells, percent } of shown) assert.ok(Math.abs((cells / 24) * 100 - percent) < 4, `${cells}, ${percent}`);
  assert.ok(shown.at(-1)!.percent > shown[0]!.percent);
  assert.equal(drawn.at(-1), '', 'the bar is gone at the end');
});

test('a dry run prints the plan and changes nothing; then a copy is made, and made again with what is there', async (t) => {
  const cwd = await temporaryDirectory(t);
  const node = await source(t, cwd);
  const from = ['--from', node.address!];

  const dry = await restore(cwd, ...from, '--dry-run');
  assert.equal(dry.code, EXIT_CODES.ok[0], dry.stderr);
  assert.match(dry.stdout, /whole copy +\d+\.\d MiB in 3 files and the log/);
  assert.match(dry.stdout, /set aside +nothing: there is no data/);
  assert.equal(existsSync(join(cwd, 'copy')), false);

  const first = await restored(cwd, ...from);
  assert.equal(first.setAside, null);
  assert.ok(first.fetched.bytes > 7 * MiB, JSON.stringify(first));
  await assertCopyOf(cwd, node);

  await node.tenant('acme').write((tx) => tx.run('insert into note (body) values (randomblob(100))'));
  const plan = JSON.parse((await restore(cwd, ...from, '--dry-run', '--json')).stdout) as {
    reusable: { bytes: number };
    setAside: { names: string[] };
  };
  assert.ok(plan.reusable.bytes > 7 * MiB, JSON.stringify(plan));
  assert.deepEqual(plan.setAside.names, ['catalog.sqlite', 'log', 'node.json', 'tenants']);
  const second = await restored(cwd, ...from);
  assert.ok(second.fetched.bytesOnWire < MiB / 4, `${second.fetched.bytesOnWire} bytes on the wire`);
  assert.equal(second.identity.node, first.identity.node, 'the node id is kept');
  assert.notEqual(second.identity.store, first.identity.store, 'the store is another one');
  assert.equal(second.setAside, 'set-aside.1');
  await assertCopyOf(cwd, node);

  const third = await restored(cwd, ...from, '--discard');
  assert.equal(third.setAside, null);
  assert.deepEqual(readdirSync(join(cwd, 'copy')).toSorted(), [
    'catalog.sqlite',
    'lock',
    'log',
    'node.json',
    'set-aside.1',
    'tenants',
  ]);
});

test('a destroyed directory is brought back; the ruins are set aside', async (t) => {
  const cwd = await temporaryDirectory(t);
  const node = await source(t, cwd, { small: true });
  await restored(cwd, '--from', node.address!);
  rmSync(join(cwd, 'copy', 'log'), { recursive: true });
  writeFileSync(join(cwd, 'copy', 'catalog.sqlite'), 'no database');
  writeFileSync(join(cwd, 'copy', 'notes of the owner'), 'stay');
  const report = await restored(cwd, '--from', node.address!);
  assert.equal(report.setAside, 'set-aside.1');
  assert.deepEqual(readdirSync(join(cwd, 'copy', 'set-aside.1')).toSorted(), [
    'catalog.sqlite',
    'node.json',
    'tenants',
  ]);
  assert.ok(existsSync(join(cwd, 'copy', 'notes of the owner')));
  await assertCopyOf(cwd, node);
});

test('Ctrl-C leaves a run that resumes, and says so', async (t) => {
  const cwd = await temporaryDirectory(t);
  const node = await source(t, cwd);
  const cut = await cutOff(cwd, node, { signal: 'SIGINT' });
  assert.ok(
    cut.code === EXIT_CODES.interrupted[0] || cut.signal === 'SIGINT',
    `${cut.code} ${cut.signal} ${cut.stderr}`,
  );
  assert.match(cut.stderr, /What was fetched is kept.*the same command goes on, --abandon gives up/);
  const dry = await restore(cwd, '--dry-run');
  assert.match(dry.stdout, /fetched already +\d/, dry.stderr);
  const report = await restored(cwd);
  assert.equal(report.resumed, 'fetching');
  assert.ok(report.fetched.bytesReused > MiB / 2, JSON.stringify(report));
  await assertCopyOf(cwd, node);
});

test('after kill -9 nobody opens the directory; giving up brings the former state back, resuming ends it', async (t) => {
  const cwd = await temporaryDirectory(t);
  const [before, node] = [await source(t, cwd, { small: true }), await source(t, cwd)];
  await restored(cwd, '--from', before.address!);

  const cut = await cutOff(cwd, node, { signal: 'SIGKILL' });
  assert.equal(cut.signal, null, cut.stderr); // another cluster: refused before anything was changed
  assert.equal(cut.code, EXIT_CODES.failed[0]);
  assert.match(cut.stderr, /belongs to cluster [0-9a-f]{32}.*--replace.*\[DIRECTORY_FOREIGN\]/);
  await assertCopyOf(cwd, before);

  const slow = ['--from', node.address!, '--replace', '--rate', '1M'];
  for (const how of ['abandon', 'resume'] as const) {
    const child = spawn(process.execPath, [ENTRY, 'restore', '--dir', 'copy', ...slow], { cwd, stdio: 'ignore' });
    const exited = once(child, 'exit');
    while (!existsSync(join(cwd, 'copy', 'restore', 'tenants')) && child.exitCode === null) await sleep(20);
    const second = await restore(cwd, ...slow);
    assert.equal(second.code, EXIT_CODES.retry[0], 'two restores into one directory');
    assert.match(second.stderr, /DIRECTORY_LOCKED/);
    child.kill('SIGKILL');
    await exited;
    await assert.rejects(openNode({ dir: join(cwd, 'copy') }), (error: unknown) =>
      isNostosError(error, 'RESTORE_UNFINISHED'),
    );
    const other = await restore(cwd, '--from', before.address!, '--replace');
    assert.match(other.stderr, /RESTORE_UNFINISHED|serves cluster/, 'another source does not go on with it');
    if (how === 'abandon') {
      const given = await restore(cwd, '--abandon');
      assert.equal(given.code, EXIT_CODES.ok[0], given.stderr);
      await assertCopyOf(cwd, before);
    } else {
      assert.equal((await restored(cwd, '--replace')).resumed, 'fetching');
      await assertCopyOf(cwd, node);
    }
  }
});

test('of several sources one that is away is passed over', async (t) => {
  const cwd = await temporaryDirectory(t);
  const node = await source(t, cwd, { small: true });
  const ended = await restore(cwd, '--from', '127.0.0.1:1', '--from', node.address!);
  assert.equal(ended.code, EXIT_CODES.ok[0], ended.stderr);
  assert.match(ended.stderr, /not from 127\.0\.0\.1:1: /);
  await assertCopyOf(cwd, node);
});

const REFUSED: readonly {
  readonly args: readonly string[];
  readonly exit: keyof typeof EXIT_CODES;
  readonly says: RegExp;
}[] = [
  { args: [], exit: 'usage', says: /not said where.*\n.*--from host:port/ },
  { args: ['--from', 'file:nowhere'], exit: 'notFound', says: /no backup repository/ },
  { args: ['--from', 'nowhere'], exit: 'usage', says: /nowhere/ },
  { args: ['--from', '127.0.0.1:1'], exit: 'retry', says: /127\.0\.0\.1:1/ },
  { args: ['--from', '127.0.0.1:1', '--rate', 'fast'], exit: 'usage', says: /500K or 20M/ },
  { args: ['--from', '127.0.0.1:1', '--rate', '1K'], exit: 'usage', says: /16K at least/ },
  { args: ['--from', '127.0.0.1:1', '--connections', '0'], exit: 'usage', says: /1 to 16/ },
  { args: ['--abandon'], exit: 'usage', says: /no unfinished restore/ },
  { args: ['--abandon', '--discard'], exit: 'usage', says: /say it alone/ },
  { args: ['--from', '127.0.0.1:1', '--tls-dir', 'nowhere'], exit: 'usage', says: /nostos certs/ },
];

test('a wrong command line changes nothing and says what to do', async (t) => {
  const cwd = await temporaryDirectory(t);
  for (const { args, exit, says } of REFUSED) {
    const ended = await inProcess(cwd, ['restore', '--dir', 'copy', ...args]);
    assert.equal(ended.code, EXIT_CODES[exit][0], `${args.join(' ')}: ${ended.stderr}`);
    assert.match(ended.stderr, says);
    const left = existsSync(join(cwd, 'copy')) ? readdirSync(join(cwd, 'copy')) : [];
    assert.deepEqual(
      left.filter((name) => name !== 'lock'),
      [],
      args.join(' '),
    );
  }
});

test('a node does not restore from itself', async (t) => {
  const cwd = await temporaryDirectory(t);
  const node = await source(t, cwd, { small: true });
  const ended = await inProcess(cwd, ['restore', '--dir', node.dir, '--from', node.address!]);
  assert.notEqual(ended.code, EXIT_CODES.ok[0]);
  assert.match(ended.stderr, /DIRECTORY_LOCKED|itself/);
});

test('with certificates: a stranger is refused, and a new directory is the node that its certificate names', async (t) => {
  const cwd = await temporaryDirectory(t);
  const NODE = '7'.repeat(32);
  const run = async (...args: readonly string[]): Promise<Ended> => {
    const ended = await inProcess(cwd, args);
    assert.equal(ended.code, EXIT_CODES.ok[0], ended.stderr);
    return ended;
  };
  await run('tenant', 'create', 'acme', '--dir', 'node');
  await run('certs', 'init', '--out', 'ca', '--dir', 'node');
  await run('certs', 'init', '--out', 'other-ca');
  await run('certs', 'node', '--ca', 'ca', '--dir', 'node', '--host', '127.0.0.1', '--out', 'node-tls');
  await run('certs', 'node', '--ca', 'ca', '--node', NODE, '--out', 'tls');
  await run('certs', 'node', '--ca', 'other-ca', '--node', NODE, '--out', 'stranger-tls');
  const tls = await readTlsIdentity(join(cwd, 'node-tls'));
  const node = await openNode({
    dir: join(cwd, 'node'),
    listen: { host: '127.0.0.1', port: 0, tls },
    scrubIntervalMs: false,
  });
  t.after(() => node.close());

  const of = (name: string): string => readFileSync(join(cwd, name), 'utf8');
  const tenDaysAgo = Date.now() - 10 * 24 * 60 * 60 * 1000;
  const expired = await createNodeCertificate(
    { cert: of('ca/ca.crt'), key: of('ca/ca.key') },
    { node: NODE, hosts: [] },
    { nowMs: tenDaysAgo, days: 1 },
  );
  mkdirSync(join(cwd, 'expired-tls'));
  for (const [file, pem] of Object.entries({ 'ca.crt': of('ca/ca.crt'), 'node.crt': expired.cert }))
    writeFileSync(join(cwd, 'expired-tls', file), pem);
  writeFileSync(join(cwd, 'expired-tls', 'node.key'), expired.key, { mode: 0o600 });

  const from = ['restore', '--dir', 'copy', '--from', node.address!];
  for (const [stranger, says] of [
    [['--tls-dir', 'stranger-tls'], /certificate/],
    [['--tls-dir', 'expired-tls'], /certificate of this node ended on .*nostos certs node/],
    [[], /TLS|closed the connection/],
  ] as const) {
    const ended = await inProcess(cwd, [...from, ...stranger]);
    assert.notEqual(ended.code, EXIT_CODES.ok[0]);
    assert.match(ended.stderr, says);
    assert.deepEqual(readdirSync(join(cwd, 'copy')), ['lock'], 'nothing was changed');
  }
  const report = JSON.parse((await run(...from, '--tls-dir', 'tls', '--json')).stdout) as Report;
  assert.equal(report.identity.node, NODE);
  await assertCopyOf(cwd, node);
});
