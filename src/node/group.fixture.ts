/** Groups of real nodes in this process, each with its own engine thread, network and directory. */
import { cpSync, mkdirSync, readdirSync, renameSync, symlinkSync, writeFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Limits } from '../base/limits.ts';
import { openCoordinator } from '../coordination/open-coordinator.ts';
import { initGroup } from './group-init.ts';
import { openNode } from './open-node.ts';
import { restoreNode } from './restore-node.ts';
import type { Node } from './types.ts';

/** Times at which a group of one machine moves quickly. */
export const FAST: Partial<Limits> = {
  leaseMs: 1_000,
  renewIntervalMs: 200,
  coordinatorPollMs: 100,
  coordinatorRetryMs: 100,
  ackTimeoutMs: 400,
  streamHeartbeatMs: 100,
  streamTimeoutMs: 500,
  reopenMs: 50,
  probeWaitMs: 50,
  termStartTimeoutMs: 2_000,
};

export interface TestGroup {
  readonly coordinator: string;
  readonly dirs: readonly string[];
  open(index: number): Promise<Node>;
  /** The coordinator cannot be asked until it is brought back. */
  takeAway(): void;
  bringBack(): void;
}

export const MIGRATIONS = ['create table item (id integer primary key not null, body text not null)'];

/** A primary with one tenant, `acme`, and copies of it, all closed; the group record names the primary's store alone. */
export async function makeGroup(t: TestContext, members: number): Promise<TestGroup> {
  const root = await mkdtemp(join(tmpdir(), 'nostos-group-'));
  t.after(() => rm(root, { recursive: true, force: true }));
  const link = join(root, 'coordinator');
  mkdirSync(join(root, 'records'));
  symlinkSync(join(root, 'records'), link);
  const coordinator = `embedded:${link}`;
  const dirs = Array.from({ length: members }, (_, index) => join(root, `node${index}`));
  const [first] = dirs as [string];
  {
    await using node = await openNode({
      dir: first,
      listen: { port: 0 },
      migrations: MIGRATIONS,
      scrubIntervalMs: false,
    });
    const tenant = await node.tenants.create('acme');
    await tenant.write((tx) => void tx.run("insert into item values (0, 'before the group')"));
    for (const dir of dirs.slice(1)) await restoreNode({ dir, from: [node.address!] });
  }
  {
    await using coordination = await openCoordinator(coordinator);
    await initGroup(coordination.group(), first);
  }
  const open = (index: number): Promise<Node> =>
    openNode({
      dir: dirs[index]!,
      migrations: MIGRATIONS,
      scrubIntervalMs: false,
      limits: FAST,
      group: { coordinator, listen: { port: 0 } },
    });
  const takeAway = (): void => {
    // One that is not there at all would be one that was set back.
    cpSync(join(root, 'records'), join(root, 'away'), { recursive: true });
    for (const name of readdirSync(join(root, 'away'), { recursive: true, encoding: 'utf8' }))
      if (name.endsWith('.json')) writeFileSync(join(root, 'away', name), 'unreadable');
    symlinkSync(join(root, 'away'), `${link}.away`);
    renameSync(`${link}.away`, link);
  };
  const bringBack = (): void => {
    symlinkSync(join(root, 'records'), `${link}.back`);
    renameSync(`${link}.back`, link);
  };
  return { coordinator, dirs, open, takeAway, bringBack };
}

export async function until(what: string, test: () => boolean | Promise<boolean>, timeoutMs = 15_000): Promise<void> {
  const untilMs = performance.now() + timeoutMs;
  while (!(await test())) {
    if (performance.now() > untilMs) throw new Error(`not in time: ${what}`);
    await sleep(10);
  }
}
