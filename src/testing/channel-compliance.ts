/**
 * What every `Channel` must do, whatever carries it. A test file of an implementation calls `channelCompliance` with a
 * way to make a connected pair.
 */
import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { isNostosError, type ErrorCode } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import type { Channel } from '../wire/channel.ts';

/** The largest frame that the channels under test carry. */
export const COMPLIANCE_FRAME_BYTES_MAX = 4 * 1024 * 1024;

export interface ChannelsUnderTest {
  readonly name: string;
  /** Two ends of one connection, with frames up to `COMPLIANCE_FRAME_BYTES_MAX`; what it starts ends with the test. */
  pair(t: TestContext): Promise<readonly [Channel, Channel]>;
}

const SOON_MS = 10_000;

export function failsWith(code: ErrorCode): (error: unknown) => boolean {
  return (error) => isNostosError(error, code) || assert.fail(`expected ${code}, got ${String(error)}`);
}

async function received(channel: Channel): Promise<Uint8Array> {
  const frame = await channel.receive(SOON_MS);
  assert.ok(frame !== null, 'a frame within the time');
  return frame;
}

export function channelCompliance(subject: ChannelsUnderTest): void {
  const check = (behaviour: string, fn: (a: Channel, b: Channel) => Promise<void>): void => {
    test(`${subject.name}: ${behaviour}`, async (t) => {
      const [a, b] = await subject.pair(t);
      await fn(a, b);
      a.close();
      b.close();
    });
  };

  check('frames of all sizes arrive whole and in order, in both directions', async (a, b) => {
    const random = seededRandom(1);
    const sizes = [0, 1, 0, 3, 4, 5, 4095, 4096, 65_535, 65_536, 1_048_583, 0, COMPLIANCE_FRAME_BYTES_MAX, 2];
    const frames = sizes.map((size) => random.bytes(size));
    for (const [from, to] of [
      [a, b],
      [b, a],
    ] as const) {
      const sending = Promise.all(frames.map((frame) => from.send(frame)));
      for (const frame of frames) assert.equal(Buffer.compare(await received(to), frame), 0);
      await sending;
    }
  });

  check('the pieces of a frame arrive as one', async (a, b) => {
    const pieces = [3, 0, 70_000, 1].map((size, index) => new Uint8Array(size).fill(index + 1));
    await a.send(...pieces);
    await a.send();
    assert.equal(Buffer.compare(await received(b), Buffer.concat(pieces)), 0);
    assert.equal((await received(b)).length, 0);
  });

  check('a timeout answers null and loses nothing', async (a, b) => {
    assert.equal(await b.receive(0), null);
    assert.equal(await b.receive(5), null);
    await a.send(Uint8Array.of(7));
    assert.deepEqual([...(await received(b))], [7]);
    assert.equal(await b.receive(5), null);
  });

  check('a cancelled receive rejects with the reason and loses nothing', async (a, b) => {
    const reason = new Error('enough');
    const already = AbortSignal.abort(reason);
    await assert.rejects(b.receive(SOON_MS, { signal: already }), reason);
    const controller = new AbortController();
    const receiving = b.receive(SOON_MS, { signal: controller.signal });
    controller.abort(reason);
    await assert.rejects(receiving, reason);
    await a.send(Uint8Array.of(1));
    assert.deepEqual([...(await received(b))], [1]);
  });

  check('one receive at a time, with a timeout that is one', async (a, b) => {
    const first = b.receive(SOON_MS);
    await assert.rejects(b.receive(SOON_MS), failsWith('INVALID_ARGUMENT'));
    await assert.rejects(a.receive(Number.NaN), failsWith('INVALID_ARGUMENT'));
    await assert.rejects(a.receive(-1), failsWith('INVALID_ARGUMENT'));
    await a.send(Uint8Array.of(9));
    assert.deepEqual([...(await first)!], [9]);
  });

  check('a frame that is too large is refused before anything leaves', async (a, b) => {
    const half = new Uint8Array(COMPLIANCE_FRAME_BYTES_MAX / 2);
    await assert.rejects(a.send(half, half, Uint8Array.of(1)), failsWith('FRAME_TOO_LARGE'));
    await a.send(Uint8Array.of(2));
    assert.deepEqual([...(await received(b))], [2]);
    assert.ok(a.isOpen);
  });

  check('a received frame stays as it is, and sent pieces may be used again', async (a, b) => {
    const piece = new Uint8Array(100_000).fill(1);
    await a.send(piece);
    piece.fill(2);
    await a.send(piece);
    const first = await received(b);
    const second = await received(b);
    assert.ok(first.every((byte) => byte === 1) && second.every((byte) => byte === 2));
  });

  check('a frame is put into the memory that is given for it, where it fits', async (a, b) => {
    const into = new Uint8Array(200_000);
    await a.send(new Uint8Array(200_000).fill(3));
    await a.send(new Uint8Array(200_001).fill(4));
    await a.send(Uint8Array.of(5));
    const frame = await b.receive(SOON_MS, { into });
    assert.ok(frame!.buffer === into.buffer && frame!.length === into.length);
    assert.ok(into.every((byte) => byte === 3));
    const larger = await b.receive(SOON_MS, { into });
    assert.ok(larger!.length === 200_001 && larger!.buffer !== into.buffer);
    assert.deepEqual([...(await b.receive(SOON_MS, { into }))!], [5]);
  });

  check('a sender waits while nobody receives, and goes on afterwards', async (a, b) => {
    const frame = new Uint8Array(1024 * 1024);
    let sent = 0;
    const blocked = async (sending: Promise<void>): Promise<boolean> => {
      const { promise, resolve } = Promise.withResolvers<'waits'>();
      const timer = setTimeout(() => resolve('waits'), 200);
      const first = await Promise.race([sending, promise]);
      clearTimeout(timer);
      return first === 'waits';
    };
    let last: Promise<void>;
    do {
      frame.fill(sent);
      last = a.send(frame.slice());
      sent += 1;
      assert.ok(sent <= 64, 'the channel takes 64 MiB that nobody receives');
    } while (!(await blocked(last)));
    for (let index = 0; index < sent; index++) {
      const got = await received(b);
      assert.ok(got.length === frame.length && got[0] === index && got.at(-1) === index);
    }
    await last;
  });

  check('what was sent before a close still arrives, then the peer sees that it is closed', async (a, b) => {
    const frames = [10, 300_000, 0].map((size) => new Uint8Array(size).fill(6));
    for (const frame of frames) void a.send(frame).catch(() => {});
    a.close();
    for (const frame of frames) assert.equal(Buffer.compare(await received(b), frame), 0);
    await assert.rejects(b.receive(SOON_MS), failsWith('CHANNEL_CLOSED'));
    await assert.rejects(b.receive(SOON_MS), failsWith('CHANNEL_CLOSED'));
    assert.equal(b.isOpen, false);
  });

  check('after its own close everything is CHANNEL_CLOSED, what was not received included', async (a, b) => {
    await a.send(Uint8Array.of(1));
    await a.send(Uint8Array.of(2));
    assert.deepEqual([...(await received(b))], [1]);
    const waiting = a.receive(SOON_MS);
    for (const channel of [a, b]) {
      assert.ok(channel.isOpen);
      channel.close();
      channel.close();
      assert.equal(channel.isOpen, false);
      await assert.rejects(channel.receive(SOON_MS), failsWith('CHANNEL_CLOSED'));
      await assert.rejects(channel.send(Uint8Array.of(3)), failsWith('CHANNEL_CLOSED'));
    }
    await assert.rejects(waiting, failsWith('CHANNEL_CLOSED'));
  });

  check('a sender whose peer is gone is told', async (a, b) => {
    b.close();
    const send = async (): Promise<void> => {
      for (let count = 0; count < 1_000; count++) await a.send(new Uint8Array(100_000));
    };
    await assert.rejects(send(), (error) => isNostosError(error, 'CHANNEL_CLOSED'));
  });

  check('the peer has an address', async (a, b) => {
    for (const channel of [a, b]) assert.match(channel.peer, /^\S+:\d+$/);
  });
}
