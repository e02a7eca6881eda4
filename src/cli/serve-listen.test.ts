import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable } from 'node:stream';
import { test } from 'node:test';
import { writeMarker } from '../restore/local/marker.ts';
import { systemDisk } from '../base/disk.ts';
import { toClusterId, toGeneration, toNodeId, toStoreId } from '../base/brands.ts';
import { openNode } from '../index.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { ENTRY, nostos, temporaryDirectory } from './nostos-process.fixture.ts';

async function listeningAt(stdout: Readable): Promise<string> {
  for await (const line of createInterface({ input: stdout })) {
    const address = /other nodes +(\S+): /.exec(line)?.[1];
    if (address !== undefined) return address;
  }
  return assert.fail('it does not listen');
}

test('serve --listen lets another node copy this one; the copy says what it is', async (t) => {
  const cwd = await temporaryDirectory(t);
  const args = [ENTRY, 'serve', '--dir', 'a', '--port', '0', '--listen', '127.0.0.1:0'];
  const child = spawn(process.execPath, args, { cwd, stdio: ['ignore', 'pipe', 'inherit'] });
  t.after(() => child.kill('SIGKILL'));
  const address = await listeningAt(child.stdout);
  assert.match(address, /^127\.0\.0\.1:\d+$/);
  assert.match((await nostos(cwd, ['status', '--dir', 'a'])).stdout, new RegExp(`other nodes +${address}; 0 copying`));
  const restored = await nostos(cwd, ['restore', '--from', address, '--dir', 'b']);
  assert.equal(restored.code, 0, restored.stderr);
  child.kill('SIGTERM');
  await once(child, 'exit');
  assert.match((await nostos(cwd, ['status', '--dir', 'b'])).stdout, /copy +of (?:store [0-9a-f]{32}|another node)/);
  const refused = await nostos(cwd, ['tenant', 'create', 'acme', '--dir', 'b']);
  assert.equal(refused.code, EXIT_CODES.retry[0], refused.stderr);
  assert.match(refused.stderr, /NOT_PRIMARY/);
});

test('serve --copy-rate: a copy takes no more than that per second, whatever it asks for', async (t) => {
  const cwd = await temporaryDirectory(t);
  const rate = 64 * 1024;
  await using node = await openNode({
    dir: join(cwd, 'a'),
    listen: { port: 0, rateBytesPerSecond: rate },
  });
  const tenant = await node.tenants.create('t');
  await tenant.migrate(['create table noise (id integer primary key not null, bytes blob not null)']);
  const bytes = 100_000;
  await tenant.write((tx) => tx.run('insert into noise values (1, ?)', [randomBytes(bytes)]));
  const startedMs = performance.now();
  const restored = await nostos(cwd, ['restore', '--from', node.address!, '--dir', 'b', '--rate', '10M']);
  assert.equal(restored.code, 0, restored.stderr);
  // In the log and in the file of the tenant; a tenth of a second of the rate may leave at once.
  assert.ok(performance.now() - startedMs > ((2 * bytes) / rate - 0.1) * 1000);
  const misplaced = await nostos(cwd, ['serve', '--port', '0', '--copy-rate', '1M']);
  assert.equal(misplaced.code, EXIT_CODES.usage[0]);
  assert.match(misplaced.stderr, /--copy-rate is for --listen/);
  await assert.rejects(openNode({ dir: join(cwd, 'c'), listen: { port: 0, rateBytesPerSecond: 1 } }), {
    code: 'INVALID_ARGUMENT',
  });
});

test('serve --tls-dir refuses certificates that no other node would accept, and lists who may copy', async (t) => {
  const cwd = await temporaryDirectory(t);
  const run = async (...args: string[]) => nostos(cwd, args);
  const [other, peer] = ['4'.repeat(32), '5'.repeat(32)];
  const serve = (...args: string[]) => run('serve', '--dir', 'a', '--port', '0', '--listen', '127.0.0.1:0', ...args);
  await run('tenant', 'create', 'acme', '--dir', 'a');
  await run('certs', 'init', '--out', 'ca', '--dir', 'a');
  await run('certs', 'init', '--out', 'no-cluster');
  const { node } = JSON.parse((await run('status', '--dir', 'a', '--json')).stdout) as { node: string };
  await run('certs', 'node', '--ca', 'ca', '--node', other, '--out', 'other-node');
  await run('certs', 'node', '--ca', 'no-cluster', '--node', node, '--out', 'no-cluster-tls');
  await run('certs', 'node', '--ca', 'ca', '--dir', 'a', '--host', '127.0.0.1', '--out', 'right');
  for (const [args, says] of [
    [['--tls-dir', 'other-node'], /names node 4{32}; this is [0-9a-f]{32}/],
    [['--tls-dir', 'no-cluster-tls'], /names no cluster/],
  ] as const) {
    const refused = await serve(...args);
    assert.equal(refused.code, EXIT_CODES.usage[0], refused.stderr);
    assert.match(refused.stderr, says);
    assert.match(refused.stderr, /nostos certs node --ca \S.* --dir a --host/);
  }
  assert.match((await serve('--allow-node', peer)).stderr, /needs --tls-dir/);
  assert.equal((await serve('--tls-dir', 'right', '--allow-node', 'x')).code, EXIT_CODES.usage[0]);

  await run('certs', 'node', '--ca', 'ca', '--node', peer, '--out', 'peer');
  const args = [ENTRY, 'serve', '--dir', 'a', '--port', '0', '--listen', '127.0.0.1:0', '--tls-dir', 'right'];
  const child = spawn(process.execPath, [...args, '--allow-node', peer], { cwd, stdio: ['ignore', 'pipe', 'inherit'] });
  t.after(() => child.kill('SIGKILL'));
  const address = await listeningAt(child.stdout);
  const restore = (tls: string) => run('restore', '--from', address, '--dir', `copy-${tls}`, '--tls-dir', tls);
  assert.notEqual((await restore('other-node')).code, 0);
  const copied = await restore('peer');
  assert.equal(copied.code, 0, copied.stderr);
});

test('serve refuses to listen where others could hear, and a verb refuses a directory whose restore is unfinished', async (t) => {
  const cwd = await temporaryDirectory(t);
  const open = await nostos(cwd, ['serve', '--port', '0', '--listen', '0.0.0.0:0']);
  assert.equal(open.code, EXIT_CODES.usage[0]);
  assert.match(open.stderr, /TLS/);
  assert.equal((await nostos(cwd, ['serve', '--port', '0', '--tls-dir', '.'])).code, EXIT_CODES.usage[0]);
  assert.equal((await nostos(cwd, ['serve', '--port', '0', '--listen', 'nowhere'])).code, EXIT_CODES.usage[0]);

  const dir = join(cwd, 'marked');
  systemDisk.makeDirectory(dir);
  const history = { cluster: toClusterId('2'.repeat(32)), generation: toGeneration('3'.repeat(32)) };
  writeMarker(systemDisk, dir, {
    run: '1'.repeat(32),
    startedAt: '2026-01-01T00:00:00.000Z',
    sources: ['10.0.0.1:4041'],
    history,
    identity: { node: toNodeId('4'.repeat(32)), store: toStoreId('5'.repeat(32)), ...history },
    phase: 'fetching',
  });
  const marked = await nostos(cwd, ['status', '--dir', 'marked']);
  assert.notEqual(marked.code, 0);
  assert.match(marked.stderr, /RESTORE_UNFINISHED/);
  assert.match(marked.stderr, /--abandon/);
});
