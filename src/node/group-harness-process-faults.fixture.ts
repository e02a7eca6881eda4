/** Processes that end, stand still, exist twice, or live by another clock. */
import { cpSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { isNostosError } from '../base/errors.ts';
import { HARNESS_LIMITS, type GroupCluster } from './group-harness.fixture.ts';
import {
  expect,
  fired,
  lead,
  newKey,
  replaceDirectory,
  successorOf,
  type GroupFault,
} from './group-harness-fault.fixture.ts';
import { until, type Member } from './group-harness-member.fixture.ts';

const killed =
  (which: 'primary' | 'replica' | 'primary and a replica' | 'everybody'): GroupFault['run'] =>
  async (cluster) => {
    const primary = await cluster.primary();
    const [replica] = await cluster.replicas();
    const victims = {
      primary: [primary],
      replica: [replica!],
      'primary and a replica': [primary, replica!],
      everybody: [...cluster.members],
    }[which];
    await Promise.all(victims.map((victim) => victim.kill()));
    fired(
      victims.every(({ alive }) => !alive),
      'a process is still there',
    );
    if (victims.length === 1) await cluster.clients.served();
    if (which === 'primary') await successorOf(cluster, primary);
    await Promise.all(victims.map((victim) => cluster.open(cluster.indexOf(victim))));
  };

/** Nothing that it wrote last has reached anybody, so nobody may have been told of it. */
async function killedUnheard(cluster: GroupCluster): Promise<void> {
  const primary = await cluster.primary();
  const index = cluster.indexOf(primary);
  const links = cluster.links!;
  for (const other of cluster.othersOf(primary)) links.hold(index, other);
  await until('records are on their way', () => links.touched > 0);
  await sleep(HARNESS_LIMITS.ackTimeoutMs / 2);
  await primary.kill();
  links.heal('lose');
  await successorOf(cluster, primary);
  await cluster.open(index);
}

/** What it is asked while it stands still it must not answer as if it still led. */
const stoppedPastItsLease =
  (what: 'read' | 'put' | 'replace', load: 'busy' | 'quiet'): GroupFault['run'] =>
  async (cluster) => {
    // With nothing under way, no record that waits stands in the way of an answer.
    if (load === 'quiet') await cluster.clients.stop();
    const old = await cluster.primary();
    const key = newKey(cluster);
    await old.ask('put', { key, value: 'before' });
    old.pause();
    fired((await cluster.statusOf(old)) === undefined, 'the process that was stopped still answers');
    const input = { key, expected: 'nothing like it', value: 'by the old one' };
    const answer = old.ask(what, input, Infinity).then(
      (output) =>
        Promise.reject(new Error(`a primary that was replaced answered a ${what}: ${JSON.stringify(output)}`)),
      (error: unknown) => error,
    );
    answer.catch(() => {}); // it is awaited once the process goes on
    const successor = await cluster.primary(undefined, old);
    await successor.ask('put', { key, value: 'after' });
    await sleep(HARNESS_LIMITS.leaseMs);
    old.resume();
    const refusal = await answer;
    expect(
      isNostosError(refusal, 'NOT_PRIMARY') || isNostosError(refusal, 'OUTCOME_UNKNOWN'),
      `a ${what} of a primary that was replaced was refused with ${String(refusal)}`,
    );
    if (load === 'quiet') cluster.clients.start();
  };

const STOPS_OF_TWINS = new Set<string | undefined>(['superseded', 'lost-records', 'came home as another store']);

/** The directory of a replica is copied, and both are opened: one of them goes on. */
async function openedTwice(cluster: GroupCluster): Promise<void> {
  const [replica] = await cluster.replicas();
  const index = cluster.indexOf(replica!);
  const copy = join(cluster.root, 'copy');
  await replica!.kill();
  cpSync(cluster.dirs[index]!, copy, { recursive: true });
  const original = await cluster.open(index);
  await cluster.clients.served();
  const twin = cluster.spawn(index, { dir: copy });
  try {
    const { store } = await twin.opened;
    fired(store === original.store, 'the copy has another identity');
    const stops = async (member: Member): Promise<string | undefined> =>
      member.store === store ? (await cluster.statusOf(member))?.group?.stopped?.reason : 'came home as another store';
    let reasons: readonly (string | undefined)[] = [];
    await until(
      'one of the two stops',
      async () => {
        reasons = await Promise.all([stops(original), stops(twin)]);
        return reasons.some((reason) => reason !== undefined);
      },
      undefined,
      () => JSON.stringify(reasons),
    );
    // Whose place was taken has all that it acknowledged, also where the one that took it is found to lack some of that.
    const left = reasons.includes(undefined) ? undefined : 'superseded';
    const [goesOn, other] = reasons[0] === left ? [original, reasons[1]] : [twin, reasons[0]];
    expect(
      reasons.includes(left) && other !== left && STOPS_OF_TWINS.has(other),
      `of two nodes with one id ${JSON.stringify(reasons)} stopped`,
    );
    await cluster.clients.served();
    await Promise.all([original.kill(), twin.kill()]);
    if (goesOn === twin) replaceDirectory(copy, cluster.dirs[index]!);
    await cluster.open(index);
  } finally {
    await twin.kill();
    rmSync(copy, { recursive: true, force: true });
  }
}

/** The wall clock of the primary leaps an hour ahead, and an hour back. */
async function clockJumps(cluster: GroupCluster): Promise<void> {
  const old = await cluster.primary();
  const index = cluster.indexOf(old);
  const clockFile = join(cluster.root, 'clock');
  writeFileSync(clockFile, '0');
  await old.kill();
  const member = await cluster.open(index, { clockFile });
  await cluster.settled();
  await lead(cluster, member);
  for (const offsetMs of [3_600_000, -3_600_000, 0]) {
    writeFileSync(clockFile, `${offsetMs}`);
    await until('its clock has jumped', async () => {
      const shownMs = await member.ask('clock', undefined);
      return Math.abs(shownMs - offsetMs - Date.now()) < 60_000;
    });
    await cluster.clients.served();
  }
  await member.kill();
  await cluster.open(index);
}

async function handover(cluster: GroupCluster): Promise<void> {
  const old = await cluster.primary();
  const unknown = (): number => cluster.clients.codes.get('OUTCOME_UNKNOWN') ?? 0;
  const before = unknown();
  await old.ask('handover', {});
  const successor = await cluster.primary(undefined, old);
  fired(successor !== old, 'the same one leads');
  await cluster.clients.served();
  expect(unknown() === before, `${unknown() - before} writes do not know what became of them`);
}

export const PROCESS_FAULTS: readonly GroupFault[] = [
  { name: 'kill -9 of a replica', run: killed('replica') },
  { name: 'kill -9 of the primary', run: killed('primary') },
  { name: 'kill -9 of the primary, its last records unheard', run: killedUnheard, needs: ['links'] },
  { name: 'kill -9 of the primary and a replica', run: killed('primary and a replica') },
  { name: 'kill -9 of everybody', run: killed('everybody') },
  { name: 'the primary stands still past its lease: a read', run: stoppedPastItsLease('read', 'busy') },
  { name: 'the primary stands still past its lease: a write', run: stoppedPastItsLease('put', 'busy') },
  {
    name: 'the primary stands still past its lease: a write that only reads',
    run: stoppedPastItsLease('replace', 'quiet'),
  },
  { name: 'handover under load', run: handover },
  { name: 'two nodes with one id', run: openedTwice },
  { name: 'a clock that jumps', run: clockJumps },
];
