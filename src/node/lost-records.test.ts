/** A store that is known to lack what it has acknowledged: over restarts nobody may follow it. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { systemDisk } from '../base/disk.ts';
import { FAST, makeGroup, until } from './group.fixture.ts';
import { RejoinFile } from './rejoin-file.ts';

test(
  'a member that had lost acknowledged records does not lead after a restart, though nobody else is there',
  { timeout: 90_000 },
  async (t) => {
    const group = await makeGroup(t, 2);
    const [, dir] = group.dirs as [string, string];
    let store: string;
    {
      await using first = await group.open(0);
      await until('the first leads', () => first.role === 'primary');
      await using second = await group.open(1);
      ({ store } = await second.status());
      await first.group!.changeMembers({ add: store as never, minInSync: 1 });
      await second.close();
      await first.close();
    }
    new RejoinFile(systemDisk, dir).add(store as never, { stopped: 'lost-records' });
    await using second = await group.open(1);
    await until('it has stopped', async () => (await second.status()).group?.stopped?.reason === 'lost-records');
    await sleep(4 * FAST.leaseMs!);
    const { role, group: seen } = await second.status();
    assert.equal(role, 'replica');
    assert.equal(seen?.rejoin.row, 'damage');
    assert.ok(seen?.record?.inSync.includes(store as never), 'nobody had dropped it');

    await using first = await group.open(0);
    await until('the first leads', () => first.role === 'primary', 30_000);
    await until('it leaves', () => second.group!.left.aborted, 30_000);
    await second.close();
    await using copy = await group.open(1);
    assert.notEqual((await copy.status()).store, store);
  },
);
