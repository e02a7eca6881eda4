/** What a member does about a peer that talks nonsense, and about an error of its own while it hears a message. */
import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { encode } from '@msgpack/msgpack';
import { toBootId, toStoreId, type Lsn, type Term } from '../base/brands.ts';
import { systemDisk, type Disk } from '../base/disk.ts';
import { NostosError } from '../base/errors.ts';
import { DEFAULT_LIMITS } from '../base/limits.ts';
import { randomHex128, systemRandom } from '../base/random.ts';
import { encodeFrame, type WireMessage } from '../replication/codec.ts';
import { GROUP_SERVICE_NAME } from '../replication/peers.ts';
import type { Channel } from '../wire/channel.ts';
import { connectToService } from '../wire/connect.ts';
import type { GroupNotice } from './engine-protocol.ts';
import { GroupEngine } from './group-engine.ts';
import { FAST, makeGroup, until } from './group.fixture.ts';
import { loadNode } from './node-file.ts';

interface Leading extends AsyncDisposable {
  readonly engine: GroupEngine;
  readonly notices: readonly GroupNotice[];
  /** From now on what the log reads from its files fails. */
  breakReading(fails: boolean): void;
  say(message: WireMessage | Uint8Array): Promise<Channel>;
  readonly open: WireMessage;
}

/** The engine of a group of one, which leads, and a peer that may say anything. */
async function leading(t: TestContext): Promise<Leading> {
  const group = await makeGroup(t, 1);
  const dir = group.dirs[0]!;
  const identity = loadNode(dir, undefined);
  let fails = false;
  const disk: Disk = {
    ...systemDisk,
    open(path, mode) {
      if (fails && mode === 'read') throw new NostosError('IO_FAILED', `${path} cannot be read`);
      return systemDisk.open(path, mode);
    },
  };
  const notices: GroupNotice[] = [];
  const { generation, store, cluster } = identity;
  const boot = toBootId(randomHex128(systemRandom));
  const engine = await GroupEngine.open(
    { disk, highestApplied: () => 0 as Lsn, tell: (notice) => notices.push(notice) },
    { dir, generation, store, boot, cluster, limits: { ...DEFAULT_LIMITS, ...FAST } },
    { name: 'main', coordinator: group.coordinator, node: identity.node, listen: { port: 0 } },
  );
  const leads = (): boolean => engine.groupReport().role === 'leading';
  await until('it leads', leads);
  const { term } = engine.groupReport();
  const say = async (message: WireMessage | Uint8Array): Promise<Channel> => {
    const channel = await connectToService(engine.address, GROUP_SERVICE_NAME, {});
    t.after(() => channel.close());
    await channel.send(encode({ cluster, to: store, channel: randomHex128(systemRandom) }));
    await channel.send(...(message instanceof Uint8Array ? [message] : encodeFrame(message)));
    return channel;
  };
  const open: WireMessage = {
    kind: 'open',
    ...{ generation, term, store: toStoreId('0b'.repeat(16)), boot: toBootId('0c'.repeat(16)), eligible: true },
    // A record that is in a file, not the last one.
    point: { ...engine.logEnd().end, lsn: 1 as Lsn, term: 1 as Term },
  };
  return {
    ...{ engine, notices, say, open },
    breakReading: (now) => void (fails = now),
    [Symbol.asyncDispose]: () => engine.close(),
  };
}

test('a frame that is no message ends that conversation, is counted with its reason, and costs nothing else', async (t) => {
  await using group = await leading(t);
  const { engine, say, open } = group;
  const { boot } = engine.groupReport();
  const channel = await say(Buffer.from('ffffffff', 'hex'));
  await assert.rejects(async () => channel.receive(5_000));
  const { peerErrors } = engine.groupReport();
  assert.equal(peerErrors.count, 1);
  assert.match(peerErrors.last ?? '', /sent a message that is wrong/);
  const good = await say(open);
  assert.notEqual(await good.receive(5_000), null);
  const after = engine.groupReport();
  assert.deepEqual([after.role, after.boot, after.stopped], ['leading', boot, null]);
});

test('an error while a message is handled is no end of a conversation: the boot stops, says so, and another one leads', async (t) => {
  await using group = await leading(t);
  const { engine, notices, say, open, breakReading } = group;
  const { boot, term } = engine.groupReport();
  breakReading(true);
  await say(open);
  await until('it has stopped', () => engine.groupReport().stopped !== null);
  const report = engine.groupReport();
  assert.equal(report.stopped?.reason, 'failed');
  assert.equal(report.stopped?.details['code'], 'IO_FAILED');
  assert.equal(report.rejoin.action, 'reopen');
  assert.equal(report.peerErrors.count, 0);
  assert.notEqual(report.role, 'leading');
  const told = notices.map(({ kind }) => kind);
  assert.ok(told.lastIndexOf('step-down') > told.lastIndexOf('lead'), 'its writers were told');
  let refused: unknown;
  engine.appendNow([{ durability: 'quorum', entries: [], resolve: () => {}, reject: (error) => (refused = error) }]);
  assert.ok(refused instanceof NostosError && refused.code === 'NOT_PRIMARY');

  breakReading(false);
  engine.steppedDown();
  await until('it leads again', () => engine.groupReport().role === 'leading');
  const after = engine.groupReport();
  assert.ok(after.term > term && after.boot !== boot && after.stopped === null);
});
