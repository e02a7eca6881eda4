import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { isNostosError } from '../../base/errors.ts';
import { TcpServiceDispatcher } from '../../wire/dispatcher.ts';
import { NetworkRestore } from './network-restore.ts';
import { bodyOf, configFor, directoryOf, peerThat } from './peers.fixture.ts';
import { NetworkRestoreServer } from './server.ts';
import { ServedFiles, listLogFiles, readWholeFile, type ServedLog } from './served-files.ts';

test('a pipe that is called like a log is no file, and nobody waits for its other end', async (t) => {
  const dir = directoryOf(t, { 'a.ndb': 'abc' });
  execFileSync('mkfifo', [join(dir, 'pipe.ndb')]);
  assert.deepEqual(await listLogFiles(dir), [{ name: 'a.ndb', bytes: 3 }]);
  assert.equal(await readWholeFile(dir, 'pipe.ndb', { bytesMax: 100 }), undefined);
});

test('for one frame a file is read as it is then: gone is left out, grown beyond the room is refused', async (t) => {
  const dir = directoryOf(t, { 'a.ndb': 'abcd' });
  assert.equal(Buffer.from((await readWholeFile(dir, 'a.ndb', { bytesMax: 4 }))!).toString(), 'abcd');
  assert.equal(await readWholeFile(dir, 'gone.ndb', { bytesMax: 4 }), undefined);
  await assert.rejects(readWholeFile(dir, 'a.ndb', { bytesMax: 3 }), (error) => isNostosError(error, 'RESTORE_FAILED'));
});

test('files that were opened are closed, whatever was read of them', async (t) => {
  const dir = directoryOf(t, { 'a.ndb': '1', 'b.ndb': '2', 'c.ndb': '3' });
  const openNow = (): number =>
    readdirSync('/proc/self/fd').filter((fd) => {
      try {
        return execFileSync('readlink', [`/proc/${process.pid}/fd/${fd}`])
          .toString()
          .includes(dir);
      } catch {
        return false;
      }
    }).length;
  if (!existsSync('/proc/self/fd')) return t.skip('no /proc');
  {
    await using files = await ServedFiles.open(dir, 2);
    assert.equal(files.count, 3);
    assert.equal((await files.next())?.name, 'a.ndb');
    assert.equal(openNow(), 3);
  }
  assert.equal(openNow(), 0);
});

test('of a log that is written to, only what is told is sent, in both protocols', async (t) => {
  const dir = directoryOf(t, { '1.ndb': 'sealed', '2.ndb': 'committed, and not', '3.ndb': 'not' });
  const sizes: Readonly<Record<string, number>> = { '1.ndb': 6, '2.ndb': 9 };
  let held = 0;
  const openLog = async (): Promise<ServedLog> => {
    held += 1;
    return { sizeOf: (name) => sizes[name], [Symbol.asyncDispose]: async () => void (held -= 1) };
  };
  await using server = new NetworkRestoreServer(dir, { openLog });
  const address = await server.start('127.0.0.1:0');
  await using dispatcher = new TcpServiceDispatcher('127.0.0.1:0');
  dispatcher.register(new NetworkRestoreServer(dir, { openLog }));
  const dispatched = await dispatcher.start();
  for (const [bound, execute] of [
    [address, 'execute'],
    [dispatched, 'executeViaDispatcher'],
  ] as const) {
    const into = directoryOf(t);
    await new NetworkRestore(configFor(Number(bound.split(':')[1]))).withLocalDir(into)[execute]();
    const logs = readdirSync(into).filter((name) => name.endsWith('.ndb'));
    assert.deepEqual(
      logs.map((name) => readFileSync(join(into, name), 'utf8')),
      ['sealed', 'committed'],
      execute,
    );
  }
  await server.stop();
  assert.equal(held, 0);
});

test('a directory that a restore was cut off in is not served', async (t) => {
  const dir = directoryOf(t, { 'a.ndb': '1' });
  mkdirSync(join(dir, '.nostos-restore'));
  assert.equal((await listLogFiles(dir)).length, 1);
  writeFileSync(join(dir, '.nostos-restore', 'plan.json'), '{}');
  await assert.rejects(listLogFiles(dir), (error) => isNostosError(error, 'RESTORE_UNFINISHED'));
});

test('a local log whose name is not UTF-8 stops nothing', async (t) => {
  const dir = directoryOf(t);
  writeFileSync(Buffer.concat([Buffer.from(join(dir, 'not-')), Buffer.from([0xff]), Buffer.from('.ndb')]), 'stays');
  const peer = await peerThat(t, (socket) => void socket.end(bodyOf({ 'not-\ufffd.ndb': 'new' })));
  await new NetworkRestore(configFor(peer.port)).withLocalDir(dir).execute();
  assert.equal(readdirSync(dir, { encoding: 'buffer' }).filter((name) => name.includes('not-')).length, 2);
});
