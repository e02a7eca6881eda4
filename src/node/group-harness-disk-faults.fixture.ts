/**
 * Disks that are full, slow, refuse a write, or return to what they were; and kill -9 in a rollback, which leaves whatever the
 * disk had. What a process asks of its disk is disturbed by strace.
 */
import { cpSync, existsSync, readFileSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { systemDisk } from '../base/disk.ts';
import type { SeededRandom } from '../base/random.ts';
import { listRollbackFiles } from '../rollback/file/list.ts';
import { JOURNAL_FILE, parseJournal } from '../rollback/run/journal.ts';
import type { RunState } from '../rollback/run/machine.ts';
import { showFile } from '../rollback/show.ts';
import { LOCAL_TENANT } from './group-child.fixture.ts';
import { HARNESS_LIMITS, type GroupCluster } from './group-harness.fixture.ts';
import { cameHome, expect, fired, isInSync, lead, type GroupFault } from './group-harness-fault.fixture.ts';
import { until, type Member } from './group-harness-member.fixture.ts';
import { Disturbance, launcherWith, type Injection } from './group-harness-strace.fixture.ts';

const SYNCS = 'fsync,fdatasync';
const RENAMES = 'rename,renameat,renameat2';
const SLOW_SYNC_MS = 15;
const KILLS_MAX = 40;
/** Of a process that opens and rolls back: those before, and about as many as there are. */
const [FIRST_STEPS, STEPS] = [5, 80];

/** Slower than anybody waits for an acknowledgement. */
async function slowReplica(cluster: GroupCluster): Promise<void> {
  const [replica] = await cluster.replicas();
  {
    const delayMs = HARNESS_LIMITS.ackTimeoutMs * 2;
    await using slow = await Disturbance.of(replica!.pid, { calls: SYNCS, what: `delay_enter=${delayMs * 1000}` });
    await until('a sync is delayed', () => slow.happened > 0);
    await until('the slow one is not in sync', async () => !(await isInSync(cluster, replica!)));
    await cluster.clients.served(60);
  }
  await until('it is in sync again', () => isInSync(cluster, replica!));
}

/** It takes a hundred times as long to acknowledge anything, and leads all the same. */
async function slowPrimary(cluster: GroupCluster): Promise<void> {
  const primary = await cluster.primary();
  const { group: before } = await primary.ask('status', undefined);
  await using slow = await Disturbance.of(primary.pid, { calls: SYNCS, what: `delay_enter=${SLOW_SYNC_MS * 1000}` });
  await until('a sync is delayed', () => slow.happened > 0);
  await Promise.all([cluster.clients.served(40), sleep(HARNESS_LIMITS.leaseMs * 2)]);
  const { group } = await primary.ask('status', undefined);
  expect(
    group?.role === 'leading' && group.term === before?.term,
    `it leads no longer: ${JSON.stringify([before, group])}`,
  );
}

/** What the log has, and the group has committed, a tenant's file does not take: the write has succeeded, and is replayed. */
const commitFails =
  (whose: 'primary' | 'replica'): GroupFault['run'] =>
  async (cluster) => {
    const primary = await cluster.primary();
    const member = whose === 'primary' ? primary : cluster.members[cluster.othersOf(primary)[0]!]!;
    const file = await member.ask('tenantFile', undefined);
    const sinceMs = Date.now();
    const failing: Injection = { calls: 'pwrite64', what: 'error=EIO:when=1', path: `${file}-wal` };
    {
      await using disturbance = await Disturbance.of(member.pid, failing);
      await until('a write to the file of the tenant fails', () => disturbance.happened > 0);
      await cluster.clients.served(40);
    }
    const events = (await member.ask('status', undefined)).group?.events ?? [];
    fired(
      events.some(({ atMs, kind, text }) => atMs >= sinceMs && kind === 'tenant-failed' && text.includes('I/O error')),
      `the member does not tell of it: ${JSON.stringify(events.slice(-3))}`,
    );
    expect((await cluster.primary()) === primary, 'another one leads');
  };

/**
 * A member comes back with less than it has acknowledged. It sees that, and comes home by a copy, as a new store; a primary is
 * back before anybody has taken its place.
 */
const olderImage =
  (whose: 'primary' | 'replica'): GroupFault['run'] =>
  async (cluster) => {
    const [replica] = await cluster.replicas();
    const victim = whose === 'primary' ? await cluster.primary() : replica!;
    const index = cluster.indexOf(victim);
    const dir = cluster.dirs[index]!;
    const old = `${dir}.old`;
    // A `local` write that nobody else has is lost with the disk that had it.
    await cluster.clients.stop();
    await cluster.settled();
    await victim.kill();
    cpSync(dir, old, { recursive: true });
    const before = await cluster.open(index);
    if (whose === 'primary') await lead(cluster, before);
    await cluster.settled();
    const { store } = before;
    const ids = cluster.clients.newIds(5);
    await (await cluster.primary()).ask('insert', { ids });
    cluster.clients.acknowledge(ids);
    await sleep(HARNESS_LIMITS.renewIntervalMs * 2); // a renewal tells the coordinator that they are committed
    const others = cluster.othersOf(before).map((other) => cluster.members[other]!);
    // Nobody takes over meanwhile, nor drops it.
    for (const other of others) other.pause();
    await before.kill();
    rmSync(dir, { recursive: true });
    renameSync(old, dir);
    const set = await cluster.open(index);
    for (const other of others) other.resume();
    cluster.clients.start();
    await cameHome(cluster, set, store);
  };

/** The last member, whose directory is on the small disk, has no room for a while: as a follower, or while it leads. */
const fullDisk =
  (whose: 'follower' | 'primary'): GroupFault['run'] =>
  async (cluster, disk) => {
    const index = cluster.members.length - 1;
    const member = cluster.members[index]!;
    await lead(cluster, whose === 'primary' ? member : cluster.members[0]!);
    const filler = disk!.fill();
    let seen: unknown;
    const inSync = async (): Promise<boolean> => {
      seen = (await cluster.statusOf(member))?.group;
      return isInSync(cluster, member);
    };
    // Its open segment has room yet.
    await until('who has no room neither leads nor is in sync', async () => {
      const ids = cluster.clients.newIds(4);
      const written = (await cluster.primary()).ask('insert', { ids, bytes: 60_000 });
      await written.then(
        () => cluster.clients.acknowledge(ids),
        () => {},
      );
      return (await cluster.primary()) !== member && !(await inSync());
    });
    await cluster.clients.served();
    rmSync(filler);
    await until('it is in sync again when it has room', inSync, undefined, () => JSON.stringify(seen));
  };

/** A primary that has died with records that nobody else has, while another one leads. */
async function divergent(cluster: GroupCluster): Promise<{ readonly index: number; readonly ids: readonly number[] }> {
  await cluster.clients.stop();
  await cluster.settled();
  const primary = await cluster.primary();
  const [index, others] = [cluster.indexOf(primary), cluster.othersOf(primary)];
  await Promise.all(others.map((other) => cluster.members[other]!.kill()));
  const ids = cluster.clients.newIds(20);
  for (const id of ids) await primary.ask('insertLocal', { ids: [id] });
  cluster.clients.acknowledgeLocal(ids);
  await primary.kill();
  await Promise.all(others.map((other) => cluster.open(other)));
  cluster.clients.start();
  await cluster.primary(undefined, primary);
  await cluster.clients.served();
  return { index, ids };
}

function journalOf(dir: string): string {
  return join(dir, 'rollback', JOURNAL_FILE);
}

/** How far the rollback of a directory is, by its journal. */
function rollbackState(dir: string): RunState | undefined {
  const path = journalOf(dir);
  return existsSync(path) ? parseJournal(path, readFileSync(path)).intent?.state : undefined;
}

interface Killing {
  readonly injection: (dir: string, random: SeededRandom, kills: number) => Injection;
  readonly states: readonly RunState[];
}

/** Killed, started and killed again until it follows: the tail is in one file, which has just that. */
const killedInRollback =
  ({ injection, states }: Killing): GroupFault['run'] =>
  async (cluster) => {
    const { index, ids } = await divergent(cluster);
    const dir = cluster.dirs[index]!;
    const before = new Set(rollbackFiles(dir));
    const reached = new Set<RunState | undefined>();
    let kills = 0;
    for (; kills < KILLS_MAX; kills += 1) {
      const member = cluster.spawn(index, { launcher: launcherWith(injection(dir, cluster.random, kills)) });
      cluster.members[index] = member;
      const follows = until(
        'it follows or is killed',
        async () => !member.alive || (await isStreaming(cluster, member)),
      );
      await follows;
      if (member.alive) break;
      expect((await member.exited()) === 'SIGKILL', 'it has ended by itself');
      reached.add(rollbackState(dir));
    }
    await cluster.members[index]!.kill();
    const missed = states.filter((state) => !reached.has(state));
    fired(kills > 0 && missed.length === 0, `in ${kills} kills none came when the rollback was ${missed.join(', ')}`);
    await cluster.open(index);
    await cluster.settled();
    const files = (await listRollbackFiles(systemDisk, join(dir, 'rollback'))).filter(({ name }) => !before.has(name));
    const [file] = files;
    expect(files.length === 1 && file?.state === 'whole', `instead of one whole file: ${JSON.stringify(files)}`);
    const dropped: number[] = [];
    for await (const shown of showFile(systemDisk, file!.path))
      if (shown.kind === 'row' && shown.tenant === LOCAL_TENANT && shown.acknowledged)
        dropped.push(Number(shown.key.id));
    expect(dropped.join() === ids.join(), `dropped were ${ids.join(' ')}, the file has ${dropped.join(' ')}`);
  };

function rollbackFiles(dir: string): readonly string[] {
  const path = join(dir, 'rollback');
  return existsSync(path) ? readdirSync(path) : [];
}

async function isStreaming(cluster: GroupCluster, member: Member): Promise<boolean> {
  return (await cluster.statusOf(member))?.group?.following?.phase === 'streaming';
}

export const DISK_FAULTS: readonly GroupFault[] = [
  { name: 'a replica whose disk is slow', run: slowReplica, needs: ['strace'] },
  { name: 'a primary whose disk is slow', run: slowPrimary, needs: ['strace'] },
  { name: 'a COMMIT that fails on a committed record, on the primary', run: commitFails('primary'), needs: ['strace'] },
  { name: 'a COMMIT that fails on a committed record, on a replica', run: commitFails('replica'), needs: ['strace'] },
  { name: 'a replica from an older image', run: olderImage('replica') },
  { name: 'a primary from an older image', run: olderImage('primary') },
  { name: 'a follower whose disk is full', run: fullDisk('follower'), needs: ['disk'] },
  { name: 'a primary whose disk is full', run: fullDisk('primary'), needs: ['disk'] },
  {
    name: 'kill -9 in each state of a rollback',
    run: killedInRollback({
      // Each start gets one state further, and is killed when it is about to say the next one.
      injection: (dir) => ({ calls: RENAMES, what: 'signal=SIGKILL:when=2', path: `${journalOf(dir)}.tmp` }),
      states: ['planned', 'preserved', 'recovering', 'recovered', 'announced'],
    }),
    needs: ['strace'],
  },
  {
    name: 'kill -9 anywhere in a rollback',
    run: killedInRollback({
      // The first one must come before the end, or there is no rollback any more.
      injection: (_, random, kills) => ({
        calls: `${SYNCS},${RENAMES},unlink,ftruncate`,
        what: `signal=SIGKILL:when=${FIRST_STEPS + random.below(kills === 0 ? FIRST_STEPS : STEPS)}`,
      }),
      states: [],
    }),
    needs: ['strace'],
    soak: true,
  },
];
