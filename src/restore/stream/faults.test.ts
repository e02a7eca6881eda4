/**
 * What a network, a disk and a source can do to a restore, each seen to happen. Afterwards the source holds nothing, the
 * error is typed, and the same restore without the fault ends with every file.
 */
import assert from 'node:assert/strict';
import { appendFileSync, rmSync, truncateSync } from 'node:fs';
import { createServer, connect as connectTcp, type Socket } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { NostosError, type ErrorCode } from '../../base/errors.ts';
import { mountRefusal, mountSmall } from '../../testing/small-disk.fixture.ts';
import { DirectorySource } from '../directory-source.ts';
import { itemPath } from '../item-name.ts';
import type { RestoreSource, SourceFile, SourceSession } from '../source.ts';
import { digests, failureOf, randomFiles, startWorld, type World } from './stream.fixture.ts';

const LIMITS = { stallTimeoutMs: 400, heartbeatMs: 50, firstFrameTimeoutMs: 400, progressTimeoutMs: 5_000 };
const PATCH_BYTES = 256 * 1024;
/** Five frames of data. */
const FILES = randomFiles(1, [4 * PATCH_BYTES + 100_000]);

// ── The network ─────────────────────────────────────────────────────────────────────────────────────────────────────

type Harm = 'close' | 'reset' | 'stall' | 'drip' | 'flip';

interface NetworkFault {
  readonly harm: Harm;
  /** The control channel is the first connection, the data channel the second one. */
  readonly connection: 'control' | 'data';
  readonly direction: 'to receiver' | 'to source';
  /** It strikes when so many bytes have passed. */
  readonly afterBytes: number;
  readonly times?: number;
}

/** Stands between both sides and does one harm. */
class Proxy {
  fault: NetworkFault | undefined;
  fired = 0;
  #connections = 0;
  readonly #sockets = new Set<Socket>();
  readonly #server = createServer();

  async start(target: string): Promise<string> {
    const [host, port] = target.split(':') as [string, string];
    this.#server.on('connection', (inner) => {
      const role = this.#connections++ === 0 ? 'control' : 'data';
      const outer = connectTcp(Number(port), host);
      for (const socket of [inner, outer]) {
        this.#sockets.add(socket);
        socket.setNoDelay(true);
        socket.on('error', () => undefined);
        socket.on('close', () => [inner, outer].forEach((each) => each.destroy()));
      }
      void this.#pass(inner, outer, role, 'to source');
      void this.#pass(outer, inner, role, 'to receiver');
    });
    await new Promise<void>((resolve) => void this.#server.listen(0, '127.0.0.1', resolve));
    const address = this.#server.address();
    assert.ok(address !== null && typeof address === 'object');
    return `127.0.0.1:${address.port}`;
  }

  /** The next connection is a control channel again. */
  forget(): void {
    this.#connections = 0;
    this.fault = undefined;
  }

  stop(): void {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
  }

  async #pass(from: Socket, to: Socket, role: string, direction: string): Promise<void> {
    let passed = 0;
    try {
      for await (const chunk of from as AsyncIterable<Buffer>) {
        const { fault } = this;
        const due =
          fault?.connection === role &&
          fault.direction === direction &&
          passed <= fault.afterBytes &&
          passed + chunk.length > fault.afterBytes;
        const at = due ? fault.afterBytes - passed : 0;
        passed += chunk.length;
        if (!due || this.fired >= (fault.times ?? 1)) {
          to.write(chunk);
          continue;
        }
        this.fired += 1;
        await HARMS[fault.harm](to, chunk, at);
      }
      to.end();
    } catch {
      to.destroy();
    }
  }
}

const HARMS: Readonly<Record<Harm, (to: Socket, chunk: Buffer, at: number) => Promise<void>>> = {
  close: async (to, chunk, at) => {
    to.end(chunk.subarray(0, at));
    throw new Error('closed');
  },
  reset: async (to) => {
    to.resetAndDestroy();
    throw new Error('reset');
  },
  stall: (to, chunk, at) => {
    to.write(chunk.subarray(0, at));
    return new Promise((resolve) => to.once('close', resolve));
  },
  drip: async (to, chunk, at) => {
    to.write(chunk.subarray(0, at));
    for (let byte = at; byte < chunk.length && !to.destroyed; byte += 1) {
      to.write(chunk.subarray(byte, byte + 1));
      await sleep(1_000);
    }
  },
  flip: async (to, chunk, at) => {
    chunk[at]! ^= 0x10;
    to.write(chunk);
  },
};

interface NetworkCase {
  readonly fault: NetworkFault;
  readonly codes: readonly (ErrorCode | 'none')[];
}

const LOST: readonly ErrorCode[] = ['CHANNEL_CLOSED', 'NETWORK_FAILED'];
const TIMED_OUT: readonly ErrorCode[] = ['NETWORK_TIMEOUT'];

/** Steps of both channels, by how many bytes went to the receiver before them. */
const STEPS: readonly (readonly [NetworkFault['connection'], number, string])[] = [
  ['control', 0, 'before any answer'],
  ['control', 8, 'in the answer to the version'],
  ['control', 100, 'in the plan'],
  ['data', 0, 'before a data channel is taken'],
  ['data', 20, 'as it is taken'],
  ['data', 60, 'as the file is opened'],
  ['data', 10_000, 'in the first frame'],
  ['data', PATCH_BYTES + 5_000, 'in the second frame'],
  ['data', 4 * PATCH_BYTES + 100_250, 'at the end of the file'],
];

const NETWORK: NetworkCase[] = [
  ...STEPS.flatMap(([connection, afterBytes]): NetworkCase[] => [
    { fault: { harm: 'close', connection, direction: 'to receiver', afterBytes }, codes: LOST },
    { fault: { harm: 'reset', connection, direction: 'to receiver', afterBytes }, codes: LOST },
    { fault: { harm: 'stall', connection, direction: 'to receiver', afterBytes }, codes: TIMED_OUT },
    { fault: { harm: 'drip', connection, direction: 'to receiver', afterBytes }, codes: TIMED_OUT },
  ]),
  ...[20, 60].flatMap((afterBytes): NetworkCase[] => [
    { fault: { harm: 'close', connection: 'data', direction: 'to source', afterBytes }, codes: LOST },
    {
      fault: { harm: 'stall', connection: 'data', direction: 'to source', afterBytes },
      codes: [...TIMED_OUT, ...LOST],
    },
  ]),
  // Found at once, and fetched once more: the first, a middle and the last frame.
  ...[10_000, PATCH_BYTES + 5_000, 4 * PATCH_BYTES + 50_000].flatMap((afterBytes): NetworkCase[] => [
    { fault: { harm: 'flip', connection: 'data', direction: 'to receiver', afterBytes }, codes: ['none'] },
    {
      fault: { harm: 'flip', connection: 'data', direction: 'to receiver', afterBytes, times: 2 },
      codes: ['TRANSFER_DAMAGED'],
    },
  ]),
];

/** Counts what a source has handed out, to see that all of it came back. */
class Audit {
  held = 0;
  wrap = (source: RestoreSource): RestoreSource => ({
    begin: async (signal) => this.#session(await source.begin(signal)),
  });

  #session(session: SourceSession): SourceSession {
    this.held += 1;
    return {
      ...session,
      open: async (name, signal) => this.#file(await session.open(name, signal)),
      close: async () => {
        await session.close();
        this.held -= 1;
      },
    };
  }

  #file(file: SourceFile): SourceFile {
    this.held += 1;
    return {
      ...file,
      close: async () => {
        await file.close();
        this.held -= 1;
      },
    };
  }

  async returned(): Promise<void> {
    for (let tries = 0; this.held > 0 && tries < 200; tries += 1) await sleep(10);
    assert.equal(this.held, 0, 'the source still holds something');
  }
}

for (const { fault, codes } of NETWORK) {
  const { harm, connection, direction, afterBytes, times = 1 } = fault;
  test(`${harm} ${direction} on the ${connection} channel after ${afterBytes} bytes, ${times} times: ${codes.join(' or ')}`, async () => {
    const [proxy, audit] = [new Proxy(), new Audit()];
    try {
      const wrap = audit.wrap;
      await using world = await startWorld({
        files: FILES,
        limits: LIMITS,
        wrap,
        via: (address) => proxy.start(address),
      });
      proxy.fault = fault;
      if (codes.includes('none')) await world.fetch({ connections: 1 });
      else assertTyped(await failureOf(world.fetch({ connections: 1 })), codes as ErrorCode[]);
      assert.equal(proxy.fired, times, 'the harm was done');
      proxy.forget();
      await world.fetch();
      assert.deepEqual(digests(world.targetDir), digests(world.sourceDir));
      await audit.returned();
    } finally {
      proxy.stop();
    }
  });
}

function assertTyped(failure: Error, codes: readonly ErrorCode[]): void {
  assert.ok(failure instanceof NostosError, failure.stack ?? '');
  assert.ok(codes.includes(failure.code), `${failure.code}: ${failure.message}`);
}

test('the range that arrived damaged is named', async () => {
  const proxy = new Proxy();
  try {
    await using world = await startWorld({ files: FILES, limits: LIMITS, via: (address) => proxy.start(address) });
    const afterBytes = PATCH_BYTES + 5_000;
    proxy.fault = { harm: 'flip', connection: 'data', direction: 'to receiver', afterBytes, times: 2 };
    const failure = await failureOf(world.fetch({ connections: 1 }));
    assert.ok(failure instanceof NostosError);
    const { item, from, to } = failure.details;
    assert.deepEqual([item, from, to], ['file/part-0', PATCH_BYTES, 2 * PATCH_BYTES]);
  } finally {
    proxy.stop();
  }
});

// ── The source ──────────────────────────────────────────────────────────────────────────────────────────────────────

interface Fired {
  count: number;
}

interface SourceCase {
  readonly fault: (session: SourceSession, fired: Fired, world: () => World) => SourceSession;
  readonly codes: readonly ErrorCode[];
  readonly details?: Readonly<Record<string, unknown>>;
}

const refusal = new NostosError('RESERVATION_EXPIRED', 'the hold is gone', { details: { heldBytes: 12 } });

/** Before the second read of a file. */
const onSecondRead =
  (harm: (path: string) => void): SourceCase['fault'] =>
  (session, fired, world) => ({
    ...session,
    open: async (name, signal) => {
      const file = await session.open(name, signal);
      let reads = 0;
      return {
        ...file,
        read: (target, offset) => {
          reads += 1;
          if (reads === 2 && fired.count++ === 0) harm(join(world().sourceDir, ...itemPath(name)));
          file.read(target, offset);
        },
      };
    },
  });

const SOURCE: Readonly<Record<string, SourceCase>> = {
  'a file that shrinks while it is read': {
    fault: onSecondRead((path) => truncateSync(path, 600_000)),
    codes: ['IO_FAILED'],
  },
  'a file that vanishes before it is opened': {
    fault: (session, fired, world) => ({
      ...session,
      open: (name, signal) => {
        fired.count += 1;
        rmSync(join(world().sourceDir, ...itemPath(name)));
        return session.open(name, signal);
      },
    }),
    codes: ['IO_FAILED'],
  },
  'a hold that is gone at the start of an item': {
    fault: (session, fired) => ({
      ...session,
      open: async () => {
        fired.count += 1;
        throw refusal;
      },
    }),
    codes: ['RESERVATION_EXPIRED'],
    details: { heldBytes: 12 },
  },
  'a hold that is gone in the middle of an item': {
    fault: (session, fired) => {
      let bytesSent = 0;
      return {
        ...session,
        progress: (bytes) => {
          bytesSent += bytes;
          if (bytesSent < PATCH_BYTES) return;
          fired.count += 1;
          throw refusal;
        },
      };
    },
    codes: ['RESERVATION_EXPIRED'],
    details: { heldBytes: 12 },
  },
  'a tail that fails': {
    fault: (session, fired) => ({
      ...session,
      tail: async () => {
        fired.count += 1;
        throw refusal;
      },
    }),
    codes: ['RESERVATION_EXPIRED'],
    details: { heldBytes: 12 },
  },
  'an error that is none of ours': {
    fault: (session, fired) => ({
      ...session,
      open: async () => {
        fired.count += 1;
        throw new TypeError('a bug');
      },
    }),
    codes: ['INTERNAL'],
  },
};

for (const [what, { fault, codes, details }] of Object.entries(SOURCE))
  test(`${what}: ${codes.join(' or ')}`, async () => {
    const [audit, fired] = [new Audit(), { count: 0 }];
    let harmless = false;
    let world: World | undefined;
    const wrap = (source: RestoreSource): RestoreSource =>
      audit.wrap({
        begin: async (signal) => {
          const session = await source.begin(signal);
          return harmless ? session : fault(session, fired, () => world!);
        },
      });
    await using started = (world = await startWorld({ files: FILES, limits: LIMITS, wrap }));
    const failure = await failureOf(started.fetch());
    assertTyped(failure, codes);
    if (details !== undefined) assert.deepEqual((failure as NostosError).details, details);
    assert.ok(fired.count > 0, 'the fault struck');
    harmless = true;
    await started.fetch();
    const arrived = digests(started.targetDir);
    for (const [name, digest] of Object.entries(digests(started.sourceDir))) assert.equal(arrived[name], digest);
    await audit.returned();
  });

test('a file that grows or vanishes while it is read is sent as it was opened', async () => {
  for (const harm of [(path: string) => appendFileSync(path, 'more'), (path: string) => rmSync(path)]) {
    const fired = { count: 0 };
    let world: World | undefined;
    const wrap = (source: RestoreSource): RestoreSource => ({
      begin: async (signal) => onSecondRead(harm)(await source.begin(signal), fired, () => world!),
    });
    await using started = (world = await startWorld({ files: FILES, limits: LIMITS, wrap }));
    const before = digests(started.sourceDir);
    await started.fetch();
    assert.equal(fired.count, 1);
    assert.deepEqual(digests(started.targetDir), before);
  }
});

test('an item that takes longer to open than a stall is waited for', async () => {
  let slow = 0;
  const late = async (): Promise<void> => {
    slow += 1;
    await sleep(2 * LIMITS.stallTimeoutMs);
  };
  const wrap = (source: RestoreSource): RestoreSource => ({
    begin: async (signal) => {
      await late();
      const session = await source.begin(signal);
      return {
        ...session,
        open: (name, signal) => late().then(() => session.open(name, signal)),
        tail: () => late().then(() => []),
      };
    },
  });
  await using world = await startWorld({ files: FILES, limits: LIMITS, wrap });
  await world.fetch();
  assert.equal(slow, 3);
  assert.deepEqual(digests(world.targetDir), digests(world.sourceDir));
});

test('a transfer may take longer than a source may go without progress', async () => {
  const limits = { ...LIMITS, progressTimeoutMs: 400 };
  await using world = await startWorld({ files: randomFiles(3, [300_000, 300_000]), limits });
  const { elapsedMs } = await world.fetch({ rateBytesPerSecond: 500_000, connections: 1, compression: 'off' });
  assert.ok(elapsedMs > 2 * limits.progressTimeoutMs, `${elapsedMs} ms`);
  assert.deepEqual(digests(world.targetDir), digests(world.sourceDir));
});

test('a receiver that goes away while an item is being opened leaves nothing open', async () => {
  const audit = new Audit();
  const opening = Promise.withResolvers<void>();
  const wrap = (source: RestoreSource): RestoreSource =>
    audit.wrap({
      begin: async (signal) => {
        const session = await source.begin(signal);
        return {
          ...session,
          open: async (name, signal) => {
            opening.resolve();
            await sleep(300);
            return session.open(name, signal);
          },
        };
      },
    });
  await using world = await startWorld({ files: FILES, limits: LIMITS, wrap });
  const abort = new AbortController();
  const fetching = failureOf(world.fetch({}, { signal: abort.signal }));
  await opening.promise;
  abort.abort(new Error('gone'));
  assert.equal((await fetching).message, 'gone');
  await audit.returned();
});

test('a session whose receiver lives and takes nothing gives up its holds, with the number', async () => {
  const audit = new Audit();
  const limits = { ...LIMITS, reservationTimeoutMs: 300 };
  await using world = await startWorld({ files: FILES, limits, wrap: audit.wrap });
  const client = await world.open();
  assert.equal(audit.held, 1);
  await audit.returned();
  const target = { pathOf: () => join(world.targetDir, 'never'), baseOf: () => undefined };
  const failure = await failureOf(client.fetchAll(target));
  assert.ok(failure instanceof NostosError);
  assert.equal(failure.code, 'RESERVATION_EXPIRED');
  assert.deepEqual(failure.details, { reservationTimeoutMs: 300 });
  await client.close();
});

// ── The disk ────────────────────────────────────────────────────────────────────────────────────────────────────────

test(
  'a disk without room for a file is refused before anything is written',
  { skip: mountRefusal() ?? false },
  async () => {
    using disk = mountSmall(1024 * 1024);
    await using world = await startWorld({ files: FILES, limits: LIMITS });
    const client = await world.open();
    const path = join(disk.dir, 'part-0');
    const failure = await failureOf(client.fetchAll({ pathOf: () => path, baseOf: () => undefined }));
    assert.ok(failure instanceof NostosError && failure.code === 'DISK_FULL', failure.message);
    assert.equal(failure.details['neededBytes'], FILES['part-0']!.length);
    assert.ok(Number(failure.details['freeBytes']) <= 1024 * 1024);
  },
);

test(
  'a disk that fills up meanwhile ends the run; with room again it goes on',
  { skip: mountRefusal() ?? false },
  async () => {
    using disk = mountSmall(4 * 1024 * 1024);
    const audit = new Audit();
    await using world = await startWorld({ files: FILES, limits: LIMITS, wrap: audit.wrap });
    const path = join(disk.dir, 'part-0');
    const target = { pathOf: () => path, baseOf: () => undefined };
    let filler: string | undefined;
    const first = await world.open();
    const failure = await failureOf(first.fetchAll(target, { onProgress: () => (filler ??= disk.fill()) }));
    assert.ok(failure instanceof NostosError && failure.code === 'DISK_FULL', failure.message);
    rmSync(filler!);
    const second = await world.open();
    await second.fetchAll(target);
    await second.close();
    rmSync(join(disk.dir, 'filler'), { force: true });
    assert.deepEqual(digests(disk.dir), digests(world.sourceDir));
    await audit.returned();
  },
);

test('a source directory that is not there is a typed error', async () => {
  await using world = await startWorld({ source: new DirectorySource('/nowhere/at/all') });
  assertTyped(await failureOf(world.open()), ['IO_FAILED']);
});
