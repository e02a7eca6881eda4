/**
 * What every coordinator adapter must do, as tests. An adapter's own test file calls `coordinatorCompliance` with a way
 * to open it anew, and with a module that opens the same record in another process.
 */
import assert from 'node:assert/strict';
import type { ChildProcess } from 'node:child_process';
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import type { TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import type { BootId, Generation, StoreId, Term } from '../base/brands.ts';
import type { Coordinator, GroupRecord, Versioned } from '../coordination/coordinator.ts';

/** Opens the record that `args`, which survive JSON, stand for. */
export type CoordinatorFactory = (args: unknown) => Coordinator | Promise<Coordinator>;

export interface CoordinatorUnderTest {
  readonly name: string;
  /** URL of a module that exports `openCoordinator: CoordinatorFactory`. */
  readonly module: string;
  /** Arguments for a record that does not exist yet. */
  fresh(t: TestContext): unknown;
}

export function groupRecord(change: Partial<GroupRecord> = {}): GroupRecord {
  const store = 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' as StoreId;
  return {
    generation: '0123456789abcdef0123456789abcdef' as Generation,
    term: 1 as Term,
    primary: { store, boot: 'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb' as BootId },
    members: [store],
    inSync: [store],
    minInSync: 1,
    renewal: 0,
    committed: null,
    nonce: randomBytes(16).toString('hex'),
    ...change,
  };
}

export function coordinatorCompliance(subject: CoordinatorUnderTest): void {
  const setup = async (t: TestContext) => {
    const args = subject.fresh(t);
    const { openCoordinator } = (await import(subject.module)) as { openCoordinator: CoordinatorFactory };
    return { args, open: async () => openCoordinator(args) };
  };

  test(`${subject.name}: there is no record before the first write`, async (t) => {
    const { open } = await setup(t);
    const coordinator = await open();
    assert.equal(await coordinator.read(), undefined);
    assert.deepEqual(await coordinator.compareAndSet(3, groupRecord()), { ok: false, current: undefined });
  });

  test(`${subject.name}: what one handle wrote, another one reads, field by field`, async (t) => {
    const { open } = await setup(t);
    const record = groupRecord({ renewal: 7, committed: { ...position(5) } });
    assert.deepEqual(await (await open()).compareAndSet(0, record), { ok: true, version: 1 });
    assert.deepEqual(await (await open()).read(), { version: 1, record });
  });

  test(`${subject.name}: of two writers from one version one wins, the other learns what holds`, async (t) => {
    const { open } = await setup(t);
    const [a, b] = [await open(), await open()];
    const [mine, theirs] = [groupRecord({ renewal: 1 }), groupRecord({ renewal: 2 })];
    const results = await Promise.all([a.compareAndSet(0, mine), b.compareAndSet(0, theirs)]);
    assert.equal(results.filter((result) => result.ok).length, 1);
    const current = await a.read();
    const refused = results.find((result) => !result.ok);
    assert.deepEqual(refused, { ok: false, current });
  });

  test(`${subject.name}: a repeated write that was already taken has succeeded`, async (t) => {
    const { open } = await setup(t);
    const coordinator = await open();
    const record = groupRecord();
    assert.deepEqual(await coordinator.compareAndSet(0, record), { ok: true, version: 1 });
    assert.deepEqual(await coordinator.compareAndSet(0, record), { ok: true, version: 1 });
    assert.deepEqual(await coordinator.read(), { version: 1, record });
  });

  test(`${subject.name}: a watch tells of newer records, and of nothing after it was ended`, async (t) => {
    const { open } = await setup(t);
    const coordinator = await open();
    await coordinator.compareAndSet(0, groupRecord());
    const ended = new AbortController();
    const seen: Versioned[] = [];
    const third = Promise.withResolvers<void>();
    coordinator.watch(
      (current) => {
        seen.push(current);
        if (current.version === 3) third.resolve();
      },
      { signal: ended.signal },
    );
    await coordinator.compareAndSet(1, groupRecord());
    await coordinator.compareAndSet(2, groupRecord());
    await third.promise;
    ended.abort();
    await coordinator.compareAndSet(3, groupRecord());
    const versions = seen.map((current) => current.version);
    assert.deepEqual(
      versions,
      [...new Set(versions)].toSorted((a, b) => a - b),
    );
    assert.equal(versions.at(-1), 3);
  });

  test(`${subject.name}: processes that count together lose no step`, async (t) => {
    const { args, open } = await setup(t);
    const children = [1, 2, 3].map(() => countInChild(t, subject, args, 100));
    await Promise.all(children.map((child) => child.done));
    const current = await (await open()).read();
    assert.equal(current?.record.renewal, 300);
    assert.equal(current.version, 300);
  });

  test(`${subject.name}: a stopped process blocks nobody, and goes on rightly afterwards`, async (t) => {
    const { args, open } = await setup(t);
    const coordinator = await open();
    const child = countInChild(t, subject, args, 300);
    await child.ready;
    let mine = 0;
    for (let round = 0; round < 12; round++) {
      child.process.kill('SIGSTOP');
      const until = performance.now() + 2_000;
      const target = mine + 5;
      while (mine < target) {
        assert.ok(performance.now() < until, 'writes go on while the other process is stopped');
        const current = await coordinator.read();
        const next = groupRecord({ renewal: (current?.record.renewal ?? 0) + 1 });
        if ((await coordinator.compareAndSet(current?.version ?? 0, next)).ok) mine += 1;
      }
      child.process.kill('SIGCONT');
      await new Promise((resolve) => setTimeout(resolve, 7));
    }
    await child.done;
    assert.equal((await coordinator.read())?.record.renewal, 300 + mine);
  });
}

function position(lsn: number) {
  return { generation: groupRecord().generation, term: 1, lsn } as NonNullable<GroupRecord['committed']>;
}

function countInChild(t: TestContext, subject: CoordinatorUnderTest, args: unknown, times: number) {
  const extension = import.meta.url.slice(-3);
  const script = fileURLToPath(new URL(`./coordinator-child${extension}`, import.meta.url));
  const child: ChildProcess = spawn(process.execPath, [script, subject.module, JSON.stringify(args), String(times)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.after(() => child.kill('SIGKILL'));
  const ready = Promise.withResolvers<void>();
  createInterface({ input: child.stdout! }).on('line', (line) => line === 'ready' && ready.resolve());
  const done = once(child, 'exit').then(([code]) => assert.equal(code, 0));
  return { process: child, ready: ready.promise, done };
}
