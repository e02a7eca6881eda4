import assert from 'node:assert/strict';
import { once } from 'node:events';
import { lstat, mkdir, mkdtemp, readdir, rm, stat } from 'node:fs/promises';
import { createServer, request } from 'node:http';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { NostosError, isNostosError } from '../base/errors.ts';
import { callAdmin, isServed, serveAdmin, type AdminSocket } from './admin-socket.ts';
import type { Node, Progress, TenantInfo } from './types.ts';

const LIMITS = { requestBytesMax: 1_000, adminConnectionsMax: 4 };

async function directory(t: TestContext): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), 'nostos-test-'));
  t.after(() => rm(dir, { recursive: true, force: true }));
  return dir;
}

async function serve(t: TestContext, dir: string, node: object): Promise<AdminSocket> {
  const admin = await serveAdmin({ node: node as Node, path: join(dir, 'admin.sock'), limits: LIMITS });
  t.after(() => admin.close());
  return admin;
}

/** A node whose verify runs until it is cancelled. */
function endlessNode(): { node: object; started: Promise<void>; cancelled: Promise<unknown> } {
  const started = Promise.withResolvers<void>();
  const cancelled = Promise.withResolvers<unknown>();
  const verify = ({ signal }: { signal: AbortSignal }): Promise<never> =>
    new Promise((_resolve, reject) => {
      started.resolve();
      signal.addEventListener('abort', () => {
        cancelled.resolve(signal.reason);
        reject(signal.reason as Error);
      });
    });
  return { node: { verify }, started: started.promise, cancelled: cancelled.promise };
}

test('a call brings progress, then its result, with integers and bytes whole', async (t) => {
  const dir = await directory(t);
  const rows = [{ id: 2n ** 60n, body: new Uint8Array([0, 255]), small: 7 }];
  const query = () => Promise.resolve(rows);
  const exportFile = (file: string, { onProgress }: { onProgress: (progress: Progress) => void }) => {
    for (let done = 0; done <= 1_000; done++) onProgress({ phase: 'copying', done, total: 1_000, unit: 'rows' });
    return Promise.resolve({
      tenant: 'acme',
      file,
      bytes: 1,
      position: { generation: 'a'.repeat(32), term: 1, lsn: 2 },
    });
  };
  await serve(t, dir, { tenant: () => ({ query, exportFile }) });

  const result = await callAdmin(dir, { name: 'sql.query', input: { tenant: 'acme', sql: 'select * from t' } });
  assert.deepEqual(result, [{ verb: 'SELECT', rows }]);

  const seen: Progress[] = [];
  const report = await callAdmin(
    dir,
    { name: 'export', input: { tenant: 'acme', file: '/x' } },
    { onProgress: (progress) => seen.push(progress) },
  );
  assert.equal(report.position, `${'a'.repeat(32)}:1:2`);
  assert.equal(seen.at(-1)?.done, 1_000);
  assert.ok(seen.length < 100, `progress is thinned out, got ${seen.length} lines`);
});

test('errors keep code, message and details; a bad input never reaches the node', async (t) => {
  const dir = await directory(t);
  const list = (): Promise<readonly TenantInfo[]> =>
    Promise.reject(new NostosError('DISK_FULL', 'no space on /data', { details: { free: 0 } }));
  await serve(t, dir, { tenants: { count: () => Promise.resolve(0), list } });

  await assert.rejects(callAdmin(dir, { name: 'tenant.list', input: {} }), (error: unknown) => {
    assert.ok(isNostosError(error, 'DISK_FULL'));
    assert.equal(error.message, 'no space on /data');
    assert.deepEqual(error.details, { free: 0 });
    return true;
  });
  const wrong = { name: 'tenant.list', input: { limit: -1 } } as const;
  await assert.rejects(callAdmin(dir, wrong), (error) => isNostosError(error, 'INVALID_ARGUMENT'));
  const unknown = { name: 'tenant.explode' as 'tenant.list', input: {} };
  await assert.rejects(callAdmin(dir, unknown), (error) => isNostosError(error, 'INVALID_ARGUMENT'));
});

test('a request beyond requestBytesMax is refused', async (t) => {
  const dir = await directory(t);
  await serve(t, dir, {});
  const call = { name: 'sql.query', input: { tenant: 'acme', sql: 'x'.repeat(2_000) } } as const;
  await assert.rejects(callAdmin(dir, call), (error) => isNostosError(error, 'FRAME_TOO_LARGE'));
});

test('a client that aborts cancels the operation, one that vanishes too', async (t) => {
  const dir = await directory(t);
  const first = endlessNode();
  const admin = await serve(t, dir, first.node);
  const abort = new AbortController();
  const call = callAdmin(dir, { name: 'verify', input: {} }, { signal: abort.signal });
  await first.started;
  const reason = new Error('enough');
  abort.abort(reason);
  await assert.rejects(call, (error) => error === reason);
  assert.ok(isNostosError(await first.cancelled, 'CLOSED'));
  await admin.close();

  const second = endlessNode();
  await serve(t, dir, second.node);
  const outgoing = request({ socketPath: join(dir, 'admin.sock'), path: '/operations/verify', method: 'POST' });
  outgoing.on('error', () => {});
  outgoing.end('{}');
  await second.started;
  outgoing.destroy();
  assert.ok(isNostosError(await second.cancelled, 'CLOSED'));
});

test('closing cancels what runs and removes the socket', async (t) => {
  const dir = await directory(t);
  const endless = endlessNode();
  const admin = await serve(t, dir, endless.node);
  const call = callAdmin(dir, { name: 'verify', input: {} });
  const failed = assert.rejects(call, (error) => isNostosError(error, 'CLOSED'));
  await endless.started;
  await admin.close();
  await admin.close();
  await failed;
  assert.deepEqual(await readdir(dir), []);
  assert.equal(await isServed(dir), false);
  await assert.rejects(callAdmin(dir, { name: 'status', input: {} }), (error) => isNostosError(error, 'CLOSED'));
});

test('the socket is its owner’s only and replaces the one of a crashed process', async (t) => {
  const dir = await directory(t);
  await serve(t, dir, { status: () => Promise.resolve({ role: 'replica' }) });
  await serve(t, dir, { status: () => Promise.resolve({ role: 'primary' }) });
  const { mode } = await stat(join(dir, 'admin.sock'));
  assert.equal(mode & 0o777, 0o600);
  assert.deepEqual(await readdir(dir), ['admin.sock']);
  const status = await callAdmin(dir, { name: 'status', input: {} });
  assert.equal(status.role, 'primary');
});

test('a path too long for a socket becomes a link to a private socket, also over a stale one', async (t) => {
  const dir = join(await directory(t), 'd'.repeat(90));
  await mkdir(dir);
  const node = { status: () => Promise.resolve({ role: 'primary' }) };
  const stale = await serve(t, dir, node);
  const admin = await serve(t, dir, node);
  assert.ok((await lstat(admin.path)).isSymbolicLink());
  assert.equal((await callAdmin(dir, { name: 'status', input: {} })).role, 'primary');
  await admin.close();
  await stale.close();
  assert.equal(dirname(admin.path), dir);
  assert.deepEqual(await readdir(dir), []);
});

test('connections beyond adminConnectionsMax are told so', async (t) => {
  const dir = await directory(t);
  await serve(t, dir, { status: () => Promise.resolve({ role: 'primary' }) });
  const idle = Array.from({ length: LIMITS.adminConnectionsMax }, () => connect(join(dir, 'admin.sock')));
  t.after(() => idle.forEach((socket) => socket.destroy()));
  await Promise.all(idle.map((socket) => once(socket, 'connect')));
  await assert.rejects(callAdmin(dir, { name: 'status', input: {} }), (error) => isNostosError(error, 'QUEUE_FULL'));
});

test('a connection that breaks during a change leaves its outcome unknown', async (t) => {
  const dir = await directory(t);
  const server = createServer((_request, response) => {
    response.writeHead(200);
    response.write('{"progress":{"phase":"x","done":0,"unit":"rows"}}\n', () => response.destroy());
  });
  server.listen(join(dir, 'admin.sock'));
  t.after(() => server.close());
  await once(server, 'listening');
  const call = { name: 'sql.execute', input: { tenant: 'acme', sql: 'delete from t' } } as const;
  await assert.rejects(callAdmin(dir, call), (error) => isNostosError(error, 'OUTCOME_UNKNOWN'));
});
