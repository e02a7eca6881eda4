import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { NostosError } from '../../base/errors.ts';
import { seededRandom } from '../../base/random.ts';
import type { ItemName } from '../item-name.ts';
import type { PlanItem, RestoreSource, SourceInfo } from '../source.ts';
import { requestInfo } from './client.ts';
import { compressionPays } from './compression.ts';
import { digests, failureOf, randomFiles, startWorld } from './stream.fixture.ts';
import { TokenBucket } from './token-bucket.ts';

const SIZES = [0, 1, 4095, 4096, 4097, 700_000, 1_500_000, 5_000_000];

test('every file arrives, with its digest, and what is there is not sent again', async () => {
  await using world = await startWorld({ files: randomFiles(1, SIZES) });
  const progress: number[] = [];
  const report = await world.fetch({}, { onProgress: ({ bytesDone }) => progress.push(bytesDone) });
  assert.deepEqual(digests(world.targetDir), digests(world.sourceDir));
  const total = SIZES.reduce((sum, size) => sum + size, 0);
  assert.equal(report.items.length, SIZES.length);
  for (const { name, bytes } of report.items) assert.equal(bytes, statSync(join(world.sourceDir, name.slice(5))).size);
  assert.equal(report.bytesReused, 0);
  assert.ok(report.bytesOnWire > total && report.bytesOnWire < total + 10_000, `${report.bytesOnWire}`);
  assert.equal(progress.at(-1), total);
  assert.deepEqual(
    progress,
    progress.toSorted((a, b) => a - b),
  );

  const again = await world.fetch();
  assert.equal(again.bytesReused, total);
  assert.ok(again.bytesOnWire < 0.01 * total, `${again.bytesOnWire}`);
});

test('a base elsewhere is cloned, and only pages that differ are sent', async () => {
  const bases = mkdtempSync(join(tmpdir(), 'nostos-bases-'));
  try {
    const files = randomFiles(2, [3_000_000, 2_000_000]);
    await using world = await startWorld({ files, bases });
    const base = Buffer.from(files['part-0']!);
    for (let page = 0; page < 700; page += 100) base.fill(7, page * 4096, page * 4096 + 10);
    writeFileSync(join(bases, 'part-0'), base);
    const report = await world.fetch();
    assert.deepEqual(digests(world.targetDir), digests(world.sourceDir));
    assert.equal(report.bytesReused, 3_000_000 - 7 * 4096);
    assert.deepEqual(readFileSync(join(bases, 'part-0')), base, 'the base itself stays as it was');
  } finally {
    rmSync(bases, { recursive: true });
  }
});

test('a run that was cut off at any point goes on with what it has', async () => {
  const total = 6_000_000;
  await using world = await startWorld({ files: randomFiles(3, [4_000_000, 1_500_000, 500_000]) });
  const random = seededRandom(3);
  for (let round = 0; round < 12; round += 1) {
    rmSync(world.targetDir, { recursive: true });
    const { mkdirSync } = await import('node:fs');
    mkdirSync(world.targetDir);
    const share = round === 0 ? 0.5 : random.below(1000) / 1000;
    const abort = new AbortController();
    let doneBytes = 0;
    const reason = new Error('enough');
    const failure = await failureOf(
      world.fetch(
        { connections: 2 },
        {
          signal: abort.signal,
          onProgress: (progress) => {
            doneBytes = Math.max(doneBytes, progress.bytesDone);
            if (progress.bytesDone >= share * total) abort.abort(reason);
          },
        },
      ),
    );
    assert.equal(failure, reason);
    const report = await world.fetch();
    assert.deepEqual(digests(world.targetDir), digests(world.sourceDir));
    // What was on its way to the disk when it was cut off may be sent twice: a frame for each channel.
    assert.ok(report.bytesOnWire <= total - doneBytes + 0.01 * total + 2 * 600_000, `${share}: ${report.bytesOnWire}`);
  }
});

test('what was written is told apart from what was there and from what was hashed', async () => {
  await using world = await startWorld({ files: randomFiles(5, [3_000_000, 100_000]) });
  const writtenBytes = async (): Promise<number | undefined> => {
    let last: number | undefined;
    const { bytesOnWire } = await world.fetch({}, { onProgress: ({ bytesWritten }) => (last = bytesWritten) });
    assert.ok(bytesOnWire > 3_000, 'hashes at least');
    return last;
  };
  assert.equal(await writtenBytes(), 3_100_000);
  assert.equal(await writtenBytes(), 0);
  const content = readFileSync(join(world.sourceDir, 'part-0'));
  content[70_000]! ^= 1;
  writeFileSync(join(world.sourceDir, 'part-0'), content);
  assert.equal(await writtenBytes(), 4096);
});

test('the tail is asked for once all items are there, and fetched after them', async () => {
  const calls: string[] = [];
  const tail: PlanItem[] = [{ name: 'file/part-1' as ItemName, bytes: 10 }];
  const wrap = (source: RestoreSource): RestoreSource => ({
    begin: async (signal) => {
      const session = await source.begin(signal);
      return {
        ...session,
        plan: { ...session.plan, items: session.plan.items.filter(({ name }) => name === 'file/part-0') },
        open: async (name, signal) => {
          calls.push(`open ${name}`);
          const file = await session.open(name, signal);
          return {
            ...file,
            close: async () => {
              calls.push(`close ${name}`);
              await file.close();
            },
          };
        },
        tail: async () => {
          calls.push('tail');
          return tail;
        },
        close: async () => void calls.push('end'),
      };
    },
  });
  await using world = await startWorld({ files: randomFiles(4, [100_000, 50_000]), wrap });
  const phases = new Set<string>();
  await world.fetch({}, { onProgress: ({ phase }) => phases.add(phase) });
  assert.deepEqual(calls, [
    'open file/part-0',
    'close file/part-0',
    'tail',
    'open file/part-1',
    'close file/part-1',
    'end',
  ]);
  assert.deepEqual([...phases], ['items', 'tail']);
});

test('a member says what it is without a session', async () => {
  const info: SourceInfo = {
    role: 'replica',
    cluster: 'a'.repeat(32),
    generation: 'b'.repeat(32),
    node: 'c'.repeat(32),
    store: 'd'.repeat(32),
    term: 3,
    watermark: 99,
    firstLsn: 5,
  };
  let begun = 0;
  const wrap = (source: RestoreSource): RestoreSource => ({
    info: async () => info,
    begin: (signal) => {
      begun += 1;
      return source.begin(signal);
    },
  });
  await using world = await startWorld({ wrap });
  assert.deepEqual(await requestInfo(world), { ...info, sessions: 0 });
  assert.equal(begun, 0);
  const client = await world.open();
  assert.equal((await requestInfo(world)).sessions, 1);
  await client.close();
  assert.equal((await requestInfo(world)).sessions, 0);
});

test('more sessions than are allowed are refused with the numbers', async () => {
  await using world = await startWorld({ limits: { sessionsMax: 2 } });
  const clients = [await world.open(), await world.open()];
  const failure = await failureOf(world.open());
  assert.ok(failure instanceof NostosError);
  assert.deepEqual([failure.code, failure.details], ['QUEUE_FULL', { sessions: 2, sessionsMax: 2 }]);
  for (const client of clients) await client.close();
  await (await world.open()).close();
});

test('compression: all frames where it is asked for, none where the link does not wait', async () => {
  const text = Buffer.from('a line that is in the log again and again\n'.repeat(100_000));
  await using world = await startWorld({ files: { text, short: Buffer.from('short') } });
  const total = text.length;
  const on = await world.fetch({ compression: 'on' });
  assert.deepEqual(digests(world.targetDir), digests(world.sourceDir));
  assert.ok(on.bytesOnWire < 0.1 * total, `${on.bytesOnWire}`);
  rmSync(join(world.targetDir, 'text'));
  const off = await world.fetch({ compression: 'off' });
  assert.ok(off.bytesOnWire > total);
});

test('compression pays on a slow link for what compresses, and only there', () => {
  const sample = { compressBytesPerSecond: 400e6, ratio: 0.3 };
  assert.equal(compressionPays({ ...sample, linkBytesPerSecond: 50e6 }), true);
  assert.equal(compressionPays({ ...sample, linkBytesPerSecond: 1e9 }), false);
  assert.equal(compressionPays({ ...sample, linkBytesPerSecond: Infinity }), false);
  assert.equal(compressionPays({ ...sample, linkBytesPerSecond: 50e6, ratio: 0.97 }), false);
});

test('with a rate limit a compressible file is sent compressed after a while', async () => {
  const text = Buffer.from('a line that is in the log again and again\n'.repeat(200_000));
  await using world = await startWorld({ files: { text } });
  const report = await world.fetch({ rateBytesPerSecond: 8_000_000, connections: 1 });
  assert.deepEqual(digests(world.targetDir), digests(world.sourceDir));
  assert.ok(report.bytesOnWire < 0.5 * text.length, `${report.bytesOnWire} of ${text.length}`);
});

test('the rate limit holds, of the source and of the receiver', async () => {
  const size = 600_000;
  await using world = await startWorld({ files: randomFiles(8, [size]), rateBytesPerSecond: 1_000_000 });
  const bySource = await world.fetch({ compression: 'off' });
  assert.ok(bySource.elapsedMs > 400, `${bySource.elapsedMs} ms`);
  rmSync(join(world.targetDir, 'part-0'));
  const byReceiver = await world.fetch({ compression: 'off', rateBytesPerSecond: 500_000 });
  assert.ok(byReceiver.elapsedMs > 900, `${byReceiver.elapsedMs} ms`);
});

test('a token bucket lets through its rate, and no more after a pause than a burst', () => {
  let nowMs = 0;
  const bucket = new TokenBucket(1000, { monotonicMs: () => nowMs, after: () => () => undefined });
  assert.equal(bucket.take(500), 500);
  nowMs = 500;
  assert.equal(bucket.take(100), 100);
  nowMs = 60_000;
  assert.equal(bucket.take(100), 0);
  assert.equal(bucket.take(1000), 1000);
});

test('a plan of many items with the longest of names arrives whole', async () => {
  const items = Array.from({ length: 2_500 }, (_, index) => ({
    name: `file/${String(index).padStart(200, 'x')}` as ItemName,
    bytes: index,
  }));
  const wrap = (source: RestoreSource): RestoreSource => ({
    begin: async (signal) => {
      const session = await source.begin(signal);
      return { ...session, plan: { ...session.plan, items } };
    },
  });
  await using world = await startWorld({ wrap });
  const client = await world.open();
  assert.deepEqual(client.plan.items, items);
  await client.close();
});

test('more items than both sides have memory for are refused by name, by the source and by the receiver', async () => {
  const limits = { planItemsMax: 3 };
  for (const side of ['source', 'receiver']) {
    const [source, receiver] = side === 'source' ? [limits, {}] : [{}, limits];
    await using world = await startWorld({ files: randomFiles(2, [1, 1, 1, 1]), limits: source });
    const failure = await failureOf(world.open({ limits: receiver }));
    assert.equal(world.failures.length > 0, side === 'source', 'it was that side');
    assert.ok(failure instanceof NostosError && failure.code === 'RESTORE_TOO_LARGE', failure.message);
    assert.deepEqual(failure.details, { items: 4, planItemsMax: 3 });
  }
});

test('files whose names are no item names, links and directories are not served', async () => {
  await using world = await startWorld({
    files: { good: Buffer.from('x'), '.hidden': Buffer.from('y'), 'a b': Buffer.from('z') },
  });
  const { mkdirSync, symlinkSync } = await import('node:fs');
  mkdirSync(join(world.sourceDir, 'directory'));
  symlinkSync('/etc/hostname', join(world.sourceDir, 'link'));
  const report = await world.fetch();
  assert.deepEqual(
    report.items.map(({ name }) => name),
    ['file/good'],
  );
  assert.equal(statSync(join(world.targetDir, 'good')).size, 1);
});
