/** A primary whose log is damaged in the midst: who is behind can never have that part of it by the stream. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { FAST, makeGroup, until, type TestGroup } from './group.fixture.ts';
import { openNode } from './open-node.ts';
import type { Node } from './types.ts';

const LIMITS = {
  ...FAST,
  segmentBytesMax: 256 * 1024,
  recordBytesMax: 128 * 1024,
  checkpointBytes: 64 * 1024,
  rejoinBackoffMs: 100,
  rejoinBackoffMaxMs: 1_000,
  rejoinTotalAttemptsMax: 1_000,
};
const BODY = 'x'.repeat(50_000);

const open = (group: TestGroup, index: number): Promise<Node> =>
  openNode({
    dir: group.dirs[index]!,
    scrubIntervalMs: false,
    limits: LIMITS,
    group: { coordinator: group.coordinator, listen: { port: 0 } },
  });

test(
  'who lacks what the primary cannot read any more takes a copy, and then the primary hands over and heals',
  { timeout: 180_000 },
  async (t) => {
    const group = await makeGroup(t, 2);
    const [dir] = group.dirs as [string];
    const segments = (): string[] =>
      readdirSync(join(dir, 'log'))
        .filter((name) => name.endsWith('.ndb'))
        .toSorted();
    let first = await open(group, 0);
    let second: Node | undefined;
    try {
      await until('the first leads', () => first.role === 'primary');
      let rows = 1;
      const write = (node: Node): Promise<void> =>
        node.tenant('acme').write((tx) => void tx.run('insert into item values (?, ?)', [rows++, BODY]));
      second = await open(group, 1);
      const { store } = await second.status();
      await first.group!.changeMembers({ add: store, minInSync: 1 });
      await second.close();
      const before = segments().at(-1)!;
      while (segments().length < segments().indexOf(before) + 5) await write(first);
      await first.close(); // what it has appended itself it would send from memory
      // The segment behind the one that it has last seen.
      const path = join(dir, 'log', segments()[segments().indexOf(before) + 1]!);
      const bytes = readFileSync(path);
      bytes[Math.floor(bytes.length / 3)]! ^= 0x40;
      writeFileSync(path, bytes);
      first = await open(group, 0);
      await until('the first leads again', () => first.role === 'primary');

      second = await open(group, 1);
      await once(second.group!.left, 'abort', { signal: AbortSignal.timeout(60_000) });
      await second.close();
      second = await open(group, 1);
      assert.notEqual((await second.status()).store, store, 'it is a copy');
      await until('the first has handed over', () => first.group!.left.aborted, 60_000);
      await until('the second leads', () => second?.role === 'primary', 30_000);
      await write(second);
      assert.equal(await second.tenant('acme').read((reader) => reader.value('select count(*) from item')), rows);
    } finally {
      await second?.close();
      await first.close();
    }
  },
);
