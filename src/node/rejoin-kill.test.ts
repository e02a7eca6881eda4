/** A member on its way home is killed at each step of it; whoever opens the directory next comes to the same end. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { cpSync, existsSync, readdirSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { systemDisk } from '../base/disk.ts';
import { readMarker } from '../restore/local/marker.ts';
import { listRollbackFiles } from '../rollback/file/list.ts';
import { makeGroup, until } from './group.fixture.ts';
import { loadNode } from './node-file.ts';
import { RejoinFile } from './rejoin-file.ts';
import type { KillTask } from './rejoin-kill-child.fixture.ts';
import { readStopped } from './stopped-directory.ts';
import type { Node } from './types.ts';

const LOST = 6;
const CHILD = fileURLToPath(new URL('./rejoin-kill-child.fixture.ts', import.meta.url));

interface Ended {
  readonly killed: boolean;
  readonly failed: string;
  readonly changes: readonly string[];
}

function run(task: KillTask): Promise<Ended> {
  return new Promise((resolve) => {
    execFile(process.execPath, [CHILD, JSON.stringify(task)], { timeout: 60_000 }, (error, stdout, stderr) =>
      resolve({
        killed: error?.signal === 'SIGKILL' && !error.message.includes('timeout'),
        failed: error === null ? '' : stderr,
        changes: stdout.split('\n').filter((line) => line !== ''),
      }),
    );
  });
}

const insert = (node: Node, id: number, durability: 'local' | 'quorum'): Promise<void> =>
  node.tenant('acme').write((tx) => void tx.run('insert into item values (?, ?)', [id, 'row']), { durability });

test(
  'killed at each step of the way home: one copy, one directory set aside, one file with the tail',
  { timeout: 600_000 },
  async (t) => {
    const group = await makeGroup(t, 3);
    const { coordinator } = group;
    const [base] = group.dirs as [string];
    {
      await using first = await group.open(0);
      await until('the first leads', () => first.role === 'primary');
      const others = [await group.open(1), await group.open(2)];
      for (const node of others) await first.group!.changeMembers({ add: (await node.status()).store, minInSync: 2 });
      await insert(first, 1, 'quorum');
      for (const node of others) await node.close();
      for (let id = 10; id < 10 + LOST; id += 1) await insert(first, id, 'local');
    }
    const { store } = loadNode(base, undefined);
    await using second = await group.open(1);
    await using third = await group.open(2);
    await until('another one leads', () => second.role === 'primary' || third.role === 'primary');
    const primary = second.role === 'primary' ? second : third;
    await until('the first is dropped', async () => {
      const { record } = (await primary.status()).group!;
      return record?.inSync.includes(store) === false;
    });
    await insert(primary, 30, 'quorum');
    new RejoinFile(systemDisk, base).add(store, { damage: 'a tenant' });

    const fresh = (name: string): string => {
      const dir = join(dirname(base), name);
      cpSync(base, dir, { recursive: true, filter: (path) => !path.endsWith('.sock') });
      return dir;
    };
    const assertHome = async (dir: string, when: string): Promise<void> => {
      const ended = loadNode(dir, undefined);
      assert.notEqual(ended.store, store, when);
      assert.equal(readMarker(systemDisk, dir), undefined, when);
      assert.ok(!existsSync(join(dir, 'restore')), when);
      assert.equal(new RejoinFile(systemDisk, dir).tail, undefined, when);
      const aside = readdirSync(dir).filter((name) => name.startsWith('set-aside.'));
      assert.deepEqual(aside, ['set-aside.1'], when);
      assert.equal(loadNode(join(dir, 'set-aside.1'), undefined).store, store, when);
      const { report } = readStopped(dir);
      assert.equal(report.damage, undefined, when);
      assert.equal(report.end.lsn, (await primary.status()).log.lastLsn, when);
      assert.ok(report.seen !== null, `${when}: the newest record is remembered`);
      const files = await listRollbackFiles(systemDisk, join(dir, 'rollback'));
      const kept = files.map((file) => (file.state === 'whole' ? file.footer.acknowledged : file.state));
      assert.deepEqual(kept, [LOST], when);
    };

    const whole = fresh('whole');
    const { changes, failed } = await run({ dir: whole, coordinator });
    assert.equal(failed, '');
    await assertHome(whole, 'without a kill');
    // What is fetched and checked within `restore/` has tests of its own (`cli/restore-kill.test.ts`).
    const points = changes.flatMap((change, at) => (/^\w+ restore\//.test(change) ? [] : [[at, change] as const]));
    for (const step of [
      'rename rejoin.json',
      'rename restore.marker',
      'rename set-aside.1/node.json',
      'rename node.json',
      'link rollback/',
    ])
      assert.ok(
        points.some(([, change]) => change.startsWith(step)),
        `${step} is among ${changes.join(', ')}`,
      );
    // No room for the file: the copy is there, and the tail waits for the next opening.
    const full = fresh('full');
    const before = await run({ dir: full, coordinator, fullAt: 'link rollback/' });
    assert.equal(before.failed, '');
    assert.ok(before.changes.some((change) => change.startsWith('link rollback/')));
    assert.equal(new RejoinFile(systemDisk, full).tail?.store, store);
    assert.equal((await run({ dir: full, coordinator })).failed, '');
    await assertHome(full, 'after the disk was full');

    for (const [at, change] of points) {
      const dir = fresh(`killed-${at}`);
      const first = await run({ dir, coordinator, killAt: at });
      assert.ok(first.killed, `${change}: ${first.failed}`);
      const again = await run({ dir, coordinator });
      assert.equal(again.failed, '', `after ${change}`);
      await assertHome(dir, `killed before: ${change}`);
      rmSync(dir, { recursive: true });
    }
    t.diagnostic(`${points.length} points: ${points.map(([, change]) => change).join(', ')}`);
  },
);
