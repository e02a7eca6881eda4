/** The content of a tenant is replaced on every member of a group, whoever dies meanwhile. */
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { DatabaseSync } from 'node:sqlite';
import { test, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import { toStoreId } from '../base/brands.ts';
import { isNostosError } from '../base/errors.ts';
import { makeGroup, until, type TestGroup } from './group.fixture.ts';
import { openNode } from './open-node.ts';
import { restoreNode } from './restore-node.ts';
import type { Node } from './types.ts';

const BEFORE = 400;
const bodiesOf = (node: Node): Promise<unknown[]> =>
  node
    .tenant('acme')
    .read((reader) => reader.all('select distinct body from item order by body').map(({ body }) => body));
const insert = (node: Node, id: number, body: string): Promise<void> =>
  node.tenant('acme').write((tx) => void tx.run('insert into item values (?, ?)', [id, body]));
const tenantDirs = (dir: string): string[] => readdirSync(join(dir, 'tenants'));

interface Members extends AsyncDisposable {
  readonly group: TestGroup;
  readonly nodes: Node[];
  readonly file: string;
}

/** Three members in sync, the first leads; a file of `acme` as it was, and rows that came later. */
async function three(t: TestContext): Promise<Members> {
  const group = await makeGroup(t, 3);
  const first = await group.open(0);
  await until('the first leads', () => first.role === 'primary');
  const nodes = [first];
  for (const index of [1, 2]) nodes.push(await group.open(index));
  for (const node of nodes.slice(1)) {
    const { store } = await node.status();
    await first.group!.changeMembers({ add: store, minInSync: 2 });
  }
  await first
    .tenant('acme')
    .write((tx) =>
      tx.run(
        `with recursive n (i) as (select 1 union all select i + 1 from n where i < ${BEFORE}) insert into item select i, 'before' from n`,
      ),
    );
  const file = join(group.dirs[0]!, '..', 'own.sqlite');
  await first.tenant('acme').status();
  const source = new DatabaseSync(join(group.dirs[0]!, 'tenants', 'tenant_1', 'data.sqlite'), { readOnly: true });
  source.prepare('vacuum into ?').run(file);
  source.close();
  await first.tenant('acme').write((tx) => tx.run("update item set body = 'after'"));
  const close = async (): Promise<void> => void (await Promise.all(nodes.map((node) => node.close())));
  return { group, nodes, file, [Symbol.asyncDispose]: close };
}

async function allEqual(nodes: readonly Node[], bodies: readonly string[]): Promise<void> {
  const leader = nodes.find(({ role }) => role === 'primary')!;
  const min = await leader.tenant('acme').position();
  const fingerprints = new Set<string>();
  for (const node of nodes) {
    await node.tenant('acme').read(() => 0, { min, timeoutMs: 30_000 });
    assert.deepEqual(await bodiesOf(node), bodies);
    fingerprints.add((await node.tenant('acme').status()).fingerprint);
    assert.deepEqual((await node.verify()).problems, []);
    await until('no other files are left', () => tenantDirs(node.dir).length === 1, 30_000);
  }
  assert.equal(fingerprints.size, 1);
}

async function leaderOf(nodes: readonly Node[]): Promise<Node> {
  await until('one leads', () => nodes.some(({ role }) => role === 'primary'), 30_000);
  return nodes.find(({ role }) => role === 'primary')!;
}

test(
  'all members have the new content; one that was away takes it up, and a copy has it',
  { timeout: 120_000 },
  async (t) => {
    await using members = await three(t);
    const { group, nodes, file } = members;
    const [first, second, third] = nodes as [Node, Node, Node];
    const before = await first.tenant('acme').position();
    await second.tenant('acme').read(() => 0, { min: before });
    const feed = second.tenant('acme').changes({ from: 'now' });
    const ended = feed.next();
    ended.catch(() => {});
    await third.close();
    const { position, rows } = await first.tenants.replace('acme', file);
    assert.equal(rows, BEFORE + 1);
    assert.deepEqual(
      await second.tenant('acme').read((reader) => reader.value('select count(*) from item'), { min: position }),
      BEFORE + 1,
      'a replica that reads from the reset on has the new content',
    );
    await assert.rejects(ended, (error) => isNostosError(error, 'TENANT_RESET'));
    await assert.rejects(second.tenant('acme').changes({ from: before }).next(), (error) =>
      isNostosError(error, 'TENANT_RESET'),
    );
    await insert(first, 1_000, 'later');
    await using again = await group.open(2);
    await allEqual([first, second, again], ['before', 'before the group', 'later']);
    const dir = join(group.dirs[0]!, '..', 'copy');
    await restoreNode({ dir, from: [first.address!] });
    {
      await using copy = await openNode({ dir, scrubIntervalMs: false });
      const { fingerprint } = await copy.tenant('acme').status();
      assert.equal(fingerprint, (await first.tenant('acme').status()).fingerprint);
    }
    await first.group!.handover();
    const leader = await leaderOf([first, second, again]);
    assert.notEqual(leader, first);
    await leader.tenants.replace('acme', file);
    await allEqual([first, second, again], ['before', 'before the group']);
  },
);

interface Member {
  readonly process: ChildProcess;
  line(): Promise<string>;
}

function startMember(t: TestContext, { group, file, step }: { group: TestGroup; file: string; step: string }): Member {
  const script = fileURLToPath(new URL('tenant-reset-member.fixture.ts', import.meta.url));
  const child = spawn(process.execPath, [script, group.dirs[0]!, group.coordinator, file, step], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.after(() => child.kill('SIGKILL'));
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  return { process: child, line: async () => String((await lines.next()).value) };
}

/** A process of its own leads, and has begun to replace the content. */
async function otherProcessLeads(nodes: readonly Node[], member: Member): Promise<void> {
  const store = toStoreId(await member.line());
  const leader = await leaderOf(nodes.slice(1));
  await until(
    'it is in sync',
    async () => (await leader.group!.report()).record?.inSync.includes(store) === true,
    30_000,
  );
  await leader.group!.handover(store);
}

const KILLS: readonly (readonly [step: string, bodies: readonly string[]])[] = [
  ['creating triggers', ['after', 'later']],
  ['the record is committed', ['before', 'before the group', 'later']],
];

for (const [step, bodies] of KILLS)
  test(`kill -9 of the primary at: ${step}; then all have ${bodies.join(', ')}`, { timeout: 120_000 }, async (t) => {
    await using members = await three(t);
    const { group, nodes, file } = members;
    await nodes[0]!.close();
    const member = startMember(t, { group, file, step });
    const exit = once(member.process, 'exit');
    await otherProcessLeads(nodes, member);
    assert.deepEqual(await exit, [null, 'SIGKILL'], 'it was killed there');
    const leader = await leaderOf(nodes.slice(1));
    await insert(leader, 1_000, 'later');
    await using first = await group.open(0);
    await allEqual([leader, first, ...nodes.slice(1).filter((node) => node !== leader)], bodies);
    for (const node of nodes.slice(1)) await node.close();
  });

test(
  'a reset that was not committed is rolled back with the primary that wrote it',
  { timeout: 120_000 },
  async (t) => {
    await using members = await three(t);
    const { group, nodes, file } = members;
    await nodes[0]!.close();
    const member = startMember(t, { group, file, step: 'held' });
    await otherProcessLeads(nodes, member);
    assert.equal(await member.line(), 'held');
    for (const node of nodes.slice(1)) await node.close();
    writeFileSync(`${file}.held`, '');
    // Nobody answers whether it is in the log: it is, when the log has grown no more for a while, and it is seen below.
    await new Promise((resolve) => void setTimeout(resolve, 1_500));
    member.process.kill('SIGKILL');
    await once(member.process, 'exit');
    const others = [await group.open(1), await group.open(2)];
    nodes.push(...others);
    const leader = await leaderOf(others);
    await insert(leader, 1_000, 'later');
    await using first = await group.open(0);
    await until('it is rolled back', () => first.group!.events.some(({ kind }) => kind === 'rolled-back'), 30_000);
    const { text } = first.group!.events.find(({ kind }) => kind === 'rolled-back')!;
    assert.match(text, /^1 records above LSN \d+, 0 of them acknowledged/);
    await allEqual([leader, first, ...others.filter((node) => node !== leader)], ['after', 'later']);
  },
);
