/** A copy of another history checks out by itself, and its source says that it is of the group. Only the primary knows. */
import assert from 'node:assert/strict';
import { cpSync, readdirSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { systemDisk } from '../base/disk.ts';
import { NewestSeen } from '../coordination/newest-seen.ts';
import { FAST, makeGroup, until, type TestGroup } from './group.fixture.ts';
import { loadNode } from './node-file.ts';
import { openNode } from './open-node.ts';
import { RejoinFile } from './rejoin-file.ts';
import type { Node, NodeOptions } from './types.ts';

const MIGRATIONS = ['create table item (id integer primary key not null, body text not null)'];

const insert = (node: Node, from: number, count: number, body: string): Promise<unknown> =>
  Promise.all(
    Array.from({ length: count }, (_, i) =>
      node.tenant('acme').write((tx) => void tx.run('insert into item values (?, ?)', [from + i, body])),
    ),
  );

/** A directory of the group, copied by hand and opened as if it were alone: it goes on by itself, further than the group. */
async function openClone(t: TestContext, dir: string): Promise<Node> {
  const clone = join(dirname(dir), 'clone');
  cpSync(dir, clone, { recursive: true, filter: (path) => !path.endsWith('.sock') });
  rmSync(join(clone, 'coordinator.json')); // or it would not open alone
  const node = await openNode({ dir: clone, migrations: MIGRATIONS, listen: { port: 0 }, scrubIntervalMs: false });
  t.after(() => node.close());
  for (let id = 100; id < 120; id += 1) await insert(node, id, 1, 'of the clone');
  return node;
}

/** `copies`: whether the members of the group serve any. */
function open(group: TestGroup, index: number, from: string, steps: string[], copies = true): Promise<Node> {
  const listen: NodeOptions['listen'] = copies ? undefined : false;
  return openNode({
    dir: group.dirs[index]!,
    migrations: MIGRATIONS,
    scrubIntervalMs: false,
    ...(listen === undefined ? {} : { listen }),
    limits: { ...FAST, commitStallMs: 2_000, rejoinTotalAttemptsMax: 2, rejoinBackoffMs: 50 },
    group: {
      coordinator: group.coordinator,
      listen: { port: 0 },
      ...(from === '' ? {} : { restoreFrom: [from] }),
      onRejoin: (step) => void steps.push(step),
    },
  });
}

for (const copies of [true, false])
  test(
    `the copy of a clone is refused before anything is set aside; ${copies ? 'a member is copied instead' : 'nobody else serves one'}`,
    { timeout: 120_000 },
    async (t) => {
      const group = await makeGroup(t, 2);
      const [dir, other] = group.dirs as [string, string];
      const clone = await openClone(t, dir);
      await using first = await open(group, 0, '', [], copies);
      await until('the first leads', () => first.role === 'primary');
      await insert(first, 1, 3, 'of the group');
      const { store } = loadNode(other, undefined);
      new RejoinFile(systemDisk, other).add(store, { damage: 'a tenant' });
      const steps: string[] = [];
      await using second = await open(group, 1, clone.address!, steps, copies);
      const told = steps.join('\n');
      const aside = readdirSync(other).filter((name) => name.startsWith('set-aside.'));
      assert.doesNotMatch(told, new RegExp(`copied from ${clone.address}`));
      if (copies) {
        assert.match(told, new RegExp(`copied from ${first.address}`));
        assert.notEqual((await second.status()).store, store);
        assert.deepEqual(aside, ['set-aside.1']);
        const { newest } = new NewestSeen(systemDisk, join(other, 'coordinator.json'));
        assert.ok(newest !== undefined, 'the record that was seen came along');
      } else {
        assert.match(told, /ends with record \d+ of term \d+, which is not on the log of the primary/);
        assert.equal((await second.status()).store, store);
        assert.deepEqual(aside, []);
      }
      const ofClone = await second
        .tenant('acme')
        .read((reader) => reader.value<number>("select count(*) from item where body = 'of the clone'"), {
          stale: true,
        });
      assert.equal(ofClone, 0);
    },
  );
