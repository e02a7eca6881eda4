/** Peers that lie, in both directions: each case is refused with a typed error, and nothing is written where it must not. */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { test } from 'node:test';
import { zstdCompressSync } from 'node:zlib';
import { encode } from '@msgpack/msgpack';
import { NostosError, type ErrorCode } from '../../base/errors.ts';
import type { Channel } from '../../wire/channel.ts';
import { negotiateClient, negotiateServer } from '../../wire/negotiate.ts';
import { encodePatch } from './frames.ts';
import { VERSIONS, encodeMessage, parseAnswer, type Answer, type Message } from './messages.ts';
import { failureOf, randomFiles, startWorld, type World } from './stream.fixture.ts';

const LIMITS = { stallTimeoutMs: 2_000, heartbeatMs: 200, firstFrameTimeoutMs: 1_000 };

const raw = (value: unknown): Uint8Array => Buffer.concat([Uint8Array.of(0), encode(value)]);
const send = (channel: Channel, message: Message): Promise<void> => channel.send(...encodeMessage(message));

async function answerOf(channel: Channel): Promise<Answer> {
  for (;;) {
    const frame = await channel.receive(5_000);
    assert.ok(frame !== null, 'the source does not answer');
    const answer = parseAnswer(frame);
    if (answer.kind !== 'wait') return answer;
  }
}

// ── Receivers that lie ──────────────────────────────────────────────────────────────────────────────────────────────

interface Receiver {
  readonly world: World;
  readonly control: Channel;
  readonly session: string;
  dial(): Promise<Channel>;
  attached(): Promise<Channel>;
}

/** What it does, and how the source answers on the channel that it returns. */
const HOSTILE_RECEIVERS: Readonly<
  Record<string, readonly [(receiver: Receiver) => Promise<Channel>, ErrorCode | 'closed']>
> = {
  'a first frame that names no version': [
    async ({ world }) => {
      const channel = await world.connect();
      await channel.send(Buffer.from('GET / HTTP/1.1'));
      await channel.receive(5_000);
      return channel;
    },
    'VERSION_MISMATCH',
  ],
  'a first message that is none': [
    async ({ dial }) => {
      const channel = await dial();
      await channel.send(Buffer.alloc(1000, 0xff));
      return channel;
    },
    'PROTOCOL_ERROR',
  ],
  'a message of a mebibyte': [
    async ({ dial }) => {
      const channel = await dial();
      await channel.send(Buffer.alloc(1024 * 1024));
      return channel;
    },
    'closed',
  ],
  'a channel for a session that does not exist': [
    async ({ dial }) => {
      const channel = await dial();
      await send(channel, { kind: 'attach', session: 'f'.repeat(32) });
      return channel;
    },
    'RESERVATION_EXPIRED',
  ],
  'a negative rate': [
    async ({ dial }) => {
      const channel = await dial();
      await channel.send(raw({ kind: 'begin', rateBytesPerSecond: -1, compression: 'auto' }));
      return channel;
    },
    'PROTOCOL_ERROR',
  ],
  'an item that was not offered': [
    async ({ attached }) => {
      const channel = await attached();
      await channel.send(raw({ kind: 'fetch', name: 'file/other', base: 0 }));
      return channel;
    },
    'PROTOCOL_ERROR',
  ],
  'an item by a path': [
    async ({ attached }) => {
      const channel = await attached();
      await channel.send(raw({ kind: 'fetch', name: 'file/../../etc/passwd', base: 0 }));
      return channel;
    },
    'PROTOCOL_ERROR',
  ],
  'a base of 2^64 bytes': [
    async ({ attached }) => {
      const channel = await attached();
      await channel.send(raw({ kind: 'fetch', name: 'file/part-0', base: 2 ** 64 }));
      return channel;
    },
    'PROTOCOL_ERROR',
  ],
  'more hashes than there are pages': [
    async ({ attached }) => {
      const channel = await attached();
      await send(channel, { kind: 'fetch', name: 'file/part-0', base: 4096 });
      assert.equal((await answerOf(channel)).kind, 'opened');
      await channel.send(Buffer.concat([Uint8Array.of(1), Buffer.alloc(800)]));
      return channel;
    },
    'PROTOCOL_ERROR',
  ],
  'a copy of its base that does not grow': [
    async ({ attached }) => {
      const channel = await attached();
      await send(channel, { kind: 'copying', bytes: 4096 });
      await send(channel, { kind: 'copying', bytes: 4096 });
      return channel;
    },
    'PROTOCOL_ERROR',
  ],
  'half a hash': [
    async ({ attached }) => {
      const channel = await attached();
      await send(channel, { kind: 'fetch', name: 'file/part-0', base: 4096 });
      assert.equal((await answerOf(channel)).kind, 'opened');
      await channel.send(Uint8Array.of(1, 2, 3, 4, 5));
      return channel;
    },
    'PROTOCOL_ERROR',
  ],
  'the tail while an item is being sent': [
    async ({ attached, control }) => {
      const channel = await attached();
      await send(channel, { kind: 'fetch', name: 'file/part-0', base: 4096 });
      assert.equal((await answerOf(channel)).kind, 'opened');
      await send(control, { kind: 'tail' });
      return control;
    },
    'PROTOCOL_ERROR',
  ],
  'a fetch on the control channel': [
    async ({ control }) => {
      await send(control, { kind: 'fetch', name: 'file/part-0', base: 0 });
      return control;
    },
    'PROTOCOL_ERROR',
  ],
  'an end on a data channel': [
    async ({ attached }) => {
      const channel = await attached();
      await send(channel, { kind: 'end' });
      return channel;
    },
    'PROTOCOL_ERROR',
  ],
  'more channels than are allowed': [
    async ({ attached, dial, session }) => {
      for (let count = 0; count < 16; count += 1) await attached();
      const channel = await dial();
      await send(channel, { kind: 'attach', session });
      return channel;
    },
    'PROTOCOL_ERROR',
  ],
  'no hashes where they are due': [
    async ({ attached }) => {
      const channel = await attached();
      await send(channel, { kind: 'fetch', name: 'file/part-0', base: 4096 });
      assert.equal((await answerOf(channel)).kind, 'opened');
      return channel;
    },
    'closed',
  ],
};

test('a receiver that asks for less than the least rate gets that, and not the whole at once', async () => {
  await using world = await startWorld({ files: randomFiles(1, [2_000_000]) });
  const dial = async (): Promise<Channel> => {
    const channel = await world.connect();
    await negotiateClient(channel, VERSIONS);
    return channel;
  };
  const control = await dial();
  // As milliseconds its waits are more than a timer of Node takes, which then takes none.
  await send(control, { kind: 'begin', rateBytesPerSecond: 1e-300, compression: 'off' });
  const begun = await answerOf(control);
  assert.ok(begun.kind === 'session');
  const data = await dial();
  await send(data, { kind: 'attach', session: begun.session });
  assert.equal((await answerOf(data)).kind, 'attached');
  await send(data, { kind: 'fetch', name: 'file/part-0', base: 0 });
  let received = 0;
  for (const endMs = performance.now() + 1_000; performance.now() < endMs;)
    received += (await data.receive(endMs - performance.now()))?.length ?? 0;
  assert.ok(received < 200_000, `${received} bytes in a second`);
  for (const channel of [data, control]) channel.close();
});

for (const [what, [lie, outcome]] of Object.entries(HOSTILE_RECEIVERS))
  test(`a receiver that sends ${what} is refused, and the next one is served`, async (context) => {
    await using world = await startWorld({ files: randomFiles(1, [20_000]), limits: LIMITS });
    const dial = async (): Promise<Channel> => {
      const channel = await world.connect();
      await negotiateClient(channel, VERSIONS);
      return channel;
    };
    const control = await dial();
    await send(control, { kind: 'begin', rateBytesPerSecond: null, compression: 'off' });
    const begun = await answerOf(control);
    assert.ok(begun.kind === 'session');
    assert.equal((await answerOf(control)).kind, 'items');
    const pings = setInterval(() => void send(control, { kind: 'ping' }).catch(() => undefined), 200);
    context.after(() => clearInterval(pings));
    const attached = async (): Promise<Channel> => {
      const channel = await dial();
      await send(channel, { kind: 'attach', session: begun.session });
      assert.equal((await answerOf(channel)).kind, 'attached');
      return channel;
    };
    const channel = await lie({ world, control, session: begun.session, dial, attached });
    if (outcome === 'closed') {
      const failure = await failureOf(answerOf(channel));
      assert.ok(failure instanceof NostosError && failure.code === 'CHANNEL_CLOSED', failure.message);
    } else {
      const answer = await answerOf(channel);
      assert.ok(answer.kind === 'error', answer.kind);
      assert.equal(answer.error.code, outcome, answer.error.message);
    }
    assert.ok(world.failures.length > 0, 'the service knows of it');
    control.close();
    await world.fetch();
  });

// ── Sources that lie ────────────────────────────────────────────────────────────────────────────────────────────────

/** What a lying source does where a true one would serve; each step gets the channel. */
interface Script {
  readonly plan?: object;
  readonly items?: unknown;
  readonly itemCount?: unknown;
  readonly fetch?: (channel: Channel) => Promise<void>;
  readonly tail?: unknown;
}

const opened = (channel: Channel, bytes = 8192): Promise<void> =>
  send(channel, { kind: 'opened', bytes, attributes: {} });

const patch = (
  channel: Channel,
  over: { coveredTo?: number; offset?: number; length?: number; dataBytes?: number },
) => {
  const length = over.length ?? 4096;
  const runs = length === 0 ? [] : [{ offset: over.offset ?? 0, length }];
  return channel.send(
    ...encodePatch({
      coveredTo: over.coveredTo ?? 4096,
      prefixHash: new Uint8Array(16),
      runs,
      dataBytes: over.dataBytes ?? length,
      data: new Uint8Array(length),
      compressed: false,
    }),
  );
};

const BOMB = zstdCompressSync(Buffer.alloc(64 * 1024 * 1024));

const HOSTILE_SOURCES: Readonly<Record<string, readonly [Script, ErrorCode]>> = {
  'a plan of 2^32 items': [{ itemCount: 2 ** 32 - 1 }, 'RESTORE_TOO_LARGE'],
  'more items than it announced': [
    {
      itemCount: 1,
      items: [
        ['file/a', 1],
        ['file/b', 1],
      ],
    },
    'PROTOCOL_ERROR',
  ],
  'an empty part of a plan': [{ items: [] }, 'PROTOCOL_ERROR'],
  'an item twice': [
    {
      itemCount: 2,
      items: [
        ['file/a', 1],
        ['file/a', 1],
      ],
    },
    'PROTOCOL_ERROR',
  ],
  'a file that a node could believe in': [
    { plan: { kind: 'node' }, items: [['file/coordinator.json', 1]] },
    'PROTOCOL_ERROR',
  ],
  'a tenant among plain files': [{ items: [['tenant/1', 1]] }, 'PROTOCOL_ERROR'],
  'a name that climbs': [{ items: [['file/../../evil', 1]] }, 'PROTOCOL_ERROR'],
  'an absolute path': [{ items: [['/tmp/evil', 1]] }, 'PROTOCOL_ERROR'],
  'a name with NUL': [{ items: [['file/evil\0', 1]] }, 'PROTOCOL_ERROR'],
  'a size near 2^64': [{ items: [['file/a', 2 ** 64]] }, 'PROTOCOL_ERROR'],
  'a file that is larger than the disk': [{ fetch: (channel) => opened(channel, 2 ** 52) }, 'DISK_FULL'],
  'a file of 2^64 bytes': [
    { fetch: (channel) => channel.send(raw({ kind: 'opened', bytes: 2 ** 64, attributes: {} })) },
    'PROTOCOL_ERROR',
  ],
  'data before it opened the file': [{ fetch: (channel) => patch(channel, {}) }, 'PROTOCOL_ERROR'],
  'data beyond the file': [
    {
      fetch: async (channel) => {
        await opened(channel);
        await patch(channel, { offset: 8192, coveredTo: 12_288 });
      },
    },
    'PROTOCOL_ERROR',
  ],
  'a gap where there is no base': [
    {
      fetch: async (channel) => {
        await opened(channel);
        await patch(channel, { offset: 4096, coveredTo: 8192 });
      },
    },
    'PROTOCOL_ERROR',
  ],
  'frames that cover nothing': [
    {
      fetch: async (channel) => {
        await opened(channel);
        await patch(channel, { length: 0, coveredTo: 0 });
      },
    },
    'PROTOCOL_ERROR',
  ],
  'part of a page': [
    {
      fetch: async (channel) => {
        await opened(channel);
        await patch(channel, { length: 100, coveredTo: 100 });
      },
    },
    'PROTOCOL_ERROR',
  ],
  'data near 4 GiB in one frame': [
    {
      fetch: async (channel) => {
        await opened(channel);
        await patch(channel, { dataBytes: 0xffff_ffff });
      },
    },
    'PROTOCOL_ERROR',
  ],
  'an end before the end': [
    {
      fetch: async (channel) => {
        await opened(channel);
        await send(channel, { kind: 'done', digest: new Uint8Array(32) });
      },
    },
    'PROTOCOL_ERROR',
  ],
  'a wrong hash, each time': [
    {
      fetch: async (channel) => {
        await opened(channel);
        await patch(channel, {});
      },
    },
    'TRANSFER_DAMAGED',
  ],
  'a compressed frame that unfolds to more': [
    {
      fetch: async (channel) => {
        await opened(channel);
        const data = BOMB;
        const runs = [{ offset: 0, length: 4096 }];
        const frame = {
          coveredTo: 4096,
          prefixHash: new Uint8Array(16),
          runs,
          dataBytes: 4096,
          data,
          compressed: true,
        };
        await channel.send(...encodePatch(frame));
      },
    },
    'TRANSFER_DAMAGED',
  ],
  'an error of its own': [
    {
      fetch: (channel) =>
        channel.send(
          raw({ kind: 'error', error: { code: 'RESERVATION_EXPIRED', message: 'gone', details: { n: 7 } } }),
        ),
    },
    'RESERVATION_EXPIRED',
  ],
  'signs of life for ever': [
    {
      fetch: async (channel) => {
        while (channel.isOpen) {
          await send(channel, { kind: 'wait' });
          await new Promise((resolve) => void setTimeout(resolve, 20));
        }
      },
    },
    'NETWORK_TIMEOUT',
  ],
  'signs of life in place of the tail': [
    { fetch: (channel) => empty(channel), tail: { kind: 'wait' } },
    'NETWORK_TIMEOUT',
  ],
  'a tail of 2^32 items': [
    { fetch: (channel) => empty(channel), tail: { kind: 'tail', itemCount: 2 ** 32 - 1 } },
    'RESTORE_TOO_LARGE',
  ],
  'another answer than the tail': [
    { fetch: (channel) => empty(channel), tail: { kind: 'attached' } },
    'PROTOCOL_ERROR',
  ],
};

const EMPTY_DIGEST = Buffer.from('af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262', 'hex');

async function empty(channel: Channel): Promise<void> {
  await opened(channel, 0);
  await send(channel, { kind: 'done', digest: EMPTY_DIGEST });
}

const IDENTITY = { kind: 'files', cluster: null, generation: null, store: null, node: null, term: 0, watermark: 0 };

for (const [what, [script, code]] of Object.entries(HOSTILE_SOURCES))
  test(`a source that sends ${what} is refused`, async () => {
    let fired = 0;
    const handle = async (channel: Channel): Promise<void> => {
      await negotiateServer(channel, VERSIONS);
      for (;;) {
        const frame = await channel.receive(10_000);
        if (frame === null) return;
        const text = Buffer.from(frame).toString('latin1');
        if (text.includes('begin')) {
          const { itemCount = 1, items = [['file/a', 8192]] } = script;
          fired += Number(script.items !== undefined || script.itemCount !== undefined);
          await channel.send(
            raw({ kind: 'session', session: 'a'.repeat(32), plan: { ...IDENTITY, ...script.plan, itemCount } }),
          );
          await channel.send(raw({ kind: 'items', items }));
        } else if (text.includes('attach')) await send(channel, { kind: 'attached' });
        else if (text.includes('fetch')) {
          fired += Number(script.tail === undefined);
          await script.fetch?.(channel);
        } else if (text.includes('tail')) {
          fired += 1;
          await channel.send(raw(script.tail ?? { kind: 'tail', itemCount: 0 }));
        } else if (text.includes('ping')) await send(channel, { kind: 'wait' });
        else if (text.includes('end')) return await send(channel, { kind: 'ended' });
      }
    };
    await using world = await startWorld({
      handler: { serviceName: VERSIONS.service, handle },
      limits: { ...LIMITS, progressTimeoutMs: 1_000 },
    });
    const failure = await failureOf(world.fetch());
    assert.ok(failure instanceof NostosError, failure.message);
    assert.equal(failure.code, code, failure.message);
    if (code === 'RESERVATION_EXPIRED') assert.deepEqual(failure.details, { n: 7 });
    assert.equal(fired, code === 'TRANSFER_DAMAGED' ? 2 : 1, 'and the lie was told');
    assert.deepEqual(
      readdirSync(world.targetDir).filter((name) => name !== 'a'),
      [],
    );
  });
