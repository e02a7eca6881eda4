/**
 * How long writes are not taken: after a kill -9 of the primary, with the default limits (a lease of 5 s), and while it
 * hands over; and that none is refused while the coordinator is away. One writer writes all the time: where it is refused
 * it goes to whoever leads. The coordinator is an etcd of three members, or an embedded one where there is no etcd.
 */
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { EtcdCluster, etcdMissing } from '../src/testing/etcd-cluster.ts';
import { isNostosError } from '../src/base/errors.ts';
import { GroupCluster, type Member } from './group-cluster.ts';
import { type Bench, type BenchContext, type Figure, median } from './harness.ts';

/** A majority, so that the group goes on without one. */
const MIN_IN_SYNC = 2;
const RETRY_MS = 2;
/** A replica shows by then what is committed. */
const ROWS_TIMEOUT_MS = 10_000;
const TAKEN_TIMEOUT_MS = 60_000;

export const bench: Bench = {
  name: 'group-failover',
  what: 'how long a group of three takes no writes',
  async run(context) {
    const { dir, quick } = context;
    const withEtcd = etcdMissing() === undefined;
    await using etcd = withEtcd ? await EtcdCluster.start({ dir }) : undefined;
    const coordinator =
      etcd === undefined ? `embedded:${join(dir, 'coordinator')}` : `etcd://${etcd.endpoints.join(',')}`;
    await using group = await GroupCluster.start(dir, { coordinator, minInSync: MIN_IN_SYNC });
    const writer = new SteadyWriter(group);
    const runs = quick ? 3 : 20;
    const handovers = await measure(context, 'handover', runs, () => handOver(group, writer));
    const failovers = await measure(context, 'failover', runs, () => failOver(group, writer));
    const figures = [
      figure('group-failover', 'kill -9 of the primary until a write is taken, worst of the runs', failovers, 7_000),
      figure('group-handover', 'longest write while the primary hands over, worst of the runs', handovers, 100),
    ];
    if (etcd !== undefined) figures.push(await coordinatorAway(context, etcd, writer));
    else process.stderr.write('group-failover: no figure without the coordinator, since there is no etcd to stop\n');
    await writer.stop();
    await checkRows(group, writer);
    return figures;
  },
};

async function measure(
  { progress }: BenchContext,
  what: string,
  runs: number,
  once: () => Promise<number>,
): Promise<readonly number[]> {
  const times: number[] = [];
  for (let run = 0; run < runs; run += 1) {
    progress(`${what} ${run + 1} of ${runs}`);
    times.push(await once());
  }
  return times;
}

function figure(name: string, what: string, times: readonly number[], gate: number): Figure {
  const worst = Math.max(...times);
  return {
    name,
    what: `${what}, ms`,
    ours: { value: worst, unit: 'ms' },
    peer: { value: gate, unit: 'ms' },
    value: worst,
    bound: { kind: 'atMost', gate },
    rounds: times,
    notes: { medianMs: median(times) },
  };
}

async function failOver(group: GroupCluster, writer: SteadyWriter): Promise<number> {
  const primary = await group.leader();
  writer.begin();
  const killedMs = performance.now();
  await primary.kill();
  const takenMs = (await writer.takenByAnother(primary)) - killedMs;
  await primary.start();
  await group.untilAllInSync();
  return takenMs;
}

async function handOver(group: GroupCluster, writer: SteadyWriter): Promise<number> {
  const primary = await group.leader();
  writer.begin();
  await primary.ask('handover', undefined);
  await writer.takenByAnother(primary);
  const { longestMs } = writer;
  await group.untilAllInSync();
  return longestMs;
}

/** For a minute no process of the coordinator answers, and the leases run out. */
async function coordinatorAway(
  { quick, progress }: BenchContext,
  etcd: EtcdCluster,
  writer: SteadyWriter,
): Promise<Figure> {
  const awayMs = quick ? 10_000 : 60_000;
  progress(`without the coordinator for ${awayMs / 1000} s`);
  const members = Array.from({ length: etcd.size }, (_, index) => index);
  const [before, refused] = [writer.taken, writer.refused];
  writer.begin();
  for (const index of members) etcd.pause(index);
  await sleep(awayMs);
  for (const index of members) etcd.resume(index);
  await sleep(5_000); // and nobody is deposed when it comes back
  return {
    name: 'group-coordinator',
    what: `writes refused while the coordinator is away for ${awayMs / 1000} s, and after`,
    ours: { value: writer.refused - refused, unit: 'refused' },
    peer: { value: writer.taken - before, unit: 'taken' },
    value: writer.refused - refused,
    bound: { kind: 'atMost', gate: 0 },
    notes: { longestWriteMs: writer.longestMs },
  };
}

/** Every row that was acknowledged is there once, on each node: a retry goes by its id. */
async function checkRows(group: GroupCluster, writer: SteadyWriter): Promise<void> {
  for (const member of group.members) {
    let rows = Number.NaN;
    for (const untilMs = performance.now() + ROWS_TIMEOUT_MS; performance.now() < untilMs; await sleep(RETRY_MS)) {
      rows = await member.ask('rows', undefined);
      if (rows === writer.taken) break;
    }
    if (rows !== writer.taken) throw new Error(`${writer.taken} writes were acknowledged, ${rows} are there`);
  }
}

interface Taken {
  readonly by: Member;
  readonly begunMs: number;
  readonly endedMs: number;
}

/** Writes one row after another, each until it is taken by somebody. */
class SteadyWriter {
  readonly #group: GroupCluster;
  readonly #done: Promise<void>;
  #times: Taken[] = [];
  #stopped = false;
  #failure: Error | undefined;
  taken = 0;
  refused = 0;

  constructor(group: GroupCluster) {
    this.#group = group;
    this.#done = this.#run().catch((error: Error) => void (this.#failure = error));
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#done;
    if (this.#failure !== undefined) throw this.#failure;
  }

  /** From now on counts what `longestMs` and `takenByAnother` look at. */
  begin(): void {
    this.#times = [];
  }

  get longestMs(): number {
    return this.#times.reduce((longest, { begunMs, endedMs }) => Math.max(longest, endedMs - begunMs), 0);
  }

  /** When the first one was taken by another than `member`. */
  async takenByAnother(member: Member): Promise<number> {
    for (const untilMs = performance.now() + TAKEN_TIMEOUT_MS; performance.now() < untilMs;) {
      if (this.#failure !== undefined) throw this.#failure;
      const first = this.#times.find(({ by }) => by !== member);
      if (first !== undefined) return first.endedMs;
      await sleep(RETRY_MS);
    }
    throw new Error('nobody takes writes');
  }

  async #run(): Promise<void> {
    let to = await this.#group.leader();
    while (!this.#stopped) {
      const begunMs = performance.now();
      const id = `write ${this.taken}`;
      for (let next = await this.#refusal(to, id); next !== undefined; next = await this.#refusal(to, id)) to = next;
      this.taken += 1;
      this.#times.push({ by: to, begunMs, endedMs: performance.now() });
    }
  }

  /** Undefined where the write was taken; otherwise whom to ask next. */
  async #refusal(to: Member, id: string): Promise<Member | undefined> {
    try {
      await to.ask('write', { id });
      return undefined;
    } catch (error) {
      this.refused += 1;
      const { members } = this.#group;
      const named = isNostosError(error, 'NOT_PRIMARY') ? error.details['primary'] : null;
      const primary = members.find(({ store, running }) => running && store === named);
      if (primary !== undefined && primary !== to) return primary;
      await sleep(RETRY_MS);
      return members[(members.indexOf(to) + 1) % members.length]!;
    }
  }
}
