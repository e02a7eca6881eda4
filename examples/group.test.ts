import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { createServer, type AddressInfo } from 'node:net';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { makeGroup } from '../src/node/group.fixture.ts';

const example = fileURLToPath(new URL('./group.ts', import.meta.url));
const SERVERS = 3;

test(
  'a write to any of three servers is kept, and read at any other with the cookie',
  { timeout: 90_000 },
  async (t) => {
    const group = await makeGroup(t, SERVERS);
    {
      // Members are added once; from then on all of them start alike.
      const nodes = await Promise.all([0, 1, 2].map((index) => group.open(index)));
      while (nodes[0]!.role !== 'primary') await sleep(20);
      for (const node of nodes.slice(1))
        await nodes[0]!.group!.changeMembers({ add: (await node.status()).store, minInSync: 2 });
      for (const node of nodes.toReversed()) await node.close();
    }
    const bases = { HTTP_BASE: String(await freePorts()), GROUP_BASE: String(await freePorts()) };
    const children = group.dirs.map((dir, index) =>
      spawn(process.execPath, ['--conditions=nostos-source', example, String(index), dir, group.coordinator], {
        env: { ...process.env, ...bases },
        stdio: ['ignore', 'pipe', 'inherit'],
      }),
    );
    await using _ = { [Symbol.asyncDispose]: async () => void (await Promise.all(children.map(ended))) };
    const url = (index: number): string => `http://127.0.0.1:${Number(bases.HTTP_BASE) + index}/`;
    for (let round = 0; round < 9; round += 1) {
      const body = `note ${round}`;
      const cookie = await kept(url(round % SERVERS), body);
      const answer = await fetch(url((round + 1) % SERVERS), { headers: { cookie } });
      const text = await answer.text();
      assert.equal(answer.status, 200, text);
      const rows = JSON.parse(text) as { body: string }[];
      assert.equal(rows[0]?.body, body);
      assert.equal(rows.length, round + 1, 'each note once');
    }
  },
);

/** Asks until somebody leads; the key makes it one note. */
async function kept(url: string, body: string): Promise<string> {
  for (let tries = 0; ; tries += 1) {
    const answer = await fetch(url, { method: 'POST', body, headers: { 'idempotency-key': body } }).catch(
      () => undefined,
    );
    const cookie = answer?.status === 200 ? answer.headers.get('set-cookie') : null;
    if (typeof cookie === 'string') return cookie.split(';')[0]!;
    if (tries > 200) throw new Error(`not kept: ${answer?.status} ${await answer?.text()}`);
    await sleep(100);
  }
}

async function ended(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  child.kill('SIGTERM');
  await Promise.race([once(child, 'exit'), sleep(10_000, undefined, { ref: false }).then(() => child.kill('SIGKILL'))]);
}

/** The first of some that are free in a row. */
async function freePorts(): Promise<number> {
  for (;;) {
    const base = 20_000 + Math.floor(Math.random() * 10_000);
    const free = await Promise.all(Array.from({ length: SERVERS }, (_, index) => isFree(base + index)));
    if (free.every(Boolean)) return base;
  }
}

async function isFree(port: number): Promise<boolean> {
  const server = createServer().listen(port, '127.0.0.1');
  try {
    await once(server, 'listening');
    return (server.address() as AddressInfo).port === port;
  } catch {
    return false;
  } finally {
    server.close();
  }
}
