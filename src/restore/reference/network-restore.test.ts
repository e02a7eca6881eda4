import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import type { TestContext } from 'node:test';
import { blake3 } from '@napi-rs/blake-hash';
import { isNostosError } from '../../base/errors.ts';
import { TcpServiceDispatcher } from '../../wire/dispatcher.ts';
import { RestoreState } from '../index.ts';
import { NetworkRestore, finishRestore } from './network-restore.ts';
import type { Files } from './peers.fixture.ts';
import {
  DISPATCHER_REQUEST_BYTES,
  bodyOf,
  configFor,
  contentOf,
  directoryOf,
  exchange,
  frameOf,
  peerThat,
  stagedIn,
} from './peers.fixture.ts';
import type { NetworkRestoreServerOptions } from './server.ts';
import { NetworkRestoreServer } from './server.ts';
import type { RestoreEvent } from './types.ts';

const LOGS: Files = { '00000000.ndb': 'zero', '00000001.ndb': '', '00000002.ndb': 'two'.repeat(100_000) };
const MAGIC = Buffer.from('5453524e', 'hex');
const ASK = Buffer.concat([
  Buffer.from('07000000', 'hex'),
  Buffer.from('RESTORE'),
  Buffer.from('04000000', 'hex'),
  MAGIC,
]);
const GOLDEN = Buffer.concat([
  Buffer.from('010000000c00', 'hex'),
  Buffer.from('00000001.ndb'),
  Buffer.from('0300000000000000616263c2412435', 'hex'),
]);
const ABC: Files = { '00000001.ndb': 'abc' };

interface Served {
  readonly raw: { readonly address: string; readonly port: number };
  readonly dispatcher: { readonly address: string; readonly port: number };
  readonly server: NetworkRestoreServer;
  readonly errors: unknown[];
}

const portOf = (address: string): number => Number(address.split(':').at(-1));

async function serve(t: TestContext, dir: string, options: NetworkRestoreServerOptions = {}): Promise<Served> {
  const errors: unknown[] = [];
  const onError = (error: unknown): void => void errors.push(error);
  const server = new NetworkRestoreServer(dir, { onError, ...options });
  const raw = await server.start('127.0.0.1:0');
  const dispatcher = new TcpServiceDispatcher('127.0.0.1:0', { onError });
  dispatcher.register(server);
  const address = await dispatcher.start();
  t.after(async () => {
    await server.stop();
    await dispatcher.stop();
  });
  return { raw: { address: raw, port: portOf(raw) }, dispatcher: { address, port: portOf(address) }, server, errors };
}

for (const protocol of ['raw', 'dispatcher'] as const) {
  const run = (restore: NetworkRestore) => (protocol === 'raw' ? restore.execute() : restore.executeViaDispatcher());
  const request = protocol === 'raw' ? MAGIC : ASK;
  const answerOf = (body: Buffer): Buffer => (protocol === 'raw' ? body : frameOf(body));

  test(`${protocol}: the server says the golden bytes, however the request is cut`, async (t) => {
    const served = await serve(t, directoryOf(t, ABC));
    for (let at = 0; at <= request.length; at++) {
      const answer = await exchange(served[protocol].address, [request.subarray(0, at), request.subarray(at)]);
      assert.deepEqual(answer, answerOf(GOLDEN), `split at ${at}`);
    }
    const empty = await serve(t, directoryOf(t, { 'no-log.txt': 'x' }));
    assert.deepEqual(await exchange(empty[protocol].address, [request]), answerOf(Buffer.alloc(4)));
    assert.deepEqual([...served.errors, ...empty.errors], []);
  });

  test(`${protocol}: the client says the golden bytes, and takes the answer however it is cut`, async (t) => {
    const answer = answerOf(GOLDEN);
    let at = 0;
    const peer = await peerThat(
      t,
      (socket) => {
        socket.setNoDelay(true);
        socket.write(answer.subarray(0, at), () => setImmediate(() => socket.end(answer.subarray(at))));
      },
      request.length,
    );
    for (; at <= answer.length; at++) {
      const dir = directoryOf(t);
      await run(new NetworkRestore(configFor(peer.port)).withLocalDir(dir));
      assert.deepEqual(contentOf(dir), ABC, `split at ${at}`);
    }
    assert.deepEqual(peer.received(), Buffer.concat(Array.from({ length: peer.connections() }, () => request)));
    assert.ok(request.length <= DISPATCHER_REQUEST_BYTES);
  });

  test(`${protocol}: a directory is filled, with progress per file`, async (t) => {
    const served = await serve(t, directoryOf(t, { ...LOGS, 'vlsn.idx': 'not sent' }));
    const dir = join(directoryOf(t), 'new', 'deep');
    const events: RestoreEvent[] = [];
    const seen: number[] = [];
    const restore = new NetworkRestore(configFor(served[protocol].port), {
      onProgress: (event) => {
        events.push(event);
        seen.push(restore.getProgress().filesTransferred);
      },
    }).withLocalDir(dir);
    assert.deepEqual(restore.getProgress(), {
      state: 'NotStarted',
      bytesTransferred: 0,
      filesTransferred: 0,
      elapsed: 0,
    });
    const report = await run(restore);
    assert.deepEqual(contentOf(dir), LOGS);
    const { elapsed, ...progress } = restore.getProgress();
    assert.deepEqual(progress, { state: RestoreState.Completed, bytesTransferred: 300_004, filesTransferred: 3 });
    assert.ok(elapsed > 0);
    assert.deepEqual(
      report.files,
      Object.entries(LOGS).map(([name, text]) => ({ name, bytes: text.length, blake3: blake3(text).toString('hex') })),
    );
    assert.deepEqual(new Set(seen), new Set([0, 1, 2, 3]));
    assert.deepEqual(events.at(0), { kind: 'started', files: 3 });
    assert.deepEqual(events.at(-1), { kind: 'swapping', files: 3 });
    const bytes = events.filter((event) => event.kind === 'bytes');
    assert.equal(bytes.at(-1)?.received, 300_000);
    assert.deepEqual(stagedIn(dir), []);
    assert.deepEqual(served.errors, []);
  });

  test(`${protocol}: without the trailer, for peers that are older`, async (t) => {
    const served = await serve(t, directoryOf(t, ABC), { trailer: 'none' });
    assert.deepEqual(await exchange(served[protocol].address, [request]), answerOf(GOLDEN.subarray(0, -4)));
    const dir = directoryOf(t);
    await run(new NetworkRestore(configFor(served[protocol].port), { trailer: 'none' }).withLocalDir(dir));
    assert.deepEqual(contentOf(dir), ABC);
  });

  test(`${protocol}: what was there is set aside under the next free name, and leftovers with it`, async (t) => {
    const served = await serve(t, directoryOf(t, ABC));
    const dir = directoryOf(t, {
      '00000001.ndb': 'old',
      '00000009.ndb': 'stale',
      '00000001.ndb.bak': 'older',
      keep: 'me',
    });
    const restore = () => new NetworkRestore(configFor(served[protocol].port)).withLocalDir(dir);
    const { setAside, removed } = await run(restore());
    assert.deepEqual(contentOf(dir), {
      ...ABC,
      '00000001.ndb.bak': 'older',
      '00000001.ndb.bak.1': 'old',
      '00000009.ndb.bak': 'stale',
      keep: 'me',
    });
    assert.deepEqual(setAside, [
      { from: '00000001.ndb', to: '00000001.ndb.bak.1' },
      { from: '00000009.ndb', to: '00000009.ndb.bak' },
    ]);
    assert.deepEqual(removed, []);
    await run(restore());
    assert.equal(contentOf(dir)['00000001.ndb.bak.2'], 'abc');
  });

  test(`${protocol}: without retaining, old files and leftovers are gone, and nothing else`, async (t) => {
    const served = await serve(t, directoryOf(t, ABC));
    const dir = directoryOf(t, {
      '00000001.ndb': 'old',
      '00000009.ndb': 'stale',
      '0000000a.ndb.bak': 'b',
      'x.NDB': 'x',
    });
    mkdirSync(join(dir, 'directory.ndb'));
    const config = configFor(served[protocol].port, { retainLogFiles: false });
    const { setAside, removed } = await run(new NetworkRestore(config).withLocalDir(dir));
    assert.deepEqual(contentOf(dir), { ...ABC, '0000000a.ndb.bak': 'b', 'x.NDB': 'x', 'directory.ndb': '(directory)' });
    assert.deepEqual([setAside, removed], [[], ['00000009.ndb']]);
  });

  test(`${protocol}: a failed run ends in Failed with its cause, and keeps its progress`, async (t) => {
    const body = bodyOf({ a: 'first', b: 'second' }, { crc: (name, right) => (name === 'b' ? right + 1 : right) });
    const peer = await peerThat(t, (socket) => void socket.end(answerOf(body)), request.length);
    const dir = directoryOf(t, { a: 'old' });
    const restore = new NetworkRestore(configFor(peer.port)).withLocalDir(dir);
    const failure = await run(restore).then(
      () => assert.fail(),
      (error: unknown) => error,
    );
    assert.ok(isNostosError(failure, 'RESTORE_FAILED'));
    assert.equal(restore.getError(), failure);
    const { elapsed, ...progress } = restore.getProgress();
    assert.deepEqual(progress, { state: 'Failed', bytesTransferred: 5, filesTransferred: 1 });
    assert.ok(elapsed > 0);
    assert.deepEqual(contentOf(dir), { a: 'old' });
    await assert.rejects(run(restore), (error) => isNostosError(error, 'RESTORE_STATE'));
    assert.equal(restore.getState(), 'Failed');
  });
}

test('served are regular files, extension exactly ndb, this directory only, sorted by bytes', async (t) => {
  const dir = directoryOf(t, {
    'b.ndb': '1',
    'B.ndb': '2',
    'é.ndb': '3',
    'z.ndb': '4',
    'a.ndb.bak': 'no',
    'a.NDB': 'no',
    andb: 'no',
    '.ndb': 'no',
    '.hidden.ndb': 'no',
    'vlsn.idx': 'no',
  });
  mkdirSync(join(dir, 'x.ndb'));
  writeFileSync(join(dir, 'x.ndb', 'inside.ndb'), 'no');
  writeFileSync(Buffer.concat([Buffer.from(join(dir, 'not-')), Buffer.from([0xff]), Buffer.from('.ndb')]), 'no');
  symlinkSync(join(dir, 'nowhere'), join(dir, 'dangling.ndb'));
  const served = await serve(t, dir);
  const expected = bodyOf({ 'B.ndb': '2', 'b.ndb': '1', 'z.ndb': '4', 'é.ndb': '3' });
  assert.deepEqual(await exchange(served.raw.address, [MAGIC]), expected);
  assert.deepEqual(await exchange(served.dispatcher.address, [ASK]), frameOf(expected));
});

test('more files than are held open at a time are served all the same', async (t) => {
  const files = Object.fromEntries(
    Array.from({ length: 20 }, (_, i) => [`${String(i).padStart(8, '0')}.ndb`, `file ${i}`]),
  );
  for (const openFilesMax of [0, 1, 7, 20]) {
    const served = await serve(t, directoryOf(t, files), { openFilesMax });
    assert.deepEqual(await exchange(served.raw.address, [MAGIC]), bodyOf(files));
  }
});

test('extra bytes after the magic are ignored in a frame', async (t) => {
  const served = await serve(t, directoryOf(t, ABC));
  const ask = Buffer.concat([ASK.subarray(0, 11), Buffer.from('06000000', 'hex'), MAGIC, Buffer.from('xx')]);
  assert.deepEqual(await exchange(served.dispatcher.address, [ask]), frameOf(GOLDEN));
});

test('the caller cancels: the reason comes back, nothing has changed, the directory is free', async (t) => {
  const peer = await peerThat(t, (socket) => void socket.write(bodyOf(LOGS).subarray(0, 1000)));
  const dir = directoryOf(t, { '00000000.ndb': 'old' });
  const controller = new AbortController();
  const restore = new NetworkRestore(configFor(peer.port), {
    signal: controller.signal,
    onProgress: (event) => event.kind === 'file-started' && event.bytes > 4 && controller.abort(new Error('enough')),
  }).withLocalDir(dir);
  await assert.rejects(restore.execute(), /enough/);
  assert.deepEqual([restore.getState(), restore.getError()], ['Failed', controller.signal.reason]);
  assert.deepEqual(contentOf(dir), { '00000000.ndb': 'old' });
  assert.equal(await finishRestore(dir, { lockTimeoutMs: 0 }), undefined);
});

test('the last moment to cancel is just before files are put in place', async (t) => {
  const served = await serve(t, directoryOf(t, ABC));
  const dir = directoryOf(t, { '00000001.ndb': 'old' });
  const controller = new AbortController();
  const restore = new NetworkRestore(configFor(served.raw.port), {
    signal: controller.signal,
    onProgress: (event) => event.kind === 'swapping' && controller.abort(new Error('no')),
  }).withLocalDir(dir);
  await assert.rejects(restore.execute(), /no/);
  assert.deepEqual(contentOf(dir), { '00000001.ndb': 'old' });
});

test('many small files in one piece: cancelling does not wait for the last of them', async (t) => {
  const files = Object.fromEntries(Array.from({ length: 50 }, (_, i) => [`${i}.ndb`, 'x']));
  const peer = await peerThat(t, (socket) => void socket.end(bodyOf(files)));
  const controller = new AbortController();
  const restore = new NetworkRestore(configFor(peer.port), {
    signal: controller.signal,
    onProgress: (event) => event.kind === 'file-received' && controller.abort(new Error('enough')),
  }).withLocalDir(directoryOf(t));
  await assert.rejects(restore.execute(), /enough/);
  assert.equal(restore.getProgress().filesTransferred, 1);
});

test('a raw client that has ended its own side after asking is answered', async (t) => {
  const served = await serve(t, directoryOf(t, LOGS));
  const socket = connect(served.raw.port, '127.0.0.1');
  const chunks: Buffer[] = [];
  socket.on('data', (chunk: Buffer) => chunks.push(chunk)).end(MAGIC);
  await new Promise<void>((resolve) => socket.on('close', () => resolve()));
  assert.deepEqual(Buffer.concat(chunks), bodyOf(LOGS));
});

test('fail() ends a run, and complete() cannot overtake it', async (t) => {
  const peer = await peerThat(t, () => {});
  const restore = new NetworkRestore(configFor(peer.port)).withLocalDir(directoryOf(t));
  const run = restore.execute();
  assert.equal(restore.getState(), 'InProgress');
  assert.throws(
    () => restore.complete(),
    (error) => isNostosError(error, 'RESTORE_STATE'),
  );
  assert.throws(
    () => restore.withLocalDir('/elsewhere'),
    (error) => isNostosError(error, 'RESTORE_STATE'),
  );
  const cause = new Error('operator');
  restore.fail(cause);
  await assert.rejects(run, cause);
  assert.deepEqual([restore.getState(), restore.getError()], ['Failed', cause]);
});

test('two restores into one directory: one at a time', async (t) => {
  const stuck = await peerThat(t, (socket) => void socket.write(bodyOf(LOGS).subarray(0, 100)));
  const served = await serve(t, directoryOf(t, ABC));
  const dir = directoryOf(t);
  const started = Promise.withResolvers<void>();
  const first = new NetworkRestore(configFor(stuck.port), {
    onProgress: (event) => event.kind === 'started' && started.resolve(),
  }).withLocalDir(dir);
  const run = first.execute();
  await started.promise;
  const second = new NetworkRestore(configFor(served.raw.port), { lockTimeoutMs: 60 }).withLocalDir(dir);
  await assert.rejects(second.execute(), (error) => isNostosError(error, 'DIRECTORY_LOCKED'));
  assert.equal(second.getState(), 'Failed');
  const third = new NetworkRestore(configFor(served.raw.port)).withLocalDir(dir).execute();
  first.fail();
  await assert.rejects(run);
  await third;
  assert.deepEqual(contentOf(dir), ABC);
});

test('names of hosts and IPv6 addresses, with and without brackets', async (t) => {
  const server = new NetworkRestoreServer(directoryOf(t, ABC));
  t.after(() => server.stop());
  const v4 = portOf(await server.start('127.0.0.1:0'));
  const restoreFrom = async (sourceHost: string, port: number) => {
    const dir = directoryOf(t);
    await new NetworkRestore(configFor(port, { sourceHost })).withLocalDir(dir).execute();
    assert.deepEqual(contentOf(dir), ABC, sourceHost);
  };
  await restoreFrom('localhost', v4);
  await server.stop();
  const v6 = portOf(await server.start('[::1]:0'));
  await restoreFrom('::1', v6);
  await restoreFrom('[::1]', v6);
});

test('a configuration that can be no source is refused', () => {
  for (const wrong of [
    { sourceHost: '' },
    { sourceHost: 'a b' },
    { sourcePort: 0 },
    { sourcePort: 65_536 },
    { sourcePort: 1.5 },
  ])
    assert.throws(
      () => new NetworkRestore(configFor(1, wrong)),
      (error) => isNostosError(error, 'INVALID_ARGUMENT'),
      JSON.stringify(wrong),
    );
  const config = configFor(7);
  assert.deepEqual(new NetworkRestore(config).getConfig(), config);
});

test('a directory in the place of a file stops the restore before anything changes', async (t) => {
  const served = await serve(t, directoryOf(t, ABC));
  const dir = directoryOf(t, { '00000009.ndb': 'stays' });
  mkdirSync(join(dir, '00000001.ndb'));
  const restore = new NetworkRestore(configFor(served.raw.port)).withLocalDir(dir);
  await assert.rejects(restore.execute(), (error) => isNostosError(error, 'FILE_EXISTS'));
  assert.deepEqual(contentOf(dir), { '00000001.ndb': '(directory)', '00000009.ndb': 'stays' });
});

test('symbolic links lead nowhere: they are replaced, what they point to stays', async (t) => {
  const served = await serve(t, directoryOf(t, ABC));
  const outside = directoryOf(t, { secret: 'untouched' });
  const dir = directoryOf(t);
  symlinkSync(join(outside, 'secret'), join(dir, '00000001.ndb'));
  const config = configFor(served.raw.port, { retainLogFiles: false });
  await new NetworkRestore(config).withLocalDir(dir).execute();
  assert.deepEqual(contentOf(dir), ABC);
  assert.deepEqual(contentOf(outside), { secret: 'untouched' });
  symlinkSync(outside, join(dir, '.nostos-restore'));
  await assert.rejects(new NetworkRestore(config).withLocalDir(dir).execute(), (error) =>
    isNostosError(error, 'FILE_EXISTS'),
  );
  assert.deepEqual(contentOf(outside), { secret: 'untouched' });
  assert.equal(readFileSync(join(dir, '00000001.ndb'), 'utf8'), 'abc');
});
