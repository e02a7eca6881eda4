/** Three processes that hold one log: a node with the visitor's data, and two copies of it that join. */
import { join } from 'node:path';
import { openCoordinator } from '../../coordination/open-coordinator.ts';
import { initGroup } from '../../node/group-init.ts';
import { openNode } from '../../node/open-node.ts';
import { restoreNode } from '../../node/restore-node.ts';
import type { NodeOptions } from '../../node/types.ts';
import { callWithDisplay } from '../progress.ts';
import { count, duration } from '../render.ts';
import { Link } from './link.ts';
import { Member } from './member.ts';
import type { TourContext } from './part.ts';
import { until } from './until.ts';
import type { Workload } from './workload.ts';
import { addTables } from './written.ts';

const TENANT = 'tour';
const GROUP = 'main';
const NAMES = ['node 1', 'node 2', 'node 3'] as const;
/** How many of the three must have each write before it is acknowledged. */
const MAJORITY = 2;
/** The least time in which nobody else leads after a primary has died. */
export const LEASE_MS = 1_500;
/** All nodes are on one machine, and the visitor waits: shorter times than those of a network of machines. */
const LIMITS = {
  leaseMs: LEASE_MS,
  renewIntervalMs: 300,
  coordinatorPollMs: 100,
  coordinatorRetryMs: 100,
  ackTimeoutMs: 500,
  streamHeartbeatMs: 100,
  streamTimeoutMs: 500,
  probeWaitMs: 50,
} as const satisfies NodeOptions['limits'];

export type Members = readonly [Member, Member, Member];

export class TourGroup implements AsyncDisposable {
  readonly members: Members;
  readonly #signal: AbortSignal;
  readonly #onAbort = (): void => void this.#killAll();

  private constructor(members: Members, signal: AbortSignal) {
    this.members = members;
    this.#signal = signal;
    signal.addEventListener('abort', this.#onAbort);
  }

  /** All three in sync, and the first one leads. */
  static async start(context: TourContext, workload: Workload): Promise<TourGroup> {
    const dirs = NAMES.map((name) => join(context.dir, name.replace(' ', '-')));
    const coordinator = `embedded:${join(context.dir, 'coordinator')}`;
    await makeDirectories(context, workload, dirs);
    {
      await using coordination = await openCoordinator(coordinator);
      await initGroup(coordination.group(GROUP), dirs[0]!);
    }
    const links = await Promise.all(dirs.map(() => Link.open()));
    const members = NAMES.map(
      (name, i) => new Member(name, { dir: dirs[i]!, tenant: TENANT, link: links[i]!, coordinator, limits: LIMITS }),
    );
    const group = new TourGroup(members as unknown as Members, context.signal);
    try {
      await group.#join();
      return group;
    } catch (error) {
      await group[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Takes the network between the members away, or gives it back. The coordinator is on this machine, and stays. */
  network(state: 'cut' | 'whole'): void {
    for (const { link } of this.members) {
      if (state === 'cut') link.cut();
      else link.mend();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#signal.removeEventListener('abort', this.#onAbort);
    await this.#killAll();
    for (const { link } of this.members) link.close();
  }

  async #killAll(): Promise<void> {
    await Promise.all(this.members.map((member) => member.kill()));
  }

  async #join(): Promise<void> {
    const [first, ...others] = this.members;
    const [, ...opened] = await Promise.all(this.members.map((member) => member.start()));
    await until(
      `${first.name} leads`,
      async () => (await first.ask('state', undefined)).role === 'primary' || undefined,
      this.#signal,
    );
    for (const i of others.keys()) await first.ask('add', { store: opened[i]!.store, minInSync: MAJORITY });
  }
}

async function makeDirectories(context: TourContext, workload: Workload, dirs: readonly string[]): Promise<void> {
  const { io, source, signal } = context;
  const [first, ...others] = dirs;
  const startedMs = performance.now();
  await using node = await openNode({ dir: first!, listen: { port: 0 }, scrubIntervalMs: false, signal });
  const tenant = await node.tenants.create(TENANT);
  const { rows } = await callWithDisplay(io, (onProgress) =>
    tenant.importFile(source.file, { addKey: true, keepViolations: true, onProgress, signal }),
  );
  await addTables(tenant, workload);
  for (const dir of others) await restoreNode({ dir, from: [node.address!], signal });
  const elapsed = duration(performance.now() - startedMs);
  await context.say(`A node with ${count(rows)} rows and two copies of it, made in ${elapsed}.`);
}
