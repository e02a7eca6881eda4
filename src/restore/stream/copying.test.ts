import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Channel } from '../../wire/channel.ts';
import { negotiateClient } from '../../wire/negotiate.ts';
import { whileCopying } from './fetch-item.ts';
import { STREAM_LIMITS } from './limits.ts';
import { VERSIONS, encodeMessage, parseAnswer, type Answer, type Message } from './messages.ts';
import { randomFiles, startWorld } from './stream.fixture.ts';
import { systemTimers } from './timers.ts';

test('the source hears of a base that is copied while it grows, and only then', async () => {
  const sizes = [10, 20, 20, 20, 30];
  const copied = Promise.withResolvers<void>();
  const told: Message[] = [];
  let asked = 0;
  const peer = {
    send: async (message: Message) => {
      told.push(message);
      throw new Error('the channel is lost: the copy is waited for all the same');
    },
  };
  const limits = { ...STREAM_LIMITS, heartbeatMs: 1 };
  await whileCopying({ peer, timers: systemTimers, limits }, copied.promise, () => {
    const size = sizes[asked++];
    if (size === undefined) copied.resolve();
    return size ?? 30;
  });
  assert.ok(asked > sizes.length);
  assert.deepEqual(
    told,
    [10, 20, 30].map((bytes) => ({ kind: 'copying', bytes })),
  );
});

test('a session goes on while a base is copied for longer than the source waits for progress', async () => {
  const limits = { reservationTimeoutMs: 400 };
  await using world = await startWorld({ files: randomFiles(1, [20_000]), limits });
  const dial = async (first: Message): Promise<Channel> => {
    const channel = await world.connect();
    await negotiateClient(channel, VERSIONS);
    await channel.send(...encodeMessage(first));
    return channel;
  };
  const answerOf = async (channel: Channel): Promise<Answer> => parseAnswer((await channel.receive(5_000))!);
  const control = await dial({ kind: 'begin', rateBytesPerSecond: null, compression: 'off' });
  const begun = await answerOf(control);
  assert.ok(begun.kind === 'session');
  const data = await dial({ kind: 'attach', session: begun.session });
  assert.equal((await answerOf(data)).kind, 'attached');
  for (let bytes = 1; bytes <= 10; bytes += 1) {
    await data.send(...encodeMessage({ kind: 'copying', bytes }));
    await sleep(limits.reservationTimeoutMs / 5);
  }
  await data.send(...encodeMessage({ kind: 'fetch', name: 'file/part-0', base: 0 }));
  assert.equal((await answerOf(data)).kind, 'opened');
  control.close();
  data.close();
});
