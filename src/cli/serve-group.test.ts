import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { test, type TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { NodeStatus } from '../node/types.ts';
import { ENTRY, nostos } from './nostos-process.fixture.ts';

/** Times at which the test does not wait long for a lease. */
const FAST =
  'leaseMs=1500,renewIntervalMs=300,coordinatorPollMs=150,ackTimeoutMs=500,streamHeartbeatMs=100,streamTimeoutMs=800';

async function ok(cwd: string, ...args: readonly string[]): Promise<string> {
  const { code, stdout, stderr } = await nostos(cwd, args);
  assert.equal(code, 0, `${args.join(' ')}: ${stderr}`);
  return stdout;
}

async function eventually(what: string, holds: () => Promise<boolean>): Promise<void> {
  for (let tries = 0; !(await holds()); tries += 1) {
    assert.ok(tries < 150, `not in time: ${what}`);
    await sleep(100);
  }
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

class Members {
  readonly #cwd: string;
  readonly #coordinator: readonly string[];
  readonly #running = new Map<string, ChildProcess>();
  readonly #ports = new Map<string, number>();

  constructor(t: TestContext, cwd: string) {
    this.#cwd = cwd;
    this.#coordinator = ['--coordinator', `embedded:${join(cwd, 'coordinator')}`, '--group-limit', FAST];
    t.after(async () => {
      // Whoever lives would write into what is being removed.
      for (const dir of this.#running.keys()) await this.end(dir, 'SIGKILL');
      await rm(cwd, { recursive: true, force: true });
    });
  }

  /** Answers with where it lets itself be copied. */
  async start(dir: string, ...more: readonly string[]): Promise<string> {
    const port = this.#ports.get(dir) ?? (await freePort());
    this.#ports.set(dir, port);
    const where = ['--port', '0', '--group-listen', `127.0.0.1:${port}`];
    const args = [ENTRY, 'serve', '--dir', dir, ...where, ...this.#coordinator, ...more];
    const child = spawn(process.execPath, args, { cwd: this.#cwd, stdio: ['ignore', 'pipe', 'ignore'] });
    this.#running.set(dir, child);
    for await (const line of createInterface({ input: child.stdout })) {
      const address = /other nodes +(\S+): /.exec(line)?.[1];
      if (address !== undefined) return address;
    }
    return assert.fail(`${dir} does not serve`);
  }

  async end(dir: string, signal: 'SIGKILL' | 'SIGTERM'): Promise<void> {
    const child = this.#running.get(dir)!;
    child.kill(signal);
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
  }

  address(dir: string): string {
    return `127.0.0.1:${this.#ports.get(dir)}`;
  }

  async status(dir: string): Promise<NodeStatus> {
    return JSON.parse(await ok(this.#cwd, 'status', '--dir', dir, '--json')) as NodeStatus;
  }

  async inSync(dir: string): Promise<readonly string[]> {
    return (await this.status(dir)).group?.record?.inSync ?? [];
  }
}

test(
  'a group by its command line: init, join, hand over, and come back without a disk',
  { timeout: 240_000 },
  async (t) => {
    const cwd = await mkdtemp(join(tmpdir(), 'nostos-test-'));
    const members = new Members(t, cwd);
    const group = ['--coordinator', `embedded:${join(cwd, 'coordinator')}`];
    await ok(cwd, 'tenant', 'create', 'acme', '--dir', 'a');
    await writeFile(join(cwd, '1.sql'), 'create table t (id integer primary key not null, v text)');
    await ok(cwd, 'migrate', '1.sql', '--dir', 'a', '--tenant', 'acme');
    await ok(cwd, 'group', 'init', '--dir', 'a', ...group);
    const alone = await nostos(cwd, ['sql', 'select 1', '--dir', 'a', '--tenant', 'acme']);
    assert.match(alone.stderr, /belongs to a group.*COORDINATOR_REGRESSED/);

    await members.start('a');
    for (const dir of ['b', 'c']) {
      await members.start(dir); // the members say where they can be copied
      await eventually(`${dir} is a member`, async () => {
        const added = await nostos(cwd, [
          'group',
          'add',
          members.address(dir),
          '--dir',
          'a',
          ...group,
          '--min-in-sync',
          '2',
        ]);
        return added.code === 0;
      });
    }
    const insert = (dir: string, id: number): Promise<string> =>
      ok(cwd, 'sql', `insert into t values (${id}, 'row')`, '--dir', dir, '--tenant', 'acme');
    await insert('a', 1);

    await members.end('a', 'SIGTERM');
    const leads = async (dir: string): Promise<boolean> => (await members.status(dir)).role === 'primary';
    await eventually('another one leads', async () => (await leads('b')) || leads('c'));
    const [primary, lost] = (await leads('b')) ? ['b', 'c'] : ['c', 'b'];
    await insert(primary, 2);

    await members.start('a');
    const { store: before } = await members.status(lost);
    await members.end(lost, 'SIGKILL');
    await rm(join(cwd, lost), { recursive: true });
    await members.start(lost);
    const { store, group: restored } = await members.status(lost);
    const taken = restored?.progress?.history.map(({ action, outcome }) => `${action} ${outcome}`);
    assert.deepEqual(taken, ['network-restore done']);
    assert.notEqual(store, before);
    await insert(primary, 3);
    await eventually('the new store is in sync', async () => (await members.inSync(primary)).includes(store));
    assert.equal((await members.status(primary)).group?.record?.members.length, 3, 'it has the place of the lost one');
    for (const dir of ['a', 'b', 'c'])
      await eventually(`${dir} has all`, async () => {
        const rows = await ok(cwd, 'sql', 'select count(*) as n from t', '--dir', dir, '--tenant', 'acme');
        return /\n\s*3\n$/.test(rows);
      });
  },
);
