import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ClusterId, Generation, Lsn, StoreId, Term } from '../base/brands.ts';
import type { Channel } from '../wire/channel.ts';
import { encodeFrame, parseFrame, type WireMessage } from './codec.ts';
import type { ChannelId } from './messages.ts';
import { Peers } from './peers.ts';

const CLUSTER = '0c'.repeat(16) as ClusterId;
const STORE = '05'.repeat(16) as StoreId;
const CHANNEL = 'b:1' as ChannelId;

const watermark = (lsn: number): WireMessage => ({
  kind: 'watermark',
  generation: '0f'.repeat(16) as Generation,
  term: 1 as Term,
  watermark: lsn as Lsn,
  sent: lsn as Lsn,
});

/** A connection that is made when the test says so; `sent` has what left by it, the greeting apart. */
function connection(): {
  readonly peers: Peers;
  readonly sent: readonly number[];
  readonly connected: PromiseWithResolvers<Channel>;
  readonly channel: Channel;
} {
  const frames: Uint8Array[] = [];
  const channel: Channel = {
    peer: 'there:1',
    peerNode: undefined,
    isOpen: true,
    send: async (...pieces) => void frames.push(Buffer.concat(pieces)),
    receive: () => new Promise(() => {}),
    close: () => {},
  };
  const connected = Promise.withResolvers<Channel>();
  const deps = { connect: () => connected.promise, onMessage: () => {}, onClosed: () => {} };
  const peers = new Peers(deps, { cluster: CLUSTER, store: STORE, frameBytesMax: 1_000 });
  const lsnOf = (frame: Uint8Array): number => {
    const message = parseFrame(frame);
    return message.kind === 'watermark' ? message.watermark : Number.NaN;
  };
  return {
    peers,
    get sent() {
      return frames.slice(1).map(lsnOf);
    },
    connected,
    channel,
  };
}

test('what waits for a connection leaves in order, and before what is sent in any turn behind that', async () => {
  const at = connection();
  at.peers.open(CHANNEL, STORE);
  for (const lsn of [1, 2, 3]) void at.peers.send(CHANNEL, watermark(lsn));
  assert.deepEqual(at.sent, []);
  at.connected.resolve(at.channel);
  // Also from within the very turn in which the connection is there.
  for (const lsn of [4, 5, 6, 7, 8, 9]) {
    await Promise.resolve();
    void at.peers.send(CHANNEL, watermark(lsn));
  }
  await new Promise(setImmediate);
  assert.deepEqual(at.sent, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
  at.peers.stop();
});

test('on a connection that is there a frame leaves within the call, so that a sync behind it holds up nothing', async () => {
  const at = connection();
  at.peers.open(CHANNEL, STORE);
  at.connected.resolve(at.channel);
  await new Promise(setImmediate);
  void at.peers.send(CHANNEL, watermark(1));
  assert.deepEqual(at.sent, [1]);
  at.peers.stop();
});

test('what a peer sends that is no message ends the conversation with the reason; a message before it still counts', async () => {
  const frames = [Buffer.concat(encodeFrame(watermark(1))), Buffer.from('nonsense')];
  const told: string[] = [];
  const channel: Channel = {
    ...{ peer: 'there:1', peerNode: undefined, isOpen: true },
    send: async () => {},
    receive: async () => frames.shift() ?? new Promise(() => {}),
    close: () => void told.push('hung up'),
  };
  const peers = new Peers(
    {
      connect: async () => channel,
      onMessage: (_, { kind }) => void told.push(kind),
      onClosed: (name, wrong) => void told.push(`${name} closed: ${wrong?.code}`),
    },
    { cluster: CLUSTER, store: STORE, frameBytesMax: 1_000 },
  );
  peers.open(CHANNEL, STORE);
  await new Promise(setImmediate);
  assert.deepEqual(told.toSorted(), ['b:1 closed: PROTOCOL_ERROR', 'hung up', 'watermark']);
  peers.stop();
});
