/**
 * Restores over real sockets: from a node that listens, into a directory, by the steps that `nostos restore` takes. Each
 * case asserts that what it makes happen did, and what the receiver was told; afterwards a restore ends whole.
 */
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { cpSync, existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import type { Worker } from 'node:worker_threads';
import { HASH_BYTES } from '../base/brands.ts';
import { systemClock } from '../base/clock.ts';
import { systemDisk } from '../base/disk.ts';
import { acquireDirectoryLock } from '../base/directory-lock.ts';
import { isNostosError, type ErrorCode, type NostosError } from '../base/errors.ts';
import { systemRandom } from '../base/random.ts';
import type { FetchProgress } from '../restore/feed.ts';
import { restoreDirectory, type RestoreReport } from '../restore/local/restore-directory.ts';
import { NetworkRestore } from '../restore/reference/network-restore.ts';
import { RestoreClient, requestInfo } from '../restore/stream/client.ts';
import { STREAM_SERVICE_NAME } from '../restore/stream/messages.ts';
import { NODE_A, NODE_B, tlsIdentity } from '../testing/wire.fixture.ts';
import { createAuthority } from '../wire/certificates.ts';
import { connectToService, type ServiceConnectOptions } from '../wire/connect.ts';
import { renderMetrics } from './metrics.ts';
import { nodeFileCodec } from './node-file.ts';
import type { NostosNode } from './node.ts';
import { openNode } from './open-node.ts';
import { SERVING_DIR } from './restore-source.ts';
import { verifyStaged } from './staged-copy.ts';
import type { Migration, Node, NodeOptions } from './types.ts';

const SCHEMA: Migration[] = ['create table rows (id integer primary key, body text)'];
const NAMES = ['a', 'b', 'c', 'd'];

const root = mkdtempSync(join(tmpdir(), 'nostos-network-'));
let directories = 0;
const newDir = (): string => join(root, `dir ${(directories += 1)}`);
const made = newDir();
after(() => rmSync(root, { recursive: true, force: true }));

async function open(dir: string, options: Partial<NodeOptions> = {}): Promise<NostosNode> {
  return (await openNode({ dir, scrubIntervalMs: false, listen: { port: 0 }, ...options })) as NostosNode;
}

/** Of each tenant about 2 MiB, which zstd does not make smaller. */
before(async () => {
  await using node = await open(made);
  for (const name of NAMES) {
    const tenant = await node.tenants.create(name);
    await tenant.migrate(SCHEMA);
    for (let n = 0; n < 20; n += 1)
      await tenant.write((tx) => tx.run('insert into rows (body) values (hex(randomblob(50000)))'));
  }
});

async function source(options: Partial<NodeOptions> = {}): Promise<NostosNode> {
  const dir = newDir();
  cpSync(made, dir, { recursive: true, filter: (path) => !path.endsWith('.sock') });
  return open(dir, options);
}

interface RestoreOptions {
  readonly connect?: ServiceConnectOptions;
  readonly rateBytesPerSecond?: number;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: FetchProgress) => void;
}

function restore(address: string, dir: string, options: RestoreOptions = {}): Promise<RestoreReport> {
  const { connect = {}, rateBytesPerSecond, signal, onProgress } = options;
  return restoreDirectory(
    {
      disk: systemDisk,
      clock: systemClock,
      random: systemRandom,
      identity: nodeFileCodec,
      lock: (lockDir) =>
        acquireDirectoryLock({ dir: lockDir, timeoutMs: 0, holder: { command: 'test', version: '0' } }),
      verify: verifyStaged,
    },
    {
      dir,
      reserveBytes: 0,
      ...(signal === undefined ? {} : { signal }),
      openFeed: async () => {
        const client = await RestoreClient.open({
          connect: (open) => connectToService(address, STREAM_SERVICE_NAME, { ...connect, signal: open }),
          compression: 'off',
          ...(rateBytesPerSecond === undefined ? {} : { rateBytesPerSecond }),
        });
        return {
          sources: [address],
          plan: client.plan,
          fetchAll: (target, fetch = {}) =>
            client.fetchAll(target, {
              ...fetch,
              onProgress: (progress) => {
                fetch.onProgress?.(progress);
                onProgress?.(progress);
              },
            }),
          close: () => client.close(),
        };
      },
    },
  );
}

async function fails(running: Promise<unknown>, code: ErrorCode): Promise<NostosError> {
  let error: unknown;
  await running.catch((thrown: unknown) => (error = thrown));
  assert.ok(isNostosError(error, code), `${code}, not ${String(error)}`);
  return error;
}

const fingerprints = async (node: Node): Promise<unknown> =>
  Promise.all(
    (await node.tenants.list()).map(async ({ name }) => {
      const { fingerprint, tables } = await node.tenant(name).status();
      return { name, fingerprint, tables };
    }),
  );

const insert = (node: Node, name: string, bytes: number): Promise<unknown> =>
  node.tenant(name).write((tx) => tx.run('insert into rows (body) values (?)', ['x'.repeat(bytes)]));

/** Writes until it is stopped; answers with how many writes there were. */
function writeMeanwhile(node: Node, names: readonly string[], bytes: number): () => Promise<number> {
  let [stopped, count] = [false, 0];
  const running = (async () => {
    for (; !stopped; count += 1) {
      await insert(node, names[count % names.length]!, bytes);
      await new Promise((resolve) => void setTimeout(resolve, 1));
    }
  })();
  return async () => {
    stopped = true;
    await running;
    return count;
  };
}

/** The source hears of the end of a session a moment after the receiver. */
async function servesNobody(node: Node): Promise<void> {
  for (const untilMs = performance.now() + 5_000; (await node.status()).serving.length > 0;) {
    assert.ok(performance.now() < untilMs, 'what was held is let go');
    await new Promise((resolve) => void setTimeout(resolve, 10));
  }
}

const MIB = 1024 * 1024;

test('a directory is restored from a node that is written to, and opens as its copy', async () => {
  await using node = await source();
  const stop = writeMeanwhile(node, NAMES, 3_000);
  const dir = newDir();
  let serving = 0;
  const report = await restore(node.address!, dir, {
    onProgress: () => void node.status().then((status) => (serving = Math.max(serving, status.serving.length))),
  });
  assert.ok((await stop()) > 0, 'there were writes');
  assert.equal(serving, 1, 'the status said that it was copied');
  assert.ok(report.fetched!.bytes > 8 * MIB);
  await using copy = await open(dir);
  const { role, store, cluster, copy: origin } = await copy.status();
  assert.equal(role, 'copy');
  assert.equal(cluster, (await node.status()).cluster);
  assert.notEqual(store, (await node.status()).store);
  assert.equal(origin?.reaches?.lsn, report.verified?.lsn);
  assert.ok((await copy.verify()).ok);

  // Once more, now that nothing is written: only what has changed goes over the wire.
  const expected = await fingerprints(node);
  await copy.close();
  const again = await restore(node.address!, dir);
  assert.ok(again.fetched!.bytesReused > 6 * MIB, `${again.fetched!.bytesReused} bytes were there already`);
  await using second = await open(dir);
  assert.deepEqual(await fingerprints(second), expected);

  const third = newDir();
  await restore(second.address!, third);
  await using copyOfCopy = await open(third);
  assert.deepEqual(await fingerprints(copyOfCopy), expected);
});

test('a member says what it is before it is chosen', async () => {
  await using node = await source();
  const { log, node: id, store, cluster } = await node.status();
  const info = await requestInfo({
    connect: (signal) => connectToService(node.address!, STREAM_SERVICE_NAME, { signal }),
  });
  assert.deepEqual(
    { ...info },
    {
      role: 'primary',
      node: id,
      store,
      cluster,
      generation: log.generation,
      term: log.term,
      watermark: log.watermark,
      firstLsn: log.firstLsn,
      sessions: 0,
    },
  );
});

/** Something happens when a part has been fetched; the receiver is told, and the next attempt goes on from there. */
const INTERRUPTIONS: readonly {
  readonly what: string;
  readonly limits?: NonNullable<NodeOptions['limits']>;
  readonly act: (node: NostosNode, abort: AbortController) => Promise<unknown>;
  readonly code: ErrorCode | undefined;
  readonly numbers?: readonly string[];
  /** The attempt after it comes from the node opened anew. */
  readonly reopen?: boolean;
}[] = [
  {
    what: 'the receiver gives up',
    act: async (_, abort) => abort.abort(new Error('enough')),
    code: undefined,
  },
  {
    what: 'the tenants that are sent are written to beyond the limit',
    limits: { restoreHoldBytesMax: MIB },
    act: async (node) => {
      for (const name of NAMES) for (let n = 0; n < 12; n += 1) await insert(node, name, 100_000);
    },
    code: 'RESERVATION_EXPIRED',
    numbers: ['heldBytes', 'limitBytes'],
  },
  {
    what: 'tenants that are sent are dropped',
    act: async (node) => {
      for (const name of NAMES.slice(1)) await node.tenants.drop(name);
    },
    code: 'TENANT_NOT_FOUND',
  },
  { what: 'the node closes', act: (node) => node.close(), code: undefined, reopen: true },
];

for (const { what, limits, act, code, numbers = [], reopen = false } of INTERRUPTIONS)
  test(`a restore is told that ${what}, and the next attempt ends whole`, async () => {
    const options = limits === undefined ? {} : { limits };
    let node = await source(options);
    try {
      const dir = newDir();
      const abort = new AbortController();
      let acting: Promise<unknown> | undefined;
      const failed = restore(node.address!, dir, {
        signal: abort.signal,
        rateBytesPerSecond: 2 * MIB,
        onProgress: ({ bytesDone }) => {
          if (bytesDone > MIB / 2) acting ??= act(node, abort);
        },
      });
      const error = await failed.then(
        () => assert.fail('it must not end'),
        (thrown: unknown) => thrown as NostosError,
      );
      assert.ok(acting !== undefined, 'it happened');
      await acting;
      if (code !== undefined) assert.equal(error.code, code, String(error));
      for (const detail of numbers) assert.equal(typeof error.details[detail], 'number', detail);
      if (reopen) node = await open(node.dir, options);
      await servesNobody(node);
      await assert.rejects(open(dir), (refusal) => isNostosError(refusal, 'RESTORE_UNFINISHED'));

      const report = await restore(node.address!, dir);
      assert.equal(report.resumed, 'fetching');
      assert.ok(report.fetched!.bytesReused > 0, 'what was fetched counts');
      await using copy = await open(dir);
      assert.deepEqual(await fingerprints(copy), await fingerprints(node));
    } finally {
      await node.close();
    }
  });

test('a source that is killed leaves nothing behind, and the restore goes on when it is back', async () => {
  const from = newDir();
  cpSync(made, from, { recursive: true, filter: (path) => !path.endsWith('.sock') });
  const dir = newDir();
  const child = fileURLToPath(new URL('./source-child.fixture.ts', import.meta.url));
  const start = async (): Promise<{ process: ChildProcess; address: string; exited: Promise<unknown> }> => {
    const running = spawn(process.execPath, [child, from], { stdio: ['ignore', 'pipe', 'inherit'] });
    const exited = once(running, 'exit');
    const [line] = (await once(running.stdout, 'data')) as [Buffer];
    return { process: running, address: line.toString().trim(), exited };
  };
  const first = await start();
  let killedAt = 0;
  const failed = restore(first.address, dir, {
    rateBytesPerSecond: 4 * MIB,
    onProgress: ({ bytesDone }) => {
      if (bytesDone > 2 * MIB && killedAt === 0) {
        killedAt = bytesDone;
        first.process.kill('SIGKILL');
      }
    },
  });
  const error = await failed.then(
    () => assert.fail('it must not end'),
    (thrown: unknown) => thrown as NostosError,
  );
  assert.ok(killedAt > 0, 'it was killed');
  assert.equal(error.retry, 'safe', String(error));
  await first.exited;
  assert.ok(existsSync(join(from, SERVING_DIR)), 'it was serving');

  const second = await start();
  const report = await restore(second.address, dir);
  assert.ok(report.fetched!.bytesReused > MIB, `${report.fetched!.bytesReused} bytes were there already`);
  second.process.kill('SIGKILL');
  await second.exited;
  await using node = await open(from);
  assert.deepEqual(
    readdirSync(from).filter((name) => name === SERVING_DIR),
    [],
  );
  await using copy = await open(dir);
  assert.ok((await copy.verify()).ok);
  const { watermark } = (await node.status()).log;
  assert.ok(report.verified!.lsn <= watermark, 'what was copied was committed: the kill took none of it');
});

test('the service of the reference gives the log up to W, without what was only preallocated', async () => {
  await using node = await source();
  const [host, port] = node.address!.split(':') as [string, string];
  const dir = newDir();
  systemDisk.makeDirectory(dir);
  const restored = new NetworkRestore({
    sourceNode: 'a node',
    sourceHost: host,
    sourcePort: Number(port),
    retainLogFiles: true,
  }).withLocalDir(dir);
  await restored.executeViaDispatcher();
  assert.equal(restored.getState(), 'Completed');
  const logs = (path: string): string[] => readdirSync(path).filter((name) => name.endsWith('.ndb'));
  assert.deepEqual(logs(dir), logs(join(node.dir, 'log')));
  const { segments, log } = await node.restoreHost.openLog();
  await node.restoreHost.closeLog(log);
  assert.deepEqual(
    logs(dir).map((name) => ({ name, bytes: statSync(join(dir, name)).size })),
    segments,
  );
  const last = segments.at(-1)!;
  assert.ok(statSync(join(node.dir, 'log', last.name)).size > last.bytes, 'there was more in the file');
  assert.ok(
    readFileSync(join(dir, last.name))
      .subarray(-HASH_BYTES)
      .some((byte) => byte !== 0),
    'records to the end',
  );
});

test('where the thread of the network dies, sessions end, nobody connects any more, and the node goes on', async () => {
  let wire: Worker | undefined;
  const onWorker = (worker: Worker): void => {
    if (worker.threadName === 'nostos-wire') wire = worker;
  };
  process.on('worker', onWorker);
  const node = await source();
  process.off('worker', onWorker);
  try {
    assert.ok(wire !== undefined && node.address !== undefined);
    const { address } = node;
    let ended: Promise<number> | undefined;
    const failed = restore(address, newDir(), {
      rateBytesPerSecond: 2 * MIB,
      onProgress: ({ bytesDone }) => {
        if (bytesDone > MIB / 2) ended ??= wire!.terminate();
      },
    });
    await assert.rejects(failed, (error) => isNostosError(error) && error.retry === 'safe');
    assert.ok(ended !== undefined, 'it was being copied when the thread died');
    await ended;
    await servesNobody(node);
    assert.equal(node.address, undefined);
    const again = connectToService(address, STREAM_SERVICE_NAME, {});
    await fails(again, 'NETWORK_FAILED');
    // What was held is free again: a tenant is written to, checkpointed and dropped.
    await insert(node, 'a', 1_000);
    await node.tenants.drop('b');
    assert.ok((await node.verify()).ok);
  } finally {
    await node.close();
  }
});

test('with TLS a node serves those whose certificate names its cluster, or who is on its list', async () => {
  const tls = { node: await tlsIdentity(NODE_A), peer: await tlsIdentity(NODE_B) };
  const dir = newDir();
  await using node = await source({ listen: { port: 0, tls: { ...tls.node, allowNodes: [NODE_B] } } });
  await assert.rejects(restore(node.address!, newDir()), 'without a certificate');
  await assert.rejects(restore(node.address!, newDir(), { connect: { tls: tls.node } }), 'not on the list');
  await restore(node.address!, dir, { connect: { tls: tls.peer } });
  await using copy = await open(dir);
  assert.deepEqual(await fingerprints(copy), await fingerprints(node));
  // The certificates are of another cluster than this node's.
  await using strict = await source({ listen: { port: 0, tls: tls.node } });
  await assert.rejects(restore(strict.address!, newDir(), { connect: { tls: tls.peer } }), 'of another cluster');
  const stranger = await tlsIdentity(NODE_B, createAuthority(undefined, { nowMs: Date.now(), days: 1 }));
  await assert.rejects(restore(strict.address!, newDir(), { connect: { tls: { ...stranger, ca: tls.peer.ca } } }));
  let refused: Readonly<Record<string, number>> = {};
  for (const untilMs = performance.now() + 5_000; Object.keys(refused).length < 2 && performance.now() < untilMs;) {
    await new Promise((resolve) => void setTimeout(resolve, 20));
    refused = (await strict.status()).refusedPeers;
  }
  const { OTHER_CLUSTER: others, ...rest } = refused;
  assert.ok(others! >= 1, 'who is of another cluster is counted');
  assert.equal(
    Object.keys(rest).length,
    1,
    `a certificate of another authority is counted: ${Object.keys(rest).join()}`,
  );
  assert.match(await renderMetrics(await strict.status()), /nostos_peers_refused_total [2-9]/);
});

test('a node that cannot listen does not open, and leaves its directory free', async () => {
  const dir = newDir();
  for (const host of ['0.0.0.0', 'a b', 'a/b'])
    await fails(open(dir, { listen: { host, port: 0 } }), 'INVALID_ARGUMENT');
  for (const listen of [{ port: -1 }, { port: 1.5 }, { host: '', port: 0 }] as const)
    await fails(open(dir, { listen }), 'INVALID_ARGUMENT');
  await using node = await open(dir);
  const port = Number(node.address!.split(':')[1]);
  await fails(open(newDir(), { listen: { port } }), 'NETWORK_FAILED');
  await node.close();
  await using again = await open(dir, { listen: { port } });
  assert.equal(again.address, `127.0.0.1:${port}`, 'closing frees the port');
});
