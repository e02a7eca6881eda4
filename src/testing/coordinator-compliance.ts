/**
 * What every coordinator adapter must do, as tests. An adapter's own test file calls `coordinatorCompliance` with a way
 * to open it anew, and with a module that opens the same coordinator in another process.
 */
import assert from 'node:assert/strict';
import type { ChildProcess } from 'node:child_process';
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import type { TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { BootId, Generation, NodeId, StoreId, Term } from '../base/brands.ts';
import { systemDisk } from '../base/disk.ts';
import { isNostosError } from '../base/errors.ts';
import type { Coordination } from '../coordination/coordination.ts';
import type { GroupRecord, Register, Versioned } from '../coordination/coordinator.ts';
import type { DirectoryEntry } from '../coordination/directory.ts';
import type { MemberEntry } from '../coordination/member.ts';
import { NewestSeen } from '../coordination/newest-seen.ts';
import { RememberingCoordinator } from '../coordination/remembering.ts';

/** Opens the coordinator that `args`, which survive JSON, stand for. */
export type CoordinationFactory = (args: unknown) => Coordination | Promise<Coordination>;

export interface CoordinatorUnderTest {
  readonly name: string;
  /** URL of a module that exports `openCoordinator: CoordinationFactory`. */
  readonly module: string;
  /** Why nothing can be tested here; undefined where it can. */
  readonly skip?: string | undefined;
  /** Arguments for a coordinator that holds nothing yet. */
  fresh(t: TestContext): unknown;
  /** Keeps what the coordinator holds; what is returned brings that back, by the means of an operator. */
  image(args: unknown): Promise<() => Promise<void>>;
  /** The same coordinator, reached through a network with faults, by a client that gives up soon; absent: there is none. */
  disturbed?(t: TestContext, args: unknown): Promise<{ args: unknown; network: DisturbedNetwork }>;
}

export interface DisturbedNetwork {
  /** The next write is carried out, and its answer lost; resolves when that has happened. */
  loseNextReply(): Promise<void>;
  /** The next write is held back, also when its sender has given up. */
  holdNextWrite(): HeldWrite;
}

export interface HeldWrite {
  readonly held: Promise<void>;
  /** Lets it arrive; resolves when it was answered. */
  deliver(): Promise<void>;
}

/** Of one test: an adapter that hangs fails, whatever runs it. */
const TIMEOUT_MS = 60_000;
const WATCH_TIMEOUT_MS = 10_000;
const WRITERS = 8;
const RACES = 15;
const CHILD_WRITES = 40;
const YEARS = 10;

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

export function directoryEntry(change: Partial<DirectoryEntry> = {}): DirectoryEntry {
  return { group: 'main', epoch: 1, nonce: randomBytes(16).toString('hex'), ...change };
}

export function memberEntry(change: Partial<MemberEntry> = {}): MemberEntry {
  const node = 'cccccccccccccccccccccccccccccccc' as NodeId;
  return { node, address: '127.0.0.1:4041', nonce: randomBytes(16).toString('hex'), ...change };
}

export function coordinatorCompliance(subject: CoordinatorUnderTest): void {
  const options = { timeout: TIMEOUT_MS, ...(subject.skip !== undefined && { skip: subject.skip }) };
  const check = (title: string, body: (t: TestContext, args: unknown) => Promise<void>): void => {
    test(`${subject.name}: ${title}`, options, async (t) => body(t, await subject.fresh(t)));
  };
  registerCompliance(subject, check, {
    what: 'group',
    open: (coordination) => coordination.group(),
    make: (count) => groupRecord({ renewal: count }),
  });
  registerCompliance(subject, check, {
    what: 'directory entry',
    open: (coordination) => coordination.directory.entry('actor/0123'),
    make: (count) => directoryEntry({ epoch: count + 1 }),
  });
  registerCompliance(subject, check, {
    what: 'member',
    open: (coordination) => coordination.member(groupRecord().members[0]!),
    make: (count) => memberEntry({ address: `[::1]:${count + 1}` }),
  });
  processCompliance(subject, check);
  directoryCompliance(subject, check);

  check('every field of a record comes back', async (t, args) => {
    const record = groupRecord({ renewal: 7, committed: position(5) });
    await (await open(t, subject, args)).group().compareAndSet(0, record);
    assert.deepEqual(await (await open(t, subject, args)).group().read(), { version: 1, record });
  });

  check('members have an entry each, which are listed in order and in pages', async (t, args) => {
    const coordination = await open(t, subject, args);
    const stores = ['d', 'b', 'e', 'c'].map((digit) => digit.repeat(32) as StoreId);
    const copies = { copyAddress: 'node-1.example:4042' };
    const entries = stores.map((_, i) => memberEntry({ address: `node-${i}.example:4041`, ...(i === 1 && copies) }));
    assert.deepEqual(await coordination.members(), { entries: [], next: undefined });
    for (const [i, store] of stores.entries()) await coordination.member(store).compareAndSet(0, entries[i]!);
    await coordination.directory.entry(stores[0]!).compareAndSet(0, directoryEntry());
    const [d, b, e, c] = stores.map((id, i) => ({ id, version: 1, record: entries[i]! }));
    const first = await coordination.members({ limit: 3 });
    assert.deepEqual(first, { entries: [b, c, d], next: d!.id });
    assert.deepEqual((await coordination.members({ limit: 3, after: first.next })).entries, [e]);
    const { member } = coordination;
    for (const store of ['', '../x', 'A'.repeat(32)]) assert.throws(() => member(store as StoreId), refusedArgument);
    for (const address of ['', 'host', 'host:0', 'host:65536', 'a b:1', `${'a'.repeat(400)}:1`, ':1'])
      for (const field of ['address', 'copyAddress'])
        await assert.rejects(
          member(stores[0]!).compareAndSet(1, memberEntry({ [field]: address })),
          isNostosError,
          address,
        );
    assert.deepEqual(await member(stores[0]!).read(), { version: 1, record: entries[0] });
  });

  check('groups have a record each', async (t, args) => {
    const coordination = await open(t, subject, args);
    const [a, b] = [groupRecord(), groupRecord()];
    assert.deepEqual(await coordination.group('a').compareAndSet(0, a), { ok: true, version: 1 });
    assert.deepEqual(await coordination.group('b').compareAndSet(0, b), { ok: true, version: 1 });
    assert.deepEqual((await coordination.group('a').read())?.record, a);
    for (const name of ['', '..', 'a/b', 'A', 'a'.repeat(64)])
      assert.throws(
        () => coordination.group(name),
        (error: unknown) => isNostosError(error, 'INVALID_ARGUMENT'),
      );
  });

  check('a coordinator that was set back stops who saw more, as does one that was emptied', async (t, args) => {
    const dir = mkdtempSync(join(tmpdir(), 'nostos-seen-'));
    t.after(() => rmSync(dir, { recursive: true, force: true }));
    const coordination = await open(t, subject, args);
    const remembering = (name: string): RememberingCoordinator =>
      new RememberingCoordinator(coordination.group(), new NewestSeen(systemDisk, join(dir, name)));
    const emptied = await subject.image(args);
    await coordination.group().compareAndSet(0, groupRecord());
    const older = await subject.image(args);
    const node = remembering('node.json');
    const record = groupRecord({ renewal: 1 });
    assert.deepEqual(await node.compareAndSet(1, record), { ok: true, version: 2 });
    assert.deepEqual(await node.read(), { version: 2, record });
    const regressed = (error: unknown): boolean => isNostosError(error, 'COORDINATOR_REGRESSED');

    await older();
    await assert.rejects(node.read(), regressed);
    await assert.rejects(node.compareAndSet(2, groupRecord()), regressed);
    await assert.rejects(remembering('node.json').read(), regressed, 'also after it was opened again');
    // Others, who saw less, go on from there; the version that was lost is then another record.
    const stranger = remembering('stranger.json');
    assert.equal((await stranger.compareAndSet(1, groupRecord())).ok, true);
    await assert.rejects(node.read(), regressed);

    await emptied();
    assert.equal(await coordination.group().read(), undefined);
    await assert.rejects(node.read(), regressed);
    await assert.rejects(stranger.read(), regressed);
  });
}

type Check = (title: string, body: (t: TestContext, args: unknown) => Promise<void>) => void;

interface RegisterUnderTest<R extends { readonly nonce: string }> {
  readonly what: string;
  open(coordination: Coordination): Register<R>;
  /** A new record; of a higher count, it may follow one of a lower count. */
  make(count: number): R;
}

function registerCompliance<R extends { readonly nonce: string }>(
  subject: CoordinatorUnderTest,
  check: Check,
  { what, open: openRegister, make }: RegisterUnderTest<R>,
): void {
  const register = async (t: TestContext, args: unknown): Promise<Register<R>> =>
    openRegister(await open(t, subject, args));

  check(`${what}: there is none before the first write`, async (t, args) => {
    const handle = await register(t, args);
    assert.equal(await handle.read(), undefined);
    assert.deepEqual(await handle.compareAndSet(3, make(1)), { ok: false, current: undefined });
  });

  check(`${what}: what one handle wrote, another one reads and replaces`, async (t, args) => {
    const [a, b] = [await register(t, args), await register(t, args)];
    const [first, second] = [make(1), make(2)];
    for (const handle of [a, b]) assert.equal(await handle.read(), undefined);
    assert.deepEqual(await a.compareAndSet(0, first), { ok: true, version: 1 });
    assert.deepEqual(await b.read(), { version: 1, record: first });
    assert.deepEqual(await b.compareAndSet(1, second), { ok: true, version: 2 });
    assert.deepEqual(await a.compareAndSet(1, make(3)), { ok: false, current: { version: 2, record: second } });
    assert.deepEqual(await a.read(), { version: 2, record: second });
  });

  check(`${what}: of ${WRITERS} writers from one version one wins, the others learn what holds`, async (t, args) => {
    const handles = await Promise.all(Array.from({ length: WRITERS }, () => register(t, args)));
    for (let version = 0; version < RACES; version++) {
      const records = handles.map(() => make(version));
      const results = await Promise.all(handles.map((handle, i) => handle.compareAndSet(version, records[i]!)));
      const winner = results.findIndex(({ ok }) => ok);
      const current = { version: version + 1, record: records[winner] };
      for (const [i, result] of results.entries())
        assert.deepEqual(result, i === winner ? { ok: true, version: version + 1 } : { ok: false, current });
      assert.deepEqual(await handles[0]!.read(), current);
    }
  });

  check(
    `${what}: a repeated write that was already taken has succeeded, until another one follows`,
    async (t, args) => {
      const [a, b] = [await register(t, args), await register(t, args)];
      const record = make(1);
      assert.deepEqual(await a.compareAndSet(0, record), { ok: true, version: 1 });
      assert.deepEqual(await a.compareAndSet(0, record), { ok: true, version: 1 });
      assert.deepEqual(await b.compareAndSet(0, record), { ok: true, version: 1 });
      assert.deepEqual(await b.read(), { version: 1, record });
      const next = make(2);
      await b.compareAndSet(1, next);
      assert.deepEqual(await a.compareAndSet(0, record), { ok: false, current: { version: 2, record: next } });
    },
  );

  check(`${what}: a watch tells of newer records, and of nothing after it was ended`, async (t, args) => {
    const [handle, other] = [await register(t, args), await register(t, args)];
    await handle.compareAndSet(0, make(1));
    const ended = new AbortController();
    t.after(() => ended.abort());
    const seen: Versioned<R>[] = [];
    const third = Promise.withResolvers<void>();
    handle.watch(
      (current) => {
        seen.push(current);
        if (current.version === 3) third.resolve();
      },
      { signal: ended.signal },
    );
    const last = make(3);
    await other.compareAndSet(1, make(2));
    await other.compareAndSet(2, last);
    await soon(third.promise, 'the watch tells of version 3');
    ended.abort();
    // Another watch hears of two more versions, time enough for the first one.
    const [fourth, fifth] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
    const later = new AbortController();
    t.after(() => later.abort());
    await other.compareAndSet(3, make(4));
    handle.watch(({ version }) => (version === 4 ? fourth : fifth).resolve(), { signal: later.signal });
    await soon(fourth.promise, 'a new watch tells of version 4');
    await other.compareAndSet(4, make(5));
    await soon(fifth.promise, 'a new watch tells of version 5');
    const versions = seen.map(({ version }) => version);
    assert.deepEqual(
      versions,
      [...new Set(versions)].toSorted((x, y) => x - y),
    );
    assert.deepEqual(seen.at(-1), { version: 3, record: last });
  });

  if (subject.disturbed === undefined) return;
  const disturbed = async (t: TestContext, args: unknown): Promise<{ far: Register<R>; network: DisturbedNetwork }> => {
    const { args: farArgs, network } = await subject.disturbed!(t, args);
    const far = openRegister(await open(t, subject, farArgs));
    return { far, network };
  };

  check(`${what}: when the answer is lost the outcome is open, and repeating the call closes it`, async (t, args) => {
    const near = await register(t, args);
    const { far, network } = await disturbed(t, args);
    await near.compareAndSet(0, make(1));
    const lost = network.loseNextReply();
    const record = make(2);
    await assert.rejects(far.compareAndSet(1, record), (error: unknown) => isNostosError(error));
    await lost;
    assert.deepEqual(await near.read(), { version: 2, record });
    assert.deepEqual(await far.compareAndSet(1, record), { ok: true, version: 2 });
    const superseded = network.loseNextReply();
    const third = make(3);
    await assert.rejects(far.compareAndSet(2, third), (error: unknown) => isNostosError(error));
    await superseded;
    const fourth = make(4);
    assert.deepEqual(await near.compareAndSet(3, fourth), { ok: true, version: 4 });
    assert.deepEqual(await far.compareAndSet(2, third), { ok: false, current: { version: 4, record: fourth } });
  });

  check(`${what}: a write that arrives late is refused once there are later versions`, async (t, args) => {
    const near = await register(t, args);
    const { far, network } = await disturbed(t, args);
    await near.compareAndSet(0, make(1));
    const hold = network.holdNextWrite();
    const late = make(2);
    const attempt = assert.rejects(far.compareAndSet(1, late), (error: unknown) => isNostosError(error));
    await hold.held;
    await attempt;
    const records = [make(2), make(3), make(4)];
    for (const [i, record] of records.entries())
      assert.deepEqual(await near.compareAndSet(i + 1, record), { ok: true, version: i + 2 });
    await hold.deliver();
    const current = { version: 4, record: records[2] };
    assert.deepEqual(await near.read(), current);
    assert.deepEqual(await far.compareAndSet(1, late), { ok: false, current });
  });

  check(`${what}: a write that arrives late takes effect once, also when it was repeated`, async (t, args) => {
    const near = await register(t, args);
    const { far, network } = await disturbed(t, args);
    for (const version of [0, 1]) {
      const hold = network.holdNextWrite();
      const record = make(version + 1);
      await assert.rejects(far.compareAndSet(version, record), (error: unknown) => isNostosError(error));
      await hold.held;
      const repeated = version === 0;
      if (repeated) assert.deepEqual(await far.compareAndSet(0, record), { ok: true, version: 1 });
      await hold.deliver();
      assert.deepEqual(await near.read(), { version: version + 1, record });
      assert.deepEqual(await far.compareAndSet(version, record), { ok: true, version: version + 1 });
    }
  });
}

function processCompliance(subject: CoordinatorUnderTest, check: Check): void {
  check('of processes that write against each other one wins each version', async (t, args) => {
    const children = [0, 0, 0].map(() => writeInChild(t, { subject, args, times: CHILD_WRITES }));
    const won = (await Promise.all(children.map(({ won: versions }) => versions))).flat();
    assert.deepEqual(
      won.toSorted((a, b) => a - b),
      Array.from({ length: 3 * CHILD_WRITES }, (_, i) => i + 1),
    );
    const current = await (await open(t, subject, args)).group().read();
    assert.deepEqual([current?.version, current?.record.renewal], [won.length, won.length]);
  });

  check('wall clocks that are years apart, or jump, change nothing', async (t, args) => {
    const clocks = [`${YEARS}`, `-${YEARS}`, 'jump'];
    const children = clocks.map((clock) => writeInChild(t, { subject, args, times: CHILD_WRITES, clock }));
    const won = (await Promise.all(children.map(({ won: versions }) => versions))).flat();
    assert.equal(new Set(won).size, 3 * CHILD_WRITES);
    const current = await (await open(t, subject, args)).group().read();
    assert.deepEqual([current?.version, current?.record.renewal], [won.length, won.length]);
  });

  check('a stopped process blocks nobody, and goes on rightly afterwards', async (t, args) => {
    const group = (await open(t, subject, args)).group();
    const times = 3 * CHILD_WRITES;
    const child = writeInChild(t, { subject, args, times });
    await child.ready;
    let mine = 0;
    let stops = 0;
    for (let round = 0; round < 12 && child.process.exitCode === null; round++) {
      if (child.process.kill('SIGSTOP')) stops += 1;
      const until = performance.now() + 5_000;
      for (const target = mine + 3; mine < target;) {
        assert.ok(performance.now() < until, 'writes go on while the other process is stopped');
        const current = await group.read();
        const next = groupRecord({ renewal: (current?.record.renewal ?? 0) + 1 });
        if ((await group.compareAndSet(current?.version ?? 0, next)).ok) mine += 1;
      }
      child.process.kill('SIGCONT');
      await sleep(7);
    }
    assert.ok(stops >= 3, `it was stopped ${stops} times`);
    await child.won;
    assert.equal((await group.read())?.record.renewal, times + mine);
  });
}

function directoryCompliance(subject: CoordinatorUnderTest, check: Check): void {
  check('directory: an entry is replaced by one of a higher epoch only', async (t, args) => {
    const { directory } = await open(t, subject, args);
    const entry = directory.entry('tenant/1');
    await entry.compareAndSet(0, directoryEntry({ epoch: 5 }));
    for (const epoch of [4, 5])
      await assert.rejects(entry.compareAndSet(1, directoryEntry({ epoch })), (error: unknown) =>
        isNostosError(error, 'INVALID_ARGUMENT'),
      );
    assert.equal((await entry.compareAndSet(1, directoryEntry({ epoch: 6, group: 'b' }))).ok, true);
  });

  check('directory: of the ways out of one epoch one is taken', async (t, args) => {
    const opened = await Promise.all([0, 1].map(() => open(t, subject, args)));
    const [source, target] = opened.map(({ directory }) => directory.entry('actor/a'));
    await source!.compareAndSet(0, directoryEntry({ group: 'a', epoch: 1 }));
    for (let version = 1; version <= RACES; version++) {
      const epoch = version + 1;
      const [stays, moves] = await Promise.all([
        source!.compareAndSet(version, directoryEntry({ group: 'a', epoch })),
        target!.compareAndSet(version, directoryEntry({ group: 'b', epoch })),
      ]);
      assert.notEqual(stays.ok, moves.ok);
      const taken = stays.ok ? 'a' : 'b';
      for (const side of [source, target]) assert.equal((await side!.read())?.record.group, taken);
    }
  });

  check('directory: entries are listed by prefix, in order and in pages', async (t, args) => {
    const coordination = await open(t, subject, args);
    const { directory } = coordination;
    const empty = { entries: [], next: undefined };
    assert.deepEqual(await directory.list(), empty);
    await coordination.group('actor').compareAndSet(0, groupRecord());
    const ids = ['actor/a', 'actor/a-1', 'actor/a.b', 'actor/b', 'actor/b:2', 'actors', 'tenant/0', 'tenant/1'];
    const records = new Map(ids.map((id) => [id, directoryEntry({ group: id.startsWith('t') ? 't' : 'a' })]));
    for (const id of ids.toReversed()) await directory.entry(id).compareAndSet(0, records.get(id)!);
    const listed = async (prefix: string, limit: number): Promise<string[]> => {
      const found: string[] = [];
      for (let after: string | undefined, pages = 0; pages <= ids.length; pages++) {
        const page = await directory.list({ prefix, after, limit });
        assert.ok(page.entries.length <= limit);
        for (const { id, version, record } of page.entries)
          assert.deepEqual({ version, record }, { version: 1, record: records.get(id) });
        found.push(...page.entries.map(({ id }) => id));
        if (page.next === undefined) return found;
        after = page.next;
      }
      throw new Error('the pages do not end');
    };
    for (const prefix of ['', 'actor/', 'actor/a', 'actor/b:2', 'tenant/', 'none/'])
      for (const limit of [1, 3, 1_000])
        assert.deepEqual(
          await listed(prefix, limit),
          ids.filter((id) => id.startsWith(prefix)),
          `${prefix} by ${limit}`,
        );
  });

  check('directory: ids and pages that are none are refused', async (t, args) => {
    const { directory } = await open(t, subject, args);
    const refused = (error: unknown): boolean => isNostosError(error, 'INVALID_ARGUMENT');
    for (const id of ['', '.', '../x', 'A', 'a b', 'a+b', 'a=b', 'ä', 'a\0', 'a'.repeat(129)])
      assert.throws(() => directory.entry(id), refused, id);
    for (const options of [{ limit: 0 }, { limit: 1_001 }, { limit: 1.5 }, { prefix: '/' }, { after: '' }])
      await assert.rejects(directory.list(options), refused);
    const entry = directory.entry('a');
    for (const change of [{ epoch: 0 }, { epoch: 1.5 }, { group: '../x' }, { nonce: 'x' }])
      await assert.rejects(entry.compareAndSet(0, directoryEntry(change)));
    assert.equal(await entry.read(), undefined);
  });
}

function refusedArgument(error: unknown): boolean {
  return isNostosError(error, 'INVALID_ARGUMENT');
}

async function soon(promise: Promise<void>, what: string): Promise<void> {
  const late = AbortSignal.timeout(WATCH_TIMEOUT_MS);
  const timeout = once(late, 'abort').then(() => Promise.reject(new Error(`${what} within ${WATCH_TIMEOUT_MS} ms`)));
  await Promise.race([promise, timeout]);
}

async function open(t: TestContext, subject: CoordinatorUnderTest, args: unknown): Promise<Coordination> {
  const { openCoordinator } = (await import(subject.module)) as { openCoordinator: CoordinationFactory };
  const coordination = await openCoordinator(args);
  t.after(() => coordination.close());
  return coordination;
}

function position(lsn: number) {
  return { generation: groupRecord().generation, term: 1, lsn } as NonNullable<GroupRecord['committed']>;
}

interface ChildRun {
  readonly subject: CoordinatorUnderTest;
  readonly args: unknown;
  readonly times: number;
  /** Years by which its wall clock is off, or `jump`. */
  readonly clock?: string;
}

function writeInChild(t: TestContext, { subject, args, times, clock = '0' }: ChildRun) {
  const script = fileURLToPath(new URL(`./coordinator-child${import.meta.url.slice(-3)}`, import.meta.url));
  const child: ChildProcess = spawn(
    process.execPath,
    [script, subject.module, JSON.stringify(args), String(times), clock],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  t.after(() => child.kill('SIGKILL'));
  const ready = Promise.withResolvers<void>();
  const versions: number[] = [];
  createInterface({ input: child.stdout! }).on('line', (line) => {
    if (line === 'ready') ready.resolve();
    else versions.push(Number(line));
  });
  // `close` comes when its output was read to the end.
  const won = once(child, 'close').then(([code]) => {
    assert.equal(code, 0);
    assert.equal(versions.length, times);
    return versions;
  });
  return { process: child, ready: ready.promise, won };
}
