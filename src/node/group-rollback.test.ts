/** A node whose last process died while it dropped its tail ends that before it is anything else in its group. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { toBootId, type Lsn } from '../base/brands.ts';
import { HybridClock, systemClock } from '../base/clock.ts';
import { systemDisk } from '../base/disk.ts';
import { DEFAULT_LIMITS } from '../base/limits.ts';
import { Log } from '../log/log.ts';
import { openRollbackDirectory } from '../rollback/run/directory.ts';
import type { JournalStore } from '../rollback/run/journal.ts';
import type { GroupNotice } from './engine-protocol.ts';
import { GroupEngine } from './group-engine.ts';
import { FAST, makeGroup, until } from './group.fixture.ts';
import { loadNode } from './node-file.ts';
import type { Node } from './types.ts';

const LOST = 10;

function openLog(dir: string): Log {
  const { generation } = loadNode(dir, undefined);
  const { segmentBytesMax, recordBytesMax } = DEFAULT_LIMITS;
  const options = {
    dir: join(dir, 'log'),
    generation,
    segmentBytesMax,
    recordBytesMax,
    highestApplied: () => 0 as Lsn,
  };
  return Log.open({ disk: systemDisk, clock: new HybridClock(systemClock) }, options).log;
}

/** The last process has begun to drop the last `count` records, and none of them is gone yet. */
function begin(dir: string, count: number): JournalStore {
  const log = openLog(dir);
  const { term, lsn, hash } = log.pointAt((log.end.lsn - count) as Lsn);
  const { end, watermark } = log;
  log.close();
  assert.ok(watermark <= lsn, 'none of the tail is committed');
  const { journal } = openRollbackDirectory(systemDisk, join(dir, 'rollback'));
  const common = { term, lsn, hash: Buffer.from(hash).toString('hex') };
  const frontier = { term: end.term, lsn: end.lsn };
  journal.save({
    ...{ counter: 1, watermark: { generation: end.generation, lsn: watermark }, attempts: 0 },
    intent: {
      state: 'recovering',
      plan: {
        id: '0a'.repeat(16),
        createdAtMs: 1,
        watermark,
        common,
        frontier,
        primary: { address: 'gone:1', term: 99 },
      },
      file: { path: 'a file', records: count, acknowledged: count, bytes: 1, digest: '00'.repeat(32) },
    },
  });
  return journal;
}

const insert = (node: Node, id: number, durability: 'local' | 'quorum'): Promise<void> =>
  node.tenant('acme').write((tx) => void tx.run('insert into item values (?, ?)', [id, 'row']), { durability });

test('a rollback that had begun is ended at the start, though nobody asks for it', { timeout: 60_000 }, async (t) => {
  const group = await makeGroup(t, 3);
  const dir = group.dirs[0]!;
  {
    await using first = await group.open(0);
    await until('the first leads', () => first.role === 'primary');
    {
      await using second = await group.open(1);
      await using third = await group.open(2);
      for (const node of [second, third])
        await first.group!.changeMembers({ add: (await node.status()).store, minInSync: 2 });
      await insert(first, 1, 'quorum');
    }
    for (let id = 10; id < 10 + LOST; id += 1) await insert(first, id, 'local');
  }
  const journal = begin(dir, LOST);
  await using first = await group.open(0);
  await until('it is told', () => first.group!.events.some(({ kind }) => kind === 'rolled-back'));
  const rows = await first
    .tenant('acme')
    .read((reader) => reader.all('select id from item order by id'), { stale: true });
  assert.deepEqual(
    rows.map(({ id }) => id),
    [0, 1],
  );
  assert.equal(journal.load().intent?.state, 'rejoined');
});

test(
  'until that is said to be ended the engine does nothing, though it would lead at once',
  { timeout: 60_000 },
  async (t) => {
    const group = await makeGroup(t, 1);
    const dir = group.dirs[0]!;
    begin(dir, 0);
    const { generation, store, cluster, node } = loadNode(dir, undefined);
    const notices: GroupNotice[] = [];
    const engine = await GroupEngine.open(
      { highestApplied: () => 0 as Lsn, tell: (notice) => notices.push(notice) },
      { dir, generation, store, boot: toBootId('0b'.repeat(16)), cluster, limits: { ...DEFAULT_LIMITS, ...FAST } },
      { name: 'main', coordinator: group.coordinator, node, listen: { port: 0 } },
    );
    try {
      await sleep(5 * FAST.coordinatorPollMs!);
      assert.deepEqual([engine.groupReport().role, notices], ['follower', []]);
      engine.settled();
      await until('it leads', () => engine.groupReport().role === 'leading');
    } finally {
      await engine.close();
    }
  },
);
