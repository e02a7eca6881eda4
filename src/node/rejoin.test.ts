/**
 * Three members in processes of their own, and what may have become of the directory of one of them: each case damages it,
 * is seen to have damaged it, and comes home by the steps that are expected, with all rows and equal fingerprints.
 */
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { cpSync, existsSync, readFileSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { deserializeError, NostosError } from '../base/errors.ts';
import type { Limits } from '../base/limits.ts';
import { openCoordinator } from '../coordination/open-coordinator.ts';
import { initGroup } from './group-init.ts';
import { renderMetrics } from './metrics.ts';
import { openNode } from './open-node.ts';
import { planRejoin, rejoinAnew } from './rejoin-plan.ts';
import { MIGRATIONS, TENANT, type Calls, type FromChild, type Method } from './rejoin-child.fixture.ts';
import type { NodeOptions, NodeStatus } from './types.ts';

const LIMITS: Partial<Limits> = {
  leaseMs: 1_500,
  renewIntervalMs: 250,
  coordinatorPollMs: 100,
  coordinatorRetryMs: 100,
  ackTimeoutMs: 700,
  streamHeartbeatMs: 100,
  streamTimeoutMs: 800,
  reopenMs: 20,
  probeWaitMs: 100,
  termStartTimeoutMs: 5_000,
  handoverTimeoutMs: 3_000,
  segmentBytesMax: 256 * 1024,
  recordBytesMax: 128 * 1024,
  checkpointBytes: 64 * 1024,
  logRetainBytes: 1024 * 1024,
  rejoinBackoffMs: 100,
  rejoinBackoffMaxMs: 1_000,
};
/** Bounds, not expectations: other work may slow the machine down. */
const SETTLE_MS = 180_000;
const ASK_MS = 30_000;

class Child {
  readonly #process: ChildProcess;
  readonly #waiting = new Map<number, PromiseWithResolvers<unknown>>();
  readonly exited: Promise<unknown>;
  readonly steps: string[] = [];
  readonly stores: string[] = [];
  failure: NostosError | undefined;
  #nextId = 1;

  constructor(options: NodeOptions) {
    const file = fileURLToPath(new URL('./rejoin-child.fixture.ts', import.meta.url));
    this.#process = spawn(process.execPath, [file, JSON.stringify(options)], {
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    });
    this.exited = once(this.#process, 'exit');
    this.#process.on('message', (message: FromChild) => {
      if ('opened' in message) this.stores.push(message.opened);
      else if ('step' in message) this.steps.push(message.step);
      else if ('failed' in message) this.failure = deserializeError(message.failed);
      else if ('error' in message) this.#take(message.id)?.reject(deserializeError(message.error));
      else this.#take(message.id)?.resolve(message.output);
    });
    this.#process.once('exit', () => {
      for (const id of this.#waiting.keys()) this.#take(id)?.reject(new NostosError('CLOSED', 'the process has ended'));
    });
  }

  #take(id: number): PromiseWithResolvers<unknown> | undefined {
    const waiting = this.#waiting.get(id);
    this.#waiting.delete(id);
    return waiting;
  }

  async ask<M extends Method>(method: M, input: Calls[M][0]): Promise<Calls[M][1]> {
    const id = this.#nextId++;
    const waiting = Promise.withResolvers<unknown>();
    this.#waiting.set(id, waiting);
    if (!this.#process.connected) throw new NostosError('CLOSED', 'the process has ended');
    this.#process.send({ id, method, input });
    const late = setTimeout(
      () => this.#take(id)?.reject(new NostosError('NETWORK_TIMEOUT', `${method}: no answer`)),
      ASK_MS,
    );
    return (await waiting.promise.finally(() => clearTimeout(late))) as Calls[M][1];
  }

  async kill(): Promise<void> {
    this.#process.kill('SIGKILL');
    await this.exited;
  }

  async close(): Promise<void> {
    await this.ask('close', undefined).catch(() => this.#process.kill('SIGKILL'));
    await this.exited;
  }
}

const children = new Map<number, Child>();
let root = '';
let coordinator = '';
let rows = 0;
const dirOf = (index: number): string => join(root, `node${index}`);
const ALL = [0, 1, 2] as const;

/** As an operator gives them: a member that lost its disk is known by where it is. */
const PORTS = await Promise.all(ALL.map(freePort));

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

function start(index: number, options: Partial<NodeOptions> = {}): Child {
  const child = new Child({
    dir: dirOf(index),
    migrations: MIGRATIONS,
    scrubIntervalMs: 500,
    ...options,
    limits: { ...LIMITS, ...options.limits },
    group: { coordinator, listen: { port: PORTS[index]! } },
  });
  children.set(index, child);
  return child;
}

async function until(what: string, holds: () => Promise<boolean> | boolean): Promise<void> {
  const endMs = performance.now() + SETTLE_MS;
  let last: unknown;
  for (;;) {
    const is = await Promise.resolve()
      .then(holds)
      .catch((error: unknown) => {
        last = error;
        return false;
      });
    if (is) return;
    if (performance.now() > endMs) throw new Error(`not in time: ${what}${await told()}`, { cause: last });
    await sleep(50);
  }
}

/** What the members say, for a failure. */
async function told(): Promise<string> {
  const lines = [...children].map(async ([index, child]) => {
    const status = await child.ask('status', undefined).catch((error: Error) => error.message);
    const { role, following, inSync, progress, events, stopped } =
      typeof status === 'string' ? ({ events: [] } as never) : (status.group ?? ({} as never));
    return `\n${index} ${JSON.stringify({ role, following, inSync, progress, stopped, events: events.slice(-8), steps: child.steps.slice(-5), status: typeof status === 'string' ? status : '' })}`;
  });
  return (await Promise.all(lines)).join('');
}

const statusOf = async (index: number): Promise<NodeStatus> => children.get(index)!.ask('status', undefined);

async function primary(): Promise<number> {
  let found: number | undefined;
  await until('somebody leads', async () => {
    for (const index of children.keys())
      if ((await statusOf(index).catch(() => undefined))?.group?.role === 'leading') found = index;
    return found !== undefined;
  });
  return found!;
}

async function inSync(): Promise<readonly string[]> {
  return (await statusOf(await primary())).group?.record?.inSync ?? [];
}

async function write(count: number, bytes = 200): Promise<void> {
  const from = rows;
  rows += count;
  for (let id = from; id < rows; id += 1)
    await until(`row ${id} is written`, async () => {
      const child = children.get(await primary())!;
      try {
        await child.ask('insert', { from: id, count: 1, bytes });
      } catch (error) {
        // It may have been kept.
        if ((await child.ask('count', undefined)) <= id) throw error;
      }
      return true;
    });
}

/** All three in sync, with all rows, and alike. */
async function whole(): Promise<void> {
  await until('all are in sync', async () => {
    const all = await Promise.all(ALL.map(statusOf));
    return all.every(({ group }) => group?.inSync === true && group.record?.members.length === 3);
  });
  await until('all copies are alike', async () => {
    const counts = await Promise.all(ALL.map((index) => children.get(index)!.ask('count', undefined)));
    const prints = await Promise.all(ALL.map((index) => children.get(index)!.ask('fingerprint', undefined)));
    assert.deepEqual(counts, [rows, rows, rows]);
    return prints.every(({ fingerprint, lsn }) => fingerprint === prints[0]!.fingerprint && lsn === prints[0]!.lsn);
  });
}

before(async () => {
  root = await mkdtemp(join(tmpdir(), 'nostos-rejoin-'));
  coordinator = `embedded:${join(root, 'coordinator')}`;
  {
    await using node = await openNode({
      dir: dirOf(0),
      migrations: MIGRATIONS,
      scrubIntervalMs: false,
      limits: LIMITS,
    });
    await node.tenants.create(TENANT);
    await node.tenant(TENANT).read(() => {});
  }
  await using coordination = await openCoordinator(coordinator);
  await initGroup(coordination.group(), dirOf(0));
  start(0);
  await primary();
  await write(3);
  for (const index of [1, 2]) {
    const child = start(index); // into nothing: it finds its group by the record
    await until(`${index} is open`, () => child.stores.length > 0);
    assert.match(child.steps.join('\n'), /network-restore: there is no record here yet\ncopied from /);
    await children.get(0)!.ask('changeMembers', { add: child.stores[0]! as never, minInSync: 2 });
  }
  await whole();
});

after(async () => {
  await Promise.all([...children.values()].map((child) => child.kill()));
  await rm(root, { recursive: true, force: true });
});

function flip(path: string, offset: number): void {
  const bytes = readFileSync(path);
  bytes[offset]! ^= 0x40;
  writeFileSync(path, bytes);
}

const segments = (index: number): string[] =>
  readdirSync(join(dirOf(index), 'log'))
    .filter((name) => name.endsWith('.ndb'))
    .toSorted()
    .map((name) => join(dirOf(index), 'log', name));

/** In the payload of a record at about a third of the oldest sealed segment. */
function flipSealed(index: number): void {
  const [oldest, next] = segments(index);
  assert.ok(oldest !== undefined && next !== undefined, 'a segment is sealed');
  flip(oldest, Math.floor(readFileSync(oldest).length / 3));
}

function flipOpen(index: number): void {
  const open = segments(index).at(-1)!;
  const bytes = readFileSync(open);
  const end = bytes.findLastIndex((byte) => byte !== 0);
  assert.ok(end > 8_000, `the open segment holds ${end} bytes`);
  flip(open, Math.floor(end / 3));
}

const databaseOf = (index: number): string => {
  const tenants = join(dirOf(index), 'tenants');
  return join(
    tenants,
    readdirSync(tenants).find((name) => existsSync(join(tenants, name, 'data.sqlite')))!,
    'data.sqlite',
  );
};

function changeRow(index: number): void {
  using database = new DatabaseSync(databaseOf(index), { timeout: 5_000 });
  assert.equal(database.prepare("update item set body = 'changed by nobody' where id = 1").run().changes, 1);
}

/** Every page but those of the schema: what is read of them is no b-tree. */
function tearFile(index: number): void {
  const path = databaseOf(index);
  const bytes = readFileSync(path);
  assert.ok(bytes.length > 64 * 1024);
  bytes.fill(0x5a, 32 * 1024);
  writeFileSync(path, bytes);
}

async function replica(): Promise<number> {
  const lead = await primary();
  return ALL.findLast((index) => index !== lead)!;
}

interface Case {
  readonly title: string;
  /** Damages a member, which runs again afterwards; answers with which. */
  readonly damage: () => Promise<number>;
  /** Of the history of its way home, each `action outcome`, joined. */
  readonly steps: RegExp;
  /** Of the last reason. */
  readonly row: string;
}

const COPIED = /(?:leave-and-restore|network-restore) done(?:, (?:leave-and-restore|network-restore) done)?$/;

async function stopped(index: number, how: 'kill' | 'close', change: () => void): Promise<number> {
  await children.get(index)![how]();
  change();
  start(index);
  return index;
}

const CASES: readonly Case[] = [
  {
    title: 'a flipped byte in a sealed segment of a replica, found by the scrub',
    damage: async () => stopped(await replica(), 'close', () => {}).then((index) => (flipSealed(index), index)),
    steps: COPIED,
    row: 'damage',
  },
  {
    title: 'a flipped byte in the open segment of a replica, found when it opens',
    damage: async () => {
      const index = await replica();
      const { store } = await statusOf(index);
      await children.get(index)!.kill();
      flipOpen(index);
      await write(1); // until then it is not behind
      await until('it is dropped', async () => !(await inSync()).includes(store));
      await using coordination = await openCoordinator(coordinator);
      const { decision } = await planRejoin(coordination.group(), dirOf(index));
      assert.deepEqual([decision.row, decision.action], ['damage', 'network-restore'], 'the plan says the same');
      start(index);
      return index;
    },
    steps: /^network-restore done$/,
    row: 'damage',
  },
  {
    title: 'a flipped byte in a sealed segment of the primary while it leads',
    damage: async () => {
      const index = await primary();
      flipSealed(index);
      return index;
    },
    steps: /^leave-and-restore done, /,
    row: 'damage',
  },
  {
    title: 'a flipped byte in the open segment of a primary that was killed',
    damage: async () => {
      const index = await primary();
      return stopped(index, 'kill', () => flipOpen(index));
    },
    steps: COPIED,
    row: 'damage',
  },
  {
    title: 'rows of a replica that are not what the log leads to',
    damage: async () => {
      const index = await replica();
      return stopped(index, 'close', () => changeRow(index));
    },
    steps: /anti-entropy not-built, leave-and-restore done/,
    row: 'differs',
  },
  {
    title: 'rows of the primary that are not what the log leads to',
    damage: async () => {
      const index = await primary();
      changeRow(index);
      return index;
    },
    steps: /anti-entropy not-built, leave-and-restore done/,
    row: 'differs',
  },
  {
    title: 'the torn file of a tenant of a replica',
    damage: async () => {
      const index = await replica();
      return stopped(index, 'close', () => tearFile(index));
    },
    steps: COPIED,
    row: 'damage',
  },
  {
    title: 'a disk that was emptied',
    damage: async () => {
      const index = await replica();
      return stopped(index, 'kill', () => rmSync(dirOf(index), { recursive: true }));
    },
    steps: /^network-restore done$/,
    row: 'too-old',
  },
  {
    title: 'an older image of a directory whose acknowledgements the group still counts on',
    damage: async () => {
      const index = await replica();
      const lead = await primary();
      await children.get(lead)!.ask('changeMembers', { minInSync: 3 });
      await children.get(index)!.close();
      cpSync(dirOf(index), `${dirOf(index)}.image`, { recursive: true, filter: (path) => !path.endsWith('.sock') });
      start(index);
      await whole();
      await write(5);
      await whole();
      await stopped(index, 'kill', () => {
        rmSync(dirOf(index), { recursive: true });
        renameSync(`${dirOf(index)}.image`, dirOf(index));
      });
      return index;
    },
    steps: /leave-and-restore done/,
    row: 'damage',
  },
  {
    title: 'a member that is behind what the others retain',
    damage: async () => {
      const lead = await primary();
      await children.get(lead)!.ask('changeMembers', { minInSync: 2 });
      const index = await replica();
      await children.get(index)!.close();
      const before = (await statusOf(lead)).log;
      await write(60, 60_000);
      await until('the primary has dropped what it needs', async () => {
        if ((await statusOf(lead)).log.firstLsn > before.lastLsn + 1) return true;
        await write(4, 60_000);
        return false;
      });
      start(index);
      return index;
    },
    steps: COPIED,
    row: 'too-old',
  },
];

for (const { title, damage, steps, row } of CASES)
  test(`comes home: ${title}`, { timeout: 600_000 }, async () => {
    await write(8, 60_000); // more than a segment
    await whole();
    const stores = await Promise.all(ALL.map(async (index) => (await statusOf(index)).store));
    const sinceMs = Date.now();
    const index = await damage();
    await until('it has a new store', async () => (await statusOf(index)).store !== stores[index]);
    await write(2);
    await whole();
    const { group, scrub } = await statusOf(index);
    const progress = group!.progress!;
    const history = progress.history.filter(({ atMs }) => atMs >= sinceMs);
    const taken = history.map(({ action, outcome }) => `${action} ${outcome}`).join(', ');
    assert.match(taken, steps);
    assert.deepEqual([...new Set(history.map((step) => step.row))], [row]);
    assert.doesNotMatch(taken, /operator/);
    assert.equal(progress.attemptsTotal, 0, 'it has arrived');
    assert.deepEqual(scrub.damaged, []);
    const { ok, problems } = await children.get(index)!.ask('verify', undefined);
    assert.ok(ok, JSON.stringify(problems));
  });

/** Everybody is opened anew, and lets himself be copied, or nobody does. */
async function reopenAll(listen: NodeOptions['listen'], but?: number): Promise<void> {
  const others = ALL.filter((index) => index !== but);
  await Promise.all(others.map((index) => children.get(index)!.close()));
  for (const index of others) start(index, listen === undefined ? {} : { listen });
  await until('all are open', () => others.every((index) => children.get(index)!.stores.length > 0));
  await primary();
}

test('a provider that is away first, and comes later', { timeout: 600_000 }, async () => {
  const index = await replica();
  await children.get(index)!.kill();
  children.delete(index);
  rmSync(dirOf(index), { recursive: true });
  await reopenAll(false, index);
  const child = start(index, { limits: { rejoinTotalAttemptsMax: 1_000 } });
  await until('it has tried in vain', () => child.steps.filter((step) => step.includes('failed')).length >= 3);
  assert.match(child.steps.at(-1)!, /no member can serve a copy now .*does not say where it can be copied/);
  assert.deepEqual(child.stores, [], 'it is not open');
  const other = ALL.find((one) => one !== index)!;
  await children.get(other)!.close();
  start(other);
  await until('it is open', () => child.stores.length > 0);
  await write(1);
  await whole();
  const { progress } = (await statusOf(index)).group!;
  const outcomes = progress!.history.map(({ action, outcome }) => `${action} ${outcome}`);
  assert.deepEqual([outcomes[0], outcomes.at(-1)], ['wait failed', 'network-restore done']);
  assert.equal(progress!.attemptsTotal, 0);
});

test(
  'all providers away: what can be served is served, attempts end, and a person lets it try again',
  { timeout: 600_000 },
  async () => {
    await reopenAll(false);
    const index = await replica();
    await children.get(index)!.close();
    changeRow(index);
    const few = { limits: { rejoinTotalAttemptsMax: 3 } } as const;
    const child = start(index, { ...few, listen: false });
    await until('it has given up', async () => (await statusOf(index)).group?.progress?.current === 'operator');
    await write(2);
    await until('it serves on', async () => (await child.ask('count', undefined)) === rows);
    const { group, role } = await statusOf(index);
    assert.equal(role, 'replica');
    assert.equal(group!.progress!.attemptsTotal, 3);
    const taken = group!.progress!.history.slice(-4).map(({ action, outcome }) => `${action} ${outcome}`);
    assert.deepEqual(taken, ['anti-entropy not-built', ...Array<string>(3).fill('leave-and-restore failed')]);
    assert.match(group!.progress!.history.at(-1)!.why, /no member can serve a copy now/);
    assert.ok(group!.events.some(({ kind, text }) => kind === 'rejoin' && text.includes('operator')));
    const metrics = await renderMetrics(await statusOf(index));
    assert.match(metrics, /nostos_rejoin_step\{action="operator"\} 1/);
    assert.match(metrics, /nostos_rejoin_step\{action="stream"\} 0/);
    assert.match(metrics, /nostos_rejoin_attempts_pending 3/);
    const { store } = await statusOf(index);

    await reopenAll(undefined, index);
    await child.close();
    start(index, few);
    await until('it goes on counting', async () => (await statusOf(index)).group?.progress?.current === 'operator');
    assert.equal((await statusOf(index)).store, store);
    await children.get(index)!.close();
    assert.equal((await rejoinAnew(dirOf(index), Date.now()))?.attemptsTotal, 0);
    start(index, few);
    await until('it has a new store', async () => (await statusOf(index)).store !== store);
    await whole();
  },
);

test('all providers away, and nothing to open: it says what was tried, and ends', { timeout: 600_000 }, async () => {
  const index = await replica();
  await children.get(index)!.kill();
  children.delete(index);
  rmSync(dirOf(index), { recursive: true });
  await reopenAll(false, index);
  for (const attempts of [3, 0]) {
    const child = start(index, { limits: { rejoinTotalAttemptsMax: 3 } });
    await child.exited;
    assert.equal(child.failure?.code, 'REJOIN_FAILED');
    assert.match(child.failure.message, /in 3 attempts: .*no member can serve a copy now/);
    assert.equal(child.steps.filter((step) => step.includes('failed')).length, attempts, 'restarts go on counting');
  }
  await reopenAll(undefined, index);
  await rejoinAnew(dirOf(index), Date.now());
  start(index, { limits: { rejoinTotalAttemptsMax: 3 } });
  await whole();
});
